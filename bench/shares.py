"""What the work costs, and how much of the machine's limits each figure used.

A step reads all the decoder's weights, scales and caches (`primelens.bench.step_bytes`): its limit
is memory. The tower multiplies: its limit is arithmetic. A share is limit / measured: 1.0 is as
fast as this machine can be, by the limits measured in the same run.

The work is counted from the bundle's graphs. A peer's work is the same mathematics on the same
checkpoint, so its shares are taken from the same count (an fp32 peer beside an int8 bundle gets
none for its steps: it reads other bytes). A step that reads little more than the last-level cache
holds is not limited by memory and gets no share either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from primelens.bench.bandwidth import Limits
from primelens.bench.captioner import caption_head
from primelens.bench.estimators import percentile
from primelens.bench.figures import inter_token_gaps, stage_split
from primelens.bench.graph_work import graph_operations, weight_operations
from primelens.bench.spec import Spec
from primelens.bench.step_bytes import StepBytes, graph_weights, step_bytes
from primelens.bench.system import Sample
from primelens.bundle import Bundle, open_bundle
from primelens.hub import resolve

__all__ = ["Work", "cross_bytes", "shares_of", "work_of"]

_BEYOND_CACHE = 2  # times the cache: of what is read in turn, hardly anything is found there again


@dataclass(frozen=True)
class Work:
    """What one picture and one decode step cost.

    Attributes:
        tower_operations, connector_operations: per picture; 0 where shapes are not known.
        tower_weights: bytes of the tower's weights, read once per batch.
        step_operations: per row, of the products with weights; 0 of a bundle that does not caption.
        step: bytes that a step at batch 1 reads, in the middle of a forced caption.
        past: tokens behind that step.
        precision: of the decoder's weights.
    """

    tower_operations: int
    connector_operations: int
    tower_weights: int
    step_operations: int
    step: StepBytes
    past: int
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {**asdict(self), "step": {**asdict(self.step), "total": self.step.total}}

    def step_bytes_of(self, rows: int) -> int:
        """Bytes that a step of ``rows`` pictures reads: the weights once, every cache."""
        return self.step.weights + rows * (self.step.self_cache + self.step.cross_cache)


def work_of(model: str, spec: Spec) -> Work:
    """Count what the bundle's graphs do."""
    bundle = open_bundle(resolve(model), check="size")
    manifest = bundle.manifest
    graph = manifest.tower.graph
    tower = graph_operations(bundle.path(graph)) if graph else 0
    read = graph_weights(bundle.path(graph)).whole if graph else 0
    head = caption_head(manifest)
    if head is None:
        return Work(tower, 0, read, 0, StepBytes(0, 0, 0), 0, manifest.tower.variant)
    past = len(head.generation.start_tokens) + spec.tokens // 2
    cross = cross_bytes(bundle, head.connector)
    counted = step_bytes(
        graph_weights(bundle.path(head.decoder.graph)), head.decoder, cross, past=past
    )
    connector = graph_operations(bundle.path(head.connector)) if head.connector else 0
    products = weight_operations(bundle.path(head.decoder.graph))
    return Work(tower, connector, read, products, counted, past, head.precision)


def cross_bytes(bundle: Bundle, connector: str | None) -> list[int]:
    """Bytes of each of the connector's outputs for one picture."""
    if connector is None:
        return []
    import onnx

    graph = onnx.load(str(bundle.path(connector)), load_external_data=False).graph
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim][1:] for v in graph.output]
    return [4 * math.prod(shape) for shape in shapes]


def shares_of(
    samples: Sequence[Sample], limits: Limits, work: Work, *, precision: str
) -> dict[str, float]:
    """Shares of the limits, as far as the samples tell: ``step`` (memory), ``tower`` (arithmetic).

    Every sample is held against the batch that it was really part of: arrivals that waited for each
    other went together, whatever the cell's largest batch is.

    Args:
        samples: of one system in one cell.
        precision: of the system; steps of another precision than the counted one get no share.
    """
    good = [s for s in samples if s.answer.error is None]
    from_memory = work.step.total > _BEYOND_CACHE * (limits.cache or 0)
    found = {}
    # Seconds per byte, so that steps of different batches have one median.
    paces = [gap / work.step_bytes_of(s.batch) for s in good for gap in inter_token_gaps(s)]
    if paces and from_memory and precision == work.precision:
        found["step"] = 1.0 / limits.read_bytes_per_s / percentile(paces, 50.0)
    tower = stage_split(good).get("tower", 0.0)
    if tower > 0 and work.tower_operations:
        found["tower"] = work.tower_operations / limits.fp32_flop_per_s / tower
    return found
