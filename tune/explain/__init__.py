"""Seeing why: which parts of a picture each word of a text was attended to, and whether that holds.

`attention_maps` replays a text through a bundle and reads the decoder's attention; `faithfulness`
asks whether the parts that were attended to matter to the word; `draw` shows both.
"""

from primelens.tune.explain.attention import Explainer, Explanation, Word, explain
from primelens.tune.explain.faithfulness import Faithfulness, faithfulness
from primelens.tune.explain.picture import draw

__all__ = ["Explainer", "Explanation", "Faithfulness", "Word", "draw", "explain", "faithfulness"]
