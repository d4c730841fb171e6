"""Kept embeddings for a transformers model: its own ``generate``, without its tower.

::

    identity = identify("checkpoint").taps["last_hidden_state"]     # primelens.export.lock
    images = list(primelens.load("bundle", cache=kept).encode_batch(paths))
    model.generate(encoder_outputs=encoder_outputs(images, identity=identity))

So whoever evaluates or tunes in PyTorch reads what the runtime has kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from primelens.errors import InputError
from primelens.results import EncodedImage, Failure

__all__ = ["encoder_outputs"]


def encoder_outputs(
    images: Sequence[EncodedImage | Failure],
    *,
    identity: str,
    tap: str = "last_hidden_state",
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
    stacked = torch.from_numpy(np.stack(states))
    return BaseModelOutput(last_hidden_state=stacked.to(device=device, dtype=dtype))
