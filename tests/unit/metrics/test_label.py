import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomalens.errors import WrongInput
from anomalens.regions import label

from . import slow


def spiral(side: int) -> np.ndarray:
    """A one-pixel path that winds inwards, its turns one pixel apart."""
    mask = np.zeros((side, side), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True

    def free(y, x):
        return 0 <= y < side and 0 <= x < side and not mask[y, x]

    while True:
        for _ in range(2):
            if free(y + dy, x + dx) and (
                not (0 <= y + 2 * dy < side and 0 <= x + 2 * dx < side) or free(y + 2 * dy, x + 2 * dx)
            ):
                break
            dy, dx = dx, -dy
        else:
            return mask
        y, x = y + dy, x + dx
        mask[y, x] = True


def comb(side: int) -> np.ndarray:
    """Teeth that only meet at the last row."""
    mask = np.zeros((side, side), bool)
    mask[:, ::2] = True
    mask[-1] = True
    return mask


def rings(side: int) -> np.ndarray:
    y, x = np.indices((side, side)) - side // 2
    return np.maximum(abs(y), abs(x)) % 2 == 0


SHAPES = {
    "spiral": spiral(31),
    "comb": comb(32),
    "comb upside down": comb(32)[::-1],
    "comb lying": comb(32).T,
    "diagonal": np.eye(20, dtype=bool),
    "other diagonal": np.eye(20, dtype=bool)[::-1],
    "chessboard": np.indices((15, 16)).sum(axis=0) % 2 == 0,
    "rings": rings(30),
    "full": np.ones((9, 13), bool),
    "empty": np.zeros((9, 13), bool),
    "one pixel": np.ones((1, 1), bool),
    "no pixel": np.ones((0, 5), bool),
    "column": np.ones((40, 1), bool),
    "ends of rows": np.array([[0, 0, 1], [1, 0, 0], [0, 0, 1]], bool),  # neighbours in memory, not in the picture
}


def same(mask: np.ndarray, connectivity: int) -> None:
    """Our components are those of SciPy, and their numbers run in raster order."""
    ndimage = pytest.importorskip("scipy.ndimage")
    labels, count = label(mask, connectivity)
    theirs, expected = ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    assert count == expected
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, mask)
    assert len(set(zip(labels[mask].tolist(), theirs[mask].tolist(), strict=True))) == count
    _, first = np.unique(labels[mask], return_index=True)
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_hard_shapes(name, connectivity):
    same(SHAPES[name], connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.42, 0.6, 0.9])
def test_random_masks(share, connectivity):
    same(np.random.default_rng(int(share * 100)).random((120, 90)) < share, connectivity)


@settings(max_examples=80)
@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))), st.sampled_from([4, 8]))
def test_any_small_mask_is_the_flood_fill(mask, connectivity):
    labels, count = label(mask, connectivity)
    expected = slow.components(mask, connectivity)
    assert count == len(expected)
    for number, component in enumerate(expected, start=1):  # raster order of the first pixel
        assert {(int(y), int(x)) for y, x in zip(*np.nonzero(labels == number), strict=True)} == component


def test_the_spiral_is_one_long_path():
    assert SHAPES["spiral"].sum() > 31 * 31 / 3
    assert label(SHAPES["spiral"], 4)[1] == 1


@pytest.mark.parametrize(
    ("mask", "connectivity"), [(np.ones(4, bool), 8), (np.ones((2, 2)), 8), (np.ones((2, 2), bool), 6)]
)
def test_wrong_input(mask, connectivity):
    with pytest.raises(WrongInput):
        label(mask, connectivity)
