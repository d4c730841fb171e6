"""``primelens bench targets``: what is promised of primelens' speed, measured and judged.

    primelens bench targets --out DIR                  # every part that DIR/targets.json lacks
    primelens bench targets --out DIR --only cold,beams
    primelens bench targets --out DIR --print          # the table of what was measured, no more

Each part (`primelens.bench.target_rows`) is a run of its own beside its peers and takes minutes;
what it yields is merged into ``targets.json``, so that an interrupted run goes on where it was. A
target that is missed is printed as missed, with where the time went against the machine's limits
and the reason that was found (``--reason PART=TEXT``); a part that is measured again loses its
reason. Status 0, whatever was missed; 2 of a part that could not be measured at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from primelens.bench.files import write_json, write_text
from primelens.bench.peer_environments import default_folder
from primelens.bench.table import align
from primelens.bench.target_rows import PARTS, Judged, Part, judge, part_names
from primelens.errors import OptionError

__all__ = ["FILE", "main", "read_targets", "target_lines"]

FILE = "targets.json"
KIND, VERSION = "primelens-bench-targets", 1
SMALL = {"vitgpt2-base": "tiny-vitgpt2", "blip-captioning-base": "tiny-blip-captioning"}


def read_targets(path: Path) -> dict[str, Any]:
    """What was measured so far, or an empty file's content.

    Raises:
        OptionError: the file is something else.
    """
    if not path.exists():
        return {"kind": KIND, "version": VERSION, "parts": {}, "reasons": {}}
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OptionError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict) or (found.get("kind"), found.get("version")) != (KIND, VERSION):
        raise OptionError(
            f"{path} holds no targets of version {VERSION}.", remedy="Give another --out."
        )
    return dict(found)


def target_lines(found: Mapping[str, Any]) -> list[str]:
    """The table: every check of every part, then each part's figures beside quality and limits."""
    judged = [one for part in PARTS for one in judge(part, found["parts"].get(part.name))]
    rows = [["what", "target", "measured", "95 % interval", "verdict"]]
    for one in judged:
        rows.append(
            [
                f"{one.part.name}: {one.check.text}",
                one.check.target,
                "–" if one.figure is None else f"{one.figure:.2f} {one.check.unit}",
                "–" if one.interval is None else "{:.2f} to {:.2f}".format(*one.interval),
                one.verdict if one.verdict != "missed" else "MISSED",
            ]
        )
    lines = [*_machine(found), *align(rows), ""]
    for part in PARTS:
        lines += _details(part, found, [one for one in judged if one.part is part])
    return lines


def _machine(found: Mapping[str, Any]) -> Iterator[str]:
    for measured in list(found["parts"].values())[-1:]:
        machine = measured["environment"]
        packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
        yield (
            f"{machine['cpu']}, {machine['usable']} of {machine['cores']} cores, "
            f"{machine['system']}, Python {machine['python']}, {packages}"
        )
        yield ""


def _details(part: Part, found: Mapping[str, Any], judged: Sequence[Judged]) -> Iterator[str]:
    measured = found["parts"].get(part.name)
    if measured is None:
        yield f"{part.name}: {part.title}: not measured"
        return
    load = ", ".join("unknown" if v is None else f"{v:.0%}" for v in measured["load"].values())
    yield f"{part.name}: {part.title} ({measured['work']}, {measured['started']}, others {load})"
    limits = measured["limits"]
    int8 = limits["int8_op_per_s"] or 0.0
    yield (
        f"    limits: {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{limits['fp32_flop_per_s'] / 1e9:.0f} GFLOP/s fp32, {int8 / 1e9:.0f} GOP/s int8"
    )
    for name, system in measured["systems"].items():
        yield f"    {name}: {_system(system)}"
    for precision in part.precisions:
        if precision in measured["quality"]:
            yield f"    {precision}: {_quality(measured['quality'][precision])}"
    for one in judged:
        if one.verdict == "not measured":
            yield f"    {one.check.text}: not measured: {one.why}"
    missed = [one.check.text for one in judged if one.verdict == "missed"]
    if missed:
        reason = found["reasons"].get(part.name, "not looked for yet")
        yield f"    missed ({'; '.join(missed)}): {reason}"


def _system(system: Mapping[str, Any]) -> str:
    if "error" in system:
        return f"FAILED, which is its result: {str(system['error']).splitlines()[0]}"
    words = [f"{system['seconds'] * 1e3:.1f} ms"]
    if system.get("batch", 1) > 1:
        words[0] += f" a picture in batches of {system['batch']}"
    limit = system.get("limit")
    if limit:
        words.append(f"{limit['total'] / system['seconds']:.0%} of the limit")
    if stages := system.get("stages"):
        words.append(
            ", ".join(
                f"{stage} {seconds * 1e3:.1f}"
                + (f" (limit {limit[stage] * 1e3:.1f})" if limit and stage in limit else "")
                for stage, seconds in stages.items()
                if seconds
            )
        )
    elif limit:
        words.append(", ".join(f"{k} {v * 1e3:.2f} ms" for k, v in limit.items() if k != "total"))
    if system.get("tokens") is not None:
        words.append(f"{system['tokens']:.0%} of the captions equal transformers' token for token")
    if "peak_bytes" in system:
        words.append(f"peak {system['peak_bytes'] / 1e6:.0f} MB")
    if "weight_bytes" in system:
        words.append(f"weights {system['weight_bytes'] / 1e6:.0f} MB")
    return "; ".join(words)


def _quality(parity: Mapping[str, Any]) -> str:
    """What the export's comparison with the source found."""
    words = []
    for head in list(parity.get("heads", {}).values())[:1]:
        logits, tap = head.get("logits", {}), head.get("tap", {})
        if "top1_agreement" in logits:
            words.append(f"top-1 agreement {logits['top1_agreement']:.4f}, teacher-forced")
        elif "tokens_compared" in head:
            words.append(f"{head['tokens_compared']} tokens identical, {head.get('ties', 0)} ties")
        for name, found in (("tap", tap), ("logits", logits)):
            if "largest_error" in found:
                words.append(f"largest {name} error {found['largest_error']:.1e}")
    for failure in parity.get("failures", ()):
        words.append(f"the gate would refuse it: {str(failure).splitlines()[0]}")
    return "against its source: " + ("; ".join(words) or "see its manifest")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    chosen = _parser().parse_args(arguments)
    path = chosen.out / FILE
    found = read_targets(path)
    for name, text in chosen.reason:
        found["reasons"][name] = text
    if chosen.reason:
        write_json(path, found)
    failed = False
    if not chosen.print and not (chosen.reason and chosen.only is None):
        failed = _measure(chosen, path, found)
    lines = target_lines(found)
    print("\n".join(lines))
    if found["parts"]:
        write_text(path.with_suffix(".txt"), "\n".join(lines) + "\n")
    return 2 if failed else 0


def _measure(chosen: argparse.Namespace, path: Path, found: dict[str, Any]) -> bool:
    """Measure what is asked for or missing; whether a part could not be measured."""
    from primelens.bench.target_runs import TargetOptions, measure_part

    options = TargetOptions(
        work_folder=chosen.work,
        peer_folder=chosen.peer_folder,
        works=SMALL if chosen.small else {},
        blocks=chosen.blocks,
        threads=chosen.threads,
        fresh=chosen.fresh,
    )
    failed = False
    for part in PARTS:
        if part.name not in (chosen.only or ()) and (chosen.only or part.name in found["parts"]):
            continue
        print(f"… {part.name}: {part.title}", file=sys.stderr, flush=True)
        measured = measure_part(part, options, _say)
        failed |= not any("seconds" in one for one in measured["systems"].values())
        found["parts"][part.name] = measured
        found["reasons"].pop(part.name, None)
        write_json(path, found)
    return failed


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m primelens.bench targets",
        description="Measure what is promised of the speed, part by part, and print the table.",
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {FILE}")
    parser.add_argument("--only", type=_parts, metavar="PART,…", help=", ".join(part_names()))
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument(
        "--reason",
        type=_reason,
        action="append",
        default=[],
        metavar="PART=TEXT",
        help="why a part misses its targets, as found by profiling",
    )
    parser.add_argument(
        "--work", type=Path, default=default_folder().parent / "bench", help="made once, kept there"
    )
    parser.add_argument("--peer-folder", type=Path, help="where peers' environments lie")
    parser.add_argument("--small", action="store_true", help="small works: a look, no result")
    parser.add_argument("--blocks", type=int, help="repetitions, where not the part's own")
    parser.add_argument("--fresh", action="store_true", help="export quantised bundles anew")
    parser.add_argument("--threads", type=int)
    return parser


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in part_names()]
    if unknown:
        known = ", ".join(part_names())
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}; known: {known}")
    return names


def _reason(text: str) -> tuple[str, str]:
    name, _, reason = text.partition("=")
    if name not in part_names() or not reason:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=TEXT with a known part")
    return name, reason


if __name__ == "__main__":
    sys.exit(main())
