"""Put the tuned answer and rank heads into the shipped default bundle, measured.

``python scripts/ship_default_heads.py --work .work/heads`` takes the checkpoints that
`primelens.tune.default_heads` left, adds them to the bundle as every user adds a head
(`primelens.export.heads`), then measures the *bundle* on held-out test scenes, and writes the
figures into its manifest and card. A head without a checkpoint there stays as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

import primelens
from primelens.atomic import write_bytes
from primelens.bundle import MANIFEST_NAME, file_record, open_bundle
from primelens.export.heads import HeadOptions, add_head, swap_head
from primelens.export.recover import declare_parts
from primelens.model import Model
from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.render import render
from primelens.tune.scenes.world import scene

ASSETS = Path(__file__).resolve().parents[1] / "runtime" / "assets"
HEADS = ("answer", "rank")
UNMEASURED = "text quality on labelled data"


def build(base: Path, work: Path, target: Path) -> None:
    """Write ``target``: the bundle ``base`` with both heads, each proved as it goes in."""
    with tempfile.TemporaryDirectory() as temporary:
        current = Path(temporary) / "base"
        shutil.copytree(base, current)
        found = [name for name in HEADS if (work / f"{name}-checkpoint").is_dir()]
        if not found:
            raise SystemExit(f"{work} holds neither of {', '.join(HEADS)}: tune a head first")
        for name in found:
            options = HeadOptions(kind="answer" if name == "answer" else None)
            put_in = swap_head if name in open_bundle(current).manifest.heads else add_head
            put_in(current, work / f"{name}-checkpoint", name, options)
        declare_parts(current)
        shutil.copytree(current, target, dirs_exist_ok=True)


def measure_answers(model: Model, scenes: int) -> dict[str, Any]:
    """Exact answers by topic, over all questions about the first test scenes."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for index in range(scenes):
        shown = scene("test", index)
        posed = questions(shown)
        picture = np.asarray(render(shown))
        answers = model.answer(picture, [question.text for question in posed])
        for question, answer in zip(posed, answers, strict=True):
            asked[question.topic] += 1
            right[question.topic] += answer.text == question.answer
    topics = {topic: right[topic] / asked[topic] for topic in sorted(asked)}
    total = sum(right.values()) / sum(asked.values())
    return {
        "split": "test", "pictures": scenes, "questions": sum(asked.values()),
        "exact_answers": total, "by_topic": topics,
    }  # fmt: skip


def measure_ranking(model: Model, scenes: int) -> dict[str, Any]:
    """Top-1 and top-5 of naming what stands alone, among the names of all kinds of objects."""
    alone = (i for i in count() if len(scene("test", i).groups) == 1)
    shown = [scene("test", index) for index in islice(alone, scenes)]
    labels = [kind.singular for kind in KINDS]
    first = fifth = 0
    pictures = (np.asarray(render(one)) for one in shown)
    for one, ranking in zip(
        shown, model.rank_batch(pictures, labels, template="a {}"), strict=True
    ):
        assert not isinstance(ranking, primelens.Failure)
        best = [label.label for label in ranking.labels[:5]]
        name = KINDS[one.groups[0].kind].singular
        first, fifth = first + (best[0] == name), fifth + (name in best)
    return {
        "split": "test", "pictures": scenes, "labels": len(labels), "template": "a {}",
        "top1": first / scenes, "top5": fifth / scenes,
    }  # fmt: skip


_QUALITY = """
Questions about {answer[pictures]} test scenes ({answer[questions]} questions): a share of
{answer[exact_answers]:.4f} is answered exactly ({topics}).

Naming the one kind of object of {rank[pictures]} test scenes among {rank[labels]} names: top-1
{rank[top1]:.4f}, top-5 {rank[top5]:.4f}.
"""


def write_measures(folder: Path, card_of: Path, measured: dict[str, Any]) -> None:
    """Put the figures into the manifest and the card; the card keeps what it said before."""
    bundle = open_bundle(folder)
    topics = ", ".join(f"{k} {v:.3f}" for k, v in measured["answer"]["by_topic"].items())
    card = folder / "README.md"
    before = card_of.read_text(encoding="utf-8")
    quality, domain = before[before.index("## Quality of this bundle") :].split("## Domain")
    told = quality.split("\nQuestions about ")[0].rstrip()  # what an earlier call added goes
    text = card.read_text(encoding="utf-8").split("## Quality of this bundle")[0].rstrip()
    text = text.replace(f"* not measured: {UNMEASURED}\n", "")
    added = _QUALITY.format(**measured, topics=topics)
    whole = f"{text}\n\n{told}\n{added}\n## Domain{domain}"
    write_bytes(card, whole.encode())
    # The captioner is as it was, and so are its figures; taking a head out forgets them.
    captions_at = open_bundle(card_of.parent).manifest.parity.get("task")
    task = {} if captions_at is None else {"task": captions_at}
    parity = {**bundle.manifest.parity, **task, "tasks": measured}
    parity["not_measured"] = [x for x in parity.get("not_measured", []) if x != UNMEASURED]
    files = {**bundle.manifest.files, card.name: file_record(card)}
    manifest = replace(bundle.manifest, parity=parity, files=files)
    write_bytes(folder / MANIFEST_NAME, manifest.to_bytes())
    open_bundle(folder)


def main() -> None:
    """Read the command line and ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work/heads"))
    parser.add_argument("--out", type=Path, default=ASSETS / "default", help="the bundle")
    parser.add_argument("--scenes", type=int, default=1000, help="test scenes to measure on")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.out.parent) as temporary:
        folder = Path(temporary) / "default"
        build(given.out, given.work, folder)
        model = primelens.load(folder)
        measured = {
            "answer": measure_answers(model, given.scenes),
            "rank": measure_ranking(model, given.scenes),
        }
        write_measures(folder, given.out / "README.md", measured)
        before = folder.with_name("before")
        given.out.rename(before)
        folder.rename(given.out)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
