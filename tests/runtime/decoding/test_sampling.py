from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens import OptionError
from primelens.decoding import processors, warpers
from primelens.decoding.processors import Processor
from primelens.decoding.sampling import Sampling, draw, stream_of
from primelens.decoding.search import Controls, Limits

from .tables import run, table

VOCAB = 30
DRAWS = 20_000


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Standardised: about N(0, 1) for the right distribution (Wilson and Hilferty)."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


CHAINS: dict[str, tuple[Processor, ...]] = {
    "nothing": (),
    "temperature": (warpers.Temperature(1.7),),
    "top-k": (warpers.TopK(7),),
    "top-p": (warpers.Temperature(1.5), warpers.TopP(0.8)),
    "min-p": (warpers.MinP(0.05),),
}


@pytest.mark.parametrize("name", CHAINS)
def test_tokens_are_drawn_from_the_processed_distribution(name: str) -> None:
    logits = table(11, VOCAB, scale=1.5)([1])
    scores = logits[None].copy()
    for processor in CHAINS[name]:
        processor(scores, None)  # type: ignore[arg-type]
    kept = np.flatnonzero(scores[0] > -np.inf)
    exact = np.exp(scores[0, kept].astype(np.float64))
    exact /= exact.sum()
    random = stream_of(1, "picture", 0)
    drawn = [draw(scores[0], random.random()) for _ in range(DRAWS)]
    counts = np.bincount(drawn, minlength=VOCAB)
    assert counts.sum() == counts[kept].sum() == DRAWS
    common = exact * DRAWS >= 5  # the approximation asks for that many
    assert common.sum() > 3
    score = chi_square(
        np.append(counts[kept[common]], counts[kept[~common]].sum() + 1e-9),
        np.append(exact[common], exact[~common].sum() + 1e-12) * DRAWS,
    )
    assert abs(score) < 3.5


def test_the_test_sees_a_wrong_distribution() -> None:
    exact = np.full(10, 1000.0)
    assert chi_square(np.random.default_rng(0).multinomial(10_000, np.full(10, 0.1)), exact) < 3.5
    tilted = np.full(10, 0.1) + np.linspace(-0.01, 0.01, 10)
    assert chi_square(np.random.default_rng(0).multinomial(10_000, tilted), exact) > 3.5


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    others=st.lists(st.integers(0, 9), max_size=3),
    count=st.integers(1, 3),
)
def test_what_is_drawn_does_not_depend_on_companions(
    seed: int, others: list[int], count: int
) -> None:
    logits = table(seed, VOCAB, [29])
    controls = Controls((warpers.Temperature(1.2), warpers.TopK(12)))

    def sample(pictures: list[int]) -> list[list[list[int]]]:
        streams = [stream_of(seed, str(p), n) for p in pictures for n in range(count)]
        prompts = [[picture] for picture in pictures for _ in range(count)]
        limits = Limits((29,), 0, (8,) * len(prompts))
        search = Sampling(prompts, limits, streams, controls, count)
        results = run(logits, VOCAB, search, len(prompts))
        return [[each.tokens for each in (result, *result.others)] for result in results]

    together = sample([*others, 5])
    assert together[-1] == sample([5])[0]
    assert len(together[-1]) == count


def test_seeds_pictures_and_numbers_give_different_streams() -> None:
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({stream_of(*key).random() for key in keys}) == 4
    assert stream_of(0, "a", 0).random() == stream_of(0, "a", 0).random()


def test_the_stream_is_fixed_for_ever() -> None:
    """A change of the generator changes every sampled caption: it must be deliberate."""
    assert stream_of(7, "picture", 2).random(3).tolist() == [
        0.7339233072215944,
        0.765351465418508,
        0.6209277207889238,
    ]


def test_the_ends_of_the_unit_interval_give_allowed_tokens() -> None:
    scores = np.array([-np.inf, 0.0, -30.0, -np.inf], np.float32)
    assert draw(scores, 0.0) == 1
    assert draw(scores, 1 - 2**-53) == 2


def test_nothing_to_draw_is_an_error() -> None:
    controls = Controls((processors.Suppress(range(VOCAB)),))
    search = Sampling([[1]], Limits((), 0, (6,)), [stream_of(0, "a", 0)], controls)
    with pytest.raises(OptionError, match="no token to choose"):
        run(table(6, VOCAB), VOCAB, search, 1)
