"""Stage 2 of the default captioner: the decoder is tuned on a locked tower's kept states.

The tower of stage 1 is folded, rounded to half precision and locked. What it says about every
picture is computed once and kept in a memory-mapped file; from then on no picture is touched. Each
epoch shows every picture with another of its captions.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from primelens.towers import FeatureMapTower
from primelens.tune.captioner import GRID, WIDTH, caption_labels, decoder_inputs
from primelens.tune.lock import content_digest, locked
from primelens.tune.running import Run, append, schedule
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.stream import StreamSpec, stream
from primelens.tune.scenes.world import scene
from primelens.tune.tower_stage import pixels

_FIRST = 1_000_000  # scenes that stage 1 did not see: the states are of new pictures, as in use


@dataclass(frozen=True)
class DecoderStage:
    """How stage 2 is run.

    Attributes:
        pictures: how many pictures have their states kept.
        epochs: as many lessons as pictures each; each epoch has new captions.
        emphasis: odds of a picture with 1, 2, 3 and 4 groups to be drawn for a lesson. Naming one
            group is learned early, keeping four apart late.
        rate: peak learning rate of AdamW; lower than a fresh decoder's, for this one saw the tower
            grow up.
        threads: torch's threads, see :class:`~primelens.tune.tower_stage.TowerStage`.
    """

    pictures: int = 32_000
    epochs: int = 4
    emphasis: tuple[float, float, float, float] = (0.4, 1.0, 2.0, 2.5)
    batch_size: int = 128
    seed: int = 0
    rate: float = 1e-3
    warm_up: int = 50
    weight_decay: float = 0.05
    smoothing: float = 0.02
    averaging: float = 0.995
    threads: int = 1
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.pictures % self.batch_size:
            raise ValueError(
                f"{self.pictures} pictures are not whole batches of {self.batch_size}: "
                "an epoch would show some of them more often"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self.pictures // self.batch_size * self.epochs


def keep_states(folder: Path, tower: FeatureMapTower, stage: DecoderStage) -> Path:
    """Compute the tower's states of all pictures once; go on where an earlier call stopped.

    Returns:
        The file, ``[pictures, 64, 192]`` float16, next to a JSON with the tower's digest.

    Raises:
        ValueError: if states of another tower are kept there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(stage.threads)
    path, note = folder / "states.npy", folder / "states.json"
    kept: dict[str, Any] = {"digest": content_digest(tower), "pictures": stage.pictures, "done": 0}
    mode = "w+"
    if note.is_file():
        found = json.loads(note.read_text())
        if (found["digest"], found["pictures"]) != (kept["digest"], kept["pictures"]):
            raise ValueError(f"{path} holds the states of another tower or run: remove it")
        kept, mode = found, "r+"
    states = np.lib.format.open_memmap(
        path, mode=mode, dtype=np.float16, shape=(stage.pictures, GRID * GRID, WIDTH)
    )
    done = int(kept["done"])
    batches = (stage.pictures - done) // stage.batch_size
    spec = StreamSpec("train", _FIRST + done, batches, stage.batch_size, stage.seed, captions=0)
    with locked(tower), torch.no_grad():
        for batch in stream(spec):
            values = tower(pixel_values=pixels(batch))[0]
            states[done : done + len(values)] = values.numpy().astype(np.float16)
            done += len(values)
            note.write_text(json.dumps(kept | {"done": done}))
    states.flush()
    return path


def tune_decoder(
    folder: Path,
    decoder: GPT2LMHeadModel,
    stage: DecoderStage,
    tokenizer: PreTrainedTokenizerFast,
) -> GPT2LMHeadModel:
    """Run stage 2, or go on with it, on the states kept in ``folder``.

    Returns:
        The decoder with the running mean of its weights, in evaluation mode.
    """
    torch.set_num_threads(stage.threads)
    states = np.load(folder / "states.npy", mmap_mode="r")
    run = Run(folder / "decoder_stage.pt", decoder, stage.rate, stage.weight_decay)
    began = time.monotonic()
    decoder.train()
    odds = _odds(stage)
    while run.step < stage.steps:
        rows, texts = _lesson(stage, odds, run.step)
        seen = torch.from_numpy(states[rows]).float()
        loss = _loss(decoder, seen, caption_labels(tokenizer, texts), stage.smoothing)
        run.update(loss, schedule(run.step, stage.steps, stage.warm_up), stage.averaging)
        if run.step % 25 == 0:
            took = {"step": run.step, "seconds": round(time.monotonic() - began, 1)}
            append(folder / "decoder_stage.jsonl", {"loss": round(loss.item(), 4)} | took)
        if run.step % stage.save_every == 0 or run.step == stage.steps:
            run.save()
    run.finish()
    return decoder


def _loss(
    decoder: GPT2LMHeadModel, states: torch.Tensor, labels: torch.Tensor, smoothing: float
) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = decoder(
            input_ids=decoder_inputs(labels), encoder_hidden_states=states, use_cache=False
        ).logits
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), label_smoothing=smoothing
    )


def _odds(stage: DecoderStage) -> np.ndarray:
    """The probability of every picture to be drawn, ``[pictures]``."""
    numbers = [
        len(scene("train", _FIRST + row, stage.seed).groups) for row in range(stage.pictures)
    ]
    odds = np.asarray(stage.emphasis)[np.array(numbers) - 1]
    share: np.ndarray = odds / odds.sum()
    return share


def _lesson(stage: DecoderStage, odds: np.ndarray, step: int) -> tuple[np.ndarray, list[str]]:
    """The pictures of one step, ``[B]``, and a caption for each; a function of the step."""
    epoch = step // (stage.pictures // stage.batch_size)
    draw = np.random.default_rng([stage.seed, step])
    rows = draw.choice(stage.pictures, size=stage.batch_size, p=odds)
    # With repetition, so the variant must differ between the draws of one picture in one epoch.
    variants = epoch * 8 + draw.integers(8, size=stage.batch_size)
    shown = (scene("train", _FIRST + int(row), stage.seed) for row in rows)
    return rows, [caption(s, int(v)) for s, v in zip(shown, variants, strict=True)]
