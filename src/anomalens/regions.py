"""From a map to places: connected components, regions by hysteresis, outlines; in numpy alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .errors import WrongInput
from .types import Region

MOST = 50  # regions per picture; the strongest are kept


def find_regions(values: np.ndarray, low: float, high: float, min_area: int = 1) -> tuple[Region, ...]:
    """Connected (8 neighbours) pixels above `low` that hold at least one pixel above `high`.

    values: (H, W) map. min_area: in pixels; smaller regions are dropped. Returns the MOST strongest, highest peak first.
    """
    above = values > low
    if not (values > high).any():
        return ()
    labels, count = label(above)
    y, x = np.nonzero(above)
    part = labels[y, x]
    area = np.bincount(part, minlength=count + 1)
    peak = np.full(count + 1, -np.inf)
    np.maximum.at(peak, part, values[y, x])
    kept = np.flatnonzero((peak > high) & (area >= max(min_area, 1)))
    kept = kept[np.argsort(-peak[kept], kind="stable")][:MOST]
    regions = []
    for k in kept:
        inside = part == k
        x0, x1, y0, y1 = x[inside].min(), x[inside].max() + 1, y[inside].min(), y[inside].max() + 1
        shape = labels[y0:y1, x0:x1] == k
        outline = tuple((int(x0 + px), int(y0 + py)) for px, py in trace_outline(shape))
        regions.append(Region((int(x0), int(y0), int(x1), int(y1)), int(area[k]), float(peak[k]), outline))
    return tuple(regions)


def trace_outline(shape: np.ndarray, tolerance: float = 1.0) -> list[tuple[int, int]]:
    """The outer border of one 8-connected region (h, w) bool as a closed polygon of pixel corners (x, y).

    Walks along pixel edges, region on the right hand; corners closer than `tolerance` pixels to the line between
    their neighbours are left out (Douglas and Peucker 1973).
    """
    padded = np.pad(shape, 1)
    start = (int(np.argmax(shape[0])), 0)  # top-left corner of the first pixel of the first row
    corner, heading = start, (1, 0)
    path = [start]
    while True:
        x, y = corner
        dx, dy = heading
        # The two pixels ahead of this corner: at the right and at the left of the heading.
        right = padded[y + 1 + _ahead(dy, dx), x + 1 + _ahead(dx, -dy)]
        left = padded[y + 1 + _ahead(dy, -dx), x + 1 + _ahead(dx, dy)]
        if left:  # 8-connected: a pixel that only touches at the corner still belongs
            heading = (dy, -dx)
        elif not right:
            heading = (-dy, dx)
        corner = (x + heading[0], y + heading[1])
        if corner == start:
            break
        path.append(corner)
    return _simplify(path, tolerance)


def _ahead(along: int, aside: int) -> int:
    """Offset, along one axis, of the pixel beside a corner: pixels are numbered by their top-left corner."""
    return -1 if along + aside < 0 else 0


def _simplify(path: list[tuple[int, int]], tolerance: float) -> list[tuple[int, int]]:
    points = np.asarray([*path, path[0]], float)
    keep = np.zeros(len(points), bool)
    far = int(np.argmax(((points - points[0]) ** 2).sum(1)))
    keep[[0, far]] = True
    stack = [(0, far), (far, len(points) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        line = points[last] - points[first]
        length = np.hypot(*line)
        offset = points[first + 1 : last] - points[first]
        away = (
            np.abs(offset[:, 0] * line[1] - offset[:, 1] * line[0]) / length
            if length
            else np.hypot(offset[:, 0], offset[:, 1])
        )
        worst = int(np.argmax(away))
        if away[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    return [path[i] for i in np.flatnonzero(keep[:-1])]


def label(mask: np.ndarray, connectivity: Literal[4, 8] = 8) -> tuple[np.ndarray, int]:
    """Number the connected components of a mask.

    Args:
        mask: (H, W) bool.
        connectivity: 8 joins pixels that share a side or a corner, 4 only those that share a side.

    Returns:
        (H, W) int32, 0 outside and 1..count inside, numbered in raster order of each component's first pixel; count.

    Raises:
        WrongInput: the mask is not a two-dimensional bool array, or the connectivity is neither 4 nor 8.

    Source:
        Run-based labelling, He, Chao and Suzuki 2008, https://doi.org/10.1109/TIP.2008.919369; the runs are joined by
        parallel hooking and pointer jumping, Shiloach and Vishkin 1982, https://doi.org/10.1016/0196-6774(82)90008-6
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise WrongInput(f"label needs an (H, W) bool mask; got {mask.shape} {mask.dtype}: pass values > threshold.")
    if connectivity not in (4, 8):
        raise WrongInput(f"connectivity is 4 or 8; got {connectivity!r}.")
    labels = np.zeros(mask.shape, np.int32)
    start, stop = _runs(mask)
    if not len(start):
        return labels, 0
    root = _roots(len(start), *_touching(start, stop, mask.shape[1] + 2, reach=int(connectivity == 8)))
    first = root == np.arange(len(root))  # the root of a component is its first run in raster order
    number = np.cumsum(first, dtype=np.int32)[root]
    labels[mask] = np.repeat(number, stop - start)
    return labels, int(first.sum())


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal runs [start, stop) of True, as positions in the flattened mask with a False column on each side."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), bool)
    padded[:, 1:-1] = mask
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return edges[::2], edges[1::2]


def _touching(start: np.ndarray, stop: np.ndarray, width: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (run, run of the row above) that overlap, or touch at a corner where reach is 1."""
    low = np.searchsorted(stop, start - width - reach, "right")
    high = np.searchsorted(start, stop - width + reach, "left")
    count = np.maximum(high - low, 0)
    below = np.repeat(np.arange(len(start)), count)
    ahead = np.cumsum(count) - count
    above = np.arange(len(below)) + np.repeat(low - ahead, count)
    return below, above


def _roots(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest run connected to each of `count` runs by the edges (a, b)."""
    parent = np.arange(count)
    while len(a):
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))  # hook each root to its smallest neighbour
        while True:  # pointer jumping: every run points at its root
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent = jumped
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parent


def otsu(grey: np.ndarray) -> int:
    """The value t that best splits uint8 values into those up to t and those above: largest variance between the two.

    Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076
    """
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    share = np.cumsum(counts) / grey.size  # of values up to t
    sums = np.cumsum(counts * np.arange(256)) / grey.size
    rest = share * (1 - share)
    apart = np.divide((sums[-1] * share - sums) ** 2, rest, out=np.zeros(256), where=rest > 1e-12)
    return int(apart.argmax())
