"""The special tokens that a source's tokenizer puts around a text."""

from __future__ import annotations

from typing import Any

from primelens.errors import UnsupportedError

__all__ = ["check_frame", "frame_of"]

_PROBE = "a b"


def frame_of(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and behind every text.

    Raises:
        UnsupportedError: special tokens change the text's own ids.
    """
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(_PROBE)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    raise UnsupportedError(
        f"The tokenizer makes {whole} of {_PROBE!r} and {bare} of it without special tokens.",
        remedy="Use a tokenizer that puts special tokens around texts only.",
    )


def check_frame(tokenizer: Any, wanted: tuple[int, int]) -> None:
    """Raises `UnsupportedError` where the tokenizer does not put so many ids around a text."""
    before, behind = frame_of(tokenizer)
    if (len(before), len(behind)) != wanted:
        raise UnsupportedError(
            f"The tokenizer puts {len(before)} ids before a text and {len(behind)} behind it; the "
            f"model's generate takes {wanted[0]} and {wanted[1]} of them for special tokens, so "
            "that prompts would lose their ends.",
            remedy="Save the model with the tokenizer that it was tuned with.",
        )
