"""Which room may import what, held by a walk over every syntax tree.

An import counts as *lazy* where it stands inside a function or under ``if TYPE_CHECKING``;
everything else runs when the module is imported. ``importlib.import_module("name")`` counts like
an import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Rule:
    """What one room may import: packages and rooms, at module level and lazily besides."""

    packages: frozenset[str] = frozenset()
    rooms: frozenset[str] = frozenset()
    lazy_packages: frozenset[str] = frozenset()
    lazy_rooms: frozenset[str] = frozenset()


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# click is all that the command line may load before it knows which verb was asked for.
RULES = {
    "runtime": Rule(
        packages=_names("numpy tokenizers PIL safetensors"),
        rooms=_names("kernels"),
        lazy_packages=_names("onnxruntime huggingface_hub tensorrt av llguidance"),
    ),
    "kernels": Rule(packages=_names("numpy"), lazy_packages=_names("triton cuda cupy")),
    "towers": Rule(packages=_names("torch transformers")),
    "export": Rule(
        packages=_names(
            "torch transformers onnx onnxscript onnx_ir numpy safetensors tokenizers PIL"
        ),
        rooms=_names("runtime kernels towers"),
        lazy_packages=_names("onnxruntime tensorrt tensorrt_rtx huggingface_hub ml_dtypes"),
    ),
    "tune": Rule(
        packages=_names("torch transformers numpy safetensors tokenizers PIL"),
        rooms=_names("runtime towers"),
        lazy_packages=_names(
            "accelerate peft datasets pyarrow webdataset huggingface_hub matplotlib onnx "
            "tensorboardX"
        ),
    ),
    "offline": Rule(
        packages=_names("numpy"),
        rooms=_names("runtime"),
        lazy_packages=_names("pyarrow fsspec ray"),
    ),
    "bench": Rule(
        packages=_names("numpy PIL"),
        rooms=_names("runtime"),
        lazy_packages=_names(
            "torch transformers onnx onnxruntime optimum openvino vllm psutil scipy matplotlib "
            "pyarrow mlperf_loadgen"
        ),
        lazy_rooms=_names("export towers kernels"),
    ),
    "cli": Rule(
        packages=_names("click"),
        lazy_packages=_names("numpy safetensors"),  # the run time's own, to write vectors
        lazy_rooms=_names("runtime kernels export towers tune offline bench"),
    ),
}


@dataclass(frozen=True)
class Import:
    """One imported module (``primelens.export.split``), where, and whether only when called."""

    module: str
    line: int
    lazy: bool


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        # ``from primelens import export`` names a room in its aliases.
        return [f"{base}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id)
        in {"import_module", "__import__"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        return [str(node.args[0].value)]
    return []


def imports(tree: ast.AST, package: str, *, lazy: bool = False) -> Iterator[Import]:
    """Every import below ``tree``; ``package`` resolves relative ones."""
    for node in ast.iter_child_nodes(tree):
        for module in _imported(node, package):
            yield Import(module, getattr(node, "lineno", 0), lazy)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, package, lazy=True)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from imports(ast.Module(node.body, []), package, lazy=True)
            yield from imports(ast.Module(node.orelse, []), package, lazy=lazy)
        else:
            yield from imports(node, package, lazy=lazy)


def room_of(module: str) -> str:
    """The room that ``primelens.…`` names; the root package itself is the runtime."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RULES else "runtime"


def violations(source: str, room: str, package: str) -> list[str]:
    """What the file's imports break of its room's rule, one line each."""
    rule = RULES[room]
    found = []
    for item in imports(ast.parse(source), package):
        top = item.module.split(".")[0]
        when = "lazily" if item.lazy else "at module level"
        if top == "primelens":
            target = room_of(item.module)
            allowed = rule.rooms | (rule.lazy_rooms if item.lazy else frozenset())
            if target != room and target not in allowed:
                found.append(f"line {item.line}: {room}/ imports the room {target}/ {when}")
        elif top not in sys.stdlib_module_names:
            allowed = rule.packages | (rule.lazy_packages if item.lazy else frozenset())
            if top not in allowed:
                found.append(f"line {item.line}: {room}/ imports {top} {when}")
    return found


def _python_files() -> list[tuple[str, Path]]:
    return [(room, path) for room in RULES for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_room_with_code_has_a_rule() -> None:
    rooms = {
        folder.name
        for folder in ROOT.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and any(folder.rglob("*.py"))
    }
    # scripts/ drives several rooms and is imported by none.
    assert rooms - {"tests", "docs", "build", "dist", "examples", "scripts"} <= set(RULES)


def test_every_file_keeps_to_its_rooms_rule() -> None:
    broken = []
    for room, path in _python_files():
        inside = path.parent.relative_to(ROOT / room).parts
        package = ".".join(["primelens", *([] if room == "runtime" else [room]), *inside])
        broken += [
            f"{path.relative_to(ROOT)}: {line}"
            for line in violations(path.read_text(encoding="utf-8"), room, package)
        ]
    assert not broken, "\n" + "\n".join(broken)


def test_the_walk_sees_the_real_files() -> None:
    seen = {
        item.module
        for room, path in _python_files()
        if room == "runtime"
        for item in imports(ast.parse(path.read_text(encoding="utf-8")), "primelens")
    }
    assert {"primelens.errors.PrimelensError", "onnxruntime"} <= seen


@pytest.mark.parametrize(
    ("room", "source", "said"),
    [
        ("runtime", "import torch", "imports torch at module level"),
        ("runtime", "def f():\n    import torch.nn", "imports torch lazily"),
        ("runtime", "import onnxruntime as ort", "imports onnxruntime at module level"),
        ("runtime", "import importlib\nimportlib.import_module('onnx')", "imports onnx at module"),
        ("runtime", "from primelens.export import split", "imports the room export/"),
        ("runtime", "from primelens import cli", "imports the room cli/"),
        ("runtime", "from .bench import timing", "imports the room bench/"),
        (
            "runtime",
            "class A:\n    try:\n        import onnx\n    finally:\n        pass",
            "onnx at",
        ),
        ("export", "from primelens.tune import scenes", "imports the room tune/"),
        ("export", "from ..bench import timing", "imports the room bench/"),
        ("export", "import tensorrt", "imports tensorrt at module level"),
        ("towers", "import numpy", "imports numpy at module level"),
        ("towers", "from primelens.errors import InputError", "imports the room runtime/"),
        ("tune", "from primelens import bench", "imports the room bench/"),
        ("bench", "from primelens.export import gate", "room export/ at module level"),
        ("cli", "import numpy", "imports numpy at module level"),
        ("cli", "from primelens import load", "imports the room runtime/ at module level"),
        ("kernels", "from primelens.errors import EngineError", "imports the room runtime/"),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str, said: str) -> None:
    package = "primelens" if room == "runtime" else f"primelens.{room}"
    found = violations(source, room, package)
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runtime", "import json, numpy.typing\nfrom PIL import Image\nfrom .errors import X"),
        ("runtime", "from primelens.kernels import table"),
        ("runtime", "def f():\n    import onnxruntime"),
        ("runtime", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onnxruntime"),
        ("export", "import torch, onnx_ir\nfrom primelens.towers import vit\nimport primelens"),
        ("bench", "def f():\n    from primelens.export import gate"),
        ("cli", "import click\nfrom primelens.cli import app\ndef f():\n    import primelens.tune"),
    ],
)
def test_an_allowed_import_is_let_through(room: str, source: str) -> None:
    package = "primelens" if room == "runtime" else f"primelens.{room}"
    assert violations(source, room, package) == []
