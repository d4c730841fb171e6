"""``primelens rank`` and ``primelens embed`` against a model that ranks by file name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors import safe_open

from primelens.errors import ImageError
from primelens.options import RankOptions
from primelens.results import Failure, RankedLabel, Ranking, Timings

Run = Callable[..., Result]


@pytest.fixture
def asked(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model was asked for; pictures that are called bad fail."""
    calls: list[Any] = []

    def rank_batch(
        images: Iterable[str], labels: Sequence[str], **options: Any
    ) -> Iterator[Ranking | Failure]:
        calls.append((list(labels), options))
        for image in images:
            if Path(image).name.startswith("bad"):
                yield Failure(image, ImageError(f"{image} is no picture."))
                continue
            ranked = tuple(RankedLabel(x, 2.0 - i, 0.5, i) for i, x in enumerate(labels))
            yield Ranking(ranked, "softmax", Timings(tower=0.002), image)

    def encode_batch(images: Iterable[str], **_: Any) -> Iterator[Any]:
        for image in images:
            bad = Path(image).name.startswith("bad")
            yield Failure(image, ImageError(f"{image} is no picture.")) if bad else image

    monkeypatch.setattr(model, "rank_batch", rank_batch, raising=False)
    monkeypatch.setattr(model, "encode_batch", encode_batch, raising=False)
    head = SimpleNamespace(spec=SimpleNamespace(width=2))
    monkeypatch.setattr(model, "rank_head", lambda name=None: head, raising=False)
    vector = np.array([0.6, 0.8], np.float32)
    monkeypatch.setattr(model, "embed_image", lambda image, head=None: vector, raising=False)
    monkeypatch.setattr(
        model,
        "embed_text",
        lambda texts, head=None: np.stack([vector] * len(texts)),
        raising=False,
    )
    return calls


def test_labels_templates_and_rows(run: Run, asked: list[Any], pictures: Path) -> None:
    (pictures / "labels.txt").write_text("sea\n\n a boat \n")
    labels = ["--labels", "cat, dog", "--labels-file", "labels.txt"]
    templates = ["--template", "a {}", "--template", "{}"]
    more = ["--top", "3", "--json", "--preselect", "4"]
    result = run("rank", "cat.png", "bad.jpeg", *labels, *templates, *more)
    assert result.exit_code == 1
    ((found, options),) = asked
    assert found == ["cat", "dog", "sea", "a boat"]
    assert options["template"] == ("a {}", "{}")
    assert options["options"] == RankOptions(preselect=4)
    good, bad = (json.loads(line) for line in result.stdout.splitlines())
    assert [entry["label"] for entry in good["labels"]] == ["cat", "dog", "sea"]
    assert (good["scoring"], good["timings_ms"]["tower"]) == ("softmax", 2.0)
    assert good["score"] == "itc"
    assert bad["error"]["kind"] == "ImageError"


def test_lines_for_people(run: Run, asked: list[Any], pictures: Path) -> None:
    result = run("rank", "cat.png", "--labels", "cat,dog")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "  0.5000      2.0000  cat",
        "  0.5000      1.0000  dog",
    ]
    assert run("rank", "cat.png").exit_code == 2
    assert run("rank", "cat.png", "--labels", " , ").exit_code == 2
    both = ("--labels", "a,b", "--score", "itc", "--preselect", "2")
    result = run("rank", "cat.png", *both)
    assert result.exit_code != 0
    assert "preselect" in result.stderr


def test_vectors_are_written_with_their_names(run: Run, asked: list[Any], pictures: Path) -> None:
    result = run("embed", "cat.png", "bad.jpeg", "--out", "v.safetensors")
    assert result.exit_code == 1
    with safe_open("v.safetensors", "numpy") as file:
        assert file.get_tensor("embeds").shape == (1, 2)
        assert json.loads(file.metadata()["names"]) == ["cat.png"]
    assert run("embed", "--text", "a", "--text", "b", "--out", "v.npy").exit_code == 0
    assert np.load("v.npy").tolist() == [[0.6000000238418579, 0.800000011920929]] * 2


@pytest.mark.parametrize(
    "arguments",
    [("--out", "v.npy"), ("cat.png", "--text", "a", "--out", "v.npy"), ("cat.png", "--out", "v.x")],
)
def test_what_cannot_be_embedded(
    run: Run, asked: list[Any], pictures: Path, arguments: tuple[str, ...]
) -> None:
    assert run("embed", *arguments).exit_code == 2
    assert not list(pictures.glob("v.*"))
