"""What an architecture's file says, and how those files are found.

Three kinds of families register themselves, one file each in `primelens.export.families`:

* a `TowerFamily` knows an image tower: its taps, and its canonical fields and tensor names;
* a `DecoderFamily` turns a text decoder's weights into a `DecoderPlan`;
* a `ModelFamily` knows a whole image-to-text model: where its seam is, how its ``generate``
  behaves.

Adding an architecture is adding a file there. Each family first lists its `gaps`: whatever in a
configuration its graphs would not mirror, so that a checkpoint is refused with everything at once.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from primelens.errors import OptionError, UnsupportedError
from primelens.export.decoder_plan import DecoderPlan, Linear
from primelens.export.matching_graph import MatchingPlan
from primelens.export.question_graph import QuestionPlan
from primelens.manifest import Generation, PromptSpec

__all__ = [
    "DecoderFamily",
    "HeadSplit",
    "ModelFamily",
    "ModelSplit",
    "Prefix",
    "RankReference",
    "RankSplit",
    "Reference",
    "TowerFamily",
    "TowerSplit",
    "as_array",
    "called",
    "decoder_family",
    "frames_of",
    "model_family",
    "register_decoder",
    "register_model",
    "register_tower",
    "supported",
    "tower_family",
]

Array = NDArray[Any]
F = TypeVar("F")


@dataclass(frozen=True)
class TowerSplit:
    """An image tower, cut at its taps.

    Attributes:
        module: ``pixel_values [B, 3, H, W]`` → a tuple of tensors, one per tap.
        architecture: canonical fields (JSON values) that shape the computation.
        taps: tap name → canonical tensor name → tensor, of all that lies upstream of that tap.
        size: (H, W) of its input; None where the preprocessing alone decides it.
        packed: of a tower that reads packed patches (`primelens.patches`), the width of a patch's
            row; its module takes ``[B, 1 + N, packed]`` for any N.
    """

    module: torch.nn.Module
    architecture: Mapping[str, Any]
    taps: Mapping[str, Mapping[str, torch.Tensor]]
    size: tuple[int, int] | None
    packed: int | None = None


class TowerFamily(Protocol):
    """An image tower's file."""

    @property
    def name(self) -> str:
        """What manifests call it."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """transformers' names (``config.model_type``)."""

    def gaps(self, config: Any) -> list[str]:
        """What this configuration asks for that the exporter does not mirror."""

    def split(self, model: Any) -> TowerSplit:
        """Cut the loaded tower."""


class DecoderFamily(Protocol):
    """A text decoder's file."""

    @property
    def name(self) -> str:
        """What manifests call it."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """transformers' names (``config.model_type``)."""

    def gaps(self, config: Any) -> list[str]:
        """What this configuration asks for that the exporter does not mirror."""

    def plan(self, model: Any) -> DecoderPlan:
        """Describe the loaded decoder; arrays may share memory with it."""


class Reference(Protocol):
    """The source model as the gate questions it; pixels are ``[B, 3, H, W]``, ids int64."""

    def taps(self, pixels: Array) -> dict[str, Array]:
        """Tap name → values."""

    def logits(self, tap: Array, tokens: Array) -> Array:
        """``[B, T, V]`` logits after each of ``tokens [B, T]``, start tokens included."""

    def generate(
        self, pixels: Array, settings: Mapping[str, Any], *, plain: bool
    ) -> list[list[int]]:
        """Continuations by the model's own ``generate``, start tokens and padding cut off.

        ``settings`` overrule the checkpoint's generation_config, of which ``plain`` keeps only the
        special tokens: greedy decoding.
        """

    def widen(self) -> Any:
        """A context in which the model computes in float64, for adjudicating ties."""


@dataclass(frozen=True)
class Prefix:
    """How a decoder reads its picture as a prefix of the text, or an encoder as that of a question.

    Attributes:
        module: the tap ``[B, *]``, or those of all frames ``[B, F, *]`` → ``[B, P, C]``: what the
            first layer reads in the picture's place, positions included.
        length: P.
        causal: whether the prefix's positions see only those before them, and not each other.
        frames: of a head that reads videos, the number F of their frames; None for pictures.
    """

    module: torch.nn.Module
    length: int
    causal: bool
    frames: int | None = None


@dataclass(frozen=True)
class HeadSplit:
    """One text side of a model.

    Attributes:
        kind: what the head answers to.
        tap: the tap it reads.
        plan: its decoder.
        projection: what the tap goes through before the cross-attention, or None.
        generation: decoding defaults.
        tensors: name → source tensor of everything right of the seam.
        reference: the source model, to be compared with.
        prompt: how prompts or questions are put to it.
        question: the encoder that questions go through, where the decoder does not read them
            itself; its reference then has ``asking(questions)``, which gives a reference that is
            asked one question (ids, special tokens included) per row of pixels or taps.
        prompt_frame: how many ids before and behind a prompt the source takes for the tokenizer's
            special tokens and replaces; None where it takes prompts as they are.
        prefix: where the picture is not read by cross-attention: it stands before the question,
            where there is an encoder for it, else before the decoder's own text.
    """

    kind: Literal["caption", "answer", "generate"]
    tap: str
    plan: DecoderPlan
    projection: Linear | None
    generation: Generation
    tensors: Mapping[str, torch.Tensor]
    reference: Reference
    prompt: PromptSpec = PromptSpec()  # noqa: RUF009 - frozen, hence safe to share
    question: QuestionPlan | None = None
    prompt_frame: tuple[int, int] | None = None
    prefix: Prefix | None = None


class RankReference(Protocol):
    """The source of a rank head as the gate questions it; ids and masks are int64 ``[N, T]``."""

    def taps(self, pixels: Array) -> dict[str, Array]:
        """Tap name → values."""

    def answer(self, tap: Array, ids: Array, mask: Array) -> tuple[Array, Array, Array]:
        """By the model's own ``forward``, from what `taps` returned: image embeddings ``[B, W]``
        and text embeddings ``[N, W]`` of length 1, and scores ``[B, N]``.

        Where the head has a matching, ``match(tap, ids, mask)`` gives its logits ``[B, N, 2]``.
        """

    def widen(self) -> Any:
        """A context in which the model computes in float64, for adjudicating ties."""


@dataclass(frozen=True)
class RankSplit:
    """A text side that scores texts against pictures: the tuned half of a dual encoder.

    Attributes:
        tap: the tap it reads.
        image: the tap ``[B, *]``, a pooled vector or states that it pools itself → image
            embeddings ``[B, width]`` of length 1.
        text: ``input_ids``, ``attention_mask`` i64 ``[N, T]`` → text embeddings ``[N, width]`` of
            length 1.
        width: of both embeddings.
        scoring: how scores become probabilities.
        scale, bias: score = scale · ⟨image, text⟩ + bias.
        max_positions: longest text in tokens, special tokens included; the tokenizer may set less.
        pad_to_max: every text is padded to its greatest length.
        tensors: name → source tensor of everything right of the seam.
        reference: the source model, to be compared with.
        templates: prompts that labels are put in.
        matching: what reads a text with the picture, where the model has that too.
    """

    tap: str
    image: torch.nn.Module
    text: torch.nn.Module
    width: int
    scoring: Literal["softmax", "sigmoid"]
    scale: float
    bias: float
    max_positions: int
    pad_to_max: bool
    tensors: Mapping[str, torch.Tensor]
    reference: RankReference
    templates: tuple[str, ...] = ()
    matching: MatchingPlan | None = None

    @property
    def kind(self) -> str:
        """What the head answers to."""
        return "rank"


@dataclass(frozen=True)
class ModelSplit:
    """A model cut at the seam: the locked tower, and the tuned heads by name."""

    tower_family: str
    tower: TowerSplit
    heads: Mapping[str, HeadSplit | RankSplit]


def frames_of(split: ModelSplit) -> int | None:
    """How many frames the model reads of a video; None of a model for pictures."""
    for head in split.heads.values():
        if isinstance(head, HeadSplit) and head.prefix is not None:
            return head.prefix.frames
    return None


def called(split: ModelSplit, kind: Literal["caption", "answer"] | None) -> ModelSplit:
    """The split with its prompt-continuing head called ``kind``; None leaves it as it is.

    Raises:
        OptionError: there is no head that could be called so.
    """
    if kind is None:
        return split
    heads: dict[str, HeadSplit | RankSplit] = {}
    for name, head in split.heads.items():
        if isinstance(head, HeadSplit) and head.prefix is not None:
            heads[kind] = replace(head, kind=kind)
        else:
            heads[name] = head
    if kind not in heads:
        raise OptionError(
            f"The checkpoint has no head that could be called {kind!r}.",
            remedy="Leave head_kind out: its heads say themselves what they answer to.",
        )
    return replace(split, heads=heads)


class ModelFamily(Protocol):
    """A whole architecture's file."""

    @property
    def name(self) -> str:
        """What manifests call it."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """transformers' names (``config.model_type``)."""

    def gaps(self, config: Any) -> list[str]:
        """What this configuration asks for that the exporter does not mirror, parts included."""

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        """The model in float32 and transformers' loading report; never runs remote code."""

    def split(self, model: Any) -> ModelSplit:
        """Cut the loaded model."""


_TOWERS: dict[str, TowerFamily] = {}
_DECODERS: dict[str, DecoderFamily] = {}
_MODELS: dict[str, ModelFamily] = {}


def _registrar(table: dict[str, Any]) -> Callable[[type[F]], type[F]]:
    def register(family: type[F]) -> type[F]:
        instance: Any = family()
        for model_type in instance.model_types:
            if model_type in table:
                raise ValueError(f"two families claim the model type {model_type!r}")
            table[model_type] = instance
        return family

    return register


register_tower = _registrar(_TOWERS)
register_decoder = _registrar(_DECODERS)
register_model = _registrar(_MODELS)


@functools.cache
def _discover() -> None:
    package = importlib.import_module("primelens.export.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def _find(table: Mapping[str, Any], model_type: str, what: str) -> Any:
    _discover()
    if model_type not in table:
        raise UnsupportedError(
            f"There is no exporter for the {what} {model_type!r}.",
            remedy=f"Supported: {', '.join(sorted(table))}.",
        )
    return table[model_type]


def tower_family(model_type: str) -> TowerFamily:
    """The family of an image tower; raises `UnsupportedError`."""
    family: TowerFamily = _find(_TOWERS, model_type, "image tower")
    return family


def decoder_family(model_type: str) -> DecoderFamily:
    """The family of a text decoder; raises `UnsupportedError`."""
    family: DecoderFamily = _find(_DECODERS, model_type, "text decoder")
    return family


def model_family(model_type: str) -> ModelFamily:
    """The family of an image-to-text model; raises `UnsupportedError`."""
    family: ModelFamily = _find(_MODELS, model_type, "architecture")
    return family


def supported() -> dict[str, list[str]]:
    """Registered model types: of towers, decoders and whole models."""
    _discover()
    return {
        "towers": sorted(_TOWERS),
        "decoders": sorted(_DECODERS),
        "models": sorted(_MODELS),
    }


def as_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A tensor's memory as a NumPy view."""
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array
