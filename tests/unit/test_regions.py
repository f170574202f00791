"""Places found in maps, against a slow and obvious reference."""

from __future__ import annotations

import numpy as np
import pytest

from anomalens.regions import find_regions, trace_outline

ndimage = pytest.importorskip("scipy.ndimage")
FULL = np.ones((3, 3))


def area_of(polygon) -> float:
    p = np.array(polygon, float)
    q = np.roll(p, -1, axis=0)
    return abs((p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]).sum() / 2)


@pytest.mark.parametrize("seed", range(40))
def test_regions_are_the_components_that_hold_a_peak(seed):
    rng = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(rng.normal(size=(40, 50)), 2.0 if seed % 2 else 0.7).astype(np.float32)
    low, high = np.quantile(values, [0.8, 0.97])
    labels, count = ndimage.label(values > low, FULL)
    expected = set()
    for k in range(1, count + 1):
        y, x = np.nonzero(labels == k)
        if values[y, x].max() > high and len(y) >= 3:
            expected.add((x.min(), y.min(), x.max() + 1, y.max() + 1, len(y), float(values[y, x].max())))
    found = find_regions(values, low, high, min_area=3)
    assert {(*r.box, r.area, r.peak) for r in found} == expected
    assert [r.peak for r in found] == sorted((r.peak for r in found), reverse=True)


@pytest.mark.parametrize("seed", range(40))
def test_an_outline_encloses_exactly_the_region_and_its_holes(seed):
    rng = np.random.default_rng(seed)
    labels, count = ndimage.label(rng.random((14, 17)) > 0.55, FULL)
    for k in range(1, count + 1):
        shape = labels == k
        y, x = np.nonzero(shape)
        shape = shape[y.min() : y.max() + 1, x.min() : x.max() + 1]
        outside, _ = ndimage.label(np.pad(~shape, 1, constant_values=True))  # 4-connected ground
        assert area_of(trace_outline(shape, tolerance=0)) == (outside != outside[0, 0]).sum()


def test_outlines_of_large_discs_are_short_and_close():
    y, x = np.mgrid[:200, :200]
    disc = (y - 100) ** 2 + (x - 100) ** 2 < 95**2
    disc = disc[6:195, 6:195]
    outline = trace_outline(disc)
    assert len(outline) < 120
    assert area_of(outline) == pytest.approx(disc.sum(), rel=0.01)


def test_nothing_above_the_threshold_is_no_region():
    assert find_regions(np.zeros((5, 5), np.float32), 0.1, 0.2) == ()
