"""A run: from a recipe to a checkpoint whose tower is, to the last bit, the one it began with (but
for the parts of it that the recipe unlocks).

The core of it reads in a few lines: a lesson, what the locked tower says of its pictures, the loss
of the parts, one step of the optimiser. Everything that decides a step hangs on its number, so a
run that was killed goes on to the same weights, bit for bit on the CPU. A run is one process; a
training loop over several finds losses over the global batch in `primelens.tune.objectives`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from primelens.errors import InputError, OptionError, UnsupportedError
from primelens.schema import canonical_json, encode
from primelens.tune.lock import Lock, content_digest, lock
from primelens.tune.textside.assembling import Parts, assemble
from primelens.tune.textside.checkpoint import save_checkpoint
from primelens.tune.textside.lessons import Item, Lessons, read_items, training_lessons
from primelens.tune.textside.progress import Journal
from primelens.tune.textside.recipe import Recipe
from primelens.tune.textside.state import (
    STATE,
    Standing,
    load_best,
    load_state,
    save_best,
    save_state,
)
from primelens.tune.textside.states import TowerStates, TowerView, own_identity
from primelens.tune.textside.tasks import Prepared, Score, Task, make_task
from primelens.tune.textside.weights import (
    add_adapters,
    make_optimiser,
    merge_adapters,
    share_of_rate,
)

__all__ = ["Identify", "Outcome", "Run", "tune"]

Identify = Callable[[Path], Mapping[str, str]]


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        checkpoint: the folder.
        steps: that were done; fewer than planned where it stopped early.
        tower_digest: of the tower, before and after; without the parts that were unlocked.
        score: name and value of the checkpoint's score on the validation data.
        tower_runs: pictures that the tower looked at, in this process.
        kept_reads: pictures whose states were read where they were kept, in this process.
    """

    checkpoint: Path
    steps: int
    tower_digest: str
    score: tuple[str, float] | None
    tower_runs: int
    kept_reads: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "checkpoint": str(self.checkpoint)}


class Run:
    """A recipe made ready: data read, model assembled, tower taken out and locked.

    Args:
        recipe: a checked recipe.
        identify: the tower's identities by tap, as an exporter would compute them; kept features
            are filed under them. Without one, or for a tower that it does not know, the tower is
            identified by its names in transformers.
    """

    def __init__(self, recipe: Recipe, identify: Identify | None = None) -> None:
        self.recipe = recipe
        # Bars over weights that are loaded would tear ours apart; the advice is for other uses.
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        if recipe.training.threads is not None:
            torch.set_num_threads(recipe.training.threads)
        self.device = _device(recipe.training.device)
        self.lessons: Lessons = training_lessons(recipe)
        choice = recipe.data.validation
        self.validation: tuple[Item, ...] = (
            () if choice is None else read_items(choice, recipe.objective)
        )
        self.parts: Parts = assemble(recipe, self._texts)
        self._began = content_digest(self.parts.seam.tower)
        self.lock: Lock = lock(self.parts.seam.tower, recipe.model.unlock)
        self.model: nn.Module = self.parts.seam.open()
        self.adapters = None
        if recipe.lora is not None:
            self.adapters = add_adapters(_text_side(self.parts.model), recipe.lora)
        self.model.to(self.device)
        self.task: Task = make_task(recipe, self.parts)
        self.states = TowerStates(self._view(identify), recipe.features, recipe.changes)
        # What moves, and is in a state to resume from: the text side, seldom the tower's end too.
        self.tuned = self.model
        if recipe.model.unlock:
            self.tuned = nn.ModuleDict({"model": self.model, "tower": self.parts.seam.tower})
        self.optimiser = make_optimiser(self.tuned, recipe.optimiser)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        training = self.recipe.training
        return training.steps or (training.epochs or 0) * self.lessons.steps_per_epoch

    @property
    def settings(self) -> str:
        """Digest of everything that decides the weights; where they are written does not."""
        recipe = encode(self.recipe)
        for name in ("out", "logs", "features"):
            del recipe[name]
        # What is computed exactly is the same whether it is kept or not; the rest is not.
        recipe["stored"] = self.recipe.features.dtype
        recipe["training"] = {**recipe["training"], "save_every": None}
        names = [[item.example.id, item.question, list(item.texts)] for item in self.lessons.items]
        document = {"recipe": recipe, "items": names, "tower": self._began}
        return hashlib.sha256(canonical_json(document)).hexdigest()

    def step(self, number: int) -> float:
        """One optimiser step; returns the loss before it."""
        lesson = self.lessons.at(number)
        states = self.states(lesson.items, lesson.epochs, changed=True)
        loss = self._backward(states, self.task.prepare(lesson))
        if not math.isfinite(loss):
            raise InputError(
                f"The loss is {loss} at step {number + 1}.",
                remedy="Lower optimiser.rate, or compute in fp32.",
            )
        share = share_of_rate(number, self.steps, self.recipe.optimiser)
        self._move(share)
        return loss

    def _backward(self, states: torch.Tensor, prepared: Prepared) -> float:
        rows, parts = len(states), self.recipe.training.accumulate
        total = 0.0
        moving = states.requires_grad
        read = states.detach().requires_grad_(moving)  # so that parts share one way back
        for part in range(parts):
            some = slice(part * rows // parts, (part + 1) * rows // parts)
            with self._autocast():
                loss = self.task.loss(read[some], prepared.part(some))
            loss.backward()
            total += loss.item()
        if moving:
            states.backward(read.grad)
        return total

    def _move(self, share: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.optimiser.rate * share
        nn.utils.clip_grad_norm_(self.tuned.parameters(), self.recipe.optimiser.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def validate(self) -> tuple[float, Score]:
        """Loss and score on the validation data, unaugmented."""
        self.tuned.eval()
        total, whole = 0.0, 0
        lessons = Lessons(self.validation, self.lessons.batch_size, self.recipe.training.seed)
        with torch.no_grad():
            for lesson in lessons.in_order():
                prepared = self.task.prepare(lesson)
                with self._autocast():
                    loss = self.task.loss(self._look(lesson.items), prepared)
                total += loss.item() * prepared.whole
                whole += prepared.whole
            score = self.task.score(self.validation, self._look)
        self.tuned.train()
        return total / max(1, whole), score

    def _look(self, items: Sequence[Item]) -> torch.Tensor:
        return self.states(items, [0] * len(items), changed=False)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _texts(self) -> Iterator[str]:
        for item in self.lessons.items:
            yield from item.texts
            if item.question is not None:
                yield item.question

    def _view(self, identify: Identify | None) -> TowerView:
        parts, choice = self.parts, self.recipe.model
        seam, spec = parts.seam, parts.preprocessing
        tower: torch.nn.Module = seam.tower
        tower.to(self.device)
        known: Mapping[str, str] = {}
        if identify is not None and self.recipe.features.keep and not self.recipe.preprocessing:
            known = identify(Path(choice.checkpoint or choice.tower or ""))
        identity = known.get(seam.tap) or own_identity(seam.tower, seam.tap, spec)
        return TowerView(seam.tower, seam.tap, spec, identity, self.device)


def tune(
    recipe: Recipe,
    *,
    resume: bool = False,
    identify: Identify | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Carry out a recipe.

    Args:
        recipe: a checked recipe.
        resume: go on from the state in ``recipe.out``.
        identify: see `Run`.
        say: takes lines of progress.

    Raises:
        OptionError: ``out`` holds a run already, or one of another recipe.
        InputError: the data cannot be read, or the loss is not finite.
        CheckpointError: a checkpoint cannot be loaded.
        TowerMovedError: the tower is not what it was; no checkpoint is written then.
    """
    out = Path(recipe.out)
    if not resume and ((out / STATE).exists() or (out / "checkpoint").exists()):
        raise OptionError(
            f"{out} holds a run already.",
            remedy="Go on with it by --resume, or give another folder.",
        )
    run = Run(recipe, identify)
    out.mkdir(parents=True, exist_ok=True)
    standing = Standing()
    if resume:
        standing = load_state(out, run.tuned, run.optimiser, run.settings)
    journal = Journal(out, recipe.logs, steps=run.steps, step=standing.step, say=say)
    try:
        _train(run, standing, journal)
    finally:
        journal.close()
        run.states.close()
    return _finish(run, standing)


def _train(run: Run, standing: Standing, journal: Journal) -> None:
    training, out = run.recipe.training, Path(run.recipe.out)
    run.tuned.train()
    while standing.step < run.steps and not _gave_up(run, standing):
        loss = run.step(standing.step)
        standing.step += 1
        entry: dict[str, Any] = {"loss": loss}
        last = standing.step == run.steps
        due = training.evaluate_every and standing.step % training.evaluate_every == 0
        if run.validation and (due or last):
            measured, score = run.validate()
            entry |= {"validation loss": measured, score.name: score.value}
            _take_in(run, standing, score)
        journal.write(standing.step, entry)
        if standing.step % training.save_every == 0 or last or _gave_up(run, standing):
            run.lock.check()
            save_state(out, run.tuned, run.optimiser, standing, run.settings)


def _take_in(run: Run, standing: Standing, score: Score) -> None:
    """Remember the weights if they are the best so far."""
    standing.idle += 1
    standing.score = score.name
    if standing.best is None or score.value > standing.best:
        standing.best, standing.best_step, standing.idle = score.value, standing.step, 0
        save_best(Path(run.recipe.out), run.tuned)


def _gave_up(run: Run, standing: Standing) -> bool:
    return 0 < run.recipe.training.patience <= standing.idle


def _finish(run: Run, standing: Standing) -> Outcome:
    """The best weights, adapters merged, the tower put back, as a checkpoint."""
    out = Path(run.recipe.out)
    score = None
    if standing.best is not None:
        load_best(out, run.tuned)
        score = (standing.score, standing.best)
    run.tuned.eval()
    if run.adapters is not None:
        merge_adapters(run.adapters)
    digest = run.lock.digest
    run.lock.release()
    run.parts.seam.close()
    note = {
        "recipe": encode(run.recipe),
        "augmentation": run.recipe.changes.to_dict(),
        "preprocessing": run.parts.preprocessing.to_dict(),
        "tower": {
            "digest": digest,
            "tap": run.parts.seam.tap,
            "unlocked": list(run.recipe.model.unlock),
        },
        "steps": standing.step,
        "best_step": standing.best_step or standing.step,
        "score": None if score is None else {"name": score[0], "value": score[1]},
    }
    target = save_checkpoint(out / "checkpoint", run.parts, note)
    return Outcome(target, standing.step, digest, score, run.states.runs, run.states.reads)


def _text_side(model: Any) -> nn.Module:
    """What adapters are put on; projections around it are tuned as they are."""
    for name in ("decoder", "text_model", "git"):
        if hasattr(model, name):
            side: nn.Module = getattr(model, name)
            return side
    raise UnsupportedError(f"{type(model).__name__} has no text side that takes adapters.")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"training.device {name!r} cannot be used: {error}", remedy='Use "cpu".'
        ) from error
    return device
