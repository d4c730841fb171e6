from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from primelens.bench import commands
from primelens.bench.compare import compare_results, compare_systems, comparison_lines
from primelens.bench.exports import as_csv, as_pyperf
from primelens.bench.result import Result
from primelens.bench.run import Outcome
from primelens.bench.samples import sample_rows, write_samples
from primelens.errors import OptionError


def scaled(result: Result, factor: float) -> Result:
    """The same result with all latencies multiplied."""
    cells = [
        {**cell, "blocks": [[value * factor for value in block] for block in cell["blocks"]]}
        for cell in result.cells
    ]
    return replace(result, cells=cells)


def files(tmp_path: Path, first: Result, second: Result) -> list[str]:
    first.write(tmp_path / "a.json")
    second.write(tmp_path / "b.json")
    return ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_a_result_is_not_slower_than_itself(outcome: Outcome, tmp_path: Path) -> None:
    assert commands.main(files(tmp_path, outcome.result, outcome.result)) == 0


def test_a_much_slower_result_fails(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(files(tmp_path, outcome.result, scaled(outcome.result, 2.0))) == 1
    assert "slower" in capsys.readouterr().out


def test_a_faster_result_passes(outcome: Outcome, tmp_path: Path) -> None:
    assert commands.main(files(tmp_path, outcome.result, scaled(outcome.result, 0.5))) == 0


def test_other_environments_are_refused(outcome: Outcome) -> None:
    other = {**outcome.result.environment, "cpu": "another"}
    with pytest.raises(OptionError, match="another"):
        compare_results(outcome.result, replace(outcome.result, environment=other))


def test_other_specs_are_refused(outcome: Outcome) -> None:
    other = replace(
        outcome.result, spec={**outcome.result.spec, "tokens": 99}, spec_digest="0" * 64
    )
    with pytest.raises(OptionError, match=r"spec\.tokens: 5 and 99"):
        compare_results(outcome.result, other)


def test_a_result_of_a_busy_machine_is_refused_unless_forced(
    outcome: Outcome, tmp_path: Path
) -> None:
    busy = replace(outcome.result, load={**outcome.result.load, "concluded": False})
    arguments = files(tmp_path, outcome.result, busy)
    with pytest.raises(OptionError, match="busy"):
        commands.main(arguments)
    assert commands.main([*arguments, "--force"]) == 0


def test_systems_of_one_run_are_compared_pair_by_pair(outcome: Outcome) -> None:
    rows = compare_systems(outcome.result, "primelens", "peer")
    assert {row.comparison.test for row in rows} == {"signed-rank"}
    assert all(row.slower for row in rows if row.scenario != "server")
    assert all(not row.slower for row in compare_systems(outcome.result, "peer", "primelens"))
    assert any("slower" in line for line in comparison_lines(rows))
    with pytest.raises(OptionError, match="took turns"):
        compare_systems(outcome.result, "primelens", "nobody")


def test_csv_holds_every_cell(outcome: Outcome) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(outcome.result))))
    assert len(rows) == len(outcome.result.cells)
    for row, cell in zip(rows, outcome.result.cells, strict=True):
        assert row["system"] == cell["system"]
        assert float(row["e2e_p50"]) == cell["figures"]["seconds"]["e2e"]["p50"]


def test_pyperf_reads_the_export(outcome: Outcome, tmp_path: Path) -> None:
    data = json.loads(as_pyperf(outcome.result))
    assert len(data["benchmarks"]) == len(outcome.result.cells)
    assert [run["values"] for run in data["benchmarks"][0]["runs"]] == [
        list(block) for block in outcome.result.cells[0]["blocks"]
    ]
    pyperf = pytest.importorskip("pyperf", reason="pyperf is not installed")
    path = tmp_path / "result.json"
    path.write_text(as_pyperf(outcome.result))
    suite = pyperf.BenchmarkSuite.load(str(path))
    assert len(suite.get_benchmarks()) == len(outcome.result.cells)


def test_every_sample_is_a_row_failures_too(outcome: Outcome, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    failed = replace(
        outcome.samples[0], answer=replace(outcome.samples[0].answer, error="broken", tokens=())
    )
    samples = [failed, *outcome.samples[1:]]
    write_samples(tmp_path / "samples.parquet", samples)
    table = parquet.read_table(tmp_path / "samples.parquet")
    assert table.num_rows == len(samples)
    assert table.column("error").to_pylist().count("broken") == 1
    assert min(table.column("ended").to_pylist()) > 0
    assert set(table.schema.names) == set(sample_rows(samples)[0])
