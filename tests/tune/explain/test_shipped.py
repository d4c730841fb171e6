"""The shipped model explained: what is drawn, what is measured, and what the command line says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from primelens import OptionError
from primelens.cli.app import app
from primelens.tune.explain import Explainer, Explanation, draw, faithfulness

SCENE = Path(__file__).parents[3] / "runtime" / "assets" / "samples" / "scene-5.jpg"


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer("default")


@pytest.fixture(scope="module")
def explanation(explainer: Explainer) -> Explanation:
    return explainer.explain(str(SCENE), question=None)


def test_the_words_of_things_look_at_them(explanation: Explanation) -> None:
    # A bell in the middle, caterpillars at its right.
    words = {word.text: word.attention for word in explanation.words}
    columns = np.arange(explanation.grid[1])
    place = {word: float((map_.sum(axis=0) * columns).sum()) for word, map_ in words.items()}
    assert place["caterpillars"] > place["bell"] + 0.5


def test_parts_that_were_attended_to_matter(explainer: Explainer, explanation: Explanation) -> None:
    score = faithfulness(explainer, explanation, steps=4, orders=2)
    found = score.summary()
    assert found["deletion"] < found["random_deletion"]
    assert found["insertion"] > found["random_insertion"]
    for word, told in zip(score.words, explanation.words, strict=True):
        # Nothing taken away is the picture itself; everything put back is, too.
        np.testing.assert_allclose(word.deletion[0], np.exp(told.logprob), atol=1e-4)
        np.testing.assert_allclose(word.insertion[-1], word.deletion[0], atol=1e-6)
        np.testing.assert_allclose(word.insertion[0], word.deletion[-1], atol=1e-6)


def test_drawings(explanation: Explanation, tmp_path: Path) -> None:
    with Image.open(draw(explanation, tmp_path / "map.png")) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 200
    page = draw(explanation, tmp_path / "map.html").read_text()
    assert "<h1>" in page
    assert "data:image/png;base64," in page
    assert "bell" in page
    with pytest.raises(OptionError, match=r"\.png or \.html"):
        draw(explanation, tmp_path / "map.gif")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    arguments = ["explain", str(SCENE), "--out", str(out), "--no-faithfulness", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["method"] == "cross-attention"
    assert [word["word"] for word in found["words"]] == found["text"].split()
    assert out.stat().st_size > 10_000
