"""Writes a draft as a bundle folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primelens.atomic import write_bytes
from primelens.bundle import MANIFEST_NAME, file_record
from primelens.export.card import CARD, bundle_card
from primelens.export.draft import Draft, producer
from primelens.export.golden_file import GOLDEN
from primelens.export.options import ExportOptions
from primelens.export.storage import save_graph
from primelens.manifest import FORMAT, FORMAT_VERSION, Domain, Manifest

__all__ = ["DETECTOR", "write_draft", "write_manifest"]

DETECTOR = "domain.safetensors"


def write_draft(draft: Draft, folder: Path, options: ExportOptions) -> Manifest:
    """Write graphs, tokenizer and a first manifest, enough for the runtime to load the folder."""
    for stem, graph in draft.graphs.items():
        save_graph(graph, folder, stem)
    for name, text in draft.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if options.detector_file is not None:
        shutil.copyfile(options.detector_file, folder / DETECTOR)
    return write_manifest(draft, folder, options, {})


def write_manifest(
    draft: Draft, folder: Path, options: ExportOptions, parity: Mapping[str, Any]
) -> Manifest:
    """Write ``bundle.json`` and the card over whatever else lies in ``folder``."""
    golden = GOLDEN if (folder / GOLDEN).exists() else None
    domain = options.domain
    if options.detector_file is not None:
        domain = Domain(domain.description, domain.notice, DETECTOR, domain.threshold)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": draft.name,
        "producer": producer(),
        "source": draft.source,
        "license": options.license,
        "domain": domain,
        "tower": draft.tower,
        "heads": draft.heads,
        "golden": golden,
        "parity": parity,
    }
    card = bundle_card(Manifest(**fields, files={}), draft.notes)
    (folder / CARD).write_text(card, encoding="utf-8")
    files = {
        path.name: file_record(path)
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }
    manifest = Manifest(**fields, files=files)
    data = manifest.to_bytes()
    Manifest.from_bytes(data)  # what cannot be read back must not be written
    write_bytes(folder / MANIFEST_NAME, data)
    return manifest
