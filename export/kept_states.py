"""Kept embeddings for a transformers model: its own ``generate``, without its tower.

An encoder-decoder model takes them as ``encoder_outputs=``::

    identity = identify("checkpoint").taps["last_hidden_state"]     # primelens.export.lock
    images = list(primelens.load("bundle", cache=kept).encode_batch(paths))
    model.generate(encoder_outputs=encoder_outputs(images, identity=identity))

BLIP-2's language model, as ``inputs_embeds=``, with the picture in front of the text::

    model.language_model.generate(**inputs_embeds(model, images, identity=identity))

A model that takes a picture as pixels only, as GIT does, has its tower replaced for a while::

    with kept_tower(model, images, identity=identity) as pixel_values:
        model.generate(pixel_values=pixel_values)

So whoever evaluates or tunes in PyTorch reads what the runtime has kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from primelens.errors import InputError, UnsupportedError
from primelens.export.fed_tower import fed
from primelens.results import EncodedImage, Failure

__all__ = ["encoder_outputs", "inputs_embeds", "kept_tower"]

_TAP = "last_hidden_state"
Images = Sequence[EncodedImage | Failure]


def encoder_outputs(
    images: Images,
    *,
    identity: str,
    tap: str = _TAP,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> BaseModelOutput:
    """What an encoder-decoder model's ``encoder_outputs=`` takes, for one batch.

    Args:
        images: as a `primelens.Model` encoded or found them.
        identity: of the model's own tower at the tap; `primelens.export.lock.identify` computes it.
        tap: which of the tower's outputs the decoder attends to.
        dtype, device: of the model.

    Returns:
        ``last_hidden_state`` ``[B, L, C]``.

    Raises:
        InputError: a picture could not be read, or comes from another tower; names every one.
    """
    states = _states(images, identity, tap)
    return BaseModelOutput(last_hidden_state=states.to(device=device, dtype=dtype))


@torch.no_grad()
def inputs_embeds(
    model: Any,
    images: Images,
    *,
    identity: str,
    input_ids: torch.Tensor | None = None,
    tap: str = _TAP,
) -> dict[str, torch.Tensor]:
    """What the language model's ``generate`` takes, for one batch: picture, then text.

    Args:
        model: a ``Blip2ForConditionalGeneration`` with a decoder-only language model.
        images: as a `primelens.Model` encoded or found them.
        identity: of the model's own tower at the tap.
        input_ids: ``[B, T]`` int64, the text behind the pictures without any placeholders; only the
            start token if not given.
        tap: which of the tower's outputs is read.

    Returns:
        ``inputs_embeds`` ``[B, P + T, width]`` in the model's dtype, and ``attention_mask``
        ``[B, P + T]``. ``generate`` returns new tokens only.

    Raises:
        InputError: a picture could not be read, or comes from another tower; names every one.
        UnsupportedError: the model is none of those.
    """
    config = model.config
    if config.model_type != "blip-2" or not config.use_decoder_only_language_model:
        raise UnsupportedError(
            f"The language model of {type(model).__name__} takes no picture as inputs_embeds.",
            remedy="Use kept_tower, or encoder_outputs where the model is an encoder-decoder.",
        )
    embed = model.get_input_embeddings()
    states = _states(images, identity, tap).to(embed.weight.device, embed.weight.dtype)
    if input_ids is None:
        input_ids = torch.full((len(states), 1), config.text_config.bos_token_id)
    found = model.qformer(
        query_embeds=model.query_tokens.expand(len(states), -1, -1),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(
            states.shape[:-1], dtype=torch.long, device=states.device
        ),
    ).last_hidden_state
    picture = model.language_projection(found.to(states.dtype))
    whole = torch.cat([picture, embed(input_ids.to(states.device))], dim=1)
    mask = torch.ones(whole.shape[:-1], dtype=torch.long, device=states.device)
    return {"inputs_embeds": whole, "attention_mask": mask}


@contextlib.contextmanager
def kept_tower(
    model: Any, images: Images, *, identity: str, tap: str = _TAP
) -> Iterator[torch.Tensor]:
    """Let a model's tower say what is kept, while the context lasts.

    Args:
        model: a ``GitForCausalLM``, ``Blip2ForConditionalGeneration`` or
            ``BlipForConditionalGeneration``.
        images: as a `primelens.Model` encoded or found them; all pictures, or all videos.
        identity: of the model's own tower at the tap.
        tap: which of the tower's outputs the model reads.

    Yields:
        The ``pixel_values`` to call the model with: the numbers of the pictures in this batch.

    Raises:
        InputError: a picture could not be read, or comes from another tower; names every one.
        UnsupportedError: the model is none of those.
    """
    places = {"git": ("git", "image_encoder"), "blip-2": ("", "vision_model"),
              "blip": ("", "vision_model")}  # fmt: skip
    if model.config.model_type not in places:
        raise UnsupportedError(f"Where the tower of {type(model).__name__} lies is not known.")
    owner, name = places[model.config.model_type]
    states = _states(images, identity, tap).to(model.device, model.dtype)
    with fed(getattr(model, owner) if owner else model, name, states) as pixel_values:
        yield pixel_values


def _states(images: Images, identity: str, tap: str) -> torch.Tensor:
    """``[B, L, C]`` (of videos ``[B, F, L, C]``) float32."""
    problems = []
    states = []
    for image in images:
        if isinstance(image, Failure):
            problems.append(f"{image.image}: {image.error}")
        elif image.identities.get(tap) != identity:
            found = image.identities.get(tap, "no such tap")
            problems.append(
                f"{image.name}: of the tower {found[:12]}, the model's is {identity[:12]}"
            )
        else:
            states.append(image.taps[tap])
    if problems or not states:
        raise InputError(
            "These pictures cannot be handed to the model:" if problems else "No picture is given.",
            problems=problems,
            remedy="Encode them with a bundle that has the model's own tower." if problems else "",
        )
    return torch.from_numpy(np.stack(states))
