"""The calls of a model that rank and embed; `primelens.model.Model` inherits them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from primelens.bundle import Bundle
from primelens.encoder import ImageEncoder
from primelens.engine import Engine
from primelens.errors import InputError
from primelens.manifest import Manifest
from primelens.options import RankOptions
from primelens.rank import RankHead
from primelens.results import EncodedImage, Failure, Ranking

if TYPE_CHECKING:
    from primelens.images import ImageSource
    from primelens.store.derived import DerivedTensors

__all__ = ["RankCalls", "heads_in_words"]

_DEFAULT = RankOptions()  # frozen, hence safe to share


class RankCalls:
    """What a model does with its rank heads, which are opened when they are first used."""

    _bundle: Bundle
    _engine: Engine
    _encoder: ImageEncoder
    _derived: DerivedTensors | None

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._rankers: dict[str, RankHead] = {}

    def rank_head(self, name: str | None = None) -> RankHead:
        """The head that ranks: that of a name, else the first.

        Raises:
            InputError: the bundle has none.
        """
        for found in self._bundle.manifest.rankers:
            if name in (None, found):
                with self._opening:
                    if found not in self._rankers:
                        self._rankers[found] = RankHead(
                            self._bundle, found, self._engine, self._derived
                        )
                    return self._rankers[found]
        wanted = "rank head" if name is None else f"head {name!r} that ranks"
        raise InputError(
            f"The bundle {self._bundle.manifest.name!r} has no {wanted}.",
            remedy=f"It has: {heads_in_words(self._bundle.manifest)}.",
        )

    def embed_image(
        self,
        images: ImageSource | EncodedImage | Sequence[ImageSource | EncodedImage],
        *,
        head: str | None = None,
    ) -> NDArray[np.float32]:
        """A rank head's embedding ``[width]`` of one picture, ``[B, width]`` of a list; length 1.

        Raises:
            InputError: the bundle has no such head.
            ImageError: a picture cannot be read.
        """
        ranker = self.rank_head(head)
        if isinstance(images, (list, tuple)):
            rows = [ranker.embed_image(image) for image in self._encoded(images)]
            return np.stack(rows) if rows else np.zeros((0, ranker.spec.width), np.float32)
        single: Any = images
        return ranker.embed_image(self._encoded([single])[0])

    def embed_text(
        self, texts: str | Sequence[str], *, head: str | None = None
    ) -> NDArray[np.float32]:
        """A rank head's embedding ``[width]`` of one text, ``[N, width]`` of a list; length 1.

        The cosine of a picture and a text is the sum of their embeddings' products.

        Raises:
            InputError: the bundle has no such head.
            PromptError: a text is empty.
        """
        ranker = self.rank_head(head)
        if isinstance(texts, str):
            (one,) = ranker.embed_text([texts])
            return np.asarray(one)
        return ranker.embed_text(texts)

    @overload
    def rank(  # type: ignore[overload-overlap]
        self,
        images: ImageSource | EncodedImage,
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = ...,
        head: str | None = ...,
        options: RankOptions = ...,
    ) -> Ranking: ...
    @overload
    def rank(
        self,
        images: Sequence[ImageSource | EncodedImage],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = ...,
        head: str | None = ...,
        options: RankOptions = ...,
    ) -> list[Ranking]: ...
    def rank(
        self,
        images: ImageSource | EncodedImage | Sequence[ImageSource | EncodedImage],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        head: str | None = None,
        options: RankOptions = _DEFAULT,
    ) -> Ranking | list[Ranking]:
        """Which of the labels fit one picture, or each of a list of pictures.

        The texts' embeddings are remembered, so labels that come again cost nothing.

        Args:
            images: anything that `encode` takes, or what it returned; a list gives a list.
            labels: texts; at least one.
            template: prompts with ``{}`` for the label; of several, the mean of their embeddings
                stands for the label. None takes the head's own.
            head: a rank head's name; None takes the first.
            options: which score decides, where a head has two.

        Raises:
            InputError: the bundle has no such head, or there is no label.
            ImageError: a picture cannot be read (`rank_batch` reports it as a row instead).
            OptionError, PromptError: an option, a template or a label is not usable.
        """
        ranker = self.rank_head(head)
        if isinstance(images, (list, tuple)):
            return ranker.rank(self._encoded(images), labels, template, options)
        single: Any = images
        return ranker.rank(self._encoded([single]), labels, template, options)[0]

    def rank_batch(
        self,
        images: Iterable[ImageSource | EncodedImage],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        head: str | None = None,
        batch_size: int = 8,
        options: RankOptions = _DEFAULT,
    ) -> Iterator[Ranking | Failure]:
        """Rank for any number of pictures lazily and in order; a bad picture is a `Failure` row."""
        ranker = self.rank_head(head)
        for prepared, encoded in self._encoder.batches(images, batch_size):
            rankings = iter(ranker.rank(encoded, labels, template, options))
            for item in prepared:
                yield item if isinstance(item, Failure) else next(rankings)

    def _encoded(self, images: Sequence[ImageSource | EncodedImage]) -> list[EncodedImage]:
        return self._encoder.encode([self._encoder.prepare(image) for image in images])


def heads_in_words(manifest: Manifest) -> str:
    """Names and kinds of a bundle's heads; else of what it was split from."""
    if manifest.heads:
        return ", ".join(f"{name} ({head.kind})" for name, head in manifest.heads.items())
    origin = manifest.parity.get("split", {}).get("of")
    if not isinstance(origin, dict):
        return "none"
    heads = ", ".join(map(str, origin.get("heads", ())))
    return f"none, for it is the tower of the bundle {origin.get('bundle')!r}, which has: {heads}"
