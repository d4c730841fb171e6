"""Names of systems, answers of bundles, and fusions in one table, on real tiny bundles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import primelens
from primelens import CaptionOptions, LoadOptions
from primelens.ensemble import Ensemble
from primelens.errors import InputError, OptionError
from primelens.export import ExportOptions, GateOptions, export_checkpoint
from primelens.export.heads import HeadOptions, add_head
from primelens.export.reference_works import build
from primelens.tune.data import DataSource
from primelens.tune.evaluation import Request, evaluate, speakers
from primelens.tune.evaluation.scene_tasks import drawn_examples, question_examples
from primelens.tune.evaluation.speakers import SystemName
from primelens.tune.metrics import Resampling
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.world import scene

QUICK = Resampling(samples=20)
GATE = GateOptions(threads=1, random_images=2, steps=4)


def test_names_of_systems() -> None:
    assert SystemName.parse("a/b") == SystemName("a/b")
    assert SystemName.parse("a/b#x") == SystemName("a/b", (("x", 1.0),))
    assert SystemName.parse("b#x+y").heads == (("x", 0.5), ("y", 0.5))
    assert SystemName.parse("b#x=0.25+y=0.75").heads == (("x", 0.25), ("y", 0.75))
    for wrong in ("b#", "#x", "b#x+", "b#x+x", "b#x=much", "b#x=0.5+y", "b#x=+y=1"):
        with pytest.raises(OptionError, match="names no heads"):
            SystemName.parse(wrong)


def test_a_bundle_answers_every_question_and_sees_every_picture_once(
    world: Any, colours: Any, tmp_path: Path
) -> None:
    data = _vqa(world, tmp_path)
    found = evaluate(Request("colours", data, resampling=QUICK), load=world.load)
    assert colours.encoded == 3
    questions_asked = [question for _, question in colours.asked]
    assert questions_asked == ["Is it red?", "Why?", "Is it red?", "Is it blue?"]
    assert found.predictions == {"1": "yes", "2": "because", "3": "yes", "4": "yes"}
    assert found.says == "answers"
    whole, by_kind, _ = found.report.tables
    assert whole.rows["colours"]["VQA accuracy"].value == pytest.approx(2 / 4)
    row = by_kind.rows["colours"]
    shares = {name: score.value for name, score in row.items()}
    assert shares == {"yes/no (3)": pytest.approx(1 / 3), "other (1)": 1}
    assert "most frequent answer for the question's beginning" in by_kind.rows
    assert found.report.provenance == {"tower of colours": "t" * 64}
    named = evaluate(
        Request("colours#red", data, against=("colours",), resampling=QUICK), load=world.load
    )
    assert named.predictions["1"] == "red"
    assert list(named.report.against) == ["colours"]


def test_a_broken_picture_takes_its_questions_along(
    world: Any, colours: Any, tmp_path: Path
) -> None:
    data = _vqa(world, tmp_path)
    (world.folder / "000000000020.jpg").write_bytes(b"no picture")
    report = evaluate(Request("colours", data, resampling=QUICK), load=world.load).report
    assert report.tables[0].title.startswith("3 questions")
    assert report.pictures == 2
    assert len(report.broken) == 1


def test_questions_about_scenes() -> None:
    examples = list(drawn_examples("scenes-questions:validation:3"))
    assert examples == list(question_examples("validation", 3))
    for index, example in enumerate(examples):
        asked = questions(scene("validation", index))
        assert [(q.text, q.kind) for q in example.questions] == [(q.text, q.topic) for q in asked]
        assert [q.answers for q in example.questions] == [(q.answer,) * 10 for q in asked]
        assert not example.captions
    with pytest.raises(InputError, match="names no scenes"):
        drawn_examples("scene-puzzles:test:3")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, with its caption head under a second name."""
    folder = tmp_path_factory.mktemp("twins") / "bundle"
    shutil.copytree(primelens.load().folder, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["heads"]["twin"] = manifest["heads"]["caption"]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_a_real_bundle_is_asked_questions_about_scenes(twins: Path) -> None:
    found = evaluate(Request(f"{twins}#caption", "scene-questions:test:2", resampling=QUICK))
    model = primelens.load(twins, options=LoadOptions(threads=1))
    (example, _) = question_examples("test", 2)
    asked = [question.text for question in example.questions]
    picture, options = example.image.read(), CaptionOptions(head="caption")
    expected = [answer.text for answer in model.answer(picture, asked, options)]
    assert [found.predictions[question.id] for question in example.questions] == expected
    assert any("No human row" in note for note in found.report.notes)
    kinds = found.report.tables[1].metrics
    assert any(name.startswith("count") for name in kinds)


def test_heads_that_write_together_are_a_system(
    twins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    class Recorded(Ensemble):
        def __init__(self, model: Any, weights: Mapping[str, float]) -> None:
            given.append(dict(weights))
            super().__init__(model, weights)

    monkeypatch.setattr(speakers, "Ensemble", Recorded)
    request = Request(
        f"{twins}#twin",
        "scenes:test:2",
        against=(f"{twins}#caption=0.3+twin=0.7", f"{twins}#caption"),
        resampling=QUICK,
    )
    found = evaluate(request)
    titles = list(found.report.tables[0].rows)[:3]
    assert titles == ["scenes#twin", "scenes#caption=0.3+twin=0.7", "scenes#caption"]
    assert given == [{"caption": 0.3, "twin": 0.7}]
    # A head that agrees with itself says what it says alone.
    rows = [found.report.tables[0].rows[title] for title in titles]
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(OptionError, match="do not rank together"):
        evaluate(Request(f"{twins}#caption+twin", "scene-objects:test:2"))
    with pytest.raises(InputError, match="no head 'none' that writes"):
        evaluate(Request(f"{twins}#none", "scenes:test:2"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tower; ``caption``, and ``answer`` with another text side."""
    folder = tmp_path_factory.mktemp("speakers")
    first, second, out = build("tiny-vitgpt2", folder / "first", seed=0), folder / "b", folder / "x"
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
    export_checkpoint(first, out, ExportOptions(gate=GATE))
    add_head(out, second, "answer", HeadOptions(gate=GATE, kind="answer"))
    return out


@pytest.mark.slow
def test_fusions_in_one_table_differ(bundle: Path) -> None:
    together = f"{bundle}#caption=0.3+answer=0.7"
    request = Request(
        f"{bundle}#caption",
        "scenes:test:2",
        against=(f"{bundle}#answer", together),
        resampling=QUICK,
    )
    found = evaluate(request)
    name = primelens.load(bundle).name
    titles = [f"{name}#caption", f"{name}#answer", f"{name}#caption=0.3+answer=0.7"]
    for table in found.report.tables[:1]:
        assert list(table.rows)[:3] == titles
    assert list(found.report.against) == titles[1:]
    ensemble = evaluate(Request(together, "scenes:test:2", resampling=QUICK))
    model = primelens.load(bundle)
    picture = next(iter(drawn_examples("scenes:test:1"))).image.read()
    alone = [model.caption(picture, CaptionOptions(head=h)).text for h in ("caption", "answer")]
    text = Ensemble(model, {"caption": 0.3, "answer": 0.7}).caption(picture).text
    assert ensemble.predictions["test:0"] == text
    assert text not in alone


@pytest.mark.slow
def test_who_cannot_do_the_task_says_so(bundle: Path) -> None:
    for task, data in (("retrieval", "scenes:test:2"), ("zero-shot", "scene-objects:test:2")):
        request = Request(str(bundle), data, task=task)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="no rank head"):
            evaluate(request)


def _vqa(world: Any, folder: Path) -> DataSource:
    asked = [
        (1, 10, "Is it red?", "yes", "yes/no"),
        (2, 10, "Why?", "because", "other"),
        (3, 20, "Is it red?", "no", "yes/no"),
        (4, 30, "Is it blue?", "no", "yes/no"),
    ]
    rows = [{"question_id": q, "image_id": i, "question": t} for q, i, t, _, _ in asked]
    truth = [
        {"question_id": q, "answer_type": k, "answers": [{"answer": a}] * 10}
        for q, _, _, a, k in asked
    ]
    (folder / "q.json").write_text(json.dumps({"questions": rows}))
    (folder / "a.json").write_text(json.dumps({"annotations": truth}))
    for key, name in ((10, "red.png"), (20, "blue.png"), (30, "pink.png")):
        (world.folder / f"{key:012d}.jpg").write_bytes((world.folder / name).read_bytes())
    return DataSource(folder / "q.json", answers=folder / "a.json", images=world.folder)
