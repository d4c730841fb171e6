"""Identity from checkpoints: what must not change it, what must, and what tuning moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from primelens.errors import CheckpointError
from primelens.export.lock import Identities, compare_towers, identify
from primelens.identity import tower_identity
from primelens.towers import FeatureMapTower, FeatureMapTowerConfig

Checkpoints = Callable[[str], Path]

NAME = "tiny-vitgpt2"
TAP = "last_hidden_state"


@pytest.fixture(scope="module")
def source(checkpoints: Checkpoints) -> Path:
    return checkpoints(NAME)


@pytest.fixture(scope="module")
def found(source: Path) -> Identities:
    return identify(source)


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A copy to be altered, under another name."""
    return Path(shutil.copytree(source, tmp_path / "another name"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Alter a checkpoint's weights in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> None:
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def retune(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.startswith("decoder."):
                tensors[name] += 0.25

    rewrite(folder, change)


def add_a_pooler(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.pooler.dense.weight"] = torch.randn(48, 48)
        tensors["encoder.pooler.dense.bias"] = torch.randn(48)

    rewrite(folder, change)


@pytest.mark.parametrize("change", [shard, pickle_weights, retune, add_a_pooler])
def test_what_leaves_the_embedding_alone_leaves_the_identity_alone(
    found: Identities, source: Path, copied: Path, change: Callable[[Path], None]
) -> None:
    change(copied)
    again = identify(copied)
    assert again.taps == found.taps != {}
    assert (again.tower, again.preprocessing) == (found.tower, found.preprocessing)
    assert (again.heads == found.heads) == (change is not retune)
    report = compare_towers(source, copied)
    assert report.locked
    assert report.compared > 30
    assert report.notes == ()


@pytest.mark.parametrize("wrapper", ["ViTModel", "ViTForImageClassification"])
def test_the_bare_tower_in_any_class_has_the_same_identity(
    found: Identities, source: Path, tmp_path: Path, wrapper: str
) -> None:
    encoder = transformers.VisionEncoderDecoderModel.from_pretrained(source).encoder
    wrapped = getattr(transformers, wrapper)(encoder.config)
    inner = wrapped if wrapper == "ViTModel" else wrapped.vit
    missing = inner.load_state_dict(encoder.state_dict(), strict=False).missing_keys
    assert all("pooler" in name for name in missing)
    wrapped.save_pretrained(tmp_path)
    report = compare_towers(tmp_path, source)
    assert report.locked
    assert report.notes == (f"preprocessing was not compared: {tmp_path.name} has none",)
    assert identify(tmp_path).taps == {}  # the preprocessing is part of the identity
    shutil.copy(source / "preprocessor_config.json", tmp_path)
    bare = identify(tmp_path)
    assert (bare.taps, bare.tower, bare.heads) == (found.taps, found.tower, {})


def test_half_precision_weights_are_widened_without_loss(copied: Path, tmp_path: Path) -> None:
    """A checkpoint saved in bfloat16 is the tower whose weights are those very numbers."""

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items()})

    rewrite(copied, narrow)
    narrowed = identify(copied)
    rewrite(copied, widen)
    assert identify(copied).taps == narrowed.taps


def test_a_moved_tower_is_told_tensor_by_tensor(
    found: Identities, source: Path, copied: Path
) -> None:
    names: list[str] = []

    def change(tensors: dict[str, torch.Tensor]) -> None:
        names.extend(
            name for name in tensors if name.startswith("encoder.") and "layernorm" in name
        )
        tensors[names[0]].view(-1)[3] += 0.5
        tensors[names[1]] *= 1.001

    rewrite(copied, change)
    report = compare_towers(source, copied)
    assert not report.locked
    assert len(report.moved) == 2
    one = next(moved for moved in report.moved if moved.values[0] == 1)
    assert one.values == (1, 48)
    assert one.largest == pytest.approx(0.5)
    assert report.moved[0].relative >= report.moved[1].relative > 0
    assert identify(copied).taps != found.taps


def test_the_sign_of_a_zero_is_a_bit_too(source: Path, copied: Path, tmp_path: Path) -> None:
    zeroed = Path(shutil.copytree(source, tmp_path / "zeroed"))
    name = next(n for n in load_file(source / "model.safetensors") if n.endswith("patch_embeddings.projection.bias"))  # fmt: skip  # noqa: E501
    rewrite(zeroed, lambda tensors: tensors[name].fill_(0.0))
    rewrite(copied, lambda tensors: tensors[name].fill_(-0.0))
    (moved,) = compare_towers(zeroed, copied).moved
    assert (moved.largest, moved.relative) == (0.0, 0.0)
    assert identify(zeroed).taps != identify(copied).taps


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", [0.5, 0.5, 0.501]), ("resample", 3), ("rescale_factor", 1 / 254)],
)
def test_another_preprocessing_is_another_tower(
    found: Identities, source: Path, copied: Path, key: str, value: Any
) -> None:
    path = copied / "preprocessor_config.json"
    config = json.loads(path.read_text())
    assert config[key] != value
    path.write_text(json.dumps({**config, key: value}))
    again = identify(copied)
    assert again.tower == found.tower
    assert again.taps != found.taps
    report = compare_towers(source, copied)
    assert not report.locked
    assert report.moved == ()
    assert all(line.startswith("preprocessing, ") for line in report.differences)


def test_another_architecture_is_told_by_its_fields(source: Path, copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["encoder"]["layer_norm_eps"] = 1e-6
    path.write_text(json.dumps(config))
    report = compare_towers(source, copied)
    assert report.moved == ()
    assert report.differences == ("architecture, norm_epsilon: 1e-12 became 1e-06",)


def test_towers_of_different_sizes_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    for name, layers in (("small", 1), ("large", 2)):
        config = transformers.ViTConfig(
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=layers,
            intermediate_size=16 * layers,
            image_size=16,
            patch_size=8,
        )
        torch.manual_seed(0)
        transformers.ViTModel(config).save_pretrained(tmp_path / name)
    report = compare_towers(tmp_path / "small", tmp_path / "large")
    assert any(line.startswith("architecture, layers: 1 became 2") for line in report.differences)
    assert any("only in large" in line for line in report.differences)
    assert any("[16, 16] in small, [32, 16] in large" in line for line in report.differences)


def test_drifting_running_statistics_are_found(tmp_path: Path) -> None:
    """Nothing was trained; the tower merely ran in training mode."""
    torch.manual_seed(0)
    resnet = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    tower = FeatureMapTower(FeatureMapTowerConfig(resnet, grid_size=(4, 4)))
    tower.eval().save_pretrained(tmp_path / "before")
    tower.train()
    with torch.no_grad():
        tower(torch.randn(2, 3, 32, 32))
    tower.eval().save_pretrained(tmp_path / "after")
    report = compare_towers(tmp_path / "before", tmp_path / "after")
    assert not report.locked
    assert report.differences == ()
    assert {moved.name.rsplit(".", 1)[1] for moved in report.moved} == {
        "running_mean",
        "running_var",
    }
    assert compare_towers(tmp_path / "before", tmp_path / "before").locked


@pytest.fixture(scope="module")
def tensors(source: Path) -> dict[str, Any]:
    """The canonical tensors of a tower, small ones."""
    from primelens.export.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(source)
    tower = checkpoint.family.split(checkpoint.model).tower
    return {name: tensor.numpy() for name, tensor in tower.taps[TAP].items()}


def identity_of(tensors: dict[str, Any]) -> str:
    return tower_identity(
        family="vit", architecture={"layers": 2}, preprocessing={}, tap=TAP, tensors=tensors
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_single_bit_of_every_tensor_counts(tensors: dict[str, Any], data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(tensors)))
    position = data.draw(st.integers(0, tensors[name].size * 32 - 1))
    flipped = tensors[name].copy()
    flipped.reshape(-1).view(np.uint32)[position // 32] ^= np.uint32(1 << (position % 32))
    assert identity_of(tensors | {name: flipped}) != identity_of(tensors)


def test_what_cannot_be_loaded_is_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        identify(tmp_path)
    tower = tmp_path / "tower"
    transformers.VisionEncoderDecoderModel.from_pretrained(source).encoder.save_pretrained(tower)
    rewrite(tower, lambda tensors: tensors.pop("layernorm.weight"))
    with pytest.raises(CheckpointError, match="would be left random"):
        identify(tower)
    (tower / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        compare_towers(tower, source)
