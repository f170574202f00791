"""The split of a picture in coarse and fine, against the definition written out."""

from __future__ import annotations

import numpy as np
import pytest

from anomalens.parts.frequency import down, split, up

KERNEL = np.array([1, 4, 6, 4, 1]) / 16


def mirrored(x: np.ndarray) -> np.ndarray:
    """Two more at each end, without repeating the ends (c b | a b c | b a)."""
    n = len(x)
    return (
        x[[abs(i) if abs(i) < n else 2 * (n - 1) - abs(i) for i in range(-2, n + 2)]]
        if n > 2
        else np.pad(x, 2, "reflect")
    )


def blurred(x: np.ndarray, gain: float = 1.0) -> np.ndarray:
    padded = mirrored(x)
    return np.array([gain * padded[i : i + 5] @ KERNEL for i in range(len(x))])


def slow_low(x: np.ndarray) -> np.ndarray:
    """One line: blur, every second, zeros between, blur with twice the kernel."""
    coarse = blurred(x)[::2]
    spread = np.zeros(2 * len(coarse))
    spread[::2] = coarse
    return blurred(spread, 2)[: len(x)]


@pytest.mark.parametrize("size", [(16, 24), (15, 23), (32, 21), (7, 5), (3, 4)])
def test_the_split_is_the_pyramid(size):
    image = np.random.default_rng(0).random((3, *size))
    low, high = split(image)
    expected = np.apply_along_axis(slow_low, 2, np.apply_along_axis(slow_low, 1, image))
    assert low.shape == high.shape == image.shape
    assert np.allclose(low, expected, atol=1e-6)
    assert np.abs(low + high - image).max() <= 1e-5
    assert down(image).shape == (3, (size[0] + 1) // 2, (size[1] + 1) // 2)


def test_axes_and_batches_are_free():
    image = np.random.default_rng(1).random((2, 3, 17, 12), np.float32)
    low = split(image)[0]
    assert low.dtype == np.float32
    assert np.array_equal(np.moveaxis(split(np.moveaxis(image, 1, 3), axes=(1, 2))[0], 3, 1), low)
    assert np.array_equal(split(image[1, 2])[0], low[1, 2])


@pytest.mark.parametrize("side", [127, 128])
@pytest.mark.parametrize(("period", "least", "most"), [(2, 0.9, 1.01), (8, 0.1, 0.4), (64, 0.0, 0.01)])
def test_fine_gratings_are_high_and_coarse_ones_low(side, period, least, most):
    grating = np.tile(np.cos(2 * np.pi * np.arange(side) / period), (side, 1))
    assert least <= np.var(split(grating)[1]) / np.var(grating) <= most


def test_an_even_picture_has_no_high_part():
    low, high = split(np.full((9, 8), 0.4))
    assert np.allclose(low, 0.4)
    assert np.allclose(high, 0)
    assert np.allclose(up(np.full((5, 4), 0.4), (9, 8)), 0.4)
