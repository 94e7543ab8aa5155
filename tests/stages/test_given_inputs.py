"""Stage 3, what is given: specs as text, arrays of every kind, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from crosscheck.cotangents import ReferenceCotangents
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.inputs import Spec, make_inputs, parse_spec

EXAMPLES = 'for example "float32[2,3,33,47]", "int64[2,13] 4..200" or "bool[2,13]"'


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("float32[2,3,33,47]", Spec("float32", (2, 3, 33, 47))),
        (" bfloat16 [ 2, 3 ] ", Spec("bfloat16", (2, 3))),
        ("float16[]", Spec("float16", ())),
        ("float64[0,4]", Spec("float64", (0, 4))),
        ("float32[3,]", Spec("float32", (3,))),
        ("float32[2] -1..1", Spec("float32", (2,), -1.0, 1.0)),
        ("float32[2] -1.5e-3 .. +2.5E2", Spec("float32", (2,), -0.0015, 250.0)),
        ("float32[2] .5..1.", Spec("float32", (2,), 0.5, 1.0)),
        ("int64[2,13] 4..200", Spec("int64", (2, 13), 4, 200)),
        ("int8[1] -128..128", Spec("int8", (1,), -128, 128)),
        ("uint64[1] 0..18446744073709551616", Spec("uint64", (1,), 0, 2**64)),
        ("bool[5]", Spec("bool", (5,))),
    ],
)
def test_specs(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec
    assert type(parse_spec(text).low) is type(spec.low)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("float32", f"input `x`: 'float32' is not a spec; write {EXAMPLES}"),
        ("float32[-1]", f"input `x`: 'float32[-1]' is not a spec; write {EXAMPLES}"),
        ("float32[2] 1", f"input `x`: 'float32[2] 1' is not a spec; write {EXAMPLES}"),
        ("", f"input `x`: '' is not a spec; write {EXAMPLES}"),
        (
            "float33[2]",
            "input `x`: unknown dtype 'float33' in 'float33[2]'; known: float16, float32, float64, "
            "bfloat16, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool",
        ),
        (
            "int64[2] ",
            "input `x`: 'int64[2] ' needs a range, since only you know which integers the model "
            'can take: "int64[2] 0..200" draws 0 to 199',
        ),
        (
            "int64[2] 0.5..3",
            f"input `x`: the range in 'int64[2] 0.5..3' must be two int64 numbers, {EXAMPLES}",
        ),
        (
            "float32[2] a..b",
            f"input `x`: the range in 'float32[2] a..b' must be two float32 numbers, {EXAMPLES}",
        ),
        (
            "float32[2 3]",
            f"input `x`: the shape in 'float32[2 3]' must be whole numbers and commas, {EXAMPLES}",
        ),
        (
            "float32[2,,3]",
            f"input `x`: the shape in 'float32[2,,3]' must be whole numbers and commas, {EXAMPLES}",
        ),
        *(
            (
                text,
                f"input `x`: the range in '{text}' must be low..high with low < high, both finite",
            )
            for text in (
                "float32[2] 1..1",
                "int64[2] 5..4",
                "float32[2] 0..inf",
                "float32[2] nan..1",
            )
        ),
        (
            "bool[2] 0..1",
            "input `x`: the range in 'bool[2] 0..1' must be low..high with low < high, both finite "
            "(a bool takes none)",
        ),
        (
            "int8[2] 0..300",
            "input `x`: the range in 'int8[2] 0..300' leaves int8, which holds -128 to 127",
        ),
        (
            "uint8[2] -1..3",
            "input `x`: the range in 'uint8[2] -1..3' leaves uint8, which holds 0 to 255",
        ),
        (
            "float16[2] 0..1e6",
            "input `x`: the range in 'float16[2] 0..1e6' leaves float16, which holds -65504.0 to "
            "65504.0",
        ),
    ],
)
def test_what_is_no_spec_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_spec(text, name="x")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (np.arange(6, dtype=np.int16).reshape(2, 3), "int16", (2, 3)),
        (np.arange(12.0).reshape(3, 4).T, "float64", (4, 3)),
        (np.float32(3.5), "float32", ()),
        (np.array([True, False]), "bool", (2,)),
        (np.ones((2, 0), np.complex64), "complex64", (2, 0)),
        (np.ones(3, ml_dtypes.bfloat16), "bfloat16", (3,)),
        ([[1, 2], [3, 4]], "int64", (2, 2)),
        (2.5, "float64", ()),
        (memoryview(b"abc"), "uint8", (3,)),
        ("float16[2,2]", "float16", (2, 2)),
        (Spec("int8", (4,), 0, 3), "int8", (4,)),
    ],
)
def test_inputs_of_every_kind(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    made = make_inputs(value, seed=0)
    assert list(made) == ["x"]
    assert (made["x"].dtype.name, made["x"].shape) == (dtype, shape)
    assert made["x"].flags.c_contiguous
    if not isinstance(value, (str, Spec, memoryview)):
        assert np.array_equal(made["x"], np.asarray(value))


def test_an_array_is_copied() -> None:
    mine = np.zeros(3)
    made = make_inputs({"a": mine}, seed=0)["a"]
    mine += 1
    assert made.tolist() == [0, 0, 0]


def test_named_inputs_keep_their_order_and_draw_from_their_own_streams() -> None:
    made = make_inputs({"b": "float32[9]", "a": "float32[9]"}, seed=0)
    assert list(made) == ["b", "a"]
    assert not np.array_equal(made["a"], made["b"])
    alone = make_inputs({"a": "float32[9]"}, seed=0)["a"]
    assert np.array_equal(made["a"], alone)
    assert not np.array_equal(make_inputs({"a": "float32[9]"}, seed=1)["a"], alone)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    made = make_inputs(tensor * 2, seed=0)["x"]
    assert made.dtype == np.float32
    assert made.tolist() == [[0, 6], [2, 8], [4, 10]]
    half = torch.tensor([1.5, -(2.0**-130)], dtype=torch.bfloat16, requires_grad=True)
    made = make_inputs(half, seed=0)["x"]
    assert made.dtype == ml_dtypes.bfloat16
    assert made.astype(float).tolist() == [1.5, -(2.0**-130)]


def refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make_inputs({"x": value}, seed=0)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "complex64"])
def test_non_finite_inputs_are_refused_with_their_place(dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    for bad, shown in ((np.inf, "inf"), (-np.inf, "-inf"), (np.nan, "nan")):
        value = np.zeros((2, 3, 4), kind)
        value[1, 2, 0] = value[1, 2, 3] = bad
        shown = rf"\({shown}\+0j\)" if dtype == "complex64" else shown
        refused(
            value,
            rf"input `x` holds {shown} at \(1, 2, 0\): a check starts from finite inputs\. "
            r"Feed the values that make the model produce NaN, not NaN itself",
        )


def test_what_is_no_array_is_refused() -> None:
    refused(None, rf"input `x` is None: give an array or a spec, {re.escape(EXAMPLES)}")
    refused([[1, 2], [3]], r"input `x` of type list is not an array: (?s:.+)")
    refused(object(), r"input `x` has dtype object: models take numbers or booleans")
    refused(["a", "b"], r"input `x` has dtype <U1: models take numbers or booleans")
    refused(np.array(["2020-01-01"], "M8[D]"), r"input `x` has dtype datetime64\[D\]: models .*")
    with pytest.raises(InvalidArgument, match=r"^inputs is empty: give at least one array or spec"):
        make_inputs({}, seed=0)


def test_the_name_of_the_input_is_in_the_error() -> None:
    with pytest.raises(InvalidArgument, match=r"^input `ids`: 'int64\[3\]' needs a range"):
        make_inputs({"x": "float32[2]", "ids": "int64[3]"}, seed=0)


# -- the cotangents of the reference ---------------------------------------------------------------


def test_every_float_output_gets_a_cotangent() -> None:
    source = ReferenceCotangents(seed=5, skip=("output:3",))
    outputs = {
        "output": np.zeros((2, 3), np.float64),
        "output:1": np.zeros((2, 3), ml_dtypes.bfloat16),
        "output:2": np.zeros(4, np.int64),
        "output:3": np.zeros(4, np.float32),
        "output:4": np.zeros((0, 2), np.float32),
    }
    given = source(outputs)
    assert list(given) == ["output", "output:1"]
    assert source.given is given
    assert given["output"].std() > 0.3
    assert not np.array_equal(given["output"], given["output:1"])


def test_without_a_float_output_there_is_nothing_to_send() -> None:
    outputs = {"output": np.zeros((2, 3), np.int64), "output:1": np.zeros(2, bool)}
    with pytest.raises(CannotCompare) as caught:
        ReferenceCotangents(seed=0)(outputs)
    assert str(caught.value) == (
        "the reference has no floating-point output to send a cotangent into; its outputs are "
        "`output: int64[2, 3]`, `output:1: bool[2]`.\n  Fix: return the logits as well, or "
        "gradients=False to compare the forward pass alone"
    )


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">c8"])
def test_bytes_in_the_order_of_another_machine(dtype: str) -> None:
    """As np.load gives them; no framework takes such an array."""
    given = np.arange(6).reshape(2, 3).astype(dtype)
    made = make_inputs({"x": given}, seed=0)["x"]
    assert made.dtype.isnative and made.dtype == given.dtype.newbyteorder("=")
    np.testing.assert_array_equal(made, given)
