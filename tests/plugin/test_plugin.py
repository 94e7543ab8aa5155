"""The pytest plugin, as a user's test files meet it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .kit import LOAD, PAIR, run, written

pytest_plugins = ["pytester"]


def test_short_summary_and_failure(folder: pytest.Pytester) -> None:
    written(folder, "def test_port(crosscheck):\n    crosscheck(Net(), Net(1.01), X)\n")
    result = run(folder)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    line = next(line for line in text.splitlines() if line.startswith("FAILED"))
    ratio = "the rounding floor): the output is scaled by 1.01"
    assert re.sub(r"\(\S+ x", "(N x", line) == (
        f"FAILED test_port.py::test_port - Diverged: diverge: first at `output` (N x {ratio}"
    )
    assert "test_port.py:5: Diverged" in text
    assert re.search(r"^diverge: first at `output` \(activation", text, re.M)
    assert "\nagain: pytest test_port.py::test_port --crosscheck-seed=0\n" in text
    assert "Traceback" not in text and "crosscheck(Net()" not in text


def test_the_cause_is_in_the_short_summary(folder: pytest.Pytester) -> None:
    written(
        folder,
        """
def test_port(crosscheck):
    from crosscheck.errors import Diverged
    from tests.report.samples import forward_divergence
    report = forward_divergence()
    raise Diverged(str(report), report)
""",
    )
    line = run(folder).stdout.str().splitlines()[-2]
    assert line == (
        "FAILED test_port.py::test_port - Diverged: diverge: first at `block2.gelu` "
        "(3168 x the rounding floor): reference uses erf GELU, candidate the tanh form"
    )


def test_an_error_shows_the_test_and_the_users_calls_alone(folder: pytest.Pytester) -> None:
    written(
        folder,
        """
class Raises(Net):
    def forward(self, x):
        return self.inner(x)

    def inner(self, x):
        raise RuntimeError("out of luck")

def test_raises(crosscheck):
    crosscheck(Net(), Raises(), X)

def test_refused(crosscheck):
    crosscheck(Net(), object(), X)
""",
    )
    text = run(folder).stdout.str()
    failures = text.partition("FAILURES")[2].partition("short test summary")[0]
    assert "test_port.py:13: SideFailed" in failures
    assert "test_port.py:16: InvalidArgument" in failures
    assert re.findall(r'^  File ".*test_port\.py", line \d+, in (\w+)$', failures, re.M) == [
        "forward",
        "inner",
    ]
    assert "crosscheck/" not in failures
    assert "FAILED test_port.py::test_raises - SideFailed: the candidate (numpy) raised in" in text
    assert "adapters/numpy" in run(folder, "--full-trace").stdout.str()


def test_agreement_gives_the_report(folder: pytest.Pytester) -> None:
    body = "def test_port(crosscheck):\n    report = crosscheck(Net(), Net(), X, seed=3)\n"
    written(folder, body + "    assert (report.verdict, report.seed) == ('agree', 3)\n")
    run(folder).assert_outcomes(passed=1)


def test_a_failure_of_raise_if_diverged_looks_the_same(folder: pytest.Pytester) -> None:
    body = "def test_port():\n    import crosscheck\n"
    written(folder, body + "    crosscheck.check(Net(), Net(1.01), X).raise_if_diverged()\n")
    result = run(folder)
    result.stdout.fnmatch_lines(["FAILED *test_port - Diverged: diverge: first at `output`*"])


def test_what_is_no_divergence_is_shown_as_ever(folder: pytest.Pytester) -> None:
    written(folder, "def test_port():\n    assert 1 == 2\n")
    run(folder).stdout.fnmatch_lines(["E       assert 1 == 2", "FAILED *- assert 1 == 2"])


def test_seeds(folder: pytest.Pytester) -> None:
    written(
        folder,
        """
@pytest.mark.crosscheck(seeds=[0, 1, 2], gradients=False)
def test_port(crosscheck):
    report = crosscheck(Net(), Net(), X)
    print("ran", report.seed, {s.phase for s in report.sites} - {"weights"})
""",
    )
    result = run(folder, "-v", "-s")
    result.assert_outcomes(passed=3)
    for seed in range(3):
        result.stdout.fnmatch_lines([f"*::test_port?seed{seed}?*ran {seed} {{'forward'}}*"])


def test_the_seed_of_the_command_line_is_above_all(folder: pytest.Pytester) -> None:
    written(
        folder,
        """
@pytest.mark.crosscheck(seeds=[0, 1, 2])
def test_port(crosscheck):
    assert crosscheck(Net(), Net(), X, seed=5).seed == 9
""",
    )
    result = run(folder, "--crosscheck-seed=9", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["crosscheck: seed 9", "*::test_port?seed9? PASSED*"])


def test_a_seed_that_is_none(folder: pytest.Pytester) -> None:
    result = folder.runpytest_subprocess(*LOAD, "--crosscheck-seed=-1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--crosscheck-seed: invalid*value: '-1'*"])


def test_devices(folder: pytest.Pytester) -> None:
    """NumPy has no GPU wherever this runs: one of several devices is skipped, with the reason."""
    body = "def test_port(crosscheck):\n    crosscheck(Net(), Net(), X)\n"
    written(folder, '@pytest.mark.crosscheck(devices=["cpu", "cuda"])\n' + body)
    result = run(folder, "-v", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["*::test_port?cpu? PASSED*", '*SKIPPED*device="cuda": the reference (numpy) cannot run*']
    )
    result.stdout.re_match_lines([r"SKIPPED \[1\] test_\w+\.py:\d+: "])


def test_the_only_device_is_not_skipped(folder: pytest.Pytester) -> None:
    body = "def test_port(crosscheck):\n    crosscheck(Net(), Net(), X)\n"
    written(folder, '@pytest.mark.crosscheck(device="cuda")\n' + body)
    result = run(folder)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*DeviceUnavailable*"])


def test_pairs(folder: pytest.Pytester) -> None:
    folder.mkdir("port").joinpath("pair.py").write_text(PAIR)
    written(
        folder,
        """
def test_default(crosscheck):
    assert crosscheck("port").name == "port: right"

@pytest.mark.crosscheck(pair="port", candidates=["right", "wrong"])
def test_each(crosscheck):
    crosscheck()

def test_named(crosscheck):
    crosscheck("port/pair.py", candidate="wrong")
""",
    )
    result = run(folder, "-v")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        ["*::test_each?right? PASSED*", "*::test_each?wrong? FAILED*", "*::test_named FAILED*"]
    )


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("sede=1", "crosscheck: unknown option `sede`; known are *"),
        ("'cpu'", "*takes options by name*"),
        ("devices='cpu'", "*devices='cpu'*: give a list, such as devices=[[]'cpu'[]]*"),
        ("seeds=[]", "*seeds=[[]]*nothing would be checked*"),
        ("candidate='right'", "*candidate 'right': only a pair has named candidates*"),
    ],
)
def test_markers_that_are_wrong(folder: pytest.Pytester, marker: str, text: str) -> None:
    body = "def test_port(crosscheck):\n    crosscheck(Net(), Net(), X)\n"
    written(folder, f"@pytest.mark.crosscheck({marker})\n" + body)
    result = run(folder)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*" + text])


def test_pages(folder: pytest.Pytester) -> None:
    written(
        folder,
        """
@pytest.mark.parametrize("factor", [1.0, 1.01], ids=["a/b", "a:b"])
def test_port(crosscheck, factor):
    crosscheck(Net(), Net(factor), X)

def test_two(crosscheck):
    for _ in range(2):
        with pytest.raises(AssertionError):
            crosscheck(Net(), Net(1.01), X)
""",
    )
    result = run(folder, "--crosscheck-html=out")
    result.assert_outcomes(passed=2, failed=1)
    made = sorted(p.name for p in (folder.path / "out").iterdir())
    assert len(made) == 3 and sum(name.endswith("-2.html") for name in made) == 1
    result.stdout.re_match_lines([r"page: out.test_port.py-test_port-a-b-\w{8}\.html$"])
    result.stdout.fnmatch_lines(["crosscheck: pages in out", "crosscheck: 3 pages in out"])
    run(folder, "--crosscheck-html=out", "--crosscheck-html-all")
    names = {p.name for p in (folder.path / "out").iterdir()}
    assert len(names) == 4 and set(made) < names  # the same tests replace their own pages
    assert all("<html" in (folder.path / "out" / name).read_text() for name in names)


def test_pages_of_checks_that_could_not_be_made(folder: pytest.Pytester) -> None:
    written(
        folder,
        """
from crosscheck import tap

class Tapped(Net):
    def forward(self, x):
        return tap("scaled", super().forward(x))

class Raises(Tapped):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("out of luck")

class Wider(Net):
    def __init__(self):
        super().__init__()
        self.W = self.W[:, :2]

def test_raises(crosscheck):
    crosscheck(Tapped(), Raises(), X, gradients=False)

def test_cannot(crosscheck):
    crosscheck(Net(), Wider(), X)

@pytest.mark.crosscheck(devices=["cpu", "cuda"])
def test_skips(crosscheck):
    crosscheck(Net(), Net(), X)
""",
    )
    result = run(folder, "--crosscheck-html=out")
    result.assert_outcomes(passed=1, failed=2, skipped=1)
    result.stdout.re_match_lines([r".*page: out.test_port.py-test_raises-\w{8}\.html$"])
    result.stdout.fnmatch_lines(["crosscheck: 2 pages in out"])
    pages = {p.name.split("-")[1]: p.read_text() for p in (folder.path / "out").iterdir()}
    assert set(pages) == {"test_raises", "test_cannot"}
    assert "one side raised" in pages["test_raises"] and "out of luck" in pages["test_raises"]
    assert "scaled" in pages["test_raises"]  # what had been compared until then
    assert "cannot be put side by side" in pages["test_cannot"]
    (folder.path / "file").write_text("")
    refused = run(folder, "--crosscheck-html=file/out", "-k", "test_raises")
    refused.stdout.fnmatch_lines(["*out of luck*", "*no page: *file/out*"])


def test_under_xdist(folder: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    written(
        folder,
        """
@pytest.mark.crosscheck(seeds=[0, 1])
def test_port(crosscheck):
    crosscheck(Net(), Net(1.01), X)
""",
    )
    result = folder.runpytest_subprocess(*LOAD, "-p", "xdist", "-n2", "--crosscheck-html=out")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED *::test_port?seed0? - Diverged: diverge: first at `output` *",
            "FAILED *::test_port?seed1? - Diverged: diverge: first at `output` *",
            "crosscheck: 2 pages in out",
        ]
    )
    assert len(list((folder.path / "out").iterdir())) == 2


def test_a_session_that_does_not_use_it_loads_nothing(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        test_other="""
import sys

def test_loaded():
    ours = {m for m in sys.modules if m.startswith("crosscheck")}
    assert ours == {"crosscheck", "crosscheck.pytest_plugin"}, ours
    heavy = {"numpy", "torch", "tensorflow", "jax", "keras", "onnx", "ml_dtypes", "rich.table"}
    assert not heavy & set(sys.modules)

def test_fails():
    assert 0
"""
    )
    command = [sys.executable, "-m", "pytest", "-p", "crosscheck.pytest_plugin", "test_other.py"]
    found = subprocess.run(command, cwd=folder.path, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in found.stdout, found.stdout


def test_names_of_pages_keep_alike_tests_apart() -> None:
    from crosscheck.testing.pages import page_path

    ids = ["t.py::f[a/b]", "t.py::f[a:b]", "t.py::f[" + "x" * 500 + "]", "t.py::f[…]", "../../x"]
    paths = [Path(page_path("out", nodeid, n)) for nodeid in ids for n in (1, 2)]
    assert len(set(paths)) == len(paths)
    assert all(p.parent == Path("out") and len(p.name) < 130 and p.name.isascii() for p in paths)
    assert page_path("out", ids[0], 1) == page_path("out", ids[0], 1)
    assert not any(p.name.startswith(".") for p in paths)
