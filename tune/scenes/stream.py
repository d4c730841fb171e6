"""Batches of scenes, rendered by processes of their own and handed over in a fixed order.

The producers know nothing of torch: they are started with the ``spawn`` method, import numpy and
Pillow only, and so can stand beside a trainer with threads. Producer ``w`` of ``n`` makes the
batches ``w, w + n, ...``; the consumer takes them in turn, so the order never depends on timing.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import TypeAlias

import numpy as np

from primelens.tune.scenes.language import caption
from primelens.tune.scenes.render import render
from primelens.tune.scenes.targets import cell_targets
from primelens.tune.scenes.world import PLACES, TIMES, Split, scene


@dataclass(frozen=True)
class StreamSpec:
    """Which scenes, in which batches.

    Attributes:
        first: index of the first scene.
        batches: how many batches; the stream ends after them.
        captions: captions per scene, variants ``0 .. captions - 1``.
        grid: cells per side of the dense targets.
    """

    split: Split
    first: int
    batches: int
    batch_size: int
    seed: int = 0
    captions: int = 1
    grid: int = 8
    picture_size: int = 128

    def __post_init__(self) -> None:
        if self.first < 0 or self.batches < 0 or self.batch_size < 1:
            raise ValueError(f"a stream of nothing: {self}")


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        index: index of its first scene.
        pixels: ``[B, size, size, 3]`` uint8.
        kinds: ``[B, grid, grid]`` uint8, see :func:`~primelens.tune.scenes.targets.cell_targets`.
        counts: ``[B, grid, grid]`` uint8; likewise ``roles``.
        relations: ``[B]`` uint8, index into ``RELATIONS``.
        places: ``[B]`` uint8, index into ``PLACES``.
        times: ``[B]`` uint8, index into ``TIMES``.
        captions: ``B`` tuples of captions.
    """

    index: int
    pixels: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray
    roles: np.ndarray
    relations: np.ndarray
    places: np.ndarray
    times: np.ndarray
    captions: tuple[tuple[str, ...], ...]


_Channel: TypeAlias = "Queue[Batch | BaseException]"


def make_batch(spec: StreamSpec, number: int) -> Batch:
    """Render batch ``number`` of a stream in this process."""
    first = spec.first + number * spec.batch_size
    scenes = [scene(spec.split, first + i, spec.seed) for i in range(spec.batch_size)]
    cells = [cell_targets(s, spec.grid) for s in scenes]
    return Batch(
        index=first,
        pixels=np.stack([np.asarray(render(s, spec.picture_size)) for s in scenes]),
        kinds=np.stack([c.kinds for c in cells]),
        counts=np.stack([c.counts for c in cells]),
        roles=np.stack([c.roles for c in cells]),
        relations=np.array([c.relation for c in cells], dtype=np.uint8),
        places=np.array([PLACES.index(s.place) for s in scenes], dtype=np.uint8),
        times=np.array([TIMES.index(s.time) for s in scenes], dtype=np.uint8),
        captions=tuple(tuple(caption(s, v) for v in range(spec.captions)) for s in scenes),
    )


def stream(spec: StreamSpec, producers: int = 1, ahead: int = 4) -> Iterator[Batch]:
    """All batches of a spec, in order.

    Args:
        spec: what to render.
        producers: processes; with 0 the batches are made here, one when it is asked for.
        ahead: batches that each producer may have waiting.

    Raises:
        RuntimeError: if a producer failed; the cause is its exception.
    """
    if producers == 0:
        for number in range(spec.batches):
            yield make_batch(spec, number)
        return
    context = multiprocessing.get_context("spawn")
    channels: list[_Channel] = [context.Queue(ahead) for _ in range(producers)]
    workers = [
        context.Process(target=_produce, args=(spec, w, producers, channel), daemon=True)
        for w, channel in enumerate(channels)
    ]
    for worker in workers:
        worker.start()
    try:
        for number in range(spec.batches):
            item = channels[number % producers].get()
            if isinstance(item, BaseException):
                raise RuntimeError(f"a producer of scenes failed at batch {number}") from item
            yield item
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _produce(spec: StreamSpec, worker: int, workers: int, channel: _Channel) -> None:
    try:
        for number in range(worker, spec.batches, workers):
            if not _hand_over(channel, make_batch(spec, number)):
                return
    except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
        channel.put(error)


def _hand_over(channel: _Channel, batch: Batch) -> bool:
    """Wait for room, but not for a consumer that was killed and can no longer end its producers."""
    consumer = multiprocessing.parent_process()
    while consumer is None or consumer.is_alive():
        try:
            channel.put(batch, timeout=5.0)
        except queue.Full:
            continue
        return True
    channel.cancel_join_thread()
    return False
