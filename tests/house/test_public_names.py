"""The public surface: what `primelens` exports is what it lists and what the documents explain."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import primelens
from primelens import errors


def _documents(root: Path) -> str:
    names = ("README.md", "ARCHITECTURE.md", "docs/ARCHITECTURE.md")
    return "\n".join(
        (root / name).read_text(encoding="utf-8") for name in names if (root / name).is_file()
    )


def test_every_listed_name_is_there_and_has_a_docstring() -> None:
    for name in primelens.__all__:
        value = getattr(primelens, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_the_list_is_sorted_and_free_of_repetition() -> None:
    assert list(primelens.__all__) == sorted(set(primelens.__all__))


def test_dir_shows_the_list() -> None:
    assert set(dir(primelens)) == set(primelens.__all__)


def test_a_type_checker_sees_the_list_too(root: Path) -> None:
    """Names are resolved lazily, so the imports under TYPE_CHECKING must not drift from them."""
    tree = ast.parse((root / "runtime/__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("primelens")
        for alias in node.names
    }
    assert seen | {"__version__"} == set(primelens.__all__)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(primelens.__all__)


def test_every_public_name_is_documented(root: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", _documents(root), flags=re.DOTALL | re.MULTILINE)
    quoted = {word for code in re.findall(r"`([^`]+)`", prose) for word in re.findall(r"\w+", code)}
    assert [name for name in primelens.__all__ if name not in quoted | {"__version__"}] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        primelens.lod  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_the_packages(pyproject: dict[str, Any]) -> None:
    assert primelens.__version__ == pyproject["project"]["version"]


def _runtime_modules(root: Path) -> list[ModuleType]:
    stems = sorted(path.stem for path in (root / "runtime").glob("[a-z]*.py"))
    return [importlib.import_module(f"primelens.{stem}") for stem in stems]


def test_every_module_lists_what_it_defines(root: Path) -> None:
    """A public function or class that ``__all__`` forgets is private by accident."""
    forgotten = [
        f"{module.__name__}.{name}"
        for module in _runtime_modules(root)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and name not in module.__all__
    ]
    assert forgotten == []


def test_the_readmes_python_example_uses_what_exists(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    used = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "primelens"
    }
    assert used
    assert used <= set(primelens.__all__)
