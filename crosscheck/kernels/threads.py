"""Threads for compiled kernels that let go of the interpreter's lock.

Numba's own threads are not used: one of its layers crashes when two Python threads call at once,
and all of them make compiling several times slower.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

__all__ = ["share", "threads"]

PARTS = 4  # for each thread: who is held up leaves its last parts to the others


def threads() -> int:
    """How many threads a kernel takes: ``CROSSCHECK_THREADS``, or the processors of this
    process."""
    given = os.environ.get("CROSSCHECK_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else _processors()


@cache
def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(work: Callable[[int, int], None], count: int, *, alone: bool = False) -> None:
    """Call ``work(first, last)`` for ranges that together are ``range(count)``.

    Args:
        alone: in this thread, in one piece: too little work to be worth a thread.
    """
    workers = min(threads(), count)
    if alone or workers <= 1:
        work(0, count)
        return
    parts = min(count, workers * PARTS)
    bounds = [count * i // parts for i in range(parts + 1)]
    left = deque(zip(bounds, bounds[1:], strict=False))

    def some() -> None:
        while left:
            try:
                first, last = left.popleft()
            except IndexError:  # another thread was quicker
                return
            work(first, last)

    others = [_pool(threads() - 1).submit(some) for _ in range(workers - 1)]
    try:
        some()
    finally:
        for other in others:
            if not other.cancel():  # where no processor was free for it, nobody waits for it
                other.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="crosscheck-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork takes no threads along
