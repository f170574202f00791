"""Every kind of picture file, and every kind of damage."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from anomalens import images
from anomalens.errors import Unreadable, WrongInput

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 17, 3), np.uint8)
GREY = COLOUR[..., 0]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_colour_and_grey(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(COLOUR).save(path, **options)
    assert np.array_equal(images.read_image(path), COLOUR)
    Image.fromarray(GREY).save(path, **options)
    assert np.array_equal(images.read_image(path), np.repeat(GREY[..., None], 3, 2))


def test_jpeg(tmp_path):
    smooth = np.repeat(np.arange(0, 240, 10, np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert abs(images.read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_keeps_every_value(tmp_path, suffix):
    deep = RNG.integers(0, 65536, (9, 11)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    read = images.read_image(tmp_path / f"a.{suffix}")
    assert read.dtype == np.uint16
    assert np.array_equal(read[..., 0], deep)
    assert np.array_equal(read[..., 2], deep)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_keeps_every_value(tmp_path, suffix, channels):
    codecs = pytest.importorskip("imagecodecs")
    tifffile = pytest.importorskip("tifffile")
    deep = RNG.integers(0, 65536, (9, 11, channels)).astype(np.uint16)
    if channels == 4:
        deep[..., 3] = 65535  # opaque
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(codecs.png_encode(deep))
    else:
        tifffile.imwrite(path, deep, photometric="rgb", extrasamples=["unassalpha"] if channels == 4 else None)
    read = images.read_image(path)
    assert read.dtype == np.uint16
    assert np.array_equal(read, deep[..., :3])


def test_palette_transparency_and_cmyk_become_rgb(tmp_path):
    Image.fromarray(COLOUR).quantize(16).save(tmp_path / "palette.png")
    assert images.read_image(tmp_path / "palette.png").shape == (12, 17, 3)
    clear = np.dstack([COLOUR, np.full((12, 17), 255, np.uint8)])
    clear[:, :5, 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read = images.read_image(tmp_path / "clear.png")
    assert (read[:, :5] == 0).all()
    assert np.array_equal(read[:, 5:], COLOUR[:, 5:])
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "cmyk.tiff")
    assert images.read_image(tmp_path / "cmyk.tiff").shape == (12, 17, 3)


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(COLOUR)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(images.read_image(tmp_path / "a.png"), np.rot90(COLOUR, -1))


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_hostile_files_are_refused_in_one_sentence(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    files = {
        "truncated.png": (whole[: len(whole) // 2], "damaged"),
        "empty.png": (b"", "0 bytes"),
        "text.png": (b"hello, this is no picture", "not a picture"),
        "bomb.png": (bomb(50_000, 50_000), "50000 x 50000.*ANOMALENS_MAX_PIXELS"),
        "header.png": (whole[:20], "not a picture|damaged"),
    }
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Unreadable, match=words) as caught:
            images.read_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(Unreadable, match="does not exist"):
        images.read_image(tmp_path / "missing.png")
    with pytest.raises(Unreadable):
        images.read_image(tmp_path)


def test_masks_are_true_where_not_zero(tmp_path):
    values = np.zeros((6, 7), np.uint8)
    values[2:4, 3] = (1, 255)
    for mode in ("L", "1", "P"):
        Image.fromarray(values).convert(mode).save(tmp_path / "m.png")
        expected = values > 127 if mode == "1" else values > 0
        assert np.array_equal(images.read_mask(tmp_path / "m.png"), expected)
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "m.png")
    assert np.array_equal(images.read_mask(tmp_path / "m.png"), values > 0)


def test_resizing_is_the_same_for_8_and_16_bit():
    big = RNG.integers(0, 256, (90, 70, 3), np.uint8)
    eight = images.resize(big, (32, 48))
    sixteen = images.resize(big.astype(np.uint16) * 257, (32, 48))
    assert eight.shape == (32, 48, 3)
    assert eight.dtype == np.uint8
    assert sixteen.dtype == np.uint16
    assert abs(eight - sixteen / 257).max() <= 1.0
    assert images.resize(big, (90, 70)) is big


def test_floats_lie_between_0_and_1():
    for kind in (np.uint8, np.uint16):
        full = np.array([[[0, np.iinfo(kind).max, 0]]], kind)
        assert images.to_float(full).tolist() == [[[0.0, 1.0, 0.0]]]
    with pytest.raises(WrongInput, match="float64"):
        images.to_float(np.zeros((1, 1, 3)))


def test_maps_survive_the_disk(tmp_path):
    values = RNG.gamma(2.0, size=(20, 30)).astype(np.float32)
    (tmp_path / "m.png").write_bytes(images.encode_map(values, 8.0))
    read = images.decode_map(tmp_path / "m.png", 8.0)
    assert abs(read - np.clip(values, 0, 8)).max() <= 0.5001 * 8 / 65535


THREADS = """
import sys, warnings
from concurrent.futures import ThreadPoolExecutor
from anomalens import images
before = list(warnings.filters)
with ThreadPoolExecutor(8) as pool:
    read = list(pool.map(images.read_image, sys.argv[1:] * 200))
assert warnings.filters == before
print(len(read), {one.shape for one in read})
"""


def test_odd_metadata_is_passed_over_and_decoding_in_threads_leaves_the_filters_alone(tmp_path):
    """A PNG whose chunk for animation is broken: Pillow warns, and reads the picture."""
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    data = path.read_bytes()
    chunk = b"acTL" + struct.pack(">II", 0, 0)
    path.write_bytes(data[:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    with pytest.warns(UserWarning, match="APNG"):
        Image.open(path).close()
    run = subprocess.run([sys.executable, "-c", THREADS, path], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("200 {(12, 17, 3)}\n", "")
