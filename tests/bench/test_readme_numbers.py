"""README's speeds come from the committed results, and from nowhere else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "readme_numbers.py"


@pytest.fixture(scope="module")
def numbers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_numbers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_readme_is_in_step_with_the_results() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def beams(folder: Path, others: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "ratio": {"estimate": 1.25, "low": 1.2, "high": 1.3},
        "memory": {
            name: value * 2**20
            for name, value in {
                "growth": 9,
                "self_cache": 4,
                "logits": 1,
                "scores": 1,
                "files": 2,
                "rest": 1,
            }.items()
        },
        "moved_share": 0.004,
        "beams": 3,
        "others_before": others,
        "environment": {
            "cpu": "Abacus",
            "flags": ["avx2"],
            "usable": 2,
            "memory": 24 * 2**30,
            "python": "3.11.7",
            "packages": {"onnxruntime": "1.32.0"},
        },
    }
    (folder / "vitgpt2-base.beams.json").write_text(json.dumps(document))


def test_a_changed_result_changes_the_readme(numbers: ModuleType, tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(f"before\n{numbers.BEGIN}\nold\n{numbers.END}\nafter\n")
    beams(results / "one", 0.0)
    paths = ("--readme", str(readme), "--results", str(results))
    assert run("--check", *paths).returncode == 1
    assert "old" in readme.read_text()  # a check writes nothing
    assert run(*paths).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "1.25 × [1.20, 1.30]" in text
    assert "9.0 MiB more memory: 4.0 the beams' own cache, 2.0 their logits and scores" in text
    assert "busy" not in text
    assert run("--check", *paths).returncode == 0
    beams(results / "one", 0.5)
    assert run("--check", *paths).returncode == 1
    run(*paths)
    assert "(busy machine)" in readme.read_text()


def test_a_readme_without_marks_is_refused(numbers: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="once each"):
        numbers.in_step("no marks", tmp_path)
