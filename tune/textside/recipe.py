"""The recipe of a run: one small TOML file, read strictly, every finding reported at once.

A relative path in it starts at the working directory, as a path on the command line does::

    objective = "caption"
    out = "runs/scenes"

    [model]
    tower = "towers/scenes"
    fresh = { layers = 2, width = 128, heads = 4 }

    [data]
    train = { path = "scenes:train:2000" }
    validation = { path = "scenes:validation:200" }

    [training]
    epochs = 4

Every other key has a default, which the dataclasses below state.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primelens.errors import InputError, OptionError
from primelens.schema import decode
from primelens.tune.data import FORMATS
from primelens.tune.data.augmentation import Augmentation

__all__ = [
    "DataChoice",
    "Features",
    "Fresh",
    "Logs",
    "Lora",
    "ModelChoice",
    "Optimiser",
    "Pixels",
    "Recipe",
    "Training",
    "read_recipe",
]

_CONTRASTIVE = ("lit", "siglip")
_DRAWN = ("scenes", "scene-objects")


@dataclass(frozen=True)
class Fresh:
    """A text side from nothing: GPT-2 with cross-attention, or BERT for scores.

    Attributes:
        layers, width, heads: of the transformer.
        positions: longest text in tokens, prompt included.
        vocabulary: entries of the byte-level BPE that is trained on the training texts, where the
            model names no tokenizer.
        dropout: everywhere in it.
    """

    layers: int = 2
    width: int = 128
    heads: int = 4
    positions: int = 64
    vocabulary: int = 768
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "layers", "width", "heads", "positions", "vocabulary")
        _within(self, 0, 1, "dropout")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")


@dataclass(frozen=True)
class ModelChoice:
    """What is tuned: a whole checkpoint, or a tower and a text side.

    Attributes:
        checkpoint: a whole model to go on from; its tower is locked, its text side tuned. A
            ``GitForCausalLM`` fuses by prefix ([image, text] in one sequence), a
            ``VisionEncoderDecoderModel`` by cross-attention.
        tower: a bare tower's checkpoint, or a whole model whose tower is taken.
        text: checkpoint of the text side: a decoder that can cross-attend, or an encoder.
        fresh: sizes of a text side from nothing.
        fusion: of a fresh text side that writes: by cross-attention (a GPT-2), or by prefix, where
            the tower's states stand before the text (a GIT).
        tokenizer: a tokenizer's folder; by default that of the checkpoint or the text side.
        projection: width of both embeddings (lit and siglip).
        image_head: project the image side too (lit and siglip); without it the text side alone is
            projected, onto the width of the tower's vector, as in the paper.
        pooling: of a tower that gives states and no vector: how many queries attend to them.
        max_new_tokens: longest text that validation lets it write, and the checkpoint's default.
        unlock: names of parts of the tower that are tuned too, with all below them. The tower that
            comes of it is another one: nothing that was kept of the former is found for it.
    """

    checkpoint: str | None = None
    tower: str | None = None
    text: str | None = None
    fresh: Fresh | None = None
    fusion: Literal["cross-attention", "prefix"] = "cross-attention"
    tokenizer: str | None = None
    projection: int = 128
    image_head: bool = True
    pooling: int = 4
    max_new_tokens: int = 40
    unlock: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive(self, "projection", "pooling", "max_new_tokens")
        if (self.checkpoint is None) == (self.tower is None):
            raise ValueError("give either checkpoint (a whole model) or tower")
        if self.tower is not None and (self.text is None) == (self.fresh is None):
            raise ValueError("beside a tower give either text (a checkpoint) or fresh (sizes)")
        if self.checkpoint is not None and (self.text or self.fresh):
            raise ValueError("a checkpoint has a text side: leave out text and fresh")
        if self.fusion == "prefix" and self.fresh is None:
            raise ValueError("fusion by prefix is of a fresh text side, or of a GIT checkpoint")


@dataclass(frozen=True)
class DataChoice:
    """A data set: ``scenes:train:2000``, or what `primelens.tune.data` reads.

    Attributes:
        path: annotation file, folder, shards, or drawn scenes as ``scenes:SPLIT:COUNT`` (captions
            or questions) or ``scene-objects:SPLIT:COUNT`` (the name of what stands alone).
        format: of the file; recognised by default.
        images: folder of the pictures.
        split: this split alone.
        answers: VQAv2's annotations.
        limit: the first so many pictures.
        templates: what is said of a picture that has a label and no caption, ``{}`` in the label's
            place; of several, one is drawn each time.
        repeat: how often an epoch shows each picture; a small set beside a large one needs it.
        groups: of drawn scenes those with at least so many groups of things; the crowded ones
            are seldom, and are learned last.
    """

    path: str
    format: str = "auto"
    images: str | None = None
    split: str | None = None
    answers: str | None = None
    limit: int | None = None
    templates: tuple[str, ...] = ()
    repeat: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        _positive(self, "repeat", "groups")
        if self.groups > 1 and self.path.split(":")[0] != "scenes":
            raise ValueError(f"groups are counted in drawn scenes alone, not in {self.path}")
        if bad := [one for one in self.templates if one.count("{}") != 1]:
            raise ValueError(f"the template {bad[0]!r} must have one place {{}} for the label")
        if self.format != "auto" and self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is none of auto, {', '.join(FORMATS)}")
        if self.limit is not None:
            _positive(self, "limit")

    @property
    def scenes(self) -> bool:
        """Whether it names drawn scenes."""
        return self.path.split(":")[0] in _DRAWN


@dataclass(frozen=True)
class Data:
    """What is learned from, and what is measured on.

    Attributes:
        train: learned from.
        also: learned from too, shuffled in among the rest.
        validation: measured on.
    """

    train: DataChoice
    also: tuple[DataChoice, ...] = ()
    validation: DataChoice | None = None


@dataclass(frozen=True)
class Pixels:
    """Preprocessing of a tower that comes without: resize to a square, rescale, normalise."""

    size: int = 224
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _positive(self, "size")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std are three numbers each, std above 0")


@dataclass(frozen=True)
class Features:
    """What the tower says, kept.

    Attributes:
        keep: folder of a store (`primelens.store`); without one the tower runs every time.
        dtype: what is stored; only fp32 leaves the loss curve as it is without keeping.
        cap_bytes: of the store's files.
        batch: pictures per run of the tower. With 1 a picture's features cannot depend on its
            companions in the batch, to the last bit.
    """

    keep: str | None = None
    dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    cap_bytes: int = 10 * 2**30
    batch: int = 1

    def __post_init__(self) -> None:
        _positive(self, "cap_bytes", "batch")


@dataclass(frozen=True)
class Optimiser:
    """How weights move.

    Attributes:
        name: ``adamw`` or ``adafactor``, torch's own.
        rate: peak learning rate; reached after ``warm_up`` steps, then a cosine down to
            ``last_share`` of it.
        weight_decay: of matrices and tables; biases and norms do not decay.
        clip: largest norm of all gradients together.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    rate: float = 1e-3
    warm_up: int = 100
    last_share: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.98)
    clip: float = 1.0

    def __post_init__(self) -> None:
        _within(self, 0, 1, "last_share")
        if self.rate <= 0 or self.clip <= 0 or self.weight_decay < 0 or self.warm_up < 0:
            raise ValueError("rate and clip are above 0, weight_decay and warm_up not below it")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas are two numbers from 0 to below 1")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the text side (the extra ``lora``), merged before a checkpoint is saved.

    Attributes:
        rank, alpha, dropout: of the adapters.
        targets: endings of the names of the layers that get one.
    """

    targets: tuple[str, ...]
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "rank")
        _within(self, 0, 1, "dropout")
        if not self.targets or self.alpha <= 0:
            raise ValueError("targets names at least one layer, and alpha is above 0")


@dataclass(frozen=True)
class Training:
    """How long, in which batches, and when it stops.

    Attributes:
        epochs: over the training data; or
        steps: optimiser steps.
        batch_size: pictures (or questions) a step.
        accumulate: parts that a batch is computed in; the gradient is that of the whole batch.
        smoothing: of the labels (caption, answer).
        precision: what the text side computes in; weights stay float32, and so does the tower.
        evaluate_every: steps between two validations; 0 validates at the end alone.
        patience: validations without improvement until it stops; 0 never does.
        save_every: steps between two states to resume from.
        threads: torch's; results are equal to the last bit for equal numbers of threads only.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    smoothing: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    seed: int = 0
    evaluate_every: int = 0
    patience: int = 0
    save_every: int = 100
    threads: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "batch_size", "accumulate", "save_every")
        _within(self, 0, 1, "smoothing")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if (self.epochs or self.steps or 0) < 1:
            raise ValueError("epochs and steps are at least 1")
        if min(self.evaluate_every, self.patience, self.seed) < 0:
            raise ValueError("evaluate_every, patience and seed are not below 0")
        if self.threads is not None:
            _positive(self, "threads")


@dataclass(frozen=True)
class Logs:
    """What is written beside ``log.jsonl``, which always is.

    Attributes:
        tensorboard: event files in ``out/tensorboard`` (the extra ``curves``).
        plot: the loss as ``out/loss.png`` (the extra ``curves``).
    """

    tensorboard: bool = False
    plot: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
        objective: ``caption`` and ``answer`` are cross-entropies, of the answer alone for the
            latter; ``lit`` and ``siglip`` compare pictures and texts of a batch; ``match`` tells
            right pairs from wrong ones.
        out: the run's folder.
        augmentation: a declaration, see `primelens.tune.data.augmentation`.
    """

    objective: Literal["caption", "answer", "lit", "siglip", "match"]
    out: str
    model: ModelChoice
    data: Data
    training: Training
    optimiser: Optimiser = field(default_factory=Optimiser)
    features: Features = field(default_factory=Features)
    logs: Logs = field(default_factory=Logs)
    preprocessing: Pixels | None = None
    lora: Lora | None = None
    augmentation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def contrastive(self) -> bool:
        """Whether the pairs of a batch are compared with each other."""
        return self.objective in _CONTRASTIVE

    @property
    def changes(self) -> Augmentation:
        """The augmentation."""
        return Augmentation.from_dict(self.augmentation)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        OptionError: it cannot be read, or holds what is unknown, wrong or contradictory; every
            finding is in ``problems``.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError is a ValueError
        raise OptionError(f"The recipe {path} cannot be read: {error}.") from error
    problems: list[str] = []
    recipe = decode(Recipe, data, where=path.stem, problems=problems)
    # The augmentation has a reader of its own; it is asked even where the rest is not sound.
    declared = data.get("augmentation", {})
    try:
        changes = Augmentation.from_dict(declared) if isinstance(declared, dict) else None
    except InputError as error:
        changes = None
        problems.append(str(error))
    if recipe is not None and changes is not None:
        problems += _contradictions(recipe, changes)
    if problems or recipe is None:
        raise OptionError(
            f"The recipe {path} cannot be carried out:",
            remedy="Every key and its meaning: primelens.tune.textside.recipe.",
            problems=problems,
        )
    return recipe


def _contradictions(recipe: Recipe, changes: Augmentation) -> Iterator[str]:
    """What is sound by itself and does not go together."""
    training = recipe.training
    if recipe.features.keep is not None and recipe.model.unlock:
        yield (
            "features.keep: a tower that is partly unlocked says something else after every step, "
            "so there is nothing to keep: leave out features.keep or model.unlock"
        )
    if recipe.features.keep is not None and changes.steps:
        if changes.views is None:
            yield (
                "features.keep: an augmented picture looks different in every epoch, so there is "
                "nothing to keep: leave out augmentation.steps, or set augmentation.views"
            )
        elif changes.views == 1:
            yield (
                "features.keep: with augmentation.views = 1 every picture would be distorted once "
                "and for ever, which augments nothing: leave out the steps, or keep 2 views or more"
            )
    if training.accumulate > 1 and recipe.contrastive:
        yield (
            f"training.accumulate: {recipe.objective} compares all pairs of a batch, which parts "
            "of it cannot: lower batch_size, or set accumulate to 1"
        )
    if training.batch_size % training.accumulate:
        yield f"training.accumulate: {training.accumulate} does not divide the batch_size"
    if recipe.objective in ("match", *_CONTRASTIVE) and training.batch_size < 2:
        yield f"training.batch_size: {recipe.objective} needs wrong pairs, hence 2 or more"
    if training.patience and not training.evaluate_every:
        yield "training.patience: nothing is validated on the way: set training.evaluate_every"
    if training.evaluate_every and recipe.data.validation is None:
        yield "training.evaluate_every: data.validation is missing"
    if recipe.model.fusion == "prefix" and recipe.objective not in ("caption", "answer"):
        yield f"model.fusion: {recipe.objective} writes no text"
    if training.smoothing and recipe.objective not in ("caption", "answer"):
        yield f"training.smoothing: {recipe.objective} has no labels to smooth"


def _positive(owner: Any, *names: str) -> None:
    for name in names:
        if getattr(owner, name) < 1:
            raise ValueError(f"{name} is {getattr(owner, name)}; it must be at least 1")


def _within(owner: Any, least: float, most: float, *names: str) -> None:
    for name in names:
        if not least <= getattr(owner, name) <= most:
            raise ValueError(f"{name} is {getattr(owner, name)}; it must be {least} to {most}")
