"""``primelens embed``: a rank head's embeddings of pictures or texts, as a file of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primelens.cli import rows
from primelens.cli.app import app, report
from primelens.cli.inputs import Unmatched, expand, unmatched
from primelens.cli.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from primelens.model import Model

__all__ = ["write_vectors"]

_SUFFIXES = (".npy", ".safetensors")


@app.command("embed", no_args_is_help=True)
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@click.option("--text", "texts", multiple=True, help="Embed this text; may be repeated.")
@click.option(
    "--texts-file",
    type=click.Path(path_type=Path),
    help="A UTF-8 file with one text per line; empty lines are left out.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="FILE.npy, [N, width] float32; or FILE.safetensors, which holds the names too.",
)
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
@click.pass_context
def embed(ctx: click.Context, /, images: tuple[str, ...], **chosen: Any) -> None:
    """Write embeddings of length 1; their products are cosines.

    Give pictures, as for `primelens caption`, or texts. A row's name is the picture's path or the
    text, in the order they were given; standard output lists them. A picture that cannot be read
    has no row, is named on standard error, and the exit status is 1.
    """
    import numpy as np

    import primelens

    out: Path = chosen["out"]
    if out.suffix not in _SUFFIXES:
        raise click.UsageError(f"--out {out} must end in {' or '.join(_SUFFIXES)}.")
    texts = _texts(chosen["texts"], chosen["texts_file"])
    if bool(images) == bool(texts):
        raise click.UsageError("Give pictures, or texts by --text or --texts-file.")
    loading = primelens.LoadOptions(threads=chosen["threads"], revision=chosen["revision"])
    cache = None
    if chosen["cache"]:
        cache = primelens.CacheOptions(chosen["cache"], dtype=chosen["cache_dtype"])
    model = primelens.load(chosen["model"], options=loading, cache=cache)
    if texts:
        names, vectors, failed = list(texts), model.embed_text(texts, head=chosen["head"]), 0
    else:
        found, failed = [], 0
        entries = expand(images)
        with progress(len(entries)) as bar:
            for name, vector in _embedded(model, entries, chosen):
                found += [] if vector is None else [(name, vector)]
                failed += vector is None
                bar.update(1)
        names = [name for name, _ in found]
        width = model.rank_head(chosen["head"]).spec.width
        vectors = np.stack([v for _, v in found]) if found else np.zeros((0, width), np.float32)
    if names:
        write_vectors(out, names, vectors)
        for name in names:
            rows.write_text(rows.printable(name))
    if failed:
        ctx.exit(1)


def _texts(given: Sequence[str], file: Path | None) -> list[str]:
    texts = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise click.UsageError(f"--texts-file {file} cannot be read: {error}.") from error
        texts += [line.strip() for line in lines if line.strip()]
    return texts


def _embedded(
    model: Model, entries: Sequence[str | Unmatched], chosen: dict[str, Any]
) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
    """Name and vector of every picture; None, and a report, where there is none."""
    from primelens.results import Failure

    size, head = chosen["batch_size"], chosen["head"]
    iterator = iter(entries)
    while chunk := list(islice(iterator, size)):
        paths = [entry for entry in chunk if isinstance(entry, str)]
        results = iter(model.encode_batch(paths, batch_size=size))
        for entry in chunk:
            name = entry.argument if isinstance(entry, Unmatched) else entry
            item = unmatched(entry) if isinstance(entry, Unmatched) else next(results)
            if isinstance(item, Failure):
                report(item.error)
                yield name, None
            else:
                yield name, model.embed_image(item, head=head)


def write_vectors(path: Path, names: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write vectors ``[N, width]``, whole or not at all; a safetensors file holds ``embeds`` and,
    as its metadata, ``names``: a JSON list.
    """
    import io
    import json

    import numpy as np

    from primelens.atomic import write_bytes

    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(vectors, "<f4"), allow_pickle=False)
        write_bytes(path, buffer.getvalue())
        return
    from safetensors.numpy import save

    array = np.ascontiguousarray(vectors, np.float32)
    data = save({"embeds": array}, metadata={"names": json.dumps(list(names))})
    write_bytes(path, data)
