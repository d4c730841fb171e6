"""Figures out of samples: pure functions, each by its textbook definition.

* TTFT, time to first token: first token known − *scheduled* start.
* E2E: answer there − scheduled start.
* TPOT, time per output token: (E2E − TTFT) / (n − 1), for n ≥ 2 tokens.
* Inter-token gaps: differences of neighbouring token times.
* Throughput: answered pictures (or their tokens) / (last end − first scheduled start).
* Goodput: the share, and the rate, of requests that were answered within the objective (SLO); a
  failure is a miss.

Failures take part in no latency figure, and are counted beside each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.bench.estimators import percentiles
from primelens.bench.system import STAGES, Sample

__all__ = [
    "Objective",
    "end_to_end",
    "goodput",
    "inter_token_gaps",
    "latency_blocks",
    "stage_split",
    "summarise",
    "throughput",
    "time_per_output_token",
    "time_to_first_token",
]


@dataclass(frozen=True)
class Objective:
    """A service-level objective in seconds; None does not bind."""

    e2e: float | None = None
    ttft: float | None = None


def end_to_end(sample: Sample) -> float:
    """Seconds from the scheduled start to the answer."""
    return sample.ended - sample.scheduled


def time_to_first_token(sample: Sample) -> float | None:
    """Seconds from the scheduled start to the first token; None where the system does not tell."""
    times = sample.answer.token_times
    return times[0] - sample.scheduled if times else None


def time_per_output_token(sample: Sample) -> float | None:
    """Seconds per token after the first; None with fewer than two tokens or unknown times."""
    first = time_to_first_token(sample)
    count = len(sample.answer.tokens)
    if first is None or count < 2:
        return None
    return (end_to_end(sample) - first) / (count - 1)


def inter_token_gaps(sample: Sample) -> list[float]:
    """Seconds between neighbouring tokens."""
    return [float(gap) for gap in np.diff(np.asarray(sample.answer.token_times, np.float64))]


def throughput(samples: Sequence[Sample]) -> dict[str, float]:
    """``images_per_s`` and ``tokens_per_s`` over the whole span of the samples."""
    good = [s for s in samples if s.answer.error is None]
    span = max((s.ended for s in samples), default=0.0) - min(
        (s.scheduled for s in samples), default=0.0
    )
    if not good or span <= 0:
        return {"images_per_s": 0.0, "tokens_per_s": 0.0}
    tokens = sum(len(s.answer.tokens) for s in good)
    return {"images_per_s": len(good) / span, "tokens_per_s": tokens / span}


def goodput(samples: Sequence[Sample], objective: Objective) -> dict[str, float]:
    """``share`` of all requests, and ``images_per_s``, that met the objective."""
    met = [s for s in samples if s.answer.error is None and _meets(s, objective)]
    span = max(s.ended for s in samples) - min(s.scheduled for s in samples) if samples else 0.0
    return {
        "share": len(met) / len(samples) if samples else 0.0,
        "images_per_s": len(met) / span if span > 0 else 0.0,
    }


def _meets(sample: Sample, objective: Objective) -> bool:
    if objective.e2e is not None and end_to_end(sample) > objective.e2e:
        return False
    if objective.ttft is None:
        return True
    first = time_to_first_token(sample)
    return first is not None and first <= objective.ttft


def stage_split(samples: Sequence[Sample]) -> dict[str, float]:
    """Stage → mean seconds per request; "other" is what the stages leave of the answer's time.

    Systems tell the time of a whole batch to every request of it, so each request is charged its
    part only: a batch of four whose tower took 0.4 s cost 0.1 s a picture, whether it was put
    together on purpose or by arrivals that waited.
    """
    good = [s for s in samples if s.answer.error is None and s.answer.stages]
    if not good:
        return {}
    split = {
        stage: float(np.mean([s.answer.stages.get(stage, 0.0) / s.batch for s in good]))
        for stage in STAGES
    }
    spent = float(np.mean([(s.ended - s.started) / s.batch for s in good]))
    return {**split, "other": max(0.0, spent - sum(split.values()))}


def latency_blocks(samples: Iterable[Sample]) -> list[list[float]]:
    """E2E seconds of the good samples, block by block: what two systems are compared by."""
    blocks: dict[int, list[float]] = {}
    for sample in samples:
        if sample.answer.error is None:
            blocks.setdefault(sample.block, []).append(end_to_end(sample))
    return [blocks[block] for block in sorted(blocks)]


def summarise(samples: Sequence[Sample], objective: Objective | None = None) -> dict[str, Any]:
    """Every figure of one system in one scenario, over one kind of length.

    Throughput is that of the median block: blocks of other systems lie between.
    """
    good = [s for s in samples if s.answer.error is None]
    series: Mapping[str, NDArray[np.float64]] = {
        "e2e": _known(end_to_end(s) for s in good),
        "ttft": _known(time_to_first_token(s) for s in good),
        "tpot": _known(time_per_output_token(s) for s in good),
        "gap": _known(gap for s in good for gap in inter_token_gaps(s)),
    }
    rates = [throughput(block) for block in _by_block(samples)]
    found: dict[str, Any] = {
        "requests": len(samples),
        "failures": len(samples) - len(good),
        "errors": sorted({s.answer.error for s in samples if s.answer.error is not None}),
        "tokens": sum(len(s.answer.tokens) for s in good),
        "seconds": {
            name: {**percentiles(values), "mean": float(values.mean()), "samples": values.size}
            for name, values in series.items()
            if values.size
        },
        "stages": stage_split(good),
        "images_per_s": float(np.median([rate["images_per_s"] for rate in rates] or [0.0])),
        "tokens_per_s": float(np.median([rate["tokens_per_s"] for rate in rates] or [0.0])),
    }
    if objective is not None:
        met = [goodput(block, objective) for block in _by_block(samples)]
        found["goodput"] = {
            key: float(np.median([one[key] for one in met] or [0.0]))
            for key in ("share", "images_per_s")
        }
    return found


def _by_block(samples: Iterable[Sample]) -> list[list[Sample]]:
    blocks: dict[int, list[Sample]] = {}
    for sample in samples:
        blocks.setdefault(sample.block, []).append(sample)
    return list(blocks.values())


def _known(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], np.float64)
