"""A whole run: limits, systems, cells, ratios, quality, in one process tree and one go."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from primelens.bench.bandwidth import Limits, measure_limits
from primelens.bench.cells import Cell, CellRun, cells_of, run_cell, server_load
from primelens.bench.coldstart import measure_cold_start
from primelens.bench.environment import (
    Neighbours,
    capture,
    load_now,
    too_busy,
    usable_cores,
)
from primelens.bench.estimators import compare_blocks
from primelens.bench.figures import latency_blocks, summarise
from primelens.bench.memory import memory_of
from primelens.bench.peer_environments import environment_of
from primelens.bench.pictures import PictureSource
from primelens.bench.quality import golden_replay, measure_quality
from primelens.bench.result import Result
from primelens.bench.reuse import measure_cache
from primelens.bench.shares import Work, shares_of, work_of
from primelens.bench.spec import Spec
from primelens.bench.system import Clock, Sample, System, SystemClock
from primelens.bench.workers import WorkerSystem
from primelens.errors import OptionError, PrimelensError

__all__ = [
    "Outcome",
    "RunOptions",
    "Say",
    "Subject",
    "open_systems",
    "prepare",
    "run_bundles",
    "run_spec",
]

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOptions:
    """How a spec is run.

    Attributes:
        peers: which peers take part.
        peer_folder: where their environments lie; None for the default.
        force: draw conclusions on a busy machine too.
        work_folder: where made checkpoints and bundles are kept between runs; None keeps none.
    """

    peers: tuple[str, ...] = ()
    peer_folder: Path | None = None
    force: bool = False
    work_folder: Path | None = None


@dataclass(frozen=True)
class Subject:
    """What is measured: a bundle, and the checkpoint that peers run."""

    bundle: str
    checkpoint: str | None


@dataclass
class Outcome:
    """A result and the samples behind it."""

    result: Result
    samples: list[Sample] = field(default_factory=list)


def prepare(spec: Spec, folder: Path, say: Say) -> Subject:
    """Make what the spec names and is not there yet: a reference work, its bundle.

    Raises:
        OptionError: the spec names a reference work that does not exist.
    """
    checkpoint = spec.checkpoint
    if checkpoint is not None and checkpoint.startswith("reference:"):
        checkpoint = str(_reference_work(checkpoint.partition(":")[2], folder, say))
    if spec.model is not None:
        return Subject(spec.model, checkpoint)
    assert checkpoint is not None
    from primelens.export import ExportOptions, export_checkpoint

    bundle = folder / f"{spec.name}-{spec.precision}.bundle"
    if not bundle.is_dir():
        say(f"exporting {checkpoint} ({spec.precision})")
        export_checkpoint(checkpoint, bundle, ExportOptions(precision=spec.precision))
    return Subject(str(bundle), checkpoint)


def _reference_work(name: str, folder: Path, say: Say) -> Path:
    from primelens.export import reference_works

    if name not in reference_works.NAMES:
        raise OptionError(
            f"There is no reference work {name!r}.",
            remedy=f"Known: {', '.join(reference_works.NAMES)}.",
        )
    target = folder / f"{name}.checkpoint"
    if not (target / "config.json").exists():
        say(f"making the reference work {name} with random weights")
        reference_works.build(name, target)
    return target


def open_systems(
    spec: Spec, subject: Subject, options: RunOptions, say: Say
) -> tuple[dict[str, WorkerSystem], dict[str, str]]:
    """primelens and the peers, each in a process of its own; and name → why one did not open."""
    threads = spec.threads or usable_cores()
    systems: dict[str, WorkerSystem] = {}
    failed: dict[str, str] = {}
    for name in ("primelens", *options.peers):
        say(f"opening {name}")
        try:
            systems[name] = _open(name, subject, threads, options.peer_folder)
        except PrimelensError as error:
            if name == "primelens":
                raise
            failed[name] = str(error)
            say(f"{name} failed: {error}")
    return systems, failed


def _open(name: str, subject: Subject, threads: int, folder: Path | None) -> WorkerSystem:
    if name == "primelens":
        settings = {"model": subject.bundle, "threads": threads}
        return WorkerSystem("primelens", settings)
    if subject.checkpoint is None:
        raise OptionError("The spec names no checkpoint, which peers need.")
    python = environment_of(name, folder).require()
    settings = {"checkpoint": subject.checkpoint, "name": name, "threads": threads}
    return WorkerSystem(name, settings, python=python)


def run_spec(spec: Spec, options: RunOptions, *, quick: bool = False, say: Say = print) -> Outcome:
    """Run a spec: primelens first, then the peers.

    Raises:
        OptionError: the spec cannot be run; peers that fail do not raise, they are results.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work_folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        subject = prepare(spec, folder, say)

        def opened() -> tuple[dict[str, WorkerSystem], dict[str, str]]:
            return open_systems(spec, subject, options, say)

        return _measure(spec, options, subject.bundle, opened, quick=quick, say=say)


def run_bundles(
    spec: Spec, bundles: Mapping[str, str], options: RunOptions, *, say: Say = print
) -> Outcome:
    """Run a spec's scenarios over several bundles (name → bundle) in turns.

    Raises:
        EngineError: one of them does not open.
    """

    def opened() -> tuple[dict[str, WorkerSystem], dict[str, str]]:
        threads = spec.threads or usable_cores()
        systems: dict[str, WorkerSystem] = {}
        try:
            for name, bundle in bundles.items():
                settings = {"model": bundle, "name": name, "threads": threads}
                systems[name] = WorkerSystem("primelens", settings)
        except BaseException:
            for system in systems.values():
                system.close()
            raise
        return systems, {}

    return _measure(spec, options, next(iter(bundles.values())), opened, quick=False, say=say)


def _measure(
    spec: Spec,
    options: RunOptions,
    bundle: str,
    opened: Callable[[], tuple[dict[str, WorkerSystem], dict[str, str]]],
    *,
    quick: bool,
    say: Say,
) -> Outcome:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    before = load_now()
    if before.busy and not options.force:
        say(f"the machine is busy: others use {before.others:.0%} of the cores")
    neighbours = Neighbours()
    say("measuring the machine's limits")
    limits = measure_limits(spec.threads, quick=quick)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = PictureSource(Path(temporary) / "pictures", spec.seed)
        systems, failed = opened()
        try:
            descriptions = {name: system.describe().as_dict() for name, system in systems.items()}
            runs = run_cells(spec, systems, pictures, SystemClock(), say)
            extras = _extras(spec, bundle, systems, pictures, say)
        finally:
            for system in systems.values():
                system.close()
        extras |= _processes(spec, bundle, pictures, Path(temporary), quick=quick, say=say)
    during, after = neighbours.share(), load_now()
    limits = limits.best_of(measure_limits(spec.threads, quick=quick))
    work = work_of(bundle, spec)
    precisions = {name: str(found["precision"]) for name, found in descriptions.items()}
    lost = {name: why for run in reversed(runs) for name, why in run.lost.items()}  # the first
    # Half a second before and after stand for a run only where the whole of it is not known.
    busy = before.busy or after.busy if during is None else too_busy(during)
    result = Result(
        spec=_plain(asdict(spec)),
        spec_digest=spec.digest,
        started=started,
        quick=quick,
        environment=capture().as_dict(),
        load={
            "others_before": before.others,
            "others_during": during,
            "others_after": after.others,
            "busy": busy,
            "concluded": options.force or not busy,
        },
        limits=asdict(limits),
        work=work.as_dict(),
        systems=_systems(descriptions, {**failed, **lost}),
        cells=[row for run in runs for row in _rows(run, limits, work, precisions)],
        ratios=[row for run in runs for row in _ratios(run, spec.seed)],
        **extras,
    )
    return Outcome(result, [sample for run in runs for sample in run.samples])


def _extras(
    spec: Spec,
    bundle: str,
    systems: Mapping[str, WorkerSystem],
    pictures: PictureSource,
    say: Say,
) -> dict[str, Any]:
    """What is asked of the open systems beside the cells."""
    found: dict[str, Any] = {}
    if "accuracy" in spec.scenarios:
        say("accuracy of the same configurations")
        found["quality"] = measure_quality(systems, spec, pictures)
        found["quality"]["golden"] = golden_replay(bundle)
    if "memory" in spec.scenarios:
        say("memory over a long run")
        found["memory"] = memory_of(systems, spec, pictures)
    return found


def _processes(
    spec: Spec, bundle: str, pictures: PictureSource, folder: Path, *, quick: bool, say: Say
) -> dict[str, Any]:
    """What needs processes of its own, when all others are gone."""
    found: dict[str, Any] = {}
    if "cache" in spec.scenarios:
        say("cache: off, misses, hits, and a mixture")
        found["cache"] = measure_cache(bundle, spec, folder, SystemClock())
    if "coldstart" in spec.scenarios:
        say("cold start: fresh processes")
        (picture,) = pictures.fresh(1)
        repetitions = 5 if quick else 9
        cold = measure_cold_start(bundle, Path(picture), repetitions=repetitions)
        found["coldstart"] = cold.as_dict()
    return found


def run_cells(
    spec: Spec, systems: Mapping[str, System], pictures: PictureSource, clock: Clock, say: Say
) -> list[CellRun]:
    """All cells of a spec, one after the other.

    A system that is lost in one is out of the rest that want the same of it: where captions fail,
    the tower alone may still answer.
    """
    runs: list[CellRun] = []
    lost: set[tuple[str, bool]] = set()
    for cell in cells_of(spec):
        encode = cell.lengths == "encode"
        alive = {name: system for name, system in systems.items() if (name, encode) not in lost}
        objective = None
        if cell.load is None:
            singles = _singles(runs, cell.lengths)
            if not singles:
                raise OptionError("The scenario server needs the scenario single in the same spec.")
            load, objective = server_load(spec, singles)
            cell = Cell(cell.scenario, cell.lengths, load)
        say(f"{cell.scenario}, {cell.lengths}, batch {cell.batch}")
        run = run_cell(cell, alive, spec, pictures, clock, say)
        run.objective = objective
        runs.append(run)
        lost |= {(name, encode) for name in run.lost}
    return runs


def _singles(runs: Sequence[CellRun], lengths: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for run in runs:
        if run.cell.scenario == "single" and run.cell.lengths == lengths:
            for sample in run.samples:
                found.setdefault(sample.system, []).append(sample)
    return found


def _by_system(run: CellRun) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in run.samples:
        found.setdefault(sample.system, []).append(sample)
    return {name: found[name] for name in run.systems if name in found}


def _rows(
    run: CellRun, limits: Limits, work: Work, precisions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The cells of one run, one per system."""
    rows = []
    for name, samples in _by_system(run).items():
        figures = summarise(samples, run.objective)
        rows.append(
            {
                "system": name,
                "scenario": run.cell.scenario,
                "lengths": run.cell.lengths,
                "batch": run.cell.batch,
                "rate": run.cell.load.rate if run.cell.load else None,
                "objective": None if run.objective is None else asdict(run.objective),
                "figures": figures,
                "blocks": latency_blocks(samples),
                "shares": shares_of(samples, limits, work, precision=precisions[name]),
            }
        )
    return rows


def _ratios(run: CellRun, seed: int) -> list[dict[str, Any]]:
    """Every other system over the first, where both answered in every block."""
    blocks = {name: latency_blocks(samples) for name, samples in _by_system(run).items()}
    first = next(iter(blocks), None)
    rows: list[dict[str, Any]] = []
    for name in list(blocks)[1:]:
        assert first is not None
        if len(blocks[name]) != len(blocks[first]) or len(blocks[name]) < 2:
            continue
        found = compare_blocks(blocks[first], blocks[name], paired=True, seed=seed)
        rows.append(
            {
                "system": name,
                "over": first,
                "scenario": run.cell.scenario,
                "lengths": run.cell.lengths,
                "batch": run.cell.batch,
                "ratio": found.ratio.estimate,
                "low": found.ratio.low,
                "high": found.ratio.high,
                "p_value": found.p_value,
                "test": found.test,
                "blocks": found.blocks[0],
                "verdict": found.verdict,
            }
        )
    return rows


def _systems(
    descriptions: Mapping[str, Mapping[str, Any]], errors: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    names = [*descriptions, *(name for name in errors if name not in descriptions)]
    return {
        name: {"description": descriptions.get(name), "error": errors.get(name)} for name in names
    }


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as they come back from JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
