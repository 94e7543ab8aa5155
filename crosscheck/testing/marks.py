"""The options of ``@pytest.mark.crosscheck``. Light: it is read while tests are collected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

__all__ = ["AXES", "OF_THE_PLUGIN", "axis", "marked"]

# Option of the marker -> the fixture that it parametrises.
AXES = {
    "seeds": "_crosscheck_seed",
    "devices": "_crosscheck_device",
    "candidates": "_crosscheck_candidate",
}
OF_THE_PLUGIN = ("pair", "devices", "candidates", "candidate")


def marked(node: pytest.Item | Any) -> dict[str, Any]:
    """All options of a test; those of the function override its class's and its module's.

    Raises:
        pytest.UsageError: a marker with positional arguments.
    """
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("crosscheck"))):
        if marker.args:
            raise pytest.UsageError(
                f"{node.nodeid}: @pytest.mark.crosscheck takes options by name, such as "
                f'seeds=[0, 1] or device="cpu"; got {marker.args!r}'
            )
        options |= marker.kwargs
    return options


def axis(options: Mapping[str, Any], key: str, *, seed: int | None) -> list[Any] | None:
    """The values of ``key`` that a test is parametrised over; None where it is not.

    Args:
        seed: of the command line; it replaces all others.
    """
    values = options.get(key)
    if values is None or isinstance(values, int):  # seeds=3 is check's own option
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise pytest.UsageError(
            f"@pytest.mark.crosscheck({key}={values!r}): give a list, such as "
            f"{key}={[values] if isinstance(values, str) else ['...']!r}"
        )
    found = list(values)
    if not found:
        raise pytest.UsageError(f"@pytest.mark.crosscheck({key}=[]): nothing would be checked")
    return [seed] if key == "seeds" and seed is not None else found
