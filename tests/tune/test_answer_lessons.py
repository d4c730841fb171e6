from __future__ import annotations

import numpy as np
import pytest
import torch

from primelens.tune import answer_lessons
from primelens.tune.answer_lessons import AnswerLessons
from primelens.tune.captioner import GRID, WIDTH, build_tower, scene_texts, train_tokenizer
from primelens.tune.default_heads import build_answer, tuned_side
from primelens.tune.scenes.objects import KIND_BY_NAME, KINDS
from primelens.tune.scenes.targets import cell_targets
from primelens.tune.scenes.world import scene

SCENES = [scene("train", number) for number in range(8)]


@pytest.fixture
def lessons() -> AnswerLessons:
    torch.manual_seed(0)
    model = build_answer(build_tower())
    return AnswerLessons(
        model, train_tokenizer(scene_texts(60, 0)), torch.randn(len(KINDS), WIDTH), 0.02
    )


def test_a_question_about_presence_comes_with_its_contrast(lessons: AnswerLessons) -> None:
    draw, seen = np.random.default_rng(0), 0
    for shown in SCENES * 4:
        pair = lessons.pair(shown, draw)
        if pair[0].topic == "presence":
            seen += 1
            assert {question.answer for question in pair} == {"yes", "no"}
            present = {group.kind for group in shown.groups}
            for question in pair:
                named = question.text.removeprefix("is there ").split(" ", 1)[1].rstrip("?")
                assert (KIND_BY_NAME[named] in present) == (question.answer == "yes")
    assert seen > 4


def test_where_to_look() -> None:
    shown = next(one for one in SCENES if len(one.groups) > 1)
    kinds = cell_targets(shown, GRID).kinds.ravel()
    kind = shown.groups[0].kind
    look = answer_lessons._looked_at
    for text in (
        f"how many {KINDS[kind].plural} are there?",
        f"is there {KINDS[kind].article} {KINDS[kind].singular}?",
        f"what is left of the {KINDS[kind].singular}?",
    ):
        assert np.array_equal(look(kinds, text), kinds == kind + 1)
    absent = next(k for k in KINDS if KIND_BY_NAME[k.singular] + 1 not in kinds)
    assert np.array_equal(look(kinds, f"is there a {absent.singular}?"), kinds == 0)
    assert not look(kinds, "what is in the picture?").any()
    cells = torch.from_numpy(np.stack([kinds == 0, kinds == 99]))
    even = torch.full((2, 2, GRID * GRID), 1 / GRID**2)
    lost = answer_lessons._looking_loss(even, cells)
    assert lost.item() == pytest.approx(-np.log((kinds == 0).mean()), rel=1e-4)


def test_names_are_learned_first_and_without_a_picture(lessons: AnswerLessons) -> None:
    side = tuned_side(lessons._model)
    optimiser = torch.optim.AdamW(side.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        states = torch.randn(len(SCENES), GRID**2, WIDTH)
        loss = lessons.loss(states, SCENES, np.random.default_rng(1), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(len(KINDS)), rel=0.1)
    assert losses[-1] < losses[0] / 2


def test_afterwards_answers_and_looking_count(lessons: AnswerLessons) -> None:
    states = torch.randn(len(SCENES), GRID**2, WIDTH)
    loss = lessons.loss(states, SCENES, np.random.default_rng(1), 10_000)
    figures = lessons.figures()
    weighted = figures["told"] + 0.5 * figures["looking"] + 0.5 * figures["naming"]
    assert loss.item() == pytest.approx(weighted, abs=0.01)
    assert {"count", "presence"} & set(figures)
