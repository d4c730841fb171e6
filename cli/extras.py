"""A verb whose packages are optional says which extra brings them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around the import of a room: a third-party package that is absent names the extra.

    Raises:
        DependencyError: a package that does not belong to primelens could not be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in {"", "primelens"}:
            raise
        from primelens.errors import DependencyError

        raise DependencyError(
            f"This needs the package {package!r}, which is not installed.",
            remedy=f"Run `pip install 'primelens[{extra}]'`.",
        ) from error
