"""The card: a bundle's README.md, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from primelens.manifest import HeadSpec, Manifest, RankHeadSpec

__all__ = ["CARD", "bundle_card", "notes_of"]

CARD = "README.md"
_NOTES = "## Notes"


def bundle_card(manifest: Manifest, notes: Sequence[str]) -> str:
    """Markdown that says what the bundle is, what was proved and what was not measured."""
    source = manifest.source
    revision = f" at revision `{source.revision}`" if source.revision else ""
    lines = [
        f"# {manifest.name}",
        "",
        f"A primelens bundle, made from `{source.checkpoint}`{revision} (`{source.architecture}`).",
        "",
        f"* **Pictures it was made for**: {manifest.domain.description}",
        f"* **Licence of the weights**: {manifest.license or 'the source states none'}",
        f"* **Tower**: {manifest.tower.family}, computed in {manifest.tower.variant}",
        *(_head_line(name, head) for name, head in manifest.heads.items()),
        "",
        "Use it without torch or transformers:",
        "",
        "```python",
        "import primelens",
        "",
        _example(manifest),
        "```",
        "",
        *_parity_lines(manifest.parity),
    ]
    if notes:
        lines += ["", _NOTES, "", *(f"* {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _example(manifest: Manifest) -> str:
    kinds = {head.kind for head in manifest.heads.values()}
    load = 'primelens.load("this-folder")'
    if "caption" in kinds or not kinds:
        return f'print({load}.caption("photo.jpg").text)'
    if "rank" in kinds:
        return f'print({load}.rank("photo.jpg", ["a cat", "a dog"]).best.label)'
    return f'print({load}.answer("photo.jpg", "what is it?").text)'


def notes_of(card: str) -> list[str]:
    """The notes that `bundle_card` wrote into a card."""
    _, _, rest = card.partition(f"\n{_NOTES}\n")
    lines = rest.split("\n## ")[0].splitlines()
    return [line.removeprefix("* ") for line in lines if line.startswith("* ")]


def _head_line(name: str, head: HeadSpec | RankHeadSpec) -> str:
    if isinstance(head, RankHeadSpec):
        scoring = head.scoring + ("" if head.matching is None else ", matching")
        return (
            f"* **Head `{name}`**: rank, embeddings of width {head.width}, {scoring}, "
            f"{head.precision}"
        )
    decoder = head.decoder
    return (
        f"* **Head `{name}`**: {head.kind}, {decoder.layers} layers of {decoder.kv_heads} x "
        f"{decoder.head_dim}, {decoder.vocab_size} tokens, {head.precision}"
    )


def _parity_lines(parity: Any) -> list[str]:
    if not parity:
        return []
    lines = ["## What was compared with the source model", ""]
    failures = parity.get("failures", [])
    if failures:
        lines += ["**The comparison failed, and the bundle was written on request:**", ""]
        lines += [f"* {failure}" for failure in failures] + [""]
    for name, head in parity.get("heads", {}).items():
        lines += [f"* head `{name}`: {_head_result(head)}"]
    lines += [f"* not measured: {item}" for item in parity.get("not_measured", [])]
    lines += ["", "`primelens verify` replays the golden outputs on your machine."]
    return lines


def _head_result(head: Any) -> str:
    if "rankings" in head:
        return _ranking_result(head)
    parts = [f"{head.get('tokens_compared', 0)} tokens identical, {head.get('ties', 0)} ties"]
    for key in ("tap", "logits"):
        if "largest_error" in head.get(key, {}):
            parts.append(f"largest {key} error {head[key]['largest_error']:.2e}")
    if "top1_agreement" in head.get("logits", {}):
        parts[0] = f"top-1 agreement {head['logits']['top1_agreement']:.4f}"
    return "; ".join(parts)


def _ranking_result(head: Any) -> str:
    parts = [f"{head['rankings']} rankings identical, {head['ties']} ties"]
    if "top1_agreement" in head:
        parts[0] = f"top-1 agreement {head['top1_agreement']:.4f}"
    parts += [
        f"largest {key} error {head[key]['largest_error']:.2e}"
        for key in ("tap", "image", "text", "scores", "match")
        if "largest_error" in head.get(key, {})
    ]
    return "; ".join(parts)
