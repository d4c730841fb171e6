from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from primelens.bench.conditions import quality_words, summary_lines
from primelens.bench.plots import CHARTS
from primelens.bench.report import render_report
from primelens.bench.run import Outcome
from primelens.bench.themes import LIGHT, system_colours

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), None)

# Appended to a copy of the page: what a browser made of it, as text.
_PROBE = """<script>addEventListener("load", async () => {
  const images = [...document.querySelectorAll("figure img")];
  await Promise.all(images.map(image => image.decode().catch(() => null)));
  const found = Object.fromEntries(images.map(image => [image.closest("figure").dataset.chart,
    {width: image.naturalWidth, shown: image.getBoundingClientRect().width,
     dark: image.currentSrc !== image.src}]));
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const probe = document.createElement("pre");
  probe.id = "probe";
  const ink = getComputedStyle(document.body).color;
  probe.textContent = JSON.stringify({charts: found, wide, ink});
  document.body.append(probe);
});</script>"""


@pytest.fixture(scope="module")
def page(outcome: Outcome) -> str:
    return render_report(outcome.result)


def browse(page: str, folder: Path, *flags: str) -> tuple[dict[str, object], str]:
    """What the probe saw, and what the browser logged."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    file = folder / "report.html"
    file.write_text(page.replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
    command += ["--enable-logging=stderr", *flags, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seen = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr[-2000:]
    found: dict[str, object] = json.loads(seen[1].replace("&quot;", '"').replace("&gt;", ">"))
    return found, done.stderr


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_every_chart_is_there(page: str) -> None:
    assert re.findall(r'data-chart="(\w+)"', page) == list(CHARTS)


def test_every_chart_says_under_which_conditions(page: str) -> None:
    """Charts are passed on without their page."""
    said = re.findall(r'<p class="conditions">(.*?)</p>', page)
    assert len(said) == len(CHARTS)
    for words in said:
        assert "cores" in words
        assert "cache off, no picture shown twice" in words
        assert "captions equal to peer&#x27;s token for token, of 8: primelens 100%" in words


def test_conclusions_stand_in_front_and_only_where_they_may_be_drawn(outcome: Outcome) -> None:
    lines = summary_lines(outcome.result)
    assert any(
        re.match(r"One by one, peer takes 1\.\d+ times primelens' time \[", x) for x in lines
    )
    assert any(line.startswith("In batches of 4, ") for line in lines)
    busy = {**outcome.result.load, "concluded": False}
    assert summary_lines(replace(outcome.result, load=busy)) == []


def test_a_result_without_quality_says_so(outcome: Outcome) -> None:
    assert quality_words(replace(outcome.result, quality={})) == "quality not measured"


def test_a_system_has_one_colour_whoever_else_takes_part() -> None:
    alone = system_colours(["primelens", "openvino"], LIGHT)
    among = system_colours(["other", "optimum", "openvino", "primelens", "second"], LIGHT)
    assert {name: among[name] for name in alone} == alone
    assert len(set(among.values())) == 5


def test_a_failed_systems_words_are_shown_and_harmless(page: str) -> None:
    assert "ValueError: &lt;no&gt; way" in page
    assert "<no>" not in page


def test_charts_without_data_are_left_out(outcome: Outcome) -> None:
    bare = replace(outcome.result, cells=[], cache={}, coldstart={}, ratios=[], memory={})
    assert "data-chart" not in render_report(bare)


def test_the_same_result_gives_the_same_page(page: str, outcome: Outcome) -> None:
    assert render_report(outcome.result) == page


def test_a_browser_draws_every_chart_without_complaint(page: str, tmp_path: Path) -> None:
    found, log = browse(page, tmp_path, "--window-size=1200,900")
    charts = found["charts"]
    assert isinstance(charts, dict)
    assert set(charts) == set(CHARTS)
    for chart in charts.values():
        assert chart["width"] > 100
        assert chart["shown"] > 300
    assert not found["wide"]
    assert "CONSOLE" not in log


def test_the_probe_sees_what_a_browser_complains_of(page: str, tmp_path: Path) -> None:
    """The test above would notice: a script that throws, and a chart that cannot be drawn."""
    broken = re.sub(
        r'<img src="data:[^"]*"', '<img src="data:image/svg+xml;base64,AAAA"', page, count=1
    )
    broken = broken.replace("</body>", "<script>nonsense()</script></body>")
    found, log = browse(broken, tmp_path, "--window-size=1200,900")
    charts = found["charts"]
    assert isinstance(charts, dict)
    assert charts["latency"]["width"] == 0
    assert "CONSOLE" in log


def test_it_fits_a_phone_and_a_dark_page(page: str, tmp_path: Path) -> None:
    found, _ = browse(
        page, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0"
    )
    charts = found["charts"]
    assert isinstance(charts, dict)
    assert not found["wide"]
    assert all(chart["dark"] for chart in charts.values())
    assert found["ink"] == "rgb(230, 233, 238)"
