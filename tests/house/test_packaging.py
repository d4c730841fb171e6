"""The tables of pyproject.toml against the disk, and a built wheel against both.

A forgotten subpackage imports fine from an editable install and is absent from the wheel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from primelens.kernels import FILE_NAME

ROOMS = ("runtime", "kernels", "export", "towers", "tune", "offline", "bench", "cli")


def _packages_on_disk(root: Path) -> dict[str, str]:
    """Import name → folder, for every folder under a room that holds Python files."""
    found = {}
    for room in ROOMS:
        for folder in [root / room, *(p for p in (root / room).rglob("*") if p.is_dir())]:
            if not any(folder.glob("*.py")):
                continue
            inside = folder.relative_to(root / room).parts
            parts = ["primelens", *([] if room == "runtime" else [room]), *inside]
            found[".".join(parts)] = folder.relative_to(root).as_posix()
    return found


def _data_patterns(pyproject: dict[str, Any]) -> dict[str, list[str]]:
    patterns: dict[str, list[str]] = pyproject["tool"]["setuptools"]["package-data"]
    return patterns


def test_every_folder_with_python_files_is_declared(root: Path, pyproject: dict[str, Any]) -> None:
    table = pyproject["tool"]["setuptools"]
    assert table["package-dir"] == _packages_on_disk(root)
    assert sorted(table["packages"]) == sorted(table["package-dir"])


def test_every_declared_folder_is_a_regular_package(root: Path, pyproject: dict[str, Any]) -> None:
    folders = pyproject["tool"]["setuptools"]["package-dir"].values()
    assert [folder for folder in folders if not (root / folder / "__init__.py").is_file()] == []


def test_no_runtime_module_is_named_like_a_room(root: Path) -> None:
    names = {path.stem for path in (root / "runtime").iterdir()}
    assert names.isdisjoint(set(ROOMS) - {"runtime"})


def test_every_data_file_is_declared(
    root: Path, pyproject: dict[str, Any], committed_files: list[Path]
) -> None:
    declared = {
        pyproject["tool"]["setuptools"]["package-dir"][package]: patterns
        for package, patterns in _data_patterns(pyproject).items()
    }
    missing = []
    for path in committed_files:
        name = path.relative_to(root).as_posix()
        if not name.startswith(tuple(f"{room}/" for room in ROOMS)) or path.suffix == ".py":
            continue
        if not any(
            fnmatch(name, f"{folder}/{pattern.replace('**', '*')}")
            for folder, patterns in declared.items()
            for pattern in patterns
        ):
            missing.append(name)
    assert missing == []


def test_neither_onnxruntime_is_a_base_dependency(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    names = {re.split(r"[<>=!~ \[]", line)[0].lower() for line in project["dependencies"]}
    assert names == {"click", "numpy", "pillow", "safetensors", "tokenizers"}
    extras = project["optional-dependencies"]
    assert [re.split(r"[<>=]", line)[0] for line in extras["cpu"]] == ["onnxruntime"]
    assert [re.split(r"[<>=]", line)[0] for line in extras["gpu"]] == ["onnxruntime-gpu"]
    for extra in set(extras) - {"cpu", "gpu"}:
        assert not [line for line in extras[extra] if "onnxruntime" in line], extra


def test_every_pin_is_exact_and_every_dependency_is_pinned(
    root: Path, pyproject: dict[str, Any]
) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    exact = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*")
    assert [pin for pin in pins if not exact.fullmatch(pin)] == []
    assert "torch==2.13.0" in pins

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {canonical(pin.split("==")[0]) for pin in pins}
    project = pyproject["project"]
    wanted = {
        canonical(re.split(r"[<>=!~ \[]", line)[0])
        for extra, group in [
            ("", project["dependencies"]),
            *project["optional-dependencies"].items(),
        ]
        if extra != "gpu"  # excludes cpu, so no environment holds every pin
        for line in group
    }
    assert wanted - pinned == {"primelens"}


@pytest.mark.parametrize("compiler", [None, "false"], ids=["as it is", "without a compiler"])
def test_a_built_wheel_holds_every_file(
    root: Path,
    pyproject: dict[str, Any],
    committed_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str | None,
) -> None:
    """Built from a copy, so that neither a stale ``build/`` nor this tree takes part."""
    if compiler is not None:
        monkeypatch.setenv("CC", compiler)
    copy = tmp_path / "source"
    for path in committed_files:
        target = copy / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(copy)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("primelens/")}

    expected = set()
    mapping = pyproject["tool"]["setuptools"]["package-dir"]
    by_depth = sorted(mapping.items(), key=lambda item: -len(item[1]))
    for path in committed_files:
        name = path.relative_to(root).as_posix()
        if name.startswith("bench/results/"):  # figures of certain machines: for readers, not users
            continue
        for package, folder in by_depth:
            if name.startswith(f"{folder}/"):
                expected.add(package.replace(".", "/") + name.removeprefix(folder))
                break
    compiled = {name for name in held if name.endswith((".so", ".dylib", ".dll"))}
    assert compiled <= {f"primelens/kernels/{FILE_NAME}"}
    assert held - compiled == expected
    assert wheel.name.split("-")[2:4] == ["py3", "none"]  # one platform, every Python 3
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    assert bool(compiled) == (has_compiler and compiler is None)
