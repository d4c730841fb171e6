"""Proofs as rows of a table, for people, and as JSON, for the page of what is supported."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from primelens.atomic import write_bytes
from primelens.export.proof import Proof, ProofOptions

__all__ = ["merge_json", "print_row", "print_title", "read_json"]

_COLUMNS = (
    ("work", 26),
    ("parts", 32),
    ("parameters", 11),
    ("tokens", 7),
    ("ties", 5),
    ("beam texts", 11),
    ("rankings", 9),
    ("tap error / limit", 20),
    ("logit or score", 20),
    ("seconds", 8),
    ("result", 6),
)
_PACKAGES = ("primelens", "torch", "transformers", "onnxruntime", "numpy", "Pillow")


def print_title() -> None:
    """The table's head."""
    print("  ".join(f"{name:<{width}}" for name, width in _COLUMNS).rstrip(), flush=True)


def print_row(proof: Proof) -> None:
    """One work; its failures below."""
    values = (
        proof.work,
        " + ".join(proof.parts) or proof.family,
        f"{proof.parameters / 1e6:.1f} M",
        str(proof.tokens),
        str(proof.ties),
        str(proof.searches),
        str(proof.rankings),
        _pair(proof, "tap"),
        _pair(proof, "scores" if "scores" in proof.errors else "logits"),
        f"{proof.seconds:.0f}",
        "equal" if proof.passed else "FAILED",
    )
    line = (f"{value:<{width}}" for value, (_, width) in zip(values, _COLUMNS, strict=True))
    print("  ".join(line).rstrip(), flush=True)
    for failure in proof.failures:
        print(f"    {failure}", flush=True)


def _pair(proof: Proof, key: str) -> str:
    if key not in proof.errors:
        return "-"
    error, limit = proof.errors[key]
    return f"{error:.1e} / {limit:.1e}"


def read_json(path: Path) -> dict[str, Any]:
    """The proofs in a file, by work; empty where there is no file."""
    if not path.exists():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    works: dict[str, Any] = data["works"]
    return works


def merge_json(path: Path, proof: Proof, options: ProofOptions) -> None:
    """Replace this work's entry in the file; a failed proof replaces a passed one too."""
    entries = read_json(path)
    entries[proof.work] = {
        **proof.as_dict(),
        "passed": proof.passed,
        "asked": {
            "pictures": options.pictures,
            "steps": options.steps,
            "beam_steps": options.beam_steps,
            "beams": list(options.beams),
            "penalties": list(options.penalties),
            "batches": list(options.batches),
            "seed": options.seed,
        },
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    data = {"works": dict(sorted(entries.items()))}
    write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())
