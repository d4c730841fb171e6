"""Compiles the kernels: ``python -m primelens.kernels.build [--out FILE] [--check FILE]``.

One C compiler call per file, because each version needs flags of its own, and one to link. The
compiler is ``$CC``, else the first of cc, gcc and clang. The package's build calls
`compile_library` too, and goes on without the kernels where it fails. This file imports nothing but
the standard library: it runs before the package is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["BuildError", "compile_check", "compile_library", "main"]

SOURCES = Path(__file__).resolve().parent / "src"

_COMMON = ["-std=gnu11", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
_VERSIONS: dict[str, dict[str, Sequence[str]]] = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mprfchw"],
    },
    "aarch64": {"neon": ["-march=armv8.2-a+dotprod"]},
}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class BuildError(Exception):
    """There is no C compiler, or it refused; the message says which."""


def compile_library(out: Path, *, machine: str | None = None, extra: Sequence[str] = ()) -> None:
    """Compile the shared library that ONNX Runtime loads.

    Args:
        out: the file, replaced when everything has worked.
        machine: processor to compile for, where ``$CC`` is a cross compiler.
        extra: further flags of compiler and linker.

    Raises:
        BuildError: it cannot be compiled here.
    """
    _compile(
        out, ("operator", "call", "attention"), ["-fPIC", *extra], ["-shared", *extra], machine
    )


def compile_check(out: Path, *, machine: str | None = None, extra: Sequence[str] = ()) -> None:
    """Compile the program that compares all versions (``src/check.c``).

    Args:
        out: the executable.
        machine: processor to compile for, where ``$CC`` is a cross compiler.
        extra: further flags of compiler and linker, for example `SANITIZERS`.

    Raises:
        BuildError: it cannot be compiled here.
    """
    _compile(out, ("check",), list(extra), list(extra), machine)


def _compile(
    out: Path,
    main_files: Sequence[str],
    flags: list[str],
    link: list[str],
    machine: str | None = None,
) -> None:
    compiler = _compiler()
    name = (machine or platform.machine()).lower()
    versions = _VERSIONS.get(_MACHINES.get(name, name), {})
    files = {**dict.fromkeys([*main_files, "portable", "top"], ()), **versions}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        objects = []
        for stem, own in files.items():
            target = Path(folder) / f"{stem}.o"
            _call(
                [
                    *compiler,
                    "-O2",
                    *_COMMON,
                    *flags,
                    *own,
                    "-c",
                    SOURCES / f"{stem}.c",
                    "-o",
                    target,
                ]
            )
            objects.append(target)
        made = Path(folder) / out.name
        _call([*compiler, *link, *objects, "-lm", "-o", made])
        made.replace(out)


def _compiler() -> list[str]:
    if named := os.environ.get("CC"):
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("there is no C compiler (cc, gcc or clang); CC names another")


def _call(words: Sequence[str | Path]) -> None:
    command = [str(word) for word in words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise BuildError(f"{command[0]} failed: {said[0] if said else f'status {done.returncode}'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 1 where there is nothing to compile with."""
    parser = argparse.ArgumentParser(prog="python -m primelens.kernels.build")
    suffix = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
    parser.add_argument("--out", type=Path, default=SOURCES.parent / f"kernels.{suffix}")
    parser.add_argument("--check", type=Path, help="compile the comparing program there instead")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.check is not None:
            compile_check(chosen.check)
        else:
            compile_library(chosen.out)
    except BuildError as error:
        print(f"The kernels were not compiled: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
