"""What a run leaves behind: an ordinary checkpoint, and how it came about.

``primelens export`` takes the folder as it is. ``tuning.json`` in it holds the recipe, the
augmentation and the preprocessing, the tower's digest, and the score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from primelens.atomic import atomic_folder
from primelens.tune.textside.assembling import Parts

__all__ = ["TUNING", "save_checkpoint"]

TUNING = "tuning.json"


def save_checkpoint(target: Path, parts: Parts, note: Mapping[str, Any]) -> Path:
    """Write model, tokenizer, image processor and note; replaces a checkpoint that is there.

    Args:
        target: the folder.
        parts: with the tower in its place.
        note: JSON data.
    """
    model = parts.model
    bias = getattr(model, "logit_bias", None)
    if isinstance(bias, torch.nn.Parameter):
        # transformers' class has no place for it among the weights.
        model.config.scoring = "sigmoid"
        model.config.logit_bias = float(bias.item())
        del model.logit_bias
    versions = {
        "primelens": version("primelens"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    with atomic_folder(target, overwrite=True) as folder:
        model.save_pretrained(folder)
        parts.tokenizer.save_pretrained(folder)
        _write(folder / "preprocessor_config.json", parts.processor)
        _write(folder / TUNING, {**note, "versions": versions})
    return target


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
