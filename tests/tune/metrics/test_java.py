"""METEOR and SPICE: what is said where they cannot run, and the official number where they can."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from primelens.errors import DependencyError, EngineError
from primelens.tune.metrics import JavaScorer, intervals
from primelens.tune.metrics.java import METEOR_JAR, SPICE_JAR

FAKE = """#!{python}
import json, sys
arguments = sys.argv[1:]
{body}
"""


def fake_java(folder: Path, body: str) -> JavaScorer:
    """A program in the place of Java, with the jars that it is asked for."""
    for name in (METEOR_JAR, SPICE_JAR):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"PK")
    program = folder / "java"
    program.write_text(FAKE.format(python=sys.executable, body=body))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return JavaScorer(folder, java=str(program))


def test_without_java_or_jar_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="needs Java"):
        JavaScorer(tmp_path, java="no-such-java").meteor([["a"]], [[["a"]]])
    scorer = fake_java(tmp_path, "")
    (tmp_path / METEOR_JAR).unlink()
    with pytest.raises(DependencyError, match=r"meteor-1\.5\.jar is missing"):
        scorer.meteor([["a"]], [[["a"]]])


def test_meteor_by_hand(tmp_path: Path) -> None:
    # 6 words against 9, of which 1 and 2 are function words. Exact: 3 content and 1 function word;
    # synonyms (weight 0.8): 1 content word; 3 chunks in 5 matches.
    line = "6 9 1 2  3 3 1 1  0 0 0 0  1 1 0 0  0 0 0 0  3 5 5"
    scorer = fake_java(tmp_path, f"for _ in sys.stdin: print({line!r})")
    weighted = 0.75 * (3 + 0.8) + 0.25 * 1
    p, r = weighted / (0.75 * 5 + 0.25 * 1), weighted / (0.75 * 7 + 0.25 * 2)
    mean = p * r / (0.85 * p + 0.15 * r)
    found = scorer.meteor([["x"]], [[["y"], ["z"]]])
    assert found.scores()["METEOR"] == pytest.approx(mean * (1 - 0.6 * (3 / 5) ** 0.2))


def test_a_perfect_caption_in_one_chunk_is_not_punished(tmp_path: Path) -> None:
    line = "2 2 0 0  2 2 0 0  0 0 0 0  0 0 0 0  0 0 0 0  1 2 2"
    scorer = fake_java(tmp_path, f"for _ in sys.stdin: print({line!r})")
    assert scorer.meteor([["x"]], [[["y"]]]).scores()["METEOR"] == 1


def test_what_the_jar_is_asked(tmp_path: Path) -> None:
    body = (
        "open('asked.json', 'w').write(json.dumps([arguments, sys.stdin.read()]))\n"
        "print(' '.join(['0'] * 23))"
    )
    tally = fake_java(tmp_path, body).meteor([["a", "|||", "b"]], [[["c"], ["d", "e"]]])
    assert tally.scores()["METEOR"] == 0
    arguments, text = json.loads((tmp_path / "meteor" / "asked.json").read_text())
    assert text == "SCORE ||| c ||| d e ||| a  b\n"
    assert arguments[:3] == ["-Xmx2G", "-jar", "meteor-1.5.jar"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no heap')", "exit code 1: no heap"),
        ("print('1 2')", r"array \(1, 2\)"),
        ("print('oops')", "no numbers"),
    ],
)
def test_a_jar_that_fails_is_an_engine_error(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        fake_java(tmp_path, body).meteor([["a"]], [[["a"]]])


def test_spice_reads_the_overall_f_and_takes_none_for_zero(tmp_path: Path) -> None:
    body = """
rows = json.load(open(arguments[arguments.index("spice-1.0.jar") + 1]))
assert rows[1] == {"image_id": 1, "test": "c d", "refs": ["e", "f"]}
told = [{"image_id": r["image_id"], "scores": {"All": {"f": [0.25, float("nan")][r["image_id"]]}}}
        for r in reversed(rows)]
json.dump(told, open(arguments[arguments.index("-out") + 1], "w"))
"""
    tally = fake_java(tmp_path, body).spice([["a"], ["c", "d"]], [[["b"]], [["e"], ["f"]]])
    assert np.array_equal(tally.rows[:, 0], [0.25, 0.0])
    with pytest.raises(EngineError, match="wrote no result"):
        fake_java(tmp_path, "").spice([["a"]], [[["a"]]])


@pytest.mark.slow
def test_the_official_meteor(shared_data: Path) -> None:
    folder = os.environ.get("PRIMELENS_PYCOCOEVALCAP")
    if not folder or shutil.which("java") is None:
        pytest.skip("needs Java and the folder of pycocoevalcap in PRIMELENS_PYCOCOEVALCAP")
    data = json.loads((shared_data / "coco126.tok.json").read_text(encoding="utf-8"))
    keys = list(data["gts"])
    candidates = [data["res"][k][0].split() for k in keys]
    references = [[x.split() for x in data["gts"][k]] for k in keys]
    tally = JavaScorer(Path(folder)).meteor(candidates, references)
    assert tally.scores()["METEOR"] == pytest.approx(0.2050844752, rel=0, abs=1e-9)
    assert intervals(tally)["METEOR"].low < 0.2050844752 < intervals(tally)["METEOR"].high
