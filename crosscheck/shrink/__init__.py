"""The smallest pair that still diverges, and a script that shows it with plain framework code.

`crosscheck.shrink` is the function, whether or not this package was imported before it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from crosscheck.shrink.stage import Shrunk, shrink

__all__ = ["Shrunk", "shrink"]


class _Callable(ModuleType):
    """Importing a package makes it an attribute of its parent; as such it has to be callable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Shrunk:
        return shrink(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
