"""Which pairs there are, and which are meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.suite.find import find_pairs
from crosscheck.suite.select import parse_selection, selects

LONE = "import crosscheck\npair = crosscheck.Pair(1, 2, 3)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "models/b/pair.py": "",
        "models/a/deep/er/pair.py": LONE,
        "models/a/lone.py": LONE,
        "models/a/typed.py": "from crosscheck import Pair\npair: Pair = Pair(1, 2, 3)\n",
        "models/a/guarded.py": "try:\n    pair = Pair(1, 2, 3)\nfinally: pass\n",
        "models/a/broken.py": LONE + "def (:\n",
        "models/a/uses.py": "def f():\n    pair = crosscheck.Pair(1, 2, 3)\n",
        "models/a/other.py": "Pair = int\npair = 3\n",
        "models/a/latin.py": "# Pair\n'\xff'\n",
        "models/.hidden/pair.py": "",
        "models/__pycache__/pair.py": "",
        "models/venv/pyvenv.cfg": "",
        "models/venv/lib/pair.py": "",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="latin-1")
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "a" / "dangling.py").symlink_to("nowhere.py")
    (tmp_path / "models" / "loop").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOUND = [
    "models/a/broken.py",
    "models/a/guarded.py",
    "models/a/lone.py",
    "models/a/typed.py",
    "models/a/deep/er",
    "models/b",
]


def test_pairs_below_a_folder(folder: Path) -> None:
    assert find_pairs(["models"]) == FOUND
    assert find_pairs(["models/b", "models", "models/a/lone.py"]) == ["models/b", *FOUND[:-1]][:6]


def test_a_file_that_is_named_is_meant(folder: Path) -> None:
    assert find_pairs(["models/a/other.py"]) == ["models/a/other.py"]
    assert find_pairs([folder / "models" / "b" / "pair.py"]) == ["models/b"]


def test_from_elsewhere_the_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "models" / "a")
    assert find_pairs(["../b"]) == [str(folder / "models" / "b")]
    assert find_pairs(["deep"]) == [os.path.join("deep", "er")]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "no such folder or file"),
        ("models/empty", "no pair below"),
        ("models/venv/pyvenv.cfg", "a Python file"),
    ],
)
def test_nothing_there(folder: Path, path: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        find_pairs([path])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mlp", True),
        ("MLP", True),
        ("gpt", False),
        ("mlp::numpy", True),
        ("not mlp", False),
        ("not not mlp", True),
        ("gpt or mlp", True),
        ("gpt or mlp and numpy", True),
        ("(gpt or mlp) and keras", False),
        ("mlp and not keras", True),
        ("not (mlp and numpy)", False),
        ("not(gpt)and(mlp)", True),
        ("seed0 and models/", True),
    ],
)
def test_expressions(expression: str, expected: bool) -> None:
    assert selects(parse_selection(expression), "models/mlp::numpy::seed0") is expected


@pytest.mark.parametrize(
    "expression", ["mlp numpy", "mlp and", "or mlp", "(mlp", "mlp)", "not", ""]
)
def test_expressions_that_are_none(expression: str) -> None:
    with pytest.raises(InvalidArgument, match="Write words with `and`, `or`, `not`"):
        parse_selection(expression)


def test_a_pair_of_unknown_candidates() -> None:
    """It is left out only where it certainly is not meant."""
    for expression, expected in {
        "mlp": True,
        "numpy": True,
        "not mlp": False,
        "not numpy": True,
        "numpy and not mlp": False,
        "mlp or numpy": True,
        "not (mlp or numpy)": False,
    }.items():
        selection = parse_selection(expression)
        assert selects(selection, "models/mlp", complete=False) is expected, expression
