"""What a reference work is, and how works are found.

A work is a random-weight checkpoint in the shape of a real one: its configuration written out, its
weights randomised (`primelens.export.randomise`), with tokenizer, preprocessor and generation
settings. Every family's works stand in a file of their own in `primelens.export.works`, which
registers them; ``small`` ones go through the fast tests, ``published`` ones have the size of a
published checkpoint and go through the proof that `primelens.export.reference_works` prints.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primelens.errors import OptionError
from primelens.export.companions import SPECIAL, write_companions

__all__ = ["Work", "build", "find_work", "register_work", "works"]


@dataclass(frozen=True)
class Work:
    """A checkpoint that can be made out of nothing.

    Attributes:
        name: what it is asked for by.
        family: name of the `ModelFamily` that exports it.
        parts: registered model types inside it (tower, decoder), where the family has parts.
        size: "published" or "small".
        like: the published checkpoint whose sizes it has; empty for a small one.
        model: seed → the model with randomised weights, float32, in evaluation mode.
        picture: (height, width) that its tower takes.
        vocab_size: of its tokenizer.
        special: the tokenizer's first three tokens: start, end and padding, in any order.
        framed: its tokenizer puts the start token before every text, and the end token behind it.
        processor: settings of its preprocessor_config.json over ViT's.
        prompt: text that the proof lets captions continue; None where the source takes none.
        tokenizer: settings of its tokenizer_config.json; ``frame`` says what stands around a text
            (``$A </s>``).
        variety: share of distinct tokens that its texts have at least, so that the proof is not
            blind.
        notes: what a reader of the table ought to know.
    """

    name: str
    family: str
    parts: tuple[str, ...]
    size: Literal["published", "small"]
    model: Callable[[int], Any]
    picture: tuple[int, int]
    vocab_size: int
    special: tuple[str, ...] = SPECIAL
    framed: bool = False
    like: str = ""
    processor: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = "a view of"
    variety: float = 12 / 32
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""


_WORKS: dict[str, Work] = {}


def register_work(work: Work) -> Work:
    """Make a work known by its name; raises ValueError where the name is taken."""
    if work.name in _WORKS:
        raise ValueError(f"there are two reference works called {work.name!r}")
    _WORKS[work.name] = work
    return work


@functools.cache
def _discover() -> None:
    package = importlib.import_module("primelens.export.works")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def works() -> Mapping[str, Work]:
    """All works by name."""
    _discover()
    return dict(_WORKS)


def find_work(name: str) -> Work:
    """The work called ``name``; raises `OptionError` with the names there are."""
    known = works()
    if name not in known:
        raise OptionError(
            f"There is no reference work {name!r}.", remedy=f"Known: {', '.join(sorted(known))}."
        )
    return known[name]


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write the checkpoint called ``name`` into ``folder``; returns the folder."""
    folder, work = Path(folder), find_work(name)
    work.model(seed).save_pretrained(folder)
    write_companions(
        folder,
        vocab_size=work.vocab_size,
        size=work.picture,
        processor=work.processor,
        special=work.special,
        framed=work.framed,
        tokenizer=work.tokenizer,
    )
    return folder
