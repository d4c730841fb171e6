"""From a model's name to a folder on this disk.

A name is, in this order: a folder; ``"default"``, the model that is shipped with primelens; a hub
id ``owner/name``. Hub ids need ``primelens[hub]`` and follow huggingface_hub's own environment
variables (``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HUB_CACHE``, ``HF_TOKEN``).

A *checkpoint* stays in the hub's cache. A *bundle* does not: that cache is made of symbolic links,
which the bundle reader refuses. A bundle's manifest is fetched first and read; then exactly the
files that it lists are downloaded, as real files, to
``$PRIMELENS_CACHE/bundles/<owner>--<name>/<commit>`` (by default below ``$HF_HOME/primelens``),
which appears when it is complete. An interrupted download keeps the files that had arrived whole.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from primelens.atomic import atomic_folder
from primelens.bundle import MANIFEST_NAME
from primelens.errors import (
    DependencyError,
    ModelNotFoundError,
    OptionError,
    PrimelensError,
)
from primelens.manifest import Manifest

__all__ = ["CACHE_VARIABLE", "SHIPPED", "resolve"]

CACHE_VARIABLE = "PRIMELENS_CACHE"
SHIPPED = ("default",)

_ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
_PICKLES = ("*.bin", "*.pt", "*.pth")
_MANIFEST_CAP = 16 * 2**20


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    kind: Literal["bundle", "checkpoint"] = "bundle",
    allow_pickle: bool = False,
) -> Path:
    """The folder that ``name`` stands for, downloaded if need be.

    Args:
        name: a folder, ``"default"`` or a hub id.
        revision: commit, branch or tag of a hub id; the main branch by default.
        kind: what is expected there; it decides which files are downloaded.
        allow_pickle: for a checkpoint, whether pickled weights are downloaded too. They are never
            loaded by primelens itself: unpickling runs whatever code they hold.

    Raises:
        ModelNotFoundError: the name leads nowhere; says what was tried and what to do.
        DependencyError: it is a hub id, and huggingface_hub is not installed.
        OptionError: ``revision`` is given, but the name is not a hub id.
        BundleError: what the hub has under this name is no sound bundle, or a newer one.
    """
    text = os.fspath(name)
    if kind == "checkpoint" and text.endswith(".npz") and Path(text).is_file():
        return Path(text)  # official LiT weights, which the exporter unpacks
    local = _local(text)
    if local is None and text in SHIPPED and kind == "bundle":
        local = _shipped(text)
    if local is not None:
        if revision is not None:
            raise OptionError(
                f"The revision {revision!r} was given, but {text!r} is a folder on this disk.",
                remedy="Leave the revision out, or give a hub id.",
            )
        return local
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text:
        raise ModelNotFoundError(
            f"{text[:300]!r} is not a folder (looked for {_absolute(text)}), not a shipped model "
            f"({', '.join(SHIPPED)}), and not a hub id.",
            remedy="Check the path; a hub id has the form owner/name.",
        )
    hub = _hub(text)
    if kind == "checkpoint":
        return _checkpoint(hub, text, revision, allow_pickle=allow_pickle)
    return _bundle(hub, text, revision)


def _local(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        if path.is_dir() and text:
            return path
        found_file = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no such user
        return None
    if found_file:
        raise ModelNotFoundError(
            f"{text!r} is a file; a model is a folder.", remedy="Give the folder that it lies in."
        )
    return None


def _absolute(text: str) -> str:
    return os.path.abspath(text)[:300] if "\0" not in text else repr(text[:300])  # noqa: PTH100


def _shipped(name: str) -> Path:
    folder = _ASSETS / name
    if not (folder / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(
            f"This installation of primelens has no shipped model {name!r} (looked in {folder}).",
            remedy="Install the wheel again, or name a bundle's folder or a hub id.",
        )
    return folder


def _hub(name: str) -> Any:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise DependencyError(
            f"There is no folder {name!r}, and looking on the hub needs huggingface_hub.",
            remedy="Install it with `pip install primelens[hub]`, or check the path.",
        ) from error
    return huggingface_hub


def _checkpoint(hub: Any, name: str, revision: str | None, *, allow_pickle: bool) -> Path:
    patterns = _CHECKPOINT_FILES + (_PICKLES if allow_pickle else ())
    folder = _fetch(hub, name, revision, patterns)
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{name!r} is on the hub, but has no config.json: it is no transformers checkpoint.",
            remedy="Give the id of a model saved with save_pretrained.",
        )
    wanted = "*.safetensors" if not allow_pickle else "*.[sbp]*"
    if not any(folder.glob(wanted)):
        raise ModelNotFoundError(
            f"{name!r} is on the hub, but has no weights as safetensors.",
            remedy="Convert its weights with save_pretrained(safe_serialization=True) first.",
        )
    return folder


def _bundle(hub: Any, name: str, revision: str | None) -> Path:
    """The bundle's folder in primelens' own cache, complete."""
    listing = _fetch(hub, name, revision, [MANIFEST_NAME])
    commit = listing.name
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise ModelNotFoundError(
            f"The hub answered {name!r} with {commit[:100]!r} where a commit was expected.",
            remedy="Check HF_ENDPOINT.",
        )
    folder = _cache(hub) / "bundles" / name.replace("/", "--") / commit
    if (folder / MANIFEST_NAME).is_file():
        return folder
    manifest = listing / MANIFEST_NAME
    if not manifest.is_file():
        raise ModelNotFoundError(
            f"{name!r} is on the hub, but is no bundle: it has no {MANIFEST_NAME}.",
            remedy=f"If it is a checkpoint, export it first: primelens export {name} --out FOLDER.",
        )
    files = _listed(manifest, name)
    with _told(hub, name, revision):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whoever comes second waits, then finds the folder; a stopped download is taken up again.
        with hub.utils.WeakFileLock(folder.parent / f".{commit}.lock"):
            if not (folder / MANIFEST_NAME).is_file():
                _download_bundle(hub, name, folder, files)
    return folder


def _listed(manifest: Path, name: str) -> list[str]:
    """The files of the bundle; a manifest that is malformed or too new is refused here already."""
    with manifest.open("rb") as file:
        data = file.read(_MANIFEST_CAP + 1)
    if len(data) > _MANIFEST_CAP:
        raise ModelNotFoundError(
            f"The {MANIFEST_NAME} of {name!r} is larger than {_MANIFEST_CAP} bytes.",
            remedy="Ask its owner for an unaltered bundle.",
        )
    # Names in a manifest are plain: no folder, and nothing that a pattern gives a meaning to.
    return [MANIFEST_NAME, *Manifest.from_bytes(data, where=f"{name}/{MANIFEST_NAME}").files]


def _download_bundle(hub: Any, name: str, folder: Path, files: Sequence[str]) -> None:
    partial = folder.parent / f".{folder.name}.partial"
    hub.snapshot_download(name, revision=folder.name, local_dir=partial, allow_patterns=list(files))
    missing = [file for file in files if not (partial / file).is_file()]
    if missing:
        raise ModelNotFoundError(
            f"The bundle {name!r} on the hub lacks files that its manifest lists: "
            f"{', '.join(missing[:5])}.",
            remedy="Ask its owner to upload the whole folder.",
        )
    with atomic_folder(folder, overwrite=True) as complete:
        for file in files:
            (partial / file).rename(complete / file)
    shutil.rmtree(partial)


def _cache(hub: Any) -> Path:
    own = os.environ.get(CACHE_VARIABLE)
    return Path(own).expanduser() if own else Path(hub.constants.HF_HOME) / "primelens"


def _fetch(hub: Any, name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Files of the repository's root, in the hub's own cache."""
    with _told(hub, name, revision):
        return Path(
            hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
        )


@contextmanager
def _told(hub: Any, name: str, revision: str | None) -> Iterator[None]:
    """Whatever goes wrong on the way to the hub becomes a `ModelNotFoundError` with a remedy."""
    transport = getattr(hub.errors, "HTTPError", OSError)  # of the HTTP library that it uses
    try:
        yield
    except PrimelensError:
        raise
    except (OSError, ValueError, transport) as error:
        message, remedy = _explained(hub, error, revision)
        raise ModelNotFoundError(
            f"{name!r} is no folder here (looked for {_absolute(name)}), and from the hub "
            f"({hub.constants.ENDPOINT}) it could not be had: {message}.",
            remedy=remedy,
        ) from error


def _explained(hub: Any, error: Exception, revision: str | None) -> tuple[str, str]:
    """What happened and what to do about it."""
    errors = hub.errors
    where = f"revision {revision!r}" if revision else "its main branch"
    if isinstance(error, errors.GatedRepoError):
        return "access is restricted", "Ask for access on its page, then log in: hf auth login."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no {where}", "Give a branch, tag or full commit that it has."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such model, or it is private",
            "Check the spelling; for a private model, log in: hf auth login.",
        )
    if hub.constants.HF_HUB_OFFLINE:
        return (
            f"HF_HUB_OFFLINE is set, and {where} is not in the cache",
            "Fetch it once while online, with HF_HUB_OFFLINE unset.",
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return f"the hub refused access ({status})", "Log in: hf auth login."
        return f"the hub answered with HTTP {status}", "Try again later."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            "the disk is full",
            f"Make room, or point {CACHE_VARIABLE} and HF_HOME to another disk.",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return (
            f"the cache cannot be written: {error}",
            f"Point {CACHE_VARIABLE} and HF_HOME to a folder of yours.",
        )
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    return detail, "Check the network, then try again; whole files are kept."
