"""Runs a system under test in a process of its own; started by path, with any interpreter.

One JSON object per line, from standard input to standard output:

* ``{"do": "open", "backend": NAME, "options": {…}}`` → ``{"description": {…}}``
* ``{"do": "answer", "requests": [{…}, …]}`` → ``{"answers": [{…}, …]}``
* ``{"do": "memory"}`` → ``{"resident": bytes, "peak": bytes}``, and ``"device": bytes`` where the
  process holds memory of an NVIDIA GPU; on Linux also ``"anonymous"``, what of the resident is no
  page of a file. With ``"anew": true`` the peak counts from then on.
* ``{"do": "close"}`` → ``{}``, then the process ends.

Whatever goes wrong comes back as ``{"error": one line, "traceback": all of it}``. Libraries may
write to standard output as they like: it is redirected to standard error before they are imported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

# ONNX Runtime's official builds report usage unless told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open_backend(name: str, options: dict[str, Any]) -> Any:
    """The backend ``name``: ``primelens``, ``vllm``, or one of those in ``generate.py``."""
    if name == "primelens":
        served = importlib.import_module("primelens.bench.served")
        return Plain(served.PrimelensSystem(options.pop("model"), **options))
    if name == "vllm":
        return _beside("served_vllm").VllmPeer(**options)
    return _beside("generate").open_peer(name, options)


def _beside(stem: str) -> Any:
    """A module beside this file, by its path: another environment knows no package of that name."""
    spec = importlib.util.spec_from_file_location(
        f"primelens_peer_{stem}", Path(__file__).with_name(f"{stem}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
            **({"anonymous": int(found["RssAnon:"]) * 1024} if "RssAnon:" in found else {}),
            **device_memory(),
        }
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return {"resident": peak, "peak": peak, **device_memory()}


def forget_peak() -> None:
    """Let the peak be what is resident now; does nothing where the system has no way to."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def device_memory() -> dict[str, int]:
    """``device``: bytes that this process and its children hold on NVIDIA GPUs; empty if none.

    The driver is asked, not a framework: what a runtime keeps in pools is held all the same.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    ours = _family()
    held = 0
    for line in done.stdout.splitlines():
        process, _, mebibytes = line.partition(",")
        if process.strip().isdigit() and int(process) in ours and mebibytes.strip().isdigit():
            held += int(mebibytes) * 2**20
    return {"device": held} if held else {}


def _family() -> set[int]:
    """This process and all below it (engines may run in children)."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(file.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


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
                if message.get("anew"):
                    forget_peak()
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
