"""Systems whose decode step can be timed alone: the shipped runtime, and transformers.

Both decode over the same random picture and are fed the same tokens, so that their logits can be
compared while they are timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.bundle import open_bundle
from primelens.decoding.session import DecoderSession, Step, capacity_for
from primelens.engine_onnx import OnnxEngine
from primelens.errors import OptionError

__all__ = ["Logits", "RuntimeStepper", "Stepper", "TransformersStepper"]

Logits = NDArray[np.float32]


class Stepper(Protocol):
    """A decoder over one picture, which is fed tokens."""

    name: str

    def start(self, tokens: Sequence[int]) -> None:
        """Forget everything, then feed ``tokens`` as a prefill."""

    def step(self, token: int) -> Logits:
        """Feed one token; ``[V]`` logits after it."""


class RuntimeStepper:
    """The shipped runtime's decode session over the bundle's own graphs.

    Args:
        folder: the bundle.
        capacity: cache positions.
        threads: of the engine.
        seed: of the random picture.
    """

    def __init__(self, folder: Path, capacity: int, threads: int, seed: int = 0) -> None:
        self.bundle = open_bundle(folder, check="size")
        manifest = self.bundle.manifest
        head = next(h for h in manifest.heads.values() if h.kind == "caption")
        if head.connector is None or manifest.tower.graph is None:
            raise OptionError(f"The bundle {folder} has no tower or no connector.")
        engine = OnnxEngine(threads=threads)
        self.name = f"primelens, {engine.name}, {head.precision}"
        self.spec = head.decoder
        connector = engine.open(self.bundle.path(head.connector))
        tower = engine.open(self.bundle.path(manifest.tower.graph))
        self.pixels = _random_pixels(tower.inputs["pixel_values"].shape, seed)
        self.cross = connector.run({head.tap: tower.run({"pixel_values": self.pixels})[head.tap]})
        del tower, connector
        self.session = DecoderSession(
            engine.open(self.bundle.path(self.spec.graph)),
            self.spec,
            rows=1,
            capacity=capacity_for(capacity, self.spec),
            cross=self.cross,
        )
        self.cross_bytes = [buffer.nbytes for buffer in self.cross.values()]

    def start(self, tokens: Sequence[int]) -> None:
        self.session.reset()
        self._feed(tokens)

    def step(self, token: int) -> Logits:
        return self._feed([token])

    def _feed(self, tokens: Sequence[int]) -> Logits:
        step = Step(np.array([tokens], np.int64), np.array([len(tokens)], np.int64))
        logits: Logits = self.session.run(step)[0]
        return logits


class TransformersStepper:
    """transformers' own cached step: a ``forward`` of the whole model with ``past_key_values``.

    Args:
        checkpoint: folder or hub id.
        pixels: ``[1, 3, H, W]`` float32.
        threads: of torch.
    """

    def __init__(self, checkpoint: str, pixels: NDArray[np.float32], threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self.name = f"transformers {transformers.__version__} eager, torch {torch.__version__}"
        self._model: Any = transformers.VisionEncoderDecoderModel.from_pretrained(
            checkpoint, dtype=torch.float32
        )
        self._model.eval()
        with torch.inference_mode():
            self._seen = self._model.encoder(torch.from_numpy(pixels), return_dict=True)
        self._past: Any = None

    def start(self, tokens: Sequence[int]) -> None:
        self._past = None
        self._feed(tokens)

    def step(self, token: int) -> Logits:
        return self._feed([token])

    def _feed(self, tokens: Sequence[int]) -> Logits:
        with self._torch.inference_mode():
            output = self._model(
                encoder_outputs=self._seen,
                decoder_input_ids=self._torch.tensor([list(tokens)]),
                past_key_values=self._past,
                use_cache=True,
            )
            self._past = output.past_key_values
            logits: Logits = output.logits[0, -1].numpy()
        return logits


def _random_pixels(shape: Sequence[int | None], seed: int) -> NDArray[np.float32]:
    """A random picture in the tower's own range; free sides get 224."""
    sides = [side or 224 for side in shape[2:]]
    random = np.random.default_rng(seed)
    return random.uniform(-1.0, 1.0, (1, shape[1] or 3, *sides)).astype(np.float32)
