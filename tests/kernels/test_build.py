"""What is compiled: all versions against each other under sanitisers, and what if nothing is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from primelens import kernels
from primelens.kernels import build

needs_compiler = pytest.mark.skipif(
    not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))),
    reason="there is no C compiler",
)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparing program with the address and undefined-behaviour sanitisers."""
    out = tmp_path_factory.mktemp("check") / "check"
    build.compile_check(out, extra=build.SANITIZERS)
    return out


@needs_compiler
@pytest.mark.parametrize("seed", [1, 2])
def test_every_version_equals_the_portable_one(check: Path, seed: int) -> None:
    done = subprocess.run([check, str(seed), "200"], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal portable" in done.stdout


@needs_compiler
@pytest.mark.slow
def test_every_version_equals_the_portable_one_for_long(check: Path) -> None:
    done = subprocess.run([check, "3", "60000"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stdout + done.stderr


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="no aarch64 cross compiler and emulator (gcc-aarch64-linux-gnu, qemu-user)",
)
@pytest.mark.parametrize("cases", [60, pytest.param(4000, marks=pytest.mark.slow)])
def test_neon_equals_the_portable_version_under_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: int
) -> None:
    monkeypatch.setenv("CC", "aarch64-linux-gnu-gcc")
    build.compile_check(tmp_path / "check", machine="aarch64", extra=["-static"])
    done = subprocess.run(
        ["qemu-aarch64", tmp_path / "check", "1", str(cases)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "neon equal portable" in done.stdout


@needs_compiler
def test_a_check_that_cannot_fail_would_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong offset in the fast versions is found."""
    copy = tmp_path / "src"
    shutil.copytree(build.SOURCES, copy)
    for name in ("avx2.c", "avx512.c", "neon.c"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("most < 1e-30f", "most < 1e-3f"))
    monkeypatch.setattr(build, "SOURCES", copy)
    build.compile_check(tmp_path / "check")
    done = subprocess.run(
        [tmp_path / "check", "1", "200"], capture_output=True, text=True, check=False
    )
    if done.returncode == 2:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 1
    assert "differs" in done.stdout


def test_without_a_compiler_the_build_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "false")
    assert build.main(["--out", str(tmp_path / "kernels.so")]) == 1
    assert "were not compiled: false failed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(build.BuildError, match="no/such/compiler"):
        build.compile_library(tmp_path / "kernels.so")


def test_the_library_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(kernels.ENVIRONMENT, "off")
    assert kernels.library().path is None
    assert str(kernels.library()) == "none (switched off by PRIMELENS_KERNELS)"
    assert "not compiled" in kernels._open(tmp_path / "absent.so", "").reason
    (tmp_path / "broken.so").write_bytes(b"no library")
    assert "cannot be loaded" in kernels._open(tmp_path / "broken.so", "").reason


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="the sources are for gcc and clang")
def test_a_library_of_other_sources_is_not_used(tmp_path: Path) -> None:
    """Else a graph would run on functions of standard operators, and nobody would know why."""
    (tmp_path / "old.c").write_text("int primelens_kernels_revision(void) { return 1; }\n")
    library = tmp_path / "kernels.so"
    compiler = build._compiler()
    subprocess.run([*compiler, "-shared", "-fPIC", tmp_path / "old.c", "-o", library], check=True)
    assert "compiled from other sources" in kernels._open(library, "").reason


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="the sources are for gcc and clang")
def test_a_compiled_library_names_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.compile_library(tmp_path / "kernels.so")
    script = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]);"
        "lib.primelens_kernels_version.restype = ctypes.c_char_p;"
        "print(lib.primelens_kernels_version().decode())"
    )
    monkeypatch.setenv(kernels.ENVIRONMENT, "portable")
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "kernels.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "portable"
