"""Which head of a bundle the bench measures: the first that captions, if there is one.

A dual encoder has none: of such a bundle the tower alone can be measured (``encode``).
"""

from __future__ import annotations

from primelens.errors import OptionError
from primelens.head_spec import HeadSpec
from primelens.manifest import Manifest

__all__ = ["caption_head", "require_caption_head"]


def caption_head(manifest: Manifest) -> HeadSpec | None:
    """The first head that captions, or None."""
    return next((head for head in manifest.writers.values() if head.kind == "caption"), None)


def require_caption_head(manifest: Manifest) -> HeadSpec:
    """The first head that captions.

    Raises:
        OptionError: there is none.
    """
    head = caption_head(manifest)
    if head is None:
        raise OptionError(
            f"The bundle {manifest.name!r} has no head that captions.",
            remedy='Measure its tower: a spec with scenarios = ["encode"].',
        )
    return head
