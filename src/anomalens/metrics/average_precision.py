"""Average precision: the area under the step-wise precision-recall curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import MetricCard
from ._curves import Curve, measure, rank, settle

CARD = MetricCard(
    title="AP",
    summary="Mean precision over the recall steps, without interpolation; sensitive to rare false alarms.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("image", "pixel"),
    needs=("anomalous",),
    source="Boyd, Eng and Page 2013, https://doi.org/10.1007/978-3-642-40994-3_29",
)


def average_precision(scores: Any, labels: Any, *, allow_inf: bool = False) -> float:
    """Sum over distinct scores, from high to low, of precision times the gain in recall.

    A trapezoid between the points would be too optimistic, because precision does not change linearly with recall.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.

    Returns:
        A value in [0, 1], the share of anomalous items for constant scores; NaN, with an UndefinedMetric warning,
        where no item is anomalous.

    Raises:
        WrongInput: shapes differ, or a score is not finite.

    Source:
        Boyd, Eng and Page 2013, https://doi.org/10.1007/978-3-642-40994-3_29
    """
    return settle(measure(CARD, of_curve, floor, rank(scores, labels, allow_inf=allow_inf)), CARD)


def of_curve(curve: Curve) -> tuple[np.ndarray, float]:
    """Average precision and no threshold."""
    found = np.diff(curve.tp, axis=-1, prepend=0)
    # Where nothing is predicted yet (a resample without the top group), nothing is found either.
    precision = curve.tp / np.maximum(curve.tp + curve.fp, 1)
    return (found * precision).sum(axis=-1) / curve.positives, np.nan


def floor(prevalence: float) -> float:
    """What constant scores reach."""
    return prevalence


METRIC = average_precision
