"""Area under the receiver operating characteristic."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import MetricCard
from ._curves import Curve, measure, rank, settle

CARD = MetricCard(
    title="AUROC",
    summary="Probability that an anomalous item scores above a normal one; a tie counts one half.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("image", "pixel"),
    needs=("anomalous", "normal"),
    source="Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747",
)


def auroc(scores: Any, labels: Any, *, allow_inf: bool = False) -> float:
    """Probability that an anomalous item scores above a normal one; a tie counts one half.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.

    Returns:
        A value in [0, 1], 0.5 for constant scores; NaN, with an UndefinedMetric warning, where a class is missing.

    Raises:
        WrongInput: shapes differ, or a score is not finite.

    Source:
        Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747
    """
    return settle(measure(CARD, of_curve, floor, rank(scores, labels, allow_inf=allow_inf)), CARD)


def of_curve(curve: Curve) -> tuple[np.ndarray, float]:
    """Area and no threshold. Each newly found anomalous item beats the normal ones below it and half of those equal."""
    found = np.diff(curve.tp, axis=-1, prepend=0)
    lost = (found * (curve.fp_above + curve.fp)).sum(axis=-1) / 2
    return 1 - lost / (curve.positives * curve.negatives), np.nan


def floor(prevalence: float) -> float:
    """What constant scores reach."""
    return 0.5


METRIC = auroc
