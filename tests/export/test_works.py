"""Reference works: small ones through the same comparison as the published sizes; the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import primelens
from primelens import CaptionOptions, DecodingOptions, LoadOptions
from primelens.errors import OptionError
from primelens.export import proof as proof_module
from primelens.export import proof_captions
from primelens.export.bundle_writer import write_draft
from primelens.export.proof import Proof, ProofOptions, Subject, cases, end_token, prove_captions
from primelens.export.proof_table import merge_json, print_row, print_title, read_json
from primelens.export.reference_works import NAMES, main
from primelens.export.work import Work as ReferenceWork
from primelens.export.work import find_work, register_work
from primelens.export.work import works as all_works

from .conftest import OPTIONS, Work
from .mutations import TABLES

SMALL = ProofOptions(
    pictures=4, steps=20, beam_steps=12, beams=(3,), penalties=(0.6, 1.4), batches=(3,), threads=1
)


def subject_of(work: Work, name: str, folder: Path, options: ProofOptions = SMALL) -> Subject:
    write_draft(work.draft, folder, OPTIONS)
    answers = work.answers["caption"]
    return Subject(
        work=find_work(name),
        options=options,
        source=work.checkpoint,
        name="caption",
        head=work.split.heads["caption"],
        model=primelens.load(folder, options=LoadOptions(threads=1, check="size")),
        pictures=answers.pictures,
        pixels=answers.pixels,
        rounding=answers.logits.noise,
    )


@pytest.mark.parametrize("name", list(TABLES))
def test_beams_and_prompts_equal_generate(
    works: Callable[[str], Work], name: str, tmp_path: Path
) -> None:
    found = prove_captions(subject_of(works(name), name, tmp_path))
    assert found.failures == []
    assert found.ties == 0
    assert found.searches == 2 * 3
    assert found.tokens > 12 * 3


@pytest.mark.parametrize("name", ["tiny-deitroberta", "tiny-trocr-sinusoidal", "tiny-trocr"])
def test_padding_in_a_prompt_counts_as_in_the_source(
    works: Callable[[str], Work], name: str, tmp_path: Path
) -> None:
    """RoBERTa's padding tokens take no place, and neither do those among sinusoids."""
    subject = subject_of(works(name), name, tmp_path)
    prompt = "a<pad><pad> view<pad>"
    ids = subject.model.head().text.encode(prompt)
    padding = subject.source.model.config.decoder.pad_token_id
    assert ids.count(padding) == 3
    reference: Any = subject.head.reference
    wanted = reference.generate_after(subject.pixels, ids, {"max_new_tokens": 12})
    options = CaptionOptions(max_new_tokens=12, prompt=prompt, decoding=DecodingOptions())
    captions = subject.model.caption(list(subject.pictures), options)
    assert [list(caption.tokens) for caption in captions] == wanted
    assert wanted != reference.generate_after(
        subject.pixels, [token for token in ids if token != padding], {"max_new_tokens": 12}
    )


def test_a_difference_is_found_and_a_tie_is_none(
    works: Callable[[str], Work], tmp_path: Path
) -> None:
    name = "tiny-vitgpt2"
    subject = subject_of(works(name), name, tmp_path)
    case = cases(SMALL, None)[0]
    comparison = proof_captions.CaptionProof(subject)
    wanted = comparison._wanted(case, [], slice(0, 1))[0]
    other = [*wanted[:-1], (wanted[-1] + 5) % 320]
    comparison._compare(case, 0, other, wanted)
    assert comparison._found.ties == 0
    (failure,) = comparison._found.failures
    assert "in float64 the source's is ahead by" in failure
    # With a rounding error as large as the logits themselves nothing can be told apart.
    blurred = proof_captions.CaptionProof(Subject(**{**subject.__dict__, "rounding": 1e3}))
    blurred._compare(case, 0, other, wanted)
    assert (blurred._found.ties, blurred._found.failures) == (1, [])


def test_every_three_settings_meet_in_every_way() -> None:
    options = ProofOptions()
    found = cases(options, "a view of")
    assert len(found) == 4 + 8
    beams = [(c.beams, c.penalty, c.prompt, c.batch) for c in found if c.beams > 1]
    for left_out in range(4):
        triples = {tuple(v for i, v in enumerate(case) if i != left_out) for case in beams}
        assert len(triples) == 8
    assert {case.prompt for case in cases(options, None)} == {None}


def test_an_end_token_ends_some_texts_and_not_all() -> None:
    texts = [[5, 6, 7, 8, 9], [5, 6, 7, 4, 4], [5, 6, 3, 3, 3]]
    assert end_token(texts) == 8
    assert end_token([[1, 1, 1], [1, 1, 1]]) is None


def test_every_part_has_a_published_and_a_small_work() -> None:
    towers = {"beit", "deit", "donut-swin", "feature_map_tower", "swin", "vit"}
    decoders = {"bart", "bert", "gpt2", "mbart", "roberta", "trocr"}
    for size in ("published", "small"):
        found = {part for work in all_works().values() if work.size == size for part in work.parts}
        assert towers | decoders <= found


def test_names_are_unique_and_known() -> None:
    assert {"vitgpt2-base", "donut-base", "tiny-vitgpt2"} <= set(NAMES)
    with pytest.raises(ValueError, match="two reference works"):
        register_work(find_work("tiny-vitgpt2"))
    with pytest.raises(OptionError, match="no reference work 'nonsense'"):
        find_work("nonsense")


# The command ------------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[str, ProofOptions]] = []

    def prove_work(work: ReferenceWork, options: ProofOptions) -> Proof:
        asked.append((work.name, options))
        failures = ["head caption, something differs"] if work.name == "vitbert-base" else []
        fields = (work.name, work.family, work.parts, work.like, work.notes, work.picture)
        return Proof(*fields, tokens=7, errors={"tap": (1e-6, 1e-5)}, failures=failures)

    monkeypatch.setattr(proof_module, "prove_work", prove_work)
    path = tmp_path / "proofs.json"
    arguments = ["--only", "vitgpt2-base", "--json", str(path), "--threads", "1", "--steps", "9"]
    assert main(arguments) == 0
    assert asked[0][0] == "vitgpt2-base"
    assert (asked[0][1].threads, asked[0][1].steps) == (1, 9)
    assert main(["--only", "vitbert-base", "--json", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "vit + gpt2" in printed
    assert "1.0e-06 / 1.0e-05" in printed
    assert "something differs" in printed
    entries = read_json(path)
    assert list(entries) == ["vitbert-base", "vitgpt2-base"]
    assert entries["vitgpt2-base"]["passed"] is True
    assert entries["vitbert-base"]["passed"] is False
    assert entries["vitgpt2-base"]["asked"]["steps"] == 9
    assert json.loads(path.read_text())["works"] == entries


def test_the_command_lists_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    published = capsys.readouterr().out
    assert "donut-swin + mbart" in published
    assert "tiny-" not in published
    assert main(["--list", "--small"]) == 0
    assert "tiny-donut" in capsys.readouterr().out


def test_rows_of_other_kinds_have_dashes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    print_title()
    print_row(Proof("x", "dual", (), "y", "", (8, 8), parameters=1_500_000))
    title, row = capsys.readouterr().out.splitlines()
    assert title.index("parameters") == row.index("1.5 M")
    assert " -  " in row
    proof = Proof("x", "dual", (), "y", "", (8, 8))
    merge_json(tmp_path / "new.json", proof, ProofOptions())
    assert read_json(tmp_path / "new.json")["x"]["parts"] == []
    assert read_json(tmp_path / "none.json") == {}
    assert np.isfinite(read_json(tmp_path / "new.json")["x"]["seconds"])
