"""A run as a list of cells: one scenario, one kind of length, one batch size each.

In a cell the systems take turns block by block, all over the same fresh pictures. Who is first
changes from block to block (A B, B A, …), and everybody starts on an idle machine: what the place
in the order does to a figure, it does to all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from primelens.bench.estimators import percentile
from primelens.bench.figures import Objective, end_to_end
from primelens.bench.pictures import PictureSource
from primelens.bench.scenarios import Load, drive, settle, turn_order
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Clock, Request, Sample, System
from primelens.errors import PrimelensError

__all__ = ["Cell", "CellRun", "cells_of", "run_cell", "server_load"]


@dataclass(frozen=True)
class Cell:
    """What is measured together.

    Attributes:
        scenario: as the result calls it.
        lengths: ``forced``, ``natural`` or ``encode``.
        load: how systems are loaded; None where it follows from another cell (``server``).
    """

    scenario: str
    lengths: str
    load: Load | None

    @property
    def batch(self) -> int:
        """Pictures per batch."""
        return self.load.batch if self.load else 1


@dataclass
class CellRun:
    """A cell as it went: all samples that count, who took part, and who was lost on the way."""

    cell: Cell
    systems: tuple[str, ...]
    samples: list[Sample] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    objective: Objective | None = None


def cells_of(spec: Spec) -> list[Cell]:
    """The cells that a spec asks for; ``server`` comes last, since its rate follows from single."""
    found = []
    for lengths in spec.lengths:
        if "single" in spec.scenarios:
            found.append(Cell("single", lengths, Load("single")))
        if "multi" in spec.scenarios:
            found.append(Cell("multi", lengths, Load("multi", batch=max(spec.batches))))
        if "offline" in spec.scenarios:
            found += [
                Cell("offline", lengths, Load("offline", batch=size)) for size in spec.batches
            ]
    if "encode" in spec.scenarios:
        found.append(Cell("encode", "encode", Load("single")))
    if "server" in spec.scenarios:
        found += [Cell("server", lengths, None) for lengths in spec.lengths]
    return found


def server_load(spec: Spec, singles: Mapping[str, Sequence[Sample]]) -> tuple[Load, Objective]:
    """Arrivals and objective of ``server``, from every system's ``single`` samples.

    The rate is a share (``spec.load``) of what the *slowest* system answers one by one, so that all
    of them can keep up; the objective is a multiple of the *fastest* system's median.
    """
    medians = [
        percentile([end_to_end(s) for s in samples if s.answer.error is None], 50.0)
        for samples in singles.values()
        if any(s.answer.error is None for s in samples)
    ]
    if not medians:
        raise ValueError("the scenario server needs answers of the scenario single")
    load = Load("server", batch=max(spec.batches), rate=spec.load / max(medians), seed=spec.seed)
    return load, Objective(e2e=spec.slo * min(medians))


def run_cell(
    cell: Cell,
    systems: Mapping[str, System],
    spec: Spec,
    pictures: PictureSource,
    clock: Clock,
    say: Callable[[str], None] = lambda _: None,
) -> CellRun:
    """Run a cell's blocks over all systems in turn.

    A system that raises is lost: its error stands in ``lost`` and it takes part no longer.
    """
    assert cell.load is not None
    run = CellRun(cell, tuple(systems))
    for block in range(-spec.warm_ups, spec.blocks):
        requests = _requests(cell, spec, pictures)
        for name in turn_order(systems, block):
            if name in run.lost:
                continue
            if len(systems) > 1:
                settle(clock)
            system = systems[name]
            blank = Sample(
                name, cell.scenario, cell.lengths, block, requests[0], Answer(0), 0.0, 0.0, 0.0
            )
            load = replace(cell.load, seed=cell.load.seed + block + spec.warm_ups)
            try:
                samples = drive(system, requests, load, clock, blank)
            except PrimelensError as error:
                run.lost[name] = str(error)
                say(f"{name} is lost: {error}")
                continue
            if block >= 0:
                run.samples += samples
    return run


def _requests(cell: Cell, spec: Spec, pictures: PictureSource) -> list[Request]:
    count = max(spec.requests, cell.batch)
    if cell.scenario == "offline":
        count = max(cell.batch, -(-count // cell.batch) * cell.batch)  # whole batches
    forced = cell.lengths == "forced"
    return [
        Request(
            index,
            picture,
            want="encode" if cell.lengths == "encode" else "caption",
            max_new_tokens=spec.tokens if forced else None,
            forced=forced,
            beams=spec.beams,
        )
        for index, picture in enumerate(pictures.fresh(count))
    ]
