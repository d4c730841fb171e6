"""Peers that have transformers' ``generate``: eager, compiled, optimum-onnx, OpenVINO.

Runs inside a peer's own environment and needs nothing of primelens. Every peer gets the same
checkpoint and the same pictures, and decodes greedily (or with beams) through its own ``generate``;
a streamer notes when each token was known, a hook how long the tower took.
"""

from __future__ import annotations

import importlib
import os
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("torch", "transformers", "optimum", "optimum-onnx", "optimum-intel"),
    *("onnxruntime", "openvino", "nncf", "numpy", "Pillow", "tokenizers"),
)


_DUAL_ENCODERS = {"clip", "siglip", "siglip2", "vision-text-dual-encoder"}


class Stamps:
    """A streamer that remembers when it was told tokens, and how many came first (the prompt)."""

    def __init__(self) -> None:
        self.prompt = 0
        self.times: list[float] = []
        self._begun = False

    def put(self, value: Any) -> None:
        """Called with the prompt, then with every step's tokens."""
        if not self._begun:
            self._begun = True
            self.prompt = int(value.shape[-1])
            return
        self.times.append(time.monotonic())

    def end(self) -> None:
        """Called once, behind the last token."""


class GeneratePeer:
    """A model with ``generate`` over one checkpoint.

    Args:
        checkpoint: folder or hub id.
        name: in the run.
        threads: to compute with; None for the peer's own choice.
        kept: folder where what the peer makes of the checkpoint is kept between runs, if it makes
            anything; None keeps nothing.
    """

    label = "transformers eager"
    notes: tuple[str, ...] = ()

    def __init__(
        self, checkpoint: str, name: str, threads: int | None = None, kept: str | None = None
    ) -> None:
        start = time.monotonic()
        import torch
        import transformers

        self._imports()
        imported = time.monotonic()
        self._torch, self._name, self._threads = torch, name, threads
        self._kept = kept
        if threads is not None:
            torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._processor = _image_processor(checkpoint)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._model = self._load(checkpoint)
        self._opening = {"import": imported - start, "load": time.monotonic() - imported}
        self._tower = 0.0
        self._watch_tower()

    def _imports(self) -> None:
        """Whatever beside torch and transformers has to be imported before loading."""

    def _load(self, checkpoint: str) -> Any:
        import transformers

        kind: Any = transformers.AutoModelForImageTextToText
        if transformers.AutoConfig.from_pretrained(checkpoint).model_type in _DUAL_ENCODERS:
            kind = transformers.AutoModel  # no captions, but a tower to encode with
        return kind.from_pretrained(checkpoint, dtype=self._torch.float32).eval()

    def _watch_tower(self) -> None:
        """Sum up the tower's time, where the model has a part for it."""
        self._encoder: Any = None
        for path in ("encoder", "vision_model", "git.image_encoder"):
            module = self._model
            for part in path.split("."):
                module = getattr(module, part, None)
            if module is None:
                continue
            self._encoder = module
            if hasattr(module, "register_forward_hook"):
                module.register_forward_pre_hook(self._before_tower)
                module.register_forward_hook(self._after_tower)
            elif hasattr(module, "forward"):  # a part of an exported model is no torch module
                module.forward = self._timed(module.forward)
            return

    def _timed(self, forward: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._before_tower()
            try:
                return forward(*args, **kwargs)
            finally:
                self._after_tower()

        return timed

    def _before_tower(self, *_: Any) -> None:
        self._tower -= time.monotonic()

    def _after_tower(self, *_: Any) -> None:
        self._tower += time.monotonic()

    def describe(self) -> dict[str, Any]:
        """What it is."""
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        return {
            "name": self._name,
            "kind": self.label,
            "versions": versions,
            "precision": "fp32",
            "threads": self._threads,
            "opening": self._opening,
            "notes": list(self.notes),
        }

    def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer per request; what cannot be answered raises, in the peer's own words."""
        from PIL import Image

        start = time.monotonic()
        pictures = []
        for request in requests:
            with Image.open(request["picture"]) as picture:
                pictures.append(picture.convert("RGB"))
        pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        preprocess = time.monotonic() - start
        self._tower = 0.0
        first = requests[0]
        with self._torch.inference_mode():
            if first["want"] == "encode":
                if self._encoder is None:
                    error = "this system has no tower that could be run alone"
                    return [{"index": r["index"], "error": error} for r in requests]
                self._encoder(pixel_values=pixels)
                stages = {"preprocess": preprocess, "tower": self._tower}
                return [self._row(r, [], (), stages) for r in requests]
            stamps = Stamps()
            output = self._model.generate(
                pixel_values=pixels, **self._settings(first), **self._streaming(first, stamps)
            )
        prompt = stamps.prompt or 1
        stages = self._stages(start, preprocess, stamps.times)
        return [
            self._row(request, self._cut(row[prompt:].tolist(), request), stamps.times, stages)
            for request, row in zip(requests, output, strict=True)
        ]

    def _stages(self, start: float, preprocess: float, times: list[float]) -> dict[str, float]:
        """Seconds per stage; what is before the first token and not the tower counts as prefill."""
        stages = {"preprocess": preprocess, "tower": self._tower}
        if times:
            stages["prefill"] = max(0.0, times[0] - start - preprocess - self._tower)
            stages["step"] = times[-1] - times[0]
        return stages

    def _settings(self, request: dict[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {"do_sample": False, "num_beams": request["beams"]}
        if request["max_new_tokens"] is not None:
            settings["max_new_tokens"] = request["max_new_tokens"]
        if request["forced"]:
            settings["min_new_tokens"] = request["max_new_tokens"]
        return settings

    def _streaming(self, request: dict[str, Any], stamps: Stamps) -> dict[str, Any]:
        return {"streamer": stamps} if request["beams"] == 1 else {}

    def _cut(self, tokens: list[int], request: dict[str, Any]) -> list[int]:
        """Up to the end token, which belongs to the caption; padding does not."""
        if request["forced"]:
            return tokens
        known = self._ends()
        for place, token in enumerate(tokens):
            if token in known:
                return tokens[: place + 1]
        return tokens

    def _ends(self) -> set[int]:
        """The tokens that end a caption; BLIP's generate stops at its text side's separator."""
        text = getattr(self._model.config, "text_config", None)
        if hasattr(self._model, "text_decoder") and text is not None:
            return {text.sep_token_id}
        ends = self._model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    def _row(
        self, request: dict[str, Any], tokens: list[int], times: Any, stages: dict[str, float]
    ) -> dict[str, Any]:
        return {
            "index": request["index"],
            "text": str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip(),
            "tokens": tokens,
            "token_times": list(times[: len(tokens)]),
            "stages": stages,
        }


class CompiledPeer(GeneratePeer):
    """``torch.compile`` of the decoder's forward, over a cache of static shape."""

    label = "transformers, torch.compile, static cache"
    notes = ("compiled anew for every batch and length, in the warm-up that does not count",)

    def _load(self, checkpoint: str) -> Any:
        model = super()._load(checkpoint)
        decoder = getattr(model, "text_decoder", model)  # BLIP generates with a part of itself
        decoder.generation_config.cache_implementation = "static"
        decoder.forward = self._torch.compile(decoder.forward, dynamic=False)
        return model


class OptimumOnnxPeer(GeneratePeer):
    """optimum-onnx: exported by optimum, run by ONNX Runtime."""

    label = "optimum-onnx, ONNX Runtime"

    def _imports(self) -> None:
        importlib.import_module("optimum.onnxruntime")

    def _load(self, checkpoint: str) -> Any:
        runtime = importlib.import_module("onnxruntime")
        optimum = importlib.import_module("optimum.onnxruntime")

        options = runtime.SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        kind = optimum.ORTModelForVision2Seq
        if self._kept is None:
            return kind.from_pretrained(checkpoint, export=True, session_options=options)
        if not os.path.isdir(self._kept):  # noqa: PTH112
            kind.from_pretrained(checkpoint, export=True).save_pretrained(self._kept)
        return kind.from_pretrained(self._kept, session_options=options)


class OpenVinoPeer(GeneratePeer):
    """optimum-intel: converted by OpenVINO, run by OpenVINO."""

    label = "optimum-intel, OpenVINO"

    def _imports(self) -> None:
        importlib.import_module("optimum.intel")

    def _load(self, checkpoint: str) -> Any:
        optimum = importlib.import_module("optimum.intel")
        # Left to itself it computes in bfloat16 where the processor can: another precision than
        # everybody else's, and than what the result says.
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(self._threads)
        return optimum.OVModelForVision2Seq.from_pretrained(
            checkpoint, export=True, ov_config=settings
        )


def _image_processor(checkpoint: str) -> Any:
    """The checkpoint's own; its Pillow variant where the automatic choice asks for torchvision."""
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(checkpoint)
    except ImportError:
        base = importlib.import_module("transformers.image_processing_base").ImageProcessingMixin
        fields, _ = base.get_image_processor_dict(checkpoint)
        kind = getattr(transformers, f"{fields['image_processor_type']}Pil")
        return kind.from_pretrained(checkpoint)


PEERS: dict[str, type[GeneratePeer]] = {
    "transformers": GeneratePeer,
    "compiled": CompiledPeer,
    "optimum": OptimumOnnxPeer,
    "openvino": OpenVinoPeer,
}


def open_peer(name: str, options: dict[str, Any]) -> GeneratePeer:
    """The peer ``name`` over ``options["checkpoint"]``."""
    return PEERS[name](**options)
