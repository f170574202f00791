"""What disturbances cost: nine measures over the grades of `synthesis.corruptions`.

A curve is M(c, 0..5): one metric of one method under corruption c, from the clean pictures (grade 0) to the strongest.
The metric is higher-is-better with values in [0, 1], such as AUROC; its level of chance m* is the `floor` that
`metrics.image` and `metrics.pixel` report beside every value. An undefined measure is NaN, never 0.

    1  absolute_drop, 2  relative_drop               what one grade costs
    3  mean_score, group_scores, grouped_score       one number for all corruptions; the grouped one is the headline
    4  severity_area, normalised_severity_area       one number for one corruption
    5  corruption_error, corruption_drop             against a fixed other method
    6  half_life                                     the grade at which half of what was learnt is lost
    7  operating_point                               false alarms and misses at a threshold set on clean pictures
    8  score_stability, map_stability                without labels
    9  intervals                                     how sure the comparison of methods is

The measures are our own choice. Kin: mean corruption error, Hendrycks and Dietterich 2019,
https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np

from .. import metrics
from ..errors import WrongInput
from ..metrics import Curve, OfCurve, checked
from ..synthesis import corruptions

LEARNT = 0.02  # a clean value less than this above chance has nothing to lose: relative measures are undefined
GROUPS = ("viewpoint", "illumination", "blur", "noise", "compression")  # of the headline; compounds are no group

Values = Mapping[str, Sequence[float]]  # corruption -> values at grades 1 to 5


def absolute_drop(clean: Any, corrupted: Any) -> Any:
    """D = M0 - M(c, s): what is lost, in the unit of the metric; 0 is no loss, higher is worse, negative is a gain.

    clean, corrupted: numbers or arrays that broadcast.
    """
    return np.subtract(clean, corrupted)[()]


def relative_drop(clean: Any, corrupted: Any, floor: Any) -> Any:
    """RD = (M0 - M(c, s)) / (M0 - m*): 0 is no loss, 1 is down to chance; higher is worse, it may leave [0, 1].

    clean, corrupted, floor: numbers or arrays that broadcast. NaN where the clean value is less than 0.02 above chance.
    """
    learnt = np.subtract(clean, floor)
    return np.where(learnt < LEARNT, np.nan, np.subtract(clean, corrupted) / np.where(learnt < LEARNT, 1, learnt))[()]


def mean_score(values: Values) -> float:
    """mCS: the mean over corruptions of the mean over grades 1 to 5; in the range of the metric, higher is better.

    Raises:
        WrongInput: no corruption, or not five values for one.
    """
    return float(np.mean([row.mean() for row in _rows(values).values()]))


def group_scores(values: Values, groups: Mapping[str, str] | None = None) -> dict[str, float]:
    """mCS of each group of corruptions: viewpoint, illumination, blur, noise, compression, compound.

    groups: group of each corruption; that of its card when not given.

    Raises:
        WrongInput: no corruption, not five values for one, or no group for one.
        UnknownName: a corruption that has no card.
    """
    rows = _rows(values)
    held = _groups(rows, groups)
    return {
        group: float(np.mean([rows[name].mean() for name in rows if held[name] == group]))
        for group in dict.fromkeys(held[name] for name in rows)
    }


def grouped_score(values: Values, groups: Mapping[str, str] | None = None) -> float:
    """mCS_g, the headline: the mean of the group means, so that no group counts more for having more corruptions.

    In the range of the metric, higher is better. Of the groups on the cards, `compound` does not take part: its members
    repeat the others. Groups of your own all take part.

    Raises:
        WrongInput: as `group_scores`, or there are compounds only.
    """
    means = group_scores(values, groups)
    counted = [mean for group, mean in means.items() if groups is not None or group in GROUPS]
    if not counted:
        raise WrongInput(f"grouped_score got compounds only ({', '.join(values)}); add single corruptions.")
    return float(np.mean(counted))


def severity_area(curve: Sequence[float]) -> float:
    """AUSC: area under the curve over grades 0 to 5 by trapezoids, over 5; in the range of the metric, higher is better.

    Raises:
        WrongInput: not six values.
    """
    c = _curve(curve)
    return float((c[:-1] + c[1:]).sum() / 10)


def normalised_severity_area(curve: Sequence[float], floor: float) -> float:
    """(AUSC - m*) / (M0 - m*): 1 is no loss, 0 is chance at all grades; higher is better.

    NaN where the clean value is less than 0.02 above chance.

    Raises:
        WrongInput: not six values.
    """
    learnt = _curve(curve)[0] - floor
    return (severity_area(curve) - floor) / learnt if learnt >= LEARNT else np.nan


def corruption_error(values: Sequence[float], baseline: Sequence[float]) -> float:
    """rCE: sum over grades of 1 - M, over that of a fixed baseline (PatchCore as a rule); below 1 is better than it.

    values, baseline: (5,) values at grades 1 to 5 of metrics in [0, 1]. NaN where the baseline is perfect.

    Raises:
        WrongInput: not five values.

    Source:
        the ratio of Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261, section 3.1, with 1 - M as error
    """
    error, base = (1 - _five(row) for row in (values, baseline))
    return float(error.sum() / base.sum()) if base.sum() > 0 else np.nan


def corruption_drop(curve: Sequence[float], baseline: Sequence[float]) -> float:
    """The same ratio of drops: sum of M0 - M over that of the baseline; below 1 loses less than it, whatever M0 is.

    curve, baseline: (6,) values at grades 0 to 5. NaN where the baseline loses nothing.

    Raises:
        WrongInput: not six values.
    """
    drop, base = ((c[0] - c[1:]).sum() for c in (_curve(curve), _curve(baseline)))
    return float(drop / base) if base > 0 else np.nan


def half_life(curve: Sequence[float], floor: float) -> float:
    """s50: the first grade, interpolated in between, at which half of M0 - m* is lost; in (0, 5], higher is better.

    Infinite where this never happens; NaN where the clean value is less than 0.02 above chance, or where a value is NaN.

    Raises:
        WrongInput: not six values.
    """
    c = _curve(curve)
    lost = np.asarray(relative_drop(c[0], c, floor))
    if np.isnan(lost).any():
        return np.nan
    reached = np.flatnonzero(lost >= 0.5)
    if not len(reached):
        return np.inf
    s = int(reached[0])
    return s - 1 + (0.5 - lost[s - 1]) / (lost[s] - lost[s - 1])


@dataclass(frozen=True)
class OperatingPoint:
    """What a plant would see: scores above `threshold` are rejected.

    false_alarms: share of normal pictures that are rejected, in [0, 1], lower is better. recall: share of anomalous
    pictures that are rejected, in [0, 1], higher is better. Both NaN where there is no such picture.
    """

    threshold: float
    false_alarms: float
    recall: float


def operating_point(held_out: Any, scores: Any, labels: Any, rate: float = 0.01) -> OperatingPoint:
    """False alarms and recall under a corruption, at the threshold that clean normal pictures set.

    Args:
        held_out: (n,) scores of clean normal pictures that the method did not learn from (20 % of the training set).
        scores: (N,) scores under the corruption; higher is more anomalous.
        labels: (N,) 1 anomalous, 0 normal.
        rate: at most this share of `held_out` lies above the threshold; 0.01 and 0.05 are usual.

    Raises:
        WrongInput: no held-out score, a score that is not finite, or a rate outside [0, 1).
    """
    calm = np.sort(np.asarray(held_out, float))[::-1]
    if calm.ndim != 1 or not len(calm) or not np.isfinite(calm).all():
        raise WrongInput(
            "held_out needs finite scores (n,) of clean normal pictures; hold out 20 % of the training set."
        )
    if not 0 <= rate < 1:
        raise WrongInput(f"rate is {rate!r}; give a share in [0, 1), such as 0.01.")
    values, truth = checked(scores, labels, allow_inf=True)
    threshold = float(calm[int(rate * len(calm) + 1e-9)])
    above = values > threshold
    shares = [float(above[truth == kind].mean()) if (truth == kind).any() else np.nan for kind in (0, 1)]
    return OperatingPoint(threshold, *shares)


def score_stability(clean: Any, corrupted: Any) -> float:
    """Spearman's rank correlation of the scores of the same normal pictures, clean and disturbed; needs no labels.

    In [-1, 1], higher is better. NaN where all scores of one kind are equal.

    Raises:
        WrongInput: shapes differ, or fewer than two scores.

    Source:
        Spearman 1904, https://doi.org/10.2307/1412159
    """
    a, b = np.asarray(clean, float), np.asarray(corrupted, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise WrongInput(f"score_stability needs two scores or more of the same pictures; got {a.shape} and {b.shape}.")
    a, b = (r - r.mean() for r in (_ranks(a), _ranks(b)))
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else np.nan


def map_stability(clean: Any, moved: Any, again: Any, valid: Any = None) -> float:
    """1 - mean |warp(A(x)) - A(warp(x))| / IQR(A(x)) on valid pixels: whether the map moves with the picture.

    At most 1, which is perfect; higher is better; negative where maps differ by more than their own spread.

    Args:
        clean: (H, W) map A(x) of the clean picture; its interquartile range is the unit.
        moved: (H, W) that map moved as the picture was, see `corruptions.corrupt_map`; for light and noise A(x) itself.
        again: (H, W) map A(warp(x)) of the disturbed picture.
        valid: (H, W) bool, pixels that were inside the frame; all when not given.

    Returns:
        NaN where the clean map has no spread or no pixel is valid.

    Raises:
        WrongInput: shapes differ.
    """
    a, b, c = (np.asarray(m, float) for m in (clean, moved, again))
    seen = np.ones(b.shape, bool) if valid is None else np.asarray(valid, bool)
    if not a.shape == b.shape == c.shape == seen.shape:
        raise WrongInput(f"maps of one size are needed; got {a.shape}, {b.shape}, {c.shape} and valid {seen.shape}.")
    low, high = np.percentile(a, (25, 75))
    return float(1 - abs(b - c)[seen].mean() / (high - low)) if high > low and seen.any() else np.nan


@dataclass(frozen=True)
class Interval:
    """A value and the middle 95 % of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """Mean corruption scores with 95 % bootstrap intervals.

    means: by method. differences: by pair (first, second), first minus second; an interval without 0 tells them apart.
    """

    means: dict[str, Interval]
    differences: dict[tuple[str, str], Interval]


def intervals(
    scores: Mapping[str, Mapping[str, Any]],
    labels: Any,
    metric: str = "auroc",
    *,
    grouped: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Paired bootstrap over pictures, stratified by label: the same resamples for all methods, corruptions and grades.

    Args:
        scores: method -> corruption -> (5, N) picture scores at grades 1 to 5; higher is more anomalous.
        labels: (N,) 1 anomalous, 0 normal.
        metric: a picture metric that is read off a curve: auroc, ap, f1max, ...
        grouped: `grouped_score` (the headline) or, with False, `mean_score`.
        resamples: how many; seed: of what is drawn.

    Raises:
        WrongInput: shapes do not fit, a class is missing, methods have other corruptions, or the metric has no curve.
        UnknownName: no such metric, or a corruption without a card.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile interval)
    """
    of = import_module(metrics.get(metric).__module__)
    if "image" not in metrics.card(metric).levels or not hasattr(of, "of_curve"):
        raise WrongInput(f"{metric} is not read off a curve of picture scores; use auroc, ap or f1max.")
    if resamples < 1:
        raise WrongInput(f"resamples is {resamples!r}; give at least 1, such as 1000.")
    truth = checked(np.zeros(np.shape(labels)), labels)[1]
    if truth.ndim != 1 or not (truth == 1).any() or not (truth == 0).any() or (truth > 1).any():
        raise WrongInput("intervals needs labels (N,) of 0 and 1 with both among them.")
    named = {frozenset(held) for held in scores.values()}
    if len(named) != 1 or not next(iter(named)):
        raise WrongInput("every method needs scores under the same corruptions, at least one; run the missing ones.")
    drawn = np.concatenate([np.ones((1, len(truth)), np.int64), _stratified(truth, resamples, seed)])
    found = {method: _summaries(held, truth, drawn, of.of_curve, grouped) for method, held in scores.items()}
    pairs = combinations(found, 2)
    return Intervals(
        {method: _interval(row) for method, row in found.items()},
        {(a, b): _interval(found[a] - found[b]) for a, b in pairs},
    )


def _stratified(truth: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, N) how often each picture is drawn; the numbers of normal and anomalous ones stay."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(truth)), np.int64)
    for kind in (0, 1):
        count = int((truth == kind).sum())
        weights[:, truth == kind] = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return weights


def _summaries(
    held: Mapping[str, Any], truth: np.ndarray, drawn: np.ndarray, of_curve: OfCurve, grouped: bool
) -> np.ndarray:
    """Mean corruption score under each row of (B, N) multiplicities."""
    means = {}
    for name, table in held.items():
        table = np.asarray(table)
        if table.shape != (5, len(truth)):
            raise WrongInput(f"scores under {name} have shape {table.shape}; (5, {len(truth)}) was expected.")
        means[name] = np.mean([_resampled(row, truth, drawn, of_curve) for row in table], axis=0)
    if not grouped:
        return np.mean(list(means.values()), axis=0)
    # A mean over five equal values is that value, so the groups are formed by the same rule as everywhere.
    return np.array([grouped_score({name: [m[b]] * 5 for name, m in means.items()}) for b in range(len(drawn))])


def _resampled(scores: np.ndarray, truth: np.ndarray, drawn: np.ndarray, of_curve: OfCurve) -> np.ndarray:
    """A metric of picture scores (N,) under each row of (B, N) multiplicities."""
    values, _ = checked(scores, truth, allow_inf=True)
    order = np.argsort(-values, kind="stable")
    falling = values[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # of each group of ties
    weights, bad = drawn[:, order], truth[order] == 1
    tp = np.cumsum(weights * bad, axis=1)[:, last]
    fp = np.cumsum(weights * ~bad, axis=1)[:, last]
    above = np.concatenate([np.zeros((len(fp), 1), fp.dtype), fp[:, :-1]], axis=1)
    return np.asarray(of_curve(Curve(falling[last], tp, above, fp, tp[:, -1], fp[:, -1]))[0])


def _interval(row: np.ndarray) -> Interval:
    """The first value is that of the pictures as they are."""
    low, high = np.percentile(row[1:], (2.5, 97.5))
    return Interval(float(row[0]), float(low), float(high))


def _ranks(values: np.ndarray) -> np.ndarray:
    rising = np.sort(values)
    return (np.searchsorted(rising, values, "left") + np.searchsorted(rising, values, "right")) / 2


def _groups(rows: Mapping[str, Any], groups: Mapping[str, str] | None) -> Mapping[str, str]:
    if groups is None:
        return {name: corruptions.card(name).group for name in rows}
    missing = [name for name in rows if name not in groups]
    if missing:
        raise WrongInput(f"groups has no entry for {', '.join(missing)}; give one for every corruption.")
    return groups


def _rows(values: Values) -> dict[str, np.ndarray]:
    if not values:
        raise WrongInput("there are no values; give corruption -> values at grades 1 to 5.")
    return {name: _five(row) for name, row in values.items()}


def _five(row: Sequence[float]) -> np.ndarray:
    found = np.asarray(row, float)
    if found.shape != (5,):
        raise WrongInput(f"five values, for grades 1 to 5, are needed; got shape {found.shape}.")
    return found


def _curve(curve: Sequence[float]) -> np.ndarray:
    found = np.asarray(curve, float)
    if found.shape != (6,):
        raise WrongInput(f"six values, for grades 0 to 5, are needed; got shape {found.shape}.")
    return found
