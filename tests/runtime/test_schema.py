from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primelens.schema import canonical_json, decode, encode


@dataclass(frozen=True)
class Inner:
    count: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...]
    table: Mapping[str, Inner]
    note: str | None
    free: Any
    flag: bool = False


def sound() -> dict[str, Any]:
    """Data that fits `Outer`."""
    return {
        "name": "n",
        "kind": "a",
        "inner": {"count": 1},
        "many": [{"count": 2, "ratio": 3}],
        "table": {"x": {"count": 3}},
        "note": None,
        "free": [1, {"y": None}],
    }


def problems_of(data: Any) -> list[str]:
    """What `decode` finds."""
    problems: list[str] = []
    result = decode(Outer, data, where="top", problems=problems)
    assert (result is None) == bool(problems)
    return problems


def test_sound_data_round_trips() -> None:
    problems: list[str] = []
    value = decode(Outer, sound(), where="top", problems=problems)
    assert not problems
    assert value is not None
    assert value.many == (Inner(2, 3.0),)
    assert decode(Outer, encode(value), where="top", problems=problems) == value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": 1}, "top.extra: unknown key"),
        ({"name": 1}, "top.name: expected str, found int 1"),
        ({"kind": "c"}, "top.kind: expected one of"),
        ({"inner": {"count": True}}, "top.inner.count: expected int"),
        ({"inner": {"count": 1.0}}, "top.inner.count: expected int"),
        ({"inner": {"count": -1}}, "top.inner: count is negative"),
        ({"inner": {}}, "top.inner.count: missing"),
        ({"inner": None}, "top.inner: expected an object, found null"),
        ({"many": [{"count": "x"}]}, "top.many[0].count"),
        ({"many": {}}, "top.many: expected a list"),
        ({"table": {"x": {"count": 1, "z": 2}}}, "top.table.x.z: unknown key"),
        ({"table": []}, "top.table: expected an object"),
        ({"inner": {"count": 1, "ratio": float("nan")}}, "not a finite number"),
        ({"inner": {"count": 1, "ratio": "1"}}, "top.inner.ratio: expected float"),
        ({"flag": 1}, "top.flag: expected bool"),
        ({"note": 5}, "top.note: expected str"),
    ],
)
def test_each_misfit_is_named(change: dict[str, Any], says: str) -> None:
    found = problems_of({**sound(), **change})
    assert any(says in line for line in found), found


def test_all_misfits_come_at_once() -> None:
    assert len(problems_of({"kind": "c", "inner": 3, "zzz": 0})) == 8


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_any_json_is_refused_or_accepted_but_never_crashes(data: Any) -> None:
    problems_of(data)
    if isinstance(data, dict):
        problems_of({**sound(), **data})


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
def test_canonical_json_does_not_depend_on_order(data: dict[str, Any]) -> None:
    assert canonical_json(data) == canonical_json(dict(reversed(data.items())))


def test_canonical_json_is_fixed() -> None:
    data = {"b": [1, 0.1, 1e-12, True, None], "a": "é\n"}
    assert canonical_json(data) == '{"a":"é\\n","b":[1,0.1,1e-12,true,null]}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": float("nan")})
