"""The tutorial's commands exist with their options, and its files are what the commands take."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import click
import pytest

from primelens.cli.app import app
from primelens.tune.data import DataSource, read_examples
from primelens.tune.textside import read_recipe

TUTORIAL = Path(__file__).resolve().parents[3] / "docs" / "tutorial-lit.md"
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    """File name (empty where none is given) and text of every block of a kind."""
    found = _BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))
    return [(name, text) for language, name, text in found if language == kind]


def commands() -> list[list[str]]:
    """Words of every command."""
    lines = "".join(text for _, text in blocks("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the tutorial lets its reader write, and two photographs."""
    (tmp_path / "photographs").mkdir()
    for kind in ("toml", "python"):
        for name, text in blocks(kind):
            if name:
                (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [{"file": f"{n}.jpg", "captions": [f"picture {n}"]} for n in range(10)]
    (tmp_path / "photographs" / "captions.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_understood(workplace: Path) -> None:
    verbs = set()
    for program, *words in commands():
        if program == "python":
            if words[0] == "-m":
                assert importlib.util.find_spec(words[1]) is not None
            else:
                assert (workplace / words[0]).is_file()
            continue
        assert program in ("primelens", "pip")
        if program == "primelens":
            name, *arguments = words
            command = app.commands[name]
            with click.Context(app, info_name="primelens") as parent:
                context = command.make_context(name, arguments, parent=parent)
            assert context.params
            verbs.add(name)
    assert verbs >= {"tune", "export", "evaluate", "caption", "rank"}


def test_a_command_that_does_not_exist_would_be_noticed(workplace: Path) -> None:
    with pytest.raises(click.UsageError):
        app.commands["evaluate"].make_context("evaluate", ["x", "--data", "y", "--colour", "red"])


def test_every_recipe_is_sound(workplace: Path) -> None:
    recipes = {name: read_recipe(workplace / name) for name, _ in blocks("toml")}
    assert {recipe.objective for recipe in recipes.values()} == {"caption", "lit"}
    named = {word for words in commands() for word in words if word.endswith(".toml")}
    assert named == set(recipes)


def test_the_splits_are_read(workplace: Path) -> None:
    ((_, script),) = blocks("python")
    exec(compile(ast.parse(script), "mark_splits.py", "exec"), {})
    examples = list(read_examples(DataSource(workplace / "photographs")))
    assert [example.split for example in examples].count("test") == 2
    assert {example.split for example in examples} == {"train", "test"}
