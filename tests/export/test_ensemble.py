"""Two heads that write together, against a NumPy reference over the source models' own scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

import primelens
from primelens import CaptionOptions, DecodingOptions, LoadOptions
from primelens.ensemble import Ensemble, EnsembleHead
from primelens.errors import InputError, OptionError
from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.heads import HeadOptions, add_head
from primelens.model import Model
from primelens.tune.fusion import fit_weights

GATE = GateOptions(threads=1, random_images=2, steps=4)
TAP = "last_hidden_state"
WEIGHTS = {"caption": 0.3, "second": 0.7}
STEPS = 12

Source = tuple[Any, Any]


@pytest.fixture(scope="module")
def sources(checkpoints: Callable[[str], Path], tmp_path_factory: Any) -> tuple[Path, Path]:
    """A checkpoint, and one with the same tower and another text side."""
    first = checkpoints("tiny-vitgpt2")
    second = tmp_path_factory.mktemp("second") / "other"
    second.mkdir()
    for path in first.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    tensors = load_file(first / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if not name.startswith("encoder."):
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[name] = tensor + 0.7 * noise * tensor.std().nan_to_num(0)
    save_file(tensors, second / "model.safetensors", metadata={"format": "pt"})
    return first, second


@pytest.fixture(scope="module")
def model(sources: tuple[Path, Path], tmp_path_factory: Any) -> Model:
    out = tmp_path_factory.mktemp("ensemble") / "bundle"
    export_checkpoint(sources[0], out, ExportOptions(gate=GATE))
    add_head(out, sources[1], "second", HeadOptions(gate=GATE))
    return primelens.load(out, options=LoadOptions(threads=1))


@pytest.fixture(scope="module")
def pictures(model: Model) -> list[Any]:
    random = np.random.default_rng(3)
    drawn = [random.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(3)]
    return [model.encode(picture) for picture in drawn]


def reference_logs(
    sources: tuple[Path, Path], states: NDArray[np.float32], tokens: list[int]
) -> NDArray[np.float64]:
    """The weighted sum of both source models' log-probabilities after ``tokens``."""
    total = 0.0
    for folder, weight in zip(sources, WEIGHTS.values(), strict=True):
        source = VisionEncoderDecoderModel.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = source(
                encoder_outputs=BaseModelOutput(torch.from_numpy(states[None].copy())),
                decoder_input_ids=torch.tensor([tokens]),
                use_cache=False,
            ).logits[0, -1]
        values = logits.double().numpy()
        top = values.max()
        total = total + weight * (values - top - np.log(np.exp(values - top).sum()))
    return np.asarray(total)


def test_every_token_is_the_weighted_choice_of_both(
    model: Model, sources: tuple[Path, Path], pictures: list[Any]
) -> None:
    options = CaptionOptions(max_new_tokens=STEPS)
    said = Ensemble(model, WEIGHTS).caption(pictures, options)
    spec = model.manifest.writers["caption"].generation
    alone = [model.caption(pictures, CaptionOptions(max_new_tokens=STEPS, head=h)) for h in WEIGHTS]
    for place, (picture, caption) in enumerate(zip(pictures, said, strict=True)):
        tokens = list(spec.start_tokens)
        for token, logprob in zip(caption.tokens, caption.token_logprobs, strict=True):
            logs = reference_logs(sources, picture.taps[TAP], tokens)
            assert token == int(logs.argmax())
            top = logs.max()
            wanted = logs[token] - top - np.log(np.exp(logs - top).sum())
            assert logprob == pytest.approx(wanted, abs=2e-4)
            tokens.append(token)
        assert caption.tokens[-1] in spec.eos_tokens or len(caption.tokens) == STEPS
        assert caption.tokens not in {one[place].tokens for one in alone} or place
    assert len({caption.tokens for caption in said}) > 1


def test_the_whole_say_of_one_head_is_that_head(model: Model, pictures: list[Any]) -> None:
    options = CaptionOptions(max_new_tokens=STEPS)
    for name in WEIGHTS:
        weights = {other: float(other == name) for other in WEIGHTS}
        together = Ensemble(model, weights).caption(pictures, options)
        alone = model.caption(pictures, CaptionOptions(max_new_tokens=STEPS, head=name))
        assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_beams_and_companions(model: Model, pictures: list[Any]) -> None:
    ensemble = Ensemble(model, WEIGHTS)
    beams = CaptionOptions(max_new_tokens=6, decoding=DecodingOptions(num_beams=3))
    batch = ensemble.caption(pictures, beams)
    single = [ensemble.caption(picture, beams) for picture in pictures]
    assert [c.tokens for c in batch] == [c.tokens for c in single]
    greedy = ensemble.caption(pictures, CaptionOptions(max_new_tokens=6))
    assert all(b.score is not None for b in batch)
    assert all(
        b.logprob >= g.logprob - 1e-4
        for b, g in zip(batch, greedy, strict=True)
        if len(b.tokens) == len(g.tokens)
    )
    forced = ensemble.head.forced_logits(pictures[0], greedy[0].tokens)
    assert forced.argmax(axis=1).tolist() == list(greedy[0].tokens)


def test_questions_are_put_to_all_heads(model: Model, pictures: list[Any]) -> None:
    ensemble, options = Ensemble(model, WEIGHTS), CaptionOptions(max_new_tokens=4)
    asked = ["a", "a b"]
    found = ensemble.answer(pictures[0], asked, options)
    assert [answer.question for answer in found] == asked
    prompted = CaptionOptions(max_new_tokens=4, prompt="a b")
    assert found[1].tokens == ensemble.caption(pictures[0], prompted).tokens
    assert ensemble.answer(pictures[0], []) == []
    with pytest.raises(InputError, match="list"):
        ensemble.answer(pictures[0], "a")


def test_weights_are_where_the_likelihood_is_highest(model: Model, pictures: list[Any]) -> None:
    heads = [model.head(name=name) for name in WEIGHTS]
    texts = [model.caption(picture).text or "a" for picture in pictures]
    texts += [
        model.caption(picture, CaptionOptions(head="second")).text or "a" for picture in pictures
    ]
    known = [(picture, None, text) for picture, text in zip(pictures * 2, texts, strict=True)]
    fitted = fit_weights(heads, known)
    assert fitted.together >= max(fitted.alone)
    assert 0.0 <= fitted.weights[0] <= 1.0

    def likelihood(weight: float) -> float:
        head, values, count = EnsembleHead(heads, [weight, 1 - weight]), 0.0, 0
        for picture, _, text in known:
            tokens = [*head.text.encode(text), head.spec.generation.eos_tokens[0]]
            logs = head.forced_logits(picture, tokens).astype(np.float64)
            logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
            values += logs[np.arange(len(tokens)), tokens].sum()
            count += len(tokens)
        assert count == fitted.tokens
        return values / count

    assert fitted.together == pytest.approx(likelihood(fitted.weights[0]), abs=1e-5)
    for weight in np.linspace(0, 1, 11):
        assert likelihood(float(weight)) <= fitted.together + 1e-5


def test_heads_that_do_not_fit_are_refused(model: Model) -> None:
    for weights, said in (
        ({"caption": 1.0}, "two heads or more"),
        ({"caption": 0.0, "second": 0.0}, "all zero"),
        ({"caption": -1.0, "second": 2.0}, "negative"),
        ({"caption": float("nan"), "second": 2.0}, "finite"),
    ):
        with pytest.raises(OptionError, match=said):
            Ensemble(model, weights)
    with pytest.raises(InputError, match="no head 'third'"):
        Ensemble(model, {"caption": 1.0, "third": 1.0})
