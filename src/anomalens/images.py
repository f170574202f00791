"""Pictures on disk and in memory: the only place that decodes, resizes and encodes them.

A picture is (H, W, 3) RGB, uint8 or, where the file has more than 8 bits, uint16 over its full range. Grey is
repeated, transparency is laid over black, palettes and CMYK become RGB, EXIF orientation is applied. The full
resolution is always decoded (JPEG `draft` decoding would change pixels between fit and predict).
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from .errors import MissingExtra, Unreadable, WrongInput

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = int(os.environ.get("ANOMALENS_MAX_PIXELS", 200_000_000))  # width * height, checked before decoding
Image.MAX_IMAGE_PIXELS = None  # our own check comes first and is the same everywhere
# Pillow warns of odd metadata; what matters raises. Once for all: catch_warnings is not safe in threads that decode.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Interpolation = Literal["bilinear", "bicubic"]


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode one picture to (H, W, 3) uint8, or uint16 when the file stores more than 8 bits per channel.

    Raises:
        Unreadable: damaged, empty, not a picture, or more than MAX_PIXELS (environment ANOMALENS_MAX_PIXELS).
        MissingExtra: 16-bit colour needs `pip install anomalens[images]`.
    """
    return _decode(Path(path), _colour)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a mask to (H, W) bool: any non-zero value is True."""
    return _decode(Path(path), lambda image: np.asarray(image.convert("I")) != 0)


def _decode(path: Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        if path.stat().st_size == 0:
            raise Unreadable(f"{path} is empty (0 bytes); copy it again or leave it out.")
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(
                    f"{path} has {width} x {height} pixels, over the limit of {MAX_PIXELS:,}; "
                    "set ANOMALENS_MAX_PIXELS higher if this is meant."
                )
            if _deep_colour(path, image):
                return _deep(path)
            return convert(ImageOps.exif_transpose(image))
    except (Unreadable, MissingExtra):
        raise
    except FileNotFoundError:
        raise Unreadable(f"{path} does not exist.") from None
    except PermissionError:
        raise Unreadable(f"{path} cannot be read: permission denied.") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, MemoryError, IndexError) as error:
        kind = "is not a picture we can read" if "cannot identify" in str(error) else "is damaged"
        raise Unreadable(f"{path} {kind}; copy it again or leave it out.") from None


def _colour(image: Image.Image) -> np.ndarray:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError("32-bit integers")
        return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=2)
    if image.mode == "F":
        raise Unreadable(f"{image.filename} holds floating point values; save it as 8 or 16 bit.")  # type: ignore[attr-defined]
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image)
    return np.array(image.convert("RGB"))


def _deep_colour(path: Path, image: Image.Image) -> bool:
    """Whether this is a colour file of 16 bits per channel, which Pillow would silently cut to 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)
        return header[24] == 16 and header[25] in (2, 4, 6)
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        bits = bits if isinstance(bits, tuple) else (bits,)
        return max(bits) > 8 and len(bits) > 1
    return False


def _deep(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            from tifffile import imread as decode
        else:
            from imagecodecs import imread as decode
    except ImportError:
        raise MissingExtra(
            f"{path} stores 16-bit colour, which needs: pip install 'anomalens[images]' (or save it as 8 bit)."
        ) from None
    pixels = np.asarray(decode(str(path)))
    if pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise Unreadable(f"{path} decodes to {pixels.shape} {pixels.dtype}; 16-bit (H, W, channels) was expected.")
    if pixels.shape[0] in (3, 4) and pixels.shape[2] not in (2, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)  # planar TIFF
    if pixels.shape[2] in (2, 4):  # transparency over black, as for 8 bit
        alpha = pixels[..., -1:].astype(np.uint32)
        pixels = ((pixels[..., :-1] * alpha + 32767) // 65535).astype(np.uint16)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., :3])


def to_float(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 -> (H, W, 3) float32 in [0, 1]."""
    if picture.dtype == np.uint8:
        return picture.astype(np.float32) / np.float32(255)
    if picture.dtype == np.uint16:
        return picture.astype(np.float32) / np.float32(65535)
    raise WrongInput(f"a picture is uint8 or uint16; got {picture.dtype}.")


def resize(picture: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> np.ndarray:
    """Resize (H, W, 3) to size = (height, width) with antialiasing; the type stays."""
    if picture.shape[:2] == tuple(size):
        return picture
    kernel = Image.Resampling[interpolation.upper()]
    if picture.dtype == np.uint8:
        return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), kernel))
    channels = [
        Image.fromarray(picture[..., c].astype(np.float32)).resize((size[1], size[0]), kernel)
        for c in range(picture.shape[2])
    ]
    resized = np.rint(np.stack([np.asarray(c) for c in channels], axis=2))
    return np.clip(resized, 0, np.iinfo(picture.dtype).max).astype(picture.dtype)  # bicubic overshoots at edges


def to_8bit(picture: np.ndarray) -> np.ndarray:
    """For looking at: uint16 loses its low byte, uint8 stays."""
    return (picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture


def encode(pixels: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    """Encode (H, W), (H, W, 3) uint8 or (H, W) uint16 as the bytes of a PNG, JPEG or WEBP file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def encode_map(values: np.ndarray, top: float) -> bytes:
    """A map (H, W) as a 16-bit grey PNG: 0 is 0.0 and 65535 is `top` (map unit) or more."""
    scaled = np.clip(values, 0, top) * (65535.0 / top) if top > 0 else np.zeros_like(values)
    return encode(np.rint(scaled).astype(np.uint16), "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def decode_map(path: str | os.PathLike[str], top: float) -> np.ndarray:
    """The map (H, W) float32 behind a file that `encode_map` wrote with the same `top`."""
    with Image.open(path) as image:
        return np.asarray(image).astype(np.float32) * np.float32(top / 65535)
