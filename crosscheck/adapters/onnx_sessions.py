"""ONNX Runtime sessions over variants of one model: as it is, with values shown, and forced.

In a forced variant a site's value becomes a graph output (what was produced), and what lies behind
the site reads a new graph input (what is forced), so that one session judges every layer.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from crosscheck.adapters.base import ModelRaised
from crosscheck.adapters.onnx_options import Options, runtime
from crosscheck.adapters.onnx_structure import Structure, subgraphs
from crosscheck.adapters.onnx_versions import refusal
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.observers import Key

__all__ = ["LIMIT", "Sessions"]

LIMIT = 2**31 - 2**24
"""Bytes of weights above which a model is handed over in files: a protobuf ends at 2 GB."""
KEPT = 3


@dataclass
class Variant:
    """A session, and where its weights are if they did not fit elsewhere."""

    session: Any
    folder: tempfile.TemporaryDirectory[str] | None


class Sessions:
    """The variants of one model, made when they are needed; the latest few are kept.

    Args:
        proto: the model; `forget` must be called when its weights change.
        limit: see `LIMIT`.
    """

    def __init__(
        self, proto: onnx.ModelProto, structure: Structure, options: Options, limit: int
    ) -> None:
        self.proto, self.structure = proto, structure
        self._options = options
        self._limit = limit
        self._kept: OrderedDict[Any, Variant] = OrderedDict()
        self.types: dict[str, str] = {}
        self._all: list[str] = []  # the values to show

    def use(self, options: Options) -> None:
        """Make sessions that way from now on."""
        if options != self._options:
            self._options = options
            self.forget()

    def forget(self) -> None:
        """The weights have changed."""
        self._kept.clear()

    def learn_types(self, values: Sequence[str]) -> None:
        """Make `types` known: value -> ``tensor(float)``. It does not depend on the weights.

        Raises:
            ModelRaised: ONNX Runtime does not take the model.
        """
        if not self.types:
            self._all = list(dict.fromkeys(values))
            self.types = {o.name: o.type for o in self._showing({}).session.get_outputs()}

    def run_bare(
        self,
        names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        overridden: Mapping[str, onnx.TensorProto],
    ) -> dict[str, np.ndarray]:
        """The model's outputs, with nothing shown or forced."""
        variant = self._get("bare", overridden, lambda graph: None)
        return self._run(variant, names, feeds)

    def run(
        self,
        names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        forced: Mapping[Key, np.ndarray],
        overridden: Mapping[str, onnx.TensorProto],
    ) -> dict[str, np.ndarray]:
        """Values by name.

        Args:
            forced: replacements; what lies behind these sites reads them.
            overridden: initializers to use instead of the model's own, this once.

        Raises:
            ModelRaised: what ONNX Runtime raised, with the site of the node that it names.
        """
        if not forced:
            return self._run(self._showing(overridden), names, feeds)
        types = {k: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in forced.items()}

        def change(graph: onnx.GraphProto) -> None:
            for key, dtype in types.items():
                graph.input.append(onnx.helper.make_tensor_value_info(feed_name(key), dtype, None))
            self._redirect(graph, forced.keys())
            _show(graph, names)

        name = "forced", frozenset(types.items()), tuple(names)
        fed = {feed_name(key): value for key, value in forced.items()}
        return self._run(self._get(name, overridden, change), names, {**feeds, **fed})

    def _showing(self, overridden: Mapping[str, onnx.TensorProto]) -> Variant:
        return self._get("showing", overridden, lambda graph: _show(graph, self._all))

    def _run(
        self, variant: Variant, names: Sequence[str], feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        if not names:
            return {}
        try:
            found = variant.session.run(list(names), dict(feeds))
        except Exception as error:  # ONNX Runtime has a class of its own for every status
            raise ModelRaised(self.site_in(str(error)), "forward") from error
        return dict(zip(names, found, strict=True))

    def site_in(self, message: str) -> str | None:
        """The site of the node that an error message of ONNX Runtime names."""
        nodes = self.structure.graph.node
        quoted = re.findall(r"""['"]([^'"]+)['"]|Name:\s*(\S+)|[(]([^()\s]+)[)]""", message)
        words = {word for groups in quoted for word in groups if word}
        for i, node in enumerate(nodes):
            if node.name in words:
                return self.structure.site_of(i)
        for i, node in enumerate(nodes):  # an operator that it has no kernel or schema for
            if re.search(rf"\b{re.escape(node.op_type)}[(:]", message):
                return self.structure.site_of(i)
        return None

    # -- details -----------------------------------------------------------------------------------

    def _get(
        self,
        name: Any,
        initializers: Mapping[str, onnx.TensorProto],
        change: Callable[[onnx.GraphProto], None],
    ) -> Variant:
        if not initializers and name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        made = self._make(_copy(self.proto, initializers), change)
        if not initializers:  # those are for one run
            self._kept[name] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def _make(self, proto: onnx.ModelProto, change: Callable[[onnx.GraphProto], None]) -> Variant:
        change(proto.graph)
        folder = None
        source: bytes | str
        if sum(_size(t) for t in proto.graph.initializer) > self._limit:
            folder = tempfile.TemporaryDirectory(prefix="crosscheck-")
            source = str(Path(folder.name) / "model.onnx")
            onnx.save_model(
                proto, source, save_as_external_data=True, location="weights", size_threshold=0
            )
        else:
            source = proto.SerializeToString()
        try:
            session = self._options.session(source, proto.graph)
        except DeviceUnavailable:
            raise
        except Exception as error:  # as above: unknown operators, types that do not fit
            with contextlib.suppress(AttributeError):
                folder.cleanup()  # type: ignore[union-attr]
            reason = refusal(str(error), proto, runtime().__version__)
            if reason is not None:
                raise InvalidArgument(reason) from error
            raise ModelRaised(self.site_in(str(error)), "forward") from error
        return Variant(session, folder)

    def _redirect(self, graph: onnx.GraphProto, forced: Collection[Key]) -> None:
        for node, stack in zip(graph.node, self.structure.stacks, strict=True):
            _rename(node, lambda value, stack=stack: self._reads(value, stack, forced))  # type: ignore[misc]

    def _reads(self, value: str, stack: tuple[int, ...], forced: Collection[Key]) -> str:
        if not value:
            return value
        passed = [key for key in self.structure.way(value, stack) if key in forced]
        return feed_name(passed[-1]) if passed else value


def feed_name(key: Key) -> str:
    """The graph input that carries what is forced at a site."""
    return f"crosscheck.forced.{key[0]}.{key[1]}"


def _show(graph: onnx.GraphProto, values: Sequence[str]) -> None:
    shown = {o.name for o in graph.output}
    for value in values:
        if value not in shown:
            graph.output.append(onnx.ValueInfoProto(name=value))  # the type is inferred


def _rename(node: onnx.NodeProto, name: Callable[[str], str]) -> None:
    """Change what a node reads, in its bodies too (names are unique over all of them)."""
    for i, value in enumerate(node.input):
        node.input[i] = name(value)
    for body in subgraphs(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {o for inner in body.node for o in inner.output}

        def outer(value: str, own: set[str] = own) -> str:
            return value if value in own else name(value)

        for inner in body.node:
            _rename(inner, outer)
        for output in body.output:
            output.name = outer(output.name)


def _size(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) or 8 * int(np.prod(tensor.dims, dtype=np.int64))


def _copy(proto: onnx.ModelProto, initializers: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """A copy, tensor by tensor: a message of more than 2 GB cannot be copied at once."""
    copied = onnx.ModelProto()
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version"):
        setattr(copied, name, getattr(proto, name))
    copied.opset_import.extend(proto.opset_import)
    copied.functions.extend(proto.functions)
    graph, ours = proto.graph, copied.graph
    ours.name = graph.name
    ours.node.extend(graph.node)
    ours.input.extend(graph.input)
    ours.output.extend(graph.output)
    ours.value_info.extend(graph.value_info)
    ours.sparse_initializer.extend(graph.sparse_initializer)
    ours.initializer.extend(initializers.get(t.name, t) for t in graph.initializer)
    return copied
