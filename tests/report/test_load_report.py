"""report.json back into a Report: what was written comes back, what is damaged is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.report.json import dumps, to_dict
from crosscheck.report.load import load_report, loads
from crosscheck.report.terminal import to_text
from crosscheck.results import ProbeResult
from tests.report import samples

ALL = [samples.agree, samples.forward_divergence, samples.backward_divergence, samples.suspect]
ALL += [samples.infinite, samples.unmatched, samples.hostile]


@pytest.mark.parametrize("make", ALL)
def test_what_was_written_comes_back(make: Any) -> None:
    report = make()
    read = loads(dumps(report))
    assert dumps(read) == dumps(report)
    assert to_text(read, width=100) == to_text(report, width=100)


def test_fields_are_what_they_were() -> None:
    report = samples.forward_divergence()
    assert loads(dumps(report)) == report


def test_infinity_and_nan_come_back() -> None:
    read = loads(dumps(samples.infinite()))
    assert read.divergences[0].ratio == math.inf and read.sites[2].metrics is None
    metrics = read.sites[4].metrics
    assert metrics is not None and math.isnan(metrics.worst_reference or 0.0)
    assert metrics.worst_candidate == 0.84129


def test_a_probe_that_saw_the_first_divergence_still_says_so() -> None:
    report = samples.forward_divergence()
    first = report.first_divergence
    probed = replace(report, probes=(ProbeResult("odd", "diverge", first, "odd sizes"),))
    read = loads(dumps(probed))
    assert "seen with probe `odd`" in to_text(probed)
    assert to_text(read) == to_text(probed)


def test_keys_of_a_later_version_are_left_out() -> None:
    data = to_dict(samples.agree()) | {"new": 1}
    data["sites"][0]["colour"] = "red"
    assert loads(json.dumps(data)) == samples.agree()


def changed(path: str, value: Any) -> str:
    data = json.loads(dumps(samples.forward_divergence()))
    *parents, last = path.split(".")
    place: Any = data
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("schema", 2, "schema 2; this version reads schema 1.\n  Fix: read it with the version"),
        ("schema", True, "schema True"),
        ("schema", KeyError, 'it has no "schema"'),
        ("verdict", "fine", 'report.verdict is "fine"; it must be one of agree, suspect, diverge'),
        ("verdict", ["agree"], "report.verdict is"),
        ("seed", "0", 'report.seed is "0"; it must be a whole number'),
        ("seed", True, "report.seed is true; it must be a whole number"),
        ("sites", {}, "report.sites is {}; it must be a list"),
        ("sites.3.shape", [2, "x"], 'report.sites[3].shape[1] is "x"; it must be a whole number'),
        ("sites.3.ratio", "big", 'report.sites[3].ratio is "big"; it must be a number'),
        ("sites.3.phase", KeyError, 'damaged: report.sites[3] has no "phase"'),
        ("divergences.0.causes", [1], "report.divergences[0].causes[0] is 1; it must be an object"),
        ("environment", [], "report.environment is []; it must be an object"),
        ("coverage.skipped", [None], "report.coverage.skipped[0] is null; it must be a string"),
    ],
)
def test_a_damaged_report_is_refused(path: str, value: Any, text: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        loads(changed(path, value))
    assert text in str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[1]", b"null", b'{"schema": NaN}', b"\0" * 100]
    + [b'{"schema": ' + b"9" * 5000 + b"}", b'{"schema": 1}', b'{"schema": 1e400}'],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_report_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(data)
    with pytest.raises(InvalidArgument, match=r"r\.json`: "):
        load_report(file)


def test_every_truncation_is_refused() -> None:
    text = dumps(samples.suspect())
    for end in range(0, len(text), 97):
        with pytest.raises(InvalidArgument):
            loads(text[:end])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        load_report(tmp_path / "r.json")
    with pytest.raises(InvalidArgument, match="directory"):
        load_report(tmp_path)


def test_the_result_of_a_suite_is_told_from_a_report() -> None:
    with pytest.raises(InvalidArgument, match="the result of `crosscheck suite`"):
        loads('{"schema": 1, "jobs": [], "not_run": [], "summary": {}}')
