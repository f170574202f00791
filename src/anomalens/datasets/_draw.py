"""Brushes for drawn pictures: noise, coverage of shapes, surfaces with height, light.

Lengths, places and heights are in sides of the picture (0 to 1, y down), so that a drawing is the same at every
size. Coverage is (H, W) float32 in [0, 1], antialiased. Nothing here keeps state: what is drawn depends on the
arguments and on the random generators that come in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Colour = tuple[float, float, float]
FINE = 4  # shapes are drawn this many times larger and averaged


@dataclass
class Surface:
    """What stands before the camera; painting changes the arrays in place.

    colour: (H, W, 3) float32 in [0, 1] under flat light. height: (H, W), towards the camera. gloss: (H, W), strength
    of the highlight. body: (H, W) coverage of the thing itself, where a defect may be. fault: (H, W) coverage of the
    defect, all 0 for a good one. size: pixels per side of the whole picture.
    """

    colour: np.ndarray
    height: np.ndarray
    gloss: np.ndarray
    body: np.ndarray
    fault: np.ndarray
    size: int

    def paint(
        self,
        cover: np.ndarray,
        colour: Colour | np.ndarray,
        height: np.ndarray | float | None = None,
        gloss: float | None = None,
    ) -> None:
        """Lay a material over the surface where `cover` is; None leaves that property as it was."""
        self.colour += (np.asarray(colour, np.float32) - self.colour) * cover[..., None]
        if height is not None:
            self.height += (np.asarray(height, np.float32) - self.height) * cover
        if gloss is not None:
            self.gloss += (np.float32(gloss) - self.gloss) * cover

    def shadow(self, cover: np.ndarray, reach: float, strength: float = 0.45) -> None:
        """Darken the ground below and to the right of something that will be painted over it."""
        shift = max(1, round(reach * self.size))
        moved = np.zeros_like(cover)
        moved[shift:, shift:] = cover[:-shift, :-shift]
        self.colour *= (1 - strength * soften(moved, reach * 0.6 * self.size))[..., None]

    def blame(self, cover: np.ndarray) -> None:
        """Add to the defect's coverage."""
        np.maximum(self.fault, cover, out=self.fault)

    def window(self, at: Pose, reach: float) -> tuple[Surface, np.ndarray, np.ndarray]:
        """The part of this surface within `reach` of a pose, sharing its memory, and local coordinates there."""
        rows, columns = (
            slice(max(0, int((c - reach) * self.size)), max(0, int((c + reach) * self.size) + 1)) for c in (at.y, at.x)
        )
        here = (rows, columns)
        views = Surface(
            self.colour[here], self.height[here], self.gloss[here], self.body[here], self.fault[here], self.size
        )
        u, v = at.local(self.size, rows, columns)
        return views, u, v


def surface(colour: np.ndarray, height: np.ndarray, gloss: float = 0.0) -> Surface:
    """A surface that is all body and has no defect."""
    height = np.asarray(height, np.float32)
    return Surface(
        np.asarray(colour, np.float32),
        height,
        np.full_like(height, gloss),
        np.ones_like(height),
        np.zeros_like(height),
        len(height),
    )


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres, (size, size) each, read-only."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def noise(
    rng: np.random.Generator, size: int, cells: int | tuple[int, int], octaves: int = 1, fade: float = 0.5
) -> np.ndarray:
    """Smooth random field, (size, size), about -1 to 1: `cells` = (down, across) bumps, each octave twice as fine."""
    down, across = (cells, cells) if isinstance(cells, int) else cells
    total, weight = np.zeros((size, size), np.float32), 1.0
    for octave in range(octaves):
        coarse = rng.uniform(-1, 1, (down * 2**octave + 1, across * 2**octave + 1)).astype(np.float32)
        total += weight * np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        weight *= fade
    return total * np.float32((1 - fade) / (1 - fade**octaves))


def cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, jitter: float = 0.8) -> tuple[np.ndarray, ...]:
    """Nearest and second nearest of one random point per unit square: (distance, second distance, index 0..4095)."""
    wide = 64  # the pattern repeats after this many squares
    points = rng.uniform(0.5 - jitter / 2, 0.5 + jitter / 2, (2, wide * wide)).astype(np.float32)
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    a, b = u - i, v - j  # in the own square
    best = np.full(u.shape, 9, np.float32)
    second = best.copy()
    index = np.zeros(u.shape, np.int32)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            key = ((i + di) & (wide - 1)) * wide + ((j + dj) & (wide - 1))
            p, q = np.take(points[0], key), np.take(points[1], key)
            p += di
            p -= a
            q += dj
            q -= b
            p *= p
            q *= q
            p += q
            np.minimum(second, np.maximum(best, p), out=second)
            np.copyto(index, key, where=p < best)
            np.minimum(best, p, out=best)
    return np.sqrt(best), np.sqrt(second), index


def wobble(rng: np.random.Generator, theta: np.ndarray, low: float, high: float, orders: range) -> np.ndarray:
    """A random function of the angle: a sum of cosines with amplitudes between `low` and `high`."""
    turn = np.arange(2048) * (2 * np.pi / 2048)
    table = sum(rng.uniform(low, high) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in orders)
    table = np.asarray(table, np.float32)
    return table[(theta * np.float32(1024 / np.pi)).astype(np.int32) & 2047]


def numbers(rng: np.random.Generator, low: float, high: float, count: int) -> list[float]:
    """Plain floats: NumPy 2 would widen whole pictures to float64 for a float64 scalar, NumPy 1 would not."""
    return rng.uniform(low, high, count).tolist()


def mix(below: np.ndarray, above: Colour | np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Blend two colourings, (H, W, 3)."""
    return below + (np.asarray(above, np.float32) - below) * cover[..., None]


def inside(distance: np.ndarray, size: int) -> np.ndarray:
    """Signed distance (negative inside) -> coverage, one pixel of antialiasing."""
    return np.clip(0.5 - distance * size, 0, 1)


def step(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rounded_box(u: np.ndarray, v: np.ndarray, half: Point, radius: float) -> np.ndarray:
    """Signed distance to a box of half sizes `half` with rounded corners."""
    a, b = np.abs(u) - (half[0] - radius), np.abs(v) - (half[1] - radius)
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - radius


def dome(distance: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """Height of a half-round profile of `radius` at a distance from its axis."""
    return np.sqrt(np.maximum(radius * radius - distance * distance, 0))


def soften(cover: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur (sigma in pixels) of a coverage, in 256 steps: exactly 0 a few sigma away from it."""
    picture = Image.fromarray(np.rint(cover * 255).astype(np.uint8))
    blurred = picture.filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(blurred, np.float32) / np.float32(255)


class Stencil:
    """Shapes cut out of paper; `cover()` is their union as a coverage."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.scale = size * FINE
        self.paper = Image.new("L", (self.scale, self.scale))
        self.pen = ImageDraw.Draw(self.paper)

    def polygon(self, points: Sequence[Point]) -> Stencil:
        self.pen.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=255)
        return self

    def disc(self, centre: Point, radius: float, fill: int = 255) -> Stencil:
        (x, y), r = (centre[0] * self.scale, centre[1] * self.scale), radius * self.scale
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        return self

    def line(self, points: Sequence[Point], width: float) -> Stencil:
        """A brush stroke with round ends."""
        thick = max(FINE, round(width * self.scale))  # at least one pixel of the picture
        self.pen.line([(x * self.scale, y * self.scale) for x, y in points], fill=255, width=thick, joint="curve")
        for end in (points[0], points[-1]):
            self.disc(end, width / 2)
        return self

    def cover(self) -> np.ndarray:
        return np.asarray(self.paper.reduce(FINE), np.float32) / np.float32(255)


@dataclass(frozen=True)
class Pose:
    """Where a thing lies: its centre, its angle (radians) and its scale."""

    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0
    scale: float = 1.0

    def local(
        self, size: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (u, v) of the pixels as the thing sees them: its centre is (0, 0)."""
        x, y = (line[rows, columns] for line in grid(size))
        c, s = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        return (x - self.x) * c + (y - self.y) * s, (y - self.y) * c - (x - self.x) * s

    def then(self, inner: Pose) -> Pose:
        """The pose in the picture of something that lies at `inner` on this thing."""
        ((x, y),) = self.place([(inner.x, inner.y)])
        return Pose(x, y, self.angle + inner.angle, self.scale * inner.scale)

    def place(self, points: Sequence[Point]) -> list[Point]:
        """Points of the thing, in the picture."""
        c, s = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        return [(self.x + u * c - v * s, self.y + u * s + v * c) for u, v in points]


def lit(surface: Surface, azimuth: float, elevation: float, ambient: float, doublings: int = 4) -> np.ndarray:
    """Colours (H, W, 3) under one distant light (radians; azimuth 0 is from the right) plus even light from all sides.

    A flat matt place keeps its colour. Slopes are diffuse, with a highlight of `gloss` on top that is narrower with
    each of the `doublings`.
    """
    slope_y, slope_x = (np.clip(s, -2, 2) for s in _slopes(surface.height))
    length = np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    lx, ly, lz = (
        np.float32(c)
        for c in (math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation))
    )
    facing = (lz - slope_x * lx - slope_y * ly) / length  # cosine between the normal and the light
    bright = ambient + (1 - ambient) * np.maximum(facing, 0) / lz
    half = np.float32(math.sqrt(2 + 2 * lz))  # length of light + view
    glint = np.maximum((facing + 1 / length) / half, 0)
    for _ in range(doublings):
        glint = glint * glint
    return surface.colour * bright[..., None] + (surface.gloss * glint)[..., None]


def _slopes(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences (down, across), one-sided at the border."""
    size = np.float32(len(height))
    padded = np.pad(height, 1, mode="edge")
    return (padded[2:, 1:-1] - padded[:-2, 1:-1]) * (size / 2), (padded[1:-1, 2:] - padded[1:-1, :-2]) * (size / 2)
