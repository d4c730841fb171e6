"""Systems whose decode step can be timed alone: the shipped runtime, and transformers.

Both decode over the same random pictures and are fed the same tokens, so that their logits can be
compared while they are timed. Rows are pictures x beams; all rows of a step are fed the same token,
whose cost does not depend on which one it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.bench.captioner import require_caption_head
from primelens.bundle import open_bundle
from primelens.decoding.session import DecoderSession, Step, capacity_for
from primelens.engine_onnx import OnnxEngine
from primelens.errors import OptionError

__all__ = ["Logits", "RuntimeStepper", "Stepper", "TransformersStepper"]

Logits = NDArray[np.float32]


class Stepper(Protocol):
    """A decoder over pictures, which is fed tokens."""

    name: str

    def resize(self, images: int, beams: int) -> None:
        """From now on work on ``images`` pictures with ``beams`` rows each; forgets everything."""

    def start(self, tokens: Sequence[int]) -> None:
        """Forget everything, then feed ``tokens`` as a prefill."""

    def step(self, token: int) -> Logits:
        """Feed one token to every row; ``[R, V]`` logits after it."""


class RuntimeStepper:
    """The shipped runtime's decode session over the bundle's own graphs.

    Args:
        folder: the bundle.
        capacity: cache positions.
        threads: of the engine.
        seed: of the random pictures.
    """

    def __init__(self, folder: Path, capacity: int, threads: int, seed: int = 0) -> None:
        self.bundle = open_bundle(folder, check="size")
        manifest = self.bundle.manifest
        head = require_caption_head(manifest)
        if manifest.tower.graph is None:
            raise OptionError(f"The bundle {folder} has no tower.")
        if head.decoder.prefix:
            raise OptionError(
                f"The decoder of {folder} reads the picture as a prefix of the text; steps by "
                "themselves are timed of decoders with cross-attention.",
                remedy="Run a spec: its TPOT and gaps are those of steps.",
            )
        engine = OnnxEngine(threads=threads)
        self.name = f"primelens, {engine.name}, {head.precision}"
        self.spec = head.decoder
        self._connector = engine.open(self.bundle.path(head.connector))
        self._tower = engine.open(self.bundle.path(manifest.tower.graph))
        self._tap, self._seed = head.tap, seed
        self._graph = engine.open(self.bundle.path(self.spec.graph))
        self._capacity = capacity_for(capacity, self.spec)
        self.resize(1, 1)

    def resize(self, images: int, beams: int) -> None:
        states = self._tower.run({"pixel_values": self.pictures(images)})[self._tap]
        self.cross = self._connector.run({self._tap: states})
        self.cross_bytes = [buffer.nbytes for buffer in self.cross.values()]
        self.session = DecoderSession(
            self._graph,
            self.spec,
            rows=images * beams,
            capacity=self._capacity,
            cross=self.cross,
        )

    def pictures(self, count: int) -> NDArray[np.float32]:
        """``[count, 3, H, W]`` random pictures, the same at every call."""
        return _random_pixels(self._tower.inputs["pixel_values"].shape, self._seed, count)

    def start(self, tokens: Sequence[int]) -> None:
        self.session.reset()
        self._feed(tokens)

    def step(self, token: int) -> Logits:
        return self._feed([token])

    def _feed(self, tokens: Sequence[int]) -> Logits:
        rows = self.session.rows
        fed = np.tile(np.array(tokens, np.int64), (rows, 1))
        return self.session.run(Step(fed, np.full(rows, len(tokens), np.int64)))


class TransformersStepper:
    """transformers' own cached step: a ``forward`` of the whole model with ``past_key_values``.

    Args:
        checkpoint: folder or hub id.
        runtime: whose pictures it is shown.
        threads: of torch.
    """

    def __init__(self, checkpoint: str, runtime: RuntimeStepper, threads: int) -> None:
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
        self._runtime = runtime
        self.resize(1, 1)

    def resize(self, images: int, beams: int) -> None:
        """The tower's states are repeated for every beam, as transformers' own beam search does."""
        self._rows, self._past = images * beams, None
        pixels = self._torch.from_numpy(self._runtime.pictures(images))
        with self._torch.inference_mode():
            self._seen = self._model.encoder(pixels, return_dict=True)
            states = self._seen.last_hidden_state.repeat_interleave(beams, dim=0)
            self._seen.last_hidden_state = states

    def start(self, tokens: Sequence[int]) -> None:
        self._past = None
        self._feed(tokens)

    def step(self, token: int) -> Logits:
        return self._feed([token])

    def _feed(self, tokens: Sequence[int]) -> Logits:
        with self._torch.inference_mode():
            output = self._model(
                encoder_outputs=self._seen,
                decoder_input_ids=self._torch.tensor([list(tokens)] * self._rows),
                past_key_values=self._past,
                use_cache=True,
            )
            self._past = output.past_key_values
            logits: Logits = output.logits[:, -1].numpy()
        return logits


def _random_pixels(shape: Sequence[int | None], seed: int, count: int) -> NDArray[np.float32]:
    """``count`` random pictures in the tower's own range; free sides get 224."""
    sides = [side or 224 for side in shape[2:]]
    random = np.random.default_rng(seed)
    return random.uniform(-1.0, 1.0, (count, shape[1] or 3, *sides)).astype(np.float32)
