"""Execution providers: what was asked for is what runs, or it is an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import crosscheck  # noqa: E402
from crosscheck.adapters.onnx.adapter import OnnxAdapter, find  # noqa: E402
from crosscheck.adapters.onnx.options import Options  # noqa: E402
from crosscheck.adapters.onnx.providers import CPU, CUDA, require_assigned  # noqa: E402
from crosscheck.adapters.onnx.sessions import Sessions  # noqa: E402
from crosscheck.errors import DeviceUnavailable, InvalidArgument  # noqa: E402
from crosscheck.observers import Recorder  # noqa: E402

from .kit import X  # noqa: E402

without_cuda = pytest.mark.skipif(
    CUDA in ort.get_available_providers(), reason="this ONNX Runtime has a CUDA provider"
)


def net() -> Any:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[6,4] x) => (float[n,4] y) {
        size = Shape(x)
        h = Neg(x)
        y = Reshape(h, size)
        }"""
    )
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


@without_cuda
def test_cuda_without_a_provider_for_it() -> None:
    with pytest.raises(DeviceUnavailable, match=r"has no CUDAExecutionProvider; it has .*CPUExec"):
        find(net(), providers=[CUDA])
    with pytest.raises(DeviceUnavailable, match=r"crosscheck\[onnx-gpu\]"):
        OnnxAdapter(net()).use("cuda")
    with pytest.raises(DeviceUnavailable, match=r'device="cuda": the reference \(onnx\)'):
        crosscheck.check(net(), net(), "float32[6,4]", device="cuda")


@without_cuda
def test_a_module_exported_on_the_fly() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    adapter: Any = find(torch.nn.Linear(4, 3), export="onnx")
    with pytest.raises(DeviceUnavailable, match="no CUDAExecutionProvider"):
        adapter.use("cuda")
    assert adapter.device == "cpu"


def test_providers_that_do_not_exist() -> None:
    with pytest.raises(DeviceUnavailable, match="has no FastExecutionProvider"):
        find(net(), providers=["FastExecutionProvider", CPU])
    with pytest.raises(InvalidArgument, match="providers= is empty"):
        find(net(), providers=[])
    assert find(net(), providers=CPU) is not None


def test_the_report_says_where_it_ran() -> None:
    adapter: Any = find(net(), optimization="none")
    adapter.use("cpu")
    adapter.run({"x": X}, Recorder())
    assert adapter.environment == {"providers": CPU, "optimization": "none"}
    info = adapter._sessions._kept["showing"].session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in info} == {CPU}
    assert [node.op_type for part in info for node in part.get_nodes()]


class Assigned:
    """A session of a GPU build, as far as assignments go."""

    def __init__(self, **nodes: str) -> None:
        self._nodes = nodes

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        kinds = {node.name: node.op_type for node in net().graph.node}
        return [
            SimpleNamespace(
                ep_name=provider,
                get_nodes=lambda name=name: [
                    SimpleNamespace(name=name, op_type=kinds.get(name, name))
                ],
            )
            for name, provider in self._nodes.items()
        ]


def test_a_node_that_fell_back() -> None:
    graph = net().graph
    right = Assigned(node_h=CUDA, node_y=CUDA, node_size=CPU, MemcpyToHost=CPU)
    require_assigned(right, [CUDA], graph)
    wrong = Assigned(node_h=CPU, node_y=CUDA, node_size=CPU)
    with pytest.raises(DeviceUnavailable, match=r"1 nodes \(`node_h`\) were to run on .* CPU"):
        require_assigned(wrong, [CUDA], graph)
    with pytest.raises(DeviceUnavailable, match="`Fused`"):  # no name that the graph knows
        require_assigned(Assigned(Fused=CPU), [CUDA], graph)
    require_assigned(wrong, [CUDA, CPU], graph)  # the caller named the CPU
    with pytest.raises(DeviceUnavailable, match="not `OtherExecutionProvider` as asked"):
        require_assigned(right, ["OtherExecutionProvider"], graph)


def test_a_session_that_fell_back_is_no_slow_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library claims to have the provider, and then does not use it."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    adapter: Any = OnnxAdapter(net(), Options(providers=(CUDA,)))
    assert adapter.device == "cuda"
    with pytest.warns(UserWarning), pytest.raises(DeviceUnavailable, match="as asked"):
        adapter.run({"x": X}, Recorder())
    with pytest.raises(DeviceUnavailable, match="was given providers="):
        adapter.use("cpu")


def test_moving_makes_new_sessions() -> None:
    adapter: Any = OnnxAdapter(net())
    adapter.run({"x": X}, Recorder())
    sessions: Sessions = adapter._sessions
    assert sessions._kept
    sessions.use(Options(optimization="none"))
    assert not sessions._kept
