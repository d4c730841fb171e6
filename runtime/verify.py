"""Replays a bundle's golden outputs on this machine, without torch.

The golden file holds pictures and what the *source model* said about them when the bundle was
exported: the tower's taps, the greedy tokens, and the largest logits of every step. Replaying them
proves that this engine, this CPU and this copy of the bundle still say the same. Tolerances stand
in the manifest's parity block (``parity["golden"]``) and come from what the exporter's gate
measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from primelens.decoding.options import DecodingOptions
from primelens.errors import BundleError
from primelens.images import read_image
from primelens.model import Model, load
from primelens.options import CaptionOptions, LoadOptions
from primelens.results import EncodedImage
from primelens.video import preprocessed

__all__ = ["Check", "VerifyReport", "verify"]


@dataclass(frozen=True)
class Check:
    """One comparison: what, its result, and by how much."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """All comparisons of one replay."""

    bundle: str
    engine: str
    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def lines(self) -> list[str]:
        """One line per check, for people."""
        return [f"{'ok' if c.passed else 'FAILED':6} {c.name}: {c.detail}" for c in self.checks]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        checks = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in self.checks]
        return {
            "bundle": self.bundle,
            "engine": self.engine,
            "passed": self.passed,
            "checks": checks,
        }


def verify(folder: str | Path, *, options: LoadOptions | None = None) -> VerifyReport:
    """Replay the golden outputs of a bundle.

    Args:
        folder: a bundle's folder, ``"default"``, or a hub id.
        options: how to open it; the integrity check is always full.

    Raises:
        BundleError: the bundle is not sound, or has no golden file.
    """
    options = options or LoadOptions()
    model = load(
        folder, options=LoadOptions(options.threads, options.spin, "full", options.revision)
    )
    golden = _golden(model)
    checks: list[Check] = []
    for number in range(len([name for name in golden if name.startswith("image.")])):
        checks += _replay(model, golden, number)
    return VerifyReport(str(model.folder), model.engine_name, tuple(checks))


def _golden(model: Model) -> dict[str, NDArray[Any]]:
    name = model.manifest.golden
    if name is None:
        raise BundleError(
            f"The bundle {model.folder} has no golden outputs to replay.",
            remedy="Compare it with its source: primelens verify BUNDLE --against CHECKPOINT.",
        )
    try:
        golden = load_file(model.folder / name)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{model.folder / name} cannot be read: {error}.") from error
    if "image.0" not in golden:
        raise BundleError(f"{model.folder / name} holds no picture.")
    return golden


def _replay(model: Model, golden: Mapping[str, NDArray[Any]], number: int) -> list[Check]:
    parity = model.manifest.parity.get("golden", {})
    picture = golden[f"image.{number}"]
    pixels = preprocessed(model.preprocessing, picture)
    digest = hashlib.sha256(np.ascontiguousarray(pixels, "<f4").tobytes()).hexdigest()
    wanted = parity.get("pixels_sha256", [])
    same = number < len(wanted) and digest == wanted[number]
    checks = [Check(f"picture {number}, pixels", same, "bit-equal" if same else "bits differ")]
    if model.manifest.tower.graph is None:  # then the heads go on from what the tower once said
        encoded = _kept(model, golden, number)
    else:
        encoded = model.encode(picture)
        for tap, values in encoded.taps.items():
            key, limits = f"tap.{tap}.{number}", parity.get("taps", {})
            if key in golden:
                limit = limits.get(tap, parity["tap_tolerance"])
                checks.append(_close(f"picture {number}, {tap}", values, golden[key], limit))
    for name in model.manifest.writers:
        key = f"tokens.{name}.{number}"
        if key in golden:
            checks.append(_tokens(model, encoded, golden, name, number))
            checks.append(_logits(model, encoded, golden, name, number))
    for name in model.manifest.rankers:
        if f"scores.{name}.{number}" in golden:
            checks += _scores(model, encoded, golden, name, number)
    return checks


def _kept(model: Model, golden: Mapping[str, NDArray[Any]], number: int) -> EncodedImage:
    """A golden picture as its taps were kept."""
    picture, tower = golden[f"image.{number}"], model.manifest.tower
    source = read_image(picture if picture.ndim == 3 else picture[0])
    return EncodedImage(
        taps={t: golden[key] for t in tower.taps if (key := f"tap.{t}.{number}") in golden},
        identities={name: tap.identity for name, tap in tower.taps.items()},
        source=source.digest,
        size=source.size,
        name=source.name,
        timestamps=() if picture.ndim == 3 else tuple(map(float, range(len(picture)))),
    )


def _close(name: str, found: NDArray[Any], wanted: NDArray[Any], tolerance: float) -> Check:
    if found.shape != wanted.shape:
        return Check(name, False, f"shape {found.shape}, expected {wanted.shape}")
    error = float(np.abs(found - wanted).max()) if found.size else 0.0
    return Check(
        name, error <= tolerance, f"largest difference {error:.2e} (limit {tolerance:.2e})"
    )


def _question(golden: Mapping[str, NDArray[Any]], head: str, number: int) -> str | None:
    """The question that a golden answer is for."""
    found = golden.get(f"question.{head}.{number}")
    return None if found is None else found.tobytes().decode("utf-8")


def _tokens(
    model: Model, image: EncodedImage, golden: Mapping[str, NDArray[Any]], head: str, number: int
) -> Check:
    wanted = golden[f"tokens.{head}.{number}"]
    name = f"picture {number}, {head} tokens"
    # The golden tokens are greedy, whatever the checkpoint's generation_config asks for.
    settings = model.head(name=head).spec.generation.settings
    plain = DecodingOptions(ignore=tuple(settings))
    options = CaptionOptions(
        max_new_tokens=len(wanted),
        prompt=_question(golden, head, number),
        head=head,
        decoding=plain,
    )
    found = model.caption(image, options).tokens
    if list(found) == wanted.tolist():
        return Check(name, True, f"{len(found)} identical")
    pairs = zip(found, wanted.tolist(), strict=False)
    step = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
    return Check(name, False, f"differ from token {step} on: {list(found)[step : step + 3]}, "
                 f"expected {wanted.tolist()[step : step + 3]}")  # fmt: skip


def _logits(
    model: Model, image: EncodedImage, golden: Mapping[str, NDArray[Any]], head: str, number: int
) -> Check:
    """Largest logits of every step, fed with the golden tokens."""
    values = golden[f"logits.{head}.{number}"]
    ids = golden[f"logits_ids.{head}.{number}"]
    tokens = golden[f"tokens.{head}.{number}"]
    text = _question(golden, head, number)
    found = model.head(name=head).forced_logits(image, tokens.tolist(), text)
    parity = model.manifest.parity["golden"]
    limit = parity.get("heads", {}).get(head, parity).get("logits_tolerance")
    name = f"picture {number}, {head} logits"
    return _close(name, np.take_along_axis(found, ids, axis=1), values, limit)


def _scores(
    model: Model, image: EncodedImage, golden: Mapping[str, NDArray[Any]], head: str, number: int
) -> list[Check]:
    """Embeddings of the picture and of the golden texts, and their scores."""
    parity = model.manifest.parity["golden"]
    limits = parity.get("heads", {}).get(head, parity)
    texts = json.loads(golden[f"texts.{head}"].tobytes().decode("utf-8"))
    ranker = model.rank_head(head)
    embeds, embed = ranker.embed_text(texts), ranker.embed_image(image)
    scores = ranker.scores(embed, embeds)
    compared: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "image": (embed, golden[f"image_embeds.{head}.{number}"]),
        "text": (embeds, golden[f"text_embeds.{head}"]),
        "scores": (scores, golden[f"scores.{head}.{number}"]),
    }
    if f"match.{head}.{number}" in golden:
        compared["match"] = (
            ranker.match_logits(image, texts),
            golden[f"match.{head}.{number}"],
        )
    return [
        _close(f"picture {number}, {head} {what}", found, wanted, limits[f"{what}_tolerance"])
        for what, (found, wanted) in compared.items()
    ]
