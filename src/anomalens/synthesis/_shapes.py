"""Outlines of defects: coverage (h, w) float32 in [0, 1] whose longest side is the length asked for, antialiased."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ..datasets import _draw

ROUGH = 6  # bumps around a blob


def fitted(cover: np.ndarray, length: int) -> np.ndarray:
    """Cut to what is covered, and resized so that the longer side is `length` pixels."""
    rows, columns = np.flatnonzero((cover > 0.5).any(axis=1)), np.flatnonzero((cover > 0.5).any(axis=0))
    tight = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = length / max(tight.shape)
    height, width = (max(1, round(n * scale)) for n in tight.shape)
    picture = Image.fromarray(tight.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    fitted = np.clip(np.asarray(picture), 0, 1)
    return fitted / fitted.max()  # what is thinner than a pixel shows all the same


def ellipse(length: int, rng: np.random.Generator) -> np.ndarray:
    """A turned ellipse; the shorter axis is 0.35 to 1 of the longer one."""
    size = max(64, min(length, 512))
    ratio, angle = _draw.numbers(rng, 0.35, 1.0, 1)[0], _draw.numbers(rng, 0, math.pi, 1)[0]
    u, v = _draw.Pose(angle=angle).local(size)
    return fitted(_draw.inside((np.hypot(u, v / ratio) - 0.45) * ratio, size), length)


def blob(length: int, rng: np.random.Generator, rough: float = 0.12) -> np.ndarray:
    """A turned ellipse with a wavy outline; rough: amplitude of a wave, as a share of the radius."""
    size = max(64, min(length, 512))
    ratio, angle = _draw.numbers(rng, 0.45, 1.0, 1)[0], _draw.numbers(rng, 0, math.pi, 1)[0]
    u, v = _draw.Pose(angle=angle).local(size)
    radius = 0.32 * (1 + _draw.wobble(rng, np.arctan2(v / ratio, u), -rough, rough, range(2, ROUGH)))
    return fitted(_draw.inside((np.hypot(u, v / ratio) - radius) * ratio, size), length)


def crop_to(shape: np.ndarray, *planes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Planes cut to the box of what a shape covers at all."""
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return tuple(plane[box] for plane in planes)
