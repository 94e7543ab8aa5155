"""Compiled kernels as machine code, which is kept on disk.

Numba compiles a kernel when it is first needed. To load Numba takes longer than most checks
compare, so a process that finds what another one has compiled loads LLVM alone. That is possible
because the code needs nothing of Numba's: kernels take numbers and addresses, and allocate nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import llvmlite.binding as llvm  # type: ignore[import-untyped]

__all__ = ["KERNELS", "kernel"]

SOURCES = ("compiled", "machine", "plan", "staging")  # what machine code is made of
# Numba's code for arrays can call this one to free them. Nothing here owns what it reads.
_STANDS_IN = {"NRT_MemInfo_call_dtor": "define void @NRT_MemInfo_call_dtor(ptr %x) {\n ret void\n}"}
_OF_C = frozenset({"memcpy", "memmove", "memset"})
_RETURNED = (0, -2)  # Numba's states of a function that raised nothing; the second returned None
_ARGUMENTS = {"compare_chunks": 9, "moment_chunks": 6, "tail_chunks": 7}
KERNELS = tuple(_ARGUMENTS)
_NOT_IN_CODE = {"NUMBA_CACHE_DIR", "NUMBA_ENABLE_CUDASIM", "NUMBA_NUM_THREADS"}
_LOCK = Lock()
_LOADED: dict[str, Callable[..., None]] = {}


def kernel(name: str) -> Callable[..., None]:
    """A function of `crosscheck.kernels.compiled`, which takes integers and lets go of the
    interpreter's lock.

    Raises:
        ImportError: it has to be compiled, and Numba does not load, or nothing can be kept: then
            every process would compile anew.
    """
    if name not in _LOADED:
        with _LOCK:
            if name not in _LOADED:  # else another thread has been faster
                _LOADED[name] = _loaded(name, _code(name))
    return _LOADED[name]


def _code(name: str) -> bytes:
    path = _folder() / f"{name}.o"
    code = _kept(path)
    if code is None:
        _require_room(path.parent)
        code = _compiled(name)
        _keep(path, code)
    return code


# -- compiling -------------------------------------------------------------------------------------


def _compiled(name: str) -> bytes:
    """An object file that defines the kernel under its name, and nothing else."""
    return bytes(_target().emit_object(_module(name)))


def _module(name: str) -> Any:
    """What is compiled.

    All but the kernel is internal. Numba tells functions of one name apart by a number, counted
    anew in every process: of two files that come from two processes, one would call the other's.

    Raises:
        ImportError: it would need more than the C library has.
    """
    import numba

    from crosscheck.kernels import compiled

    function = getattr(compiled, name)
    own: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    made: Any = numba.njit(nogil=True, error_model="numpy", **own)(function)
    signature = (numba.types.int64,) * _ARGUMENTS[name]
    made.compile(signature)
    module = llvm.parse_assembly(made.inspect_llvm(signature))
    (entry,) = (f for f in _defined(module.functions) if f.linkage == llvm.Linkage.external)
    entry.name = name
    missing = {f.name for f in module.functions if f.is_declaration} - _OF_C
    for one in missing & _STANDS_IN.keys():
        module.link_in(llvm.parse_assembly(_STANDS_IN[one]))
    more = [one for one in missing - _STANDS_IN.keys() if not one.startswith("llvm.")]
    if more:
        raise ImportError(f"{name} calls {more[0]}, which this version of Numba has put in")
    for inner in [*_defined(module.functions), *_defined(module.global_variables)]:
        if inner.name != name:
            inner.linkage = llvm.Linkage.internal
    return module


def _defined(values: Any) -> list[Any]:
    return [value for value in values if not value.is_declaration]


# -- loading ---------------------------------------------------------------------------------------


def _target() -> Any:
    """For the processor of this machine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = _processor()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=features, opt=3)


def _processor() -> tuple[str, str]:
    try:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM does not know the features of some
        return llvm.get_host_cpu_name(), ""


@cache
def _engine() -> Any:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())


def _loaded(name: str, code: bytes) -> Callable[..., None]:
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    numbers = [ctypes.c_int64] * _ARGUMENTS[name]
    own = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *numbers)
    call, result, error = own(engine.get_function_address(name)), _room(), _room()

    def run(*arguments: int) -> None:
        status = call(result, error, *arguments)
        if status not in _RETURNED:
            raise AssertionError(f"{name} raised (state {status})")

    return run


def _room() -> Any:
    """Where Numba's functions put what they return, or raise."""
    return ctypes.create_string_buffer(64)


# -- keeping ---------------------------------------------------------------------------------------


@cache
def _folder() -> Path:
    """A folder for just these sources, on such a processor, by these versions."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in SOURCES]
    numba = importlib.util.find_spec("numba")
    if numba is not None and numba.origin is not None:  # its version; asking it would load it
        files += Path(numba.origin).parent.glob("_version.py")
    about = [llvmlite.__version__, sys.platform, platform.machine(), sys.version, *_processor()]
    settings = {k for k in os.environ if k.startswith("NUMBA_")} - _NOT_IN_CODE
    about += [f"{name}={os.environ[name]}" for name in sorted(settings)]
    made_of = b"".join([*(file.read_bytes() for file in files), "\n".join(about).encode()])
    digest = hashlib.sha256(made_of).hexdigest()[:16]
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or os.path.expanduser("~/.cache"), "crosscheck", f"kernels-{digest}")


def _is_private(about: os.stat_result) -> bool:
    """Whether nobody else can have written it: what lies there is going to be executed."""
    if not hasattr(os, "getuid"):
        return True
    return about.st_uid in (0, os.getuid()) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _require_room(folder: Path) -> None:
    """Raise ImportError where nothing can be kept, or others may write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(folder.stat()) and os.access(folder, os.W_OK)
    except OSError:
        private = False
    if not private:
        raise ImportError(f"no machine code can be kept in {folder}: not there, or not private")


def _kept(path: Path) -> bytes | None:
    """What was kept there; None where there is nothing, or something else: LLVM would crash."""
    try:
        with path.open("rb") as file:
            private = _is_private(os.fstat(file.fileno()))
            content = file.read()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if private and hashlib.sha256(code).digest() == digest else None


def _keep(path: Path, code: bytes) -> None:
    """Whole or not at all; not where no folder can be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    except OSError:
        return
