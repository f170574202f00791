import numpy as np
import pytest

from anomalens.errors import WrongInput
from anomalens.metrics import PixelAccumulator, PixelEvalPolicy, pixel

from .drawn import pictures

LIMITS = (0.3, 0.05, 1.0)
WHICH = ("auroc", "ap", "f1max", "iou", "aupro")
SHAPES = (lambda x: x, np.exp, lambda x: x**3 * 1e-4, lambda x: np.round(x * 3), lambda x: np.maximum(x - 100, -99))


def counted(maps, masks, bits=16, **settings):
    accumulator = PixelAccumulator(bits, **settings)
    for values, mask in zip(maps, masks, strict=True):
        accumulator.update(values, mask)
    return accumulator


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_bound_holds(bits):
    used = []
    for seed in range(50):
        maps, masks = pictures(seed, shift=seed % 4)
        maps = SHAPES[seed % len(SHAPES)](maps).astype(np.float32)
        exact = pixel(maps, masks, limits=LIMITS, which=WHICH)
        for name, measured in counted(maps, masks, bits).compute(LIMITS).items():
            error = abs(measured.value - exact[name].value)
            assert error <= measured.bound + 1e-12, (seed, name)
            used += [error / measured.bound] if measured.bound > 1e-9 else []
    assert max(used, default=1.0) > 0.2  # a bound that is never approached would be worthless


def test_the_bound_shrinks_with_more_bits():
    maps, masks = pictures(1)
    bounds = [counted(maps, masks, bits).compute()["aupro@0.3"].bound for bits in (10, 14, 20)]
    assert bounds[0] > bounds[1] > bounds[2]


def test_half_precision_is_exact():
    for seed in range(10):
        maps, masks = pictures(seed)
        maps = (maps * 3).astype(np.float16)
        maps[0, 0, :2] = 0.0, -0.0
        exact = pixel(maps, masks, limits=LIMITS, which=WHICH)
        for name, measured in counted(maps, masks).compute(LIMITS).items():
            assert measured.bound == 0
            assert measured.value == pytest.approx(exact[name].value, abs=1e-12)
            if name in ("f1max", "iou"):
                assert measured.threshold == exact[name].threshold


def test_minus_zero_ties_with_zero():
    scores = np.array([[0.0, -0.0]], np.float32)
    found = counted([scores], [np.array([[1, 0]])]).compute()["auroc"]
    assert found.value == 0.5


def test_merging_in_any_grouping_gives_one_pass():
    maps, masks = pictures(9, count=6)
    a, b, c = (lambda part=part: counted(maps[part], masks[part]) for part in (slice(2), slice(2, 3), slice(3, 6)))
    whole = counted(maps, masks)
    for merged in (a().merge(b()).merge(c()), a().merge(b().merge(c())), c().merge(a()).merge(b())):
        for mine, theirs in zip(merged.compute().values(), whole.compute().values(), strict=True):
            assert mine.value == pytest.approx(theirs.value, abs=1e-12)
            assert (mine.n_pos, mine.n_neg, mine.n_regions) == (theirs.n_pos, theirs.n_neg, theirs.n_regions)
    assert PixelAccumulator().merge(whole).compute()["ap"].value == whole.compute()["ap"].value


def test_accumulators_that_do_not_fit_are_refused():
    with pytest.raises(WrongInput, match="different settings"):
        PixelAccumulator(16).merge(PixelAccumulator(12))
    half, single = np.zeros((2, 2), np.float16), np.zeros((2, 2), np.float32)
    with pytest.raises(WrongInput, match="float16"):
        PixelAccumulator().update(half).update(single)
    with pytest.raises(WrongInput, match="float16"):
        PixelAccumulator().update(half).merge(PixelAccumulator().update(single))
    with pytest.raises(WrongInput, match="bits"):
        PixelAccumulator(30)
    with pytest.raises(WrongInput, match="range of float32"):
        PixelAccumulator().update(np.full((2, 2), 1e300))


def test_the_threshold_is_the_lower_edge_of_its_bin():
    maps, masks = pictures(3)
    found = counted(maps, masks).compute()["f1max"]
    called = maps >= found.threshold
    f1 = 2 * (called & (masks == 1)).sum() / (called.sum() + masks.sum())
    assert f1 == pytest.approx(found.value, abs=1e-12)


def test_through_pixel_with_generators_and_the_policy():
    maps, masks = pictures(5)
    policy = PixelEvalPolicy(size=9)
    found = pixel(iter(maps), iter(masks), policy, which=WHICH, variant="stream", connectivity=4)
    exact = pixel(maps, masks, policy, which=WHICH, connectivity=4)
    for name, measured in found.items():
        assert abs(measured.value - exact[name].value) <= measured.bound + 1e-12
        assert measured.settings["variant"] == "stream"
        assert measured.n_regions == exact[name].n_regions
    with pytest.raises(WrongInput, match="differ in number"):
        pixel(iter(maps), iter(masks[:-1]), variant="stream")
    with pytest.raises(WrongInput, match="one pass"):
        pixel(maps, masks, which=["pro-rad"], variant="stream")
    with pytest.raises(WrongInput, match="interval"):
        pixel(maps, masks, variant="stream", interval=True)


def test_a_missing_class_is_nan_with_its_reason():
    found = counted([np.eye(3)], [None]).compute()
    assert all(np.isnan(measured.value) and "no anomalous item" in measured.reason for measured in found.values())
