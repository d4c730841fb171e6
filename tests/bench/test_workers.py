from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from primelens.bench import workers
from primelens.bench.coldstart import sample_picture
from primelens.bench.peers import worker
from primelens.bench.system import Request
from primelens.bench.workers import WorkerSystem
from primelens.errors import EngineError

_FAKE_WORKER = """
import json, os, sys, time
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
for line in sys.stdin:
    message = json.loads(line)
    do = message["do"]
    if do == "open":
        print("a library writes to standard output", flush=True)
        reply = {"description": {"name": message["backend"], "kind": "fake"}}
    elif do == "answer":
        which = message["requests"][0]["picture"]
        if which == "crash":
            print("last words", file=sys.stderr, flush=True); os._exit(3)
        if which == "hang":
            time.sleep(60)
        reply = {"error": "ValueError: no"} if which == "raise" else {
            "answers": [{"index": r["index"], "text": "é" * 70000, "tokens": [1, 2],
                         "token_times": [1.5, 2.5]} for r in message["requests"]]}
    else:
        reply = {"resident": 5, "peak": 7}
    out.write(json.dumps(reply) + "\\n"); out.flush()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerSystem:
    script = tmp_path / "fake_worker.py"
    script.write_text(_FAKE_WORKER)
    monkeypatch.setattr(workers, "WORKER", script)
    return WorkerSystem("thing", {}, timeout=20.0)


def test_answers_come_back_whole(fake: WorkerSystem) -> None:
    with fake:
        assert fake.describe().name == "thing"
        (answer,) = fake.answer([Request(4, "p")])
        assert answer.index == 4
        assert len(answer.text) == 70000  # longer than a pipe holds
        assert answer.tokens == (1, 2)
        assert answer.token_times == (1.5, 2.5)
        assert fake.memory() == {"resident": 5, "peak": 7}


def test_a_systems_own_error_is_passed_on(fake: WorkerSystem) -> None:
    with fake, pytest.raises(EngineError, match="thing: ValueError: no"):
        fake.answer([Request(0, "raise")])


def test_a_crash_tells_its_status_and_last_words(fake: WorkerSystem) -> None:
    with fake, pytest.raises(EngineError, match=r"(?s)status 3.*last words"):
        fake.answer([Request(0, "crash")])


def test_a_hanging_system_is_given_up(fake: WorkerSystem) -> None:
    fake._timeout = 0.3
    with fake, pytest.raises(EngineError, match="said nothing"):
        fake.answer([Request(0, "hang")])
    assert fake._process.poll() is not None


def test_closing_ends_the_process(fake: WorkerSystem) -> None:
    fake.close()
    assert fake._process.poll() is not None


def test_another_interpreter_is_not_led_to_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert "PYTHONPATH" not in workers._environment()


def test_a_bundle_that_does_not_open_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere"):
        WorkerSystem("primelens", {"model": str(tmp_path / "nowhere")})


def test_primelens_and_transformers_say_the_same(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The peer's backend, in this environment: same tokens, forced and natural, in batches."""
    picture = str(sample_picture(tmp_path))
    options = {"checkpoint": str(tiny_checkpoint), "name": "hf", "threads": 1}
    with (
        WorkerSystem("primelens", {"model": str(tiny_bundle), "threads": 1}) as ours,
        WorkerSystem("transformers", options, python=Path(sys.executable)) as theirs,
    ):
        assert theirs.describe().kind == "transformers eager"
        assert theirs.describe().precision == "fp32"
        forced = [Request(i, picture, max_new_tokens=6, forced=True) for i in range(2)]
        beams = [Request(i, picture, max_new_tokens=6, forced=True, beams=3) for i in range(2)]
        for one, other in zip(ours.answer(beams), theirs.answer(beams), strict=True):
            assert one.tokens == other.tokens
        for requests in (forced, [Request(0, picture)]):
            for one, other in zip(ours.answer(requests), theirs.answer(requests), strict=True):
                assert one.tokens == other.tokens
                assert one.text == other.text
                assert len(one.token_times) == len(one.tokens) == len(other.token_times)
                assert list(one.token_times) == sorted(one.token_times)
                assert other.stages["tower"] > 0
        (encoded,) = theirs.answer([Request(0, picture, want="encode")])
        assert encoded.stages["tower"] > 0
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(b"no picture")
        good, bad = ours.answer([Request(0, picture), Request(1, str(broken))])
        assert good.error is None
        assert bad.error is not None


def test_the_peak_can_count_anew() -> None:
    size = 16 * 2**20
    worker.forget_peak()
    low = worker.memory()
    # Pages of its own: an array might be given what an earlier test left in the heap.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(block, np.uint8)[:] = 1
    high = worker.memory()
    assert high["peak"] - low["peak"] >= 15 * 2**20
    if "anonymous" in high:  # Linux
        assert high["anonymous"] - low["anonymous"] >= 15 * 2**20
        block.close()
        worker.forget_peak()
        assert worker.memory()["peak"] <= high["peak"] - 15 * 2**20
