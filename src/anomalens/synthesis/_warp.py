"""Moving a camera: plane homographies, and resampling of pictures, masks and maps with them.

A matrix is (3, 3) float64 and maps places of the input to places of the output, (x, y, 1) in pixels, the centre of the
first pixel at (0.5, 0.5). Random numbers are drawn before anything depends on the amount or on the size, so that every
grade and every view of a sample moves the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

IGNORE = 255  # mask value of pixels that lay outside the frame
STRIP = 1 << 15  # pixels resampled at once: temporaries stay in the cache
FINEST = 4  # most subpixels per side when a mask shrinks
NEAREST = 1e-3  # smallest depth, where the frame has about 1

Size = tuple[int, int]  # height, width


def rotation(degrees: float, size: Size, rng: np.random.Generator) -> np.ndarray:
    """In the plane, about the centre; the sign is drawn."""
    angle = math.radians(degrees) * _sign(rng)
    c, s = math.cos(angle), math.sin(angle)
    return _about(size[1] / 2, size[0] / 2, np.array([[c, -s], [s, c]]))


def tilt(degrees: float, size: Size, rng: np.random.Generator) -> np.ndarray:
    """The camera turns about a drawn axis in the picture plane, then the largest part without gaps fills the frame.

    H = K R K^-1, Hartley and Zisserman 2004, Multiple View Geometry, chapter 8.4, with a focal length of 1.2 long sides.
    """
    direction = rng.uniform(0, 2 * math.pi)
    ax, ay = math.cos(direction), math.sin(direction)
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array(
        [
            [c + ax * ax * (1 - c), ax * ay * (1 - c), ay * s],
            [ax * ay * (1 - c), c + ay * ay * (1 - c), -ax * s],
            [-ay * s, ax * s, c],
        ]
    )
    height, width = size
    focal = 1.2 * max(size)
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    seen = camera @ turn @ np.linalg.inv(camera)
    return _fill(seen, size) @ seen


def zoom(factor: float, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Scale about a drawn place of the central third; in or out is drawn."""
    scale = factor ** _sign(rng)
    x, y = rng.uniform(1 / 3, 2 / 3, 2)
    return _about(size[1] * x, size[0] * y, np.diag([scale, scale]))


def shift(percent: float, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Translation by a share of the short side in a drawn direction."""
    angle = rng.uniform(0, 2 * math.pi)
    length = percent / 100 * min(size)
    return np.array([[1, 0, length * math.cos(angle)], [0, 1, length * math.sin(angle)], [0, 0, 1]])


MOVES: dict[str, Callable[[float, Size, np.random.Generator], np.ndarray]] = {
    "rot": rotation,
    "tilt": tilt,
    "zoom": zoom,
    "shift": shift,
}


def move_picture(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bicubic (Keys 1981, a = -0.5); beyond the border the picture is mirrored. (H, W, 3), the type stays."""
    top = np.iinfo(picture.dtype).max
    planes = np.ascontiguousarray(np.moveaxis(picture, 2, 0).reshape(3, -1), np.float32)
    out = np.empty((picture.shape[0] * picture.shape[1], 3), picture.dtype)
    for part, x, y in _sources(picture.shape[:2], matrix):
        out[part] = np.rint(np.clip(_gather(planes, picture.shape[:2], x, y, _cubic, _mirror), 0, top)).T
    return out.reshape(picture.shape)


def move_mask(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Every value of a mask moves by itself: bilinear coverage, averaged over the pixel, counts from one half on.

    mask: (H, W) bool, or whole numbers from 0 to 255. Returns (H, W) uint8; IGNORE where nothing was seen.
    """
    labels = mask.astype(np.uint8)
    size = labels.shape
    fine = _subpixels(size, matrix)
    out = np.zeros(size, np.uint8)
    for value in np.unique(labels[labels > 0]):
        # A frame of zeros stands for all that lies outside, so that coverage fades out there.
        cover = np.pad((labels == value).astype(np.float32), 1)
        total = np.zeros(size[0] * size[1], np.float32)
        for dx, dy in ((i, j) for i in range(fine) for j in range(fine)):
            offset = ((dx + 0.5) / fine, (dy + 0.5) / fine)
            for part, x, y in _sources(size, matrix, offset):
                total[part] += _gather(cover.reshape(1, -1), cover.shape, x + 1, y + 1, _linear, _clamp)[0]
        out[(total >= fine * fine / 2).reshape(size)] = value
    out[~inside(size, matrix)] = IGNORE
    return out


def move_map(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W) float -> (H, W) float32, bilinear, mirrored beyond the border."""
    plane = np.ascontiguousarray(values, np.float32).reshape(1, -1)
    out = np.empty(values.size, np.float32)
    for part, x, y in _sources(values.shape, matrix):
        out[part] = _gather(plane, values.shape, x, y, _linear, _mirror)[0]
    return out.reshape(values.shape)


def inside(size: Size, matrix: np.ndarray) -> np.ndarray:
    """(H, W) bool: whether the centre of the output pixel lay in the input frame."""
    seen = np.empty(size[0] * size[1], bool)
    for part, x, y in _sources(size, matrix):
        seen[part] = (abs(x - size[1] / 2) <= size[1] / 2 + 1e-6) & (abs(y - size[0] / 2) <= size[0] / 2 + 1e-6)
    return seen.reshape(size)


def visible(marked: np.ndarray, matrix: np.ndarray) -> tuple[float, float]:
    """What is left of the True pixels of (H, W) bool: the share that stays in the frame, and its new area in pixels."""
    y, x = np.nonzero(marked)
    place = matrix @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))])
    height, width = marked.shape
    u, v = place[:2] / place[2]
    area = abs(np.linalg.det(matrix) / place[2] ** 3)  # of one pixel, to first order
    stays = (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
    return float(stays.mean()), float(area[stays].sum())


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _about(x: float, y: float, linear: np.ndarray) -> np.ndarray:
    """A linear map (2, 2) that leaves (x, y) in place."""
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([x, y]) - linear @ (x, y)
    return matrix


def _fill(matrix: np.ndarray, size: Size) -> np.ndarray:
    """Scale and move so that the largest rectangle of the frame's shape inside the warped frame becomes the frame.

    A rectangle with centre (x, y) and t times the frame's sides lies in a convex polygon when it lies on the inner side
    of every edge, which is linear in (x, y, t): the largest t is reached where three of the four edges touch.
    """
    height, width = size
    corners = matrix @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], float)
    polygon = (corners[:2] / corners[2]).T
    along = np.roll(polygon, -1, axis=0) - polygon
    outward = np.stack([along[:, 1], -along[:, 0]], axis=1)  # corners go clockwise on the screen
    reach = (abs(outward[:, 0]) * width + abs(outward[:, 1]) * height) / 2
    rows = np.column_stack([outward, reach])  # rows @ (x, y, t) <= bound
    bound = (outward * polygon).sum(axis=1)
    best = (width / 2, height / 2, 0.0)
    for touching in map(list, combinations(range(4), 3)):
        if abs(np.linalg.det(rows[touching])) < 1e-9 * max(size) ** 3:
            continue
        found = np.linalg.solve(rows[touching], bound[touching])
        if found[2] > best[2] and (rows @ found <= bound + 1e-7 * max(size) ** 2).all():
            best = tuple(found)
    x, y, t = best
    return np.array([[1 / t, 0, width / 2 - x / t], [0, 1 / t, height / 2 - y / t], [0, 0, 1]])


def _sources(
    size: Size, matrix: np.ndarray, offset: tuple[float, float] = (0.5, 0.5)
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Strips of the output: which pixels of the flat picture, and the places x and y of the input that they show."""
    back = np.linalg.inv(matrix)
    height, width = size
    rows = max(1, STRIP // width)
    x = np.arange(width) + offset[0]
    for first in range(0, height, rows):
        y = (np.arange(first, min(first + rows, height)) + offset[1])[:, None]
        depth = back[2, 0] * x + back[2, 1] * y + back[2, 2]
        depth = np.maximum(depth, NEAREST)  # what is at or behind the horizon goes far outside, where masks ignore it
        across = (back[0, 0] * x + back[0, 1] * y + back[0, 2]) / depth
        down = (back[1, 0] * x + back[1, 1] * y + back[1, 2]) / depth
        yield slice(first * width, (first + len(y)) * width), across.ravel(), down.ravel()


def _gather(
    planes: np.ndarray,
    size: Size,
    x: np.ndarray,
    y: np.ndarray,
    kernel: Callable[[np.ndarray], list[np.ndarray]],
    fold: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Interpolated values (C, n) float32 of flat planes (C, H * W) at places (n,)."""
    left, top = np.floor(x - 0.5), np.floor(y - 0.5)
    across, down = (kernel((place - 0.5 - start).astype(np.float32)) for place, start in ((x, left), (y, top)))
    first = 1 - len(across) // 2
    columns = [fold(left + first + i, size[1]) for i in range(len(across))]
    total = np.zeros((len(planes), len(x)), np.float32)
    for j, weight in enumerate(down):
        start = fold(top + first + j, size[0]) * size[1]
        row = np.zeros_like(total)
        for column, share in zip(columns, across, strict=True):
            row += share * np.take(planes, start + column, axis=1)
        total += weight * row
    return total


def _linear(t: np.ndarray) -> list[np.ndarray]:
    return [1 - t, t]


def _cubic(t: np.ndarray) -> list[np.ndarray]:
    """Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711, with a = -0.5: weights of the four nearest pixels."""
    u = 1 - t
    outer, last = -0.5 * t * u * u, -0.5 * u * t * t
    inner = 1 - t * t * (2.5 - 1.5 * t)
    return [outer, inner, 1 - outer - inner - last, last]


def _mirror(index: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers folded into 0..count-1 without repeating the border pixel: 2 1 [0 1 2] 1 0."""
    period = max(2 * (count - 1), 1)
    folded = index.astype(np.int64)
    if folded.min() < 0 or folded.max() >= count:
        folded %= period
        folded = np.minimum(folded, period - folded)
    return folded


def _clamp(index: np.ndarray, count: int) -> np.ndarray:
    return np.clip(index, 0, count - 1).astype(np.int64)


def _subpixels(size: Size, matrix: np.ndarray) -> int:
    """Samples per side of an output pixel so that none is farther than about a pixel of the input from the next."""
    back = np.linalg.inv(matrix)
    height, width = size
    x, y = (
        c.ravel() for c in np.meshgrid((0.5, width / 2, width - 0.5), (0.5, height / 2, height - 0.5), indexing="ij")
    )

    def source(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        place = back @ np.stack([x, y, np.ones_like(x)])
        return place[:2] / np.maximum(place[2], NEAREST)

    here = source(x, y)
    steps = [np.hypot(*(source(x + dx, y + dy) - here)) for dx, dy in ((1, 0), (0, 1))]
    return int(np.clip(math.ceil(np.max(steps) - 0.1), 1, FINEST))
