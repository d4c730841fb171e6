"""Stage 1 of the default captioner: a tower learns to see, from nothing.

Captions alone teach a tower slowly. Here every cell of its last map is also told what it shows, how
many of that kind stand together and what they are to the scene's relation
(:func:`~primelens.tune.scenes.targets.cell_targets`), and the whole map is told place and time.
These heads are thrown away; the tower and the caption decoder that was trained along with it are
kept, as running means of their weights.

A run is exactly resumable: a checkpoint holds weights, means, optimiser and step, and the stream
of scenes is a function of the step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from primelens.towers import FeatureMapTower
from primelens.tune.captioner import (
    WIDTH,
    build_decoder,
    build_tower,
    caption_labels,
    decoder_inputs,
)
from primelens.tune.running import Run, append, schedule
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.stream import Batch, StreamSpec, stream
from primelens.tune.scenes.targets import RELATIONS, ROLES
from primelens.tune.scenes.world import MAX_COUNT, PLACES, TIMES

_CHECKPOINT = "tower_stage.pt"


@dataclass(frozen=True)
class TowerStage:
    """How stage 1 is run.

    Attributes:
        steps: optimiser steps; the learning rate is constant for 70 % of them, then falls in a
            straight line, so an interrupted run may be given more or fewer steps.
        rate: peak learning rate of AdamW.
        averaging: decay of the running mean of the weights.
        threads: torch's threads. More than the machine has idle cores is far slower than one.
    """

    steps: int = 4200
    batch_size: int = 64
    seed: int = 0
    rate: float = 1.5e-3
    warm_up: int = 200
    weight_decay: float = 0.05
    averaging: float = 0.998
    threads: int = 1
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0.0 < self.averaging < 1.0:
            raise ValueError(f"impossible settings: {self}")


class TowerTrainee(nn.Module):
    """The tower, the caption decoder trained along, and the heads of the dense supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.tower: FeatureMapTower = build_tower()
        self.decoder: GPT2LMHeadModel = build_decoder()
        self.kind_head = nn.Linear(WIDTH, len(KINDS) + 1)
        self.count_head = nn.Linear(WIDTH, MAX_COUNT + 1)
        self.scene_head = nn.Linear(WIDTH, len(PLACES) + len(TIMES))
        self.role_head = nn.Linear(WIDTH, len(ROLES) + len(RELATIONS))

    def losses(self, batch: Batch, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of the loss, each a scalar, and the shares of right cells."""
        states = self.tower(pixel_values=pixels(batch))[0]
        kinds = torch.from_numpy(batch.kinds).long().flatten()
        counts = torch.from_numpy(batch.counts).long().flatten()
        roles = torch.from_numpy(batch.roles).long().flatten()
        relations = torch.from_numpy(batch.relations).long().repeat_interleave(states.shape[1])
        shown = kinds > 0
        kind_logits = self.kind_head(states).flatten(0, 1)
        count_logits = self.count_head(states).flatten(0, 1)[shown]
        role_logits, relation_logits = (
            self.role_head(states).flatten(0, 1)[shown].split([len(ROLES), len(RELATIONS)], dim=1)
        )
        scene_logits = self.scene_head(states.mean(dim=1))
        place_logits, time_logits = scene_logits.split([len(PLACES), len(TIMES)], dim=1)
        words = self.decoder(
            input_ids=decoder_inputs(labels), encoder_hidden_states=states, use_cache=False
        ).logits
        each_kind = F.cross_entropy(kind_logits.float(), kinds, reduction="none")
        spoken = labels != -100
        return {
            "kind": each_kind[shown].mean() + 0.5 * each_kind[~shown].mean(),
            "count": F.cross_entropy(count_logits.float(), counts[shown]),
            "role": F.cross_entropy(role_logits.float(), roles[shown]),
            "relation": F.cross_entropy(relation_logits.float(), relations[shown]),
            "place": F.cross_entropy(place_logits.float(), torch.from_numpy(batch.places).long()),
            "time": F.cross_entropy(time_logits.float(), torch.from_numpy(batch.times).long()),
            "caption": F.cross_entropy(words.float().flatten(0, 1), labels.flatten()),
            "kinds_right": (kind_logits.argmax(1) == kinds)[shown].float().mean(),
            "background_right": (kind_logits.argmax(1) == kinds)[~shown].float().mean(),
            "counts_right": (count_logits.argmax(1) == counts[shown]).float().mean(),
            "roles_right": (role_logits.argmax(1) == roles[shown]).float().mean(),
            "relations_right": (relation_logits.argmax(1) == relations[shown]).float().mean(),
            "words_right": (words.argmax(2) == labels)[spoken].float().mean(),
        }


LOSS_WEIGHTS = {
    "kind": 1.0,
    "count": 1.0,
    "role": 0.5,
    "relation": 0.25,
    "place": 0.1,
    "time": 0.1,
    "caption": 1.0,
}
"""What each part counts for. The caption part trains the decoder; the others the tower."""


def pixels(batch: Batch) -> torch.Tensor:
    """A batch as the tower wants it: ``[B, 3, H, W]`` float32 in -1 .. 1, channels last."""
    values = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)
    return values.float().mul_(1 / 255).sub_(0.5).div_(0.5)


def train_tower(
    folder: Path, stage: TowerStage, tokenizer: PreTrainedTokenizerFast
) -> dict[str, float]:
    """Run stage 1, or go on with it, in ``folder``; leaves ``tower_stage.pt`` there.

    Returns:
        The measures of the averaged weights on validation scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(stage.threads)
    torch.manual_seed(stage.seed)
    trainee = TowerTrainee()
    trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(folder / _CHECKPOINT, trainee, stage.rate, stage.weight_decay)
    spec = StreamSpec(
        "train", run.step * stage.batch_size, stage.steps - run.step, stage.batch_size, stage.seed
    )
    began = time.monotonic()
    trainee.train()
    for batch in stream(spec, ahead=6):
        parts = _parts(trainee, batch, tokenizer)
        loss = torch.stack([weight * parts[name] for name, weight in LOSS_WEIGHTS.items()]).sum()
        run.update(loss, schedule(run.step, stage.steps, stage.warm_up), stage.averaging)
        if run.step % 25 == 0:
            measures = {name: round(value.item(), 4) for name, value in parts.items()}
            took = {"step": run.step, "seconds": round(time.monotonic() - began, 1)}
            append(folder / "tower_stage.jsonl", measures | took)
        if run.step % stage.save_every == 0 or run.step == stage.steps:
            run.save()
    run.finish()
    return validate_tower(trainee, tokenizer, stage.seed)


def load_stage(folder: Path) -> TowerTrainee:
    """The averaged weights of the last checkpoint of stage 1, in evaluation mode."""
    trainee = TowerTrainee()
    trainee.load_state_dict(torch.load(folder / _CHECKPOINT, weights_only=True)["mean"])
    return trainee.eval()


@torch.no_grad()
def validate_tower(
    trainee: TowerTrainee, tokenizer: PreTrainedTokenizerFast, seed: int, batches: int = 16
) -> dict[str, float]:
    """All losses and shares of right cells, averaged over validation scenes."""
    trainee.eval()
    totals: dict[str, float] = {}
    spec = StreamSpec("validation", 0, batches, 64, seed)
    for batch in stream(spec, producers=0):
        labels = caption_labels(tokenizer, [texts[0] for texts in batch.captions])
        for name, value in trainee.losses(batch, labels).items():
            totals[name] = totals.get(name, 0.0) + value.item() / batches
    return totals


def _parts(
    trainee: TowerTrainee, batch: Batch, tokenizer: PreTrainedTokenizerFast
) -> dict[str, torch.Tensor]:
    labels = caption_labels(tokenizer, [texts[0] for texts in batch.captions])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return trainee.losses(batch, labels)
