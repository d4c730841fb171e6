"""Metrics as pure functions on plain data, their bootstrap intervals and a paired test.

Captions and answers come as text or tokens, embeddings as arrays; nothing here knows a model or a
file. Every metric gives a `Tally`, from which follow its scores, `intervals` and `compare`.
"""

from primelens.tune.metrics.answers import (
    normalise_answer,
    token_f1,
    token_f1_tally,
    vqa_accuracy,
    vqa_accuracy_tally,
)
from primelens.tune.metrics.bootstrap import Comparison, Interval, Resampling, compare, intervals
from primelens.tune.metrics.captions import bleu, caption_tallies, cider_d, rouge_l
from primelens.tune.metrics.java import JavaScorer
from primelens.tune.metrics.ptb import tokenize
from primelens.tune.metrics.retrieval import (
    class_embeddings,
    fill_templates,
    retrieval_tallies,
    zero_shot_tallies,
)
from primelens.tune.metrics.tally import Tally, joined, mean_tally

__all__ = [
    "Comparison",
    "Interval",
    "JavaScorer",
    "Resampling",
    "Tally",
    "bleu",
    "caption_tallies",
    "cider_d",
    "class_embeddings",
    "compare",
    "fill_templates",
    "intervals",
    "joined",
    "mean_tally",
    "normalise_answer",
    "retrieval_tallies",
    "rouge_l",
    "token_f1",
    "token_f1_tally",
    "tokenize",
    "vqa_accuracy",
    "vqa_accuracy_tally",
    "zero_shot_tallies",
]
