"""The best F1 over all thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import MetricCard
from ._curves import Curve, measure, rank, settle

CARD = MetricCard(
    title="max-F1",
    summary="Highest F1 over all thresholds: an oracle, because the threshold is chosen on the test labels.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("image", "pixel"),
    needs=("anomalous",),
    source="van Rijsbergen 1979, Information Retrieval, chapter 7, https://www.dcs.gla.ac.uk/Keith/Preface.html",
)


def f1max(scores: Any, labels: Any, *, allow_inf: bool = False) -> float:
    """Highest harmonic mean of precision and recall over all thresholds at distinct scores.

    Args:
        scores: array of any shape, higher is more anomalous, any unit.
        labels: array of the same shape, 1 or True for anomalous, 0 for normal; 255 in whole numbers is left out.
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.

    Returns:
        A value in [0, 1], never below 2p / (1 + p) with p the share of anomalous items (call everything anomalous);
        NaN, with an UndefinedMetric warning, where no item is anomalous.

    Raises:
        WrongInput: shapes differ, or a score is not finite.

    Source:
        van Rijsbergen 1979, Information Retrieval, chapter 7, https://www.dcs.gla.ac.uk/Keith/Preface.html
    """
    return settle(measure(CARD, of_curve, floor, rank(scores, labels, allow_inf=allow_inf)), CARD)


def of_curve(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Best F1 and the score it is reached at, the highest one among equals.

    F1 = 2 TP / (predicted + P) has no 0 / 0. It is highest at an anomalous score: normal items alone only lower it.
    """
    f1 = 2 * curve.tp / (curve.tp + curve.fp + np.expand_dims(curve.positives, -1))
    return f1.max(axis=-1), curve.score_at(f1.argmax(axis=-1))


def floor(prevalence: float) -> float:
    """What constant scores reach."""
    return 2 * prevalence / (1 + prevalence)


METRIC = f1max
