"""The real sizes: ViT-base with GPT-2 and with BERT-base, random weights, through the fp32 gate."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.reference_works import build
from primelens.verify import verify

PICTURES, STEPS = 8, 32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vitgpt2-base", "vitbert-base"])
def test_a_base_model_is_exact(tmp_path: Path, name: str) -> None:
    folder = build(name, tmp_path / "checkpoint")
    gate = GateOptions(random_images=PICTURES, steps=STEPS)
    report = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(gate=gate))
    measured = report.parity["heads"]["caption"]
    assert report.passed
    assert measured["tokens_compared"] >= (PICTURES + 1) * STEPS
    assert measured["ties"] == 0
    assert verify(tmp_path / "bundle").passed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
    assert peak < 7 * 2**30
