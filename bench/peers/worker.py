"""Runs a system under test in a process of its own; started by path, with any interpreter.

One JSON object per line, from standard input to standard output:

* ``{"do": "open", "backend": NAME, "options": {…}}`` → ``{"description": {…}}``
* ``{"do": "answer", "requests": [{…}, …]}`` → ``{"answers": [{…}, …]}``
* ``{"do": "memory"}`` → ``{"resident": bytes, "peak": bytes}``
* ``{"do": "close"}`` → ``{}``, then the process ends.

Whatever goes wrong comes back as ``{"error": one line, "traceback": all of it}``. Libraries may
write to standard output as they like: it is redirected to standard error before they are imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

# ONNX Runtime's official builds report usage unless told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open_backend(name: str, options: dict[str, Any]) -> Any:
    """The backend ``name``: ``primelens``, or one of those in ``generate.py`` beside this file."""
    if name == "primelens":
        served = importlib.import_module("primelens.bench.served")
        return Plain(served.PrimelensSystem(options.pop("model"), **options))
    spec = importlib.util.spec_from_file_location(
        "primelens_peer", Path(__file__).with_name("generate.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.open_peer(name, options)


class Plain:
    """primelens' typed answers as plain values."""

    def __init__(self, system: Any) -> None:
        self._system = system

    def describe(self) -> dict[str, Any]:
        """What the system is."""
        found: dict[str, Any] = self._system.describe().as_dict()
        return found

    def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer per request."""
        from dataclasses import asdict

        from primelens.bench.system import Request

        return [asdict(a) for a in self._system.answer([Request(**r) for r in requests])]


def memory() -> dict[str, int]:
    """Bytes of this process: resident now, and at most so far.

    Linux keeps ``ru_maxrss`` over an exec, so a child of a large process would report its parent's
    peak; the kernel's own status file starts anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
        found = {words[0]: words[1] for words in lines if len(words) > 1}
        return {
            "resident": int(found["VmRSS:"]) * 1024,
            "peak": int(found["VmHWM:"]) * 1024,
        }
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return {"resident": peak, "peak": peak}


def main() -> None:
    """Serve until told to close, or until standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    backend: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "open":
                backend = open_backend(message["backend"], message["options"])
                reply: dict[str, Any] = {"description": backend.describe()}
            elif message["do"] == "answer":
                reply = {"answers": backend.answer(message["requests"])}
            elif message["do"] == "memory":
                reply = memory()
            else:
                reply = {}
        except Exception as error:  # noqa: BLE001 - a peer's failure is a result, whatever it is
            reply = {
                "error": f"{type(error).__name__}: {error}".strip(),
                "traceback": traceback.format_exc(),
            }
        out.write(json.dumps(reply) + "\n")
        out.flush()
        if message["do"] == "close":
            return


if __name__ == "__main__":
    main()
