"""The published sizes: every reference work with random weights, beside its source's `generate`."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.proof import prove_work
from primelens.export.reference_works import build
from primelens.export.work import find_work, works

PUBLISHED = [work.name for work in works().values() if work.size == "published"]


@pytest.mark.slow
def test_an_export_of_239_million_parameters_stays_below_seven_gigabytes(tmp_path: Path) -> None:
    folder = build("vitgpt2-base", tmp_path / "checkpoint")
    gate = GateOptions(random_images=8, steps=32)
    report = export_checkpoint(folder, tmp_path / "bundle", ExportOptions(gate=gate))
    assert report.passed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
    assert peak < 7 * 2**30


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_exact(name: str) -> None:
    """What `python -m primelens.export.reference_works` does, one work at a time."""
    proof = prove_work(find_work(name))
    assert proof.failures == []
    assert proof.tokens + proof.rankings > 0
