"""The page of what is supported: made of the register, and up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primelens.export.compatibility import PAGE, PROOFS, main, render
from primelens.export.proof import Proof, ProofOptions
from primelens.export.proof_table import merge_json, read_json
from primelens.export.registry import supported
from primelens.export.work import find_work

ROOT = Path(__file__).resolve().parents[2]


def entry(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    work = find_work(name)
    proof = Proof(work.name, work.family, work.parts, work.like, work.notes, work.picture)
    for key, value in fields.items():
        setattr(proof, key, value)
    merge_json(folder / "proofs.json", proof, ProofOptions())
    return read_json(folder / "proofs.json")


def test_the_page_is_up_to_date(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["--check"]) == 0, "run python -m primelens.export.compatibility"
    assert (ROOT / PAGE).read_text(encoding="utf-8") == render(read_json(ROOT / PROOFS))


def test_every_registered_type_is_on_the_page() -> None:
    page = render({})
    for types in supported().values():
        for model_type in types:
            assert f"| `{model_type}` |" in page
    assert "Nothing yet." in page
    assert "`fp32`, `int8`" in page


def test_what_passed_is_listed_and_what_did_not_is_missing(tmp_path: Path) -> None:
    entry(
        tmp_path, "vitgpt2-base", architecture="VisionEncoderDecoderModel", tokens=1234,
        parameters=239_000_000, errors={"tap": (1e-6, 2e-5)}, heads={"caption": "caption"},
    )  # fmt: skip
    proofs = entry(tmp_path, "donut-base", failures=["head caption, something differs"])
    page = render(proofs)
    proved, missing = page.split("## Not proved at these sizes yet")
    assert "| VisionEncoderDecoderModel: vit + gpt2 |" in proved
    assert "| 239 M | 224 x 224 | caption | 1234 | 0 | 0 | 1.0e-06 / 2.0e-05 | – |" in proved
    assert "3 and 5 beams of 24 tokens with length penalties of 0.6 and 1.4" in proved
    assert "| donut-base |" in missing
    assert "| vitgpt2-base |" not in missing
    (row,) = [line for line in proved.splitlines() if line.startswith("| `gpt2` |")]
    assert row.endswith("| vitgpt2-base |")


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--page", str(tmp_path / "page.md"), "--proofs", str(tmp_path / "none.json")]
    assert main([*arguments, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    (tmp_path / "page.md").write_text("edited by hand")
    assert main([*arguments, "--check"]) == 1
