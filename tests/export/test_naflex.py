"""SigLIP 2 with pictures of any shape: pixels, positions, mutations, company."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import primelens
from primelens import LoadOptions
from primelens.errors import CheckpointError, GateError
from primelens.export import export_checkpoint
from primelens.export.draft import Draft
from primelens.export.lock import compare_towers, identify
from primelens.export.pictures import random_picture
from primelens.export.pipeline import write_proved
from primelens.export.tower_graph import build_tower
from primelens.options import CacheOptions
from primelens.verify import verify

from .mutations import in_preprocessing
from .rank_mutations import OPTIONS, Drafted, copied, gated, in_nodes, in_text, in_weight

_replace: Any = dataclasses.replace


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def work(drafted: Callable[[str], Drafted]) -> Drafted:
    return drafted("tiny-siglip2-naflex")


@pytest.fixture(scope="module")
def bundle(work: Drafted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "naflex"
    folder.mkdir()
    write_proved(copied(work.draft), work.split, work.answers, folder, OPTIONS)
    return folder


def load(folder: Path, **more: Any) -> primelens.Model:
    return primelens.load(folder, options=LoadOptions(threads=1, check="size"), **more)


# Positions ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_positions_are_resized_as_torch_does(work: Drafted, rows: int, columns: int) -> None:
    """The bilinear filter with antialiasing, larger and smaller, as one sum of weights."""
    tower: Any = work.split.tower.module
    table = tower.model.embeddings.position_embedding.weight.detach()
    side = math.isqrt(len(table))
    wanted = (
        torch.nn.functional.interpolate(
            table.reshape(1, side, side, -1).permute(0, 3, 1, 2).double(),
            size=(rows, columns),
            mode="bilinear",
            antialias=True,
        )[0]
        .flatten(1)
        .T
    )
    place = torch.arange(rows * columns, dtype=torch.float32)[None]
    row = torch.floor((place + 0.5) / columns)
    down = tower._shares(row, torch.tensor([[float(rows)]]))
    across = tower._shares(place - row * columns, torch.tensor([[float(columns)]]))
    found = (down[:, :, :, None] * across[:, :, None, :]).flatten(2) @ table
    assert (found[0] - wanted).abs().max() < 4e-6


# The gate -----------------------------------------------------------------------------------------


def test_the_unmutated_draft_passes(work: Drafted, tmp_path: Path) -> None:
    report = gated(work, work.draft, tmp_path / "bundle")
    assert report.failures == []
    assert report.measured["tap"]["largest_change_by_batch"] == 0
    pixels = work.answers["rank"].pixels
    assert len({tuple(picture[0, :2]) for picture in pixels}) > 1
    assert {int(picture[0, 0] * picture[0, 1]) for picture in pixels} != {24}  # some are padded


def in_module(**methods: Any) -> Callable[[Draft, Drafted], None]:
    """Build the tower from a changed module."""

    def mutate(draft: Draft, work: Drafted) -> None:
        old: Any = work.split.tower.module
        new: Any = type("Mutated", (type(old),), methods)(old.model)
        shape = work.answers["rank"].pixels.shape[1:]
        draft.graphs["tower"] = build_tower(_replace(work.split.tower, module=new), shape)

    return mutate


def shares(change: Callable[[Any, Any], tuple[Any, Any]], *, wide: bool = True) -> Any:
    """The positions' filter, its place and reach changed."""

    def found(self: Any, place: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        place, count = change(place, count)
        scale = self.side / count
        centre = (scale * (place + 0.5))[:, :, None]
        reach = torch.clamp(scale, min=1.0)[:, :, None] if wide else 1.0
        known = torch.arange(self.side, dtype=torch.float32) + 0.5
        part = torch.relu(1.0 - torch.abs(known - centre) / reach)
        return part / part.sum(dim=-1, keepdim=True).clamp(min=1e-6)

    return found


def transposed(self: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
    """Columns are taken for rows."""
    first = pixel_values[:, :1]
    swapped = torch.cat([first[..., 1:2], first[..., 0:1], first[..., 2:]], dim=2)
    base: Any = type(self).__mro__[1]
    found: tuple[torch.Tensor] = base.forward(self, torch.cat([swapped, pixel_values[:, 1:]], 1))
    return found


def all_counted(self: Any, states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    base: Any = type(self).__mro__[1]
    pooled: torch.Tensor = base._pooled(self, states, seen | torch.logical_not(seen))
    return pooled


def unmasked(self: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
    """The layers see the padding, the pooling does not."""
    held = [layer.forward for layer in self.model.encoder.layers]
    for layer, forward in zip(self.model.encoder.layers, held, strict=True):
        layer.forward = lambda states, mask, run=forward: run(states, None)
    try:
        base: Any = type(self).__mro__[1]
        found: tuple[torch.Tensor] = base.forward(self, pixel_values)
        return found
    finally:
        for layer in self.model.encoder.layers:
            del layer.forward


def alone(mutation: Callable[[Draft], None]) -> Callable[[Draft, Drafted], None]:
    return lambda draft, _: mutation(draft)


def prepared(change: Callable[[dict[str, Any]], None]) -> Callable[[Draft, Drafted], None]:
    mutation: Any = in_preprocessing(change)
    return mutation  # type: ignore[no-any-return]


def step(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["steps"][0].update(changes)


def zero(array: Any) -> Any:
    return array * 0


def rolled(array: Any) -> Any:
    return np.roll(array, 1, axis=0)


MUTATIONS = {
    "positions without antialiasing": in_module(_shares=shares(lambda p, n: (p, n), wide=False)),
    "positions half a place off": in_module(_shares=shares(lambda p, n: (p + 0.5, n))),
    "positions of one row more": in_module(_shares=shares(lambda p, n: (p, n + 1))),
    "rows and columns exchanged": in_module(forward=transposed),
    "padding is seen": in_module(forward=unmasked),
    "padding is pooled": in_module(_pooled=all_counted),
    "position table": alone(in_weight("tower", r"position_embedding\.weight", rolled)),
    "patch bias": alone(in_weight("tower", r"patch_embedding\.bias", zero)),
    "query bias": alone(in_weight("tower", r"layers\.0\.self_attn\.q_proj\.bias", zero)),
    "value bias": alone(in_weight("tower", r"layers\.1\.self_attn\.v_proj\.bias", zero)),
    "mlp bias": alone(in_weight("tower", r"layers\.1\.mlp\.fc2\.bias", zero)),
    "norm epsilon": alone(in_nodes("tower", "LayerNormalization", epsilon=1e-3)),
    "pooling's norm": alone(in_weight("tower", r"head\.layernorm\.bias", zero)),
    "pooling's mlp": alone(in_weight("tower", r"head\.mlp\.fc2\.bias", zero)),
    "pooling's output bias": alone(in_weight("tower", r"attention\.out_proj\.bias", zero)),
    "a patch less": prepared(step(most=23)),
    "other filter": prepared(step(resample="bicubic")),
    "mean": prepared(lambda data: data["normalize"].update(mean=[0.5, 0.51, 0.5])),
    "padding on the right": alone(in_text(pad_left=False)),
    "text is masked otherwise": alone(in_text(masked=False)),
    "text tokens": alone(in_weight("rank.text", r"token_embedding\.weight", rolled)),
    "text head bias": alone(in_weight("rank.text", r"model\.head\.bias", zero)),
}


@pytest.mark.parametrize("what", list(MUTATIONS))
def test_the_gate_catches(work: Drafted, what: str, tmp_path: Path) -> None:
    draft = copied(work.draft)
    MUTATIONS[what](draft, work)
    with pytest.raises(GateError):
        gated(work, draft, tmp_path / "bundle")


# Whole bundles ------------------------------------------------------------------------------------


def test_a_bundle_verifies_and_keeps(work: Drafted, bundle: Path, tmp_path: Path) -> None:
    assert verify(bundle, options=LoadOptions(threads=1)).passed
    assert identify(work.folder).taps.keys() == {"pooler_output"}
    assert compare_towers(work.folder, work.folder).locked
    picture = random_picture(90, 30, 5)
    cache = CacheOptions(tmp_path / "kept")
    first = load(bundle, cache=cache).rank(picture, ["a cat", "sea"])
    again = load(bundle, cache=cache).rank(picture, ["a cat", "sea"])
    assert (first.cache, again.cache) == ("miss", "hit")
    assert first.labels == again.labels == load(bundle).rank(picture, ["a cat", "sea"]).labels


def test_pictures_of_any_shape_share_a_batch_and_change_no_bit(bundle: Path) -> None:
    model = load(bundle)
    shapes = [(40, 40), (100, 20), (7, 90), (64, 48), (1, 30), (200, 199)]
    pictures = [random_picture(width, height, 3) for width, height in shapes]
    alone = [model.encode(picture) for picture in pictures]
    assert len({tuple(model.preprocessing(p)[0, :2]) for p in pictures}) >= 5
    rng = np.random.default_rng(1)
    for _ in range(12):
        places = [int(k) for k in rng.integers(0, len(pictures), rng.integers(2, 7))]
        for place, image in zip(
            places, model.encode_batch([pictures[k] for k in places]), strict=True
        ):
            assert np.array_equal(image.taps["pooler_output"], alone[place].taps["pooler_output"])


def test_a_processor_of_another_kind_is_refused(work: Drafted, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(work.folder, tmp_path / "checkpoint"))
    path = folder / "preprocessor_config.json"
    sixteen = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16}
    for change in (sixteen, {"image_processor_type": "SiglipImageProcessor"}):
        path.write_text(json.dumps(change))
        with pytest.raises(CheckpointError, match="does not read"):
            export_checkpoint(folder, tmp_path / "out", OPTIONS)
