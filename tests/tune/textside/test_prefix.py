"""Fusion by prefix: a GIT model's text side is tuned on kept states of its own tower."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GitConfig, GitForCausalLM

import primelens
from primelens import LoadOptions
from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.heads import HeadOptions, add_head
from primelens.export.lock import compare_towers
from primelens.towers import PrefixedModel
from primelens.tune.captioner import build_processor, train_tokenizer
from primelens.tune.data import DataSource
from primelens.tune.evaluation import Request, evaluate
from primelens.tune.evaluation.speakers import open_speaker
from primelens.tune.textside import tune
from primelens.tune.textside.run import Run

GATE = GateOptions(threads=1, random_images=2, steps=4)


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GIT over pictures of 32 pixels."""
    torch.manual_seed(1)
    texts = ["red left of green", "blue left of white", "what is on the left?"] * 4
    tokenizer = train_tokenizer(texts, 300, 48)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GitConfig(
        vision_config={**size, "intermediate_size": 32, "image_size": 32, "patch_size": 8},
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GitForCausalLM(config)
    for name, parameter in model.git.image_encoder.named_parameters():
        if parameter.ndim == 1 or "position" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name))
    folder = tmp_path_factory.mktemp("git")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = build_processor()
    processor.size = {"height": 32, "width": 32}
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("objective", "least"), [("caption", 9.0), ("answer", 1.0)])
def test_a_git_learns_a_tiny_set_by_heart(
    recipe: Any, git: Path, tmp_path: Path, objective: str, least: float
) -> None:
    asked = recipe(
        objective,
        model={"tower": None, "fresh": None, "checkpoint": str(git)},
        training={"steps": 200, "batch_size": 12},
        optimiser={"rate": 1e-2, "warm_up": 10, "weight_decay": 0.0},
        features={"keep": str(tmp_path / "store")},
    )
    outcome = tune(asked)
    assert outcome.score is not None
    assert outcome.score[1] >= least
    assert outcome.tower_runs == 12
    assert compare_towers(git, outcome.checkpoint).locked


def test_states_give_the_model_s_own_loss(recipe: Any, git: Path) -> None:
    run = Run(recipe("caption", model={"tower": None, "fresh": None, "checkpoint": str(git)}))
    lesson = run.lessons.at(0)
    prepared = run.task.prepare(lesson)
    states = run.states(lesson.items, lesson.epochs, changed=True)
    found = run.task.loss(states, prepared)
    source = GitForCausalLM.from_pretrained(git).eval()
    inputs, labels = prepared.tensors["inputs"], prepared.tensors["labels"]
    # transformers shifts labels itself: its label at t is learned from the logits at t - 1.
    own = torch.cat([torch.full((len(labels), 1), -100), labels], dim=1)
    padded = torch.cat([inputs, torch.zeros((len(inputs), 1), dtype=torch.int64)], dim=1)
    pixels = torch.stack(
        [
            torch.from_numpy(run.parts.preprocessing(item.example.image.read()))
            for item in lesson.items
        ]
    )
    with torch.no_grad():
        wanted = source(input_ids=padded, pixel_values=pixels, labels=own).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def learned(recipe: Any, tmp_path: Path, fusion: str, steps: int, rate: float = 5e-3) -> Path:
    asked = recipe(
        "caption",
        out=str(tmp_path / fusion),
        model={"fusion": fusion},
        training={"steps": steps, "batch_size": 12},
        optimiser={"rate": rate, "warm_up": 10, "weight_decay": 0.0},
        features={"keep": str(tmp_path / "store")},
    )
    return tune(asked).checkpoint


def test_all_fusions_run_from_one_bundle(
    recipe: Any, tower: Path, pictures: Path, tmp_path: Path
) -> None:
    cross = learned(recipe, tmp_path, "cross-attention", 60)
    prefix = learned(recipe, tmp_path, "prefix", 300, 1e-2)
    assert isinstance(PrefixedModel.from_pretrained(prefix), GitForCausalLM)
    assert compare_towers(tower, prefix).locked
    bundle = tmp_path / "bundle"
    assert export_checkpoint(cross, bundle, ExportOptions(gate=GATE)).passed
    assert add_head(bundle, prefix, "prefix", HeadOptions(gate=GATE)).passed
    model = primelens.load(bundle, options=LoadOptions(threads=1))
    assert model.manifest.writers["prefix"].decoder.prefix == 16
    files = sorted(pictures.glob("*-*.png"))
    said = open_speaker(f"{bundle}#prefix", lambda _: model).captions(
        [model.encode(file) for file in files]
    )
    source, tokenizer = PrefixedModel.from_pretrained(prefix).eval(), model.head(name="prefix").text
    for file, text in zip(files, said, strict=True):
        pixels = torch.from_numpy(model.preprocessing(file.read_bytes())[None])
        row = source.generate(pixel_values=pixels, input_ids=torch.tensor([[1]]))[0].tolist()
        own = [token for token in row[1:] if token > 2]
        assert tokenizer.decode(own).strip() == text
    assert len({*said}) > 3

    def split(name: str) -> DataSource:
        lines = (pictures / "metadata.jsonl").read_text().splitlines()
        folder = tmp_path / name
        folder.mkdir()
        chosen = lines[:4] if name == "fitted" else lines[4:]
        (folder / "metadata.jsonl").write_text("\n".join(chosen))
        for file in files:
            (folder / file.name).write_bytes(file.read_bytes())
        return DataSource(folder, "folder")

    request = Request(
        f"{bundle}#caption+prefix",
        split("evaluated"),
        fit=split("fitted"),
        against=(f"{bundle}#caption", f"{bundle}#prefix"),
    )
    report = evaluate(request, load=lambda _: model).report
    note = next(note for note in report.notes if "fitted on" in note)
    numbers = [float(part) for part in re.findall(r"-?[0-9]+\.[0-9]+", note)]
    *weights, likelihood, first, second = numbers
    assert sum(weights) == pytest.approx(1, abs=2e-3)
    assert likelihood >= max(first, second) - 1e-4
    assert len(report.against) == 2
    assert {len(row) for row in list(report.tables[0].rows.values())[:3]} == {6}
