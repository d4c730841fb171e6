"""Bundles that rank: what their image and text sides say, and what chance would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from primelens.errors import OptionError
from primelens.tune.data import Example
from primelens.tune.evaluation.stage import Stage
from primelens.tune.evaluation.systems import Predictions, encoded_chunks, is_result_file
from primelens.tune.metrics import Tally, mean_tally

if TYPE_CHECKING:
    from primelens.rank import RankHead

__all__ = ["CHANCE", "Ranked", "chance_of_labels", "chance_of_retrieval", "looked_at"]

#: The row of whoever ranks by lot.
CHANCE = "chance"


@dataclass(eq=False)
class Ranked(Predictions):
    """A bundle's image side; its text side speaks through `head`.

    ``embeddings`` are the rank head's, ``[D]`` of length 1.
    """

    head: RankHead | None = None

    def images(self, examples: Iterable[Example]) -> NDArray[np.float32]:
        """``[N, D]`` of some examples, in their order."""
        return np.stack([self.embeddings[example.id] for example in examples])

    @property
    def ranker(self) -> RankHead:
        """The head, which is there once the pictures were looked at."""
        assert self.head is not None
        return self.head


def looked_at(stage: Stage, name: str) -> Ranked:
    """What a bundle's image side says of all examples.

    Raises:
        OptionError: the system is a result file.
        InputError: the bundle has no head that ranks.
    """
    if is_result_file(name):
        raise OptionError(
            f"{name} is a result file, and only a bundle can rank.",
            remedy="Give a bundle with a rank head.",
        )
    speaker = stage.speaker(name)
    found = Ranked(speaker.name, head=speaker.ranker())
    for chunk in encoded_chunks(speaker, stage.examples, found, stage.progress):
        for example, image in chunk:
            found.embeddings[example.id] = found.ranker.embed_image(image)
    return found


def chance_of_retrieval(own: Sequence[int], at: Sequence[int]) -> list[Tally]:
    """What `primelens.tune.metrics.retrieval_tallies` would give on average to a random order.

    Args:
        own: ``[N]``, how many captions each picture has.
        at: the Ks.
    """
    pictures, captions = len(own), sum(own)
    tallies = []
    for k in at:
        drawn = min(k, captions)
        missed = [comb(captions - mine, drawn) / comb(captions, drawn) for mine in own]
        tallies.append(mean_tally(f"image→text R@{k}", 1 - np.array(missed)))
    for k in at:
        hits = np.array(own) * min(k / pictures, 1.0)
        tallies.append(mean_tally(f"text→image R@{k}", hits, np.array(own, np.float64)))
    return tallies


def chance_of_labels(pictures: int, labels: int, at: Sequence[int]) -> list[Tally]:
    """What `primelens.tune.metrics.zero_shot_tallies` would give on average to a random order."""
    return [mean_tally(f"top-{k}", np.full(pictures, min(k / labels, 1.0))) for k in at]
