"""A head that ranks, at work: scores of texts against pictures, and the embeddings they come from.

Nothing here depends on the other pictures or texts of a call: every picture is projected by
itself, every text is padded to a length of its own, and every score is a sum of its own, in
float64. Probabilities by softmax are shared among the labels of one ranking, of course.

A head may have two scores: "itc" compares embeddings; "itm" reads picture and text together, for
each pair anew (`primelens.matching`). So the first may choose what the second ranks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from primelens.bundle import Bundle
from primelens.engine import Engine, Graph
from primelens.errors import BundleError, EngineError, InputError, OptionError, PromptError
from primelens.head import differences
from primelens.manifest import RankHeadSpec
from primelens.matching import Matcher, shapes
from primelens.options import RankOptions
from primelens.results import EncodedImage, RankedLabel, Ranking
from primelens.text_tower import TextTower

if TYPE_CHECKING:
    from primelens.store.derived import DerivedTensors

__all__ = ["RankHead"]

Floats = NDArray[np.float32]


class RankHead:
    """One rank head of a bundle; thread-safe.

    Args:
        bundle: where its files lie.
        name: its name in the manifest.
        engine: opens its graphs.
        derived: where what a matching reads of pictures is held, if anywhere.

    Raises:
        BundleError: its graphs do not fit the manifest.
    """

    def __init__(
        self, bundle: Bundle, name: str, engine: Engine, derived: DerivedTensors | None = None
    ) -> None:
        spec = bundle.manifest.rankers[name]
        tap = bundle.manifest.tower.taps[spec.tap]
        self.name = name
        self.spec: RankHeadSpec = spec
        self.identity = tap.identity
        self._image = engine.open(bundle.path(spec.image))
        text = engine.open(bundle.path(spec.text.graph))
        self.text = TextTower(spec.text, text, bundle.path(spec.tokenizer))
        self._matcher = self._open_matcher(bundle, engine, tap.shape, derived)
        problems = _contract_problems(self._image, text, spec, tap.shape)
        problems += [] if self._matcher is None else self._matcher.problems()
        if problems:
            raise BundleError(
                f"The graphs of the head {name!r} do not fit the manifest:",
                remedy="Export the checkpoint again.",
                problems=problems,
            )

    def _open_matcher(
        self, bundle: Bundle, engine: Engine, tap: tuple[int, ...], derived: DerivedTensors | None
    ) -> Matcher | None:
        matching = self.spec.matching
        if matching is None:
            return None
        digest = bundle.manifest.files[matching.connector].sha256
        return Matcher(
            engine.open(bundle.path(matching.connector)),
            engine.open(bundle.path(matching.graph)),
            self.text,
            (self.spec.tap, tap),
            None if derived is None else derived.tier(self.spec.digest, digest),
        )

    @property
    def matches(self) -> bool:
        """Whether the head has an "itm" score."""
        return self._matcher is not None

    def embed_image(self, image: EncodedImage) -> Floats:
        """``[width]`` float32 of length 1.

        Raises:
            InputError: another tower encoded the picture.
            EngineError: the embedding is not finite.
        """
        self._check(image)
        tap = np.ascontiguousarray(image.taps[self.spec.tap], np.float32)
        embedding: Floats = self._image.run({self.spec.tap: tap[None]})["image_embeds"][0]
        if not np.isfinite(embedding).all():
            raise EngineError(
                f"The embedding of {image.name} is not finite.",
                remedy="Check the head with `primelens verify`.",
            )
        return embedding

    def _check(self, image: EncodedImage) -> None:
        found = image.identities.get(self.spec.tap)
        if found != self.identity:
            raise InputError(
                f"{image.name}: this encoded image comes from another tower "
                f"({(found or 'no such tap')[:12]}, this bundle's is {self.identity[:12]}).",
                remedy="Encode the picture with this model.",
            )

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
        prompts = self._prompts(labels, templates)
        embeds = self.embed_text(prompts)
        if len(templates) == 1:
            return embeds
        grouped = embeds.reshape(len(labels), len(templates), -1).astype(np.float64)
        means = grouped.mean(axis=1)
        lengths = np.sqrt((means * means).sum(axis=1, keepdims=True))
        unit: Floats = (means / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
        return unit

    def _prompts(self, labels: Sequence[str], templates: Sequence[str]) -> list[str]:
        """Label by label, each in every template."""
        for label in labels:
            if not _says_something(label):
                raise PromptError(f"The label {label!r} is empty.", remedy="Give some text.")
        return [template.replace("{}", label) for label in labels for template in templates]

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
        """``[N]`` "itc" scores of texts ``[N, width]`` against one picture ``[width]``."""
        # Row by row and not as a product of matrices, whose rounding would depend on N.
        cosines = (texts.astype(np.float64) * image.astype(np.float64)).sum(axis=1)
        found: NDArray[np.float64] = self.spec.scale * cosines + self.spec.bias
        return found

    def match_logits(self, image: EncodedImage, texts: Sequence[str]) -> Floats:
        """``[N, 2]`` float32: for every text that picture and text do not match, and that they do.

        Raises:
            OptionError: the head has no matching.
            InputError: another tower encoded the picture.
        """
        if self._matcher is None:
            raise OptionError(
                f"The head {self.name!r} compares embeddings and has no 'itm' score.",
                remedy="Rank by score 'itc', without a preselection.",
            )
        self._check(image)
        return self._matcher.logits(image, texts)

    def match_scores(
        self,
        image: EncodedImage,
        labels: Sequence[str],
        template: str | Sequence[str] | None = None,
    ) -> NDArray[np.float64]:
        """``[N]`` "itm" scores: the logit of a match less the other one.

        A label in several prompts has the mean of their scores.
        """
        templates = self._templates(template)
        logits = self.match_logits(image, self._prompts(labels, templates)).astype(np.float64)
        scores = (logits[:, 1] - logits[:, 0]).reshape(len(labels), len(templates))
        found: NDArray[np.float64] = scores.mean(axis=1)
        return found

    def probabilities(
        self, scores: NDArray[np.float64], score: Literal["itm", "itc"] = "itc"
    ) -> NDArray[np.float64]:
        """Of the scores ``[N]`` of one picture: they sum to 1 (softmax), or each stands alone."""
        if self._scoring(score) == "sigmoid":
            small = np.exp(-np.abs(scores))
            return np.where(scores >= 0, 1 / (1 + small), small / (1 + small))
        weights = np.exp(scores - scores.max())
        found: NDArray[np.float64] = weights / weights.sum()
        return found

    def _scoring(self, score: Literal["itm", "itc"]) -> Literal["softmax", "sigmoid"]:
        # The softmax of two logits is the sigmoid of their difference.
        return "sigmoid" if score == "itm" else self.spec.scoring

    def rank(
        self,
        images: Sequence[EncodedImage],
        labels: Sequence[str],
        template: str | Sequence[str] | None = None,
        options: RankOptions = RankOptions(),  # noqa: B008 - frozen, hence safe to share
    ) -> list[Ranking]:
        """The labels by falling score, for every picture; equal scores in the given order.

        Raises:
            InputError: there is no label, or another tower encoded a picture.
            PromptError, OptionError: a label, a template or an option is not usable.
        """
        if isinstance(labels, str) or not labels:
            raise InputError(
                "There is no list of labels to rank." if labels else "There are no labels to rank.",
                remedy="Give a list of texts.",
            )
        if not self.matches and (options.score == "itm" or options.preselect is not None):
            raise OptionError(
                f"The head {self.name!r} compares embeddings and has no 'itm' score.",
                remedy="Rank by score 'itc', without a preselection.",
            )
        matched = self.matches and options.score != "itc"
        start = time.perf_counter()
        texts = None
        if not matched or options.preselect is not None:
            texts = self.embed_labels(labels, template)
        seconds = time.perf_counter() - start
        rankings = []
        for image in images:
            found = self._compared(image, labels, texts, seconds) if texts is not None else None
            if matched:
                found = self._matched(image, labels, template, (options.preselect, found))
            assert found is not None
            rankings.append(found)
        return rankings

    def _compared(
        self, image: EncodedImage, labels: Sequence[str], texts: Floats, seconds: float
    ) -> Ranking:
        """By "itc"."""
        start = time.perf_counter()
        scores = self.scores(self.embed_image(image), texts)
        ranked = self._ranked(labels, range(len(labels)), scores, "itc")
        connector = time.perf_counter() - start
        return Ranking(
            labels=ranked,
            scoring=self.spec.scoring,
            timings=image.timings.plus(connector=connector, prefill=seconds),
            image=image.name,
            cache=image.cache,
        )

    def _matched(
        self,
        image: EncodedImage,
        labels: Sequence[str],
        template: str | Sequence[str] | None,
        chosen: tuple[int | None, Ranking | None],
    ) -> Ranking:
        """By "itm"; ``chosen``: how many labels at most, and their order by "itc" if it counts."""
        start = time.perf_counter()
        count, compared = chosen
        places = list(range(len(labels)))
        if compared is not None:
            places = sorted(label.index for label in compared.labels[:count])
        scores = self.match_scores(image, [labels[place] for place in places], template)
        ranked = self._ranked(labels, places, scores, "itm")
        timings = image.timings if compared is None else compared.timings
        return Ranking(
            labels=ranked,
            scoring=self._scoring("itm"),
            timings=timings.plus(step=time.perf_counter() - start),
            image=image.name,
            cache=image.cache,
            score="itm",
        )

    def _ranked(
        self,
        labels: Sequence[str],
        places: Sequence[int],
        scores: NDArray[np.float64],
        score: Literal["itm", "itc"],
    ) -> tuple[RankedLabel, ...]:
        """The labels at ``places`` by falling score."""
        probabilities = self.probabilities(scores, score)
        return tuple(
            RankedLabel(labels[places[i]], float(scores[i]), float(probabilities[i]), places[i])
            for i in np.argsort(-scores, kind="stable")
        )


def _contract_problems(
    image: Graph, text: Graph, spec: RankHeadSpec, tap: tuple[int, ...]
) -> list[str]:
    """Where the graphs differ from ARCHITECTURE.md, "Graph contract"."""
    ids = {"input_ids": (None, None), "attention_mask": (None, None)}
    embeds = (None, spec.width)
    return [
        *differences("image input", {spec.tap: (None, *tap)}, shapes(image.inputs)),
        *differences("image output", {"image_embeds": embeds}, shapes(image.outputs)),
        *differences("text input", dict(ids), shapes(text.inputs)),
        *differences("text output", {"text_embeds": embeds}, shapes(text.outputs)),
    ]


def _says_something(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())
