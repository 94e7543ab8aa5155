"""`crosscheck doctor`: what is there, what is missing, and what is broken without breaking it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import crosscheck
from crosscheck.cli import main
from crosscheck.doctor import ADAPTERS, MODULES, capabilities_of, examine

ROOT = Path(crosscheck.__file__).parent.parent

BROKEN = {
    "broken": ("raise OSError('libcudart.so.99: no such file')", "OSError: libcudart.so.99"),
    "crashed": ("import os; os.abort()", "SIGABRT"),
    "exits": ("import os; os._exit(3)", "exit status 3"),
    "hung": ("import time; time.sleep(60)", "no answer within"),
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a module before the installed ones."""

    def make(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))

    return make


@pytest.mark.parametrize("case", BROKEN)
def test_an_installation_that_fails_is_a_line_of_the_answer(fake: Any, case: str) -> None:
    code, expected = BROKEN[case]
    fake("cupy", code)
    (found,) = examine(["cupy"], limit=1.0 if case == "hung" else 60.0)["frameworks"]
    assert found.status == ("crashed" if case == "exits" else case)
    assert expected in found.problem
    assert "pip install 'crosscheck[cupy]'" in found.problem


def test_one_that_prints_while_it_loads(fake: Any) -> None:
    runtime = (
        "class runtime:\n"
        "    getDeviceCount = staticmethod(lambda: 1)\n"
        "    runtimeGetVersion = staticmethod(lambda: 12090)\n"
        "    getDeviceProperties = staticmethod(lambda i: {'name': b'Some GPU'})\n"
        "class cuda: runtime = runtime\n"
        "print('{hello')\n"
        "__version__ = '13.9'\n"
    )
    fake("cupy", runtime)
    (found,) = examine(["cupy"])["frameworks"]
    assert (found.status, found.problem) == ("ok", "")
    assert found.versions == {"cupy": "13.9", "cuda (runtime)": "12090"}
    assert found.devices == ("cuda:0 Some GPU",)


def test_a_framework_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "jax", ("jax_is_not_installed",))
    (found,) = examine(["jax"])["frameworks"]
    assert found.status == "missing"
    assert found.problem == "jax_is_not_installed not installed: pip install 'crosscheck[jax]'"


@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
def test_a_framework_that_works() -> None:
    import torch

    (found,) = examine(["torch"])["frameworks"]
    assert found.status == "ok"
    assert found.versions["torch"] == torch.__version__
    assert found.precision["float32_matmul_precision"] == "highest"
    assert "cudnn.allow_tf32" in found.precision


def test_it_works_with_the_base_package_alone() -> None:
    blocked = ["torch", "tensorflow", "keras", "jax", "jaxlib", "onnx", "onnxruntime", "cupy"]
    code = (
        "import importlib.util as u, sys\n"
        "real = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n.split('.')[0] in {blocked} else real(n, *a)\n"
        "from crosscheck.cli import main\n"
        "sys.argv = ['crosscheck', *sys.argv[1:]]\n"
        "main()\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, "doctor", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )

    text = run()
    assert text.returncode == 0, text.stderr
    for extra in ("torch", "keras", "onnx", "jax", "cupy"):
        assert f"pip install 'crosscheck[{extra}]'" in text.stdout
    assert "driver" in text.stdout and "cotangents" in text.stdout
    answer = json.loads(run("--json").stdout)
    assert {f["status"] for f in answer["frameworks"].values()} == {"missing"}
    assert answer["machine"]["crosscheck"] == crosscheck.__version__
    assert answer["adapters"]["onnx"]["cotangents"] is False
    assert answer["adapters"]["numpy"]["force"] is True


def test_a_limit_of_nothing_is_refused() -> None:
    assert CliRunner().invoke(main, ["doctor", "--limit", "0"]).exit_code == 2


def test_the_table_says_what_the_adapters_say() -> None:
    from crosscheck.adapters.numpy.adapter import NumpyAdapter

    class Net:
        def forward(self, x: Any) -> Any:
            return x

        def backward(self, d: Any) -> Any:
            return d

    def same(adapter: Any, name: str) -> bool:
        return capabilities_of(adapter.capabilities) == capabilities_of(ADAPTERS[name])

    assert same(NumpyAdapter(Net()), "numpy")
    if find_spec("torch"):
        import torch

        assert same(crosscheck.adapt(torch.nn.Linear(2, 2)), "torch")
    if find_spec("onnx") and find_spec("onnxruntime"):
        from crosscheck.adapters.onnx.adapter import OnnxAdapter

        assert same(OnnxAdapter, "onnx")
