"""Small BLIP-2 works with T5, made once: everything up to the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import primelens
from primelens import LoadOptions
from primelens.export.bundle_writer import write_draft
from primelens.export.checkpoint import open_checkpoint
from primelens.export.draft import Draft, draft_bundle
from primelens.export.pictures import random_pictures
from primelens.export.pipeline import answers_of, prove
from primelens.export.proof_captions import end_token
from primelens.export.questions import ids_of, questions_for
from primelens.export.reference_works import build

from .conftest import OPTIONS, Work

NAMES = ("tiny-blip2-flan-t5", "tiny-blip2-t5")
HEAD, TAP = "caption", "last_hidden_state"


def work_of(folder: Path, name: str) -> Work:
    checkpoint = open_checkpoint(build(name, folder, seed=0))
    head: Any = checkpoint.family.split(checkpoint.model).heads[HEAD]
    pixels = checkpoint.preprocessing.batch(random_pictures(4, (32, 32), OPTIONS.gate.seed))
    asked = ids_of(checkpoint.tokenizer, head, questions_for(checkpoint.tokenizer, head, 4)[:4])
    reference = head.reference.asking(asked)
    token = end_token(reference.generate(pixels, {"max_new_tokens": 20}, plain=True))
    assert token is not None
    family: Any = checkpoint.family
    family.end_with(folder, checkpoint.model, token)
    split = checkpoint.family.split(checkpoint.model)
    draft = draft_bundle(checkpoint, split, OPTIONS)
    return Work(folder, checkpoint, split, draft, answers_of(checkpoint, split, OPTIONS.gate))


def head_of(work: Work) -> Any:
    return work.split.heads[HEAD]


def load(folder: Path) -> primelens.Model:
    return primelens.load(folder, options=LoadOptions(threads=1, check="size"))


def gate(draft: Draft, work: Work, folder: Path) -> None:
    write_draft(draft, folder, OPTIONS)
    prove(folder, work.split, work.answers, OPTIONS.gate)
