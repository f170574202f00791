"""A picture in two: what a Gaussian pyramid keeps one level down, and the fine rest.

Burt and Adelson 1983, https://doi.org/10.1109/TCOM.1983.1095851, with the kernel [1 4 6 4 1] / 16.
"""

from __future__ import annotations

import numpy as np

KERNEL = tuple(np.float32(weight / 16) for weight in (1, 4, 6, 4, 1))


def split(images: np.ndarray, axes: tuple[int, int] = (-2, -1)) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the images' own shape, low + high = images; high is signed.

    axes: down and across. Details finer than about 6 pixels are in `high`, those coarser than 16 in `low`.
    """
    low = up(down(images, axes), (images.shape[axes[0]], images.shape[axes[1]]), axes)
    return low, images - low


def down(images: np.ndarray, axes: tuple[int, int] = (-2, -1)) -> np.ndarray:
    """Blurred, and every second row and column kept, the first ones first: (n + 1) // 2 of n."""
    for axis in axes:
        x = np.moveaxis(images, axis, 0)
        n = len(x)
        padded = x[_mirrored(np.arange(-2, n + 2), n)]
        images = np.moveaxis(sum(w * padded[k : k + n : 2] for k, w in enumerate(KERNEL)), 0, axis)
    return images


def up(coarse: np.ndarray, size: tuple[int, int], axes: tuple[int, int] = (-2, -1)) -> np.ndarray:
    """Zeros between all rows and columns, blurred with twice the kernel on each axis, cut to `size`."""
    for axis, n in zip(axes, size, strict=True):
        c = np.moveaxis(coarse, axis, 0)
        m = len(c)
        # Borders mirror the grid with its zeros, of 2 m cells: on the left that is row 1, on the right the last row.
        before, after = c[[min(1, m - 1), *range(m - 1)]], c[[*range(1, m), m - 1]]
        out = np.empty((2 * m, *c.shape[1:]), c.dtype)
        out[0::2] = 2 * (KERNEL[0] * before + KERNEL[2] * c + KERNEL[4] * after)
        out[1::2] = 2 * (KERNEL[1] * c + KERNEL[3] * after)
        coarse = np.moveaxis(out[:n], 0, axis)
    return coarse


def _mirrored(index: np.ndarray, n: int) -> np.ndarray:
    """Whole numbers folded into 0..n-1 without repeating the border (c b | a b c | b a)."""
    folded = np.abs(index) % max(2 * (n - 1), 1)
    return np.minimum(folded, 2 * (n - 1) - folded)
