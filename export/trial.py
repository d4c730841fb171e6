"""The float32 bundle that narrower ones are measured by, before they are made.

It says what the products of decoders are fed with, which 4-bit weights are rounded by, and how well
the task is done without rounding. It is written beside nothing, used and thrown away.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.export.bundle_writer import write_draft
from primelens.export.calibration import Observed, observe, watched_rows
from primelens.export.checkpoint import Checkpoint
from primelens.export.draft import draft_bundle
from primelens.export.options import ExportOptions
from primelens.export.pictures import as_videos, random_pictures
from primelens.export.quantise import recipe
from primelens.export.questions import questions_for
from primelens.export.registry import HeadSplit, ModelSplit, frames_of
from primelens.images import read_image

__all__ = ["calibration_pictures", "recipe_record", "try_out"]

_RANDOM = 64  # pictures, where none are given
_SEED = 1000  # added to the gate's: other random pictures than it compares on


def try_out(
    source: Checkpoint, split: ModelSplit, options: ExportOptions, folder: Path
) -> tuple[ExportOptions, dict[str, Observed]]:
    """Write a float32 bundle into ``folder``, if anything has to be learnt from one.

    Returns:
        The options with what the metric is in float32, and what decoders were fed with.
    """
    four = options.precision in ("int4", "auto")
    metric = options.metric
    if not four and (metric is None or options.precision == "fp32"):
        return options, {}
    exact = replace(options, precision="fp32", storage="fp32")
    draft = draft_bundle(source, split, exact)
    names = {
        stem: watched_rows(graph)
        for stem, graph in draft.graphs.items()
        if stem.endswith(".decoder")
    }
    folder.mkdir()
    write_draft(draft, folder, exact)
    observed: dict[str, Observed] = {}
    if four and names:
        pictures = calibration_pictures(source, split, options)
        questions = {
            name: questions_for(source.tokenizer, head, len(pictures))
            for name, head in split.heads.items()
            if isinstance(head, HeadSplit)
        }
        threads = options.gate.threads
        observed = observe(folder, names, pictures, questions=questions, threads=threads)
    if metric is not None:
        options = replace(options, metric=replace(metric, reference=metric.measure(folder)))
    return options, observed


def calibration_pictures(
    source: Checkpoint, split: ModelSplit, options: ExportOptions
) -> list[NDArray[np.uint8]]:
    """Those that were given, else random structured ones."""
    size = source.preprocessing.output_size or (224, 224)
    pictures = [np.asarray(read_image(picture).rgb()) for picture in options.calibration]
    pictures = pictures or random_pictures(_RANDOM, size, options.gate.seed + _SEED)
    return as_videos(pictures, frames_of(split))


def recipe_record(options: ExportOptions) -> dict[str, Any]:
    """How weights were rounded, for the manifest."""
    steps = recipe(options.precision)
    record: dict[str, Any] = {"precision": steps.name, "tower": steps.variant}
    if steps.four:
        given = len(options.calibration)
        record["four_bits"] = {
            "graphs": steps.four,
            "rounding": "error feedback by activations (GPTQ)",
            "pictures": given or _RANDOM,
            "random_pictures": not given,
        }
    return record
