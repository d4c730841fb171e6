"""The default captioner before it has learned anything: its parts and how they are saved.

A :class:`~primelens.towers.FeatureMapTower` over a small ResNet, a GPT-2 decoder that
cross-attends its 64 states, a byte-level BPE of captions and questions, and ViT's processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    VisionEncoderDecoderModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from primelens.towers import FeatureMapTower, FeatureMapTowerConfig
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.world import scene

PICTURE_SIZE = 128
GRID = 8
WIDTH = 192
POSITIONS = 64
VOCABULARY = 768
MAX_NEW_TOKENS = 40
PAD, BOS, EOS = 0, 1, 2
_SPECIAL = ("<pad>", "<bos>", "<eos>")


def build_tower() -> FeatureMapTower:
    """A fresh tower: ``[B, 3, 128, 128]`` to ``[B, 64, 192]``, 1.5 M parameters."""
    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[48, 96, WIDTH], depths=[1, 2, 2], layer_type="basic"
    )
    tower = FeatureMapTower(FeatureMapTowerConfig(backbone, grid_size=(GRID, GRID)))
    with torch.no_grad():
        tower.position_table.add_(position_waves())
    return tower


def position_waves() -> torch.Tensor:
    """Sines and cosines of row and column, ``[64, 192]``: what the position table starts from.

    A table that starts near zero stays twenty times weaker than the states it is added to, and a
    decoder cannot tell left from right by it.
    """
    quarter = WIDTH // 4
    angles = torch.arange(GRID)[:, None] * torch.logspace(0.4, -1.2, quarter)[None, :]
    wave = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = wave[:, None, :].expand(GRID, GRID, -1)
    columns = wave[None, :, :].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], dim=2).reshape(GRID * GRID, WIDTH)


def build_decoder(dropout: float = 0.0) -> GPT2LMHeadModel:
    """A fresh decoder: 3 layers of GPT-2 with cross-attention."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=3,
            n_head=3,
            add_cross_attention=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            attn_pdrop=dropout,
            embd_pdrop=dropout,
            resid_pdrop=dropout,
        )
    )


def train_tokenizer(
    texts: Iterable[str], entries: int = VOCABULARY, positions: int = POSITIONS
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most so many entries that adds no special tokens by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL[PAD],
        bos_token=_SPECIAL[BOS],
        eos_token=_SPECIAL[EOS],
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def scene_texts(count: int, seed: int) -> Iterator[str]:
    """Captions and questions of ``count`` train scenes, what the tokenizer is trained on."""
    for index in range(count):
        shown = scene("train", index, seed)
        yield caption(shown)
        for question in questions(shown):
            yield question.text
            yield question.answer


def caption_labels(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Captions as labels: ids, the end token, then -100.

    Returns:
        ``[B, T]`` int64, ``T`` the longest of the batch.
    """
    ids = [[*row, EOS] for row in tokenizer(texts)["input_ids"]]
    labels = torch.full((len(ids), max(map(len, ids))), -100)
    for row, values in zip(labels, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    return labels


def decoder_inputs(labels: torch.Tensor) -> torch.Tensor:
    """Labels ``[B, T]`` shifted right behind the start token, padding made of ``PAD``."""
    inputs = torch.full_like(labels, BOS)
    inputs[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == -100, PAD)
    return inputs


def assemble(tower: FeatureMapTower, decoder: GPT2LMHeadModel) -> VisionEncoderDecoderModel:
    """Tower and decoder as one ordinary model whose defaults decode greedily."""
    model = VisionEncoderDecoderModel(encoder=tower, decoder=decoder)
    model.config.decoder_start_token_id = BOS
    model.config.pad_token_id = PAD
    model.config.eos_token_id = EOS
    model.generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        decoder_start_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        num_beams=1,
        do_sample=False,
    )
    return model


def build_processor() -> ViTImageProcessorPil:
    """Resize to 128 by 128 (bilinear), then to -1 .. 1."""
    return ViTImageProcessorPil(
        size={"height": PICTURE_SIZE, "width": PICTURE_SIZE},
        resample=2,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_checkpoint(
    folder: Path, model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write an ordinary transformers checkpoint: weights, configs, tokenizer, processor."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_processor().save_pretrained(folder)


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round every float32 weight to a value that float16 holds too, so storing it is lossless.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    for name, parameter in module.named_parameters():
        rounded = parameter.half().float()
        if not torch.isfinite(rounded).all():
            raise ValueError(f"{name} has values beyond float16")
        parameter.copy_(rounded)
