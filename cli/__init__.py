"""The ``primelens`` command; each verb lives in a file of its own and registers itself.

Importing this package loads click and nothing else of weight: a room is imported by the verb that
needs it, when it is called, so that the way from process start to the first caption stays short.
"""

from primelens.cli import (
    answer,
    bench,
    cache,
    caption,
    demo,
    digest,
    embed,
    encode,
    evaluate,
    explain,
    export,
    families,
    heads,
    info,
    rank,
    split,
    tune,
    verify,
    verify_locked,
)
from primelens.cli.app import main

__all__ = [
    "answer",
    "bench",
    "cache",
    "caption",
    "demo",
    "digest",
    "embed",
    "encode",
    "evaluate",
    "explain",
    "export",
    "families",
    "heads",
    "info",
    "main",
    "rank",
    "split",
    "tune",
    "verify",
    "verify_locked",
]
