"""The gate: the shipped runtime, on the bundle as it will be shipped, against the source model.

What is compared, in the order data flows, so that the first finding is the cause and not a
consequence:

1. **pixels**: the bundle's preprocessing against the source's image processor, bit for bit;
2. **tap**: the tower's output, picture by picture, and the same pictures as one batch;
3. **prefill**: logits after every token of the source's own text, in one ragged call with two rows
   per picture (so that padding, the fold of rows onto pictures, and logits of chosen rows are all
   in use);
4. **steps**: greedy decoding token by token, of forced length, in a batch and alone;
5. **natural**: greedy decoding to its natural end, tokens and text; and decoding as the
   checkpoint's generation_config has it (beams, penalties), where it asks for more than greedy.

A float32 bundle passes when taps and logits are within a few times the *source's own* float32
rounding error (measured against a float64 run of the source) and all tokens are equal; a token may
differ only where the float64 source itself holds both candidates closer together than that bound:
a tie, which is counted. A quantised bundle
cannot be that close: it passes with the same pixels, a top-1 agreement of at least 99 % over the
forced steps (95 % where decoders have 4 bits), steps that agree with its own prefill, and results
that do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.options import DecodingOptions
from primelens.engine import Graph
from primelens.engine_onnx import OnnxEngine
from primelens.export.answers import Answers, Compared
from primelens.export.options import GateOptions
from primelens.model import Model, load
from primelens.options import CaptionOptions, LoadOptions
from primelens.results import Caption, EncodedImage
from primelens.video import preprocessed

__all__ = ["NOISE_FACTOR", "GateReport", "RecordingEngine", "limit_of", "run_gate", "worst"]

Array = NDArray[Any]

NOISE_FACTOR = 8.0  # how many times the source's own rounding error is still rounding
_FLOOR = 2.0**-21  # of a tensor's spread: for models so small that float32 rounding hardly shows


@dataclass
class GateReport:
    """What the gate found.

    Attributes:
        failures: one line per finding, the first stage that failed only; empty when passed.
        measured: what goes into the manifest's parity block.
        encoded: the pictures as the bundle encodes them.
        natural: of a quantised bundle, each picture's default continuation and the ``[n, V]``
            logits before each of its tokens.
        found: of a rank head, what the bundle said: "image", "text" and "scores".
    """

    failures: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    encoded: list[EncodedImage] = field(default_factory=list)
    natural: list[tuple[list[int], Array]] = field(default_factory=list)
    found: dict[str, Array] = field(default_factory=dict)


class RecordingEngine(OnnxEngine):
    """Remembers the graphs it opened, by file name, so that the gate can question them directly."""

    def __init__(self, threads: int | None) -> None:
        super().__init__(threads=threads)
        self.graphs: dict[str, Graph] = {}

    def open(self, path: Path) -> Any:
        graph = super().open(path)
        self.graphs[path.name] = graph
        return graph


def run_gate(folder: Path, head: str, answers: Answers, options: GateOptions) -> GateReport:
    """Compare the bundle in ``folder`` with what the source said.

    Args:
        folder: a complete bundle.
        head: which of its heads.
        answers: of the source model to the same head.
        options: threads of the engine, and the least agreement of a quantised bundle.
    """
    engine = RecordingEngine(options.threads)
    model = load(folder, options=LoadOptions(threads=options.threads, check="size"), engine=engine)
    gate = _Gate(model, engine.graphs, head, answers)
    gate.agreement = options.least_agreement(gate.precision)
    return gate.run()


class _Gate:
    agreement = 0.99

    def __init__(self, model: Model, graphs: dict[str, Graph], head: str, answers: Answers) -> None:
        self._model, self._graphs, self._answers = model, graphs, answers
        self._name = head
        self._head = model.manifest.writers[head]
        self.precision = self._head.precision
        self._exact = self.precision == "fp32"
        self._plain = DecodingOptions(ignore=tuple(self._head.generation.settings))
        self._report = GateReport()
        self._offset = len(self._head.generation.start_tokens) - 1  # logits before the first token
        self._ties = 0
        self._compared_tokens = 0

    def run(self) -> GateReport:
        """All stages until one fails."""
        report = self._report
        self._model.head(name=self._name)  # opens its graphs
        stages = [self._prefill, self._steps, self._natural]
        if self._answers.encoded is None:
            stages = [self._pixels, self._tap, *stages]
        else:
            report.encoded = list(self._answers.encoded)
        for stage in stages:
            report.failures = stage()
            if report.failures:
                break
        report.measured["ties"] = self._ties
        report.measured["tokens_compared"] = self._compared_tokens
        return report

    # Stages ------------------------------------------------------------------------------------

    def _pixels(self) -> list[str]:
        failures = []
        for k, picture in enumerate(self._answers.pictures):
            found = preprocessed(self._model.preprocessing, picture)
            wanted = self._answers.pixels[k]
            if found.shape != wanted.shape:
                failures.append(f"picture {k}, pixels: shape {found.shape}, source {wanted.shape}")
            elif not np.array_equal(found, wanted):
                failures.append(f"picture {k}, pixels: {worst(found, wanted)}; they must be equal")
        self._report.measured["pixels"] = {
            "pictures": len(self._answers.pictures),
            "equal": not failures,
        }
        return failures

    def _tap(self) -> list[str]:
        wanted = self._answers.tap
        self._report.encoded = [self._model.encode(p) for p in self._answers.pictures]
        found = np.stack([image.taps[self._head.tap] for image in self._report.encoded])
        failures = self._close(f"tap {self._head.tap}", found, wanted, "tap")
        graph = self._model.manifest.tower.graph
        assert graph is not None
        pixels = self._answers.pixels
        pixels = pixels.reshape(-1, *pixels.shape[-3:])  # of videos, all frames as one batch
        batch = self._graphs[graph].run({"pixel_values": pixels})[self._head.tap]
        batch = batch.reshape(found.shape)
        moved = np.abs(batch - found).reshape(len(found), -1).max(axis=1)
        self._report.measured["tap"]["largest_change_by_batch"] = float(moved.max())
        for k in np.flatnonzero(~(moved <= limit_of(wanted))):
            failures.append(f"picture {k}: its tap moves by {moved[k]:.3g} in a batch")
        return failures

    def _prefill(self) -> list[str]:
        inputs = self._answers.inputs
        count, width = inputs.shape
        lengths = np.repeat(np.full(count, width), 2)
        lengths[1::2] = np.maximum(1, width - 1 - np.arange(count) % max(width - 1, 1))
        rows = np.repeat(inputs, 2, axis=0)
        found = self._run_prefill(rows, lengths)
        owner = np.repeat(np.arange(2 * count), lengths)
        step = np.concatenate([np.arange(n) for n in lengths])
        wanted = Compared(*(values[owner // 2, step] for values in _both(self._answers.logits)))
        names = [f"{self._label(k // 2)}, step {s}" for k, s in zip(owner, step, strict=True)]
        if self._exact:
            return self._close("logits", found, wanted, "logits", names)
        return self._agreement(found, wanted, names)

    def _run_prefill(self, rows: Array, lengths: Array) -> Array:
        """Logits after every token of the rows, by the runtime's own session."""
        head = self._model.head(name=self._name)
        tokens, encoded = np.ascontiguousarray(rows, np.int64), self._report.encoded
        per = self._answers.per_picture
        asked = self._answers.questions
        texts = [asked[k * per : (k + 1) * per] for k in range(len(encoded))] if asked else None
        return head.prefill_logits(encoded, tokens, lengths.astype(np.int64), texts)

    def _label(self, row: int) -> str:
        """What a row of the answers is called."""
        per = self._answers.per_picture
        if not self._answers.questions:
            return f"picture {row}"
        asked = self._answers.questions[row]
        said = "unasked" if asked is None else repr(asked)
        return f"question {row} (picture {row // per}, {said})"

    def _written(self, options: CaptionOptions) -> list[Caption]:
        """What the bundle writes about all pictures, or all questions, in one batch."""
        asked, encoded = self._answers.questions, self._report.encoded
        if not asked:
            return self._model.caption(encoded, options)
        per = self._answers.per_picture
        pairs = [(encoded[row // per], question) for row, question in enumerate(asked)]
        written = list(self._model.answer_batch(pairs, options, batch_size=len(pairs)))
        return [item for item in written if isinstance(item, Caption)]  # no picture has to be read

    def _first(self, options: CaptionOptions) -> Caption:
        """The first of them by itself."""
        asked, image = self._answers.questions, self._report.encoded[0]
        if not asked or asked[0] is None:
            return self._model.caption(image, options)
        return self._model.answer(image, asked[0], options)

    def _steps(self) -> list[str]:
        answers = self._answers
        steps = len(answers.forced[0])
        options = CaptionOptions(
            max_new_tokens=steps, min_new_tokens=steps, head=self._name, decoding=self._plain
        )
        batch, alone = self._written(options), self._first(options)
        if self._exact:
            failures = []
            for k, (caption, wanted) in enumerate(zip(batch, answers.forced, strict=True)):
                failures += self._same_tokens(self._label(k), caption, wanted, forced=True)
            name = f"{self._label(0)} by itself"
            return failures + self._same_tokens(name, alone, answers.alone, forced=True)
        equal = sum(
            a == b
            for caption, wanted in zip(batch, answers.forced, strict=True)
            for a, b in zip(caption.tokens, wanted, strict=True)
        )
        if self._head.generation != answers.generation:  # its greedy text cannot tell
            return [f"generation: {self._head.generation}, the source's is {answers.generation}"]
        self._report.measured["greedy_tokens_equal"] = equal / (len(batch) * len(batch[0].tokens))
        return self._consistent(batch, alone)

    def _natural(self) -> list[str]:
        answers, failures = self._answers, []
        captions = self._written(CaptionOptions(head=self._name, decoding=self._plain))
        if not self._exact:
            equal = [
                list(c.tokens) == list(t) for c, t in zip(captions, answers.natural, strict=True)
            ]
            self._report.measured["natural_texts_equal"] = sum(equal) / len(equal)
            head = self._model.head(name=self._name)
            for row, caption in enumerate(captions):
                image = self._report.encoded[row // answers.per_picture]
                tokens = list(caption.tokens)
                logits = head.forced_logits(image, tokens, caption.question)
                self._report.natural.append((tokens, logits))
            return []
        for k, (caption, wanted) in enumerate(zip(captions, answers.natural, strict=True)):
            found = self._same_tokens(f"{self._label(k)}, default decoding", caption, wanted)
            failures += found
            same = list(caption.tokens) == list(wanted)
            if same and caption.text != answers.texts[k]:
                failures.append(
                    f"{self._label(k)}: text {caption.text!r}, the source says {answers.texts[k]!r}"
                )
        return failures + self._by_default()

    def _by_default(self) -> list[str]:
        """Beams, penalties and whatever else the checkpoint's generation_config asks for."""
        if self._answers.default is None:
            return []
        captions = self._written(CaptionOptions(head=self._name))
        pairs = list(zip(captions, self._answers.default, strict=True))
        settings = dict(self._head.generation.settings)
        self._report.measured["default_settings"] = {"settings": settings, "pictures": len(pairs)}
        return [
            f"{self._label(k)}, decoding by {settings}: the source says {list(wanted)}, the bundle "
            f"{list(caption.tokens)}"
            for k, (caption, wanted) in enumerate(pairs)
            if list(caption.tokens) != list(wanted)
        ]

    # Comparisons -------------------------------------------------------------------------------

    def _close(
        self,
        what: str,
        found: Array,
        wanted: Compared,
        key: str,
        names: Sequence[str] | None = None,
    ) -> list[str]:
        """Within the bound, row by row; one line for each of the first rows that are not."""
        limit = limit_of(wanted)
        if found.shape != wanted.double.shape:
            return [f"{what}: shape {found.shape}, the source's is {wanted.double.shape}"]
        distance = np.abs(found - wanted.double)
        self._report.measured[key] = {
            "values": int(found.size),
            "largest_error": float(np.abs(found - wanted.single).max()),
            "largest_error_to_float64": float(distance.max()),
            "source_rounding": wanted.noise,
            "limit": limit,
            "spread": wanted.spread,
        }
        if not self._exact:
            relative = float(np.sqrt((distance**2).mean()) / wanted.spread)
            self._report.measured[key]["relative_rms_error"] = relative
            return [] if np.isfinite(found).all() else [f"{what}: not finite"]
        failures = []
        for row in range(len(found)):
            if not distance[row].max() <= limit:  # also true for NaN
                name = f"picture {row}" if names is None else names[row]
                off = worst(found[row], wanted.double[row])
                failures.append(f"{what}, {name}: {off}; limit {limit:.3g}")
        return failures[:8]

    def _agreement(self, found: Array, wanted: Compared, names: Sequence[str]) -> list[str]:
        equal = found.argmax(axis=1) == wanted.double.argmax(axis=1)
        share = float(equal.mean())
        distance = found - wanted.double
        self._report.measured["logits"] = {
            "positions": len(equal),
            "top1_agreement": share,
            "largest_error": float(np.abs(distance).max()),
            "relative_rms_error": float(np.sqrt((distance**2).mean()) / wanted.spread),
            "spread": wanted.spread,
        }
        if share >= self.agreement:
            return []
        at = int(np.flatnonzero(~equal)[0])
        source, bundle = int(wanted.double[at].argmax()), int(found[at].argmax())
        line = (
            f"top-1 agreement is {share:.4f} over {len(equal)} positions, below {self.agreement}; "
        )
        return [f"{line}first at {names[at]}: source {source}, bundle {bundle}"]

    def _same_tokens(
        self, name: str, caption: Caption, wanted: Sequence[int], *, forced: bool = False
    ) -> list[str]:
        found = list(caption.tokens)
        step = _first_difference(found, wanted)
        if step is None:
            self._compared_tokens += len(wanted)
            return []
        a = wanted[step] if step < len(wanted) else None
        b = found[step] if step < len(found) else None
        row = int(name.split()[1].rstrip(","))
        if forced and a is not None and b is not None:
            exact = self._answers.logits.double[row, self._offset + step]
            margin = float(exact[a] - exact[b])
            if abs(margin) <= limit_of(self._answers.logits):
                self._ties += 1
                self._compared_tokens += step
                return []
        elif self._is_prefix_tie(row, step, a, b):
            self._ties += 1
            self._compared_tokens += step
            return []
        said = f"the source says {self._show(a)}, the bundle {self._show(b)}"
        return [f"{name}, step {step}: {said} (after {list(wanted[:step])[-4:]})"]

    def _is_prefix_tie(self, row: int, step: int, a: int | None, b: int | None) -> bool:
        """Natural text follows the forced one up to its end token: the same logits decide."""
        natural = list(self._answers.natural[row][:step])
        if a is None or b is None or natural != list(self._answers.forced[row][:step]):
            return False
        if self._offset + step >= self._answers.logits.double.shape[1]:
            return False
        exact = self._answers.logits.double[row, self._offset + step]
        return abs(float(exact[a] - exact[b])) <= limit_of(self._answers.logits)

    def _show(self, token: int | None) -> str:
        if token is None:
            return "nothing more"
        return f"{token} ({self._model.head(name=self._name).text.piece(token)!r})"

    def _consistent(self, batch: Sequence[Caption], alone: Caption) -> list[str]:
        """A quantised bundle against itself: steps against prefill, batch against single.

        Rounding activations turns a last-bit difference of two float32 paths into a step of the
        grid, so two candidates within the measured quantisation error are a tie here.
        """
        measured = self._report.measured["logits"]
        bound = 2 * measured["relative_rms_error"] * measured["spread"]
        start = list(self._head.generation.start_tokens)
        rows = np.array([start + list(c.tokens[:-1]) for c in batch], np.int64)
        count, width = rows.shape
        logits = self._run_prefill(rows, np.full(count, width))
        logits[:, list(self._head.generation.eos_tokens)] = -np.inf
        logits = logits.reshape(count, width, -1)[:, self._offset :]
        failures = []
        for k, caption in enumerate(batch):
            taken = logits[k, np.arange(len(caption.tokens)), list(caption.tokens)]
            margins = logits[k].max(axis=1) - taken
            self._ties += int(((margins > 0) & (margins <= bound)).sum())
            for step in np.flatnonzero(~(margins <= bound))[:1]:
                line = f"steps and prefill disagree by {margins[step]:.3g}; limit {bound:.3g}"
                failures.append(f"{self._label(k)}, step {step}: {line}")
        step = _first_difference(batch[0].tokens, alone.tokens)
        if step is not None:
            pair = [batch[0].tokens[step], alone.tokens[step]]
            margin = float(np.ptp(logits[0, step, pair]))
            self._ties += 1
            if not margin <= bound:
                failures.append(
                    f"{self._label(0)}, step {step}: the batch moves its logits by {margin:.3g}"
                )
        return failures


def limit_of(wanted: Compared) -> float:
    """How far a value may be from the float64 source's."""
    return max(NOISE_FACTOR * wanted.noise, _FLOOR * wanted.spread)


def _both(compared: Compared) -> tuple[Array, Array]:
    return compared.single, compared.double


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))


def worst(found: Array, wanted: Array) -> str:
    """Where two arrays differ most, and how far."""
    distance = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    distance[~np.isfinite(distance)] = np.inf
    place = np.unravel_index(int(distance.argmax()), distance.shape)
    index = ", ".join(str(int(i)) for i in place)
    return (
        f"[{index}] is {float(found[place]):.7g}, expected {float(wanted[place]):.7g} "
        f"(off by {float(distance[place]):.3g})"
    )
