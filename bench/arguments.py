"""What the bench's command lines read alike."""

from __future__ import annotations

import argparse

__all__ = ["counts"]


def counts(text: str) -> tuple[int, ...]:
    """``"1,4,16"`` to whole numbers of at least 1, for argparse.

    Raises:
        argparse.ArgumentTypeError: one of them is less.
        ValueError: one of them is no whole number; argparse says so.
    """
    numbers = tuple(int(word) for word in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("each must be at least 1")
    return numbers
