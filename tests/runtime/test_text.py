from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import primelens
from primelens.text import TextStream, TokenText

from .conftest import byte_tokenizer


@pytest.fixture(scope="module")
def bytes_text(tmp_path_factory: pytest.TempPathFactory) -> TokenText:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    byte_tokenizer(path)
    return TokenText(path)


def _word_piece(path: Path) -> TokenText:
    words = ["[UNK]", "a", "cat", "##s", ",", "do", "n't", "'", "s", ".", "##ly"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.save(str(path))
    return TokenText(path)


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_a_stream_never_emits_half_a_character(bytes_text: TokenText, text: str) -> None:
    if not text.encode():
        return
    ids = bytes_text.encode(text)
    stream = TextStream(bytes_text)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == bytes_text.decode(ids).strip() == text.strip()
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


@settings(deadline=None)
@given(ids=st.lists(st.integers(1, 256), max_size=12))
def test_invalid_bytes_come_out_in_the_end(bytes_text: TokenText, ids: list[int]) -> None:
    stream = TextStream(bytes_text)
    joined = "".join([stream.push(token) for token in ids] + [stream.finish()])
    assert joined == bytes_text.decode(ids).strip()


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 10), max_size=12))
def test_joined_words_are_held_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    text = _word_piece(tmp_path_factory.mktemp("text") / "tokenizer.json")
    stream = TextStream(text)
    joined = "".join([stream.push(token) for token in ids] + [stream.finish()])
    assert joined == text.decode(ids).strip()


def test_characters_come_as_soon_as_they_are_whole(bytes_text: TokenText) -> None:
    stream = TextStream(bytes_text)
    assert [stream.push(token) for token in bytes_text.encode("né")] == ["n", "", "é"]


def test_clean_up_joins_as_the_source_does(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "t.json")
    text = TokenText(tmp_path / "t.json", clean_up=True)
    assert text.decode(text.encode("a cat , is n't it ?")) == "a cat, isn't it?"


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(primelens.BundleError, match="not a tokenizer"):
        TokenText(tmp_path / "t.json")


def test_an_empty_prompt_is_refused(bytes_text: TokenText) -> None:
    with pytest.raises(primelens.PromptError, match="no token"):
        bytes_text.encode("")
