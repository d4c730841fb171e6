"""A small real bundle and its checkpoint, made once for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT + GPT-2 checkpoint, small enough to export in seconds."""
    reference_works = pytest.importorskip("primelens.export.reference_works")
    folder: Path = reference_works.build("tiny-vitgpt2", tmp_path_factory.mktemp("bench") / "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its bundle, through the exporter and its gate."""
    from primelens.export.pipeline import export_checkpoint

    out = tiny_checkpoint.with_name("tiny.bundle")
    export_checkpoint(tiny_checkpoint, out)
    return out
