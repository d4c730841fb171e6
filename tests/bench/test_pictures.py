from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.bench.pictures import PictureSource, reuse_order


def test_pictures_are_new_each_time_and_the_same_each_run(tmp_path: Path) -> None:
    one = PictureSource(tmp_path / "a", 3)
    paths = one.fresh(2) + one.fresh(2)
    contents = [Path(p).read_bytes() for p in paths]
    assert len(set(contents)) == 4
    again = PictureSource(tmp_path / "b", 3).fresh(4)
    assert [Path(p).read_bytes() for p in again] == contents
    other = PictureSource(tmp_path / "c", 4).fresh(4)
    assert not {Path(p).read_bytes() for p in other} & set(contents)


def test_given_pictures_are_shown_once(tmp_path: Path) -> None:
    source = PictureSource(tmp_path, 0, [Path("x"), Path("y"), Path("z")])
    assert source.fresh(2) == ["x", "y"]
    with pytest.raises(ValueError, match="4 different pictures are needed, 3 are given"):
        source.fresh(2)


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 5))
def test_the_share_of_repeats_is_exact(count: int, reuse: float, seed: int) -> None:
    order = reuse_order(count, reuse, seed)
    repeats = sum(number in order[:place] for place, number in enumerate(order))
    assert repeats == min(round(reuse * count), count - 1)
    assert order[0] == 0
    assert set(order) == set(range(count - repeats))


def test_an_impossible_reuse_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        reuse_order(3, 1.5, 0)
