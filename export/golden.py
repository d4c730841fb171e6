"""The golden file: pictures, and what was said about them, for `primelens.verify` to replay.

A float32 bundle carries what the *source model* said. A quantised bundle carries its own outputs
of the day it was proved (so that a replay is exact up to rounding), and the source's tokens beside
them.

======================= ==================================================================
image.k                 uint8 [h, w, 3]
tap.<name>.k            float32
question.<head>.k       uint8, UTF-8, of heads that answer
tokens.<head>.k         int64, greedy decoding with default settings
logits.<head>.k         float32 [n, 16], the largest logits before each token, teacher-forced
logits_ids.<head>.k     int64 [n, 16], the token ids they belong to
source_tokens.<head>.k  int64, in quantised bundles only
======================= ==================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.export.answers import Answers
from primelens.export.gate import GateReport
from primelens.export.registry import HeadSplit

__all__ = ["COUNT", "TOP", "golden_arrays", "golden_parity", "tolerances"]

COUNT = 4
TOP = 16
_MARGIN = 8.0

Array = NDArray[Any]


def golden_arrays(
    name: str, head: HeadSplit, answers: Answers, report: GateReport | None
) -> dict[str, Array]:
    """The arrays of one head.

    Args:
        name: the head's name.
        head: its source.
        answers: what the source said.
        report: of the gate over a quantised bundle, whose own outputs are kept; None for float32.
    """
    arrays: dict[str, Array] = {}
    for k in range(min(COUNT, len(answers.pictures))):
        arrays[f"image.{k}"] = np.ascontiguousarray(answers.pictures[k])
        row = k * answers.per_picture + k % answers.per_picture
        asked = answers.questions[row] if answers.questions else None
        if asked is not None:
            text = np.frombuffer(asked.encode("utf-8"), np.uint8)
            arrays[f"question.{name}.{k}"] = text.copy()
        tokens = list(answers.natural[row])
        if report is None:
            tap = answers.tap.single[k]
            logits = answers.natural_logits[row]
        else:
            arrays[f"source_tokens.{name}.{k}"] = np.array(tokens, np.int64)
            tap = report.encoded[k].taps[head.tap]
            tokens, logits = report.natural[row]
        ids = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        arrays[f"tap.{head.tap}.{k}"] = np.ascontiguousarray(tap, np.float32)
        arrays[f"tokens.{name}.{k}"] = np.array(tokens, np.int64)
        arrays[f"logits.{name}.{k}"] = np.take_along_axis(logits, ids, axis=1).astype(np.float32)
        arrays[f"logits_ids.{name}.{k}"] = ids.astype(np.int64)
    return arrays


def tolerances(answers: Any, measured: Mapping[str, Any]) -> dict[str, float]:
    """``<what>_tolerance`` → how close a replay of one head has to come."""
    return {
        f"{key}_tolerance": max(
            _MARGIN * max(source.noise, _float32_error(measured, key)),
            _rounded_activations(measured, key),
        )
        for key, source in answers.compared.items()
    }


def golden_parity(answers: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of the preprocessed pictures, and how close a replay has to come.

    Args:
        answers: of the source to one head, of whatever kind.
        measured: what the gate measured of that head.
    """
    count = min(COUNT, len(answers.pictures))
    pixels = [np.ascontiguousarray(answers.pixels[k], "<f4").tobytes() for k in range(count)]
    return {
        "pixels_sha256": [hashlib.sha256(data).hexdigest() for data in pixels],
        **tolerances(answers, measured),
        "rule": f"{_MARGIN:g} x the larger of the source's own float32 rounding error and, for "
        "float32 bundles, the error that the gate measured; at quantised logits at least the rms "
        "of the quantisation error, because another processor's last bit may round an activation "
        "differently",
    }


def _float32_error(measured: Mapping[str, Any], key: str) -> float:
    """The measured error, where it is rounding and not quantisation."""
    if "limit" not in measured.get(key, {}) or "relative_rms_error" in measured[key]:
        return 0.0
    return float(measured[key]["largest_error"])


def _rounded_activations(measured: Mapping[str, Any], key: str) -> float:
    """The rms quantisation error of logits that come from rounded activations, else 0."""
    found = measured.get(key, {})
    if "top1_agreement" not in found:
        return 0.0
    return float(found["relative_rms_error"] * found["spread"])
