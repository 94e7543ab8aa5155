"""What a kept result was made from, so that it is not used when that has changed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from crosscheck.suite.jobs import Job

__all__ = ["Stamps", "software", "versions"]

WHOLE = 64 * 2**20  # bytes up to which a file is read; of a larger one, size and time are taken
CHANGED = "changed"  # no digest is ever this
_PACKAGES = (
    "cupy-cuda12x",
    "equinox",
    "flax",
    "jax",
    "jaxlib",
    "keras",
    "keras-hub",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "safetensors",
    "scikit-learn",
    "tensorflow",
    "tensorflow-cpu",
    "torch",
    "transformers",
)
_VARIABLES = ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "JAX_ENABLE_X64")


@cache
def versions() -> Mapping[str, str]:
    """The installed versions of what crosscheck works with."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def software() -> Mapping[str, str]:
    """What answers here: crosscheck (version and source), Python, the frameworks."""
    from crosscheck import __version__

    own = f"{__version__} (source {_own_source()[:8]})"
    return {"crosscheck": own, "python": platform.python_version(), **versions()}


class Stamps:
    """Digests of files, each read once.

    Args:
        leave_out: files and folders that a pair's folder may hold and that are not its own: what
            the suite itself writes.
    """

    def __init__(self, leave_out: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._leave_out = {os.path.realpath(path) for path in leave_out}
        self._digests: dict[tuple[str, int, int], str] = {}
        self._folders: dict[str, str] = {}

    def key(self, job: Job, options: Mapping[str, Any]) -> str:
        """A digest of what was asked, and of the software that was to answer."""
        from crosscheck import __version__

        asked = {
            "job": [job.path, job.pair, job.candidate, job.seed, job.device],
            "options": dict(options),
            "crosscheck": [__version__, _own_source()],
            "python": platform.python_version(),
            "machine": platform.platform(),
            "versions": dict(versions()),
            "variables": {name: os.environ.get(name) for name in _VARIABLES},
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def folder(self, job: Job) -> str:
        """A digest of all files in and below the pair's folder but hidden ones and caches.

        As it was when first asked for, before anything ran: what changes meanwhile then shows.
        """
        path = Path(job.path)
        root = str(path if path.is_dir() else path.parent)
        if root not in self._folders:
            self._folders[root] = self._folder(root)
        return self._folders[root]

    def _folder(self, root: str) -> str:
        whole = hashlib.sha256()
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if self._counts(folder, f))
            for name in sorted(f for f in files if self._counts(folder, f)):
                path = os.path.join(folder, name)
                whole.update(f"{os.path.relpath(path, root)}\0{self.file(path)}\n".encode())
        return whole.hexdigest()

    def _counts(self, folder: str, name: str) -> bool:
        if name.startswith(".") or name == "__pycache__" or name.endswith(".pyc"):
            return False
        return os.path.realpath(os.path.join(folder, name)) not in self._leave_out

    def files(self, paths: Sequence[str], *, since: float | None = None) -> dict[str, str]:
        """{path: digest}, relative to the current folder where below it.

        Args:
            since: seconds since the epoch: a file that changed later may not be what was read, and
                gets a digest that nothing matches.
        """
        found = {}
        for path in paths:
            relative = os.path.relpath(path)
            short = path if relative.startswith(os.pardir) else relative
            found[short] = self.file(path, since=since)
        return found

    def file(self, path: str, *, since: float | None = None) -> str:
        """The digest of one file, ``"changed"`` for one that is gone or changed after ``since``."""
        try:
            state = os.stat(path)
            if since is not None and max(state.st_mtime, state.st_ctime) > since:
                return CHANGED
            key = (os.path.realpath(path), state.st_mtime_ns, state.st_size)
            if key not in self._digests:
                self._digests[key] = _digest(path, state)
        except OSError:
            return CHANGED
        return self._digests[key]


def _digest(path: str, state: os.stat_result) -> str:
    if not os.path.isfile(path) or state.st_size > WHOLE:
        return f"{state.st_size} bytes at {state.st_mtime_ns}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _own_source() -> str:
    """A digest of crosscheck's own code: its version alone says little in a checkout."""
    root = Path(__file__).parent.parent
    whole = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        whole.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()
