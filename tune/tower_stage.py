"""Stage 1 of the default captioner: a tower learns to see, from nothing.

Captions alone teach a tower slowly. Here every cell of its last map is also told what it shows and
how many of that kind stand together (:func:`~primelens.tune.scenes.targets.cell_targets`), and the
whole map is told place and time. These heads are thrown away; the tower and the caption decoder
that was trained along with it are kept, as running means of their weights.

A run is exactly resumable: a checkpoint holds weights, means, optimiser and step, and the stream
of scenes is a function of the step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.stream import Batch, StreamSpec, make_batch, stream
from primelens.tune.scenes.world import MAX_COUNT, PLACES, TIMES


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

    steps: int = 4000
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

    def losses(self, batch: Batch, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of the loss, each a scalar, and the shares of right cells."""
        states = self.tower(pixel_values=pixels(batch))[0]
        kinds = torch.from_numpy(batch.kinds).long().flatten()
        counts = torch.from_numpy(batch.counts).long().flatten()
        shown = kinds > 0
        kind_logits = self.kind_head(states).flatten(0, 1)
        count_logits = self.count_head(states).flatten(0, 1)[shown]
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
            "place": F.cross_entropy(place_logits.float(), torch.from_numpy(batch.places).long()),
            "time": F.cross_entropy(time_logits.float(), torch.from_numpy(batch.times).long()),
            "caption": F.cross_entropy(words.float().flatten(0, 1), labels.flatten()),
            "kinds_right": (kind_logits.argmax(1) == kinds)[shown].float().mean(),
            "background_right": (kind_logits.argmax(1) == kinds)[~shown].float().mean(),
            "counts_right": (count_logits.argmax(1) == counts[shown]).float().mean(),
            "words_right": (words.argmax(2) == labels)[spoken].float().mean(),
        }


LOSS_WEIGHTS = {"kind": 1.0, "count": 1.0, "place": 0.1, "time": 0.1, "caption": 1.0}
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
    optimiser = torch.optim.AdamW(
        decay_groups(trainee, stage.weight_decay), lr=stage.rate, betas=(0.9, 0.98), fused=True
    )
    mean = {name: value.clone() for name, value in trainee.state_dict().items()}
    step = _resume(folder, trainee, optimiser, mean)
    spec = StreamSpec(
        "train", step * stage.batch_size, stage.steps - step, stage.batch_size, stage.seed
    )
    log = (folder / "tower_stage.jsonl").open("a")
    began = time.monotonic()
    for batch in _prefetched(spec):
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * schedule(step, stage.steps, stage.warm_up)
        measures = _step(trainee, optimiser, batch, tokenizer)
        step += 1
        _average(mean, trainee, min(stage.averaging, (1 + step) / (10 + step)))
        if step % 25 == 0:
            measures |= {"step": step, "seconds": time.monotonic() - began}
            print(json.dumps(measures), file=log, flush=True)
        if step % stage.save_every == 0 or step == stage.steps:
            _save(folder, trainee, optimiser, mean, step)
    trainee.load_state_dict(mean)
    results = validate_tower(trainee, tokenizer, stage.seed)
    (folder / "tower_stage.json").write_text(
        json.dumps({"settings": asdict(stage), "validation": results}, indent=2)
    )
    return results


def load_stage(folder: Path) -> TowerTrainee:
    """The averaged weights of the last checkpoint of stage 1, in evaluation mode."""
    trainee = TowerTrainee()
    trainee.load_state_dict(torch.load(folder / "tower_stage.pt", weights_only=True)["mean"])
    return trainee.eval()


@torch.no_grad()
def validate_tower(
    trainee: TowerTrainee, tokenizer: PreTrainedTokenizerFast, seed: int, batches: int = 16
) -> dict[str, float]:
    """All losses and shares of right cells, averaged over validation scenes."""
    trainee.eval()
    totals: dict[str, float] = {}
    spec = StreamSpec("validation", 0, batches, 64, seed)
    for number in range(batches):
        batch = make_batch(spec, number)
        labels = caption_labels(tokenizer, [texts[0] for texts in batch.captions])
        for name, value in trainee.losses(batch, labels).items():
            totals[name] = totals.get(name, 0.0) + value.item() / batches
    return totals


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Share of the peak learning rate: linear up, constant, linear down to 1 % from 70 % on."""
    if step < warm_up:
        return (step + 1) / warm_up
    return max(0.01, min(1.0, (1.0 - step / steps) / 0.3))


def _prefetched(spec: StreamSpec) -> Iterator[Batch]:
    return stream(spec, producers=1, ahead=6)


def _step(
    trainee: TowerTrainee,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, float]:
    trainee.train()
    labels = caption_labels(tokenizer, [texts[0] for texts in batch.captions])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = trainee.losses(batch, labels)
    loss = torch.stack([weight * parts[name] for name, weight in LOSS_WEIGHTS.items()]).sum()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
    optimiser.step()
    return {name: round(value.item(), 4) for name, value in parts.items()}


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms and the tables of positions do not."""
    decayed = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


@torch.no_grad()
def _average(mean: dict[str, torch.Tensor], module: nn.Module, decay: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1.0 - decay)
        else:
            mean[name].copy_(value)


def _save(
    folder: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    mean: dict[str, torch.Tensor],
    step: int,
) -> None:
    temporary = folder / "tower_stage.pt.new"
    torch.save(
        {
            "weights": module.state_dict(),
            "mean": mean,
            "optimiser": optimiser.state_dict(),
            "step": step,
        },
        temporary,
    )
    temporary.replace(folder / "tower_stage.pt")


def _resume(
    folder: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    mean: dict[str, torch.Tensor],
) -> int:
    path = folder / "tower_stage.pt"
    if not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    module.load_state_dict(saved["weights"])
    optimiser.load_state_dict(saved["optimiser"])
    for name, value in saved["mean"].items():
        mean[name].copy_(value)
    return int(saved["step"])
