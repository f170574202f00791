"""Patches of foreign texture in the shape of Perlin noise.

    from anomalens import synthesis
    sample = synthesis.create("perlin", textures="DTD/images")(normal, rng)      # a maker like the others

`PerlinDefects` is the same as the methods that learn from such defects use it: over the whole picture, of any size, on
(H, W, 3) float32 in [0, 1], sometimes without a defect. Everything random comes from the generator that is handed in.

Zavrtanik, Kristan, Skocaj 2021 (DRAEM), https://arxiv.org/abs/2108.07610, as Bai et al. 2024 (DFD) use it,
https://arxiv.org/abs/2403.04151. Noise: Perlin 2002, https://doi.org/10.1145/566654.566636
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..datasets import _draw
from ..errors import NotMade, WrongInput
from ..images import SUFFIXES, read_image, resize, to_8bit, to_float
from ..regions import otsu
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend
from ._shapes import fitted

CARD = MakerCard(
    title="Perlin",
    summary="islands of foreign texture in the shape of Perlin noise",
    source="DRAEM, Zavrtanik et al. 2021, https://arxiv.org/abs/2108.07610",
    severity="opacity of the texture",
    levels=("structural",),
    needs="",
    extras=(),
    differs="the islands fill a box of the size asked for (paper: noise over the whole picture, of any size); textures "
    "are drawn where no folder of them is given (paper: DTD), and cut at their own scale (paper: resized)",
    limits="textures that occur nowhere else: easier to find than most real defects",
)

SQUARE = 256  # pixels of the noise that a defect is cut from
THRESHOLD = 0.5  # noise above it is defect
TURN = 90.0  # degrees: noise is turned by up to this, either way
OPACITY = 0.8  # most that is left of the picture inside a defect
FINEST = 5  # noise has 1, 2, ... 2 ** FINEST cells on each axis
CHANGES_AT_ONCE = 3

Rng = np.random.Generator


@dataclass(frozen=True)
class Pasted:
    """A picture with a drawn defect. image: (H, W, 3) float32. mask: (H, W) bool, all False where none was drawn."""

    image: np.ndarray
    mask: np.ndarray

    @property
    def label(self) -> int:
        return int(self.mask.any())


@dataclass(frozen=True)
class PerlinDefects:
    """Makes defects in pictures.

    textures: a folder whose pictures, at any depth, are the foreign textures (DTD is the usual one); "" draws them.
    normal_share: of the calls that leave the picture as it is.

    Raises:
        WrongInput: no picture in the folder; when the first defect is made.
    """

    textures: str = ""
    normal_share: float = 0.2

    def __call__(self, image: np.ndarray, rng: Rng, foreground: np.ndarray | None = None) -> Pasted:
        """A copy of the image with a defect.

        foreground: (H, W) bool, where a defect may be; None is everywhere. A mask may be empty all the same: the noise
            may be below its threshold wherever something may be.
        """
        size = image.shape[:2]
        texture = to_float(changed(self.texture(size, rng), rng))
        noise = turned(drawn_noise(size, rng), float(rng.uniform(-TURN, TURN)))
        opacity = float(rng.uniform(0, OPACITY))
        if rng.random() > 1 - self.normal_share:
            return Pasted(image.copy(), np.zeros(size, bool))
        return paste(image, texture, noise, opacity, foreground)

    def texture(self, size: tuple[int, int], rng: Rng) -> np.ndarray:
        """(H, W, 3) uint8: a picture of the folder, or a drawn one."""
        if not self.textures:
            return drawn_texture(size, rng)
        return to_8bit(resize(read_image(self.files[rng.integers(len(self.files))]), size))

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The pictures of the folder, sorted."""
        found = tuple(sorted(p for p in Path(self.textures).expanduser().rglob("*") if p.suffix.lower() in SUFFIXES))
        if not found:
            raise WrongInput(
                f"textures={self.textures!r} holds no picture; give a folder of pictures, or '' to draw them."
            )
        return found


@dataclass
class Perlin(Maker):
    """textures: a folder whose pictures, at any depth, are the foreign textures (DTD is the usual one); "" draws them.

    The other settings are those of every maker.
    """

    size: tuple[float, float] = (0.1, 0.4)
    textures: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source = PerlinDefects(self.textures)
        if self.textures:
            _ = self._source.files  # a folder without pictures is refused now

    def draw(self, draft: Draft) -> Change:
        rng = draft.rng
        exponents = rng.integers(1, 5, 2)  # 2 to 16 cells across
        noise = perlin_noise(
            (SQUARE, SQUARE), rng.uniform(0, 2 * math.pi, (2 ** exponents[0] + 1, 2 ** exponents[1] + 1))
        )
        islands = turned(noise, float(rng.uniform(-TURN, TURN))) > THRESHOLD
        if not islands.any():
            raise NotMade("the noise was nowhere above its threshold.")
        cover = fitted(islands.astype(np.float32), draft.length)
        box = draft.place(*cover.shape)
        texture = to_float(changed(self._cut(cover.shape, rng), rng))
        under = draft.cut(box)
        return Change(box, blend(under, dict.fromkeys(under, texture), draft.severity * cover))

    def _cut(self, size: tuple[int, ...], rng: Rng) -> np.ndarray:
        """(h, w, 3) uint8: part of a texture of the folder, or a drawn one."""
        height, width = size
        if not self.textures:
            return drawn_texture((height, width), rng)
        picture = to_8bit(read_image(self._source.files[rng.integers(len(self._source.files))]))
        if picture.shape[0] < height or picture.shape[1] < width:
            return resize(picture, (height, width))
        top, left = (int(rng.integers(n - side + 1)) for n, side in zip(picture.shape, (height, width), strict=False))
        return picture[top : top + height, left : left + width]


MAKER = Perlin


def paste(
    image: np.ndarray, texture: np.ndarray, noise: np.ndarray, opacity: float, foreground: np.ndarray | None = None
) -> Pasted:
    """(1 - M) I + M ((1 - opacity) A + opacity I), where M is the foreground with noise above THRESHOLD.

    image I, texture A: (H, W, 3) in [0, 1]. noise: (H, W). opacity: of the image inside M.
    """
    mask = noise > THRESHOLD
    if foreground is not None:
        mask &= foreground.astype(bool)
    blended = (1 - opacity) * texture + opacity * image
    return Pasted(np.where(mask[..., None], blended, image).astype(image.dtype), mask)


# --- noise ------------------------------------------------------------------------------------------------------------


def perlin_noise(size: tuple[int, int], angles: np.ndarray) -> np.ndarray:
    """Perlin noise (H, W) float64 in about [-1, 1], of standard deviation about 0.3.

    angles: (cells down + 1, cells across + 1), the direction of the gradient at each corner, radians, 0 is down. The
        cells must divide the size.
    """
    places, corners = [], []
    for n, points in zip(size, angles.shape, strict=True):
        if n % (points - 1):
            raise WrongInput(f"Perlin noise of {points - 1} cells does not fit {n} pixels; the cells must divide them.")
        step = n // (points - 1)
        corner = np.arange(n) // step
        corners.append(corner)
        places.append(np.arange(n) / step - corner)
    y, x = places[0][:, None], places[1][None, :]
    row, column = corners[0][:, None], corners[1][None, :]
    down, across = np.cos(angles), np.sin(angles)

    def towards(i: int, j: int) -> np.ndarray:
        """Product of the gradient at a corner of the cell with the way from there."""
        return down[row + i, column + j] * (y - i) + across[row + i, column + j] * (x - j)

    def fade(t: np.ndarray) -> np.ndarray:
        return t**3 * (t * (6 * t - 15) + 10)

    def between(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
        return a + t * (b - a)

    above = between(towards(0, 0), towards(0, 1), fade(x))
    below = between(towards(1, 0), towards(1, 1), fade(x))
    return math.sqrt(2) * between(above, below, fade(y))


def drawn_noise(size: tuple[int, int], rng: Rng) -> np.ndarray:
    """Perlin noise (H, W) with a drawn number of cells, a power of two, on each axis."""
    cells = [2 ** int(rng.choice([e for e in range(FINEST + 1) if n % 2**e == 0])) for n in size]
    return perlin_noise(size, rng.uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1)))


def turned(plane: np.ndarray, degrees: float, fill: float = 0.0) -> np.ndarray:
    """(H, W) -> (H, W) float32, turned about the centre, bilinear."""
    picture = Image.fromarray(plane.astype(np.float32))
    return np.asarray(picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill))


# --- where a defect may be --------------------------------------------------------------------------------------------


def foreground(image: np.ndarray, side: Literal["bright", "dark"]) -> np.ndarray:
    """(H, W) bool: the brighter or darker part of a picture, split by Otsu's threshold of its grey values.

    image: (H, W, 3) in [0, 1].
    """
    grey = np.rint(image @ np.array([0.299, 0.587, 0.114], image.dtype) * 255).clip(0, 255).astype(np.uint8)
    bright = grey > otsu(grey)
    return bright if side == "bright" else ~bright


# --- textures ---------------------------------------------------------------------------------------------------------


def changed(texture: np.ndarray, rng: Rng) -> np.ndarray:
    """(H, W, 3) uint8 -> uint8: three different ones of ten changes of tone, colour and angle, in a drawn order."""
    picture = Image.fromarray(texture)
    for i in rng.choice(len(CHANGES), CHANGES_AT_ONCE, replace=False):
        picture = CHANGES[i](picture, rng)
    return np.array(picture)


def _gamma(picture: Image.Image, rng: Rng) -> Image.Image:
    tables = [255 * (np.arange(256) / 255) ** exponent for exponent in rng.uniform(0.5, 2.0, 3)]
    return picture.point(np.rint(np.concatenate(tables)).astype(int).tolist())


def _brightness(picture: Image.Image, rng: Rng) -> Image.Image:
    factor, added = rng.uniform((0.8, -30), (1.2, 30)).tolist()
    y, cb, cr = picture.convert("YCbCr").split()
    y = y.point(np.clip(np.rint(np.arange(256) * factor + added), 0, 255).astype(int).tolist())
    return Image.merge("YCbCr", (y, cb, cr)).convert("RGB")


def _sharpness(picture: Image.Image, rng: Rng) -> Image.Image:
    return ImageEnhance.Sharpness(picture).enhance(float(rng.uniform(0.1, 1.9)))


def _hue_and_saturation(picture: Image.Image, rng: Rng) -> Image.Image:
    turn, added = rng.integers(-50, 51, 2).tolist()
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(v + turn) % 256 for v in range(256)])
    saturation = saturation.point([min(max(v + added, 0), 255) for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _solarize(picture: Image.Image, rng: Rng) -> Image.Image:
    threshold, chance = int(rng.integers(32, 129)), rng.random()
    return ImageOps.solarize(picture, threshold) if chance < 0.5 else picture


def _posterize(picture: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.posterize(picture, int(rng.integers(1, 9)))


def _invert(picture: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.invert(picture)


def _auto_contrast(picture: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.equalize(picture)


def _rotate(picture: Image.Image, rng: Rng) -> Image.Image:
    return picture.rotate(float(rng.uniform(-45, 45)), Image.Resampling.BILINEAR)


CHANGES: tuple[Callable[[Image.Image, Rng], Image.Image], ...] = (
    _gamma, _brightness, _sharpness, _hue_and_saturation, _solarize, _posterize, _invert, _auto_contrast, _equalize, _rotate,
)  # fmt: skip


def drawn_texture(size: tuple[int, int], rng: Rng) -> np.ndarray:
    """(H, W, 3) uint8: clouds, stripes or cells in drawn colours."""
    side = max(size)
    kind = ("clouds", "stripes", "cells")[rng.integers(3)]
    ground, paint = rng.random((2, 3), np.float32)
    finest = int(rng.integers(3, max(4, side // 6)))
    turn = _draw.Pose(angle=float(rng.uniform(0, math.pi)))
    u, v = (c * finest for c in turn.local(side))
    if kind == "clouds":
        cover = 0.5 + _draw.noise(rng, side, finest, octaves=2)
    elif kind == "stripes":
        bend = 0.3 * _draw.noise(rng, side, 4)
        cover = _draw.step(np.sin(2 * math.pi * (u + bend)), float(rng.uniform(-1, -0.05)), float(rng.uniform(0.05, 1)))
    else:
        near, far, index = _draw.cells(rng, u, v)
        tint = rng.random(4096, np.float32)[index]
        cover = tint * _draw.step(far - near, 0.0, 0.2)
    cover = np.clip(cover, 0, 1).astype(np.float32)
    colour = _draw.mix(ground, paint, cover) + np.float32(0.03) * rng.standard_normal((side, side, 1), np.float32)
    return np.rint(np.clip(colour[: size[0], : size[1]], 0, 1) * 255).astype(np.uint8)
