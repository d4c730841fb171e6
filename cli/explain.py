"""``primelens explain``: which parts of a picture each word was attended to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primelens.cli import rows
from primelens.cli.app import app
from primelens.cli.extras import needs_extra

if TYPE_CHECKING:
    from primelens.tune.explain import Explanation, Faithfulness

__all__ = ["explain"]


@app.command("explain", no_args_is_help=True)
@click.argument("image")
@click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="BUNDLE",
    help="A bundle's folder, the name of a shipped model, or a hub id.",
)
@click.option("--head", help="Which head, by its name.  [default: the first of its kind]")
@click.option("--question", help="Explain the answer to this question instead of a caption.")
@click.option("--prompt", help="Text that the caption continues.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The drawing, .png or .html.  [default: the picture's name with -explained.png]",
)
@click.option(
    "--faithfulness/--no-faithfulness",
    default=True,
    show_default=True,
    help="Mask the picture part by part and compare the maps with random orders.",
)
@click.option(
    "--orders",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Random orders to compare with.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, maps included.")
def explain(image: str, model: str, as_json: bool, **chosen: Any) -> None:
    """Draw, word by word, which parts of IMAGE the decoder attended to.

    Attention is where the decoder looked, which need not be why it said a word: so the parts are
    taken away (deletion) and put back (insertion) in the order of the map, and in random orders,
    and the word's probability is followed. A map is worth something where it beats those. Needs
    primelens[explain].
    """
    from primelens.options import CaptionOptions

    with needs_extra("explain"):
        from primelens.tune.explain import Explainer, draw, faithfulness
    explainer = Explainer(model, head=chosen["head"])
    options = CaptionOptions(prompt=chosen["prompt"])
    explanation = explainer.explain(image, options, question=chosen["question"])
    score = None
    if chosen["faithfulness"]:
        score = faithfulness(explainer, explanation, orders=chosen["orders"])
    out = chosen["out"] or Path(f"{Path(image).stem}-explained.png")
    path = draw(explanation, out, score)
    if as_json:
        rows.write_json(_as_dict(explanation, score, path))
        return
    rows.write_text(rows.printable(explanation.caption.text))
    if score is not None:
        for name in ("deletion", "insertion"):
            found = score.summary()
            better = "smaller" if name == "deletion" else "larger"
            rows.write_text(
                f"{name}: area {found[name]:.3f}, random orders {found[f'random_{name}']:.3f} "
                f"({better} is better)"
            )
    rows.write_text(f"drawn: {path}")


def _as_dict(explanation: Explanation, score: Faithfulness | None, path: Path) -> dict[str, Any]:
    caption = explanation.caption
    words = [
        {
            "word": word.text,
            "tokens": list(word.tokens),
            "logprob": word.logprob,
            "attention": [[round(float(v), 6) for v in line] for line in word.attention],
        }
        for word in explanation.words
    ]
    found: dict[str, Any] = {
        "image": caption.image,
        "question": caption.question,
        "text": caption.text,
        "method": explanation.method,
        "off_picture": explanation.off_picture,
        "words": words,
        "drawn": str(path),
    }
    if score is not None:
        found["faithfulness"] = {**score.summary(), "random_orders": score.orders}
    return found
