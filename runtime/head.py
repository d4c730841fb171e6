"""A head that writes text, at work: the tuned side of the seam, from a tap to text.

A head owns a pool of decode sessions, one per (images, rows per image, capacity), so that a request
finds its buffers allocated and bound. A session serves one request at a time; concurrent requests
get their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from primelens.bundle import Bundle
from primelens.decoding.assembly import Request, build_search
from primelens.decoding.effective import Effective, describe_generation, resolve
from primelens.decoding.loop import decode
from primelens.decoding.search import Continuation, Limits, Search
from primelens.decoding.session import DecoderSession, Session, Step, capacity_for
from primelens.engine import Array, BoundCall, Engine, Graph
from primelens.errors import BundleError, CancelledError, InputError, OptionError, PromptError
from primelens.manifest import DecoderSpec, HeadSpec
from primelens.options import CaptionOptions
from primelens.prompts import prompts_of
from primelens.results import EncodedImage
from primelens.text import TokenText
from primelens.wording import Wording

if TYPE_CHECKING:
    from primelens.store.derived import DerivedTensors, DerivedTier

__all__ = [
    "Asked",
    "BoundConnector",
    "Progress",
    "TextHead",
    "Workspace",
    "asked_of",
    "cancel_check",
    "decoder_problems",
    "differences",
    "force",
    "timed",
]

logger = logging.getLogger("primelens.head")

_POOLED_SESSIONS = 4


@dataclass
class Progress:
    """The state of a running decode: continuations so far, and seconds spent."""

    results: Sequence[Continuation]
    connector: float = 0.0
    prefill: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One text that is to be written: for which picture, after which prompt.

    Attributes:
        picture: the picture's place in the batch.
        text: the prompt or question, or None.
        stream: keys what is drawn at random for it.
    """

    picture: int
    text: str | None
    stream: str


@dataclass
class BoundConnector:
    """The connector with its buffers, a row per picture.

    Attributes:
        tap: what it reads.
        run: one call of it.
        outputs: name → what it writes.
    """

    tap: Array
    run: BoundCall
    outputs: dict[str, Array]


@dataclass
class Workspace:
    """A decode session with what stands in front of it.

    Attributes:
        shape: how many sequences over how many pictures, and what else its buffers depend on.
        capacity: cache positions per sequence.
        connector: whose outputs the session reads; None where something else fills them.
        session: the session.
    """

    shape: tuple[int, ...]
    capacity: int
    connector: BoundConnector | None
    session: Session


class TextHead:
    """One head of a bundle; thread-safe.

    Args:
        bundle: where its files lie.
        name: its name in the manifest.
        engine: opens its graphs.
        derived: where the connector's outputs are held for pictures that come again, if anywhere.
    """

    continuous = True
    """Whether pictures can take each other's places in a running batch (`primelens.continuous`)."""

    def __init__(
        self, bundle: Bundle, name: str, engine: Engine, derived: DerivedTensors | None = None
    ) -> None:
        spec = bundle.manifest.writers[name]
        self.name = name
        self.spec: HeadSpec = spec
        self.identity = bundle.manifest.tower.taps[spec.tap].identity
        shape = bundle.manifest.tower.taps[spec.tap].shape
        self._tap_shape = shape if spec.frames is None else (spec.frames, *shape)
        self.text = TokenText(bundle.path(spec.tokenizer), clean_up=spec.clean_up_spaces)
        self._wording = Wording(self.text, spec.decoder.vocab_size, spec.generation.eos_tokens)
        self._connector = engine.open(bundle.path(spec.connector))
        self._decoder = self._open_decoder(bundle, engine)
        problems = self._contract_problems()
        if problems:
            raise BundleError(
                f"The graphs of the head {name!r} do not fit the manifest:",
                remedy="Export the checkpoint again.",
                problems=problems,
            )
        self._cross_shapes = {
            key: tuple(n or 1 for n in tensor.shape[1:])
            for key, tensor in self._connector.outputs.items()
        }
        self._derived: DerivedTier | None = None
        if derived is not None:
            graph = bundle.manifest.files[spec.connector].sha256
            self._derived = derived.tier(spec.digest, graph)
        self._free: OrderedDict[int, Workspace] = OrderedDict()
        self._lock = threading.Lock()

    def _open_decoder(self, bundle: Bundle, engine: Engine) -> Graph:
        return engine.open(bundle.path(self.spec.decoder.graph))

    def _contract_problems(self) -> list[str]:
        """Where the graphs differ from ARCHITECTURE.md, "Graph contract"."""
        cross = {name: tensor.shape for name, tensor in self._connector.outputs.items()}
        problems = decoder_problems(self._decoder, self.spec.decoder, cross)
        return problems + self._connector_problems()

    def _connector_problems(self) -> list[str]:
        inputs = {k: v.shape for k, v in self._connector.inputs.items()}
        return differences("connector input", {self.spec.tap: (None, *self._tap_shape)}, inputs)

    def prompt(self, text: str | None = None) -> list[int]:
        """The ids that a sequence starts with, where ``text`` is its prompt or question."""
        start = list(self.spec.generation.start_tokens)
        if text is None:
            return start
        asked = self.text.encode(self.spec.prompt.fill(text))
        return start + asked + list(self.spec.prompt.suffix_tokens)

    def limits(self, prompts: Sequence[Sequence[int]], options: CaptionOptions) -> Limits:
        """When sequences end: options over the checkpoint's defaults, within the positions."""
        generation = self.spec.generation
        wanted = options.max_new_tokens or generation.max_new_tokens
        positions = self.spec.decoder.max_positions
        longest = max(len(prompt) for prompt in prompts)
        if longest >= positions:
            raise PromptError(
                f"The prompt has {longest} tokens; the model has positions for {positions}.",
                remedy="Shorten the prompt.",
            )
        if options.max_new_tokens is not None and longest + wanted > positions + 1:
            raise OptionError(
                f"max_new_tokens is {wanted}; with a prompt of {longest} tokens the model has room "
                f"for {positions + 1 - longest}.",
                remedy="Lower max_new_tokens.",
            )
        # The last new token is never fed, so it needs no position.
        room = tuple(min(wanted, positions + 1 - len(prompt)) for prompt in prompts)
        return Limits(
            eos_tokens=generation.eos_tokens,
            pad_token=generation.pad_token,
            max_new_tokens=room,
        )

    def effective(self, options: CaptionOptions) -> Effective:
        """How ``options`` decode, with nothing left open.

        Raises:
            OptionError: options contradict each other, or the checkpoint's generation_config asks
                for what cannot be honoured.
        """
        settings = self.spec.generation.settings
        return resolve(options.decoding, settings, options.min_new_tokens)

    def effective_generation(self) -> dict[str, Any]:
        """What decoding does when nothing is asked for, for people."""
        return describe_generation(self.spec.generation)

    def _search(
        self, wanted: Effective, asked: Sequence[Asked], options: CaptionOptions
    ) -> tuple[Search, int]:
        """The search, and the most tokens that a row of it can have."""
        prompts = [self.prompt(item.text) for item in asked]
        limits = self.limits(prompts, options)
        request = Request(
            prompts=prompts,
            pictures=[item.stream for item in asked],
            limits=limits,
            bad_words=self._wording.bad_words(wanted),
            stop=self._wording.stop(wanted),
            constraint=self._wording.constraint(wanted),
        )
        need = max(len(p) + n for p, n in zip(prompts, limits.max_new_tokens, strict=True))
        return build_search(wanted, request), need

    def decode(
        self,
        images: Sequence[EncodedImage],
        options: CaptionOptions,
        texts: Sequence[Sequence[str | None]] | None = None,
    ) -> Iterator[Progress]:
        """Decode the images' texts; yields after every step, the same object each time.

        The results of greedy decoding and sampling grow with every step, those of a beam search
        appear when an image is done. They are ordered by image, then by its texts.

        Args:
            images: encoded pictures.
            options: how to decode.
            texts: per picture the prompts or questions (None for none), equally many for each;
                without them ``options.prompt`` is put to the pictures. All of a picture's
                sequences read one copy of what the connector made of it.
        """
        wanted = self.effective(options)
        asked = asked_of(images, texts, options)
        search, need = self._search(wanted, asked, options)
        progress = Progress(search.results)
        rows = len(asked) * wanted.rows_per_picture
        workspace = self._take((len(images), rows), self._room(need))
        try:
            progress.connector = self._connect(workspace.connector, images)
            yield from timed(workspace.session, search, options, progress)
        finally:
            self._give_back(workspace)

    def forced_logits(
        self, image: EncodedImage, tokens: Sequence[int], text: str | None = None
    ) -> NDArray[np.float32]:
        """``[N, V]`` float32 logits before each of the N ``tokens``, fed one by one (teacher
        forcing).

        Args:
            image: the encoded picture.
            tokens: the continuation to force, after the head's start tokens and the text.
            text: a prompt or question.
        """
        prompt = self.prompt(text)
        workspace = self._take((1, 1), self._room(len(prompt) + len(tokens)))
        try:
            self._connect(workspace.connector, [image])
            return force(workspace.session, prompt, tokens)
        finally:
            self._give_back(workspace)

    def prefill_logits(
        self,
        images: Sequence[EncodedImage],
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        texts: Sequence[Sequence[str | None]] | None = None,  # noqa: ARG002 - heads with an encoder read it
    ) -> NDArray[np.float32]:
        """``[N, V]`` float32 logits after every token of sequences fed in one call.

        Args:
            images: I encoded pictures.
            tokens: ``[R, T]`` ids, start tokens included, padded on the right; row ``r`` belongs to
                picture ``r // (R / I)``.
            lengths: ``[R]`` how many of a row's tokens count; N is their sum.
            texts: per picture its questions, where the head reads them apart from ``tokens``; a
                picture's rows are shared out among them in order.
        """
        rows, width = tokens.shape
        workspace = self._take((len(images), rows), self._room(rows // len(images) * width))
        try:
            self._connect(workspace.connector, images)
            workspace.session.reset()
            return workspace.session.run_all(Step(tokens, lengths))
        finally:
            self._give_back(workspace)

    def _room(self, need: int) -> int:
        """Cache positions to allocate where `_search` says ``need``."""
        return capacity_for(need, self.spec.decoder)

    def _connect(self, bound: BoundConnector | None, images: Sequence[EncodedImage]) -> float:
        """Let the connector's outputs be those of ``images``; returns the seconds."""
        assert bound is not None
        start = time.perf_counter()
        for image in images:
            self._check(image)
        entries = [image.entries.get(self.spec.tap) for image in images]
        if self._derived is None or not self._derived.fill(entries, bound.outputs):
            for row, image in enumerate(images):
                bound.tap[row] = image.taps[self.spec.tap]
            bound.run.run()
            if self._derived is not None:
                self._derived.keep(entries, bound.outputs)
        return time.perf_counter() - start

    def _check(self, image: EncodedImage) -> None:
        found = image.identities.get(self.spec.tap)
        if found != self.identity:
            raise InputError(
                f"{image.name}: this encoded image comes from another tower "
                f"({(found or 'no such tap')[:12]}, this bundle's is {self.identity[:12]}).",
                remedy="Encode the picture with this model.",
            )
        if image.taps[self.spec.tap].shape != self._tap_shape:
            wanted, frames = self.spec.frames, len(image.timestamps)
            takes = "pictures" if wanted is None else f"videos of {wanted} frames"
            given = f"a video of {frames} frames" if frames else "a picture"
            raise InputError(
                f"{image.name} is {given}; the head {self.name!r} reads {takes}.",
                remedy="Give primelens.Video(path) to a head that reads videos.",
            )

    def _take(self, shape: tuple[int, ...], capacity: int) -> Workspace:
        with self._lock:
            for token, workspace in self._free.items():
                if workspace.shape == shape and workspace.capacity >= capacity:
                    del self._free[token]
                    return workspace
        logger.debug("new session: shape %s, capacity %d", shape, capacity)
        return self._build(shape, capacity)

    def _give_back(self, workspace: Workspace) -> None:
        with self._lock:
            self._free[id(workspace)] = workspace
            while len(self._free) > _POOLED_SESSIONS:
                self._free.popitem(last=False)

    def _build(self, shape: tuple[int, ...], capacity: int) -> Workspace:
        """A new workspace; ``shape`` is pictures and rows."""
        images, rows = shape
        connector = self._bind_connector(images)
        session = DecoderSession(
            self._decoder,
            self.spec.decoder,
            rows=rows,
            capacity=capacity,
            cross=connector.outputs,
        )
        return Workspace(shape, capacity, connector, session)

    def _bind_connector(
        self, images: int, outputs: dict[str, Array] | None = None
    ) -> BoundConnector:
        """The connector over buffers of its own, or one that writes where it is told."""
        tap = np.zeros((images, *self._tap_shape), np.float32)
        if outputs is None:
            outputs = {
                name: np.zeros((images, *shape), np.float32)
                for name, shape in self._cross_shapes.items()
            }
        return BoundConnector(tap, self._connector.bind({self.spec.tap: tap}, outputs), outputs)


def timed(
    session: Session, search: Search, options: CaptionOptions, progress: Progress
) -> Iterator[Progress]:
    """Decode; yields ``progress``, with the seconds so far, after every step."""
    before = time.perf_counter()
    for number, _ in enumerate(decode(session, search, cancel_check(options))):
        now = time.perf_counter()
        if number == 0:
            progress.prefill = now - before
        else:
            progress.step += now - before
        yield progress
        before = time.perf_counter()


def force(session: Session, prompt: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
    """``[N, V]`` logits before each of the N ``tokens``, fed one by one after ``prompt``."""
    session.reset()
    rows = []
    for fed in ([list(prompt)] + [[token] for token in tokens])[: len(tokens)]:
        step = Step(np.array([fed], np.int64), np.array([len(fed)], np.int64))
        rows.append(session.run(step)[0].copy())
    return np.stack(rows)


def asked_of(
    images: Sequence[EncodedImage],
    texts: Sequence[Sequence[str | None]] | None,
    options: CaptionOptions,
) -> list[Asked]:
    """What `TextHead.decode` is asked for, by image, then by text."""
    if texts is None:
        prompts = prompts_of(options, len(images))
        return [
            Asked(number, prompt, image.source)
            for number, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        ]
    if len({len(some) for some in texts}) > 1 or len(texts) != len(images):
        raise InputError("Every picture of a batch must come with equally many texts.")
    return [
        Asked(number, text, f"{image.source}\n{text}")
        for number, (image, some) in enumerate(zip(images, texts, strict=True))
        for text in some
    ]


def cancel_check(options: CaptionOptions) -> Callable[[], None]:
    """Raises `CancelledError` once ``options.cancel`` is set."""
    event = options.cancel

    def check() -> None:
        if event is not None and event.is_set():
            raise CancelledError("The call was cancelled.")

    return check


def decoder_problems(
    decoder: Graph, sizes: DecoderSpec, cross: Mapping[str, tuple[int | None, ...]]
) -> list[str]:
    """Where the decoder's inputs and outputs differ from ARCHITECTURE.md, "Graph contract".

    Args:
        decoder: the graph.
        sizes: what the manifest says of it.
        cross: name → shape, of what the decoder reads besides.
    """
    past = (None, sizes.kv_heads, None, sizes.head_dim)
    wanted: dict[str, tuple[int | None, ...]] = {
        "input_ids": (None, None),
        "position_ids": (None, None),
        "seqlens_k": (None,),
        "total_sequence_length": (),
        "logits_rows": (None,),
        **cross,
    }
    results: dict[str, tuple[int | None, ...]] = {"logits": (None, sizes.vocab_size)}
    for layer in range(sizes.layers):
        wanted |= {f"past_{kind}.{layer}": past for kind in ("key", "value")}
        results |= {f"present_{kind}.{layer}": past for kind in ("key", "value")}
    inputs = {k: v.shape for k, v in decoder.inputs.items()}
    outputs = {k: v.shape for k, v in decoder.outputs.items()}
    return differences("decoder input", wanted, inputs) + differences(
        "decoder output", results, outputs
    )


def differences(
    what: str,
    wanted: dict[str, tuple[int | None, ...]],
    found: dict[str, tuple[int | None, ...]],
) -> list[str]:
    """Names and shapes of ``found`` that are not as ``wanted``; None fits any size."""
    problems = [f"{what} {name!r} is missing" for name in wanted if name not in found]
    problems += [f"{what} {name!r} is not in the contract" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        fits = len(wanted[name]) == len(found[name]) and all(
            a is None or b is None or a == b for a, b in zip(wanted[name], found[name], strict=True)
        )
        if not fits:
            problems.append(f"{what} {name!r} has shape {found[name]}, expected {wanted[name]}")
    return problems
