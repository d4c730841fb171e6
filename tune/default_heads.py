"""Two more heads for the default model: ``python -m primelens.tune.default_heads``.

``answer`` answers questions about a scene: a small GPT-2 that reads the question as its prompt and
cross-attends to the tower's states. ``rank`` scores texts against a scene: a small BERT and an
attention pooling over the same states, by locked-image tuning. Both are tuned on what the default
bundle's tower said about drawn scenes (:mod:`primelens.tune.kept_scenes`); no tower runs. A run
stops and goes on like :mod:`primelens.tune.default_model`'s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

import primelens
from primelens.head_checkpoint import of_tap, write
from primelens.manifest import TowerSpec
from primelens.towers import FeatureMapTower, PooledTower, PooledTowerConfig
from primelens.tune.answer_lessons import AnswerLessons, mean_cells
from primelens.tune.captioner import (
    BOS,
    EOS,
    PAD,
    POSITIONS,
    VOCABULARY,
    build_processor,
    round_to_half,
)
from primelens.tune.kept_scenes import KeptScenes, SceneChoice, keep_scenes, open_scenes
from primelens.tune.lock import locked
from primelens.tune.objectives import LOG_SCALE_START, lit_loss
from primelens.tune.running import Run, append, schedule
from primelens.tune.scenes.language import caption, noun_phrase
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.world import Scene, scene

TAP = "last_hidden_state"
WIDTH = 128
_PROTOTYPE_SCENES = 8000


@dataclass(frozen=True)
class HeadStage:
    """How a head is tuned.

    Attributes:
        steps: optimiser steps, the rate's half cosine. A run that is over goes on where more are
            asked for, at the rate of that place of the longer cosine.
        batch_size: pictures a step.
        rate: peak learning rate of AdamW.
        threads: torch's threads.
    """

    steps: int
    batch_size: int
    rate: float = 1.5e-3
    warm_up: int = 100
    weight_decay: float = 0.05
    averaging: float = 0.995
    smoothing: float = 0.02
    seed: int = 0
    threads: int = 1
    save_every: int = 100


ANSWER = HeadStage(steps=4500, batch_size=64, rate=1e-3)
RANK = HeadStage(steps=3000, batch_size=256, rate=1e-3)


def build_answer(tower: FeatureMapTower) -> VisionEncoderDecoderModel:
    """A fresh answer head on the tower: 3 layers of GPT-2, 0.9 M parameters."""
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=3,
            n_head=4,
            add_cross_attention=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )
    decoder.set_attn_implementation("eager")  # which hands out its weights
    model = VisionEncoderDecoderModel(encoder=tower, decoder=decoder)
    model.config.decoder_start_token_id = BOS
    model.config.pad_token_id = PAD
    model.config.eos_token_id = EOS
    model.generation_config = GenerationConfig(
        max_new_tokens=16,
        decoder_start_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        num_beams=1,
        do_sample=False,
    )
    return model


def build_rank(tower: FeatureMapTower) -> VisionTextDualEncoderModel:
    """A fresh rank head on the tower: pooling, projections and 2 layers of BERT, 0.6 M."""
    vision = PooledTower(PooledTowerConfig(tower.config), tower)
    text = BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=POSITIONS,
            type_vocab_size=1,
            pad_token_id=PAD,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config,
        text.config,
        projection_dim=WIDTH,
        logit_scale_init_value=LOG_SCALE_START,
    )
    return VisionTextDualEncoderModel(config, vision, text)


class RankLessons:
    """One text for each picture of a step: a caption, or the bare name of what stands alone."""

    def __init__(
        self, model: VisionTextDualEncoderModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self._model, self._tokenizer = model, tokenizer

    def text(self, shown: Scene, draw: np.random.Generator) -> str:
        """What is said of a scene."""
        if len(shown.groups) > 1 or draw.random() < 0.4:
            return caption(shown, int(draw.integers(64)))
        group = shown.groups[0]
        name = noun_phrase(group.kind, group.count)
        if group.count == 1 and draw.random() < 0.4:
            name = KINDS[group.kind].singular
        return f"a picture of {name}" if draw.random() < 0.3 else name

    def loss(
        self, states: torch.Tensor, scenes: list[Scene], draw: np.random.Generator, step: int
    ) -> torch.Tensor:
        """Of one step; of scenes with one and the same thing alone only the first is taken."""
        del step  # all of its lessons are alike
        seen: set[int] = set()
        kept = []
        for place, shown in enumerate(scenes):
            kind = shown.groups[0].kind
            if len(shown.groups) == 1 and kind in seen:
                continue  # the text of one would be true of the other, and be called false
            seen |= {kind} if len(shown.groups) == 1 else set()
            kept.append(place)
        texts = [self.text(scenes[place], draw) for place in kept]
        model = self._model
        tokens = self._tokenizer(texts, padding=True, return_tensors="pt")
        text = model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        vision: Any = model.vision_model
        pooled = vision.pooling(states[kept])
        return lit_loss(
            model.visual_projection(pooled), model.text_projection(text), model.logit_scale
        )

    def figures(self) -> Mapping[str, float]:
        """None beside the loss."""
        return {}


def tune_head(
    folder: Path, head: torch.nn.Module, lessons: AnswerLessons | RankLessons, plan: HeadPlan
) -> None:
    """Tune, or go on with it, and leave the running mean of the weights in ``head``."""
    stage, kept = plan.stage, plan.kept
    torch.set_num_threads(stage.threads)
    run = Run(folder / "head.pt", head, stage.rate, stage.weight_decay)
    began = time.monotonic()
    head.train()
    while run.step < stage.steps:
        draw = np.random.default_rng([stage.seed, run.step])
        rows = np.sort(draw.choice(len(kept.indices), stage.batch_size, replace=False))
        scenes = [scene(kept.choice.split, int(i), kept.choice.seed) for i in kept.indices[rows]]
        states = torch.from_numpy(kept.states[rows]).float()
        loss = lessons.loss(states, scenes, draw, run.step)
        run.update(loss, schedule(run.step, stage.steps, stage.warm_up), stage.averaging)
        if run.step % 25 == 0:
            took = {"step": run.step, "seconds": round(time.monotonic() - began, 1)}
            append(
                folder / "head.jsonl", took | {"loss": round(loss.item(), 4), **lessons.figures()}
            )
        if run.step % stage.save_every == 0 or run.step == stage.steps:
            run.save()
    run.finish()


@dataclass(frozen=True)
class HeadPlan:
    """What a head is tuned on."""

    stage: HeadStage
    kept: KeptScenes


def make_head(name: str, work: Path, plan: HeadPlan, tower: Path, spec: TowerSpec) -> Path:
    """Tune one head and write its checkpoint; returns the checkpoint's folder.

    Args:
        name: ``answer`` or ``rank``.
        work: gets the folders ``NAME`` and ``NAME-checkpoint``.
        plan: settings and kept states.
        tower: a checkpoint of the same tower, see `primelens.export.recover`.
        spec: the bundle's description of the tower.
    """
    torch.manual_seed(plan.stage.seed)
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    module = FeatureMapTower.from_pretrained(tower)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = build_answer(module) if name == "answer" else build_rank(module)
    lessons: AnswerLessons | RankLessons
    if isinstance(model, VisionEncoderDecoderModel):
        means = mean_cells(plan.kept, _PROTOTYPE_SCENES)
        lessons = AnswerLessons(model, tokenizer, means, plan.stage.smoothing)
    else:
        lessons = RankLessons(model, tokenizer)
    with locked(module):
        head = tuned_side(model)
        tune_head(folder, head, lessons, plan)
        round_to_half(head)
    target = work / f"{name}-checkpoint"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    build_processor().save_pretrained(target)
    write(target, of_tap(spec, TAP, "fp16"))
    return target


class _Tuned(torch.nn.Module):
    """Everything right of the seam, under its names in the model."""


def tuned_side(model: PreTrainedModel) -> torch.nn.Module:
    """The parts of a head's model that are tuned, as one module."""
    side = _Tuned()
    if isinstance(model, VisionEncoderDecoderModel):
        side.decoder, side.enc_to_dec_proj = model.decoder, model.enc_to_dec_proj
        return side
    vision: Any = model.vision_model
    side.pooling = vision.pooling
    side.text_model = model.text_model
    side.visual_projection, side.text_projection = model.visual_projection, model.text_projection
    side.logit_scale = model.logit_scale
    return side


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, keep the scenes and tune."""
    parser = argparse.ArgumentParser(prog="primelens.tune.default_heads", description=__doc__)
    parser.add_argument("head", choices=("states", "answer", "rank"))
    parser.add_argument("--work", type=Path, default=Path(".work/heads"), help="where all goes")
    parser.add_argument("--tower", type=Path, help="checkpoint of the bundle's tower")
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int)
    given = parser.parse_args(arguments)
    options = primelens.LoadOptions(threads=given.threads, spin=False)
    model = primelens.load(given.bundle, options=options)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(model.folder / "tokenizer.json"),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(given.work / "tokenizer")
    if given.head == "states":
        keep_scenes(given.work / "states", model, SceneChoice(), TAP)
        return
    stage = ANSWER if given.head == "answer" else RANK
    from dataclasses import replace

    stage = replace(stage, threads=given.threads, steps=given.steps or stage.steps)
    plan = HeadPlan(stage, open_scenes(given.work / "states"))
    target = make_head(given.head, given.work, plan, given.tower, model.manifest.tower)
    print(target)


if __name__ == "__main__":
    main()
