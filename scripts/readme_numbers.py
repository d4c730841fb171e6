"""The README's table of speeds, made from the committed results in ``bench/results/``.

    python scripts/readme_numbers.py            # rewrite the part between the two marks
    python scripts/readme_numbers.py --check    # status 1 where it is not in step

Every folder there is one machine. What it holds becomes rows: ``*.step.json`` of ``primelens bench
step``, ``*.result.json`` of ``bench run``, ``*.beams.json`` of ``bench beams``, ``*.aa.json`` of
``bench aa``. No figure is written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from primelens.bench.estimators import compare_blocks

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- numbers: begin (scripts/readme_numbers.py) -->", "<!-- numbers: end -->"
_STEP_PASTS = (16, 256)  # of the many that were measured
_NAMES = {
    "default": "default model",
    "vitgpt2-base": "ViT-base + GPT-2",
    "vitbert-base": "ViT-base + BERT-base",
    "blip-base-384": "BLIP-base at 384 px",
    "git-base": "GIT-base",
    "clip-b16": "CLIP B/16",
}

Document = Mapping[str, Any]
Row = tuple[str, str, str, str]


def section(results: Path) -> str:
    """The Markdown between the marks, for all machines under ``results``."""
    parts = [text for folder in sorted(results.iterdir()) if (text := _machine(folder))]
    return "\n\n".join(parts)


def _machine(folder: Path) -> str:
    documents = [
        (file.name.split(".")[0], kind, json.loads(file.read_text(encoding="utf-8")))
        for kind in _ROWS
        for file in sorted(folder.glob(f"*.{kind}.json"))
    ]
    if not documents:
        return ""
    rows: list[Row] = [("what", "measured", "against", "checked"), ("---", "---", "---", "---")]
    for name, kind, document in documents:
        rows += _ROWS[kind](_NAMES.get(name, name), document)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_environment(folder, documents[0][2]['environment'])}\n\n{table}"


def _environment(folder: Path, found: Document) -> str:
    python = ".".join(found["python"].split(".")[:2])
    vector = (
        "AVX-512" if "avx512f" in found["flags"] else "AVX2" if "avx2" in found["flags"] else ""
    )
    inside = ", ".join(part for part in (vector, f"{found['memory'] / 2**30:.0f} GiB") if part)
    path = f"bench/results/{folder.name}/"
    return (
        f"{found['usable']} cores of an {found['cpu']} ({inside}), Python {python}, ONNX Runtime "
        f"{found['packages']['onnxruntime']}; figures and\nraw samples in [{path}]({path})."
    )


def _step_rows(name: str, document: Document) -> Iterator[Row]:
    busy = _busy([document["others_before"]])
    for row in document["rows"]:
        plain = (row.get("batch", 1), row.get("beams", 1)) == (1, 1)
        if row["past"] not in _STEP_PASTS or not plain:
            continue
        ours, *others = row["median_ms"]
        limit = row["bytes"]["total"] / document["read_bytes_per_s"] * 1e3
        against = f"{row['over_limit'][ours]:.2f} × the {limit:.1f} ms that reading its "
        against += f"{row['bytes']['total'] / 1e6:.0f} MB takes"
        checked = ""
        for other in others:
            found = compare_blocks(row["seconds"][ours], row["seconds"][other], paired=True).ratio
            against = (
                f"{row['median_ms'][other]:.1f} ms, {_short(other)}: {found.estimate:.2f} × "
                f"[{found.low:.2f}, {found.high:.2f}]; {against}"
            )
            same = "same tokens" if row["same_tokens"] else "OTHER TOKENS"
            checked = f"{same}, logits within {row['logits_error']:.1g}"
        what = f"{name}, one decode step at batch 1, past {row['past']}"
        yield what, f"{row['median_ms'][ours]:.1f} ms{busy}", against, checked


def _short(system: str) -> str:
    """Without the label of torch's build."""
    return system.split("+")[0]


def _result_rows(name: str, document: Document) -> Iterator[Row]:
    load = document["load"]
    during = load.get("others_during")
    looks = [load["others_before"], load["others_after"]] if during is None else [during]
    busy = _busy(looks)
    checked = _quality(document)
    for cell in document["cells"]:
        if cell["system"] != "primelens" or cell["lengths"] != "forced":
            continue
        ratios = [
            f"{row['system']} {row['ratio']:.2f} × [{row['low']:.2f}, {row['high']:.2f}]"
            for row in document["ratios"]
            if all(row[key] == cell[key] for key in ("scenario", "lengths", "batch"))
        ]
        against = ", ".join(ratios) or "–"
        tokens = document["spec"]["tokens"]
        if cell["scenario"] == "single":
            median = cell["figures"]["seconds"]["e2e"]["p50"] * 1e3
            yield (
                f"{name}, a caption of {tokens} tokens, every picture new",
                f"{median:.{0 if median >= 100 else 1}f} ms{busy}",
                against,
                checked,
            )
        elif cell["scenario"] == "offline" and cell["batch"] > 1:
            rate = cell["figures"]["images_per_s"]
            yield (
                f"{name}, the same in batches of {cell['batch']}",
                f"{rate:.{0 if rate >= 100 else 1}f} pictures/s{busy}",
                against,
                checked,
            )
    if document["coldstart"]:
        cold = document["coldstart"]
        yield (
            f"{name}, process start to first caption",
            f"{cold['median_ms']['total'] / 1e3:.2f} s{busy}",
            f"median of {len(cold['seconds'])} fresh processes, page cache warm",
            checked,
        )


def _quality(document: Document) -> str:
    quality = document["quality"]
    if not quality:
        return "–"
    same = quality["systems"]["primelens"]["same_tokens"]
    golden = "golden outputs replayed" if quality["golden"]["passed"] else "GOLDEN OUTPUTS DIFFER"
    if quality["reference"] == "primelens":
        return golden
    return f"{same:.0%} of captions equal to {quality['reference']}', {golden}"


def _beams_rows(name: str, document: Document) -> Iterator[Row]:
    ratio = document["ratio"]
    memory = document["memory"]
    against = f"moving pasts is {document['moved_share']:.1%} of it"
    if memory:
        cache, rows, files, rest, all_of_it = (
            f"{value / 2**20:.1f}"
            for value in (
                memory["self_cache"],
                memory["logits"] + memory["scores"],
                memory["files"],
                memory["rest"],
                memory["growth"],
            )
        )
        against += (
            f"; {all_of_it} MiB more memory: {cache} the beams' own cache, {rows} their logits and "
            f"scores, {files} pages of files, {rest} the rest"
        )
    yield (
        f"{name}, a step with {document['beams']} beams over a greedy one",
        (
            f"{ratio['estimate']:.2f} × [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            f"{_busy([document['others_before']])}"
        ),
        against,
        "–",
    )


def _aa_rows(name: str, document: Document) -> Iterator[Row]:
    wanted = "slower" if document["planted"] else "no difference"
    right = sum(run["verdict"] == wanted for run in document["runs"])
    planted = f", {document['planted']:.0%} slower" if document["planted"] else ""
    yield (
        f"{name} beside itself{planted}",
        f"{wanted} in {right} of {len(document['runs'])} runs{_busy(document['others'])}",
        "–",
        "–",
    )


def _busy(others: list[float | None]) -> str:
    """What a reader must know of a figure that was taken beside others."""
    return " (busy machine)" if any((share or 0.0) > 0.15 for share in others) else ""


_ROWS: Mapping[str, Callable[[str, Document], Iterator[Row]]] = {
    "step": _step_rows,
    "result": _result_rows,
    "beams": _beams_rows,
    "aa": _aa_rows,
}


def in_step(readme: str, results: Path) -> str:
    """``readme`` with the part between the marks made anew.

    Raises:
        ValueError: the marks are absent, or not once each and in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN!r} and {END!r} once each")
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"


def main() -> int:
    """Rewrite or check README.md; the exit code."""
    parser = argparse.ArgumentParser(description="Keep README.md in step with bench/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of step")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    chosen = parser.parse_args()
    text = chosen.readme.read_text(encoding="utf-8")
    wanted = in_step(text, chosen.results)
    if text == wanted:
        return 0
    if chosen.check:
        print("README.md is not in step with bench/results: run python scripts/readme_numbers.py")
        return 1
    chosen.readme.write_text(wanted, encoding="utf-8")
    print("README.md: numbers made anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
