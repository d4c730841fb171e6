from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from primelens.store.memory import MemoryTier

STEPS = st.lists(st.tuples(st.sampled_from("pgd"), st.integers(0, 6), st.integers(0, 12)))


@given(STEPS, st.integers(0, 30))
def test_it_holds_what_was_used_last_within_its_cap(
    steps: list[tuple[str, int, int]], cap: int
) -> None:
    tier: MemoryTier[int, str] = MemoryTier(cap)
    model: OrderedDict[int, int] = OrderedDict()
    for step, key, size in steps:
        if step == "p":
            tier.put(key, f"value {key}", size)
            model.pop(key, None)
            if size <= cap:
                model[key] = size
            while sum(model.values()) > cap:
                model.popitem(last=False)
        elif step == "g":
            assert tier.get(key) == (f"value {key}" if key in model else None)
            if key in model:
                model.move_to_end(key)
        else:
            tier.discard(key)
            model.pop(key, None)
        assert tier.nbytes == sum(model.values()) <= cap
        assert len(tier) == len(model)
    tier.clear()
    assert (len(tier), tier.nbytes) == (0, 0)
