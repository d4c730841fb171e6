"""What the exporter does with a head, by what kind of head it is.

Every kind builds its graphs, describes itself in the manifest, asks the source its questions and
runs its gate. `kind_of` finds the kind; the pipeline knows no other difference between heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from primelens.export.answers import ask
from primelens.export.checkpoint import Checkpoint
from primelens.export.connector_graph import build_connector
from primelens.export.decoder_graph import build_decoder
from primelens.export.framing import check_frame, frame_of
from primelens.export.gate import GateReport, run_gate
from primelens.export.generation import settings_gaps
from primelens.export.golden import golden_arrays
from primelens.export.options import GateOptions
from primelens.export.pictures import as_videos
from primelens.export.prefix_graph import (
    build_prefix_connector,
    build_projector,
    build_tree_decoder,
)
from primelens.export.question_graph import PICTURE, build_question_encoder, read_by
from primelens.export.rank import RankKind
from primelens.export.registry import HeadSplit, RankSplit
from primelens.identity import weights_digest
from primelens.manifest import DecoderSpec, HeadSpec, QuestionSpec, RankHeadSpec

__all__ = ["TOKENIZER", "HeadKind", "TextKind", "kind_of"]

TOKENIZER = "tokenizer.json"


class HeadKind(Protocol):
    """One kind of heads; ``head`` is always a split of that kind."""

    def gaps(self, head: Any) -> list[str]:
        """What the head's settings ask for that the runtime does not honour."""

    def graphs(self, name: str, head: Any, tap: tuple[int, ...]) -> dict[str, ir.Model]:
        """File name without suffix → graph; ``tap`` is the tap's shape without the batch."""

    def spec(
        self, name: str, head: Any, checkpoint: Checkpoint, precision: str
    ) -> HeadSpec | RankHeadSpec:
        """The head in the manifest."""

    def ask(
        self,
        checkpoint: Checkpoint,
        head: Any,
        pictures: Sequence[NDArray[np.uint8]],
        options: GateOptions,
    ) -> Any:
        """What the source says; has ``pictures``, ``pixels`` and ``tap``."""

    def gate(self, folder: Path, name: str, answers: Any, options: GateOptions) -> GateReport:
        """Compare the bundle in ``folder`` with `ask`'s answers."""

    def golden(
        self, name: str, head: Any, answers: Any, report: GateReport | None
    ) -> dict[str, NDArray[Any]]:
        """Arrays for the golden file; ``report`` is None for a float32 head."""


class TextKind:
    """Heads that write text."""

    def gaps(self, head: HeadSplit) -> list[str]:
        return settings_gaps(head.generation)

    def graphs(self, name: str, head: HeadSplit, tap: tuple[int, ...]) -> dict[str, ir.Model]:
        if head.prefix is not None and head.question is None:
            connector = build_prefix_connector(head.plan, head.prefix, head.tap, tap)
            decoder = build_tree_decoder(head.plan)
            return {f"{name}.connector": connector, f"{name}.decoder": decoder}
        length, plan, question = tap[0], head.plan, head.question
        if head.prefix is not None and question is not None:
            encoder = build_question_encoder(
                question.stack, read_by(plan), plan.heads, head.prefix.length, before=True
            )
            return {
                f"{name}.connector": build_projector(head.prefix, head.tap, tap, PICTURE),
                f"{name}.question": encoder,
                f"{name}.decoder": build_decoder(plan, ragged_cross=True),
            }
        reader = plan if question is None else question.stack
        connector = build_connector(
            read_by(reader),
            tap=head.tap,
            length=length,
            heads=reader.heads,
            projection=head.projection,
            outputs="cross" if question is None else "picture",
        )
        graphs = {f"{name}.connector": connector}
        if question is None:
            return {**graphs, f"{name}.decoder": build_decoder(plan, length)}
        encoder = build_question_encoder(question.stack, read_by(plan), plan.heads, length)
        decoder = build_decoder(plan, ragged_cross=True)
        return {**graphs, f"{name}.question": encoder, f"{name}.decoder": decoder}

    def spec(self, name: str, head: HeadSplit, checkpoint: Checkpoint, precision: str) -> HeadSpec:
        plan = head.plan
        if head.prompt_frame is not None:
            check_frame(checkpoint.tokenizer, head.prompt_frame)
        return HeadSpec(
            kind=head.kind,
            family=checkpoint.family.name,
            tap=head.tap,
            connector=f"{name}.connector.onnx",
            decoder=DecoderSpec(
                graph=f"{name}.decoder.onnx",
                layers=len(plan.layers),
                kv_heads=plan.heads,
                head_dim=plan.head_dim,
                vocab_size=plan.vocab_size,
                max_positions=plan.max_positions,
                prefix=0 if head.prefix is None or head.question else head.prefix.length,
            ),
            tokenizer=TOKENIZER,
            generation=head.generation,
            precision=precision,
            digest=weights_digest({key: tensor.numpy() for key, tensor in head.tensors.items()}),
            clean_up_spaces=checkpoint.clean_up_spaces,
            prompt=head.prompt,
            question=_question(name, head, checkpoint),
            frames=None if head.prefix is None else head.prefix.frames,
        )

    def ask(
        self,
        checkpoint: Checkpoint,
        head: HeadSplit,
        pictures: Sequence[NDArray[np.uint8]],
        options: GateOptions,
    ) -> Any:
        frames = None if head.prefix is None else head.prefix.frames
        return ask(checkpoint, head, as_videos(pictures, frames), options.steps)

    def gate(self, folder: Path, name: str, answers: Any, options: GateOptions) -> GateReport:
        return run_gate(folder, name, answers, options)

    def golden(
        self, name: str, head: HeadSplit, answers: Any, report: GateReport | None
    ) -> dict[str, NDArray[Any]]:
        return golden_arrays(name, head, answers, report)


def _question(name: str, head: HeadSplit, checkpoint: Checkpoint) -> QuestionSpec | None:
    """The question encoder in the manifest."""
    if head.question is None:
        return None
    before, behind = frame_of(checkpoint.tokenizer)
    stack = head.question.stack
    return QuestionSpec(
        graph=f"{name}.question.onnx",
        vocab_size=int(stack.embedding.tokens.shape[0]),
        max_length=stack.max_positions,
        pad_token=head.question.pad_token,
        prefix_tokens=before,
        suffix_tokens=behind,
        picture=0 if head.prefix is None else head.prefix.length,
        unasked_tokens=head.question.unasked,
    )


def kind_of(head: HeadSplit | RankSplit) -> HeadKind:
    """The kind that ``head`` belongs to."""
    return TextKind() if isinstance(head, HeadSplit) else RankKind()
