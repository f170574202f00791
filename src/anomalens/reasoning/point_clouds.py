"""Point clouds as pictures, in numpy alone: shaded views from several sides, and the way back from boxes to points.

Letters: N points, (h, w) grid of an organised cloud, S side of a view in pixels. Axes: x right, y up, z to the viewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import WrongInput

Mode = Literal["shaded", "depth", "rgb"]
Angles = Sequence[tuple[float, float]]

NINE = tuple((a, b) for a in (-30.0, 0.0, 30.0) for b in (-30.0, 0.0, 30.0))  # degrees about x, then about y
FRONT = ((0.0, 0.0),)
FILL = 0.45  # of the side, half the width of the cloud
ALBEDO = 0.8
AMBIENT, DIFFUSE, SHINE, GLOSS = 0.25, 0.65, 0.10, 16
LIGHT = np.array([0.3, 0.3, 1.0]) / math.sqrt(1.18)
HALF = np.add(LIGHT, [0, 0, 1]) / np.linalg.norm(np.add(LIGHT, [0, 0, 1]))  # between light and viewer
NEIGHBOURS = 16  # points that a normal is estimated from, at least
JUMP = 3.0  # cells of an organised cloud whose edges are so many times the median are a step in depth, not surface
SPACING = 2.0  # pixels between samples of a surface, covered by squares of 3 x 3
TRIES, NEAR_PLANE = 200, 0.005  # of RANSAC; share of the bounding box's diagonal


@dataclass(frozen=True)
class Rendering:
    """One view. picture: (S, S, 3) uint8 on white. pixel: (N,) int32, row * S + column of each visible point, else -1."""

    picture: np.ndarray
    pixel: np.ndarray


def render(
    points: np.ndarray,
    rgb: np.ndarray | None = None,
    *,
    angles: Angles = NINE,
    size: int = 448,
    mode: Mode = "shaded",
    without_plane: bool = False,
) -> list[Rendering]:
    """Views of a cloud, one for each pair of angles.

    Args:
        points: (N, 3), or organised (h, w, 3), any unit. Not finite, and all zero, is missing. An organised cloud whose
            y grows downwards comes from a camera that looks along z, and is turned to our axes.
        rgb: (N, 3) or (h, w, 3) uint8, for mode "rgb".
        angles: degrees about x and about y. size: S.
        mode: shaded grey; depth from the 2nd to the 98th percentile, near is bright; or shaded rgb.
        without_plane: leave out the ground (RANSAC), if it reaches two sides of the front view.

    Returns:
        Renderings whose `pixel` numbers points in the order given, an organised cloud row by row. The same cloud gives
        the same bytes.

    Raises:
        WrongInput: not such an array, or fewer than three points in it.
    """
    points = np.asarray(points, np.float64)
    if points.ndim not in (2, 3) or points.shape[-1] != 3:
        raise WrongInput(f"a point cloud is (N, 3) or (h, w, 3); got {points.shape}.")
    if mode == "rgb" and (rgb is None or np.asarray(rgb).shape != points.shape):
        raise WrongInput(f"rendering {points.shape} points in rgb needs colours of the same shape; use mode='shaded'.")
    with np.errstate(over="ignore"):
        valid = np.isfinite(points).all(axis=-1) & (points != 0).any(axis=-1)
    if points.ndim == 3 and camera_axes(points, valid):
        points = points * [1, -1, -1]
    if without_plane and valid.sum() >= 3:
        valid &= ~_ground(points, valid)
    if valid.sum() < 3:
        raise WrongInput(f"the point cloud holds {int(valid.sum())} usable points; at least 3 are needed.")
    inside = points[valid]
    centred = np.where(valid[..., None], points - inside.mean(axis=0), 0.0)
    reach = np.sqrt((centred[valid] ** 2).sum(axis=-1).max())
    centred /= max(reach, np.finfo(float).tiny)

    if points.ndim == 3:
        places, normals, index = _surface(centred, valid, size)
        radius = 1
    else:
        index = np.flatnonzero(valid)
        places = centred[index]
        normals = estimated_normals(places)
        radius = max(1, round(0.6 * size / math.sqrt(len(index))))
    colours = None if mode != "rgb" else np.asarray(rgb).reshape(-1, 3)[index] / 255.0
    flat, there = centred.reshape(-1, 3), valid.ravel()
    return [_view(places, normals, index, colours, flat, there, rotation(*ab), size, radius, mode) for ab in angles]


def points_in(views: Sequence[Rendering], boxes: Sequence[Sequence[tuple[float, float, float, float]]]) -> np.ndarray:
    """Which points lie in boxes, (N,) bool.

    boxes: of each view, (x0, y0, x1, y1) in pixels. A point counts if it lies in a box in at least half of the views
    in which it is visible; views without any box do not vote.
    """
    votes = np.zeros(len(views[0].pixel), np.int64)
    seen = np.zeros_like(votes)
    for view, own in zip(views, boxes, strict=True):
        if not len(own):
            continue
        side = len(view.picture)
        row, column = np.divmod(view.pixel, side)
        visible = view.pixel >= 0
        inside = np.zeros(len(visible), bool)
        for x0, y0, x1, y1 in own:
            inside |= (column + 0.5 >= x0) & (column + 0.5 <= x1) & (row + 0.5 >= y0) & (row + 0.5 <= y1)
        seen += visible
        votes += inside & visible
    return (votes > 0) & (2 * votes >= seen)


def rotation(a: float, b: float) -> np.ndarray:
    """R_x(a) R_y(b), degrees."""
    a, b = math.radians(a), math.radians(b)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    return about_x @ about_y


def _view(
    places: np.ndarray, normals: np.ndarray, index: np.ndarray, colours: np.ndarray | None, points: np.ndarray,
    there: np.ndarray, R: np.ndarray, size: int, radius: int, mode: Mode,
) -> Rendering:  # fmt: skip
    """Project, let the nearest win, shade. places, normals (M, 3): samples of the surface; index: their points."""
    turned = places @ R.T
    column, row = _project(turned, size)
    order = np.argsort(turned[:, 2], kind="stable")  # the nearest is written last
    steps = np.arange(-radius, radius + 1)
    shift = (steps[:, None] * (size + 2 * radius) + steps).ravel()
    padded = np.full((size + 2 * radius) ** 2, -1, np.int32)
    at = (row[order] + radius) * (size + 2 * radius) + column[order] + radius
    padded[(at[:, None] + shift).ravel()] = np.repeat(order, len(shift))
    winner = padded.reshape(size + 2 * radius, -1)[radius : radius + size, radius : radius + size]

    hit = winner >= 0
    shown = winner[hit]
    picture = np.full((size, size, 3), 255, np.uint8)
    depth = turned[shown, 2]
    if mode == "depth":
        low, high = np.quantile(turned[:, 2], (0.02, 0.98))
        light = np.clip((depth - low) / max(high - low, 1e-12), 0, 1)[:, None]
    else:
        n = normals[shown] @ R.T
        n = np.where(n[:, 2:] < 0, -n, n)
        light = AMBIENT + DIFFUSE * np.maximum(n @ LIGHT, 0) + SHINE * np.maximum(n @ HALF, 0) ** GLOSS
        light = light[:, None] * (ALBEDO if colours is None else colours[shown])
    picture[hit] = np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)

    nearest = np.full((size, size), -np.inf)
    nearest[hit] = depth
    back = points @ R.T
    u, v = _project(back, size)
    slack = (2 * radius + 1) / (FILL * size)  # a square covers what lies a little behind it
    visible = there & (back[:, 2] >= nearest[v, u] - slack)
    return Rendering(picture, np.where(visible, v * size + u, -1).astype(np.int32))


def _project(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of points in the unit ball."""
    u = ((FILL * places[:, 0] + 0.5) * size).astype(np.int64)
    v = ((0.5 - FILL * places[:, 1]) * size).astype(np.int64)
    return u, v


# Surfaces.


def _surface(points: np.ndarray, valid: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of an organised cloud (h, w, 3): places (M, 3), normals (M, 3), and the nearest point of each (M,).

    Two triangles for each cell whose corners exist and lie at one depth, filled so densely that no view has gaps, and
    the points themselves.
    """
    normals = grid_normals(points, valid).reshape(-1, 3)
    flat = points.reshape(-1, 3)
    number = np.arange(valid.size).reshape(valid.shape)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    corners = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([d, c, b], -1).reshape(-1, 3)])
    corners = corners[valid.ravel()[corners].all(axis=1)]
    places, ups, index = [flat[valid.ravel()]], [normals[valid.ravel()]], [np.flatnonzero(valid.ravel())]
    if len(corners):
        p = flat[corners]  # (T, 3 corners, 3)
        edges = np.linalg.norm(p - np.roll(p, 1, axis=1), axis=2)
        jump = np.ptp(p[..., 2], axis=1)
        kept = jump < JUMP * np.median(edges)
        corners, longest = corners[kept], edges[kept].max(axis=1)
        parts = np.ceil(longest * FILL * size / SPACING).astype(np.int64)
        for m in np.unique(parts[parts > 1]):
            t = corners[parts == m]
            i, j = np.divmod(np.arange((m + 1) ** 2), m + 1)
            inside = (i + j <= m) & ~np.isin(i * (m + 1) + j, (0, m, m * (m + 1)))  # without the corners
            weights = np.stack([m - i - j, i, j], axis=1)[inside] / m  # (n, 3)
            places.append((weights @ flat[t]).reshape(-1, 3))
            mixed = (weights @ normals[t]).reshape(-1, 3)
            ups.append(mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12))
            index.append(t[:, weights.argmax(axis=1)].ravel())
    return np.concatenate(places), np.concatenate(ups), np.concatenate(index)


def grid_normals(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(h, w, 3) unit normals by central differences, one-sided beside holes; towards the viewer where nothing is known."""

    def slope(axis: int) -> np.ndarray:
        p, there = np.moveaxis(points, axis, 0), np.moveaxis(valid, axis, 0)
        step = np.where((there[1:] & there[:-1])[..., None], p[1:] - p[:-1], 0.0)
        total = np.zeros_like(p)
        total[1:] += step
        total[:-1] += step
        return np.moveaxis(total, 0, axis)  # twice the difference where one side is missing: the direction is the same

    return _unit(np.cross(slope(1), slope(0)))


def estimated_normals(points: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals of points without order, towards the viewer.

    The direction of least variance among the points in the 3 x 3 x 3 cells around a point, of the finest grid in which
    they hold NEIGHBOURS. Sums over cells take the place of a search for neighbours: a row of three cells is contiguous
    once the points are sorted, so that running sums give its moments.
    """
    n = len(points)
    normals = np.zeros((n, 3))
    normals[:, 2] = 1
    low = points.min(axis=0)
    extent = max(float(np.ptp(points, axis=0).max()), 1e-12)
    cell = 2 * extent / math.sqrt(n)
    open_ = np.arange(n)
    while len(open_):
        count, moments = _moments(points, points[open_], low, cell)
        enough = (count >= min(NEIGHBOURS, n)) | (cell > extent)
        mean = moments[enough, :3] / count[enough, None]
        upper = moments[enough, 3:] / count[enough, None]
        second = upper[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3) - mean[:, :, None] * mean[:, None, :]
        normals[open_[enough]] = np.linalg.eigh(second)[1][:, :, 0]  # of the smallest eigenvalue
        open_ = open_[~enough]
        cell *= 1.5
    return _unit(normals)


def _moments(points: np.ndarray, queries: np.ndarray, low: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """How many points lie in the 27 cells around each query, and their sums of x, y, z, xx, xy, xz, yy, yz, zz."""
    span = np.int64(2**20)
    place = ((points - low) / cell).astype(np.int64) + 1
    key = (place[:, 0] * span + place[:, 1]) * span + place[:, 2]
    order = np.argsort(key, kind="stable")
    key = key[order]
    x, y, z = points[order].T
    running = np.zeros((len(points) + 1, 9))
    np.cumsum(np.stack([x, y, z, x * x, x * y, x * z, y * y, y * z, z * z], axis=1), axis=0, out=running[1:])
    around = ((queries - low) / cell).astype(np.int64) + 1
    count, total = np.zeros(len(queries)), np.zeros((len(queries), 9))
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            middle = ((around[:, 0] + dx) * span + around[:, 1] + dy) * span + around[:, 2]
            first, last = np.searchsorted(key, middle - 1), np.searchsorted(key, middle + 1, "right")
            count += last - first
            total += running[last] - running[first]
    return count, total


def _unit(normals: np.ndarray) -> np.ndarray:
    """Unit length, towards the viewer; (0, 0, 1) where there is none."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = np.where(length > 1e-12, normals / np.maximum(length, 1e-300), [0.0, 0.0, 1.0])
    return np.where(unit[..., 2:] < 0, -unit, unit)


def camera_axes(points: np.ndarray, valid: np.ndarray) -> bool:
    """Whether y grows from row to row, as in the axes of a camera."""
    both = valid[1:] & valid[:-1]
    return bool(both.any()) and float(np.median((points[1:] - points[:-1])[both][:, 1])) > 0


def _ground(points: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The points on the largest plane, if it reaches at least two sides of the front view; else none. Mask like `valid`."""
    random = np.random.default_rng(0)
    inside = points[valid]
    tolerance = NEAR_PLANE * float(np.linalg.norm(np.ptp(inside, axis=0)))
    some = inside[random.permutation(len(inside))[:5000]]
    best, plane = 0, None
    for _ in range(TRIES):
        p, q, r = inside[random.choice(len(inside), 3, replace=False)]
        normal = np.cross(q - p, r - p)
        length = np.linalg.norm(normal)
        if length < 1e-300:
            continue
        normal = normal / length
        on = int((np.abs((some - p) @ normal) < tolerance).sum())
        if on > best:
            best, plane = on, (p, normal)
    if plane is None:
        return np.zeros_like(valid)
    ground = valid & (np.abs((points - plane[0]) @ plane[1]) < tolerance)
    if points.ndim == 3:
        sides = [ground[0], ground[-1], ground[:, 0], ground[:, -1]]
    else:
        low, high = inside[:, :2].min(axis=0), inside[:, :2].max(axis=0)
        edge = 0.01 * (high - low)
        xy = points[ground][:, :2]
        sides = [*(xy <= low + edge).T, *(xy >= high - edge).T]
    return ground if sum(bool(s.any()) for s in sides) >= 2 else np.zeros_like(valid)
