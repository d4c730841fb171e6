"""``primelens cache``: look after a folder of kept embeddings."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from primelens.cli import rows
from primelens.cli.app import Verb, app
from primelens.cli.extras import needs_extra

if TYPE_CHECKING:
    from primelens.store import EmbeddingStore
    from primelens.store.exchange import Imported
    from primelens.store.index import Row

    SizeBase = click.ParamType[int]
else:
    SizeBase = click.ParamType  # generic only in click's newer releases

__all__ = ["Size", "cache", "readable"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Size(SizeBase):
    """Bytes, or a number with K, M, G or T (powers of 1024): ``500M``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", value.strip().upper())
        if found is None:
            self.fail(f"{value!r} is not a size such as 500M or 10G.", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


def readable(size: int) -> str:
    """A number of bytes for people."""
    for unit in ("T", "G", "M", "K"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.1f} {unit}iB"
    return f"{size} B"


class _Verbs(click.Group):
    command_class = Verb


@app.group("cache", cls=_Verbs, no_args_is_help=True)
def cache() -> None:
    """Look after a folder of kept embeddings.

    `primelens caption --cache FOLDER` and `primelens encode --cache FOLDER` fill it. An embedding
    is kept under what it depends on alone: the picture's bytes, and the locked tower with its
    preprocessing. It survives every re-tuning of the text side.
    """


_FOLDER = click.argument("folder", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON, one object per line.")


def _open(folder: Path, mode: Literal["read-write", "read-only"]) -> EmbeddingStore:
    """The store in a folder that is there already."""
    from primelens.errors import StoreError
    from primelens.options import CacheOptions
    from primelens.store import EmbeddingStore

    if not (folder / "v1").is_dir():
        raise StoreError(
            f"{rows.printable(str(folder))} holds no kept embeddings.",
            remedy="Fill it first: primelens encode IMAGE... --cache FOLDER.",
        )
    return EmbeddingStore(CacheOptions(folder, mode=mode, cap_bytes=2**62, memory_bytes=0))


def _rows(store: EmbeddingStore) -> list[Row]:
    """What the index lists; raises `StoreError` where it cannot be read."""
    import sqlite3

    from primelens.errors import StoreError

    try:
        return store.rows()
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"The index of {store.path} cannot be read: {error}.",
            remedy="Run `primelens cache verify` on the folder; it rebuilds the index.",
        ) from error


@cache.command("info")
@_FOLDER
@_JSON
def info(folder: Path, as_json: bool) -> None:
    """Show how much is kept, of which towers, and what storing it cost in precision."""
    with _open(folder, "read-only") as store:
        listed = _rows(store)
        _, size, aside = store.totals()
    kinds: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in listed:
        kinds[row.key.tower, row.key.tap, row.key.variant, row.key.dtype].append(row)
    summary = [
        {
            "tower": tower,
            "tap": tap,
            "variant": variant,
            "dtype": dtype,
            "entries": len(members),
            "bytes": sum(row.size for row in members),
            "relative_error": sum(row.relative_error for row in members) / len(members),
        }
        for (tower, tap, variant, dtype), members in sorted(kinds.items())
    ]
    if as_json:
        rows.write_json(
            {"folder": str(folder), "entries": len(listed), "bytes": size, "quarantined": aside}
            | {"kinds": summary}
        )
        return
    rows.write_text(f"{folder}: {len(listed)} embeddings, {readable(size)}")
    if aside:
        rows.write_text(f"corrupt, put aside: {readable(aside)}")
    for kind in summary:
        rows.write_text(
            f"  tower {str(kind['tower'])[:12]}, tap {kind['tap']}, {kind['variant']}, stored as "
            f"{kind['dtype']}: {kind['entries']}, {readable(int(str(kind['bytes'])))}, relative "
            f"error {kind['relative_error']:.1e}"
        )


@cache.command("ls")
@_FOLDER
@click.option("--limit", type=click.IntRange(min=1), help="List that many at most.")
@_JSON
def ls(folder: Path, limit: int | None, as_json: bool) -> None:
    """List the embeddings, the most recently used first."""
    with _open(folder, "read-only") as store:
        listed = _rows(store)[:limit]
    for row in listed:
        used = datetime.fromtimestamp(row.used / 1e9, UTC).isoformat(timespec="seconds")
        if as_json:
            key = {"digest": row.key.digest, "tap": row.key.tap, **row.key.document()}
            extra = {"bytes": row.size, "used": used, "relative_error": row.relative_error}
            rows.write_json(key | extra)
        else:
            rows.write_text(
                f"{row.key.digest[:12]}  {used}  {readable(row.size):>10}  {row.key.dtype}  "
                f"picture {row.key.source[:12]}  tower {row.key.tower[:12]}  {row.key.tap}"
            )


@cache.command("verify")
@_FOLDER
@click.pass_context
def verify(ctx: click.Context, folder: Path) -> None:
    """Read and check every file; put corrupt ones aside, and mend the index.

    The exit status is 1 if a file was corrupt.
    """
    begin = time.perf_counter()
    with _open(folder, "read-write") as store:
        report = store.verify()
    rows.write_text(
        f"{folder}: {report.checked} files in {time.perf_counter() - begin:.1f} s, "
        f"{len(report.corrupt)} corrupt"
    )
    for digest in report.corrupt:
        rows.write_text(f"  corrupt, put aside: {digest}")
    if report.unlisted or report.lost:
        rows.write_text(
            f"  index rebuilt: {report.unlisted} files were not listed, {report.lost} listed files "
            "were not there"
        )
    if report.corrupt:
        ctx.exit(1)


@cache.command("prune")
@_FOLDER
@click.option("--to", "size", required=True, type=Size(), help="Keep that much, such as 10G.")
def prune(folder: Path, size: int) -> None:
    """Remove the least recently used embeddings until the rest fits."""
    with _open(folder, "read-write") as store:
        removed = store.prune(size)
        _, left, _ = store.totals()
    rows.write_text(f"{folder}: {removed} embeddings removed, {readable(left)} left")


@cache.command("clear")
@_FOLDER
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(folder: Path, yes: bool) -> None:
    """Remove every embedding. The pictures have to be encoded again."""
    with _open(folder, "read-write") as store:
        entries, size, _ = store.totals()
        if not yes:
            question = f"Remove {entries} embeddings, {readable(size)}, from {folder}?"
            click.confirm(question, abort=True, err=True)
        removed = store.clear()
    rows.write_text(f"{folder}: {removed} embeddings removed")


_FORMAT = click.option(
    "--format",
    "layout",
    type=click.Choice(["safetensors", "clip-retrieval"]),
    default="safetensors",
    show_default=True,
    help="Shards that any safetensors library reads, or .npy beside parquet (needs "
    "primelens[parquet]).",
)


@cache.command("export")
@_FOLDER
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder to be made."
)
@_FORMAT
@click.option("--tap", help="Of the tower, where several are kept (clip-retrieval only).")
@click.option("--shard-size", type=Size(), default="256M", show_default=True)
def export(folder: Path, out: Path, layout: str, tap: str | None, shard_size: int) -> None:
    """Write the embeddings to a folder that other programs, and `cache import`, read."""
    if tap is not None and layout == "safetensors":
        raise click.UsageError("--tap belongs to --format clip-retrieval; shards hold every tap.")
    with _open(folder, "read-only") as store:
        if layout == "safetensors":
            from primelens.store.exchange import export_shards

            written = export_shards(store, out, shard_bytes=shard_size)
        else:
            with needs_extra("parquet"):
                from primelens.offline.clip_retrieval import export_folder

            written = export_folder(store, out, tap=tap)
    rows.write_text(f"{out}: {written} embeddings")


@cache.command("import")
@_FOLDER
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_FORMAT
@click.option("--cap", type=Size(), default="10G", show_default=True, help="Size of FOLDER.")
@click.pass_context
def import_(ctx: click.Context, folder: Path, source: Path, layout: str, cap: int) -> None:
    """Keep the embeddings of SOURCE, which `cache export` wrote, in FOLDER.

    What is unsound is named and not kept, and the exit status is 1.
    """
    from primelens.options import CacheOptions
    from primelens.store import EmbeddingStore

    with EmbeddingStore(CacheOptions(folder, cap_bytes=cap, memory_bytes=0)) as store:
        imported = _import(store, source, layout)
    for problem in _few(imported.problems):
        rows.write_text(f"  not kept: {rows.printable(problem)}")
    rows.write_text(f"{folder}: {imported.kept} embeddings kept, {len(imported.problems)} not")
    if imported.problems:
        ctx.exit(1)


def _import(store: EmbeddingStore, source: Path, layout: str) -> Imported:
    if layout == "clip-retrieval":
        with needs_extra("parquet"):
            from primelens.offline.clip_retrieval import import_folder

        return import_folder(store, source)
    from primelens.errors import StoreError
    from primelens.store.exchange import import_shards

    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise StoreError(
            f"{rows.printable(str(source))} holds no shard (*.safetensors).",
            remedy="Give a folder that `primelens cache export` wrote.",
        )
    return import_shards(store, shards)


def _few(lines: list[str], most: int = 20) -> Iterator[str]:
    yield from lines[:most]
    if len(lines) > most:
        yield f"and {len(lines) - most} more"
