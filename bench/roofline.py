"""The roofline: what a decode step and the tower reach, below what the machine can do."""

from __future__ import annotations

from typing import Any

import numpy as np

from primelens.bench.charts import cells_like, colours_of
from primelens.bench.result import Result
from primelens.bench.themes import Theme, plain_ticks

__all__ = ["roofline"]

_STAGES = {"decode step": "o", "tower": "s"}
_ASIDE = 1.22  # all systems do the same work: side by side, or the last would hide the others


def roofline(axes: Any, result: Result, theme: Theme) -> bool:
    """Operations per second over operations per byte, under what this machine can do."""
    points = _points(result)
    if not points:
        return False
    peak, bandwidth = result.limits["fp32_flop_per_s"], result.limits["read_bytes_per_s"]
    int8 = result.limits["int8_op_per_s"]
    low = min(peak / bandwidth, *(x for *_, x, _ in points)) / 3
    high = max(peak / bandwidth, *(x for *_, x, _ in points)) * 3
    top = max(peak, int8 or 0.0)
    reach = np.geomspace(low, high, 400)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte read", ylabel="GFLOP/s")
    axes.set_xlim(low, high)
    axes.set_ylim(min(y for *_, y in points) / 4e9, top / 1e9 * 2.2)
    if int8:
        _roof(axes, reach, int8, bandwidth, color=theme.soft, linestyle=":", linewidth=1.2)
        _flat_label(axes, high, int8, f"int8 products {int8 / 1e9:.0f} GOP/s", theme.soft)
    _roof(axes, reach, peak, bandwidth, color=theme.ink, linewidth=1.4)
    _flat_label(axes, high, peak, f"fp32 products {peak / 1e9:.0f} GFLOP/s", theme.ink)
    _slope_label(axes, low, peak, bandwidth)
    colours = colours_of(result, theme)
    names = list(dict.fromkeys(name for _, name, *_ in points))
    for stage, name, x, y in points:
        flat = x > peak / bandwidth  # elsewhere a step aside would bring it nearer to the roof
        aside = _ASIDE ** (names.index(name) - (len(names) - 1) / 2) if flat else 1.0
        axes.plot(
            *(x * aside, y / 1e9, _STAGES[stage]),
            color=colours[name],
            markersize=7,
            markeredgecolor=theme.paper,
            markeredgewidth=0.8,
        )
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis, subs=(1.0,))
    _legend(axes, points, colours, theme)
    return True


def _roof(axes: Any, reach: Any, peak: float, bandwidth: float, **line: Any) -> None:
    axes.plot(reach, np.minimum(peak, bandwidth * reach) / 1e9, **line)


def _flat_label(axes: Any, right: float, peak: float, text: str, colour: str) -> None:
    axes.annotate(
        *(text, (right, peak / 1e9), (-4, 3)),
        textcoords="offset points",
        ha="right",
        va="bottom",
        size=8.5,
        color=colour,
    )


def _slope_label(axes: Any, low: float, peak: float, bandwidth: float) -> None:
    """The bandwidth, along the slope; 45 degrees in decades is another angle on paper."""
    place = np.sqrt(low * peak / bandwidth)
    rate = bandwidth * place / 1e9
    axes.text(
        *(place, rate * 1.25, f"memory {bandwidth / 1e9:.0f} GB/s"),
        rotation=np.degrees(np.arctan2(rate, place)),
        rotation_mode="anchor",
        transform_rotates_text=True,
        ha="center",
        va="bottom",
        size=8.5,
    )


def _legend(
    axes: Any, points: list[tuple[str, str, float, float]], colours: dict[str, str], theme: Theme
) -> None:
    """Colours for systems, markers for stages: two short lists instead of their product."""
    from matplotlib.lines import Line2D

    names = dict.fromkeys(name for _, name, *_ in points)
    stages = dict.fromkeys(stage for stage, *_ in points)
    dot: dict[str, Any] = {"linestyle": "", "markersize": 7}
    handles = [Line2D([], [], marker="H", color=colours[n], label=n, **dot) for n in names]
    handles += [
        Line2D([], [], marker=_STAGES[s], color=theme.soft, label=s, markerfacecolor="none", **dot)
        for s in stages
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=3,
        columnspacing=1.2,
        handletextpad=0.3,
    )


def _points(result: Result) -> list[tuple[str, str, float, float]]:
    """(stage, system, operations per byte, operations per second), at batch 1."""
    work = result.work
    points = []
    for cell in cells_like(result, "single"):
        gap = cell["figures"]["seconds"].get("gap")
        if gap and "step" in cell["shares"]:
            intensity = work["step_operations"] / work["step"]["total"]
            points.append(
                ("decode step", cell["system"], intensity, work["step_operations"] / gap["p50"])
            )
        tower = cell["figures"]["stages"].get("tower", 0.0)
        if tower and work["tower_operations"] and work["tower_weights"]:
            intensity = work["tower_operations"] / work["tower_weights"]
            points.append(("tower", cell["system"], intensity, work["tower_operations"] / tower))
    return points
