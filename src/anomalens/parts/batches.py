"""Samples to batches: decoding runs in threads ahead of the network, memory is bounded by the batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np

from ..errors import WrongInput
from ..images import Interpolation, resize, to_float
from ..types import Sample
from .threads import cores

STEP = 32  # networks halve the picture up to five times
MOST_ELONGATED = 4.0

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, h, w) float32 in [0, 1], resized. sizes: (height, width) of each picture as it was read."""

    samples: list[Sample]
    images: np.ndarray
    sizes: list[tuple[int, int]]


def batches(
    samples: Iterable[Sample],
    size: tuple[int, int],
    batch: int = 8,
    view: str = "image",
    *,
    keep_aspect: bool = False,
    interpolation: Interpolation = "bilinear",
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Batch]:
    """Read, resize to `size` = (height, width) and stack, up to `batch` at a time, one batch ahead of the consumer.

    keep_aspect: resize to about the area of `size` in the picture's own aspect ratio (see `same_area`); a batch then
        ends where the next picture gets another size.
    prepare: changes each picture (H, W, 3) before it is resized; the type stays.

    Raises:
        WrongInput: a size or a number of pictures below 1.
    """
    if min(size) < 1 or batch < 1:
        raise WrongInput(
            f"pictures cannot be resized to {size[0]} x {size[1]} pixels, {batch} at a time; give sizes above 0."
        )

    def load(sample: Sample) -> tuple[Sample, np.ndarray, tuple[int, int]]:
        picture = sample.image(view)
        original = (picture.shape[0], picture.shape[1])
        picture = prepare(picture) if prepare else picture
        scaled = to_float(resize(picture, same_area(original, size) if keep_aspect else size, interpolation))
        return sample, np.moveaxis(scaled, 2, 0), original

    for _, alike in groupby(ahead(load, samples, depth=2 * batch), key=lambda loaded: loaded[1].shape):
        while group := list(islice(alike, batch)):
            yield Batch([s for s, _, _ in group], np.stack([p for _, p, _ in group]), [hw for _, _, hw in group])


def same_area(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of about the area of `size` with the aspect ratio of `original`, in multiples of STEP.

    Ratios beyond MOST_ELONGATED to 1 are cut off there, so that no picture becomes a thread.
    """
    ratio = min(max(original[0] / original[1], 1 / MOST_ELONGATED), MOST_ELONGATED)
    height = math.sqrt(size[0] * size[1] * ratio)
    return tuple(max(STEP, STEP * round(side / STEP)) for side in (height, height / ratio))  # type: ignore[return-value]


def through(network: Callable[[np.ndarray], list[Any]], source: Iterable[Batch]) -> Iterator[tuple[Batch, list[Any]]]:
    """Each batch with its features; the network works on the next batch while the consumer is busy with this one."""
    return ahead(lambda batch: (batch, network(batch.images)), source, depth=1)


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], depth: int = 16, workers: int | None = None
) -> Iterator[Result]:
    """map(work, items) in order, with up to `depth` items worked on ahead of the consumer in threads.

    workers: threads; by default what the processor allows. More where the work is waiting, such as for a server.
    """
    source = iter(items)
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers or min(cores(), 8), thread_name_prefix="anomalens-read")
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
