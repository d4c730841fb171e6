"""``primelens caption``: pictures in, captions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from primelens.cli import rows
from primelens.cli.app import app, report
from primelens.cli.decoding import decoding_options
from primelens.cli.inputs import VIDEO_SUFFIXES, Unmatched, expand, unmatched
from primelens.cli.progress import progress

if TYPE_CHECKING:
    from primelens.model import Model
    from primelens.options import CaptionOptions
    from primelens.results import Caption, Failure
    from primelens.video import Video

__all__ = ["CaptionRequest"]

Entries = Sequence[str | Unmatched]


@dataclass(frozen=True)
class CaptionRequest:
    """What the command line asks for, under the names of its options."""

    images: tuple[str, ...]
    model: str = "default"
    batch_size: int = 8
    max_new_tokens: int | None = None
    prompt: tuple[str, ...] = ()
    frames: int | None = None
    beams: int | None = None
    settings: tuple[str, ...] = ()
    threads: int | None = None
    revision: str | None = None
    cache: str | None = None
    cache_dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    as_json: bool = False
    stream: bool = False


@app.command("caption", no_args_is_help=True)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="BUNDLE",
    help="A bundle's folder, the name of a shipped model, or a hub id.",
)
@click.option("--revision", help="Commit, branch or tag, where --model is a hub id.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Pictures decoded together; the captions do not depend on it.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest caption in tokens.")
@click.option(
    "--prompt",
    multiple=True,
    help="Text that every caption continues; may be repeated, once for each picture.",
)
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    help="Frames to take of a video.  [default: as many as the model reads]",
)
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
@click.option("--stream", is_flag=True, help="Show each caption while it is being written.")
@click.pass_context
def caption(ctx: click.Context, /, **chosen: Any) -> None:
    """Caption pictures.

    IMAGE is a file, a folder (its pictures, not those of folders inside it), or a quoted pattern
    such as 'holiday/**/*.jpg'. From folders and patterns only files with a picture's suffix are
    taken, sorted by name. A file with a video's suffix (.mp4, .webm, ...) is a video, for models
    that read videos; that needs primelens[video].

    A picture that cannot be captioned is named on standard error, the others still come out, and
    the exit status is 1.
    """
    request = CaptionRequest(**chosen)
    if request.stream and request.as_json:
        raise click.UsageError("--stream shows text as it grows; --json writes finished rows.")
    entries = expand(request.images)
    if len(request.prompt) > 1 and len(request.prompt) != len(entries):
        raise click.UsageError(
            f"--prompt is given {len(request.prompt)} times, pictures: {len(entries)}. Give one "
            "prompt for all of them, or one for each."
        )
    if _run(request, entries, _options(request, entries)):
        ctx.exit(1)


def _options(request: CaptionRequest, entries: Entries) -> CaptionOptions:
    from primelens.options import CaptionOptions

    prompts: str | tuple[str, ...] | None = request.prompt[0] if request.prompt else None
    if len(request.prompt) > 1:
        pairs = zip(request.prompt, entries, strict=True)
        prompts = tuple(prompt for prompt, entry in pairs if isinstance(entry, str))
    return CaptionOptions(
        max_new_tokens=request.max_new_tokens,
        prompt=prompts,
        decoding=decoding_options(request.settings, request.beams),
    )


def _run(request: CaptionRequest, entries: Entries, options: CaptionOptions) -> int:
    """Caption everything; return how many pictures failed."""
    import primelens

    loading = primelens.LoadOptions(threads=request.threads, revision=request.revision)
    cache = None
    if request.cache:
        cache = primelens.CacheOptions(request.cache, dtype=request.cache_dtype)
    model = primelens.load(request.model, options=loading, cache=cache)
    output = _Output(model.name, labelled=len(entries) > 1, as_json=request.as_json)
    if request.stream:
        _stream(model, entries, options, output, request.frames)
    else:
        with progress(len(entries)) as bar:
            for name, item in _captions(model, entries, options, request):
                output.write(name, item)
                bar.update(1)
    output.close()
    return output.failed


def _captions(
    model: Model, entries: Entries, options: CaptionOptions, request: CaptionRequest
) -> Iterator[tuple[str, Caption | Failure]]:
    """The name and the result of every entry, in order; at most one batch is held at a time."""
    given = (_source(entry, request.frames) for entry in entries if isinstance(entry, str))
    results = iter(model.caption_batch(given, options, batch_size=request.batch_size))
    for entry in entries:
        if isinstance(entry, Unmatched):
            yield entry.argument, unmatched(entry)
        else:
            yield entry, next(results)


def _source(path: str, frames: int | None) -> str | Video:
    """A video, by its suffix, or a picture."""
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        return path
    from primelens.video import Video

    return Video(path, frames)


def _stream(
    model: Model, entries: Entries, options: CaptionOptions, output: _Output, frames: int | None
) -> None:
    from primelens.errors import InputError
    from primelens.prompts import with_prompts_at
    from primelens.results import Failure

    place = -1  # among the entries that are pictures
    for entry in entries:
        if isinstance(entry, Unmatched):
            output.write(entry.argument, unmatched(entry))
            continue
        begun, place = False, place + 1
        try:
            asked = with_prompts_at(options, [place])
            for piece in model.stream(_source(entry, frames), asked):
                output.write_piece(entry, piece.text, first=not begun)
                begun = True
                if piece.caption is not None:
                    output.finish(entry, piece.caption)
        except InputError as error:
            if begun:
                rows.write_text("")
            output.write(entry, Failure(entry, error))


@dataclass
class _Output:
    """Where results go, and what is to be said about them at the end."""

    model: str
    labelled: bool
    as_json: bool
    failed: int = 0
    written: int = 0
    notices: Counter[str] = field(default_factory=Counter)

    def write(self, image: str, item: Caption | Failure) -> None:
        from primelens.results import Failure

        self.written += 1
        if isinstance(item, Failure):
            self.failed += 1
            if self.as_json:
                rows.write_json(rows.failure_row(image, item.error, self.model))
            report(item.error)
        elif self.as_json:
            rows.write_json(rows.caption_row(image, item, self.model))
        else:
            for one in (item, *item.others):
                rows.write_text(self._label(image) + rows.printable(one.text))
            self._remark(image, item.notice)

    def write_piece(self, image: str, text: str, *, first: bool) -> None:
        label = self._label(image) if first else ""
        rows.write_text(label + rows.printable(text), newline=False)

    def finish(self, image: str, item: Caption) -> None:
        """End the line of a streamed caption."""
        self.written += 1
        rows.write_text("")
        self._remark(image, item.notice)

    def close(self) -> None:
        """What is known only at the end: how often each notice applied, and how many failed."""
        for notice, count in self.notices.items():
            if count > 1:
                self._say(f"notice: {notice} ({count} of {self.written} pictures)")
        if self.failed and self.written > 1:
            self._say(f"{self.failed} of {self.written} pictures failed")

    def _label(self, image: str) -> str:
        return f"{rows.printable(image)}: " if self.labelled else ""

    def _remark(self, image: str, notice: str | None) -> None:
        """The first time a notice applies it names the picture; repeats are counted."""
        if notice is None:
            return
        self.notices[notice] += 1
        if self.notices[notice] == 1:
            self._say(f"notice: {rows.printable(image)}: {notice}")

    @staticmethod
    def _say(line: str) -> None:
        click.echo(f"primelens: {line}", err=True)
