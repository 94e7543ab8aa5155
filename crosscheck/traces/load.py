"""`load_trace`: a file, ours or another program's, -> a `RecordedTrace`.

A file need not say more than ``order``, ``inputs_sha256`` and its tensors; whatever else it says is
checked, and whatever it leaves out has a plain default (``docs/traces.md``).
"""

from __future__ import annotations

import math
import os
import re
from typing import Any, cast

import numpy as np

from crosscheck.adapters.base import Parameter, input_site
from crosscheck.observers import Key
from crosscheck.trace import RunInfo
from crosscheck.traces.file import TensorFile, shown
from crosscheck.traces.reading import DTYPE_NAMES, Records, is_names
from crosscheck.traces.recorded import RecordedTrace, Renamed, Rounding
from crosscheck.traces.records import OBSERVED, SKETCH_MARK

__all__ = ["load_inputs", "load_trace"]


def load_trace(path: str | os.PathLike[str]) -> RecordedTrace:
    """Read a trace file. Tensors stay in the file until they are used; nothing is executed.

    Raises:
        TraceFormatError: not a trace; says what is wrong with it and how to write it right.
    """
    reader = _Reader(TensorFile(path))
    if not reader.named("activation"):
        raise reader.wrong(
            "it holds no activation, so it is no trace"
            + (" (it holds inputs for one)" if reader.named("model_input") else ""),
            "name the tensors of layers `activation/SITE`, and list them in `order`",
        )
    return reader.trace()


def load_inputs(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The model inputs in a file of `save_inputs`, in a trace or in a sketch.

    Raises:
        TraceFormatError: not such a file, or it holds no inputs.
    """
    file = TensorFile(path)
    if SKETCH_MARK in file.metadata:
        from crosscheck.sketches.file import read_sketch

        kept = read_sketch(file).inputs
        if not kept:
            raise file.wrong("it is a sketch, too small to hold its inputs", "give them again")
        return dict(kept)
    reader = _Reader(file)
    found = reader.named("model_input")
    if not found:
        raise reader.wrong("it holds no inputs", "write them as `model_input/NAME`")
    return {name: np.array(reader.arrays[record]) for name, record in found.items()}


class _Reader(Records):
    """Makes a run of the records of one file."""

    def trace(self) -> RecordedTrace:
        values = self._values()
        info = self._info(list(values))
        parameters, held = self._parameters(info)
        return RecordedTrace(
            values=Renamed(self.arrays, values),
            info=info,
            framework=self._text("framework", "trace"),
            inputs=Renamed(self.arrays, self.named("model_input")),
            inputs_sha256=self._sha(),
            parameters=parameters,
            held=held,
            rounding=self._rounding("rounding"),
            local=self._rounding("local_rounding"),
            seed=self._seed(),
            train=self._text("mode", "eval") == "train",
            version=self._text("framework_version", ""),
            device=self._text("device", "cpu"),
            origin=self.file.path,
        )

    # -- values ------------------------------------------------------------------------------------

    def _values(self) -> dict[Key, str]:
        """(kind, site) -> tensor; inputs that were not observed as sites come first."""
        fed = {
            ("activation", input_site(name)): record
            for name, record in self.named("model_input").items()
        }
        seen = {key: record for key, record in self._names.items() if key[0] in OBSERVED}
        return cast("dict[Key, str]", {k: r for k, r in fed.items() if k not in seen} | seen)

    def _rounding(self, label: str) -> dict[tuple[str, str], Rounding]:
        found = {}
        for key, record in self._names.items():
            pair = self._entries[record].get(label)
            if pair is None:
                continue
            if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_size, pair))):
                raise self.wrong(
                    f"the {label} of `{shown(record)}` is {shown(pair)}",
                    "write [2-norm, largest] of its error, or leave it out",
                )
            found[key] = Rounding(float(pair[0]), float(pair[1]))
        return found

    # -- the run as a whole ------------------------------------------------------------------------

    def _info(self, keys: list[Key]) -> RunInfo:
        sites = [site for kind, site in keys if kind == "activation"]
        outputs = [s for s in sites if s == "output" or s.startswith("output:")] or sites[-1:]
        inputs = [s for s in sites if s.startswith("input:")]
        hidden = self._object("unobservable", [])
        if not isinstance(hidden, list) or not all(is_names(h) and len(h) == 2 for h in hidden):
            raise self.wrong("`unobservable` is no list of [kind, site]", "leave it out")
        return RunInfo(
            inputs=self._sites("inputs", inputs, sites),
            outputs=self._sites("outputs", outputs, sites),
            layers=self._map("layers") or dict.fromkeys(sites, ""),
            sources=self._map("sources"),
            parents=self._map("parents"),
            unobservable=frozenset(cast("list[Key]", [tuple(h) for h in hidden])),
            parameter_gradients=Renamed(self.arrays, self.named("gradient")),
            buffers=Renamed(self.arrays, self.named("buffer")),
        )

    def _sites(self, key: str, default: list[str], known: list[str]) -> tuple[str, ...]:
        found = self._object(key, default)
        if not is_names(found) or len(set(found)) != len(found) or not set(found) <= set(known):
            raise self.wrong(
                f"`{key}` is not a list of different sites with an activation: {shown(found)}",
                f'write for example ["{shown(default[-1]) if default else "output"}"], '
                "or leave it out",
            )
        return tuple(found)

    def _map(self, key: str) -> dict[str, str]:
        found = self._object(key, {})
        if not isinstance(found, dict) or not is_names(list(found.values())):
            raise self.wrong(f"`{key}` is not an object of names", 'write {"fc1": "Linear", ...}')
        return found

    def _sha(self) -> str:
        text = self._text("inputs_sha256", "")
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            said = f"`inputs_sha256` is {shown(text)!r}" if text else "it has no `inputs_sha256`"
            raise self.wrong(
                said, "copy the 64 hexadecimal digits from the metadata of the inputs file"
            )
        return text

    def _seed(self) -> int | None:
        text = self._text("seed", "")
        if text and not re.fullmatch(r"[0-9]{1,30}", text):
            raise self.wrong(f"`seed` is {shown(text)!r}", "write a whole number, or leave it out")
        return int(text) if text else None

    # -- parameters --------------------------------------------------------------------------------

    def _parameters(self, info: RunInfo) -> tuple[tuple[Parameter, ...], frozenset[str]]:
        values, gradients = self.named("parameter"), self.named("gradient")
        specs = self._object("parameters", [])
        if not isinstance(specs, list) or not all(isinstance(s, dict) for s in specs):
            raise self.wrong("`parameters` is not a list of objects", "leave it out")
        said = {s.get("name"): s for s in specs if isinstance(s.get("name"), str)}
        names = dict.fromkeys([*said, *values, *gradients, *self.named("buffer")])
        found = tuple(self._parameter(name, said.get(name, {}), info) for name in names)
        return found, frozenset(values)

    def _parameter(self, name: str, spec: dict[str, Any], info: RunInfo) -> Parameter:
        kinds = ("parameter", "gradient", "buffer")
        record = next((self._names[k, name] for k in kinds if (k, name) in self._names), None)
        leaf = re.split(r"[./]", name)[-1]
        axes = spec.get("axes")
        if record is not None and axes is None:
            axes = self._entries[record].get("axes")
        value = self._shape_of(name, spec) if record is None else self.arrays[record]
        if axes is not None and not (is_names(axes) and len(axes) == value.ndim):
            raise self.wrong(
                f"the axes of parameter `{shown(name)}` are {shown(axes)}", "leave them out"
            )
        texts = "layer", "role", "layer_kind", "named"
        wrong = [key for key in texts if not isinstance(spec.get(key, ""), str)]
        if wrong:
            raise self.wrong(f"`{wrong[0]}` of parameter `{shown(name)}` is no string", "mend it")
        held = ("parameter", name) in self._names
        return Parameter(
            name=name,
            value=value if held else np.broadcast_to(np.zeros((), value.dtype), value.shape),
            layer=spec.get("layer", name[: -len(leaf) - 1] if len(leaf) < len(name) else ""),
            role=spec.get("role") or _role(leaf),
            kind=spec.get("layer_kind") or "other",
            axes=None if axes is None else tuple(axes),
            trainable=bool(spec.get("trainable", name not in info.buffers)),
            buffer=bool(spec.get("buffer", name in info.buffers)),
            named=spec.get("named", ""),
        )

    def _shape_of(self, name: str, spec: dict[str, Any]) -> np.ndarray:
        """A placeholder for a parameter of which nothing but the description is there."""
        named, shape = spec.get("dtype", "float32"), spec.get("shape")
        dtype = DTYPE_NAMES.get(named) if isinstance(named, str) else None
        try:
            if dtype is None or not isinstance(shape, list) or len(shape) > 32:
                raise ValueError
            return np.broadcast_to(np.zeros((), dtype), [int(n) for n in shape])
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(
                f"parameter `{shown(name)}` has neither a tensor nor a valid shape and dtype",
                "leave it out of `parameters`",
            ) from None


def _is_size(value: Any) -> bool:
    return type(value) in (int, float) and 0.0 <= value <= 1e308 and math.isfinite(value)


def _role(leaf: str) -> str:
    """What a parameter does in its layer, by the last part of its name."""
    name = leaf.lower()
    for word, role in (("mean", "mean"), ("var", "variance"), ("bias", "bias"), ("beta", "bias")):
        if word in name:
            return role
    return "bias" if re.fullmatch(r"b[_.]?\w{0,2}", name) else "weight"
