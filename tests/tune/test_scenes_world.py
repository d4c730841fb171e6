"""The world: the same for ever, held out as documented, and without ambiguous geometry."""

import itertools

import numpy as np
import pytest

from primelens.tune.scenes.objects import KINDS
from primelens.tune.scenes.targets import RELATIONS, cell_targets
from primelens.tune.scenes.world import (
    MAX_COUNT,
    MAX_GLYPHS,
    SPLITS,
    Glyph,
    Group,
    Scene,
    Split,
    Statement,
    holds,
    pair_split,
    scene,
)

SOME = {split: [scene(split, i) for i in range(300)] for split in SPLITS}


def pairs(shown: Scene) -> list[Split]:
    kinds = [g.kind for g in shown.groups]
    return [pair_split(a, b) for a, b in itertools.combinations(kinds, 2)]


def square(x: float, y: float, side: float, kind: int) -> Group:
    return Group(kind, "medium", (Glyph(x, y, side, 0.0),))


def made_of(*groups: Group) -> Scene:
    return Scene("train", 0, 0, groups, None, "meadow", "day")


def test_enough_kinds_with_unique_names_and_glyphs() -> None:
    assert len(KINDS) >= 120
    assert len({k.singular for k in KINDS}) == len({k.glyph for k in KINDS}) == len(KINDS)
    assert all(len(k.glyph) == 1 for k in KINDS)
    assert {k.singular for k in KINDS if k.article == "an"} >= {"apple", "umbrella", "owl"}
    assert next(k for k in KINDS if k.singular == "unicorn").article == "a"


def test_a_scene_is_a_function_of_its_arguments() -> None:
    assert scene("train", 12345) == scene("train", 12345)
    assert scene("train", 12345) != scene("train", 12345, seed=1)
    assert scene("train", 7).groups != scene("test", 7).groups
    with pytest.raises(ValueError, match="split"):
        scene("dev", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1"):
        scene("train", -1)


def test_this_world_is_the_one_that_the_shipped_model_learned() -> None:
    shown = scene("test", 0)
    assert [(KINDS[g.kind].singular, g.count) for g in shown.groups] == [
        ("caterpillar", 3),
        ("sandwich", 2),
        ("guitar", 1),
    ]
    assert shown.statement == Statement("above", (0, 1), (2,))
    assert (shown.place, shown.time) == ("street", "evening")


def test_pairs_of_kinds_are_held_out() -> None:
    for shown in SOME["train"]:
        assert set(pairs(shown)) <= {"train"}
    for split in ("validation", "test"):
        for shown in SOME[split]:
            owners = pairs(shown)
            assert set(owners) <= {"train", split}
            assert not owners or split in owners


def test_every_pair_has_one_owner_and_most_are_train() -> None:
    owners = [pair_split(a, b) for a, b in itertools.combinations(range(len(KINDS)), 2)]
    shares = {split: owners.count(split) / len(owners) for split in SPLITS}
    assert 0.77 < shares["train"] < 0.83
    assert shares["validation"] > 0.07
    assert shares["test"] > 0.07
    assert pair_split(3, 8) == pair_split(8, 3)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_well_formed(split: Split) -> None:
    for shown in SOME[split]:
        counts = [g.count for g in shown.groups]
        assert 1 <= len(counts) <= 4
        assert max(counts) <= MAX_COUNT
        assert sum(counts) <= MAX_GLYPHS
        assert len({g.kind for g in shown.groups}) == len(counts)
        assert (shown.statement is None) == (len(counts) == 1)
        boxes = np.array([g.box for g in shown.groups])
        assert boxes.min() > 0.0
        assert boxes.max() < 128.0


def test_the_statement_is_true_and_its_inverse_is_not() -> None:
    inverse = {"left": "right", "above": "below", "front": "behind"}
    for shown in SOME["test"]:
        if shown.statement is None:
            continue
        relation = shown.statement.relation
        subjects, objects = list(shown.statement.subjects), list(shown.statement.objects)
        assert holds(shown, relation, subjects, objects)
        if relation in inverse:
            assert not holds(shown, inverse[relation], subjects, objects)  # type: ignore[arg-type]
            assert holds(shown, inverse[relation], objects, subjects)  # type: ignore[arg-type]


def test_only_what_is_in_front_hides_anything_and_at_most_40_percent() -> None:
    for shown in itertools.chain.from_iterable(SOME.values()):
        for i, j in itertools.combinations(range(len(shown.groups)), 2):
            a, b = shown.groups[i].box, shown.groups[j].box
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            if width > 0 and height > 0:
                assert shown.statement is not None
                assert shown.statement.relation == "front"
                assert width * height <= 0.4 * (a[2] - a[0]) * (a[3] - a[1])


def test_holds_on_a_hand_made_scene() -> None:
    shown = made_of(square(20, 60, 20, 0), square(60, 62, 20, 1), square(100, 58, 20, 2))
    assert holds(shown, "left", [0], [1, 2])
    assert holds(shown, "between", [1], [0, 2])
    assert holds(shown, "between", [1], [2, 0])
    assert not holds(shown, "between", [0], [1, 2])
    assert not holds(shown, "above", [0], [1])
    assert not holds(shown, "left", [0], [0])
    assert not holds(shown, "left", [], [1])
    overlapping = made_of(square(50, 50, 40, 0), square(65, 65, 20, 1))
    assert holds(overlapping, "front", [1], [0])
    assert holds(overlapping, "behind", [0], [1])
    assert not holds(overlapping, "front", [0], [1])


def test_cells_know_what_covers_them() -> None:
    shown = made_of(square(24, 24, 40, 4), square(120, 120, 8, 9))
    cells = cell_targets(shown, 8)
    kinds, counts = cells.kinds, cells.counts
    assert kinds[1, 1] == 5
    assert counts[1, 1] == 1
    assert kinds[7, 7] == 10  # smaller than a cell, yet found by its centre
    assert kinds[4, 4] == 0
    assert (counts[kinds == 0] == 0).all()


def test_cells_know_their_role_in_the_statement() -> None:
    groups = (square(20, 60, 30, 0), square(64, 62, 30, 1), square(110, 58, 30, 2))
    shown = Scene("train", 0, 0, groups, Statement("between", (1,), (0, 2)), "meadow", "day")
    cells = cell_targets(shown, 8)
    assert [int(cells.roles[3, column]) for column in (1, 3, 6)] == [3, 1, 4]
    assert RELATIONS[cells.relation] == "between"
    assert RELATIONS[cell_targets(made_of(groups[0]), 8).relation] is None
