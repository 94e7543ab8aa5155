"""The files that people write: pairs, and what FILE.py:NAME may name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import crosscheck as library
from crosscheck.pair import load_pair, make

X = ("--input", "x=float32[5,6]")


@pytest.mark.parametrize("name", ["build", "Net", "instance", "nested.net"])
def test_a_model_a_class_or_what_makes_one(crosscheck: Any, name: str) -> None:
    result = crosscheck("run", "--reference", "net.py:build", "--candidate", f"net.py:{name}", *X)
    assert result.exit_code == 0, result.output


def test_plain_functions(crosscheck: Any) -> None:
    pair = ("--reference", "net.py:double", "--candidate", "port/net.py:doubled")
    result = crosscheck("run", *pair, *X)
    assert result.exit_code == 0, result.output
    assert "no backward pass" in result.stdout


def test_a_factory_that_needs_an_argument(crosscheck: Any) -> None:
    """It is taken for a function of the input: what comes of it is said in words."""
    pair = ("--reference", "net.py:build", "--candidate", "net.py:needs_an_argument")
    result = crosscheck("run", *pair, *X, "-q")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_two_files_of_one_name(crosscheck: Any, folder: Path) -> None:
    (folder / "port" / "net.py").write_text(
        (folder / "net.py").read_text().replace("factor=1.0", "factor=1.5")
    )
    pair = ("--reference", "net.py:Net", "--candidate", "port/net.py:Net")
    result = crosscheck("run", *pair, *X)
    assert result.exit_code == 1, result.output


def test_pairs_of_one_name_in_two_folders(crosscheck: Any, folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "net.py").write_text((folder / "net.py").read_text().replace("1.01", "1.0"))
    (other / "pair.py").write_text((folder / "port" / "pair.py").read_text())
    assert crosscheck("run", "port", "--candidate", "wrong").exit_code == 1
    result = crosscheck("run", "other", "--candidate", "wrong")
    assert result.exit_code == 0, result.output


def test_a_package(crosscheck: Any, folder: Path) -> None:
    package = folder / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text((folder / "net.py").read_text())
    (package / "pair.py").write_text(
        "import crosscheck\nfrom .net import Net\nfrom mine.net import build\n"
        "pair = crosscheck.Pair(Net, build, 'float32[5,6]')\n"
    )
    for path in ("mine", "mine/pair.py", str(package)):
        result = crosscheck("run", path)
        assert result.exit_code == 0, result.output


BROKEN = {
    "syntax": ("def build(:\n", "SyntaxError"),
    "an import": ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
    "a crash": ("raise ZeroDivisionError('while loading')\n", "while loading"),
    "an exit": ("import sys\nsys.exit(0)\n", "sys.exit(0)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_load(crosscheck: Any, folder: Path, name: str) -> None:
    text, phrase = BROKEN[name]
    (folder / "broken.py").write_text(text)
    for arguments in (
        ("run", "broken.py"),
        ("run", "--reference", "net.py:Net", "--candidate", "broken.py:Net", *X),
    ):
        result = crosscheck(*arguments)
        assert result.exit_code == 2, (name, result.exit_code, result.output)
        assert phrase in result.stderr.splitlines()[-1]
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [("x = 1\n", "nothing of that name"), ("pair = 3\n", "a int"), ("pair = {}\n", "a dict")],
)
def test_a_file_without_a_pair(crosscheck: Any, folder: Path, text: str, found: str) -> None:
    (folder / "empty.py").write_text(text)
    result = crosscheck("run", "empty.py", "-q")
    assert result.exit_code == 2
    assert "must define `pair = crosscheck.Pair(...)`" in result.stderr and found in result.stderr


def test_an_option_that_check_does_not_know() -> None:
    with pytest.raises(library.InvalidArgument, match="`tolerence`.*tolerance"):
        library.Pair(None, None, None, tolerence=1)


def test_inputs_from_the_seed_and_for_each_candidate(folder: Path) -> None:
    (folder / "seeded.py").write_text(
        "import numpy as np, crosscheck\n"
        "def inputs(seed):\n"
        "    return {'x': np.random.default_rng(seed).normal(size=(5, 6)).astype('float32')}\n"
        "def ours():\n    return lambda x: x * 2\n"
        "def theirs():\n    return lambda x: x.T * 2\n"
        "pair = crosscheck.Pair(ours, {'same': ours, 'turned': theirs}, inputs,\n"
        "    candidate_inputs={'turned': lambda given: given['x'].T})\n"
    )
    pair = load_pair(folder / "seeded.py")
    assert pair.name == "seeded" and pair.candidates() == ("same", "turned")
    for name in pair.candidates():
        report = pair.check(name, seed=3)
        assert report.verdict == "agree" and report.name == f"seeded: {name}"
    one, two = pair.check(seed=1), pair.check(seed=2)
    assert one.seed == 1 and one.sites != two.sites


def test_options_of_the_pair_and_of_the_call() -> None:
    pair = library.Pair(
        lambda: lambda x: x * 2, lambda: lambda x: x * 3, "float32[5,6]", skip=["input:x"]
    )
    assert pair.check().coverage.skipped == ("input:x",)
    loose = library.Tolerance(rtol=1.0, atol=1.0)
    assert pair.check(tolerance=loose).verdict == "agree"
    assert pair.check(alter=lambda model: lambda x: x + x).verdict == "agree"


def test_make() -> None:
    class Net:
        pass

    def build(width: int = 3) -> Net:
        return Net()

    def function(x: Any) -> Any:
        return x

    net = Net()
    assert isinstance(make(Net), Net) and isinstance(make(build), Net)
    assert make(net) is net and make(function) is function


def test_loading_a_pair_twice_gives_the_same_modules(folder: Path) -> None:
    before = list(sys.path)
    first, second = load_pair(folder / "port"), load_pair(folder / "port" / "pair.py")
    assert first.candidates() == second.candidates() == ("right", "wrong", "raises")
    sys.path[:] = before


def test_a_class_that_needs_arguments(crosscheck: Any, folder: Path) -> None:
    (folder / "sized.py").write_text("class Net:\n    def __init__(self, width, n=2): ...\n")
    pair = ("--reference", "net.py:Net", "--candidate", "sized.py:Net")
    result = crosscheck("run", *pair, *X, "-q")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "Net(...) needs `width`" in result.stderr and "def build()" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "notes.txt"),
        ("run", "--reference", "notes.txt:Net", "--candidate", "net.py:Net", *X),
    ],
)
def test_a_file_that_is_not_python(crosscheck: Any, folder: Path, arguments: Any) -> None:
    (folder / "notes.txt").write_text("hello\n")
    result = crosscheck(*arguments, "-q")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "notes.txt" in result.stderr and ".py" in result.stderr


def test_names_that_a_file_has_leave_out_modules(crosscheck: Any) -> None:
    pair = ("--reference", "net.py:Nope", "--candidate", "net.py:Net")
    result = crosscheck("run", *pair, *X, "-q")
    assert "defines no `Nope`; it has `Net`" in result.stderr


def test_the_nearest_name_is_named_first(crosscheck: Any, folder: Path) -> None:
    names = "\n".join(f"def helper_{i}(): ...\n" for i in range(9))
    (folder / "many.py").write_text(f"{names}\ndef build_small(): ...\n")
    pair = ("--reference", "many.py:build_smal", "--candidate", "net.py:Net")
    result = crosscheck("run", *pair, *X, "-q")
    assert "it has `build_small`, `helper_0`" in result.stderr


def test_two_folders_with_files_of_one_name(tmp_path: Path) -> None:
    """What a pair imports from beside it is its own, whatever was loaded before."""
    for folder, number in (("first", 1), ("second", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(f"NUMBER = {number}\n")
        (tmp_path / folder / "pair.py").write_text(
            "import crosscheck\nfrom net import NUMBER\n"
            "pair = crosscheck.Pair(list, list, 'float32[2,3]', name=str(NUMBER))\n"
        )
    names = [load_pair(tmp_path / folder).name for folder in ("first", "second", "first")]
    assert names == ["1", "2", "1"]


def test_what_cannot_be_made_is_named(crosscheck: Any, folder: Path) -> None:
    (folder / "bad.py").write_text("def build():\n    raise OSError('no weights here')\n")
    files = ("--reference", "net.py:build", "--candidate", "bad.py:build")
    result = crosscheck("run", *files, "--input", "x=float32[5,6]")
    assert result.exit_code == 2 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last == "crosscheck: OSError: no weights here (while `bad.py:build` was made)"
    (folder / "pair.py").write_text(
        "import crosscheck\nfrom bad import build\nfrom net import Net\n"
        "pair = crosscheck.Pair(reference=Net, candidate={'port': build}, inputs='float32[5,6]',"
        " name='mine')\n"
    )
    result = crosscheck("run", ".")
    assert result.exit_code == 2
    assert "(while candidate `port` of pair `mine` was made)" in result.stderr.splitlines()[-1]
