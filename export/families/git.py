"""GIT (transformers ``GitForCausalLM``): a CLIP-like tower whose projected states stand before the
text.

The picture's block is bidirectional and has no positions; the text is causal, and its positions
start at 0. A model with temporal embeddings reads videos: exactly as many frames as it has
embeddings, each encoded by itself.

Nothing in a checkpoint says whether it was tuned on captions or on questions. A GIT head answers
questions as the continuation of ``[CLS] question``, which is what it does with a prompt, too; the
exporter calls it a caption head unless it is told ``head_kind="answer"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from primelens.errors import UnsupportedError
from primelens.export.decoder_plan import DecoderPlan, Embedding, LmHead
from primelens.export.families.bert import bert_layer
from primelens.export.families.clip import RENAMES, clip_architecture
from primelens.export.families.vision_encoder_decoder import (
    VisionEncoderDecoderReference,
    until_end,
)
from primelens.export.fed_tower import fed
from primelens.export.generation import resolve_generation
from primelens.export.layers import activation_gap, norm, same
from primelens.export.registry import (
    Array,
    HeadSplit,
    ModelSplit,
    Prefix,
    TowerFamily,
    TowerSplit,
    as_array,
    register_model,
    register_tower,
    tower_family,
)
from primelens.export.towers import LastHiddenState, canonical, pair, upstream
from primelens.towers import PrefixedModel

__all__ = ["Git", "GitOverTower", "GitTower"]

_TAP = "last_hidden_state"
_ENCODER = "git.image_encoder."
_NOTHING = re.compile(r"(?!)")


@register_tower
class GitTower:
    """CLIP's image tower with its last normalisation over all states; class token first."""

    name = "git"
    model_types = ("git_vision_model",)

    def gaps(self, config: Any) -> list[str]:
        channels = config.num_channels
        return [] if channels == 3 else [f"vision.num_channels is {channels}; pictures have 3"]

    def split(self, model: Any) -> TowerSplit:
        return TowerSplit(
            module=LastHiddenState(model),
            architecture=clip_architecture(model.config),
            taps={_TAP: canonical(upstream(model.vision_model, _NOTHING), RENAMES)},
            size=pair(model.config.image_size),
        )


@register_model
class Git:
    """One head, ``caption``, which reads the tower's states as a bidirectional prefix."""

    name = "git"
    model_types = ("git",)

    def gaps(self, config: Any) -> list[str]:
        gaps = tower_family(config.vision_config.model_type).gaps(config.vision_config)
        return gaps + activation_gap("hidden_act", config.hidden_act)

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        loaded: Any = transformers.GitForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        return model, report

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.config.vision_config.model_type)
        return _split(model, tower, _prefix_length(model.config))


@register_model
class GitOverTower:
    """The same text side before any supported tower (`primelens.towers.PrefixedModel`)."""

    name = "git_over_tower"
    model_types = ("git_over_tower",)

    def gaps(self, config: Any) -> list[str]:
        gaps = activation_gap("hidden_act", config.hidden_act)
        try:
            family = tower_family(config.tower_config.model_type)
        except UnsupportedError as error:
            return [*gaps, str(error)]
        return gaps + family.gaps(config.tower_config)

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        loaded: Any = PrefixedModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        return model, report

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.config.tower_config.model_type)
        return _split(model, tower, model.config.prefix_length)


def _split(model: Any, tower: TowerFamily, length: int) -> ModelSplit:
    frames = model.config.num_image_with_embedding
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(_ENCODER) and tensor.is_floating_point()
    }
    head = HeadSplit(
        kind="caption",
        tap=_TAP,
        plan=_plan(model),
        projection=None,
        generation=resolve_generation(model),
        tensors=tensors,
        reference=GitReference(model),
        prefix=Prefix(_Projector(model.git), length, False, frames),
    )
    return ModelSplit(tower.name, tower.split(model.git.image_encoder), {"caption": head})


def _prefix_length(config: Any) -> int:
    (height, width), (high, wide) = (
        pair(config.vision_config.image_size),
        pair(config.vision_config.patch_size),
    )
    return ((height // high) * (width // wide) + 1) * (config.num_image_with_embedding or 1)


class _Projector(torch.nn.Module):
    """The tap of a picture, or of all frames, to what stands before the text."""

    def __init__(self, git: Any) -> None:
        super().__init__()
        self.projection = git.visual_projection
        self.temporal = getattr(git, "img_temporal_embedding", None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[B, L, C]`` or ``[B, F, L, C]`` → ``[B, P, width]``."""
        if self.temporal is not None:
            states = states + torch.cat(list(self.temporal))
            states = states.flatten(1, 2)
        projected: torch.Tensor = self.projection(states)
        return projected


def _plan(model: Any) -> DecoderPlan:
    config, embeddings = model.config, model.git.embeddings
    tokens = as_array(embeddings.word_embeddings.weight)
    return DecoderPlan(
        embedding=Embedding(
            tokens,
            as_array(embeddings.position_embeddings.weight),
            norm=norm(embeddings.LayerNorm),
        ),
        layers=tuple(bert_layer(layer, config) for layer in model.git.encoder.layer),
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        norm_first=False,
        final_norm=None,
        lm_head=LmHead(
            weight=same(as_array(model.output.weight), tokens), bias=as_array(model.output.bias)
        ),
    )


class GitReference(VisionEncoderDecoderReference):
    """The source model answering the gate's questions, fed with what its tower said."""

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        frames = pixels.flatten(0, -4)  # of pictures nothing, of videos all frames
        states: torch.Tensor = self._model.git.image_encoder(pixel_values=frames).last_hidden_state
        return states.reshape(*pixels.shape[:-3], *states.shape[1:])

    @torch.no_grad()
    def logits(self, tap: Array, tokens: Array) -> Array:
        """Teacher-forced, in one pass without a cache, from what `taps` returned."""
        with fed(self._model.git, "image_encoder", self._tensor(tap)) as pixels:
            output = self._model(
                input_ids=torch.from_numpy(tokens), pixel_values=pixels, use_cache=False
            )
        result: Array = output.logits[:, -tokens.shape[1] :].numpy()
        return result

    def _generate(
        self, states: torch.Tensor, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[int]]:
        generation = resolve_generation(self._model)
        start, ends = [*generation.start_tokens, *prompt], set(generation.eos_tokens)
        ids = torch.tensor([start] * len(states))
        with fed(self._model.git, "image_encoder", states) as pixels:
            rows = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                **settings,
            )
        return [until_end(row[len(start) :].tolist(), ends) for row in rows]
