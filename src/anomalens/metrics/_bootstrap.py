"""How sure a number is: resampling of pictures, for one method and for the difference of two.

Resamples are vectors of multiplicities, one per picture. Scores are ranked once; every resample only adds up
multiplicities along that ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import WrongInput
from ._curves import Curve, OfCurve, checked, rank
from ._pixels import NATIVE, Pair, PixelEvalPolicy, align, pixel_curve, region_shares

POINTS = 2048  # thresholds at which pixel curves are resampled
BLOCK = 4_000_000  # multiplicities handled at once


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same pictures.

    difference: value of the first minus value of the second. interval: 95 % paired bootstrap interval of it.
    p_value: two-sided, of the hypothesis that the methods do not differ.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float


UNDEFINED = Comparison(np.nan, np.nan, np.nan, (np.nan, np.nan), np.nan)


def draws(count: int, pictures: int, valid: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(count, pictures) int64 multiplicities of resamples with replacement; invalid ones are drawn again."""
    weights = np.zeros((count, pictures), np.int64)
    missing = np.arange(count)
    while len(missing):
        chosen = rng.integers(pictures, size=(len(missing), pictures)) + pictures * np.arange(len(missing))[:, None]
        weights[missing] = np.bincount(chosen.ravel(), minlength=weights[missing].size).reshape(-1, pictures)
        missing = missing[~valid(weights[missing])]
    return weights


def interval_of(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def image_replicates(
    scores: Any, labels: Any, measures: Sequence[OfCurve], *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """(metrics, resamples) values of picture-level metrics, given by their `of_curve`; NaN where a class is missing."""
    values, truth = checked(scores, labels, allow_inf=True)
    values, truth = values[truth <= 1], truth[truth <= 1]
    bad = truth == 1
    found = np.full((len(measures), _positive(resamples)), np.nan)
    if not bad.any() or bad.all():
        return found
    order = np.argsort(-values, kind="stable")
    falling, bad_first = values[order], bad[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    rng = np.random.default_rng(seed)

    def both(weights: np.ndarray) -> np.ndarray:
        return np.minimum(weights[:, bad].sum(axis=1), weights[:, ~bad].sum(axis=1)) > 0

    step = max(1, BLOCK // len(values))
    for at in range(0, resamples, step):
        block = slice(at, min(at + step, resamples))
        weights = draws(block.stop - block.start, len(values), both, rng)[:, order]
        tp = np.cumsum(weights * bad_first, axis=1)[:, last]
        fp = np.cumsum(weights * ~bad_first, axis=1)[:, last]
        above = np.concatenate([np.zeros((len(fp), 1), fp.dtype), fp[:, :-1]], axis=1)
        curve = Curve(falling[last], tp, above, fp, tp[:, -1], fp[:, -1])
        for row, of_curve in zip(found, measures, strict=True):
            row[block] = of_curve(curve)[0]
    return found


@dataclass(frozen=True)
class PictureCounts:
    """What each of N pictures adds to a pixel curve at K falling thresholds: cumulative (N, K) float64 counts."""

    thresholds: np.ndarray
    tp: np.ndarray
    fp_above: np.ndarray
    fp: np.ndarray
    overlap: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    regions: np.ndarray

    def curve(self, weights: np.ndarray) -> Curve:
        """The curves of resamples given by (B, N) multiplicities."""
        w = weights.astype(np.float64)
        regions = w @ self.regions
        overlap = np.minimum(w @ self.overlap / np.maximum(regions, 1)[:, None], 1.0)
        return Curve(
            self.thresholds,
            w @ self.tp,
            w @ self.fp_above,
            w @ self.fp,
            w @ self.positives,
            w @ self.negatives,
            overlap,
            regions,
        )


def picture_counts(
    pairs: Sequence[Pair], connectivity: Literal[4, 8] = 8, min_region_area: int = 0, points: int = POINTS
) -> PictureCounts:
    """Counts at `points` thresholds picked along the pooled curve; all of them where there are fewer, which is exact.

    Between two picked thresholds scores are taken as tied. They are spread evenly over what the metrics integrate:
    recall, false positives, region overlap and, for the start of the curve, the logarithm of the number called.
    """
    pooled = pixel_curve(pairs, regions=True, connectivity=connectivity, min_region_area=min_region_area)
    assert pooled.overlap is not None
    called = pooled.tp + pooled.fp
    way = (
        pooled.tp / pooled.positives
        + pooled.fp / max(pooled.negatives, 1)
        + pooled.overlap
        + np.log1p(called) / np.log1p(called[-1])
    )
    picked = np.unique(np.searchsorted(way, np.linspace(way[0], way[-1], min(points, len(way)))).clip(0, len(way) - 1))
    picked = np.arange(len(way)) if len(way) <= points else picked
    joined = np.diff(picked, prepend=-1) > 1  # thresholds were left out just above this one
    thresholds = pooled.thresholds[picked]
    rising = thresholds[::-1]
    shape = (len(pairs), len(picked))
    tp, above, fp, overlap = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    totals = np.zeros((3, len(pairs)))
    for n, (scores, truth) in enumerate(pairs):
        normal = np.sort(scores, axis=None) if truth is None else np.sort(scores[truth == 0])
        fp[n] = (len(normal) - np.searchsorted(normal, rising, "left"))[::-1]
        above[n] = (len(normal) - np.searchsorted(normal, rising, "right"))[::-1]
        totals[1, n] = len(normal)
        if truth is None or not (truth == 1).any():
            continue
        bad = truth == 1
        shares, totals[2, n] = region_shares(bad, connectivity, min_region_area)
        order = np.argsort(scores[bad])
        reached = np.append(np.cumsum(shares[order][::-1])[::-1], 0.0)
        place = np.searchsorted(scores[bad][order], rising, "left")[::-1]
        tp[n], overlap[n] = len(order) - place, reached[place]
        totals[0, n] = len(order)
    start = np.concatenate([np.zeros((len(pairs), 1)), fp[:, :-1]], axis=1)
    above[:, joined] = start[:, joined]
    return PictureCounts(thresholds, tp, above, fp, overlap, *totals)


def pixel_replicates(
    counts: Sequence[PictureCounts], measures: Sequence[OfCurve], *, resamples: int = 200, seed: int = 0
) -> np.ndarray:
    """(methods, metrics, resamples) values of pixel metrics; every method sees the same resamples."""
    first = counts[0]
    rng = np.random.default_rng(seed)

    def both(weights: np.ndarray) -> np.ndarray:
        # A class that no picture has cannot be drawn: the metrics that need it are not among `measures`.
        classes = (first.positives, first.regions, first.negatives)
        return np.minimum.reduce([weights @ held for held in classes if held.any()]) > 0

    found = np.full((len(counts), len(measures), _positive(resamples)), np.nan)
    step = max(1, BLOCK // max(len(c.thresholds) for c in counts))
    for at in range(0, resamples, step):
        block = slice(at, min(at + step, resamples))
        weights = draws(block.stop - block.start, len(first.positives), both, rng)
        for c, rows in zip(counts, found, strict=True):
            curve = c.curve(weights)
            for row, of_curve in zip(rows, measures, strict=True):
                row[block] = of_curve(curve)[0]
    return found


def compare_images(
    first: Any, second: Any, labels: Any, metric: OfCurve, *, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Two methods' picture scores on the same pictures.

    The interval is a paired bootstrap (both methods see the same resamples). The p-value is a permutation test: under
    the hypothesis the two methods' ranks of a picture can be exchanged, so they are, at random, `resamples` times.

    Source: Venkatraman and Begg 1996, https://doi.org/10.1093/biomet/83.4.835
    """
    _, truth = checked(first, labels, allow_inf=True)
    ranks = np.stack([_ranks(checked(s, labels, allow_inf=True)[0][truth <= 1]) for s in (first, second)])
    truth = truth[truth <= 1]
    if not truth.any() or truth.all():
        return UNDEFINED
    replicates = [image_replicates(r, truth, [metric], resamples=resamples, seed=seed)[0] for r in ranks]

    def value(scores: np.ndarray) -> float:
        return float(metric(rank(scores, truth))[0])

    a, b = value(ranks[0]), value(ranks[1])
    rng = np.random.default_rng([seed, 1])
    larger = 0
    for _ in range(resamples):
        swap = rng.integers(2, size=len(truth))
        exchanged = value(np.where(swap, ranks[1], ranks[0])) - value(np.where(swap, ranks[0], ranks[1]))
        larger += abs(exchanged) >= abs(a - b) - 1e-12
    return Comparison(a, b, a - b, interval_of(replicates[0] - replicates[1]), (larger + 1) / (resamples + 1))


def compare_pixels(
    first: Iterable[Any],
    second: Iterable[Any],
    masks: Iterable[Any],
    metric: OfCurve,
    *,
    policy: PixelEvalPolicy = NATIVE,
    connectivity: Literal[4, 8] = 8,
    resamples: int = 200,
    seed: int = 0,
) -> Comparison:
    """Two methods' maps of the same pictures: a paired bootstrap over pictures.

    The p-value is twice the share of resampled differences on the other side of zero, both counted with the observed.
    """
    masks = list(masks)
    both = [align(maps, masks, policy)[0] for maps in (first, second)]
    curves = [pixel_curve(pairs, regions=True, connectivity=connectivity) for pairs in both]
    if not curves[0].positives or not curves[0].negatives:
        return UNDEFINED
    a, b = (float(metric(curve)[0]) for curve in curves)
    replicates = pixel_replicates(
        [picture_counts(pairs, connectivity) for pairs in both], [metric], resamples=resamples, seed=seed
    )
    difference = replicates[0, 0] - replicates[1, 0]
    tail = min((difference <= 0).sum(), (difference >= 0).sum())
    return Comparison(a, b, a - b, interval_of(difference), min(1.0, 2 * (tail + 1) / (resamples + 1)))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Place of each score among all, equal for equal scores: the scale of the method is gone."""
    rising = np.sort(scores)
    return (np.searchsorted(rising, scores, "left") + np.searchsorted(rising, scores, "right")) / 2


def _positive(resamples: int) -> int:
    if resamples < 1:
        raise WrongInput(f"resamples is {resamples!r}; give at least 1, such as 1000.")
    return resamples
