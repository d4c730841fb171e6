"""A checkpoint becomes a bundle: complete, proved, torch-free, or it is not written at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import primelens
from primelens.bundle import MANIFEST_NAME, file_record, open_bundle
from primelens.errors import GateError, OptionError, PrimelensError, UnsupportedError
from primelens.export import ExportOptions, GateOptions, export_checkpoint, verify_against
from primelens.export import pipeline as pipeline_module
from primelens.export.checkpoint import open_checkpoint
from primelens.export.draft import Draft
from primelens.export.reference_works import build
from primelens.manifest import Domain
from primelens.verify import verify

GATE = GateOptions(threads=1, random_images=2, steps=8)
NAME = "tiny-vitgpt2"
_replace: Any = replace


@pytest.fixture(scope="module")
def bundle(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    domain = Domain("Noise.", notice="not noise")
    options = ExportOptions(name="tiny", license="CC0-1.0", domain=domain, gate=GATE)
    report = export_checkpoint(checkpoints(NAME), out, options)
    assert report.passed
    assert report.bundle == out
    assert report.size == sum(path.stat().st_size for path in out.iterdir())
    assert json.loads(json.dumps(report.as_dict()))["passed"] is True
    return out


def test_the_bundle_is_complete(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert set(manifest.files) == {
        "README.md",
        "caption.connector.onnx",
        "caption.connector.weights",
        "caption.decoder.onnx",
        "caption.decoder.weights",
        "golden.safetensors",
        "tokenizer.json",
        "tower.onnx",
        "tower.weights",
    }
    assert (manifest.name, manifest.license) == ("tiny", "CC0-1.0")
    assert manifest.parity["failures"] == []
    measured = manifest.parity["heads"]["caption"]
    assert measured["tokens_compared"] > 20
    assert measured["logits"]["largest_error"] < measured["logits"]["limit"]
    card = (bundle / "README.md").read_text()
    assert "Noise." in card
    assert "tokens identical" in card


def test_no_file_names_this_machine(bundle: Path) -> None:
    home = str(Path(pipeline_module.__file__).parents[1]).encode()
    for path in bundle.iterdir():
        data = path.read_bytes()
        assert home not in data, path.name
        assert b"stack_trace" not in data, path.name


def test_the_golden_outputs_replay(bundle: Path) -> None:
    report = verify(bundle, options=primelens.LoadOptions(threads=1))
    assert report.passed, report.lines
    assert len(report.checks) == 2 * 4  # pixels, tap, tokens, logits
    golden = load_file(bundle / "golden.safetensors")
    assert golden["image.0"].shape != golden["image.1"].shape


def test_a_changed_golden_value_is_noticed(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    golden = load_file(copy / "golden.safetensors")
    golden["logits.caption.1"][0, 3] += 0.01
    save_file(golden, copy / "golden.safetensors")
    data = json.loads((copy / MANIFEST_NAME).read_text())
    record = file_record(copy / "golden.safetensors")
    data["files"]["golden.safetensors"] = {"size": record.size, "sha256": record.sha256}
    (copy / MANIFEST_NAME).write_text(json.dumps(data))
    report = verify(copy, options=primelens.LoadOptions(threads=1))
    assert [check.name for check in report.checks if not check.passed] == [
        "picture 1, caption logits"
    ]


def test_it_captions_without_torch(bundle: Path) -> None:
    code = (
        "import sys, numpy, primelens\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        f"model = primelens.load({str(bundle)!r})\n"
        "print(len(model.caption(numpy.full((9, 9, 3), 80, numpy.uint8)).tokens))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


def test_an_existing_folder_is_kept_unless_told(
    bundle: Path, checkpoints: Callable[[str], Path]
) -> None:
    before = (bundle / MANIFEST_NAME).read_bytes()
    with pytest.raises(PrimelensError):
        export_checkpoint(checkpoints(NAME), bundle, ExportOptions(gate=GATE))
    assert (bundle / MANIFEST_NAME).read_bytes() == before


@pytest.fixture
def defective(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that swaps the head's start token."""
    honest = pipeline_module.draft_bundle

    def draft_bundle(*arguments: Any) -> Draft:
        draft = honest(*arguments)
        head = draft.heads["caption"]
        generation = _replace(head.generation, start_tokens=(2,))
        draft.heads["caption"] = _replace(head, generation=generation)
        return draft

    monkeypatch.setattr(pipeline_module, "draft_bundle", draft_bundle)


@pytest.mark.usefixtures("defective")
def test_a_failed_gate_writes_nothing(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(GateError, match="nothing was written") as caught:
        export_checkpoint(checkpoints(NAME), tmp_path / "out", ExportOptions(gate=GATE))
    assert list(tmp_path.iterdir()) == []
    assert "picture 0, step" in caught.value.problems[0]


@pytest.mark.usefixtures("defective")
def test_an_allowed_mismatch_is_recorded(
    checkpoints: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ExportOptions(gate=replace(GATE, allow_mismatch=True))
    report = export_checkpoint(checkpoints(NAME), tmp_path / "out", options)
    assert not report.passed
    assert "DOES NOT EQUAL ITS SOURCE" in caplog.text
    failures = open_bundle(tmp_path / "out").manifest.parity["failures"]
    assert "picture 0, step" in failures[0]
    assert "The comparison failed" in (tmp_path / "out" / "README.md").read_text()


def test_settings_that_decoding_refuses_are_refused_here(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints(NAME), tmp_path / "checkpoint"))
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"encoder_no_repeat_ngram_size": 2}
    path.write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="encoder_no_repeat_ngram_size"):
        export_checkpoint(folder, tmp_path / "out", ExportOptions(gate=GATE))


def test_a_checkpoint_that_asks_for_beams_is_compared_with_beams(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints(NAME), tmp_path / "checkpoint"))
    path = folder / "generation_config.json"
    asked = {"num_beams": 3, "no_repeat_ngram_size": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    report = export_checkpoint(folder, tmp_path / "out", ExportOptions(gate=GATE))
    measured = report.parity["heads"]["caption"]["default_settings"]
    assert measured == {"settings": asked, "pictures": 2}
    assert verify(tmp_path / "out").passed


def test_a_half_precision_checkpoint_is_stored_in_half(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints(NAME), tmp_path / "checkpoint"))
    model = open_checkpoint(folder).model.half()
    model.save_pretrained(folder)
    sizes, texts = [], []
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for storage in ("auto", "fp32"):
        out = tmp_path / storage
        options = ExportOptions(storage=storage, gate=GATE)  # type: ignore[arg-type]
        assert export_checkpoint(folder, out, options).passed
        sizes.append(sum(path.stat().st_size for path in out.glob("*.weights")))
        loaded = primelens.load(out, options=primelens.LoadOptions(threads=1))
        caption = loaded.caption(picture)
        texts.append((caption.tokens, caption.token_logprobs))
    assert texts[0] == texts[1]  # bit for bit
    assert sizes[0] < 0.55 * sizes[1]


@pytest.mark.parametrize("name", ["tiny-vitgpt2", "tiny-vitbert"])
def test_eight_bits(checkpoints: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Random weights hold their candidates close together, so the agreement asked for is less."""
    gate = replace(GATE, agreement=0.7)
    out = tmp_path / "out"
    report = export_checkpoint(checkpoints(name), out, ExportOptions(precision="int8", gate=gate))
    measured = report.parity["heads"]["caption"]
    assert 0.7 <= measured["logits"]["top1_agreement"] <= 1
    assert 1e-4 < measured["tap"]["relative_rms_error"] < 0.03
    assert "0.7" in report.parity["rule"]
    manifest = open_bundle(out).manifest
    assert manifest.heads["caption"].precision == "int8"
    assert manifest.tower.variant == "int8-rows"
    assert verify(out, options=primelens.LoadOptions(threads=1)).passed
    wide = 4 * sum(p.numel() for p in open_checkpoint(checkpoints(name)).model.parameters())
    assert sum(path.stat().st_size for path in out.glob("*.weights")) < 0.45 * wide


def test_eight_bits_that_disagree_are_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ExportOptions(precision="int8", gate=replace(GATE, agreement=1.0, steps=24))
    with pytest.raises(GateError, match="top-1 agreement is"):
        export_checkpoint(checkpoints("tiny-vitbert"), tmp_path / "out", options)


def test_verify_against_the_source(bundle: Path, checkpoints: Callable[[str], Path]) -> None:
    report = verify_against(bundle, checkpoints(NAME), replace(GATE, seed=5))
    assert report.passed, report.lines
    names = {check.name for check in report.checks}
    assert {"source digest", "identity at last_hidden_state", "head caption, tokens"} <= names


def test_verify_against_another_source(bundle: Path, tmp_path: Path) -> None:
    other = build(NAME, tmp_path / "other", seed=9)
    report = verify_against(bundle, other, GATE)
    failed = {check.name for check in report.checks if not check.passed}
    assert {"source digest", "identity at last_hidden_state", "head caption, digest"} <= failed
    assert "head caption" in failed  # and the gate saw it too


@pytest.mark.parametrize(
    "wrong",
    [{"precision": "int3"}, {"storage": "fp8"}, {"detector_file": Path("x")}],
)
def test_unknown_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ExportOptions(**wrong)


def test_torch_threads_are_left_alone(bundle: Path) -> None:
    assert torch.get_num_threads() == 2


def test_a_domain_detector_travels_with_the_bundle(
    checkpoints: Callable[[str], Path], bundle: Path, tmp_path: Path
) -> None:
    tap = open_bundle(bundle).manifest.tower.taps["last_hidden_state"]
    width = tap.shape[-1]
    fitted = {
        "mean.last_hidden_state": np.full(2 * width, 100, np.float32),
        "scale.last_hidden_state": np.ones(2 * width, np.float32),
    }
    save_file(fitted, tmp_path / "fitted.safetensors")
    domain = Domain("Far away.", "outside", "domain.safetensors", threshold=10.0)
    options = ExportOptions(domain=domain, detector_file=tmp_path / "fitted.safetensors", gate=GATE)
    export_checkpoint(checkpoints(NAME), tmp_path / "out", options)
    model = primelens.load(tmp_path / "out", options=primelens.LoadOptions(threads=1))
    assert model.caption(np.zeros((9, 9, 3), np.uint8)).notice is not None
    unfitted = primelens.load(bundle, options=primelens.LoadOptions(threads=1))
    assert unfitted.caption(np.zeros((9, 9, 3), np.uint8)).notice is None
