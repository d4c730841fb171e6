"""Tuning a text side beside a locked tower: the recipe, the loop, and what a run leaves behind."""

from primelens.tune.textside.plan import Plan, plan_run
from primelens.tune.textside.recipe import Recipe, read_recipe
from primelens.tune.textside.run import Outcome, tune

__all__ = ["Outcome", "Plan", "Recipe", "plan_run", "read_recipe", "tune"]
