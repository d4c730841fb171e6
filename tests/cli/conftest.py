"""A model that captions by file name, so that the command line is tested without an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import primelens
from primelens.cli.app import app
from primelens.errors import ImageError, PrimelensError
from primelens.options import CacheOptions, CaptionOptions, LoadOptions
from primelens.results import Caption, Failure, Piece, Timings

GREEDY = CaptionOptions()
LOADING = LoadOptions()


@dataclass
class FakeModel:
    """Says ``a picture of STEM``; fails for a missing file and where the name starts with ``bad``.

    Attributes:
        notices: file stem → the notice that its caption carries.
        batches: the file names of every batch that was asked for.
        options: what every picture was captioned with.
        loaded: name, options and cache of every load.
    """

    name: str = "fake"
    engine_name: str = "fake engine"
    notices: dict[str, str] = field(default_factory=dict)
    batches: list[list[str]] = field(default_factory=list)
    options: list[CaptionOptions] = field(default_factory=list)
    loaded: list[tuple[str, LoadOptions, CacheOptions | None]] = field(default_factory=list)
    manifest: Any = field(
        default_factory=lambda: SimpleNamespace(domain=SimpleNamespace(description="drawn scenes"))
    )

    def caption(self, image: str | Path, options: CaptionOptions = GREEDY) -> Caption:
        image = str(image)
        self.options.append(options)
        path = Path(image)
        if not path.exists():
            raise ImageError(f"{image} does not exist.", remedy="Check the path.")
        if path.name.startswith("bad"):
            raise ImageError(f"{image} is no picture.", remedy="Give a picture.")
        return Caption(
            text=f"a picture of {path.stem}",
            tokens=(5, 6, 2),
            logprob=-1.5,
            token_logprobs=(-0.5, -0.5, -0.5),
            finish_reason="stop",
            timings=Timings(preprocess=0.001, tower=0.002),
            image=image,
            notice=self.notices.get(path.stem),
        )

    def caption_batch(
        self, images: Iterable[str], options: CaptionOptions, *, batch_size: int = 8
    ) -> Iterator[Caption | Failure]:
        iterator = iter(images)
        while batch := list(islice(iterator, batch_size)):
            self.batches.append([Path(image).name for image in batch])
            for image in batch:
                try:
                    yield self.caption(image, options)
                except PrimelensError as error:
                    yield Failure(image, error)

    def stream(self, image: str, options: CaptionOptions) -> Iterator[Piece]:
        caption = self.caption(image, options)
        *words, last = caption.text.split(" ")
        for word in words:
            yield Piece(f"{word} ")
        yield Piece(last, caption)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """What `primelens.load` returns for any name."""
    fake = FakeModel()

    def load(
        name: str = "default",
        *,
        options: LoadOptions = LOADING,
        cache: CacheOptions | None = None,
    ) -> FakeModel:
        fake.loaded.append((name, options, cache))
        return fake

    monkeypatch.setitem(vars(primelens), "load", load)
    return fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line inside this process; standard output and error are kept apart."""
    monkeypatch.delenv("PRIMELENS_DEBUG", raising=False)

    def invoke(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that look like pictures; it is the working directory."""
    folder = tmp_path / "album"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "empty").mkdir()
    for name in ("cat.png", "bird.JPG", "bad.jpeg", "notes.txt", "deep/dog.webp"):
        (folder / name).write_bytes(b"not looked at")
    (folder / "deep" / "deeper" / "eel.gif").write_bytes(b"not looked at")
    monkeypatch.chdir(folder)
    return folder
