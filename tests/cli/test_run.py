"""`crosscheck run`: exit status, what goes to stdout and what to stderr, the files it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FILES = ("--reference", "net.py:build", "--candidate")
X = ("--input", "x=float32[5,6]")


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("... ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    ("candidate", "status"), [("right", 0), ("wrong", 1), ("raises", 2), (None, 0)]
)
@pytest.mark.parametrize("pair", ["port", "port/pair.py"])
def test_exit_status_of_a_pair(
    crosscheck: Any, candidate: str | None, status: int, pair: str
) -> None:  # noqa: E501
    result = crosscheck("run", pair, *(["--candidate", candidate] if candidate else []))
    assert result.exit_code == status, result.output
    if status == 2:
        assert result.stdout == ""
        line = one_line(result.stderr)
        assert line.startswith("crosscheck: SideFailed: the candidate (numpy) raised")
        assert "RuntimeError: out of luck" in line
    else:
        assert result.stdout.startswith("agree" if status == 0 else "diverge")


def test_progress_goes_to_stderr_and_q_silences_it(crosscheck: Any) -> None:
    loud, quiet = crosscheck("run", "port"), crosscheck("run", "port", "-q")
    assert loud.stdout == quiet.stdout
    assert quiet.stderr == ""
    assert all(line.startswith("... ") for line in loud.stderr.splitlines())
    assert "candidates: right, wrong, raises; checking right" in loud.stderr


def test_what_a_model_prints_is_no_part_of_the_result(crosscheck: Any, folder: Path) -> None:
    (folder / "loud.py").write_text(
        "import net\n\nprint('loaded')\n\nclass Net(net.Net):\n    def forward(self, x):\n"
        "        print('debug')\n        return super().forward(x)\n"
    )
    result = crosscheck("run", *FILES, "loud.py:Net", *X, "--json", "-", "-q")
    assert json.loads(result.stdout)["verdict"] == "agree"
    assert "loaded" in result.stderr and "debug" in result.stderr


def test_json_alone_on_stdout(crosscheck: Any) -> None:
    result = crosscheck("run", "port", "--candidate", "wrong", "--json", "-")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["verdict"] == "diverge" and report["schema"] == 1
    assert report["name"] == "port: wrong"


def test_files(crosscheck: Any, folder: Path) -> None:
    result = crosscheck("run", "port", "--json", "r.json", "--html", "r.html", "--seed", "7")
    assert result.exit_code == 0 and result.stdout.startswith("agree")
    assert json.loads((folder / "r.json").read_text())["seed"] == 7
    assert "<html" in (folder / "r.html").read_text().lower()
    assert {f.name for f in folder.iterdir()} == {"net.py", "port", "r.json", "r.html"}


def test_a_file_is_replaced_whole_or_not_at_all(crosscheck: Any, folder: Path) -> None:
    (folder / "r.json").write_text("old")
    result = crosscheck("run", "port", "--candidate", "raises", "--json", "r.json")
    assert result.exit_code == 2 and (folder / "r.json").read_text() == "old"
    crosscheck("run", "port", "--json", "r.json")
    assert json.loads((folder / "r.json").read_text())["verdict"] == "agree"


def test_where_a_file_cannot_be_written(crosscheck: Any, folder: Path) -> None:
    assert crosscheck("run", "port", "--json", "a/new/folder/r.json").exit_code == 0
    assert (folder / "a" / "new" / "folder" / "r.json").is_file()
    result = crosscheck("run", "port", "--json", "net.py/r.json")
    assert result.exit_code == 2 and "net.py" in result.stderr.splitlines()[-1]
    assert result.stdout.startswith("agree")  # the check may have taken an hour


def test_ctrl_c_does_not_read_as_a_divergence(crosscheck: Any, folder: Path) -> None:
    (folder / "stopped.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    result = crosscheck("run", *FILES, "stopped.py:build", *X, "-q")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "crosscheck: interrupted\n"


def test_a_pair_without_candidates(crosscheck: Any, folder: Path) -> None:
    text = (folder / "port" / "pair.py").read_text()
    start, end = text.index("candidate={"), text.index("inputs=")
    (folder / "none.py").write_text(f"{text[:start]}candidate={{}}, {text[end:]}")
    result = crosscheck("run", "none.py", "-q")
    assert result.exit_code == 2
    assert "pair `none` has no candidates" in one_line(result.stderr)


def test_two_files(crosscheck: Any) -> None:
    result = crosscheck("run", *FILES, "port/net.py:Net", *X)
    assert result.exit_code == 0, result.output
    result = crosscheck("run", *FILES, "net.py:wrong", *X, "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["name"] == "net.py:wrong: candidate"


def test_forward_only(crosscheck: Any) -> None:
    result = crosscheck("run", *FILES, "net.py:build", *X, "--forward-only", "--json", "-")
    report = json.loads(result.stdout)
    assert report["coverage"]["not_compared"] == ["backward: gradients=False"]


def test_skip_and_weights(crosscheck: Any) -> None:
    result = crosscheck(
        "run", *FILES, "net.py:build", *X, "--weights", "keep", "--skip", "input:x", "--json", "-"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["coverage"]["skipped"] == ["input:x"]


def test_integers_and_two_inputs(crosscheck: Any, folder: Path) -> None:
    (folder / "look.py").write_text(
        "import numpy as np\n"
        "def look(ids, x):\n    return np.arange(12, dtype='float32').reshape(4, 3)[ids] * x\n"
    )
    result = crosscheck(
        "run", "--reference", "look.py:look", "--candidate", "look.py:look",
        "--input", "ids=int64[5] 0..4", "--input", "x=float32[5,3]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no pair": (("run", "nothing"), ("nothing: no such pair", "pair = crosscheck.Pair(...)")),
    "no arguments": (("run",), ("give a PAIR", "--reference FILE.py:NAME")),
    "both": (("run", "port", *FILES[:2]), ("not both",)),
    "no input": (("run", *FILES, "net.py:Net"), ("--input NAME=SPEC",)),
    "no candidate": (("run", *FILES[:2], *X), ("--candidate FILE.py:NAME",)),
    "an unknown candidate": (
        ("run", "port", "--candidate", "keras"),
        ("pair `port` has no candidate `keras`", "`right`, `wrong`, `raises`"),
    ),
    "no such file": (("run", *FILES, "nothing.py:Net", *X), ("there is no file nothing.py",)),
    "no such name": (
        ("run", *FILES, "net.py:Nett", *X),
        ("net.py defines no `Nett`", "`Net`"),
    ),
    "no name": (("run", *FILES, "net.py", *X), ("write FILE.py:NAME",)),
    "an empty name": (("run", *FILES, "net.py:", *X), ("write FILE.py:NAME",)),
    "no model": (("run", *FILES, "net.py:number", *X), ("the candidate", "3 is not a model")),
    "a spec": (
        ("run", *FILES, "net.py:Net", "--input", "x=float32"),
        ("'float32' is not a spec", "float32[2,3,33,47]"),
    ),
    "an input without a name": (
        ("run", *FILES, "net.py:Net", "--input", "float32[5,6]"),
        ("write NAME=SPEC",),
    ),
    "an input twice": (("run", *FILES, "net.py:Net", *X, *X), ("given twice",)),
    "an unknown site": (("run", "port", "--skip", "norm"), ("skip=", "`norm`")),
    "the wrong shape": (
        ("run", *FILES, "net.py:Net", "--input", "x=float32[5,7]"),
        ("SideFailed", "the reference (numpy)"),
    ),
    "cuda": (("run", "port", "--device", "cuda"), ("DeviceUnavailable", "cuda")),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared_is_status_2_and_one_line(crosscheck: Any, name: str) -> None:
    arguments, phrases = BAD[name]
    result = crosscheck(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = one_line(result.stderr)
    assert line.startswith("crosscheck: ")
    for phrase in phrases:
        assert phrase in line


@pytest.mark.parametrize(
    "arguments",
    [("run", "port", "--seed", "-1"), ("run", "--no-such-option"), ("no-such-command",)],
)
def test_a_misspelt_command_line_is_status_2_too(
    crosscheck: Any, arguments: tuple[str, ...]
) -> None:  # noqa: E501
    result = crosscheck(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert "Error:" in result.stderr


def test_help_teaches(crosscheck: Any) -> None:
    top = crosscheck("--help")
    assert top.exit_code == 0
    for phrase in ("run", "Exit status", "0  the two agree", "2  could not compare"):
        assert phrase in top.stdout
    text = " ".join(crosscheck("run", "-h").stdout.split())
    for phrase in (
        "pair = crosscheck.Pair(...)",
        "crosscheck run models/cnn --candidate keras",
        "--input x=float32[2,3,33,47]",
        "--candidate NAME",
        "--json F",
        "--html F",
        "--forward-only",
        "half-open",
    ):
        assert phrase in text
    assert crosscheck("--version").stdout.startswith("crosscheck")


@pytest.mark.parametrize(("activation", "status"), [("Relu", 0), ("Tanh", 1)])
def test_onnx_files(crosscheck: Any, folder: Path, activation: str, status: int) -> None:
    onnx = pytest.importorskip("onnx")
    made = onnx.helper
    for name, kind in (("ours", "Relu"), ("theirs", activation)):
        weights = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
        graph = made.make_graph(
            [made.make_node("MatMul", ["x", "w"], ["h"]), made.make_node(kind, ["h"], ["y"])],
            "net",
            [made.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [5, 6])],
            [made.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [5, 3])],
            [onnx.numpy_helper.from_array(weights, "w")],
        )
        opset = [made.make_opsetid("", 18)]
        onnx.save(
            made.make_model(graph, opset_imports=opset, ir_version=10), folder / f"{name}.onnx"
        )
    result = crosscheck("run", "--reference", "ours.onnx", "--candidate", "theirs.onnx", *X, "-q")
    assert result.exit_code == status, result.output
    assert result.stdout.startswith("agree" if status == 0 else "diverge")


def test_a_missing_onnx_file_is_told(crosscheck: Any) -> None:
    result = crosscheck("run", *FILES, "missing.onnx", *X)
    assert result.exit_code == 2
    assert one_line(result.stderr) == "crosscheck: InvalidArgument: there is no file missing.onnx"


def test_an_input_that_no_memory_holds(crosscheck: Any) -> None:
    huge = "x=float32[99999999,99999999]"
    result = crosscheck("run", *FILES, "net.py:build", "--input", huge, "-q")
    assert result.exit_code == 2
    expected = "input `x`: float32[99999999, 99999999] does not fit into memory"
    assert one_line(result.stderr) == f"crosscheck: InvalidArgument: {expected}"
