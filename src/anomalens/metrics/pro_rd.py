"""The per-picture sampled PRO of the reverse-distillation code, to compare with its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from ..types import MetricCard
from ._curves import Measured, missing, settle
from ._pixels import Pair, align
from .pro_rad import sampled, trapezoid

CARD = MetricCard(
    title="PRO-RD",
    summary="Sampled PRO of each anomalous picture on its own, averaged over these pictures, as RD and RD++ compute "
    "it: false alarms on good pictures do not count, so it is not AUPRO.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("region",),
    needs=("anomalous", "normal"),
    source="Deng and Li 2022, https://arxiv.org/abs/2201.10703",
)


def pro_rd(maps: Iterable[Any], masks: Iterable[Any], limit: float = 0.3) -> float:
    """Mean over anomalous pictures of the area under 200 sampled points below the limit, over the highest kept rate.

    Args:
        maps: per picture (H, W) scores, higher is more anomalous.
        masks: per picture (H, W), 1 or True where anomalous, 255 where ignored; None for a good picture.
        limit: false-positive rate of the picture below which points are kept.

    Returns:
        A value in [0, 1]; pictures whose kept points hold no false positive are left out; NaN, with an UndefinedMetric
        warning, when none is left.

    Raises:
        WrongInput: maps and masks do not fit together.

    Source:
        Deng and Li 2022, https://arxiv.org/abs/2201.10703, evaluation code
    """
    pairs, _ = align(maps, masks)
    return settle(of_pairs(pairs, limit=limit), CARD)


def of_pairs(pairs: Sequence[Pair], connectivity: Literal[4, 8] = 8, limit: float = 0.3) -> Measured:
    """The value with the counts of the anomalous pictures."""
    values, totals = [], np.zeros(3, np.int64)
    for pair in pairs:
        if pair[1] is None or not (pair[1] == 1).any():
            continue
        fpr, pro, counts = sampled([pair], connectivity)
        totals += counts
        kept = fpr < limit
        if kept.any() and fpr[kept].max() > 0:
            values.append(trapezoid(pro[kept], fpr[kept]) / fpr[kept].max())
    positives, negatives, regions = (int(total) for total in totals)
    reason = missing(CARD, positives, negatives, regions)
    if not reason and not values:
        reason = f"in no picture do the sampled thresholds have a false-positive rate between 0 and {limit}"
    value, floor = (np.nan, np.nan) if reason else (float(np.mean(values)), limit / 2)
    return Measured(value, np.nan, floor, positives, negatives, regions, reason)


METRIC = pro_rd
