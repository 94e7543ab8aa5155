"""Compiled programs that jobs share, on one machine; and which files are nobody's input."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_folders", "compilation_cache", "processor"]

JAX_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_NAMED = (  # variables that name a folder of what can be made again
    JAX_FOLDER,
    "CUDA_CACHE_PATH",
    "CUPY_CACHE_DIR",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
)
_USUAL = ("crosscheck", "fontconfig", "matplotlib")  # below the user's own folder for caches


def compilation_cache(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables that make JAX keep what it compiles and use what other processes have compiled.

    One folder for each kind of processor: a program for one may hold instructions that another
    does not have, where a home folder is shared between machines. JAX takes an entry that was cut
    short for none, and compiles; writers of one entry write the same.

    Args:
        variables: the environment; what it says of a cache stands, and nothing is added then.

    Returns:
        Nothing where there is no such folder and it cannot be created.
    """
    if JAX_FOLDER in variables:
        return {}
    folder = _base(variables) / "crosscheck" / "jax" / processor()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return {}
    return {JAX_FOLDER: str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def cache_folders(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Real paths of folders whose files are made by libraries for themselves, and change nothing
    in what a job finds."""
    found = [Path(variables[name]) for name in _NAMED if variables.get(name)]
    found += [_base(variables) / name for name in _USUAL]
    return tuple(os.path.realpath(folder) for folder in found)


def _base(variables: Mapping[str, str]) -> Path:
    given = variables.get("XDG_CACHE_HOME", "")
    return Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"


@functools.cache
def processor() -> str:
    """A short name for what this processor can do."""
    text = f"{platform.system()} {platform.machine()} {platform.processor()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    text += "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
