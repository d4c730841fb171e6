"""Lay the import package out as real folders of symbolic links, for tools that read files.

The folders of this repository become one package through setuptools' ``package-dir`` table, which
type checkers do not read. ``python .ci/package_tree.py FOLDER`` makes ``FOLDER/primelens`` from
that very table, one link per file, so that ``mypy -p primelens`` checks what a wheel would hold.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lay_out(target: Path) -> int:
    """Replace ``target`` by the tree of links; return the number of files linked."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    if target.exists():
        shutil.rmtree(target)
    linked = 0
    for package in table["packages"]:
        source = ROOT / table["package-dir"][package]
        folder = target.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            if file.suffix in {".py", ".pyi"} or file.name == "py.typed":
                (folder / file.name).symlink_to(file)
                linked += 1
    return linked


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python .ci/package_tree.py FOLDER")
    print(f"{lay_out(Path(sys.argv[1]))} files linked under {sys.argv[1]}")
