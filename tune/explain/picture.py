"""Draws an explanation: one panel per word, the picture under the word's attention; PNG or HTML."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from primelens.atomic import write_bytes
from primelens.errors import DependencyError, OptionError
from primelens.tune.explain.attention import Explanation
from primelens.tune.explain.faithfulness import Faithfulness

__all__ = ["draw"]

_COLUMNS = 4
_PANEL = 2.6  # inches
_DPI = 110


def draw(explanation: Explanation, out: str | Path, score: Faithfulness | None = None) -> Path:
    """Write the drawing; the file appears whole or not at all.

    Args:
        explanation: what is drawn.
        out: a ``.png`` or ``.html`` file.
        score: its curves are drawn too, where given.

    Raises:
        OptionError: ``out`` is neither a PNG nor an HTML file.
        DependencyError: matplotlib is not installed.
    """
    path = Path(out)
    if path.suffix.lower() not in (".png", ".html"):
        raise OptionError(
            f"{path}: drawings are written as .png or .html.", remedy="Give such a file name."
        )
    image = _png(explanation, score)
    data = image if path.suffix.lower() == ".png" else _page(explanation, score, image)
    write_bytes(path, data)
    return path


def _figure(columns: int, rows: int) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Drawing needs the package 'matplotlib', which is not installed.",
            remedy="Run `pip install 'primelens[explain]'`.",
        ) from error
    size = (columns * _PANEL, rows * (_PANEL + 0.4) + 0.6)
    return Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")


def _png(explanation: Explanation, score: Faithfulness | None) -> bytes:
    panels = 1 + len(explanation.words) + (0 if score is None else 1)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    figure = _figure(columns, rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel in axes:
        panel.set_axis_off()
    axes[0].imshow(explanation.picture)
    axes[0].set_title("what the tower saw", fontsize=9, color="dimgray")
    # One scale for all words: a word that looks everywhere stays pale.
    largest = max(float(word.attention.max()) for word in explanation.words)
    for panel, word in zip(axes[1:], explanation.words, strict=False):
        _overlay(panel, explanation, word.attention / largest)
        probability = float(np.exp(word.logprob))
        panel.set_title(f"{_plain(word.text)}\np = {probability:.2f}", fontsize=9)
    if score is not None:
        _curves(axes[1 + len(explanation.words)], score)
    figure.suptitle(_plain(_wrapped(explanation.caption.text, columns * 28)), fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(text, max(width, 20))


def _overlay(panel: Any, explanation: Explanation, share: Any) -> None:
    height, width = explanation.picture.shape[:2]
    gray = explanation.picture.mean(axis=2) / 255
    panel.imshow(0.5 + 0.5 * gray, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    panel.imshow(
        share,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=0.8 * np.clip(share, 0, 1) ** 0.7,
        interpolation="nearest",
        extent=(0, width, height, 0),
    )


def _curves(panel: Any, score: Faithfulness) -> None:
    panel.set_axis_on()
    for name, style, color in (("deletion", "-", "tab:red"), ("insertion", "-", "tab:blue")):
        mapped = np.mean([getattr(word, name) for word in score.words], axis=0)
        chance = np.mean([getattr(word, f"random_{name}") for word in score.words], axis=0)
        panel.plot(score.shares, mapped, style, color=color, label=name)
        panel.plot(score.shares, chance, ":", color=color, label=f"{name}, random order")
    panel.set_xlabel("share of the picture", fontsize=8)
    panel.set_ylabel("probability of a word", fontsize=8)
    panel.set_ylim(0, 1.02)
    panel.tick_params(labelsize=7)
    panel.legend(fontsize=6, frameon=False)


def _page(explanation: Explanation, score: Faithfulness | None, image: bytes) -> bytes:
    caption = explanation.caption
    rows = [
        f"<tr><td>{html.escape(word.text)}</td><td>{np.exp(word.logprob):.3f}</td></tr>"
        for word in explanation.words
    ]
    title = "<th>word</th><th>probability</th>"
    below = ""
    if score is not None:
        title += "<th>deletion gain</th><th>insertion gain</th>"
        gains = [word.gain for word in score.words]
        rows = [
            row.replace("</tr>", f"<td>{away:+.3f}</td><td>{back:+.3f}</td></tr>")
            for row, (away, back) in zip(rows, gains, strict=True)
        ]
        below = (
            "<p>Gain: by how much the area under the curve beats a random order of the same parts; "
            f"{score.orders} orders.</p>"
        )
    asked = f"<p>{html.escape(caption.question)}</p>" if caption.question else ""
    data = base64.b64encode(image).decode()
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(caption.text)}</title>
<style>body {{font: 16px/1.5 system-ui; max-width: 60rem; margin: 2rem auto; padding: 0 1rem}}
img {{max-width: 100%}} td, th {{padding: .2rem 1rem .2rem 0; text-align: left}}
@media (prefers-color-scheme: dark) {{body {{background: #111; color: #ddd}}}}</style>
<h1>{html.escape(caption.text)}</h1>{asked}
<p>{html.escape(caption.image)}; {explanation.method}; {explanation.off_picture:.0%} of the
attention goes to no part of the picture.</p>
<img alt="attention per word" src="data:image/png;base64,{data}">
<table><tr>{title}</tr>{"".join(rows)}</table>{below}
</html>
""".encode()
