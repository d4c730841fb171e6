from __future__ import annotations

from pathlib import Path

import pytest

from .torture import CAP, flip_bits, torture


def test_killed_processes_never_leave_a_wrong_tensor(tmp_path: Path) -> None:
    outcome = torture(tmp_path / "kept", processes=8, operations=400, seconds_between_kills=0.1)
    assert outcome.failures == []
    assert outcome.operations >= 8 * 400
    assert outcome.kills >= 3
    assert outcome.largest > CAP // 2  # it was full enough for something to be evicted


def test_every_flipped_bit_of_a_kept_file_is_found(tmp_path: Path) -> None:
    assert flip_bits(tmp_path / "kept", 300) == {"found": 300, "returned": 0}


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_found_in_the_store(tmp_path: Path) -> None:
    assert flip_bits(tmp_path / "kept", 10_000, seed=1) == {"found": 10_000, "returned": 0}


@pytest.mark.slow
def test_many_killed_processes_never_leave_a_wrong_tensor(tmp_path: Path) -> None:
    outcome = torture(tmp_path / "kept", processes=8, operations=5_000, seconds_between_kills=0.1)
    assert outcome.failures == []
    assert outcome.kills >= 20
