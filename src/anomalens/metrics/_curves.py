"""One ranking of the scores, from which every curve metric is read.

Only thresholds at the scores of anomalous items matter: between two of them normal items alone are added, so recall and
region overlap stay while the false positives grow, and the curve runs flat. So the anomalous scores (few) are ordered,
the normal scores (many) are sorted in place, chunk by chunk, and counted at the anomalous scores by bisection. This is
exact, ties included, and needs memory for one chunk beside the scores themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import WrongInput
from ..types import MetricCard

IGNORE = 255  # the label of pixels that count neither as anomalous nor as normal


class UndefinedMetric(UserWarning):
    """A metric has no value for this ground truth; the message says why."""


OfCurve = Callable[..., tuple[Any, Any]]  # (curve, **settings) -> value, threshold
Floor = Callable[..., float]  # (share of anomalous items, **settings) -> value of a constant score


@dataclass(frozen=True)
class Measured:
    """What one metric says.

    value: in the range of the metric's card; NaN where undefined, and `reason` says why.
    threshold: the score at which the value is reached (items with score >= threshold are called anomalous); NaN where
        the metric has none.
    floor: what a constant score reaches, the level of chance.
    n_pos, n_neg: anomalous and normal items: pictures or pixels. n_regions: anomalous regions, for region metrics.
    bound: certified limit of |value - exact value|; 0 where the value is exact.
    interval: 95 % bootstrap interval over pictures, where asked for. replicates: the resampled values it was read off;
        with one seed, entry i of two methods on the same pictures stands for the same resample.
    settings: how it was measured: limit, connectivity, grid policy, what the crop lost.
    """

    value: float
    threshold: float
    floor: float
    n_pos: int
    n_neg: int
    n_regions: int = 0
    reason: str = ""
    bound: float = 0.0
    interval: tuple[float, float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    replicates: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Curve:
    """Counts at G falling thresholds: at least every distinct score of an anomalous item.

    Leading axes, where there are some, are bootstrap resamples; positives, negatives and regions have these axes alone.

    thresholds: (G,) scores, highest first.
    tp: (..., G) anomalous items with score >= threshold. fp: (..., G) normal items with score >= threshold.
    fp_above: (..., G) normal items with score > threshold, so that fp - fp_above of them tie with the threshold.
    overlap: (..., G) mean over regions of the covered share, in [0, 1]; None where no regions were given.
    """

    thresholds: np.ndarray
    tp: np.ndarray
    fp_above: np.ndarray
    fp: np.ndarray
    positives: Any
    negatives: Any
    overlap: np.ndarray | None = None
    regions: Any = 0

    def score_at(self, index: Any) -> Any:
        """Threshold number `index`, NaN where the index is -1 (a threshold above every anomalous score)."""
        return np.append(self.thresholds.astype(np.float64), np.nan)[index]


def trace(
    anomalous: np.ndarray,
    normals: Iterable[np.ndarray],
    positives: int,
    negatives: int,
    shares: np.ndarray | None = None,
    regions: int = 0,
) -> Curve:
    """The exact curve of anomalous scores (P,) against chunks of normal scores, which are sorted in place.

    shares: (P,) float64, the share of its region that each anomalous item is; None without regions.
    """
    order = np.argsort(anomalous)[::-1]
    falling = anomalous[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(falling)])  # of each group of ties
    thresholds = falling[last]
    rising = thresholds[::-1]
    above, from_here = np.zeros(len(last), np.int64), np.zeros(len(last), np.int64)
    for chunk in normals:
        chunk.sort()
        above += len(chunk) - np.searchsorted(chunk, rising, "right")
        from_here += len(chunk) - np.searchsorted(chunk, rising, "left")
    overlap = None if shares is None else np.minimum(np.cumsum(shares[order])[last] / max(regions, 1), 1.0)
    return Curve(thresholds, last + 1, above[::-1], from_here[::-1], positives, negatives, overlap, regions)


def rank(scores: Any, labels: Any, *, allow_inf: bool = False) -> Curve:
    """The curve of scores against labels, two arrays of one shape; see `auroc` for what they may hold."""
    values, truth = checked(scores, labels, allow_inf=allow_inf)
    anomalous, normal = values[truth == 1], values[truth == 0]
    return trace(anomalous, [normal], len(anomalous), len(normal))


def checked(scores: Any, labels: Any, *, allow_inf: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Flat scores (N,) floating and labels (N,) uint8 of 0, 1 or IGNORE; WrongInput says what does not fit."""
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.shape != truth.shape:
        raise WrongInput(f"scores have shape {values.shape} and labels {truth.shape}: give one label per score.")
    values, truth = as_float(values).ravel(), as_truth(truth).ravel()
    wrong = np.isnan(values) | (values == -np.inf) if allow_inf else ~np.isfinite(values)
    if wrong.any():
        at = np.flatnonzero(wrong)
        raise WrongInput(
            f"{len(at)} of {len(values)} scores are NaN or infinite, first at positions {at[:5].tolist()}: "
            "repair the detector or leave these samples out."
        )
    return values, truth


def as_float(values: np.ndarray) -> np.ndarray:
    """The same numbers as float32 where that is exact (half and single precision, bool, 8 and 16 bit), else float64."""
    kind = values.dtype
    if kind.kind not in "biuf":
        raise WrongInput(f"scores are of type {kind}; give real numbers.")
    exact = np.can_cast(kind, np.float32, "safe")
    return values.astype(np.float32 if exact else np.float64, copy=False)


def as_truth(labels: np.ndarray) -> np.ndarray:
    """Labels as uint8: 1 anomalous, 0 normal, IGNORE left out (whole numbers only)."""
    if labels.dtype == bool:
        return labels.view(np.uint8)
    known = (labels == 0) | (labels == 1)
    if labels.dtype.kind in "iu":
        known |= labels == IGNORE
    if not known.all():
        raise WrongInput(
            f"labels hold {labels[~known].ravel()[0]!r}; 1 is anomalous, 0 normal, 255 ignored: "
            "make a grey mask binary with mask > 127 first."
        )
    return labels.astype(np.uint8, copy=False)


def measure(card: MetricCard, of_curve: OfCurve, floor: Floor, curve: Curve, **settings: Any) -> Measured:
    """Read one metric off a curve without leading axes."""
    positives, negatives, regions = int(curve.positives), int(curve.negatives), int(curve.regions)
    reason = missing(card, positives, negatives, regions)
    if reason:
        return Measured(np.nan, np.nan, np.nan, positives, negatives, regions, reason)
    value, threshold = of_curve(curve, **settings)
    chance = floor(positives / (positives + negatives), **settings)
    return Measured(float(value), float(threshold), chance, positives, negatives, regions)


def missing(card: MetricCard, positives: int, negatives: int, regions: int = 0) -> str:
    """Why a metric is undefined for this ground truth; empty where it is defined."""
    if "anomalous" in card.needs and not positives:
        return "there is no anomalous item (255 means ignored: pass mask > 0 if it marks the defect)"
    if "normal" in card.needs and not negatives:
        return "there is no normal item"
    if "region" in card.levels and not regions:
        return "no anomalous region is as large as min_region_area"
    return ""


def settle(measured: Measured, card: MetricCard) -> float:
    """The value alone; where it is NaN, a warning says why."""
    if measured.reason:
        warnings.warn(f"{card.title} is undefined: {measured.reason}.", UndefinedMetric, stacklevel=3)
    return measured.value
