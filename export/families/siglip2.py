"""transformers ``Siglip2Model``: SigLIP 2 that keeps every picture's aspect ratio (NaFlex).

A picture comes as packed patches (`primelens.patches`): as many as its shape and the budget of
``preprocessor_config.json`` allow. Its positions are resized to its own rows and columns, and what
fills up the budget is masked, so pictures of any shape share a batch. The tap is the vector of the
tower's attention-pooling head, which has one size whatever the picture's.

The source resizes positions by ``interpolate(mode="bilinear", antialias=True)``, picture by
picture: a weighted sum over rows and columns of the table, whose weights follow from the numbers of
rows and columns. Here the same sum is a product of matrices inside the graph. Its rounding differs
in the last bits, which the gate measures with the rest of the tower; the source computes it in
float32 even where everything else is float64.

The fixed-resolution checkpoints of SigLIP 2 have the model type ``siglip``: another family's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from primelens.export.dual_encoder import (
    POOLED,
    DualEncoderReference,
    ImageSide,
    TextSide,
    right_of_the_seam,
    scale_of,
)
from primelens.export.families.clip import RENAMES, whole_model
from primelens.export.registry import Array, ModelSplit, RankSplit, TowerSplit, register_model
from primelens.export.towers import canonical, upstream

__all__ = ["Siglip2"]

_RENAMES = ((r"^head\.", "pooler."), *RENAMES)
_NOTHING = re.compile(r"(?!)")


class _Tower(torch.nn.Module):
    """Packed patches → the pooled vector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.side = model, int(model.config.num_patches**0.5)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        """``[B, 1 + N, P·P·3]`` → ``[B, C]``."""
        rows, columns = pixel_values[:, 0, 0:1], pixel_values[:, 0, 1:2]
        patches = pixel_values[:, 1:]
        place = torch.arange(patches.shape[1], dtype=torch.float32)[None]
        seen = place < rows * columns
        # Padding takes the last place, as good as any: masked values must be numbers, too.
        row = torch.minimum(torch.floor((place + 0.5) / columns), rows - 1)
        column = torch.minimum(place - row * columns, columns - 1)
        down, across = self._shares(row, rows), self._shares(column, columns)
        table = self.model.embeddings.position_embedding.weight
        # One weight for every place of the table, so that one product is the whole resizing.
        shares = (down[:, :, :, None] * across[:, :, None, :]).flatten(2)
        states = self.model.embeddings.patch_embedding(patches) + shares @ table
        # Every place sees the same; the operator wants a row of the mask for each of them.
        mask = seen[:, None, None, :].expand(-1, 1, patches.shape[1], -1)
        for layer in self.model.encoder.layers:
            states = layer(states, mask)
        return (self._pooled(self.model.post_layernorm(states), seen),)

    def _shares(self, place: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """``[B, N, side]``: how much of each of the table's rows a place of ``count`` gets.

        A triangle around the place's centre, as wide as two rows or, where rows are merged, as two
        of the wider ones.
        """
        scale = self.side / count
        centre = (scale * (place + 0.5))[:, :, None]
        reach = torch.clamp(scale, min=1.0)[:, :, None]
        known = torch.arange(self.side, dtype=torch.float32) + 0.5
        shares = torch.relu(1.0 - torch.abs(known - centre) / reach)
        return shares / shares.sum(dim=-1, keepdim=True)

    def _pooled(self, states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        head = self.model.head
        probe = head.probe.repeat(states.shape[0], 1, 1)
        found = head.attention(
            probe, states, states, key_padding_mask=torch.logical_not(seen), need_weights=False
        )[0]
        pooled: torch.Tensor = (found + head.mlp(head.layernorm(found)))[:, 0]
        return pooled


class _Reference(DualEncoderReference):
    """Fed with packed pictures, which are what the source's processor made of them."""

    @torch.no_grad()
    def taps(self, pixels: Array) -> dict[str, Array]:
        """The tower's output, with shapes and mask as the processor gives them."""
        found = []
        for picture in pixels:  # one by one: a large tower needs the memory
            rows, columns = (int(side) for side in picture[0, :2])
            values = self._tensor(picture[None, 1:])
            mask = torch.arange(values.shape[1])[None] < rows * columns
            output = self._model.vision_model(
                pixel_values=values,
                pixel_attention_mask=mask.to(torch.int32),
                spatial_shapes=torch.tensor([[rows, columns]]),
            )
            found.append(output.pooler_output)
        return {POOLED: torch.cat(found).numpy()}


@register_model
class Siglip2:
    """One rank head, ``rank``, on the tower's pooled vector; pictures keep their aspect ratio."""

    name = "siglip2"
    model_types = ("siglip2",)

    def gaps(self, config: Any) -> list[str]:
        vision, text = config.vision_config, config.text_config
        gaps = []
        if vision.num_channels != 3:
            gaps.append(f"vision_config.num_channels is {vision.num_channels}; pictures have 3")
        if not vision.vision_use_head:
            gaps.append("vision_config.vision_use_head is false: nothing is pooled")
        if round(vision.num_patches**0.5) ** 2 != vision.num_patches:
            gaps.append(f"vision_config.num_patches is {vision.num_patches}, no square")
        if text.projection_size != vision.hidden_size:
            sizes = f"{text.projection_size}, the tower's width is {vision.hidden_size}"
            gaps.append(f"text_config.projection_size is {sizes}")
        return gaps

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        return whole_model(transformers.Siglip2Model, folder)

    def split(self, model: Any) -> ModelSplit:
        config = model.vision_model.config
        tower = TowerSplit(
            module=_Tower(model.vision_model),
            architecture={
                "activation": config.hidden_act,
                "heads": config.num_attention_heads,
                "layers": config.num_hidden_layers,
                "norm_epsilon": config.layer_norm_eps,
                "patch_size": config.patch_size,
                "positions": config.num_patches,
            },
            taps={POOLED: canonical(upstream(model.vision_model, _NOTHING), _RENAMES)},
            size=None,
            packed=3 * config.patch_size**2,
        )
        head = RankSplit(
            tap=POOLED,
            image=ImageSide(None),
            text=TextSide(model.text_model, None),
            width=model.config.text_config.projection_size,
            scoring="sigmoid",
            scale=scale_of(model.logit_scale),
            bias=float(model.logit_bias.item()),
            max_positions=model.config.text_config.max_position_embeddings,
            pad_to_max=True,
            tensors=right_of_the_seam(model, "vision_model."),
            reference=_Reference(model, POOLED),
        )
        return ModelSplit(self.name, tower, {"rank": head})
