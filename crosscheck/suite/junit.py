"""The suite's result as JUnit XML, for a CI system."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from crosscheck.suite.jobs import FAILED, JobResult, SuiteResult

__all__ = ["dumps"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def dumps(result: SuiteResult) -> str:
    """One ``testsuite``; a ``testcase`` for each job.

    ``suspect`` and ``diverge`` are failures; what has no verdict and should have one is an error;
    a missing framework is skipped, or an error with ``require_all``; so is what was not run.
    """
    cases = [_case(r, result.require_all) for r in result.results]
    for job in result.not_run:
        case = ET.Element("testcase", _names(job.path, job.candidate, job.seed), time="0")
        ET.SubElement(case, "skipped", message="not run")
        cases.append(case)
    totals = {
        "tests": str(len(cases)),
        **{f"{tag}s": str(_having(cases, tag)) for tag in ("failure", "error")},
        "skipped": str(_having(cases, "skipped")),
        "time": f"{result.seconds:.3f}",
    }
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", {"name": "crosscheck", **totals})
    properties = ET.SubElement(suite, "properties")
    for name, value in result.environment.items():
        ET.SubElement(properties, "property", name=_clean(name), value=_clean(str(value)))
    suite.extend(cases)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _having(cases: list[ET.Element], tag: str) -> int:
    return sum(case.find(tag) is not None for case in cases)


def _names(path: str, candidate: str | None, seed: int) -> dict[str, str]:
    name = "load" if candidate is None else f"{candidate}[seed{seed}]"
    return {"classname": _clean(path.removesuffix(".py").replace("/", ".")), "name": _clean(name)}


def _case(r: JobResult, require_all: bool) -> ET.Element:
    names = _names(r.job.path, r.job.candidate, r.job.seed)
    case = ET.Element("testcase", names, time=f"{r.seconds:.3f}")
    properties = ET.SubElement(case, "properties")
    facts = {"status": r.status, "device": r.job.device, "peak_memory_bytes": r.peak_memory_bytes}
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=str(value))
    tag = _tag(r, require_all)
    if tag is not None:
        text = "\n".join([r.message, *r.details, r.output, f"again: {r.job.command}"])
        attributes = {"message": _clean(r.message)}
        if tag != "skipped":
            attributes["type"] = r.status
        ET.SubElement(case, tag, attributes).text = _clean(text)
    return case


def _tag(r: JobResult, require_all: bool) -> str | None:
    if r.status in FAILED:
        return "error"
    if r.status == "skipped":
        return "error" if require_all else "skipped"
    return None if r.status == "agree" else "failure"


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NOT_XML.sub("", text)
