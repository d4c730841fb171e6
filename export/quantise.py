"""Quantisation recipes: what happens to the graphs between building and writing.

A `Recipe` is a named list of rewrites, each for certain graphs. The float32 recipe has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

__all__ = ["FLOAT32", "Recipe", "Rewrite", "recipe"]

Rewrite = Callable[[ir.Model], None]


@dataclass(frozen=True)
class Recipe:
    """How a bundle's graphs are quantised.

    Attributes:
        name: the precision that heads declare.
        variant: what the tower declares; part of a kept embedding's key.
        rewrites: pattern of graph names (``*.decoder``) → what is done to those graphs.
        notes: what a user ought to know.
    """

    name: str
    variant: str
    rewrites: tuple[tuple[str, Rewrite], ...] = ()
    notes: tuple[str, ...] = ()

    def apply(self, graphs: Mapping[str, ir.Model]) -> None:
        """Rewrite the graphs in place."""
        for pattern, rewrite in self.rewrites:
            for name, graph in graphs.items():
                if fnmatchcase(name, pattern):
                    rewrite(graph)


FLOAT32 = Recipe("fp32", "fp32")


def recipe(precision: str) -> Recipe:
    """The recipe for a precision; raises KeyError for an unknown one."""
    return {"fp32": FLOAT32}[precision]
