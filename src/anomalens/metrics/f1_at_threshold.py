"""F1 at a threshold that was fixed beforehand: SegF1 of pixels, ClassF1 of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..types import MetricCard
from ._curves import Measured, checked, missing, settle
from ._pixels import Pair

CARD = MetricCard(
    title="F1@threshold",
    summary="F1 at a threshold fixed without the test labels, what a running line gets; max-F1 is its upper limit.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("image", "pixel"),
    needs=("anomalous",),
    source="Heckler-Kram et al. 2025, https://arxiv.org/abs/2503.21622",
)


def f1_at_threshold(scores: Any, labels: Any, threshold: float = 0.5) -> float:
    """Harmonic mean of precision and recall of `score >= threshold`.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        threshold: in the unit of the scores; see `threshold_from_normals`.

    Returns:
        A value in [0, 1]; NaN, with an UndefinedMetric warning, where no item is anomalous.

    Raises:
        WrongInput: shapes differ, or a score is not finite.

    Source:
        Heckler-Kram et al. 2025, https://arxiv.org/abs/2503.21622
    """
    values, truth = checked(scores, labels)
    return settle(of_pairs([(values[None], truth[None])], threshold=threshold), CARD)


def of_pairs(pairs: Sequence[Pair], threshold: float = 0.5) -> Measured:
    """The value with its counts."""
    positives, negatives, tp, fp = 0, 0, 0, 0
    for scores, truth in pairs:
        called = scores >= threshold
        truth = np.zeros(scores.shape, np.uint8) if truth is None else truth
        positives += int(np.count_nonzero(truth == 1))
        negatives += int(np.count_nonzero(truth == 0))
        tp += int(np.count_nonzero(called & (truth == 1)))
        fp += int(np.count_nonzero(called & (truth == 0)))
    reason = missing(CARD, positives, negatives)
    if reason:
        return Measured(np.nan, threshold, np.nan, positives, negatives, reason=reason)
    prevalence = positives / (positives + negatives)
    return Measured(2 * tp / (tp + fp + positives), threshold, 2 * prevalence / (1 + prevalence), positives, negatives)


def threshold_from_normals(scores: Any, deviations: float = 3.0) -> float:
    """Mean plus `deviations` standard deviations of the scores of normal validation items, a list of arrays or one."""
    parts = [np.asarray(part, np.float64) for part in scores]
    count = sum(part.size for part in parts)
    mean = sum(part.sum() for part in parts) / count
    variance = sum(((part - mean) ** 2).sum() for part in parts) / count
    return float(mean + deviations * np.sqrt(variance))


METRIC = f1_at_threshold
