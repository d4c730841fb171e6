"""Constrained decoding: at every step only some tokens are allowed.

`Choices` is a trie of token ids. Regular expressions and JSON schemas are `Grammar`, by llguidance
(the extra ``primelens[constrain]``), which keeps an automaton over the vocabulary's bytes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.history import History
from primelens.decoding.processors import Scores
from primelens.errors import DependencyError, OptionError

__all__ = ["Choices", "Constraint", "Grammar", "OnlyAllowed", "Vocabulary"]

Ids = NDArray[np.int64]
_KEPT_STATES = 512
# No white space but where the schema's own "x-guidance" asks for it: a model may write it for ever.
_COMPACT = {"whitespace_flexible": False}
# Every way to write a text is allowed, not only the tokenizer's own.
_UNFORCED = '%llguidance {"no_forcing": true}\n'


class Constraint(Protocol):
    """Says what may follow."""

    def allowed(self, new: tuple[int, ...]) -> Ids:
        """Ids that may follow the tokens ``new`` after the prompt; never empty.

        Where ``new`` itself is not allowed (a dead beam), only the end may follow.
        """


class OnlyAllowed:
    """A processor that leaves the scores of the allowed tokens alone and forbids the others
    (``PrefixConstrainedLogitsProcessor``).
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    def __call__(self, scores: Scores, history: History) -> None:
        for row, prompt in enumerate(history.prompt_lengths.tolist()):
            allowed = self._constraint.allowed(tuple(history.row(row)[prompt:]))
            kept = scores[row, allowed]
            scores[row] = -np.inf
            scores[row, allowed] = kept


class Choices:
    """One of several sequences, then an end token.

    Args:
        sequences: the ids of every choice.
        eos: any of these may follow a complete choice.

    Raises:
        OptionError: there is no end token, so that no choice could be told from a longer one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], eos: Sequence[int]) -> None:
        self._end = _ends(eos)
        self._root: dict[int | None, Any] = {}
        for sequence in sequences:
            node = self._root
            for token in (*sequence, None):  # None marks a complete choice
                node = node.setdefault(token, {})

    def allowed(self, new: tuple[int, ...]) -> Ids:
        node: dict[int | None, Any] | None = self._root
        for token in new:
            node = node.get(token) if node else None
        if not node:
            return self._end
        following = np.array([token for token in node if token is not None], np.int64)
        return np.concatenate((following, self._end)) if None in node else following


class Vocabulary:
    """A tokenizer's vocabulary as llguidance reads it; made once, as it takes some time.

    Args:
        pieces: the bytes of every id of the logits, empty for what must not be chosen.
        eos: the end tokens.

    Raises:
        DependencyError: llguidance is not installed.
        OptionError: there is no end token.
    """

    def __init__(self, pieces: Sequence[bytes], eos: Sequence[int]) -> None:
        self.end = _ends(eos)
        guidance = _llguidance()
        self.pieces = pieces
        wrapped = guidance.TokenizerWrapper(_Tokens(pieces, eos))
        self.tokenizer = guidance.LLTokenizer(wrapped, eos_token=list(eos))


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, pieces: Sequence[bytes], eos: Sequence[int]) -> None:
        self.tokens = list(pieces)
        self.eos_token_id, self.bos_token_id = eos[0], None
        hidden = {place for place, piece in enumerate(pieces) if not piece}
        self.special_token_ids = sorted(hidden | set(eos))

    def __call__(self, text: bytes | str) -> list[int]:  # noqa: ARG002 - called, but not needed
        """How to write ``text``: asked only to force tokens, which `_UNFORCED` switches off."""
        return []


class Grammar:
    """A regular expression or a JSON schema.

    Args:
        vocabulary: what tokens stand for.
        regex: an expression that the whole text has to match (the syntax of Rust's ``regex``).
        json_schema: a schema as an object or as JSON text; exactly one of the two is given.
        leading_space: the text's first token brings a space that decoding takes away again.

    Raises:
        OptionError: the expression or the schema is not understood.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        regex: str | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        leading_space: bool = False,
    ) -> None:
        matcher = _llguidance().LLMatcher
        what = "json_schema" if regex is None else "regex"
        try:
            if regex is not None:
                text = f" (?:{regex})" if leading_space else regex
                made = json.loads(matcher.grammar_from_regex(text))["grammars"][0]
                lark = made["lark_grammar"]
            else:
                schema = json_schema if isinstance(json_schema, str) else dict(json_schema or {})
                compiled = matcher.grammar_from_json_schema(schema, defaults=_COMPACT)
                made = json.loads(compiled)["grammars"][0]
                lark = f"start: %json {json.dumps(made['json_schema'])}"
        except ValueError as error:
            raise OptionError(f"{what} is not understood: {error}.") from error
        grammar = matcher.grammar_from_lark(_UNFORCED + lark)
        self._end, self._size = vocabulary.end, len(vocabulary.pieces)
        self._states: OrderedDict[tuple[int, ...], tuple[Any, Ids]] = OrderedDict()
        start = matcher(vocabulary.tokenizer, grammar, log_level=0)
        if start.is_error():
            said = start.get_error().splitlines()[0]
            raise OptionError(f"{what} is not understood: {said}.")
        self._start = start

    def allowed(self, new: tuple[int, ...]) -> Ids:
        return self._state(new)[1]

    def _state(self, new: tuple[int, ...]) -> tuple[Any, Ids]:
        """The automaton after ``new``, and what may follow; of recent ones the last are kept."""
        if new not in self._states:
            before = self._states.get(new[:-1])
            if before is None or not new:
                matcher = self._start.deep_copy()
                fits = not new or matcher.try_consume_tokens(list(new)) == len(new)
            else:
                matcher = before[0].deep_copy()
                fits = matcher.try_consume_tokens([new[-1]]) == 1
            self._states[new] = (matcher, self._following(matcher) if fits else self._end)
        self._states.move_to_end(new)
        while len(self._states) > _KEPT_STATES:
            self._states.popitem(last=False)
        return self._states[new]

    def _following(self, matcher: Any) -> Ids:
        if matcher.is_stopped():
            return self._end
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._size].astype(np.bool_)
        mask[self._end] = matcher.is_accepting()
        found: Ids = np.flatnonzero(mask)
        return found if found.size else self._end


def _ends(eos: Sequence[int]) -> Ids:
    if not eos:
        raise OptionError(
            "The model has no end token, so that constrained decoding could not end.",
            remedy="Set eos_token_id in the checkpoint's generation_config and export again.",
        )
    return np.array(list(eos), np.int64)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise DependencyError(
            "Decoding by a regular expression or a JSON schema needs llguidance.",
            remedy="Install it: pip install 'primelens[constrain]'.",
        ) from error
    return llguidance
