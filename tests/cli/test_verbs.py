"""``demo``, ``info``, ``verify`` and ``export``: what they ask for and what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from primelens.errors import GateError

Run = Callable[..., Result]


@dataclass(frozen=True)
class FakeReport:
    """As `primelens.verify.VerifyReport`."""

    passed: bool
    lines: tuple[str, ...] = ("one", "two")

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": list(self.lines)}


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Put a module with the given members in the place of a real one."""

    def replace(name: str, **members: Any) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return replace


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_verify_replays_and_its_exit_code_is_the_verdict(
    run: Run, fake_module: Callable[..., ModuleType], passed: bool, code: int
) -> None:
    fake_module("primelens.verify", verify=lambda bundle: FakeReport(passed, (bundle, "x")))
    result = run("verify", "b")
    assert result.exit_code == code
    verdict = "verified" if passed else "NOT verified"
    assert result.stdout == f"b\nx\nb: {verdict}, 2 checks\n"
    as_json = run("verify", "b", "--json")
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout) == {"passed": passed, "checks": ["b", "x"]}


def test_verify_against_asks_the_exporter(run: Run, fake_module: Callable[..., ModuleType]) -> None:
    fake_module("primelens.export", verify_against=lambda b, c: FakeReport(True, (f"{b} {c}",)))
    result = run("verify", "b", "--against", "c")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "b c"


def test_export_passes_every_option_on(
    run: Run, fake_module: Callable[..., ModuleType], tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []

    def export_checkpoint(*arguments: Any) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(lines=["all equal"])

    fake_module(
        "primelens.export", ExportOptions=SimpleNamespace, export_checkpoint=export_checkpoint
    )
    assert run("export", "c", "--out", tmp_path / "b").stdout == "all equal\n"
    ((checkpoint, out, options),) = calls
    assert (checkpoint, out) == ("c", tmp_path / "b")
    assert vars(options) == {
        "precision": "fp32",
        "revision": None,
        "calibration": None,
        "overwrite": False,
        "allow_mismatch": False,
    }
    flags = ["--precision", "int8", "--revision", "r", "--overwrite", "--allow-mismatch"]
    run("export", "c", "--out", tmp_path / "b", *flags, "--calibration", tmp_path)
    assert vars(calls[1][2]) == {
        "precision": "int8",
        "revision": "r",
        "calibration": tmp_path,
        "overwrite": True,
        "allow_mismatch": True,
    }


def test_a_failed_gate_is_told_and_fails(
    run: Run, fake_module: Callable[..., ModuleType], tmp_path: Path
) -> None:
    def export_checkpoint(*arguments: Any) -> None:
        raise GateError("Token 3 differs.", remedy="Nothing was written.")

    fake_module(
        "primelens.export", ExportOptions=SimpleNamespace, export_checkpoint=export_checkpoint
    )
    result = run("export", "c", "--out", tmp_path / "b")
    assert result.exit_code == 1
    assert result.stderr == "primelens: error: Token 3 differs. Nothing was written.\n"


@pytest.mark.parametrize("verb", [["export", "c", "--out", "o"], ["verify", "b", "--against", "c"]])
def test_export_without_its_packages_names_the_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    class NoTorch:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "primelens.export":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, "primelens.export", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTorch(), *sys.meta_path])
    result = run(*verb)
    assert result.exit_code == 1
    assert "'torch'" in result.stderr
    assert "pip install 'primelens[export]'" in result.stderr


def test_demo_shows_caption_time_and_place(
    run: Run, model: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [pictures / "cat.png", pictures / "bird.JPG"]
    monkeypatch.setattr("primelens.cli.demo.sample_pictures", lambda: samples)
    result = run("demo")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fake: loaded in ")
    assert lines[3] == "  a picture of cat"
    assert lines[4].split() == [lines[4].split()[0], "ms", str(samples[0])]
    assert lines[6].endswith(f"ms   {samples[1]}")


def test_demo_without_pictures_says_so(
    run: Run, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("primelens.cli.demo.sample_pictures", list)
    result = run("demo")
    assert result.exit_code == 1
    assert "carries no sample pictures" in result.stderr
    assert model.loaded == []
