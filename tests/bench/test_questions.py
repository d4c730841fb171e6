from __future__ import annotations

import primelens
from primelens.bench.questions import question_costs


def test_questions_together_are_answered_as_they_are_apart() -> None:
    model = primelens.load("default", options=primelens.LoadOptions(threads=1))
    costs = question_costs(model, 3, 2, 3)
    model.close()
    assert costs["rounds_with_other_answers"] == 0
    assert 0 < costs["quotient"] <= costs["worst_quotient"]
    assert (costs["questions"], costs["rounds"]) == (3, 2)
