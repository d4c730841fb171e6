"""Beam search, as transformers 5.23 does it (``GenerationMixin._beam_search``), picture by picture.

Equal to it given the same logits, with these remarks:

* Scores are float32 and computed in its order. Only the logarithm of the softmax's denominator is
  summed in float64 here and in float32 there (in an order that depends on the CPU), so that a row's
  scores may differ by one common shift of some 1e-6. Two candidates nearer than that may change
  places.
* Equal candidates come in torch's order (`primelens.decoding.top_k`).
* Every picture stops by its own state. transformers decodes a batch until all pictures are done,
  which leaves a picture's result alone but in one case: where all its candidates hit a stop string
  at once, its dead beams may go on in a batch, and do not alone. Here they never do.
* What transformers fills up with where fewer sequences are possible than were asked for (beams of
  probability zero, copies of a beam, beams that go on after their end) takes part in the search as
  there, but is never returned: there are fewer results then.

Where transformers keeps the beams in order of their score, each here stays in the row of its parent
if no better sibling does, so that few rows of the cache have to be copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.history import History
from primelens.decoding.search import (
    Alternatives,
    Continuation,
    Controls,
    Limits,
    no_choice,
    prompt_step,
    top_logprobs,
)
from primelens.decoding.session import Step
from primelens.decoding.top_k import top_k

__all__ = ["BeamRules", "BeamSearch"]

_NEVER = np.float32(-1e9)  # the score of what must not be chosen, as transformers has it


@dataclass(frozen=True)
class BeamRules:
    """How beams are ranked; the names and meanings are transformers'.

    Attributes:
        num_beams: beams per picture W.
        length_penalty: a finished beam's score is its log-probability divided by its length to this
            power.
        early_stopping: True ends with W finished beams; False when the best running beam cannot win
            at its present length; "never" when it cannot at any length.
        num_return_sequences: results per picture, best first.
    """

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1


@dataclass(frozen=True)
class _Node:
    """The last token of a beam, and the beam that it continues."""

    parent: _Node | None
    token: int
    logprob: float
    alternatives: Alternatives
    stopped: bool
    filler: bool


class _Scored:
    """What one step says about the rows, in buffers that every step uses again.

    The model's log-probabilities are nowhere kept: those of one picture are computed into its
    totals, and once more, in the same order, for the few candidates. Only what processors change
    needs an array for all rows.

    Attributes:
        logits: ``[R, V]`` the session's own buffer; stays as it is.
        totals: ``[W, V]`` one picture's scores, its beams' added.
    """

    def __init__(self, logits: NDArray[np.float32], width: int) -> None:
        self.logits = logits
        self.totals = np.empty((width, logits.shape[1]), np.float32)
        self._largest = np.zeros(len(logits), np.float32)
        self._rest = np.zeros(len(logits), np.float32)  # logarithms of the rows' denominators
        self._processed: NDArray[np.float32] | None = None

    def read(
        self, logits: NDArray[np.float32], controls: Controls, history: History | None
    ) -> None:
        """Take up the logits of a step."""
        self.logits = logits
        spare = self.totals[0]
        for row, values in enumerate(logits):
            self._largest[row] = values.max()
            np.subtract(values, self._largest[row], out=spare)
            total = np.exp(spare, out=spare).sum(dtype=np.float64)
            self._rest[row] = np.float32(np.log(total))
        if controls.processors and history is not None:
            if self._processed is None:
                self._processed = np.empty_like(logits)
            for row, values in enumerate(self._processed):
                self._log_softmax(row, values)
            for processor in controls.processors:
                processor(self._processed, history)

    def _log_softmax(self, row: int, out: NDArray[np.float32]) -> None:
        """A row's log-probabilities: float32 throughout, but for the denominator's sum."""
        np.subtract(self.logits[row], self._largest[row], out=out)
        out -= self._rest[row]

    def add_up(self, beam: int, row: int, score: np.float32) -> None:
        """Fill the beam's totals: of all that may follow its row, where it has this score."""
        totals = self.totals[beam]
        if self._processed is None:
            self._log_softmax(row, totals)
            totals += score
        else:
            np.add(self._processed[row], score, out=totals)

    def logprobs(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> list[float]:
        """The model's own log-probability of a token after each of some rows."""
        found = self.logits[rows, tokens] - self._largest[rows] - self._rest[rows]
        own: list[float] = found.tolist()
        return own


class _Picture:
    """The beams of one picture."""

    def __init__(self, rules: BeamRules, limits: Limits, controls: Controls, longest: int) -> None:
        self._rules, self._controls, self._longest = rules, controls, longest
        self._eos = np.array(limits.eos_tokens, np.int64)
        width = rules.num_beams
        self._candidates = max(2, 1 + len(limits.eos_tokens)) * width
        self._length = 0
        self._rows = np.arange(width)  # logical beam → row of the picture
        self._running: list[_Node | None] = [None] * width
        self._scores = np.full(width, _NEVER, np.float32)
        self._scores[0] = 0  # all rows are equal at first: only one of them counts
        self._finished: list[_Node | None] = [None] * width
        self._finished_scores = np.full(width, _NEVER, np.float32)
        self.done = False

    def advance(
        self, step: _Scored, history: History | None, first_row: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Choose; returns each row's next token and the row of the picture that it continues, or
        None when the picture is done.
        """
        width = self._rules.num_beams
        for beam, row in enumerate((first_row + self._rows).tolist()):
            step.add_up(beam, row, self._scores[beam])
        totals = step.totals.reshape(-1)
        flat = top_k(totals, self._candidates)
        beams, tokens = np.divmod(flat, step.totals.shape[1])
        found = totals[flat]
        if found[0] == -np.inf and not any(self._finished):
            raise no_choice(self._length)
        self._length += 1
        stops = self._stops(beams, tokens, history, first_row)
        hits = stops | (self._length >= self._longest)
        nodes = self._nodes(step, first_row, (flat, found, stops))
        running = found + hits.astype(np.float32) * _NEVER
        kept = top_k(running, width)
        self._finish(found, hits, nodes)
        if not self._goes_on(running[kept[0]], hits):
            self.done = True
            return None
        parents = self._rows[beams[kept]]
        self._running = [nodes[i] for i in kept.tolist()]
        self._scores = running[kept]
        self._rows = _assign(parents)
        row_tokens, row_parents = np.empty(width, np.int64), np.empty(width, np.int64)
        row_tokens[self._rows], row_parents[self._rows] = tokens[kept], parents
        return row_tokens, row_parents

    def _stops(
        self,
        beams: NDArray[np.int64],
        tokens: NDArray[np.int64],
        history: History | None,
        first_row: int,
    ) -> NDArray[np.bool_]:
        stops: NDArray[np.bool_] = np.isin(tokens, self._eos)
        test = self._controls.stop
        if test is None or history is None:
            return stops
        before = [history.row(first_row + int(row))[-test.window :] for row in self._rows]
        said = [
            test([*before[beam], token])
            for beam, token in zip(beams.tolist(), tokens.tolist(), strict=True)
        ]
        return stops | np.array(said, np.bool_)

    def _nodes(
        self,
        step: _Scored,
        first_row: int,
        candidates: tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]],
    ) -> list[_Node]:
        """Nodes of the candidates, which are told by their places among beams × vocabulary, their
        scores, and whether they ended.
        """
        flat, found, stops = candidates
        beams, tokens = np.divmod(flat, step.totals.shape[1])
        rows, fillers = first_row + self._rows[beams], (found <= _NEVER / 2).tolist()
        own = step.logprobs(rows, tokens)
        count = self._controls.top_logprobs
        others = {row: top_logprobs(step.logits[row], count) for row in set(rows.tolist()) if count}
        return [
            _Node(self._running[beam], token, logprob, others.get(row, ()), stop, filler)
            for beam, row, token, logprob, stop, filler in zip(
                beams.tolist(),
                rows.tolist(),
                tokens.tolist(),
                own,
                stops.tolist(),
                fillers,
                strict=True,
            )
        ]

    def _finish(
        self, found: NDArray[np.float32], hits: NDArray[np.bool_], nodes: Sequence[_Node]
    ) -> None:
        """Let the candidates that just ended compete with those that ended before."""
        width = self._rules.num_beams
        ended = hits & (np.arange(len(found)) < width)
        scores = found / np.float32(self._length**self._rules.length_penalty)
        scores += np.where(ended, np.float32(0), _NEVER)
        merged = np.concatenate((self._finished_scores, scores))
        new = [node if end else None for node, end in zip(nodes, ended.tolist(), strict=True)]
        kept = top_k(merged, width)
        pool = [*self._finished, *new]
        self._finished = [pool[i] for i in kept.tolist()]
        self._finished_scores = merged[kept]

    def _goes_on(self, best: np.float32, hits: NDArray[np.bool_]) -> bool:
        """Whether the best running beam, of that score, may still change the result."""
        rules = self._rules
        finished = np.array([node is not None for node in self._finished])
        if hits.all() or (finished.all() and rules.early_stopping is True):
            return False
        farthest = rules.early_stopping == "never" and rules.length_penalty > 0
        length = self._longest if farthest else self._length
        possible = best / np.float32(length**rules.length_penalty)
        worst = np.where(finished, self._finished_scores.min(), _NEVER)
        return bool((possible > worst).any())

    def write(self, result: Continuation) -> None:
        """Write the results down: the best into ``result``, the rest as its ``others``."""
        found = [
            (node, float(score))
            for node, score in zip(self._finished, self._finished_scores, strict=True)
            if node is not None and not node.filler
        ][: self._rules.num_return_sequences]
        if not found:
            raise no_choice(self._length)
        result.others = [Continuation() for _ in found[1:]]
        for into, (node, score) in zip([result, *result.others], found, strict=True):
            _write(into, node, score)


def _write(result: Continuation, last: _Node, score: float) -> None:
    nodes: list[_Node] = []
    node: _Node | None = last
    while node is not None:
        nodes.append(node)
        node = node.parent
    nodes.reverse()
    result.tokens += [node.token for node in nodes]
    result.logprobs += [node.logprob for node in nodes]
    result.alternatives += [node.alternatives for node in nodes if node.alternatives]
    result.finish_reason = "stop" if last.stopped else "length"
    result.score = score


def _assign(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each beam: the parent's for its first child, a row without children for others."""
    _, firsts = np.unique(parents, return_index=True)
    rows = np.full(len(parents), -1, np.int64)
    rows[firsts] = parents[firsts]
    childless = np.ones(len(parents), np.bool_)
    childless[parents] = False  # np.setdiff1d would import numpy.ma: half a MiB, once
    rows[rows < 0] = np.flatnonzero(childless)
    return rows


class BeamSearch:
    """Beam search over pictures × W rows; the rows of one picture lie side by side.

    Results appear when a picture is done, not before.

    Args:
        prompts: one per picture.
        limits: when sequences end; one entry of ``max_new_tokens`` per picture.
        rules: how beams are ranked.
        controls: what else is obeyed; the processors see log-probabilities, as in transformers.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        rules: BeamRules,
        controls: Controls = Controls(),  # noqa: B008 - frozen, hence safe to share
    ) -> None:
        self._limits, self._controls, self._width = limits, controls, rules.num_beams
        self._prompts = [prompt for prompt in prompts for _ in range(rules.num_beams)]
        self._history = History(self._prompts) if controls.needs_history else None
        self._pictures = [
            _Picture(rules, limits, controls, longest) for longest in limits.max_new_tokens
        ]
        self._results = [Continuation() for _ in prompts]
        self._step: _Scored | None = None

    @property
    def results(self) -> Sequence[Continuation]:
        return self._results

    def begin(self) -> Step:
        return prompt_step(self._prompts, self._limits.pad_token)

    def advance(self, logits: NDArray[np.float32]) -> Step | None:
        if self._step is None:
            self._step = _Scored(logits, self._width)
        self._step.read(logits, self._controls, self._history)
        rows = len(logits)
        tokens = np.full((rows, 1), self._limits.pad_token, np.int64)
        lengths, parents = np.zeros(rows, np.int64), np.arange(rows)
        for number, picture in enumerate(self._pictures):
            if picture.done:
                continue
            first = number * self._width
            part = slice(first, first + self._width)
            following = picture.advance(self._step, self._history, first)
            if following is None:
                picture.write(self._results[number])
            else:
                tokens[part, 0], lengths[part] = following[0], 1
                parents[part] = first + following[1]
        if not lengths.any():
            return None
        if self._history is not None:
            self._history.reorder(parents)
            self._history.append(tokens[:, 0], lengths)
        return Step(tokens, lengths, parents)
