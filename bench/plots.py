"""The charts of a report, drawn with matplotlib as SVG, once for a light page and once for a dark.

Each chart is narrow enough to be read on a phone without zooming, names its axes with units, and is
left out where the result has nothing for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from primelens.bench.result import Result
from primelens.errors import DependencyError

__all__ = ["CHARTS", "Chart", "Theme", "draw_charts"]

_WIDTH, _HEIGHT = 5.2, 3.3  # inches; 72 units each, so that 10 pt text is 10 px on a phone


@dataclass(frozen=True)
class Theme:
    """Colours of a page; ``series`` are told apart by lightness too, not by hue alone."""

    name: str
    ink: str
    faint: str
    paper: str
    series: tuple[str, ...]


LIGHT = Theme(
    "light",
    "#1d2530",
    "#cdd3da",
    "#ffffff",
    ("#1f5fbf", "#d8731a", "#157f63", "#9a3fb0", "#6b7280", "#b3261e"),
)
DARK = Theme(
    "dark",
    "#e6e9ee",
    "#3d4652",
    "#14181e",
    ("#6fa8ff", "#ffab66", "#53cfa6", "#d79bea", "#a7b0bd", "#ff8a80"),
)


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
    style: Any = _style(theme, name)  # the stubs want each key as a literal
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if not draw(axes, result, theme):
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "primelens bench"})
    return buffer.getvalue()


def _style(theme: Theme, name: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same result gives the same bytes
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "figure.facecolor": theme.paper,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "hatch.linewidth": 0.5,
        "lines.linewidth": 1.8,
    }


def _colours(result: Result, theme: Theme) -> dict[str, str]:
    names = [*result.systems, *(c["system"] for c in result.cells)]
    unique = list(dict.fromkeys(names))
    return {name: theme.series[i % len(theme.series)] for i, name in enumerate(unique)}


def _cells(result: Result, scenario: str) -> list[Mapping[str, Any]]:
    """A scenario's cells: of forced length where there are any, since then all do equal work."""
    found = [cell for cell in result.cells if cell["scenario"] == scenario and cell["blocks"]]
    forced = [cell for cell in found if cell["lengths"] == "forced"]
    return forced or found


def _latency(axes: Any, result: Result, theme: Theme) -> bool:
    cells = _cells(result, "single")
    colours = _colours(result, theme)
    for number, cell in enumerate(cells):
        values = np.sort(np.concatenate([np.asarray(b) for b in cell["blocks"]])) * 1e3
        share = np.arange(1, values.size + 1) / values.size
        values, share = np.insert(values, 0, values[0]), np.insert(share, 0, 0.0)
        style = ("-", "--", "-.", ":")[number % 4]
        median = cell["figures"]["seconds"]["e2e"]["p50"] * 1e3
        label = f"{cell['system']}, median {median:.{0 if median >= 100 else 1}f} ms"
        axes.step(values, share, style, where="post", color=colours[cell["system"]], label=label)
    if cells:
        axes.set(xlabel="end-to-end latency, ms (logarithmic)", ylabel="share of requests")
        axes.set(xscale="log", ylim=(0, 1.02))
        _plain_ticks(axes.xaxis)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return bool(cells)


def _throughput(axes: Any, result: Result, theme: Theme) -> bool:
    cells = _cells(result, "offline")
    if cells and not any(cell["batch"] == 1 for cell in cells):
        cells = [*_cells(result, "single"), *cells]  # batch 1 is that
    colours = _colours(result, theme)
    series: dict[str, list[tuple[int, float]]] = {}
    for cell in cells:
        series.setdefault(cell["system"], []).append(
            (cell["batch"], cell["figures"]["images_per_s"])
        )
    for number, (name, points) in enumerate(series.items()):
        batches, rates = zip(*sorted(points), strict=True)
        marker = "osD^v"[number % 5]
        axes.plot(batches, rates, marker=marker, color=colours[name], label=name)
    if cells:
        ticks = sorted({cell["batch"] for cell in cells})
        axes.set(xlabel="batch size", ylabel="images per second", xscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    return bool(cells)


def _roofline(axes: Any, result: Result, theme: Theme) -> bool:
    """Operations per second over operations per byte, under what this machine can do."""
    peak, bandwidth = result.limits["fp32_flop_per_s"], result.limits["read_bytes_per_s"]
    points = _roofline_points(result)
    if not points:
        return False
    colours = _colours(result, theme)
    low = min(x for *_, x, _ in points) / 3
    high = max(peak / bandwidth, *(x for *_, x, _ in points)) * 3
    reach = np.geomspace(low, high, 200)
    roof = np.minimum(peak, bandwidth * reach) / 1e9
    axes.plot(reach, roof, color=theme.ink, linewidth=1.4)
    for stage, name, x, y in points:
        label = f"{name}, {stage}"
        marker = {"decode step": "o", "tower": "s"}[stage]
        axes.plot(x, y / 1e9, marker, color=colours[name], label=label, markersize=7)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte read", ylabel="GFLOP/s")
    axes.set_ylim(min(y for *_, y in points) / 4e9, peak / 1e9 * 3)
    axes.set_xlim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis, subs=(1.0,))
    _roof_labels(axes, reach, roof, peak, bandwidth)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, columnspacing=1.2)
    return True


def _roof_labels(axes: Any, reach: Any, roof: Any, peak: float, bandwidth: float) -> None:
    """The two limits, along the two parts of the roof."""
    flat = np.flatnonzero(roof >= peak / 1e9 * 0.999)
    axes.annotate(
        f"fp32 products {peak / 1e9:.0f} GFLOP/s",
        (reach[flat[-1]], peak / 1e9),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        size=9,
    )
    place = int(flat[0] * 0.6)
    # The slope is 45 degrees in decades, and what that is on paper follows from the axes.
    axes.text(
        reach[place],
        roof[place] * 1.3,
        f"memory {bandwidth / 1e9:.1f} GB/s",
        rotation=np.degrees(np.arctan2(roof[place], reach[place])),
        rotation_mode="anchor",
        transform_rotates_text=True,
        ha="center",
        va="bottom",
        size=9,
    )


def _roofline_points(result: Result) -> list[tuple[str, str, float, float]]:
    """(stage, system, operations per byte, operations per second), at batch 1."""
    work = result.work
    points = []
    for cell in _cells(result, "single"):
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


def _cold(axes: Any, result: Result, theme: Theme) -> bool:
    """What a first caption costs beside a later one."""
    rows: list[tuple[str, list[tuple[str, float]]]] = []
    if result.coldstart:
        parts = {k: v for k, v in result.coldstart["median_ms"].items() if k != "total"}
        rows.append(("cold process", list(parts.items())))
        single = _cells(result, "single")
        if single:
            warm = single[0]["figures"]["seconds"]["e2e"]["p50"] * 1e3
            rows.append(("warm", [("caption", warm)]))
    states = {"off": "no cache", "miss": "cache miss", "mixed": "mixed", "hit": "cache hit"}
    for state, label in states.items():
        if state in result.cache:
            warm = result.cache[state]["figures"]["seconds"]["e2e"]["p50"] * 1e3
            rows.append((label, [("caption", warm)]))
    _stacked_bars(axes, rows, theme, "milliseconds to a caption (medians)")
    return bool(rows)


def _stages(axes: Any, result: Result, theme: Theme) -> bool:
    rows = [
        (
            cell["system"],
            _visible({stage: s * 1e3 for stage, s in cell["figures"]["stages"].items()}),
        )
        for cell in _cells(result, "single")
        if cell["figures"]["stages"]
    ]
    _stacked_bars(axes, rows, theme, "milliseconds per request (means)")
    return bool(rows)


def _visible(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    """Parts of at least half a percent: thinner ones would only fill the legend."""
    total = sum(parts.values())
    return [(name, value) for name, value in parts.items() if value >= 0.005 * total]


def _stacked_bars(
    axes: Any, rows: list[tuple[str, list[tuple[str, float]]]], theme: Theme, label: str
) -> None:
    names = list(dict.fromkeys(part for _, parts in rows for part, value in parts if value > 0))
    colours = dict(zip(names, theme.series * 2, strict=False))
    hatches = dict(zip(names, ("", "//", "..", "\\\\", "||", "--"), strict=False))
    height = 0.62 if len(rows) > 2 else 0.3
    for place, (_, parts) in enumerate(rows):
        left = 0.0
        for part, value in parts:
            if value > 0:
                bar = {"color": colours[part], "hatch": hatches.get(part, "")}
                axes.barh(place, value, left=left, edgecolor=theme.paper, height=height, **bar)
                left += value
        total = f"{left:.{0 if left >= 100 else 1}f} ms"
        axes.annotate(total, (left, place), (4, 0), textcoords="offset points", va="center", size=9)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    axes.margins(x=0.18)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if len(names) > 1:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=colours[n], hatch=hatches.get(n, ""), edgecolor=theme.paper, label=n)
            for n in names
        ]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)


def _plain_ticks(axis: Any, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Numbers on a logarithmic axis as numbers, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


_Drawing = Callable[[Any, Result, Theme], bool]

CHARTS: Mapping[str, tuple[str, str, _Drawing]] = {
    "latency": (
        "Latency, one picture at a time",
        "Share of requests answered within a time, per system (empirical distribution).",
        _latency,
    ),
    "throughput": (
        "Throughput against batch size",
        "Pictures per second when all are there from the start.",
        _throughput,
    ),
    "roofline": (
        "How far from the machine's limits",
        "Reached rate over the operations per byte read, below the measured roof, at batch 1.",
        _roofline,
    ),
    "cold": (
        "Cold and warm",
        "The first caption of a fresh process, a later one, and what kept embeddings save.",
        _cold,
    ),
    "stages": (
        "Where a request's time goes",
        "Mean time per stage and request, one picture at a time.",
        _stages,
    ),
}
"""Name → title, description, and what draws it (False: the result has nothing for it)."""
