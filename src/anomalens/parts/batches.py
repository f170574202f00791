"""Samples to batches: decoding runs in threads ahead of the network, memory is bounded by the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ..images import resize, to_float
from ..types import Sample
from .threads import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, h, w) float32 in [0, 1], resized. sizes: (height, width) of each picture as it was read."""

    samples: list[Sample]
    images: np.ndarray
    sizes: list[tuple[int, int]]


def batches(samples: Iterable[Sample], size: tuple[int, int], batch: int = 8, view: str = "image") -> Iterator[Batch]:
    """Read, resize to `size` = (height, width) and stack, `batch` at a time, one batch ahead of the consumer."""

    def load(sample: Sample) -> tuple[Sample, np.ndarray, tuple[int, int]]:
        picture = sample.image(view)
        scaled = to_float(resize(picture, size))
        return sample, np.moveaxis(scaled, 2, 0), (picture.shape[0], picture.shape[1])

    loaded = ahead(load, samples, depth=2 * batch)
    while group := list(islice(loaded, batch)):
        yield Batch([s for s, _, _ in group], np.stack([p for _, p, _ in group]), [hw for _, _, hw in group])


def ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int = 16) -> Iterator[Result]:
    """map(work, items) in order, with up to `depth` items worked on ahead of the consumer in threads."""
    source = iter(items)
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=min(cores(), 8), thread_name_prefix="anomalens-read")
    try:
        pending.extend(pool.submit(work, item) for item in islice(source, depth))
        while pending:
            done = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(source, 1))
            yield done
    finally:
        for future in pending:
            future.cancel()
        pool.shutdown(wait=True)
