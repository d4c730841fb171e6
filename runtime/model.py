"""A loaded bundle: pictures in, captions out.

Thread safety: a `Model` may be used from several threads at once; every request has its own
    buffers. The
results are immutable. A call is cancelled through `CaptionOptions.cancel`, a stream also by closing
it.
Loggers: ``primelens.model``, ``primelens.head``, ``primelens.engine`` (all under ``primelens``), at
    DEBUG
for what was opened and at WARNING for what a user ought to know; nothing is logged per request.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from primelens.answer_head import AnswerHead
from primelens.bundle import Bundle, open_bundle
from primelens.continuous import write_each
from primelens.decoding.search import Continuation
from primelens.domain import DomainDetector
from primelens.encoder import Batch, ImageEncoder, check_batch_size, open_kept_of, open_tower
from primelens.engine import Engine, Graph
from primelens.engine_onnx import OnnxEngine
from primelens.errors import InputError
from primelens.head import Progress, TextHead
from primelens.manifest import Manifest
from primelens.options import CacheOptions, CaptionOptions, LoadOptions
from primelens.prefix_head import PrefixHead
from primelens.preprocessing import Preprocessing
from primelens.prompts import counted, with_prompts_at
from primelens.ranking import RankCalls, heads_in_words
from primelens.resident import release_heap
from primelens.results import Caption, EncodedImage, Failure, Piece
from primelens.text import TextStream

if TYPE_CHECKING:
    from primelens.images import ImageSource
    from primelens.store.outcome import StoreStats

__all__ = ["Model", "load"]

logger = logging.getLogger("primelens.model")

_LARGE = 64 * 2**20  # bytes of a bundle whose opening leaves memory behind that is worth a look


def load(
    name: str | Path = "default",
    *,
    options: LoadOptions = LoadOptions(),  # noqa: B008 - frozen, hence safe to share
    engine: Engine | None = None,
    cache: CacheOptions | None = None,
) -> Model:
    """Open a bundle.

    Args:
        name: a bundle's folder, ``"default"`` for the shipped model, or a hub id ``owner/name``.
        options: how to open it.
        engine: another inference engine than ONNX Runtime on the CPU.
        cache: where embeddings are kept, so that no picture is encoded twice; None keeps none.

    Raises:
        ModelNotFoundError: nothing is found under that name.
        BundleError: the bundle is incomplete, altered, malformed or newer than this primelens.
        DependencyError: no ONNX Runtime is installed, or two are.
        StoreError: the folder for embeddings is refused.
    """
    bundle = open_bundle(_locate(str(name), options.revision), check=options.check)
    engine = engine or OnnxEngine(threads=options.threads, spin=options.spin)
    return Model(bundle, engine, cache, threads=options.threads)


class Model(RankCalls):
    """A bundle with its graphs; made by `load`.

    Args:
        bundle: a checked bundle.
        engine: opens its graphs: here those of the tower and the first head, side by side, those of
            the others when they are first used.
        cache: where embeddings are kept, if anywhere.
        threads: that read the pictures of a batch; None for as many as there are cores to use.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        cache: CacheOptions | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._bundle = bundle
        self._engine = engine
        self._heads: dict[str, TextHead] = {}
        kept = open_kept_of(bundle, cache)
        self._derived = kept.derived if kept else None
        with ThreadPoolExecutor(max_workers=2) as pool:
            tower: Future[Graph | None] = pool.submit(open_tower, bundle, engine)
            first = [pool.submit(self._open, name) for name in list(bundle.manifest.writers)[:1]]
            self._encoder = ImageEncoder(bundle, tower.result(), kept, threads=threads)
            for opened in first:
                opened.result()
        self._domain = DomainDetector.of(bundle)
        self.engine_name = engine.name
        if sum(record.size for record in bundle.manifest.files.values()) >= _LARGE:
            release_heap()

    @property
    def name(self) -> str:
        """The bundle's short name."""
        return self.manifest.name

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def folder(self) -> Path:
        """Where the bundle lies."""
        return self._bundle.folder

    @property
    def preprocessing(self) -> Preprocessing:
        """The complete preprocessing specification."""
        return self._encoder.preprocessing

    def cache_stats(self) -> StoreStats | None:
        """What was found and kept since the model was loaded; None where nothing is kept."""
        return self._encoder.kept.stats() if self._encoder.kept else None

    def close(self) -> None:
        """Record what was used, where embeddings are kept; also done when Python exits."""
        if self._encoder.kept:
            self._encoder.kept.store.close()

    def head(self, kind: str = "caption", name: str | None = None) -> TextHead:
        """A head that writes text: that of a name, else the first of a kind.

        Raises:
            InputError: the bundle has none.
        """
        for found, spec in self.manifest.writers.items():
            if found == name or (name is None and spec.kind == kind):
                return self._open(found)
        wanted = f"{kind} head" if name is None else f"head {name!r} that writes text"
        raise InputError(
            f"The bundle {self.name!r} has no {wanted}.",
            remedy=f"It has: {heads_in_words(self.manifest)}.",
        )

    def _open(self, name: str) -> TextHead:
        with self._opening:
            if name not in self._heads:
                spec = self.manifest.writers[name]
                kind = TextHead if spec.question is None else AnswerHead
                kind = PrefixHead if spec.decoder.prefix else kind
                self._heads[name] = kind(self._bundle, name, self._engine, self._derived)
            return self._heads[name]

    def encode(self, image: ImageSource) -> EncodedImage:
        """Run the locked tower over one picture.

        Args:
            image: path, bytes of an image file, PIL image, or uint8 array ``[H, W, 3]``, ``[H, W,
                4]``, ``[H, W]``.

        Raises:
            ImageError: the picture cannot be read, or exceeds a cap.
        """
        return self._encode([image])[0]

    def encode_batch(
        self, images: Iterable[ImageSource | EncodedImage], *, batch_size: int = 8
    ) -> Iterator[EncodedImage | Failure]:
        """Encode any number of pictures lazily and in order; a bad picture is a `Failure` row."""
        for prepared, encoded in self._encoder.batches(images, batch_size):
            rows = iter(encoded)
            for item in prepared:
                yield item if isinstance(item, Failure) else next(rows)

    # A str or bytes is a Sequence too, hence the overlap: the first signature takes them.
    @overload
    def caption(  # type: ignore[overload-overlap]
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
        """Caption one picture, or a list of pictures as one batch.

        The result of a picture does not depend on its companions in the batch, nor on their
        prompts, where ``options.prompt`` has one for each.

        Args:
            images: anything that `encode` takes, or what it returned; a list gives a list.
            options: how to decode.

        Raises:
            ImageError: a picture cannot be read (`caption_batch` reports it as a row instead).
            OptionError, PromptError: the options do not fit the model.
            CancelledError: ``options.cancel`` was set.
        """
        head = self.head("caption", options.head)
        if isinstance(images, (list, tuple)):
            return self._write(head, self._encode(images), options) if images else []
        single: Any = images
        return self._write(head, self._encode([single]), options)[0]

    def caption_batch(
        self,
        images: Iterable[ImageSource | EncodedImage],
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
        *,
        batch_size: int = 8,
    ) -> Iterator[Caption | Failure]:
        """Caption any number of pictures lazily and in order; a bad picture is a `Failure` row.

        Args:
            images: anything that `caption` takes; consumed ``batch_size`` at a time.
            options: how to decode.
            batch_size: pictures per run of the tower, and pictures that are decoded at a time: one
                whose caption ends makes room for the next.
        """
        head = self.head("caption", options.head)
        batches = self._encoder.batches(counted(images, options), batch_size)
        if head.continuous:
            yield from self._caption_each(head, batches, options)
            return
        before = 0
        for prepared, encoded in batches:
            asked = with_prompts_at(options, _good(prepared, before))
            before += len(prepared)
            captions = iter(self._write(head, encoded, asked) if encoded else [])
            for item in prepared:
                yield item if isinstance(item, Failure) else next(captions)

    def _caption_each(
        self, head: TextHead, batches: Iterator[Batch], options: CaptionOptions
    ) -> Iterator[Caption | Failure]:
        """Captions by continuous batching, with the failures in their places."""
        first = next(batches, None)
        if first is None:
            return
        outcomes: deque[Failure | None] = deque()  # None stands for a caption to come
        places: deque[int] = deque()  # of the pictures that were encoded, among all

        def encoded() -> Iterator[EncodedImage]:
            before = 0
            for prepared, images in chain([first], batches):
                places.extend(_good(prepared, before))
                before += len(prepared)
                outcomes.extend(item if isinstance(item, Failure) else None for item in prepared)
                yield from images

        slots = max(len(first[1]), 1)
        taken = iter(places.popleft, None)
        for image, progress in write_each(head, encoded(), options, slots=slots, places=taken):
            while (failure := outcomes.popleft()) is not None:
                yield failure
            yield self._results([image], progress, head)[0]
        yield from (failure for failure in outcomes if failure is not None)

    def stream(
        self,
        image: ImageSource | EncodedImage,
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
    ) -> Iterator[Piece]:
        """Caption one picture piece by piece; the last `Piece` carries the finished caption.

        Closing the iterator ends the decoding.
        """
        head = self.head("caption", options.head)
        encoded = self._encode([image])
        text, seen = TextStream(head.text), 0
        progress: Progress | None = None
        for progress in head.decode(encoded, options):
            for token in progress.results[0].tokens[seen:]:
                seen += 1
                if piece := text.push(token):
                    yield Piece(piece)
        assert progress is not None  # a decode has at least one step
        yield Piece(text.finish(), self._results(encoded, progress, head)[0])

    # A str is a Sequence of str, hence the overlap: the first signature takes it.
    @overload
    def answer(  # type: ignore[overload-overlap]
        self,
        image: ImageSource | EncodedImage,
        questions: str,
        options: CaptionOptions = ...,
    ) -> Caption: ...
    @overload
    def answer(
        self,
        image: ImageSource | EncodedImage,
        questions: Sequence[str],
        options: CaptionOptions = ...,
    ) -> list[Caption]: ...
    def answer(
        self,
        image: ImageSource | EncodedImage,
        questions: str | Sequence[str],
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
    ) -> Caption | list[Caption]:
        """Answer one question about a picture, or several at once.

        The picture is encoded once, and what its head derives from it is read by all questions.

        Args:
            image: anything that `encode` takes, or what it returned.
            questions: one question gives one answer, a list gives a list.
            options: how to decode; ``options.head`` may name a caption head, too, whose captions
                then continue the questions.

        Raises:
            InputError: the bundle has no head that answers.
            ImageError: the picture cannot be read.
            OptionError, PromptError: the options or a question do not fit the model.
        """
        head = self.head("answer", options.head)
        asked = [questions] if isinstance(questions, str) else list(questions)
        if not asked:
            return []
        answers = self._write(head, self._encode([image]), options, [asked])
        return answers[0] if isinstance(questions, str) else answers

    def answer_batch(
        self,
        asked: Iterable[tuple[ImageSource | EncodedImage, str | None]],
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
        *,
        batch_size: int = 8,
    ) -> Iterator[Caption | Failure]:
        """Answer any number of (picture, question) pairs lazily and in order.

        A pair that cannot be answered is a `Failure` row. The pictures of one batch are encoded
        in one run of the tower, one that comes several times only once. A head that can do without
        a question takes None for none.
        """
        head = self.head("answer", options.head)
        check_batch_size(batch_size)
        iterator = iter(asked)
        while chunk := list(islice(iterator, batch_size)):
            prepared = self._encoder.attempt_all([image for image, _ in chunk])
            good = [item for item in prepared if not isinstance(item, Failure)]
            texts = [
                [question]
                for item, (_, question) in zip(prepared, chunk, strict=True)
                if not isinstance(item, Failure)
            ]
            encoded = self._encoder.encode(good)
            answers = iter(self._write(head, encoded, options, texts) if encoded else [])
            for item in prepared:
                yield item if isinstance(item, Failure) else next(answers)

    def _encode(self, images: Sequence[ImageSource | EncodedImage]) -> list[EncodedImage]:
        return self._encoder.encode([self._encoder.prepare(image) for image in images])

    def _write(
        self,
        head: TextHead,
        images: Sequence[EncodedImage],
        options: CaptionOptions,
        texts: Sequence[Sequence[str | None]] | None = None,
    ) -> list[Caption]:
        """What the head writes about the images, by image, then by text."""
        progress: Progress | None = None
        for progress in head.decode(images, options, texts):  # noqa: B007 - the last one counts
            pass
        assert progress is not None  # a decode has at least one step
        return self._results(images, progress, head, texts)

    def _results(
        self,
        images: Sequence[EncodedImage],
        progress: Progress,
        head: TextHead,
        texts: Sequence[Sequence[str | None]] | None = None,
    ) -> list[Caption]:
        asked: list[tuple[EncodedImage, str | None]] = [(image, None) for image in images]
        if texts is not None:
            asked = [(i, text) for i, some in zip(images, texts, strict=True) for text in some]
        return [
            self._result(image, row, progress, head, text)
            for (image, text), row in zip(asked, progress.results, strict=True)
        ]

    def _result(
        self,
        image: EncodedImage,
        row: Continuation,
        progress: Progress,
        head: TextHead,
        question: str | None,
    ) -> Caption:
        timings = image.timings.plus(
            connector=progress.connector, prefill=progress.prefill, step=progress.step
        )
        return Caption(
            text=head.text.decode(row.tokens).strip(),
            tokens=tuple(row.tokens),
            logprob=float(sum(row.logprobs)),
            token_logprobs=tuple(row.logprobs),
            finish_reason=row.finish_reason or "length",
            timings=timings,
            image=image.name,
            notice=self._notice(image, row) if head.spec.kind == "caption" else None,
            cache=image.cache,
            score=row.score,
            alternatives=tuple(row.alternatives),
            others=tuple(
                self._result(image, other, progress, head, question) for other in row.others
            ),
            question=question,
            timestamps=image.timestamps,
        )

    def _notice(self, image: EncodedImage, row: Continuation) -> str | None:
        """The bundle's notice for a picture outside its domain, if one of its two signs shows."""
        domain = self.manifest.domain
        least, logprobs = domain.min_token_logprob, row.logprobs
        unsure = least is not None and len(logprobs) > 0 and float(np.mean(logprobs)) < least
        if unsure or (self._domain is not None and self._domain.is_outside(image)):
            return domain.notice or f"outside this model's domain: {domain.description}"
        return None


def _good(prepared: Sequence[object], before: int) -> list[int]:
    """Places of the pictures that could be read, where so many stood before them."""
    good = (number for number, item in enumerate(prepared) if not isinstance(item, Failure))
    return [before + number for number in good]


def _locate(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from primelens.hub import resolve  # not needed, hence not imported, for a folder

    return resolve(name, revision=revision)
