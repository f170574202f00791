"""The promise: of good pictures drawn like the calibrated ones, at most a share `rate` is rejected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import anomalens as al
from anomalens.calibrate import fit_calibrated
from anomalens.detector import Detector
from anomalens.errors import WrongInput
from anomalens.thresholds import Calibration, stands_out
from anomalens.types import Prediction, Reason, Sample


@dataclass
class Distance(Detector):
    """Scores the distance of a number (kept as the sample's category) to the mean of those learnt."""

    learned: ClassVar[tuple[str, ...]] = ("mean",)

    def fit(self, samples):
        self.mean = np.mean([float(s.category) for s in samples])
        return self

    def predict(self, samples):
        self.require_fit()
        for s in samples:
            away = abs(float(s.category) - self.mean)
            yield Prediction(s.id, float(away), np.full((4, 4), away, np.float32))


@dataclass
class Shy(Distance):
    """Withholds a score where the number is not one, and says so."""

    def predict(self, samples):
        for s in samples:
            withheld = math.isnan(float(s.category))
            yield Prediction(s.id, float(s.category), reasons=(Reason("refused"),) if withheld else ())

    @property
    def needs_fit(self):
        return False


def numbers(values) -> list[Sample]:
    return [Sample(str(i), {}, category=repr(float(v))) for i, v in enumerate(values)]


def calibration(scores) -> Calibration:
    scores = np.asarray(scores, float)
    return Calibration(scores, scores, scores * 0.5, "held-out")


def binomial_interval(p: float, n: int) -> tuple[float, float]:
    """Central 99.9 % of Binomial(n, p) / n, by its normal approximation with a continuity correction."""
    half = 3.29 * math.sqrt(p * (1 - p) / n) + 0.5 / n
    return p - half, p + half


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (50, 0.1), (199, 0.05), (400, 0.02)])
def test_the_false_alarm_rate_is_kept_over_random_splits(n, rate):
    """Split-conformal is exact on average over splits: k / (n + 1) with k = floor(rate (n + 1))."""
    rng = np.random.default_rng(0)
    rejected = trials = 0
    for _ in range(400):
        c = calibration(rng.gamma(2.0, size=n))
        fresh = rng.gamma(2.0, size=50)
        rejected += sum(c.verdict(c.p_value(s), rate) == "reject" for s in fresh)
        trials += len(fresh)
    expected = math.floor(rate * (n + 1)) / (n + 1)
    # Fresh scores of one split share its threshold: the rate of one split is Beta distributed, so widen accordingly.
    spread = math.sqrt(expected * (1 - expected) / (n + 2) / 400)
    low, high = binomial_interval(expected, trials)
    assert low - 3.3 * spread <= rejected / trials <= high + 3.3 * spread
    assert rejected / trials <= rate + 3.3 * (spread + math.sqrt(rate / trials))


@pytest.mark.parametrize("n", [20, 60, 320])
def test_fit_calibrated_keeps_the_rate_when_the_detector_learns(n):
    """With cross-fitting (20, 60) and with holding out (320), on a detector that is fitted each time."""
    rng, rate, rejected, trials = np.random.default_rng(1), 0.1, 0, 0
    for split in range(150):
        d = fit_calibrated(Distance(), numbers(rng.normal(size=n)), seed=split)
        assert d.calibration.how == ("held-out" if n >= 300 else "cross-fitted")
        scores = [p.score for p in d.predict(numbers(rng.normal(size=20)))]
        rejected += sum(d.calibration.verdict(d.calibration.p_value(s), rate) == "reject" for s in scores)
        trials += len(scores)
    spread = math.sqrt(rate * (1 - rate) / n / 150)
    low, high = binomial_interval(rate, trials)
    assert low - 3.3 * spread - 1 / (n + 1) <= rejected / trials <= high + 3.3 * spread


def test_p_values_and_thresholds_agree_with_ties():
    rng = np.random.default_rng(2)
    for _ in range(50):
        scores = rng.integers(0, 6, rng.integers(2, 40)).astype(float)
        c = calibration(scores)
        for s in np.arange(-0.5, 7, 0.5):
            assert c.p_value(s) == (1 + (scores >= s).sum()) / (len(scores) + 1)
            for rate in (0.05, 0.1, 0.3, 0.5):
                assert (s > c.threshold(rate)) == (c.p_value(s) <= rate + 1e-12)


def test_few_pictures_promise_little_and_say_so():
    c = calibration(np.arange(20.0))
    assert c.smallest_rate == pytest.approx(1 / 21)
    assert c.threshold(0.01) == math.inf
    assert "below 4.8 %" in c.promise(0.01)
    assert "99 good pictures would allow 1 %" in c.promise(0.01)
    assert "At most 4.8 %" in c.promise()
    assert c.judge(Prediction("x", 99.0), 0.01).verdict == "review"
    assert c.judge(Prediction("x", 99.0)).verdict == "reject"  # no rate asked: the lowest that can be promised
    assert c.judge(Prediction("x", 1.0)).verdict == "pass"


def test_the_review_zone_reaches_from_a_to_five_a():
    c = calibration(np.arange(99.0))
    verdicts = [c.verdict(p, 0.01) for p in (0.01, 0.011, 0.05, 0.051)]
    assert verdicts == ["reject", "review", "review", "pass"]
    few = calibration(np.arange(4.0))  # promises 20 % at best; five times that would be everything
    assert [few.verdict(p, 0.2) for p in (0.2, 0.4, 0.6, 1.0)] == ["reject", "review", "pass", "pass"]


def test_the_range_of_the_actual_rate_is_that_of_a_beta():
    stats = pytest.importorskip("scipy.stats")
    for n, rate in [(99, 0.01), (50, 0.1), (1000, 0.05)]:
        k = math.floor(rate * (n + 1) + 1e-9)
        low, high = calibration(np.arange(float(n))).actual_rate(rate)
        assert (low, high) == pytest.approx(stats.beta(k, n + 1 - k).ppf([0.025, 0.975]), abs=1e-9)


def test_regions_start_above_the_pixel_threshold_and_pass_has_none():
    peaks = np.linspace(1, 2, 99)
    c = Calibration(peaks, peaks, peaks * 0.5, "held-out")
    low, high = c.pixel_thresholds(0.01)
    assert (low, high) == (1.0, 2.0)
    values = np.zeros((20, 30), np.float32)
    values[3:9, 4:10] = 1.5  # above low only: part of a region where it touches a peak
    values[5, 5] = 3.0
    values[15:17, 20:25] = 1.9  # never above high: no region
    judged = c.judge(Prediction("x", 3.0, values), 0.01)
    assert judged.verdict == "reject"
    (region,) = judged.regions
    assert (region.box, region.area, region.peak) == ((4, 3, 10, 9), 36, 3.0)
    assert region.outline == ((4, 3), (10, 3), (10, 9), (4, 9))
    assert c.judge(Prediction("x", 3.0, values), 0.01, min_area=37).regions == ()
    assert c.judge(Prediction("x", 0.1, values), 0.01).regions == ()


def test_refusals():
    with pytest.raises(WrongInput, match="at least 2"):
        fit_calibrated(Distance(), numbers([1.0]))
    with pytest.raises(WrongInput, match="labelled anomalous"):
        fit_calibrated(Distance(), [*numbers([1.0, 2.0]), Sample("bad", {}, label=1)])
    with pytest.raises(WrongInput, match="between 0 and 1"):
        calibration([1.0, 2.0]).rate(1.5)
    with pytest.raises(WrongInput, match="damaged"):
        Calibration.from_dict({"scores": [1.0, math.nan], "peaks": [], "highs": [], "how": "held-out"})
    with pytest.raises(WrongInput, match="not a number"):
        fit_calibrated(Distance(), numbers([1.0, math.nan, 2.0]))


def test_pictures_without_an_answer_are_left_out_of_the_promise():
    assert sorted(fit_calibrated(Shy(), numbers([1.0, math.nan, 2.0])).calibration.scores) == [1.0, 2.0]
    with pytest.raises(WrongInput, match="none of the good pictures got a score"):
        fit_calibrated(Shy(), numbers([math.nan, math.nan]))


def test_every_picture_is_scored_by_a_detector_that_did_not_learn_it(good):
    seen: dict[int, set[str]] = {}

    @dataclass
    class Spy(Distance):
        def fit(self, samples):
            samples = list(samples)
            seen[id(self)] = {s.id for s in samples}
            self.keep = self
            return super().fit(samples)

        def predict(self, samples):
            for p in super().predict(samples):
                assert p.id not in seen[id(self)]
                yield p

    d = fit_calibrated(Spy(), numbers(range(13)))
    assert d.calibration.count == 13
    assert seen[id(d)] == {str(i) for i in range(13)}


def test_the_calibration_travels_with_the_saved_detector(good, tmp_path):
    d = al.fit_calibrated(al.create("patchcore", image_size=64), good)
    al.save(d, tmp_path / "m")
    loaded = al.load(tmp_path / "m")
    assert np.array_equal(loaded.calibration.scores, d.calibration.scores)
    assert loaded.calibration.how == "cross-fitted"
    assert loaded.calibration.pixel_thresholds(0.1) == d.calibration.pixel_thresholds(0.1)


def test_standing_out_of_a_batch():
    limit, flags = stands_out([1, 1.1, 0.9, 1.05, 0.95, 5])
    assert flags.tolist() == [False] * 5 + [True]
    assert 1.1 < limit < 5
    assert stands_out([])[1].tolist() == []


# --- categories -------------------------------------------------------------------------------------------------------


@dataclass
class Spread(Detector):
    """Scores a number kept in the sample's id; knows categories as well as its `finds` says."""

    finds: str = ""  # the category that it takes every picture for
    learned: ClassVar[tuple[str, ...]] = ("count",)

    def fit(self, samples):
        self.count = len(list(samples))
        return self

    def predict(self, samples):
        for s in samples:
            value = float(s.id.split("=")[1])
            yield Prediction(s.id, value, np.full((4, 4), value, np.float32), category=self.finds)


def of_categories(rng, **counts) -> list[Sample]:
    """Scores of category k are k times as wide as those of the first."""
    return [
        Sample(f"{name}{i}={float(k * rng.gamma(2.0)) + 1e-9 * i!r}", {}, category=name)
        for k, (name, n) in enumerate(counts.items(), 1)
        for i in range(n)
    ]


def test_each_category_keeps_its_own_rate():
    """Where one threshold for all rejects far too many of one category and too few of the other."""
    rng, rate = np.random.default_rng(3), 0.1
    rejected: dict[tuple[str, str], int] = {}
    for _ in range(200):
        c = fit_calibrated(Spread(), of_categories(rng, narrow=40, wide=30)).calibration
        for s in of_categories(rng, narrow=30, wide=30):
            score = float(s.id.split("=")[1])
            for how, used in (("own", c.own(s.category, rate)), ("all", c)):
                rejected[how, s.category] = rejected.get((how, s.category), 0) + (used.p_value(score) <= rate)
    for name, n in (("narrow", 40), ("wide", 30)):
        expected = math.floor(rate * (n + 1)) / (n + 1)
        spread = math.sqrt(expected * (1 - expected) / (n + 2) / 200)  # of 200 thresholds, each Beta distributed
        low, high = binomial_interval(expected, 6000)
        assert low - 3.3 * spread <= rejected["own", name] / 6000 <= high + 3.3 * spread
    assert rejected["all", "wide"] / 6000 > 1.4 * rate
    assert rejected["all", "narrow"] / 6000 < 0.6 * rate


def test_few_or_unknown_pictures_are_judged_by_all_together():
    c = fit_calibrated(Spread(), of_categories(np.random.default_rng(4), many=60, few=12)).calibration
    assert {name: part.count for name, part in c.parts.items()} == {"few": 12, "many": 60}
    assert c.own("many", 0.05) is c.parts["many"]
    assert c.own("few", 0.05) is c
    assert c.own("never seen", 0.05) is c
    assert c.own("few", 1 / 13) is c.parts["few"]
    assert np.array_equal(np.sort(np.concatenate([p.scores for p in c.parts.values()])), np.sort(c.scores))
    words = c.promise(0.05)
    assert "holds by itself: many (60)" in words
    assert "which takes 19: few (12: 7.7 % at best)" in words
    assert "by all 72 together" in words
    assert "Too few" not in c.promise(0.1)
    assert "holds by itself" not in c.promise(0.0161)
    judged = c.judge(Prediction("x", 2.0), 0.05, category="many")
    assert judged.p_value == c.parts["many"].p_value(2.0) != c.p_value(2.0)
    assert c.judge(Prediction("x", 2.0, category="few"), 0.1, category="many").p_value == c.parts["few"].p_value(2.0)
    assert c.judge(Prediction("x", 2.0), 0.05).p_value == c.p_value(2.0)


def test_regions_follow_the_category_too():
    c = Calibration(*(np.array([1.0, 2, 3, 10, 20, 30]) for _ in range(3)), "held-out", ("a",) * 3 + ("b",) * 3)
    values = np.zeros((8, 8), np.float32)
    values[2:4, 2:4] = 5
    assert len(c.judge(Prediction("x", 5.0, values), 0.25, category="a").regions) == 1
    assert c.judge(Prediction("x", 5.0, values), 0.25, category="b").regions == ()


def test_what_a_method_finds_is_what_it_is_calibrated_by():
    samples = of_categories(np.random.default_rng(5), a=5, b=5)
    assert fit_calibrated(Spread(finds="a"), samples).calibration.categories == ()
    assert set(fit_calibrated(Spread(), samples).calibration.categories) == {"a", "b"}


def test_one_category_is_saved_as_ever_and_several_come_back(tmp_path):
    rng = np.random.default_rng(6)
    one = fit_calibrated(Spread(), of_categories(rng, a=9)).calibration
    assert set(one.to_dict()) == {"scores", "peaks", "highs", "how"}
    assert one.parts == {}
    d = al.create("padim", image_size=64)
    d.calibration = several = fit_calibrated(Spread(), of_categories(rng, a=9, b=4)).calibration
    d.__dict__.update({name: np.zeros(1) for name in d.learned})
    al.save(d, tmp_path / "m")
    loaded = al.load(tmp_path / "m").calibration
    assert loaded.categories == several.categories
    assert np.array_equal(loaded.parts["b"].scores, several.parts["b"].scores)
    with pytest.raises(WrongInput, match="damaged"):
        Calibration.from_dict({**several.to_dict(), "categories": ("a",)})


def test_parts_of_a_fit_share_every_category():
    """Neither a fold nor what is kept aside takes a category away from the rest."""
    learnt: list[set[str]] = []

    @dataclass
    class Seen(Spread):
        trains_by_gradient: ClassVar[bool] = False

        def fit(self, samples):
            learnt.append({s.category for s in list(samples)})
            return super().fit([])

    class Trained(Seen):
        trains_by_gradient = True

    names = {"a": 40, "b": 2, "c": 3, "d": 12}
    for cls in (Seen, Trained):
        for seed in range(20):
            fit_calibrated(cls(), of_categories(np.random.default_rng(seed), **names), seed=seed)
    assert all(found == set(names) for found in learnt)
    assert len(learnt) == 20 * 6 + 20


# --- methods that are trained -----------------------------------------------------------------------------------------


def test_a_training_is_not_repeated():
    fits: list[int] = []

    @dataclass
    class Trained(Spread):
        trains_by_gradient: ClassVar[bool] = True

        def fit(self, samples):
            fits.append(len(list(samples)))
            return super().fit([])

    samples = of_categories(np.random.default_rng(7), a=100)
    c = fit_calibrated(Trained(), samples).calibration
    assert (fits, c.count, c.how, c.given) == ([80], 20, "held-out", 100)
    assert "20 good pictures of 100, kept aside because the method is trained only once;" in c.promise(0.05)
    assert "99 of at least 297 good pictures would allow 1 %" in c.promise(0.01)
    fits.clear()
    assert fit_calibrated(Trained(), samples, rate=0.03).calibration.count == 33
    assert fit_calibrated(Trained(), samples, folds=2).calibration.how == "cross-fitted"
    assert fits == [67, 50, 50, 100]


def test_how_many_are_kept_aside():
    from anomalens.calibrate import kept_aside

    assert [kept_aside(n) for n in (2, 3, 20, 50, 57, 100, 200, 299)] == [1, 1, 6, 16, 19, 20, 40, 60]
    assert [kept_aside(200, rate) for rate in (0.01, 0.02, 0.05, 0.3)] == [40, 49, 40, 40]
    assert all(
        1 <= kept_aside(n, rate) <= max(1, n // 3) for n in range(2, 300) for rate in (None, 0.01, 0.1, 0.5) if n > 4
    )


def test_cards_say_which_methods_are_trained():
    assert not al.create("padim").trains_by_gradient
    assert not al.create("tiled", inner=al.create("padim")).trains_by_gradient
    pytest.importorskip("torch")
    assert al.create("pnpt").trains_by_gradient
    assert al.create("tiled", inner=al.create("pnpt")).trains_by_gradient
