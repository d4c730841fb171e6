"""Everything a bundle will be made of, before a byte is written.

A draft holds graphs and the parts of the manifest in memory. The exporter writes it, proves what
it wrote, and only then keeps the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import onnx_ir as ir

from primelens.errors import CheckpointError, UnsupportedError
from primelens.export.calibration import Observed
from primelens.export.checkpoint import Checkpoint
from primelens.export.kinds import TOKENIZER, kind_of
from primelens.export.options import ExportOptions
from primelens.export.quantise import recipe
from primelens.export.registry import ModelSplit, TowerSplit
from primelens.export.storage import narrow_weights
from primelens.export.tower_graph import build_tower
from primelens.export.tuning_note import carried_note, tuning_file
from primelens.identity import tower_identity, weights_digest
from primelens.manifest import HeadSpec, RankHeadSpec, Source, TapSpec, TowerSpec

__all__ = [
    "Draft",
    "check_heads",
    "check_source",
    "draft_bundle",
    "producer",
    "tap_identities",
    "tap_shapes",
    "tap_weights",
]


@dataclass
class Draft:
    """A bundle in memory.

    Attributes:
        name, source: for the manifest.
        tower, heads: the manifest's two sides.
        graphs: file name without suffix → graph.
        texts: file name → text, of the tokenizer and of the notes on how heads were tuned.
        notes: what a user ought to know.
        saved_bytes: what narrow storage saves.
    """

    name: str
    source: Source
    tower: TowerSpec
    heads: dict[str, HeadSpec | RankHeadSpec]
    graphs: dict[str, ir.Model]
    texts: dict[str, str]
    notes: list[str] = field(default_factory=list)
    saved_bytes: int = 0


def draft_bundle(
    checkpoint: Checkpoint,
    split: ModelSplit,
    options: ExportOptions,
    observed: Mapping[str, Observed] | None = None,
) -> Draft:
    """Build, quantise and narrow all graphs.

    Args:
        checkpoint: the source.
        split: where the seam runs through it.
        options: precision (any but "auto"), storage, name.
        observed: what 4-bit weights are rounded by; see `Recipe.apply`.

    Raises:
        CheckpointError: the preprocessing does not fit the tower, or the tower cannot be exported.
        UnsupportedError: the generation_config asks for what decoding does not honour.
    """
    shape = check_source(checkpoint, split)
    steps = recipe(options.precision)
    tower_model = build_tower(split.tower, shape)
    shapes = tap_shapes(tower_model)
    graphs = {"tower": tower_model}
    heads: dict[str, HeadSpec | RankHeadSpec] = {}
    for name, head in split.heads.items():
        kind = kind_of(head)
        own = kind.graphs(name, head, shapes[head.tap])
        heads[name] = kind.spec(name, head, checkpoint, steps.precision_of(own))
        graphs |= own
    steps.apply(graphs, observed)
    saved = 0
    if options.storage == "auto":
        saved = sum(narrow_weights(graph) for graph in graphs.values())
    texts, notes = {TOKENIZER: checkpoint.tokenizer_json}, list(checkpoint.notes)
    for name in heads:
        if (carried := carried_note(checkpoint.folder, name)) is not None:
            texts[tuning_file(name)] = carried[0]
            notes.append(carried[1])
    preprocessing = checkpoint.preprocessing.to_dict()
    taps = {
        tap: TapSpec(identity, shapes[tap], tap_weights(split.tower, tap))
        for tap, identity in tap_identities(split, preprocessing).items()
    }
    return Draft(
        name=options.name or checkpoint.name,
        source=Source(
            checkpoint.name, checkpoint.revision, checkpoint.architecture, checkpoint.digest
        ),
        tower=TowerSpec(
            family=split.tower_family,
            graph="tower.onnx",
            variant=steps.variant,
            taps=taps,
            preprocessing=preprocessing,
            architecture=dict(split.tower.architecture),
        ),
        heads=heads,
        graphs=graphs,
        texts=texts,
        notes=notes,
        saved_bytes=saved,
    )


def tap_shapes(tower: ir.Model) -> dict[str, tuple[int, ...]]:
    """Output name → shape without the batch."""
    shapes = {}
    for value in tower.graph.outputs:
        sizes = tuple(value.shape or ())[1:]
        if not all(isinstance(size, int) for size in sizes):
            raise CheckpointError(
                f"The tower's output {value.name!r} has the varying shape {list(sizes)}.",
                remedy="primelens needs a tower whose output size is fixed by its input size.",
            )
        shapes[str(value.name)] = tuple(int(str(size)) for size in sizes)
    return shapes


def check_source(checkpoint: Checkpoint, split: ModelSplit) -> tuple[int, ...]:
    """The shape of one preprocessed picture; raises for what can be known before any graph is
    built.

    Raises:
        CheckpointError: the preprocessing does not fit the tower.
        UnsupportedError: the generation_config asks for what decoding does not honour.
    """
    check_heads(split)
    shape = checkpoint.preprocessing.output_shape
    if shape is None:
        raise CheckpointError(
            "The preprocessing yields pictures of varying size; the tower needs one size.",
            remedy="Set a fixed size or a crop in preprocessor_config.json.",
        )
    packed = split.tower.packed
    fits = len(shape) == 3 if packed is None else len(shape) == 2 and shape[1] == packed
    if not fits:
        raise CheckpointError(
            f"The preprocessing yields arrays of the shape {shape}, which the tower does not read.",
            remedy="Correct image_processor_type and patch_size in preprocessor_config.json.",
        )
    if split.tower.size is not None and shape[1:] != split.tower.size:
        raise CheckpointError(
            f"The preprocessing yields (height, width) = {shape[1:]}, "
            f"the tower wants {split.tower.size}.",
            remedy="Correct size or crop_size in preprocessor_config.json.",
        )
    return shape


def check_heads(split: ModelSplit) -> None:
    """Raises `UnsupportedError` for settings that the runtime does not honour, all at once."""
    gaps = [
        f"head {name}: {gap}"
        for name, head in split.heads.items()
        for gap in kind_of(head).gaps(head)
    ]
    if gaps:
        raise UnsupportedError(
            "The checkpoint asks for what primelens does not honour:",
            remedy="Remove these settings from generation_config.json if they are not wanted.",
            problems=gaps,
        )


def tap_identities(split: ModelSplit, preprocessing: Mapping[str, Any]) -> dict[str, str]:
    """Tap name → identity of the tower there."""
    return {
        tap: tower_identity(
            family=split.tower_family,
            architecture=split.tower.architecture,
            preprocessing=preprocessing,
            tap=tap,
            tensors={name: tensor.numpy() for name, tensor in tensors.items()},
        )
        for tap, tensors in split.tower.taps.items()
    }


def tap_weights(tower: TowerSplit, tap: str) -> str:
    """`weights_digest` of what lies upstream of a tap."""
    return weights_digest({name: tensor.numpy() for name, tensor in tower.taps[tap].items()})


def producer() -> dict[str, str]:
    """Package → version of what makes the bundle."""
    names = (
        "primelens",
        "torch",
        "transformers",
        "onnx_ir",
        "onnx",
        "onnxruntime",
        "numpy",
        "Pillow",
    )
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
