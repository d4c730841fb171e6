"""What every cell of a feature map should know about a scene: the dense supervision of a tower."""

from __future__ import annotations

import numpy as np

from primelens.tune.scenes.world import Scene

_REACH = 0.45  # of a side: how far from its centre a round-ish glyph surely covers the ground


def cell_targets(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """The object and the group count under every cell of a ``grid`` by ``grid`` map.

    A cell belongs to a glyph if its centre is well inside the glyph, and to the nearest glyph if
    it holds the glyph's centre. Glyphs painted later win.

    Returns:
        ``kinds [grid, grid]`` uint8, 0 for the background and else the kind + 1, and
        ``counts [grid, grid]`` uint8, the number of objects in that glyph's group.
    """
    kinds = np.zeros((grid, grid), dtype=np.uint8)
    counts = np.zeros((grid, grid), dtype=np.uint8)
    cell = 128.0 / grid
    middles = (np.arange(grid) + 0.5) * cell
    for group in scene.groups:
        for glyph in group.glyphs:
            far = (middles[None, :] - glyph.x) ** 2 + (middles[:, None] - glyph.y) ** 2
            covered = far <= (_REACH * glyph.side) ** 2
            covered[int(glyph.y / cell), int(glyph.x / cell)] = True
            kinds[covered] = group.kind + 1
            counts[covered] = group.count
    return kinds, counts
