"""The proof of a reference work: its bundle against its source's own ``generate``, at any size.

`prove_work` makes the checkpoint, lets it through the export's gate (greedy decoding of forced
length in a batch and alone, taps and logits against the source's own rounding), and then decodes
with beams, length penalties and a prompt, alone and in a batch, on both sides.

Texts have to be equal token for token. Where they are not, the source decides in float64: if its
float64 search finds the bundle's text, or holds both texts within its own rounding of each other,
it is a tie and counted; else the proof has failed.

Heads of another kind than captions register what proves them with `prover`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import primelens
from primelens import CaptionOptions, DecodingOptions, LoadOptions
from primelens.errors import GateError, PrimelensError
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.gate import NOISE_FACTOR
from primelens.export.options import ExportOptions, GateOptions
from primelens.export.pictures import random_pictures
from primelens.export.pipeline import export_checkpoint
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import HeadSplit
from primelens.export.work import Work, build

__all__ = ["Case", "Findings", "Proof", "ProofOptions", "Subject", "cases", "prove_work", "prover"]

logger = logging.getLogger("primelens.export")

Array = NDArray[Any]
Tokens = list[int]


@dataclass(frozen=True)
class ProofOptions:
    """How thorough the proof is.

    Attributes:
        pictures: random pictures of the gate, and those that the cases are taken from.
        steps, beam_steps: tokens per text, greedy and with beams.
        beams, penalties: of the beam searches.
        batches: pictures per call.
        prompted: whether the work's prompt is tried too.
        threads: threads of the inference engine and of torch; None leaves both as they are.
        seed: of weights and pictures.
        folder: where checkpoint and bundle are made and left; None for a temporary one.
    """

    pictures: int = 8
    steps: int = 48
    beam_steps: int = 24
    beams: tuple[int, ...] = (3, 5)
    penalties: tuple[float, ...] = (0.6, 1.4)
    batches: tuple[int, ...] = (1, 6)
    prompted: bool = True
    threads: int | None = None
    seed: int = 0
    folder: Path | None = None


@dataclass(frozen=True)
class Case:
    """One way to decode; one beam is greedy decoding."""

    beams: int
    penalty: float
    prompt: str | None
    batch: int

    def __str__(self) -> str:
        how = "greedy" if self.beams == 1 else f"{self.beams} beams, penalty {self.penalty:g}"
        said = "" if self.prompt is None else ", prompted"
        return f"{how}{said}, batch {self.batch}"


def cases(options: ProofOptions, prompt: str | None) -> list[Case]:
    """Greedy at every batch size without and with the prompt, then beams.

    Of all combinations of beams, penalty, prompt and batch every second one is taken, so that,
    where each has two values, every three of them meet in every way.
    """
    prompts = [None] if prompt is None or not options.prompted else [None, prompt]
    found = [Case(1, 1.0, said, batch) for said in prompts for batch in options.batches]
    axes = (options.beams, options.penalties, prompts, options.batches)
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        if sum(places) % 2 == 0:
            beams, penalty, said, batch = (axis[k] for axis, k in zip(axes, places, strict=True))
            found.append(Case(beams, penalty, said, batch))
    return found


@dataclass
class Findings:
    """What was compared at one head, besides the gate."""

    tokens: int = 0
    ties: int = 0
    searches: int = 0
    rankings: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class Proof:
    """What was found, as the table and its JSON have it.

    Attributes:
        work, family, parts, like, notes: of the work.
        architecture: the transformers classes.
        heads: name → kind.
        parameters: of the whole model.
        picture: (height, width).
        tokens: equal tokens, of the gate and of all cases.
        ties: places where float64 holds both texts for equal.
        searches: texts compared that came from a beam search.
        rankings: orders of texts by pictures that were compared.
        errors: "tap" and "logits" → (largest error, limit).
        seconds: wall time of the whole proof.
        failures: one line per finding; empty when proved.
    """

    work: str
    family: str
    parts: tuple[str, ...]
    like: str
    notes: str
    picture: tuple[int, int]
    architecture: str = ""
    heads: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    tokens: int = 0
    ties: int = 0
    searches: int = 0
    rankings: int = 0
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was equal."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {**self.__dict__, "parts": list(self.parts), "picture": list(self.picture)}


@dataclass(frozen=True)
class Subject:
    """One head of a work on both sides, for a prover.

    Attributes:
        work, options: what is proved, and how thoroughly.
        source: the opened checkpoint.
        name, head: the head in the source.
        model: the bundle, loaded.
        pictures: uint8 ``[h, w, 3]`` each.
        pixels: ``[K, 3, H, W]``, preprocessed.
        rounding: of the source's float32 logits, as the gate measured it.
    """

    work: Work
    options: ProofOptions
    source: Checkpoint
    name: str
    head: HeadSplit
    model: Any
    pictures: Sequence[Array]
    pixels: Array
    rounding: float


Prover = Callable[[Subject], Findings]
_PROVERS: dict[str, Prover] = {}
P = TypeVar("P", bound=Prover)


def prover(*kinds: str) -> Callable[[P], P]:
    """Register what proves heads of these kinds, beyond the gate."""

    def register(function: P) -> P:
        for kind in kinds:
            _PROVERS[kind] = function
        return function

    return register


def prove_work(work: Work, options: ProofOptions | None = None) -> Proof:
    """Make, export and compare one work; what differs is in the result's ``failures``."""
    import primelens.export.rank_proof  # noqa: F401 - registers itself here, and imports this module

    options = options or ProofOptions()
    proof = Proof(work.name, work.family, work.parts, work.like, work.notes, work.picture)
    start = time.perf_counter()
    try:
        if options.folder is not None:
            _prove(work, options, options.folder / work.name, proof)
        else:
            with tempfile.TemporaryDirectory(prefix="primelens-proof-") as folder:
                _prove(work, options, Path(folder), proof)
    except GateError as error:
        proof.failures += list(error.problems) or [str(error)]
    except PrimelensError as error:
        proof.failures.append(str(error))
    proof.seconds = round(time.perf_counter() - start, 1)
    return proof


def _prove(work: Work, options: ProofOptions, folder: Path, proof: Proof) -> None:
    with quiet_transformers(), _threads(options.threads):
        checkpoint = build(work.name, folder / "checkpoint", options.seed)
        source = open_checkpoint(checkpoint)
        proof.architecture = source.architecture
        proof.parameters = sum(p.numel() for p in source.model.parameters())
        pictures = random_pictures(options.pictures, work.picture, options.seed)
        pixels = source.preprocessing.batch(pictures)
        split = source.family.split(source.model)
        proof.heads = {name: head.kind for name, head in split.heads.items()}
        for head in split.heads.values():
            _end_some_texts(checkpoint, source, head, pixels, options.steps)
        gate = GateOptions(
            random_images=options.pictures,
            steps=options.steps,
            threads=options.threads,
            seed=options.seed,
        )
        out = folder / "bundle"
        report = export_checkpoint(checkpoint, out, ExportOptions(gate=gate, overwrite=True))
        loading = LoadOptions(threads=options.threads, check="size")
        model = primelens.load(out, options=loading)
        for name, head in source.family.split(source.model).heads.items():
            measured = report.parity["heads"][name]
            _take_gate(proof, measured)
            rounding = float(measured.get("logits", {}).get("source_rounding", 0.0))
            if head.kind not in _PROVERS:
                raise PrimelensError(f"Nothing proves {head.kind} heads beyond the gate.")
            subject = Subject(work, options, source, name, head, model, pictures, pixels, rounding)
            found = _PROVERS[head.kind](subject)
            proof.tokens += found.tokens
            proof.ties += found.ties
            proof.searches += found.searches
            proof.rankings += found.rankings
            proof.failures += [f"head {name}, {line}" for line in found.failures]


def _take_gate(proof: Proof, measured: Mapping[str, Any]) -> None:
    proof.tokens += int(measured.get("tokens_compared", 0))
    proof.ties += int(measured.get("ties", 0))
    proof.rankings += int(measured.get("rankings", 0))
    for key in ("tap", "logits", "image", "text", "scores"):
        if "limit" in measured.get(key, {}):
            found = (measured[key]["largest_error_to_float64"], measured[key]["limit"])
            proof.errors[key] = max(proof.errors.get(key, found), found)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch's thread count, while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Captions ---------------------------------------------------------------------------------------


class Prompting(Protocol):
    """A `Reference` whose ``generate`` can be given the beginning of the text."""

    def generate_after(
        self, pixels: Array, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[Tokens]:
        """Continuations of start tokens and prompt, both cut off; special tokens as configured."""


def _end_some_texts(
    folder: Path, source: Checkpoint, head: HeadSplit, pixels: Array, steps: int
) -> None:
    """Choose an end token that ends some of the texts in their middle, and not all of them.

    Random weights hardly ever choose the end token of their configuration, and texts that all run
    to the limit would leave length penalties without effect.
    """
    if head.kind == "rank" or not hasattr(head.reference, "generate_after"):
        return
    texts = head.reference.generate(pixels, {"max_new_tokens": steps}, plain=True)
    token = end_token(texts)
    if token is None:
        return
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["eos_token_id"] = token
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    source.model.generation_config.eos_token_id = token


def end_token(texts: Sequence[Sequence[int]]) -> int | None:
    """A token that ends some of ``texts`` early, not before three others, and not all of them."""
    for token in dict.fromkeys(token for text in texts for token in text):
        places = [list(text).index(token) for text in texts if token in text]
        if len(places) < len(texts) and min(places) >= 3:
            return token
    return None


@prover("caption")
def prove_captions(subject: Subject) -> Findings:
    """All `cases` on both sides."""
    return _Captions(subject).run()


class _Captions:
    def __init__(self, subject: Subject) -> None:
        self._subject, self._head = subject, subject.head
        self._reference: Any = subject.head.reference
        self._found = Findings()

    def run(self) -> Findings:
        subject, texts = self._subject, []
        encoded = [subject.model.encode(picture) for picture in subject.pictures]
        for case in cases(subject.options, subject.work.prompt):
            prompt = self._prompt(case)
            wanted = self._wanted(case, prompt, slice(0, case.batch))
            captions = subject.model.caption(encoded[: case.batch], self._options(case, prompt))
            for k, (caption, text) in enumerate(zip(captions, wanted, strict=True)):
                self._compare(case, k, list(caption.tokens), text)
            if case.beams == 1:
                texts += wanted
        self._found.failures += _blindness(texts, subject.work.variety)
        return self._found

    def _options(self, case: Case, prompt: Tokens) -> CaptionOptions:
        settings = tuple(self._head.generation.settings)
        return CaptionOptions(
            max_new_tokens=self._length(case, prompt),
            prompt=case.prompt,
            decoding=DecodingOptions(
                num_beams=case.beams, length_penalty=case.penalty, ignore=settings
            ),
        )

    def _prompt(self, case: Case) -> Tokens:
        if case.prompt is None:
            return []
        subject = self._subject
        wanted = subject.source.tokenizer(case.prompt, add_special_tokens=False)["input_ids"]
        found = subject.model.head(self._head.kind).text.encode(case.prompt)
        if list(found) != list(wanted):
            self._found.failures.append(f"{case}: the prompt is {found}, the source's {wanted}")
        return list(wanted)

    def _length(self, case: Case, prompt: Tokens) -> int:
        options, fed = self._subject.options, len(self._head.generation.start_tokens) + len(prompt)
        steps = options.steps if case.beams == 1 else options.beam_steps
        return min(steps, self._head.plan.max_positions + 1 - fed)

    def _wanted(self, case: Case, prompt: Tokens, rows: slice) -> list[Tokens]:
        settings: dict[str, Any] = {"max_new_tokens": self._length(case, prompt)}
        if case.beams > 1:
            settings |= {"num_beams": case.beams, "length_penalty": case.penalty}
        pixels = self._subject.pixels[rows]
        found: list[Tokens] = self._reference.generate_after(pixels, prompt, settings)
        return found

    def _compare(self, case: Case, k: int, ours: Tokens, theirs: Tokens) -> None:
        self._found.searches += case.beams > 1
        if ours == theirs:
            self._found.tokens += len(theirs)
            return
        with self._reference.widen():
            exact = self._wanted(case, self._prompt(case), slice(k, k + 1))[0]
            gap, limit = self._gap(case, k, ours, theirs)
        if exact == ours or abs(gap) <= limit:
            self._found.ties += 1
            return
        self._found.failures.append(
            f"{case}, picture {k}: the source says {theirs}, the bundle {ours}; in float64 the "
            f"source's is ahead by {gap:.3g}, rounding explains {limit:.3g}"
        )

    def _gap(self, case: Case, k: int, ours: Tokens, theirs: Tokens) -> tuple[float, float]:
        """By how much the source prefers ``theirs``, and what rounding explains."""
        limit = NOISE_FACTOR * self._subject.rounding
        if case.beams == 1:
            pairs = enumerate(zip(ours, theirs, strict=False))
            step = next((i for i, (a, b) in pairs if a != b), None)
            if step is None:  # one ends where the other goes on: no two candidates differ
                return float("inf"), limit
            logits = self._logs(case, k, theirs)[step]
            return float(logits[theirs[step]] - logits[ours[step]]), limit
        scores = []
        for text in (theirs, ours):
            logs = self._logs(case, k, text)[np.arange(len(text)), text]
            scores.append(float(logs.sum()) / len(text) ** case.penalty)
        shorter, longer = sorted((len(ours), len(theirs)))
        # The errors of single logits add up like a random walk over the summands of a score.
        return scores[0] - scores[1], limit * longer**0.5 / shorter**case.penalty

    def _logs(self, case: Case, k: int, text: Tokens) -> Array:
        """``[n, V]`` log-probabilities before each token, from one pass of the source."""
        start = [*self._head.generation.start_tokens, *self._prompt(case)]
        tap = self._reference.taps(self._subject.pixels[k : k + 1])[self._head.tap]
        logits = self._reference.logits(tap, np.array([start + text[:-1]], np.int64))[0]
        logits = logits[len(start) - 1 :].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return logs


def _blindness(texts: Sequence[Tokens], least: float) -> list[str]:
    """Why texts like these would hide a defect."""
    variety = float(np.mean([len(set(text)) / len(text) for text in texts]))
    found = []
    if variety < least:
        found.append(f"the proof is blind: {variety:.0%} of a text's tokens are distinct")
    if len({tuple(text) for text in texts}) < 3:
        found.append("the proof is blind: another picture or prompt makes no other text")
    if len({len(text) for text in texts}) < 2:
        found.append(f"the proof is blind: all texts have {len(texts[0])} tokens")
    return found
