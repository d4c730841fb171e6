"""The feature-map tower: shape, order of positions, round trip, and exact folding."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    ConvNextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    VisionEncoderDecoderModel,
)

from primelens.towers import FeatureMapTower, FeatureMapTowerConfig, fold_normalisation

RESNET = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
CONVNEXT = ConvNextConfig(hidden_sizes=[4, 4, 6, 8], depths=[1, 1, 1, 1])
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tower() -> FeatureMapTower:
    """A tower of which no bias, norm or statistic is left at its initial value."""
    torch.manual_seed(0)
    made = FeatureMapTower(FeatureMapTowerConfig(RESNET, grid_size=(4, 4)))
    with torch.no_grad():
        for name, value in itertools.chain(made.named_parameters(), made.named_buffers()):
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.add_(0.3 * torch.randn_like(value))
    return made.eval()


@pytest.mark.parametrize(("backbone", "side"), [(RESNET, 4), (CONVNEXT, 1)])
def test_states_are_the_last_map_row_by_row(backbone: ResNetConfig, side: int) -> None:
    config = FeatureMapTowerConfig(backbone, grid_size=(side, side), position_embedding=False)
    tower = FeatureMapTower(config).eval()
    states = tower(pixel_values=PICTURES).last_hidden_state
    assert states.shape == (2, side * side, config.hidden_size)
    feature_map = tower.backbone(pixel_values=PICTURES).last_hidden_state
    assert torch.equal(states[:, -1], feature_map[:, :, -1, -1])
    if side > 1:
        assert torch.equal(states[:, 1], feature_map[:, :, 0, 1])


def test_positions_are_added(tower: FeatureMapTower) -> None:
    with_table = tower(pixel_values=PICTURES, return_dict=False)[0]
    table = tower.position_table.detach().clone()
    torch.nn.init.zeros_(tower.position_table)
    torch.testing.assert_close(tower(pixel_values=PICTURES)[0] + table, with_table)


def test_folding_is_exact_and_leaves_the_source_alone(tower: FeatureMapTower) -> None:
    before = tower(pixel_values=PICTURES)[0]
    folded = fold_normalisation(tower)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(pixel_values=PICTURES)[0], before, rtol=1e-4, atol=1e-5)
    assert torch.equal(tower(pixel_values=PICTURES)[0], before)
    with pytest.raises(ValueError, match="already"):
        fold_normalisation(folded)


def test_folding_needs_batch_normalisation() -> None:
    with pytest.raises(ValueError, match="fold"):
        FeatureMapTowerConfig(CONVNEXT, folded=True)
    with pytest.raises(ValueError, match="convnext, resnet"):
        FeatureMapTowerConfig({"model_type": "vit"})


@pytest.mark.parametrize("folded", [False, True])
def test_round_trip_inside_an_encoder_decoder(
    tower: FeatureMapTower, tmp_path: Path, folded: bool
) -> None:
    encoder = fold_normalisation(tower) if folded else tower
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8,
            add_cross_attention=True, is_decoder=True, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.save_pretrained(tmp_path)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert again.config.encoder.folded is folded
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items()
    )
    ids = torch.tensor([[1, 3, 4]] * 2)
    logits = [m(pixel_values=PICTURES, decoder_input_ids=ids).logits for m in (model, again)]
    assert torch.equal(*logits)


def test_alone_it_loads_by_its_registered_name(tower: FeatureMapTower, tmp_path: Path) -> None:
    tower.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, FeatureMapTower)
    assert torch.equal(again.eval()(pixel_values=PICTURES)[0], tower(pixel_values=PICTURES)[0])


@pytest.mark.slow
def test_it_can_be_traced(tower: FeatureMapTower) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        tower, (), {"pixel_values": PICTURES}, dynamic_shapes={"pixel_values": {0: batch}}
    )
    three = torch.cat([PICTURES, PICTURES[:1]])
    torch.testing.assert_close(
        program.module()(pixel_values=three)[0], tower(pixel_values=three)[0]
    )
