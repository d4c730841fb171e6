"""Recipes are read strictly, with all findings at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from primelens.cli.app import app
from primelens.errors import OptionError
from primelens.tune.textside import read_recipe

ROOT = Path(__file__).resolve().parents[3]

GOOD = """
objective = "caption"
out = "run"
[model]
tower = "tower"
fresh = { width = 64 }
[data]
train = { path = "scenes:train:10" }
[training]
steps = 3
"""


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_recipe(path)
    return str(caught.value)


def test_a_small_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD)
    recipe = read_recipe(path)
    assert recipe.model.fresh is not None
    assert (recipe.model.fresh.width, recipe.model.fresh.layers) == (64, 2)
    assert recipe.training.steps == 3


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        GOOD.replace('"caption"', '"captions"').replace("steps = 3", 'steps = "3"\nstep = 4')
        + '[optimiser]\nrate = 0\n[augmentation]\nsteps = [{ step = "swirl" }]\n',
    )
    for finding in ("captions", "expected int", "recipe.training.step: unknown key", "above 0"):
        assert finding in said, said
    assert "swirl" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[augmentation]\nsteps = [{ step = 'horizontal_flip' }]", "different in every epoch"),
        ("[augmentation]\nviews = 1\nsteps = [{ step = 'horizontal_flip' }]", "once and for ever"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, change: str, said: str) -> None:
    assert said in refused(tmp_path, f"{GOOD}[features]\nkeep = 'store'\n{change}\n")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 3", "steps = 3\nepochs = 2", "either epochs or steps"),
        ("steps = 3", "steps = 3\naccumulate = 5", "does not divide"),
        ("steps = 3", "steps = 3\npatience = 2", "evaluate_every"),
        ("steps = 3", "steps = 3\nevaluate_every = 2", "data.validation is missing"),
        ("fresh = { width = 64 }", "fresh = { width = 65 }", "do not divide"),
        ("fresh = { width = 64 }", "", "either text"),
        ('tower = "tower"', 'tower = "tower"\ncheckpoint = "x"', "either checkpoint"),
        ('"scenes:train:10"', '"x", format = "y"', "none of auto"),
        ('"scenes:train:10"', '"x", templates = ["a"]', "one place {} for the label"),
        ('"scenes:train:10"', '"x", repeat = 0', "at least 1"),
        ('"scenes:train:10"', '"x", groups = 2', "in drawn scenes alone, not in x"),
        ("fresh = {", 'fusion = "prefix"\ntext = "x" #', "of a fresh text side"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in refused(tmp_path, GOOD.replace(old, new))


def test_contrastive_batches_cannot_be_parted(tmp_path: Path) -> None:
    text = GOOD.replace('"caption"', '"lit"').replace("steps = 3", "steps = 3\naccumulate = 2")
    assert "compares all pairs" in refused(tmp_path, text)


def test_no_toml_is_said(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path, "objective =")
    with pytest.raises(OptionError, match="cannot be read"):
        read_recipe(tmp_path / "absent.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "tune" / "configs").glob("*.toml")))
def test_the_examples_are_sound(path: Path) -> None:
    assert read_recipe(path).out


def test_the_verb_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD + "batch_size = 5\n")
    done = CliRunner().invoke(app, ["tune", str(path), "--dry-run"])
    assert done.exit_code == 1
    assert "no config.json" in done.output
