"""``bundle.json``: what a bundle says of itself (format version 2; version 1 is read too).

The dataclasses below *are* the format; ARCHITECTURE.md describes them for readers of other
languages.
Reading is strict: an unknown or missing key, a wrong type or a value out of range refuses the
    bundle, with
all findings at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from primelens.errors import BundleError, BundleVersionError
from primelens.head_spec import (
    DecoderSpec,
    Generation,
    HeadSpec,
    MatchingSpec,
    PromptSpec,
    QuestionSpec,
    RankHeadSpec,
    TextTowerSpec,
    check_digest,
    check_positive,
)
from primelens.preprocessing import Preprocessing
from primelens.schema import decode, encode

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "DecoderSpec",
    "Domain",
    "FileRecord",
    "Generation",
    "HeadSpec",
    "Manifest",
    "MatchingSpec",
    "PromptSpec",
    "QuestionSpec",
    "RankHeadSpec",
    "Source",
    "TapSpec",
    "TextTowerSpec",
    "TowerSpec",
    "plain_file_name",
]

FORMAT = "primelens-bundle"
FORMAT_VERSION = 2

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def plain_file_name(name: str) -> bool:
    """Whether ``name`` may be a file of a bundle: ASCII letters, digits, ``._-``; no folder, no dot
    first.
    """
    return bool(_NAME.fullmatch(name))


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hex) of one file beside the manifest."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; it cannot be negative")
        check_digest("sha256", self.sha256)


@dataclass(frozen=True)
class Source:
    """Where the weights came from.

    Attributes:
        checkpoint: the name given to the exporter (a folder's last part or a hub id).
        revision: the hub commit, if any.
        architecture: the transformers class that the weights were proved against.
        digest: `primelens.identity.weights_digest` of all the source's tensors.
    """

    checkpoint: str
    revision: str | None
    architecture: str
    digest: str

    def __post_init__(self) -> None:
        check_digest("digest", self.digest)


@dataclass(frozen=True)
class Domain:
    """What pictures the model was made for, and how the runtime notices others.

    Attributes:
        description: one sentence for people.
        notice: the one-line warning for a picture outside of it.
        detector: name of the safetensors file that holds the fitted detector, or null for none.
        threshold: scores above it are outside; see `primelens.domain`.
        min_token_logprob: a caption whose tokens have a lower mean log-probability is a sign of a
            picture outside.
    """

    description: str
    notice: str | None = None
    detector: str | None = None
    threshold: float | None = None
    min_token_logprob: float | None = None

    def __post_init__(self) -> None:
        if (self.detector is None) != (self.threshold is None):
            raise ValueError("detector and threshold go together")


@dataclass(frozen=True)
class TapSpec:
    """One named output of the tower: ``[B, *shape]`` float32, keyed by ``identity``.

    ``weights`` is the `weights_digest` of the tensors upstream of it. The identity covers it; it
    serves to say *what* differs from another tower. Null in bundles of format version 1.
    """

    identity: str
    shape: tuple[int, ...]
    weights: str | None = None

    def __post_init__(self) -> None:
        check_digest("identity", self.identity)
        if self.weights is not None:
            check_digest("weights", self.weights)
        check_positive(**{f"shape[{i}]": n for i, n in enumerate(self.shape)})


@dataclass(frozen=True)
class TowerSpec:
    """The locked side.

    Attributes:
        family: the tower family's registered name (``vit``, ``feature_map_tower``).
        graph: ONNX file: ``pixel_values [B, 3, H, W]`` float32 in, one output per tap; null in a
            text-only bundle.
        variant: precision and recipe of the computation, part of a kept embedding's key (``fp32``).
        taps: tap name → shape and identity.
        preprocessing: the complete declarative specification.
        architecture: the family's canonical fields, which the identities cover; null in bundles of
            format version 1.
    """

    family: str
    graph: str | None
    variant: str
    taps: Mapping[str, TapSpec]
    preprocessing: Mapping[str, Any]
    architecture: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """The whole of ``bundle.json``.

    Attributes:
        format, format_version: `FORMAT`, `FORMAT_VERSION`.
        name: short name, for people and for result rows.
        producer: package → version, of what wrote the bundle.
        source: where the weights came from.
        license: SPDX expression or null where the source states none.
        domain: what pictures it was made for.
        tower, heads: the two sides of the seam.
        golden: safetensors file with golden inputs and outputs, or null.
        files: every file of the bundle but ``bundle.json`` itself.
        parity: what was compared with the source, and with what result.
    """

    format: str
    format_version: int
    name: str
    producer: Mapping[str, str]
    source: Source
    license: str | None
    domain: Domain
    tower: TowerSpec
    heads: Mapping[str, HeadSpec | RankHeadSpec]
    golden: str | None
    files: Mapping[str, FileRecord]
    parity: Mapping[str, Any]

    @property
    def writers(self) -> dict[str, HeadSpec]:
        """Name → head, of the heads that write text."""
        return {name: h for name, h in self.heads.items() if isinstance(h, HeadSpec)}

    @property
    def rankers(self) -> dict[str, RankHeadSpec]:
        """Name → head, of the heads that score texts."""
        return {name: h for name, h in self.heads.items() if isinstance(h, RankHeadSpec)}

    def to_bytes(self) -> bytes:
        """The manifest as it is written: indented UTF-8 JSON with a final newline."""
        text = json.dumps(encode(self), indent=1, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode("utf-8")

    @staticmethod
    def from_bytes(data: bytes, *, where: str = "bundle.json") -> Manifest:
        """Parse and check; raises `BundleVersionError` or `BundleError` with every finding."""
        remedy = "Export the checkpoint again, or fetch an unaltered copy of the bundle."
        try:
            raw = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not valid JSON: {error}.", remedy=remedy) from error
        _check_version(raw, where)
        problems: list[str] = []
        manifest = decode(Manifest, raw, where="bundle", problems=problems)
        if manifest is not None:
            problems += _dangling(manifest)
        if manifest is None or problems:
            raise BundleError(f"{where} is malformed:", remedy=remedy, problems=problems)
        return manifest


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _check_version(raw: Any, where: str) -> None:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BundleError(
            f"{where} is not a primelens bundle's manifest (no format {FORMAT!r}).",
            remedy="Give the folder that `primelens export` wrote.",
        )
    version = raw.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleVersionError(
            f"{where} has format version {version}; this primelens reads up to {FORMAT_VERSION}.",
            remedy="Upgrade primelens: pip install -U primelens.",
        )
    if type(version) is not int or version < 1:
        raise BundleError(
            f"{where} has format version {version!r}, which no primelens has written.",
            remedy="Fetch an unaltered copy of the bundle.",
        )


def _references(manifest: Manifest) -> dict[str, str | None]:
    """Place in the manifest → the file that it names."""
    places = {"tower.graph": manifest.tower.graph, "golden": manifest.golden}
    places["domain.detector"] = manifest.domain.detector
    for name, head in manifest.heads.items():
        places |= {f"heads.{name}.{place}": file for place, file in head.files.items()}
    return places


def _dangling(manifest: Manifest) -> list[str]:
    """Everything that fits its type but not its neighbours."""
    problems = [
        f"bundle.files: {name!r} is not a plain file name"
        for name in manifest.files
        if not plain_file_name(name) or name == "bundle.json"
    ]
    for place, file in _references(manifest).items():
        if file is not None and file not in manifest.files:
            problems.append(f"bundle.{place}: {file!r} is not listed under files")
    for name, head in manifest.heads.items():
        if head.tap not in manifest.tower.taps:
            problems.append(f"bundle.heads.{name}.tap: the tower has no tap {head.tap!r}")
        if isinstance(head, HeadSpec) and not head.knows_its_tokens:
            problems.append(
                f"bundle.heads.{name}.generation: a token id lies outside the vocabulary"
            )
    try:
        Preprocessing.from_dict(dict(manifest.tower.preprocessing))
    except BundleError as error:
        problems += [f"bundle.tower.preprocessing: {p}" for p in error.problems or (error.message,)]
    return problems
