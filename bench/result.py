"""``result.json``: one run, for machines. The dataclass below is the format, version 1.

===================== ============================================================================
kind, version         ``"primelens-bench"``, 1
spec, spec_digest     what was asked for (`primelens.bench.spec.Spec`), and its SHA-256
started, quick        ISO 8601 time (UTC); whether blocks were shortened by ``--quick``
environment           `primelens.bench.environment.Environment`
load                  ``others_before``, ``others_during``, ``others_after``: share of the cores
                      that other processes used; ``busy``: more than 15 % during the run, or,
                      where that is unknown, before or after; ``concluded``: ratios may be relied on
limits                `primelens.bench.bandwidth.Limits`, bytes or operations per second
work                  what a picture and a step cost (`primelens.bench.shares.Work`): operations,
                      and bytes: ``step`` {weights, self_cache, cross_cache, total}
systems               name → ``description`` (`primelens.bench.system.Description`), and ``error``
                      where it failed: null or its own words
cells                 one per system, scenario, lengths and batch: ``figures``
                      (`primelens.bench.figures.summarise`, seconds), ``blocks``: E2E seconds per
                      block, ``shares`` of the limits (`primelens.bench.shares`; 1.0 is at the
                      limit), ``rate`` and ``objective`` of the scenario ``server``
ratios                every other system over the first, cell by cell: ``ratio``, ``low``,
                      ``high`` (95 %), ``p_value``, ``test``, ``blocks``, ``verdict``
quality               how every system's captions compare with the reference's; ``golden``: replay
memory                system → peak and growth of resident bytes, and of a GPU's the peak
cache                 what kept embeddings save, where that was asked for
coldstart             `primelens.bench.coldstart.ColdStart`, where that was asked for
===================== ============================================================================

Every sample, failures too, is beside it in ``samples.parquet`` (`primelens.bench.samples`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from primelens.bench.files import write_json
from primelens.errors import OptionError

__all__ = ["KIND", "VERSION", "Result", "read_result"]

KIND = "primelens-bench"
VERSION = 1


@dataclass(frozen=True)
class Result:
    """A finished run; see the module for what each part holds."""

    spec: Mapping[str, Any]
    spec_digest: str
    started: str
    quick: bool
    environment: Mapping[str, Any]
    load: Mapping[str, Any]
    limits: Mapping[str, Any]
    work: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, Any]]
    cells: Sequence[Mapping[str, Any]]
    ratios: Sequence[Mapping[str, Any]]
    quality: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    coldstart: Mapping[str, Any] = field(default_factory=dict)
    kind: str = KIND
    version: int = VERSION

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    def cell(
        self, system: str, scenario: str, lengths: str, batch: int = 1
    ) -> Mapping[str, Any] | None:
        """One cell, or None where there is none."""
        wanted = (system, scenario, lengths, batch)
        for cell in self.cells:
            if (cell["system"], cell["scenario"], cell["lengths"], cell["batch"]) == wanted:
                return cell
        return None


def read_result(path: str | Path) -> Result:
    """Read ``result.json`` (or the folder that holds it).

    Raises:
        OptionError: there is no such file, it is no result, or of a version not known here.
    """
    path = Path(path)
    file = path / "result.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise OptionError(f"{file} is not JSON: {error}.") from error
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise OptionError(f"{file} is not a result of this bench.")
    if raw.get("version") != VERSION:
        raise OptionError(
            f"{file} has version {raw.get('version')!r}; this primelens reads {VERSION}.",
            remedy="Measure again, or use the primelens that wrote it.",
        )
    fields = set(Result.__dataclass_fields__)
    if set(raw) != fields:
        odd = sorted(set(raw) ^ fields)
        raise OptionError(f"{file} has missing or unknown parts: {', '.join(odd)}.")
    return Result(**raw)
