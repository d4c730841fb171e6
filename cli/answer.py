"""``primelens answer``: a picture and questions in, answers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.decoding import decoding_options

__all__ = ["AnswerRequest"]


@dataclass(frozen=True)
class AnswerRequest:
    """What the command line asks for, under the names of its options."""

    image: str
    questions: tuple[str, ...]
    model: str = "default"
    revision: str | None = None
    head: str | None = None
    max_new_tokens: int | None = None
    beams: int | None = None
    settings: tuple[str, ...] = ()
    threads: int | None = None
    cache: str | None = None
    cache_dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    as_json: bool = False


@app.command("answer", no_args_is_help=True)
@click.argument("image", metavar="IMAGE")
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="BUNDLE",
    help="A bundle's folder, the name of a shipped model, or a hub id.",
)
@click.option("--revision", help="Commit, branch or tag, where --model is a hub id.")
@click.option("--head", metavar="NAME", help="Which head answers.  [default: the first that does]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer in tokens.")
@click.option("--beams", type=click.IntRange(min=1), help="Beams of a beam search; 1 is none.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any option of primelens.DecodingOptions, the value as JSON; may be repeated.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the engine.  [default: one per core]"
)
@click.option(
    "--cache",
    metavar="FOLDER",
    help="Keep what the locked tower says about the picture there, and use what is kept.",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="What embeddings are stored as; only fp32 is exact.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per question and line.")
def answer(**chosen: Any) -> None:
    """Answer questions about a picture.

    IMAGE is a file. It is encoded once, whatever the number of questions, and what the model
    derives from it is read by all of them.
    """
    request = AnswerRequest(**chosen)
    options = _options(request)
    import primelens

    loading = primelens.LoadOptions(threads=request.threads, revision=request.revision)
    cache = None
    if request.cache:
        cache = primelens.CacheOptions(request.cache, dtype=request.cache_dtype)
    model = primelens.load(request.model, options=loading, cache=cache)
    for item in model.answer(request.image, list(request.questions), options):
        if request.as_json:
            rows.write_json(rows.answer_row(request.image, item, model.name))
            continue
        label = f"{rows.printable(item.question or '')} " if len(request.questions) > 1 else ""
        for one in (item, *item.others):
            rows.write_text(label + rows.printable(one.text))


def _options(request: AnswerRequest) -> Any:
    from primelens.options import CaptionOptions

    return CaptionOptions(
        max_new_tokens=request.max_new_tokens,
        head=request.head,
        decoding=decoding_options(request.settings, request.beams),
    )
