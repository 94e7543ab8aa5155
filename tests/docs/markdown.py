"""Markdown pages as a reader follows them: files are written, Python is run, commands are typed.

* ```python title="net.py"`` (or any other language): a file, written before what follows.
* ```python`` without a title: run; the blocks of one page share a namespace.
* ```text title="Output"``: what the Python block before it printed.
* ```console``: commands behind ``$``, and what they print. ``...`` on a line of its own stands for
  lines left out. ``$ echo $?`` shows the exit status; without it the status must be the one that
  belongs to the verdict shown, or 0.
* ``<!-- not run: REASON -->`` on the line before a block: it is not run.
* ``<!-- goes on from: PAGE -->``: the page begins where the other one ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

from click.testing import CliRunner

from crosscheck.cli import main

__all__ = ["ROOT", "Block", "Reader", "blocks", "commands", "pages", "same"]

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\s*)?"
    r'^(?P<indent> *)```(?P<language>\w+)(?: title="(?P<title>[^"\n]+)")?\n'
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_BEFORE = re.compile(r"^<!-- goes on from: (\S+) -->$", re.MULTILINE)
_STATUS = {"agree": 0, "suspect": 1, "diverge": 1, "crosscheck": 2}
"""The word that a command's output begins with -> its exit status."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of the file, where its text begins.
        title: the name of a file, ``"Output"``, or None.
        reason: why it is not run; None: it is.
    """

    line: int
    language: str
    title: str | None
    reason: str | None
    text: str


def pages() -> list[Path]:
    """The README and every page of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = page.read_text("utf-8")
    return [
        Block(
            line=source.count("\n", 0, found.start("text")) + 1,
            language=found["language"],
            title=found["title"],
            reason=found["reason"],
            text=dedent(found["text"]),
        )
        for found in _BLOCK.finditer(source)
    ]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, what the page says it prints) of a ``console`` block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = re.sub(r"\\\n\s*", "", part).partition("\n")
        yield command, output


@dataclass
class Reader:
    """Someone who does what a page says, in the current folder."""

    scope: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str = ""
    status: int = 0

    def follow(self, page: Path) -> None:
        """All blocks of a page, after those of the page that it goes on from."""
        before = _BEFORE.search(page.read_text("utf-8"))
        if before is not None:
            self.follow(page.parent / before[1])
        for block in blocks(page):
            if block.reason is None:
                self._do(page, block)

    def _do(self, page: Path, block: Block) -> None:
        where = f"{page.relative_to(ROOT)}:{block.line}"
        _seed()
        if block.title is not None and block.language != "text":
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.language == "python":
            self.printed = self._run("\n" * (block.line - 1) + block.text, str(page))
        elif block.language == "console":
            for command, output in commands(block.text):
                self._type(command, output, where)
        elif block.language == "text" and block.title == "Output":
            assert same(block.text, self.printed), f"{where}: it printed\n{self.printed}"

    def _run(self, source: str, name: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, name, "exec"), self.scope)
        return out.getvalue()

    def _type(self, command: str, output: str, where: str) -> None:
        if command == "echo $?":
            assert output.strip() == str(self.status), f"{where}: exit status {self.status}"
            return
        self.status, printed = _execute(command)
        verdict = re.match(r"\w+", output)
        expected = _STATUS.get(verdict[0], 0) if verdict else 0
        what = f"{where}: `{command}` ended with {self.status} and printed\n{printed}"
        assert self.status == expected or command.startswith("pytest"), what
        assert same(output, printed), what


def _seed() -> None:
    """A page's models need not be seeded; a test's should be the same every time."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def _execute(command: str) -> tuple[int, str]:
    """(exit status, what is printed: standard output, or the error where there is none)."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "crosscheck":
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.stdout or result.stderr.rpartition("\n... ")[2]
    done = subprocess.run(
        [*_PROGRAMS.get(program, [program]), *arguments],
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout or done.stderr


_PROGRAMS = {
    "pytest": [sys.executable, "-m", "pytest", "-p", "crosscheck.pytest_plugin"],
    "python": [sys.executable],
}
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def same(shown: str, printed: str) -> bool:
    """Whether ``printed`` has what ``shown`` has, in this order, but for the numbers that depend on
    rounding and the places where lines are broken."""
    rest = _plain(printed)
    for part in re.split(r"^\s*\.\.\.\n", shown, flags=re.MULTILINE):
        if part.strip():
            _, found, rest = rest.partition(_plain(part))
            if not found:
                return False
    return True


_NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_NOISE = (
    (rf"\b({_NUMBER}) instead of ({_NUMBER})", r"<\1> instead of <\2>"),  # what a cause says stays
    (r"(?<![\w.])\d+\.\d+\.\d+(?![\w.])", "#"),  # versions
    (rf"(?<![\w.<]){_NUMBER} x (?=the )", "# x "),
    (rf"\blargest {_NUMBER}", "largest #"),
    (r" in \d+\.\d+ ?s\b", " in # s"),
    (rf"worst at \([\d, ]*\): {_NUMBER} for {_NUMBER}", "worst at #"),
    (r"(?<![\w.<])-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)(?![\w.>])", "#"),
    (r"[▁▂▃▄▅▆▇█]+(?:\s*!)?", "▁"),
)


def _plain(text: str) -> str:
    text = " ".join(text.split())
    for pattern, replacement in _NOISE:
        text = re.sub(pattern, replacement, text)
    return text
