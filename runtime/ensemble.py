"""Fusion by decision: several heads of one bundle write one text, each with a say in every token.

At every step each head gives its log-probabilities of the next token; the scores that the search
decides by are their weighted sum, ``Σ wᵢ · log pᵢ``. So the ensemble is a product of experts: what
one head finds impossible stays so. Each head keeps its own cache; the picture is encoded once, and
heads may differ in everything but the words: cross-attention beside prefix, large beside small.

`primelens.tune.fusion` finds the weights on validation data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from primelens.answer_head import AnswerHead
from primelens.decoding.session import Session, Step
from primelens.errors import InputError, OptionError
from primelens.head import Progress, TextHead, asked_of, timed
from primelens.options import CaptionOptions
from primelens.results import Caption, EncodedImage
from primelens.wording import Wording

if TYPE_CHECKING:
    from primelens.images import ImageSource
    from primelens.model import Model

__all__ = ["CombinedSession", "Ensemble", "EnsembleHead", "log_softmax"]

Floats = NDArray[np.float32]


class CombinedSession:
    """Sessions that are fed the same steps, and whose log-probabilities are summed by weight.

    Args:
        sessions: one per head, with equally many rows and the same vocabulary.
        weights: one per head.
    """

    def __init__(self, sessions: Sequence[Session], weights: Sequence[float]) -> None:
        self._sessions, self._weights = tuple(sessions), tuple(weights)
        self.spec = sessions[0].spec
        self.logits = np.zeros_like(sessions[0].logits)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[R]`` tokens in each row's past (a copy)."""
        return self._sessions[0].lengths

    def reset(self) -> None:
        """Forget all sequences; buffers stay."""
        for session in self._sessions:
            session.reset()

    def run(self, step: Step) -> Floats:
        """``[R, V]``: the weighted sum of log-probabilities after each row's last token."""
        self.logits[:] = self._sum([session.run(step) for session in self._sessions])
        return self.logits

    def run_all(self, step: Step) -> Floats:
        """The same after every token of the step: ``[N, V]``."""
        return self._sum([session.run_all(step) for session in self._sessions])

    def _sum(self, logits: Sequence[Floats]) -> Floats:
        total = np.zeros(logits[0].shape, np.float64)
        for weight, values in zip(self._weights, logits, strict=True):
            total += weight * log_softmax(values)
        return total.astype(np.float32)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Natural logarithms of the softmax over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


class EnsembleHead(TextHead):
    """Several heads of one bundle as one; thread-safe.

    What a text starts and ends with, and every decoding default, is the first head's.

    Args:
        heads: two or more, of one bundle.
        weights: one per head, in their order.

    Raises:
        OptionError: the heads do not share their words, or the weights cannot be used.
    """

    continuous = False

    def __init__(self, heads: Sequence[TextHead], weights: Sequence[float]) -> None:
        if problems := [*_weight_problems(heads, weights), *_differences(heads)]:
            raise OptionError(
                "These heads cannot write together:",
                remedy="Combine heads of one bundle that were tuned with the same tokenizer.",
                problems=problems,
            )
        lead = heads[0]
        self._members, self._weights = tuple(heads), tuple(weights)
        self.name = " + ".join(head.name for head in heads)
        self.spec, self.text, self.identity = lead.spec, lead.text, lead.identity
        generation = lead.spec.generation
        self._wording = Wording(self.text, lead.spec.decoder.vocab_size, generation.eos_tokens)

    def decode(
        self,
        images: Sequence[EncodedImage],
        options: CaptionOptions,
        texts: Sequence[Sequence[str | None]] | None = None,
    ) -> Iterator[Progress]:
        """As `TextHead.decode`; times are those of all heads together."""
        wanted = self.effective(options)
        asked = asked_of(images, texts, options)
        search, tokens = self._search(wanted, asked, options)
        self._check_room(tokens)
        progress = Progress(search.results)
        shape = (len(images), len(asked) * wanted.rows_per_picture)
        with ExitStack() as stack:
            sessions = []
            for head in self._members:
                _, need = head._search(wanted, asked, options)
                workspace = head._take(shape, head._room(need))
                stack.callback(head._give_back, workspace)
                progress.connector += head._connect(workspace.connector, images)
                sessions.append(workspace.session)
            combined = CombinedSession(sessions, self._weights)
            yield from timed(combined, search, options, progress)

    def forced_logits(
        self, image: EncodedImage, tokens: Sequence[int], text: str | None = None
    ) -> Floats:
        """``[N, V]`` float32 combined scores before each of the N ``tokens``."""
        total = sum(
            weight * log_softmax(head.forced_logits(image, tokens, text))
            for head, weight in zip(self._members, self._weights, strict=True)
        )
        return np.asarray(total, np.float32)

    def _check_room(self, tokens: int) -> None:
        """``tokens`` of the longest sequence, the last of which is never fed."""
        for head in self._members:
            positions = head.spec.decoder.max_positions
            if tokens > positions + 1:
                raise OptionError(
                    f"The head {head.name!r} has positions for {positions} tokens; this text may "
                    f"take {tokens - 1}.",
                    remedy="Lower max_new_tokens, or name the shorter head first.",
                )


class Ensemble:
    """Heads of a loaded model that write together.

    Args:
        model: a loaded bundle.
        weights: head → its weight; the first head lends the ensemble its decoding defaults.

    Raises:
        InputError: the bundle has no such head.
        OptionError: the heads cannot write together.
    """

    def __init__(self, model: Model, weights: Mapping[str, float]) -> None:
        self._model = model
        self.weights = dict(weights)
        heads = [model.head(name=name) for name in weights]
        self._head = EnsembleHead(heads, list(weights.values()))

    @property
    def head(self) -> EnsembleHead:
        """The heads as one."""
        return self._head

    @overload
    def caption(  # type: ignore[overload-overlap] # as of Model.caption
        self, images: ImageSource | EncodedImage, options: CaptionOptions = ...
    ) -> Caption: ...
    @overload
    def caption(
        self, images: Sequence[ImageSource | EncodedImage], options: CaptionOptions = ...
    ) -> list[Caption]: ...
    def caption(
        self,
        images: ImageSource | EncodedImage | Sequence[ImageSource | EncodedImage],
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
    ) -> Caption | list[Caption]:
        """As `Model.caption`; log-probabilities are the ensemble's, normalised over the words.

        Raises:
            ImageError: a picture cannot be read.
            OptionError, PromptError: the options do not fit the heads.
        """
        many = isinstance(images, (list, tuple))
        listed: Sequence[ImageSource | EncodedImage] = images if many else [images]  # type: ignore[assignment, list-item]
        if not listed:
            return []
        found = self._model._write(self._head, self._model._encode(listed), options)
        return found if many else found[0]

    def answer(
        self,
        image: ImageSource | EncodedImage,
        questions: Sequence[str],
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
    ) -> list[Caption]:
        """One answer for each question.

        Raises:
            InputError: the questions are one text and not a list of them.
        """
        if isinstance(questions, str):
            raise InputError("Questions come as a list.", remedy="Write [question].")
        if not questions:
            return []
        return self._model._write(
            self._head, self._model._encode([image]), options, [list(questions)]
        )


def _weight_problems(heads: Sequence[TextHead], weights: Sequence[float]) -> list[str]:
    problems = []
    if len(heads) < 2:
        problems.append(f"an ensemble has two heads or more, not {len(heads)}")
    if len(weights) != len(heads):
        problems.append(f"{len(heads)} heads have {len(weights)} weights")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        problems.append(f"weights {list(weights)} are not finite, negative, or all zero")
    return problems


def _differences(heads: Sequence[TextHead]) -> Iterator[str]:
    """What of the heads' words differs from the first one's."""
    lead = heads[0]
    for head in heads:
        if isinstance(head, AnswerHead):
            yield f"{head.name}: reads the question apart from what it writes"
    for head in heads[1:]:
        first, other = lead.spec, head.spec
        pairs = {
            "vocabulary": (first.decoder.vocab_size, other.decoder.vocab_size),
            "start tokens": (first.generation.start_tokens, other.generation.start_tokens),
            "end tokens": (first.generation.eos_tokens, other.generation.eos_tokens),
            "prompt": (first.prompt, other.prompt),
            "tokenizer": (lead.text.vocabulary, head.text.vocabulary),
        }
        for what, (one, another) in pairs.items():
            if one != another:
                yield f"{head.name}: its {what} is not that of {lead.name}"
