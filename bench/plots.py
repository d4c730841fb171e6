"""The charts of a report, drawn with matplotlib as SVG, once for a light page and once for a dark.

Each chart is narrow enough to be read on a phone without zooming, names its axes with units, and is
left out where the result has nothing for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from primelens.bench.bars import cold, stages
from primelens.bench.charts import latency, memory, ratios, throughput
from primelens.bench.result import Result
from primelens.bench.roofline import roofline
from primelens.bench.themes import DARK, LIGHT, Theme, chart_style
from primelens.errors import DependencyError

__all__ = ["CHARTS", "Chart", "draw_charts"]

_WIDTH, _HEIGHT = 5.2, 3.3  # inches; 72 units each, so that 10 pt text is 10 px on a phone


@dataclass(frozen=True)
class Chart:
    """A drawn chart: SVG for both themes, and what it shows in words."""

    name: str
    title: str
    words: str
    light: bytes
    dark: bytes


def draw_charts(result: Result) -> list[Chart]:
    """Every chart that the result has data for.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    found = []
    for name, (title, words, draw) in CHARTS.items():
        light = _draw(result, draw, LIGHT, name)
        if light is not None:
            dark = _draw(result, draw, DARK, name)
            assert dark is not None
            found.append(Chart(name, title, words, light, dark))
    return found


def _draw(result: Result, draw: _Drawing, theme: Theme, name: str) -> bytes | None:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DependencyError(
            "The report's charts need matplotlib, which is not installed.",
            remedy="Run `pip install 'primelens[bench]'`.",
        ) from error
    style: Any = chart_style(theme, name)  # the stubs want each key as a literal
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if not draw(axes, result, theme):
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "primelens bench"})
    return buffer.getvalue()


_Drawing = Callable[[Any, Result, Theme], bool]

CHARTS: Mapping[str, tuple[str, str, _Drawing]] = {
    "latency": (
        "Latency, one picture at a time",
        (
            "Share of requests answered within a time (empirical distribution), captions of forced "
            "length where there are any."
        ),
        latency,
    ),
    "throughput": (
        "Throughput against batch size",
        (
            "Pictures per second when all are there from the start; the median block, bars: 95 % "
            "interval over blocks."
        ),
        throughput,
    ),
    "ratios": (
        "Beside the other systems",
        (
            "Time over the first system's, pair by pair of interleaved blocks; bars: 95 % "
            "bootstrap interval over blocks."
        ),
        ratios,
    ),
    "stages": (
        "Where a request's time goes",
        (
            "Mean time per stage and request, one picture at a time. Blue lies on the image's "
            "side of the seam, orange on the text's."
        ),
        stages,
    ),
    "roofline": (
        "How far from the machine's limits",
        (
            "Reached rate over the operations per byte read at batch 1, below the roof that was "
            "measured in the same run; towers stand side by side."
        ),
        roofline,
    ),
    "cold": (
        "Cold and warm",
        "The first caption of a fresh process, a later one, and what kept embeddings save.",
        cold,
    ),
    "memory": (
        "Memory over a long run",
        (
            "Resident memory of the process; the slope is a least-squares fit behind the first "
            "quarter."
        ),
        memory,
    ),
}
"""Name → title, description, and what draws it (False: the result has nothing for it)."""
