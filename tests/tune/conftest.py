"""Real captions and photographs that lie beside the repository, where somebody put them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``../shared/data``, or what PRIMELENS_SHARED_DATA names; skips where it is absent."""
    folder = Path(os.environ.get("PRIMELENS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (PRIMELENS_SHARED_DATA names another place)")
    return folder
