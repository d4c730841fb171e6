"""Every error that primelens raises on purpose.

The tree::

    PrimelensError                 anything below; catch this one at the edge of an application
    ├── InputError                 what the caller handed in for *this* request is at fault
    │   ├── ImageError             a picture cannot be read, or exceeds a cap
    │   ├── PromptError            a prompt or question is empty, too long, or unsupported
    │   └── OptionError            an option is unknown, out of range, or contradicts another
    ├── BundleError                a bundle folder is incomplete, altered, linked, malformed
    │   └── BundleVersionError     the bundle's format is newer than this primelens understands
    ├── StoreError                 a store of kept embeddings is refused, absent or unfit
    ├── CheckpointError            a source checkpoint cannot be loaded, or is refused (a pickle)
    │   └── UnsupportedError       the architecture, or one of its settings, has no exporter
    ├── GateError                  an exported graph does not equal its source; nothing was written
    ├── ModelNotFoundError         a name is neither a folder, nor shipped, nor found on the hub
    ├── DependencyError            an optional package is missing; the message names the extra
    ├── EngineError                the inference engine failed to open or run a graph
    └── CancelledError             the caller cancelled the call

Every message says what was wrong, where, and what to do. ``problems`` holds one line per finding
where a check reports everything at once.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BundleError",
    "BundleVersionError",
    "CancelledError",
    "CheckpointError",
    "DependencyError",
    "EngineError",
    "GateError",
    "ImageError",
    "InputError",
    "ModelNotFoundError",
    "OptionError",
    "PrimelensError",
    "PromptError",
    "StoreError",
    "UnsupportedError",
]


class PrimelensError(Exception):
    """Base of the tree.

    Args:
        message: what was wrong and where, in one sentence.
        remedy: what the reader can do about it, in one sentence; appended to the message.
        problems: one line per finding when several were collected before raising.
    """

    def __init__(self, message: str, *, remedy: str = "", problems: Sequence[str] = ()) -> None:
        self.message = message
        self.remedy = remedy
        self.problems = tuple(problems)
        lines = [message]
        lines += [f"  - {problem}" for problem in self.problems]
        if remedy:
            lines.append(remedy)
        super().__init__("\n".join(lines) if self.problems else " ".join(lines))


class InputError(PrimelensError):
    """What the caller handed in for this request is at fault."""


class ImageError(InputError):
    """A picture cannot be read, or exceeds a cap."""


class PromptError(InputError):
    """A prompt or question is empty, too long, or not supported by the head."""


class OptionError(InputError):
    """An option is unknown, out of range, or contradicts another."""


class BundleError(PrimelensError):
    """A bundle folder is incomplete, altered, linked or malformed."""


class BundleVersionError(BundleError):
    """The bundle's format is newer than this primelens understands."""


class StoreError(PrimelensError):
    """A store of kept embeddings is refused (others may write to it), absent, or cannot be used."""


class CheckpointError(PrimelensError):
    """A source checkpoint cannot be loaded, or is refused."""


class UnsupportedError(CheckpointError):
    """The architecture, or one of its settings, has no exporter."""


class GateError(PrimelensError):
    """An exported graph does not equal its source; nothing was written."""


class ModelNotFoundError(PrimelensError):
    """A name is neither a folder, nor a shipped bundle, nor found on the hub."""


class DependencyError(PrimelensError):
    """An optional package is missing; the message names the extra that brings it."""


class EngineError(PrimelensError):
    """The inference engine failed to open or to run a graph."""


class CancelledError(PrimelensError):
    """The caller cancelled the call."""
