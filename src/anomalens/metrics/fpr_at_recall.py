"""False alarms at a fixed recall."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import WrongInput
from ..types import MetricCard
from ._curves import Curve, measure, rank, settle

CARD = MetricCard(
    title="FPR@recall",
    summary="Share of normal items called anomalous when the threshold finds 95 % of the anomalous ones.",
    range=(0.0, 1.0),
    direction="lower is better",
    levels=("image", "pixel"),
    needs=("anomalous", "normal"),
    source="Liang, Li and Srikant 2018, https://arxiv.org/abs/1706.02690",
)


def fpr_at_recall(scores: Any, labels: Any, recall: float = 0.95, *, allow_inf: bool = False) -> float:
    """Smallest false-positive rate among the thresholds whose recall is at least `recall`, without interpolation.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        recall: in (0, 1].
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.

    Returns:
        A value in [0, 1], lower is better, 1 for constant scores; NaN, with an UndefinedMetric warning, where a class
        is missing.

    Raises:
        WrongInput: shapes differ, a score is not finite, or the recall is outside (0, 1].

    Source:
        Liang, Li and Srikant 2018, https://arxiv.org/abs/1706.02690
    """
    curve = rank(scores, labels, allow_inf=allow_inf)
    return settle(measure(CARD, of_curve, floor, curve, recall=recall), CARD)


def of_curve(curve: Curve, recall: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The rate and the score it is reached at."""
    if not 0 < recall <= 1:
        raise WrongInput(f"recall is {recall!r}; give a share in (0, 1], such as 0.95.")
    # Compared as shares: 0.95 * 20 is not exactly 19.
    index = np.argmax(curve.tp / np.expand_dims(curve.positives, -1) >= recall, axis=-1)
    fp = np.take_along_axis(curve.fp, np.expand_dims(index, -1), axis=-1)[..., 0]
    return fp / curve.negatives, curve.score_at(index)


def floor(prevalence: float, recall: float = 0.95) -> float:
    """What constant scores reach: finding anything means calling everything."""
    return 1.0


METRIC = fpr_at_recall
