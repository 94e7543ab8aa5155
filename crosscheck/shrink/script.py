"""A script that shows one divergence with nothing but NumPy and the frameworks of the two sides."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.shrink.cut import Cut, CutSide
from crosscheck.shrink.layers import Build

__all__ = ["relative", "run_script", "write_script"]

INLINE = 160  # elements that are written into the script itself; more go into an .npz beside it
TIMEOUT = 300  # seconds
_PRINTED = re.compile(r"^relative difference (\S+),", re.MULTILINE)


def relative(reference: np.ndarray, candidate: np.ndarray) -> float:
    """‖candidate − reference‖ / ‖reference‖ as the script prints it."""
    ours, theirs = reference.astype(np.float64), candidate.astype(np.float64)
    size = float(np.linalg.norm(ours))
    return float(np.linalg.norm(theirs - ours)) / (size or 1.0)


def write_script(
    path: Path, cut: Cut, reference: Build, candidate: Build | None, title: str
) -> None:
    """Write ``path``, and the arrays beside it where they are many.

    Args:
        candidate: None: the script compares with the value that the candidate gave.
    """
    arrays: dict[str, np.ndarray] = dict(reference.arrays)
    code: list[str] = []
    code += ["# -- the reference", *reference.lines]
    code += _call(cut.reference, reference, "reference", "expected", cut.output, arrays)
    if candidate is None:
        arrays["candidate.value"] = cut.candidate.value
        code += ["", "# -- the candidate: the value that it gave for the same input"]
        code += ['actual = data["candidate.value"]']
    else:
        arrays |= candidate.arrays
        code += ["", "# -- the candidate, given the same", *candidate.lines]
        code += _call(cut.candidate, candidate, "candidate", "actual", cut.output, arrays)
    for name, argument in cut.layout.steps:
        code.append(f"actual = actual.{name}({argument!r})  # the reference's layout")
    builds = [reference] + ([] if candidate is None else [candidate])
    data = _data(path, arrays)
    head = [f'"""{title}"""', "", *_imports(builds, beside="pathlib" in data[0])]
    text = [*head, "", *data, "", *code, "", *_END]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


def run_script(path: Path) -> float | str:
    """The relative difference that the script prints, or the last line of why it does not."""
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    found = _PRINTED.search(done.stdout)
    if done.returncode == 0 and found:
        return float(found[1])
    return (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]


_END = [
    "difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))",
    "worst = np.unravel_index(difference.argmax(), difference.shape)",
    "size = np.linalg.norm(expected.astype(np.float64)) or 1.0",
    'print(f"relative difference {np.linalg.norm(difference) / size:.6e}, "',
    '      f"largest {difference.max():.6e} at {tuple(int(i) for i in worst)}: "',
    '      f"{float(actual[worst])!r} for {float(expected[worst])!r}")',
]


def _imports(builds: list[Build], *, beside: bool) -> list[str]:
    """``beside``: whether the arrays lie in a file."""
    folders = list(dict.fromkeys(f for b in builds for f in b.folders))
    modules = list(dict.fromkeys(m for b in builds for m in b.modules))
    plain = sorted(m for m in modules if m.startswith("import "))
    own = [m for m in modules if not m.startswith("import ")]
    standard = ["import pathlib"] * beside + ["import sys"] * bool(own)
    lines = [*standard, *([""] if standard else []), "import numpy as np", *plain]
    if own:
        lines += ["", *(f"sys.path.insert(0, {folder!r})" for folder in folders), *own]
    return lines


def _data(path: Path, arrays: dict[str, np.ndarray]) -> list[str]:
    """Lines that give the arrays; those that both sides hold are kept once."""
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for name, array in arrays.items():
        twin = first.setdefault((array.dtype.name, array.shape, array.tobytes()), name)
        if twin != name:
            same[name] = twin
    kept = {name: array for name, array in arrays.items() if name not in same}
    again = [f'data["{name}"] = data["{twin}"]' for name, twin in same.items()]
    if sum(a.size for a in kept.values()) <= INLINE:
        return ["data = {", *(f"    {k!r}: {_written(a)}," for k, a in kept.items()), "}", *again]
    file = path.with_suffix(".npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **kept)  # type: ignore[arg-type]
    return ['data = dict(np.load(pathlib.Path(__file__).with_suffix(".npz")))', *again]


def _written(array: np.ndarray) -> str:
    """As Python, exact: the shortest float64 that is the element, cast back to its own type."""
    values = array.astype(np.float64) if array.dtype.kind == "f" else array
    text = repr(values.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f'np.array({text}, "{array.dtype.name}").reshape({array.shape!r})'


# -- how a layer is called -------------------------------------------------------------------------


def _call(
    side: CutSide,
    build: Build,
    name: str,
    result: str,
    output: str,
    arrays: dict[str, np.ndarray],
) -> list[str]:
    places = []
    for i, (keyword, value) in enumerate(side.inputs):
        arrays[f"{name}.input.{i}"] = value
        known = keyword if keyword in _arguments(build.layer) else ""
        places.append((known, f'data["{name}.input.{i}"]', value.dtype.kind == "f"))
    if side.cotangent is not None:
        arrays[f"{name}.cotangent"] = side.cotangent
    if build.style == "numpy":
        return _numpy_call(side, places, name, result, _pick(output), build.gradients)
    call = _torch_call if build.style == "torch" else _keras_call
    return call(side, places, name, result, _pick(output))


def _arguments(layer: Any) -> set[str]:
    function = getattr(layer, "forward", None) or layer.call
    return set(inspect.signature(function).parameters)


def _pick(output: str) -> str:
    """Of what a layer returned, the output compared."""
    return "".join(f"[{p if p.isdecimal() else repr(p)}]" for p in output.split(":") if p)


def _given(places: list[tuple[str, str, bool]], name: str) -> str:
    return ", ".join(
        (f"{keyword}=" if keyword else "") + f"{name}_inputs[{i}]"
        for i, (keyword, _, _) in enumerate(places)
    )


Places = list[tuple[str, str, bool]]


def _first(pick: str) -> list[str]:
    """Code that takes the compared output out of ``y``."""
    if pick:
        return [f"y = y{pick}"]
    return ["while isinstance(y, (tuple, list)):", "    y = y[0]"]


def _torch_call(side: CutSide, places: Places, name: str, result: str, pick: str) -> list[str]:
    grad = ".requires_grad_()" if side.cotangent is not None else ""
    inputs = [
        f"torch.from_numpy(np.array({place})){grad if is_float else ''}"
        for _, place, is_float in places
    ]
    lines = [f"{name}_inputs = [{', '.join(inputs)}]", f"y = {name}({_given(places, name)})"]
    lines += _first(pick)
    if side.cotangent is None:
        return [*lines, f"{result} = y.detach().numpy()"]
    lines.append(f'y.backward(torch.from_numpy(np.array(data["{name}.cotangent"])))')
    if isinstance(side.gradient_of, int):
        return [*lines, f"{result} = {name}_inputs[{side.gradient_of}].grad.numpy()"]
    return [*lines, f"{result} = {name}.get_parameter({side.gradient_of!r}).grad.numpy()"]


def _keras_call(side: CutSide, places: Places, name: str, result: str, pick: str) -> list[str]:
    inputs = [f"tf.constant({place})" for _, place, _ in places]
    lines = [f"{name}_inputs = [{', '.join(inputs)}]"]
    call = f"{name}({_given(places, name)})"
    lines += [f"{call}  # builds it", f"count = len({name}.get_weights())"]
    weights = f'[data[f"{name}.{{i}}"] for i in range(count)]'
    lines.append(f"{name}.set_weights({weights})")
    if side.cotangent is None:
        return [*lines, f"y = {call}", *_first(pick), f"{result} = np.asarray(y)"]
    lines += [
        "with tf.GradientTape() as tape:",
        f"    tape.watch({name}_inputs)",
        f"    y = {call}",
        *_first(pick),
    ]
    cotangent = f'tf.constant(data["{name}.cotangent"])'
    if not isinstance(side.gradient_of, int):
        wanted = f"next(v for v in {name}.weights if v.name == {side.gradient_of!r}).value"
    else:
        wanted = f"{name}_inputs[{side.gradient_of}]"
    return [*lines, f"{result} = np.asarray(tape.gradient(y, {wanted}, {cotangent}))"]


def _numpy_call(
    side: CutSide,
    places: Places,
    name: str,
    result: str,
    pick: str,
    gradients: Mapping[str, tuple[str, ...]],
) -> list[str]:
    lines = [f"{name}_inputs = [{', '.join(f'np.array({p})' for _, p, _ in places)}]"]
    lines += [f"y = {name}.forward({_given(places, name)})", *_first(pick)]
    if side.cotangent is None:
        return [*lines, f"{result} = np.asarray(y)"]
    lines += [f'y = {name}.backward(data["{name}.cotangent"])']
    if isinstance(side.gradient_of, int):
        lines += [f"y = y[{side.gradient_of}] if isinstance(y, (tuple, list)) else y"]
        return [*lines, f"{result} = np.asarray(y)"]
    kept = gradients.get(str(side.gradient_of), ())
    found = (
        f"getattr({name}, k) for k in {kept!r} if isinstance(getattr({name}, k, None), np.ndarray)"
    )
    return [*lines, f"{result} = next({found})"]
