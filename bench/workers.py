"""Systems in processes of their own: primelens here, peers in their own environments.

A system that crashes, hangs or runs out of memory ends its own process and nothing else; what it
said is the result.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from primelens.bench.system import Answer, Description, Request
from primelens.errors import EngineError

__all__ = ["WORKER", "WorkerSystem"]

WORKER = Path(__file__).with_name("peers") / "worker.py"
_TAIL = 2000  # characters of a dead worker's last words


class WorkerSystem:
    """A `primelens.bench.system.System` in another process.

    Args:
        backend: ``primelens``, or a peer's name in ``peers/generate.py``.
        options: the backend's own.
        python: the interpreter of its environment; None for this one.
        timeout: seconds that opening, or one batch, may take.

    Raises:
        EngineError: it did not start; the message carries its own words.
    """

    def __init__(
        self,
        backend: str,
        options: Mapping[str, Any],
        *,
        python: Path | None = None,
        timeout: float = 600.0,
    ) -> None:
        self._backend, self._timeout = backend, timeout
        start = time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python or sys.executable), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._received = b""
        try:
            reply = self._ask({"do": "open", "backend": backend, "options": dict(options)})
        except BaseException:
            self.close()
            raise
        total = time.monotonic() - start
        self._description = _description(reply["description"], total)

    def describe(self) -> Description:
        return self._description

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        reply = self._ask({"do": "answer", "requests": [r.as_dict() for r in requests]})
        return [Answer.from_dict(row) for row in reply["answers"]]

    def memory(self, *, anew: bool = False) -> dict[str, int]:
        """Bytes of its process: ``resident`` now, ``peak`` so far; ``anonymous`` on Linux.

        Args:
            anew: let the next peak count from here, where the system can.
        """
        reply = self._ask({"do": "memory", "anew": anew})
        return {name: int(value) for name, value in reply.items()}

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # a worker holds nothing that would need a farewell
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        self._selector.close()
        self._log.close()

    def __enter__(self) -> WorkerSystem:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._gone("ended") from error
        reply: dict[str, Any] = json.loads(self._line())
        if "error" in reply:
            raise EngineError(f"{self._backend}: {reply['error']}")
        return reply

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            if not self._selector.select(self._timeout):
                raise self._gone(f"said nothing for {self._timeout:.0f} s")
            chunk = self._process.stdout.read()
            if not chunk:
                raise self._gone("ended")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _gone(self, what: str) -> EngineError:
        self._process.kill()
        status = self._process.wait()
        self._log.seek(0)
        words = self._log.read().decode("utf-8", "replace").strip()[-_TAIL:]
        return EngineError(f"{self._backend}: the process {what} (status {status}). {words}")


def _environment() -> dict[str, str]:
    """This process's, without what would lead another interpreter to this one's packages."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}


def _description(data: Mapping[str, Any], total: float) -> Description:
    return Description(
        name=str(data["name"]),
        kind=str(data["kind"]),
        versions=dict(data.get("versions", {})),
        precision=str(data.get("precision", "")),
        threads=data.get("threads"),
        digests=dict(data.get("digests", {})),
        notes=tuple(data.get("notes", ())),
        opening={**data.get("opening", {}), "total": total},
    )
