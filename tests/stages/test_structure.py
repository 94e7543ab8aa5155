"""Arrays inside nested values: found, named, replaced, and everything else left as it was."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from crosscheck.structure import leaves, replace_leaves

Point = namedtuple("Point", ["x", "y"])


@dataclass(frozen=True)
class Frozen:
    hidden: Any
    cache: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    hidden: Any
    tag: str = "t"


@dataclass
class Mutable:
    value: Any
    derived: Any = field(init=False, default="derived")

    def __post_init__(self) -> None:
        self.calls = getattr(self, "calls", 0) + 1


class Output(OrderedDict):  # type: ignore[type-arg]
    """Like a model output: a mapping with attributes of its own."""

    note = "none"


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def arrays(n: int) -> list[np.ndarray]:
    return [np.full(2, i) for i in range(n)]


A, B, C = arrays(3)
NESTED = {
    "a list": ([A, B, C], ["", ":1", ":2"]),
    "a tuple with None": ((None, A, None, B), ["", ":3"]),
    "a dict in its own order": ({"z": A, "a": B, 3: C}, ["", ":a", ":3"]),
    "a named tuple": (Point(A, B), ["", ":1"]),
    "a frozen dataclass": (Frozen(A, (B, C)), ["", ":cache:0", ":cache:1"]),
    "slots": (Slotted(A), [""]),
    "a mapping class": (Output(logits=A, hidden=(B, {"k": C})), ["", ":hidden:0", ":hidden:1:k"]),
    "a user dict": (UserDict(a=A, b=B), ["", ":b"]),
    "deep": ([[[(A,)]], {"x": [B]}, Point(None, C)], ["", ":1:x:0", ":2:1"]),
    "an array": (A, [""]),
}


@pytest.mark.parametrize("case", NESTED)
def test_leaves_in_order_with_their_paths(case: str) -> None:
    value, suffixes = NESTED[case]
    found = leaves(value, is_array)
    assert [suffix for suffix, _ in found] == suffixes
    assert all(leaf is expected for (_, leaf), expected in zip(found, (A, B, C), strict=False))


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], {}, (None, "x"), Frozen(1), object(), Frozen]
)
def test_what_holds_no_array(value: Any) -> None:
    assert leaves(value, is_array) == []
    assert replace_leaves(value, is_array, lambda s, v: 1 / 0) is value


@pytest.mark.parametrize("case", NESTED)
def test_an_unchanged_value_is_the_same_object(case: str) -> None:
    value, suffixes = NESTED[case]
    seen = []

    def look(suffix: str, leaf: np.ndarray) -> np.ndarray:
        seen.append(suffix)
        return leaf

    assert replace_leaves(value, is_array, look) is value
    assert seen == suffixes


@pytest.mark.parametrize("case", NESTED)
def test_every_leaf_replaced_and_the_original_untouched(case: str) -> None:
    value, suffixes = NESTED[case]
    new = replace_leaves(value, is_array, lambda suffix, leaf: leaf + 10)
    assert type(new) is type(value)
    assert [s for s, _ in leaves(new, is_array)] == suffixes
    assert [leaf[0] for _, leaf in leaves(new, is_array)] == [10, 11, 12][: len(suffixes)]
    assert [leaf[0] for _, leaf in leaves(value, is_array)] == [0, 1, 2][: len(suffixes)]


def test_only_what_changed_is_rebuilt() -> None:
    kept, changed = [A], {"b": B, "n": None}
    value = (kept, changed, "text")
    new = replace_leaves(value, is_array, lambda s, v: C if s == ":1:b" else v)
    assert new[0] is kept and new[1] is not changed and new[2] is value[2]
    assert new[1]["b"] is C and new[1]["n"] is None and changed["b"] is B


def test_the_same_array_twice_is_two_leaves() -> None:
    assert [s for s, _ in leaves([A, A], is_array)] == ["", ":1"]
    new = replace_leaves([A, A], is_array, lambda s, v: B if s else v)
    assert new[0] is A and new[1] is B


def test_classes_keep_what_is_theirs() -> None:
    output = Output(logits=A)
    output.note = "mine"
    new = replace_leaves(output, is_array, lambda s, v: B)
    assert (type(new), new.note, list(new)) == (Output, "mine", ["logits"])
    counts = defaultdict(list, x=A)
    assert replace_leaves(counts, is_array, lambda s, v: B)["missing"] == []
    mutable = replace_leaves(Mutable(A), is_array, lambda s, v: B)
    assert (mutable.derived, mutable.calls) == ("derived", 1)
    slotted = replace_leaves(Slotted(A, "mine"), is_array, lambda s, v: B)
    assert (slotted.tag, slotted.hidden is B) == ("mine", True)


def test_a_mapping_that_cannot_change_passes_unless_it_has_to() -> None:
    proxy = MappingProxyType({"a": A})
    assert replace_leaves((proxy, B), is_array, lambda s, v: v if not s else C)[0] is proxy
    with pytest.raises(TypeError):
        replace_leaves(proxy, is_array, lambda s, v: B)


def test_a_leaf_is_not_looked_into() -> None:
    value = Frozen(Point(A, B), C)
    found = leaves(value, lambda v: isinstance(v, Point) or is_array(v))
    assert [suffix for suffix, _ in found] == ["", ":cache"]
