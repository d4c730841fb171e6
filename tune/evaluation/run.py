"""From a request to a report: read the data, find what is asked, let the systems speak."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from primelens.tune.evaluation.answer_run import answered
from primelens.tune.evaluation.caption_run import captioned
from primelens.tune.evaluation.request import Request, read_parts
from primelens.tune.evaluation.retrieval_run import retrieved
from primelens.tune.evaluation.stage import Evaluation, Stage
from primelens.tune.evaluation.systems import Progress
from primelens.tune.evaluation.zero_shot_run import labelled

if TYPE_CHECKING:
    from primelens.model import Model

__all__ = ["evaluate"]

_RUNS: dict[str, Callable[[Stage], Evaluation]] = {
    "caption": captioned,
    "answer": answered,
    "retrieval": retrieved,
    "zero-shot": labelled,
}


def evaluate(
    request: Request,
    *,
    load: Callable[[str], Model] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a system with its baselines.

    Args:
        request: what to measure.
        load: opens a bundle; `primelens.load` if not given.
        progress: called with the number of pictures captioned or encoded since the last call.

    Raises:
        InputError: the data cannot be read, a system does not speak of all of it, or a bundle has
            no head for the task.
        OptionError: what is asked does not go together.
        ModelNotFoundError, BundleError: a bundle cannot be opened.
        DependencyError: the data's format or a metric needs something that is not installed.
    """
    parts = read_parts(request)
    return _RUNS[parts.task](Stage(request, parts, load or _load, progress))


def _load(name: str) -> Model:
    import primelens

    return primelens.load(name)
