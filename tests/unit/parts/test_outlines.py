"""Outlines and run lengths against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalens.parts.outlines import decode_runs, fill_polygon

HEIGHT, WIDTH = 12, 15
COORDINATE = st.floats(-4, 20, allow_nan=False).map(lambda v: round(v, 2) + 0.003)  # never on the middle of a pixel


def inside(x: float, y: float, points) -> bool:
    """Whether a ray to the right crosses the outline an odd number of times."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
            crossings += 1
    return crossings % 2 == 1


@settings(max_examples=60)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7))
def test_a_pixel_is_inside_when_its_middle_is(points):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    fill_polygon(mask, points)
    slow = [[inside(x + 0.5, y + 0.5, points) for x in range(WIDTH)] for y in range(HEIGHT)]
    assert np.array_equal(mask, slow)


def test_a_box_has_its_own_area():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    fill_polygon(mask, [(3, 2), (8, 2), (8, 6), (3, 6)])
    assert mask.sum() == 5 * 4
    assert mask[2:6, 3:8].all()


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first of zeros."""
    runs, current = [0], False
    for value in mask.T.ravel():
        if value != current:
            runs.append(0)
            current = bool(value)
        runs[-1] += 1
    return runs


def compressed(runs: list[int]) -> str:
    """Groups of five bits, low first, with differences from the fourth run on."""
    text = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = not (value == 0 and not bits & 16) and not (value == -1 and bits & 16)
            text += chr(48 + (bits | (32 if more else 0)))
    return text


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_come_back(seed, share):
    mask = np.random.default_rng(seed).random((40, 23)) < share
    runs = runs_of(mask)
    assert np.array_equal(decode_runs(runs, mask.shape), mask)
    assert np.array_equal(decode_runs(compressed(runs), mask.shape), mask)


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(ValueError, match="runs of 6 pixels for 3 x 4"):
        decode_runs([2, 4], (4, 3))
