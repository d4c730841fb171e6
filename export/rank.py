"""What the exporter does with heads that rank; `primelens.export.kinds` finds it.

Their golden outputs, beside the pictures and taps:

======================= ==================================================================
texts.<head>            uint8, UTF-8 JSON: the list of texts
text_embeds.<head>      float32 [N, W]
image_embeds.<head>.k   float32 [W]
scores.<head>.k         float32 [N]
match.<head>.k          float32 [N, 2], of heads with a matching
======================= ==================================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from primelens.errors import UnsupportedError
from primelens.export.checkpoint import Checkpoint
from primelens.export.connector_graph import build_connector
from primelens.export.gate import GateReport
from primelens.export.golden import COUNT
from primelens.export.matching_graph import build_matching
from primelens.export.options import GateOptions
from primelens.export.question_graph import read_by
from primelens.export.rank_answers import RankAnswers, ask_rank, text_gaps, text_spec
from primelens.export.rank_gate import run_rank_gate
from primelens.export.registry import RankSplit
from primelens.export.traced import traced
from primelens.identity import weights_digest
from primelens.manifest import MatchingSpec, RankHeadSpec

__all__ = ["RankKind"]

_MOST_ROWS = 4096
_TOKENIZER = "tokenizer.json"


class RankKind:
    """Heads that score texts against pictures."""

    def gaps(self, head: RankSplit) -> list[str]:  # noqa: ARG002 - the protocol's
        return []

    def graphs(self, name: str, head: RankSplit, tap: tuple[int, ...]) -> dict[str, ir.Model]:
        image = traced(
            head.image,
            {head.tap: torch.linspace(-1.0, 1.0, 2 * int(np.prod(tap))).reshape(2, *tap)},
            {"B": _MOST_ROWS},
            ["image_embeds"],
            what=f"the image side of the head {name!r}",
        )
        length = head.max_positions if head.pad_to_max else min(6, head.max_positions)
        ids = torch.ones((2, length), dtype=torch.int64)
        free = {"N": _MOST_ROWS} if head.pad_to_max else {"N": _MOST_ROWS, "T": head.max_positions}
        text = traced(
            head.text,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            free,
            ["text_embeds"],
            what=f"the text tower of the head {name!r}",
        )
        graphs = {f"{name}.image": image, f"{name}.text": text}
        if head.matching is None:
            return graphs
        stack = head.matching.stack
        connector = build_connector(
            read_by(stack), tap=head.tap, length=tap[0], heads=stack.heads, outputs="picture"
        )
        matching = build_matching(head.matching, tap[0])
        return {**graphs, f"{name}.match.connector": connector, f"{name}.match": matching}

    def spec(
        self, name: str, head: RankSplit, checkpoint: Checkpoint, precision: str
    ) -> RankHeadSpec:
        if gaps := text_gaps(checkpoint, head):
            raise UnsupportedError(
                f"The texts of {checkpoint.name} cannot be prepared as its tokenizer asks:",
                remedy="Correct tokenizer_config.json.",
                problems=gaps,
            )
        return RankHeadSpec(
            kind="rank",
            family=checkpoint.family.name,
            tap=head.tap,
            image=f"{name}.image.onnx",
            text=text_spec(checkpoint, head, f"{name}.text.onnx"),
            width=head.width,
            scoring=head.scoring,
            scale=head.scale,
            bias=head.bias,
            tokenizer=_TOKENIZER,
            precision=precision,
            digest=weights_digest({key: tensor.numpy() for key, tensor in head.tensors.items()}),
            templates=head.templates,
            matching=None
            if head.matching is None
            else MatchingSpec(f"{name}.match.connector.onnx", f"{name}.match.onnx"),
        )

    def ask(
        self,
        checkpoint: Checkpoint,
        head: RankSplit,
        pictures: Sequence[NDArray[np.uint8]],
        options: GateOptions,  # noqa: ARG002 - the protocol's
    ) -> RankAnswers:
        return ask_rank(checkpoint, head, pictures)

    def gate(
        self, folder: Path, name: str, answers: RankAnswers, options: GateOptions
    ) -> GateReport:
        return run_rank_gate(folder, name, answers, options)

    def golden(
        self, name: str, head: RankSplit, answers: RankAnswers, report: GateReport | None
    ) -> dict[str, NDArray[Any]]:
        if report is None:
            found = {key: value.single for key, value in answers.compared.items()}
            taps = found["tap"]
        else:
            found = report.found
            taps = np.stack([image.taps[head.tap] for image in report.encoded])
        texts = json.dumps(list(answers.texts), ensure_ascii=False).encode("utf-8")
        arrays: dict[str, NDArray[Any]] = {
            f"texts.{name}": np.frombuffer(texts, np.uint8).copy(),
            f"text_embeds.{name}": np.ascontiguousarray(found["text"], np.float32),
        }
        for k in range(min(COUNT, len(answers.pictures))):
            arrays[f"image.{k}"] = np.ascontiguousarray(answers.pictures[k])
            arrays[f"tap.{head.tap}.{k}"] = np.ascontiguousarray(taps[k], np.float32)
            arrays[f"image_embeds.{name}.{k}"] = np.ascontiguousarray(found["image"][k], np.float32)
            arrays[f"scores.{name}.{k}"] = np.ascontiguousarray(found["scores"][k], np.float32)
            if "match" in found:
                arrays[f"match.{name}.{k}"] = np.ascontiguousarray(found["match"][k], np.float32)
        return arrays
