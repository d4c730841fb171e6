"""The questions that the gate asks heads with an encoder for them: of several lengths, several per
picture; of a head that can do without, every other one is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from primelens.errors import CheckpointError
from primelens.export.registry import HeadSplit

__all__ = ["PER_PICTURE", "ids_of", "questions_for"]

PER_PICTURE = 2
_QUESTIONS = (
    "what is this?",
    "how many of the red shapes are there in the picture, and where is the largest of them?",
    "is it red or blue?",
    "who?",
    "where does the shadow of the second thing fall, to the left or to the right?",
)


def questions_for(tokenizer: Any, head: HeadSplit, pictures: int) -> list[str | None]:
    """`PER_PICTURE` questions about each picture, by picture; none for a head that takes none.

    Raises:
        CheckpointError: the model has no room for a question.
    """
    if head.question is None:
        return []
    room = head.question.stack.max_positions
    fitting = [text for text in _QUESTIONS if len(tokenizer(text)["input_ids"]) <= room]
    if not fitting:
        raise CheckpointError(
            f"The model has positions for {room} tokens of a question; none can be asked.",
            remedy="Check text_config.max_position_embeddings and the tokenizer.",
        )
    count = PER_PICTURE * pictures
    asked: list[str | None] = [fitting[n % len(fitting)] for n in range(count)]
    if head.question.unasked is not None:
        asked[::PER_PICTURE] = [None] * pictures
    return asked


def ids_of(tokenizer: Any, head: HeadSplit, questions: Sequence[str | None]) -> list[list[int]]:
    """The questions' ids as the source is given them, special tokens included."""
    assert head.question is not None
    return [
        list(head.question.unasked or ()) if text is None else list(tokenizer(text)["input_ids"])
        for text in questions
    ]
