"""Evaluation: a bundle or a result file, measured on data, with baselines and intervals."""

from primelens.tune.evaluation.report import HUMAN, Report, Table
from primelens.tune.evaluation.request import TASKS, Request
from primelens.tune.evaluation.run import evaluate
from primelens.tune.evaluation.stage import Evaluation

__all__ = ["HUMAN", "TASKS", "Evaluation", "Report", "Request", "Table", "evaluate"]
