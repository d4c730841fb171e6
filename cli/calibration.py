"""``--calibration``: the pictures that 4-bit weights are rounded by, and how well a bundle does on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primelens.cli.extras import needs_extra
from primelens.cli.inputs import PICTURE_SUFFIXES, Unmatched, expand

if TYPE_CHECKING:
    from primelens.export.options import TaskMetric
    from primelens.tune.data import DataSource, Example

__all__ = ["MOST_PICTURES", "calibration_of"]

_OPTION = "--calibration"
MOST_PICTURES = 128  # to round by; more change little


def calibration_of(data: str | None) -> dict[str, Any]:
    """The fields of `ExportOptions` that data give: pictures, and a metric where they are labelled.

    Args:
        data: pictures (a file, folder or pattern), or labelled data as `primelens evaluate` reads
            them: an annotation file, folder, shards, or drawn scenes.

    Raises:
        click.BadParameter: it holds no picture.
    """
    if data is None:
        return {}
    if Path(data).suffix.lower() in PICTURE_SUFFIXES or any(mark in data for mark in "*?["):
        return {"calibration": _pictures(data)}
    with needs_extra("tune"):
        from primelens.tune.evaluation.scene_tasks import drawn_examples, names_scenes

        drawn = names_scenes(data) and not Path(data).exists()
        source = data if drawn else _source(data)
        if source is None:
            return {"calibration": _pictures(data)}
        examples = list(drawn_examples(data)) if drawn else _examples(source)
    rounded, judged = _parts(examples)
    pictures = tuple(example.image.read() for example in rounded)
    return {"calibration": pictures, "metric": _metric(source, judged)}


def _pictures(data: str) -> tuple[Path, ...]:
    """Of a file, folder or pattern of pictures."""
    found = []
    for entry in expand((data,)):
        if isinstance(entry, Unmatched):
            raise click.BadParameter(f"{entry.argument}: {entry.reason}.", param_hint=_OPTION)
        found.append(Path(entry))
    return tuple(found[:MOST_PICTURES])


def _source(data: str) -> DataSource | None:
    """Labelled data; None of a folder that holds none."""
    from primelens.errors import InputError
    from primelens.tune.data import DataSource, detect_format

    path = Path(data)
    if not path.exists():
        raise click.BadParameter(f"{data} does not exist.", param_hint=_OPTION)
    try:
        return DataSource(path, detect_format(path))
    except InputError:
        if path.is_dir():
            return None
        raise


def _examples(source: DataSource | str) -> list[Example]:
    from primelens.tune.data import read_examples

    assert not isinstance(source, str)  # those are drawn
    found = list(read_examples(source))
    if not found:
        raise click.BadParameter("The data hold no picture.", param_hint=_OPTION)
    return found


def _parts(examples: Sequence[Example]) -> tuple[Sequence[Example], Sequence[Example]]:
    """Those to round by, from the end, and those to judge by: the others, if they are as many."""
    rest = len(examples) - MOST_PICTURES
    if rest < MOST_PICTURES:
        return examples[-MOST_PICTURES:], examples
    return examples[rest:], examples[:rest]


def _metric(source: DataSource | str, judged: Sequence[Example]) -> TaskMetric:
    """What the examples can be judged by, over the first of the data."""
    from primelens.export.options import TaskMetric
    from primelens.tune.evaluation import Request, evaluate
    from primelens.tune.metrics import Resampling

    what = _name_of_metric(judged[0], drawn=isinstance(source, str))
    few = Resampling(samples=2)  # nobody asks for intervals here

    def measure(folder: Path) -> float:
        request = Request(str(folder), source, limit=len(judged), resampling=few)
        for table in evaluate(request).report.tables:
            scores = next(iter(table.rows.values()))  # of the system itself
            if what in scores:
                return scores[what].value
        raise AssertionError(f"an evaluation without {what}")

    name = source if isinstance(source, str) else source.path.name
    return TaskMetric(f"{what} on {len(judged)} pictures of {name}", measure)


def _name_of_metric(example: Example, *, drawn: bool) -> str:
    if example.questions:
        return "VQA accuracy"
    if example.captions:
        return "whole caption" if drawn else "CIDEr-D"
    return "top-1"
