"""``demo``, ``info``, ``verify`` and ``export``: what they ask for and what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from primelens.errors import GateError
from primelens.manifest import Domain

Run = Callable[..., Result]


@dataclass(frozen=True)
class FakeReport:
    """As `primelens.verify.VerifyReport`."""

    passed: bool
    lines: tuple[str, ...] = ("one", "two")

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": list(self.lines)}


@dataclass
class Exporter:
    """As `primelens.export.export_checkpoint`."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    error: Exception | None = None

    def export_checkpoint(self, checkpoint: str, out: Path, options: Any) -> SimpleNamespace:
        self.calls.append((checkpoint, out, options))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            bundle=out,
            notes=("a note",),
            parity={"failures": self.failures, "not_measured": ["quality"]},
            seconds={"load": 1.0, "prove": 2.0},
            size=2_500_000,
            passed=not self.failures,
            as_dict=lambda: {"bundle": str(out)},
        )


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


@pytest.fixture
def exporter(fake_module: Callable[..., ModuleType]) -> Exporter:
    """In the place of `primelens.export`; keeps what it is asked for."""
    fake = Exporter()
    fake_module(
        "primelens.export",
        ExportOptions=SimpleNamespace,
        GateOptions=SimpleNamespace,
        export_checkpoint=fake.export_checkpoint,
    )
    return fake


def test_export_by_default_changes_nothing(run: Run, exporter: Exporter, tmp_path: Path) -> None:
    result = run("export", "c", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "note: a note",
        "not measured: quality",
        f"{tmp_path / 'b'}: 2.5 MB, equal to its source; took 3.0 s",
    ]
    ((checkpoint, out, options),) = exporter.calls
    assert (checkpoint, out) == ("c", tmp_path / "b")
    gate = vars(vars(options).pop("gate"))
    assert gate == {"images": (), "agreement": None, "threads": None, "allow_mismatch": False}
    assert vars(options) == {
        "precision": "fp32",
        "storage": "auto",
        "name": None,
        "revision": None,
        "license": None,
        "overwrite": False,
        "head_kind": None,
    }


def test_export_passes_every_option_on(run: Run, exporter: Exporter, pictures: Path) -> None:
    texts = ["--name", "n", "--revision", "r", "--license", "MIT", "--domain", "cats"]
    choices = ["--precision", "int8", "--storage", "fp32", "--threads", "2"]
    choices += ["--agreement", "0.9", "--head-kind", "answer"]
    flags = ["--overwrite", "--allow-mismatch", "--images", "deep", "--images", "cat.png"]
    result = run("export", "c", "--out", "b", *texts, *choices, *flags)
    assert result.exit_code == 0, result.output
    ((_, _, options),) = exporter.calls
    gate = vars(vars(options).pop("gate"))
    given = (Path("deep/dog.webp"), Path("cat.png"))
    assert gate == {"images": given, "agreement": 0.9, "threads": 2, "allow_mismatch": True}
    assert vars(options) == {
        "precision": "int8",
        "storage": "fp32",
        "name": "n",
        "revision": "r",
        "license": "MIT",
        "domain": Domain("cats"),
        "overwrite": True,
        "head_kind": "answer",
    }


def test_the_real_options_take_what_the_command_line_gives(
    pictures: Path,
) -> None:
    """The fakes above take anything; the exporter's own classes do not."""
    from primelens.cli.export import ExportRequest, _options
    from primelens.export import ExportOptions

    fields = {"precision": "int8", "storage": "fp32", "name": "n", "revision": "r"}
    rest = {"license": "MIT", "domain": "cats", "images": ("deep",), "threads": 2}
    rest |= {"agreement": 0.9, "head_kind": "answer", "calibration": "deep"}
    flags = {"overwrite": True, "allow_mismatch": True, "as_json": False}
    made = _options(ExportRequest(checkpoint="c", out=Path("b"), **fields, **rest, **flags))  # type: ignore[arg-type]
    assert isinstance(made, ExportOptions)
    assert made.gate.images == (Path("deep/dog.webp"),)
    assert made.domain == Domain("cats")


def test_an_export_that_was_allowed_to_differ_says_so(
    run: Run, exporter: Exporter, tmp_path: Path
) -> None:
    exporter.failures = ["token 3 differs"]
    result = run("export", "c", "--out", tmp_path / "b", "--allow-mismatch")
    assert "DIFFERS FROM ITS SOURCE: token 3 differs" in result.stdout
    assert "NOT equal to its source" in result.stdout


def test_export_does_not_replace_a_folder_unasked(
    run: Run, exporter: Exporter, tmp_path: Path
) -> None:
    result = run("export", "c", "--out", tmp_path)
    assert result.exit_code == 1
    assert "add --overwrite" in result.stderr
    assert exporter.calls == []
    assert run("export", "c", "--out", tmp_path, "--overwrite").exit_code == 0


def test_export_reports_json(run: Run, exporter: Exporter, tmp_path: Path) -> None:
    result = run("export", "c", "--out", tmp_path / "b", "--json")
    assert json.loads(result.stdout) == {"bundle": str(tmp_path / "b")}


def test_export_with_pictures_that_are_not_there_is_wrong_usage(
    run: Run, exporter: Exporter, pictures: Path
) -> None:
    result = run("export", "c", "--out", "b", "--images", "empty")
    assert result.exit_code == 2
    assert "empty: the folder holds no picture" in result.stderr
    assert exporter.calls == []


def test_a_failed_gate_is_told_and_fails(run: Run, exporter: Exporter, tmp_path: Path) -> None:
    exporter.error = GateError("Token 3 differs.", remedy="Nothing was written.")
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
