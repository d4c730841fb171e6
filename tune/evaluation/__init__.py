"""Evaluation: a bundle or a result file, measured on data, with baselines and intervals."""

from primelens.tune.evaluation.report import HUMAN, Report, Table
from primelens.tune.evaluation.request import Request
from primelens.tune.evaluation.run import Evaluation, evaluate

__all__ = ["HUMAN", "Evaluation", "Report", "Request", "Table", "evaluate"]
