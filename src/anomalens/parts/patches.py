"""Feature maps of several layers to one row per patch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace, device

from ..errors import WrongInput
from .grids import Array, bilinear_matrix, like
from .threads import one_blas_thread


@one_blas_thread()
def embed(features: list[Array], pool: int = 3, count_padding: bool = True) -> Array:
    """Feature maps (B, C_i, h_i, w_i), finest first -> rows (B * h * w, sum of C_i), ordered image, row, column.

    Every map is averaged over a pool x pool window (stride 1, zero padding, see `grids.average_pool`) and resized
    bilinearly to the grid of the first. Both steps are linear and separable, so together they are one small matrix per
    axis; channels go last first, so that the products run over long rows.

    Raises:
        WrongInput: no feature map, or maps of different numbers of pictures.
    """
    if not features or len({f.shape[0] for f in features}) != 1:
        shapes = [tuple(f.shape) for f in features]
        raise WrongInput(f"embed got feature maps of shapes {shapes}; give at least one, all of the same pictures.")
    first = features[0]
    xp = array_namespace(first)
    b, _, h, w = first.shape
    rows = xp.empty((b, h, w, sum(f.shape[1] for f in features)), dtype=first.dtype, device=device(first))
    start = 0
    for f in features:
        _, channels, height, width = f.shape
        down = like(pooled_resize(height, h, pool, count_padding), f)
        across = like(pooled_resize(width, w, pool, count_padding), f)
        x = xp.reshape(xp.permute_dims(f, (0, 2, 3, 1)), (b, height, width * channels))
        x = xp.reshape(xp.matmul(down, x), (b, h, width, channels))
        place = rows[..., start : start + channels]
        if isinstance(place, np.ndarray):
            np.matmul(across, x, out=place)  # a temporary of this size costs as much as the product
        else:
            place[...] = xp.matmul(across, x)
        start += channels
    return xp.reshape(rows, (b * h * w, start))


@lru_cache(maxsize=64)
def pooled_resize(source: int, target: int, pool: int, count_padding: bool = True) -> np.ndarray:
    """(target, source) float64 weights along one axis: the mean over `pool` cells, then bilinear resizing."""
    index = np.arange(source)
    offset = index[None, :] - index[:, None]
    window = ((offset >= -(pool // 2)) & (offset < pool - pool // 2)).astype(np.float64)
    window /= pool if count_padding else window.sum(axis=1, keepdims=True)
    return bilinear_matrix(source, target) @ window
