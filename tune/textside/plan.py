"""What a recipe would do, without doing it: shapes, parameters, memory, steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from primelens.tune.textside.recipe import Recipe
from primelens.tune.textside.run import Identify, Run

__all__ = ["Plan", "plan_run"]

_FLOAT = 4  # bytes
_STORED = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        lines: for people.
        numbers: for machines; bytes, counts and shapes.
    """

    lines: tuple[str, ...]
    numbers: Mapping[str, Any]


def plan_run(recipe: Recipe, *, identify: Identify | None = None) -> Plan:
    """Read the data, assemble the model, look at one picture; nothing is written.

    Raises:
        PrimelensError: whatever a run would stop at before its first step.
    """
    run = Run(_unkept(recipe), identify)
    lesson = run.lessons.at(0)
    states = run.states(lesson.items[:1], lesson.epochs[:1], changed=True)
    prepared = run.task.prepare(lesson)
    whole = list(run.parts.seam.tower.parameters())
    unlocked = sum(p.numel() for p in whole if p.requires_grad)
    tower = sum(p.numel() for p in whole) - unlocked
    tuned = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    still = sum(p.numel() for p in run.model.parameters()) - tuned
    moments = 2 * (tuned + unlocked) if recipe.optimiser.name == "adamw" else 0
    shape = list(states.shape[1:])
    one = states[0].numel()
    pictures = len({item.picture for item in run.lessons.items})
    views = (run.states.changes.views or 1) if run.states.changes.steps else 1
    kept = one * _STORED[recipe.features.dtype] * pictures * views
    memory = {
        "weights": _FLOAT * (tower + unlocked + tuned + still),
        "gradients": _FLOAT * (tuned + unlocked),
        "optimiser": _FLOAT * moments,
        "states of a batch": _FLOAT * one * len(lesson.items),
    }
    numbers = {
        "locked": tower,
        "unlocked": unlocked,
        "tuned": tuned,
        "frozen": still,
        "tap": {"name": run.parts.seam.tap, "shape": shape},
        "tensors": {name: list(t.shape) for name, t in prepared.tensors.items()},
        "items": {"train": len(run.lessons.items), "validation": len(run.validation)},
        "steps": {"epoch": run.lessons.steps_per_epoch, "all": run.steps},
        "memory": memory,
        "kept": kept if recipe.features.keep else 0,
        "tower_digest": run.lock.digest,
    }
    return Plan(tuple(_lines(recipe, run, numbers)), numbers)


def _unkept(recipe: Recipe) -> Recipe:
    return replace(recipe, features=replace(recipe.features, keep=None))


def _lines(recipe: Recipe, run: Run, numbers: Mapping[str, Any]) -> list[str]:
    steps, items, memory = numbers["steps"], numbers["items"], numbers["memory"]
    tensors = ", ".join(f"{name} {shape}" for name, shape in numbers["tensors"].items())
    total = sum(memory.values())
    lines = [
        f"objective {recipe.objective}, model {type(run.parts.model).__name__}",
        f"tower: {type(run.parts.seam.tower).__name__}, {_tower(numbers)}",
        f"content of the tower: {numbers['tower_digest']}",
        f"tap: {numbers['tap']['name']} {numbers['tap']['shape']} per picture",
        f"text side: {numbers['tuned']:,} parameters tuned, {numbers['frozen']:,} kept as they are",
        f"first batch: {tensors}",
        f"data: {items['train']:,} items to learn from, {items['validation']:,} to measure on",
        f"steps: {steps['all']:,}, {steps['epoch']:,} an epoch, of {_size(recipe)} items each",
        f"memory: {_megabytes(total)} and the activations ("
        + ", ".join(f"{name} {_megabytes(size)}" for name, size in memory.items())
        + ")",
    ]
    if recipe.features.keep:
        lines.append(f"kept features: {_megabytes(numbers['kept'])} in {recipe.features.keep}")
    return lines


def _tower(numbers: Mapping[str, Any]) -> str:
    text = f"{numbers['locked']:,} parameters, locked"
    return text + (f"; {numbers['unlocked']:,} unlocked" if numbers["unlocked"] else "")


def _size(recipe: Recipe) -> int:
    return recipe.training.batch_size


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
