"""What primelens returns: immutable, typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from primelens.errors import PrimelensError

__all__ = ["Caption", "EncodedImage", "Failure", "Piece", "RankedLabel", "Ranking", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went, in seconds.

    In a batch, ``tower``, ``connector``, ``prefill`` and ``step`` are the time of the whole batch
    that the request was part of; ``preprocess`` is its own.
    """

    preprocess: float = 0.0
    tower: float = 0.0
    connector: float = 0.0
    prefill: float = 0.0
    step: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(sum(getattr(self, f.name) for f in fields(self)))

    def as_milliseconds(self) -> dict[str, float]:
        """Part → milliseconds, rounded to a microsecond."""
        parts = {f.name: round(getattr(self, f.name) * 1e3, 3) for f in fields(self)}
        return {**parts, "total": round(self.total * 1e3, 3)}

    def plus(self, **seconds: float) -> Timings:
        """A copy with the named parts increased."""
        return replace(self, **{k: getattr(self, k) + v for k, v in seconds.items()})


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What the locked tower says about one picture; accepted wherever a picture is.

    Attributes:
        taps: tap name → ``[L, C]`` (or ``[C]``) float32, read-only.
        identities: tap name → the tower's identity at that tap; a head refuses another tower's.
        source: digest of the picture (`primelens.images.SourceImage.digest`).
        size: the picture's (width, height) in pixels.
        name: what the picture was called (path), for messages and result rows.
        timings: preprocessing (which includes looking the picture up, where embeddings are kept)
            and tower.
        cache: "hit" where it was kept and no tower ran, "miss" where it was encoded and kept, "off"
            where nothing is kept.
        missed: of a miss, what says why when it is made a string (`primelens.store.Miss`).
        entries: tap name → key of the kept entry; empty where nothing is kept.
        timestamps: of a video, its frames' presentation times in seconds; the taps have the frames
            as a first axis then. Empty for a picture.
    """

    taps: Mapping[str, NDArray[np.float32]]
    identities: Mapping[str, str]
    source: str
    size: tuple[int, int]
    name: str
    timings: Timings = field(default_factory=Timings)
    cache: Literal["off", "hit", "miss"] = "off"
    missed: object | None = None
    entries: Mapping[str, str] = field(default_factory=dict)
    timestamps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for array in self.taps.values():
            array.setflags(write=False)

    @property
    def cache_reason(self) -> str | None:
        """Why it was a miss, in words; the store looks for the reason when it is asked first."""
        return None if self.missed is None else str(self.missed)

    @property
    def nbytes(self) -> int:
        """Bytes that the taps hold."""
        return sum(array.nbytes for array in self.taps.values())


@dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: the caption, without special tokens, prompt and surrounding white space.
        tokens: ids after the prompt, the end token included if it was reached.
        logprob: natural-log probability of ``tokens`` given picture and prompt (sum over tokens):
            the model's own, whatever processors made of it when tokens were chosen.
        token_logprobs: the summands.
        finish_reason: "stop" for an end token or a stop string, "length" for the token limit.
        timings: where the time went.
        image: what the picture was called.
        cache: whether its embedding was kept, as in `EncodedImage`.
        notice: one line for the user, for example that the picture is outside the model's domain.
        score: what a beam search ranked it by (log-probability over length to the length penalty);
            None without a beam search.
        alternatives: per token the (id, log-probability) of the most probable ones, where
            `DecodingOptions.top_logprobs` asked for them.
        others: the further captions of the picture, where `DecodingOptions.num_return_sequences`
            asked for several: of a beam search by falling score, of sampling as they were drawn.
            There are fewer where the options allow of fewer.
        question: the question that this is the answer to.
        timestamps: of a video, the presentation times in seconds of the frames that were read.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    token_logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    timings: Timings
    image: str
    notice: str | None = None
    cache: Literal["off", "hit", "miss"] = "off"
    score: float | None = None
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
    others: tuple[Caption, ...] = ()
    question: str | None = None
    timestamps: tuple[float, ...] = ()


@dataclass(frozen=True)
class RankedLabel:
    """One label of a `Ranking`.

    Attributes:
        label: as it was given.
        score: of the model: scale · cosine + bias; or, by "itm", how much larger the logit of a
            match is than the other one.
        probability: of the label among all labels (softmax), or by itself (sigmoid).
        index: its place among the labels that were given.
    """

    label: str
    score: float
    probability: float
    index: int


@dataclass(frozen=True)
class Ranking:
    """What a picture shows, by the labels that were given.

    Attributes:
        labels: by falling score; equal scores in the order they were given. Those that were not
            preselected (`RankOptions`) are left out.
        scoring: whether the probabilities sum to 1 ("softmax") or each stands alone ("sigmoid").
        timings: where the time went; ``connector`` is the image's projection and the scores,
            ``prefill`` the text tower over all labels of the call, ``step`` the matching.
        image: what the picture was called.
        cache: whether its embedding was kept, as in `EncodedImage`.
        score: what the scores are, as in `RankOptions`.
    """

    labels: tuple[RankedLabel, ...]
    scoring: Literal["softmax", "sigmoid"]
    timings: Timings
    image: str
    cache: Literal["off", "hit", "miss"] = "off"
    score: Literal["itm", "itc"] = "itc"

    @property
    def best(self) -> RankedLabel:
        """The label with the highest score."""
        return self.labels[0]


@dataclass(frozen=True)
class Failure:
    """A picture of a batch that could not be captioned, answered or ranked; its neighbours were."""

    image: str
    error: PrimelensError


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed caption.

    Attributes:
        text: new text, never half a character; the pieces joined are the caption's text.
        caption: the finished caption, with the last piece only.
    """

    text: str
    caption: Caption | None = None
