"""Runs at small size: every objective learns, the tower stays, kept features change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, VisionEncoderDecoderModel, VisionTextDualEncoderModel

from primelens.errors import InputError, OptionError
from primelens.export.lock import compare_towers
from primelens.towers import MatchingModel
from primelens.tune.data.example import FileImage
from primelens.tune.evaluation import scene_slots
from primelens.tune.lock import TowerMovedError
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.render import font_is_installed
from primelens.tune.scenes.world import scene
from primelens.tune.textside import plan_run, tune
from primelens.tune.textside.lessons import read_items, training_lessons
from primelens.tune.textside.progress import read_log
from primelens.tune.textside.recipe import Data, DataChoice, Recipe
from primelens.tune.textside.run import Run


def losses(recipe: Recipe) -> list[float]:
    return [line["loss"] for line in read_log(Path(recipe.out))]


@pytest.mark.parametrize(
    ("objective", "kind", "least"),
    [
        ("caption", VisionEncoderDecoderModel, 9.0),
        ("answer", VisionEncoderDecoderModel, 1.0),
        ("lit", VisionTextDualEncoderModel, 1.0),
        ("siglip", VisionTextDualEncoderModel, 1.0),
        ("match", MatchingModel, 0.95),
    ],
)
def test_every_objective_learns_a_tiny_set_by_heart(
    recipe: Any, tower: Path, tmp_path: Path, objective: str, kind: Any, least: float
) -> None:
    asked = recipe(
        objective,
        training={"steps": 800 if objective == "match" else 400, "batch_size": 12},
        optimiser={"rate": 3e-3, "warm_up": 10, "weight_decay": 0.0},
        features={"keep": str(tmp_path / "store")},
    )
    outcome = tune(asked)
    assert outcome.score is not None
    assert outcome.score[1] >= least, outcome
    assert outcome.tower_runs == 12  # each picture once, in all epochs and validations
    model = kind.from_pretrained(outcome.checkpoint)
    if objective == "siglip":
        assert model.config.scoring == "sigmoid"
        assert model.config.logit_bias != -2.71
    inner = model.encoder if hasattr(model, "encoder") else model.vision_model.tower
    before = AutoModel.from_pretrained(tower).state_dict()
    for name, value in inner.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_exporter_finds_the_tower_unmoved(recipe: Any, tower: Path) -> None:
    outcome = tune(recipe("caption"))
    report = compare_towers(tower, outcome.checkpoint)
    assert report.locked
    note = json.loads((outcome.checkpoint / "tuning.json").read_text())
    assert note["tower"]["digest"] == outcome.tower_digest
    assert note["preprocessing"]["steps"][0]["height"] == 32


def test_kept_features_leave_the_loss_as_it_is(recipe: Any, tmp_path: Path) -> None:
    plain = recipe("caption", out=str(tmp_path / "plain"))
    kept = recipe("caption", out=str(tmp_path / "kept"), features={"keep": str(tmp_path / "s")})
    run_plain, run_kept = tune(plain), tune(kept)
    assert losses(kept) == losses(plain)
    assert len(set(losses(kept))) == 6
    # Three epochs of twelve pictures and a validation.
    assert run_plain.tower_runs > run_kept.tower_runs == 12
    again = recipe("caption", out=str(tmp_path / "again"), features={"keep": str(tmp_path / "s")})
    assert tune(again).tower_runs == 0
    assert losses(again) == losses(plain)


@pytest.mark.skipif(not font_is_installed(), reason="no emoji font to draw scenes with")
def test_scenes_that_are_kept_are_not_drawn_again(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = {"train": {"path": "scenes:train:12"}, "validation": {"path": "scenes:train:6"}}
    first, again = (
        replace(
            recipe("caption", out=str(tmp_path / name), features={"keep": str(tmp_path / "s")}),
            data=Data(**{k: DataChoice(**choice) for k, choice in scenes.items()}),
        )
        for name in ("first", "again")
    )
    assert tune(first).tower_runs == 12

    def draw(*_: object) -> None:
        raise AssertionError("a scene is drawn")

    monkeypatch.setattr(scene_slots, "render", draw)
    assert tune(again).tower_runs == 0
    assert losses(again) == losses(first)


def test_crowded_scenes_come_again(recipe: Any) -> None:
    asked: Recipe = recipe("caption")
    also = DataChoice("scenes:train:40", groups=3, repeat=2)
    data = Data(DataChoice("scenes:train:40"), also=(also,))
    lessons = training_lessons(replace(asked, data=data))
    ids = [item.example.id for item in lessons.items]
    crowded = {f"train:{n}" for n in range(40) if len(scene("train", n).groups) >= 3}
    assert 0 < len(crowded) < 40
    assert {key: ids.count(key) for key in ids} == {
        f"train:{n}": 3 if f"train:{n}" in crowded else 1 for n in range(40)
    }
    answers = read_items(also, "answer")
    assert {item.example.id for item in answers} == crowded
    first = answers[0]
    by_hand = {q.text: q.answer for q in questions(scene("train", int(first.example.id[6:])))}
    assert by_hand[first.question or ""] == first.texts[0]


def test_kept_views_go_round(recipe: Any, tmp_path: Path) -> None:
    changes = {"steps": [{"step": "horizontal_flip"}], "views": 2}
    tables = {"augmentation": changes, "training": {"epochs": 4, "steps": None}}
    plain = recipe("caption", out=str(tmp_path / "plain"), **tables)
    kept = recipe(
        "caption", out=str(tmp_path / "kept"), features={"keep": str(tmp_path / "s")}, **tables
    )
    plain, kept = (replace(r, data=replace(r.data, validation=None)) for r in (plain, kept))
    run = Run(kept)
    tune(plain)
    assert tune(kept).tower_runs == 2 * 12
    assert losses(kept) == losses(plain)
    first, other, third = (
        run.states(run.lessons.items, [epoch] * 12, changed=True) for epoch in range(3)
    )
    assert torch.equal(first, third)
    assert not torch.equal(first, other)


def test_parts_of_a_batch_add_up_to_it(recipe: Any, tmp_path: Path) -> None:
    whole = Run(recipe("answer"))
    parts = Run(recipe("answer", training={"accumulate": 3}))
    for run in (whole, parts):
        lesson = run.lessons.at(0)
        states = run.states(lesson.items, lesson.epochs, changed=True)
        run.loss_of_step = run._backward(states, run.task.prepare(lesson))  # type: ignore[attr-defined]
    assert parts.loss_of_step == pytest.approx(whole.loss_of_step, rel=1e-6)  # type: ignore[attr-defined]
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
            continue
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_tower_that_moved_fails_the_run(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe("caption")
    step = Run.step

    def nudge(run: Run, number: int) -> float:
        with torch.no_grad():
            run.parts.seam.tower.position_table[0, 0] += 1e-6
        return step(run, number)

    monkeypatch.setattr(Run, "step", nudge)
    with pytest.raises(TowerMovedError, match="moved"):
        tune(asked)
    assert not (Path(asked.out) / "checkpoint").exists()


def test_nothing_of_the_tower_can_be_trained(recipe: Any) -> None:
    run = Run(recipe("lit"))
    run.model.train()
    tower = run.parts.seam.tower
    assert not any(part.training for part in tower.modules())
    held = {id(p) for group in run.optimiser.param_groups for p in group["params"]}
    assert not held & {id(p) for p in tower.parameters()}
    assert "vision_model.pooling.query" in dict(run.model.named_parameters())


def test_adapters_are_merged(recipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    start = tune(recipe("caption", out=str(tmp_path / "start"))).checkpoint
    asked = recipe(
        "caption",
        out=str(tmp_path / "adapted"),
        model={"tower": None, "fresh": None, "checkpoint": str(start)},
        lora={"targets": ["c_attn", "c_proj"], "rank": 2},
    )
    plan = plan_run(asked).numbers
    assert 0 < plan["tuned"] < plan["frozen"]
    made = VisionEncoderDecoderModel.from_pretrained(tune(asked).checkpoint).state_dict()
    before = VisionEncoderDecoderModel.from_pretrained(start).state_dict()
    assert made.keys() == before.keys()
    changed = {name for name in made if not torch.equal(made[name], before[name])}
    adapted = {n for n in changed if n.endswith(("c_attn.weight", "c_proj.weight"))}
    assert adapted
    assert all(n in adapted or n.startswith("enc_to_dec_proj") for n in changed), changed


def test_it_stops_when_nothing_gets_better(recipe: Any) -> None:
    asked = recipe(
        "lit",
        training={"steps": 40, "evaluate_every": 2, "patience": 2},
        optimiser={"rate": 1e-9},
    )
    outcome = tune(asked)
    assert outcome.steps == 6  # the first validation is the best, two are not better
    assert json.loads((outcome.checkpoint / "tuning.json").read_text())["best_step"] == 2


def test_adafactor_bf16_and_curves(recipe: Any) -> None:
    pytest.importorskip("tensorboardX")
    asked = recipe(
        "caption",
        training={"precision": "bf16", "smoothing": 0.1},
        optimiser={"name": "adafactor"},
        logs={"tensorboard": True, "plot": True},
    )
    said: list[str] = []
    tune(asked, say=said.append)
    assert losses(asked)[-1] < losses(asked)[0]
    assert "left" in said[-1]
    assert (Path(asked.out) / "loss.png").stat().st_size > 1000
    assert list((Path(asked.out) / "tensorboard").iterdir())


def test_the_plan_counts_what_the_run_has(recipe: Any, tmp_path: Path) -> None:
    asked = recipe("caption", features={"keep": str(tmp_path / "store"), "dtype": "fp16"})
    plan = plan_run(asked)
    assert not (tmp_path / "store").exists()
    assert not Path(asked.out).exists()
    numbers = plan.numbers
    assert numbers["tap"] == {"name": "last_hidden_state", "shape": [16, 16]}
    assert numbers["kept"] == 12 * 16 * 16 * 2
    assert numbers["steps"] == {"epoch": 2, "all": 6}
    run = Run(asked)
    assert numbers["tuned"] == sum(p.numel() for p in run.model.parameters())
    assert any("locked" in line for line in plan.lines)


def test_a_folder_with_a_run_is_not_written_over(recipe: Any) -> None:
    asked = recipe("caption")
    tune(asked)
    with pytest.raises(OptionError, match="--resume"):
        tune(asked)
    with pytest.raises(OptionError, match="another recipe"):
        tune(replace(asked, optimiser=replace(asked.optimiser, rate=1.0)), resume=True)
    with pytest.raises(InputError, match="no state"):
        tune(replace(asked, out=asked.out + "-other"), resume=True)


def test_a_batch_larger_than_the_data_is_refused(recipe: Any) -> None:
    with pytest.raises(OptionError, match="12 items"):
        tune(recipe("caption", training={"batch_size": 13}))


def test_a_picture_is_read_once_however_long_it_is_looked_at(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe("caption", features={"keep": str(tmp_path / "store"), "batch": 5})
    read: list[str] = []
    own = FileImage.read
    monkeypatch.setattr(FileImage, "read", lambda image: read.append(image.name) or own(image))
    tune(asked)
    assert sorted(read) == sorted({*read})
    assert len(read) == 12


@pytest.fixture
def labelled(recipe: Any, pictures: Path, tmp_path: Path) -> Recipe:
    """Captions, and beside them the same pictures with their left colour as the label."""
    folder = tmp_path / "labels"
    folder.mkdir()
    lines = []
    for file in sorted(pictures.glob("*-*.png")):
        (folder / file.name).write_bytes(file.read_bytes())
        lines.append(json.dumps({"file_name": file.name, "label": file.stem.split("-")[0]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    asked: Recipe = recipe("lit", training={"steps": 120, "batch_size": 12})
    also = DataChoice(str(folder), "folder", templates=("{}", "a {} thing"), repeat=2)
    return replace(asked, data=replace(asked.data, also=(also,)))


def test_labels_come_beside_captions(labelled: Recipe) -> None:
    lessons = training_lessons(labelled)
    assert len(lessons.items) == 12 + 2 * 12
    assert len({item.picture for item in lessons.items}) == 24
    assert sum(item.texts == ("red", "a red thing") for item in lessons.items) == 6


def test_a_text_that_is_true_of_two_pictures_calls_neither_wrong(labelled: Recipe) -> None:
    run = Run(labelled)
    lesson = run.lessons.at(0)
    prepared = run.task.prepare(lesson)
    chosen = prepared.tensors["chosen"].tolist()
    assert prepared.whole == sum(chosen) < 12
    kept = [place for place, taken in enumerate(chosen) if taken]
    for one in kept:
        for other in kept:
            assert one == other or lesson.texts[one] not in lesson.items[other].texts
    states = run.states(lesson.items, lesson.epochs, changed=True)
    alone = replace(
        lesson,
        items=tuple(lesson.items[place] for place in kept),
        texts=tuple(lesson.texts[place] for place in kept),
        epochs=(0,) * len(kept),
    )
    again = run.task.prepare(alone)
    assert all(again.tensors["chosen"])
    torch.testing.assert_close(
        run.task.loss(states, prepared), run.task.loss(states[kept], again), rtol=1e-5, atol=1e-6
    )


def test_labels_without_templates_say_nothing(labelled: Recipe) -> None:
    (also,) = labelled.data.also
    silent = replace(labelled, data=replace(labelled.data, also=(replace(also, templates=()),)))
    with pytest.raises(InputError, match="templates"):
        training_lessons(silent)
