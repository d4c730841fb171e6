"""The score of anything that captions pictures, on scenes of a held-out split.

The same code measures a model in training, a checkpoint and an exported bundle: all it is given is
a function from pictures to captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from primelens.tune.scenes.grammar import CaptionScore, score_caption
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import Scene, Split, scene

CaptionFunction = Callable[[list[Image.Image]], Sequence[str]]


@dataclass(frozen=True)
class SceneMetrics:
    """Means over the pictures of a split.

    Attributes:
        pictures: how many were captioned.
        object_f1: mean over pictures of the F1 of stated against shown kinds; likewise precision
            and recall.
        count_accuracy: share of all groups that are stated once and with the right count.
        relation_accuracy: share of the pictures with several groups whose stated relation is true.
        extras_accuracy: share of pictures of which no stated size, place or time is false.
        place_stated: share of pictures whose caption names a place; likewise time.
        whole_caption_accuracy: share of pictures with every slot right.
        whole_by_groups: the same, by the number of groups.
    """

    pictures: int
    object_precision: float
    object_recall: float
    object_f1: float
    count_accuracy: float
    relation_accuracy: float
    extras_accuracy: float
    place_stated: float
    time_stated: float
    whole_caption_accuracy: float
    whole_by_groups: dict[int, float]


def evaluate_scenes(
    caption_function: CaptionFunction,
    split: Split = "test",
    n: int = 5000,
    *,
    batch_size: int = 64,
    picture_size: int = 128,
    seed: int = 0,
) -> SceneMetrics:
    """Render the first ``n`` scenes of a split, caption them and score the captions.

    Raises:
        ValueError: if the function returns another number of captions than it was given pictures.
    """
    scenes: list[Scene] = []
    captions: list[str] = []
    for first in range(0, n, batch_size):
        shown = [scene(split, i, seed) for i in range(first, min(n, first + batch_size))]
        said = list(caption_function([render(s, picture_size) for s in shown]))
        if len(said) != len(shown):
            raise ValueError(f"{len(shown)} pictures gave {len(said)} captions")
        scenes += shown
        captions += said
    return measure_captions(scenes, captions)


def measure_captions(scenes: Sequence[Scene], captions: Sequence[str]) -> SceneMetrics:
    """Score captions, one for each scene.

    Raises:
        ValueError: for no scenes, or another number of captions.
    """
    if not scenes:
        raise ValueError("no scenes to measure")
    scores = [score_caption(s, text) for s, text in zip(scenes, captions, strict=True)]
    groups = [len(s.groups) for s in scenes]
    relations = [score.relation for score in scores if score.relation is not None]
    by_groups: dict[int, list[bool]] = defaultdict(list)
    for number, score in zip(groups, scores, strict=True):
        by_groups[number].append(score.whole)
    return SceneMetrics(
        pictures=len(scores),
        object_precision=_mean([s.precision for s in scores]),
        object_recall=_mean([s.recall for s in scores]),
        object_f1=_mean([s.f1 for s in scores]),
        count_accuracy=sum(s.counts * g for s, g in zip(scores, groups, strict=True)) / sum(groups),
        relation_accuracy=_mean(relations) if relations else 1.0,
        extras_accuracy=_mean([s.extras for s in scores]),
        place_stated=_mean([s.place_stated for s in scores]),
        time_stated=_mean([s.time_stated for s in scores]),
        whole_caption_accuracy=_mean([s.whole for s in scores]),
        whole_by_groups={number: _mean(by_groups[number]) for number in sorted(by_groups)},
    )


def failures(
    scenes: Sequence[Scene], captions: Sequence[str]
) -> list[tuple[Scene, str, CaptionScore]]:
    """The captions with a slot wrong, to be looked at."""
    scored = [(s, text, score_caption(s, text)) for s, text in zip(scenes, captions, strict=True)]
    return [entry for entry in scored if not entry[2].whole]


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return sum(values) / len(values)
