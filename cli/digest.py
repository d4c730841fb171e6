"""``primelens digest``: what a checkpoint or bundle is made of, by digest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

__all__ = ["digest"]


@app.command("digest", no_args_is_help=True)
@click.argument("source", metavar="CHECKPOINT|BUNDLE")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def digest(source: str, as_json: bool) -> None:
    """Print the digests of tower, preprocessing, taps and heads.

    Kept embeddings are filed under the identity at a tap. It depends on the weights upstream of
    the tap and on the preprocessing, and on nothing else: not on file names or containers, nor on
    the class that the tower is wrapped in, nor on the text side.

    For a bundle these are what it declares; `primelens verify BUNDLE --against CHECKPOINT` proves
    them. For a checkpoint, which may be a bare image tower too, they are computed; this needs
    primelens[export].
    """
    from primelens.hub import resolve

    if (Path(source) / "bundle.json").is_file() or source == "default":
        found = _of_bundle(resolve(source))
    else:
        with needs_extra("export"):
            from primelens.export.lock import identify

        found = asdict(identify(resolve(source, kind="checkpoint")))
    if as_json:
        rows.write_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            for key, text in value.items():
                rows.write_text(f"{name.removesuffix('s')} {key}: {text}")
        elif value is not None:
            rows.write_text(f"{name.replace('_', ' ')}: {value}")


def _of_bundle(folder: Path) -> dict[str, Any]:
    import hashlib

    from primelens.bundle import open_bundle
    from primelens.schema import canonical_json

    manifest = open_bundle(folder, check="size").manifest
    preprocessing = canonical_json(dict(manifest.tower.preprocessing))
    connectors = {
        name: manifest.files[head.connector].sha256 for name, head in manifest.writers.items()
    }
    return {
        "name": manifest.name,
        "tower_family": manifest.tower.family,
        "variant": manifest.tower.variant,
        "preprocessing": hashlib.sha256(preprocessing).hexdigest(),
        "taps": {name: tap.identity for name, tap in manifest.tower.taps.items()},
        "connectors": connectors,
        "heads": {name: head.digest for name, head in manifest.heads.items()},
        "source": manifest.source.digest,
    }
