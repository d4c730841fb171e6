"""``verify --against``: a bundle compared with the checkpoint it says it was made from.

The manifest only *declares* where its weights came from. Here the digests are computed again from
the checkpoint, and the gate runs again, with other random pictures than the export saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from primelens.bundle import open_bundle
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.draft import tap_identities
from primelens.export.gate import GateReport
from primelens.export.kinds import kind_of
from primelens.export.options import GateOptions
from primelens.export.pipeline import answers_of
from primelens.export.registry import HeadSplit, ModelSplit, RankSplit
from primelens.hub import resolve
from primelens.identity import weights_digest
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
    names = _counterparts(opened.manifest, split)
    checks = _declarations(opened.manifest, source, split, names)
    answers = answers_of(source, split, options)
    for name, found in answers.items():
        ours = names[name]
        if ours in opened.manifest.heads:
            kind = kind_of(split.heads[name])
            checks += _gate_checks(ours, kind.gate(opened.folder, ours, found, options))
    engine = f"the shipped runtime against {source.architecture}"
    return VerifyReport(str(opened.folder), engine, tuple(checks))


def _counterparts(manifest: Manifest, split: ModelSplit) -> dict[str, str]:
    """The checkpoint's heads → the bundle's: of the same weights, else of the same name."""
    by_digest = {head.digest: name for name, head in manifest.heads.items()}
    return {name: by_digest.get(_digest(head), name) for name, head in split.heads.items()}


def _digest(head: HeadSplit | RankSplit) -> str:
    return weights_digest({key: tensor.numpy() for key, tensor in head.tensors.items()})


def _declarations(
    manifest: Manifest, source: Checkpoint, split: ModelSplit, names: Mapping[str, str]
) -> list[Check]:
    checks = [_equal("source digest", _source_digest(manifest, names.values()), source.digest)]
    preprocessing = source.preprocessing.to_dict()
    checks.append(_equal("preprocessing", dict(manifest.tower.preprocessing), preprocessing))
    for tap, identity in tap_identities(split, preprocessing).items():
        declared = manifest.tower.taps.get(tap)
        checks.append(_equal(f"identity at {tap}", declared and declared.identity, identity))
    for name, head in split.heads.items():
        ours = names[name]
        spec = manifest.heads.get(ours)
        checks.append(_equal(f"head {ours}, digest", spec and spec.digest, _digest(head)))
        if isinstance(head, HeadSplit):
            declared_as = spec.generation if isinstance(spec, HeadSpec) else None
            checks.append(_equal(f"head {ours}, generation", declared_as, head.generation))
    return checks


def _source_digest(manifest: Manifest, heads: Iterable[str]) -> str:
    """Of what the heads were made from; those that came into the bundle later say so apart."""
    proofs = manifest.parity.get("heads", {})
    own = {proofs.get(name, {}).get("source", {}).get("digest") for name in heads}
    digest = own.pop() if len(own) == 1 else None
    return digest or manifest.source.digest


def _equal(name: str, declared: Any, computed: Any) -> Check:
    if declared == computed:
        return Check(name, True, "equal")
    return Check(name, False, f"the bundle declares {declared}, the checkpoint gives {computed}")


def _gate_checks(name: str, report: GateReport) -> list[Check]:
    if report.failures:
        return [Check(f"head {name}", False, line) for line in report.failures]
    checks = []
    for key in ("tap", "logits", "image", "text", "scores", "match"):
        measured = report.measured.get(key, {})
        if "largest_error" in measured:
            detail = f"largest error {measured['largest_error']:.2e}"
            limit = measured.get("limit")
            detail += "" if limit is None else f" (limit {limit:.2e})"
            checks.append(Check(f"head {name}, {key}", True, detail))
    if "rankings" in report.measured:
        return [*checks, Check(f"head {name}, order", True, _order(report.measured))]
    count, ties = report.measured["tokens_compared"], report.measured["ties"]
    detail = f"{count} identical, {ties} ties"
    if "top1_agreement" in report.measured.get("logits", {}):
        detail = f"top-1 agreement {report.measured['logits']['top1_agreement']:.4f}"
    return [*checks, Check(f"head {name}, tokens", True, detail)]


def _order(measured: Mapping[str, Any]) -> str:
    if "top1_agreement" in measured:
        return f"top-1 agreement {measured['top1_agreement']:.4f}"
    return f"{measured['rankings']} rankings identical, {measured['ties']} ties"
