"""Recall at a fixed rate of false alarms."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import WrongInput
from ..types import MetricCard
from ._curves import Curve, measure, rank, settle

CARD = MetricCard(
    title="recall@FPR",
    summary="Share of anomalous items found when at most 1 % of the normal ones may be called anomalous.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("image", "pixel"),
    needs=("anomalous", "normal"),
    source="Neyman and Pearson 1933, https://doi.org/10.1098/rsta.1933.0009",
)


def recall_at_fpr(scores: Any, labels: Any, fpr: float = 0.01, *, allow_inf: bool = False) -> float:
    """Highest recall among the thresholds whose false-positive rate is at most `fpr`, without interpolation.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        fpr: in [0, 1]. Below 1 / (number of normal items) no false alarm is allowed at all.
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.

    Returns:
        A value in [0, 1], 0 for constant scores; NaN, with an UndefinedMetric warning, where a class is missing.

    Raises:
        WrongInput: shapes differ, a score is not finite, or the rate is outside [0, 1].

    Source:
        Neyman and Pearson 1933, https://doi.org/10.1098/rsta.1933.0009
    """
    return settle(measure(CARD, of_curve, floor, rank(scores, labels, allow_inf=allow_inf), fpr=fpr), CARD)


def of_curve(curve: Curve, fpr: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """The recall and the score it is reached at; no score where the first threshold already has too many alarms."""
    if not 0 <= fpr <= 1:
        raise WrongInput(f"fpr is {fpr!r}; give a share in [0, 1], such as 0.01.")
    allowed = (curve.fp / np.expand_dims(curve.negatives, -1) <= fpr).sum(axis=-1)  # fp only grows: these come first
    tp = np.concatenate([np.zeros((*curve.tp.shape[:-1], 1)), curve.tp], axis=-1)
    found = np.take_along_axis(tp, np.expand_dims(allowed, -1), axis=-1)[..., 0]
    return found / curve.positives, curve.score_at(allowed - 1)


def floor(prevalence: float, fpr: float = 0.01) -> float:
    """What constant scores reach: calling anything means calling everything."""
    return 1.0 if fpr >= 1 else 0.0


METRIC = recall_at_fpr
