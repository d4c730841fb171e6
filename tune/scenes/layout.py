"""Where the groups of a scene go, so that the relation it was made for cannot be misread.

Lengths are in 1/128 of the picture's side. Sizes come from three ranges with gaps between them;
a layout that does not fit is drawn again with smaller objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

LayoutRelation = Literal["left", "above", "front", "between"]
Layout = tuple["list[Placement]", LayoutRelation | None, tuple[int, ...], tuple[int, ...]]
"""Placements in painting order, the relation, and its subjects and objects by index."""

SIDE_RANGES = ((19.0, 22.0), (26.0, 33.0), (41.0, 52.0))
"""Sides of small, medium and large objects."""

_CANVAS = 128.0
_MARGIN = 3.0
_GAP = 6.0
_PITCH = 1.12  # centre to centre inside a group, in sides: turned neighbours may touch, not hide
_ANGLE = 20.0
_FRONT_SHARE = 0.18
_DRIFT = 20.0  # how far blocks may slide off a common line; more would read as a diagonal


@dataclass(frozen=True)
class Placement:
    """The objects of one group: a side, centres ``(x, y)`` and turns in degrees."""

    side: float
    centres: tuple[tuple[float, float], ...]
    angles: tuple[float, ...]


@dataclass(frozen=True)
class _Cluster:
    """A group before it has a place: offsets of the objects from the cluster's upper left."""

    side: float
    offsets: tuple[tuple[float, float], ...]
    extent: tuple[float, float]


def arrange(draw: np.random.Generator, counts: list[int]) -> Layout:
    """Place groups of the given counts; always succeeds for at most 8 objects in 4 groups.

    A share of the pairs becomes "in front of", which shows one object each whatever the counts.
    """
    if len(counts) == 2 and draw.random() < _FRONT_SHARE:
        return _front(draw)
    for attempt in range(200):
        clusters = [_cluster(draw, n, len(counts), attempt) for n in counts]
        layout = _tree(draw, clusters)
        if layout is not None:
            return layout
    raise AssertionError(f"no layout found for groups of {counts}")


def _front(draw: np.random.Generator) -> Layout:
    """A small thing over a lower corner of a large one, which stays at least 60 % visible."""
    rear_side = draw.uniform(44.0, 52.0)
    front_side = draw.uniform(26.0, 31.0)
    reach = rear_side / 2 + front_side
    rear = draw.uniform(reach, _CANVAS - reach, size=2)
    toward = (1.0 if draw.random() < 0.5 else -1.0) * draw.uniform(0.28, 0.46)
    front = rear + rear_side * np.array([toward, draw.uniform(0.26, 0.44)])
    placements = [
        Placement(side, ((float(x), float(y)),), (_angle(draw),))
        for side, (x, y) in ((rear_side, rear), (front_side, front))
    ]
    return placements, "front", (1,), (0,)


def _cluster(draw: np.random.Generator, count: int, groups: int, attempt: int) -> _Cluster:
    largest = 2 if (count == 1 or (groups == 1 and count == 2)) else 1
    if attempt > 4:
        largest = 1 if attempt <= 12 else 0
    low, high = SIDE_RANGES[int(draw.integers(largest + 1))]
    side = float(draw.uniform(low, high))
    rows = _rows(draw, count, attempt)
    pitch = side * _PITCH
    width = max(rows)
    offsets = []
    for r, filled in enumerate(rows):
        indent = (width - filled) / 2
        for c in range(filled):
            jitter = draw.uniform(-0.04, 0.04, size=2) * side
            x, y = (c + indent) * pitch + side / 2, r * pitch + side / 2
            offsets.append((x + float(jitter[0]), y + float(jitter[1])))
    extent = ((width - 1) * pitch + side, (len(rows) - 1) * pitch + side)
    return _Cluster(side, tuple(offsets), extent)


def _rows(draw: np.random.Generator, count: int, attempt: int) -> tuple[int, ...]:
    """How many objects stand in each row of a cluster."""
    choices: dict[int, tuple[tuple[int, ...], ...]] = {
        1: ((1,),),
        2: ((2,), (1, 1)),
        3: ((2, 1), (1, 2), (3,), (1, 1, 1)),
        4: ((2, 2), (2, 2), (4,), (1, 1, 1, 1)),
        5: ((3, 2), (2, 3), (2, 1, 2), (2, 2, 1)),
    }
    rows = choices[count]
    if attempt > 60:
        rows = rows[:2]
    return rows[int(draw.integers(len(rows)))]


def _tree(draw: np.random.Generator, clusters: list[_Cluster]) -> Layout | None:
    """Blocks along one axis, each a cluster or two clusters along the other axis."""
    axis = int(draw.integers(2))
    blocks: list[list[int]]
    relation: LayoutRelation = "left" if axis == 0 else "above"
    match len(clusters):
        case 1:
            blocks = [[0]]
        case 2:
            blocks = [[0], [1]]
        case 3:
            shape = draw.random()
            blocks = [[0], [1], [2]] if shape < 0.5 else [[0, 1], [2]]
            if shape >= 0.75:
                blocks = [[0], [1, 2]]
        case _:
            blocks = [[0, 1], [2, 3]]
    origins = _origins(draw, clusters, blocks, axis)
    if origins is None:
        return None
    placements = [_place(draw, c, o) for c, o in zip(clusters, origins, strict=True)]
    if len(blocks) == 1:
        return placements, None, (), ()
    if len(blocks) == 3:
        return placements, "between", (1,), (0, 2)
    return placements, relation, tuple(blocks[0]), tuple(blocks[1])


def _origins(
    draw: np.random.Generator, clusters: list[_Cluster], blocks: list[list[int]], axis: int
) -> list[tuple[float, float]] | None:
    """Upper left corners of all clusters, or ``None`` where they do not fit."""
    room = _CANVAS - 2 * _MARGIN
    along = [max(clusters[i].extent[axis] for i in block) for block in blocks]
    across = [
        sum(clusters[i].extent[1 - axis] for i in block) + _GAP * (len(block) - 1)
        for block in blocks
    ]
    slack = room - sum(along) - _GAP * (len(blocks) - 1)
    if slack < 0 or max(across) > room:
        return None
    cuts = np.sort(draw.uniform(0.0, slack, size=len(blocks)))
    line = draw.uniform(_CANVAS / 2 - _DRIFT, _CANVAS / 2 + _DRIFT)
    corners: list[tuple[float, float]] = [(0.0, 0.0)] * len(clusters)
    passed = _MARGIN
    for block, length, cut, width in zip(blocks, along, cuts, across, strict=True):
        start = passed + float(cut)
        free = room - width
        if len(blocks) == 1:
            begin = _MARGIN + draw.uniform(0.0, free)
        else:
            wanted = line - width / 2 + draw.uniform(-_DRIFT, _DRIFT) / 2
            begin = float(np.clip(wanted, _MARGIN, _MARGIN + free))
        spare = min(_MARGIN + room - begin - width, 24.0) / max(len(block) - 1, 1)
        for i in block:
            own = clusters[i].extent
            shift = start + draw.uniform(0.0, length - own[axis])
            corners[i] = (shift, begin) if axis == 0 else (begin, shift)
            begin += own[1 - axis] + _GAP + draw.uniform(0.0, max(spare, 0.0))
        passed += length + _GAP
    return corners


def _place(draw: np.random.Generator, cluster: _Cluster, origin: tuple[float, float]) -> Placement:
    centres = tuple((origin[0] + x, origin[1] + y) for x, y in cluster.offsets)
    return Placement(cluster.side, centres, tuple(_angle(draw) for _ in centres))


def _angle(draw: np.random.Generator) -> float:
    return float(draw.uniform(-_ANGLE, _ANGLE))
