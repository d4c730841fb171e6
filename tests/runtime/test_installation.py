"""`primelens.installation`: none, one, two or a broken ONNX Runtime, each told apart."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest

from primelens import installation
from primelens.errors import DependencyError

FROZEN = Path(__file__).parent / "data" / "bundle-v1"


@pytest.fixture
def fake_metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution name → version: all that `importlib.metadata.version` knows of."""
    known: dict[str, str] = {}

    def version(distribution: str) -> str:
        if distribution not in known:
            raise PackageNotFoundError(distribution)
        return known[distribution]

    monkeypatch.setattr(installation, "version", version)
    return known


class _Blocked:
    """A finder under which importing onnxruntime fails as ``error`` says."""

    def __init__(self, error: ImportError) -> None:
        self.error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "onnxruntime":
            raise self.error


def _block(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Blocked(error), *sys.meta_path])


def _pretend_module(monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> ModuleType:
    module = ModuleType("onnxruntime")
    if whole:
        module.InferenceSession = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


@pytest.mark.parametrize("build", ["onnxruntime", "onnxruntime-gpu"])
def test_one_build_is_imported(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    fake_metadata[build] = "1.32.0"
    module = _pretend_module(monkeypatch, whole=True)
    assert installation.onnxruntime_module() is module


def test_two_builds_are_refused_before_the_import(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_metadata.update({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    _block(monkeypatch, ImportError("must not be reached", name="onnxruntime"))
    with pytest.raises(DependencyError) as caught:
        installation.onnxruntime_module()
    message = str(caught.value)
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1" in message
    assert "primelens[cpu]" in message
    assert "primelens[gpu]" in message
    assert "pip uninstall onnxruntime onnxruntime-gpu" in message


def test_none_names_both_extras(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _block(monkeypatch, ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"))
    with pytest.raises(DependencyError, match="No ONNX Runtime is installed") as caught:
        installation.onnxruntime_module()
    assert "primelens[cpu]" in caught.value.remedy
    assert "primelens[gpu]" in caught.value.remedy


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcublasLt.so.13: cannot open shared object file", name="onnxruntime"),
        ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers"),
    ],
)
def test_a_build_that_does_not_import_says_why(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch, error: ImportError
) -> None:
    fake_metadata["onnxruntime-gpu"] = "1.31.1"
    _block(monkeypatch, error)
    with pytest.raises(DependencyError) as caught:
        installation.onnxruntime_module()
    assert "onnxruntime-gpu 1.31.1 is installed but cannot be imported" in caught.value.message
    assert str(error) in caught.value.message
    assert "primelens[gpu]" in caught.value.remedy


def test_the_shell_that_an_uninstall_leaves_is_not_taken_for_a_runtime(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_metadata["onnxruntime"] = "1.32.0"
    _pretend_module(monkeypatch, whole=False)
    with pytest.raises(DependencyError, match="no InferenceSession"):
        installation.onnxruntime_module()


def test_a_build_without_metadata_is_used(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some distributions and source builds ship the module alone."""
    module = _pretend_module(monkeypatch, whole=True)
    assert installation.onnxruntime_module() is module


def test_installed_builds_reads_the_real_metadata() -> None:
    expected = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            expected[name] = importlib.metadata.version(name)
        except PackageNotFoundError:
            continue
    assert expected, "the tests run with one of the two extras"
    assert installation.installed_builds() == expected


def test_running_a_model_writes_nothing_into_the_users_home(tmp_path: Path) -> None:
    """Builds of ONNX Runtime that report usage keep an identifier there, unless told not to."""
    code = (
        "import numpy, primelens; "
        f"model = primelens.load({str(FROZEN)!r}); "
        "print(len(model.caption(numpy.zeros((9, 9, 3), 'uint8')).tokens))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], check=True, env=environment, capture_output=True
    )
    assert int(done.stdout) > 0
    assert list(tmp_path.rglob("*")) == []


def test_who_wants_telemetry_keeps_it(
    fake_metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_metadata["onnxruntime"] = "1.32.0"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    installation.onnxruntime_module()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
