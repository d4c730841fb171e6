"""A bundle as one of the systems of an evaluation: as it is, one of its heads, or heads together.

``BUNDLE`` is the bundle with the head that fits the task. ``BUNDLE#HEAD`` names the head.
``BUNDLE#HEAD=0.6+HEAD=0.4`` lets several heads write together, each with a say of that weight in
every token (`primelens.ensemble`); without weights they have equal ones. So fusions can be compared
in one table: ``bundle#cross``, ``bundle#prefix`` and ``bundle#cross+prefix``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from primelens.ensemble import Ensemble
from primelens.errors import OptionError
from primelens.options import CaptionOptions
from primelens.results import Caption, EncodedImage, Failure

if TYPE_CHECKING:
    from primelens.model import Model
    from primelens.rank import RankHead
    from primelens.tune.fusion import FittedWeights

__all__ = ["Speaker", "SystemName", "open_speaker"]


@dataclass(frozen=True)
class SystemName:
    """What stands on the command line.

    Attributes:
        bundle: folder, shipped name or hub id.
        heads: head → weight; empty where none is named.
        weighed: whether the weights were given.
    """

    bundle: str
    heads: tuple[tuple[str, float], ...] = ()
    weighed: bool = False

    @classmethod
    def parse(cls, text: str) -> SystemName:
        """Read ``BUNDLE``, ``BUNDLE#HEAD`` or ``BUNDLE#HEAD=0.6+HEAD=0.4``.

        Raises:
            OptionError: a head's name is missing or repeated, or a weight is no number, or is
                given for some of the heads only.
        """
        bundle, mark, listed = text.rpartition("#")
        if not mark:
            return cls(text)
        parts = [part.partition("=") for part in listed.split("+")]
        names = [name.strip() for name, _, _ in parts]
        given = [weight for _, sign, weight in parts if sign]
        try:
            weights = [float(weight) for weight in given] or [1 / len(names)] * len(names)
        except ValueError:
            weights = []
        if not bundle or not all(names) or len({*names}) < len(names) or len(weights) != len(names):
            raise OptionError(
                f"{text!r} names no heads of a bundle.",
                remedy="Write BUNDLE#HEAD, BUNDLE#HEAD+HEAD or BUNDLE#HEAD=0.6+HEAD=0.4.",
            )
        return cls(bundle, tuple(zip(names, weights, strict=True)), bool(given))


class Speaker:
    """One system that reads pictures.

    Args:
        model: a loaded bundle.
        heads: as of `SystemName`.
        listed: the heads as they were written, for the report.

    Raises:
        InputError: the bundle has no such head.
        OptionError: the heads cannot write together.
    """

    def __init__(
        self, model: Model, heads: tuple[tuple[str, float], ...] = (), listed: str = ""
    ) -> None:
        self.model = model
        self.name = f"{model.name}#{listed}" if listed else model.name
        self._heads = heads
        self._together = Ensemble(model, dict(heads)) if len(heads) > 1 else None

    def fit(self, known: Iterable[tuple[EncodedImage, str | None, str]]) -> FittedWeights:
        """Give two heads the weights under which known texts are likeliest, see `fit_weights`."""
        from primelens.tune.fusion import fit_weights

        heads = [self.model.head(name=name) for name, _ in self._heads]
        fitted = fit_weights(heads, known)
        names = [name for name, _ in self._heads]
        self._heads = tuple(zip(names, fitted.weights, strict=True))
        self._together = Ensemble(self.model, dict(self._heads))
        return fitted

    @property
    def head(self) -> str | None:
        """The one head that was named."""
        return self._heads[0][0] if len(self._heads) == 1 else None

    def captions(self, images: Sequence[EncodedImage]) -> list[str]:
        """One caption for each picture."""
        if self._together is not None:
            return [caption.text for caption in self._together.caption(list(images))]
        size = max(len(images), 1)
        if self.head is None:
            return _texts(self.model.caption_batch(images, batch_size=size))
        options = CaptionOptions(head=self.head)
        return _texts(self.model.caption_batch(images, options, batch_size=size))

    def answers(self, asked: Sequence[tuple[EncodedImage, str]], batch_size: int) -> list[str]:
        """One answer for each pair of picture and question."""
        if self._together is not None:
            together = self._together
            return [together.answer(image, [question])[0].text for image, question in asked]
        options = CaptionOptions(head=self.head)
        return _texts(self.model.answer_batch(asked, options, batch_size=batch_size))

    def ranker(self) -> RankHead:
        """The head that ranks.

        Raises:
            InputError: the bundle has none.
            OptionError: several heads were named.
        """
        if self._together is not None:
            raise OptionError(
                f"{self.name}: heads write together, they do not rank together.",
                remedy="Name one rank head.",
            )
        return self.model.rank_head(self.head)


def open_speaker(text: str, load: Callable[[str], Model]) -> Speaker:
    """The system that a text names; see `SystemName`."""
    name = SystemName.parse(text)
    return Speaker(load(name.bundle), name.heads, text.rpartition("#")[2] if name.heads else "")


def _texts(results: Iterable[Caption | Failure]) -> list[str]:
    found = []
    for result in results:
        if isinstance(result, Failure):
            raise result.error
        found.append(result.text)
    return found
