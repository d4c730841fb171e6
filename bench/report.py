"""``report.html``: a result as one page that needs nothing else.

No script, no font, no file from elsewhere. Charts are embedded as SVG pictures; the page follows
the reader's light or dark setting and the width of a phone.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from typing import Any

from primelens.bench.bandwidth import Limits
from primelens.bench.conditions import (
    cache_words,
    machine_words,
    quality_words,
    summary_lines,
)
from primelens.bench.plots import Chart, draw_charts
from primelens.bench.result import Result
from primelens.bench.table import result_lines

__all__ = ["render_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5a6572; --line: #cdd3da;
  --paper: #ffffff; --warn: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a7b0bd; --line: #3d4652;
  --paper: #14181e; --warn: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; } .soft { color: var(--soft); }
.warn { color: var(--warn); font-weight: 600; }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%,
  26rem), 1fr)); }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figcaption span { display: block; font-weight: 400; font-size: .9rem; color: var(--soft); }
.conditions { font-size: .78rem; line-height: 1.35; color: var(--soft); margin: .2rem 0 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line); padding: .7rem; }
"""


def render_report(result: Result) -> str:
    """The whole page as HTML."""
    name = escape(str(result.spec["name"]))
    body = "\n".join([*_head(result, name), *_charts(result), *_tables(result), *_all(result)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>primelens bench: {name}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _head(result: Result, name: str) -> Iterator[str]:
    environment = result.environment
    limits = Limits(**result.limits)
    yield f"<h1>primelens bench: {name}</h1>"
    yield (
        f'<p class="soft">{escape(result.started)}{", quick" if result.quick else ""}. '
        "MLPerf-style, unofficial.</p>"
    )
    yield (
        f"<p>{escape(environment['cpu'])}, {environment['usable']} cores, "
        f"{environment['memory'] / 2**30:.0f} GiB, {escape(environment['system'])}. Measured in "
        f"the same run: {'; '.join(escape(line) for line in limits.lines())}.</p>"
    )
    yield f"<p>Conditions: {escape(cache_words(result))}; {escape(quality_words(result))}.</p>"
    yield from (f"<p><strong>{escape(line)}</strong></p>" for line in summary_lines(result))
    if not result.load["concluded"]:
        yield '<p class="warn">The machine was busy: no conclusions are drawn.</p>'
    elif result.load["busy"]:
        yield '<p class="warn">The machine was busy; conclusions were forced.</p>'
    for system, found in result.systems.items():
        if found["error"]:
            words = " ".join(found["error"].split())
            first = escape(words if len(words) <= 300 else f"{words[:300]}…")
            said = f'<span class="warn">failed</span>: {first}'
            yield f"<p><strong>{escape(system)}</strong> {said}</p>"


def _charts(result: Result) -> Iterator[str]:
    words = (machine_words(result), cache_words(result), quality_words(result))
    conditions = f"{'; '.join(words)}."
    yield '<div class="charts">'
    yield from (_figure(chart, conditions) for chart in draw_charts(result))
    yield "</div>"


def _figure(chart: Chart, conditions: str) -> str:
    light, dark = (
        f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
        for svg in (chart.light, chart.dark)
    )
    return (
        f'<figure data-chart="{chart.name}"><figcaption>{escape(chart.title)}'
        f"<span>{escape(chart.words)}</span></figcaption><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(chart.title)}. {escape(chart.words)}"></picture>'
        f'<p class="conditions">{escape(conditions)}</p></figure>'
    )


def _tables(result: Result) -> Iterator[str]:
    yield "<h2>Latency and throughput</h2>"
    yield '<div class="scroll"><table><thead><tr>'
    titles = [
        "scenario",
        "system",
        "p50",
        "p90",
        "p99",
        "TTFT",
        "TPOT",
        "images/s",
        "step",
        "tower",
    ]
    yield "".join(f"<th>{title}</th>" for title in titles)
    yield "</tr></thead><tbody>"
    for cell in result.cells:
        yield "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in _row(cell)) + "</tr>"
    yield "</tbody></table></div>"
    yield (
        '<p class="soft">Medians and percentiles in milliseconds from the scheduled start. "step" '
        'and "tower" are shares of the limit: memory bandwidth for a decode step, arithmetic for '
        "the tower.</p>"
    )
    if result.ratios:
        yield "<h2>Ratios, with 95 % intervals over interleaved blocks</h2>"
        yield '<div class="scroll"><table><thead><tr>'
        yield "".join(f"<th>{t}</th>" for t in ("time over the first's", "ratio", "interval", "p"))
        yield "</tr></thead><tbody>"
        for row in result.ratios:
            where = f"{row['scenario']}, {row['lengths']}, batch {row['batch']}"
            yield (
                f"<tr><td>{escape(where)}: {escape(row['system'])} / {escape(row['over'])}</td>"
                f"<td>{row['ratio']:.3f}</td><td>{row['low']:.3f} to {row['high']:.3f}</td>"
                f"<td>{row['p_value']:.4f}</td></tr>"
            )
        yield "</tbody></table></div>"


def _row(cell: Any) -> list[str]:
    seconds = cell["figures"]["seconds"]

    def milliseconds(series: str, which: str) -> str:
        value = seconds.get(series, {}).get(which)
        return "–" if value is None else f"{value * 1e3:.1f}"

    def share(name: str) -> str:
        value = cell["shares"].get(name)
        return "–" if value is None else f"{value:.0%}"

    return [
        f"{cell['scenario']}, {cell['lengths']}, batch {cell['batch']}",
        cell["system"],
        *(milliseconds("e2e", which) for which in ("p50", "p90", "p99")),
        milliseconds("ttft", "p50"),
        milliseconds("tpot", "p50"),
        f"{cell['figures']['images_per_s']:.2f}",
        share("step"),
        share("tower"),
    ]


def _all(result: Result) -> Iterator[str]:
    yield "<h2>Everything, as printed</h2>"
    yield f"<pre>{escape(chr(10).join(result_lines(result)))}</pre>"
