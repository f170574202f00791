"""How many threads there are to use. Pools that outnumber free cores run tens of times slower, so one place decides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


def cores() -> int:
    """Cores this process may use: CPU affinity, cut by a container's quota and by OMP_NUM_THREADS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    if quota:
        count = min(count, max(1, int(quota)))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(count, max(1, int(asked))) if asked.isdigit() else count


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold numpy's matrix products to one thread, for blocks that fit the cache of one core.

    Threads of OpenBLAS wait by spinning. For small products, beside decoding threads, one is faster than two, and uses
    a fraction of the CPU time (measured: a coreset in 8 CPU s instead of 50).
    """
    with _pools().limit(limits=1, user_api="blas"):
        yield


@cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _quota() -> float | None:
    """CPU quota of the control group, in cores; None when there is none."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None
