"""Exported, traced, scripted and compiled PyTorch programs as models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn as nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import CannotCompare, InvalidArgument, SideFailed  # noqa: E402
from crosscheck.adapters.torch.adapter import find  # noqa: E402
from crosscheck.observers import Forcer  # noqa: E402

from .contract import DY, X, record  # noqa: E402
from .torch_kit import TorchKit  # noqa: E402


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(x)))


class Net(nn.Module):
    """A shared block, a norm with statistics, a constant, and an activation in place."""

    def __init__(self, approximate: str = "none", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.block = Block()
        self.block.act = nn.GELU(approximate=approximate)
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean += 0.25
        self.tail = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 3)
        self.scale = torch.tensor([0.5, 1.0, 2.0, 4.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.block(self.block(x))) * self.scale
        return self.head(self.tail(h))


def exported(model: nn.Module) -> Any:
    rows = torch.export.Dim.AUTO
    return torch.export.export(model.eval(), (torch.randn(6, 4),), dynamic_shapes=({0: rows},))


def check(reference: Any, candidate: Any, **options: Any) -> Any:
    return crosscheck.check(reference, candidate, "float32[6,4]", **options)


SITES = ["block", "block.up", "block.act", "block.down", "block#2", "block.up#2", "norm", "tail.0"]


@pytest.mark.parametrize("form", ["program", "module"])
def test_an_exported_program_has_the_modules_sites(form: str) -> None:
    candidate = exported(Net(seed=1))
    report = check(Net(), candidate if form == "program" else candidate.module())
    assert report.verdict == "agree", str(report)
    pairs = {(s.reference, s.candidate) for s in report.sites if s.kind == "activation"}
    assert {(site, site) for site in SITES} <= pairs
    assert not report.coverage.unmatched_reference and not report.coverage.unmatched_candidate
    assert report.coverage.parameters_matched == 12
    assert any(s.phase == "backward" and s.reference == "block.up#2" for s in report.sites)
    assert "exported program" in report.notes[-1]


def test_an_exported_program_as_the_reference() -> None:
    report = check(exported(Net()), Net(seed=2))
    assert report.verdict == "agree", str(report)


def test_a_defect_inside_an_exported_program() -> None:
    report = check(Net(), exported(Net("tanh", seed=1)), gradients=False)
    assert [d.candidate for d in report.divergences] == ["block.act", "block.act#2"]


def test_values_of_an_exported_program_are_the_modules() -> None:
    model = Net().eval()
    ours, ours_info = record(TorchKit().adapt(model))
    program = find(exported(model))
    theirs, their_info = record(program)
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, rtol=1e-5, atol=1e-6, err_msg=str(key))
    assert ours_info.sources == their_info.sources
    assert ours_info.parents == their_info.parents
    assert ours_info.unobservable == their_info.unobservable
    for name, gradient in ours_info.parameter_gradients.items():
        np.testing.assert_allclose(
            their_info.parameter_gradients[name], gradient, rtol=1e-5, atol=1e-6
        )
    described = {p.name: (p.kind, p.axes, p.role) for p in program.parameters()}
    assert described == {
        p.name: (p.kind, p.axes, p.role) for p in TorchKit().adapt(model).parameters()
    }


def test_forcing_inside_an_exported_program() -> None:
    program = find(exported(Net()))
    forced = np.full((6, 6), 0.5, np.float32)
    values, info = record(program, observer=Forcer({("activation", "block.act#2"): forced}))
    model = Net().eval()
    bias = model.block.down(torch.tensor(forced)).detach().numpy()
    np.testing.assert_allclose(values["activation", "block.down#2"], bias, rtol=1e-6)
    wide, _ = record(program, float64=True)
    assert {v.dtype.name for v in wide.values()} == {"float64"}
    np.testing.assert_allclose(wide["activation", "output"], model(torch.tensor(X)).detach(), 1e-4)
    passive, info = record(program, passive=True)
    bare = model(torch.tensor(X))
    assert passive["activation", "output"].tobytes() == bare.detach().numpy().tobytes()
    (gradient,) = torch.autograd.grad(bare, model.block.up.weight, torch.tensor(DY))
    assert info.parameter_gradients["block.up.weight"].tobytes() == gradient.numpy().tobytes()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Any, *, gain: Any, flag: bool = True, cache: Any = None) -> Any:
        h = self.fc(x) * gain
        return {"y": h, "rest": (h + 1, None)} if flag else h


def test_keywords_and_nested_outputs_of_an_exported_program() -> None:
    model = Named()
    given = (torch.randn(6, 4),)
    program = torch.export.export(model, given, {"gain": torch.randn(6, 3), "flag": True})
    inputs = {"gain": "float32[6,3]", "x": "float32[6,4]"}
    report = crosscheck.check(model, program, inputs)
    assert report.verdict == "agree", str(report)
    outputs = {s.candidate for s in report.sites if s.candidate.startswith("output")}
    assert outputs == {"output", "output:rest:0"}
    with pytest.raises(SideFailed):  # the program was exported for these shapes
        crosscheck.check(model, program, {"gain": "float32[5,3]", "x": "float32[5,4]"})
    with pytest.raises((InvalidArgument, SideFailed), match="takes 2 inputs"):
        crosscheck.check(model, program, inputs, candidate_inputs={"x": "float32[6,4]"})


def test_an_exported_program_has_no_train_mode() -> None:
    with pytest.raises(CannotCompare, match="no train mode"):
        check(Net(), exported(Net()), train=True)


def test_a_symbolically_traced_module() -> None:
    report = check(Net(), torch.fx.symbolic_trace(Net(seed=1)))
    assert report.verdict == "agree", str(report)
    assert {"block.up", "block.up#2", "norm"} <= {s.candidate for s in report.sites}


COMPILERS = {
    "script": lambda m: torch.jit.script(m),
    "trace": lambda m: torch.jit.trace(m.eval(), torch.randn(6, 4)),
    "compile": lambda m: torch.compile(m, backend="aot_eager"),
    "in place": lambda m: m.compile(backend="aot_eager") or m,
}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_modules_are_compared_at_their_ends(compiler: str) -> None:
    torch._dynamo.reset()
    candidate = COMPILERS[compiler](Net(seed=1).eval())
    state = {k: v.clone() for k, v in candidate.state_dict().items()}
    report = check(Net(), candidate)
    assert report.verdict == "agree", str(report)
    phases = {s.phase for s in report.sites}
    assert {"forward", "backward", "parameter_gradient"} <= phases
    forward = {s.candidate for s in report.sites if s.phase == "forward"}
    assert "output" in forward and forward <= {"input:x", "output"}
    assert "block.act" in report.coverage.unmatched_reference
    assert "its inside is not observed" in report.notes[-1]
    assert candidate.state_dict().keys() == state.keys()
    running = next(k for k in state if k.endswith("running_mean"))
    assert torch.equal(candidate.state_dict()[running], Net().norm.running_mean)
    wrong = COMPILERS[compiler](Net("tanh", seed=1).eval())
    (first, *_) = check(Net(), wrong).divergences
    assert (first.phase, first.candidate) == ("forward", "output")
    assert first.after is not None or first.between


@pytest.mark.parametrize("compiler", ["script", "compile"])
def test_a_compiled_reference_and_train_mode(compiler: str) -> None:
    torch._dynamo.reset()
    report = check(COMPILERS[compiler](Net()), Net(seed=3), train=True)
    assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiled_layer_inside_an_ordinary_module(compiler: str) -> None:
    torch._dynamo.reset()
    candidate = Net(seed=1).eval()
    candidate.block = COMPILERS[compiler](candidate.block)
    report = check(Net(), candidate)
    assert report.verdict == "agree", str(report)
    seen = {s.candidate for s in report.sites}
    assert {"norm", "tail.0"} <= seen and "block.up" not in seen
    assert ("block" in seen) == (compiler == "compile")  # that one stands in a module of its own
    assert any("`block` is" in note and "not observed inside" in note for note in report.notes)


def test_a_compiler_that_gives_up_is_no_pass() -> None:
    torch._dynamo.reset()
    candidate = torch.compile(nn.Linear(4, 3), backend="eager", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(CannotCompare) as error:
        for rows in range(2, 7):
            crosscheck.check(nn.Linear(4, 3), candidate, f"float32[{rows},4]")
    assert "torch._dynamo.reset()" in str(error.value)


@pytest.mark.slow
def test_what_inductor_makes_of_it() -> None:
    torch._dynamo.reset()
    report = check(Net(), torch.compile(Net(seed=1)))
    assert report.verdict == "agree", str(report)
