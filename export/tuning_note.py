"""How a text side was tuned, carried from its checkpoint into the bundle.

`primelens.tune` leaves ``tuning.json`` in a checkpoint: the recipe with its augmentation, the
preprocessing, the tower's digest, the score. The bundle holds it as ``HEAD.tuning.json``, without
what says only where things lay on the machine that tuned.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from primelens.errors import CheckpointError

__all__ = ["TUNING", "carried_note", "tuning_file"]

TUNING = "tuning.json"
_LOCAL = ("out", "features", "logs")


def tuning_file(head: str) -> str:
    """The note's name in a bundle."""
    return f"{head}.{TUNING}"


def carried_note(checkpoint: Path, head: str) -> tuple[str, str] | None:
    """What a bundle says of a head's tuning.

    Args:
        checkpoint: its folder.
        head: the head's name in the bundle.

    Returns:
        The file's text and a line for the card; None where the checkpoint holds no note.

    Raises:
        CheckpointError: the note cannot be read.
    """
    path = checkpoint / TUNING
    if not path.is_file():
        return None
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recipe = {key: value for key, value in note["recipe"].items() if key not in _LOCAL}
        steps = [step["step"] for step in note["augmentation"].get("steps", ())]
        line = (
            f"head {head}: tuned on {_tower(note)}, objective {recipe['objective']}, "
            f"{note['steps']} steps, augmentation {', '.join(steps) or 'none'}; "
            f"all of it in `{tuning_file(head)}`"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not what primelens tune writes: {error!r}.",
            remedy="Remove the file if the checkpoint was made otherwise.",
        ) from error
    text = json.dumps({**note, "recipe": recipe}, indent=1, ensure_ascii=False)
    return f"{text}\n", line


def _tower(note: dict[str, Any]) -> str:
    unlocked = note["tower"].get("unlocked") if isinstance(note.get("tower"), dict) else None
    return f"the tower, {', '.join(unlocked)} unlocked" if unlocked else "the locked tower"
