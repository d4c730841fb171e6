"""Activations that every version of the kernels, NumPy and standard operators compute alike.

Each is made of sums, products and quotients in float32 in one fixed order (`src/vector.h`), so its
bits depend on no mathematical library. They rest on two odd functions that rise from -0.5 to 0.5,
as quotients of polynomials in the square of their argument, which were fitted by least squares
with weights that even out the largest error.

Errors against float64, as multiples of ``max(1, |y|)``: at most 4e-7 (a test holds that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTIVATIONS",
    "CUBIC",
    "EXPONENTIAL",
    "LOGISTIC",
    "NORMAL",
    "QUICK",
    "TANH_SLOPE",
    "Exponential",
    "Sigmoid",
    "activate",
]

CUBIC = np.float32(0.044715)
TANH_SLOPE = np.float32(1.5957691216057308)  # 2 * sqrt(2 / pi)
QUICK = np.float32(1.702)


@dataclass(frozen=True)
class Sigmoid:
    """``t * p(t²) / q(t²)`` of t cut off at ±limit, itself cut off at ±0.5; powers ascend."""

    limit: float
    p: tuple[float, ...]
    q: tuple[float, ...]

    def __call__(self, t: NDArray[Any]) -> NDArray[np.float32]:
        limit, half = np.float32(self.limit), np.float32(0.5)
        t = np.clip(t, -limit, limit)
        square = t * t
        quotient = t * _horner(self.p, square) / _horner(self.q, square)
        return np.asarray(np.clip(quotient, -half, half), np.float32)


@dataclass(frozen=True)
class Exponential:
    """exp of ``least``..0, smaller ones counted as that: a power of two times a polynomial.

    Attributes:
        octaves: powers of two in a unit.
        octave, octave_rest: an octave as the sum of two numbers, of which the first has few bits.
        p: the polynomial within half an octave of 0; powers ascend.
        round_up: 1.5 · 2²³; adding and taking it away again rounds to an integer.
    """

    least: float
    octaves: float
    octave: float
    octave_rest: float
    p: tuple[float, ...]
    round_up: float = 12582912.0

    def __call__(self, d: NDArray[Any]) -> NDArray[np.float32]:
        d = np.nan_to_num(np.clip(d, np.float32(self.least), np.float32(0)), nan=0)
        shift = np.float32(self.round_up)
        n = (d * np.float32(self.octaves) + shift) - shift
        r = (d - n * np.float32(self.octave)) - n * np.float32(self.octave_rest)
        return np.asarray(np.ldexp(_horner(self.p, r), n.astype(np.int32)), np.float32)


def _horner(coefficients: tuple[float, ...], x: NDArray[Any]) -> NDArray[Any]:
    value = np.full_like(x, np.float32(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        value = value * x + np.float32(coefficient)
    return value


NORMAL = Sigmoid(  # distribution function of the normal distribution, minus 0.5
    5.6,
    (
        0.398942232131958,
        0.03437337651848793,
        0.004707079380750656,
        0.00017382139049004763,
        6.356182893796358e-06,
        2.2146483757978785e-08,
    ),
    (
        1.0,
        0.252826988697052,
        0.02893849089741707,
        0.001912812702357769,
        7.509174611186609e-05,
        1.1802206927313819e-06,
    ),
)
LOGISTIC = Sigmoid(  # 1 / (1 + exp(-t)), minus 0.5
    17.6,
    (
        0.25,
        0.008366608060896397,
        5.472560951602645e-05,
        8.098547255031008e-08,
        1.3228198050829754e-11,
        0.0,
    ),
    (
        1.0,
        0.11679968982934952,
        0.001618898008018732,
        5.152012818143703e-06,
        3.0665596728596256e-09,
        0.0,
    ),
)

EXPONENTIAL = Exponential(
    least=-86.0,
    octaves=1.4426950408889634,
    octave=0.693359375,
    octave_rest=-2.12194440e-4,
    p=(
        1.0,
        1.0,
        0.49999991059303284,
        0.16666418313980103,
        0.041668377816677094,
        0.008374998345971107,
        0.0013829109957441688,
    ),
)

# activation → what follows the name of the operator
ACTIVATIONS: Mapping[str, str] = {
    "none": "",
    "relu": "Relu",
    "gelu": "Gelu",
    "gelu_tanh": "GeluTanh",
    "quick_gelu": "QuickGelu",
}


def activate(y: NDArray[Any], activation: str) -> NDArray[np.float32]:
    """float32 of any shape → the activation of each, bit for bit as the kernels compute it.

    Args:
        y: float32.
        activation: a key of `ACTIVATIONS`. ``gelu`` is the one with the error function.
    """
    half = np.float32(0.5)
    with np.errstate(over="ignore", invalid="ignore"):
        if activation == "none":
            found = y
        elif activation == "relu":
            found = np.where(y < 0, np.float32(0), y)
        elif activation == "gelu":
            found = y * (half + NORMAL(y))
        elif activation == "gelu_tanh":
            found = y * (half + LOGISTIC((y + CUBIC * (y * y * y)) * TANH_SLOPE))
        elif activation == "quick_gelu":
            found = y * (half + LOGISTIC(QUICK * y))
        else:
            raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    return np.asarray(found, np.float32)
