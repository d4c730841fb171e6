"""Opens a Hugging Face checkpoint folder: everything is checked before a model is built from it.

Nothing in the folder is trusted to run: no remote code (``auto_map``), no pickles beyond tensors.
All that is missing or unsupported is reported at once.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE

from primelens.errors import CheckpointError, PrimelensError, UnsupportedError
from primelens.export.big_vision import NOTE, is_big_vision, unpacked
from primelens.export.quiet import quiet_transformers
from primelens.export.registry import ModelFamily, model_family
from primelens.export.weight_files import find_weights
from primelens.head_checkpoint import HEAD_FILE
from primelens.preprocessing import Preprocessing
from primelens.processor_config import from_processor_config, processor_origin

__all__ = ["Checkpoint", "open_checkpoint", "read_config", "read_preprocessor"]

logger = logging.getLogger("primelens.export")

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TEXT_SIDE = (
    "It is a text side that was tuned without its tower: put it into a bundle that has the tower "
    "(primelens add-head, swap-head)."
)
_TOKENIZER_SETTINGS = (
    *("pad_token", "eos_token", "bos_token", "unk_token", "padding_side", "truncation_side"),
    *("model_max_length", "model_input_names", "clean_up_tokenization_spaces"),
)
_UNUSED_WEIGHTS = re.compile(r"(^|\.)pooler\.")  # no tap reads them


@dataclass
class Checkpoint:
    """A loaded source model and what belongs to it.

    Attributes:
        folder: where it lies.
        name: what to call it: the folder's last part, or the hub id.
        revision: the hub commit, if any.
        family: who knows its architecture.
        model: the transformers model, float32, evaluation mode.
        preprocessing: the specification that primelens will carry out.
        processor: the source's own image processor, to be compared with.
        tokenizer: the source's own tokenizer.
        digest: `weights_digest` of all floating-point tensors in its files.
        notes: what a user ought to know.
        lacking: names of tensors that its files lack and that are random, therefore; of a text side
            that was saved without its tower only.
    """

    folder: Path
    name: str
    revision: str | None
    family: ModelFamily
    model: Any
    preprocessing: Preprocessing
    processor: Any
    tokenizer: Any
    digest: str
    notes: list[str] = field(default_factory=list)
    lacking: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The transformers class."""
        return type(self.model).__name__

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as a ``tokenizer.json``."""
        text: str = self.tokenizer.backend_tokenizer.to_str(pretty=False)
        return text

    @property
    def clean_up_spaces(self) -> bool:
        """Whether decoding joins punctuation; transformers never does it for a BPE tokenizer."""
        wanted = bool(getattr(self.tokenizer, "clean_up_tokenization_spaces", False))
        force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        bpe = isinstance(self.tokenizer.backend_tokenizer.model, BPE)
        return wanted and (not bpe or bool(getattr(self.tokenizer, force, False)))


def open_checkpoint(
    folder: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    of_tower: Preprocessing | None = None,
) -> Checkpoint:
    """Check and load a checkpoint folder.

    Args:
        folder: as ``save_pretrained`` writes it, with tokenizer and preprocessor; or a file of
            official LiT weights (`primelens.export.big_vision`).
        name: what to call it; the folder's last part by default.
        revision: the hub commit that it came from.
        of_tower: for a text side that may come without its tower: the tower's preprocessing. Then
            ``lacking`` names what is not there, and without it there is no image processor.

    Raises:
        CheckpointError: files are missing or broken, weights are not finite, a pickle or remote
            code would have to run; ``problems`` lists every finding.
        UnsupportedError: the architecture or one of its settings has no exporter; lists every gap.
    """
    folder = Path(folder)
    if is_big_vision(folder):
        with unpacked(folder) as made:
            checkpoint = open_checkpoint(made, name=name or folder.stem, revision=revision)
        checkpoint.notes.append(NOTE)
        return checkpoint
    problems: list[str] = []
    raw = read_config(folder, problems)
    weights = find_weights(folder, problems)
    settings = read_preprocessor(folder, problems if of_tower is None else [])
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        problems.append("no tokenizer: tokenizer.json is missing")
    problems += [
        f"{file}: auto_map asks for code from outside transformers, which is never run"
        for file, data in (("config.json", raw), ("preprocessor_config.json", settings))
        if data and "auto_map" in data
    ]
    if problems or raw is None or weights is None or (settings is None and of_tower is None):
        raise CheckpointError(
            f"The checkpoint {folder} is incomplete or cannot be used:",
            remedy=_TEXT_SIDE
            if (folder / HEAD_FILE).is_file()
            else "Save model, tokenizer and image processor into one folder (save_pretrained).",
            problems=problems,
        )
    with quiet_transformers():
        family = _supported(raw, folder)
        digest = weights.check()
        notes = [] if settings is None else _preprocessing_notes(settings)
        model, lacking = _load(family, folder, notes)
        if lacking and of_tower is None:
            raise CheckpointError(
                f"The weights in {folder} do not fill the model that config.json describes:",
                remedy="Check that the weights belong to this config.json.",
                problems=[
                    f"{name}: not in {', '.join(weights.names)}; it would be left random"
                    for name in lacking
                ],
            )
        known = of_tower if settings is None else from_processor_config(settings)
        assert known is not None
        return Checkpoint(
            folder=folder,
            name=name or folder.resolve().name,
            revision=revision,
            family=family,
            preprocessing=known,
            model=model,
            processor=None if settings is None else _processor(folder),
            tokenizer=_tokenizer(folder),
            digest=digest,
            notes=notes,
            lacking=lacking,
        )


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(data, dict):
        problems.append(f"{path.name} is not a JSON object")
        return None
    return data


def read_config(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """The configuration; None, and a problem, where there is none."""
    return _read_json(folder / "config.json", problems)


def read_preprocessor(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """The image processor's settings, from its own file or from within the processor's."""
    own, whole = _PREPROCESSOR_FILES
    if not (folder / own).is_file() and (folder / whole).is_file():
        data = _read_json(folder / whole, problems)
        part = (data or {}).get("image_processor")
        if isinstance(part, dict):
            return part
    return _read_json(folder / own, problems)


def _supported(raw: Mapping[str, Any], folder: Path) -> ModelFamily:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{folder / 'config.json'} names no model_type.",
            remedy="Save the model with save_pretrained.",
        )
    family = model_family(model_type)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever the configuration's checks raise
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot read config.json: {error}",
            remedy="Upgrade transformers, or repair the file.",
        ) from error
    gaps = family.gaps(config)
    if gaps:
        raise UnsupportedError(
            f"The checkpoint {folder} asks for what has no exporter:",
            remedy="`primelens families` lists what is supported.",
            problems=gaps,
        )
    return family


def _load(family: ModelFamily, folder: Path, notes: list[str]) -> tuple[Any, tuple[str, ...]]:
    """The model, and the names of the tensors that the files lack."""
    try:
        model, report = family.load(str(folder))
    except PrimelensError:
        raise
    except Exception as error:  # transformers raises many unrelated classes
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot load {folder}: {error}",
            remedy="Check that the weights belong to this config.json.",
        ) from error
    missing = sorted(report.get("missing_keys", ()))
    unused = getattr(family, "unused_weights", _UNUSED_WEIGHTS)
    lacking = tuple(name for name in missing if not unused.search(name))
    problems = [f"{item}: wrong shape" for item in report.get("mismatched_keys", ())]
    if problems:
        raise CheckpointError(
            f"The weights in {folder} do not fill the model that config.json describes:",
            remedy="Check that the weights belong to this config.json.",
            problems=problems,
        )
    unexpected = sorted(report.get("unexpected_keys", ()))
    if unexpected:
        notes.append(f"{len(unexpected)} tensors of the checkpoint are unused: {unexpected[0]}, …")
    return model.eval().requires_grad_(False), lacking


def _preprocessing_notes(settings: Mapping[str, Any]) -> list[str]:
    origin = processor_origin(settings)
    if origin is None or origin.backend != "torchvision":
        return []
    note = f"{origin.name} resizes with torchvision, whose pixels differ slightly from Pillow's; "
    return [note + "the bundle mirrors the Pillow processor of the same name"]


def _processor(folder: Path) -> Any:
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the processor's checks raise
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot build the image processor: {error}",
            remedy="Check preprocessor_config.json.",
        ) from error


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the tokenizer's checks raise
        path = folder / "tokenizer.json"
        if path.is_file():
            logger.info("tokenizer.json is used as it is: %s", error)
            return _bare_tokenizer(path, folder / "tokenizer_config.json")
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot build the tokenizer: {error}",
            remedy="Save a fast tokenizer (tokenizer.json) into the folder.",
        ) from error


def _bare_tokenizer(path: Path, config: Path) -> Any:
    """The file as it is, with what the configuration says of padding and length."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise CheckpointError(
            f"{path} is not a tokenizer that this version of tokenizers reads: {error}.",
            remedy="Upgrade tokenizers, or save the tokenizer again.",
        ) from error
    settings = (_read_json(config, []) or {}) if config.is_file() else {}
    known = {key: settings[key] for key in _TOKENIZER_SETTINGS if settings.get(key) is not None}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known)
