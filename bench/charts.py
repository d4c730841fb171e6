"""Charts of lines and points: latency, throughput, ratios, memory.

A drawing takes axes, a result and a theme, and says whether the result had anything for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from primelens.bench.conditions import whose
from primelens.bench.estimators import mean_interval
from primelens.bench.result import Result
from primelens.bench.themes import Theme, plain_ticks, system_colours

__all__ = ["cells_like", "colours_of", "latency", "memory", "ratios", "throughput"]

_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP"
_LEGEND_ABOVE: Mapping[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0)}


def colours_of(result: Result, theme: Theme) -> dict[str, str]:
    """System → colour, of everyone who takes part anywhere in the result."""
    names = [*result.systems, *(c["system"] for c in result.cells), *result.memory]
    return system_colours(names, theme)


def cells_like(result: Result, scenario: str) -> list[Mapping[str, Any]]:
    """A scenario's cells: of forced length where there are any, since then all do equal work."""
    found = [cell for cell in result.cells if cell["scenario"] == scenario and cell["blocks"]]
    forced = [cell for cell in found if cell["lengths"] == "forced"]
    return forced or found


def milliseconds(value: float) -> str:
    """Three figures."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} ms"


def latency(axes: Any, result: Result, theme: Theme) -> bool:
    """Empirical distributions of end-to-end latency."""
    cells = cells_like(result, "single")
    colours = colours_of(result, theme)
    every = []
    for number, cell in enumerate(cells):
        values = np.sort(np.concatenate([np.asarray(b) for b in cell["blocks"]])) * 1e3
        every.append(values)
        share = np.arange(1, values.size + 1) / values.size
        steps, share = np.insert(values, 0, values[0]), np.insert(share, 0, 0.0)
        median = milliseconds(cell["figures"]["seconds"]["e2e"]["p50"] * 1e3)
        label = f"{cell['system']}: median {median}, n = {values.size}"
        axes.step(
            *(steps, share, _LINES[number % len(_LINES)]),
            where="post",
            color=colours[cell["system"]],
            label=label,
        )
    if not cells:
        return False
    values = np.concatenate(every)
    axes.set(ylabel="share of requests", ylim=(0, 1.02))
    if values.max() > 3 * values.min():
        axes.set(xlabel="end-to-end latency, ms (logarithmic)", xscale="log")
        axes.set_xlim(values.min() * 0.8, values.max() * 1.15)
        plain_ticks(axes.xaxis)
    else:
        axes.set(xlabel="end-to-end latency, ms", xlim=(0, values.max() * 1.08))
    axes.legend(**_LEGEND_ABOVE)
    return True


def throughput(axes: Any, result: Result, theme: Theme) -> bool:
    """Pictures per second over the batch size, with intervals over blocks."""
    cells = cells_like(result, "offline")
    if cells and not any(cell["batch"] == 1 for cell in cells):
        cells = [*cells_like(result, "single"), *cells]  # batch 1 is that
    colours = colours_of(result, theme)
    series: dict[str, list[tuple[int, float, float, float]]] = {}
    for cell in cells:
        series.setdefault(cell["system"], []).append((cell["batch"], *_rates(cell)))
    for number, (name, points) in enumerate(series.items()):
        batches, rates, low, high = (
            np.array(column) for column in zip(*sorted(points), strict=True)
        )
        axes.errorbar(
            *(batches, rates),
            yerr=(rates - low, high - rates),
            marker=_MARKERS[number % len(_MARKERS)],
            color=colours[name],
            label=name,
            capsize=3,
            elinewidth=1.0,
        )
    if cells:
        ticks = sorted({cell["batch"] for cell in cells})
        axes.set(xlabel="batch size", ylabel="images per second", xscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    return bool(cells)


def _rates(cell: Mapping[str, Any]) -> tuple[float, float, float]:
    """Images per second: the median block's, and the ends of an interval over blocks."""
    rate = float(cell["figures"]["images_per_s"])
    # All pictures of an offline block are due at its start; those of a single one in turns.
    blocks = [np.asarray(block, np.float64) for block in cell["blocks"] if block]
    single = cell["scenario"] == "single"
    rates = [block.size / float(block.sum() if single else block.max()) for block in blocks]
    if len(rates) < 2:
        return rate, rate, rate
    found = mean_interval(rates)
    return rate, min(rate, found.low), max(rate, found.high)


def ratios(axes: Any, result: Result, theme: Theme) -> bool:
    """Every other system's time over the first's, with its interval."""
    rows = list(result.ratios)
    if not rows:
        return False
    colours = colours_of(result, theme)
    places = list(dict.fromkeys(_where(row) for row in rows))
    names = list(dict.fromkeys(row["system"] for row in rows))
    axes.figure.set_figheight(1.5 + 0.42 * len(places))
    for row in rows:
        number = names.index(row["system"])
        place = places.index(_where(row)) + (number - (len(names) - 1) / 2) * 0.2
        axes.errorbar(
            *(row["ratio"], place),
            xerr=[[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]],
            marker=_MARKERS[(number + 1) % len(_MARKERS)],
            color=colours[row["system"]],
            label=row["system"],
            linestyle="",
            markersize=5,
            capsize=3,
            elinewidth=1.2,
        )
    axes.axvline(1.0, color=theme.ink, linewidth=1.0)
    ends = [value for row in rows for value in (row["low"], row["high"], 1.0)]
    axes.set(xscale="log", xlim=(min(ends) * 0.9, max(ends) * 1.1))
    axes.set_xlabel(f"time over {whose(rows[0]['over'])} (above 1: slower)")
    plain_ticks(axes.xaxis, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    axes.set_yticks(range(len(places)), places)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    _legend_once(axes)
    return True


def _where(row: Mapping[str, Any]) -> str:
    if row["scenario"] == "encode":
        return "tower alone"
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return f"{row['scenario']}, {row['lengths']}{batch}"


def _legend_once(axes: Any) -> None:
    """Names everyone once, however often they were drawn; to the left over the axis' labels."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 4, "columnspacing": 1.0}
    axes.legend(unique.values(), unique.keys(), handletextpad=0.3, **place)


def memory(axes: Any, result: Result, theme: Theme) -> bool:
    """Resident memory over a long run of requests."""
    colours = colours_of(result, theme)
    found = {name: row for name, row in result.memory.items() if row.get("resident_bytes")}
    for number, (name, row) in enumerate(found.items()):
        values: Sequence[float] = [value / 2**20 for value in row["resident_bytes"]]
        growth = row["growth_bytes_per_request"] / 2**10
        # "+0.0" and "-0.0" are the same to a reader
        label = f"{name}: peak {row['peak_bytes'] / 2**20:.0f} MiB, {growth + 0.0:+.1f} KiB/request"
        axes.plot(
            *(range(1, len(values) + 1), values, _LINES[number % len(_LINES)]),
            color=colours[name],
            label=label,
        )
    if found:
        axes.set(xlabel="requests answered", ylabel="resident memory, MiB")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.legend(**_LEGEND_ABOVE)
    return bool(found)
