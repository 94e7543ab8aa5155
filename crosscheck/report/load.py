"""Stage 10, report: ``report.json`` back into a `Report`; nothing that it says is trusted.

What is read is what the result types declare: every field by its name and its type. Keys that this
version does not know are left out (a later one may have added them within the schema). Strict JSON
has no infinity and no NaN: the largest double is read as infinity, null as NaN where a number has
to be (see `crosscheck.report.json`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from crosscheck.errors import InvalidArgument
from crosscheck.report.json import SCHEMA
from crosscheck.results import Details, Histogram, Metrics, Report, SiteDetail

__all__ = ["load_report", "loads"]

LARGEST = 1 << 26  # bytes; a report of 5000 sites takes 4 MB, and JSON thirty times that in memory
MOST_DETAILS, MOST_BINS = 256, 256


def load_report(path: str | os.PathLike[str]) -> Report:
    """Read a report that `Report.save_json` wrote.

    Raises:
        InvalidArgument: no such file, another schema, or not what such a file holds; says which.
    """
    given = os.fspath(path)
    try:
        with open(given, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(f"`{given}`: {reason}") from None
    if len(data) > LARGEST:
        raise InvalidArgument(f"`{given}`: more than {LARGEST >> 20} MiB; no report is that large")
    try:
        return loads(data.decode("utf-8"))
    except InvalidArgument as error:
        raise InvalidArgument(f"`{given}`: {error}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"`{given}`: no text in UTF-8, so no report.json") from None


def loads(text: str) -> Report:
    """A report from the text of ``report.json``.

    Raises:
        InvalidArgument: another schema, or not what the schema says.
    """
    try:
        data = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:  # broken off, nested beyond reason, NaN, ...
        raise InvalidArgument(f"not the JSON of a report, or cut short: {error}") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise InvalidArgument(
            'no report.json: it has no "schema". Give a file of --json or Report.save_json'
        )
    if "jobs" in data:
        raise InvalidArgument(
            "the result of `crosscheck suite`, and no report of one check. `crosscheck run PAIR "
            "--json F` writes one; --html of the suite writes a page for each job"
        )
    if type(data["schema"]) is not int or data["schema"] != SCHEMA:
        raise InvalidArgument(
            f"schema {str(data['schema'])[:40]}; this version reads schema {SCHEMA}.\n"
            "  Fix: read it with the version of crosscheck that wrote it"
        )
    report: Report = _read(data, Report, "report")
    _check_details(report.details)
    return _relinked(report)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _relinked(report: Report) -> Report:
    """A probe's first divergence is one of the report's: the same object, as it was written."""
    known = {repr(d): d for d in report.divergences}
    probes = tuple(
        p if p.first is None else dataclasses.replace(p, first=known.get(repr(p.first), p.first))
        for p in report.probes
    )
    return dataclasses.replace(report, probes=probes)


def _check_details(details: Details) -> None:
    """What is drawn has the proportions that it must have; a page of it stays bounded."""
    _sound(len(details.sites) <= MOST_DETAILS, "details.sites: too many")
    for i, site in enumerate(details.sites):
        _sound(_is_drawable(site), f"details.sites[{i}]: numbers that no picture can be made of")


def _is_drawable(site: SiteDetail) -> bool:
    heat, shares = site.heat, [s for p in site.profiles for s in p.shares]
    fits = all(0 < len(p.shares) <= min(p.length, MOST_BINS) for p in site.profiles)
    if heat is not None:
        widths = {len(row) for row in heat.cells}
        fits = fits and 0 < len(heat.cells) <= min(heat.row_length, MOST_BINS)
        fits = fits and len(widths) == 1 and 0 < min(widths) <= min(heat.column_length, MOST_BINS)
        shares += [cell for row in heat.cells for cell in row]
    few = max(len(site.profiles), len(site.worst), len(site.where)) <= MOST_BINS
    histograms = [h for h in (site.values, site.errors) if h is not None]
    return fits and few and all(0 <= s <= 1 for s in shares) and all(map(_is_histogram, histograms))


def _is_histogram(h: Histogram) -> bool:
    counts = [*h.reference, *h.candidate]
    return (
        math.isfinite(h.high - h.low)
        and h.low < h.high
        and 0 < len(h.reference) == len(h.candidate) <= MOST_BINS
        and all(0 <= n < 1 << 53 for n in counts)
        and len(h.zeros) in (0, 2)
    )


def _sound(right: bool, text: str) -> None:
    if not right:
        raise InvalidArgument(f"damaged: {text}")


def _read(value: Any, kind: Any, place: str) -> Any:
    """``value`` as ``kind``, a type of `crosscheck.results`."""
    if dataclasses.is_dataclass(kind):
        return _record(value, kind, place)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _read(value, next(a for a in arguments if a is not type(None)), place)
    if origin is tuple:
        _require(isinstance(value, list), value, "a list", place)
        return tuple(_read(v, arguments[0], f"{place}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        known = isinstance(value, str) and value in arguments
        _require(known, value, "one of " + ", ".join(arguments), place)
        return value
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _require(isinstance(value, dict), value, "an object", place)
        return value
    if kind is float:
        return _number(value, place)
    wanted = {str: "a string", int: "a whole number", bool: "true or false"}[kind]
    _require(type(value) is kind, value, wanted, place)
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _record(value: Any, kind: Any, place: str) -> Any:
    _require(isinstance(value, dict), value, "an object", place)
    hints = _hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            inside = f"{place}.{field.name}"
            found[field.name] = _read(value[field.name], hints[field.name], inside)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidArgument(f'damaged: {place} has no "{field.name}"')
    made = kind(**found)
    return _with_nan(made) if isinstance(made, Metrics) else made


def _with_nan(m: Metrics) -> Metrics:
    """Of the two values at the worst place, null is NaN where the other one is known."""
    reference, candidate = m.worst_reference, m.worst_candidate
    if (reference is None) == (candidate is None):
        return m
    return dataclasses.replace(
        m,
        worst_reference=math.nan if reference is None else reference,
        worst_candidate=math.nan if candidate is None else candidate,
    )


def _number(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    _require(type(value) in (int, float), value, "a number", place)
    try:
        number = float(value)
    except OverflowError:
        number = math.copysign(math.inf, value)
    return math.copysign(math.inf, number) if abs(number) >= sys.float_info.max else number


def _require(right: bool, value: Any, wanted: str, place: str) -> None:
    if not right:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        raise InvalidArgument(f"damaged: {place} is {shown}; it must be {wanted}")
