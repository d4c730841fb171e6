"""``primelens families``: which checkpoints can be exported."""

from __future__ import annotations

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

__all__ = ["families"]

_TITLES = {
    "models": "whole models",
    "towers": "image towers (of vision-encoder-decoder and vision-text-dual-encoder)",
    "decoders": "text decoders (of vision-encoder-decoder)",
}


@app.command("families")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def families(as_json: bool) -> None:
    """List the architectures that can be exported.

    The names are those that a checkpoint's config.json gives as model_type. What was proved of
    each, at what sizes, stands in docs/compatibility.md. Needs primelens[export].
    """
    with needs_extra("export"):
        from primelens.export.registry import supported

    found = supported()
    if as_json:
        rows.write_json(found)
        return
    for kind, title in _TITLES.items():
        rows.write_text(f"{title}: {', '.join(found[kind])}")
