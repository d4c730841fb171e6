"""A bundle's tower as a checkpoint again: ``python -m primelens.export.recover BUNDLE --out DIR``.

A bundle outlives the checkpoint that it came from. More text sides can be tuned on its tower all
the same: the graph's weights have the checkpoint's names and every one of their bits, and the
recovered tower is written only if its identity is the one that the bundle declares. So far this is
done for towers of the family ``feature_map_tower``, as the shipped bundle's.

``--declare`` in place of ``--out`` writes into the manifest of a bundle that an older exporter made
what its tower's identity is composed of (`declare_parts`); no other file changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import PreTrainedConfig, ResNetConfig

from primelens.atomic import atomic_folder, write_bytes
from primelens.bundle import MANIFEST_NAME, Bundle, open_bundle
from primelens.errors import BundleError, UnsupportedError
from primelens.export.draft import tap_weights
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import TowerSplit, tower_family
from primelens.hub import resolve
from primelens.identity import tower_identity
from primelens.manifest import TowerSpec
from primelens.preprocessing import Resize
from primelens.towers import FeatureMapTower, FeatureMapTowerConfig

__all__ = ["declare_parts", "recover_tower"]

_PREFIX, _NARROWED = "model.", ".narrow"
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def recover_tower(bundle: str | Path, out: Path, *, overwrite: bool = False) -> str:
    """Write a bundle's tower as `save_pretrained` would, with its image processor.

    Args:
        bundle: a folder, a shipped name or a hub id.
        out: the checkpoint's folder.
        overwrite: replace a folder that is there.

    Returns:
        The identity of the tower, which is the bundle's.

    Raises:
        UnsupportedError: the tower is of a family that cannot be recovered.
        BundleError: what the graph holds is not the tower that the bundle declares.
        OptionError: ``out`` is there already.
    """
    opened = open_bundle(_folder(bundle))
    tensors = _weights(_graph(opened))
    architecture, _ = _matching(opened, tensors)
    tower = FeatureMapTower(FeatureMapTowerConfig(**architecture))
    tower.load_state_dict(tensors, strict=True)
    with atomic_folder(out, overwrite=overwrite) as target, quiet_transformers():
        tower.save_pretrained(target)
        settings = json.dumps(_processor(opened), indent=1) + "\n"
        (target / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    return next(iter(opened.manifest.tower.taps.values())).identity


def declare_parts(bundle: str | Path) -> bool:
    """Write into a bundle's manifest its tower's architecture, and each tap's weights digest.

    A tap keeps what it declares, and one whose identity the recovered tower does not have is left
    alone. Returns whether anything was missing.

    Raises:
        UnsupportedError: the tower is of a family that cannot be recovered.
        BundleError: what the graph holds is not the tower that the bundle declares.
    """
    opened = open_bundle(_folder(bundle))
    spec = opened.manifest.tower
    if spec.architecture is not None and all(tap.weights for tap in spec.taps.values()):
        return False
    _, split = _matching(opened, _weights(_graph(opened)))
    taps = {
        name: replace(tap, weights=tap.weights or tap_weights(split, name))
        if name in split.taps and _identity(spec, split, name) == tap.identity
        else tap
        for name, tap in spec.taps.items()
    }
    tower = replace(spec, architecture=dict(split.architecture), taps=taps)
    manifest = replace(opened.manifest, tower=tower)
    write_bytes(opened.folder / MANIFEST_NAME, manifest.to_bytes())
    open_bundle(opened.folder)
    return True


def _folder(bundle: str | Path) -> Path:
    return Path(bundle) if Path(bundle).is_dir() else resolve(str(bundle))


def _graph(opened: Bundle) -> Path:
    spec = opened.manifest.tower
    if spec.family != FeatureMapTowerConfig.model_type or spec.graph is None:
        raise UnsupportedError(
            f"A tower of the family {spec.family!r} cannot be recovered from a bundle.",
            remedy="Tune on the checkpoint that the bundle was exported from.",
        )
    return opened.path(spec.graph)


def _weights(graph: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, widened back to float32; nothing was lost when they were halved."""
    found = {}
    for tensor in onnx.load(graph).graph.initializer:
        if tensor.name.startswith(_PREFIX):
            name = tensor.name.removeprefix(_PREFIX).removesuffix(_NARROWED)
            values = numpy_helper.to_array(tensor, base_dir=str(graph.parent))
            found[name] = torch.from_numpy(values.astype(np.float32))
    return found


def _matching(
    opened: Bundle, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], TowerSplit]:
    """The configuration that the tensors' shapes allow of and the identity proves."""
    spec = opened.manifest.tower
    (tap, declared), *_ = spec.taps.items()
    for folded in (True, False):
        architecture: dict[str, Any] = {
            "backbone_config": _backbone(tensors),
            "grid_size": _grid(declared.shape[0]),
            "position_embedding": "position_table" in tensors,
            "folded": folded,
        }
        tower = FeatureMapTower(FeatureMapTowerConfig(**architecture))
        if tower.load_state_dict(dict(tensors), strict=False).missing_keys:
            continue
        split = tower_family(spec.family).split(tower)
        if _identity(spec, split, tap) == declared.identity:
            return architecture, split
    raise BundleError(
        f"The tower's graph in {opened.folder} is not the tower that the bundle declares.",
        remedy="Check the bundle with `primelens verify`.",
    )


def _identity(spec: TowerSpec, split: TowerSplit, tap: str) -> str:
    return tower_identity(
        family=spec.family,
        architecture=split.architecture,
        preprocessing=dict(spec.preprocessing),
        tap=tap,
        tensors={name: value.numpy() for name, value in split.taps[tap].items()},
    )


def _backbone(tensors: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """A ResNet's sizes, read off its weights."""
    stages: dict[int, set[int]] = {}
    sizes: dict[int, int] = {}
    bottleneck = False
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "stages" not in parts or tensor.ndim != 4:
            continue
        stage = int(parts[parts.index("stages") + 1])
        stages.setdefault(stage, set()).add(int(parts[parts.index("layers") + 1]))
        sizes[stage] = max(sizes.get(stage, 0), int(tensor.shape[0]))
        bottleneck |= ".layer.2." in name
    embedding = tensors["backbone.embedder.embedder.convolution.weight"].shape[0]
    return ResNetConfig(
        embedding_size=int(embedding),
        hidden_sizes=[sizes[stage] for stage in sorted(sizes)],
        depths=[len(stages[stage]) for stage in sorted(stages)],
        layer_type="bottleneck" if bottleneck else "basic",
    )


def _grid(length: int) -> list[int]:
    side = round(length**0.5)
    return [side, length // side]


def _processor(opened: Bundle) -> dict[str, Any]:
    """A Hugging Face processor of the bundle's preprocessing: resize, rescale, normalise."""
    spec = opened.manifest.tower.preprocessing
    (step,) = spec["steps"]
    sizes = Resize(step["height"], step["width"], step["resample"])
    return {
        "image_processor_type": "ViTImageProcessorPil",
        "do_resize": True,
        "size": {"height": sizes.height, "width": sizes.width},
        "resample": _RESAMPLE[sizes.resample],
        "do_rescale": True,
        "rescale_factor": spec["rescale"],
        "do_normalize": True,
        "image_mean": list(spec["normalize"]["mean"]),
        "image_std": list(spec["normalize"]["std"]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and recover."""
    parser = argparse.ArgumentParser(prog="primelens.export.recover", description=__doc__)
    parser.add_argument("bundle")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path)
    what.add_argument("--declare", action="store_true")
    given = parser.parse_args(arguments)
    if given.declare:
        print("declared" if declare_parts(given.bundle) else "nothing was missing", given.bundle)
    else:
        print(recover_tower(given.bundle, given.out), given.out)


if __name__ == "__main__":
    main()
