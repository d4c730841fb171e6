"""Quality of the very same configuration that was timed: a speed never stands without it.

Two looks, neither of which needs labels:

* *agreement*: all systems caption the same pictures to their natural end; how many of one's
  captions equal the reference's, token for token. The reference is transformers where it takes
  part (the model was tuned with it), else the first system.
* *golden*: the bundle's golden pictures are replayed, against what the source model said when it
  was exported, together with the manifest's parity report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from primelens.bench.pictures import PictureSource
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Request, System
from primelens.errors import PrimelensError

__all__ = ["agreement", "golden_replay", "measure_quality"]

_LEAST_PICTURES = 8


def agreement(reference: Sequence[Answer], answers: Sequence[Answer]) -> dict[str, Any]:
    """How ``answers`` compare with the ``reference``'s to the same requests.

    Returns:
        ``pictures``; ``same_tokens``: share of captions equal token for token; ``same_text``;
        ``tokens_before_difference``: mean number of leading tokens that agree; ``distinct``: how
        many different captions there were (1 would make agreement worthless); ``failures``.
    """
    pairs = list(zip(reference, answers, strict=True))
    good = [(a, b) for a, b in pairs if a.error is None and b.error is None]
    count = max(1, len(pairs))
    return {
        "pictures": len(pairs),
        "failures": sum(answer.error is not None for answer in answers),
        "same_tokens": sum(a.tokens == b.tokens for a, b in good) / count,
        "same_text": sum(a.text == b.text for a, b in good) / count,
        "tokens_before_difference": sum(_common(a.tokens, b.tokens) for a, b in good) / count,
        "distinct": len({answer.tokens for answer in answers if answer.error is None}),
    }


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))


def measure_quality(
    systems: Mapping[str, System], spec: Spec, pictures: PictureSource
) -> dict[str, Any]:
    """Agreement of every system with the reference, over fresh pictures, one by one."""
    paths = pictures.fresh(max(_LEAST_PICTURES, spec.requests))
    answers: dict[str, list[Answer]] = {}
    errors: dict[str, str] = {}
    for name, system in systems.items():
        try:
            answers[name] = [
                system.answer([Request(number, path, beams=spec.beams)])[0]
                for number, path in enumerate(paths)
            ]
        except PrimelensError as error:
            errors[name] = str(error)
    reference = "transformers" if "transformers" in answers else next(iter(answers), None)
    return {
        "reference": reference,
        "systems": {
            name: agreement(answers[reference], given) if reference else {}
            for name, given in answers.items()
        },
        "errors": errors,
    }


def golden_replay(model: str) -> dict[str, Any]:
    """The bundle's own proof, replayed here and now, and what it says of its export."""
    from primelens.bundle import open_bundle
    from primelens.hub import resolve
    from primelens.verify import verify

    parity = dict(open_bundle(resolve(model), check="size").manifest.parity)
    report = verify(model)
    return {"passed": report.passed, "lines": list(report.lines), "parity": parity}
