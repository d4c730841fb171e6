"""``verify --against``: a bundle compared with the checkpoint it says it was made from.

The manifest only *declares* where its weights came from. Here the digests are computed again from
the checkpoint, and the gate runs again, with other random pictures than the export saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primelens.bundle import open_bundle
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.gate import GateReport
from primelens.export.kinds import kind_of
from primelens.export.options import GateOptions
from primelens.export.pipeline import answers_of
from primelens.export.registry import HeadSplit, ModelSplit
from primelens.hub import resolve
from primelens.identity import tower_identity, weights_digest
from primelens.manifest import HeadSpec, Manifest
from primelens.verify import Check, VerifyReport

__all__ = ["verify_against"]


def verify_against(
    bundle: str | Path, checkpoint: str | Path, options: GateOptions | None = None
) -> VerifyReport:
    """Compare a bundle with a checkpoint: declared digests first, then the gate.

    Args:
        bundle: a bundle's folder, ``"default"``, or a hub id.
        checkpoint: a checkpoint's folder or hub id.
        options: pictures and steps of the comparison.

    Raises:
        BundleError: the bundle is incomplete or altered.
        CheckpointError: the checkpoint cannot be loaded.
    """
    options = options or GateOptions(seed=1)
    opened = open_bundle(resolve(str(bundle)), check="full")
    source = open_checkpoint(resolve(str(checkpoint), kind="checkpoint"))
    split = source.family.split(source.model)
    checks = _declarations(opened.manifest, source, split)
    answers = answers_of(source, split, options)
    for name, found in answers.items():
        if name in opened.manifest.heads:
            kind = kind_of(split.heads[name])
            checks += _gate_checks(name, kind.gate(opened.folder, name, found, options))
    engine = f"the shipped runtime against {source.architecture}"
    return VerifyReport(str(opened.folder), engine, tuple(checks))


def _declarations(manifest: Manifest, source: Checkpoint, split: ModelSplit) -> list[Check]:
    checks = [_equal("source digest", manifest.source.digest, source.digest)]
    preprocessing = source.preprocessing.to_dict()
    checks.append(_equal("preprocessing", dict(manifest.tower.preprocessing), preprocessing))
    for tap, tensors in split.tower.taps.items():
        identity = tower_identity(
            family=split.tower_family,
            architecture=split.tower.architecture,
            preprocessing=preprocessing,
            tap=tap,
            tensors={name: tensor.numpy() for name, tensor in tensors.items()},
        )
        declared = manifest.tower.taps.get(tap)
        checks.append(_equal(f"identity at {tap}", declared and declared.identity, identity))
    for name, head in split.heads.items():
        spec = manifest.heads.get(name)
        digest = weights_digest({key: tensor.numpy() for key, tensor in head.tensors.items()})
        checks.append(_equal(f"head {name}, digest", spec and spec.digest, digest))
        if isinstance(head, HeadSplit):
            declared_as = spec.generation if isinstance(spec, HeadSpec) else None
            checks.append(_equal(f"head {name}, generation", declared_as, head.generation))
    return checks


def _equal(name: str, declared: Any, computed: Any) -> Check:
    if declared == computed:
        return Check(name, True, "equal")
    return Check(name, False, f"the bundle declares {declared}, the checkpoint gives {computed}")


def _gate_checks(name: str, report: GateReport) -> list[Check]:
    if report.failures:
        return [Check(f"head {name}", False, line) for line in report.failures]
    checks = []
    for key in ("tap", "logits"):
        measured = report.measured.get(key, {})
        if "largest_error" in measured:
            detail = f"largest error {measured['largest_error']:.2e}"
            limit = measured.get("limit")
            detail += "" if limit is None else f" (limit {limit:.2e})"
            checks.append(Check(f"head {name}, {key}", True, detail))
    count, ties = report.measured["tokens_compared"], report.measured["ties"]
    detail = f"{count} identical, {ties} ties"
    if "top1_agreement" in report.measured.get("logits", {}):
        detail = f"top-1 agreement {report.measured['logits']['top1_agreement']:.4f}"
    return [*checks, Check(f"head {name}, tokens", True, detail)]
