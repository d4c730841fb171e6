"""Reading and writing results: JSON without NaN, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from primelens.atomic import write_bytes

__all__ = ["write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text``; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinities raise `ValueError`: they are no JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
