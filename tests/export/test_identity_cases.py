"""Identity of a checkpoint's tower: many disguises of one tower, and many ways to be another."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from primelens.export.checkpoint import open_checkpoint
from primelens.export.draft import tap_identities
from primelens.export.lock import Identities, identify
from primelens.export.registry import ModelSplit
from primelens.identity import tower_identity
from primelens.preprocessing import Preprocessing
from primelens.processor_config import from_processor_config

NAME, TAP = "tiny-vitgpt2", "last_hidden_state"
Checkpoints = Callable[[str], Path]
Document = dict[str, Any]


@pytest.fixture(scope="module")
def source(checkpoints: Checkpoints) -> Path:
    return checkpoints(NAME)


@pytest.fixture(scope="module")
def found(source: Path) -> Identities:
    return identify(source)


# The same tower --------------------------------------------------------------------------------

WRAPPERS = ("whole", "ViTModel", "ViTForImageClassification")
CONTAINERS = ("safetensors", "shards", "bin", "sharded bin")


def disguise(source: Path, folder: Path, draw: Callable[[Any], Any]) -> None:
    """Write the checkpoint's tower again: another wrapper, container, order, and other text."""
    model = transformers.VisionEncoderDecoderModel.from_pretrained(source)
    wrapper = draw(st.sampled_from(WRAPPERS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    config: Any = model.config
    if wrapper == "whole":
        state = dict(model.state_dict())
        if draw(st.booleans()):  # the text was tuned again
            for name in state:
                if name.startswith("decoder.") and state[name].is_floating_point():
                    state[name] = state[name] + torch.randn(state[name].shape, generator=generator)
    else:
        config = model.encoder.config
        config.architectures = [wrapper]
        prefix = "" if wrapper == "ViTModel" else "vit."
        state = {f"{prefix}{n}": t for n, t in model.encoder.state_dict().items()}
        if prefix:
            state["classifier.weight"] = torch.randn(2, 48, generator=generator)
            state["classifier.bias"] = torch.randn(2, generator=generator)
    pooler = {"whole": "encoder.", "ViTModel": "", "ViTForImageClassification": "vit."}[wrapper]
    state = {n: t for n, t in state.items() if "pooler" not in n}
    if wrapper != "ViTForImageClassification" and draw(st.booleans()):
        state[f"{pooler}pooler.dense.weight"] = torch.randn(48, 48, generator=generator)
        state[f"{pooler}pooler.dense.bias"] = torch.randn(48, generator=generator)
    names = draw(st.permutations(sorted(state)))
    config.save_pretrained(folder)
    save(folder, {n: state[n].clone() for n in names}, draw(st.sampled_from(CONTAINERS)))
    for path in source.iterdir():
        wanted = "tokenizer" in path.name or path.name in (
            "preprocessor_config.json",
            "generation_config.json",
        )
        if wanted:
            shutil.copy(path, folder / path.name)


def save(folder: Path, state: dict[str, torch.Tensor], container: str) -> None:
    pickled = "bin" in container
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")

    def write(name: str, part: dict[str, torch.Tensor]) -> None:
        if pickled:
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})

    if "shard" not in container:
        write(f"{stem}.{suffix}", state)
        return
    places = {}
    names = list(state)
    for number in range(3):
        file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        part = names[number::3]
        write(file, {name: state[name] for name in part})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def check_a_disguise(source: Path, found: Identities, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        disguise(source, Path(name), data.draw)
        again = identify(name)
    assert again.taps == found.taps != {}
    assert (again.tower, again.preprocessing) == (found.tower, found.preprocessing)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_disguised_tower_is_the_same_tower(
    source: Path, found: Identities, data: st.DataObject
) -> None:
    check_a_disguise(source, found, data)


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_hundreds_of_disguises_are_the_same_tower(
    source: Path, found: Identities, data: st.DataObject
) -> None:
    check_a_disguise(source, found, data)


# Another tower ---------------------------------------------------------------------------------


def leaves(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON document stand."""
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from leaves(value, (*place, key))
    elif isinstance(document, list) and document:
        for number, value in enumerate(document):
            yield from leaves(value, (*place, number))
    else:
        yield place


def altered(value: Any, up: bool) -> Any:
    """The nearest other value, where there is such a thing."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + (1 if up else -1)
    if isinstance(value, float):
        return float(np.nextafter(value, np.inf if up else -np.inf))
    return f"{value}x" if isinstance(value, str) else "other"


def replaced(document: Document, place: tuple[Any, ...], up: bool) -> Document:
    changed = copy.deepcopy(document)
    part: Any = changed
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = altered(part[place[-1]], up)
    return changed


@pytest.fixture(scope="module")
def tower(source: Path) -> tuple[ModelSplit, Document]:
    """The tower, cut, and its preprocessing as JSON data."""
    checkpoint = open_checkpoint(source)
    split = checkpoint.family.split(checkpoint.model)
    return split, json.loads(json.dumps(checkpoint.preprocessing.to_dict()))


def identity(split: ModelSplit, preprocessing: Document, **changes: Any) -> str:
    fields: Document = {
        "family": split.tower_family,
        "architecture": json.loads(json.dumps(dict(split.tower.architecture))),
        "preprocessing": preprocessing,
        "tap": TAP,
        "tensors": {name: t.numpy() for name, t in split.tower.taps[TAP].items()},
    }
    return tower_identity(**{**fields, **changes})


def test_every_number_left_of_the_seam_counts(tower: tuple[ModelSplit, Document]) -> None:
    """Each value of preprocessing and architecture, moved by the least amount either way."""
    split, preprocessing = tower
    architecture = json.loads(json.dumps(dict(split.tower.architecture)))
    seen = {identity(split, preprocessing)}
    cases = 1
    for up in (False, True):
        for place in leaves(preprocessing):
            seen.add(identity(split, replaced(preprocessing, place, up)))
            cases += 1
        for place in leaves(architecture):
            changed = replaced(architecture, place, up)
            seen.add(identity(split, preprocessing, architecture=changed))
            cases += 1
    one_other = [
        value_at(document, place)
        for document in (preprocessing, architecture)
        for place in leaves(document)
        if not isinstance(value_at(document, place), (int, float))
        or isinstance(value_at(document, place), bool)
    ]
    assert len(seen) == cases - len(one_other)  # these were altered the same way twice
    assert len(seen) > 30


def value_at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_upstream_always_counts_and_one_downstream_never(
    tower: tuple[ModelSplit, Document], data: st.DataObject
) -> None:
    split, preprocessing = tower
    before = tap_identities(split, preprocessing)[TAP]
    arrays = {name: t.numpy() for name, t in split.tower.taps[TAP].items()}
    name = data.draw(st.sampled_from(sorted(arrays)))
    flipped = arrays[name].copy()
    position = data.draw(st.integers(0, flipped.size * 32 - 1))
    flipped.reshape(-1).view(np.uint32)[position // 32] ^= np.uint32(1 << (position % 32))
    assert identity(split, preprocessing, tensors={**arrays, name: flipped}) != before
    head = split.heads["caption"].tensors
    tensor = head[data.draw(st.sampled_from(sorted(head)))]
    bits = tensor.reshape(-1).view(torch.int32)
    place = data.draw(st.integers(0, tensor.numel() - 1))
    bit = 1 << data.draw(st.integers(0, 30))
    bits[place] ^= bit
    try:
        assert tap_identities(split, preprocessing)[TAP] == before
    finally:
        bits[place] ^= bit


def test_taps_of_one_tower_have_identities_of_their_own(
    tower: tuple[ModelSplit, Document],
) -> None:
    split, preprocessing = tower
    taps = {tap: identity(split, preprocessing, tap=tap) for tap in (TAP, "pooler_output", "x")}
    assert len(set(taps.values())) == 3


def test_the_golden_preprocessing() -> None:
    """What ViT's processor configuration becomes, and the digest that identities are made of."""
    config = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.45, 0.4],
        "image_std": [0.5, 0.45, 0.55],
    }
    document = from_processor_config(config).to_dict()
    assert Preprocessing.from_dict(document).to_dict() == document
    array = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    digest = tower_identity(
        family="vit",
        architecture={"layers": 2, "norm_epsilon": 1e-12},
        preprocessing=document,
        tap=TAP,
        tensors={"patch.weight": array},
    )
    assert digest == GOLDEN


GOLDEN = "6bc5a355fdf85880ef98219c15f1df6a1afda2076bd300a37f79eac8383104e0"
