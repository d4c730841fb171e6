"""What a run says of itself while it goes: a log that is exact, curves, and a line for people."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from primelens.atomic import write_bytes, write_file
from primelens.errors import DependencyError
from primelens.tune.textside.recipe import Logs

__all__ = ["Journal", "read_log"]

LOG = "log.jsonl"


class Journal:
    """The log of a run, its curves and its progress.

    Args:
        folder: the run's.
        logs: what is written beside the log.
        steps: of the whole run.
        step: steps that are done; later lines of the log, of a run that was killed before it saved
            its state, are taken out.
        say: takes a line for people every so often.

    Raises:
        DependencyError: curves are asked for and their packages are not installed.
    """

    def __init__(
        self,
        folder: Path,
        logs: Logs,
        *,
        steps: int,
        step: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._path, self._logs, self._steps, self._say = folder / LOG, logs, steps, say
        kept = [line for line in read_log(folder) if int(line["step"]) <= step]
        write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._writer = _summary_writer(folder / "tensorboard", step) if logs.tensorboard else None
        if logs.plot:
            _plotting()
        self._began, self._first, self._spoken = time.monotonic(), step, 0.0

    def write(self, step: int, entry: Mapping[str, Any]) -> None:
        """One line; numbers are written so that reading gives the same bits."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **entry}) + "\n")
        if self._writer is not None:
            for name, value in entry.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name.replace(" ", "_"), value, step)
        now = time.monotonic()
        if self._say is not None and (now - self._spoken > 5 or step == self._steps):
            self._spoken = now
            self._say(self._line(step, entry, now))

    def close(self) -> None:
        """Finish the curves."""
        if self._writer is not None:
            self._writer.close()
        if self._logs.plot:
            _plot(self._path.parent)

    def _line(self, step: int, entry: Mapping[str, Any], now: float) -> str:
        left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in entry.items()
        )
        return f"step {step} of {self._steps}: {shown}; {_duration(left)} left"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; what a killed writer left half written is left out."""
    path = folder / LOG
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise _missing("tensorboardX") from error
    # What a killed run wrote after its last state is hidden by TensorBoard.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _plotting() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise _missing("matplotlib") from error
    return Figure


def _plot(folder: Path) -> None:
    lines = read_log(folder)
    figure = _plotting()(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", "validation loss"):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    with write_file(folder / "loss.png") as file:
        figure.savefig(file, format="png", dpi=120)


def _missing(package: str) -> DependencyError:
    return DependencyError(
        f"Curves need the package {package!r}, which is not installed.",
        remedy="Run `pip install 'primelens[curves]'`, or leave [logs] out.",
    )
