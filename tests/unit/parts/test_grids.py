"""Array operations against scipy and torch, which say what bilinear, blur and pooling mean."""

from __future__ import annotations

import numpy as np
import pytest

from anomalens.parts import grids

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 7, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("count", [True, False])
def test_average_pool(torch, size, count):
    ours = grids.average_pool(X, size, count)
    theirs = torch.nn.functional.avg_pool2d(torch.tensor(X), size, 1, size // 2, count_include_pad=count)
    assert np.allclose(ours, theirs, atol=1e-6)
    assert np.allclose(grids.average_pool(torch.tensor(X), size, count), theirs, atol=1e-6)


@pytest.mark.parametrize("size", [(14, 18), (11, 5), (7, 9)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resize_features(torch, size, mode):
    options = {"align_corners": False} if mode == "bilinear" else {}
    theirs = torch.nn.functional.interpolate(torch.tensor(X), size, mode=mode, **options)
    assert np.allclose(grids.resize_features(X, size, mode), theirs, atol=1e-5)
    assert np.allclose(grids.resize_features(torch.tensor(X), size, mode), theirs, atol=1e-5)


@pytest.mark.parametrize(("padding", "name"), [("reflect", "reflect"), ("mirror", "mirror")])
@pytest.mark.parametrize("n", [5, 33, 64])
def test_blur(padding, name, n):
    ndimage = pytest.importorskip("scipy.ndimage")
    values = RNG.normal(size=(n, n))
    matrix = grids.blur_matrix(n, 4.0, padding)
    assert np.allclose(matrix @ values @ matrix.T, ndimage.gaussian_filter(values, 4.0, mode=name), atol=1e-12)


def test_score_map_is_upsample_then_blur(torch):
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = RNG.random((8, 6)).astype(np.float32)
    up = torch.nn.functional.interpolate(torch.tensor(grid)[None, None], (64, 48), mode="bilinear", align_corners=False)
    expected = ndimage.gaussian_filter(up[0, 0].numpy().astype(float), 3.0)
    assert np.allclose(grids.score_map(grid, (64, 48), 3.0), expected, atol=1e-5)
    stack = grids.score_map(np.stack([grid, 2 * grid]), (64, 48), 3.0)
    assert np.allclose(stack[1], 2 * expected, atol=1e-5)


def test_resize_map(torch):
    values = RNG.random((16, 20)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(values)[None, None], (45, 70), mode="bilinear", align_corners=False
    )
    assert np.allclose(grids.resize_map(values, (45, 70)), theirs[0, 0], atol=1e-6)
    assert grids.resize_map(values, (16, 20)) is values


def test_rows_are_ordered_image_row_column():
    rows = grids.rows_of(X)
    assert rows.shape == (2 * 7 * 9, 5)
    assert np.array_equal(rows[1 * 63 + 3 * 9 + 4], X[1, :, 3, 4])
