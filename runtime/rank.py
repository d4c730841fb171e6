"""A head that ranks, at work: scores of texts against pictures, and the embeddings they come from.

Nothing here depends on the other pictures or texts of a call: every picture is projected by
itself, every text is padded to a length of its own, and every score is a sum of its own, in
float64. Probabilities by softmax are shared among the labels of one ranking, of course.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from primelens.bundle import Bundle
from primelens.engine import Engine, Graph, TensorSpec
from primelens.errors import BundleError, EngineError, InputError, OptionError, PromptError
from primelens.head import differences
from primelens.manifest import RankHeadSpec
from primelens.results import EncodedImage, RankedLabel, Ranking
from primelens.text_tower import TextTower

__all__ = ["RankHead"]

Floats = NDArray[np.float32]


class RankHead:
    """One rank head of a bundle; thread-safe.

    Args:
        bundle: where its files lie.
        name: its name in the manifest.
        engine: opens its graphs.

    Raises:
        BundleError: its graphs do not fit the manifest.
    """

    def __init__(self, bundle: Bundle, name: str, engine: Engine) -> None:
        spec = bundle.manifest.rankers[name]
        tap = bundle.manifest.tower.taps[spec.tap]
        self.name = name
        self.spec: RankHeadSpec = spec
        self.identity = tap.identity
        self._image = engine.open(bundle.path(spec.image))
        text = engine.open(bundle.path(spec.text.graph))
        problems = _contract_problems(self._image, text, spec, tap.shape)
        if problems:
            raise BundleError(
                f"The graphs of the head {name!r} do not fit the manifest:",
                remedy="Export the checkpoint again.",
                problems=problems,
            )
        self.text = TextTower(spec.text, text, bundle.path(spec.tokenizer))

    def embed_image(self, image: EncodedImage) -> Floats:
        """``[width]`` float32 of length 1.

        Raises:
            InputError: another tower encoded the picture.
            EngineError: the embedding is not finite.
        """
        found = image.identities.get(self.spec.tap)
        if found != self.identity:
            raise InputError(
                f"{image.name}: this encoded image comes from another tower "
                f"({(found or 'no such tap')[:12]}, this bundle's is {self.identity[:12]}).",
                remedy="Encode the picture with this model.",
            )
        tap = np.ascontiguousarray(image.taps[self.spec.tap], np.float32)
        embedding: Floats = self._image.run({self.spec.tap: tap[None]})["image_embeds"][0]
        if not np.isfinite(embedding).all():
            raise EngineError(
                f"The embedding of {image.name} is not finite.",
                remedy="Check the head with `primelens verify`.",
            )
        return embedding

    def embed_text(self, texts: Sequence[str]) -> Floats:
        """``[N, width]`` float32 of length 1, one row per text; no text gives no row.

        Raises:
            PromptError: a text is empty.
        """
        for text in texts:
            if not _says_something(text):
                raise PromptError(f"The text {text!r} is empty.", remedy="Give some text.")
        if not texts:
            return np.zeros((0, self.spec.width), np.float32)
        return self.text.embed(texts)

    def embed_labels(
        self, labels: Sequence[str], template: str | Sequence[str] | None = None
    ) -> Floats:
        """``[N, width]`` float32 of length 1, one row per label.

        Args:
            labels: names of what may be in the picture.
            template: prompts with a place ``{}`` for the label; of several, the label's embedding
                is the mean of the prompts' embeddings, brought to length 1 again. None takes the
                head's own, or the bare label where it has none.

        Raises:
            PromptError: a label is empty.
            OptionError: a template has no one place for the label.
        """
        templates = self._templates(template)
        for label in labels:
            if not _says_something(label):
                raise PromptError(f"The label {label!r} is empty.", remedy="Give some text.")
        prompts = [template.replace("{}", label) for label in labels for template in templates]
        embeds = self.embed_text(prompts)
        if len(templates) == 1:
            return embeds
        grouped = embeds.reshape(len(labels), len(templates), -1).astype(np.float64)
        means = grouped.mean(axis=1)
        lengths = np.sqrt((means * means).sum(axis=1, keepdims=True))
        unit: Floats = (means / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
        return unit

    def _templates(self, template: str | Sequence[str] | None) -> Sequence[str]:
        if template is None:
            return self.spec.templates or ("{}",)
        templates = [template] if isinstance(template, str) else list(template)
        for one in templates:
            if not _says_something(one) or one.count("{}") != 1:
                raise OptionError(
                    f"The template {one!r} must have one place {{}} for the label.",
                    remedy="For example: 'a photo of a {}.'",
                )
        if not templates:
            raise OptionError("The list of templates is empty.", remedy="Give one, or None.")
        return templates

    def scores(self, image: Floats, texts: Floats) -> NDArray[np.float64]:
        """``[N]`` scores of texts ``[N, width]`` against one picture ``[width]``."""
        # Row by row and not as a product of matrices, whose rounding would depend on N.
        cosines = (texts.astype(np.float64) * image.astype(np.float64)).sum(axis=1)
        found: NDArray[np.float64] = self.spec.scale * cosines + self.spec.bias
        return found

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the scores ``[N]`` of one picture: they sum to 1 (softmax), or each stands alone."""
        if self.spec.scoring == "sigmoid":
            small = np.exp(-np.abs(scores))
            return np.where(scores >= 0, 1 / (1 + small), small / (1 + small))
        weights = np.exp(scores - scores.max())
        found: NDArray[np.float64] = weights / weights.sum()
        return found

    def rank(
        self,
        images: Sequence[EncodedImage],
        labels: Sequence[str],
        template: str | Sequence[str] | None = None,
    ) -> list[Ranking]:
        """The labels by falling score, for every picture; equal scores in the given order.

        Raises:
            InputError: there is no label, or another tower encoded a picture.
            PromptError, OptionError: a label or a template is not usable.
        """
        if isinstance(labels, str) or not labels:
            raise InputError(
                "There is no list of labels to rank." if labels else "There are no labels to rank.",
                remedy="Give a list of texts.",
            )
        start = time.perf_counter()
        texts = self.embed_labels(labels, template)
        seconds = time.perf_counter() - start
        return [self._ranking(image, labels, texts, seconds) for image in images]

    def _ranking(
        self, image: EncodedImage, labels: Sequence[str], texts: Floats, seconds: float
    ) -> Ranking:
        start = time.perf_counter()
        scores = self.scores(self.embed_image(image), texts)
        probabilities = self.probabilities(scores)
        order = np.argsort(-scores, kind="stable")
        connector = time.perf_counter() - start
        return Ranking(
            labels=tuple(
                RankedLabel(labels[i], float(scores[i]), float(probabilities[i]), int(i))
                for i in order
            ),
            scoring=self.spec.scoring,
            timings=image.timings.plus(connector=connector, prefill=seconds),
            image=image.name,
            cache=image.cache,
        )


def _contract_problems(
    image: Graph, text: Graph, spec: RankHeadSpec, tap: tuple[int, ...]
) -> list[str]:
    """Where the graphs differ from ARCHITECTURE.md, "Graph contract"."""
    ids = {"input_ids": (None, None), "attention_mask": (None, None)}
    embeds = (None, spec.width)
    return [
        *differences("image input", {spec.tap: (None, *tap)}, _shapes(image.inputs)),
        *differences("image output", {"image_embeds": embeds}, _shapes(image.outputs)),
        *differences("text input", dict(ids), _shapes(text.inputs)),
        *differences("text output", {"text_embeds": embeds}, _shapes(text.outputs)),
    ]


def _shapes(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int | None, ...]]:
    return {name: tensor.shape for name, tensor in specs.items()}


def _says_something(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())
