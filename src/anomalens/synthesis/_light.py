"""What light and sensor do to a picture: (H, W, 3) uint8 or uint16 in and out, the place of every pixel stays.

Light adds up and noise arises before a camera applies its tone curve, so they act on linear light in [0, 1].
Random numbers are drawn before anything depends on the amount: every grade has the same direction, spot and noise.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from ..images import to_8bit, to_float


@lru_cache(maxsize=2)
def _tone(top: int) -> np.ndarray:
    """Linear light (top + 1,) float32 of every pixel value, IEC 61966-2-1 (sRGB)."""
    x = np.arange(top + 1) / top
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_linear(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 -> linear light, float32 in [0, 1]."""
    return np.take(_tone(np.iinfo(picture.dtype).max), picture)


def from_linear(light: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Linear light, clipped to [0, 1] -> pixel values."""
    light = np.clip(light, 0, 1)
    curved = np.float32(1.055) * np.power(light, np.float32(1 / 2.4)) - np.float32(0.055)
    return quantised(np.where(light <= 0.0031308, light * np.float32(12.92), curved), dtype)


def quantised(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float in about [0, 1] -> pixel values, rounded."""
    top = np.iinfo(dtype).max
    return np.rint(np.clip(x, 0, 1) * np.float32(top)).astype(dtype)


def gradient(picture: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Light that falls off across the picture: times 1 + amount * ramp, the ramp from -1 to 1 between two corners."""
    along = _ramp(picture.shape, rng.uniform(0, 2 * math.pi))
    return from_linear(to_linear(picture) * (1 + amount * along / abs(along).max())[..., None], picture.dtype)


def spot(picture: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """A lamp that shines into the lens: adds a Gaussian of 0.22 short sides around a drawn place."""
    height, width = picture.shape[:2]
    x, y = rng.random(2) * (width, height)
    sigma = 0.22 * min(height, width)
    across = np.exp(-((np.arange(width) + 0.5 - x) ** 2) / (2 * sigma**2)).astype(np.float32)
    down = np.exp(-((np.arange(height) + 0.5 - y) ** 2) / (2 * sigma**2)).astype(np.float32)
    added = np.float32(amount) * down[:, None] * across
    return from_linear(to_linear(picture) + added[..., None], picture.dtype)


def gamma(picture: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Another tone curve: x ** amount or x ** (1 / amount) of the pixel values, darker or lighter is drawn."""
    exponent = amount if rng.random() < 0.5 else 1 / amount
    top = np.iinfo(picture.dtype).max
    table = quantised((np.arange(top + 1) / top) ** exponent, picture.dtype)
    return np.take(table, picture)


def cast(picture: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Another colour of light: gains of the channels with zero mean, the largest is 1 + amount or 1 - amount."""
    gains = rng.standard_normal(3)
    gains -= gains.mean()
    gains = 1 + amount * gains / abs(gains).max()
    return from_linear(to_linear(picture) * gains.astype(np.float32), picture.dtype)


def shadow(picture: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Something stands in the light: a half-plane is darker, its edge 0.05 short sides wide, through the middle third."""
    height, width = picture.shape[:2]
    along = _ramp(picture.shape, rng.uniform(0, 2 * math.pi))
    x, y = rng.uniform(1 / 3, 2 / 3, 2)
    edge = along[int(y * height), int(x * width)]
    dark = np.clip(0.5 + (along - edge) / (0.05 * min(height, width)), 0, 1)
    return from_linear(to_linear(picture) * (1 - np.float32(amount) * dark)[..., None], picture.dtype)


def gauss(picture: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of the amplifier: normal, of the same strength everywhere."""
    noise = rng.standard_normal(picture.shape, np.float32)
    return from_linear(to_linear(picture) + np.float32(sigma) * noise, picture.dtype)


def shot(picture: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of few photons: Poisson counts, `photons` on average where the picture is white.

    Counts are read off the distribution at one uniform number per value, the same at every grade. 16-bit pictures get
    the noise of their upper byte.
    """
    uniform = rng.random(picture.size)
    level = to_8bit(picture).ravel()
    reached = _poisson(photons)
    counts = np.empty(level.size, np.float32)
    order = np.argsort(level, kind="stable")
    ends = np.cumsum(np.bincount(level, minlength=256))
    for value, last in enumerate(ends):
        same = order[ends[value - 1] if value else 0 : last]
        counts[same] = np.searchsorted(reached[value], uniform[same])
    noise = counts / np.float32(photons) - _tone(255)[level]
    return from_linear(to_linear(picture) + noise.reshape(picture.shape), picture.dtype)


@lru_cache(maxsize=8)
def _poisson(photons: float) -> np.ndarray:
    """(256, K): how probable it is to count at most k photons, for each 8-bit value."""
    mean = np.maximum(_tone(255)[:, None].astype(float) * photons, 1e-300)
    k = np.arange(math.ceil(photons + 10 * math.sqrt(photons) + 20))
    log_factorial = np.cumsum(np.log(np.maximum(k, 1)))
    return np.cumsum(np.exp(k * np.log(mean) - mean - log_factorial), axis=1)


def defocus(picture: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """A lens out of focus: a disc of `radius` pixels where the short side has 256."""
    r = radius * _k(picture.shape)
    reach = math.ceil(r)
    d = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    return _blurred(picture, np.clip(r + 0.5 - d, 0, 1))


def motion(picture: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """A thing that moves during the exposure: a line of `length` pixels where the short side has 256, drawn angle."""
    angle = rng.uniform(0, math.pi)
    half = length * _k(picture.shape) / 2
    reach = math.ceil(half) + 1
    steps = np.linspace(-half, half, 8 * reach + 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    x, y = reach + steps * math.cos(angle), reach + steps * math.sin(angle)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
            np.add.at(kernel, (np.minimum(top + dy, 2 * reach), np.minimum(left + dx, 2 * reach)), weight)
    return _blurred(picture, kernel)


def lowres(picture: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """A camera with fewer pixels: averaged down to `factor` of the size, brought back with a cubic."""
    height, width = picture.shape[:2]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    x = to_float(picture)
    for c in range(3):
        plane = Image.fromarray(x[..., c]).resize(small, Image.Resampling.BOX)
        x[..., c] = plane.resize((width, height), Image.Resampling.BICUBIC)
    return quantised(x, picture.dtype)


def jpeg(picture: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Compression with colours at half resolution (4:2:0). JPEG has 8 bits: a 16-bit picture keeps its type alone."""
    file = io.BytesIO()
    Image.fromarray(to_8bit(picture)).save(file, "JPEG", quality=int(quality), subsampling=2)
    decoded = np.array(Image.open(file))
    return decoded if picture.dtype == np.uint8 else decoded.astype(np.uint16) * 257


CHANGES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "grad": gradient,
    "spot": spot,
    "gamma": gamma,
    "cast": cast,
    "shadow": shadow,
    "defocus": defocus,
    "motion": motion,
    "lowres": lowres,
    "gauss": gauss,
    "shot": shot,
    "jpeg": jpeg,
}


def _k(shape: tuple[int, ...]) -> float:
    """Lengths are meant for a short side of 256 pixels and grow with the picture."""
    return min(shape[:2]) / 256


def _ramp(shape: tuple[int, ...], angle: float) -> np.ndarray:
    """Distance (H, W) float32 in pixels from the centre along a direction."""
    height, width = shape[:2]
    x = (np.arange(width) + 0.5 - width / 2) * math.cos(angle)
    y = (np.arange(height) + 0.5 - height / 2) * math.sin(angle)
    return (x + y[:, None]).astype(np.float32)


def _blurred(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution with a kernel of odd size and any sum, the picture mirrored at its border."""
    reach = len(kernel) // 2
    height, width = picture.shape[:2]
    x = np.pad(to_float(picture), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    # The Fourier transform wraps around; multiples of 32 have small prime factors, which is fast.
    rows, columns = (-(-n // 32) * 32 for n in x.shape[:2])
    response = np.fft.rfft2(kernel / kernel.sum(), s=(rows, columns))
    out = np.empty(picture.shape, np.float32)
    for c in range(3):
        whole = np.fft.irfft2(np.fft.rfft2(x[..., c], s=(rows, columns)) * response, s=(rows, columns))
        out[..., c] = whole[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
    return quantised(out, picture.dtype)
