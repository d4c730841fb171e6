"""Retrieval and zero-shot labels: scores, chance, baselines, and what is refused."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primelens.errors import InputError, OptionError
from primelens.tune.data import DataSource
from primelens.tune.evaluation import Evaluation, Request, evaluate
from primelens.tune.evaluation.ranking import chance_of_labels, chance_of_retrieval
from primelens.tune.evaluation.scene_tasks import OBJECT_LABELS
from primelens.tune.evaluation.zero_shot_run import read_labels
from primelens.tune.metrics import Resampling, retrieval_tallies

QUICK = Resampling(samples=50)


def measure(world: Any, data: DataSource | str, **options: Any) -> Evaluation:
    request = Request("colours", data, resampling=QUICK, **options)
    return evaluate(request, load=world.load)


def scores(tallies: Any) -> dict[str, float]:
    return {name: value for tally in tallies for name, value in tally.scores().items()}


def test_chance_is_the_mean_over_all_orders() -> None:
    own = [1, 3, 1]
    owner = [row for row, number in enumerate(own) for _ in range(number)]
    total: dict[str, float] = {}
    orders = list(permutations(range(len(owner))))
    for order in orders:
        # One picture alone has all its scores from one order; the others' are zero and different.
        texts = np.array([[10.0 - order[n], 1.0] for n in range(len(owner))])
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        image = np.tile([1.0, 0.0], (3, 1))
        for name, value in scores(retrieval_tallies(image, texts, owner, at=(1, 2))).items():
            total[name] = total.get(name, 0.0) + value / len(orders)
    found = scores(chance_of_retrieval(own, (1, 2)))
    for k in (1, 2):
        assert found[f"image→text R@{k}"] == pytest.approx(total[f"image→text R@{k}"])
        assert found[f"text→image R@{k}"] == pytest.approx(k / 3)
    assert scores(chance_of_retrieval([1, 1], (10,))) == {
        "image→text R@10": 1.0,
        "text→image R@10": 1.0,
    }
    assert scores(chance_of_labels(4, 8, (1, 5, 10))) == {
        "top-1": 1 / 8,
        "top-5": 5 / 8,
        "top-10": 1,
    }


def test_retrieval_both_ways_with_chance(world: Any, colours: Any) -> None:
    found = measure(world, DataSource(world.folder), task="retrieval", untuned="colours")
    (table,) = found.report.tables
    captions = [c for line in _rows(world) for c in line["captions"]]
    assert table.title == f"4 pictures and {len(captions)} captions, each among all others"
    assert list(table.rows) == ["colours", "untuned text side (colours)", "chance"]
    assert table.rows["colours"] == table.rows["untuned text side (colours)"]
    row = table.rows["colours"]
    expected = _expected(world, colours, captions)
    assert {name: score.value for name, score in row.items()} == pytest.approx(expected)
    assert row["text→image R@1"].low <= row["text→image R@1"].value <= row["text→image R@1"].high
    assert any("2 captions occur more than once" in note for note in found.report.notes)
    assert found.says == "captions"
    assert found.predictions["blue.png"] in ("the blue sky", "a blue sky", "a dark blue sky")


def test_a_broken_picture_leaves_with_its_captions(world: Any, colours: Any) -> None:
    (world.folder / "navy.png").write_bytes(b"no picture")
    report = measure(world, DataSource(world.folder), task="retrieval", against=("colours",)).report
    assert report.tables[0].title.startswith("3 pictures and 9 captions")
    (line,) = report.broken
    assert "navy.png" in line
    gaps = [item.difference.value for item in report.against["colours (other)"].values()]
    assert gaps == [0.0] * 6


def test_labels_of_folders(world: Any, colours: Any, tmp_path: Path) -> None:
    folder = _classes(world, tmp_path, {"red": "red.png", "pink": "pink.png", "blue": "blue.png"})
    found = measure(world, DataSource(folder))
    (table,) = found.report.tables
    assert table.title == "3 pictures, 3 labels, of which 3 occur"
    assert colours.ranker.asked == ["a blue wall", "a pink wall", "a red wall"]
    assert table.rows["colours"]["top-1"].value == 1
    assert table.rows["chance"]["top-1"].value == pytest.approx(1 / 3)
    # Each label occurs once, so the other pictures never have it.
    assert table.rows["most frequent labels"]["top-1"].value == 0
    assert found.says == "labels"
    assert found.predictions == {"red/0.png": "red", "pink/0.png": "pink", "blue/0.png": "blue"}
    assert any("Templates of the head: 'a {} wall'" in note for note in found.report.notes)
    assert any("No list of labels" in note for note in found.report.notes)


def test_a_list_of_labels_and_a_template(world: Any, colours: Any, tmp_path: Path) -> None:
    folder = _classes(world, tmp_path, {"r": "red.png", "b": "blue.png"})
    labels = tmp_path / "labels.txt"
    labels.write_text("g\tgreen\nb\tblue\n\nr\tred\n")
    request: dict[str, Any] = {"labels": labels, "templates": ("some {}",)}
    found = measure(world, DataSource(folder), **request)
    assert colours.ranker.asked == ["some green", "some blue", "some red"]
    assert found.predictions == {"b/0.png": "b", "r/0.png": "r"}
    assert found.report.tables[0].title == "2 pictures, 3 labels, of which 2 occur"
    labels.write_text("b\ng")
    with pytest.raises(InputError, match="1 labels of the data are not in the list, for example"):
        measure(world, DataSource(folder), **request)
    for text, said in (("b\nb", "'b' twice"), ("\tblue", "name without a label"), ("", "no label")):
        labels.write_text(text)
        with pytest.raises(InputError, match=said):
            read_labels(labels)


def test_the_most_frequent_label_is_that_of_the_others(
    world: Any, colours: Any, tmp_path: Path
) -> None:
    folder = _classes(world, tmp_path, {"red": "red.png", "blue": "blue.png"})
    for number in (1, 2):
        (folder / "red" / f"{number}.png").write_bytes((world.folder / "pink.png").read_bytes())
    table = measure(world, DataSource(folder)).report.tables[0]
    # Of the others two are red, whichever red picture is asked of; of blue there is no other.
    assert table.rows["most frequent labels"]["top-1"].value == pytest.approx(3 / 4)
    assert table.rows["most frequent labels"]["top-5"].value == pytest.approx(3 / 4)
    assert table.rows["chance"]["top-5"].value == 1


def test_labels_in_metadata(world: Any, colours: Any) -> None:
    rows = [{"file_name": name, "label": name[:-4]} for name in ("red.png", "blue.png", "pink.png")]
    (world.folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = measure(world, DataSource(world.folder), limit=2)
    assert found.predictions == {"red.png": "red", "blue.png": "blue"}
    with pytest.raises(InputError, match="holds no picture with a caption"):
        measure(world, DataSource(world.folder), task="retrieval")
    with pytest.raises(OptionError, match="one label only"):
        measure(world, DataSource(world.folder), limit=1)


def test_objects_of_scenes_have_all_labels(world: Any, colours: Any) -> None:
    found = measure(world, "scene-objects:test:4")
    assert len(OBJECT_LABELS) >= 120
    assert found.report.tables[0].title.startswith(f"4 pictures, {len(OBJECT_LABELS)} labels")
    assert set(found.predictions.values()) <= set(OBJECT_LABELS)


def test_a_result_file_cannot_rank(world: Any, colours: Any, tmp_path: Path) -> None:
    path = world.results("r.json", {"red.png": "red"})
    with pytest.raises(OptionError, match="only a bundle can rank"):
        evaluate(Request(path, DataSource(world.folder), task="retrieval"), load=world.load)
    with pytest.raises(OptionError, match="'sorting' is no task"):
        Request(path, DataSource(world.folder), task="sorting")  # type: ignore[arg-type]


def _rows(world: Any) -> list[Any]:
    return [json.loads(line) for line in (world.folder / "metadata.jsonl").read_text().splitlines()]


def _expected(world: Any, colours: Any, captions: list[str]) -> dict[str, float]:
    """The definition, by hand: ranks of whatever is right, ties against the system."""
    images = np.stack(
        [
            colours.ranker.embed_image(
                colours.encode((world.folder / row["file_name"]).read_bytes())
            )
            for row in _rows(world)
        ]
    ).astype(np.float64)
    texts = colours.ranker.embed_text(captions).astype(np.float64)
    owner = [row for row, line in enumerate(_rows(world)) for _ in line["captions"]]
    table = images @ texts.T
    ranks = []
    for row in range(len(images)):
        best = max(table[row, n] for n in range(len(captions)) if owner[n] == row)
        wrong = [n for n in range(len(captions)) if owner[n] != row]
        ranks.append(sum(table[row, n] >= best - 1e-12 for n in wrong))
    back = [
        sum(table[row, n] >= table[owner[n], n] - 1e-12 for row in range(len(images))) - 1
        for n in range(len(captions))
    ]
    found = {f"image→text R@{k}": float(np.mean([r < k for r in ranks])) for k in (1, 5, 10)}
    return found | {f"text→image R@{k}": float(np.mean([r < k for r in back])) for k in (1, 5, 10)}


def _classes(world: Any, folder: Path, pictures: dict[str, str]) -> Path:
    for label, name in pictures.items():
        (folder / "classes" / label).mkdir(parents=True)
        data = (world.folder / name).read_bytes()
        (folder / "classes" / label / "0.png").write_bytes(data)
    return folder / "classes"
