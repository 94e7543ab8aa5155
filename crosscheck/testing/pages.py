"""Where the HTML page of a check goes: a name of its own, the same in every run and process."""

from __future__ import annotations

import hashlib
import os
import re

__all__ = ["page_path"]

LONGEST = 100


def page_path(directory: str, nodeid: str, number: int) -> str:
    """``DIR/test_a.py-test_port-seed0-1a2b3c4d.html``; the digest keeps alike names apart.

    Args:
        number: of the check within its test, from 1.
    """
    readable = re.sub(r"[^\w.]+", "-", nodeid, flags=re.ASCII).strip("-.")[-LONGEST:]
    digest = hashlib.sha256(nodeid.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    again = f"-{number}" if number > 1 else ""
    return os.path.join(directory, f"{readable}-{digest}{again}.html")
