"""Halves of a bundle: the text side alone, or the tower alone. Needs neither torch nor onnx.

The text side runs where embeddings are kept: pictures are encoded once, by whoever has the tower,
and every re-tuned text side is a small bundle. The tower is for those who only encode.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from primelens.errors import OptionError
from primelens.export.remake import Remake, in_place, remade, take_out

__all__ = ["split_bundle"]


def split_bundle(
    bundle: str | Path,
    out: str | Path,
    half: Literal["text-only", "tower-only"],
    *,
    overwrite: bool = False,
) -> Path:
    """Write one half of a bundle; returns its folder.

    Args:
        bundle: a folder, ``"default"``, or a hub id.
        out: the folder to be.
        half: "text-only" leaves out the tower's graph, and keeps everything by which embeddings
            are found and understood; "tower-only" leaves out the heads.
        overwrite: replace a bundle at ``out``.

    Raises:
        BundleError: the bundle is incomplete or altered.
        OptionError: ``out`` exists, or the bundle lacks that half itself.
        GateError: the half does not replay its golden outputs; nothing was written.
    """
    opened, target = in_place(bundle, Path(out), overwrite=overwrite)
    remake = Remake.of(opened)
    lacking = remake.tower.graph is None if half == "tower-only" else not remake.heads
    if lacking:
        part = "no tower" if half == "tower-only" else "no heads"
        raise OptionError(
            f"The bundle {opened.folder} has {part}, so it has no such half.",
            remedy="Give the whole bundle.",
        )
    origin = {"bundle": opened.manifest.name, "heads": list(remake.heads)}
    if half == "text-only":
        remake.tower = replace(remake.tower, graph=None)
    else:
        for name in list(remake.heads):
            take_out(remake, name)
    remake.parity = {**remake.parity, "split": {"half": half, "of": origin}}
    with remade(target, overwrite=overwrite) as folder:
        remake.write(folder)
    return target
