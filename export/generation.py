"""How a checkpoint's ``generate`` behaves when nothing is asked for, resolved as transformers
does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import transformers

from primelens.decoding.effective import unsupported
from primelens.errors import CheckpointError
from primelens.manifest import Generation

__all__ = ["plain_generation", "resolve_generation", "settings_gaps"]

_DEFAULT_NEW_TOKENS = 20  # transformers' own, the prompt not counted
_RESOLVED = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
}
# Bookkeeping, and what changes how generate computes or reports but not what it answers.
_NEUTRAL = {
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}


def resolve_generation(model: Any) -> Generation:
    """Decoding defaults of an encoder-decoder model.

    Source: transformers 5.23, ``GenerationMixin.generate``: 20 new tokens when no length is set, an
    explicit ``max_length`` counts the start token, ``max_new_tokens`` wins over it; the start
    token falls back to ``bos``, the padding token to the first end token.

    Raises:
        CheckpointError: no start token is defined.
    """
    config = model.generation_config
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if start is None:
        raise CheckpointError(
            "The checkpoint defines no decoder_start_token_id.",
            remedy="Set decoder_start_token_id (and eos_token_id) in generation_config.json.",
        )
    eos = _as_list(config.eos_token_id)
    pad = config.pad_token_id
    if pad is None:
        pad = eos[0] if eos else 0
    start_tokens = tuple(_as_list(start))
    return Generation(
        start_tokens=start_tokens,
        eos_tokens=tuple(eos),
        pad_token=int(pad),
        max_new_tokens=_new_tokens(model, len(start_tokens)),
        settings=_settings(config),
    )


@contextlib.contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Of the model's generation_config only the special tokens, while the context lasts."""
    before = model.generation_config
    names = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = transformers.GenerationConfig(
        **{name: getattr(before, name) for name in names}
    )
    try:
        yield
    finally:
        model.generation_config = before


def settings_gaps(generation: Generation) -> list[str]:
    """Settings that decoding would refuse, so that a bundle with them could not caption at all."""
    return [
        f"generation_config.{name} is {value!r}, which decoding does not honour"
        for name, value in unsupported(generation.settings).items()
    ]


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]


def _new_tokens(model: Any, prompt: int) -> int:
    config = model.generation_config
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    if config.max_length is not None:
        return max(int(config.max_length) - prompt, 1)
    positions = getattr(model.config, "max_position_embeddings", None)
    total = _DEFAULT_NEW_TOKENS + prompt
    return (total if positions is None else min(total, int(positions))) - prompt


def _settings(config: Any) -> dict[str, Any]:
    defaults = config._get_default_generation_params()
    settings = {}
    for name, value in config.to_dict().items():
        if name.startswith("_") or name in _RESOLVED | _NEUTRAL or value is None:
            continue
        if name not in defaults or value != defaults[name]:
            settings[name] = value
    return settings
