"""Does the default model say the same on aarch64, token for token? Run by emulation, on any x86-64.

    python scripts/aarch64_tokens.py --work FOLDER            # fetch what is needed, run, compare
    python scripts/aarch64_tokens.py --work FOLDER --model BUNDLE picture.jpg …

Fetches into ``--work``, and nowhere else: an emulator (``qemu-user`` of Debian trixie: version 7.2
of bookworm crashes in ONNX Runtime), a Python 3.11 for arm64 with the libraries that it needs
(bookworm), and the runtime's own aarch64 wheels at the versions of ``constraints.txt``. Debian's
packages come from the mirror that this machine's apt uses, through apt itself, with lists of its
own. The kernels are compiled for aarch64 where ``aarch64-linux-gnu-gcc`` is installed.

The comparison is one of results, never of speed. Status 0 where every caption has the same tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ("trixie", "amd64", ("qemu-user",))
SYSTEM = (
    "bookworm",
    "arm64",
    (
        *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6"),
        *("libssl3", "zlib1g", "libstdc++6", "libgcc-s1", "libexpat1", "libffi8", "libbz2-1.0"),
        *("liblzma5", "libsqlite3-0", "libuuid1"),
    ),
)
WHEELS = (
    *("numpy", "onnxruntime", "tokenizers", "safetensors", "pillow", "click"),
    *("flatbuffers", "packaging", "protobuf"),
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
# Rooms of the runtime; the others need packages that an edge device does not have.
PACKAGES = ("primelens", "primelens.decoding", "primelens.kernels", "primelens.store")

PROGRAM = """
import json, platform, sys
sys.path[:0] = sys.argv[1:2]
import primelens
model = primelens.load(sys.argv[2], options=primelens.LoadOptions(threads=1))
rows = [model.caption(picture) for picture in sys.argv[3:]]
print(json.dumps({"machine": platform.machine(), "python": sys.version.split()[0],
                  "engine": model.engine_name,
                  "captions": [{"text": row.text, "tokens": row.tokens, "logprob": row.logprob}
                               for row in rows]}))
"""


def fetch_debian(folder: Path, suite: str, architecture: str, names: Sequence[str]) -> Path:
    """Packages of Debian, unpacked below ``folder``; nothing of this machine is changed."""
    target = folder / "unpacked"
    if target.is_dir():
        return target
    for part in ("lists/partial", "cache/archives/partial", "etc"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    ask = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    mirrors = run([*ask, "Created-By: Packages", "Label: Debian"]).split()
    if not mirrors:
        sys.exit("this machine's apt knows no mirror of Debian")
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source = f"deb [arch={architecture} signed-by={key}] {mirrors[0]} {suite} main\n"
    (folder / "sources.list").write_text(source)
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": folder / "etc",
        "Dir::Etc::preferencesparts": folder / "etc",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(word for k, v in settings.items() for word in ("-o", f"{k}={v}"))]
    run([*apt, "update"])
    run([*apt, "download", *names], cwd=folder)
    unpacking = folder / "unpacking"
    for package in sorted(folder.glob("*.deb")):
        run(["dpkg", "-x", str(package), str(unpacking)])
    unpacking.rename(target)
    return target


def fetch_wheels(folder: Path) -> Path:
    """The runtime's wheels for aarch64, unpacked into one folder."""
    target = folder / "site"
    if target.is_dir():
        return target
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in WHEELS]
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    version = ["--python-version", "3.11", "--implementation", "cp", *platforms]
    run([*pip, *version, "--dest", str(folder), *wanted])
    unpacking = folder / "unpacking"
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacking)
    unpacking.rename(target)
    return target


def lay_out(site: Path) -> str:
    """Put primelens beside its wheels, with kernels where they can be compiled; says which."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders: Mapping[str, str] = settings["tool"]["setuptools"]["package-dir"]
    shutil.rmtree(site / "primelens", ignore_errors=True)
    for package in PACKAGES:
        source, folder = ROOT / folders[package], site.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        for file in (*source.glob("*.py"), source / "py.typed"):
            if file.is_file():
                shutil.copy(file, folder)
    shutil.copytree(ROOT / "runtime" / "assets", site / "primelens" / "assets")
    metadata = site / f"primelens-{settings['project']['version']}.dist-info"
    metadata.mkdir(exist_ok=True)
    lines = f"Metadata-Version: 2.1\nName: primelens\nVersion: {settings['project']['version']}\n"
    (metadata / "METADATA").write_text(lines)
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        return "without kernels: aarch64-linux-gnu-gcc is not installed"
    os.environ["CC"] = compiler
    library = site / "primelens" / "kernels" / "kernels.so"
    _module("kernels/build.py").compile_library(library, machine="aarch64")
    return "kernels compiled for aarch64"


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("primelens_kernels_build", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Standard output of a command; what a failing one said ends this program."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        sys.exit(f"{' '.join(command[:4])} … failed with status {done.returncode}: {said}")
    return done.stdout


def main() -> int:
    """Fetch, run on both, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="what is fetched is kept there")
    parser.add_argument("--model", default="default")
    parser.add_argument("pictures", nargs="*", help="default: the shipped samples")
    chosen = parser.parse_args()
    work: Path = chosen.work.resolve()
    emulator = fetch_debian(work / "emulator", *EMULATOR) / "usr/bin/qemu-aarch64"
    system = fetch_debian(work / "system", *SYSTEM)
    site = fetch_wheels(work / "wheels")
    print(run([str(emulator), "--version"]).splitlines()[0])
    print(lay_out(site))
    samples = sorted((ROOT / "runtime/assets/samples").glob("*.jpg"))
    pictures = [str(Path(p).resolve()) for p in chosen.pictures or samples]
    asked = [chosen.model, *pictures]
    os.environ["PYTHONSAFEPATH"] = "1"
    here = json.loads(run([sys.executable, "-c", PROGRAM, str(ROOT / "nowhere"), *asked]))
    python = [str(emulator), "-L", str(system), str(system / "usr/bin/python3.11"), "-S"]
    there = json.loads(run([*python, "-c", PROGRAM, str(site), *asked]))
    return compare(here, there, pictures)


def compare(here: Mapping[str, Any], there: Mapping[str, Any], pictures: Sequence[str]) -> int:
    """Print both; 0 where all tokens are equal."""
    for side in (here, there):
        print(f"{side['machine']}: Python {side['python']}, {side['engine']}")
    different, largest = 0, 0.0
    for picture, a, b in zip(pictures, here["captions"], there["captions"], strict=True):
        same = a["tokens"] == b["tokens"]
        different += not same
        largest = max(largest, abs(a["logprob"] - b["logprob"]))
        print(f"{'same' if same else 'DIFFERENT'}: {Path(picture).name}: {b['text']}")
    print(f"{len(pictures) - different} of {len(pictures)} captions have the same tokens; ", end="")
    print(f"log-probabilities differ by {largest:.1e} at most")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
