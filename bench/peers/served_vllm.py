"""vLLM as a peer, where there is an NVIDIA GPU and vLLM knows the family.

Runs inside a peer's own environment and needs nothing of primelens. What vLLM says of a family that
it does not know is the result. Every picture is new, so its caches of prefixes and of processed
pictures are switched off: they could only cost.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("vllm", "torch", "transformers", "numpy", "Pillow", "tokenizers")
_QUESTION = "Describe the picture."


def graphics_processors() -> list[str]:
    """Names of the NVIDIA GPUs that the driver lists; none where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return [
        line.strip() for line in done.stdout.splitlines() if line.strip() and not done.returncode
    ]


class VllmPeer:
    """A checkpoint behind vLLM's offline interface.

    Args:
        checkpoint: folder or hub id.
        name: in the run.
        threads: not used: the work is the GPU's.

    Raises:
        RuntimeError: there is no NVIDIA GPU.
    """

    label = "vLLM"

    def __init__(self, checkpoint: str, name: str, threads: int | None = None) -> None:
        del threads
        self._devices = graphics_processors()
        if not self._devices:
            raise RuntimeError("vLLM is measured on an NVIDIA GPU, and this machine has none")
        start = time.monotonic()
        self._vllm = importlib.import_module("vllm")
        transformers = importlib.import_module("transformers")
        imported = time.monotonic()
        self._name = name
        self._model = self._vllm.LLM(
            model=checkpoint,
            dtype="float32",
            limit_mm_per_prompt={"image": 1},
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=False,  # they hold when each first token was known
        )
        processor = transformers.AutoProcessor.from_pretrained(checkpoint)
        self._prompt = _prompt(processor)
        self._opening = {"import": imported - start, "load": time.monotonic() - imported}

    def describe(self) -> dict[str, Any]:
        """What it is."""
        versions = {}
        for package in _PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        return {
            "name": self._name,
            "kind": self.label,
            "versions": versions,
            "precision": "fp32",
            "threads": None,
            "opening": self._opening,
            "notes": [f"on {', '.join(self._devices)}", f"prompt {self._prompt!r}", "cache off"],
        }

    def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer per request, all of them one batch; what cannot be answered raises."""
        from PIL import Image

        first = requests[0]
        if first["want"] == "encode":
            error = "vLLM does not run a tower alone"
            return [{"index": r["index"], "error": error} for r in requests]
        start = time.monotonic()
        prompts = []
        for request in requests:
            with Image.open(request["picture"]) as picture:
                prompts.append(
                    {
                        "prompt": self._prompt,
                        "multi_modal_data": {"image": picture.convert("RGB")},
                    }
                )
        prepared = time.monotonic() - start
        settings = self._settings(first)
        outputs = self._model.generate(prompts, settings, use_tqdm=False)
        return [
            self._row(request, output, start, prepared)
            for request, output in zip(requests, outputs, strict=True)
        ]

    def _settings(self, request: dict[str, Any]) -> Any:
        if request["beams"] != 1:
            raise ValueError("vLLM is measured with greedy decoding")
        given: dict[str, Any] = {"temperature": 0.0}
        if request["max_new_tokens"] is not None:
            given["max_tokens"] = request["max_new_tokens"]
        if request["forced"]:
            given |= {"min_tokens": request["max_new_tokens"], "ignore_eos": True}
        return self._vllm.SamplingParams(**given)

    def _row(
        self, request: dict[str, Any], output: Any, start: float, prepared: float
    ) -> dict[str, Any]:
        """An answer; vLLM tells of the first token only, so later ones have no times."""
        found = output.outputs[0]
        metrics = getattr(output, "metrics", None)
        latency = getattr(metrics, "first_token_latency", None)
        times = [] if not latency else [start + prepared + latency]
        return {
            "index": request["index"],
            "text": found.text.strip(),
            "tokens": list(found.token_ids),
            "token_times": times,
            "stages": {"preprocess": prepared},
        }


def _prompt(processor: Any) -> str:
    """The family's own words around a picture; nothing where it has none, as a captioner."""
    if not getattr(processor, "chat_template", None):
        return ""
    turn = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": turn}], add_generation_prompt=True
    )
    return text
