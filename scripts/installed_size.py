"""How large the runtime is when it is installed: ``python scripts/installed_size.py [--limit MB]``

Walks the requirements of primelens with one extra (``cpu``) from the installed packages' own
metadata, sums the files that each has installed, and prints them, the largest first. primelens
itself counts with the rooms that a wheel holds. What comes along because tokenizers asks for
huggingface_hub, which the runtime never imports for a bundle on the disk, is summed by itself:
``docs/edge.md`` shows an installation without it. Status 1 where that is beyond the limit, 200 MB.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MARKER = re.compile(r";.*")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


NOT_IMPORTED = "huggingface-hub"


def required(name: str, extra: str = "", without: str = "") -> dict[str, Distribution]:
    """Name → distribution of ``name`` and all that it needs; extras of others are left out."""
    found: dict[str, Distribution] = {}
    waiting = [(name, extra)]
    while waiting:
        current, wanted = waiting.pop()
        key = re.sub(r"[-_.]+", "-", current).lower()
        if key in found or key == without:
            continue
        found[key] = distribution(current)
        for line in found[key].requires or []:
            marker = _MARKER.search(line)
            if marker and not _applies(marker.group(), wanted):
                continue
            match = _NAME.match(line)
            assert match is not None
            waiting.append((match.group(), ""))
    return found


def _applies(marker: str, extra: str) -> bool:
    """Whether a requirement counts: those of other extras and of other systems do not."""
    named = re.findall(r"""extra\s*==\s*["']([^"']+)["']""", marker)
    if named:
        return extra in named
    return not re.search(r"win32|Windows|emscripten|python_version\s*<", marker)


def installed_bytes(package: Distribution) -> int:
    """Bytes of the files that a distribution has installed, byte code left out."""
    files = [Path(str(package.locate_file(file))) for file in package.files or []]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file())


def own_bytes() -> int:
    """Bytes of primelens as a wheel installs it: an editable install lists none of its files."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = settings["tool"]["setuptools"]["package-dir"].values()
    files = {
        file
        for folder in folders
        for file in (ROOT / folder).iterdir()
        if file.suffix in {".py", ".so", ".toml", ".txt", ".typed"}
    }
    files |= set((ROOT / "runtime" / "assets").rglob("*"))
    files |= set((ROOT / "kernels" / "src").glob("*.[ch]"))
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> int:
    """Print the list and its sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", default="cpu")
    parser.add_argument("--limit", type=float, default=200.0, metavar="MB")
    chosen = parser.parse_args()
    packages = required("primelens", chosen.extra)
    needed = required("primelens", chosen.extra, NOT_IMPORTED)
    sizes = {key: installed_bytes(package) for key, package in packages.items()}
    sizes["primelens"] = own_bytes()
    for key, size in sorted(sizes.items(), key=lambda item: -item[1]):
        mark = "" if key in needed else f"   (for {NOT_IMPORTED} alone)"
        print(f"{size / 1e6:8.1f} MB  {key} {packages[key].version}{mark}")
    total = sum(sizes.values()) / 1e6
    runtime = sum(sizes[key] for key in needed) / 1e6
    print(f"{total:8.1f} MB  in all, {len(sizes)} packages")
    print(f"{runtime:8.1f} MB  without {NOT_IMPORTED}; the limit is {chosen.limit:g} MB")
    return 1 if runtime > chosen.limit else 0


if __name__ == "__main__":
    sys.exit(main())
