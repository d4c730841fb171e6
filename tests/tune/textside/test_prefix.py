"""Fusion by prefix: a GIT model's text side is tuned on kept states of its own tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GitConfig, GitForCausalLM

from primelens.export.lock import compare_towers
from primelens.tune.captioner import build_processor, train_tokenizer
from primelens.tune.textside import tune
from primelens.tune.textside.run import Run


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
