"""Results as lines: text for people, one JSON object per input for machines.

Every line is flushed as it is written, so that a pipe sees it at once and an interrupt loses
nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from primelens.errors import PrimelensError
    from primelens.results import Caption

__all__ = ["answer_row", "caption_row", "failure_row", "printable", "write_json", "write_text"]


def caption_row(image: str, caption: Caption, model: str) -> dict[str, Any]:
    """The JSON object of a captioned picture; ``timings_ms`` are milliseconds.

    ``score``, ``alternatives`` and ``others`` are there where the options asked for them,
    ``timestamps`` (seconds) for a video.
    """
    return {
        "image": image,
        "status": "ok",
        **_text_fields(caption),
        **({"others": [_text_fields(other) for other in caption.others]} if caption.others else {}),
        **({"timestamps": list(caption.timestamps)} if caption.timestamps else {}),
        "timings_ms": caption.timings.as_milliseconds(),
        "cache": caption.cache,
        "model": model,
        "notice": caption.notice,
    }


def answer_row(image: str, answer: Caption, model: str) -> dict[str, Any]:
    """The JSON object of an answered question: that of a caption, with ``question``, and the text
    under ``answer``.
    """
    row = caption_row(image, answer, model)
    row["others"] = [_text_fields(other, "answer") for other in answer.others]
    kept = {key: row.pop(key) for key in ("image", "status")}
    del row["caption"]
    if not row["others"]:
        del row["others"]
    return {**kept, "question": answer.question, "answer": answer.text, **row}


def _text_fields(caption: Caption, name: str = "caption") -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: caption.text,
        "tokens": list(caption.tokens),
        "logprob": _finite(caption.logprob),
        "finish_reason": caption.finish_reason,
    }
    if caption.score is not None:
        fields["score"] = _finite(caption.score)
    if caption.alternatives:
        fields["alternatives"] = [
            [[token, _finite(logprob)] for token, logprob in ranked]
            for ranked in caption.alternatives
        ]
    return fields


def failure_row(image: str, error: PrimelensError, model: str) -> dict[str, Any]:
    """The JSON object of a picture that failed; ``kind`` is the error's class."""
    return {
        "image": image,
        "status": "error",
        "error": {
            "kind": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "problems": list(error.problems),
        },
        "model": model,
    }


def write_json(row: Mapping[str, Any]) -> None:
    """One object on one line, in ASCII: a path that is no valid text survives the way there."""
    click.echo(json.dumps(row, allow_nan=False))


def write_text(text: str, *, newline: bool = True) -> None:
    """One line for people."""
    click.echo(text, nl=newline)


def printable(text: str) -> str:
    """``text`` on one line and without control characters: a name must not steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
