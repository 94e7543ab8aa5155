"""What importing loads, and who may import whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import crosscheck

ROOT = Path(crosscheck.__file__).parent
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "flax", "onnx", "onnxruntime", "cupy", "ray"}
ARRAYS_ONLY = (  # know arrays and site names, and neither frameworks nor adapters
    "aligning/align",
    "aligning/alignment",
    "aligning/assignment",
    "aligning/edges",
    "aligning/fingerprints",
    "aligning/layout",
    "aligning/names",
    "aligning/pairing",
    "aligning/refine",
    "aligning/trials",
    "arrays",
    "compare",
    "comparisons",
    "cotangents",
    "details/concentration",
    "details/spread",
    "details/stage",
    "explain/__init__",
    "explain/activations",
    "explain/attention",
    "explain/dense",
    "explain/elementwise",
    "explain/evidence",
    "explain/fresh",
    "explain/gather",
    "explain/gradients",
    "explain/norms",
    "explain/numbers",
    "explain/outputs",
    "explain/pools",
    "explain/registry",
    "explain/rounding",
    "explain/sampling",
    "explain/stage",
    "explain/verify",
    "explain/weights",
    "explain/windows",
    "inputs",
    "judging/accumulated",
    "judging/judge",
    "judging/noise",
    "judging/perturb",
    "judging/precision",
    "judging/quantised",
    "judging/reductions",
    "judging/settle",
    "judging/ties",
    "kernels/__init__",
    "kernels/blocked",
    "kernels/combine",
    "kernels/compiled",
    "kernels/machine",
    "kernels/pairs",
    "kernels/plan",
    "kernels/projection",
    "kernels/staging",
    "kernels/threads",
    "kernels/triton_pair",
    "kernels/two_llvms",
    "locating/locate",
    "locating/severed",
    "observers",
    "structure",
    "taps",
    "trace",
    "weights/__init__",
    "weights/assign",
    "weights/families",
    "weights/expressions",
    "weights/given",
    "weights/gradients",
    "weights/held",
    "weights/layers",
    "weights/layouts",
    "weights/leftovers",
    "weights/listing",
    "weights/match",
    "weights/matching",
    "weights/readings",
    "weights/recurrent",
    "weights/simplify",
    "weights/spelling",
    "weights/ties",
    "weights/transform",
    "weights/trials",
    "weights/united",
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT.parent), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )


def imported(file: Path) -> set[str]:
    """Everything that a file imports, anywhere in it, as absolute module names."""
    found: set[str] = set()
    tree = ast.parse(file.read_text())
    hidden = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_importing_loads_no_framework() -> None:
    result = python(
        "import sys, json, crosscheck\n"
        "crosscheck.check, crosscheck.Pair, crosscheck.Tolerance, crosscheck.adapt\n"
        "import crosscheck.cli\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    assert result.returncode == 0, result.stderr
    assert not FRAMEWORKS & set(json.loads(result.stdout))


def test_importing_is_light() -> None:
    """Not even NumPy until something is asked for."""
    loaded = python("import sys, crosscheck; print('numpy' in sys.modules)").stdout
    assert loaded.strip() == "False"


@pytest.mark.parametrize("name", ARRAYS_ONLY)
def test_stages_know_arrays_only(name: str) -> None:
    names = imported(ROOT / f"{name}.py")
    assert not FRAMEWORKS & roots(names)
    adapters = {n for n in names if n.startswith("crosscheck.adapters")}
    assert all(n.startswith("crosscheck.adapters.base") for n in adapters), adapters


def test_every_stage_is_in_the_table() -> None:
    """A new module is either one of the edge or held to the rule above."""
    edge = {
        "__init__",
        "api",
        "cli",
        "errors",
        "pair",
        "pipeline",
        "pytest_plugin",
        "results",
        "run",
    }  # noqa: E501
    here = {f.stem for f in ROOT.glob("*.py")}
    unruled = here - edge - {name for name in ARRAYS_ONLY if "/" not in name}
    for name in unruled:
        assert not FRAMEWORKS & roots(imported(ROOT / f"{name}.py")), name


@pytest.mark.parametrize("file", sorted((ROOT / "report").rglob("*.py")), ids=lambda f: f.stem)
def test_reports_import_result_types_only(file: Path) -> None:
    ours = {n for n in imported(file) if n.startswith("crosscheck")}
    allowed = ("crosscheck.results", "crosscheck.errors", "crosscheck.frames", "crosscheck.report")
    assert all(
        n == "crosscheck.__version__" or n.startswith(allowed) for n in ours - {"crosscheck"}
    )
    assert not FRAMEWORKS & roots(imported(file))


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_framework_is_imported_by_its_own_adapter_only(file: Path) -> None:
    loaded = FRAMEWORKS & roots(imported(file))
    if file.parent.name == "suite" and file.stem.startswith("ray_"):
        loaded -= {"ray"}  # it runs jobs; to a check it is no framework
    if file.parent.parent.name != "adapters":
        assert not loaded
        return
    own = {
        "keras": {"keras", "tensorflow", "torch", "jax"},
        "onnx": {"onnx", "onnxruntime", "onnxscript", "torch"},
        "jax": {"jax", "flax"},
    }
    framework = file.parent.name
    assert loaded <= own.get(framework, {framework})


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_torch_and_numpy_work_without_tensorflow(tmp_path: Path) -> None:
    code = BLOCK.format(blocked=["tensorflow", "keras", "jax", "onnx", "cupy"]) + (
        "import numpy as np, torch, crosscheck\n"
        "class Net:\n"
        "    def __init__(self): self.W = np.ones((6, 3), 'f'); self.b = np.ones(3, 'f')\n"
        "    def forward(self, x): self.x = x; return x @ self.W + self.b\n"
        "    def backward(self, d):\n"
        "        self.dW = self.x.T @ d; self.db = d.sum(0); return d @ self.W.T\n"
        "report = crosscheck.check(torch.nn.Linear(6, 3), Net(), 'float32[5,6]')\n"
        "report.raise_if_diverged()\n"
        f"report.save_html({str(tmp_path / 'r.html')!r})\n"
        "print(report.verdict)\n"
    )
    result = python(code)
    assert result.stdout.strip() == "agree", result.stderr


def test_numpy_alone_is_enough() -> None:
    code = BLOCK.format(blocked=sorted(FRAMEWORKS)) + (
        "import numpy as np, crosscheck\n"
        "report = crosscheck.check(lambda x: x * 2, lambda x: x + x, 'float32[5,6]')\n"
        "print(report.verdict, report.coverage.not_compared)\n"
    )
    result = python(code)
    assert result.stdout.startswith("agree"), result.stderr


def test_a_pair_without_its_framework_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(
        "import crosscheck\n"
        "def port():\n"
        "    import keras\n"
        "def ours():\n"
        "    import torch\n"
        "    return torch.nn.Linear(6, 3)\n"
        "pair = crosscheck.Pair(ours, {'keras': port}, 'float32[5,6]')\n"
    )
    code = BLOCK.format(blocked=["tensorflow", "keras"]) + (
        "import sys\n"
        "from crosscheck.cli import main\n"
        f"sys.argv = ['crosscheck', 'run', {str(tmp_path)!r}, '-q']\n"
        "main()\n"
    )
    result = python(code)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "MissingFramework" in result.stderr
    assert "pip install 'crosscheck[keras]'" in result.stderr
