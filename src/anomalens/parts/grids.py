"""Operations on feature grids, written once for numpy and torch through the array API.

Shapes: features (B, C, h, w); score grids (B, h, w) or (h, w). Bilinear resizing and Gaussian blur are linear and
separable, so each is a matrix per axis; a chain of them is one product of small matrices, exact and fast.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device

Array = Any  # a numpy array or a torch tensor
Padding = Literal["reflect", "mirror"]  # reflect repeats the edge sample (d c b a | a b c d), mirror does not


def to_numpy(x: Array) -> np.ndarray:
    """Bring an array to the host."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def like(x: np.ndarray, reference: Array) -> Array:
    """Put a numpy array where `reference` lives, in its namespace and type."""
    if isinstance(reference, np.ndarray):
        return x.astype(reference.dtype, copy=False)
    return array_namespace(reference).asarray(x, dtype=reference.dtype, device=device(reference))


def average_pool(x: Array, size: int = 3, count_padding: bool = True) -> Array:
    """Mean over a size x size window, stride 1, zero padding, same shape; (B, C, h, w).

    count_padding: the divisor is always size^2 (True) or the number of real cells (False). The window is the mean
    along each axis in turn, so the cost does not grow with size^2.
    """
    xp = array_namespace(x)
    if size == 1:
        return x
    radius = size // 2
    for axis in (2, 3):
        n = x.shape[axis]
        total = xp.zeros_like(x)
        for shift in range(-radius, size - radius):
            here = [slice(None)] * 4
            there = [slice(None)] * 4
            here[axis] = slice(max(0, -shift), min(n, n - shift))
            there[axis] = slice(max(0, shift), min(n, n + shift))
            total[tuple(here)] += x[tuple(there)]
        if count_padding:
            x = total / size
        else:
            index = np.arange(n)
            cells = np.minimum(index + size - radius, n) - np.maximum(index - radius, 0)
            shape = [1, 1, 1, 1]
            shape[axis] = n
            x = total / like(cells.reshape(shape).astype(np.float32), x)
    return x


def resize_features(x: Array, size: tuple[int, int], mode: Literal["bilinear", "nearest"] = "bilinear") -> Array:
    """(B, C, h, w) -> (B, C, *size). Bilinear with half-pixel centres (align_corners False), or nearest."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if mode == "nearest":
        rows = np.arange(size[0]) * x.shape[2] // size[0]
        columns = np.arange(size[1]) * x.shape[3] // size[1]
        return x[:, :, rows][:, :, :, columns]
    xp = array_namespace(x)
    up = like(bilinear_matrix(x.shape[2], size[0]), x)
    across = like(bilinear_matrix(x.shape[3], size[1]), x)
    return xp.matmul(xp.matmul(up, x), across.T)


def rows_of(x: Array) -> Array:
    """(B, C, h, w) -> (B * h * w, C), ordered image, row, column."""
    xp = array_namespace(x)
    b, c, h, w = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 3, 1)), (b * h * w, c))


@lru_cache(maxsize=256)
def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float64 weights of bilinear resizing with half-pixel centres and no antialiasing."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, source - 1)
    weight = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - weight)
    np.add.at(matrix, (np.arange(target), high), weight)
    return matrix


@lru_cache(maxsize=256)
def nearest_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) 0/1 weights of nearest replication."""
    matrix = np.zeros((target, source))
    matrix[np.arange(target), np.arange(target) * source // target] = 1
    return matrix


@lru_cache(maxsize=256)
def blur_matrix(size: int, sigma: float, padding: Padding = "reflect", truncate: float = 4.0) -> np.ndarray:
    """(size, size) weights of a Gaussian blur along one axis; the kernel reaches int(truncate * sigma + 0.5)."""
    if sigma <= 0:
        return np.eye(size)
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    index = np.arange(size)[:, None] + offsets[None, :]
    period = 2 * size if padding == "reflect" else max(2 * (size - 1), 1)
    index = np.mod(index, period)
    index = np.where(index >= size, period - index - (1 if padding == "reflect" else 0), index)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.repeat(np.arange(size), len(offsets)), index.ravel()), np.tile(kernel, size))
    return matrix


@lru_cache(maxsize=64)
def smooth_matrix(
    cells: int, size: int, sigma: float, padding: Padding = "reflect", mode: str = "bilinear", dtype: type = np.float32
) -> np.ndarray:
    """One axis of `score_map`: upsample, then blur; (size, cells)."""
    up = bilinear_matrix(cells, size) if mode == "bilinear" else nearest_matrix(cells, size)
    return (blur_matrix(size, sigma, padding) @ up).astype(dtype)


def score_map(
    grid: np.ndarray, size: tuple[int, int], sigma: float, padding: Padding = "reflect", mode: str = "bilinear"
) -> np.ndarray:
    """(..., h, w) patch scores -> (..., *size) float32: upsampled to `size`, then blurred with `sigma` pixels there.

    size: what the network saw. mode: bilinear or nearest upsampling.
    """
    down = smooth_matrix(grid.shape[-2], size[0], sigma, padding, mode)
    across = smooth_matrix(grid.shape[-1], size[1], sigma, padding, mode)
    return down @ grid.astype(np.float32) @ across.T


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) map -> (*size) float32, bilinear; from the network's size to the picture's."""
    if values.shape == tuple(size):
        return values
    down = bilinear_matrix(values.shape[0], size[0]).astype(np.float32)
    return down @ values @ bilinear_matrix(values.shape[1], size[1]).astype(np.float32).T
