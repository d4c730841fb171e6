"""The part ``step``: decode steps of bundles of several precisions against the machine's limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from primelens.bench.captioner import require_caption_head
from primelens.bench.estimators import percentile
from primelens.bench.graph_work import weight_operations
from primelens.bench.run import Say
from primelens.bench.step import measure_steps
from primelens.bench.step_bytes import StepBytes, graph_weights, step_bytes
from primelens.bench.steppers import RuntimeStepper
from primelens.bundle import open_bundle

if TYPE_CHECKING:
    from primelens.bench.target_runs import PartRun

__all__ = ["measure_step_part"]

PAST = 16
STEPS = 5


def measure_step_part(run: PartRun, say: Say) -> dict[str, Any]:
    """Every precision at the batches that are promised of it; the bundles take turns.

    Their logits are compared with those of the first precision, so that a fast step that says
    something else is seen.
    """
    wanted = {
        (precision, int(batch))
        for precision, _, batch in (check.value.split("/") for check in run.part.checks)
        if precision in run.bundles
    }
    names = [precision for precision in run.part.precisions if precision in run.bundles]
    steppers: dict[str, RuntimeStepper] = {}
    for name in names:
        say(f"opening {name}")
        steppers[name] = RuntimeStepper(Path(run.bundles[name].bundle), PAST + STEPS, run.threads)
        steppers[name].name = name
    operations = _operations(run)
    vocabulary = next(iter(steppers.values())).spec.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocabulary, PAST + STEPS).tolist()
    found: dict[tuple[str, int], tuple[float, StepBytes, bool]] = {}
    for batch in run.part.batches:
        at_hand = [name for name in names if (name, batch) in wanted]
        if not at_hand:
            continue
        say(f"step, batch {batch}: {', '.join(at_hand)}")
        for name in at_hand:
            steppers[name].resize(batch, 1)
        seconds, _, same = measure_steps(
            [steppers[name] for name in at_hand], tokens, PAST, blocks=run.blocks, steps=STEPS
        )
        for name in at_hand:
            middle = percentile([s for block in seconds[name] for s in block], 50.0)
            found[name, batch] = middle, _read(steppers[name], batch), same
    run.look_again()
    values, systems = {}, {}
    for (name, batch), (middle, read, same) in found.items():
        limit = _limits(run, name, read, batch * operations)
        values[f"{name}/limit/{batch}"] = {"value": middle / limit["total"]}
        systems[f"{name}, batch {batch}"] = {"seconds": middle, "limit": limit, "same_tokens": same}
    return {"values": values, "systems": systems}


def _operations(run: PartRun) -> int:
    """Of one row's products with weights, counted where every product can be: in fp32."""
    bundle = open_bundle(run.bundles["fp32"].bundle, check="size")
    return weight_operations(bundle.path(require_caption_head(bundle.manifest).decoder.graph))


def _read(stepper: RuntimeStepper, batch: int) -> StepBytes:
    """What a step in the middle of a block reads."""
    weights = graph_weights(stepper.bundle.path(stepper.spec.graph))
    middle = PAST + (STEPS - 1) // 2
    return step_bytes(weights, stepper.spec, stepper.cross_bytes, past=middle, rows=batch)


def _limits(run: PartRun, name: str, read: StepBytes, operations: int) -> dict[str, float]:
    """Seconds that memory and arithmetic need at least; ``total`` is the larger of the two."""
    limits = run.limits
    int8 = limits.int8_op_per_s or limits.fp32_flop_per_s
    peak = limits.fp32_flop_per_s if name == "fp32" else int8
    memory, arithmetic = read.total / limits.read_bytes_per_s, operations / peak
    return {"memory": memory, "arithmetic": arithmetic, "total": max(memory, arithmetic)}
