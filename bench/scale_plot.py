"""The three series of `primelens.bench.scale` as one SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primelens.bench.files import write_text
from primelens.bench.themes import LIGHT, chart_style
from primelens.errors import DependencyError

__all__ = ["draw_scale"]


def draw_scale(found: Mapping[str, Any], path: Path) -> None:
    """Draw what was measured.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Charts need matplotlib, which is not installed.",
            remedy="Run `pip install 'primelens[bench]'`.",
        ) from error
    style: Any = chart_style(LIGHT, "scale")
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2, 12.4), layout="constrained")
        batches, lengths, counts, memory = figure.subplots(4)
        _batches(batches, found)
        _lengths(lengths, found["lengths"])
        _counts(counts, found["counts"])
        _memory(memory, found["counts"])
        buffer = io.StringIO()
        metadata: Any = {"Date": None, "Creator": "primelens bench"}
        figure.savefig(buffer, format="svg", metadata=metadata)
    write_text(path, buffer.getvalue())


def _batches(axes: Any, found: Mapping[str, Any]) -> None:
    rows = found["batches"]
    for number, threads in enumerate(dict.fromkeys(row["threads"] for row in rows)):
        own = [row for row in rows if row["threads"] == threads]
        axes.plot(
            [row["batch"] for row in own],
            [row["images_per_s"] for row in own],
            "os^D"[number % 4] + "-",
            color=LIGHT.systems[number % len(LIGHT.systems)],
            label=f"{threads} thread{'s' * (threads > 1)}",
        )
    axes.set(xlabel="pictures per batch", ylabel="pictures per second", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"Whole captions, {found['models']['batches']}", fontsize=10)
    axes.legend()


def _lengths(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    tokens = [row["tokens"] for row in rows]
    seconds = [row["seconds"] for row in rows]
    axes.plot(tokens, seconds, "o-", color=LIGHT.systems[0])
    axes.set(xlabel="tokens", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axes.set_title("One caption of a kept picture", fontsize=10)


def _counts(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    images = [row["images"] for row in rows]
    axes.plot(images, [row["seconds"] for row in rows], "o-", color=LIGHT.systems[0])
    each = rows[-1]["seconds"] / rows[-1]["images"]
    axes.plot(
        images,
        [each * count for count in images],
        "--",
        color=LIGHT.systems[1],
        label=f"{each * 1e3:.2f} ms a picture",
    )
    axes.set(xlabel="pictures", ylabel="seconds", xscale="log", yscale="log")
    axes.set_title("One run over stub graphs", fontsize=10)
    axes.legend()


def _memory(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    images = [row["images"] for row in rows]
    axes.plot(images, [row["resident"] / 1e6 for row in rows], "o-", color=LIGHT.systems[2])
    axes.set(xlabel="pictures", ylabel="resident MB", xscale="log", ylim=(0, None))
    axes.set_title("Memory of the same run", fontsize=10)
