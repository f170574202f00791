from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest

from anomalens.errors import Unreadable, WrongInput
from anomalens.parts.batches import ahead, batches
from anomalens.types import Sample, View


def sample(i: int, size=(10, 12)) -> Sample:
    return Sample(str(i), {"image": View("image", partial(np.full, (*size, 3), i, np.uint8))})


def test_batches_are_resized_stacked_and_in_order():
    got = list(batches((sample(i, (10 + i, 12)) for i in range(11)), (8, 6), batch=4))
    assert [len(b.samples) for b in got] == [4, 4, 3]
    assert [s.id for b in got for s in b.samples] == [str(i) for i in range(11)]
    assert got[1].images.shape == (4, 3, 8, 6)
    assert got[1].images.dtype == np.float32
    assert np.allclose(got[1].images[2], 6 / 255)
    assert got[2].sizes[0] == (18, 12)


@pytest.mark.parametrize(("size", "batch"), [((0, 8), 4), ((8, -1), 4), ((8, 8), 0)])
def test_sizes_below_one_are_refused(size, batch):
    with pytest.raises(WrongInput, match="give sizes above 0"):
        next(batches([sample(0)], size, batch))


def test_ahead_keeps_order_works_in_threads_and_reads_only_so_far():
    taken = []

    def slow(i: int) -> tuple[int, str]:
        time.sleep(0.002 * (i % 3))
        return i, threading.current_thread().name

    def source():
        for i in range(100):
            taken.append(i)
            yield i

    stream = ahead(slow, source(), depth=5)
    first = next(stream)
    assert first[0] == 0
    assert first[1].startswith("anomalens")
    assert len(taken) <= 7
    assert [i for i, _ in stream] == list(range(1, 100))


def test_an_error_reaches_the_consumer_and_threads_end():
    def fail(i: int) -> int:
        if i == 3:
            raise Unreadable("picture 3 is damaged")
        return i

    before = threading.active_count()
    stream = ahead(fail, range(10))
    with pytest.raises(Unreadable, match="picture 3"):
        list(stream)
    assert threading.active_count() == before
