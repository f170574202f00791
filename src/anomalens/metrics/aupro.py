"""Area under the per-region overlap curve, exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import WrongInput
from ..regions import label
from ..types import MetricCard
from ._curves import Curve, measure, settle
from ._pixels import align, pixel_curve

CARD = MetricCard(
    title="AUPRO",
    summary="Mean covered share of each anomalous region, averaged over false-positive rates up to a limit: small "
    "regions count as much as large ones.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("region",),
    needs=("anomalous", "normal"),
    source="Bergmann et al. 2021, https://doi.org/10.1007/s11263-020-01400-4",
)


def aupro(
    maps: Iterable[Any],
    masks: Iterable[Any],
    limit: float = 0.3,
    *,
    connectivity: Literal[4, 8] = 8,
    min_region_area: int = 0,
) -> float:
    """Area under the mean region overlap against the pixel false-positive rate, up to `limit`, divided by `limit`.

    A region is a connected component of a mask; the mean runs over all regions of all pictures, the rate over all
    normal pixels of all pictures, good ones included. Every distinct score is a threshold; at the limit the overlap is
    interpolated linearly.

    Args:
        maps: per picture (H, W) scores, higher is more anomalous, any unit.
        masks: per picture (H, W), 1 or True where anomalous, 255 where ignored; None for a good picture.
        limit: highest false-positive rate, in (0, 1]. For several limits from one sort: `metrics.pixel`.
        connectivity: whether pixels that share a corner alone are one region (8) or not (4).
        min_region_area: regions of fewer pixels count as none; their pixels are not normal either.

    Returns:
        A value in [0, 1], limit / 2 for constant maps; NaN, with an UndefinedMetric warning, without regions or
        normal pixels.

    Raises:
        WrongInput: maps and masks do not fit together, or the limit is outside (0, 1].

    Source:
        Bergmann et al. 2021, https://doi.org/10.1007/s11263-020-01400-4, section 3.3; limits as in its evaluation code
    """
    check_limit(limit)
    pairs, _ = align(maps, masks)
    curve = pixel_curve(pairs, regions=True, connectivity=connectivity, min_region_area=min_region_area, limit=limit)
    return settle(measure(CARD, of_curve, floor, curve, limit=limit), CARD)


def of_curve(curve: Curve, limit: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Area up to the limit and the lowest threshold whose false-positive rate is within the limit.

    Piece k of the curve runs flat to where the normal scores that tie with threshold k begin, then straight to where
    they end; the last piece runs flat to 1.
    """
    check_limit(limit)
    assert curve.overlap is not None
    zero = np.zeros((*curve.fp.shape[:-1], 1))
    negatives = np.expand_dims(curve.negatives, -1)
    end = np.concatenate([zero, curve.fp / negatives], axis=-1)
    start = np.concatenate([curve.fp_above / negatives, zero + 1], axis=-1)
    height = np.concatenate([zero, curve.overlap], axis=-1)
    flat = (np.minimum(start, limit) - np.minimum(end, limit)) * height
    x0, x1, y0, y1 = start[..., :-1], end[..., 1:], height[..., :-1], height[..., 1:]
    width = np.maximum(np.minimum(x1, limit) - x0, 0)
    rise = (y1 - y0) * width / np.where(x1 > x0, x1 - x0, 1)
    area = flat.sum(axis=-1) + (width * (y0 + rise / 2)).sum(axis=-1)
    within = (x1 <= limit).sum(axis=-1)
    return area / limit, curve.score_at(within - 1)


def floor(prevalence: float, limit: float = 0.3) -> float:
    """What constant maps reach: the curve is the diagonal."""
    return limit / 2


def check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise WrongInput(f"the false-positive limit is {limit!r}; give a share in (0, 1], such as 0.3.")


@dataclass(frozen=True, eq=False)
class RegionOverlap:
    """How much of each of R regions is found at one threshold.

    threshold: pixels with score >= threshold are called anomalous; NaN when the rate allows no anomalous pixel.
    picture: (R,) position of its picture. area: (R,) pixels. overlap: (R,) covered share, in [0, 1].
    """

    threshold: float
    picture: np.ndarray
    area: np.ndarray
    overlap: np.ndarray


def region_overlap(
    maps: Iterable[Any], masks: Iterable[Any], fpr: float = 0.05, *, connectivity: Literal[4, 8] = 8
) -> RegionOverlap:
    """The covered share of every region at the lowest threshold whose pixel false-positive rate is at most `fpr`."""
    check_limit(fpr)
    pairs, _ = align(maps, masks)
    curve = pixel_curve(pairs, regions=True, connectivity=connectivity, limit=fpr)
    threshold = float(of_curve(curve, fpr)[1]) if curve.negatives else np.nan
    picture, area, found = [], [], []
    for number, (scores, truth) in enumerate(pairs):
        if truth is None:
            continue
        labels, count = label(truth == 1, connectivity)
        picture.append(np.full(count, number))
        area.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
        found.append(np.bincount(labels[scores >= threshold], minlength=count + 1)[1:])
    areas = np.concatenate(area) if area else np.zeros(0, np.int64)
    overlap = np.concatenate(found) / areas if area else np.zeros(0)
    return RegionOverlap(threshold, np.concatenate(picture) if area else areas, areas, overlap)


METRIC = aupro
