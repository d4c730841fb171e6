"""From a request to a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource
from primelens.tune.evaluation import HUMAN, Report, Request, evaluate
from primelens.tune.metrics import Resampling, bleu, tokenize

QUICK = Resampling(samples=50)
NEIGHBOUR = "nearest neighbour's caption"
FREQUENT = "most frequent caption"


def measure(world: Any, system: str, **options: Any) -> Report:
    request = Request(system, DataSource(world.folder), resampling=QUICK, **options)
    return evaluate(request, load=world.load).report


def test_every_baseline_is_in_both_tables_and_a_human_in_the_second(world: Any) -> None:
    report = measure(world, "good", against=("dull",), untuned="dull")
    systems = ["good", "dull", "untuned text side (dull)", FREQUENT, NEIGHBOUR]
    assert list(report.tables[0].rows) == systems
    assert list(report.tables[1].rows) == [*systems, HUMAN]
    for table in report.tables:
        assert table.metrics == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
        for row in table.rows.values():
            assert all(s.low - 1e-9 <= s.value <= s.high + 1e-9 for s in row.values())
    assert report.pictures == 4
    assert report.provenance == {"tower of good": "t" * 64, "tower of dull": "t" * 64}


def test_the_scores_are_those_of_the_metrics(world: Any) -> None:
    report = measure(world, "good")
    own = {json.loads(line)["file_name"]: json.loads(line)["captions"] for line in _metadata(world)}
    references = [[tokenize(c) for c in captions] for captions in own.values()]
    expected = bleu([r[0] for r in references], references).scores()
    found = report.tables[0].rows["good"]
    assert {name: found[name].value for name in expected} == pytest.approx(expected)


def _metadata(world: Any) -> list[str]:
    text: str = (world.folder / "metadata.jsonl").read_text()
    return text.splitlines()


def test_the_tower_runs_once_per_picture(world: Any) -> None:
    measure(world, "good")
    assert world.models["good"].encoded == 4


def test_a_human_is_scored_like_a_system_with_the_same_captions(world: Any) -> None:
    """Round j takes reference j out; a system that says reference 0 is the human of round 0."""
    report = measure(world, "good")
    references = [[tokenize(c) for c in json.loads(m)["captions"]] for m in _metadata(world)]
    rounds = []
    for j in range(3):
        others = [[own[i] for i in range(3) if i != j] for own in references]
        rounds.append(bleu([own[j] for own in references], others).scores()["BLEU-1"])
    human = report.tables[1].rows[HUMAN]["BLEU-1"].value
    assert human == pytest.approx(sum(rounds) / 3)
    # The system repeats reference 0, so it is perfect in the two rounds that keep it.
    system = report.tables[1].rows["good"]["BLEU-1"].value
    assert system == pytest.approx((rounds[0] + 2) / 3, rel=1e-6)


def test_neighbours_and_frequent_captions_never_come_from_the_picture_itself(world: Any) -> None:
    # "a wall" is said of red and of pink. Of the other pictures' captions it occurs once for each
    # of these two, twice for the others; the neighbours are red-pink and blue-navy.
    same = world.results(
        "neighbours.json",
        {
            "red.png": "a pink wall",
            "pink.png": "a red wall",
            "blue.png": "a dark blue sky",
            "navy.png": "the blue sky",
        },
    )
    report = measure(world, same, tower="good")
    rows = report.tables[0].rows
    assert rows[NEIGHBOUR] == rows["neighbours.json"]
    report = measure(world, same, tower="good", limit=2)
    assert report.pictures == 2


def test_a_result_file_needs_neither_pictures_nor_bundle(world: Any) -> None:
    texts = {json.loads(m)["file_name"]: "a wall" for m in _metadata(world)} | {"other.png": "x"}
    path = world.results("r.json", texts)
    for picture in world.folder.glob("*.png"):
        picture.unlink()
    report = measure(world, path)
    assert list(report.tables[0].rows) == ["r.json", FREQUENT]
    assert any("No nearest neighbour" in note for note in report.notes)
    assert any("speaks of 1 pictures" in note for note in report.notes)


def test_a_system_that_is_silent_on_a_picture_is_refused(world: Any) -> None:
    path = world.results("r.json", {"red.png": "a wall"})
    with pytest.raises(InputError, match=r"r\.json says nothing of 3 of 4 pictures"):
        measure(world, path)


def test_broken_pictures_are_left_out_for_everyone_and_listed(world: Any) -> None:
    (world.folder / "blue.png").write_bytes(b"no picture")
    report = measure(world, "good", against=("dull",))
    assert report.pictures == 3
    (line,) = report.broken
    assert "blue.png" in line
    assert any("broken pictures were left out" in line for line in report.lines)
    for picture in world.folder.glob("*.png"):
        picture.unlink()
    with pytest.raises(InputError, match="Not one picture can be read"):
        measure(world, "good")


def test_a_comparison_is_paired_and_signed(world: Any) -> None:
    report = measure(world, "good", against=("dull",))
    ((name, found),) = report.against.items()
    rows = report.tables[0].rows
    assert name == "dull"
    for metric, item in found.items():
        gap = rows["good"][metric].value - rows["dull"][metric].value
        assert item.difference.value == pytest.approx(gap)
        assert 0 < item.p_value <= 1
    same = measure(world, "good", against=("good", "dull"))
    assert list(same.against) == ["good (other)", "dull"]
    assert {item.p_value for item in same.against["good (other)"].values()} == {1.0}
    assert same.against["dull"] == found


def test_holdout_and_a_pool_of_its_own(world: Any, tmp_path: Path) -> None:
    report = measure(world, "good", holdout=1)
    assert report.pictures == 1
    assert not any("LEAK" in note for note in report.notes)
    pool = DataSource(world.folder)
    leaking = measure(world, "good", pool=pool)
    assert any("LEAK: 4 evaluated pictures" in note for note in leaking.notes)
    with pytest.raises(OptionError, match="exclude each other"):
        measure(world, "good", holdout=1, pool=pool)
    with pytest.raises(OptionError, match="holdout is 4, but there are 4"):
        measure(world, "good", holdout=4)
    with pytest.raises(OptionError, match="limit is 0"):
        measure(world, "good", limit=0)


def test_the_report_speaks_in_three_forms(world: Any) -> None:
    report = measure(world, "good", against=("dull",))
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert set(data["tables"][0]["rows"]["good"]["CIDEr-D"]) == {"value", "low", "high"}
    (against,) = data["against"]
    p_value = report.against["dull"]["BLEU-1"].p_value
    assert against["metrics"]["BLEU-1"]["p_value"] == p_value
    assert any(line.startswith("a human") for line in report.lines)
    table = [line for line in report.markdown().splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table} == {8, 4}


def test_ids_must_name_one_picture(world: Any) -> None:
    with (world.folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "red.png", "text": "again"}')
    with pytest.raises(InputError, match=r"1 ids occur twice, for example 'red\.png'"):
        measure(world, "good")


def test_a_single_reference_leaves_no_human(world: Any) -> None:
    with (world.folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "x/red.png", "text": "again"}')
        file.write('\n{"file_name": "y.png"}')
    (world.folder / "x").mkdir()
    (world.folder / "x" / "red.png").write_bytes((world.folder / "red.png").read_bytes())
    report = measure(world, "good")
    assert len(report.tables) == 1
    assert any("No human row" in note for note in report.notes)
    assert any("1 pictures without a caption" in note for note in report.notes)
