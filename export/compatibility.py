"""Makes docs/compatibility.md: what can be exported, and what was proved of it, at what sizes.

::

    python -m primelens.export.compatibility             # writes docs/compatibility.md
    python -m primelens.export.compatibility --check     # exit code 1 where it is out of date

The page is made of the register of families, of the reference works, and of what
`primelens.export.reference_works` wrote into docs/proofs.json; nothing in it is written by hand.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from primelens.atomic import write_bytes
from primelens.export.options import Precision
from primelens.export.proof_table import read_json
from primelens.export.registry import decoder_family, model_family, supported, tower_family
from primelens.export.work import Work, works

__all__ = ["PAGE", "PROOFS", "main", "render"]

PAGE = Path("docs/compatibility.md")
PROOFS = Path("docs/proofs.json")

_INTRODUCTION = """\
# What can be exported, and what was proved

This page is made by `python -m primelens.export.compatibility`; nothing in it is written by hand.

A checkpoint whose `config.json` names one of these model types can be exported. A setting that the
exporter does not mirror refuses it, with every finding at once. Every export is proved by itself
before it is written; the tables below say what was proved beforehand, with random weights in which
every bias, normalisation and position matters.
"""
_PROOF = """\
## Proved at published sizes

Against the source model's own `generate` in transformers: {asked}. Texts are equal token for token;
where rounding may decide, the source decides in float64, and the place is counted as a tie. Errors
are the largest distances from the source's float64 values; limits are a few times the rounding
error of the source's own float32 run.
"""
_MISSING = """\
## Not proved at these sizes yet

These pass at small size in the tests. `python -m primelens.export.reference_works --only NAME
--json docs/proofs.json` proves them at the size of the named checkpoint.
"""


def render(proofs: Mapping[str, Any]) -> str:
    """The page; ``proofs`` are the entries of docs/proofs.json."""
    found = supported()
    parts = [_INTRODUCTION, _precisions()]
    parts.append(_section("Whole models", found["models"], model_family, proofs))
    parts.append(
        _section("Image towers of pairs", found["towers"], tower_family, proofs)
        + "\nOf `vision-encoder-decoder` and `vision-text-dual-encoder`. `feature_map_tower` is "
        "`primelens.towers.FeatureMapTower`: a ResNet or ConvNeXt whose last map is flattened.\n"
    )
    parts.append(
        _section("Text decoders of pairs", found["decoders"], decoder_family, proofs)
        + "\nOf `vision-encoder-decoder`; heads may be tied to the embedding or not, and tower and "
        "decoder of one width or of two.\n"
    )
    passed = {name: entry for name, entry in proofs.items() if entry["passed"]}
    parts.append(_proved(passed))
    missing = [w for w in works().values() if w.size == "published" and w.name not in passed]
    if missing:
        rows = [[w.name, " + ".join(w.parts) or w.family, w.like] for w in missing]
        parts.append(_MISSING + "\n" + _table(["work", "parts", "sizes of"], rows))
    return "\n".join(parts)


def _precisions() -> str:
    names = ", ".join(f"`{name}`" for name in get_args(Precision))
    return (
        f"Precisions: {names}. In `fp32` every token equals the source's. `int8` must choose the "
        "source's token at 99 % of all places when it is fed with the source's text, `int4` (4-bit "
        "decoders) at 95 %; `--agreement` asks for another share, and a bundle records what was "
        "measured. `auto` takes the narrowest of them that passes.\n"
    )


def _section(
    title: str, types: Iterable[str], find: Callable[[str], Any], proofs: Mapping[str, Any]
) -> str:
    rows = []
    for model_type in types:
        family = find(model_type)
        said = [_first_paragraph(inspect.getmodule(type(family))), _first_paragraph(family)]
        rows.append([f"`{model_type}`", *said, *_proofs_of(model_type, family.name, proofs)])
    return f"## {title}\n\n" + _table(
        ["model type", "what it is", "what it gives", "proved small", "at published size"], rows
    )


def _first_paragraph(documented: Any) -> str:
    """Of a docstring, on one line and as Markdown has it."""
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _proofs_of(model_type: str, family: str, proofs: Mapping[str, Any]) -> tuple[str, str]:
    """Which works prove a family: small ones, and published ones that passed."""

    def concerns(work: Work) -> bool:
        return model_type in work.parts or work.family == family

    small = [w.name for w in works().values() if w.size == "small" and concerns(w)]
    published = [
        w.name
        for w in works().values()
        if w.size == "published" and concerns(w) and proofs.get(w.name, {}).get("passed")
    ]
    return ", ".join(small) or "–", ", ".join(published) or "–"


def _proved(passed: Mapping[str, Any]) -> str:
    if not passed:
        return "## Proved at published sizes\n\nNothing yet.\n"
    rows = []
    for name, entry in passed.items():
        height, width = entry["picture"]
        heads = ", ".join(f"{kind}" for kind in entry["heads"].values())
        rows.append(
            [
                name,
                f"{entry['architecture']}: {' + '.join(entry['parts'])}".removesuffix(": "),
                entry["like"],
                f"{entry['parameters'] / 1e6:.0f} M",
                f"{height} x {width}",
                heads,
                str(entry["tokens"]),
                str(entry["ties"]),
                str(entry["searches"]),
                *(_error(entry["errors"], key) for key in ("tap", "logits")),
            ]
        )
    title = ["work", "classes", "sizes of", "parameters", "pixels", "heads", "equal tokens", "ties"]
    title += ["beam texts", "tap: error / limit", "logits: error / limit"]
    notes = [f"* {name}: {entry['notes']}\n" for name, entry in passed.items() if entry["notes"]]
    asked = _asked(passed)
    versions = sorted({_versions(entry) for entry in passed.values()})
    return "\n".join(
        [
            _PROOF.format(asked=asked),
            _table(title, rows),
            "".join(notes) + f"\nWith {'; '.join(versions)}.\n",
        ]
    )


def _asked(passed: Mapping[str, Any]) -> str:
    """What was compared, in words; of the first entry, and all are asked alike by the command."""
    asked = next(iter(passed.values()))["asked"]
    beams = " and ".join(str(n) for n in asked["beams"])
    penalties = " and ".join(f"{p:g}" for p in asked["penalties"])
    batches = " and ".join(str(n) for n in asked["batches"])
    return (
        f"greedy decoding of {asked['steps']} tokens on {asked['pictures']} pictures, and {beams} "
        f"beams of {asked['beam_steps']} tokens with length penalties of {penalties}, with and "
        f"without a prompt, in batches of {batches}"
    )


def _error(errors: Mapping[str, Sequence[float]], key: str) -> str:
    if key not in errors:
        return "–"
    return f"{errors[key][0]:.1e} / {errors[key][1]:.1e}"


def _versions(entry: Mapping[str, Any]) -> str:
    names = ("torch", "transformers", "onnxruntime")
    return ", ".join(f"{name} {entry['versions'][name]}" for name in names)


def _table(title: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [title, ["---"] * len(title), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m primelens.export.compatibility")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"default {PAGE}")
    parser.add_argument("--proofs", type=Path, default=PROOFS, help=f"default {PROOFS}")
    options = parser.parse_args(arguments)
    text = render(read_json(options.proofs))
    if options.check:
        known = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        if known == text:
            return 0
        print(f"{options.page} is out of date: run python -m primelens.export.compatibility")
        return 1
    write_bytes(options.page, text.encode())
    print(options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
