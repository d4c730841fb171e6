"""Whether a head was tuned on the very tower of a bundle; and if not, what about the tower differs.

The identity decides. What it is made of (weights, architecture, preprocessing, tap) only serves to
say where the difference lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from primelens.errors import CheckpointError
from primelens.export.draft import tap_identities, tap_weights
from primelens.export.head_source import HeadSource
from primelens.head_checkpoint import TunedOn
from primelens.manifest import TowerSpec

__all__ = ["check_same_tower"]


def check_same_tower(tower: TowerSpec, source: HeadSource, bundle: str) -> None:
    """Refuse a head that was tuned on another tower.

    A head may read a tap that the bundle does not have yet; then the tower must be the same at all
    the taps that the bundle has.

    Args:
        tower: the bundle's.
        source: the head.
        bundle: what to call the bundle.

    Raises:
        CheckpointError: another tower; ``problems`` names both identities and what differs.
    """
    if source.tuned_on is not None:
        problems = _against_declaration(tower, source.tuned_on, source.head.tap)
    else:
        problems = _against_weights(tower, source)
    if problems:
        raise CheckpointError(
            f"The head of {source.checkpoint.name} was not tuned on the tower of {bundle}:",
            problems=problems,
            remedy="Tune the head on this tower, or export its checkpoint to a bundle of its own.",
        )


def _against_declaration(tower: TowerSpec, tuned_on: TunedOn, tap: str) -> list[str]:
    if tuned_on.tap != tap:
        return [f"tap: the checkpoint's head reads {tap!r}, but it was tuned on {tuned_on.tap!r}"]
    if tap not in tower.taps:
        return [_no_tap(tower, tap) + ", and without the tower's weights none can be added"]
    declared = tower.taps[tap]
    if declared.identity == tuned_on.tower_identity:
        return []
    problems = [_identities(tap, declared.identity, tuned_on.tower_identity)]
    if tuned_on.tower_family is not None and tuned_on.tower_family != tower.family:
        problems.append(f"family: {tower.family}, {tuned_on.tower_family}")
    if tuned_on.preprocessing is not None:
        problems += _fields("preprocessing", tower.preprocessing, tuned_on.preprocessing)
    if len(problems) == 1:
        problems.append("what differs is the weights or the architecture, or is not stated")
    return problems


def _against_weights(tower: TowerSpec, source: HeadSource) -> list[str]:
    split, tap = source.split, source.head.tap
    preprocessing = source.checkpoint.preprocessing.to_dict()
    found = tap_identities(split, preprocessing)
    shared = [tap] if tap in tower.taps else [name for name in tower.taps if name in found]
    if not shared:
        return [_no_tap(tower, tap) + f"; the checkpoint's exporter knows {', '.join(found)}"]
    wrong = [name for name in shared if tower.taps[name].identity != found[name]]
    if not wrong:
        return []
    problems = [_identities(name, tower.taps[name].identity, found[name]) for name in wrong]
    parts = []
    if split.tower_family != tower.family:
        parts.append(f"family: {tower.family}, {split.tower_family}")
    if tower.architecture is not None:
        parts += _fields("architecture", tower.architecture, split.tower.architecture)
    parts += _fields("preprocessing", tower.preprocessing, preprocessing)
    for name in wrong:
        declared, weights = tower.taps[name].weights, tap_weights(split.tower, name)
        if declared is not None and declared != weights:
            parts.append(f"weights upstream of {name}: {declared}, {weights}")
    if not parts:
        parts.append("what differs is the weights or the architecture: the bundle does not say")
    return problems + parts


def _identities(tap: str, ours: str, theirs: str) -> str:
    return f"identity at {tap}: the bundle's is {ours}, the checkpoint's {theirs}"


def _no_tap(tower: TowerSpec, tap: str) -> str:
    return f"tap: the head reads {tap!r}, the bundle has {', '.join(tower.taps)}"


def _fields(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}, {key}: {ours.get(key)!r}, {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if _plain(ours.get(key)) != _plain(theirs.get(key))
    ]


def _plain(value: Any) -> Any:
    """As JSON has it: a tuple in memory is a list in a manifest."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
