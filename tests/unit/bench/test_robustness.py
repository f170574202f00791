"""The nine measures against hand-made numbers and slow loops, and the tables of RAD against themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anomalens import metrics
from anomalens.bench import rad, robustness
from anomalens.errors import UnknownName, WrongInput

CURVE = [0.9, 0.8, 0.7, 0.65, 0.6, 0.5]  # AUROC, chance is 0.5


def test_drops():
    assert robustness.absolute_drop(0.9, 0.7) == pytest.approx(0.2)
    assert robustness.relative_drop(0.9, 0.7, 0.5) == pytest.approx(0.5)
    assert robustness.relative_drop(0.9, 0.9, 0.5) == 0
    assert robustness.relative_drop(0.9, 0.5, 0.5) == pytest.approx(1)
    assert math.isnan(robustness.relative_drop(0.51, 0.4, 0.5))
    assert np.allclose(robustness.relative_drop(0.9, CURVE, 0.5), [0, 0.25, 0.5, 0.625, 0.75, 1])


def test_means_over_corruptions_and_over_groups():
    values = {"rot": [0.9] * 5, "tilt": [0.7] * 5, "gauss": [0.5, 0.4, 0.3, 0.2, 0.1], "rad": [0.0] * 5}
    assert robustness.mean_score(values) == pytest.approx((0.9 + 0.7 + 0.3 + 0) / 4)
    groups = robustness.group_scores(values)
    assert groups == pytest.approx({"viewpoint": 0.8, "noise": 0.3, "compound": 0.0})
    assert robustness.grouped_score(values) == pytest.approx((0.8 + 0.3) / 2)  # the compound does not count
    own = {"rot": "a", "tilt": "b", "gauss": "b", "rad": "b", "spot": "c"}
    assert robustness.grouped_score(values, own) == pytest.approx((0.9 + (0.7 + 0.3 + 0) / 3) / 2)


def test_a_group_with_many_corruptions_counts_once():
    few = {"rot": [1.0] * 5, "jpeg": [0.0] * 5}
    many = {**dict.fromkeys(("rot", "tilt", "zoom", "shift", "view"), [1.0] * 5), "jpeg": [0.0] * 5}
    assert robustness.grouped_score(few) == robustness.grouped_score(many) == 0.5
    assert robustness.mean_score(many) == pytest.approx(5 / 6)


def test_area_under_the_curve():
    assert robustness.severity_area(CURVE) == pytest.approx((0.85 + 0.75 + 0.675 + 0.625 + 0.55) / 5)
    assert robustness.severity_area([0.8] * 6) == pytest.approx(0.8)
    assert robustness.normalised_severity_area([0.8] * 6, 0.5) == pytest.approx(1)
    assert robustness.normalised_severity_area(CURVE, 0.5) == pytest.approx(0.19 / 0.4)
    assert math.isnan(robustness.normalised_severity_area([0.51] * 6, 0.5))


def test_against_a_baseline():
    better, worse = [0.9] * 5, [0.8] * 5
    assert robustness.corruption_error(better, worse) == pytest.approx(0.5)
    assert robustness.corruption_error(worse, worse) == pytest.approx(1)
    assert math.isnan(robustness.corruption_error(worse, [1.0] * 5))
    assert robustness.corruption_drop([0.9, *[0.8] * 5], [0.9, *[0.7] * 5]) == pytest.approx(0.5)
    assert robustness.corruption_drop([0.6, *[0.5] * 5], [0.9, *[0.8] * 5]) == pytest.approx(1)  # whatever M0 is
    assert math.isnan(robustness.corruption_drop(CURVE, [0.9] * 6))


def test_half_life():
    assert robustness.half_life(CURVE, 0.5) == pytest.approx(2)
    assert robustness.half_life([0.9, 0.8, 0.6, 0.6, 0.6, 0.6], 0.5) == pytest.approx(1.5)
    assert robustness.half_life([0.9, 0.5, 0.9, 0.9, 0.9, 0.9], 0.5) == pytest.approx(0.5)  # the first time
    assert robustness.half_life([0.9] * 6, 0.5) == math.inf
    assert math.isnan(robustness.half_life([0.5] * 6, 0.5))
    assert math.isnan(robustness.half_life([0.9, 0.8, math.nan, 0.6, 0.5, 0.5], 0.5))


def test_the_operating_point_comes_from_clean_pictures_alone():
    held_out = np.arange(100) / 100  # 0.00 ... 0.99
    labels = np.array([0, 0, 0, 0, 1, 1])
    point = robustness.operating_point(held_out, [0.5, 0.95, 0.97, 0.985, 0.9, 2.0], labels, rate=0.05)
    assert point.threshold == 0.94
    assert (held_out > point.threshold).mean() == pytest.approx(0.05)
    assert point.false_alarms == pytest.approx(3 / 4)
    assert point.recall == pytest.approx(1 / 2)
    assert robustness.operating_point(held_out, [0.985], [0], rate=0.01).threshold == 0.98
    assert robustness.operating_point(held_out[:50], [0.4], [0], rate=0.01).threshold == 0.49  # the highest of few
    assert math.isnan(robustness.operating_point(held_out, [0.4], [0]).recall)


@pytest.mark.parametrize("rate", [0, 0.01, 0.05, 0.3, 0.99])
def test_no_more_than_the_rate_of_held_out_pictures_is_above_the_threshold(rate):
    rng = np.random.default_rng(1)
    for count in (1, 7, 100, 333):
        calm = rng.integers(0, 50, count).astype(float)  # with ties
        threshold = robustness.operating_point(calm, calm, np.zeros(count, int), rate).threshold
        assert (calm > threshold).mean() <= rate + 1e-12
        lower = calm[calm < threshold]
        assert not len(lower) or (calm > lower.max()).mean() > rate  # the next lower one would be too low


def test_score_stability_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)
    assert robustness.score_stability(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert robustness.score_stability(a, np.exp(a)) == pytest.approx(1)
    assert robustness.score_stability(a, -a) == pytest.approx(-1)
    assert math.isnan(robustness.score_stability(a, np.ones(40)))


def test_map_stability():
    clean = np.arange(100.0).reshape(10, 10)  # interquartile range 49.5
    assert robustness.map_stability(clean, clean, clean) == 1
    assert robustness.map_stability(clean, clean, clean + 4.95) == pytest.approx(0.9)
    valid = np.zeros((10, 10), bool)
    valid[:5] = True
    assert robustness.map_stability(clean, clean, np.where(valid, clean, 1e9), valid) == 1
    assert math.isnan(robustness.map_stability(np.ones((3, 3)), clean[:3, :3], clean[:3, :3]))
    assert math.isnan(robustness.map_stability(clean, clean, clean, valid & False))


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [30, 20])
    fade = np.linspace(2, 0.5, 5)[:, None]  # how far apart the classes are at each grade

    def made(lead: float) -> dict[str, np.ndarray]:
        return {c: np.round(rng.normal(labels * fade * lead, 1), 1) for c in ("rot", "tilt", "gauss")}

    return {"good": made(1.5), "same": made(1.5), "bad": made(0.2)}, labels


@pytest.mark.parametrize("metric", ["auroc", "ap", "f1max"])
def test_intervals_are_a_slow_stratified_paired_bootstrap(scores, metric):
    """Against a loop that builds every resample, with the same multiplicities."""
    table, labels = scores
    found = robustness.intervals(table, labels, metric, resamples=12, seed=5)
    drawn = robustness._stratified(labels, 12, 5)
    assert (drawn[:, labels == 0].sum(axis=1) == 30).all()
    assert (drawn[:, labels == 1].sum(axis=1) == 20).all()

    def value(method: str, times: np.ndarray) -> float:
        picked = np.repeat(np.arange(50), times)
        rows = {
            c: [metrics.image(row[picked], labels[picked], [metric])[metric].value for row in grades]
            for c, grades in table[method].items()
        }
        return (np.mean([np.mean(rows["rot"]), np.mean(rows["tilt"])]) + np.mean(rows["gauss"])) / 2

    good, bad = ([value(m, w) for w in drawn] for m in ("good", "bad"))
    assert found.means["good"].value == pytest.approx(value("good", np.ones(50, int)))
    assert (found.means["good"].low, found.means["good"].high) == pytest.approx(np.percentile(good, (2.5, 97.5)))
    difference = found.differences[("good", "bad")]
    apart = np.percentile(np.subtract(good, bad), (2.5, 97.5))
    assert (difference.low, difference.high) == pytest.approx(apart)


def test_intervals_tell_methods_apart_only_where_they_differ(scores):
    found = robustness.intervals(*scores, resamples=200)
    assert set(found.differences) == {("good", "same"), ("good", "bad"), ("same", "bad")}
    assert found.differences[("good", "bad")].low > 0
    assert found.differences[("good", "same")].low < 0 < found.differences[("good", "same")].high
    assert all(i.low < i.value < i.high for i in found.means.values())
    plain = robustness.intervals(*scores, grouped=False, resamples=5)
    expected = np.mean([metrics.get("auroc")(row, scores[1]) for t in scores[0]["bad"].values() for row in t])
    assert plain.means["bad"].value == pytest.approx(expected)


def test_wrong_input_is_named(scores):
    table, labels = scores
    cases = [
        lambda: robustness.severity_area([1, 2, 3]),
        lambda: robustness.mean_score({"rot": [0.5] * 6}),
        lambda: robustness.mean_score({}),
        lambda: robustness.grouped_score({"rad": [0.5] * 5}),
        lambda: robustness.group_scores({"rot": [0.5] * 5}, {"tilt": "a"}),
        lambda: robustness.operating_point([], [1.0], [1]),
        lambda: robustness.operating_point([math.nan], [1.0], [1]),
        lambda: robustness.operating_point([1.0], [1.0], [1], rate=1.0),
        lambda: robustness.score_stability([1.0], [1.0]),
        lambda: robustness.map_stability(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 3))),
        lambda: robustness.intervals(table, labels, "aupro"),
        lambda: robustness.intervals(table, np.ones(50, int)),
        lambda: robustness.intervals({**table, "x": {"rot": table["bad"]["rot"]}}, labels),
        lambda: robustness.intervals({"x": {"rot": table["bad"]["rot"][:3]}}, labels),
        lambda: robustness.intervals(table, labels, resamples=0),
        lambda: robustness.intervals({}, labels),
    ]
    for call in cases:
        with pytest.raises(WrongInput) as caught:
            call()
        assert 20 < len(str(caught.value)) < 200
    with pytest.raises(UnknownName):
        robustness.group_scores({"fog": [0.5] * 5})


# --- RAD ---------------------------------------------------------------------------------------------------------


def test_printed_means_are_the_means_of_the_rows():
    for level, rows in rad.PUBLISHED.items():
        for metric, printed in rows["mean"].items():
            of_rows = np.mean([rows[category][metric] for category in rad.TEST_ANOMALOUS], axis=0)
            assert abs(of_rows - printed).max() <= 0.11, (level, metric)


def test_tables_are_complete():
    assert set(rad.PUBLISHED) == {"image", "pixel"}
    for level, names in (("image", {"auroc", "ap", "f1max"}), ("pixel", {"auroc", "ap", "f1max", "pro-rad"})):
        assert set(rad.PUBLISHED[level]) == {*rad.TEST_ANOMALOUS, "mean"}
        for rows in rad.PUBLISHED[level].values():
            assert set(rows) == names
            assert all(len(row) == len(rad.METHODS) == 11 for row in rows.values())
        assert all(level in metrics.card(name).levels or name == "pro-rad" for name in names)
    assert metrics.card("pro-rad")
    assert rad.published("image", "bolt", "auroc")["PatchCore"] == 93.7
    assert rad.published("pixel", "Cable_tie", "pro-rad")["RD++"] == 95.6
    assert rad.TRAIN_NORMAL + rad.TEST_NORMAL + sum(rad.TEST_ANOMALOUS.values()) == 1510


def test_chance_is_high():
    assert [round(rad.floor(c, "f1max"), 3) for c in rad.TEST_ANOMALOUS] == [0.900, 0.889, 0.885, 0.898]
    assert round(rad.floor("cable_tie", "ap"), 3) == 0.801
    labels = np.repeat([0, 1], [rad.TEST_NORMAL, rad.TEST_ANOMALOUS["bolt"]])
    for name, measured in metrics.image(np.zeros(len(labels)), labels).items():
        assert measured.value == pytest.approx(rad.floor("bolt", name))
    assert rad.above_chance(0.885, 0.885) == 0
    assert rad.above_chance(1, 0.885) == 1
    assert math.isnan(rad.above_chance(1, 1))


def test_what_counts_as_reproduced():
    assert rad.reproduced("image", "mean", "auroc", "PatchCore", 95.5)
    assert not rad.reproduced("image", "mean", "auroc", "PatchCore", 95.4)
    assert rad.reproduced("image", "bolt", "auroc", "PatchCore", 97.7)
    assert not rad.reproduced("image", "bolt", "auroc", "PatchCore", 97.8)
    assert rad.reproduced("pixel", "mean", "pro-rad", "PatchCore", 84.8)
    assert not rad.reproduced("pixel", "mean", "ap", "PatchCore", 44.7)
    assert rad.reproduced("pixel", "bolt", "ap", "PatchCore", 46.0) is None  # no rule for one category
    assert rad.reproduced("image", "mean", "auroc", "WinCLIP", 98.6) is None
    for call in (
        lambda: rad.published("video", "bolt", "auroc"),
        lambda: rad.published("image", "nut", "auroc"),
        lambda: rad.published("image", "bolt", "pro-rad"),
        lambda: rad.reproduced("image", "bolt", "auroc", "PaDiM", 90),
        lambda: rad.floor("mean", "ap"),
        lambda: rad.floor("bolt", "pro-rad"),
    ):
        with pytest.raises(UnknownName):
            call()
