"""Runs that tune a part of the tower too: that part moves, nothing else of it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, VisionEncoderDecoderModel

from primelens.errors import OptionError
from primelens.export.lock import compare_towers
from primelens.tune.textside import plan_run, read_recipe, tune
from primelens.tune.textside.progress import read_log
from primelens.tune.textside.recipe import Recipe
from primelens.tune.textside.run import Run

LAST = "backbone.encoder.stages.1"


def partly(recipe: Any, out: Path, **training: Any) -> Recipe:
    """Three epochs with the tower's last stage unlocked."""
    made: Recipe = recipe(
        "caption",
        out=str(out),
        model={"unlock": [LAST]},
        training={"steps": 6, "save_every": 3, **training},
    )
    return made


def test_only_what_is_unlocked_moves(recipe: Any, tower: Path, tmp_path: Path) -> None:
    asked = partly(recipe, tmp_path / "run")
    outcome = tune(asked)
    before = AutoModel.from_pretrained(tower).state_dict()
    after = VisionEncoderDecoderModel.from_pretrained(outcome.checkpoint).encoder.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    free = {name for name in before if name.startswith(LAST)}
    assert moved == free  # its weights, and its statistics, which are those of the batches
    report = compare_towers(tower, outcome.checkpoint)
    assert not report.locked
    note = json.loads((outcome.checkpoint / "tuning.json").read_text())
    assert note["tower"] == {
        "digest": outcome.tower_digest, "tap": "last_hidden_state", "unlocked": [LAST],
    }  # fmt: skip
    assert outcome.tower_runs >= 3 * 12


def test_parts_of_a_batch_share_one_way_back(recipe: Any, tmp_path: Path) -> None:
    tune(whole := partly(recipe, tmp_path / "whole"))
    tune(parts := partly(recipe, tmp_path / "parts", accumulate=3))
    found = [[line["loss"] for line in read_log(Path(one.out))] for one in (whole, parts)]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_gradients_are_those_of_the_whole_model(recipe: Any, tmp_path: Path) -> None:
    run = Run(partly(recipe, tmp_path / "run"))
    run.tuned.train()
    lesson = run.lessons.at(0)
    states = run.states(lesson.items, lesson.epochs, changed=True)
    run._backward(states, run.task.prepare(lesson))
    found = {n: p.grad for n, p in run.parts.seam.tower.named_parameters() if p.grad is not None}
    assert set(found) == {
        name for name, _ in run.parts.seam.tower.named_parameters() if name.startswith(LAST)
    }
    run.tuned.zero_grad(set_to_none=True)
    states = run.states(lesson.items, lesson.epochs, changed=True)
    run.task.loss(states, run.task.prepare(lesson)).backward()  # in one graph
    for name, parameter in run.parts.seam.tower.named_parameters():
        if name in found:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, found[name])


def test_it_goes_on_to_the_same_weights(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(partly(recipe, tmp_path / "whole"))
    asked = partly(recipe, tmp_path / "stopped")
    step = Run.step

    def stopping(run: Run, number: int) -> float:
        if number == 4:
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(Run, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(asked)
    monkeypatch.undo()
    resumed = tune(asked, resume=True)
    name = "model.safetensors"
    first, second = load_file(whole.checkpoint / name), load_file(resumed.checkpoint / name)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_plan_counts_it_apart(recipe: Any, tower: Path, tmp_path: Path) -> None:
    plan = plan_run(partly(recipe, tmp_path / "run"))
    named = AutoModel.from_pretrained(tower).named_parameters()
    unlocked = sum(p.numel() for name, p in named if name.startswith(LAST))
    assert plan.numbers["unlocked"] == unlocked > 0
    assert any(f"{unlocked:,} unlocked" in line for line in plan.lines)


def test_what_moves_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'objective = "caption"\nout = "run"\n[model]\ntower = "tower"\nunlock = ["layers.1"]\n'
        'fresh = {}\n[data]\ntrain = { path = "data" }\n[training]\nsteps = 1\n'
        '[features]\nkeep = "store"\n'
    )
    with pytest.raises(OptionError) as caught:
        read_recipe(path)
    assert "features.keep: a tower that is partly unlocked" in str(caught.value)


def test_a_part_that_is_not_there_is_named(recipe: Any) -> None:
    with pytest.raises(OptionError, match=r"no part named 'stages\.9'"):
        Run(recipe("caption", model={"unlock": ["stages.9"]}))
