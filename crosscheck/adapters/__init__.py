"""Stage 1, adapt: a user's model -> an Adapter.

A framework is recognised by looking in ``sys.modules``: a model of a framework that nobody has
imported cannot exist, so nothing is imported to find out.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from crosscheck.adapters.base import Adapter
from crosscheck.errors import InvalidArgument

__all__ = ["adapt"]

# Framework module that must be loaded -> our module with ``find(model, **options)``. NumPy comes
# last: it takes any object with a ``forward``, which an nn.Module has too.
_ADAPTERS = {
    "torch": "crosscheck.adapters.torch",
    "keras": "crosscheck.adapters.keras",
    "numpy": "crosscheck.adapters.numpy",
}


def adapt(model: Any, **options: Any) -> Adapter:
    """Make the adapter of a model explicit.

    Args:
        model: an ``nn.Module``, a Keras model, a NumPy object with ``forward`` (and
            ``backward``), a list of such, a plain NumPy function, or an Adapter (returned as is).
        options: for a plain NumPy function: ``backward=``, ``params=`` and ``grads=`` (dicts).

    Raises:
        InvalidArgument: nothing here knows what to do with the model, or with an option.
    """
    if isinstance(model, Adapter):
        if options:
            raise InvalidArgument("adapt: the model is an Adapter already; it takes no options")
        return model
    if model is None or isinstance(model, (str, bytes, int, float)):
        raise InvalidArgument(
            f"adapt: {model!r} is not a model. Give an nn.Module, a Keras model, an object with "
            "forward and backward, or a function"
        )
    for framework, module in _ADAPTERS.items():
        if framework in sys.modules:
            find = importlib.import_module(module).find
            try:
                adapter: Adapter | None = find(model, **options)
            except TypeError as error:
                if options and "unexpected keyword" in str(error):
                    continue
                raise
            if adapter is not None:
                return adapter
    hint = " Instantiate the class first." if isinstance(model, type) else ""
    unknown = f" with options {sorted(options)}" if options else ""
    raise InvalidArgument(
        f"adapt: no adapter takes a {type(model).__module__}.{type(model).__qualname__}{unknown}."
        f"{hint} Known: PyTorch modules, Keras models, NumPy objects with forward, functions"
    )
