"""Ranking on a bundle whose graphs are Python functions: what the runtime makes of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primelens.bundle import file_record, open_bundle
from primelens.engine_fake import FakeEngine, FakeGraph
from primelens.errors import BundleError, InputError, OptionError, PromptError
from primelens.model import Model
from primelens.options import RankOptions
from primelens.results import Failure, Ranking

from .conftest import TAP, FakeBundle, _specs, _tower

WIDTH, LONGEST = 6, 20
RANK: dict[str, Any] = {
    "kind": "rank",
    "family": "fake",
    "tap": "last_hidden_state",
    "image": "rank.image.onnx",
    "text": {"graph": "rank.text.onnx", "max_length": LONGEST, "pad_token": 7},
    "width": WIDTH,
    "scoring": "softmax",
    "scale": 20.0,
    "bias": 0.0,
    "tokenizer": "tokenizer.json",
    "precision": "fp32",
    "digest": "3" * 64,
}


class Recorder:
    """A text tower that remembers what it was fed with."""

    def __init__(self) -> None:
        self.ids: list[Any] = []
        self.masks: list[Any] = []

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        self.ids.append(ids)
        self.masks.append(mask)
        rows = []
        for row, seen in zip(ids, mask, strict=True):
            draw = np.random.default_rng([int(i) for i in row[seen == 1]])
            vector = draw.standard_normal(WIDTH)
            rows.append(vector / np.linalg.norm(vector))
        return {"text_embeds": np.array(rows, np.float32)}


def _image(feeds: Mapping[str, Any]) -> dict[str, Any]:
    rows = feeds["last_hidden_state"].reshape(len(feeds["last_hidden_state"]), -1)[:, :WIDTH]
    vectors = np.cos(np.arange(1, WIDTH + 1) * rows.sum(axis=1, keepdims=True))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return {"image_embeds": (vectors / lengths).astype(np.float32)}


def ranker(bundle: FakeBundle, recorder: Recorder | None = None, **changes: Any) -> Model:
    """The fake bundle with a rank head only, opened."""
    head = {**RANK, **changes}
    for name in ("rank.image.onnx", "rank.text.onnx"):
        (bundle.folder / name).write_bytes(name.encode())

    def change(data: dict[str, Any]) -> None:
        data["heads"] = {"rank": head}
        for name in ("rank.image.onnx", "rank.text.onnx"):
            record = file_record(bundle.folder / name)
            data["files"][name] = {"size": record.size, "sha256": record.sha256}

    bundle.rewrite(change)
    tap: dict[str, tuple[int | None, ...]] = {"last_hidden_state": (None, *TAP)}
    ids: dict[str, tuple[int | None, ...]] = {
        "input_ids": (None, None),
        "attention_mask": (None, None),
    }
    engine = FakeEngine(
        {
            "tower.onnx": FakeGraph(_tower, _specs({"pixel_values": (None, 3, 8, 8)}), _specs(tap)),
            "rank.image.onnx": FakeGraph(
                _image, _specs(tap), _specs({"image_embeds": (None, WIDTH)})
            ),
            "rank.text.onnx": FakeGraph(
                recorder or Recorder(), _specs(ids), _specs({"text_embeds": (None, WIDTH)})
            ),
        }
    )
    return Model(open_bundle(bundle.folder), engine)


def picture(value: int) -> Any:
    return np.full((9, 9, 3), value, np.uint8)


def test_labels_come_by_falling_score_with_probabilities(fake_bundle: FakeBundle) -> None:
    model = ranker(fake_bundle)
    labels = ["cat", "dog", "a red square", "sea"]
    ranking = model.rank(picture(40), labels)
    assert sorted(entry.label for entry in ranking.labels) == sorted(labels)
    scores = [entry.score for entry in ranking.labels]
    assert scores == sorted(scores, reverse=True)
    assert sum(entry.probability for entry in ranking.labels) == pytest.approx(1)
    image, texts = model.embed_image(picture(40)), model.embed_text(labels)
    for entry in ranking.labels:
        assert labels[entry.index] == entry.label
        wanted = 20.0 * float(np.dot(image.astype(float), texts[entry.index].astype(float)))
        assert entry.score == pytest.approx(wanted, abs=1e-9)
    assert ranking.best is ranking.labels[0]


def test_sigmoid_scores_stand_alone(fake_bundle: FakeBundle) -> None:
    model = ranker(fake_bundle, scoring="sigmoid", bias=-3.0)
    one = model.rank(picture(40), ["cat"]).best
    many = {e.label: e for e in model.rank(picture(40), ["sea", "cat", "dog"]).labels}
    assert many["cat"].probability == one.probability == pytest.approx(1 / (1 + np.exp(-one.score)))
    extreme = model.rank_head().probabilities(np.array([-2000.0, 0.0, 2000.0]))
    assert extreme.tolist() == [0.0, 0.5, 1.0]


def test_a_label_of_several_prompts_is_their_mean_brought_to_length_one(
    fake_bundle: FakeBundle,
) -> None:
    model = ranker(fake_bundle)
    templates = ["a {} here", "{}", "the {}!"]
    found = model.rank_head().embed_labels(["cat", "dog"], templates)
    for row, label in zip(found, ["cat", "dog"], strict=True):
        mean = model.embed_text([t.replace("{}", label) for t in templates]).mean(axis=0)
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    own = ranker(fake_bundle, templates=["the {}!"]).rank(picture(3), ["cat"]).best
    assert own.score == model.rank(picture(3), ["cat"], template="the {}!").best.score
    assert own.score != model.rank(picture(3), ["cat"], template="{}").best.score


WORDS = st.text(alphabet="abcde ", min_size=1, max_size=30).filter(lambda text: text.strip())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(WORDS, min_size=1, max_size=9), values=st.lists(st.integers(0, 255)))
def test_no_bit_depends_on_companions(
    fake_bundle: FakeBundle, labels: list[str], values: list[int]
) -> None:
    together, alone = ranker(fake_bundle), ranker(fake_bundle)
    texts = together.embed_text(labels)
    for row, label in zip(texts, labels, strict=True):
        assert np.array_equal(alone.rank_head().text.computed([label])[label], row)
    rankings = together.rank([picture(v) for v in values], labels)
    for value, ranking in zip(values, rankings, strict=True):
        assert alone.rank(picture(value), labels).labels == ranking.labels
        by_index = {e.index: e.score for e in ranking.labels}
        for index, label in enumerate(labels):
            assert alone.rank(picture(value), [label]).best.score == by_index[index]


def test_padding_and_masks(fake_bundle: FakeBundle) -> None:
    seen = Recorder()
    model = ranker(fake_bundle, seen)
    model.embed_text(["ab", "abcd", "a" * 9, "a" * 50])
    assert [ids.shape for ids in seen.ids] == [(2, 8), (1, 16), (1, 20)]
    assert seen.masks[0].sum(axis=1).tolist() == [2, 4]
    assert (seen.ids[0][0, 2:] == 7).all()
    assert seen.masks[2].all()  # cut to the greatest length


@pytest.mark.parametrize("left", [False, True])
def test_texts_padded_to_the_greatest_length(fake_bundle: FakeBundle, left: bool) -> None:
    seen = Recorder()
    text = {**RANK["text"], "pad_to_max": True, "pad_left": left, "masked": False}
    ranker(fake_bundle, seen, text=text).embed_text(["ab", "abcd"])
    (ids,), (mask,) = seen.ids, seen.masks
    assert ids.shape == (2, LONGEST)
    assert mask.all()  # padding is seen
    assert (ids[0, :18] == 7).all() if left else (ids[0, 2:] == 7).all()


def test_texts_are_remembered(fake_bundle: FakeBundle) -> None:
    seen = Recorder()
    model = ranker(fake_bundle, seen)
    first = model.embed_text(["cat", "dog", "cat"])
    assert np.array_equal(first[0], first[2])
    runs = len(seen.ids)
    assert sum(len(ids) for ids in seen.ids) == 2
    assert np.array_equal(model.embed_text(["dog", "cat"]), first[1::-1])
    assert len(seen.ids) == runs


def test_a_bad_picture_is_a_row_of_its_own(fake_bundle: FakeBundle, tmp_path: Path) -> None:
    model = ranker(fake_bundle)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    rows = list(model.rank_batch([picture(1), bad, picture(2)], ["a", "b"], batch_size=2))
    assert [type(row) for row in rows] == [Ranking, Failure, Ranking]
    assert rows[2].labels == model.rank(picture(2), ["a", "b"]).labels  # type: ignore[union-attr]
    assert model.rank([], ["a"]) == []
    assert model.embed_image([]).shape == (0, WIDTH)
    assert model.embed_text([]).shape == (0, WIDTH)


def test_encoded_pictures_rank_without_the_tower(fake_bundle: FakeBundle) -> None:
    model = ranker(fake_bundle)
    encoded, wanted = model.encode(picture(9)), model.rank(picture(9), ["a", "b"])
    fake_bundle.rewrite(lambda data: data["tower"].update(graph=None))
    text_only = Model(open_bundle(fake_bundle.folder), model._engine)
    assert text_only.rank(encoded, ["a", "b"]).labels == wanted.labels
    assert text_only.embed_text("a").shape == (WIDTH,)
    other = ranker(fake_bundle)
    object.__setattr__(encoded, "identities", {"last_hidden_state": "f" * 64})
    with pytest.raises(InputError, match="another tower"):
        other.rank(encoded, ["a"])


@pytest.mark.parametrize(
    ("labels", "template", "error", "said"),
    [
        ([], None, InputError, "no labels"),
        ("cat", None, InputError, "list of labels"),
        (["cat", " "], None, PromptError, "empty"),
        (["cat"], "no place", OptionError, "one place"),
        (["cat"], [], OptionError, "empty"),
    ],
)
def test_what_cannot_be_ranked_is_said(
    fake_bundle: FakeBundle, labels: Any, template: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        ranker(fake_bundle).rank(picture(1), labels, template=template)


def test_a_head_that_compares_has_no_matching(fake_bundle: FakeBundle) -> None:
    model = ranker(fake_bundle)
    for options in (RankOptions("itm"), RankOptions(preselect=1)):
        with pytest.raises(OptionError, match="no 'itm' score"):
            model.rank(picture(1), ["a", "b"], options=options)
    with pytest.raises(OptionError, match="no 'itm' score"):
        model.rank_head().match_logits(model.encode(picture(1)), ["a"])
    found = model.rank(picture(1), ["a", "b"], options=RankOptions("itc"))
    assert (found.score, found.labels) == ("itc", model.rank(picture(1), ["a", "b"]).labels)


def test_graphs_that_do_not_fit_are_refused(fake_bundle: FakeBundle) -> None:
    with pytest.raises(BundleError, match="do not fit the manifest"):
        ranker(fake_bundle, width=WIDTH + 1).embed_text("a")
    with pytest.raises(InputError, match=r"has no head 'other' that ranks"):
        Model(open_bundle(fake_bundle.folder), fake_bundle.engine).rank_head("other")


@pytest.mark.parametrize(
    "change",
    [
        {"text": {**RANK["text"], "pad_left": True}},
        {"text": {**RANK["text"], "pad_token": -1}},
        {"text": {**RANK["text"], "max_length": 0}},
        {"templates": ["no place"]},
        {"width": 0},
        {"matching": {"connector": "rank.image.onnx"}},
        {"matching": {"connector": "rank.image.onnx", "graph": "absent.onnx"}},
        {
            "matching": {"connector": "rank.image.onnx", "graph": "rank.text.onnx"},
            "text": {**RANK["text"], "masked": False},
        },
        {"scoring": "linear"},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    fake_bundle: FakeBundle, change: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="malformed"):
        ranker(fake_bundle, **change)
