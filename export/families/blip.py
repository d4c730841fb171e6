"""transformers' BLIP: ``BlipForConditionalGeneration``, ``BlipForQuestionAnswering`` and
``BlipForImageTextRetrieval``.

All have BLIP's image tower, tapped after its final normalisation; the first two have a BERT-like
decoder. The captioner's attends to the picture. The answerer's attends to a question, which an
encoder of the decoder's own shape has read with the picture before.

How their ``generate`` behaves (transformers 5.23, `modeling_blip.py`): sequences start with
``text_config.bos_token_id`` and end at ``sep_token_id``, whatever generation_config.json says; all
other settings are those that the *decoder* derives from ``text_config``. A prompt comes with the
tokenizer's special tokens around it: ``generate`` puts the start token in the place of the first
and drops the last. An answer attends to every token of its question, padding included; so it is
mirrored as ``generate`` gives it for a question by itself.

Retrieval has two scores. "itc" is the cosine of two projected class tokens, the picture's and that
of the text read alone; the checkpoint has no temperature. "itm" is two logits from the class token
of the text read with the picture. Both read the same ids.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling

from primelens.errors import UnsupportedError
from primelens.export.blip_reference import BlipAnswers, BlipCaptions, BlipScores
from primelens.export.decoder_plan import DecoderPlan, Embedding, LmHead, Stack
from primelens.export.dual_encoder import ImageSide, TextSide
from primelens.export.families.bert import bert_layer
from primelens.export.generation import resolve_generation
from primelens.export.layers import activation, activation_gap, linear, norm, same
from primelens.export.matching_graph import MatchingPlan
from primelens.export.question_graph import QuestionPlan
from primelens.export.registry import (
    HeadSplit,
    ModelSplit,
    RankSplit,
    TowerSplit,
    as_array,
    register_model,
    register_tower,
    tower_family,
)
from primelens.export.towers import LastHiddenState, canonical, pair, upstream
from primelens.manifest import Generation

__all__ = ["RENAMES", "Blip", "BlipTower", "text_stack"]

_TAP = "last_hidden_state"
RENAMES = (
    (r"^encoder\.layers\.(\d+)\.", r"layer.\1."),
    (r"self_attn\.projection\.", "attention.out."),
    (r"self_attn\.", "attention."),
    (r"layer_norm1\.", "attention.norm."),
    (r"layer_norm2\.", "mlp.norm."),
    (r"mlp\.fc1\.", "mlp.up."),
    (r"mlp\.fc2\.", "mlp.down."),
    (r"^embeddings\.patch_embedding\.", "patch."),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "positions"),
    (r"^post_layernorm\.", "norm."),
)
_NOTHING = re.compile(r"(?!)")


@register_tower
class BlipTower:
    """Class token first, then the patches row by row; all of it normalised."""

    name = "blip"
    model_types = ("blip_vision_model",)

    def gaps(self, config: Any) -> list[str]:
        height, width = pair(config.image_size)
        return [] if height == width else [f"vision.image_size is {config.image_size}, no square"]

    def split(self, model: Any) -> TowerSplit:
        config = model.config
        return TowerSplit(
            module=LastHiddenState(model),
            architecture={
                "activation": config.hidden_act,
                "heads": config.num_attention_heads,
                "image_size": list(pair(config.image_size)),
                "layers": config.num_hidden_layers,
                "norm_epsilon": config.layer_norm_eps,
                "patch_size": list(pair(config.patch_size)),
            },
            taps={_TAP: canonical(upstream(model, _NOTHING), RENAMES)},
            size=pair(config.image_size),
        )


@register_model
class Blip:
    """One head on the tap ``last_hidden_state``: ``caption``, ``answer`` or ``rank``."""

    name = "blip"
    model_types = ("blip",)

    def gaps(self, config: Any) -> list[str]:
        gaps = tower_family(config.vision_config.model_type).gaps(config.vision_config)
        gaps += activation_gap("text_config.hidden_act", config.text_config.hidden_act)
        if not config.text_config.is_decoder:
            gaps.append("text_config.is_decoder is false: the text would not see the image")
        known = tuple(_SPLITS)
        if not set(known) & set(config.architectures or ()):
            gaps.append(f"architectures is {config.architectures}; supported: {', '.join(known)}")
        return gaps

    def load(self, folder: str) -> tuple[Any, Mapping[str, Any]]:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        (name,) = (name for name in _SPLITS if name in config.architectures)
        loaded: tuple[Any, Mapping[str, Any]] = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        return loaded

    def split(self, model: Any) -> ModelSplit:
        tower = tower_family(model.vision_model.config.model_type)
        heads = _SPLITS[type(model).__name__](model)
        return ModelSplit(tower.name, tower.split(model.vision_model), heads)

    def end_with(self, folder: Path, model: Any, token: int) -> None:
        """Let texts end at ``token``, in the checkpoint's files and in the model."""
        path = folder / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["text_config"]["sep_token_id"] = token
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        model.config.text_config.sep_token_id = token


def _captioner(model: Any) -> dict[str, HeadSplit]:
    head = HeadSplit(
        kind="caption",
        tap=_TAP,
        plan=_decoder(model.text_decoder),
        projection=None,
        generation=_generation(model),
        tensors=_tensors(model),
        reference=BlipCaptions(model),
        prompt_frame=(1, 1),
    )
    return {"caption": head}


def _answerer(model: Any) -> dict[str, HeadSplit]:
    config = model.config.text_config
    head = HeadSplit(
        kind="answer",
        tap=_TAP,
        plan=_decoder(model.text_decoder),
        projection=None,
        generation=_generation(model),
        tensors=_tensors(model),
        reference=BlipAnswers(model),
        question=QuestionPlan(text_stack(model.text_encoder, config), config.pad_token_id or 0),
    )
    return {"answer": head}


class _FirstState(torch.nn.Module):
    """The class token's state."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states[:, 0]


class _TextAlone(torch.nn.Module):
    """The text encoder without a picture, as `TextSide` calls a model."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])


def _ranker(model: Any) -> dict[str, RankSplit]:
    config = model.config.text_config
    head = RankSplit(
        tap=_TAP,
        image=ImageSide(model.vision_proj, _FirstState()),
        text=TextSide(_TextAlone(model.text_encoder), model.text_proj),
        width=model.text_proj.out_features,
        scoring="softmax",
        scale=1.0,
        bias=0.0,
        max_positions=config.max_position_embeddings,
        pad_to_max=False,
        tensors=_tensors(model),
        reference=BlipScores(model),
        matching=MatchingPlan(text_stack(model.text_encoder, config), linear(model.itm_head)),
    )
    return {"rank": head}


_SPLITS: dict[str, Callable[[Any], Mapping[str, HeadSplit | RankSplit]]] = {
    "BlipForConditionalGeneration": _captioner,
    "BlipForQuestionAnswering": _answerer,
    "BlipForImageTextRetrieval": _ranker,
}


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Everything right of the seam."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("vision_model.") and tensor.is_floating_point()
    }


def _generation(model: Any) -> Generation:
    """Decoding defaults, as ``generate`` passes them to the decoder's own ``generate``."""
    config, resolved = model.config.text_config, resolve_generation(model.text_decoder)
    if config.bos_token_id is None:
        raise UnsupportedError(
            "text_config.bos_token_id is not set, so texts have no start.",
            remedy="Set it in config.json.",
        )
    ends = resolved.eos_tokens if config.sep_token_id is None else (config.sep_token_id,)
    pad = resolved.pad_token if config.pad_token_id is None else config.pad_token_id
    return dataclasses.replace(
        resolved, start_tokens=(config.bos_token_id,), eos_tokens=ends, pad_token=pad
    )


def text_stack(model: Any, config: Any) -> Stack:
    """A ``BlipTextModel``: embedding and layers."""
    embeddings = model.embeddings
    return Stack(
        embedding=Embedding(
            as_array(embeddings.word_embeddings.weight),
            as_array(embeddings.position_embeddings.weight),
            norm=norm(embeddings.LayerNorm),
        ),
        layers=tuple(bert_layer(layer, config) for layer in model.encoder.layer),
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        norm_first=False,
        final_norm=None,
    )


def _decoder(model: Any) -> DecoderPlan:
    """A ``BlipTextLMHeadModel``."""
    stack, head = text_stack(model.bert, model.config), model.cls.predictions
    act = activation(model.config.hidden_act)
    return DecoderPlan(
        **{field.name: getattr(stack, field.name) for field in dataclasses.fields(stack)},
        lm_head=LmHead(
            weight=same(as_array(head.decoder.weight), stack.embedding.tokens),
            bias=as_array(head.decoder.bias),
            transform=(linear(head.transform.dense), act, norm(head.transform.LayerNorm)),
        ),
    )
