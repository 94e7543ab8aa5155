"""A pair: a reference, its candidates and their inputs, as a file that people keep and run."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from crosscheck.errors import EXTRAS, CrosscheckError, InvalidArgument, MissingFramework, capped
from crosscheck.frames import LOADED
from crosscheck.results import Report

if TYPE_CHECKING:
    from crosscheck.shrink import Shrunk

__all__ = ["Pair", "load_model", "load_pair", "names_model"]

NOT_SHRUNK = (
    "probes",
    "seeds",
    "randomise",
    "blind_spots",
    "explain",
    "zoom",
    "max_memory",
    "part",
)
"""Options of `crosscheck.check` that `crosscheck.shrink` has no use for."""


@dataclass(frozen=True)
class Pair:
    """What `crosscheck run` checks: a file or a folder with ``pair.py`` that defines ``pair``.

    Attributes:
        reference: a model, or a function without arguments that makes one (so that loading the
            file imports no framework).
        candidate: the same, or {name: model or function} for several ports of one reference.
        inputs: as for `crosscheck.check`, or a function seed -> inputs.
        candidate_inputs: as for `crosscheck.check`, or {candidate name: that} where they differ.
        name: for the report; default: the folder's or file's name.
        options: further arguments of `crosscheck.check` (``sites``, ``skip``, ``weights``, ...).
    """

    reference: Any
    candidate: Any
    inputs: Any
    candidate_inputs: Any = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        reference: Any,
        candidate: Any,
        inputs: Any,
        *,
        candidate_inputs: Any = None,
        name: str = "",
        **options: Any,
    ) -> None:
        from crosscheck.api import check

        known = set(inspect.signature(check).parameters) - {"progress"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise InvalidArgument(
                f"Pair: unknown option {capped(unknown)}; check takes {', '.join(sorted(known))}"
            )
        for key, value in (
            ("reference", reference),
            ("candidate", candidate),
            ("inputs", inputs),
            ("candidate_inputs", candidate_inputs),
            ("name", name),
            ("options", options),
        ):
            object.__setattr__(self, key, value)

    def candidates(self) -> tuple[str, ...]:
        """The names of the candidates; one without a name is ``candidate``."""
        return tuple(self.candidate) if isinstance(self.candidate, Mapping) else ("candidate",)

    def check(
        self,
        candidate: str | None = None,
        *,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
        alter: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Report:
        """Check one candidate (default: the first).

        Args:
            alter: called with the candidate's model before the check, to try a change on it; what
                it returns, unless None, takes the model's place.
            options: override the pair's own.

        Raises:
            InvalidArgument: no such candidate. And whatever `crosscheck.check` raises.
        """
        from crosscheck.api import check

        models, arguments = self._prepared(candidate, seed, {**self.options, **options}, alter)
        return check(*models, progress=progress, **arguments)

    def shrink(
        self,
        candidate: str | None = None,
        *,
        directory: str | Path = ".",
        probe: str | None = None,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Shrunk:
        """Make the divergence of one candidate as small as it gets; see `crosscheck.shrink`."""
        from crosscheck.shrink import shrink

        given = {k: v for k, v in {**self.options, **options}.items() if k not in NOT_SHRUNK}
        models, arguments = self._prepared(candidate, seed, given, None)
        return shrink(*models, directory=directory, probe=probe, progress=progress, **arguments)

    def _prepared(
        self,
        candidate: str | None,
        seed: int,
        options: Mapping[str, Any],
        alter: Callable[[Any], Any] | None,
    ) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
        """Reference, candidate and inputs, and the other arguments of `crosscheck.check`."""
        if not self.candidates():
            raise InvalidArgument(
                f"pair `{self.name}` has no candidates.\n"
                "  Fix: candidate={name: model}, or a model"
            )
        name = candidate or self.candidates()[0]
        if name not in self.candidates():
            raise InvalidArgument(
                f"pair `{self.name}` has no candidate `{name}`; it has {capped(self.candidates())}"
            )
        chosen = self.candidate[name] if isinstance(self.candidate, Mapping) else self.candidate
        given = self.candidate_inputs
        if isinstance(given, Mapping) and isinstance(self.candidate, Mapping):
            given = given.get(name)
        with loading(f"the reference of pair `{self.name}`"):
            reference_model = make(self.reference)
        with loading(f"candidate `{name}` of pair `{self.name}`"):
            candidate_model = make(chosen)
        with loading(f"the inputs of pair `{self.name}`"):
            several = options.get("seeds", 1) != 1
            inputs = self.inputs if several or not callable(self.inputs) else self.inputs(seed)
        if alter is not None:
            altered = alter(candidate_model)
            candidate_model = candidate_model if altered is None else altered
        arguments: dict[str, Any] = {"seed": seed, "name": f"{self.name}: {name}"}
        arguments |= {"candidate_inputs": given, **options}
        return (reference_model, candidate_model, inputs), arguments


class loading:  # noqa: N801  (reads as a statement)
    """Say what was being made when it fails, and which extra to install when its own import of a
    framework does."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ModuleNotFoundError) and not isinstance(error, CrosscheckError):
            root = (error.name or "").partition(".")[0]
            if root in EXTRAS:
                raise MissingFramework(root, needed_for=self._what) from error
        if isinstance(error, Exception) and not isinstance(error, CrosscheckError):
            error.add_note(f"while {self._what} was made")


def make(model: Any) -> Any:
    """A model from what a file defines: the model itself, or what makes it.

    A class, and a function that can be called without arguments, make one; anything else is one.
    """
    if isinstance(model, type):
        _require_no_arguments(model)
        return model()
    if inspect.isfunction(model) or inspect.ismethod(model):
        parameters = inspect.signature(model).parameters.values()
        required = [
            p
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        return model() if not required else model
    return model


def _require_no_arguments(model: type) -> None:
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):  # a class of C code may have none
        return
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        name = model.__name__
        raise InvalidArgument(
            f"{name}(...) needs {capped(needed)}: a class is called without arguments.\n"
            f"  Fix: a function that makes the model, such as `def build(): return {name}(...)`"
        )


def load_pair(path: str | Path) -> Pair:
    """Load ``pair`` from a Python file, or from ``pair.py`` in a folder.

    Raises:
        InvalidArgument: no such file, or it defines no Pair.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "pair.py"
    if not file.is_file() or file.suffix != ".py":
        raise InvalidArgument(
            f"{path}: no such pair. Give a Python file that defines `pair = crosscheck.Pair(...)`, "
            "or a folder with such a pair.py"
        )
    module = load_module(file)
    pair = getattr(module, "pair", None)
    if not isinstance(pair, Pair):
        found = "nothing of that name" if pair is None else f"a {type(pair).__name__}"
        raise InvalidArgument(f"{file}: must define `pair = crosscheck.Pair(...)`; found {found}")
    if not pair.name:
        name = file.parent.resolve().name if file.name == "pair.py" else file.stem
        object.__setattr__(pair, "name", name)
    return pair


def names_model(text: str) -> bool:
    """Whether a text is one for `load_model`: the path of a pair is none."""
    return ".py:" in text or text.lower().endswith(".onnx")


def load_model(text: str) -> Any:
    """Load ``FILE.py:NAME``: a model, a class or a function that makes one; of the path of an .onnx
    file, that.

    Raises:
        InvalidArgument: the text has another form, or the file or name does not exist.
    """
    if text.lower().endswith(".onnx"):
        if not Path(text).is_file():
            raise InvalidArgument(f"there is no file {text}")
        return text
    path, separator, name = text.rpartition(":")
    if not separator or not path or not name:
        raise InvalidArgument(
            f"{text!r}: write FILE.py:NAME, for example net.py:build, or give an .onnx file"
        )
    file = Path(path)
    if not file.is_file():
        raise InvalidArgument(f"{text!r}: there is no file {path}")
    if file.suffix != ".py":
        raise InvalidArgument(f"{text!r}: {path} is no Python file; write FILE.py:NAME")
    with loading(f"`{text}`"):
        value: Any = load_module(file)
        for part in name.split("."):
            if not hasattr(value, part):
                public = [
                    n
                    for n, v in vars(value).items()
                    if not n.startswith("_") and not isinstance(v, ModuleType)
                ]
                near = difflib.get_close_matches(name, public, 3, 0.5)
                names = capped([*near, *(n for n in public if n not in near)])
                raise InvalidArgument(f"{path} defines no `{name}`; it has {names}")
            value = getattr(value, part)
        return make(value)


def load_module(file: Path) -> ModuleType:
    """Import a file, as part of its package if it lies in one (so that its imports work)."""
    file = file.resolve()
    parts, root = [file.stem], file.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if len(parts) == 1:
        _make_way(root)
    elif str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(parts)
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    if loaded is None and len(parts) > 1:
        return importlib.import_module(name)
    # A lone file: under a name of its own, since `net.py` may exist in two folders.
    own = f"{LOADED}{abs(hash(str(file)))}_{file.stem}"
    spec = importlib.util.spec_from_file_location(own, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _make_way(folder: Path) -> None:
    """Let the imports of a lone file find its neighbours: ``net.py`` may exist in two folders, and
    the one that another folder's file has imported would be taken for this one's."""
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    for neighbour in folder.glob("*.py"):
        origin = getattr(sys.modules.get(neighbour.stem), "__file__", None) or ""
        if Path(origin).parent != folder and str(Path(origin).parent) in _FOLDERS:
            del sys.modules[neighbour.stem]
    _FOLDERS.add(str(folder))


_FOLDERS: set[str] = set()
"""Where lone files have been loaded from."""
