"""From a recipe's model to a whole model with its tokenizer and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from primelens.errors import CheckpointError, OptionError
from primelens.preprocessing import Preprocessing
from primelens.processor_config import from_processor_config
from primelens.towers import (
    MatchingConfig,
    MatchingModel,
    PooledTower,
    PooledTowerConfig,
    PrefixedConfig,
    PrefixedModel,
)
from primelens.tune.captioner import train_tokenizer
from primelens.tune.objectives import LOG_SCALE_START, SIGMOID_BIAS_START
from primelens.tune.textside.recipe import Fresh, Pixels, Recipe
from primelens.tune.textside.seam import Seam, find_seam

__all__ = ["Parts", "assemble"]

_WHOLE: dict[str, type[PreTrainedModel]] = {
    "vision-encoder-decoder": VisionEncoderDecoderModel,
    "git": transformers.GitForCausalLM,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
    "image_text_matching": MatchingModel,
    "git_over_tower": PrefixedModel,
}
_FITTING = {
    "caption": ("vision-encoder-decoder", "git", "git_over_tower"),
    "answer": ("vision-encoder-decoder", "git", "git_over_tower"),
    "lit": ("vision-text-dual-encoder",),
    "siglip": ("vision-text-dual-encoder",),
    "match": ("image_text_matching",),
}
_PREPROCESSOR = "preprocessor_config.json"


@dataclass
class Parts:
    """A whole model and what belongs to it.

    Attributes:
        model: float32, with its tower.
        seam: where its tower is.
        processor: the image processor's settings, as they go into the checkpoint.
        preprocessing: the same as a specification.
    """

    model: PreTrainedModel
    seam: Seam
    tokenizer: PreTrainedTokenizerBase
    processor: dict[str, Any]
    preprocessing: Preprocessing


def assemble(recipe: Recipe, texts: Callable[[], Iterable[str]]) -> Parts:
    """Load or build what a recipe tunes; what is fresh hangs on its seed.

    Args:
        recipe: a checked recipe.
        texts: training texts, asked for where a tokenizer has to be trained.

    Raises:
        CheckpointError: a checkpoint is missing, incomplete, or of the wrong kind.
        OptionError: the parts do not fit together.
    """
    choice = recipe.model
    torch.manual_seed(recipe.training.seed)
    folder = Path(choice.checkpoint or choice.tower or "")
    _config(folder)  # whether there is a checkpoint at all
    processor = _processor(recipe.preprocessing, folder)
    spec = from_processor_config(processor)
    if choice.checkpoint is not None:
        model = _load_whole(folder, recipe.objective)
        tokenizer = _tokenizer(Path(choice.tokenizer or folder))
    else:
        tower = _load_tower(folder)
        source = choice.tokenizer or choice.text
        tokenizer = (
            train_tokenizer(texts(), choice.fresh.vocabulary, choice.fresh.positions)
            if choice.fresh is not None and source is None
            else _tokenizer(Path(source or ""))
        )
        model = (
            _prefixed(recipe, tower, tokenizer, spec)
            if choice.fusion == "prefix"
            else _build(recipe, tower, tokenizer)
        )
    if recipe.objective == "siglip":
        start = getattr(model.config, "logit_bias", SIGMOID_BIAS_START)
        model.logit_bias = nn.Parameter(torch.tensor(float(start)))
    return Parts(model.eval(), find_seam(model), tokenizer, processor, spec)


def _load_whole(folder: Path, objective: str) -> PreTrainedModel:
    kind = _config(folder).model_type
    if kind not in _FITTING[objective]:
        raise CheckpointError(
            f"{folder} is a {kind!r}, which cannot be tuned for {objective!r}.",
            remedy=f"Give one of: {', '.join(_FITTING[objective])}.",
        )
    return _loaded(_WHOLE[kind], folder)


def _load_tower(folder: Path) -> PreTrainedModel:
    """A bare tower, or that of a whole model."""
    kind = _config(folder).model_type
    if kind in _WHOLE:
        return find_seam(_loaded(_WHOLE[kind], folder)).tower
    return _loaded(AutoModel, folder)


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no config.json.",
            remedy="Give a folder that save_pretrained wrote.",
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the configuration's checks raise
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error


def _loaded(kind: Any, folder: Path, **settings: Any) -> PreTrainedModel:
    try:
        model: PreTrainedModel = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            **settings,
        )
    except Exception as error:  # transformers raises many unrelated classes
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot load {folder}: {error}",
            remedy="Check that the weights belong to its config.json.",
        ) from error
    return model


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the tokenizer's checks raise
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be read: {error}",
            remedy="Name one with model.tokenizer.",
        ) from error
    if found.pad_token_id is None:  # GPT-2 has none; what is padded is never learned nor read
        found.pad_token = found.eos_token
    return found


def _processor(pixels: Pixels | None, folder: Path) -> dict[str, Any]:
    """The image processor's settings: the recipe's, or those beside the tower."""
    if pixels is not None:
        resample = {"nearest": 0, "bilinear": 2, "bicubic": 3}[pixels.resample]
        return {
            "image_processor_type": "ViTImageProcessorPil",
            "do_resize": True,
            "size": {"height": pixels.size, "width": pixels.size},
            "resample": resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(pixels.mean),
            "image_std": list(pixels.std),
        }
    path = folder / _PREPROCESSOR
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read, so it is unknown what pictures the tower wants: {error}",
            remedy="Save the image processor beside the tower, or declare [preprocessing].",
        ) from error
    return settings


def _build(
    recipe: Recipe, tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    if recipe.contrastive:
        return _dual_encoder(recipe, tower, tokenizer)
    decoder = _decoder(recipe, tokenizer)
    if recipe.objective == "match":
        base: Any = decoder.base_model
        return MatchingModel(MatchingConfig(tower.config, base.config), tower, base)
    model = VisionEncoderDecoderModel(encoder=tower, decoder=decoder)
    start, end = _ends(tokenizer)
    model.config.decoder_start_token_id = start
    model.config.eos_token_id = end
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        max_new_tokens=recipe.model.max_new_tokens,
        decoder_start_token_id=start,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def _prefixed(
    recipe: Recipe,
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: Preprocessing,
) -> PreTrainedModel:
    """A fresh GIT whose prefix is what the tower says."""
    fresh = recipe.model.fresh
    assert fresh is not None  # the recipe was checked
    start, end = _ends(tokenizer)
    if spec.output_shape is None:
        raise OptionError(
            "The preprocessing yields pictures of varying size; a prefix has one length.",
            remedy="Declare [preprocessing] with a fixed size.",
        )
    blank = torch.zeros(1, *spec.output_shape)
    with torch.no_grad():
        length = tower.eval()(pixel_values=blank).last_hidden_state.shape[1]
    special = {
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = PrefixedConfig(
        tower.config,
        length,
        vocab_size=len(tokenizer),
        hidden_size=fresh.width,
        num_hidden_layers=fresh.layers,
        num_attention_heads=fresh.heads,
        intermediate_size=4 * fresh.width,
        max_position_embeddings=fresh.positions,
        hidden_dropout_prob=fresh.dropout,
        attention_probs_dropout_prob=fresh.dropout,
        **special,
    )
    model = PrefixedModel(config, tower)
    model.generation_config = GenerationConfig(
        max_new_tokens=recipe.model.max_new_tokens, **special
    )
    return model


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens that start and end a text."""
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.cls_token_id
    end = tokenizer.eos_token_id
    if end is None:
        end = tokenizer.sep_token_id
    if start is None or end is None:
        raise OptionError(
            "The tokenizer has no token that starts a text, or none that ends it.",
            remedy="Give a tokenizer with bos and eos, or cls and sep.",
        )
    return int(start), int(end)


def _decoder(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    fresh = recipe.model.fresh
    if fresh is None:
        settings = {"add_cross_attention": True, "is_decoder": True}
        return _loaded(AutoModelForCausalLM, Path(recipe.model.text or ""), **settings)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=fresh.positions,
            n_embd=fresh.width,
            n_layer=fresh.layers,
            n_head=fresh.heads,
            add_cross_attention=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_pdrop=fresh.dropout,
            embd_pdrop=fresh.dropout,
            resid_pdrop=fresh.dropout,
        )
    )
    if recipe.training.precision == "bf16":
        # The fused operator's way back takes half as long again on short texts in bf16.
        model.set_attn_implementation("eager")
    return model


def _dual_encoder(
    recipe: Recipe, tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    choice = recipe.model
    vision = tower
    if not _has_vector(tower):
        vision = PooledTower(PooledTowerConfig(tower.config, choice.pooling), tower)
    text = (
        _bert(choice.fresh, tokenizer)
        if choice.fresh is not None
        else _loaded(AutoModel, Path(choice.text or ""))
    )
    width = choice.projection if choice.image_head else int(vision.config.hidden_size)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=width, logit_scale_init_value=LOG_SCALE_START
    )
    model = VisionTextDualEncoderModel(config, vision, text)
    if not choice.image_head:
        # The model has a projection whatever is wanted; one that changes nothing, and never will.
        with torch.no_grad():
            model.visual_projection.weight.copy_(torch.eye(width))
        model.visual_projection.requires_grad_(False)
    return model


def _has_vector(tower: PreTrainedModel) -> bool:
    """Whether a tower pools its states by weights of its own."""
    return any(hasattr(tower, name) for name in ("pooler", "post_layernorm", "head")) or any(
        name.endswith(("post_layernorm.weight", "pooler.dense.weight"))
        for name, _ in tower.named_parameters()
    )


def _bert(fresh: Fresh, tokenizer: PreTrainedTokenizerBase) -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=fresh.width,
            num_hidden_layers=fresh.layers,
            num_attention_heads=fresh.heads,
            intermediate_size=4 * fresh.width,
            max_position_embeddings=fresh.positions,
            type_vocab_size=1,
            pad_token_id=tokenizer.pad_token_id,
            hidden_dropout_prob=fresh.dropout,
            attention_probs_dropout_prob=fresh.dropout,
        )
    )
