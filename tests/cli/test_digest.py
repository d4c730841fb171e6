"""``primelens digest`` and ``primelens verify-locked``: what they print, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]

lock: Any = pytest.importorskip("primelens.export.lock", reason="needs primelens[export]")


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders that look like checkpoints."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path / "base", tmp_path / "tuned"


def report(moved: int) -> Any:
    return lock.LockReport(
        base="base",
        tuned="tuned",
        compared=40,
        moved=tuple(lock.Moved(f"layer.{n}", (3, 9), 0.5, 0.25) for n in range(moved)),
        notes=("preprocessing was not compared: base has none",),
    )


def test_a_locked_tower_is_confirmed(
    run: Run, checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(lock, "compare_towers", lambda *paths: asked.append(paths) or report(0))
    result = run("verify-locked", *checkpoints)
    assert result.exit_code == 0, result.output
    assert asked == [checkpoints]
    assert result.stdout.splitlines() == [
        "note: preprocessing was not compared: base has none",
        "tuned: the tower is the base's, bit by bit (40 tensors, 0 moved)",
    ]


def test_a_moved_tower_is_listed(
    run: Run, checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "compare_towers", lambda *_: report(3))
    result = run("verify-locked", *checkpoints, "--limit", "2")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "layer.0: 3 of 9 values moved, by at most 0.5 (0.25 of its RMS)",
        "layer.1: 3 of 9 values moved, by at most 0.5 (0.25 of its RMS)",
        "and 1 more tensors",
        "note: preprocessing was not compared: base has none",
        "tuned: the tower is NOT the base's (40 tensors, 3 moved)",
    ]
    data = json.loads(run("verify-locked", *checkpoints, "--json").stdout)
    assert (data["locked"], len(data["moved"])) == (False, 3)


def test_a_checkpoints_digests_are_computed(
    run: Run, checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lock.Identities("base", "vit", "1" * 64, None, {}, {"caption": "2" * 64}, "3" * 64)
    monkeypatch.setattr(lock, "identify", lambda _: found)
    result = run("digest", checkpoints[0])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "name: base",
        "tower family: vit",
        f"tower: {'1' * 64}",
        f"head caption: {'2' * 64}",
        f"source: {'3' * 64}",
    ]
    data = json.loads(run("digest", checkpoints[0], "--json").stdout)
    assert (data["taps"], data["preprocessing"]) == ({}, None)


def test_what_leads_nowhere_is_named(run: Run, tmp_path: Path) -> None:
    result = run("digest", tmp_path / "nothing")
    assert result.exit_code == 1
    assert "nothing" in result.stderr
