"""Markdown for a pull request, JUnit for a CI system; names that are hostile to either."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from crosscheck.report import junit, markdown, oneline
from crosscheck.results import Divergence, Report
from tests.report import samples

EVIL = "- a|b<script>*x*_y_[l](http://e)@all#1\x1b[31m`c`\nd"
ALL = [samples.agree, samples.forward_divergence, samples.backward_divergence, samples.suspect]
ALL += [samples.infinite, samples.unmatched, samples.hostile, samples.long_model]


def evil() -> Report:
    first = Divergence("forward", EVIL, EVIL, EVIL, None, 99.0, samples.metrics(99.0))
    report = samples.report([samples.site(EVIL, 99.0)], [first], name=EVIL)
    return replace(report, notes=(EVIL,))


def test_the_line() -> None:
    assert oneline.summary(samples.forward_divergence()) == (
        "diverge: first at `block2.gelu` (3168 x the rounding floor): reference uses erf GELU, "
        "candidate the tanh form"
    )
    assert oneline.summary(samples.backward_divergence()) == (
        "diverge: first in the VJP of `block1.norm` (413 x the rounding floor): consistent with: "
        "the VJP treats the variance as a constant"
    )
    assert oneline.summary(samples.infinite()) == "diverge: first at `block1.fc1`"
    assert oneline.summary(samples.agree()).startswith("agree: torch 2.13.0 and keras 3.15.0")


def test_markdown_of_a_divergence() -> None:
    text = markdown.render(samples.forward_divergence())
    lines = text.splitlines()
    assert lines[0] == (
        "### ❌ diverge: first at <code>block2.gelu</code> (activation 8 of 10; 7 agree), "
        "introduced there"
    )
    assert "| phase | to blame | ratio | verdict | cause |" in lines
    assert (
        "| forward pass | <code>block2.gelu</code> | 3168 | diverge | "
        "reference uses erf GELU, candidate the tanh form |"
    ) in lines
    assert "**coverage**" in lines
    assert "<details><summary>forward pass (10)</summary>" in lines


def test_markdown_of_an_agreement_has_no_table_of_divergences() -> None:
    text = markdown.render(samples.agree())
    assert text.startswith("### ✅ agree: ") and "to blame" not in text


@pytest.mark.parametrize("make", ALL)
def test_markdown_fits_a_comment_and_its_tables_are_whole(make) -> None:
    text = markdown.render(make())
    assert len(text) < 65_536
    assert text.count("<details>") == text.count("</details>")
    width = 0
    for line in text.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert width in (0, bars) or bars == 0, line
        width = bars


@pytest.mark.parametrize("make", [evil, samples.hostile])
def test_hostile_names_are_text_in_markdown(make) -> None:
    text = markdown.render(make())
    allowed = r"</?(details|summary|code)>"
    assert "<" not in re.sub(allowed, "", text)
    assert "\x1b" not in text and "@all" not in text
    assert not re.search(r"(?<!\\)\]\(", text) and "http://" not in text
    assert not re.search(r"(?<!\\)\*x", text)


def test_junit_has_a_case_for_each_phase() -> None:
    root = ET.fromstring(junit.render(samples.forward_divergence()).partition("\n")[2])
    assert root.attrib == {"tests": "3", "failures": "2", "errors": "0"}
    cases = {c.get("name"): c.find("failure") for c in root.iter("testcase")}
    assert list(cases) == ["forward pass", "backward pass", "parameter gradients"]
    failure = cases["forward pass"]
    assert failure is not None and failure.get("type") == "diverge"
    assert failure.get("message") == (
        "diverge in `block2.gelu`, ratio 3168: reference uses erf GELU, candidate the tanh form"
    )
    assert cases["parameter gradients"] is None


@pytest.mark.parametrize("make", [*ALL, evil])
def test_junit_is_xml_and_fails_where_the_check_did(make) -> None:
    report = make()
    root = ET.fromstring(junit.render(report).partition("\n")[2])
    failed = int(root.get("failures", "0")) > 0
    assert failed == (report.verdict != "agree")


def test_junit_never_passes_what_compared_nothing() -> None:
    root = ET.fromstring(junit.render(samples.report([])).partition("\n")[2])
    assert root.get("errors") == "1"
    blamed_on_nothing = replace(samples.agree(), verdict="suspect")
    root = ET.fromstring(junit.render(blamed_on_nothing).partition("\n")[2])
    assert root.get("failures") == "1"


def test_what_was_not_compared_is_a_list_in_the_list() -> None:
    report = samples.agree()
    coverage = replace(report.coverage, not_compared=("backward: gradients=False",))
    text = markdown.render(replace(report, coverage=coverage))
    assert "- not compared (1):\n  - backward: gradients=False" in text
