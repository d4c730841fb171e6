"""What the default model's answer head is taught: questions, answers, and where to look.

Answers alone do not teach which of several things a question names: after 6,400 steps ``is there a
fox?`` was answered hardly better than by chance. So two heads of the middle layer are also told
where to look from the end of the question: at the cells of the thing that it names, and at the
empty background where that thing is not there. What they bring back then tells yes from no.

Where to look in one picture is a choice among a few things, and teaches little about 142 nouns. So
the same two queries must also choose the named kind among the mean cells of all kinds, and they
learn that first, with no picture: among the other losses it does not begin to be learned.

To find a thing and to say its name are two skills. The first is learned from questions whose
answers are ``yes``, ``no`` and numbers, and is whole after 4,500 steps; few of those answers hold a
name, so from then on names are asked for more often.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from primelens.tune.captioner import BOS, EOS, GRID, PAD
from primelens.tune.kept_scenes import KeptScenes
from primelens.tune.objectives import token_loss
from primelens.tune.scenes.language import noun_phrase
from primelens.tune.scenes.objects import KIND_BY_NAME, KINDS
from primelens.tune.scenes.questions import Question, questions
from primelens.tune.scenes.targets import cell_targets
from primelens.tune.scenes.world import Scene, scene

__all__ = ["AnswerLessons", "mean_cells"]

_FINDING = {
    "count": 4.0,
    "presence": 4.0,
    "relation": 3.0,
    "place": 0.5,
    "time": 0.5,
    "object": 0.5,
}
_NAMING_TOO = {
    "count": 1.5,
    "presence": 2.0,
    "relation": 6.0,
    "place": 0.3,
    "time": 0.2,
    "object": 3.0,
}
"""Odds of what a lesson asks for, where the scene answers it: at first and later."""

_NAMED = re.compile(r"(?:how many|is there an?|what is .* the) (?P<name>.+?)(?: are there)?\?")
_LAYER, _HEADS = 1, 2  # which attention is told where to look
_LOOKING, _NAMING = 0.5, 0.5  # and how strongly
_NAMES_FIRST, _FINDING_FIRST = 200, 4500  # steps


@dataclass(frozen=True)
class _Batch:
    """Questions and answers as tokens: ``[B, T]`` inputs and labels, ``[B]`` ends of questions."""

    inputs: torch.Tensor
    labels: torch.Tensor
    ends: torch.Tensor


class AnswerLessons:
    """Two questions for each picture of a step; the loss is on the answers and on the looking.

    The two of one picture are drawn apart, but a question about presence comes with its
    contrast: the same picture, one thing that is there and one that is not.

    Args:
        model: whose decoder is taught.
        tokenizer: of its questions and answers.
        prototypes: ``[kinds, C]``, the mean state of the cells of each kind, see `mean_cells`.
        smoothing: of the labels.
    """

    def __init__(
        self,
        model: VisionEncoderDecoderModel,
        tokenizer: PreTrainedTokenizerFast,
        prototypes: torch.Tensor,
        smoothing: float,
    ) -> None:
        self._model, self._tokenizer, self._smoothing = model, tokenizer, smoothing
        self._right: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._losses: list[tuple[float, float, float]] = []
        self._prototypes = prototypes
        decoder: Any = model.decoder
        block = decoder.transformer.h[_LAYER].crossattention
        self._keys, self._width = block.c_attn, model.decoder.config.n_embd
        self._queries = torch.empty(0)
        block.q_attn.register_forward_hook(self._remember)

    def pair(
        self, shown: Scene, draw: np.random.Generator, odds: Mapping[str, float] = _FINDING
    ) -> tuple[Question, Question]:
        """Two questions about one scene, whose topics have such odds."""
        first = self._one(shown, draw, odds)
        if first.topic == "presence":
            return first, _presence(shown, draw, there=first.answer == "no")
        second = self._one(shown, draw, odds)
        return first, second

    def loss(
        self, states: torch.Tensor, scenes: list[Scene], draw: np.random.Generator, step: int
    ) -> torch.Tensor:
        """Of one step, by its number."""
        asked: list[Question] = []
        cells = []
        odds = _FINDING if step < _FINDING_FIRST else _NAMING_TOO
        for shown in scenes:
            pair = self.pair(shown, draw, odds)
            asked += pair
            kinds = cell_targets(shown, GRID).kinds.ravel()
            cells += [_looked_at(kinds, question.text) for question in pair]
        batch = self._tokens(asked)
        if step < _NAMES_FIRST:
            states = torch.zeros_like(states[:, :1])
        output = self._model(
            encoder_outputs=BaseModelOutput(states.repeat_interleave(2, dim=0)),
            decoder_input_ids=batch.inputs,
            use_cache=False,
            output_attentions=True,
        )
        naming = self._naming_loss([_named(question.text) for question in asked], batch.ends)
        if step < _NAMES_FIRST:
            self._losses.append((0.0, 0.0, naming.item()))
            return naming
        rows = torch.arange(len(asked))
        self._count(asked, output.logits[rows, batch.ends], batch.labels[rows, batch.ends])
        looked = output.cross_attentions[_LAYER][:, :_HEADS][rows, :, batch.ends]
        told = token_loss(output.logits, batch.labels, smoothing=self._smoothing)
        looking = _looking_loss(looked, torch.from_numpy(np.stack(cells)))
        self._losses.append((told.item(), looking.item(), naming.item()))
        return told + _LOOKING * looking + _NAMING * naming

    def figures(self) -> Mapping[str, float]:
        """Share of right first tokens by topic, and the parts of the loss, since the last call."""
        shares = {t: round(self._right[t] / n, 3) for t, n in sorted(self._asked.items())}
        told, looking, naming = np.mean(self._losses, axis=0).round(3).tolist()
        self._right.clear()
        self._asked.clear()
        self._losses.clear()
        return {**shares, "told": told, "looking": looking, "naming": naming}

    def _one(self, shown: Scene, draw: np.random.Generator, odds: Mapping[str, float]) -> Question:
        by_topic: dict[str, list[Question]] = {}
        for question in questions(shown):
            by_topic.setdefault(question.topic, []).append(question)
        topics = [topic for topic in odds if topic in by_topic]
        share = np.array([odds[topic] for topic in topics])
        topic = topics[int(draw.choice(len(topics), p=share / share.sum()))]
        if topic == "presence":
            return _presence(shown, draw, there=draw.random() < 0.5)
        own = by_topic[topic]
        return own[int(draw.integers(len(own)))]

    def _tokens(self, asked: list[Question]) -> _Batch:
        texts = self._tokenizer([q.text for q in asked])["input_ids"]
        answers = self._tokenizer([q.answer for q in asked])["input_ids"]
        rows = [[BOS, *text, *said, EOS] for text, said in zip(texts, answers, strict=True)]
        length = max(map(len, rows)) - 1
        inputs = torch.full((len(rows), length), PAD)
        labels = torch.full((len(rows), length), -100)
        for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
            inputs[place, : len(row) - 1] = torch.tensor(row[:-1])
            labels[place, len(text) : len(row) - 1] = torch.tensor(row[1 + len(text) :])
        return _Batch(inputs, labels, torch.tensor([len(text) for text in texts]))

    def _remember(self, *called: Any) -> None:
        self._queries = called[-1]  # of module, inputs and output

    def _naming_loss(self, kinds: list[int], ends: torch.Tensor) -> torch.Tensor:
        """How badly each head's query tells the named kind from the others; -1 names none."""
        wanted = torch.tensor(kinds)
        some = wanted >= 0
        projected = self._model.enc_to_dec_proj(self._prototypes)
        keys = self._split(self._keys(projected)[:, : self._width])
        queries = self._split(self._queries[torch.arange(len(ends)), ends][some])
        scores = torch.einsum("bhd,khd->bhk", queries, keys) / keys.shape[-1] ** 0.5
        return F.cross_entropy(scores.flatten(0, 1), wanted[some].repeat_interleave(_HEADS))

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """``[N, heads, width of a head]``, of the heads that are taught."""
        heads = self._model.decoder.config.n_head
        parts: torch.Tensor = rows.unflatten(-1, (heads, -1))[:, :_HEADS]
        return parts

    def _count(self, asked: list[Question], logits: torch.Tensor, labels: torch.Tensor) -> None:
        for question, right in zip(asked, (logits.argmax(1) == labels).tolist(), strict=True):
            self._asked[question.topic] += 1
            self._right[question.topic] += right


def _presence(shown: Scene, draw: np.random.Generator, *, there: bool) -> Question:
    """Whether there is something, drawn anew each time: what is not there could be anything."""
    present = [group.kind for group in shown.groups]
    if there:
        kind = present[int(draw.integers(len(present)))]
    else:
        kind = int(draw.choice(sorted(set(range(len(KINDS))) - set(present))))
    text = f"is there {noun_phrase(kind, 1)}?"
    return Question(text, "yes" if there else "no", "presence")


def mean_cells(kept: KeptScenes, scenes: int) -> torch.Tensor:
    """``[kinds, C]``: the mean state of the cells that show each kind, in the first scenes."""
    sums = np.zeros((len(KINDS) + 1, kept.states.shape[-1]))
    counts = np.zeros(len(KINDS) + 1)
    for index, states in zip(kept.indices[:scenes].tolist(), kept.states[:scenes], strict=True):
        shown = scene(kept.choice.split, index, kept.choice.seed)
        kinds = cell_targets(shown, GRID).kinds.ravel()
        np.add.at(sums, kinds, states)
        np.add.at(counts, kinds, 1)
    means = sums[1:] / np.maximum(counts[1:, None], 1)
    return torch.from_numpy(means).float()


def _named(question: str) -> int:
    """The kind that a question names; -1 for none."""
    match = _NAMED.fullmatch(question)
    return KIND_BY_NAME.get(match["name"], -1) if match else -1


def _looked_at(kinds: NDArray[np.uint8], question: str) -> NDArray[np.bool_]:
    """``[64]``: cells of what the question names, or the background; none where it names nothing.

    Args:
        kinds: ``[64]``, the kind under each cell plus one; 0 is the background.
        question: its text.
    """
    kind = _named(question)
    if kind < 0:
        return np.zeros(kinds.shape, np.bool_)
    named = kinds == kind + 1
    found: NDArray[np.bool_] = named if named.any() else kinds == 0
    return found


def _looking_loss(looked: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """How little of each head's attention ``[B, heads, 64]`` lies on the cells ``[B, 64]``."""
    some = cells.any(dim=1)
    if not some.any():
        return looked.sum() * 0
    on_them = (looked[some] * cells[some][:, None]).sum(dim=2)
    return -on_them.clamp_min(1e-6).log().mean()
