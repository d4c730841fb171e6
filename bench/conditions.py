"""Under which conditions a result's figures stand, in one sentence each: for captions and readers.

A speed without its machine, the state of its cache and its quality says nothing; charts are passed
on without their page, so each carries these words.
"""

from __future__ import annotations

from primelens.bench.result import Result

__all__ = ["cache_words", "machine_words", "quality_words", "summary_lines", "whose"]


def machine_words(result: Result) -> str:
    """The processor, and what of it was used."""
    environment = result.environment
    described = [s["description"] for s in result.systems.values() if s["description"]]
    threads = {str(found["threads"]) for found in described if found["threads"]}
    precisions = {str(found["precision"]) for found in described if found["precision"]}
    parts = [f"{environment['cpu']}, {environment['usable']} cores"]
    if threads:
        parts.append(f"{' or '.join(sorted(threads))} threads")
    if precisions:
        parts.append(" or ".join(sorted(precisions)))
    return ", ".join(parts)


def cache_words(result: Result) -> str:
    """Whether embeddings were kept while the scenarios ran; only ``cache`` shows pictures twice."""
    aside = " (except where a cache is named)" if result.cache else ""
    return f"cache off, no picture shown twice{aside}"


def quality_words(result: Result) -> str:
    """How the same configurations answered."""
    if not result.quality:
        return "quality not measured"
    reference = result.quality["reference"]
    same = [
        f"{name} {found['same_tokens']:.0%}"
        for name, found in result.quality["systems"].items()
        if name != reference
    ]
    golden = "replayed exactly" if result.quality["golden"]["passed"] else "DIFFER"
    words = f"golden outputs {golden}"
    if same:
        count = next(iter(result.quality["systems"].values()))["pictures"]
        equal = (
            f"captions equal to {whose(reference)} token for token, of {count}: {', '.join(same)}"
        )
        words = f"{equal}; {words}"
    return words


def summary_lines(result: Result) -> list[str]:
    """What the ratios of forced length say; nothing where no conclusion may be drawn."""
    if not result.load["concluded"]:
        return []
    lines = []
    for row in result.ratios:
        if row["lengths"] != "forced" or row["scenario"] not in ("single", "offline"):
            continue
        where = "One by one" if row["scenario"] == "single" else f"In batches of {row['batch']}"
        times = f"{row['ratio']:.2f} times {whose(row['over'])} time"
        said = f"{row['system']} takes {times}"
        if row["verdict"] == "no difference":
            said = f"no difference between {row['system']} and {row['over']} was found"
        lines.append(f"{where}, {said} [{row['low']:.2f}, {row['high']:.2f}].")
    return lines


def whose(name: str) -> str:
    """The possessive of a system's name."""
    return f"{name}'" if name.endswith("s") else f"{name}'s"
