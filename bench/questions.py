"""What several questions about one picture cost together, and each by itself.

::

    python -m primelens.bench.questions [--work blip-vqa-base | --model BUNDLE] [--folder DIR]

*Together* is one call of ``answer`` with all questions: one run of the tower, whose keys and values
all of them read. *Apart* is a call for each with nothing kept, so each begins with the file. Every
round has a picture of its own, and both ways answer with the same number of tokens; the answers are
compared. A reference work has random weights in the shape of a published checkpoint; it is exported
into ``--folder`` once, and is not proved there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from primelens.bench.environment import capture
from primelens.bench.estimators import percentile
from primelens.model import Model, load
from primelens.options import CaptionOptions, LoadOptions

__all__ = ["question_costs", "unproved_bundle"]

_WORDS = ["what", "color", "is", "the", "small", "red", "house", "near", "a", "tall", "tree"]


def unproved_bundle(work: str, folder: Path) -> Path:
    """The bundle of a reference work, made if it is absent; nothing was proved of it."""
    from primelens.atomic import atomic_folder
    from primelens.export.bundle_writer import write_draft
    from primelens.export.checkpoint import open_checkpoint
    from primelens.export.draft import draft_bundle
    from primelens.export.options import ExportOptions
    from primelens.export.work import build

    out = folder / work
    if out.is_dir():
        return out
    options = ExportOptions(storage="fp32")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as home:
        checkpoint = open_checkpoint(build(work, Path(home) / work))
        draft = draft_bundle(checkpoint, checkpoint.family.split(checkpoint.model), options)
        with atomic_folder(out) as temporary:
            write_draft(draft, temporary, options)
    return out


def question_costs(model: Model, count: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Seconds of all questions together and of each apart, medians, and their quotient.

    Args:
        model: with a head that answers, and no store.
        count: questions a picture.
        rounds: pictures; two more warm up.
        tokens: of every answer.
    """
    options = CaptionOptions(max_new_tokens=tokens, min_new_tokens=tokens)
    random = np.random.default_rng(0)
    spent: dict[str, list[float]] = {"together": [], "apart": []}
    differing = 0
    for number in range(-2, rounds):
        picture = _picture(random)
        asked = [" ".join(random.choice(_WORDS, 5)) + "?" for _ in range(count)]
        said: dict[str, list[str]] = {}
        for way in ("together", "apart") if number % 2 else ("apart", "together"):
            begin = time.perf_counter()
            said[way] = _answers(model, picture, asked, options, apart=way == "apart")
            if number >= 0:
                spent[way].append(time.perf_counter() - begin)
        differing += said["together"] != said["apart"]
    pairs = list(zip(spent["together"], spent["apart"], strict=True))
    return {
        "questions": count,
        "tokens": tokens,
        "rounds": rounds,
        "together_s": percentile(spent["together"], 50),
        "apart_s": percentile(spent["apart"], 50),
        "quotient": percentile([one / other for one, other in pairs], 50),
        "worst_quotient": max(one / other for one, other in pairs),
        "rounds_with_other_answers": differing,
    }


def _answers(
    model: Model, picture: bytes, asked: Sequence[str], options: CaptionOptions, *, apart: bool
) -> list[str]:
    if apart:
        return [model.answer(picture, question, options).text for question in asked]
    return [answer.text for answer in model.answer(picture, asked, options)]


def _picture(random: np.random.Generator) -> bytes:
    small = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    buffer = BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def main() -> None:
    """Measure and print; the last line is the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="blip-vqa-base", help="a reference work that answers")
    parser.add_argument("--model", help="a bundle, in place of a reference work")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench"), help="of made bundles")
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=5, help="of every answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--export-only", action="store_true", help="make the bundle and stop")
    chosen = parser.parse_args()
    bundle = chosen.model or unproved_bundle(chosen.work, chosen.folder)
    if chosen.export_only:
        print(bundle)
        return
    model = load(bundle, options=LoadOptions(threads=chosen.threads))
    costs = question_costs(model, chosen.questions, chosen.rounds, chosen.tokens)
    model.close()
    print(
        f"{costs['questions']} questions about one picture: {costs['together_s']:.3f} s together, "
        f"{costs['apart_s']:.3f} s apart: {costs['quotient']:.3f} of it (worst "
        f"{costs['worst_quotient']:.3f}); other answers in "
        f"{costs['rounds_with_other_answers']} of {costs['rounds'] + 2} rounds"
    )
    print(json.dumps({"environment": capture().as_dict(), "model": str(bundle), **costs}))


if __name__ == "__main__":
    main()
