"""Which parts of a picture each word was attended to.

The text is replayed through the bundle by the shipped runtime, token by token, and the attention
that predicted each token is recomputed from the queries and keys that the decoder really used.

* A decoder with cross-attention: the mean over layers and heads of its attention to the picture.
* A decoder that reads the picture as a prefix: attention rollout (Abnar and Zuidema, 2020) over the
  text's positions: per layer the mean over heads, half of it residual, multiplied through. Inside
  the picture's prefix, which attends to itself alone, every position stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primelens.engine import Graph
from primelens.errors import InputError, UnsupportedError
from primelens.images import ImageSource
from primelens.model import Model, load
from primelens.options import CaptionOptions, LoadOptions
from primelens.prompts import prompts_of
from primelens.results import Caption, EncodedImage
from primelens.tune.explain.recording import AttentionNode, Recorded, RecordingEngine

__all__ = ["Explainer", "Explanation", "Word", "explain", "grid_of", "words_of"]

Map = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Word:
    """One word of the text.

    Attributes:
        text: the word.
        tokens: the places of its tokens among the text's.
        attention: ``[gh, gw]`` share of the attention that each part of the picture got while the
            word was predicted; sums to 1.
        logprob: natural-log probability of its tokens.
    """

    text: str
    tokens: range
    attention: Map
    logprob: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """A text and what it was attended to.

    Attributes:
        caption: the text as the model wrote it.
        words: its words, in order.
        picture: ``[H, W, 3]`` uint8, what the tower was shown.
        method: "cross-attention" or "rollout".
        off_picture: share of the attention that went to no part of the picture (class tokens), mean
            over the words.
    """

    caption: Caption
    words: tuple[Word, ...]
    picture: NDArray[np.uint8]
    method: str
    off_picture: float

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of parts."""
        rows, columns = self.words[0].attention.shape
        return rows, columns


class Explainer:
    """A bundle opened for looking into its attention.

    Args:
        bundle: a bundle's folder, ``"default"``, or a hub id.
        threads: of the engine; None lets it choose.
        head: which head; None takes the first that captions, or answers where a question is asked.
    """

    def __init__(
        self, bundle: str | Path, *, threads: int | None = None, head: str | None = None
    ) -> None:
        self.engine = RecordingEngine(threads=threads)
        self.head = head
        self.prompt: str | None = None
        self.model: Model = load(bundle, options=LoadOptions(threads=threads), engine=self.engine)

    def explain(
        self, image: ImageSource, options: CaptionOptions | None = None, *, question: str | None
    ) -> Explanation:
        """Caption the picture (or answer the question), and say what each word was attended to.

        Raises:
            UnsupportedError: the head's decoder does not attend to the picture itself.
            InputError: the text has no word.
        """
        options = options or CaptionOptions()
        options = replace(options, head=self.head)
        (self.prompt,) = prompts_of(options, 1)
        encoded = self.model.encode(image)
        if question is None:
            caption = self.model.caption(encoded, options)
        else:
            caption = self.model.answer(encoded, question, options)
        asked = self.prompt if question is None else question
        weights, method = self._weights(encoded, caption, asked)
        picture = self.model.preprocessing.seen(image)
        grid, extra = grid_of(weights.shape[1], picture.shape[0], picture.shape[1])
        head = self.model.head("caption" if question is None else "answer", self.head)
        words = []
        for text, tokens in words_of(caption.tokens, head.text.decode):
            total = weights[tokens.start : tokens.stop].mean(axis=0)
            part = total[extra:]
            words.append(
                Word(
                    text=text,
                    tokens=tokens,
                    attention=(part / part.sum()).reshape(grid),
                    logprob=float(sum(caption.token_logprobs[i] for i in tokens)),
                )
            )
        if not words:
            raise InputError(f"{encoded.name}: the text is empty, so there is nothing to explain.")
        off = float((weights[:, :extra].sum(axis=1) / weights.sum(axis=1)).mean())
        return Explanation(caption, tuple(words), picture, method, off)

    @property
    def tower(self) -> Graph:
        """The tower's graph: ``pixel_values`` to taps."""
        name = self.model.manifest.tower.graph
        if name is None:
            raise InputError(
                f"The bundle {self.model.name!r} has no tower, so no picture can be masked.",
                remedy="Explain with the whole bundle.",
            )
        return self.engine.graphs[name]

    def _weights(self, image: EncodedImage, caption: Caption, asked: str | None) -> tuple[Map, str]:
        """``[N, L]`` attention to the picture's positions before each of the N tokens."""
        kind = "caption" if caption.question is None else "answer"
        head = self.model.head(kind, self.head)
        for graph in self.engine.recording:
            graph.runs.clear()
        head.forced_logits(image, caption.tokens, asked)
        used = [graph for graph in self.engine.recording if graph.runs]
        if len(used) != 1:
            raise UnsupportedError(
                f"The decoder of the head {head.name!r} does not attend to the picture itself, so "
                "its words cannot be traced to parts of the picture.",
                remedy="Explain a head that captions.",
            )
        graph = used[0]
        first = len(head.prompt(asked)) - 1
        count = len(caption.tokens)
        if graph.nodes[0].kind == "cross":
            layers = [_cross(node, graph.runs)[:, first : first + count] for node in graph.nodes]
            mean: Map = np.mean([layer.mean(axis=0) for layer in layers], axis=0)
            return mean, "cross-attention"
        prefix = head.spec.decoder.prefix
        layers = [_prefix(node, graph.runs, prefix).mean(axis=0) for node in graph.nodes]
        return rollout(layers, prefix)[first : first + count, :prefix], "rollout"


def explain(
    bundle: str | Path,
    image: ImageSource,
    options: CaptionOptions | None = None,
    *,
    question: str | None = None,
    head: str | None = None,
) -> Explanation:
    """Caption one picture with a bundle and say what each word was attended to; see `Explainer`."""
    return Explainer(bundle, head=head).explain(image, options, question=question)


def _softmax(scores: Map) -> Map:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Map = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def _split(packed: NDArray[np.float32], heads: int, width: int) -> Map:
    """Queries ``[H, N, D]`` out of ``[N, ≥ H·D]``."""
    count = len(packed)
    queries: Map = packed[:, : heads * width].reshape(count, heads, width).astype(np.float64)
    return queries.transpose(1, 0, 2)


def _cross(node: AttentionNode, runs: Sequence[Recorded]) -> Map:
    """``[H, N, L]`` over all queries of all runs."""
    parts = []
    for run in runs:
        keys = run.fed[node.key][0].astype(np.float64)
        queries = _split(run.queries[node.query][0], node.heads, keys.shape[2])
        keys = np.repeat(keys, node.heads // len(keys), axis=0)
        parts.append(_softmax(node.scale * queries @ keys.transpose(0, 2, 1)))
    return np.concatenate(parts, axis=1)


def _prefix(node: AttentionNode, runs: Sequence[Recorded], prefix: int) -> Map:
    """``[H, N, P + N]`` of a single sequence, whose tokens took the slots behind the prefix."""
    total = prefix + sum(int(run.fed["query_seqlens"][0]) for run in runs)
    parts = []
    for run in runs:
        keys = run.fed[node.key][0].astype(np.float64)
        count, end = int(run.fed["query_seqlens"][0]), int(run.fed["seqlens_k"][0]) + 1
        queries = _split(run.queries[node.query][0, :count], node.heads, keys.shape[2])
        keys = np.repeat(keys, node.heads // len(keys), axis=0)[:, :total]
        scores = node.scale * queries @ keys.transpose(0, 2, 1)
        scores = scores + run.fed["attention_bias"][0, 0, :count, :total].astype(np.float64)
        later = np.arange(total) > (end - count + np.arange(count))[:, None]
        parts.append(_softmax(np.where(later, -np.inf, scores)))
    return np.concatenate(parts, axis=1)


def rollout(layers: Sequence[Map], prefix: int) -> Map:
    """Attention multiplied through the layers.

    Args:
        layers: per layer ``[N, P + N]``, the text's attention to prefix and text.
        prefix: P.

    Returns:
        ``[N, P + N]`` share of each position in what stands at each of the text's places.
    """
    count = len(layers[0])
    flow = np.concatenate([np.zeros((count, prefix)), np.eye(count)], axis=1)
    for layer in layers:
        mixed = layer[:, prefix:] @ flow
        mixed[:, :prefix] += layer[:, :prefix]
        flow = 0.5 * mixed + 0.5 * flow
    return flow


def grid_of(positions: int, height: int, width: int) -> tuple[tuple[int, int], int]:
    """((rows, columns), leading positions that belong to no part) of a tap with L positions.

    Raises:
        UnsupportedError: no grid of the picture's proportions has that many parts.
    """
    for extra in range(3):  # none, a class token, a class and a distillation token
        parts = positions - extra
        rows = round((parts * height / width) ** 0.5) if parts > 0 else 0
        if (
            rows
            and parts % rows == 0
            and abs(parts // rows * height - rows * width) < max(height, width)
        ):
            return (rows, parts // rows), extra
    raise UnsupportedError(
        f"{positions} positions do not form a grid over a picture of {width}x{height} pixels, so "
        "they cannot be drawn over it."
    )


def words_of(
    tokens: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[tuple[str, range]]:
    """The words of a text, each with the places of its tokens; special tokens at the ends belong to
    none, a token that completes several words to the last of them.
    """
    words = decode(list(tokens)).split()
    starts: list[int] = []  # place of each word's first token
    before, end = "", 0
    for place in range(len(tokens)):
        text = decode(list(tokens[: place + 1]))
        reached = min(len(text.split()), len(words))
        starts += [place if not starts else max(place, end)] * (reached - len(starts))
        end = place + 1 if text != before else end
        before = text
    stops = [*starts[1:], end]
    return [
        (word, range(start, stop)) for word, start, stop in zip(words, starts, stops, strict=False)
    ]
