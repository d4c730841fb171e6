"""What every cell of a feature map should know about a scene: the dense supervision of a tower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from primelens.tune.scenes.world import Relation, Scene

ROLES = ("background", "first subject", "second subject", "first object", "second object")
"""What a group is to the statement of its scene, by index; a group alone is the first subject."""

RELATIONS: tuple[Relation | None, ...] = (None, "left", "above", "front", "between")
"""Relations that a scene can be made for, by index."""

_REACH = 0.45  # of a side: how far from its centre a round-ish glyph surely covers the ground


@dataclass(frozen=True)
class CellTargets:
    """Maps ``[grid, grid]`` uint8, 0 on the background.

    Attributes:
        kinds: the kind under the cell, plus one.
        counts: the number of objects in that glyph's group.
        roles: index into ``ROLES``.
        relation: of the whole scene, index into ``RELATIONS``.
    """

    kinds: np.ndarray
    counts: np.ndarray
    roles: np.ndarray
    relation: int


def cell_targets(scene: Scene, grid: int) -> CellTargets:
    """What is under every cell of a ``grid`` by ``grid`` map.

    A cell belongs to a glyph if its centre is well inside the glyph, and to the nearest glyph if
    it holds the glyph's centre. Glyphs painted later win.
    """
    kinds, counts, roles = np.zeros((3, grid, grid), dtype=np.uint8)
    cell = 128.0 / grid
    middles = (np.arange(grid) + 0.5) * cell
    role_of = _roles(scene)
    for index, group in enumerate(scene.groups):
        for glyph in group.glyphs:
            far = (middles[None, :] - glyph.x) ** 2 + (middles[:, None] - glyph.y) ** 2
            covered = far <= (_REACH * glyph.side) ** 2
            covered[int(glyph.y / cell), int(glyph.x / cell)] = True
            kinds[covered] = group.kind + 1
            counts[covered] = group.count
            roles[covered] = role_of[index]
    relation = scene.statement.relation if scene.statement is not None else None
    return CellTargets(kinds, counts, roles, RELATIONS.index(relation))


def _roles(scene: Scene) -> dict[int, int]:
    """Index into ``ROLES`` of every group, by its index."""
    if scene.statement is None:
        return dict.fromkeys(range(len(scene.groups)), 1)
    subjects = {group: 1 + i for i, group in enumerate(scene.statement.subjects)}
    return subjects | {group: 3 + i for i, group in enumerate(scene.statement.objects)}
