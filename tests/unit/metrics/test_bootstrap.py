import numpy as np
import pytest

from anomalens.errors import WrongInput
from anomalens.metrics import PixelEvalPolicy, compare, get, image, pixel
from anomalens.metrics._bootstrap import draws, image_replicates, picture_counts, pixel_replicates
from anomalens.metrics._pixels import align, pixel_curve
from anomalens.registry import module

from .drawn import pictures

RNG = np.random.default_rng


def of_curve(name):
    return module("metrics", "metric", name).of_curve


def test_draws_are_resamples_and_invalid_ones_are_drawn_again():
    weights = draws(300, 5, lambda w: w[:, 2] > 0, RNG(0))
    assert weights.shape == (300, 5)
    assert (weights.sum(axis=1) == 5).all()
    assert (weights[:, 2] > 0).all()
    free = draws(4000, 5, lambda w: np.ones(len(w), bool), RNG(0))
    assert free.mean(axis=0) == pytest.approx(np.ones(5), abs=0.06)
    assert free.var(axis=0) == pytest.approx(np.full(5, 0.8), abs=0.1)  # multinomial: n p (1 - p)


def test_image_replicates_are_the_metrics_of_the_resampled_pictures():
    rng = RNG(1)
    scores, labels = np.round(rng.normal(size=25) * 2), (rng.random(25) < 0.4).astype(int)
    stems = ["auroc", "average-precision", "f1max", "fpr-at-recall", "recall-at-fpr"]
    found = image_replicates(scores, labels, [of_curve(s) for s in stems], resamples=40, seed=5)
    weights = draws(40, 25, lambda w: (w[:, labels == 1].any(axis=1)) & (w[:, labels == 0].any(axis=1)), RNG(5))
    for row, weight in enumerate(weights):
        chosen = np.repeat(np.arange(25), weight)
        for stem, values in zip(stems, found, strict=True):
            assert values[row] == pytest.approx(get(stem)(scores[chosen], labels[chosen]), abs=1e-12)


def test_image_blocks_cover_every_resample(monkeypatch):
    monkeypatch.setattr("anomalens.metrics._bootstrap.BLOCK", 70)
    scores, labels = RNG(0).normal(size=20), np.arange(20) % 2
    found = image_replicates(scores, labels, [of_curve("auroc")], resamples=50)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) > 20


def test_pixel_replicates_are_the_metrics_of_the_resampled_pictures():
    maps, masks = pictures(2, count=6, levels=25)
    stems = ["auroc", "average-precision", "f1max", "iou", "aupro"]
    counts = picture_counts(align(maps, masks)[0])
    found = pixel_replicates([counts], [of_curve(s) for s in stems], resamples=15, seed=3)[0]
    weights = draws(15, 6, lambda w: (w @ counts.positives > 0) & (w @ counts.negatives > 0), RNG(3))
    for row, weight in enumerate(weights):
        chosen = np.repeat(np.arange(6), weight)
        for stem, values in zip(stems, found, strict=True):
            assert values[row] == pytest.approx(get(stem)(maps[chosen], masks[chosen]), abs=1e-9)


def test_few_points_stay_close_to_the_exact_curve():
    maps, masks = pictures(7, count=8, side=(60, 60), shift=2)
    pairs = align(maps, masks)[0]
    exact = pixel_curve(pairs, regions=True)
    coarse = picture_counts(pairs, points=400).curve(np.ones((1, 8)))
    assert coarse.tp.shape[-1] <= 400 < exact.tp.shape[-1]
    for stem, allowed in (("auroc", 1e-4), ("average-precision", 3e-3), ("f1max", 3e-3), ("aupro", 1e-3)):
        assert of_curve(stem)(coarse)[0][0] == pytest.approx(float(of_curve(stem)(exact)[0]), abs=allowed)


def test_intervals_hold_the_value_and_narrow_with_more_pictures():
    rng = RNG(0)
    widths = []
    for count in (40, 640):
        labels = np.arange(count) % 2
        for measured in image(rng.normal(size=count) + labels, labels, interval=True).values():
            low, high = measured.interval
            assert low < measured.value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    maps, masks = pictures(1, count=8)
    for measured in pixel(maps, masks, interval=True).values():
        assert measured.interval[0] <= measured.value <= measured.interval[1]


def test_intervals_are_those_of_hanley_and_mcneil():
    """Their standard error of the AUROC is an independent derivation; 1.96 of it is half the interval."""
    rng = RNG(4)
    labels = np.arange(400) % 2
    measured = image(rng.normal(size=400) + labels, labels, ["auroc"], interval=True)["auroc"]
    a, n = measured.value, 200
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (n * n))
    assert measured.interval[1] - measured.interval[0] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_seeds():
    scores, labels = RNG(0).normal(size=60), np.arange(60) % 2
    first, again, other = (image(scores, labels, ["ap"], interval=True, seed=s)["ap"].interval for s in (0, 0, 1))
    assert first == again != other


def test_no_interval_where_the_value_is_undefined_or_has_no_curve():
    found = image([1.0, 2.0], [0, 0], interval=True)
    assert all(measured.interval is None for measured in found.values())
    maps, masks = pictures(1)
    found = pixel(maps, masks, which=["auroc", "aupro", "pro-rad"], min_region_area=1000, interval=True)
    assert found["auroc"].interval is not None
    assert found["aupro@0.3"].interval is None
    assert found["pro-rad"].interval is None
    everything = pixel(maps[:2], np.ones_like(masks[:2]), which=["ap"], interval=True)["ap"]
    assert everything.value == 1
    assert everything.interval == (1, 1)


def test_comparing_pictures():
    rng = RNG(3)
    labels = np.arange(200) % 2
    good, poor = rng.normal(size=200) + 2 * labels, rng.normal(size=200) * 50 + 5 * labels
    found = compare(good, poor, labels)
    assert found.difference == pytest.approx(found.first - found.second)
    assert found.interval[0] > 0
    assert found.p_value < 0.01
    back = compare(poor, good, labels)
    assert back.difference == -found.difference
    assert back.p_value == found.p_value
    same = compare(good, np.exp(good), labels)  # another scale is not another method
    assert same.difference == 0
    assert same.interval == (0, 0)
    assert same.p_value == 1


def test_p_values_are_spread_evenly_when_methods_do_not_differ():
    p = []
    for seed in range(40):
        rng = RNG(seed)
        labels = np.arange(30) % 2
        part = rng.normal(size=30) + labels
        p.append(compare(part + rng.normal(size=30), part + rng.normal(size=30), labels, resamples=60).p_value)
    assert np.mean(np.array(p) <= 0.2) < 0.4
    assert 0.3 < np.mean(p) < 0.75


def test_comparing_pixels():
    maps, masks = pictures(6, count=10, shift=2)
    noisy = maps + RNG(0).normal(size=maps.shape).astype(np.float32) * 2
    for metric, settings in (("aupro", {"limit": 0.3}), ("ap", {})):
        found = compare(maps, noisy, masks, metric, level="pixel", **settings)
        assert found.first == pytest.approx(get(metric)(maps, masks, **settings), abs=1e-12)
        assert found.interval[0] > 0
        assert found.p_value < 0.05
    coarse = compare(maps, noisy, masks, "aupro", level="pixel", policy=PixelEvalPolicy(7), resamples=20)
    assert coarse.first == pixel(maps, masks, PixelEvalPolicy(7), which=["aupro"])["aupro@0.3"].value
    same = compare(maps, maps, masks, "aupro", level="pixel")
    assert (same.difference, same.interval, same.p_value) == (0, (0, 0), 1)


def test_comparing_without_a_class_is_undefined():
    assert np.isnan(compare([1.0, 2.0], [2.0, 1.0], [0, 0]).difference)
    assert np.isnan(compare([np.eye(2)], [np.eye(2)], [None], "auroc", level="pixel").p_value)


def test_wrong_comparisons():
    with pytest.raises(WrongInput, match="curve"):
        compare([np.eye(2)], [np.eye(2)], [np.eye(2)], "pro-rad", level="pixel")
    with pytest.raises(WrongInput, match="level image"):
        compare([1.0], [1.0], [1], "aupro")
    with pytest.raises(WrongInput, match="resamples"):
        compare([1.0, 2.0], [1.0, 2.0], [1, 0], resamples=0)
