"""The checkpoint that a head comes from: a whole model, or a text side that was tuned without one.

A text side tuned on kept embeddings says in ``primelens_head.json`` which tower they came from, and
may leave out the tower's weights. transformers then fills the tower with random numbers: nothing
left of the seam may be asked of such a model, and nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from primelens.errors import CheckpointError, OptionError
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.registry import HeadSplit, ModelSplit, RankSplit
from primelens.export.towers import with_every_tap
from primelens.head_checkpoint import HEAD_FILE, TunedOn, read
from primelens.hub import resolve
from primelens.preprocessing import Preprocessing

__all__ = ["HeadSource", "open_head"]


@dataclass(frozen=True)
class HeadSource:
    """A head to be put into a bundle.

    Attributes:
        checkpoint: where it comes from.
        split: the checkpoint, cut at every tap that is known; of a text side without a tower,
            everything left of the seam in it is random.
        head: the head itself, cut from it.
        tuned_on: what a checkpoint without a tower says of the tower; None for a whole model.
    """

    checkpoint: Checkpoint
    split: ModelSplit
    head: HeadSplit | RankSplit
    tuned_on: TunedOn | None


def open_head(
    checkpoint: str | Path,
    preprocessing: Preprocessing,
    *,
    revision: str | None = None,
    head: str | None = None,
    kind: Literal["caption", "answer"] | None = None,
) -> HeadSource:
    """Open a checkpoint and choose one of its heads.

    Args:
        checkpoint: a folder or a hub id.
        preprocessing: the bundle's, which belongs to a text side without a tower.
        revision: commit, branch or tag of a hub id.
        head: the head's name in the checkpoint; may be left out where it has only one.
        kind: what a head that continues prompts is called, because its architecture cannot tell.

    Raises:
        CheckpointError: it is incomplete, or cannot be loaded.
        OptionError: it has several heads and none is named, or not that one; or it ranks, and is to
            be called otherwise.
    """
    folder = resolve(str(checkpoint), revision=revision, kind="checkpoint")
    name = None if Path(checkpoint).exists() else str(checkpoint)
    tuned_on = read(folder)
    source = open_checkpoint(
        folder,
        name=name,
        revision=revision,
        of_tower=None if tuned_on is None else preprocessing,
    )
    split = source.family.split(source.model)
    split = replace(split, tower=with_every_tap(split.tower))
    chosen = _called(_choose(split, head, source.name), kind)
    if not source.lacking:
        return HeadSource(source, split, chosen, None)
    _check_complete(source, split)
    return HeadSource(source, split, chosen, tuned_on)


def _choose(split: ModelSplit, name: str | None, checkpoint: str) -> HeadSplit | RankSplit:
    if name is None and len(split.heads) == 1:
        return next(iter(split.heads.values()))
    if name is None or name not in split.heads:
        problem = "several heads" if name is None else f"no head {name!r}"
        raise OptionError(
            f"The checkpoint {checkpoint} has {problem}.",
            remedy=f"Choose one of them: {', '.join(split.heads)}.",
        )
    return split.heads[name]


def _called(
    head: HeadSplit | RankSplit, kind: Literal["caption", "answer"] | None
) -> HeadSplit | RankSplit:
    if kind is None:
        return head
    if isinstance(head, RankSplit):
        raise OptionError(
            f"A head that ranks cannot be called {kind!r}.", remedy="Leave the kind out."
        )
    return replace(head, kind=kind)


def _check_complete(source: Checkpoint, split: ModelSplit) -> None:
    """What the files lack must be of the tower."""
    places = {t.data_ptr() for tensors in split.tower.taps.values() for t in tensors.values()}
    state: Mapping[str, torch.Tensor] = source.model.state_dict()
    of_tower = [name for name, tensor in state.items() if tensor.data_ptr() in places]
    parts = [name.split(".")[:-1] for name in of_tower]
    shared = os.path.commonprefix(parts)  # noqa: RUF071 - of lists, so part by part
    random = [n for n in source.lacking if not shared or n.split(".")[: len(shared)] != shared]
    if random:
        raise CheckpointError(
            f"The checkpoint {source.folder} has a {HEAD_FILE}, so its tower's weights may be left "
            "out; but these belong to the text side:",
            remedy="Save the whole text side.",
            problems=[f"{name}: not in the files; it would be left random" for name in random],
        )
