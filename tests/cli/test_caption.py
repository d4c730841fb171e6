"""``primelens caption`` on a fake model: lines, rows, order, failures and notices."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from primelens.cli.rows import caption_row
from primelens.decoding.options import DecodingOptions
from primelens.options import CacheOptions

Run = Callable[..., Result]


def _rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_picture_gives_its_caption_alone(run: Run, model: Any, pictures: Path) -> None:
    result = run("caption", "cat.png")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a picture of cat\n", "")


def test_several_pictures_are_labelled(run: Run, model: Any, pictures: Path) -> None:
    result = run("caption", "cat.png", "deep")
    assert result.exit_code == 0
    assert result.stdout == "cat.png: a picture of cat\ndeep/dog.webp: a picture of dog\n"


def test_a_failure_does_not_stop_its_neighbours(run: Run, model: Any, pictures: Path) -> None:
    result = run("caption", "bad.jpeg", "cat.png", "missing.png", "bird.JPG")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "cat.png: a picture of cat",
        "bird.JPG: a picture of bird",
    ]
    assert result.stderr.splitlines() == [
        "primelens: error: bad.jpeg is no picture. Give a picture.",
        "primelens: error: missing.png does not exist. Check the path.",
        "primelens: 2 of 4 pictures failed",
    ]
    assert model.batches == [["bad.jpeg", "cat.png", "missing.png", "bird.JPG"]]


def test_json_has_one_object_per_input_in_order(run: Run, model: Any, pictures: Path) -> None:
    model.notices["cat"] = "outside of the domain"
    result = run("caption", "empty", "cat.png", "bad.jpeg", "--json")
    assert result.exit_code == 1
    empty, cat, bad = _rows(result)
    assert cat == {
        "image": "cat.png",
        "status": "ok",
        "caption": "a picture of cat",
        "tokens": [5, 6, 2],
        "logprob": -1.5,
        "finish_reason": "stop",
        "timings_ms": {
            "preprocess": 1.0,
            "tower": 2.0,
            "connector": 0.0,
            "prefill": 0.0,
            "step": 0.0,
            "total": 3.0,
        },
        "cache": "off",
        "model": "fake",
        "notice": "outside of the domain",
    }
    assert bad == {
        "image": "bad.jpeg",
        "status": "error",
        "error": {
            "kind": "ImageError",
            "message": "bad.jpeg is no picture.",
            "remedy": "Give a picture.",
            "problems": [],
        },
        "model": "fake",
    }
    assert empty["error"]["message"] == "empty: the folder holds no picture."
    assert "notice" not in result.stderr


def test_options_reach_the_model(run: Run, model: Any, pictures: Path) -> None:
    asked = ["--model", "m", "--threads", "2", "--revision", "r", "--prompt", "it is"]
    result = run("caption", *asked, "--batch-size", "2", "--max-new-tokens", "7", ".", "--json")
    assert result.exit_code == 1
    ((name, loading, cache),) = model.loaded
    assert (name, loading.threads, loading.revision, cache) == ("m", 2, "r", None)
    assert {(o.prompt, o.max_new_tokens) for o in model.options} == {("it is", 7)}
    assert model.batches == [["bad.jpeg", "bird.JPG"], ["cat.png"]]


def test_prompts_are_one_for_all_or_one_for_each(run: Run, model: Any, pictures: Path) -> None:
    two = ["--prompt", "a", "--prompt", "b"]
    assert run("caption", *two, "cat.png", "bird.JPG").exit_code == 0
    assert run("caption", *two, "cat.png", "empty").exit_code == 1
    assert [options.prompt for options in model.options] == [("a", "b"), ("a", "b"), ("a",)]
    result = run("caption", *two, "cat.png")
    assert result.exit_code == 2
    assert "given 2 times, pictures: 1" in result.stderr
    assert run("caption", *two, "--stream", "cat.png", "bird.JPG").exit_code == 0
    assert [options.prompt for options in model.options[3:]] == [("a",), ("b",)]


def test_a_cache_is_asked_for_by_its_folder(run: Run, model: Any, pictures: Path) -> None:
    assert run("caption", "cat.png", "--cache", "kept").exit_code == 0
    assert [cache for _, _, cache in model.loaded] == [CacheOptions("kept")]


def test_decoding_options_are_set_by_their_own_names(run: Run, model: Any, pictures: Path) -> None:
    settings = ["top_p=0.9", "do_sample=true", 'bad_words=["a b", "c"]', "regex=a|b"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    assert run("caption", "cat.png", "--beams", "3", *flags).exit_code == 0
    (options,) = model.options
    expected = DecodingOptions(
        num_beams=3, top_p=0.9, do_sample=True, bad_words=("a b", "c"), regex="a|b"
    )
    assert options.decoding == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--set", "num_beam=2"], "did you mean num_beams"),
        (["--set", "qqq=2"], "there are bad_words, bad_words_ids"),
        (["--set", "num_beams"], "NAME=VALUE"),
        (["--set", "num_beams=0"], "num_beams is 0"),
        (["--set", "num_beams=2", "--beams", "2"], "given twice"),
        (["--set", "regex=a", "--set", 'choices=["a"]'], "exclude each other"),
    ],
)
def test_a_decoding_option_that_is_wrong_is_wrong_usage(
    run: Run, model: Any, pictures: Path, flags: list[str], said: str
) -> None:
    result = run("caption", "cat.png", *flags)
    assert result.exit_code == 2
    assert said in result.stderr
    assert model.loaded == []


def test_several_captions_of_a_picture_are_several_lines(
    run: Run, model: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = model.caption("cat.png")
    two = replace(one, others=(replace(one, text="another"),))
    monkeypatch.setattr(model, "caption_batch", lambda *_, **settings: iter([two]))
    assert run("caption", "cat.png").stdout == "a picture of cat\nanother\n"


def test_rows_hold_what_decoding_was_asked_for(model: Any, pictures: Path) -> None:
    caption = model.caption("cat.png")
    other = replace(caption, text="another", score=-0.75)
    rich = replace(caption, score=-0.5, alternatives=(((5, -0.1), (7, -2.0)),), others=(other,))
    row = caption_row("cat.png", rich, "fake")
    assert row["score"] == -0.5
    assert row["alternatives"] == [[[5, -0.1], [7, -2.0]]]
    assert [(o["caption"], o["score"]) for o in row["others"]] == [("another", -0.75)]
    assert json.loads(json.dumps(row)) == row


def test_streaming_gives_the_same_lines(run: Run, model: Any, pictures: Path) -> None:
    arguments = ["caption", "cat.png", "empty", "bad.jpeg", "bird.JPG"]
    streamed, plain = run(*arguments, "--stream"), run(*arguments)
    assert streamed.exit_code == plain.exit_code == 1
    assert streamed.stdout == plain.stdout
    assert streamed.stderr == plain.stderr


def test_streaming_shows_each_piece_at_once(
    run: Run, model: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primelens.cli import rows

    written: list[tuple[str, bool]] = []
    monkeypatch.setattr(rows, "write_text", lambda t, newline=True: written.append((t, newline)))
    run("caption", "cat.png", "--stream")
    assert written == [
        ("a ", False),
        ("picture ", False),
        ("of ", False),
        ("cat", False),
        ("", True),
    ]


def test_streaming_and_json_exclude_each_other(run: Run, model: Any, pictures: Path) -> None:
    result = run("caption", "cat.png", "--stream", "--json")
    assert result.exit_code == 2
    assert "--json writes finished rows" in result.stderr
    assert model.loaded == []


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_notice_is_said_once_and_counted(
    run: Run, model: Any, pictures: Path, stream: list[str]
) -> None:
    model.notices = {"cat": "not a drawn scene", "bird": "not a drawn scene"}
    result = run("caption", "cat.png", "deep", "bird.JPG", *stream)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "primelens: notice: cat.png: not a drawn scene",
        "primelens: notice: not a drawn scene (2 of 3 pictures)",
    ]


def test_a_name_or_caption_cannot_steer_the_terminal(run: Run, model: Any, pictures: Path) -> None:
    (pictures / "x\x1b[2J\n.png").write_bytes(b"")
    result = run("caption", "x\x1b[2J\n.png", "cat.png")
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 2
    assert _rows(run("caption", "x\x1b[2J\n.png", "--json"))[0]["image"] == "x\x1b[2J\n.png"


def test_a_name_that_is_no_text_survives_json(run: Run, model: Any, pictures: Path) -> None:
    name = "caf\udce9.png"  # a lone byte 0xE9, as the file system gives it
    (pictures / name).write_bytes(b"")
    result = run("caption", name, "--json")
    assert result.stdout.isascii()
    assert _rows(result)[0]["image"] == name


def test_an_infinite_logprob_is_null(run: Run, model: Any, pictures: Path) -> None:
    caption = model.caption("cat.png")
    object.__setattr__(caption, "logprob", float("-inf"))
    assert caption_row("cat.png", caption, "fake")["logprob"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["caption"], "IMAGE"),
        (["caption", "cat.png", "--batch-size", "0"], "--batch-size"),
        (["caption", "cat.png", "--max-new-tokens", "x"], "--max-new-tokens"),
        (["caption", "cat.png", "--modell", "m"], "--modell"),
        (["captoin", "cat.png"], "captoin"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    run: Run, model: Any, pictures: Path, arguments: list[str], said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert model.loaded == []
