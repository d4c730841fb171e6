"""A head that reads a question with the picture before it answers.

Between the connector and the decoder stands a question encoder: the connector derives what it reads
of a picture, once for all the picture's questions, and it makes of every question the keys and
values that the decoder's cross-attention reads. The decoder sees nothing of the picture itself, but
for what the encoder gives out of it where the picture stands before the question.

Questions are filled up to a multiple of `LENGTHS` tokens, which the graphs are told to leave out,
and those of one filled-up length are answered together. So the bits of an answer depend neither on
the other questions of a call nor on their lengths.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from primelens.bundle import Bundle
from primelens.decoding.loop import decode
from primelens.decoding.search import Continuation, Search
from primelens.decoding.session import DecoderSession, Step, capacity_for
from primelens.engine import Array, Engine, TensorSpec
from primelens.errors import PromptError
from primelens.head import (
    Asked,
    BoundConnector,
    Progress,
    TextHead,
    Workspace,
    asked_of,
    cancel_check,
    decoder_problems,
    differences,
    force,
)
from primelens.manifest import QuestionSpec
from primelens.options import CaptionOptions
from primelens.results import EncodedImage

if TYPE_CHECKING:
    from primelens.store.derived import DerivedTensors

__all__ = ["LENGTHS", "AnswerHead"]

LENGTHS = 16
_POOLED_CONNECTORS = 4


@dataclass(frozen=True)
class _Group:
    """Questions of one filled-up length, and the search for their answers.

    Attributes:
        length: tokens that their ids are filled up to.
        members: their places among all that were asked.
        search, need: the search, and the most tokens that a row of it can have.
    """

    length: int
    members: tuple[int, ...]
    search: Search
    need: int


class AnswerHead(TextHead):
    """One head of a bundle whose questions go through an encoder of their own; thread-safe."""

    continuous = False

    def __init__(
        self, bundle: Bundle, name: str, engine: Engine, derived: DerivedTensors | None = None
    ) -> None:
        question = bundle.manifest.writers[name].question
        assert question is not None
        self._spec: QuestionSpec = question
        self._encoder = engine.open(bundle.path(question.graph))
        self._connectors: OrderedDict[int, BoundConnector] = OrderedDict()
        super().__init__(bundle, name, engine, derived)

    def _contract_problems(self) -> list[str]:
        picture = _shapes(self._connector.outputs)
        encoder: dict[str, tuple[int | None, ...]] = {
            "input_ids": (None, None),
            "question_lengths": (None,),
            **picture,
        }
        cross: dict[str, tuple[int | None, ...]] = {
            f"cross_{kind}.{layer}": (None, None, None, None)
            for layer in range(self.spec.decoder.layers)
            for kind in ("key", "value")
        }
        given = _shapes(self._encoder.outputs)
        problems = self._connector_problems()
        problems += differences("question input", encoder, _shapes(self._encoder.inputs))
        problems += differences("question output", cross, given)
        given = {**given, "cross_lengths": (None,)}
        return problems + decoder_problems(self._decoder, self.spec.decoder, given)

    def prompt(self, text: str | None = None) -> list[int]:  # noqa: ARG002 - other heads read it
        """The ids that an answer starts with, whatever the question."""
        return list(self.spec.generation.start_tokens)

    def question(self, text: str | None) -> list[int]:
        """The ids of a question as its encoder reads them.

        Raises:
            PromptError: there is none where there has to be one, or it is longer than the encoder
                has positions.
        """
        spec = self._spec
        if text is None and spec.unasked_tokens is not None:
            return list(spec.unasked_tokens)
        if text is None:
            raise PromptError(
                f"The head {self.name!r} answers questions and was asked none.",
                remedy="Ask with Model.answer, or set CaptionOptions.prompt.",
            )
        ids = [*spec.prefix_tokens, *self.text.encode(spec.template.replace("{}", text))]
        ids += spec.suffix_tokens
        if len(ids) > spec.max_length:
            raise PromptError(
                f"The question has {len(ids)} tokens; the model has positions for "
                f"{spec.max_length}.",
                remedy="Shorten the question.",
            )
        return ids

    def decode(
        self,
        images: Sequence[EncodedImage],
        options: CaptionOptions,
        texts: Sequence[Sequence[str | None]] | None = None,
    ) -> Iterator[Progress]:
        """As `TextHead.decode`; questions of another length are answered one after the other."""
        wanted = self.effective(options)
        images, asked = _once(images, asked_of(images, texts, options), self.spec.tap)
        questions = [self.question(item.text) for item in asked]
        groups = self._groups(asked, questions, options)
        results: list[Continuation] = [Continuation() for _ in asked]
        for group in groups:
            for place, found in zip(group.members, group.search.results, strict=True):
                results[place] = found
        progress = Progress(results)
        with self._pictures(len(images)) as pictures:
            progress.connector = self._connect(pictures, images)
            for group in groups:
                rows = len(group.members) * wanted.rows_per_picture
                shape = (len(group.members), rows, group.length)
                workspace = self._take(shape, capacity_for(group.need, self.spec.decoder))
                try:
                    before = time.perf_counter()
                    self._ask(pictures, asked, questions, group.members, workspace)
                    steps = decode(workspace.session, group.search, cancel_check(options))
                    for number, _ in enumerate(steps):
                        now = time.perf_counter()
                        if number == 0:
                            progress.prefill += now - before
                        else:
                            progress.step += now - before
                        yield progress
                        before = time.perf_counter()
                finally:
                    self._give_back(workspace)

    def forced_logits(
        self, image: EncodedImage, tokens: Sequence[int], text: str | None = None
    ) -> NDArray[np.float32]:
        """As `TextHead.forced_logits`; ``text`` is the question."""
        asked, question = [Asked(0, text, image.source)], self.question(text)
        prompt = self.prompt()
        capacity = capacity_for(len(prompt) + len(tokens), self.spec.decoder)
        workspace = self._take((1, 1, self._filled(question)), capacity)
        try:
            with self._pictures(1) as pictures:
                self._connect(pictures, [image])
                self._ask(pictures, asked, [question], (0,), workspace)
            return force(workspace.session, prompt, tokens)
        finally:
            self._give_back(workspace)

    def prefill_logits(
        self,
        images: Sequence[EncodedImage],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        texts: Sequence[Sequence[str | None]] | None = None,
    ) -> NDArray[np.float32]:
        """As `TextHead.prefill_logits`; ``texts`` are the questions."""
        images, asked = _once(images, asked_of(images, texts, CaptionOptions()), self.spec.tap)
        questions = [self.question(item.text) for item in asked]
        share = len(tokens) // len(asked)  # rows per question
        parts: dict[int, NDArray[np.float32]] = {}
        with self._pictures(len(images)) as pictures:
            self._connect(pictures, images)
            for length, members in self._by_length(questions).items():
                rows = [member * share + n for member in members for n in range(share)]
                capacity = capacity_for(tokens.shape[1], self.spec.decoder)
                workspace = self._take((len(members), len(rows), length), capacity)
                try:
                    self._ask(pictures, asked, questions, members, workspace)
                    workspace.session.reset()
                    found = workspace.session.run_all(Step(tokens[rows], lengths[rows]))
                finally:
                    self._give_back(workspace)
                parts |= zip(rows, np.split(found, np.cumsum(lengths[rows])[:-1]), strict=True)
        return np.concatenate([parts[row] for row in range(len(tokens))])

    def _by_length(self, questions: Sequence[Sequence[int]]) -> dict[int, list[int]]:
        """Filled-up length → places of the questions that have it."""
        members: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            members.setdefault(self._filled(question), []).append(place)
        return dict(sorted(members.items()))

    def _groups(
        self, asked: Sequence[Asked], questions: Sequence[Sequence[int]], options: CaptionOptions
    ) -> list[_Group]:
        wanted, groups = self.effective(options), []
        for length, places in self._by_length(questions).items():
            search, need = self._search(wanted, [asked[place] for place in places], options)
            groups.append(_Group(length, tuple(places), search, need))
        return groups

    def _filled(self, question: Sequence[int]) -> int:
        """How many tokens the question is filled up to."""
        return min(-(-len(question) // LENGTHS) * LENGTHS, self._spec.max_length)

    def _ask(
        self,
        pictures: BoundConnector,
        asked: Sequence[Asked],
        questions: Sequence[Sequence[int]],
        members: Sequence[int],
        workspace: Workspace,
    ) -> None:
        """Let the workspace's cross-attention read the questions ``members``, in this order.

        The encoder folds the questions of a picture into one longer query, so a call of it takes
        pictures with equally many.
        """
        assert isinstance(workspace.session, DecoderSession)
        cross = workspace.session.cross
        owned: dict[int, list[int]] = {}  # picture → rows of the workspace
        for row, place in enumerate(members):
            owned.setdefault(asked[place].picture, []).append(row)
            cross["cross_lengths"][row] = self._spec.picture + len(questions[place])
        length = workspace.shape[2]
        for count in {len(rows) for rows in owned.values()}:
            chosen = [picture for picture, rows in owned.items() if len(rows) == count]
            rows = [row for picture in chosen for row in owned[picture]]
            ids = np.full((len(rows), length), self._spec.pad_token, np.int64)
            for at, row in enumerate(rows):
                question = questions[members[row]]
                ids[at, : len(question)] = question
            feeds: dict[str, Array] = {
                "input_ids": ids,
                "question_lengths": cross["cross_lengths"][rows] - np.int32(self._spec.picture),
            }
            every = chosen == list(range(len(pictures.tap)))
            for name, values in pictures.outputs.items():
                feeds[name] = values if every else values[chosen]
            for name, values in self._encoder.run(feeds).items():
                cross[name][rows] = values

    @contextlib.contextmanager
    def _pictures(self, count: int) -> Iterator[BoundConnector]:
        """The connector with buffers for so many pictures."""
        with self._lock:
            bound = self._connectors.pop(count, None)
        bound = bound or self._bind_connector(count)
        try:
            yield bound
        finally:
            with self._lock:
                self._connectors[count] = bound
                while len(self._connectors) > _POOLED_CONNECTORS:
                    self._connectors.popitem(last=False)

    def _build(self, shape: tuple[int, ...], capacity: int) -> Workspace:
        """A new workspace; ``shape`` is questions, rows, and tokens per question."""
        questions, rows, length = shape
        cross: dict[str, Array] = {"cross_lengths": np.zeros(questions, np.int32)}
        for name, tensor in self._encoder.outputs.items():
            _, heads, _, width = tensor.shape
            places = self._spec.picture + length
            cross[name] = np.zeros((questions, heads or 1, places, width or 1), np.float32)
        session = DecoderSession(
            self._decoder, self.spec.decoder, rows=rows, capacity=capacity, cross=cross
        )
        return Workspace(shape, capacity, None, session)


def _once(
    images: Sequence[EncodedImage], asked: Sequence[Asked], tap: str
) -> tuple[list[EncodedImage], list[Asked]]:
    """Every picture once, however many pairs of a batch have it."""
    places: dict[int, int] = {}  # one array of states is one picture
    keys = [id(image.taps[tap]) if tap in image.taps else id(image) for image in images]
    for key in keys:
        places.setdefault(key, len(places))
    firsts = [images[keys.index(key)] for key in places]
    return firsts, [replace(item, picture=places[keys[item.picture]]) for item in asked]


def _shapes(tensors: Mapping[str, TensorSpec]) -> dict[str, tuple[int | None, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
