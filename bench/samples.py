"""``samples.parquet``: every request of a run, failures too, one row each.

Times are seconds; ``scheduled`` counts from the first request of the run, the others from
``scheduled``. ``token_times`` are empty where a system does not tell them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primelens.atomic import write_bytes
from primelens.bench.system import STAGES, Sample
from primelens.errors import DependencyError

__all__ = ["sample_rows", "write_samples"]


def sample_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One plain row per sample, in the order of their schedule."""
    begin = min((sample.scheduled for sample in samples), default=0.0)
    return [
        {
            "system": s.system,
            "scenario": s.scenario,
            "lengths": s.lengths,
            "block": s.block,
            "batch": s.batch,
            "picture": Path(s.request.picture).name,
            "beams": s.request.beams,
            "scheduled": s.scheduled - begin,
            "started": s.started - s.scheduled,
            "ended": s.ended - s.scheduled,
            "tokens": len(s.answer.tokens),
            "token_times": [stamp - s.scheduled for stamp in s.answer.token_times],
            **{stage: s.answer.stages.get(stage) for stage in STAGES},
            "text": s.answer.text,
            "error": s.answer.error,
        }
        for s in sorted(samples, key=lambda sample: sample.scheduled)
    ]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write the rows as Parquet, whole or not at all.

    Raises:
        DependencyError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Samples are written as Parquet, and pyarrow is not installed.",
            remedy="Run `pip install 'primelens[bench]'`.",
        ) from error
    floats = ("scheduled", "started", "ended", *STAGES)
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("system", "scenario", "lengths", "picture")),
            *((name, pa.int64()) for name in ("block", "batch", "beams", "tokens")),
            *((name, pa.float64()) for name in floats),
            ("token_times", pa.list_(pa.float64())),
            ("text", pa.string()),
            ("error", pa.string()),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(sample_rows(samples), schema=schema), buffer)
    write_bytes(path, buffer.getvalue())
