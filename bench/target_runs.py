"""Measures the parts of `primelens.bench.target_rows`, each beside its peers in one run.

What a part yields is plain data for ``targets.json``:

=========  =====================================================================================
values     key of a check → ``value`` and, for a ratio of turns, ``low`` and ``high`` (95 %)
missing    key of a check → why there is no such value
systems    system → ``seconds`` per picture (median), ``batch`` that they are of, ``stages``:
           seconds per picture, ``tokens``: share of captions that equal transformers' token for
           token, ``limit``: seconds that the machine's limits allow; or ``error``: its own words
quality    precision → the bundle's own proof against its source
limits     `primelens.bench.bandwidth.Limits`
load       share of the cores that others used before and after
=========  =====================================================================================
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from primelens.bench.bandwidth import Limits, measure_limits
from primelens.bench.environment import capture, load_now, usable_cores
from primelens.bench.estimators import compare_blocks, percentile
from primelens.bench.figures import stage_split
from primelens.bench.peer_environments import environment_of
from primelens.bench.pictures import PictureSource
from primelens.bench.quality import agreement
from primelens.bench.run import Say, Subject, prepare
from primelens.bench.scenarios import Load, drive, settle, turn_order
from primelens.bench.shares import Work, work_of
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Request, Sample, System, SystemClock
from primelens.bench.target_processes import measure_starts
from primelens.bench.target_rows import Part
from primelens.bench.target_steps import measure_step_part
from primelens.bench.workers import WorkerSystem
from primelens.bundle import open_bundle
from primelens.errors import PrimelensError

__all__ = ["TargetOptions", "measure_part"]

TOKENS = 20


@dataclass(frozen=True)
class TargetOptions:
    """How parts are measured.

    Attributes:
        work_folder: checkpoints, bundles and peers' exports, made once and kept there.
        peer_folder: where peers' environments lie; None for the default.
        works: reference work → the one to take instead (a small one, for a look).
        blocks: repetitions, where not the part's own.
        threads: to compute with; None for all cores that may be used.
        fresh: export quantised bundles anew, because the exporter has changed.
    """

    work_folder: Path
    peer_folder: Path | None = None
    works: Mapping[str, str] = field(default_factory=dict)
    blocks: int | None = None
    threads: int | None = None
    fresh: bool = False


def measure_part(part: Part, options: TargetOptions, say: Say) -> dict[str, Any]:
    """Measure one part; what cannot be measured is part of the result, in its own words."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    work = options.works.get(part.work, part.work)
    bundles, missing = _bundles(part, work, options, say)
    found: dict[str, Any] = {"started": started, "work": work, "values": {}, "missing": {}}
    found |= {"environment": capture().as_dict(), "systems": {}, "quality": _quality(bundles)}
    for check in part.checks:
        precision = check.value.partition("/")[0]
        if precision in missing:
            found["missing"][check.value] = missing[precision]
    before = load_now()
    threads = options.threads or usable_cores()
    say("measuring the machine's limits")
    limits = measure_limits(threads, quick=True)
    measure = {"step": measure_step_part, "start": measure_starts}.get(part.kind, _answers)
    run = PartRun(part, bundles, limits, options)
    found |= {k: {**found[k], **v} for k, v in measure(run, say).items()}
    found["limits"] = asdict(run.limits)
    found["load"] = {"before": before.others, "after": load_now().others}
    return found


@dataclass
class PartRun:
    """A part at work: its bundles (precision → subject), and the limits of the run.

    A machine shared with others delivers now more, now less: times are held against the best that
    was seen before and after they were measured, so `look_again` comes before any of that.
    """

    part: Part
    bundles: Mapping[str, Subject]
    limits: Limits
    options: TargetOptions

    @property
    def threads(self) -> int:
        """To compute with."""
        return self.options.threads or usable_cores()

    @property
    def blocks(self) -> int:
        """Repetitions that count."""
        return self.options.blocks or self.part.blocks

    def look_again(self) -> None:
        """Measure the machine's limits once more, and keep the best of both."""
        self.limits = self.limits.best_of(measure_limits(self.threads, quick=True))

    def spec(self, precision: str) -> Spec:
        """What a bundle is counted by."""
        model = self.bundles[precision].bundle
        return Spec(self.part.name, model=model, tokens=TOKENS, beams=self.part.beams)


def _bundles(
    part: Part, work: str, options: TargetOptions, say: Say
) -> tuple[dict[str, Subject], dict[str, str]]:
    """Precision → its bundle, exported once and kept; and precision → why there is none."""
    options.work_folder.mkdir(parents=True, exist_ok=True)
    bundles: dict[str, Subject] = {}
    missing: dict[str, str] = {}
    for precision in dict.fromkeys((*part.precisions, "fp32")):  # fp32 counts the operations
        try:
            bundles[precision] = _exported(work, precision, options, say)
        except PrimelensError as error:
            missing[precision] = f"no {precision} bundle: {str(error).splitlines()[0]}"
            say(missing[precision])
    return bundles, missing


def _exported(work: str, precision: str, options: TargetOptions, say: Say) -> Subject:
    """The bundle, made where it is not there yet.

    What a quantised bundle of random weights says is no measure of a real one's quality, so it is
    timed even where its proof fails; the proof's figures stand beside the times.
    """
    folder = options.work_folder
    if precision == "fp32":
        return prepare(Spec(work, checkpoint=f"reference:{work}"), folder, say)
    from primelens.export import ExportOptions, GateOptions, export_checkpoint

    checkpoint = _exported(work, "fp32", options, say).checkpoint
    assert checkpoint is not None
    bundle = folder / f"{work}-{precision}.bundle"
    if options.fresh or not bundle.is_dir():
        wanted = ExportOptions(
            precision=precision,  # type: ignore[arg-type]  # the exporter refuses what it lacks
            overwrite=True,
            gate=GateOptions(allow_mismatch=True),
        )
        say(f"exporting {checkpoint} ({precision})")
        export_checkpoint(checkpoint, bundle, wanted)
    return Subject(str(bundle), checkpoint)


def _quality(bundles: Mapping[str, Subject]) -> dict[str, Any]:
    """Precision → what its export proved."""
    return {
        precision: dict(open_bundle(subject.bundle, check="size").manifest.parity)
        for precision, subject in bundles.items()
    }


def _answers(run: PartRun, say: Say) -> dict[str, Any]:
    """Captions, kept pictures and the tower: systems take turns over the same new pictures."""
    samples: dict[tuple[str, int], list[Sample]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        systems, errors = _open(run, folder, stack, say)
        pictures = PictureSource(folder / "pictures", 0)
        for batch in run.part.batches:
            say(f"{run.part.name}, batch {batch}: {', '.join(systems)}")
            for name, found in _turns(run, batch, systems, errors, pictures):
                samples.setdefault((name, batch), []).extend(found)
    run.look_again()
    return _compared(run, samples, errors)


def _open(
    run: PartRun, folder: Path, stack: ExitStack, say: Say
) -> tuple[dict[str, System], dict[str, str]]:
    systems: dict[str, System] = {}
    errors: dict[str, str] = {}
    for name in (*_ours(run), *run.part.peers):
        say(f"opening {name}")
        try:
            systems[name] = stack.enter_context(_worker(run, name, folder))
        except PrimelensError as error:
            errors[name] = str(error)
            say(f"{name} failed: {error}")
    return systems, errors


def _ours(run: PartRun) -> list[str]:
    return [precision for precision in run.part.precisions if precision in run.bundles]


def _worker(run: PartRun, name: str, folder: Path) -> WorkerSystem:
    settings: dict[str, Any] = {"name": name, "threads": run.threads}
    if name in run.bundles:
        settings["model"] = run.bundles[name].bundle
        if run.part.kind == "kept":
            settings["cache"] = str(folder / f"kept-{name}")
        return WorkerSystem("primelens", settings)
    checkpoint = run.bundles["fp32"].checkpoint
    settings["checkpoint"] = checkpoint
    if name == "optimum":
        settings["kept"] = f"{checkpoint}.optimum"
    python = environment_of(name, run.options.peer_folder).require()
    return WorkerSystem(name, settings, python=python)


def _turns(
    run: PartRun,
    batch: int,
    systems: Mapping[str, System],
    errors: dict[str, str],
    pictures: PictureSource,
) -> Iterator[tuple[str, list[Sample]]]:
    """Every system's samples, block by block; the first block of each does not count."""
    clock, load = SystemClock(), Load("single") if batch == 1 else Load("offline", batch=batch)
    for block in range(-1, run.blocks):
        requests = [_request(run.part, n, path) for n, path in enumerate(pictures.fresh(batch))]
        for name in turn_order(systems, block):
            if name in errors:
                continue
            system = systems[name]
            settle(clock)
            blank = Sample(name, "targets", "forced", block, requests[0], Answer(0), 0.0, 0.0, 0.0)
            try:
                if run.part.kind == "kept" and name in run.bundles:
                    system.answer(requests)  # shown once before, so it is kept
                found = drive(system, requests, load, clock, blank)
            except PrimelensError as error:
                errors[name] = str(error)
                continue
            lost = next((s.answer.error for s in found if s.answer.error is not None), None)
            if lost is not None:
                errors[name] = lost
            elif block >= 0:
                yield name, found


def _request(part: Part, number: int, path: str) -> Request:
    if part.kind == "tower":
        return Request(number, path, want="encode")
    return Request(number, path, max_new_tokens=TOKENS, forced=True, beams=part.beams)


def _compared(
    run: PartRun, samples: Mapping[tuple[str, int], Sequence[Sample]], errors: Mapping[str, str]
) -> dict[str, Any]:
    """Figures of every system at its best batch, and the ratios that were promised."""
    blocks: dict[str, list[list[float]]] = {}
    systems: dict[str, dict[str, Any]] = {name: {"error": why} for name, why in errors.items()}
    works = {name: work_of(run.bundles[name].bundle, run.spec(name)) for name in run.bundles}
    for name in dict.fromkeys(name for name, _ in samples if name not in errors):
        best = min(
            (batch for one, batch in samples if one == name),
            key=lambda batch: _median(_per_picture(run.part, samples[name, batch])),
        )
        chosen = samples[name, best]
        blocks[name] = _per_picture(run.part, chosen)
        systems[name] = {
            "seconds": _median(blocks[name]),
            "batch": best,
            "stages": stage_split(chosen),
            "tokens": _equal_tokens(samples, name, best),
        }
        if name in works:
            limit = _limit(run, works[name], works["fp32"], best)
            systems[name]["limit"] = limit
    return {"systems": systems, **_ratios(run.part, blocks, errors)}


def _per_picture(part: Part, samples: Sequence[Sample]) -> list[list[float]]:
    """Seconds per picture, block by block: of the tower its own, else from request to answer."""
    found: dict[int, list[float]] = {}
    for sample in samples:
        spent = (
            sample.answer.stages["tower"]
            if part.kind == "tower"
            else (sample.ended - sample.started) / sample.batch
        )
        found.setdefault(sample.block, []).append(spent)
    return [found[block] for block in sorted(found)]


def _median(blocks: Sequence[Sequence[float]]) -> float:
    return percentile([seconds for block in blocks for seconds in block], 50.0)


def _equal_tokens(
    samples: Mapping[tuple[str, int], Sequence[Sample]], name: str, batch: int
) -> float | None:
    """Share of captions that equal transformers' of the same pictures, token for token."""
    reference = samples.get(("transformers", batch), ())
    shown = {(s.block, s.request.index): s.answer for s in reference}
    pairs = [(shown.get((s.block, s.request.index)), s.answer) for s in samples[name, batch]]
    pairs = [(a, b) for a, b in pairs if a is not None and b.tokens]
    if not pairs:
        return None
    found: float = agreement([a for a, _ in pairs if a], [b for _, b in pairs])["same_tokens"]
    return found


def _limit(run: PartRun, work: Work, counted: Work, batch: int) -> dict[str, float]:
    """Seconds per picture that this run's limits allow, per stage.

    Args:
        work: of the bundle at hand, whose bytes its steps read.
        counted: of the fp32 bundle, in which every product can be counted.
    """
    limits = run.limits
    int8 = limits.int8_op_per_s or limits.fp32_flop_per_s
    peak = limits.fp32_flop_per_s if work.precision == "fp32" else int8
    found = {"tower": counted.tower_operations / peak}
    if run.part.kind == "kept":
        found = {}
    if run.part.kind != "tower":
        if run.part.kind != "kept":
            found["connector"] = counted.connector_operations / peak
        rows = batch * run.part.beams
        read = work.step.weights + rows * work.step.self_cache + batch * work.step.cross_cache
        step = max(read / limits.read_bytes_per_s, rows * counted.step_operations / peak)
        found["step"] = TOKENS * step / batch
    return {**found, "total": sum(found.values())}


def _ratios(
    part: Part, blocks: Mapping[str, list[list[float]]], errors: Mapping[str, str]
) -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    others = {name: blocks[name] for name in part.peers if name in blocks}
    for precision in part.precisions:
        own = blocks.get(precision)
        if own is None:
            if precision in errors:
                missing |= {c.value: errors[precision] for c in part.checks
                            if c.value.startswith(f"{precision}/")}  # fmt: skip
            continue
        rivals = {
            "transformers": [name for name in others if name == "transformers"],
            "other": [name for name in others if name != "transformers"],
            "of-fastest": list(others),
        }
        for which, names in rivals.items():
            key = f"{precision}/{which}"
            if names:
                fastest = min(names, key=lambda name: _median(others[name]))
                values[key] = _ratio(own, others[fastest], fastest, turned=which == "of-fastest")
            else:
                said = [f"{n}: {errors[n].splitlines()[0]}" for n in part.peers if n in errors]
                missing[key] = "; ".join(said) or "no such peer took part"
    return {"values": values, "missing": missing}


def _ratio(
    own: Sequence[Sequence[float]], other: Sequence[Sequence[float]], name: str, *, turned: bool
) -> dict[str, Any]:
    first, second = (other, own) if turned else (own, other)
    found = compare_blocks(first, second, paired=True).ratio
    return {"value": found.estimate, "low": found.low, "high": found.high, "peer": name}
