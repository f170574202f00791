"""Corruptions: repeatable, monotone, true to their formulas, and masks that move with the picture."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from anomalens.datasets.procedural import Procedural
from anomalens.errors import UnknownName, WrongInput
from anomalens.synthesis import _light, _warp, corruptions
from anomalens.types import Sample, View

NAMES = corruptions.names()
MOVING = [n for n in NAMES if corruptions.card(n).kind == "geometric"]
STILL = [n for n in NAMES if corruptions.card(n).kind == "photometric"]


def rng(key: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def steps(size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Smooth colours with a chequered half: something for every corruption to change."""
    y, x = np.mgrid[: size[0], : size[1]]
    board = ((x // 8 + y // 8) % 2) * 90
    picture = np.stack([40 + board, 60 + x * 120 // size[1], 50 + y * 130 // size[0]], axis=2)
    return picture.astype(np.uint8)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    drawn = [Procedural(c, size=256, train_count=1, good_count=0, bad_count=0) for c in ("cookie", "metal", "tiles")]
    return [d.train()[0].image() for d in drawn]


def blob(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return np.hypot(columns - x, rows - y) <= radius


def sample_of(picture: np.ndarray, mask: np.ndarray | None = None, label: int | None = 1, name: str = "a/001.png"):
    views = {"image": View("image", partial(np.copy, picture), path="a/001.png")}
    held = None if mask is None else View("mask", partial(np.copy, mask))
    return Sample(name, views, category="a", label=label, mask=held)


# --- what is offered ---------------------------------------------------------------------------------------------


def test_seventeen_corruptions_in_five_groups_and_a_compound():
    assert len(NAMES) == 17
    groups = [corruptions.card(n).group for n in NAMES]
    assert {g: groups.count(g) for g in groups} == {
        "viewpoint": 5, "illumination": 5, "blur": 3, "noise": 2, "compression": 1, "compound": 1,
    }  # fmt: skip
    for name in NAMES:
        card = corruptions.card(name)
        assert bool(card.amounts) != bool(card.parts)
        assert not card.amounts or len(card.amounts) == 5
        assert card.title
        assert card.summary


def test_suites_name_cells_that_exist():
    assert len(corruptions.suite()) == 85
    assert len(corruptions.suite("rad-lite")) == 25
    assert corruptions.suite("smoke") == (("rot", 2), ("grad", 2), ("defocus", 2), ("jpeg", 2))
    with pytest.raises(UnknownName, match="full"):
        corruptions.suite("ful")


def test_wrong_arguments_are_named():
    picture = steps()
    with pytest.raises(UnknownName, match="defocus"):
        corruptions.corrupt(picture, "defocs", 1, rng())
    for grade in (6, -1, 1.5):
        with pytest.raises(WrongInput, match=r"0 .* to 5"):
            corruptions.corrupt(picture, "rot", grade, rng())
    for wrong in (picture[..., 0], picture.astype(np.float32), picture[:0]):
        with pytest.raises(WrongInput, match="uint8 or uint16"):
            corruptions.corrupt(wrong, "rot", 1, rng())
    for wrong in (picture, np.zeros((4, 4)), np.full((4, 4), 300)):
        with pytest.raises(WrongInput, match="mask"):
            corruptions.corrupt_mask(wrong, "rot", 1, rng())
    with pytest.raises(UnknownName):
        corruptions.apply(sample_of(picture), "fog", 0)


# --- every corruption --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_shape_and_depth_stay_and_the_same_draw_is_the_same_picture(name, dtype):
    picture = steps((70, 101)).astype(dtype) * (257 if dtype == np.uint16 else 1)
    before = picture.copy()
    assert corruptions.corrupt(picture, name, 0, rng()) is picture
    for grade in (1, 5):
        out = corruptions.corrupt(picture, name, grade, rng(7))
        assert out.shape == picture.shape
        assert out.dtype == dtype
        assert np.array_equal(out, corruptions.corrupt(picture, name, grade, rng(7)))
        if grade == 5:
            assert not np.array_equal(out, picture)
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bits_give_the_same_picture_as_eight(name):
    picture = steps()
    coarse = corruptions.corrupt(picture, name, 3, rng(1)).astype(int)
    fine = corruptions.corrupt(picture.astype(np.uint16) * 257, name, 3, rng(1)) / 257
    assert abs(coarse - fine).max() <= (2 if name == "rad" else 0.51)  # rounding; a compound rounds between its steps


@pytest.mark.parametrize("name", sorted({*NAMES} - {"lowres", "jpeg", "defocus"}))
def test_another_draw_is_another_picture(name):
    made = {corruptions.corrupt(steps(), name, 4, rng(key)).tobytes() for key in range(8)}
    assert len(made) > 1


def test_sixteen_bit_pictures_keep_their_fine_steps():
    fine = (steps().astype(np.uint16) * 257) + np.arange(128, dtype=np.uint16)[None, :, None]
    for name in set(NAMES) - {"jpeg"}:
        out = corruptions.corrupt(fine, name, 1, rng())
        assert len(np.unique(out % 257)) > 50, name


@pytest.mark.parametrize("name", STILL)
def test_photometric_grades_rise(name, pictures):
    """Mean absolute difference to the clean picture, averaged over pictures and draws, and for every single draw."""
    rises = []
    for picture in pictures:
        for key in range(3):
            made = [corruptions.corrupt(picture, name, g, rng(key)).astype(int) for g in range(6)]
            rises.append([abs(m - picture).mean() for m in made])
    mean = np.mean(rises, axis=0)
    assert (np.diff(mean) > 0.05).all(), mean
    assert (np.diff(rises, axis=1) > -0.02 * np.array(rises)[:, 1:]).all()


@pytest.mark.parametrize("name", MOVING)
def test_geometric_grades_rise(name):
    """How far the pixels of the frame travel grows with the grade, for every draw."""
    size = (192, 256)
    y, x = np.mgrid[0.5:192:16, 0.5:256:16]
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    for key in range(20):
        moved = []
        for grade in range(1, 6):
            to = corruptions._matrix(name, grade, size, rng(key)) @ places
            moved.append(np.hypot(*(to[:2] / to[2] - places[:2])).mean())
        assert moved[0] > 1.5
        assert (np.diff(moved) > 0).all(), moved


# --- light and lens, against plain formulas ----------------------------------------------------------------------


def linear(x: np.ndarray) -> np.ndarray:
    return np.array([v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in x.ravel() / 255]).reshape(
        x.shape
    )


def srgb(v: np.ndarray) -> np.ndarray:
    v = np.clip(v, 0, 1)
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def test_linear_light_goes_there_and_back():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    light = _light.to_linear(every)
    assert np.allclose(light, linear(every), atol=1e-6)
    assert np.array_equal(_light.from_linear(light, every.dtype), every)
    deep = np.arange(65536, dtype=np.uint16).repeat(3).reshape(256, 256, 3)
    assert abs(_light.from_linear(_light.to_linear(deep), deep.dtype).astype(int) - deep).max() <= 1


def test_gradient_is_a_ramp_between_corners():
    grey = np.full((64, 96, 3), 100, np.uint8)
    out = linear(_light.gradient(grey, 0.6, rng(3))) / linear(grey)
    assert out.min() == pytest.approx(0.4, abs=0.02)
    assert out.max() == pytest.approx(1.6, abs=0.02)
    assert out.mean() == pytest.approx(1, abs=0.01)
    corners = [out[0, 0, 0], out[0, -1, 0], out[-1, 0, 0], out[-1, -1, 0]]
    assert max(corners) == out.max()
    assert min(corners) == out.min()


def test_spot_adds_a_gaussian_and_saturates():
    dark = np.zeros((100, 150, 3), np.uint8)
    for key in range(20):
        out = _light.spot(dark, 0.5, rng(key))
        y, x = np.unravel_index(out[..., 0].argmax(), out.shape[:2])
        if 30 < x < 120 and 30 < y < 70:
            break
    assert linear(out).max() == pytest.approx(0.5, abs=0.01)
    away = linear(out)[y, x + 22, 0]  # one sigma: 0.22 * 100 pixels
    assert away == pytest.approx(0.5 * math.exp(-0.5), abs=0.02)
    assert (_light.spot(dark, 1.6, rng(key)) == 255).mean() > 0.05


def test_gamma_cast_and_shadow_follow_their_formulas():
    picture = steps()
    made = {tuple(_light.gamma(picture, 1.8, rng(k))[3, 5]) for k in range(20)}
    expected = {tuple(np.rint(255 * (picture[3, 5] / 255) ** g).astype(int)) for g in (1.8, 1 / 1.8)}
    assert made == expected
    grey = np.full((8, 8, 3), 120, np.uint8)
    gains = (linear(_light.cast(grey, 0.3, rng(1))) / linear(grey))[0, 0] - 1
    assert abs(gains).max() == pytest.approx(0.3, abs=0.01)
    assert gains.sum() == pytest.approx(0, abs=0.02)
    out = linear(_light.shadow(np.full((200, 200, 3), 200, np.uint8), 0.6, rng(2)))[..., 0] / linear(np.array([200]))
    lit, dark = out > 0.99, abs(out - 0.4) < 0.02
    assert lit.mean() > 0.1
    assert dark.mean() > 0.1
    assert 1 - lit.mean() - dark.mean() < 0.08  # the edge: 0.05 sides wide, at most 1.42 sides long


def test_gauss_noise_has_its_deviation_in_linear_light():
    grey = np.full((128, 128, 3), 188, np.uint16) * 257  # half the light
    light = _light.to_linear(_light.gauss(grey, 0.07, rng()))
    assert light.std() == pytest.approx(0.07, rel=0.02)
    assert light.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("photons", [400.0, 10.0])
def test_shot_noise_counts_photons(photons):
    """Against numpy's own Poisson numbers, level by level: mean, variance, and whole counts."""
    for value in (30, 150, 220):
        grey = np.full((128, 128, 3), value, np.uint16) * 257
        mean = float(linear(np.array([value]))[0] * photons)
        counts = _light.to_linear(_light.shot(grey, photons, rng(value))).ravel() * photons
        reference = np.minimum(rng(1).poisson(mean, counts.size), photons)
        assert counts.mean() == pytest.approx(reference.mean(), rel=0.05)
        assert counts.var() == pytest.approx(reference.var(), rel=0.05)
        assert abs(counts - np.rint(counts)).max() < 0.02


def slow_blur(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    reach = len(kernel) // 2
    padded = np.pad(picture.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    out = np.zeros(picture.shape)
    for dy, row in enumerate(kernel[::-1, ::-1]):
        for dx, weight in enumerate(row):
            out += weight / kernel.sum() * padded[dy : dy + picture.shape[0], dx : dx + picture.shape[1]]
    return out


def test_blur_is_a_convolution_with_a_mirrored_border():
    picture = steps((40, 56))
    kernel = rng(5).random((9, 9))
    assert abs(_light._blurred(picture, kernel) - slow_blur(picture, kernel)).max() <= 0.51


def dot(size: int) -> np.ndarray:
    picture = np.zeros((size, size, 3), np.uint16)
    picture[size // 2, size // 2] = 65535
    return picture


def test_defocus_spreads_a_dot_over_a_disc():
    out = _light.defocus(dot(257), 6, rng())[..., 0].astype(float)
    radius = 6 * 257 / 256
    y, x = np.nonzero(out)
    assert np.hypot(y - 128, x - 128).max() < radius + 0.6
    assert out.sum() == pytest.approx(65535, rel=0.005)
    assert (out > 0.95 * out.max()).sum() == pytest.approx(math.pi * (radius - 0.5) ** 2, rel=0.1)
    larger = _light.defocus(dot(513), 6, rng())[..., 0]  # lengths grow with the picture
    assert (larger > 0).sum() == pytest.approx(4 * (out > 0).sum(), rel=0.15)


def test_motion_spreads_a_dot_over_a_line():
    for key in range(4):
        out = _light.motion(dot(257), 24, rng(key))[..., 0].astype(float)
        y, x = np.nonzero(out)
        spread = np.cov(np.stack([x, y]), aweights=out[y, x])
        across, along = np.sqrt(np.linalg.eigvalsh(spread))
        assert along == pytest.approx(24 / math.sqrt(12), rel=0.05)
        assert across < 0.7
        assert np.average(x, weights=out[y, x]) == pytest.approx(128, abs=0.05)
        assert out.sum() == pytest.approx(65535, rel=0.005)


def test_lowres_and_jpeg_are_what_they_say():
    y, x = np.mgrid[:64, :64]
    fine, coarse = 100 * ((x + y) % 2), 2 * x  # of a board and a ramp, a quarter of the size keeps the ramp alone
    picture = np.repeat((fine + coarse)[..., None], 3, axis=2).astype(np.uint8)
    out = _light.lowres(picture, 0.25, rng())
    assert abs(out[..., 0].astype(float) - coarse - 50)[:, 6:-6].max() < 1.1
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=15, subsampling="4:2:0")
    assert np.array_equal(_light.jpeg(picture, 15, rng()), np.asarray(Image.open(file)))


# --- viewpoint ---------------------------------------------------------------------------------------------------


def slow_move(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bicubic with a = -0.5 and mirrored borders, one pixel at a time."""

    def weight(d: float) -> float:
        d = abs(d)
        return 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0

    def fold(i: int, count: int) -> int:
        while not 0 <= i < count:
            i = -i if i < 0 else 2 * (count - 1) - i
        return i

    back, (height, width) = np.linalg.inv(matrix), picture.shape[:2]
    out = np.zeros(picture.shape)
    for row in range(height):
        for column in range(width):
            x, y, depth = back @ (column + 0.5, row + 0.5, 1)
            x, y = x / depth - 0.5, y / depth - 0.5
            for j in range(math.floor(y) - 1, math.floor(y) + 3):
                for i in range(math.floor(x) - 1, math.floor(x) + 3):
                    out[row, column] += weight(x - i) * weight(y - j) * picture[fold(j, height), fold(i, width)]
    return np.clip(out, 0, 255)


@pytest.mark.parametrize("name", MOVING)
def test_pictures_move_as_a_slow_loop_says(name):
    picture = rng(1).integers(0, 256, (19, 26, 3)).astype(np.uint8)
    matrix = corruptions._matrix(name, 4, (19, 26), rng(2))
    assert abs(_warp.move_picture(picture, matrix) - slow_move(picture, matrix)).max() <= 0.51


def test_matrices_are_what_the_grades_say():
    size = (120, 160)
    turn = _warp.rotation(30, size, rng(0))
    assert np.allclose(turn @ (80, 60, 1), (80, 60, 1))
    assert abs(math.degrees(math.atan2(turn[1, 0], turn[0, 0]))) == pytest.approx(30)
    assert {np.sign(_warp.rotation(30, size, rng(k))[1, 0]) for k in range(12)} == {-1, 1}
    factors = {round(float(_warp.zoom(1.55, size, rng(k))[0, 0]), 6) for k in range(12)}
    assert factors == {1.55, round(1 / 1.55, 6)}
    away = _warp.shift(20, size, rng(3))[:2, 2]
    assert np.hypot(*away) == pytest.approx(24)
    parts = rng(5)
    whole = [_warp.rotation(15, size, parts), _warp.tilt(17, size, parts), _warp.zoom(1.3, size, parts)]
    assert np.allclose(corruptions._matrix("view", 3, size, rng(5)), whole[2] @ whole[1] @ whole[0])


def test_tilt_is_a_turned_camera_and_leaves_no_gap():
    """All four corners of the frame show something, one edge at least touches, and straight angles are perspective."""
    size = (120, 160)
    for key in range(12):
        for degrees in (5, 35):
            matrix = _warp.tilt(degrees, size, rng(key))
            assert _warp.inside(size, matrix).all()
            x, y, w = np.linalg.inv(matrix) @ np.array([[0, 160, 160, 0], [0, 0, 120, 120], [1, 1, 1, 1]], float)
            gaps = np.stack([x / w, 160 - x / w, y / w, 120 - y / w])
            assert gaps.min() == pytest.approx(0, abs=1e-3)  # as large as it can be
            # A turned camera: K^-1 H K is a rotation up to the scale and the move that fill the frame.
            focal = 1.2 * 160
            camera = np.array([[focal, 0, 80], [0, focal, 60], [0, 0, 1]])
            bent = (np.linalg.inv(camera) @ matrix @ camera)[2]
            assert np.hypot(*bent[:2]) / abs(bent[2]) == pytest.approx(math.tan(math.radians(degrees)))


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("grade", [1, 3, 5])
def test_masks_move_with_the_picture(name, grade):
    """A picture that shows its mask as a bright shape is moved; the moved mask is where the shape is now."""
    size = (192, 224)
    mask = blob(size, 106, 92, 22)
    shown = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    tested = 0
    for key in range(8):
        matrix = corruptions._matrix(name, grade, size, rng(key))
        if _warp.visible(mask, matrix)[0] < 1:
            continue  # cut by the frame
        tested += 1
        moved = corruptions.corrupt_mask(mask, name, grade, rng(key))
        bright = (corruptions.corrupt(shown, name, grade, rng(key))[..., 0] >= 128) & (moved != 255)
        assert (bright & (moved == 1)).sum() / (bright | (moved == 1)).sum() > 0.95
        centres = [np.argwhere(m).mean(axis=0) for m in (bright, moved == 1)]
        assert np.hypot(*(centres[0] - centres[1])) < 0.5  # both count whole pixels
        if name not in ("tilt", "view"):  # they move the middle of a disc elsewhere than its outline
            place = (matrix @ (106, 92, 1))[:2] - 0.5
            assert np.hypot(*(place - centres[1][::-1])) < 0.75
    assert tested >= 3


@pytest.mark.parametrize("name", MOVING)
def test_masks_come_back(name):
    """Moved there and back, a blob is the same blob, as far as whole pixels allow where it was made smaller."""
    mask = blob((256, 256), 128, 128, 24)
    tested = 0
    for grade, key in ((1, 0), (3, 1), (3, 2), (5, 3)):
        matrix = corruptions._matrix(name, grade, mask.shape, rng(key))
        share, area = _warp.visible(mask, matrix)
        if share < 1:
            continue
        tested += 1
        there = _warp.move_mask(mask, matrix) == 1
        assert there.sum() == pytest.approx(area, rel=0.03)
        back = _warp.move_mask(there, np.linalg.inv(matrix)) == 1
        assert (back & mask).sum() / (back | mask).sum() > (0.98 if area > 0.9 * mask.sum() else 0.94)
    assert tested


def test_what_was_outside_is_ignored():
    """255 exactly where the picture shows no pixel of the frame: a move by whole pixels tells which."""
    mask = np.zeros((40, 60), bool)
    mask[20:30, 50:60] = True
    matrix = np.array([[1, 0, 7], [0, 1, -4], [0, 0, 1]], float)
    moved = _warp.move_mask(mask, matrix)
    expected = np.full((40, 60), 255)
    expected[:36, 7:] = 0
    expected[16:26, 57:] = 1
    assert np.array_equal(moved, expected)
    values = rng().random((40, 60)).astype(np.float32)
    assert np.allclose(_warp.move_map(values, matrix)[:36, 7:], values[4:, :-7])
    assert np.array_equal(_warp.inside((40, 60), matrix), expected != 255)


def test_every_value_of_a_mask_moves_by_itself():
    labels = np.zeros((80, 80), np.uint8)
    labels[20:40, 20:40], labels[20:40, 40:60], labels[60:70, 20:60] = 1, 2, 255
    moved = corruptions.corrupt_mask(labels, "rot", 3, rng(1))
    seen = corruptions.corrupt_map(np.zeros((80, 80)), "rot", 3, rng(1))[1]
    for value in (1, 2, 255):
        alone = corruptions.corrupt_mask(labels == value, "rot", 3, rng(1)) == 1
        assert np.array_equal((moved == value) & seen, alone & seen)
        assert alone.sum() == pytest.approx((labels == value).sum(), rel=0.05)


def test_shrinking_averages_what_falls_into_a_pixel():
    """A thin line is there or not by its share of the pixel, not by where the centre of the pixel happens to be."""
    mask = np.zeros((128, 128), bool)
    mask[:, 41:43] = True  # falls into two new pixels, one half each
    mask[:, 80:82] = True  # falls into one
    for column in (100, 107):  # falls into one, a quarter of it, at either side of its centre
        mask[::2, column] = True
    moved = _warp.move_mask(mask, np.diag([0.5, 0.5, 1.0]))[:64, :64]
    assert (moved[:, 40] == 1).all()
    assert (moved[:, 43:] == 0).all()
    assert (moved[:, 20:22] == 1).any()


# --- samples -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relief() -> Sample:
    return next(s for s in Procedural("relief", size=96, train_count=0, good_count=0, bad_count=2).test() if s.label)


def test_apply_reads_nothing_until_asked():
    def fail():
        raise AssertionError("read too early")

    sample = Sample("x", {"image": View("image", fail)}, label=1, mask=View("mask", fail))
    for name in NAMES:
        assert corruptions.apply(sample, name, 3).id == "x"
    assert corruptions.apply(sample, "rot", 0) is sample


@pytest.mark.parametrize("name", STILL)
def test_photometric_corruptions_keep_the_mask_object(name):
    sample = sample_of(steps(), blob((96, 128), 60, 50, 12))
    assert corruptions.apply(sample, name, 5).mask is sample.mask
    mask = sample.mask.read()
    assert corruptions.corrupt_mask(mask, name, 5, rng()) is mask


def test_order_processes_and_copies_do_not_matter(tmp_path):
    drawn = Procedural("pill", size=64, train_count=0, good_count=2, bad_count=2)
    samples = drawn.test()
    made = {s.id: corruptions.apply(s, "rad", 4, seed=3).image().tobytes() for s in samples}
    again = {s.id: corruptions.apply(s, "rad", 4, seed=3) for s in reversed(samples)}
    assert {i: pickle.loads(pickle.dumps(s)).image().tobytes() for i, s in again.items()} == made
    assert len(set(made.values())) == 4
    code = (
        "import hashlib; from anomalens.datasets.procedural import Procedural; from anomalens.synthesis import corruptions\n"
        "s = Procedural('pill', size=64, train_count=0, good_count=2, bad_count=2).test()[0]\n"
        "print(hash('x'), hashlib.sha256(corruptions.apply(s, 'rad', 4, seed=3).image().tobytes()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split()[1] == hashlib.sha256(made[samples[0].id]).hexdigest()


@pytest.mark.parametrize("name", ["tilt", "spot", "gauss", "rad"])
def test_seeds_ids_and_categories_draw_anew_and_grades_do_not(name):
    sample = sample_of(steps(), label=0)
    others = [replace(sample, id="b"), replace(sample, category="b")]
    made = [corruptions.apply(s, name, 4, seed=1).image().tobytes() for s in [sample, *others]]
    made.append(corruptions.apply(sample, name, 4, seed=2).image().tobytes())
    made.append(corruptions.apply(sample, name, 4, seed=3).image().tobytes())
    assert len(set(made)) == 5
    # The same draw at all grades: what is brightened, turned or lit at grade 3 is so at grade 4.
    clean = sample.image().astype(int)
    low, high = (corruptions.apply(sample, name, g, seed=1).image() - clean for g in (3, 4))
    assert np.corrcoef(low.ravel(), high.ravel())[0, 1] > 0.3


def test_all_views_move_together_and_light_is_drawn_for_each(relief):
    same = replace(relief, views={n: View(n, relief.views["image"].read) for n in relief.views})
    moved = corruptions.apply(same, "view", 3, seed=1)
    assert len({v.read().tobytes() for v in moved.views.values()}) == 1
    lit = corruptions.apply(same, "gauss", 3, seed=1)
    assert len({v.read().tobytes() for v in lit.views.values()}) == len(same.views) == 7
    coupled = corruptions.apply(same, "gauss", 3, seed=1, coupled_lighting=True)
    assert len({v.read().tobytes() for v in coupled.views.values()}) == 1
    assert all(v.path is None for v in moved.views.values())


def test_depth_moves_but_light_does_not_touch_it():
    sample = sample_of(steps(), label=0)
    sample = replace(sample, views={**sample.views, "depth": View("depth", partial(steps, (96, 128)))})
    assert np.array_equal(corruptions.apply(sample, "gauss", 5).image("depth"), steps())
    rad = corruptions.apply(sample, "rad", 3)
    assert not np.array_equal(rad.image("depth"), steps())
    expected = corruptions.corrupt(steps(), "view", 3, corruptions.generator(sample, "rad"))
    assert np.array_equal(rad.image("depth"), expected)


def test_rad_is_view_spot_and_a_weaker_blur():
    picture = steps()
    expected = corruptions.corrupt(picture, "view", 4, draws := rng(9))
    blur = "defocus" if draws.random() < 0.5 else "motion"
    for name, grade in (("spot", 4), (blur, 3)):
        expected = corruptions.corrupt(expected, name, grade, draws)
    assert np.array_equal(corruptions.corrupt(picture, "rad", 4, rng(9)), expected)
    made = {corruptions.corrupt(picture, "rad", grade, rng(9)).tobytes() for grade in (1, 2)}
    assert len(made) == 2  # a blur of grade 1 at both, and another view


def test_maps_move_like_pictures():
    sample = sample_of(steps(), label=0)
    values = sample.image()[..., 1].astype(np.float32)
    moved, seen = corruptions.corrupt_map(values, "view", 2, corruptions.generator(sample, "view", seed=4))
    picture = corruptions.apply(sample, "view", 2, seed=4).image()[..., 1]
    assert np.median(abs(moved - picture)[seen]) < 1.5  # bilinear against bicubic
    mask = corruptions.apply(sample, "view", 2, seed=4).mask.read()
    assert np.array_equal(mask == 255, ~seen)
    assert np.array_equal(corruptions.corrupt_map(values, "gauss", 2, rng())[0], values)


def test_masks_of_samples_follow_the_contract_of_the_metrics():
    mask = blob((96, 128), 60, 50, 12)
    bad, good = sample_of(steps(), mask), sample_of(steps(), None, label=0)
    found = corruptions.apply(bad, "shift", 4).mask.read()
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1, 255}
    assert (found == 1).sum() == pytest.approx(mask.sum(), rel=0.1)
    assert set(np.unique(corruptions.apply(good, "shift", 4).mask.read())) == {0, 255}
    for label in (1, None):  # where the defect is, or whether there is one, is not known: nothing to say
        assert corruptions.apply(sample_of(steps(), None, label=label), "shift", 4).mask is None


def test_a_defect_that_leaves_the_frame_is_drawn_again_at_every_grade():
    """In a corner, about half of the shifts lose the defect; those are replaced at all grades alike."""
    mask = blob((96, 128), 6, 6, 8)
    redrawn = 0
    for i in range(30):
        sample = sample_of(steps(), mask, name=str(i))
        first = corruptions._How("shift", 1, 0, "a", str(i)).rng("view 0")
        kept = _warp.visible(mask, _warp.shift(20, mask.shape, first))[0] >= 0.25
        assert corruptions.survives(sample, "shift")
        found = [corruptions.apply(sample, "shift", g).mask.read() for g in range(1, 6)]
        assert min((m == 1).sum() for m in found) > 0.2 * mask.sum()
        same = corruptions.apply(replace(sample, mask=None), "shift", 5).image()
        assert np.array_equal(corruptions.apply(sample, "shift", 5).image(), same) == kept
        redrawn += not kept
    assert 3 < redrawn < 27


def test_a_defect_that_no_draw_keeps_is_reported():
    tiny = np.zeros((96, 128), bool)
    tiny[50, 60] = True  # one pixel is left; 9 * (96 / 256)^2 = 1.3 are needed
    sample = sample_of(steps(), tiny)
    assert not corruptions.survives(sample, "rot")
    assert corruptions.survives(sample, "gauss")
    assert corruptions.survives(replace(sample, mask=None), "rot")
    assert corruptions.survives(replace(sample, label=0), "rot")
    corruptions.apply(sample, "rot", 5).image()  # still a picture, for those who look at it


def test_the_contact_sheet_shows_every_cell(tmp_path):
    data = corruptions.contact_sheet(steps(), tmp_path / "sheet.png", which=("rot", "gauss"), side=32)
    assert (tmp_path / "sheet.png").read_bytes() == data
    page = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    tiles = page[18:50, 6 + 35 * np.arange(6)[:, None] - 3 + np.arange(32)[None, :]].transpose(1, 0, 2, 3)
    assert all(abs(tiles[0] - tile).mean() > 1 for tile in tiles[1:])
