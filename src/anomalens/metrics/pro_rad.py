"""The sampled AUPRO of the RAD benchmark, to compare with its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from ..types import MetricCard
from ._curves import Measured, missing, settle
from ._pixels import Pair, align, normal_chunks, region_shares

CARD = MetricCard(
    title="AUPRO-RAD",
    summary="AUPRO from 200 thresholds evenly spaced in score, as RAD, ADer and MuSc compute it: depends on the scale "
    "of the scores, so compare it with their tables only and never tune on it.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("region",),
    needs=("anomalous", "normal"),
    source="Cheng et al. 2024, https://arxiv.org/abs/2406.07176",
)

STEPS = 200


def pro_rad(maps: Iterable[Any], masks: Iterable[Any], limit: float = 0.3) -> float:
    """Trapezoidal area of the mean region overlap over the kept false-positive rates, these stretched to [0, 1].

    Thresholds lie at 200 even steps between the lowest and the highest score of all pictures; points whose
    false-positive rate is below the limit are kept, and nothing is interpolated at the limit.

    Args:
        maps: per picture (H, W) scores, higher is more anomalous.
        masks: per picture (H, W), 1 or True where anomalous, 255 where ignored; None for a good picture.
        limit: false-positive rate below which points are kept.

    Returns:
        A value in [0, 1]; NaN, with an UndefinedMetric warning, without regions or normal pixels, or when the kept
        points do not span a range (the benchmark's code writes 0 when it keeps none).

    Raises:
        WrongInput: maps and masks do not fit together.

    Source:
        Cheng et al. 2024, https://arxiv.org/abs/2406.07176, evaluation code
    """
    pairs, _ = align(maps, masks)
    return settle(of_pairs(pairs, limit=limit), CARD)


def of_pairs(pairs: Sequence[Pair], connectivity: Literal[4, 8] = 8, limit: float = 0.3) -> Measured:
    """The value with its counts."""
    fpr, pro, counts = sampled(pairs, connectivity)
    reason = missing(CARD, *counts)
    kept = fpr < limit
    if not reason and (kept.sum() < 2 or np.ptp(fpr[kept]) == 0):
        reason = f"the sampled thresholds span no false-positive rates below {limit}"
    if reason:
        return Measured(np.nan, np.nan, np.nan, *counts, reason)
    return Measured(trapezoid(pro[kept], fpr[kept]) / float(np.ptp(fpr[kept])), np.nan, limit / 2, *counts)


def sampled(
    pairs: Sequence[Pair], connectivity: Literal[4, 8] = 8
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """False-positive rate and mean region overlap of `score > t` at STEPS even thresholds from the lowest score up.

    Returns them with the numbers of anomalous pixels, normal pixels and regions; empty when all scores are equal.
    """
    scores, shares, regions = [np.zeros(0)], [np.zeros(0)], 0
    low, high, negatives = np.inf, -np.inf, 0
    for values, truth in pairs:
        used = values if truth is None else values[truth <= 1]
        if used.size:
            low, high = min(low, float(used.min())), max(high, float(used.max()))
        negatives += values.size if truth is None else int(np.count_nonzero(truth == 0))
        if truth is not None and (truth == 1).any():
            share, found = region_shares(truth == 1, connectivity)
            scores.append(values[truth == 1])
            shares.append(share)
            regions += found
    anomalous = np.concatenate(scores)
    counts = len(anomalous), negatives, regions
    if not low < high or not negatives:
        return np.zeros(0), np.zeros(0), counts
    thresholds = np.arange(low, high, (high - low) / STEPS)
    order = np.argsort(anomalous)
    reached = np.append(np.cumsum(np.concatenate(shares)[order][::-1])[::-1], 0)  # by this and all higher scores
    pro = reached[np.searchsorted(anomalous[order], thresholds, "right")] / max(regions, 1)
    false = np.zeros(len(thresholds), np.int64)
    for chunk in normal_chunks(pairs):
        chunk.sort()
        false += len(chunk) - np.searchsorted(chunk, thresholds, "right")
    return false / negatives, pro, counts


def trapezoid(heights: np.ndarray, places: np.ndarray) -> float:
    """Area under the points, whichever way their places run."""
    return float(abs((np.diff(places) * (heights[1:] + heights[:-1])).sum()) / 2)


METRIC = pro_rad
