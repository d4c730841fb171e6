"""The gate of rank heads: the shipped runtime against the source's own ``forward``.

Compared in the order data flows, so that the first finding is the cause:

1. **pixels**, bit for bit, and the **tap**, alone and as one batch;
2. **ids** of texts, short, long and cut, against the source's own tokenizer;
3. **image** and **text** embeddings, texts of mixed lengths; a text by itself and among others has
   the same bits, and so has a picture;
4. **scores** of every picture and text, and their **order** for every picture; so too the logits
   of a **matching**, with the bits of every pair by itself and among others.

A float32 bundle passes when all values are within a few times the source's own float32 rounding
error, measured against a float64 run, and the order is the source's; two texts may change places
only where float64 itself holds their scores closer together than that bound: a tie, which is
counted. A quantised bundle passes with the same pixels and ids, with the best text of at least the
asked share of pictures and the best picture of that share of texts, and with results that do not
depend on companions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from primelens.export.answers import Compared
from primelens.export.gate import GateReport, RecordingEngine, limit_of, worst
from primelens.export.options import GateOptions
from primelens.export.rank_answers import RankAnswers
from primelens.model import Model, load
from primelens.options import LoadOptions, RankOptions

__all__ = ["rank_matrix", "run_rank_gate"]

Array = NDArray[Any]


def run_rank_gate(
    folder: Path, head: str, answers: RankAnswers, options: GateOptions
) -> GateReport:
    """Compare a rank head of the bundle in ``folder`` with what the source said.

    Args:
        folder: a complete bundle.
        head: which of its heads.
        answers: of the source model to the same head.
        options: threads of the engine, and the least agreement of a quantised bundle.
    """
    engine = RecordingEngine(options.threads)
    model = load(folder, options=LoadOptions(threads=options.threads, check="size"), engine=engine)
    return _RankGate(model, engine, head, answers, options).run()


def rank_matrix(model: Model, head: str, images: Array, texts: Array) -> Array:
    """``[K, N]`` scores of embeddings, as the head computes them."""
    ranker = model.rank_head(head)
    return np.stack([ranker.scores(image, texts) for image in images])


class _RankGate:
    def __init__(
        self,
        model: Model,
        engine: RecordingEngine,
        head: str,
        answers: RankAnswers,
        options: GateOptions,
    ) -> None:
        self._model, self._engine, self._answers = model, engine, answers
        self._name, self._options = head, options
        self._head = model.rank_head(head)
        self._exact = self._head.spec.precision == "fp32"
        self._report = GateReport()
        self._found: dict[str, Array] = {}

    def run(self) -> GateReport:
        """All stages until one fails."""
        report = self._report
        stages = [self._settings, self._ids, self._image, self._text, self._scores, self._order]
        if self._answers.match is not None:
            stages += [self._match, self._match_order]
        if self._answers.encoded is None:
            stages = [self._pixels, self._tap, *stages]
        else:
            report.encoded = list(self._answers.encoded)
        report.measured |= {"rankings": 0, "ties": 0}
        for stage in stages:
            report.failures = stage()
            if report.failures:
                break
        report.found = self._found
        return report

    def _settings(self) -> list[str]:
        """What no score shows: how probabilities are made, and of which prompts."""
        return [
            f"{name} is {found}, the source's is {wanted}"
            for name in ("scoring", "templates")
            if (found := getattr(self._head.spec, name)) != (wanted := getattr(self._answers, name))
        ]

    def _pixels(self) -> list[str]:
        answers, failures = self._answers, []
        for k, (picture, wanted) in enumerate(zip(answers.pictures, answers.pixels, strict=True)):
            found = self._model.preprocessing(picture)
            if found.shape != wanted.shape:
                failures.append(f"picture {k}, pixels: shape {found.shape}, source {wanted.shape}")
            elif not np.array_equal(found, wanted):
                failures.append(f"picture {k}, pixels: {worst(found, wanted)}; they must be equal")
        measured = {"pictures": len(answers.pictures), "equal": not failures}
        self._report.measured["pixels"] = measured
        return failures

    def _tap(self) -> list[str]:
        tap, wanted = self._head.spec.tap, self._answers.tap
        self._report.encoded = [self._model.encode(p) for p in self._answers.pictures]
        found = np.stack([image.taps[tap] for image in self._report.encoded])
        failures = self._close("tap", found, wanted, "picture")
        graph = self._model.manifest.tower.graph
        assert graph is not None
        batch = self._engine.graphs[graph].run({"pixel_values": self._answers.pixels})[tap]
        moved = np.abs(batch - found).reshape(len(found), -1).max(axis=1)
        self._report.measured["tap"]["largest_change_by_batch"] = float(moved.max())
        for k in np.flatnonzero(~(moved <= limit_of(wanted))):
            failures.append(f"picture {k}: its tap moves by {moved[k]:.3g} in a batch")
        return failures

    def _ids(self) -> list[str]:
        failures, spec = [], self._head.spec.text
        for text, wanted in zip(self._answers.texts, self._answers.ids, strict=True):
            found = self._head.text.ids(text)
            if spec.pad_to_max:
                padding = [spec.pad_token] * (spec.max_length - len(found))
                found = [*padding, *found] if spec.pad_left else [*found, *padding]
            if found != list(wanted):
                failures.append(
                    f"the ids of {text[:40]!r} are {found}, the source's {list(wanted)}"
                )
        self._report.measured["texts"] = {"compared": len(self._answers.texts)}
        return failures[:4]

    def _image(self) -> list[str]:
        encoded, spec = self._report.encoded, self._head.spec
        found = np.stack([self._head.embed_image(image) for image in encoded])
        self._found["image"] = found
        taps = np.stack([image.taps[spec.tap] for image in encoded])
        batch = self._engine.graphs[spec.image].run({spec.tap: taps})["image_embeds"]
        moved = float(np.abs(batch - found).max())
        failures = self._close("image", found, self._answers.image, "picture")
        self._report.measured["image"]["largest_change_by_batch"] = moved
        if not failures and not moved <= limit_of(self._answers.image):
            failures = [f"an image embedding moves by {moved:.3g} in a batch"]
        return failures

    def _text(self) -> list[str]:
        texts = list(self._answers.texts)
        found = self._head.embed_text(texts)
        self._found["text"] = found
        failures = self._close("text", found, self._answers.text, "text")
        for k, text in enumerate(texts):
            alone = self._head.text.computed([text])[text]
            if not np.array_equal(alone, found[k]):
                moved = float(np.abs(alone - found[k]).max())
                failures.append(f"text {k}: its embedding moves by {moved:.3g} among others")
        return failures

    def _scores(self) -> list[str]:
        found = rank_matrix(self._model, self._name, self._found["image"], self._found["text"])
        self._found["scores"] = found
        return self._close("scores", found, self._answers.scores, "picture")

    def _match(self) -> list[str]:
        texts, encoded = list(self._answers.texts), self._report.encoded
        assert self._answers.match is not None
        found = np.stack([self._head.match_logits(image, texts) for image in encoded])
        self._found["match"] = found
        failures = self._close("match", found, self._answers.match, "picture")
        for k, text in enumerate(texts):
            alone = self._head.match_logits(encoded[0], [text])[0]
            if not np.array_equal(alone, found[0, k]):
                moved = float(np.abs(alone - found[0, k]).max())
                failures.append(f"text {k}: its matching moves by {moved:.3g} among others")
        return failures

    def _match_order(self) -> list[str]:
        assert self._answers.match is not None
        wanted, found = self._answers.match.double, self._found["match"].astype(np.float64)
        # A difference of two logits, each within the limit.
        limit = 2 * limit_of(self._answers.match)
        return self._ordered("itm", wanted[..., 1] - wanted[..., 0], found[..., 1] - found[..., 0],
                             limit)  # fmt: skip

    def _order(self) -> list[str]:
        scores = self._answers.scores
        return self._ordered("itc", scores.double, self._found["scores"], limit_of(scores))

    def _ordered(
        self, score: Literal["itm", "itc"], wanted: Array, found: Array, limit: float
    ) -> list[str]:
        """The texts' order for every picture; ``limit`` is how far a score may be off."""
        measured = self._report.measured
        if not self._exact:
            best = [found.argmax(axis=a) == wanted.argmax(axis=a) for a in (0, 1)]
            share = float(np.concatenate(best).mean())
            measured["top1_agreement"] = min(share, measured.get("top1_agreement", 1.0))
            least = self._options.least_agreement(self._head.spec.precision)
            if share >= least:
                return []
            return [f"{score}: top-1 agreement is {share:.4f}, below {least}"]
        limit, failures, chosen = 2 * limit, [], RankOptions(score)
        for k in range(len(wanted)):
            image = self._report.encoded[k]
            (ranking,) = self._head.rank([image], self._answers.texts, "{}", chosen)
            order = [label.index for label in ranking.labels]
            # Behind a text there may only be one whose float64 score is lower, or as good as equal.
            ordered = wanted[k][order]
            ahead = np.maximum.accumulate(ordered[::-1])[::-1] - ordered
            measured["rankings"] += 1
            measured["ties"] += int(((ahead > 0) & (ahead <= limit)).sum())
            for place in np.flatnonzero(~(ahead <= limit))[:1]:
                text = self._answers.texts[order[place]][:40]
                failures.append(
                    f"{score}, picture {k}: {text!r} stands {ahead[place]:.3g} too high"
                )
        return failures

    def _close(self, what: str, found: Array, wanted: Compared, row: str) -> list[str]:
        """Within the bound, row by row; one line for each of the first rows that are not."""
        limit = limit_of(wanted)
        if found.shape != wanted.double.shape:
            return [f"{what}: shape {found.shape}, the source's is {wanted.double.shape}"]
        distance = np.abs(found - wanted.double)
        self._report.measured[what] = {
            "values": int(found.size),
            "largest_error": float(np.abs(found - wanted.single).max()),
            "largest_error_to_float64": float(distance.max()),
            "source_rounding": wanted.noise,
            "limit": limit,
            "spread": wanted.spread,
        }
        if not self._exact:
            relative = float(np.sqrt((distance**2).mean()) / wanted.spread)
            self._report.measured[what]["relative_rms_error"] = relative
            return [] if np.isfinite(found).all() else [f"{what}: not finite"]
        failures = []
        for k in range(len(found)):
            if not distance[k].max() <= limit:  # also true for NaN
                line = worst(found[k], wanted.double[k])
                failures.append(f"{what}, {row} {k}: {line}; limit {limit:.3g}")
        return failures[:8]
