"""Everything as one 2-D picture that a vision-language model can look at, and the way back from the boxes it names.

A sample carries its kind in the names of its views:

    image               a picture                                               sent as it is
    points              a point cloud, (N, 3) or (h, w, 3) float                views from nine sides, tiled
    frame_0, frame_1    a clip, a picture per frame                             frames of it, tiled, numbered
    series              a time series, (T,) or (T, C) float                     drawn as curves
    light_0, light_1    one thing under several lights (or cameras, camera_0)   tiled, named
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import WrongInput
from ..images import resize, to_8bit
from ..regions import find_regions
from ..types import Region, Sample, View
from .answers import GRID, Box
from .point_clouds import FRONT, NINE, Mode, Rendering, camera_axes, points_in, render

Kind = Literal["image", "points", "video", "series", "lights"]
PixelBox = tuple[int, int, int, int]

KINDS: tuple[Kind, ...] = ("points", "video", "series", "lights", "image")  # the most particular first
GAP = 4  # pixels of white between tiles
CELL = 384  # longer side of a frame in its tile, pixels
PLOT = (384, 1024)  # height, width
MARGIN = (24, 20, 40, 96)  # around the curves: top, right, bottom, left
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
MARK = (255, 255, 0)


@dataclass(frozen=True)
class Place:
    """Where a box of an answer lies in the sample: in words ("frame 12"), and in pixels of the sample's own picture."""

    words: str = ""
    box: PixelBox | None = None


class Shown(Protocol):
    """A sample as a picture, (h, w, 3) uint8 or uint16. size: (H, W) of the sample's own picture or grid, else None."""

    @property
    def kind(self) -> Kind: ...
    @property
    def picture(self) -> np.ndarray: ...
    @property
    def size(self) -> tuple[int, int] | None: ...

    def place(self, box: Box) -> Place: ...

    def mask(self, boxes: Sequence[Box]) -> np.ndarray | None:
        """(H, W) bool: what lies in the boxes together; None where the sample has no such grid."""


def kind_of(sample: Sample) -> Kind:
    """What a sample is, by its views; of several kinds the most particular.

    Raises:
        WrongInput: none of them.
    """
    for kind in KINDS:
        if _views(sample, kind):
            return kind
    raise WrongInput(
        f"sample {sample.id} has views {tuple(sample.views)}; image, points, series, frame_0... or light_0... is needed."
    )


def show(
    sample: Sample,
    look: Kind | Literal["auto"] = "auto",
    *,
    sides: int = 9,
    surface: Mode = "shaded",
    without_plane: bool = False,
    frames: int = 9,
    fps: float = 0.0,
) -> Shown:
    """A sample as one picture.

    Args:
        look: which kind to look at, where a sample has several.
        sides: views of a point cloud, 9 or 1. surface, without_plane: see `render`.
        frames: of a clip, evenly spread; only these are read. fps: frames a second, to write the time on them; 0 unknown.

    Raises:
        WrongInput: it lacks the views, or they hold something else. Unreadable: a file is damaged.
    """
    kind = kind_of(sample) if look == "auto" else look
    names = _views(sample, kind)
    if kind == "image" or not names:
        name = {"lights": "light_0", "video": "frame_0"}.get(kind, kind)
        return Whole(sample.image(name))
    if kind == "points":
        return cloud(sample, sides, surface, without_plane)
    if kind == "series":
        return plot(sample.image("series"), sample.id)
    if kind == "video":
        chosen = spread(len(names), frames)
        numbers = [int(names[i].rpartition("_")[2]) for i in chosen]
        captions = [f"{n} ({n / fps:.2f} s)" if fps else str(n) for n in numbers]
        return tiled("video", [sample.image(names[i]) for i in chosen], captions, "frame ")
    return tiled("lights", [sample.image(n) for n in names], [n.replace("_", " ") for n in names])


def _views(sample: Sample, kind: Kind) -> list[str]:
    """The views that make a kind, in order."""
    pattern = {"video": r"frame_\d+", "lights": r"(light|camera)_\d+"}.get(kind, kind)
    names = [n for n in sample.views if re.fullmatch(pattern, n)]
    return sorted(names, key=lambda n: (n.rpartition("_")[0], int(n.rpartition("_")[2]))) if "_" in pattern else names


# Pictures.


@dataclass(frozen=True, eq=False)
class Whole:
    """A picture, sent as it is."""

    picture: np.ndarray
    kind: Kind = "image"

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]

    def place(self, box: Box) -> Place:
        return Place(box=_on_pixels(box, self.size))

    def mask(self, boxes: Sequence[Box]) -> np.ndarray:
        return _painted([_on_pixels(box, self.size) for box in boxes], self.size)


def crops(picture: np.ndarray, rows: int, columns: int, overlap: float = 0.1) -> list[np.ndarray]:
    """rows x columns parts in row order; each reaches `overlap` of its side over its borders."""
    h, w = picture.shape[:2]

    def ranges(length: int, count: int) -> list[tuple[int, int]]:
        side = length / count
        spill = overlap * side / 2
        return [
            (max(0, math.floor(i * side - spill)), min(length, math.ceil((i + 1) * side + spill))) for i in range(count)
        ]

    return [picture[y0:y1, x0:x1] for y0, y1 in ranges(h, rows) for x0, x1 in ranges(w, columns)]


def marked(picture: np.ndarray, marks: Sequence[Region | np.ndarray]) -> np.ndarray:
    """A copy with the outline and the number (from 1) of each mark: regions, or masks (H, W) bool."""
    image = Image.fromarray(to_8bit(picture))
    draw = ImageDraw.Draw(image)
    scale = max(1, round(max(image.size) / 512))
    for number, mark in enumerate(marks, 1):
        parts = (mark,) if isinstance(mark, Region) else find_regions(mark.astype(np.float32), 0.5, 0.5)
        for part in parts:
            x0, y0, x1, y1 = part.box
            corners = list(part.outline) or [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
            draw.line([*corners, corners[0]], fill=(0, 0, 0), width=3 * scale)
            draw.line([*corners, corners[0]], fill=MARK, width=scale)
        if parts:
            _write(draw, (parts[0].box[0], parts[0].box[1]), str(number), 20 * scale)
    return np.asarray(image)


def likeness(picture: np.ndarray) -> np.ndarray:
    """(64 + 1024,) float32: a histogram of hue, saturation and value, 4 bins each, and a 32 x 32 grey thumbnail in [0, 1]."""
    image = Image.fromarray(to_8bit(picture))
    hsv = np.asarray(image.convert("HSV")).reshape(-1, 3) + np.array([32, 0, 0], np.uint8)  # red amid a bin: hue wraps
    bins = hsv.astype(np.int64) // 64
    histogram = np.bincount(bins @ [16, 4, 1], minlength=64) / len(bins)
    thumbnail = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR)).ravel() / 255.0
    return np.concatenate([histogram, thumbnail]).astype(np.float32)


def unlikeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of `likeness` vectors along the last axis, in [0, 2]: half the L1 of histograms, mean of thumbnails."""
    apart = np.abs(a - b)
    return apart[..., :64].sum(-1) / 2 + apart[..., 64:].mean(-1)


# Several pictures as one: clips, lights, views of a cloud.


@dataclass(frozen=True, eq=False)
class Tiles:
    """Pictures beside each other. cells: their boxes in the tiled picture; names: what each is, in words.

    size: (H, W) that all of them had, where they show the same scene.
    """

    picture: np.ndarray
    cells: tuple[PixelBox, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    kind: Kind

    @property
    def size(self) -> tuple[int, int] | None:
        return self.sizes[0] if self.kind == "lights" and len(set(self.sizes)) == 1 else None

    def place(self, box: Box) -> Place:
        cell, inside = in_cell(box, self.picture.shape, self.cells)
        return Place(self.names[cell], _on_pixels(inside, self.sizes[cell]))

    def mask(self, boxes: Sequence[Box]) -> np.ndarray | None:
        if self.size is None:
            return None
        return _painted([self.place(box).box for box in boxes], self.size)


def tiled(kind: Kind, pictures: Sequence[np.ndarray], captions: Sequence[str], what: str = "") -> Tiles:
    """A grid of ceil(sqrt(n)) columns, row by row, each picture scaled to CELL with its caption in the corner."""
    if not pictures:
        raise WrongInput("tiling needs at least one picture; got none.")
    scaled = []
    for picture in pictures:
        factor = CELL / max(picture.shape[:2])
        size = (max(1, round(picture.shape[0] * factor)), max(1, round(picture.shape[1] * factor)))
        scaled.append(to_8bit(resize(picture, size, "bicubic")))
    whole, cells = _grid(scaled, captions)
    sizes = tuple((p.shape[0], p.shape[1]) for p in pictures)
    return Tiles(whole, cells, tuple(f"{what}{c}" for c in captions), sizes, kind)


def _grid(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> tuple[np.ndarray, tuple[PixelBox, ...]]:
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    tall, wide = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    whole = np.full((rows * (tall + GAP) - GAP, columns * (wide + GAP) - GAP, 3), 255, np.uint8)
    cells = []
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (tall + GAP), (i % columns) * (wide + GAP)
        h, w = picture.shape[:2]
        whole[y : y + h, x : x + w] = picture
        cells.append((x, y, x + w, y + h))
    image = Image.fromarray(whole)
    draw = ImageDraw.Draw(image)
    for (x, y, _, _), caption in zip(cells, captions, strict=True):
        _write(draw, (x + 6, y + 4), caption, 24)
    return np.asarray(image), tuple(cells)


def in_cell(box: Box, shape: Sequence[int], cells: Sequence[PixelBox]) -> tuple[int, Box]:
    """The cell of a tiled picture (h, w) that a box covers most of, or lies nearest to, and the box within it, 0..GRID."""
    h, w = shape[:2]
    x0, y0, x1, y1 = box[0] * w / GRID, box[1] * h / GRID, box[2] * w / GRID, box[3] * h / GRID
    shared, away = [], []
    for cx0, cy0, cx1, cy1 in cells:
        shared.append(max(0.0, min(x1, cx1) - max(x0, cx0)) * max(0.0, min(y1, cy1) - max(y0, cy0)))
        away.append(math.hypot((x0 + x1 - cx0 - cx1) / 2, (y0 + y1 - cy0 - cy1) / 2))
    cell = int(np.argmax(shared)) if max(shared) > 0 else int(np.argmin(away))
    cx0, cy0, cx1, cy1 = cells[cell]

    def scaled(value: float, low: int, high: int) -> float:
        return min(max(GRID * (value - low) / (high - low), 0.0), float(GRID))

    return cell, (scaled(x0, cx0, cx1), scaled(y0, cy0, cy1), scaled(x1, cx0, cx1), scaled(y1, cy0, cy1))


@dataclass(frozen=True, eq=False)
class Cloud:
    """Views of a point cloud, tiled. size: (h, w) of an organised one."""

    picture: np.ndarray
    cells: tuple[PixelBox, ...]
    views: tuple[Rendering, ...]
    size: tuple[int, int] | None
    kind: Kind = "points"

    def place(self, box: Box) -> Place:
        cell, _ = in_cell(box, self.picture.shape, self.cells)
        mask = self.mask([box])
        found = find_box(mask) if mask is not None else None
        return Place(f"view {cell + 1}", found)

    def points(self, boxes: Sequence[Box]) -> np.ndarray:
        """(N,) bool: the points that the boxes hold together, see `points_in`."""
        own: list[list[Box]] = [[] for _ in self.views]
        for box in boxes:
            cell, inside = in_cell(box, self.picture.shape, self.cells)
            side = len(self.views[cell].picture)
            x0, y0, x1, y1 = (v * side / GRID for v in inside)
            own[cell].append((x0, y0, x1, y1))
        return points_in(self.views, own)

    def mask(self, boxes: Sequence[Box]) -> np.ndarray | None:
        return None if self.size is None else self.points(boxes).reshape(self.size)


def cloud(sample: Sample, sides: int = 9, surface: Mode = "shaded", without_plane: bool = False) -> Cloud:
    """The view `points` from `sides` sides; with surface "rgb", coloured by the view `image` of the same size."""
    points = np.asarray(sample.image("points"))
    if sides not in (1, len(NINE)):
        raise WrongInput(f"a point cloud is looked at from 1 or {len(NINE)} sides; got {sides}.")
    rgb = to_8bit(sample.image()) if surface == "rgb" else None
    try:
        views = render(
            points, rgb, angles=FRONT if sides == 1 else NINE, mode=surface, without_plane=without_plane
        )  # fmt: skip
    except WrongInput as error:
        raise WrongInput(f"sample {sample.id}: {error}") from None
    whole, cells = _grid([v.picture for v in views], [str(i + 1) for i in range(len(views))] if sides > 1 else [""])
    return Cloud(whole, cells, tuple(views), (points.shape[0], points.shape[1]) if points.ndim == 3 else None)


def on_its_grid(sample: Sample) -> np.ndarray:
    """(h, w, 3) uint8, for people: a cloud or curves drawn so that maps and boxes on them have their places.

    An organised cloud by its depth, near is bright and what is missing white; others as they are sent.

    Raises:
        WrongInput: see `show`.
    """
    points = sample.image("points") if "points" in sample.views else np.empty(0)
    if points.ndim != 3:
        return to_8bit(show(sample).picture)
    valid = np.asarray(np.isfinite(points).all(axis=2) & points.any(axis=2))
    towards = -1 if camera_axes(points, valid) else 1
    depth = np.where(valid, towards * points[..., 2].astype(np.float64), np.nan)
    low, high = np.nanquantile(depth, (0.02, 0.98)) if np.isfinite(depth).any() else (0.0, 1.0)
    grey = np.clip((depth - low) / max(high - low, 1e-12), 0, 1) * 200 + 30
    return np.repeat(np.nan_to_num(grey, nan=255.0).astype(np.uint8)[..., None], 3, axis=2)


# Clips.


def spread(count: int, chosen: int) -> list[int]:
    """`chosen` of `count` indices, evenly spread: round((i + 1/2) count / chosen - 1/2); all where there are fewer."""
    if count <= chosen:
        return list(range(count))
    return [math.floor((i + 0.5) * count / chosen) for i in range(chosen)]


def starts(count: int, length: int = 16, hop: int = 8) -> list[int]:
    """First frames of windows over `count` frames; the last window ends with the last frame."""
    if length < 1 or hop < 1:
        raise WrongInput(f"windows have a length and a hop of at least 1 frame; got {length} and {hop}.")
    last = max(count - length, 0)
    return sorted({*range(0, last + 1, hop), last}) if count else []


def clips(frames: Sequence[Sample], length: int = 16, hop: int = 8) -> list[Sample]:
    """Windows over the frames (samples with a view `image`) of one video, in order, as samples to judge.

    A clip is anomalous if one of its frames is; its id is that of its first frame and its length.
    """
    found = []
    for start in starts(len(frames), length, hop):
        some = frames[start : start + length]
        views = {f"frame_{start + i}": _renamed(f, f"frame_{start + i}") for i, f in enumerate(some)}
        labels = [f.label for f in some if f.label is not None]
        id = f"{some[0].id}+{len(some)}"
        found.append(replace(some[0], id=id, views=views, label=max(labels, default=None), mask=None))
    return found


def _renamed(frame: Sample, name: str) -> View:
    if "image" not in frame.views:
        raise WrongInput(f"frame {frame.id} has views {tuple(frame.views)}; a view named 'image' is needed.")
    return replace(frame.views["image"], name=name)


def frame_scores(scores: Sequence[float], count: int, length: int = 16, hop: int = 8) -> np.ndarray:
    """Scores of `clips` to scores of their `count` frames: the mean over the windows that cover a frame.

    A window without a score (NaN) does not count; NaN where no window has one.
    """
    total, covered = np.zeros(count), np.zeros(count)
    for start, score in zip(starts(count, length, hop), scores, strict=True):
        if not math.isnan(score):
            total[start : start + length] += score
            covered[start : start + length] += 1
    return np.where(covered > 0, total / np.maximum(covered, 1), np.nan)


# Time series.


@dataclass(frozen=True, eq=False)
class Plot:
    """Curves of a time series of `length` values."""

    picture: np.ndarray
    length: int
    kind: Kind = "series"
    size: None = None

    def place(self, box: Box) -> Place:
        first, last = self.span(box)
        return Place(f"from {first} to {last}")

    def span(self, box: Box) -> tuple[int, int]:
        """First and last index under a box."""
        left, right = MARGIN[3], PLOT[1] - MARGIN[1]
        at = [(x * PLOT[1] / GRID - left) / (right - left) * max(self.length - 1, 0) for x in (box[0], box[2])]
        first, last = (min(max(round(v), 0), self.length - 1) for v in at)
        return first, last

    def mask(self, boxes: Sequence[Box]) -> None:
        return None


def plot(values: np.ndarray, name: str = "") -> Plot:
    """Draw (T,) or (T, C) as lines over a frame with the lowest and highest value, and the first and last index."""
    series = np.asarray(values, np.float64)
    series = series[:, None] if series.ndim == 1 else series
    if series.ndim != 2 or not series.size or not np.isfinite(series).any():
        raise WrongInput(f"sample {name}: a time series is (T,) or (T, C) with finite values; got {np.shape(values)}.")
    (height, width), (top, right, bottom, left) = PLOT, MARGIN
    image = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    low, high = float(np.nanmin(series[np.isfinite(series)])), float(np.nanmax(series[np.isfinite(series)]))
    draw.rectangle((left, top, width - right, height - bottom), outline=(160, 160, 160))
    font = _font(16)
    draw.text((left - 6, top), f"{high:.4g}", fill=(0, 0, 0), font=font, anchor="rt")
    draw.text((left - 6, height - bottom), f"{low:.4g}", fill=(0, 0, 0), font=font, anchor="rb")
    draw.text((left, height - bottom + 6), "0", fill=(0, 0, 0), font=font, anchor="lt")
    draw.text((width - right, height - bottom + 6), str(len(series) - 1), fill=(0, 0, 0), font=font, anchor="rt")
    x = left + np.arange(len(series)) * (width - right - left) / max(len(series) - 1, 1)
    rise = (series - low) / (high - low) if high > low else np.full_like(series, 0.5)
    y = height - bottom - rise * (height - bottom - top)
    for c in range(series.shape[1]):
        colour = COLOURS[c % len(COLOURS)]
        for run in _runs(np.isfinite(series[:, c])):
            points = list(zip(x[run].tolist(), y[run, c].tolist(), strict=True))
            if len(points) == 1:
                draw.point(points, fill=colour)
            draw.line(points, fill=colour, width=2)
    return Plot(np.asarray(image), len(series))


def _runs(there: np.ndarray) -> Iterable[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    return (slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True))


# Small things.


def find_box(mask: np.ndarray) -> PixelBox | None:
    """The box around everything True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _on_pixels(box: Box, size: tuple[int, int]) -> PixelBox:
    """0..GRID to whole pixels of (H, W) that the box touches, at least one."""
    h, w = size
    x0, y0 = min(math.floor(box[0] * w / GRID), w - 1), min(math.floor(box[1] * h / GRID), h - 1)
    return x0, y0, max(x0 + 1, math.ceil(box[2] * w / GRID)), max(y0 + 1, math.ceil(box[3] * h / GRID))


def _painted(boxes: Iterable[PixelBox | None], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    for box in boxes:
        if box is not None:
            mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int) -> None:
    draw.text(at, text, fill=(255, 255, 255), font=_font(size), stroke_width=max(1, size // 10), stroke_fill=(0, 0, 0))


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
