"""What kept embeddings save: requests that miss the cache, that hit it, and a mixture.

``miss`` shows only new pictures to a runtime that keeps embeddings, ``hit`` only pictures that it
has kept, ``mixed`` repeats a share of ``spec.reuse``; ``off`` is the same runtime without a cache.
Only here do pictures repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primelens.bench.environment import usable_cores
from primelens.bench.figures import summarise
from primelens.bench.pictures import PictureSource, reuse_order
from primelens.bench.scenarios import Load, drive, settle
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Clock, Request, Sample, System
from primelens.bench.workers import WorkerSystem

__all__ = ["cache_cells", "measure_cache"]


def measure_cache(model: str, spec: Spec, folder: Path, clock: Clock) -> dict[str, Any]:
    """Two processes, one with a cache in ``folder`` and one without, taking turns."""
    settings: dict[str, Any] = {"model": model, "threads": spec.threads or usable_cores()}
    kept = {**settings, "name": "kept", "cache": str(folder / "embeddings")}
    plain = {**settings, "name": "plain"}
    with WorkerSystem("primelens", kept) as one, WorkerSystem("primelens", plain) as other:
        return cache_cells(one, other, spec, PictureSource(folder / "reuse", spec.seed + 1), clock)


def cache_cells(
    kept: System, plain: System, spec: Spec, pictures: PictureSource, clock: Clock
) -> dict[str, Any]:
    """State of the cache → figures, and the share of pictures that were repeated."""
    samples: dict[str, list[Sample]] = {"off": [], "miss": [], "hit": [], "mixed": []}
    shown: dict[str, list[bool]] = {state: [] for state in samples}
    for block in range(-spec.warm_ups, spec.blocks):
        fresh = pictures.fresh(spec.requests)
        mixed = pictures.fresh(spec.requests)
        order = reuse_order(spec.requests, spec.reuse, spec.seed + block + spec.warm_ups)
        rounds = {
            "off": (plain, fresh),
            "miss": (kept, fresh),
            "hit": (kept, fresh),  # just kept by the round before
            "mixed": (kept, [mixed[number] for number in order]),
        }
        for state, (system, paths) in rounds.items():
            settle(clock)
            found = drive(system, _requests(paths, spec), Load("single"), clock, _blank(block))
            if block >= 0:
                samples[state] += found
                shown[state] += [
                    state == "hit" or path in paths[:place] for place, path in enumerate(paths)
                ]
    return {
        state: {
            "figures": summarise(found),
            "repeated": sum(shown[state]) / max(1, len(shown[state])),
        }
        for state, found in samples.items()
    }


def _requests(paths: Sequence[str], spec: Spec) -> list[Request]:
    return [
        Request(number, path, max_new_tokens=spec.tokens, forced=True)
        for number, path in enumerate(paths)
    ]


def _blank(block: int) -> Sample:
    return Sample("primelens", "cache", "forced", block, Request(0, ""), Answer(0), 0.0, 0.0, 0.0)
