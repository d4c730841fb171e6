"""The part ``start``: fresh processes to their first caption, and what was resident at most."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primelens.bench.coldstart import measure_cold_start
from primelens.bench.estimators import compare_blocks, percentile
from primelens.bench.peer_environments import environment_of
from primelens.bench.pictures import PictureSource
from primelens.bench.run import Say
from primelens.bench.target_rows import MEGABYTE
from primelens.bench.workers import WORKER, _environment
from primelens.bundle import open_bundle
from primelens.errors import EngineError, PrimelensError

if TYPE_CHECKING:
    from primelens.bench.target_runs import PartRun

__all__ = ["measure_starts", "weight_bytes"]


def measure_starts(run: PartRun, say: Say) -> dict[str, Any]:
    """Bundles and peers, each in processes of its own over the same picture; the first ones warm
    the page cache.
    """
    systems: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        (picture,) = PictureSource(Path(temporary), 0).fresh(1)
        totals = _peers(run, picture, systems, say)
        for precision in (name for name in run.part.precisions if name in run.bundles):
            say(f"fresh processes of {precision}")
            bundle = run.bundles[precision].bundle
            cold = measure_cold_start(bundle, Path(picture), repetitions=run.blocks, warm_ups=1)
            own = [row["total"] for row in cold.seconds]
            beyond = max(cold.peaks) - weight_bytes(bundle)
            values[f"{precision}/seconds"] = {"value": percentile(own, 50.0)}
            values[f"{precision}/beyond"] = {"value": beyond / MEGABYTE}
            systems[precision] = {
                "seconds": percentile(own, 50.0),
                "stages": {part: cold.median(part) for part in cold.seconds[0] if part != "total"},
                "peak_bytes": max(cold.peaks),
                "weight_bytes": weight_bytes(bundle),
                "text": cold.text,
            }
            if "transformers" in totals:
                ratio = compare_blocks(
                    [[s] for s in own], [[s] for s in totals["transformers"]], paired=False
                ).ratio
                values[f"{precision}/transformers"] = {
                    "value": ratio.estimate,
                    "low": ratio.low,
                    "high": ratio.high,
                    "peer": "transformers",
                }
            else:
                missing[f"{precision}/transformers"] = systems["transformers"]["error"]
    run.look_again()
    return {"systems": systems, "values": values, "missing": missing}


def weight_bytes(bundle: str) -> int:
    """Bytes of a bundle's graphs with their weights."""
    files = open_bundle(bundle, check="size").manifest.files
    return sum(
        record.size for name, record in files.items() if name.endswith((".onnx", ".weights"))
    )


def _peers(
    run: PartRun, picture: str, systems: dict[str, dict[str, Any]], say: Say
) -> dict[str, list[float]]:
    """Peer → seconds of its processes, the first one not counted."""
    totals: dict[str, list[float]] = {}
    for name in run.part.peers:
        say(f"fresh processes of {name}")
        try:
            python = environment_of(name, run.options.peer_folder).require()
            checkpoint = str(run.bundles["fp32"].checkpoint)
            found = [_start(python, name, checkpoint, picture, run.threads) for _ in range(4)][1:]
        except PrimelensError as error:
            systems[name] = {"error": str(error).splitlines()[0]}
            continue
        totals[name] = [one["seconds"] for one in found]
        systems[name] = {
            "seconds": percentile(totals[name], 50.0),
            "stages": found[-1]["opening"],
            "peak_bytes": max(one["peak"] for one in found),
            "text": found[-1]["text"],
        }
    return totals


def _start(python: Path, name: str, checkpoint: str, picture: str, threads: int) -> dict[str, Any]:
    """One process of a peer, from its start to the answer."""
    request = {
        "index": 0,
        "picture": picture,
        "want": "caption",
        "max_new_tokens": None,
        "forced": False,
        "beams": 1,
    }
    options = {"checkpoint": checkpoint, "name": name, "threads": threads}
    messages: list[dict[str, Any]] = [
        {"do": "open", "backend": name, "options": options},
        {"do": "answer", "requests": [request]},
        {"do": "memory"},
    ]
    start = time.monotonic()
    with subprocess.Popen(
        [str(python), str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        replies: list[dict[str, Any]] = []
        stamps: list[float] = []
        for message in messages:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            reply = json.loads(line) if line else {"error": "the process ended"}
            if "error" in reply:
                process.kill()
                raise EngineError(f"{name}: {reply['error']}")
            stamps.append(time.monotonic() - start)
            replies.append(reply)
        process.stdin.close()
    opened, answered, memory = replies
    return {
        "seconds": stamps[1],
        "opening": opened["description"]["opening"],
        "peak": memory["peak"],
        "text": answered["answers"][0]["text"],
    }
