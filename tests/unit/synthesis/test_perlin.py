"""Drawn defects: noise, masks, blending, foregrounds and textures, against slow and obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from anomalens.errors import WrongInput
from anomalens.synthesis import perlin
from anomalens.synthesis.perlin import PerlinDefects, paste, perlin_noise


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(side: int = 64) -> np.ndarray:
    return rng(7).random((side, side, 3), np.float32)


def slow_noise(size: tuple[int, int], angles: np.ndarray) -> np.ndarray:
    """Pixel by pixel: dot products of the four corners' gradients with the way to the pixel, faded between."""
    cells = angles.shape[0] - 1, angles.shape[1] - 1
    out = np.zeros(size)
    for r in range(size[0]):
        for c in range(size[1]):
            y, x = r * cells[0] / size[0], c * cells[1] / size[1]
            i, j = int(y), int(x)
            y, x = y - i, x - j
            dots = [
                [math.cos(angles[i + a, j + b]) * (y - a) + math.sin(angles[i + a, j + b]) * (x - b) for b in (0, 1)]
                for a in (0, 1)
            ]
            fy, fx = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y, x))
            rows = [row[0] * (1 - fx) + row[1] * fx for row in dots]
            out[r, c] = math.sqrt(2) * (rows[0] * (1 - fy) + rows[1] * fy)
    return out


@pytest.mark.parametrize("cells", [(1, 1), (2, 8), (8, 4)])
def test_noise_is_what_the_formula_says(cells):
    angles = rng().uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))
    assert np.allclose(perlin_noise((16, 32), angles), slow_noise((16, 32), angles))


def test_noise_refuses_cells_that_do_not_divide_the_picture():
    with pytest.raises(WrongInput, match="3 cells"):
        perlin_noise((16, 16), np.zeros((4, 3)))
    for seed in range(20):  # drawn cells always do
        assert perlin.drawn_noise((40, 27), rng(seed)).shape == (40, 27)


def test_pasting_blends_inside_the_mask_and_nowhere_else():
    image, texture = picture(), rng(1).random((64, 64, 3), np.float32)
    noise = rng(2).uniform(0, 1, (64, 64))
    where = np.zeros((64, 64), bool)
    where[:, :32] = True
    made = paste(image, texture, noise, 0.3, where)
    assert np.array_equal(made.mask, (noise > 0.5) & where)
    assert np.array_equal(made.image[~made.mask], image[~made.mask])
    assert np.allclose(made.image[made.mask], 0.7 * texture[made.mask] + 0.3 * image[made.mask], atol=1e-6)
    assert made.label == 1


def test_a_mask_may_be_empty():
    made = paste(picture(), picture(), np.ones((64, 64)), 0.0, np.zeros((64, 64), bool))
    assert made.label == 0
    assert np.array_equal(made.image, picture())


def test_the_maker_is_repeatable_and_leaves_its_input_alone():
    image = picture()
    held = image.copy()
    first, again, other = (PerlinDefects(normal_share=0)(image, rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)
    assert np.array_equal(image, held)
    assert first.image.dtype == np.float32
    assert 0 <= first.image.min() <= first.image.max() <= 1


def test_the_share_without_a_defect():
    image = picture(32)
    assert all(PerlinDefects(normal_share=1)(image, rng(i)).label == 0 for i in range(10))
    labels = [PerlinDefects(normal_share=0)(image, rng(i)).label for i in range(100)]
    assert np.mean(labels) > 0.6  # noise of a single cell rarely reaches the threshold
    some = [PerlinDefects(normal_share=0.5)(image, rng(i)).label for i in range(200)]
    assert 0.3 < np.mean(some) / np.mean(labels) < 0.7


def test_defects_stay_on_the_foreground():
    image = np.full((64, 64, 3), 0.1, np.float32)
    image[16:48, 16:48] = 0.8
    where = perlin.foreground(image, "bright")
    assert where[16:48, 16:48].all()
    assert where.sum() == 32 * 32
    assert np.array_equal(perlin.foreground(image, "dark"), ~where)
    masks = [PerlinDefects(normal_share=0)(image, rng(i), where).mask for i in range(10)]
    assert any(m.any() for m in masks)
    assert not any((m & ~where).any() for m in masks)


def test_otsu_splits_as_an_exhaustive_search():
    grey = np.concatenate([rng(5).normal(70, 15, 3000), rng(6).normal(170, 20, 1000)]).clip(0, 255).astype(np.uint8)

    def between(t: int) -> float:
        low, high = grey[grey <= t].astype(float), grey[grey > t].astype(float)
        if not len(low) or not len(high):
            return 0.0
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert between(perlin.otsu(grey)) == pytest.approx(max(map(between, range(256))))
    assert perlin.otsu(np.full((4, 4), 9, np.uint8)) in range(256)  # an even picture has no two sides


def test_textures_come_from_a_folder(tmp_path):
    for name, value in (("a/x.png", 40), ("b/c/y.jpg", 200)):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    maker = PerlinDefects(str(tmp_path))
    seen = {int(np.median(maker.texture((16, 16), rng(i)))) for i in range(12)}
    assert seen == {40, 200}
    with pytest.raises(WrongInput, match=r"textures=.*no picture"):
        PerlinDefects(str(tmp_path / "none"))(picture(), rng())


@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
def test_drawn_textures_differ_and_repeat(size):
    drawn = [perlin.drawn_texture(size, rng(i)) for i in range(8)]
    assert all(t.shape == (*size, 3) and t.dtype == np.uint8 for t in drawn)
    assert len({t.tobytes() for t in drawn}) == len(drawn)
    assert np.array_equal(drawn[3], perlin.drawn_texture(size, rng(3)))


@pytest.mark.parametrize("change", perlin.CHANGES, ids=lambda f: f.__name__.strip("_"))
def test_every_change_keeps_the_size_and_changes_something(change):
    texture = perlin.drawn_texture((32, 32), rng(1))
    made = [np.asarray(change(Image.fromarray(texture), rng(i))) for i in range(6)]
    assert all(m.shape == texture.shape and m.dtype == np.uint8 for m in made)
    assert any(not np.array_equal(m, texture) for m in made)


def test_turning_is_about_the_centre():
    plane = np.zeros((9, 9))
    plane[4, 7] = 1
    assert perlin.turned(plane, 90)[1, 4] == pytest.approx(1, abs=1e-5)
