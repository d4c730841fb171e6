"""Stop strings end a sequence exactly where transformers' criterion does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from primelens.decoding.stopping import StopText
from primelens.text import TokenText


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["ab", "bc", "Ġab", "cab", "abc", "Ġ.", "..", "é".encode().decode("latin-1")]
    vocab = {token: i for i, token in enumerate(["<end>", *dict.fromkeys([*alphabet, *words])])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_piece() -> Tokenizer:
    words = ["[UNK]", "a", "b", "cab", "##a", "##b", "##c", ".", "abcdef", "##abc"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdef", "▁ab", "ca", "bc"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={w: i for i, w in enumerate(words)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


TOKENIZERS = {"bytes": _byte_level, "words": _word_piece, "fallback": _byte_fallback}


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenText, PreTrainedTokenizerFast]:
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    tokenizer = TOKENIZERS[request.param]()
    tokenizer.save(str(path))
    return TokenText(path), PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    stops=st.lists(st.text("abc .é", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
)
def test_a_sequence_stops_where_transformers_stops_it(
    pair: tuple[TokenText, PreTrainedTokenizerFast], data: st.DataObject, stops: list[str]
) -> None:
    text, theirs = pair
    size = text.vocab_size
    near = [i for i in range(size) if set(text.piece_bytes(i)) & set("".join(stops).encode())]
    token = (
        st.one_of(st.sampled_from(near), st.integers(0, size - 1))
        if near
        else st.integers(0, size - 1)
    )
    sequences = data.draw(
        st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=30)
    )
    last = {stop.encode()[-1:] for stop in stops}
    pieces = [text.piece_bytes(token) for token in range(size)]
    if not any(end in piece for piece in pieces for end in last):
        return  # no token can complete any of them, and transformers refuses the strings
    criterion = StopStringCriteria(theirs, stops)
    mine = StopText(text.piece_bytes, stops)
    for sequence in sequences:
        assert mine(sequence) == bool(criterion(torch.tensor([sequence]), None))


def test_only_the_window_matters(pair: tuple[TokenText, PreTrainedTokenizerFast]) -> None:
    mine = StopText(pair[0].piece_bytes, ["abc", "z"])
    assert mine.window == 3


def test_pieces_are_what_text_is_made_of(tmp_path: Path) -> None:
    tokenizer = _byte_level()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "t.json"))
    text = TokenText(tmp_path / "t.json")
    pieces = text.pieces(text.vocab_size + 2)
    assert pieces[0] == pieces[-1] == b""
    assert text.piece_bytes(0) == b"<end>"
    ids = text.encode("ab é.")
    assert b"".join(pieces[i] for i in ids) == "ab é.".encode()
    assert not text.drops_first_space


def test_a_word_tokenizer_drops_the_first_space(tmp_path: Path) -> None:
    _word_piece().save(str(tmp_path / "t.json"))
    text = TokenText(tmp_path / "t.json")
    assert text.drops_first_space
    assert text.piece_bytes(text.encode("cab")[0]) == b" cab"
