"""A result as text, for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from primelens.bench.bandwidth import Limits
from primelens.bench.result import Result

__all__ = ["align", "result_lines"]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def result_lines(result: Result) -> list[str]:
    """Everything that a reader needs in order to believe the figures, and the figures."""
    return [line for part in _PARTS for line in part(result)]


def _head(result: Result) -> Iterator[str]:
    environment, load = result.environment, result.load
    yield f"{result.spec['name']}: {result.started}" + (", quick" if result.quick else "")
    yield (
        f"machine  {environment['cpu']}, {environment['usable']} of {environment['cores']} cores, "
        f"{environment['memory'] / 2**30:.0f} GiB, {environment['system']}"
    )
    yield f"         {' '.join(environment['flags'])}"
    packages = ", ".join(f"{k} {v}" for k, v in environment["packages"].items())
    yield f"         Python {environment['python']}, {packages}"
    before, during, after = (
        _percent(load.get(f"others_{when}")) for when in ("before", "during", "after")
    )
    yield f"load     others used {before} of the cores before, {during} during, {after} after"
    if load["busy"]:
        yield "         THE MACHINE WAS BUSY: the figures say little"
    limits = Limits(**result.limits).lines()
    yield f"limits   {limits[0]}"
    yield from (f"         {line}" for line in limits[1:])


def _systems(result: Result) -> Iterator[str]:
    yield ""
    for name, system in result.systems.items():
        found = system["description"]
        if found:
            versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
            yield f"{name}: {found['kind']}, {found['precision']}, {found['threads']} threads"
            yield f"    {versions}"
            if opening := found.get("opening"):
                split = ", ".join(f"{part} {seconds:.1f}" for part, seconds in opening.items())
                yield f"    seconds until it could answer: {split}"
            if found["notes"]:
                yield f"    {', '.join(found['notes'])}"
        if system["error"]:
            yield f"{name}: FAILED, which is its result:"
            yield from (f"    {line}" for line in system["error"].splitlines()[:12])


def _cells(result: Result) -> Iterator[str]:
    head = "scenario lengths batch system E2E-p50 p90 p95 p99 TTFT TPOT images/s tokens/s "
    head += "of-limit:step tower failures"
    rows = [[word.replace("-", " ") for word in head.split()]]
    for cell in result.cells:
        figures, seconds = cell["figures"], cell["figures"]["seconds"]
        e2e = seconds.get("e2e", {})
        rows.append(
            [
                cell["scenario"],
                cell["lengths"],
                str(cell["batch"]),
                cell["system"],
                *(_milliseconds(e2e.get(p)) for p in ("p50", "p90", "p95", "p99")),
                _milliseconds(seconds.get("ttft", {}).get("p50")),
                _milliseconds(seconds.get("tpot", {}).get("p50")),
                f"{figures['images_per_s']:.2f}",
                f"{figures['tokens_per_s']:.1f}",
                _percent(cell["shares"].get("step")),
                _percent(cell["shares"].get("tower")),
                str(figures["failures"]),
            ]
        )
    yield ""
    yield "MLPerf-style, unofficial; times in ms, latency from the scheduled start"
    yield from align(rows)
    for cell in result.cells:
        if "goodput" in cell["figures"]:
            good = cell["figures"]["goodput"]
            yield (
                f"{cell['scenario']}, {cell['lengths']}, {cell['system']}: {good['share']:.0%} "
                f"within {cell['objective']['e2e'] * 1e3:.0f} ms at {cell['rate']:.2f} arrivals/s, "
                f"goodput {good['images_per_s']:.2f} images/s"
            )


def _stages(result: Result) -> Iterator[str]:
    rows = []
    for cell in result.cells:
        stages: Mapping[str, float] = cell["figures"]["stages"]
        if stages and cell["scenario"] in ("single", "encode"):
            name = f"{cell['scenario']}, {cell['lengths']}, {cell['system']}"
            rows.append([name, *(_milliseconds(seconds) for seconds in stages.values())])
            titles = ["stages in ms", *stages]
    if rows:
        yield ""
        yield from align([titles, *rows])


def _ratios(result: Result) -> Iterator[str]:
    if not result.ratios:
        return
    yield ""
    if not result.load["concluded"]:
        yield "the machine was busy: no conclusions are drawn (--force draws them all the same)"
    rows = [["time over the first system's", "ratio", "95 % interval", "p", "verdict"]]
    for row in result.ratios:
        where = f"{row['scenario']}, {row['lengths']}, batch {row['batch']}"
        rows.append(
            [
                f"{where}: {row['system']} / {row['over']}",
                f"{row['ratio']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['p_value']:.4f}",
                row["verdict"] if result.load["concluded"] else "not concluded",
            ]
        )
    yield from align(rows)


def _quality(result: Result) -> Iterator[str]:
    if result.quality:
        yield ""
        yield f"quality of the same configurations, against {result.quality['reference']}"
        for name, found in result.quality["systems"].items():
            yield (
                f"    {name}: {found['same_tokens']:.0%} of {found['pictures']} captions equal, "
                f"token for token; {found['distinct']} different captions"
            )
        for name, why in result.quality["errors"].items():
            yield f"    {name}: failed: {' '.join(why.split())[:120]}"
        golden = result.quality["golden"]
        verdict = "passed" if golden["passed"] else "FAILED"
        yield f"    golden pictures of the bundle: {verdict}, {len(golden['lines'])} checks"


def _memory(result: Result) -> Iterator[str]:
    for name, found in result.memory.items():
        if "error" in found:
            yield f"memory {name}: failed: {found['error']}"
        else:
            held = found.get("device_peak_bytes")
            device = "" if held is None else f", {held / 2**20:.0f} MiB of the GPU's"
            yield (
                f"memory {name}: peak {found['peak_bytes'] / 2**20:.0f} MiB, growth "
                f"{found['growth_bytes_per_request'] / 2**10:.1f} KiB per request over "
                f"{found['requests']} requests{device}"
            )


def _cache(result: Result) -> Iterator[str]:
    if not result.cache:
        yield "cache: off; no picture was shown twice"
        return
    yield "cache (forced length, one by one)"
    for state, found in result.cache.items():
        seconds = found["figures"]["seconds"]["e2e"]
        yield (
            f"    {state}: {_milliseconds(seconds['p50'])} ms, "
            f"{found['repeated']:.0%} of the pictures shown before"
        )


def _coldstart(result: Result) -> Iterator[str]:
    if result.coldstart:
        median = result.coldstart["median_ms"]
        split = ", ".join(f"{part} {value:.0f}" for part, value in median.items())
        yield f"cold start, {len(result.coldstart['seconds'])} fresh processes, ms: {split}"


_PARTS = (_head, _systems, _cells, _stages, _ratios, _quality, _memory, _cache, _coldstart)


def _milliseconds(seconds: Any) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
