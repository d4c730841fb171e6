"""One random function from histories to logits, as a transformers model and as a decoder graph.

The first token of a prompt stands for the picture. The graph keeps the histories in the key-value
cache it is given, so that a cache that is reordered wrongly changes the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from primelens.decoding.loop import decode
from primelens.decoding.search import Continuation, Search
from primelens.decoding.session import DecoderSession
from primelens.engine_fake import FakeGraph
from primelens.manifest import DecoderSpec

LAYERS, HEADS, WIDTH, CAPACITY = 2, 2, 3, 64

Table = Callable[[Sequence[int]], Any]


def table(seed: int, vocab: int, ends: Sequence[int] = (), scale: float = 2.0) -> Table:
    """Logits ``[V]`` float32 of a history; the end tokens grow more likely with its length."""
    cache: dict[tuple[int, ...], Any] = {}

    def logits(history: Sequence[int]) -> Any:
        key = tuple(history)
        if key not in cache:
            digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
            random = np.random.default_rng(np.frombuffer(digest, np.uint32))
            found = (random.standard_normal(vocab) * scale).astype(np.float32)
            found[list(ends)] += np.float32(0.5 + 0.25 * len(key))
            cache[key] = found
        return cache[key]

    return logits


class TableModel(PreTrainedModel, GenerationMixin):
    """The table behind transformers' ``generate``."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, logits: Table, vocab: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=vocab))
        self._logits = logits
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        rows = [self._logits(row) for row in input_ids.tolist()]
        return CausalLMOutput(logits=torch.from_numpy(np.stack(rows))[:, None])

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return {"input_ids": input_ids}


def generate(logits: Table, vocab: int, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
    """transformers' answer, with scores; prompts of one length."""
    model = TableModel(logits, vocab)
    with torch.no_grad():
        return model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones((len(prompts), len(prompts[0])), dtype=torch.long),
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **options,
        )


def table_graph(logits: Table) -> FakeGraph:
    """The table as a decoder graph that remembers tokens in its cache, as a real one does."""

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        ids, caches = feeds["input_ids"], [feeds[f"past_key.{layer}"] for layer in range(LAYERS)]
        width = ids.shape[1]
        totals = feeds["seqlens_k"].astype(np.int64) + 1
        starts = feeds["position_ids"][:, 0]
        for row, (start, total) in enumerate(zip(starts, totals, strict=True)):
            for cache in caches:
                cache[row, :, start:total, :] = ids[row, : total - start, None]
        found = []
        for flat in feeds["logits_rows"]:
            row, offset = divmod(int(flat), width)
            past = [cache[row, -1, : starts[row] + offset + 1, -1] for cache in caches]
            assert (past[0] == past[-1]).all()
            found.append(logits(past[0].astype(int).tolist()))
        return {"logits": np.stack(found)}

    return FakeGraph(run)


def run(logits: Table, vocab: int, search: Search, rows: int) -> list[Continuation]:
    """Decode with the loop and the session that the runtime uses."""
    spec = DecoderSpec("table", LAYERS, HEADS, WIDTH, vocab, CAPACITY)
    session = DecoderSession(table_graph(logits), spec, rows=rows, capacity=CAPACITY, cross={})
    for _ in decode(session, search):
        pass
    return list(search.results)
