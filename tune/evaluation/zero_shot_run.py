"""Zero-shot classification: a picture's label among a list of labels that nobody tuned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from primelens.errors import InputError, OptionError
from primelens.tune.data.parsing import lines
from primelens.tune.evaluation.ranking import CHANCE, Ranked, chance_of_labels, looked_at
from primelens.tune.evaluation.report import Table, scored
from primelens.tune.evaluation.scene_tasks import OBJECT_LABELS
from primelens.tune.evaluation.stage import Evaluation, Stage
from primelens.tune.metrics import Tally, mean_tally, zero_shot_tallies

__all__ = ["labelled", "read_labels"]

FREQUENT_LABEL = "most frequent labels"
_AT = (1, 5)


def labelled(stage: Stage) -> Evaluation:
    """Let the systems choose labels, and score them."""
    how = stage.request.resampling
    names = _labels(stage)
    place = {label: row for row, label in enumerate(names)}
    templates = list(stage.request.templates) or None
    field = stage.field(lambda name: looked_at(stage, name))
    truth = [str(example.label) for example in stage.examples]
    chosen: dict[str, str] = {}

    @cache
    def tallies(title: str) -> list[Tally]:
        system = field.all[title]
        assert isinstance(system, Ranked)
        images = system.images(stage.examples)
        classes = system.ranker.embed_labels(list(names.values()), templates)
        if title == field.main.name:
            best = (images @ classes.T).argmax(axis=1)
            labels = list(names)
            chosen.update({e.id: labels[n] for e, n in zip(stage.examples, best, strict=True)})
        return zero_shot_tallies(images, classes, [place[label] for label in truth], at=_AT)

    rows = {title: scored(tallies(title), how) for title in field.all}
    rows[FREQUENT_LABEL] = scored(_frequent(stage, truth), how)
    rows[CHANCE] = scored(chance_of_labels(len(truth), len(names), _AT), how)
    _note_templates(stage, field.main)
    title = f"{len(truth)} pictures, {len(names)} labels, of which {len(set(truth))} occur"
    report = stage.report(field, [Table(title, rows)], tallies)
    return Evaluation(report, chosen, "labels")


def read_labels(path: Path) -> dict[str, str]:
    """A file with one label a line → label and what prompts call it.

    Both are the same, but where a line has two columns, parted by a tab: ``n01440764``, ``tench``.

    Raises:
        InputError: the file cannot be read, has no label, or has one twice.
    """
    found: dict[str, str] = {}
    for number, line in lines(path):
        label, _, name = (part.strip() for part in line.partition("\t"))
        if not label or label in found:
            problem = f"has the label {label!r} twice" if label else "has a name without a label"
            raise InputError(f"{path}, line {number} {problem}.")
        found[label] = name or label
    if not found:
        raise InputError(f"{path} holds no label.", remedy="Write one label a line.")
    return found


def _labels(stage: Stage) -> dict[str, str]:
    request = stage.request
    occurring = sorted({str(example.label) for example in stage.examples})
    if request.labels is not None:
        names = read_labels(request.labels)
    elif isinstance(request.data, str):
        names = {label: label for label in OBJECT_LABELS}
    else:
        names = {label: label for label in occurring}
        stage.notes.append(
            "No list of labels was given: those of the data are chosen from. A longer list is "
            "harder."
        )
    if unknown := [label for label in occurring if label not in names]:
        raise InputError(
            f"{len(unknown)} labels of the data are not in the list, for example {unknown[0]!r}.",
            remedy="Give a list with all of them.",
        )
    if len(names) < 2:
        raise OptionError("There is one label only: nothing can be chosen.")
    return names


def _note_templates(stage: Stage, main: object) -> None:
    assert isinstance(main, Ranked)
    used = stage.request.templates or main.ranker.spec.templates or ("{}",)
    whose = "" if stage.request.templates else " of the head"
    stage.notes.append(f"Templates{whose}: {', '.join(map(repr, used))}.")


def _frequent(stage: Stage, truth: Sequence[str]) -> list[Tally]:
    """Of whoever names the labels that the *other* pictures have most often, most often first."""
    pool = stage.examples if stage.pool is None else stage.pool
    counts = Counter(str(example.label) for example in pool)
    hits = np.zeros((len(_AT), len(truth)))
    for row, label in enumerate(truth):
        # Where the pictures serve each other, none counts for itself.
        own = counts[label] - (stage.pool is None)
        before = sum(count >= own for other, count in counts.items() if other != label)
        hits[:, row] = [own > 0 and before < k for k in _AT]
    return [mean_tally(f"top-{k}", row) for k, row in zip(_AT, hits, strict=True)]
