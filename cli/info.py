"""``primelens info``: what a bundle says of itself, without opening a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from primelens.cli import rows
from primelens.cli.app import app

if TYPE_CHECKING:
    from primelens.bundle import Bundle
    from primelens.manifest import HeadSpec, RankHeadSpec

__all__ = ["describe"]


@app.command("info", no_args_is_help=True)
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
@click.option("--revision", help="Commit, branch or tag, where BUNDLE is a hub id.")
def info(bundle: str, as_json: bool, revision: str | None) -> None:
    """Show what a bundle is, where it came from and how it was proved.

    BUNDLE is a folder, the name of a shipped model ("default"), or a hub id. The files' sizes are
    checked; `primelens verify` checks their content.
    """
    from primelens.bundle import open_bundle
    from primelens.hub import resolve

    opened = open_bundle(resolve(bundle, revision=revision), check="size")
    if as_json:
        from primelens.schema import encode

        rows.write_json({"folder": str(opened.folder), **encode(opened.manifest)})
        return
    for label, value in describe(opened):
        rows.write_text(f"{label + ':':<15} {value}")


def describe(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Label and value of every line of the report."""
    manifest = bundle.manifest
    source, tower = manifest.source, manifest.tower
    yield "name", manifest.name
    yield "folder", str(bundle.folder)
    yield "format", f"{manifest.format} {manifest.format_version}"
    revision = f" @ {source.revision}" if source.revision else ""
    yield "source", f"{source.checkpoint}{revision} ({source.architecture})"
    yield "licence", manifest.license or "the source states none"
    yield "domain", manifest.domain.description
    size = sum(record.size for record in manifest.files.values())
    yield "size", f"{size / 1e6:.1f} MB in {len(manifest.files)} files"
    taps = ", ".join(f"{name} {list(tap.shape)}" for name, tap in tower.taps.items())
    graph = "" if tower.graph else ", text only: encode pictures elsewhere"
    yield "tower", f"{tower.family}, {tower.variant}, taps: {taps}{graph}"
    for name, head in manifest.heads.items():
        yield from _head(name, head)
    if tower.variant == "int8-rows" or any(
        head.precision != "fp32" for head in manifest.heads.values()
    ):
        yield "kernels", _kernels()
    yield "golden", manifest.golden or "none: nothing to replay"
    yield "written by", ", ".join(f"{name} {v}" for name, v in manifest.producer.items())
    for name, value in _flat(manifest.parity):
        yield f"parity {name}", value


def _kernels() -> str:
    """What multiplies with weights of fewer bits on this machine."""
    from primelens.kernels import library

    found = library()
    if found.path is not None:
        return f"compiled, {found.version}"
    return f"none, the same results but slower: {found.reason}"


def _head(name: str, head: HeadSpec | RankHeadSpec) -> Iterator[tuple[str, str]]:
    from primelens.decoding.effective import describe_generation
    from primelens.manifest import RankHeadSpec

    if isinstance(head, RankHeadSpec):
        sizes = f"embeddings of width {head.width}, {head.scoring}"
        sizes += "" if head.matching is None else ", matching (itm)"
        yield f"head {name}", f"{head.kind}, {head.family}, {head.precision}, {sizes}"
        return
    decoder = f"{head.decoder.layers} layers, vocabulary {head.decoder.vocab_size}"
    yield f"head {name}", f"{head.kind}, {head.family}, {head.precision}, {decoder}"
    decoding = describe_generation(head.generation)
    yield f"  {name} decodes", ", ".join(f"{key}={value}" for key, value in decoding.items())


_LONG = 60  # characters of a list; digests and the like are for --json


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested parity data as dotted names; a list is told by its length where it is long."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and len(str(value)) > _LONG:
            yield name, f"{len(value)} values"
        else:
            yield name, f"{value:.3g}" if isinstance(value, float) else str(value)
