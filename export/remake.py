"""A bundle made from another one: heads taken out or put in, the tower left out, else as it was.

Every file that is not concerned is copied byte for byte; manifest, card and golden file are written
anew, and what comes out replays its golden outputs before it takes its place. Needs neither torch
nor onnx.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from primelens.atomic import atomic_folder, write_bytes
from primelens.bundle import MANIFEST_NAME, Bundle, file_record, open_bundle
from primelens.errors import GateError, InputError, OptionError
from primelens.export.card import CARD, bundle_card, notes_of
from primelens.export.golden_file import GOLDEN, owner_of, read_golden, write_golden
from primelens.export.tuning_note import tuning_file
from primelens.hub import resolve
from primelens.manifest import FORMAT_VERSION, HeadSpec, Manifest, RankHeadSpec, TowerSpec
from primelens.options import LoadOptions
from primelens.verify import verify

__all__ = ["Remake", "check_name", "in_place", "remade", "remove_head", "take_out"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass
class Remake:
    """A bundle to be; begins as the one that it is made from.

    Attributes:
        bundle: what it is made from.
        tower, heads, parity: for its manifest.
        golden: arrays of its golden file.
        made: files that are written anew: name → where their content lies now.
        notes: for its card.
        dropped: files that no head names and that go nevertheless.
    """

    bundle: Bundle
    tower: TowerSpec
    heads: dict[str, HeadSpec | RankHeadSpec]
    parity: dict[str, Any]
    golden: dict[str, NDArray[Any]]
    made: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)

    @staticmethod
    def of(bundle: Bundle) -> Remake:
        """The bundle as it is; raises `BundleError` where its golden file cannot be read."""
        manifest = bundle.manifest
        card = bundle.path(CARD)
        notes = notes_of(card.read_text(encoding="utf-8")) if CARD in manifest.files else []
        return Remake(
            bundle=bundle,
            tower=manifest.tower,
            heads=dict(manifest.heads),
            parity=dict(manifest.parity),
            golden=read_golden(bundle),
            notes=notes,
        )

    def files(self) -> dict[str, Path]:
        """Name → where the content lies, of all files but manifest, card and golden file."""
        manifest = self.bundle.manifest
        before = _owned(manifest.tower, manifest.heads)
        now = _owned(self.tower, self.heads)
        left_out = {CARD, GOLDEN, manifest.golden} | self.dropped | (before - now)
        kept = [name for name in manifest.files if name not in left_out]
        return {name: self.bundle.path(name) for name in kept} | self.made

    def write(self, folder: Path) -> Manifest:
        """Write the bundle into an empty folder."""
        for name, path in self.files().items():
            shutil.copyfile(path, folder / name)
        return self.write_manifest(folder)

    def write_manifest(self, folder: Path) -> Manifest:
        """Write golden file, card and manifest over whatever else lies in ``folder``."""
        if self.golden:
            write_golden(folder / GOLDEN, self.golden)
        manifest = replace(
            self.bundle.manifest,
            format_version=FORMAT_VERSION,
            tower=self.tower,
            heads=self.heads,
            golden=GOLDEN if (folder / GOLDEN).exists() else None,
            files={},
            parity=self.parity,
        )
        (folder / CARD).write_text(bundle_card(manifest, self.notes), encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)
        manifest = replace(manifest, files={name: file_record(folder / name) for name in names})
        data = manifest.to_bytes()
        Manifest.from_bytes(data)  # what cannot be read back must not be written
        write_bytes(folder / MANIFEST_NAME, data)
        return manifest


def _owned(tower: TowerSpec, heads: Mapping[str, HeadSpec | RankHeadSpec]) -> set[str]:
    """Files that a tower and heads name, the weights beside their graphs, notes on tuning."""
    named = {file for head in heads.values() for file in head.files.values()}
    named |= {tuning_file(name) for name in heads}
    named |= {tower.graph} if tower.graph else set()
    graphs = [Path(name) for name in named if name.endswith(".onnx")]
    return named | {str(graph.with_suffix(".weights")) for graph in graphs}


def take_out(remake: Remake, name: str) -> None:
    """Leave a head out: its files, its golden outputs, and what was measured of it.

    Raises:
        InputError: the bundle has no such head.
    """
    if name not in remake.heads:
        known = ", ".join(remake.heads) or "none"
        raise InputError(
            f"The bundle {remake.bundle.folder} has no head {name!r}.", remedy=f"It has: {known}."
        )
    del remake.heads[name]
    remake.dropped.add(tuning_file(name))  # a head that takes the place was tuned otherwise
    remake.notes = [line for line in remake.notes if not _is_about(line, name)]
    remake.golden = {key: array for key, array in remake.golden.items() if owner_of(key) != name}
    parity = dict(remake.parity)
    proofs = dict(parity.get("heads", {}))
    taken = proofs.pop(name, {})
    parity["heads"] = proofs
    for key in ("failures", "not_measured"):
        parity[key] = [line for line in parity.get(key, ()) if not _is_about(line, name)]
    if "tap" in taken and not any("tap" in proof for proof in proofs.values()):
        parity["tower"] = taken["tap"]  # the tower stays, and so does its proof
    if "golden" in parity:
        golden = dict(parity["golden"])
        golden["heads"] = {k: v for k, v in golden.get("heads", {}).items() if k != name}
        parity["golden"] = golden
    parity.pop("task", None)  # measured with heads that may not be there any more
    remake.parity = parity


def _is_about(line: str, head: str) -> bool:
    return line.startswith((f"head {head},", f"head {head}:"))


def check_name(name: str) -> None:
    """Raises `OptionError` for a name that no head can have: it becomes part of file names."""
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"The head's name {name!r} cannot be part of a file's name.",
            remedy="Use letters, digits, - and _; at most 64 of them.",
        )


def in_place(
    bundle: str | Path, out: Path | None, *, overwrite: bool = False
) -> tuple[Bundle, Path]:
    """The bundle, fully checked, and where what is made of it shall lie.

    Args:
        bundle: a folder, ``"default"``, or a hub id.
        out: a folder to be; None replaces the bundle, which must be a folder then.
        overwrite: whether ``out`` may exist.

    Raises:
        BundleError: the bundle is incomplete or altered.
        OptionError: ``out`` exists, or a bundle that is no folder of the user's is to be replaced.
    """
    if out is None and not Path(bundle).is_dir():
        raise OptionError(
            f"{bundle} is a shipped or fetched bundle and is not changed in place.",
            remedy="Say where the new one shall lie: --out DIR.",
        )
    if out is not None and out.exists() and not overwrite:
        raise OptionError(f"{out} is there already.", remedy="Give another name.")
    opened = open_bundle(resolve(str(bundle)), check="full")
    return opened, opened.folder if out is None else out


@contextmanager
def remade(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder to write a bundle into; it takes its place when its golden outputs replay.

    Raises:
        GateError: they do not; nothing has changed.
    """
    with atomic_folder(target, overwrite=overwrite) as folder:
        yield folder
        if open_bundle(folder, check="size").manifest.golden is None:
            return
        report = verify(folder, options=LoadOptions(check="size"))
        failed = [f"{check.name}: {check.detail}" for check in report.checks if not check.passed]
        if failed:
            raise GateError(
                "The new bundle does not replay its golden outputs; nothing was written:",
                remedy="Run `primelens verify` on the bundle that it was to be made from.",
                problems=failed,
            )


def remove_head(bundle: str | Path, name: str, out: Path | None = None) -> Path:
    """Take a head out of a bundle; returns the new bundle's folder.

    The tower stays as it is, with all its taps: what is kept of pictures stays valid.

    Raises:
        BundleError: the bundle is incomplete or altered.
        InputError: it has no head of that name.
    """
    opened, target = in_place(bundle, out)
    remake = Remake.of(opened)
    take_out(remake, name)
    with remade(target, overwrite=out is None) as folder:
        remake.write(folder)
    return target
