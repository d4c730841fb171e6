"""Heads put into a bundle, exchanged and taken out, while the tower stays as it is.

The new head's graphs go through the same gate as an export, on the bundle's own tower. The whole
bundle is written beside the old one, replays the golden outputs of *all* its heads, and only then
takes the old one's place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from primelens.errors import OptionError, UnsupportedError
from primelens.export.calibration import Observed, observe, watched_rows
from primelens.export.draft import check_heads, tap_identities, tap_shapes, tap_weights
from primelens.export.gate import GateReport
from primelens.export.golden import golden_parity
from primelens.export.head_source import HeadSource, open_head
from primelens.export.kinds import kind_of
from primelens.export.options import ExportOptions, ExportReport, GateOptions
from primelens.export.pipeline import UNMEASURED, Clock, prove, unmeasured
from primelens.export.quantise import FLOAT32, RECIPES, Recipe, recipe, recipe_of_variant
from primelens.export.questions import questions_for
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import HeadSplit
from primelens.export.remake import Remake, check_name, in_place, remade, take_out
from primelens.export.same_tower import check_same_tower
from primelens.export.seam import ask_at_the_seam, pictures_for
from primelens.export.storage import narrow_weights, save_graph
from primelens.export.tower_graph import build_tower
from primelens.export.towers import tapped_at
from primelens.export.trial import calibration_pictures
from primelens.export.tuning_note import carried_note, tuning_file
from primelens.images import ImageSource
from primelens.manifest import Source, TapSpec
from primelens.preprocessing import Preprocessing
from primelens.schema import encode

__all__ = ["HeadOptions", "add_head", "swap_head"]

logger = logging.getLogger("primelens.export")


@dataclass(frozen=True)
class HeadOptions:
    """How a head comes into a bundle.

    Attributes:
        out: the folder of the new bundle; None replaces the old one.
        head: which of the checkpoint's heads, where it has several.
        kind: "caption" or "answer": what a head that continues prompts is called, because its
            architecture cannot tell; None leaves it to the exporter.
        revision: commit, branch or tag, where the checkpoint is a hub id.
        precision: "fp32", "int8" or "int4"; None takes that of the head that is replaced, else
            that of the bundle's first head.
        storage, calibration: as in `ExportOptions`.
        gate: how to prove it.
    """

    out: Path | None = None
    head: str | None = None
    kind: Literal["caption", "answer"] | None = None
    revision: str | None = None
    precision: Literal["fp32", "int8", "int4"] | None = None
    storage: Literal["auto", "fp32"] = "auto"
    calibration: tuple[ImageSource, ...] = ()
    gate: GateOptions = field(default_factory=GateOptions)

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in RECIPES:
            raise OptionError(
                f"precision is {self.precision!r}; a head knows: {', '.join(RECIPES)}."
            )


def add_head(
    bundle: str | Path, checkpoint: str | Path, name: str, options: HeadOptions | None = None
) -> ExportReport:
    """Put one more head into a bundle.

    Args:
        bundle: a folder; ``"default"`` and hub ids need ``options.out``.
        checkpoint: a checkpoint whose tower is the bundle's, or one without a tower that says so
            (`primelens.head_checkpoint`).
        name: what to call the head.
        options: where to, how precise, how proved.

    Raises:
        BundleError: the bundle is incomplete or altered.
        CheckpointError: the checkpoint cannot be loaded, or was tuned on another tower.
        OptionError: the bundle has a head of that name, or the name cannot be one.
        GateError: the head differs from its source; nothing has changed.
    """
    options = options or HeadOptions()
    check_name(name)
    opened, target = in_place(bundle, options.out)
    if name in opened.manifest.heads:
        raise OptionError(
            f"The bundle {opened.folder} has a head {name!r} already.",
            remedy="Give another name, or exchange it: primelens swap-head.",
        )
    return _put_in(Remake.of(opened), checkpoint, name, target, options)


def swap_head(
    bundle: str | Path, checkpoint: str | Path, name: str, options: HeadOptions | None = None
) -> ExportReport:
    """Exchange a head of a bundle for another of the same kind; arguments as for `add_head`.

    Raises:
        InputError: the bundle has no head of that name.
        Otherwise as `add_head`.
    """
    options = options or HeadOptions()
    opened, target = in_place(bundle, options.out)
    remake = Remake.of(opened)
    take_out(remake, name)
    return _put_in(remake, checkpoint, name, target, options)


def _put_in(
    remake: Remake, checkpoint: str | Path, name: str, target: Path, options: HeadOptions
) -> ExportReport:
    bundle, clock = remake.bundle, Clock()
    before = bundle.manifest.heads.get(name) or next(iter(bundle.manifest.heads.values()), None)
    steps = recipe(options.precision or (before.precision if before else "fp32"))
    preprocessing = Preprocessing.from_dict(dict(remake.tower.preprocessing))
    with ExitStack() as stack:
        workshop = Path(stack.enter_context(TemporaryDirectory()))
        with clock.stage("load"):
            source = open_head(
                checkpoint,
                preprocessing,
                revision=options.revision,
                head=options.head,
                kind=options.kind,
            )
            check_same_tower(remake.tower, source, str(bundle.folder))
            check_heads(replace(source.split, heads={name: source.head}))
        for note in source.checkpoint.notes:
            logger.warning("%s: %s", source.checkpoint.name, note)
            remake.notes.append(f"head {name}: {note}")
        with clock.stage("build"):
            if source.head.tap not in remake.tower.taps:
                _add_tap(remake, source, _Workshop(workshop, options.storage))
            observed = _observed(remake, source, name, steps, options)
            last = _Workshop(workshop, options.storage, observed)
            _build(remake, source, name, steps, last)
            _note_tuning(remake, source, name, workshop)
        with clock.stage("ask the source"):
            pictures = pictures_for(remake.golden, preprocessing, options.gate)
            answers = _ask(remake, source, steps, pictures, options.gate)
        folder = stack.enter_context(remade(target, overwrite=options.out is None))
        with clock.stage("write"):
            remake.write(folder)
        with clock.stage("prove"):
            split = replace(source.split, heads={name: source.head})
            report = prove(folder, split, {name: answers}, options.gate)[name]
        _record(remake, source, name, answers, report)
        remake.write_manifest(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    notes = tuple(source.checkpoint.notes)
    return ExportReport(target, remake.parity, notes, clock.seconds, size)


@dataclass(frozen=True)
class _Workshop:
    """Where new graphs are written, and how.

    Attributes:
        folder, storage: see `HeadOptions`.
        observed: what 4-bit weights are rounded by.
    """

    folder: Path
    storage: Literal["auto", "fp32"]
    observed: Mapping[str, Observed] = field(default_factory=dict)

    def save(self, graphs: Mapping[str, ir.Model], steps: Recipe) -> dict[str, Path]:
        """Rewrite, narrow and write graphs; name → path of every file."""
        steps.apply(graphs, self.observed)
        files: list[str] = []
        for stem, graph in graphs.items():
            if self.storage == "auto":
                narrow_weights(graph)
            files += save_graph(graph, self.folder, stem)
        return {file: self.folder / file for file in files}


def _add_tap(remake: Remake, source: HeadSource, workshop: _Workshop) -> None:
    """Another graph of the same tower: one run emits every tap, old and new."""
    tower, new = remake.tower, source.head.tap
    absent = [tap for tap in tower.taps if tap not in source.split.tower.taps]
    if tower.graph is None or absent:
        lack = f"the checkpoint's exporter knows no {', '.join(absent)}" if absent else "no tower"
        raise UnsupportedError(
            f"The head reads the tap {new!r}, which the bundle's tower does not emit, and which "
            f"cannot be added: {lack}.",
            remedy="Export the checkpoint to a bundle of its own.",
        )
    split = tapped_at(source.split.tower, [*tower.taps, new])
    preprocessing = source.checkpoint.preprocessing
    shape = preprocessing.output_shape
    assert shape is not None  # the bundle's tower has one, and it is the same
    graph = build_tower(split, shape)
    identities = tap_identities(source.split, preprocessing.to_dict())
    spec = TapSpec(identities[new], tap_shapes(graph)[new], tap_weights(split, new))
    steps = recipe_of_variant(tower.variant)
    remake.made |= workshop.save({"tower": graph}, steps)
    remake.tower = replace(tower, graph="tower.onnx", taps={**tower.taps, new: spec})


def _observed(
    remake: Remake, source: HeadSource, name: str, steps: Recipe, options: HeadOptions
) -> dict[str, Observed]:
    """What the head's decoder is fed with, from a trial in float32; empty where nobody asks."""
    if not steps.four or not isinstance(source.head, HeadSplit):
        return {}
    made, heads = dict(remake.made), dict(remake.heads)
    with TemporaryDirectory() as folder:
        graphs, trial = Path(folder, "graphs"), Path(folder, "trial")
        graphs.mkdir()
        trial.mkdir()
        built = _build(remake, source, name, FLOAT32, _Workshop(graphs, "fp32"))
        remake.write(trial)
        names = {
            stem: watched_rows(graph) for stem, graph in built.items() if fnmatch(stem, steps.four)
        }
        asked = ExportOptions(calibration=options.calibration, gate=options.gate)
        pictures = calibration_pictures(source.checkpoint, source.split, asked)
        questions = questions_for(source.checkpoint.tokenizer, source.head, len(pictures))
        threads = options.gate.threads
        found = observe(trial, names, pictures, questions={name: questions}, threads=threads)
    remake.made, remake.heads = made, heads
    return found


def _build(
    remake: Remake, source: HeadSource, name: str, steps: Recipe, workshop: _Workshop
) -> dict[str, ir.Model]:
    """The head's graphs, which are returned, its tokenizer and its place in the manifest."""
    kind, shape = kind_of(source.head), remake.tower.taps[source.head.tap].shape
    graphs = kind.graphs(name, source.head, shape)
    spec = kind.spec(name, source.head, source.checkpoint, steps.precision_of(graphs))
    replaced = remake.bundle.manifest.heads.get(name)
    if replaced is not None and replaced.kind != spec.kind:
        raise OptionError(
            f"The head {name!r} is a {replaced.kind} head, the checkpoint's is a {spec.kind} head.",
            remedy="Remove the one and add the other: primelens remove-head, add-head.",
        )
    remake.made |= workshop.save(graphs, steps)
    text = source.checkpoint.tokenizer_json.encode("utf-8")
    tokenizer = _same_tokenizer(remake, text)
    if tokenizer is None:
        tokenizer = f"{name}.tokenizer.json"
        remake.made[tokenizer] = workshop.folder / tokenizer
        remake.made[tokenizer].write_bytes(text)
    heads = {**remake.heads, name: replace(spec, tokenizer=tokenizer)}
    order = [*remake.bundle.manifest.heads, name]
    remake.heads = {key: heads[key] for key in dict.fromkeys(order) if key in heads}
    return graphs


def _note_tuning(remake: Remake, source: HeadSource, name: str, folder: Path) -> None:
    """How the head was tuned, where its checkpoint says so."""
    if (carried := carried_note(source.checkpoint.folder, name)) is None:
        return
    text, line = carried
    note = folder / tuning_file(name)
    note.write_text(text, encoding="utf-8")
    remake.made[note.name] = note
    remake.notes.append(line)


def _same_tokenizer(remake: Remake, text: bytes) -> str | None:
    """A tokenizer of the bundle with the very same content: heads share it."""
    for head in remake.heads.values():
        if remake.bundle.path(head.tokenizer).read_bytes() == text:
            return head.tokenizer
    return None


def _ask(
    remake: Remake,
    source: HeadSource,
    steps: Recipe,
    pictures: Sequence[NDArray[np.uint8]],
    options: GateOptions,
) -> Any:
    """What the source says, from the pixels on where the tower can be compared too."""
    exact = steps.name == "fp32"
    rounded = remake.tower.variant != FLOAT32.variant  # the tower's error is not the head's
    if source.tuned_on is None and remake.tower.graph and not (exact and rounded):
        with quiet_transformers():
            return kind_of(source.head).ask(source.checkpoint, source.head, pictures, options)
    return ask_at_the_seam(remake, source, pictures, options)


def _record(
    remake: Remake, source: HeadSource, name: str, answers: Any, report: GateReport
) -> None:
    """Put the proof of a new head beside the others', and its golden outputs too."""
    checkpoint, spec, parity = source.checkpoint, remake.heads[name], dict(remake.parity)
    measured = {
        **report.measured,
        "source": encode(
            Source(checkpoint.name, checkpoint.revision, checkpoint.architecture, checkpoint.digest)
        ),
    }
    if getattr(answers, "encoded", None) is not None:
        measured["fed_with"] = "what the bundle's own tower says"
    parity["heads"] = {**parity.get("heads", {}), name: measured}
    lines = [f"head {name}, {line}" for line in report.failures]
    parity["failures"] = [*parity.get("failures", ()), *lines]
    known = [line for line in parity.get("not_measured", ()) if line != UNMEASURED]
    parity["not_measured"] = [UNMEASURED, *known, *unmeasured(name, spec)]
    new = golden_parity(answers, report.measured)
    old = parity.get("golden") or new
    parity["golden"] = {
        **old,
        "pixels_sha256": max(old["pixels_sha256"], new["pixels_sha256"], key=len),
        "heads": {
            **old.get("heads", {}),
            name: {
                key: value
                for key, value in new.items()
                if key.endswith("_tolerance") and key != "tap_tolerance"
            },
        },
        "taps": {source.head.tap: new["tap_tolerance"], **_tap_tolerances(remake, old)},
    }
    remake.parity = parity
    quantised = spec.precision != "fp32"
    if not (quantised and report.failures):
        kind = kind_of(source.head)
        arrays = kind.golden(name, source.head, answers, report if quantised else None)
        remake.golden = arrays | remake.golden  # what was said of pictures before stays


def _tap_tolerances(remake: Remake, golden: Mapping[str, Any]) -> dict[str, float]:
    """Of the taps that the bundle had before."""
    given = golden.get("taps", {})
    return {
        tap: given.get(tap, golden["tap_tolerance"]) for tap in remake.bundle.manifest.tower.taps
    }
