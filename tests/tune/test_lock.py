"""A locked tower does not move, and says so if it did."""

import pytest
import torch
from torch import nn

from primelens.errors import OptionError
from primelens.tune.lock import (
    TowerMovedError,
    content_digest,
    lock,
    locked,
    parameter_report,
)


def tower() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())


PICTURE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_train_does_not_wake_a_locked_tower() -> None:
    model = nn.ModuleDict({"encoder": tower(), "decoder": nn.Dropout(0.5)})
    handle = lock(model["encoder"])
    model.train()
    assert model["decoder"].training
    assert not any(part.training for part in model["encoder"].modules())
    before = model["encoder"](PICTURE)
    assert torch.equal(before, model["encoder"](PICTURE))
    handle.check()


def test_statistics_stay_where_an_unlocked_tower_drifts() -> None:
    free = tower().train()
    digest = content_digest(free)
    free(PICTURE)
    assert content_digest(free) != digest
    held = tower()
    with locked(held):
        held.train()(PICTURE)
    assert content_digest(held) == digest


def test_an_earlier_optimiser_is_caught() -> None:
    module = tower()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    handle = lock(module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    with pytest.raises(TowerMovedError, match="moved"):
        handle.check()


def test_waking_by_hand_is_caught() -> None:
    module = tower()
    handle = lock(module)
    module[1].training = True
    with pytest.raises(TowerMovedError, match="evaluation mode"):
        handle.check()


def test_release_restores_modes_and_gradients() -> None:
    module = tower().train()
    module[0].bias.requires_grad_(False)
    handle = lock(module)
    assert not any(p.requires_grad for p in module.parameters())
    handle.release()
    assert module[1].training
    assert module[0].weight.requires_grad
    assert not module[0].bias.requires_grad
    module.eval()
    assert not module[1].training


def test_the_error_of_the_block_wins_over_a_moved_tower() -> None:
    module = tower()

    def fail() -> None:
        with locked(module):
            nn.init.ones_(module[0].weight)
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()


def test_digest_sees_names_shapes_and_values_but_not_half_precision() -> None:
    module = nn.Linear(2, 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
    digest = content_digest(module)
    assert content_digest(module.half()) == digest
    module = module.float()
    with torch.no_grad():
        module.weight[0, 0] += 1e-3
    assert content_digest(module) != digest
    assert content_digest(nn.Linear(3, 2)) != digest


def staged() -> nn.Sequential:
    torch.manual_seed(0)
    last = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), last)


def test_a_part_stays_free_by_its_name() -> None:
    model = nn.ModuleDict({"encoder": staged(), "decoder": nn.Linear(2, 2)})
    encoder = model["encoder"]
    handle = lock(encoder, unlock=("2",))
    report = parameter_report(model)
    own = {name: p.numel() for name, p in encoder.named_parameters()}
    free = sum(size for name, size in own.items() if name.startswith("2."))
    assert report.tuned == free + 6
    assert report.locked == sum(own.values()) - free
    assert report.parts == {"encoder": (report.locked, free), "decoder": (0, 6)}
    model.train()
    assert [part.training for part in encoder.children()] == [False, False, True]
    assert encoder[2][1].training
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = content_digest(encoder[2])
    encoder(PICTURE).square().sum().backward()
    optimiser.step()
    assert content_digest(encoder[2]) != before  # weights and statistics of the free part moved
    handle.check()
    model.eval()
    assert not any(part.training for part in encoder.modules())
    with torch.no_grad():
        encoder[1].running_mean += 1e-3
    with pytest.raises(TowerMovedError, match="moved"):
        handle.check()


def test_a_single_parameter_stays_free_and_an_unknown_name_is_refused() -> None:
    module = staged()
    handle = lock(module, unlock=["0.bias"])
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["0.bias"]
    with torch.no_grad():
        module[0].bias += 1
    handle.check()
    for name in ("9", "0.bia", ""):
        with pytest.raises(OptionError, match="no part named"):
            lock(staged(), unlock=[name])
