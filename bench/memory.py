"""Memory of a system: its peak (on a GPU too), and whether it grows as requests go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from primelens.bench.pictures import PictureSource
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Request
from primelens.errors import PrimelensError

__all__ = ["memory_of", "slope"]

_SETTLING = 0.25  # the first quarter of a long run fills pools and caches; growth counts after it


class Measurable(Protocol):
    """A system in a process of its own."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """As `primelens.bench.system.System`."""

    def memory(self) -> dict[str, int]:
        """Bytes: ``resident`` now, ``peak`` so far; ``device`` now, where it uses an NVIDIA GPU."""


def slope(values: Sequence[float]) -> float:
    """Least-squares growth per step of ``values``, after the first quarter."""
    kept = np.asarray(values[int(len(values) * _SETTLING) :], np.float64)
    if kept.size < 2:
        return 0.0
    places = np.arange(kept.size) - (kept.size - 1) / 2
    return float(places @ (kept - kept.mean()) / (places @ places))


def memory_of(
    systems: Mapping[str, Measurable], spec: Spec, pictures: PictureSource
) -> dict[str, dict[str, Any]]:
    """Peak, and growth per request over ``blocks x requests`` requests, system by system."""
    found: dict[str, dict[str, Any]] = {}
    paths = pictures.fresh(spec.blocks * spec.requests)
    for name, system in systems.items():
        resident: list[int] = []
        device = 0
        try:
            for number, path in enumerate(paths):
                system.answer([Request(number, path, max_new_tokens=spec.tokens, forced=True)])
                held = system.memory()
                resident.append(held["resident"])
                device = max(device, held.get("device", 0))
            peak = system.memory()["peak"]
        except PrimelensError as error:
            found[name] = {"error": str(error)}
            continue
        found[name] = {
            "peak_bytes": peak,
            "requests": len(paths),
            "growth_bytes_per_request": slope(resident),
            "resident_bytes": resident,
            **({"device_peak_bytes": device} if device else {}),
        }
    return found
