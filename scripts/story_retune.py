"""The story of a re-tuned text side: pictures are encoded once, and never again.

``python scripts/story_retune.py`` draws scenes, encodes them with the shipped bundle, and then

1. tunes a text side A on the kept embeddings alone (no tower, no picture) and puts it into a copy
   of the bundle, where it captions the pictures;
2. tunes it again into B, exchanges it for A, and captions the same pictures once more.

The second time every picture must be found, and no tower may run: this is counted, and the tower's
graph is replaced by one that raises when it is called. What is trained here is small and fresh, to
show the way and not the quality.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import primelens
from primelens import CacheOptions, CaptionOptions, LoadOptions
from primelens.bundle import open_bundle
from primelens.engine import Graph, TensorSpec
from primelens.engine_onnx import OnnxEngine
from primelens.errors import PrimelensError
from primelens.export import GateOptions
from primelens.export.heads import HeadOptions, swap_head
from primelens.export.quiet import quiet_transformers
from primelens.head_checkpoint import of_tap, write
from primelens.hub import resolve
from primelens.results import Caption, EncodedImage
from primelens.tune.captioner import (
    BOS,
    EOS,
    PAD,
    assemble,
    build_decoder,
    build_tower,
    caption_labels,
    decoder_inputs,
)
from primelens.tune.running import schedule
from primelens.tune.scenes.language import caption
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import Scene, scene

HEAD, TAP = "caption", "last_hidden_state"
_FIRST = 3_000_000  # train scenes that nothing else of this repository draws
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How large the story is.

    Attributes:
        pictures: that are encoded and captioned.
        steps: optimiser steps of A; B goes on for as many.
        batch: captions a step.
        threads: of engine and torch.
    """

    pictures: int = 500
    steps: int = 120
    batch: int = 48
    threads: int = 2
    seed: int = 0


@dataclass
class Story:
    """What happened.

    Attributes:
        tower_runs: pictures that a tower looked at, by chapter.
        hits: pictures that were found, by chapter.
        captions: texts, by chapter.
        losses: of the text side's last steps, by chapter.
        seconds: by what was done.
    """

    tower_runs: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class TowerCalledError(AssertionError):
    """The tower ran where it must not."""


class _Watched:
    """The tower's graph: counts the pictures that it is given, or refuses to look at any."""

    def __init__(self, graph: Graph, *, allowed: bool) -> None:
        self._graph, self._allowed = graph, allowed
        self.pictures = 0

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._graph.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._graph.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if not self._allowed:
            raise TowerCalledError("the tower was called")
        self.pictures += len(feeds["pixel_values"])
        return self._graph.run(feeds)

    def bind(self, *_: Any) -> Any:
        raise TowerCalledError("nobody binds a tower")


class WatchingEngine(OnnxEngine):
    """ONNX Runtime, with the tower under watch."""

    def __init__(self, threads: int, *, tower_allowed: bool) -> None:
        super().__init__(threads=threads)
        self._allowed = tower_allowed
        self.tower: _Watched | None = None

    def open(self, path: Path) -> Any:
        """As `OnnxEngine`."""
        graph = super().open(path)
        if path.name == "tower.onnx":
            self.tower = _Watched(graph, allowed=self._allowed)
            return self.tower
        return graph


def draw(folder: Path, plan: Plan) -> tuple[list[Path], list[Scene]]:
    """Scenes as JPEG files."""
    folder.mkdir()
    scenes = [scene("train", _FIRST + n, plan.seed) for n in range(plan.pictures)]
    paths = [folder / f"{n:04d}.jpg" for n in range(plan.pictures)]
    for shown, path in zip(scenes, paths, strict=True):
        render(shown, 160).save(path, quality=90)
    return paths, scenes


def tune(
    decoder: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    states: NDArray[np.float32],
    scenes: Sequence[Scene],
    plan: Plan,
    seed: int,
) -> float:
    """Teach a decoder the scenes' captions from states ``[N, L, C]``; returns the last loss."""
    random = np.random.default_rng([plan.seed, seed])
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=2e-3, weight_decay=0.05)
    decoder.train()
    losses = []
    for step in range(plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * schedule(step, plan.steps, max(1, plan.steps // 10))
        rows = random.choice(len(states), plan.batch)
        variants = random.integers(0, 8, plan.batch)
        texts = [caption(scenes[row], int(v)) for row, v in zip(rows, variants, strict=True)]
        labels = caption_labels(tokenizer, texts)
        seen = torch.from_numpy(states[rows])
        logits = decoder(
            input_ids=decoder_inputs(labels), encoder_hidden_states=seen, use_cache=False
        ).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    decoder.eval()
    return float(np.mean(losses[-10:]))


def save_text_side(
    folder: Path, decoder: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, bundle: Path
) -> Path:
    """A checkpoint without a tower, which says what it was tuned on."""
    model = assemble(build_tower(), decoder)
    rest = {n: t for n, t in model.state_dict().items() if not n.startswith("encoder.")}
    model.save_pretrained(folder, state_dict=rest)
    tokenizer.save_pretrained(folder)
    write(folder, of_tap(open_bundle(bundle, check="size").manifest.tower, TAP))
    return folder


class _Teller:
    def __init__(self, home: Path, plan: Plan, say: Say, source: str) -> None:
        self._plan, self._say, self._home = plan, say, home
        self._bundle = home / "bundle"
        shutil.copytree(resolve(source), self._bundle)
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(self._bundle / "tokenizer.json"),
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
        )
        assert self._tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [PAD, BOS, EOS]
        self.story = Story()

    def tell(self) -> Story:
        """All chapters; raises `PrimelensError` where the story does not come true."""
        torch.set_num_threads(self._plan.threads)
        torch.manual_seed(self._plan.seed)
        with self._timed("draw"):
            paths, scenes = draw(self._home / "pictures", self._plan)
        states = self._encode(paths)
        decoder = build_decoder()
        for chapter, seed in (("A", 1), ("B", 2)):
            self._tune(chapter, decoder, states, scenes, seed)
            self._caption(chapter, paths, tower_allowed=chapter == "A")
        changed = sum(
            a != b for a, b in zip(*(self.story.captions[c] for c in ("A", "B")), strict=True)
        )
        self._say(f"{changed} of {len(paths)} captions changed from A to B")
        self._check(changed)
        return self.story

    def _encode(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """What the tower says about the pictures, ``[N, L, C]``; it is kept, too."""
        with self._timed("encode"), self._model(tower_allowed=True) as (model, engine):
            found = list(model.encode_batch(paths, batch_size=16))
            encoded = [image for image in found if isinstance(image, EncodedImage)]
            self.story.tower_runs["encode"] = engine.tower.pictures if engine.tower else 0
        self._say(
            f"{len(encoded)} pictures encoded in {self.story.seconds['encode']:.1f} s: "
            f"the tower looked at {self.story.tower_runs['encode']}"
        )
        return np.stack([image.taps[TAP] for image in encoded])

    def _tune(
        self,
        chapter: str,
        decoder: GPT2LMHeadModel,
        states: NDArray[np.float32],
        scenes: Sequence[Scene],
        seed: int,
    ) -> None:
        with self._timed(f"tune {chapter}"):
            loss = tune(decoder, self._tokenizer, states, scenes, self._plan, seed)
            checkpoint = save_text_side(
                self._home / f"text side {chapter}", decoder, self._tokenizer, self._bundle
            )
        self.story.losses[chapter] = loss
        with self._timed(f"swap {chapter}"):
            gate = GateOptions(threads=self._plan.threads, random_images=2)
            report = swap_head(self._bundle, checkpoint, HEAD, HeadOptions(gate=gate))
        tokens = report.parity["heads"][HEAD]["tokens_compared"]
        self._say(
            f"{chapter}: tuned for {self._plan.steps} steps in "
            f"{self.story.seconds[f'tune {chapter}']:.1f} s (loss {loss:.2f}); in the bundle after "
            f"{self.story.seconds[f'swap {chapter}']:.1f} s, {tokens} tokens equal to the source's"
        )

    def _caption(self, chapter: str, paths: Sequence[Path], *, tower_allowed: bool) -> None:
        options = CaptionOptions(max_new_tokens=24)
        with (
            self._timed(f"caption {chapter}"),
            self._model(tower_allowed=tower_allowed) as (model, engine),
        ):
            rows = list(model.caption_batch(paths, options, batch_size=16))
            captions = [row for row in rows if isinstance(row, Caption)]
            assert engine.tower is not None
            self.story.tower_runs[chapter] = engine.tower.pictures
        self.story.hits[chapter] = sum(row.cache == "hit" for row in captions)
        self.story.captions[chapter] = [row.text for row in captions]
        watch = "" if tower_allowed else " (its graph raises when it is called)"
        self._say(
            f"{chapter}: {len(captions)} captions in {self.story.seconds[f'caption {chapter}']:.1f}"
            f" s, {self.story.hits[chapter]} hits, tower runs: {self.story.tower_runs[chapter]}"
            f'{watch}; the first: "{self.story.captions[chapter][0]}"'
        )

    def _check(self, changed: int) -> None:
        story, count = self.story, self._plan.pictures
        problems = []
        if (story.hits["B"], story.tower_runs["B"]) != (count, 0):
            problems.append(f"{story.hits['B']} hits, {story.tower_runs['B']} runs of the tower")
        if len(story.captions["B"]) != count or not changed:
            problems.append(f"{len(story.captions['B'])} captions, of which {changed} changed")
        if problems:
            raise PrimelensError("The story did not come true:", problems=problems)

    @contextmanager
    def _model(self, *, tower_allowed: bool) -> Iterator[tuple[primelens.Model, WatchingEngine]]:
        engine = WatchingEngine(self._plan.threads, tower_allowed=tower_allowed)
        model = primelens.load(
            self._bundle,
            options=LoadOptions(threads=self._plan.threads),
            engine=engine,
            cache=CacheOptions(self._home / "kept"),
        )
        try:
            yield model, engine
        finally:
            model.close()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.story.seconds[name] = time.monotonic() - start


def tell(plan: Plan, *, say: Say = print, source: str = "default") -> Story:
    """Play the story in a temporary folder.

    Args:
        plan: how large it is.
        say: is given one line after the other.
        source: a bundle of scenes, as the shipped one.
    """
    with tempfile.TemporaryDirectory() as home, quiet_transformers():
        return _Teller(Path(home), plan, say, source).tell()


def main() -> None:
    """Read the command line and tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=Plan.pictures)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--threads", type=int, default=Plan.threads)
    given = parser.parse_args()
    start = time.monotonic()
    tell(Plan(pictures=given.pictures, steps=given.steps, threads=given.threads))
    print(f"all of it in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
