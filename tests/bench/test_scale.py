from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import primelens
from primelens.bench import commands, scale
from primelens.bench.captioner import require_caption_head
from primelens.bench.environment import Load
from primelens.bench.scale import StubEngine, measure_counts, scale_lines


def test_stub_graphs_caption_without_being_run(tiny_bundle: Path) -> None:
    head = require_caption_head(primelens.load(tiny_bundle).manifest)
    model = primelens.load(tiny_bundle, engine=StubEngine(head))
    rows = list(model.caption_batch(scale._pictures(5), batch_size=2))
    captions = [row for row in rows if isinstance(row, primelens.Caption)]
    assert [len(row.tokens) for row in captions] == [2] * 5
    assert {row.tokens[-1] for row in captions} == {head.generation.eos_tokens[0]}
    taps = model.encode(next(scale._pictures(1))).taps
    assert all(not values.any() for values in taps.values())


def test_no_two_pictures_are_alike() -> None:
    seen = {picture.tobytes() for picture in scale._pictures(600)}
    assert len(seen) == 600


def test_marks_are_powers_of_ten_and_the_last_picture(tiny_bundle: Path) -> None:
    rows = measure_counts(str(tiny_bundle), 250, 16, 2)
    assert [row["images"] for row in rows] == [10, 100, 250]
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(rows))
    assert all(row["resident"] > 0 for row in rows)


def test_growth_and_marginal_cost_by_hand() -> None:
    found = {
        "models": {"batches": "a", "lengths": "b"},
        "batches": [{"threads": 2, "batch": 8, "images_per_s": 12.0, "resident": 3_000_000}],
        "lengths": [{"tokens": 5, "seconds": 1.0}, {"tokens": 10, "seconds": 1.5}],
        "counts": [
            {"images": 10, "seconds": 1.0, "resident": 1_000_000},
            {"images": 1000, "seconds": 2.0, "resident": 2_000_000},
            {"images": 11_000, "seconds": 3.0, "resident": 2_010_000},
        ],
    }
    text = "\n".join(scale_lines(found))
    assert "memory grows by 1.0 bytes a picture after the first 1000" in text
    assert "100.00" in text  # milliseconds a token more
    found["counts"] = found["counts"][:2]
    assert "too few pictures to tell" in "\n".join(scale_lines(found))


def test_the_command_writes_figures_and_a_chart(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "load_now", lambda: Load(0.0, 0.0))
    arguments = ["scale", "--out", str(tmp_path), "--model", str(tiny_bundle), "--long"]
    arguments += [str(tiny_bundle), "--batches", "1,2", "--lengths", "5,9,100000"]
    arguments += ["--counts", "20", "--threads", "1", "--repetitions", "1"]
    assert commands.main(arguments) == 0
    found = json.loads((tmp_path / "scale.json").read_text())
    assert [row["tokens"] for row in found["lengths"]] == [5, 9]  # what does not fit is left out
    assert [row["batch"] for row in found["batches"]] == [1, 2]
    assert found["counts"][-1]["images"] == 20
    chart = (tmp_path / "scale.svg").read_text()
    assert chart.count("pictures per second") >= 1
    assert "</svg>" in chart
