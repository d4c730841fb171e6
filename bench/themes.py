"""How charts look: colours of a light and of a dark page, one colour per system everywhere.

What is told apart by colour is told apart by lightness, marker or line as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "LIGHT", "Theme", "chart_style", "plain_ticks", "system_colours"]

# The same system has the same colour in every report; whoever is not named takes what is left.
_SYSTEMS = ("primelens", "transformers", "compiled", "optimum", "openvino", "vllm")


@dataclass(frozen=True)
class Theme:
    """Colours of a page.

    Attributes:
        name: light or dark.
        ink, soft, faint, paper: text; text beside it; grid; background.
        systems: in the order of the known systems, then for others.
        parts: part of a bar → colour: cool on the image's side of the seam, warm on the text's,
            grey where neither works.
    """

    name: str
    ink: str
    soft: str
    faint: str
    paper: str
    systems: tuple[str, ...]
    parts: Mapping[str, str]


LIGHT = Theme(
    "light",
    "#1d2530",
    "#5a6572",
    "#d9dee4",
    "#ffffff",
    (
        *("#1f5fbf", "#d8731a", "#9a3fb0", "#157f63", "#b3261e", "#4d7c0f"),
        *("#0e7490", "#6b7280"),
    ),
    {
        "preprocess": "#bcd3ee",
        "tower": "#4f8fd6",
        "connector": "#1c4f94",
        "prefill": "#f9c58d",
        "step": "#dd7a1c",
        "other": "#a9b1bb",
        "python": "#dde1e6",
        "import": "#a9b1bb",
        "load": "#6b7480",
        "caption": "#1f5fbf",
    },
)
DARK = Theme(
    "dark",
    "#e6e9ee",
    "#a7b0bd",
    "#343c47",
    "#14181e",
    (
        *("#6fa8ff", "#ffab66", "#d79bea", "#53cfa6", "#ff8a80", "#a3d65c"),
        *("#5cc8e0", "#a7b0bd"),
    ),
    {
        "preprocess": "#cfe2fa",
        "tower": "#7fb2f5",
        "connector": "#3d74c2",
        "prefill": "#ffdcb3",
        "step": "#f39a45",
        "other": "#7d8794",
        "python": "#c9d0d8",
        "import": "#8f99a6",
        "load": "#5a6572",
        "caption": "#6fa8ff",
    },
)


def system_colours(names: Iterable[str], theme: Theme) -> dict[str, str]:
    """System → colour; the known ones keep theirs whoever else takes part."""
    unique = list(dict.fromkeys(names))
    found = {name: theme.systems[_SYSTEMS.index(name)] for name in unique if name in _SYSTEMS}
    left = [colour for colour in theme.systems if colour not in found.values()]
    others = [name for name in unique if name not in found]
    return {**found, **{name: left[i % len(left)] for i, name in enumerate(others)}}


def chart_style(theme: Theme, salt: str) -> dict[str, Any]:
    """matplotlib's settings; ``salt`` makes the same chart the same bytes."""
    return {
        # Glyphs as outlines: a reader's own fonts are of other widths, and labels would collide.
        "svg.fonttype": "path",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.soft,
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
        "legend.handlelength": 1.6,
        "legend.borderaxespad": 0.2,
        "lines.linewidth": 1.8,
    }


def plain_ticks(axis: Any, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Numbers on a logarithmic axis as numbers, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
