"""primelens as a system under test, through its public calls.

The engine is wrapped, not the model: `StampedEngine` notes when each run of a decoder graph ended,
which is when a token is known. Everything else is the shipped runtime as users call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import primelens
from primelens.bench.captioner import caption_head
from primelens.bench.environment import package_versions
from primelens.bench.system import Answer, Clock, Description, Request, SystemClock
from primelens.engine import Array, BoundCall, Engine, Graph, TensorSpec
from primelens.engine_onnx import OnnxEngine
from primelens.results import Caption, Failure

__all__ = ["PrimelensSystem", "StampedEngine"]


class StampedEngine:
    """Passes everything on to ``engine``; ``stamps`` holds when runs of watched graphs ended.

    Args:
        engine: does the work.
        clock: is looked at.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self.watched: set[str] = set()
        self.stamps: list[float] = []

    @property
    def name(self) -> str:
        return self._engine.name

    def open(self, path: Path) -> Graph:
        return _StampedGraph(self._engine.open(path), path.name, self)

    def stamp(self, graph: str) -> None:
        """Note the time if ``graph`` is watched."""
        if graph in self.watched:
            self.stamps.append(self._clock.now())


class _StampedGraph:
    def __init__(self, graph: Graph, name: str, engine: StampedEngine) -> None:
        self._graph, self._name, self._engine = graph, name, engine

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._graph.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._graph.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = self._graph.run(feeds)
        self._engine.stamp(self._name)
        return found

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        return _StampedCall(self._graph.bind(inputs, outputs), self._name, self._engine)


class _StampedCall:
    def __init__(self, call: BoundCall, name: str, engine: StampedEngine) -> None:
        self._call, self._name, self._engine = call, name, engine

    def run(self) -> None:
        self._call.run()
        self._engine.stamp(self._name)


class PrimelensSystem:
    """A bundle behind `primelens.load`.

    Args:
        model: what `primelens.load` takes.
        name: in the run.
        threads: of the engine; None for its own choice.
        cache: folder where embeddings are kept; None keeps none.
        engine: does the work instead of ONNX Runtime (tests).
    """

    def __init__(
        self,
        model: str,
        *,
        name: str = "primelens",
        threads: int | None = None,
        cache: str | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._name, self._threads = name, threads
        self._engine = StampedEngine(engine or OnnxEngine(threads=threads), SystemClock())
        options = primelens.LoadOptions(threads=threads)
        kept = None if cache is None else primelens.CacheOptions(folder=cache)
        self._model = primelens.load(model, options=options, engine=self._engine, cache=kept)
        self._cached = cache is not None
        self._head = caption_head(self._model.manifest)
        if self._head is not None:
            self._engine.watched = {self._head.decoder.graph}
        self._one_by_one = self._head is not None and self._model.head("caption").continuous

    def describe(self) -> Description:
        manifest = self._model.manifest
        return Description(
            name=self._name,
            kind=f"primelens, {self._model.engine_name}",
            versions=package_versions(
                ("primelens", "onnxruntime", "numpy", "tokenizers", "Pillow")
            ),
            precision=self._head.precision if self._head else manifest.tower.variant,
            threads=self._threads,
            digests={name: record.sha256 for name, record in manifest.files.items()},
            notes=(
                f"bundle {manifest.name}",
                f"source {manifest.source.digest[:16]}",
                f"cache {'on' if self._cached else 'off'}",
            ),
        )

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        if requests[0].want == "encode":
            return [self._encode(request) for request in requests]
        self._engine.stamps.clear()
        rows = list(
            self._model.caption_batch(
                [request.picture for request in requests],
                _options(requests[0]),
                batch_size=len(requests),
            )
        )
        stamps = tuple(self._engine.stamps) if requests[0].beams == 1 else ()
        shared = _shared([row for row in rows if isinstance(row, Caption)], self._one_by_one)
        return [
            _answer(request, row, stamps, shared)
            for request, row in zip(requests, rows, strict=True)
        ]

    def _encode(self, request: Request) -> Answer:
        try:
            encoded = self._model.encode(request.picture)
        except primelens.InputError as error:
            return Answer(request.index, error=error.message)
        timings = encoded.timings
        stages = {"preprocess": timings.preprocess, "tower": timings.tower}
        return Answer(request.index, stages=stages)

    def close(self) -> None:
        self._model.close()


def _options(request: Request) -> primelens.CaptionOptions:
    """What peers are asked too: nothing at random, beams or none whatever the checkpoint says."""
    return primelens.CaptionOptions(
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=request.max_new_tokens if request.forced else None,
        decoding=primelens.DecodingOptions(num_beams=request.beams, do_sample=False),
    )


def _shared(rows: Sequence[Caption], one_by_one: bool) -> dict[str, float]:
    """Milliseconds of the stages that are told of one picture, for the whole batch.

    Pictures are read one by one. Where the connector runs for one picture at a time, it runs for
    the later ones after the first one's steps have begun, and is no part of them.
    """
    if not rows:
        return {}
    times = [row.timings.as_milliseconds() for row in rows]
    found = {"preprocess": sum(time["preprocess"] for time in times)}
    if one_by_one:
        later = connector = sum(time["connector"] for time in times)
        step = 0.0
        for time in times:
            later -= time["connector"]
            step = max(step, time["step"] - later)
        found |= {"connector": connector, "step": step}
    return found


def _answer(
    request: Request, row: Caption | Failure, stamps: tuple[float, ...], shared: Mapping[str, float]
) -> Answer:
    """``shared``: what `_shared` says of the batch."""
    if isinstance(row, Failure):
        return Answer(request.index, error=row.error.message)
    milliseconds = {**row.timings.as_milliseconds(), **shared}
    return Answer(
        request.index,
        text=row.text,
        tokens=tuple(row.tokens),
        token_times=stamps[: len(row.tokens)],
        stages={stage: value / 1e3 for stage, value in milliseconds.items() if stage != "total"},
    )
