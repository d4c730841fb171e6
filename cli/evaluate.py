"""``primelens evaluate``: how good is a bundle, or a result file, on labelled data?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

if TYPE_CHECKING:
    from primelens.tune.data import DataSource
    from primelens.tune.evaluation import Evaluation, Request

__all__ = ["evaluate"]

_EXISTING = click.Path(exists=True, path_type=Path)
_FORMATS = "coco, karpathy, vqa, flickr8k, conceptual, folder, classes, parquet, webdataset"
_TASKS = ("auto", "caption", "answer", "retrieval", "zero-shot")


@app.command("evaluate", no_args_is_help=True)
@click.argument("system")
@click.option("--data", required=True, help="Annotation file, folder, shards, or drawn scenes.")
@click.option(
    "--task",
    type=click.Choice(_TASKS),
    default="auto",
    show_default=True,
    help="What to do; auto: answers, captions or labels, as the data have them.",
)
@click.option("--format", "format_", default="auto", help=f"Of the data: {_FORMATS}.")
@click.option("--images", type=_EXISTING, help="Folder of the pictures, if not beside the data.")
@click.option("--answers", type=_EXISTING, help="VQAv2's annotations, where data has questions.")
@click.option("--split", help="This split of the data alone.")
@click.option("--pool", type=_EXISTING, help="Data that the baselines draw on, in their format.")
@click.option("--pool-split", help="A split of the same data that the baselines draw on.")
@click.option("--holdout", type=int, help="Evaluate N drawn pictures; the others are the pool.")
@click.option("--limit", type=int, help="Evaluate the first N pictures.")
@click.option(
    "--against", metavar="SYSTEM", multiple=True, help="Another system, compared in pairs; repeat."
)
@click.option("--fit", help="Data to fit the weights of two heads on that are named without.")
@click.option("--fit-split", help="Another split of the same data to fit them on.")
@click.option("--untuned", metavar="BUNDLE", help="Baseline: a bundle with untuned text side.")
@click.option("--tower", metavar="BUNDLE", help="Whose tower finds neighbours for a result file.")
@click.option("--labels", type=_EXISTING, help="zero-shot: labels to choose from, one a line.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="zero-shot: a prompt with {} for the label; repeat for several.",
)
@click.option("--jars", type=_EXISTING, help="Folder of pycocoevalcap: METEOR and SPICE too.")
@click.option("--samples", type=int, default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of bootstrap and holdout.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for reports and result file.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def evaluate(system: str, out: Path | None, as_json: bool, **chosen: Any) -> None:
    """Measure captions, answers or rankings, with baselines and 95 % intervals.

    SYSTEM is a bundle (folder, shipped name or hub id), or a COCO result file (*.json). BUNDLE#HEAD
    names one of its heads, BUNDLE#A=0.6+B=0.4 two that write together; the weights of BUNDLE#A+B
    are equal, or fitted on the data of --fit.

    Captions get BLEU, ROUGE-L and CIDEr-D with the official tokenisation; answers the official VQA
    accuracy; --task retrieval R@1, 5 and 10 both ways; --task zero-shot top-1 and 5. DATA may be
    drawn: scenes:test:500, scene-questions:test:500, scene-objects:test:500. Every report has the
    baselines that cost nothing, and a human where there are references enough.
    """
    with needs_extra("tune"):
        from primelens.tune.evaluation import evaluate as measure

    found = measure(_request(system, chosen))
    if as_json:
        rows.write_json(found.report.as_dict())
    else:
        for line in found.report.lines:
            rows.write_text(line)
    if out is not None:
        _write(out, found)


def _request(system: str, chosen: dict[str, Any]) -> Request:
    from primelens.tune.evaluation import Request
    from primelens.tune.metrics import Resampling

    data = _data(chosen)
    passed = ("task", "holdout", "limit", "against", "untuned", "tower", "labels", "templates")
    return Request(
        system,
        data,
        pool=_pool(data, chosen),
        fit=_fit(data, chosen),
        jars=chosen["jars"],
        resampling=Resampling(samples=chosen["samples"], seed=chosen["seed"]),
        **{name: chosen[name] for name in passed},
    )


def _data(chosen: dict[str, Any]) -> DataSource | str:
    return _named(chosen["data"], chosen["split"], chosen)


def _named(name: str, split: str | None, chosen: dict[str, Any]) -> DataSource | str:
    from primelens.tune.data import DataSource
    from primelens.tune.evaluation.scene_tasks import names_scenes

    if names_scenes(name) and not Path(name).exists():
        return name
    images, answers = chosen["images"], chosen["answers"]
    return DataSource(Path(name), chosen["format_"], images=images, split=split, answers=answers)


def _fit(data: DataSource | str, chosen: dict[str, Any]) -> DataSource | str | None:
    if chosen["fit"] is not None:
        return _named(chosen["fit"], chosen["fit_split"], chosen)
    return _other_split(data, chosen["fit_split"], "fit")


def _pool(data: DataSource | str, chosen: dict[str, Any]) -> DataSource | None:
    from primelens.tune.data import DataSource

    if chosen["pool"] is not None:
        return DataSource(chosen["pool"], images=chosen["images"], split=chosen["pool_split"])
    return _other_split(data, chosen["pool_split"], "pool")


def _other_split(data: DataSource | str, split: str | None, option: str) -> DataSource | None:
    from dataclasses import replace

    from primelens.errors import OptionError

    if split is None:
        return None
    if isinstance(data, str) or data.split is None or data.split == split:
        raise OptionError(
            f"--{option}-split names another split of the data than --split.",
            remedy=f"Give both, or --{option} with data of its own.",
        )
    return replace(data, split=split)


def _write(out: Path, found: Evaluation) -> None:
    from primelens.atomic import write_bytes
    from primelens.tune.data import write_answers, write_captions, write_labels

    out.mkdir(parents=True, exist_ok=True)
    report = json.dumps(found.report.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(out / "report.json", f"{report}\n".encode())
    write_bytes(out / "report.md", found.report.markdown().encode())
    write = {"captions": write_captions, "answers": write_answers, "labels": write_labels}
    write[found.says](out / "results.json", found.predictions)
