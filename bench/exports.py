"""A result for other tools: ``pyperf`` (its JSON, for ``pyperf compare_to``) and ``csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from primelens.bench.result import Result

__all__ = ["FORMATS", "as_csv", "as_pyperf"]


def as_csv(result: Result) -> str:
    """One line per cell: figures in seconds, with a header."""
    columns = ["system", "scenario", "lengths", "batch", "requests", "failures", "images_per_s"]
    columns += ["tokens_per_s"]
    columns += [f"{what}_{p}" for what in ("e2e", "ttft", "tpot") for p in ("p50", "p90", "p99")]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for cell in result.cells:
        figures = cell["figures"]
        row = {key: cell[key] for key in columns[:4]}
        row |= {key: figures[key] for key in columns[4:8]}
        for column in columns[8:]:
            what, _, which = column.partition("_")
            row[column] = figures["seconds"].get(what, {}).get(which, "")
        writer.writerow(row)
    return out.getvalue()


def as_pyperf(result: Result) -> str:
    """pyperf's JSON, version 1.0: a benchmark per cell, a run per block, E2E seconds as values."""
    metadata = {
        "unit": "second",
        "cpu_model_name": result.environment["cpu"],
        "cpu_count": result.environment["cores"],
        "python_version": result.environment["python"],
        "platform": result.environment["system"],
    }
    benchmarks = [
        {
            "metadata": {"name": _name(cell)},
            "runs": [{"metadata": {"date": _date(result)}, "values": b} for b in cell["blocks"]],
        }
        for cell in result.cells
        if cell["blocks"]
    ]
    document = {"version": "1.0", "metadata": metadata, "benchmarks": benchmarks}
    return json.dumps(document, indent=1) + "\n"


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['system']}/{cell['scenario']}/{cell['lengths']}/batch{cell['batch']}"


def _date(result: Result) -> str:
    return result.started.replace("T", " ").removesuffix("+00:00")


FORMATS = {"csv": as_csv, "pyperf": as_pyperf}
"""Name → what turns a result into that format's text."""
