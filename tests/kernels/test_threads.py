"""Work is shared among threads: every part is done once, by whoever is free."""

from __future__ import annotations

import threading

import pytest

from crosscheck.kernels.threads import share


@pytest.mark.parametrize("workers", ["1", "2", "5"])
@pytest.mark.parametrize("count", [0, 1, 3, 64, 1000])
def test_every_number_is_in_one_range(
    monkeypatch: pytest.MonkeyPatch, workers: str, count: int
) -> None:
    monkeypatch.setenv("CROSSCHECK_THREADS", workers)
    seen: list[int] = []
    share(lambda first, last: seen.extend(range(first, last)), count)
    assert sorted(seen) == list(range(count))


def test_the_caller_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second part can only begin while the first is under way if two threads take them."""
    monkeypatch.setenv("CROSSCHECK_THREADS", "2")
    both = threading.Barrier(2, timeout=10.0)
    names: set[str] = set()

    def work(first: int, last: int) -> None:
        if threading.current_thread().name not in names:
            names.add(threading.current_thread().name)
            both.wait()

    share(work, 8)
    assert threading.current_thread().name in names
    assert len(names) == 2


@pytest.mark.parametrize("alone", [True, False])
def test_an_error_of_the_work_reaches_the_caller(
    monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setenv("CROSSCHECK_THREADS", "2")

    def work(first: int, last: int) -> None:
        raise IndexError("of the work")

    with pytest.raises(IndexError, match="of the work"):
        share(work, 8, alone=alone)


def test_calls_of_several_threads_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one call holds the only other thread, a second call ends without it."""
    monkeypatch.setenv("CROSSCHECK_THREADS", "2")
    done = threading.Event()
    begun = threading.Barrier(3, timeout=10.0)

    def held(first: int, last: int) -> None:
        if first in (0, 1):
            begun.wait()
            assert done.wait(10.0)

    holder = threading.Thread(target=share, args=(held, 2))
    holder.start()
    begun.wait()
    seen: list[int] = []
    share(lambda first, last: seen.extend(range(first, last)), 100)
    done.set()
    holder.join(10.0)
    assert sorted(seen) == list(range(100))
