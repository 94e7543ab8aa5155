"""Where ONNX Runtime runs what: execution providers, and which of them got every node.

ONNX Runtime falls back to the CPU without a word that a program could hear. So it is asked, session
by session, whom it assigned each node to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from crosscheck.errors import DeviceUnavailable, capped

__all__ = ["CPU", "CUDA", "OPTIONS", "RECORD", "require_assigned", "require_available"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
RECORD = "session.record_ep_graph_assignment_info"
"""The session setting without which nothing is recorded."""
OPTIONS: dict[str, dict[str, str]] = {CUDA: {"use_tf32": "0"}}
"""Float32 means float32."""
_NO_FLOATS = frozenset(
    {
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
        onnx.TensorProto.BOOL,
    }
)


def require_available(runtime: Any, providers: Sequence[str]) -> None:
    """Refuse a provider that this installation of ONNX Runtime does not have.

    Raises:
        DeviceUnavailable: says which it has, and what to install.
    """
    known = runtime.get_available_providers()
    for provider in providers:
        if provider not in known:
            fix = (
                "\n  Fix: install onnxruntime-gpu instead of onnxruntime "
                "(pip install 'crosscheck[onnx-gpu]'), or device=\"cpu\""
                if provider == CUDA
                else ""
            )
            raise DeviceUnavailable(
                f"this ONNX Runtime {runtime.__version__} has no {provider}; it has "
                f"{capped(known)}.{fix}"
            )


def require_assigned(session: Any, providers: Sequence[str], graph: onnx.GraphProto) -> None:
    """Refuse a session that computes anything elsewhere than asked.

    What handles shapes and indices only may stay on the CPU: the CUDA provider leaves it there.

    Args:
        session: made with `RECORD` on.
        providers: what was asked for, first choice first.
        graph: as it was handed over.

    Raises:
        DeviceUnavailable: names the nodes.
    """
    if session.get_providers()[: len(providers)] != list(providers):
        raise DeviceUnavailable(
            f"ONNX Runtime uses {capped(session.get_providers())}, not {capped(providers)} as "
            "asked. Its log says why (a library of the provider is missing, or no device is free)"
        )
    if CPU in providers:
        return  # whatever falls back goes there, as asked
    elsewhere = [
        (node.name or node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name not in providers and not _is_bookkeeping(node, graph)
    ]
    if elsewhere:
        names = [name for name, _ in elsewhere]
        raise DeviceUnavailable(
            f"{len(elsewhere)} nodes ({capped(names, 4)}) were to run on {capped(providers)} and "
            f"run on {elsewhere[0][1]}: there is no such kernel for them.\n"
            '  Fix: device="cpu", or providers= with the CPU named as well if that is meant'
        )


def _is_bookkeeping(node: Any, graph: onnx.GraphProto) -> bool:
    """Whether a node makes shapes, indices or masks only, or moves data."""
    if node.op_type.startswith("Memcpy"):
        return True
    made = {o for n in graph.node if n.name and n.name == node.name for o in n.output if o}
    return bool(made) and made <= _integers(graph)


def _integers(graph: onnx.GraphProto) -> set[str]:
    """The values that are known to be no floating point numbers."""
    known = {v.name for v in graph.value_info if v.type.tensor_type.elem_type in _NO_FLOATS}
    for node in graph.node:
        if node.op_type in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin"):
            known.update(node.output)
    return known
