"""Masks from outlines and run lengths: what annotation tools export.

Coordinates are (x, y) with the origin at the top left corner of the top left pixel, whose middle is (0.5, 0.5). A pixel
is inside when its middle is; Pillow's own polygons also take the outline and would be a pixel too large.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import WrongInput

Point = Sequence[float]


def fill_annotation(total: np.ndarray, segmentation: Any, box: Any, source: str) -> None:
    """Set what one annotation covers in a mask (H, W) bool; source is named in errors.

    Raises:
        WrongInput: an annotation that does not fit the picture.
    """
    try:
        if isinstance(segmentation, dict):
            total |= decode_runs(segmentation["counts"], tuple(segmentation["size"]))
        elif segmentation:
            for outline in segmentation:
                fill_polygon(total, np.reshape(outline, (-1, 2)))
        else:
            x, y, width, height = box
            fill_polygon(total, [(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    except (ValueError, TypeError, KeyError) as error:
        raise WrongInput(
            f"an annotation of {source} does not fit it ({error}); export the annotations again."
        ) from None


def fill_shape(total: np.ndarray, shape: dict[str, Any], source: str) -> None:
    """Set what one shape covers in a mask (H, W) bool; source is named in errors.

    Raises:
        WrongInput: a shape of another type, or one that is damaged.
    """
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    try:
        if kind == "polygon":
            fill_polygon(total, points)
        elif kind == "rectangle":
            (x0, y0), (x1, y1) = points
            fill_polygon(total, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        elif kind == "circle":
            fill_circle(total, *points)
        elif kind in ("line", "linestrip", "point"):
            draw_line(total, points)
        elif kind == "points":
            for point in points:
                draw_line(total, [point])
        elif kind == "mask":
            _paste(total, points[0], shape["mask"])
        else:
            raise WrongInput(f"{source} has a shape of the type {kind!r}; draw it as a polygon.")
    except (ValueError, TypeError, IndexError, OSError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"a shape {kind} of {source} is damaged ({error}); draw it again.") from None


def _paste(total: np.ndarray, corner: Sequence[float], text: str) -> None:
    """A small mask, PNG in base64, with its top left pixel at a corner."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        small = np.asarray(image.convert("L")) != 0
    x, y = round(corner[0]), round(corner[1])
    place = total[y : y + small.shape[0], x : x + small.shape[1]]
    place |= small[: place.shape[0], : place.shape[1]]


def fill_polygon(mask: np.ndarray, points: Sequence[Point] | np.ndarray) -> None:
    """Set the inside of a closed polygon, even-odd, in a mask (H, W) bool; outside of the picture it is cut off."""
    corners = np.asarray(points, np.float64).reshape(-1, 2)
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, axis=0).T
    middles = np.arange(mask.shape[1]) + 0.5
    first, last = max(math.floor(y0.min()), 0), min(math.ceil(y0.max()), mask.shape[0])
    for row in range(first, last):
        y = row + 0.5
        crossed = (y0 <= y) != (y1 <= y)
        at = np.sort(x0[crossed] + (y - y0[crossed]) * (x1 - x0)[crossed] / (y1 - y0)[crossed])
        mask[row] |= np.searchsorted(at, middles, side="right") % 2 == 1


def fill_circle(mask: np.ndarray, centre: Point, on_rim: Point) -> None:
    """Set the inside of the circle around a centre through another point."""
    radius = math.dist(centre, on_rim)
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    mask |= (x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2 <= radius**2


def draw_line(mask: np.ndarray, points: Sequence[Point]) -> None:
    """Set the pixels that an open line of one pixel width, or a single point, touches."""
    canvas = Image.new("1", (mask.shape[1], mask.shape[0]))
    pixels = [(math.floor(x), math.floor(y)) for x, y in points]
    pen = ImageDraw.Draw(canvas)
    if len(pixels) > 1:
        pen.line(pixels, fill=1)
    else:
        pen.point(pixels, fill=1)
    mask |= np.asarray(canvas)


def decode_runs(counts: Sequence[int] | str, size: tuple[int, int]) -> np.ndarray:
    """A COCO run-length mask of size (height, width) as (H, W) bool; runs go down the columns and begin with zeros.

    Raises:
        ValueError: the runs do not add up to the size.
    """
    runs = _decode_text(counts) if isinstance(counts, str) else list(counts)
    height, width = size
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"runs of {sum(runs)} pixels for {width} x {height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decode_text(text: str) -> list[int]:
    """Compressed runs: groups of 5 bits from character 48 on, low first, 32 for more to come, signed.

    From the fourth run on, the difference to the run two before is stored.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
