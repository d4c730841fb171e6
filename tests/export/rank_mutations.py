"""Ways to get the export of a head that ranks wrong, and what they are tried on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from primelens.export import ExportOptions, GateOptions
from primelens.export.bundle_writer import write_draft
from primelens.export.checkpoint import open_checkpoint
from primelens.export.draft import Draft, draft_bundle
from primelens.export.pipeline import answers_of, prove
from primelens.export.reference_works import build
from primelens.export.registry import ModelSplit

OPTIONS = ExportOptions(gate=GateOptions(threads=1, random_images=2, steps=2))
_replace: Any = dataclasses.replace


@dataclasses.dataclass(frozen=True)
class Drafted:
    """A reference work of a dual encoder, cut, drafted and questioned."""

    folder: Path
    split: ModelSplit
    draft: Draft
    answers: dict[str, Any]


def drafts(root: Path) -> Callable[[str], Drafted]:
    """Name of a work → everything up to the gate, made once."""

    @cache
    def of(name: str) -> Drafted:
        folder = build(name, root / name, seed=0)
        checkpoint = open_checkpoint(folder)
        split = checkpoint.family.split(checkpoint.model)
        draft = draft_bundle(checkpoint, split, OPTIONS)
        return Drafted(folder, split, draft, answers_of(checkpoint, split, OPTIONS.gate))

    return of


def gated(work: Drafted, draft: Draft, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    write_draft(draft, folder, OPTIONS)
    return prove(folder, work.split, work.answers, OPTIONS.gate)["rank"]


def copied(draft: Draft) -> Draft:
    """What a mutation may change."""
    parts = {"graphs": dict(draft.graphs), "heads": dict(draft.heads), "texts": dict(draft.texts)}
    found: Draft = _replace(draft, **parts)
    return found


Mutation = Callable[[Draft], None]


def in_weight(graph: str, pattern: str, change: Callable[[Any], Any]) -> Mutation:
    """Change the one initializer whose name ends so."""

    def mutate(draft: Draft) -> None:
        model = draft.graphs[graph] = ir.from_proto(ir.to_proto(draft.graphs[graph]))
        values = [v for n, v in model.graph.initializers.items() if re.search(pattern + "$", n)]
        assert len(values) == 1, [v.name for v in values]
        (value,) = values
        assert value.const_value is not None
        array = np.ascontiguousarray(change(value.const_value.numpy().copy()))
        value.const_value = ir.Tensor(array, name=value.name)

    return mutate


def in_nodes(graph: str, op_type: str, **attributes: Any) -> Mutation:
    def mutate(draft: Draft) -> None:
        model = draft.graphs[graph] = ir.from_proto(ir.to_proto(draft.graphs[graph]))
        nodes = [node for node in model.graph if node.op_type == op_type]
        assert nodes
        for node in nodes:
            for name, value in attributes.items():
                node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return mutate


def mask_of_ones(draft: Draft) -> None:
    """Padding is seen by the attention."""
    model = draft.graphs["rank.text"] = ir.from_proto(ir.to_proto(draft.graphs["rank.text"]))
    (ids, mask) = model.graph.inputs
    readers = [(node, i) for node, i in mask.uses() if node.op_type != "Shape"]
    assert readers
    equal = ir.node("Equal", [ids, ids])
    ones = ir.node("Cast", [equal.outputs[0]], {"to": ir.DataType.INT64.value})
    equal.outputs[0].name, ones.outputs[0].name = "mutated_equal", "mutated_ones"
    model.graph.insert_before(model.graph[0], [equal, ones])
    for node, index in readers:
        node.replace_input_with(index, ones.outputs[0])


def in_head(**changes: Any) -> Mutation:
    def mutate(draft: Draft) -> None:
        draft.heads["rank"] = _replace(draft.heads["rank"], **changes)

    return mutate


def in_text(**changes: Any) -> Mutation:
    def mutate(draft: Draft) -> None:
        head: Any = draft.heads["rank"]
        draft.heads["rank"] = _replace(head, text=_replace(head.text, **changes))

    return mutate


def scaled(factor: float) -> Mutation:
    def mutate(draft: Draft) -> None:
        head: Any = draft.heads["rank"]
        draft.heads["rank"] = _replace(head, scale=head.scale * factor)

    return mutate


def without_frame(draft: Draft) -> None:
    """The tokenizer puts nothing around a text."""
    data = json.loads(draft.texts["tokenizer.json"])
    data["post_processor"] = None
    draft.texts["tokenizer.json"] = json.dumps(data)


def swapped_sides(draft: Draft) -> None:
    """The layers' normalisations change places."""
    model = draft.graphs["rank.text"] = ir.from_proto(ir.to_proto(draft.graphs["rank.text"]))
    named = model.graph.initializers
    one, other = (
        next(v for n, v in named.items() if f".{k}." in n and "norm" in n.lower() and "bias" in n)
        for k in (0, 1)
    )
    one.const_value, other.const_value = other.const_value, one.const_value


def zero(array: Any) -> Any:
    return array * 0


def rolled(array: Any) -> Any:
    return np.roll(array, 1, axis=0)
