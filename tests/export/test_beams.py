"""Exported decoders under beam search, against the source model's own ``generate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import primelens
from primelens import CaptionOptions, DecodingOptions
from primelens.ensemble import log_softmax
from primelens.export.checkpoint import open_checkpoint
from primelens.export.options import ExportOptions, GateOptions
from primelens.export.pipeline import export_checkpoint

PICTURES = 4
STEPS = 16


@pytest.fixture(scope="module", params=["tiny-vitgpt2", "tiny-vitbert"])
def work(
    request: pytest.FixtureRequest,
    checkpoints: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Any, Any]:
    """The source model and the exported one."""
    folder = checkpoints(request.param)
    out = tmp_path_factory.mktemp("bundles") / request.param
    gate = GateOptions(threads=1, random_images=2, steps=8)
    export_checkpoint(folder, out, ExportOptions(gate=gate))
    loading = primelens.LoadOptions(threads=1)
    return open_checkpoint(folder).model, primelens.load(out, options=loading)


def pictures(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(PICTURES)]


@pytest.mark.parametrize("beams", [3, 5])
@pytest.mark.parametrize("penalty", [0.6, 1.0, 2.0])
def test_beams_equal_generate(work: tuple[Any, Any], beams: int, penalty: float) -> None:
    source, model = work
    images = pictures(beams)
    pixels = np.stack([model.encode(image).taps["last_hidden_state"] for image in images])
    assert np.ptp(pixels, axis=0).max() > 0.1  # the pictures do differ for the tower
    output = source.generate(
        torch.from_numpy(np.stack([model.preprocessing(_read(image)) for image in images])),
        num_beams=beams, length_penalty=penalty, num_return_sequences=2, max_new_tokens=STEPS,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    wanted = [row[1 : 1 + n] for row, n in zip(output.sequences.tolist(), lengths, strict=True)]
    options = CaptionOptions(
        max_new_tokens=STEPS,
        decoding=DecodingOptions(num_beams=beams, length_penalty=penalty, num_return_sequences=2),
    )
    captions = model.caption(images, options)
    found = [each for caption in captions for each in (caption, *caption.others)]
    assert [list(each.tokens) for each in found] == wanted
    scores = [each.score for each in found]
    assert scores == pytest.approx(output.sequences_scores.tolist(), abs=2e-4)
    assert len({each.tokens for each in found}) > 2
    alone = model.caption(images[1], options)
    assert (alone.tokens, alone.score) == (captions[1].tokens, captions[1].score)


def test_token_logprobs_are_what_teacher_forcing_gives(work: tuple[Any, Any]) -> None:
    _, model = work
    image = model.encode(pictures(9)[0])
    options = CaptionOptions(
        max_new_tokens=STEPS, decoding=DecodingOptions(num_beams=4, top_logprobs=3)
    )
    caption = model.caption(image, options)
    forced = log_softmax(model.head().forced_logits(image, caption.tokens))
    exact = forced[np.arange(len(caption.tokens)), list(caption.tokens)]
    assert caption.token_logprobs == pytest.approx(exact.tolist(), abs=1e-4)
    for place, alternatives in enumerate(caption.alternatives):
        assert [token for token, _ in alternatives] == np.argsort(-forced[place])[:3].tolist()


def _read(image: Any) -> Any:
    from primelens.images import read_image

    return read_image(image)
