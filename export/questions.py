"""The questions that the gate asks heads that answer: of several lengths, several per picture."""

from __future__ import annotations

from typing import Any

from primelens.errors import CheckpointError
from primelens.export.registry import HeadSplit

__all__ = ["PER_PICTURE", "questions_for"]

PER_PICTURE = 2
_QUESTIONS = (
    "what is this?",
    "how many of the red shapes are there in the picture, and where is the largest of them?",
    "is it red or blue?",
    "who?",
    "where does the shadow of the second thing fall, to the left or to the right?",
)


def questions_for(tokenizer: Any, head: HeadSplit, pictures: int) -> list[str]:
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
    return [fitting[n % len(fitting)] for n in range(PER_PICTURE * pictures)]
