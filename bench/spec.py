"""What to measure: a small TOML file, read strictly.

::

    name = "vitgpt2-base"
    checkpoint = "reference:vitgpt2-base"   # made from a written-out config; or a folder, a hub id
    scenarios = ["single", "offline"]
    lengths = ["forced", "natural"]

An unknown key is refused: it is most probably a typo.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from primelens.errors import OptionError
from primelens.schema import decode

__all__ = ["SPECS", "Spec", "read_spec"]

SPECS = Path(__file__).with_name("specs")

_SCENARIOS = {
    "single",
    "multi",
    "server",
    "offline",
    "encode",
    "accuracy",
    "memory",
    "cache",
    "coldstart",
}
_LENGTHS = {"forced", "natural"}


@dataclass(frozen=True)
class Spec:
    """One measurement.

    Attributes:
        name: for people and file names.
        model: a bundle, or None: it is exported from the checkpoint.
        checkpoint: the source that peers run, ``reference:NAME`` for a random-weight work of
            `primelens.export.reference_works`, or None: then there are no peers.
        precision: of the export.
        scenarios: which of `primelens.bench.scenarios`, ``encode``, ``accuracy``, ``memory``,
            ``cache``, ``coldstart``.
        lengths: ``forced`` runs to ``tokens``, ``natural`` to the model's own end; kept apart.
        tokens: of a forced caption.
        beams: 1 is greedy.
        blocks: repetitions; systems take turns block by block.
        warm_ups: blocks before, which do not count.
        requests: pictures per block.
        batches: batch sizes of ``offline`` (and the query size of ``multi``, the largest).
        load: of ``server``: arrivals per second as a share of what ``single`` answered.
        slo: of ``server``: an objective for E2E, as a multiple of ``single``'s median.
        reuse: of ``cache``: the share of requests whose picture came before.
        threads: to compute with; None for all cores that may be used.
        seed: of pictures and arrivals.
    """

    name: str
    model: str | None = None
    checkpoint: str | None = None
    precision: Literal["fp32", "int8", "int4"] = "fp32"
    scenarios: tuple[str, ...] = ("single", "offline")
    lengths: tuple[str, ...] = ("forced", "natural")
    tokens: int = 20
    beams: int = 1
    blocks: int = 10
    warm_ups: int = 1
    requests: int = 4
    batches: tuple[int, ...] = (1, 4, 8)
    load: float = 0.7
    slo: float = 3.0
    reuse: float = 0.5
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [f"scenario {s!r} is not known" for s in self.scenarios if s not in _SCENARIOS]
        problems += [f"lengths {one!r} is not known" for one in self.lengths if one not in _LENGTHS]
        least = {"tokens": 1, "beams": 1, "blocks": 2, "warm_ups": 0, "requests": 1}
        problems += [
            f"{name} is {getattr(self, name)}; it must be at least {bound}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if not self.batches or min(self.batches) < 1:
            problems.append("batches must hold at least one size, each at least 1")
        if self.model is None and self.checkpoint is None:
            problems.append("neither model nor checkpoint is given")
        if not (0 < self.load < 1 and self.slo > 0 and 0 <= self.reuse <= 1):
            problems.append("load must lie between 0 and 1, slo above 0, reuse from 0 to 1")
        if problems:
            raise ValueError("; ".join(problems))

    def quick(self) -> Spec:
        """The same with fewer and shorter blocks: a look, not a result to publish.

        Of the batch sizes only the outer two stay, and batch 1 only where ``single`` does not tell
        as much.
        """
        kept = {min(self.batches), max(self.batches)}
        if "single" in self.scenarios and len(kept) > 1:
            kept.discard(1)
        return replace(
            self,
            blocks=min(self.blocks, 6),
            requests=1,
            batches=tuple(sorted(kept)),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of everything it says; two results are comparable only if it agrees."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_spec(path: str | Path) -> Spec:
    """Read a spec; a name without a suffix is one of the shipped.

    Raises:
        OptionError: there is no such file, or it is malformed; all findings at once.
    """
    path = Path(path)
    file = SPECS / f"{path}.toml" if path.suffix != ".toml" else path
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in SPECS.glob("*.toml")))
        raise OptionError(
            f"There is no spec {str(path)!r}.", remedy=f"Give a TOML file, or one of: {shipped}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{file} is not TOML: {error}.") from error
    problems: list[str] = []
    spec = decode(Spec, raw, where=file.stem, problems=problems)
    if spec is None or problems:
        raise OptionError(f"The spec {file} is malformed:", problems=problems)
    return spec
