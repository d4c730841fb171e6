"""``primelens encode``: fill a folder of kept embeddings ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from primelens.cli import rows
from primelens.cli.app import app, report
from primelens.cli.cache import Size
from primelens.cli.inputs import Unmatched, expand, unmatched
from primelens.cli.progress import progress

if TYPE_CHECKING:
    from primelens.errors import PrimelensError
    from primelens.options import CacheOptions
    from primelens.results import EncodedImage, Failure

__all__ = ["cache_options", "encode"]


def cache_options(folder: Path, dtype: Literal["fp32", "fp16", "int8"], size: int) -> CacheOptions:
    """What ``--cache``, ``--cache-dtype`` and ``--cache-size`` ask for."""
    from primelens.options import CacheOptions

    return CacheOptions(folder, dtype=dtype, cap_bytes=size)


@app.command("encode", no_args_is_help=True)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--cache",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder that embeddings are kept in; made if it is absent.",
)
@click.option("--model", default="default", show_default=True, metavar="BUNDLE")
@click.option("--revision", help="Commit, branch or tag, where --model is a hub id.")
@click.option(
    "--cache-dtype",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="What embeddings are stored as; only fp32 is exact.",
)
@click.option(
    "--cache-size", type=Size(), default="10G", show_default=True, help="Most that is kept."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the engine.  [default: one per core]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per picture and line.")
@click.pass_context
def encode(ctx: click.Context, /, images: tuple[str, ...], **chosen: Any) -> None:
    """Run the locked tower over pictures and keep what it says.

    IMAGE is a file, a folder or a quoted pattern, as for `primelens caption`. Later calls of any
    model with the same tower find the embeddings there, whatever became of its text side.
    """
    import primelens

    loading = primelens.LoadOptions(threads=chosen["threads"], revision=chosen["revision"])
    cache = cache_options(chosen["folder"], chosen["cache_dtype"], chosen["cache_size"])
    model = primelens.load(chosen["model"], options=loading, cache=cache)
    entries = expand(images)
    counts = {"hit": 0, "miss": 0, "failed": 0}
    try:
        with progress(len(entries)) as bar:
            for name, item in _encoded(model, entries, chosen["batch_size"]):
                counts[_write(name, item, as_json=chosen["as_json"])] += 1
                bar.update(1)
    finally:  # whoever interrupts it is told how far it came, too
        stats = model.cache_stats()
        model.close()
        not_kept = stats.not_kept if stats else 0
        _summary(counts, not_kept, str(chosen["folder"]))
    if counts["failed"] or not_kept:
        ctx.exit(1)


def _encoded(
    model: Any, entries: list[str | Unmatched], batch_size: int
) -> Iterator[tuple[str, EncodedImage | Failure]]:
    """The name and the result of every entry, in order; one batch is held at a time."""
    iterator = iter(entries)
    while chunk := list(islice(iterator, batch_size)):
        paths = [entry for entry in chunk if isinstance(entry, str)]
        results = iter(model.encode_batch(paths, batch_size=batch_size))
        for entry in chunk:
            if isinstance(entry, Unmatched):
                yield entry.argument, unmatched(entry)
            else:
                yield entry, next(results)


def _write(name: str, item: EncodedImage | Failure, *, as_json: bool) -> str:
    from primelens.results import Failure

    if isinstance(item, Failure):
        error: PrimelensError = item.error
        if as_json:
            rows.write_json({"image": name, "status": "error", "error": str(error)})
        report(error)
        return "failed"
    if as_json:
        rows.write_json(
            {
                "image": name,
                "status": "ok",
                "cache": item.cache,
                "cache_reason": item.cache_reason,
                "source": item.source,
                "entries": dict(item.entries),
                "bytes": item.nbytes,
                "timings_ms": item.timings.as_milliseconds(),
            }
        )
    return item.cache


def _summary(counts: dict[str, int], not_kept: int, folder: str) -> None:
    parts = [f"{counts['miss']} encoded", f"{counts['hit']} kept before"]
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    parts += [f"{not_kept} could not be written"] if not_kept else []
    click.echo(f"primelens: {rows.printable(folder)}: {', '.join(parts)}", err=True)
