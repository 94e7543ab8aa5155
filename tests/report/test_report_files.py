"""report.json, the HTML page, and how both reach the disk."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.report import html
from crosscheck.report.json import dumps, plain, to_dict
from crosscheck.report.write import write_atomically
from crosscheck.results import Report
from tests.report import samples

SITE = ["phase", "reference", "candidate", "shape", "dtype", "verdict", "noise_floor", "ratio"]
SITE += ["free_ratio", "metrics"]
METRICS = ["rel_l2", "max_abs", "worst_index", "cosine", "nonfinite"]
DIVERGENCE = ["phase", "reference", "candidate", "site", "after", "ratio", "metrics", "causes"]
COVERAGE = ["aligned", "unmatched_reference", "unmatched_candidate", "skipped"]
COVERAGE += ["parameters_matched", "unmatched_reference_parameters"]
COVERAGE += ["unmatched_candidate_parameters"]
TOP = {"schema", "verdict", "seed", "reference", "candidate", "environment", "coverage"}
TOP |= {"first_divergence", "divergences", "sites", "name", "notes", "probes"}
ALL = [samples.agree, samples.forward_divergence, samples.infinite, samples.hostile]
ALL += [samples.unmatched, samples.suspect]


def strictly(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("make", ALL)
def test_json_is_strict_and_comes_back(make) -> None:
    report: Report = make()
    assert strictly(dumps(report)) == to_dict(report)


def test_json_has_the_keys_of_schema_1() -> None:
    read = strictly(dumps(samples.forward_divergence()))
    assert set(read) == TOP and read["schema"] == 1 and read["verdict"] == "diverge"
    assert list(read["sites"][0])[:10] == SITE
    assert list(read["sites"][0]["metrics"])[:5] == METRICS
    assert list(read["coverage"])[:7] == COVERAGE
    assert list(read["first_divergence"])[:8] == DIVERGENCE
    assert read["first_divergence"] == read["divergences"][0]
    assert read["reference"] == {"framework": "torch", "version": "2.13.0", "device": "cpu"}
    assert read["first_divergence"]["causes"] == [
        {
            "name": "gelu_tanh",
            "statement": "reference uses erf GELU, candidate the tanh form",
            "verified": True,
            "residual_ratio": 1.1,
        }
    ]
    assert strictly(dumps(samples.agree()))["first_divergence"] is None


def test_json_has_no_infinity_and_no_nan() -> None:
    read = strictly(dumps(samples.infinite()))
    assert read["first_divergence"]["ratio"] == sys.float_info.max
    assert read["first_divergence"]["metrics"] is None
    assert read["sites"][4]["metrics"]["worst_reference"] is None
    assert read["sites"][4]["metrics"]["worst_index"] == [1, 87, 12]


def test_json_of_whatever_the_environment_holds() -> None:
    given = {
        1: (np.float32(0.5), np.int64(3), np.bool_(True), math.nan, -math.inf),
        "set": {"b", "a"},
        "path": Path("x"),
        "none": None,
    }
    assert plain(given) == {
        "1": [0.5, 3, True, None, -sys.float_info.max],
        "set": ["a", "b"],
        "path": "x",
        "none": None,
    }


def test_json_has_a_line_for_each_site() -> None:
    lines = dumps(samples.agree()).splitlines()
    assert sum(line.startswith('  {"phase": ') for line in lines) == len(samples.agree().sites)


def test_writing_makes_folders_and_replaces_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "report.json"
    write_atomically(target, "old")
    target.chmod(0o640)
    write_atomically(str(target), "new ✓")
    assert target.read_text(encoding="utf-8") == "new ✓"
    assert os.listdir(target.parent) == ["report.json"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.json"
    write_atomically(target, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["report.json"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_atomically(os.devnull, "gone")
    assert not os.path.isfile(os.devnull)


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InvalidArgument, match="it is a folder.\n  Fix: give a file, for example"):
        write_atomically(tmp_path, "x")
    with pytest.raises(InvalidArgument, match="cannot write to .*file/r.json`: .*(exists|not a)"):
        write_atomically(file / "r.json", "x")
    for bad in ("", "a\0b"):
        with pytest.raises(InvalidArgument, match="not a file name"):
            write_atomically(bad, "x")

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InvalidArgument, match="permission denied .*\n  Fix: give a file in a"):
        write_atomically(tmp_path / "r.json", "x")


def test_report_saves_both(tmp_path: Path) -> None:
    report = samples.agree()
    report.save_json(tmp_path / "r.json")
    report.save_html(tmp_path / "r.html")
    assert strictly((tmp_path / "r.json").read_text()) == to_dict(report)
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == html.render(report)


class Balanced(HTMLParser):
    """Checks that elements nest, and collects them."""

    VOID = {"meta", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("make", ALL)
def test_html_is_whole_and_loads_nothing(make) -> None:
    report: Report = make()
    page, parsed = html.render(report), Balanced()
    parsed.feed(page)
    assert page.startswith("<!DOCTYPE html>") and not parsed.open
    tags = [tag for tag, _ in parsed.seen]
    assert not {*tags} & {"link", "img", "iframe", "object", "image", "base", "form"}
    assert tags.count("script") == 1 and tags.count("style") == 1
    assert not any("src" in attrs for _, attrs in parsed.seen)
    links = [attrs["href"] or "" for _, attrs in parsed.seen if "href" in attrs]
    ids = [attrs["id"] for _, attrs in parsed.seen if "id" in attrs]
    assert all(link[:1] == "#" and link[1:] in ids for link in links)
    assert len({*ids}) == len(ids)
    assert "prefers-color-scheme: dark" in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_html_escapes_what_it_is_given() -> None:
    page = html.render(samples.hostile())
    assert page.count("<script>") == 1 and "&lt;script&gt;alert(&#39;1&#39;)" in page
    assert "\x1b" not in page and "\u202e" not in page
    assert "<title>diverge · crosscheck · &lt;i&gt;[link=x]</title>" in page


def test_html_has_every_site_and_marks_the_first() -> None:
    report = samples.forward_divergence()
    parsed = Balanced()
    parsed.feed(html.render(report))
    rows = [attrs for tag, attrs in parsed.seen if tag == "tr"]
    assert len(rows) >= len(report.sites)
    assert sum(attrs.get("class") == "first" for attrs in rows) == 1
