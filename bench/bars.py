"""Charts of stacked bars: where a request's time goes, and what a cold start and a cache change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from primelens.bench.charts import cells_like, milliseconds
from primelens.bench.result import Result
from primelens.bench.themes import Theme

__all__ = ["cold", "stages"]

Parts = list[tuple[str, float]]

_STATES = {
    "off": "no cache",
    "miss": "cache, all new",
    "mixed": "cache, {:.0%} seen",
    "hit": "cache, all seen",
}
_THIN = 0.005  # of a bar: thinner parts would only fill the legend


def cold(axes: Any, result: Result, theme: Theme) -> bool:
    """What a first caption costs beside a later one, and what kept embeddings save."""
    rows: list[tuple[str, Parts]] = []
    if result.coldstart:
        parts = {k: v for k, v in result.coldstart["median_ms"].items() if k != "total"}
        rows.append(("cold process", list(parts.items())))
    for cell in cells_like(result, "single")[:1]:
        rows.append(("warm process", [("caption", cell["figures"]["seconds"]["e2e"]["p50"] * 1e3)]))
    for state, label in _STATES.items():
        if state in result.cache:
            found = result.cache[state]
            name = label.format(found["repeated"])
            rows.append((name, [("caption", found["figures"]["seconds"]["e2e"]["p50"] * 1e3)]))
    if not (result.coldstart or result.cache):
        return False
    _stacked(axes, rows, theme, "milliseconds to a caption (medians)")
    return True


def stages(axes: Any, result: Result, theme: Theme) -> bool:
    """Mean time per stage, system by system."""
    rows = [
        (cell["system"], _visible(cell["figures"]["stages"]))
        for cell in cells_like(result, "single")
        if cell["figures"]["stages"]
    ]
    if rows:
        _stacked(axes, rows, theme, "milliseconds per request (means)")
    return bool(rows)


def _visible(seconds: Mapping[str, float]) -> Parts:
    """Milliseconds of the parts that can be seen."""
    total = sum(seconds.values())
    return [(name, value * 1e3) for name, value in seconds.items() if value >= _THIN * total]


def _stacked(axes: Any, rows: list[tuple[str, Parts]], theme: Theme, label: str) -> None:
    axes.figure.set_figheight(1.5 + 0.36 * len(rows))
    shown = {part for _, parts in rows for part, value in parts if value > 0}
    totals = [sum(value for _, value in parts) for _, parts in rows]
    for place, (_, parts) in enumerate(rows):
        left = 0.0
        for part, value in parts:
            bar = {"color": theme.parts[part], "edgecolor": theme.paper, "linewidth": 0.8}
            axes.barh(place, value, left=left, height=0.62, **bar)
            left += value
        text = milliseconds(totals[place])
        axes.annotate(text, (left, place), (4, 0), textcoords="offset points", va="center", size=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    axes.set_xlim(0, max(totals) * 1.2)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, edgecolor=theme.paper, label=part)
        for part, colour in theme.parts.items()
        if part in shown
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=3,
        columnspacing=1.2,
        handlelength=1.0,
    )
