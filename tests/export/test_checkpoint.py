"""Opening checkpoints: what is refused, and whether everything wrong is said at once."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from primelens.errors import CheckpointError, UnsupportedError
from primelens.export.checkpoint import open_checkpoint
from primelens.export.weight_files import find_weights


@pytest.fixture
def folder(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a sound checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoints("tiny-vitgpt2"), tmp_path / "checkpoint"))


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_sound_checkpoint_opens(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.name == "checkpoint"
    assert checkpoint.architecture == "VisionEncoderDecoderModel"
    assert not checkpoint.model.training
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert checkpoint.notes == []


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    said = "\n".join(caught.value.problems)
    for part in ("config.json", "weights", "tokenizer", "preprocessor_config.json"):
        assert part in said
    assert len(caught.value.problems) == 4


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_its_code_not_run(
    folder: Path, tmp_path: Path, zipped: bool
) -> None:
    (folder / "model.safetensors").unlink()
    fuse = tmp_path / "ran"
    target = folder / "pytorch_model.bin"
    if zipped:
        torch.save({"weight": torch.ones(2), "bomb": _Bomb(fuse)}, target)
    else:
        target.write_bytes(pickle.dumps({"bomb": _Bomb(fuse)}))
    with pytest.raises(CheckpointError, match="could run code") as caught:
        open_checkpoint(folder)
    assert not fuse.exists()
    assert "safetensors" in str(caught.value)


def test_a_bin_file_of_tensors_is_the_same_checkpoint(folder: Path) -> None:
    digest = open_checkpoint(folder).digest
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert open_checkpoint(folder).digest == digest


def test_shards_are_the_same_checkpoint(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    checkpoint.model.save_pretrained(folder, max_shard_size="200KB")
    assert not (folder / "model.safetensors").exists()
    assert open_checkpoint(folder).digest == checkpoint.digest


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/file.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    index = {"weight_map": {"a": name, "b": "shard.safetensors", "c": "absent.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    problems: list[str] = []
    assert find_weights(folder, problems) is None
    assert len(problems) == 2
    assert "not a plain file name" in "\n".join(problems)
    assert "absent.safetensors is missing" in "\n".join(problems)


def test_values_that_are_not_finite_are_named(folder: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(tensors)
        tensors[names[0]].view(-1)[3] = float("nan")
        tensors[names[-1]].view(-1)[:2] = float("inf")

    names = sorted(load_file(folder / "model.safetensors"))
    change_weights(folder, poison)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    said = "\n".join(caught.value.problems)
    assert f"{names[0]}: 1 of" in said
    assert f"{names[-1]}: 2 of" in said
    assert len(caught.value.problems) == 2


def test_a_type_that_float32_does_not_hold_is_refused(folder: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = tensors[name].double()

    change_weights(folder, widen)
    with pytest.raises(CheckpointError, match="float64"):
        open_checkpoint(folder)


def test_weights_that_would_stay_random_are_refused(folder: Path) -> None:
    gone = "decoder.transformer.h.1.crossattention.c_attn.weight"
    change_weights(folder, lambda tensors: tensors.pop(gone))
    with pytest.raises(CheckpointError, match="left random") as caught:
        open_checkpoint(folder)
    assert any(gone in problem for problem in caught.value.problems)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change_json(folder / "config.json", lambda data: data["decoder"].update(n_positions=32))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_remote_code_is_refused(folder: Path, file: str) -> None:
    change_json(folder / file, lambda data: data.update(auto_map={"AutoModel": "x.Y"}))
    with pytest.raises(CheckpointError, match="auto_map"):
        open_checkpoint(folder)


def test_an_unknown_architecture_is_unsupported(folder: Path) -> None:
    change_json(folder / "config.json", lambda data: data.update(model_type="t5"))
    with pytest.raises(UnsupportedError, match=r"'t5'.*Supported: .*vision-encoder-decoder"):
        open_checkpoint(folder)


def test_every_gap_is_said_at_once(folder: Path) -> None:
    def unsupport(data: dict[str, Any]) -> None:
        data["encoder"]["num_channels"] = 1
        data["decoder"]["activation_function"] = "mish"
        data["decoder"]["add_cross_attention"] = False

    change_json(folder / "config.json", unsupport)
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(folder)
    said = "\n".join(caught.value.problems)
    for part in ("num_channels", "mish", "add_cross_attention"):
        assert part in said


def test_a_broken_safetensors_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
        open_checkpoint(folder)


def test_a_torchvision_processor_is_noted(folder: Path) -> None:
    kind = "ViTImageProcessorFast"
    change_json(
        folder / "preprocessor_config.json", lambda data: data.update(image_processor_type=kind)
    )
    (note,) = open_checkpoint(folder).notes
    assert kind in note
