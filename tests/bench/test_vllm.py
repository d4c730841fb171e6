"""vLLM as a peer: what it is asked and what is made of its answers; vLLM itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from primelens.bench import commands, peer_environments
from primelens.bench.peer_environments import environment_of
from primelens.bench.peers import served_vllm, worker
from primelens.bench.pictures import PictureSource
from primelens.errors import EngineError

_GPU = "NVIDIA Thing 9000"


def test_without_a_gpu_it_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer_environments, "graphics_processors", list)
    with pytest.raises(EngineError, match=r"vllm.*NVIDIA GPU.*--peers"):
        environment_of("vllm", tmp_path).require()
    assert commands.main(["peers", "build", "vllm", "--folder", str(tmp_path)]) == 0
    assert "needs an NVIDIA GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(served_vllm, "graphics_processors", list)
    with pytest.raises(RuntimeError, match="NVIDIA GPU"):
        served_vllm.VllmPeer("c", "vllm")


def _tool(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_the_driver_is_asked_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert served_vllm.graphics_processors() == []
    _tool(tmp_path, f"echo '{_GPU}'")
    assert served_vllm.graphics_processors() == [_GPU]
    _tool(tmp_path, "echo 'no devices were found'; exit 9")
    assert served_vllm.graphics_processors() == []


def test_memory_of_the_gpu_is_that_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setenv("PATH", str(tmp_path))
    assert worker.device_memory() == {}
    _tool(tmp_path, f"echo '1, 77'; echo '{os.getpid()}, 300'; echo '{os.getpid()}, 20'")
    assert worker.device_memory() == {"device": 320 * 2**20}
    _tool(tmp_path, "echo '1, 77'")
    assert worker.device_memory() == {}


class _Engine:
    """Notes what it is asked."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.asked: list[Any] = []

    def generate(self, prompts: list[Any], settings: Any, use_tqdm: bool) -> list[Any]:
        self.asked.append((prompts, settings, use_tqdm))
        said = SimpleNamespace(text=" a dog ", token_ids=[5, 6, 7])
        metrics = SimpleNamespace(first_token_latency=0.25)
        return [SimpleNamespace(outputs=[said], metrics=metrics) for _ in prompts]


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> served_vllm.VllmPeer:
    fake: Any = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = _Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(served_vllm, "graphics_processors", lambda: [_GPU])
    monkeypatch.setattr(
        "transformers.AutoProcessor.from_pretrained", lambda _: SimpleNamespace(chat_template=None)
    )
    return served_vllm.VllmPeer("checkpoint", "vllm", threads=2)


def test_it_is_asked_for_greedy_text_of_new_pictures(
    peer: served_vllm.VllmPeer, tmp_path: Path
) -> None:
    first, second = PictureSource(tmp_path, 0).fresh(2)
    asked = {"want": "caption", "max_new_tokens": 3, "forced": True, "beams": 1}
    rows = peer.answer([{"index": n, "picture": p, **asked} for n, p in enumerate([first, second])])
    engine: Any = peer._model
    assert not engine.settings["enable_prefix_caching"]
    ((prompts, settings, _),) = engine.asked
    assert [prompt["multi_modal_data"]["image"].mode for prompt in prompts] == ["RGB", "RGB"]
    assert (settings.temperature, settings.max_tokens, settings.min_tokens) == (0.0, 3, 3)
    assert settings.ignore_eos
    assert [(row["index"], row["text"], row["tokens"]) for row in rows] == [
        (0, "a dog", [5, 6, 7]),
        (1, "a dog", [5, 6, 7]),
    ]
    assert len(rows[0]["token_times"]) == 1
    assert _GPU in " ".join(peer.describe()["notes"])


def test_a_natural_end_is_the_models_own(peer: served_vllm.VllmPeer) -> None:
    settings = peer._settings({"max_new_tokens": None, "forced": False, "beams": 1})
    assert vars(settings) == {"temperature": 0.0}
    with pytest.raises(ValueError, match="greedy"):
        peer._settings({"max_new_tokens": 3, "forced": False, "beams": 3})
    (row,) = peer.answer([{"index": 4, "want": "encode"}])
    assert row["index"] == 4
    assert "tower" in row["error"]
