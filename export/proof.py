"""The proof of a reference work: its bundle against its source's own ``generate``, at any size.

`prove_work` makes the checkpoint, lets it through the export's gate (greedy decoding of forced
length in a batch and alone, taps and logits against the source's own rounding), and then decodes
with beams, length penalties and a prompt, alone and in a batch, on both sides.

What a kind of head is compared by is registered with `prover`: for captions in
`primelens.export.proof_captions`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import primelens
from primelens import LoadOptions
from primelens.errors import GateError, PrimelensError
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.options import ExportOptions, GateOptions
from primelens.export.pictures import as_videos, random_pictures
from primelens.export.pipeline import export_checkpoint
from primelens.export.proof_captions import end_token, prove_captions
from primelens.export.proof_subject import (
    Array,
    Case,
    Findings,
    ProofOptions,
    Subject,
    cases,
    prover,
    prover_of,
)
from primelens.export.questions import ids_of, questions_for
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import frames_of
from primelens.export.work import Work, build
from primelens.verify import verify
from primelens.video import preprocessed

__all__ = [
    "Case",
    "Findings",
    "Proof",
    "ProofOptions",
    "Subject",
    "cases",
    "end_token",
    "prove_captions",
    "prove_work",
    "prover",
]

logger = logging.getLogger("primelens.export")


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


def prove_work(work: Work, options: ProofOptions | None = None) -> Proof:
    """Make, export and compare one work; what differs is in the result's ``failures``."""
    import primelens.export.proof_answers  # registers itself
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
        split = source.family.split(source.model)
        pictures = as_videos(pictures, frames_of(split))
        pixels = np.stack([preprocessed(source.preprocessing, picture) for picture in pictures])
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
        replay = verify(out, options=loading)
        proof.failures += [f"replay of {c.name}: {c.detail}" for c in replay.checks if not c.passed]
        model = primelens.load(out, options=loading)
        for name, head in source.family.split(source.model).heads.items():
            measured = report.parity["heads"][name]
            _take_gate(proof, measured)
            rounding = float(measured.get("logits", {}).get("source_rounding", 0.0))
            subject = Subject(work, options, source, name, head, model, pictures, pixels, rounding)
            found = prover_of(head.kind)(subject)
            proof.tokens += found.tokens
            proof.ties += found.ties
            proof.searches += found.searches
            proof.rankings += found.rankings
            proof.failures += [f"head {name}, {line}" for line in found.failures]


def _take_gate(proof: Proof, measured: Mapping[str, Any]) -> None:
    proof.tokens += int(measured.get("tokens_compared", 0))
    proof.ties += int(measured.get("ties", 0))
    proof.rankings += int(measured.get("rankings", 0))
    for key in ("tap", "logits", "image", "text", "scores", "match"):
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


def _end_some_texts(folder: Path, source: Checkpoint, head: Any, pixels: Array, steps: int) -> None:
    """Choose an end token that ends some of the texts in their middle, and not all of them.

    Random weights hardly ever choose the end token of their configuration, and texts that all run
    to the limit would leave length penalties without effect.
    """
    reference: Any = head.reference
    if head.kind == "rank":
        return
    if head.question is not None:
        questions = questions_for(source.tokenizer, head, len(pixels))[: len(pixels)]
        reference = reference.asking(ids_of(source.tokenizer, head, questions))
    elif not hasattr(reference, "generate_after"):
        return
    texts = reference.generate(pixels, {"max_new_tokens": steps}, plain=True)
    token = end_token(texts)
    if token is None:
        return
    if hasattr(source.family, "end_with"):  # whose end token is not generation_config's
        source.family.end_with(folder, source.model, token)
        return
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["eos_token_id"] = token
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    source.model.generation_config.eos_token_id = token
