"""The best intersection over union over all thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import MetricCard
from ._curves import Curve, measure, rank, settle

CARD = MetricCard(
    title="IoU-max",
    summary="Highest intersection over union over all thresholds; always max-F1 / (2 - max-F1), at the same threshold.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("pixel",),
    needs=("anomalous",),
    source="Jaccard 1912, https://doi.org/10.1111/j.1469-8137.1912.tb05611.x",
)


def iou(scores: Any, labels: Any, *, allow_inf: bool = False) -> float:
    """Highest share of pixels both anomalous and called so among pixels either anomalous or called so.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.

    Returns:
        A value in [0, 1], never below the share of anomalous items; NaN, with an UndefinedMetric warning, where no
        item is anomalous.

    Raises:
        WrongInput: shapes differ, or a score is not finite.

    Source:
        Jaccard 1912, https://doi.org/10.1111/j.1469-8137.1912.tb05611.x
    """
    return settle(measure(CARD, of_curve, floor, rank(scores, labels, allow_inf=allow_inf)), CARD)


def of_curve(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU and the score it is reached at, the highest one among equals."""
    union = curve.fp + np.expand_dims(curve.positives, -1)
    values = curve.tp / union
    return values.max(axis=-1), curve.score_at(values.argmax(axis=-1))


def floor(prevalence: float) -> float:
    """What constant scores reach."""
    return prevalence


METRIC = iou
