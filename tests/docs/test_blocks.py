"""The README and every page of the documentation do what they say."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest

from crosscheck.cli import main

from . import markdown
from .markdown import ROOT, Reader, blocks, commands, pages, same

NEEDS = {
    "README.md": ["jax"],
    "docs/port.md": ["keras", "onnxscript"],
    "docs/adapters/keras.md": ["keras"],
    "docs/adapters/tensorflow.md": ["tensorflow"],
    "docs/adapters/jax.md": ["flax"],
    "docs/adapters/onnx.md": ["onnxscript"],
    "docs/traces.md": ["sklearn"],
}
"""What a page needs beside PyTorch."""
SLOW = {"docs/port.md", "docs/ci.md", "docs/pytest.md", "docs/suite.md"} | {
    f"docs/adapters/{name}.md" for name in ("keras", "tensorflow", "jax", "onnx")
}
NOT_RUN = {"docs/gpu.md": {"needs a CUDA device": 2}}
"""Page -> reason -> how many blocks are left out for it."""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _runs(page: Path) -> bool:
    return any(block.language in ("python", "console") for block in blocks(page))


PAGES = [
    pytest.param(page, id=_name(page), marks=[pytest.mark.slow] if _name(page) in SLOW else [])
    for page in pages()
    if _runs(page)
]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for module in ["torch", *NEEDS.get(_name(page), [])]:
        pytest.importorskip(module)
    if "\n$ c++ " in page.read_text("utf-8") and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reader = Reader()
    reader.follow(page)
    for name, test in reader.scope.items():
        if name.startswith("test_") and inspect.signature(test).parameters.keys() == {"crosscheck"}:
            test(request.getfixturevalue("crosscheck"))


def test_what_is_not_run_is_known() -> None:
    found: dict[str, dict[str, int]] = {}
    for page in pages():
        for block in blocks(page):
            if block.reason is not None:
                reasons = found.setdefault(_name(page), {})
                reasons[block.reason] = reasons.get(block.reason, 0) + 1
    assert found == NOT_RUN


def test_every_fence_is_understood() -> None:
    """One with an option that the reader does not know would be passed over."""
    for page in pages():
        fences = re.findall(r"^ *```\w.*$", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == len(blocks(page)), page


def test_commands_that_are_only_shown_exist() -> None:
    """Of the commands in shell blocks, workflows and indented lines: name and options."""
    shown = 0
    for page in pages():
        for line in re.findall(
            r"^(?:    |.*run: |)(crosscheck .*)$", page.read_text(), re.MULTILINE
        ):
            name, *arguments = shlex.split(line, comments=True)[1:]
            if name in main.commands:
                _accept(main.commands[name], name, arguments, f"{_name(page)}: {line}")
                shown += 1
    assert shown > 30


def _accept(command: click.Command, name: str, arguments: list[str], where: str) -> None:
    try:
        command.make_context(name, arguments, parent=click.Context(main))
    except click.exceptions.Exit:  # --list and the like end here
        return
    except click.UsageError as error:
        pytest.fail(f"{where}: {error.format_message()}")


# -- the reader itself -----------------------------------------------------------------------------


def _page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


@pytest.mark.parametrize(
    "text",
    [
        "```python\nassert False\n```\n",
        "```python\nprint('three')\n```\n\n```text title=\"Output\"\nfour\n```\n",
        "```console\n$ crosscheck run nowhere\nagree\n```\n",
        "```console\n$ crosscheck run nowhere\n```\n",
        "```console\n$ crosscheck run nowhere\ncrosscheck: InvalidArgument: something else\n```\n",
        "```console\n$ crosscheck suite --help\n$ echo $?\n1\n```\n",
    ],
)
def test_a_page_that_is_wrong_is_found(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(markdown, "ROOT", tmp_path)
    with pytest.raises(AssertionError):
        Reader().follow(_page(tmp_path, text))


RIGHT = """
```python title="a.py"
X = 3
```

```python
import a
print(a.X, 1 / 3)
```

```text title="Output"
3 0.3
```

<!-- not run: it fails -->
```python
1 / 0
```

```console
$ crosscheck run nowhere
crosscheck: InvalidArgument: nowhere: no such pair.
$ echo $?
2
```
"""


def test_a_page_that_is_right_passes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(markdown, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Reader().follow(_page(tmp_path, RIGHT))


def test_what_rounding_decides_is_not_compared_and_all_else_is() -> None:
    printed = (
        "relative error 8.4e-06, 66 x the rounding floor\n  cause: eps 1e-06 instead of 1e-05\n"
    )
    assert same(printed.replace("8.4", "9.1").replace("66", "7.5e+03"), printed)
    assert same("...\n  cause: eps 1e-06 instead\n    of 1e-05", printed)
    assert not same(printed.replace("1e-06 instead", "1e-07 instead"), printed)
    assert not same("cause: eps 1e-06 instead of 1e-05\n...\nrelative error", printed)


def test_commands_are_read_with_what_they_print() -> None:
    text = "$ crosscheck a \\\n  b\nagree\n  more\n$ echo $?\n0\n"
    assert list(commands(text)) == [("crosscheck a b", "agree\n  more\n"), ("echo $?", "0\n")]
