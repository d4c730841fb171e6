"""The files beside a reference work's weights: tokenizer and preprocessor."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

__all__ = ["SPECIAL", "VIT_PROCESSOR", "reference_tokenizer", "write_companions"]

SPECIAL = _BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"
_SPACE = "Ġ"

VIT_PROCESSOR: Mapping[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.45, 0.4],
    "image_std": [0.5, 0.45, 0.55],
}


def write_companions(  # noqa: PLR0913 - everything but the folder is by name
    folder: Path,
    *,
    vocab_size: int,
    size: int | tuple[int, int],
    processor: Mapping[str, Any] | None = None,
    special: Sequence[str] = SPECIAL,
    framed: bool = False,
    tokenizer: Mapping[str, Any] | None = None,
) -> None:
    """Tokenizer and preprocessor files for a checkpoint folder.

    Args:
        folder: where the checkpoint lies.
        vocab_size: ids of the tokenizer.
        size: (height, width) or the side of the pictures that the tower takes.
        processor: preprocessor settings over ViT's; with a ``size`` of its own, ``size`` is unused.
        special: what ids 0, 1 and 2 are.
        framed: the tokenizer puts the start token before every text, and the end token behind it.
        tokenizer: settings of tokenizer_config.json; ``frame`` is not written there, but says what
            stands around every text (``$A </s>``), where it is not both tokens; ``space`` says what
            spaces are written as.
    """
    height, width = (size, size) if isinstance(size, int) else size
    extra = dict(tokenizer or {})
    made = reference_tokenizer(vocab_size, special, extra.pop("space", _SPACE))
    if frame := extra.pop("frame", f"{_BOS} $A {_EOS}" if framed else None):
        ids = [(token, made.token_to_id(token)) for token in (_BOS, _EOS) if token in frame]
        made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": _BOS, "eos_token": _EOS, "pad_token": _PAD}
    _write_json(
        folder / "tokenizer_config.json",
        {**names, "tokenizer_class": "PreTrainedTokenizerFast", **extra},
    )
    settings = {**VIT_PROCESSOR, "size": {"height": height, "width": width}, **(processor or {})}
    _write_json(folder / "preprocessor_config.json", settings)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def reference_tokenizer(
    vocab_size: int, special: Sequence[str] = SPECIAL, space: str = _SPACE
) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` ids; its merges are all pairs, level by level.

    A tokenizer class of transformers that writes spaces as another character than ``Ġ`` takes
    vocabulary and merges of it, and does the rest by itself.
    """
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet()} - {_SPACE} | {space})
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    merges: list[tuple[str, str]] = []
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [space, *letters, *(a + b for a in [space, *letters] for b in letters)]
    for left, right in itertools.chain.from_iterable(
        ((a, b) for a in pieces[: 27 * n] for b in letters) for n in (1, 28)
    ):
        if len(vocab) >= vocab_size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    while len(vocab) < vocab_size:
        vocab[f"<extra{len(vocab)}>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer
