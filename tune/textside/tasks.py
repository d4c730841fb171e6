"""The objectives at work on a model: a lesson becomes tensors, tensors become a loss, and a data
set becomes one number that says how well it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GitForCausalLM, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from primelens.errors import OptionError
from primelens.tune.metrics import caption_tallies, retrieval_tallies, tokenize, vqa_accuracy
from primelens.tune.objectives import lit_loss, matching_loss, siglip_loss, token_loss
from primelens.tune.textside.assembling import Parts
from primelens.tune.textside.lessons import Item, Lesson
from primelens.tune.textside.recipe import Recipe

__all__ = ["Prepared", "Score", "Task", "make_task"]

Look = Callable[[Sequence[Item]], torch.Tensor]


@dataclass(frozen=True)
class Score:
    """How well it goes; more is better."""

    name: str
    value: float


@dataclass(frozen=True)
class Prepared:
    """A lesson as tensors.

    Attributes:
        tensors: name → ``[B, ...]``.
        whole: what the loss of a part is divided by, so that the parts of a batch add up to its
            loss: tokens that are learned, or rows.
    """

    tensors: dict[str, torch.Tensor]
    whole: int

    def part(self, rows: slice) -> Prepared:
        """Some rows, with the divisor of all."""
        return Prepared({name: t[rows] for name, t in self.tensors.items()}, self.whole)


class Task(Protocol):
    """One objective on one model."""

    def prepare(self, lesson: Lesson) -> Prepared:
        """The lesson's texts as tensors."""

    def loss(self, states: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        """Of some rows of a batch; ``states`` are what the tower says of their pictures."""

    def score(self, items: Sequence[Item], look: Look) -> Score:
        """On a data set; ``look`` gives the states of some items."""


def make_task(recipe: Recipe, parts: Parts) -> Task:
    """The task of a recipe."""
    if recipe.contrastive:
        return Comparing(recipe, parts)
    return Matching(parts) if recipe.objective == "match" else Writing(recipe, parts)


class Writing:
    """Captions, or answers behind their questions: by cross-attention or by prefix."""

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        self._parts, self._smoothing = parts, recipe.training.smoothing
        self._answers = recipe.objective == "answer"
        self._longest = recipe.model.max_new_tokens
        model: Any = parts.model
        self._prefix = isinstance(model, GitForCausalLM)
        config = model.config
        start = config.bos_token_id if self._prefix else config.decoder_start_token_id
        self._start, self._end = int(start), int(_first(config.eos_token_id))
        self._pad = int(config.pad_token_id)
        self._positions = _positions(config if self._prefix else config.decoder)

    def prepare(self, lesson: Lesson) -> Prepared:
        """``inputs`` and ``labels [B, T]`` int64; a label stands where its logits are."""
        rows = []
        for item, text in zip(lesson.items, lesson.texts, strict=True):
            asked = [self._start, *self._ids(item.question or "")]
            said = [*self._ids(text), self._end]
            rows.append((asked, said[: max(1, self._positions - len(asked))]))
        length = max(len(asked) + len(said) for asked, said in rows) - 1
        if length > self._positions:
            raise OptionError(
                f"A question takes {length} of the model's {self._positions} positions.",
                remedy="Give a text side with more positions, or leave such questions out.",
            )
        inputs = torch.full((len(rows), length), self._pad)
        labels = torch.full((len(rows), length), -100)
        for place, (asked, said) in enumerate(rows):
            whole = torch.tensor(asked + said)
            inputs[place, : len(whole) - 1] = whole[:-1]
            labels[place, len(asked) - 1 : len(whole) - 1] = whole[len(asked) :]
        return Prepared({"inputs": inputs, "labels": labels}, int((labels != -100).sum()))

    def loss(self, states: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        logits = self._logits(states, prepared.tensors["inputs"].to(states.device))
        labels = prepared.tensors["labels"].to(states.device)
        return token_loss(logits, labels, smoothing=self._smoothing, tokens=prepared.whole)

    def score(self, items: Sequence[Item], look: Look) -> Score:
        """CIDEr-D of captions, or the official accuracy of answers."""
        texts = self.write(items, look)
        if self._answers:
            # A single annotator counts as ten of one mind: the official measure leaves one out.
            truths = [item.texts if len(item.texts) > 1 else item.texts * 10 for item in items]
            marks = [vqa_accuracy(text, own) for text, own in zip(texts, truths, strict=True)]
            return Score("VQA accuracy", float(np.mean(marks)))
        references = [[tokenize(text) for text in item.texts] for item in items]
        tallies = caption_tallies([tokenize(text) for text in texts], references)
        scores = {name: value for tally in tallies for name, value in tally.scores().items()}
        name = next(name for name in scores if name.startswith("CIDEr"))
        return Score(name, scores[name])

    @torch.no_grad()
    def write(self, items: Sequence[Item], look: Look, batch: int = 32) -> list[str]:
        """What the model says of every item, greedily."""
        prompts = [[self._start, *self._ids(item.question or "")] for item in items]
        # Prompts of one length go together: padding would stand between prompt and text.
        order = sorted(range(len(items)), key=lambda place: len(prompts[place]))
        texts = [""] * len(items)
        while order:
            length = len(prompts[order[0]])
            places = [p for p in order[:batch] if len(prompts[p]) == length]
            order = order[len(places) :]
            states = look([items[place] for place in places])
            asked = torch.tensor([prompts[place] for place in places], device=states.device)
            for place, row in zip(places, self._generate(states, asked), strict=True):
                text = self._parts.tokenizer.decode(row[length:], skip_special_tokens=True)
                texts[place] = str(text).strip()
        return texts

    def _generate(self, states: torch.Tensor, asked: torch.Tensor) -> Any:
        model: Any = self._parts.model
        settings = {"max_new_tokens": self._longest, "num_beams": 1, "do_sample": False}
        if self._prefix:
            fed = self._parts.seam.fed(states)
            return model.generate(pixel_values=fed, input_ids=asked, **settings)
        return model.generate(
            encoder_outputs=BaseModelOutput(states), decoder_input_ids=asked, **settings
        )

    def _logits(self, states: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        model: Any = self._parts.model
        if self._prefix:
            fed = self._parts.seam.fed(states)
            whole: torch.Tensor = model(pixel_values=fed, input_ids=inputs, use_cache=False).logits
            return whole[:, -inputs.shape[1] :]
        output = model(
            encoder_outputs=BaseModelOutput(states), decoder_input_ids=inputs, use_cache=False
        )
        logits: torch.Tensor = output.logits
        return logits

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._parts.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class Comparing:
    """Pictures and texts in one space: LiT's softmax over the batch, or SigLIP's sigmoids."""

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        self._parts, self._sigmoid = parts, recipe.objective == "siglip"

    def prepare(self, lesson: Lesson) -> Prepared:
        """``input_ids`` and ``attention_mask [B, T]``; ``chosen [B]`` takes part."""
        chosen = torch.tensor(_unambiguous(lesson))
        return Prepared(self._tokens(lesson.texts) | {"chosen": chosen}, int(chosen.sum()))

    def loss(self, states: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        model: Any = self._parts.model
        chosen = prepared.tensors["chosen"]
        tokens = {name: t[chosen] for name, t in prepared.tensors.items() if name != "chosen"}
        image = self.image(states[chosen.to(states.device)]).float()
        text = self.text(tokens).float()
        # The scores of near neighbours differ by less than what bf16 keeps of them.
        with torch.autocast(states.device.type, enabled=False):
            if self._sigmoid:
                return siglip_loss(image, text, model.logit_scale, model.logit_bias)
            return lit_loss(image, text, model.logit_scale)

    @torch.no_grad()
    def score(self, items: Sequence[Item], look: Look) -> Score:
        """Mean of R@1 both ways; of every picture its first caption."""
        images, texts = [], []
        for start in range(0, len(items), 64):
            some = items[start : start + 64]
            images.append(self.image(look(some)).float().cpu())
            texts.append(self.text(self._tokens([item.texts[0] for item in some])).float().cpu())
        tallies = retrieval_tallies(
            torch.cat(images).numpy(), torch.cat(texts).numpy(), range(len(items)), at=(1,)
        )
        values = [value for tally in tallies for value in tally.scores().values()]
        return Score("R@1, mean of both ways", float(np.mean(values)))

    def image(self, states: torch.Tensor) -> torch.Tensor:
        """Image embeddings ``[B, D]``, of any length."""
        model: Any = self._parts.model
        pooled = model.vision_model(pixel_values=self._parts.seam.fed(states)).pooler_output
        embeddings: torch.Tensor = model.visual_projection(pooled)
        return embeddings

    def text(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Text embeddings ``[B, D]``, of any length."""
        model: Any = self._parts.model
        device = model.logit_scale.device
        pooled = model.text_model(**{name: t.to(device) for name, t in tokens.items()})
        embeddings: torch.Tensor = model.text_projection(pooled.pooler_output)
        return embeddings

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        limit = _positions(self._parts.model.config.text_config)
        return _encoded(self._parts.tokenizer, texts, limit)


def _unambiguous(lesson: Lesson) -> list[bool]:
    """Which pictures of a batch take part: not one whose text is true of an earlier one, nor one of
    which an earlier one's text is true, for both would be called wrong.
    """
    said: set[str] = set()
    known: set[str] = set()
    chosen = []
    for item, text in zip(lesson.items, lesson.texts, strict=True):
        clear = text not in known and said.isdisjoint(item.texts)
        if clear:
            said.add(text)
            known.update(item.texts)
        chosen.append(clear)
    return chosen


class Matching:
    """Every picture with its own text, and with one that is of another picture of the batch."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def prepare(self, lesson: Lesson) -> Prepared:
        """Tensors ``[B, 2, T]``: the right text and a wrong one; ``known [B]`` has a wrong one."""
        texts, known = [], []
        for place, (item, text) in enumerate(zip(lesson.items, lesson.texts, strict=True)):
            others = np.roll(np.arange(len(lesson.items)), -place)[1:]
            lesson.draw.shuffle(others)
            wrong = [
                lesson.texts[other]
                for other in others
                if lesson.items[other].picture != item.picture
                and lesson.texts[other] not in item.texts
            ]
            texts += [text, wrong[0] if wrong else text]
            known.append(bool(wrong))
        limit = _positions(self._parts.model.config.decoder)
        tokens = _encoded(self._parts.tokenizer, texts, limit)
        tensors = {name: t.view(len(known), 2, -1) for name, t in tokens.items()}
        flags = torch.tensor(known)
        return Prepared(tensors | {"known": flags}, len(known) + int(flags.sum()))

    def loss(self, states: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        logits, belongs = self._judged(states, prepared)
        return matching_loss(logits, belongs) * (len(logits) / prepared.whole)

    @torch.no_grad()
    def score(self, items: Sequence[Item], look: Look) -> Score:
        """Share of right judgements, half of the pairs being wrong."""
        right: list[bool] = []
        for start in range(0, len(items), 32):
            some = tuple(items[start : start + 32])
            texts = tuple(item.texts[0] for item in some)
            draw = np.random.default_rng([0, start])
            prepared = self.prepare(Lesson(some, texts, (0,) * len(some), draw))
            logits, belongs = self._judged(look(some), prepared)
            right += ((logits > 0) == belongs).tolist()
        return Score("matching accuracy", float(np.mean(right)))

    def _judged(
        self, states: torch.Tensor, prepared: Prepared
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model: Any = self._parts.model
        given = prepared.tensors
        known = given["known"]
        chosen = torch.stack([torch.ones_like(known), known], dim=1).flatten()
        rows = torch.arange(len(known)).repeat_interleave(2)[chosen]
        logits = model(
            pixel_values=self._parts.seam.fed(states)[rows.to(states.device)],
            input_ids=given["input_ids"].flatten(0, 1)[chosen].to(states.device),
            attention_mask=given["attention_mask"].flatten(0, 1)[chosen].to(states.device),
        ).logits
        belongs = torch.tensor([True, False]).repeat(len(known))[chosen]
        return logits, belongs.to(states.device)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int
) -> dict[str, torch.Tensor]:
    tokens = tokenizer(
        list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def _positions(config: Any) -> int:
    return int(config.max_position_embeddings)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value
