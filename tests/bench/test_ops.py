"""`primelens bench ops` at a tiny size: everything is checked, timed and written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from primelens import kernels
from primelens.bench import ops
from primelens.bench.bandwidth import Limits
from primelens.bench.op_attention import WAYS, AttentionShape, measure_attention
from primelens.bench.op_graphs import HEADS, PRODUCTS, open_operation
from primelens.errors import EngineError
from primelens.kernels import reference

pytestmark = pytest.mark.skipif(
    kernels.library().path is None, reason=f"no kernels: {kernels.library().reason}"
)


def test_the_command_measures_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.ENVIRONMENT, "portable")
    ways = {"read:": 3e10, "fp32:": 1e11}  # measuring them takes seconds, and has its own tests
    monkeypatch.setattr(
        ops, "measure_limits", lambda threads, **_: Limits(threads, 3e10, 1e11, None, ways)
    )
    words = "--rows 1,17 --shapes 64x48 --vocabulary 600 --head-rows 2 --threads 1 --blocks 2"
    status = ops.main([*words.split(), "--cache", "20000", "--json", str(tmp_path / "ops.json")])
    assert status == 0
    assert os.environ[kernels.ENVIRONMENT] == "portable"  # as it was
    result = json.loads((tmp_path / "ops.json").read_text())
    assert len(result["cases"]) == 2 * len(PRODUCTS) + len(HEADS)
    for case in result["cases"]:
        assert len(case["seconds"]) == 2
        assert min(case["seconds"]) > 0
        assert case["copies"] * case["nbytes"] >= 3 * 20000  # more than any cache of that size
        if "kernel" in case["way"]:
            assert "bits" in result["checked"][f"{case['way']}, {case['bits']} bits"]
            assert case["faster_than"]
    assert result["limits"]["1"]["read_bytes_per_s"] > 0
    said = capsys.readouterr().out
    assert "against the engine's best" in said
    assert said.count("kernel, avx2") == 4


def test_attention_is_measured_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(1, 3e10, 1e11, None, {"read:": 3e10, "fp32:": 1e11})
    monkeypatch.setattr(ops, "measure_limits", lambda threads, **_: limits)
    words = "--attention 2x64x9,3x16x5 --images 1,2 --image-rows 1,3 --threads 1 --blocks 2"
    status = ops.main([*words.split(), "--cache", "20000", "--json", str(tmp_path / "ops.json")])
    assert status == 0
    result = json.loads((tmp_path / "ops.json").read_text())
    assert len(result["attention"]) == 2 * 2 * 2 * len(WAYS)
    for case in result["attention"]:
        assert case["copies"] * case["nbytes"] >= 3 * 20000
        assert min(case["seconds"]) > 0
        assert case["checked"] == "equal bits" or "kernel" not in case["way"]
        assert ("faster_than_the_engine" in case) == ("kernel" in case["way"])
    assert "3 x 5 x 16" in capsys.readouterr().out


def test_a_wrong_attention_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.float32(1e-6)
    found = reference.cross_attention
    monkeypatch.setattr(reference, "cross_attention", lambda *words: found(*words) + wrong)
    with pytest.raises(EngineError, match="kernel differs from its reference"):
        measure_attention(AttentionShape(1, 1, 2, 7, 8), 1, 2, cache=1000)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_operation(PRODUCTS[0], (32, 16), copies=1, threads=1)
    x = np.random.default_rng(2).standard_normal((3, 32), np.float32)
    assert ops.check_operation(opened, x) == "equal bits"
    wrong = [output + np.float32(1e-6) for output in opened.outputs(x)]
    monkeypatch.setattr(opened, "outputs", lambda _: wrong)
    with pytest.raises(EngineError, match="differs from its reference"):
        ops.check_operation(opened, x)


def test_the_engines_ways_multiply_with_the_weights_they_are_said_to() -> None:
    x = np.random.default_rng(3).standard_normal((4, 64), np.float32)
    for operation in PRODUCTS:
        if "kernel" not in operation.name and operation.name != "MatMulInteger":
            opened = open_operation(operation, (64, 48), copies=2, threads=1)
            assert ops.check_operation(opened, x).startswith("within")
