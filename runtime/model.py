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
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from primelens.bundle import Bundle, open_bundle
from primelens.decoding.search import Continuation
from primelens.domain import DomainDetector
from primelens.engine import Engine, Graph
from primelens.engine_onnx import OnnxEngine
from primelens.errors import (
    BundleError,
    EngineError,
    InputError,
    ModelNotFoundError,
)
from primelens.head import CaptionHead, Progress
from primelens.images import SourceImage, UndecodedImage, open_image
from primelens.manifest import Manifest
from primelens.options import CacheOptions, CaptionOptions, LoadOptions
from primelens.preprocessing import Preprocessing
from primelens.results import Caption, EncodedImage, Failure, Piece, Timings
from primelens.text import TextStream

if TYPE_CHECKING:
    from primelens.images import ImageSource
    from primelens.store.kept import KeptTaps
    from primelens.store.outcome import Miss, StoreStats

__all__ = ["Model", "load"]

logger = logging.getLogger("primelens.model")


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
    return Model(bundle, engine or OnnxEngine(threads=options.threads, spin=options.spin), cache)


class Model:
    """A bundle with its graphs; made by `load`.

    Args:
        bundle: a checked bundle.
        engine: opens its graphs; all of them are opened here, side by side.
        cache: where embeddings are kept, if anywhere.
    """

    def __init__(self, bundle: Bundle, engine: Engine, cache: CacheOptions | None = None) -> None:
        self._bundle = bundle
        manifest = bundle.manifest
        self._preprocessing = Preprocessing.from_dict(dict(manifest.tower.preprocessing))
        self._identities = {name: tap.identity for name, tap in manifest.tower.taps.items()}
        self._kept = _open_kept(bundle, cache)
        derived = self._kept.derived if self._kept else None
        open_head = partial(CaptionHead, bundle, engine=engine, derived=derived)
        names = [name for name, head in manifest.heads.items() if head.kind == "caption"]
        with ThreadPoolExecutor(max_workers=2) as pool:
            tower: Future[Graph | None] = pool.submit(_open_tower, bundle, engine)
            heads = {name: pool.submit(open_head, name) for name in names}
            self._tower = tower.result()
            self._heads = {name: head.result() for name, head in heads.items()}
        self._domain = DomainDetector.of(bundle)
        self.engine_name = engine.name

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
        return self._preprocessing

    def cache_stats(self) -> StoreStats | None:
        """What was found and kept since the model was loaded; None where nothing is kept."""
        return self._kept.stats() if self._kept else None

    def close(self) -> None:
        """Record what was used, where embeddings are kept; also done when Python exits."""
        if self._kept:
            self._kept.store.close()

    def head(self, kind: str = "caption") -> CaptionHead:
        """The first head of a kind; raises `InputError` if the bundle has none."""
        for head in self._heads.values():
            if head.spec.kind == kind:
                return head
        raise InputError(
            f"The bundle {self.name!r} has no {kind} head.",
            remedy=f"It has: {', '.join(self.manifest.heads) or 'none'}.",
        )

    def encode(self, image: ImageSource) -> EncodedImage:
        """Run the locked tower over one picture.

        Args:
            image: path, bytes of an image file, PIL image, or uint8 array ``[H, W, 3]``, ``[H, W,
                4]``, ``[H, W]``.

        Raises:
            ImageError: the picture cannot be read, or exceeds a cap.
        """
        return self._encode([self._prepare(image)])[0]

    def encode_batch(
        self, images: Iterable[ImageSource | EncodedImage], *, batch_size: int = 8
    ) -> Iterator[EncodedImage | Failure]:
        """Encode any number of pictures lazily and in order; a bad picture is a `Failure` row."""
        for prepared, encoded in self._batches(images, batch_size):
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

        The result of a picture does not depend on its companions in the batch.

        Args:
            images: anything that `encode` takes, or what it returned; a list gives a list.
            options: how to decode.

        Raises:
            ImageError: a picture cannot be read (`caption_batch` reports it as a row instead).
            OptionError, PromptError: the options do not fit the model.
            CancelledError: ``options.cancel`` was set.
        """
        if isinstance(images, (list, tuple)):
            prepared = [self._prepare(image) for image in images]
            return self._caption(self._encode(prepared), options) if prepared else []
        single: Any = images
        return self._caption(self._encode([self._prepare(single)]), options)[0]

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
            batch_size: pictures per run of the tower and per decode batch.
        """
        for prepared, encoded in self._batches(images, batch_size):
            captions = iter(self._caption(encoded, options) if encoded else [])
            for item in prepared:
                yield item if isinstance(item, Failure) else next(captions)

    def stream(
        self,
        image: ImageSource | EncodedImage,
        options: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen, hence safe to share
    ) -> Iterator[Piece]:
        """Caption one picture piece by piece; the last `Piece` carries the finished caption.

        Closing the iterator ends the decoding.
        """
        encoded = self._encode([self._prepare(image)])
        head = self.head()
        text, seen = TextStream(head.text), 0
        progress: Progress | None = None
        for progress in head.decode(encoded, options):
            for token in progress.results[0].tokens[seen:]:
                seen += 1
                if piece := text.push(token):
                    yield Piece(piece)
        assert progress is not None  # a decode has at least one step
        yield Piece(text.finish(), self._results(encoded, progress, head)[0])

    def _prepare(self, image: ImageSource | EncodedImage) -> _Prepared | EncodedImage:
        if isinstance(image, EncodedImage):
            return image
        start = time.perf_counter()
        opened = open_image(image)
        miss = None
        if self._kept:
            found = self._kept.find(opened)
            if isinstance(found, EncodedImage):
                seconds = time.perf_counter() - start
                return replace(found, timings=Timings(preprocess=seconds))
            miss = found
            if self._tower is None:
                raise InputError(
                    f"{opened.name} is not in the store {self._kept.store.path} ({miss}), and the "
                    f"bundle {self.name!r} has no tower to encode it with.",
                    remedy="Fill the store with the whole bundle: primelens encode --cache.",
                )
        source = opened.decode() if isinstance(opened, UndecodedImage) else opened
        pixels = self._preprocessing(source)
        return _Prepared(source, pixels, time.perf_counter() - start, miss)

    def _batches(
        self, images: Iterable[ImageSource | EncodedImage], size: int
    ) -> Iterator[tuple[list[_Prepared | EncodedImage | Failure], list[EncodedImage]]]:
        """Per batch: every picture as it was prepared, and the good ones encoded."""
        if size < 1:
            raise InputError(f"batch_size is {size}; it must be at least 1.")
        iterator = iter(images)
        while chunk := list(islice(iterator, size)):
            prepared = [self._attempt(image) for image in chunk]
            good = [item for item in prepared if not isinstance(item, Failure)]
            yield prepared, self._encode(good)

    def _attempt(self, image: ImageSource | EncodedImage) -> _Prepared | EncodedImage | Failure:
        try:
            return self._prepare(image)
        except InputError as error:
            return Failure(_name(image), error)

    def _encode(self, items: Sequence[_Prepared | EncodedImage]) -> list[EncodedImage]:
        """Run the tower once over all items that are not encoded yet; keeps the order."""
        fresh = [item for item in items if isinstance(item, _Prepared)]
        if not fresh:
            return [item for item in items if isinstance(item, EncodedImage)]
        if self._tower is None:
            raise ModelNotFoundError(
                f"The bundle {self.name!r} has no tower, and {fresh[0].source.name} is not kept.",
                remedy="Encode the picture with a bundle that has the tower.",
            )
        start = time.perf_counter()
        taps = self._tower.run({"pixel_values": np.stack([item.pixels for item in fresh])})
        seconds = time.perf_counter() - start
        for name, values in taps.items():
            if not np.isfinite(values).all():
                raise EngineError(
                    f"The tower's output {name!r} is not finite.",
                    remedy="The weights hold NaN: run `primelens verify` on the bundle.",
                )
        encoded = [
            EncodedImage(
                taps={name: values[row].copy() for name, values in taps.items()},
                identities=self._identities,
                source=item.source.digest,
                size=item.source.size,
                name=item.source.name,
                timings=Timings(preprocess=item.seconds, tower=seconds),
            )
            for row, item in enumerate(fresh)
        ]
        if self._kept:
            encoded = self._kept.keep(encoded, [item.miss for item in fresh if item.miss])
        rows = iter(encoded)
        return [item if isinstance(item, EncodedImage) else next(rows) for item in items]

    def _caption(self, images: list[EncodedImage], options: CaptionOptions) -> list[Caption]:
        head = self.head()
        progress: Progress | None = None
        for progress in head.decode(images, options):  # noqa: B007 - the last one is what counts
            pass
        assert progress is not None  # a decode has at least one step
        return self._results(images, progress, head)

    def _results(
        self, images: list[EncodedImage], progress: Progress, head: CaptionHead
    ) -> list[Caption]:
        return [
            self._result(image, continuation, progress, head)
            for image, continuation in zip(images, progress.results, strict=True)
        ]

    def _result(
        self, image: EncodedImage, row: Continuation, progress: Progress, head: CaptionHead
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
            notice=self._notice(image, row),
            cache=image.cache,
            score=row.score,
            alternatives=tuple(row.alternatives),
            others=tuple(self._result(image, other, progress, head) for other in row.others),
        )

    def _notice(self, image: EncodedImage, row: Continuation) -> str | None:
        """The bundle's notice for a picture outside its domain, if one of its two signs shows."""
        domain = self.manifest.domain
        least, logprobs = domain.min_token_logprob, row.logprobs
        unsure = least is not None and len(logprobs) > 0 and float(np.mean(logprobs)) < least
        if unsure or (self._domain is not None and self._domain.is_outside(image)):
            return domain.notice or f"outside this model's domain: {domain.description}"
        return None


class _Prepared:
    """A picture read and preprocessed, not yet encoded."""

    __slots__ = ("miss", "pixels", "seconds", "source")

    def __init__(self, source: SourceImage, pixels: Any, seconds: float, miss: Miss | None) -> None:
        self.source, self.pixels, self.seconds, self.miss = source, pixels, seconds, miss


def _locate(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from primelens.hub import resolve  # not needed, hence not imported, for a folder

    return resolve(name, revision=revision)


def _open_kept(bundle: Bundle, cache: CacheOptions | None) -> KeptTaps | None:
    if cache is None:
        return None
    from primelens.store.kept import open_kept  # SQLite and the like, where they are needed

    return open_kept(bundle.manifest.tower, cache)


def _open_tower(bundle: Bundle, engine: Engine) -> Graph | None:
    tower = bundle.manifest.tower
    if tower.graph is None:
        return None
    graph = engine.open(bundle.path(tower.graph))
    problems = [
        f"the tower graph has no output {tap!r}" for tap in tower.taps.keys() - graph.outputs.keys()
    ]
    problems += [
        f"tap {name!r} has shape {graph.outputs[name].shape[1:]}, the manifest says {tap.shape}"
        for name, tap in tower.taps.items()
        if name in graph.outputs and graph.outputs[name].shape[1:] != tap.shape
    ]
    if set(graph.inputs) != {"pixel_values"}:
        problems.append(f"the tower graph's inputs are {sorted(graph.inputs)}, not 'pixel_values'")
    if problems:
        raise BundleError(
            "The tower's graph does not fit the manifest:",
            remedy="Export the checkpoint again.",
            problems=problems,
        )
    return graph


def _name(image: object) -> str:
    if isinstance(image, (str, Path)):
        return str(image)
    if isinstance(image, EncodedImage):
        return image.name
    return f"<{type(image).__name__}>"
