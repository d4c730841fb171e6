"""Losses against derivations by hand in float64, and one batch split over two processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from primelens.tune.objectives import (
    LOG_SCALE_START,
    SIGMOID_BIAS_START,
    lit_loss,
    matching_loss,
    siglip_loss,
    token_loss,
)

Floats = NDArray[np.float64]
ROWS, WIDTH = 5, 7


def drawn(seed: int) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    scales = random.uniform(0.1, 30.0, (2, ROWS, 1))
    image, text = scales * random.standard_normal((2, ROWS, WIDTH))
    return image, text


def unit(rows: Floats) -> Floats:
    result: Floats = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-8)
    return result


def through_unit(rows: Floats, gradient: Floats) -> Floats:
    """The gradient of ``unit``: z = x / (n + e), dz/dx = I / (n + e) - x xᵀ / (n (n + e)²)."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    inner = (rows * gradient).sum(axis=1, keepdims=True)
    result: Floats = gradient / (norm + 1e-8) - rows * inner / (norm * (norm + 1e-8) ** 2)
    return result


def softmax(scores: Floats) -> Floats:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = shares / shares.sum(axis=1, keepdims=True)
    return result


def tensors(*values: Floats | float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def test_lit_is_the_mean_of_two_softmaxes_and_so_is_its_gradient() -> None:
    image, text = drawn(0)
    scores = np.exp(1.3) * unit(image) @ unit(text).T
    forth, back = softmax(scores), softmax(scores.T)
    wanted = -0.5 * (np.log(np.diag(forth)).mean() + np.log(np.diag(back)).mean())
    slope = 0.5 / ROWS * ((forth - np.eye(ROWS)) + (back - np.eye(ROWS)).T)
    x, y, log_scale = tensors(image, text, 1.3)
    loss = lit_loss(x, y, log_scale)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert log_scale.grad is not None
    assert log_scale.grad.item() == pytest.approx((slope * scores).sum(), rel=1e-10)
    to_image = through_unit(image, np.exp(1.3) * slope @ unit(text))
    to_text = through_unit(text, np.exp(1.3) * slope.T @ unit(image))
    np.testing.assert_allclose(x.grad, to_image, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(y.grad, to_text, rtol=1e-9, atol=1e-12)


def test_siglip_judges_every_pair_by_itself_and_so_does_its_gradient() -> None:
    image, text = drawn(1)
    scores = np.exp(0.8) * unit(image) @ unit(text).T - 2.71
    sign = 2 * np.eye(ROWS) - 1
    wanted = np.log1p(np.exp(-sign * scores)).sum() / ROWS
    slope = -sign / (1 + np.exp(sign * scores)) / ROWS
    x, y, log_scale, bias = tensors(image, text, 0.8, -2.71)
    loss = siglip_loss(x, y, log_scale, bias)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert log_scale.grad is not None
    assert bias.grad is not None
    assert log_scale.grad.item() == pytest.approx((slope * (scores + 2.71)).sum(), rel=1e-10)
    assert bias.grad.item() == pytest.approx(slope.sum(), rel=1e-10)
    to_image = through_unit(image, np.exp(0.8) * slope @ unit(text))
    np.testing.assert_allclose(x.grad, to_image, rtol=1e-9, atol=1e-12)


def test_the_constants_are_the_official_ones() -> None:
    assert np.exp(LOG_SCALE_START) == pytest.approx(10.0)
    assert SIGMOID_BIAS_START == -2.71


def test_token_loss_smooths_and_skips_and_adds_up_over_parts() -> None:
    random = np.random.default_rng(2)
    logits = random.standard_normal((3, 4, 11))
    labels = random.integers(0, 11, (3, 4))
    labels[0, 2:] = labels[1, :1] = -100
    logs = np.log(softmax(logits.reshape(12, 11)))
    rows = np.flatnonzero(labels.ravel() != -100)
    own = logs[rows, labels.ravel()[rows]]
    wanted = -(0.9 * own + 0.1 * logs[rows].mean(axis=1)).mean()
    x, y = torch.tensor(logits), torch.tensor(labels)
    assert token_loss(x, y, smoothing=0.1).item() == pytest.approx(wanted, rel=1e-6)
    parts = [token_loss(x[[i]], y[[i]], smoothing=0.1, tokens=len(rows)) for i in range(3)]
    assert sum(part.item() for part in parts) == pytest.approx(wanted, rel=1e-6)


def test_matching_is_binary_cross_entropy() -> None:
    scores = np.array([2.0, -1.0, 0.5])
    right = np.array([True, False, False])
    shares = 1 / (1 + np.exp(-scores))
    wanted = -np.log(np.where(right, shares, 1 - shares)).mean()
    found = matching_loss(torch.tensor(scores), torch.tensor(right))
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    program = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name in ("lit", "siglip"):
        np.testing.assert_allclose(found[f"{name}.two"], found[f"{name}.one"], rtol=1e-11)
        assert np.abs(found[f"{name}.one"]).min() > 0
        # A batch that sees its own half alone has another loss.
        assert abs(found[f"{name}.halves"][0] - found[f"{name}.one"][0]) > 1e-3
