"""The state of a run in one file, from which it goes on as if it had never been killed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from primelens.atomic import write_file
from primelens.errors import InputError, OptionError

__all__ = ["BEST", "STATE", "Standing", "load_best", "load_state", "save_best", "save_state"]

STATE = "state.pt"
BEST = "best.pt"


@dataclass
class Standing:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        best: the best score so far.
        best_step: when that was.
        idle: validations since then.
        score: what is measured.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    idle: int = 0
    score: str = ""


def save_state(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    standing: Standing,
    settings: str,
) -> None:
    """Write the state; a reader sees the one before or this one, never half of one."""
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "standing": asdict(standing),
        "settings": settings,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with write_file(folder / STATE) as file:
        torch.save(state, file)


def load_state(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, settings: str
) -> Standing:
    """Go on from a folder's state.

    Args:
        settings: digest of everything that decides the run.

    Raises:
        InputError: there is no state, or it cannot be read.
        OptionError: it is of another recipe.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no state to go on from.", remedy="Begin without --resume."
        )
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever torch raises for a file that is none of its own
        raise InputError(f"{path} cannot be read: {error}") from error
    if state["settings"] != settings:
        raise OptionError(
            f"{path} is the state of another recipe, data or tower.",
            remedy="Go on with the recipe that it was begun with, or give another folder.",
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Standing(**state["standing"])


def save_best(folder: Path, model: nn.Module) -> None:
    """Remember the model's weights beside the state."""
    with write_file(folder / BEST) as file:
        torch.save(model.state_dict(), file)


def load_best(folder: Path, model: nn.Module) -> None:
    """Give the model the weights that scored best."""
    model.load_state_dict(torch.load(folder / BEST, weights_only=True, map_location="cpu"))
