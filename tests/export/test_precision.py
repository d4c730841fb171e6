"""``int4`` and ``auto``: what they write, what they refuse, and that they say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import primelens
from primelens import kernels
from primelens.bundle import open_bundle
from primelens.cli.info import describe
from primelens.decoding.options import DecodingOptions
from primelens.errors import GateError, OptionError
from primelens.export import ExportOptions, export_checkpoint
from primelens.export.calibration import observe, watched_rows
from primelens.export.heads import HeadOptions, add_head
from primelens.export.options import GateOptions, TaskMetric
from primelens.export.pictures import random_pictures
from primelens.hub import resolve
from primelens.verify import verify

from .conftest import Work

GATE = GateOptions(threads=1, random_images=2, steps=12)
EASY = replace(GATE, agreement=0.2)  # random weights hold their candidates close together
NAME = "tiny-vitgpt2"
EXACT = 0.8
PICTURES = tuple(random_pictures(6, (32, 32), 77))
Checkpoints = Callable[[str], Path]


def precision_of(folder: Path) -> float:
    """A made-up metric: a bundle in fewer bits is worse."""
    heads = open_bundle(folder, check="size").manifest.heads
    return {"fp32": EXACT, "int8": 0.797, "int4": 0.785}[heads["caption"].precision]


def only_exact(folder: Path) -> float:
    """A metric that no bundle in fewer bits does well in."""
    return min(precision_of(folder), 0.7) + 0.1 * (precision_of(folder) == EXACT)


@pytest.fixture(scope="module")
def four(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four") / "bundle"
    options = ExportOptions(precision="int4", calibration=PICTURES, gate=EASY)
    export_checkpoint(checkpoints(NAME), out, options)
    return out


def test_four_bits_are_written_and_replayed(four: Path, checkpoints: Checkpoints) -> None:
    manifest = open_bundle(four).manifest
    assert manifest.heads["caption"].precision == "int4"
    assert manifest.tower.variant == "int8-rows"
    recipe = manifest.parity["recipe"]
    assert recipe["four_bits"]["pictures"] == 6
    assert not recipe["four_bits"]["random_pictures"]
    measured = manifest.parity["heads"]["caption"]["logits"]
    assert measured["relative_rms_error"] > 0
    assert verify(four, options=primelens.LoadOptions(threads=1)).passed


def test_four_bits_have_the_same_bits_without_the_compiled_kernels(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {}
    for choice in ("", "portable", "off"):
        monkeypatch.setenv(kernels.ENVIRONMENT, choice)
        model = primelens.load(four, options=primelens.LoadOptions(threads=1))
        options = primelens.CaptionOptions(max_new_tokens=8, min_new_tokens=8)
        alone = [model.caption(picture, options) for picture in PICTURES[:3]]
        together = model.caption(list(PICTURES[:3]), options)
        beams = replace(options, decoding=DecodingOptions(num_beams=3))
        found = [alone, together, model.caption(list(PICTURES[:2]), beams)]
        said[choice] = [[(c.tokens, c.token_logprobs) for c in part] for part in found]
        assert said[choice][0] == said[choice][1]
    assert said[""] == said["portable"] == said["off"]


def test_four_bits_by_default_have_to_agree(checkpoints: Checkpoints, tmp_path: Path) -> None:
    options = ExportOptions(precision="int4", calibration=PICTURES, gate=GATE)
    with pytest.raises(GateError, match=r"below 0\.95[^$]*Ask for more bits"):
        export_checkpoint(checkpoints("tiny-vitbert"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("agreement", "metric", "chosen"),
    [(0.2, None, "int4"), (0.2, precision_of, "int8"), (0.2, only_exact, "fp32")],
)
def test_auto_takes_the_narrowest_that_passes_and_says_so(
    checkpoints: Checkpoints,
    tmp_path: Path,
    agreement: float,
    metric: Callable[[Path], float] | None,
    chosen: str,
) -> None:
    options = ExportOptions(
        precision="auto",
        calibration=PICTURES,
        metric=None if metric is None else TaskMetric("made up", metric),
        gate=replace(GATE, agreement=agreement, allow_mismatch=True),  # of fp32 alone
    )
    report = export_checkpoint(checkpoints("tiny-vitbert"), tmp_path / "out", options)
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.heads["caption"].precision == chosen
    assert manifest.parity["recipe"]["precision"] == chosen
    refused = [note for note in report.notes if note.startswith("precision auto: ")]
    assert len(refused) == ["int4", "int8", "fp32"].index(chosen)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(note in card for note in refused)
    if chosen == "fp32":
        assert "made up is 0.7000, in float32 0.8000; least 0.7960" in refused[1]
        assert "task" not in manifest.parity
    elif metric is not None:
        assert "made up is 0.7850, in float32 0.8000; least 0.7900" in refused[0]
        assert manifest.parity["task"]["value"] == 0.797
        assert "text quality on labelled data" not in manifest.parity["not_measured"]


def test_what_a_metric_may_lose() -> None:
    metric = TaskMetric("any", precision_of, reference=0.8)
    assert metric.least("int4") == pytest.approx(0.79)
    assert metric.least("int8") == pytest.approx(0.796)


def test_watching_changes_nothing(works: Callable[[str], Work], tmp_path: Path) -> None:
    """Rows are counted once a step, and the texts are the ones that are written unwatched."""
    work, folder = works(NAME), tmp_path / "bundle"
    options = ExportOptions(storage="fp32", gate=GATE)
    export_checkpoint(work.folder, folder, options)
    graph = work.draft.graphs["caption.decoder"]
    names = {"caption.decoder": watched_rows(graph)}
    observed = observe(folder, names, PICTURES[:1], threads=1)["caption.decoder"]
    assert set(observed.sums) == set(names["caption.decoder"])
    model = primelens.load(folder, options=primelens.LoadOptions(threads=1))
    tokens = model.caption(PICTURES[0]).tokens
    assert set(observed.rows.values()) == {len(tokens)}
    for name, total in observed.sums.items():
        np.testing.assert_allclose(total, total.T, rtol=1e-4, atol=1e-4)
        assert np.linalg.eigvalsh(total).min() > -1e-2 * total.diagonal().max(), name
    with pytest.raises(OptionError, match="needs pictures"):
        observe(folder, names, [])


def test_a_head_of_four_bits_comes_into_a_bundle(
    four: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    options = HeadOptions(out=out, precision="int4", calibration=PICTURES, gate=EASY)
    add_head(four, checkpoints(NAME), "second", options)
    manifest = open_bundle(out).manifest
    assert manifest.heads["second"].precision == "int4"
    first, second = (out / f"{name}.decoder.weights" for name in ("caption", "second"))
    assert first.stat().st_size == second.stat().st_size
    assert verify(out, options=primelens.LoadOptions(threads=1)).passed


def test_info_says_what_multiplies(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ENVIRONMENT, "off")
    lines = dict(describe(open_bundle(four)))
    assert lines["kernels"].startswith("none, the same results but slower: switched off by")
    assert "kernels" not in dict(describe(open_bundle(resolve("default"))))
