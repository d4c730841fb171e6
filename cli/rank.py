"""``primelens rank``: which of some labels fit a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primelens.cli import rows
from primelens.cli.app import app, report
from primelens.cli.inputs import Unmatched, expand, unmatched
from primelens.cli.progress import progress

if TYPE_CHECKING:
    from primelens.model import Model
    from primelens.results import Failure, Ranking

__all__ = ["labels_of", "ranking_row"]


@app.command("rank", no_args_is_help=True)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--labels", metavar="A,B,...", help="The labels, separated by commas.")
@click.option(
    "--labels-file",
    type=click.Path(path_type=Path),
    help="A UTF-8 file with one label per line; empty lines are left out.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="A prompt with {} for the label; of several, the mean stands for the label.",
)
@click.option(
    "--score",
    type=click.Choice(["itm", "itc"]),
    help="itc compares embeddings; itm reads every label with the picture.  [default: itm, where "
    "the head has it]",
)
@click.option(
    "--preselect",
    type=click.IntRange(min=1),
    metavar="K",
    help="Rank by itm only the K labels that are best by itc.",
)
@click.option("--top", type=click.IntRange(min=1), help="Show this many labels only.")
@click.option("--model", default="default", show_default=True, metavar="BUNDLE")
@click.option("--head", help="Name of the rank head, where the bundle has several.")
@click.option("--revision", help="Commit, branch or tag, where --model is a hub id.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the engine.  [default: one per core]"
)
@click.option(
    "--cache",
    metavar="FOLDER",
    help="Keep what the locked tower says about each picture there, and use what is kept.",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="What embeddings are stored as; only fp32 is exact.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per picture and line.")
@click.pass_context
def rank(ctx: click.Context, /, images: tuple[str, ...], **chosen: Any) -> None:
    """Rank labels by how well they fit a picture.

    IMAGE is a file, a folder or a quoted pattern, as for `primelens caption`. Every line has a
    label's probability and score: the best label first.
    """
    import primelens

    labels = labels_of(chosen["labels"], chosen["labels_file"])
    loading = primelens.LoadOptions(threads=chosen["threads"], revision=chosen["revision"])
    cache = None
    if chosen["cache"]:
        cache = primelens.CacheOptions(chosen["cache"], dtype=chosen["cache_dtype"])
    chosen["options"] = primelens.RankOptions(chosen["score"], chosen["preselect"])
    model = primelens.load(chosen["model"], options=loading, cache=cache)
    entries = expand(images)
    failed = 0
    with progress(len(entries)) as bar:
        for name, item in _rankings(model, entries, labels, chosen):
            failed += _write(name, item, model.name, chosen, labelled=len(entries) > 1)
            bar.update(1)
    if failed:
        ctx.exit(1)


def labels_of(given: str | None, file: Path | None) -> list[str]:
    """The labels of both options.

    Raises:
        click.UsageError: there are none, or the file cannot be read.
    """
    labels = [label.strip() for label in (given or "").split(",")]
    if file is not None:
        try:
            labels += [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise click.UsageError(f"--labels-file {file} cannot be read: {error}.") from error
    labels = [label for label in labels if label]
    if not labels:
        raise click.UsageError("There are no labels: give --labels a,b or --labels-file FILE.")
    return labels


def _rankings(
    model: Model,
    entries: Sequence[str | Unmatched],
    labels: Sequence[str],
    chosen: dict[str, Any],
) -> Iterator[tuple[str, Ranking | Failure]]:
    """The name and the result of every entry, in order; at most one batch is held at a time."""
    paths = (entry for entry in entries if isinstance(entry, str))
    results = iter(
        model.rank_batch(
            paths,
            labels,
            template=chosen["templates"] or None,
            head=chosen["head"],
            batch_size=chosen["batch_size"],
            options=chosen["options"],
        )
    )
    for entry in entries:
        if isinstance(entry, Unmatched):
            yield entry.argument, unmatched(entry)
        else:
            yield entry, next(results)


def _write(
    name: str, item: Ranking | Failure, model: str, chosen: dict[str, Any], *, labelled: bool
) -> bool:
    """Write one result; returns whether it is a failure."""
    from primelens.results import Failure

    if isinstance(item, Failure):
        if chosen["as_json"]:
            rows.write_json(rows.failure_row(name, item.error, model))
        report(item.error)
        return True
    if chosen["as_json"]:
        rows.write_json(ranking_row(name, item, model, chosen["top"]))
        return False
    if labelled:
        rows.write_text(f"{rows.printable(name)}:")
    for entry in item.labels[: chosen["top"]]:
        line = f"{entry.probability:8.4f}  {entry.score:10.4f}  {rows.printable(entry.label)}"
        rows.write_text(line)
    return False


def ranking_row(image: str, ranking: Ranking, model: str, top: int | None) -> dict[str, Any]:
    """The JSON object of a ranked picture; ``timings_ms`` are milliseconds."""
    return {
        "image": image,
        "status": "ok",
        "labels": [
            {"label": e.label, "probability": e.probability, "score": e.score}
            for e in ranking.labels[:top]
        ],
        "scoring": ranking.scoring,
        "score": ranking.score,
        "timings_ms": ranking.timings.as_milliseconds(),
        "cache": ranking.cache,
        "model": model,
    }
