"""Random-weight checkpoints in the shape of the real ones, and the proof of each.

::

    python -m primelens.export.reference_works                  # the table of all published sizes
    python -m primelens.export.reference_works --only beit-gpt2 --threads 1
    python -m primelens.export.reference_works --list

Every published work is made, exported and compared with its source (`primelens.export.proof`).
What was found is printed as a table and merged into the JSON file that ``--json`` names, of which
`primelens.export.compatibility` makes a page. The exit code is 1 where a work fails. Works are
added by files in `primelens.export.works`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primelens.export.companions import write_companions
from primelens.export.randomise import randomise
from primelens.export.work import Work, build, find_work, works

__all__ = ["NAMES", "build", "main", "model_of", "randomise", "write_companions"]

NAMES = tuple(works())


def model_of(name: str, seed: int = 0) -> Any:
    """The model called ``name`` with randomised weights, in float32 and evaluation mode."""
    return find_work(name).model(seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    chosen = _chosen(options)
    if options.list:
        for work in chosen:
            print(f"{work.name:24} {work.size:10} {' + '.join(work.parts) or work.family}")
        return 0
    from primelens.export.proof import ProofOptions, prove_work
    from primelens.export.proof_table import merge_json, print_row, print_title

    proof_options = ProofOptions(
        pictures=options.pictures,
        steps=options.steps,
        threads=options.threads,
        seed=options.seed,
        folder=options.folder,
    )
    passed = True
    print_title()
    for work in chosen:
        proof = prove_work(work, proof_options)
        print_row(proof)
        passed &= proof.passed
        if options.json is not None and work.size == "published":
            merge_json(options.json, proof, proof_options)
    return 0 if passed else 1


def _chosen(options: argparse.Namespace) -> list[Work]:
    if options.only:
        return [find_work(name) for name in options.only]
    return [work for work in works().values() if options.small or work.size == "published"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m primelens.export.reference_works",
        description="Prove every reference work of published size and print the table.",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="this work; repeatable")
    parser.add_argument("--small", action="store_true", help="the small works too")
    parser.add_argument("--list", action="store_true", help="name the works and stop")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="merge the results into this file"
    )
    parser.add_argument("--threads", type=int, help="of engine and torch; by default their own")
    parser.add_argument("--pictures", type=int, default=8, help="random pictures (default 8)")
    parser.add_argument("--steps", type=int, default=48, help="tokens per text (default 48)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures")
    parser.add_argument("--folder", type=Path, help="keep checkpoints and bundles here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
