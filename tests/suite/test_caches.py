"""Compiled programs that jobs share, and that they are no input of a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crosscheck.suite import sources
from crosscheck.suite.caches import JAX_FOLDER, cache_folders, compilation_cache
from crosscheck.suite.sources import Sources

SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def test_a_folder_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compilation_cache({"XDG_CACHE_HOME": str(tmp_path)})
    folder = Path(found[JAX_FOLDER])
    assert folder.is_dir() and folder.parent == tmp_path / "crosscheck" / "jax"
    assert folder.stat().st_mode & 0o777 == 0o700 and found[SECONDS] == "0"
    assert compilation_cache({"XDG_CACHE_HOME": str(tmp_path)}) == found
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for unset in ({}, {"XDG_CACHE_HOME": "relative"}):
        there = Path(compilation_cache(unset)[JAX_FOLDER])
        assert there.is_relative_to(tmp_path / "me" / ".cache" / "crosscheck" / "jax")


def test_what_the_user_says_stands(tmp_path: Path) -> None:
    assert compilation_cache({JAX_FOLDER: "/mine", "XDG_CACHE_HOME": str(tmp_path)}) == {}
    assert compilation_cache({JAX_FOLDER: ""}) == {}


def test_without_a_place_there_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert compilation_cache({"XDG_CACHE_HOME": str(tmp_path / "file")}) == {}


def test_caches_are_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv(JAX_FOLDER, str(tmp_path / "compiled"))
    made_again = [
        tmp_path / "compiled" / "x-cache",
        tmp_path / "caches" / "matplotlib" / "fontlist.json",
        tmp_path / "caches" / "crosscheck" / "jax" / "y-cache",
    ]
    given = [tmp_path / "caches" / "huggingface" / "weights", tmp_path / "compiled-by-hand.json"]
    for file in [*made_again, *given]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    monkeypatch.setattr(sources, "is_installed", lambda path: not path.startswith(str(tmp_path)))
    seen = Sources()
    seen._read = {str(file) for file in [*made_again, *given]}
    found = seen.files()
    assert found is not None
    assert not {str(file) for file in made_again} & set(found)
    assert {str(file) for file in given} <= set(found)


def test_a_linked_folder_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert os.path.realpath(tmp_path / "real") in cache_folders({JAX_FOLDER: f"{tmp_path}/link"})


def test_an_entry_that_was_cut_short_is_none(tmp_path: Path) -> None:
    """What is left of a job that was killed while it wrote."""
    jax = pytest.importorskip("jax", reason="needs JAX: pip install 'crosscheck[jax]'")
    assert jax.__version__
    code = (
        "import glob, sys, jax, jax.numpy as jnp\n"
        "entries = glob.glob(sys.argv[1] + '/*-cache')\n"
        "for n, name in enumerate(sorted(entries)):\n"
        "    with open(name, 'r+b') as file: file.truncate(n % 2 * 100)\n"
        "print(len(entries), float(jax.jit(lambda x: jnp.tanh(x).sum() * 2)(jnp.ones(3))))\n"
    )
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", SECONDS: "0", JAX_FOLDER: str(tmp_path)}
    printed = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(done.stdout.split())
    (none, first), (several, again) = printed
    assert none == "0" and int(several) > 0 and first == again
    assert "Error reading persistent compilation cache entry" in done.stderr
