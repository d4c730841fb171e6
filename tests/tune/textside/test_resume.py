"""A run that is killed goes on to the same weights and the same log, to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from primelens.tune.textside import read_recipe, tune
from primelens.tune.textside.progress import read_log
from primelens.tune.textside.recipe import Recipe
from primelens.tune.textside.run import Run

PROGRAM = """
import sys
from pathlib import Path
from primelens.tune.textside import read_recipe, tune
tune(read_recipe(Path(sys.argv[1])))
"""


def written(recipe: Recipe, tower: Path, pictures: Path, folder: Path) -> Path:
    """The same recipe as a file."""
    path = folder / "recipe.toml"
    path.write_text(
        f"""
objective = "caption"
out = "{folder / "killed"}"

[model]
tower = "{tower}"
fresh = {{ layers = 1, width = 32, heads = 2, vocabulary = 300, dropout = 0.2 }}
projection = 16
max_new_tokens = 12

[data]
train = {{ path = "{pictures}", format = "folder" }}
validation = {{ path = "{pictures}", format = "folder" }}

[training]
steps = {recipe.training.steps}
batch_size = 6
threads = 1
save_every = 3
evaluate_every = 30

[features]
keep = "{folder / "store"}"

[optimiser]
rate = 3e-3
warm_up = 2
"""
    )
    return path


def test_sigkill_changes_nothing(recipe: Any, tower: Path, pictures: Path, tmp_path: Path) -> None:
    whole = recipe(
        "caption",
        out=str(tmp_path / "whole"),
        model={
            "fresh": {"layers": 1, "width": 32, "heads": 2, "vocabulary": 300, "dropout": 0.2},
        },
        training={"steps": 90, "save_every": 50, "evaluate_every": 30},
    )
    path = written(whole, tower, pictures, tmp_path)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)])
    log = tmp_path / "killed"
    while len(read_log(log)) < 20:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = read_log(log)
    assert 20 <= len(done) < 90
    assert not (log / "checkpoint").exists()

    tune(whole)
    resumed = tune(read_recipe(path), resume=True)
    assert read_log(log) == read_log(tmp_path / "whole")
    assert read_log(log)[: len(done)] == done  # also the steps between the last state and the end
    one = load_file(tmp_path / "whole" / "checkpoint" / "model.safetensors")
    other = load_file(resumed.checkpoint / "model.safetensors")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_state_that_is_cut_off_is_never_in_place(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe("caption", training={"save_every": 2})
    save, calls = torch.save, 0

    def torn(state: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, file)

    asked_steps = []
    step = Run.step
    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="No space"):
        tune(asked)
    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(Run, "step", lambda run, n: asked_steps.append(n) or step(run, n))
    tune(asked, resume=True)
    assert asked_steps == [2, 3, 4, 5]
