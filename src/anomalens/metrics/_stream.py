"""Pixel metrics of any number of pixels in one pass and constant memory, with a certified limit of their error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..errors import WrongInput
from . import aupro, auroc, average_precision, f1max, iou
from ._curves import Curve, Measured, measure
from ._pixels import NATIVE, PixelEvalPolicy, pair, region_shares


class PixelAccumulator:
    """Counts of pixels in bins of the score axis, from which AUROC, AP, max-F1, IoU-max and AUPRO are computed.

    A bin holds the scores that agree in the highest `bits` bits of their float32 representation (16: a relative width
    of at most 1/128, no range to choose). The points of the curves at the edges of bins are exact; what can happen
    inside a bin is bounded by the counts, and that bound is returned with each value. Maps of float16 have all their
    bits counted, so that their values are exact. Maps of float64 are taken as float32.

    Source: the bound is that of a rising curve inside a rectangle, whose chord is at most half the rectangle away.
    """

    def __init__(
        self,
        bits: int = 16,
        *,
        policy: PixelEvalPolicy = NATIVE,
        connectivity: Literal[4, 8] = 8,
        min_region_area: int = 0,
    ) -> None:
        if not 8 <= bits <= 24:
            raise WrongInput(f"bits is {bits!r}; give 8 to 24: a bin takes 24 bytes, so 16 bits are 1.5 MiB.")
        self.bits, self.policy = bits, policy
        self.connectivity, self.min_region_area = connectivity, min_region_area
        self.half: bool | None = None  # whether scores are counted as float16; None before the first
        self.normal = np.zeros(1 << bits, np.int64)
        self.anomalous = np.zeros(1 << bits, np.int64)
        self.overlap = np.zeros(1 << bits)  # summed shares of regions
        self.regions = 0

    def update(self, scores: Any, mask: Any = None) -> PixelAccumulator:
        """Add one picture: (H, W) scores and its mask, None for a good picture."""
        raw = np.asarray(scores)
        values, truth, _ = pair(raw, mask, self.policy)
        resized = self.policy.size != "native" or np.shape(mask) not in ((), raw.shape)
        half = raw.dtype == np.float16 and self.bits == 16 and not resized
        if self.half not in (None, half):
            raise WrongInput("float16 maps and others cannot be counted together; convert them to one type first.")
        self.half = half
        bins = self._bins(values)
        if truth is None:
            self._count(self.normal, bins.ravel())
            return self
        bad = truth == 1
        self._count(self.normal, bins[truth == 0])
        if bad.any():
            shares, found = region_shares(bad, self.connectivity, self.min_region_area)
            self._count(self.anomalous, bins[bad])
            self.overlap += np.bincount(bins[bad], shares, minlength=len(self.overlap))
            self.regions += found
        return self

    def merge(self, other: PixelAccumulator) -> PixelAccumulator:
        """Add what another accumulator of the same settings has counted; in any order, on any machine."""
        settings = [(a.bits, a.policy, a.connectivity, a.min_region_area) for a in (self, other)]
        if settings[0] != settings[1] or (None not in (self.half, other.half) and self.half != other.half):
            raise WrongInput(
                f"accumulators of different settings cannot be merged: {settings[0]} and {settings[1]} "
                "(bits, policy, connectivity, min_region_area), or float16 maps and others."
            )
        self.half = other.half if self.half is None else self.half
        self.normal += other.normal
        self.anomalous += other.anomalous
        self.overlap += other.overlap
        self.regions += other.regions
        return self

    def compute(self, limits: Sequence[float] = (0.3, 0.05)) -> dict[str, Measured]:
        """Value and bound by metric: auroc, ap, f1max, iou, and aupro@L for each limit L."""
        curve = self.curve()
        found = {
            name: self.measure(metric, curve)
            for name, metric in {"auroc": auroc, "ap": average_precision, "f1max": f1max, "iou": iou}.items()
        }
        return found | {f"aupro@{limit:g}": self.measure(aupro, curve, limit=limit) for limit in limits}

    def measure(self, metric: ModuleType, curve: Curve, **settings: Any) -> Measured:
        """One metric, given by its module, off what `curve` returns."""
        if metric not in BOUNDS:
            raise WrongInput(f"{metric.CARD.title} cannot be computed in one pass; leave variant at 'exact'.")
        measured = measure(metric.CARD, metric.of_curve, metric.floor, curve, **settings)
        if self.half or measured.reason:
            return measured
        value, bound = BOUNDS[metric](curve, measured.value, **settings)
        return replace(measured, value=float(value), bound=float(bound))

    def curve(self) -> Curve:
        """The curve that takes all scores of one bin as tied."""
        falling = np.flatnonzero(self.anomalous)[::-1]
        tp = np.cumsum(self.anomalous[::-1])[::-1][falling]
        fp = np.cumsum(self.normal[::-1])[::-1][falling]
        overlap = np.cumsum(self.overlap[::-1])[::-1][falling] / max(self.regions, 1)
        positives, negatives = int(self.anomalous.sum()), int(self.normal.sum())
        thresholds, fp_above = self._lower_edges(falling), fp - self.normal[falling]
        return Curve(thresholds, tp, fp_above, fp, positives, negatives, np.minimum(overlap, 1), self.regions)

    def _bins(self, values: np.ndarray) -> np.ndarray:
        """The number of each score's bin, higher for higher scores."""
        if self.half:
            key = (values.astype(np.float16) + np.float16(0)).view(np.uint16)  # + 0 turns -0 into +0
            return (key ^ (np.where(key >> 15, 0xFFFF, 0x8000).astype(np.uint16))).astype(np.intp)
        with np.errstate(over="ignore"):
            single = values.astype(np.float32) + np.float32(0)
        if not np.isfinite(single).all():
            raise WrongInput("a map holds scores beyond the range of float32; rescale it.")
        key = single.view(np.uint32)
        flip = (single.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
        return ((key ^ flip) >> np.uint32(32 - self.bits)).astype(np.intp)

    def _lower_edges(self, bins: np.ndarray) -> np.ndarray:
        """The lowest score of each bin: `_bins` the other way round."""
        if self.half:
            key = bins.astype(np.uint16)
            return (key ^ np.where(key >> 15, 0x8000, 0xFFFF).astype(np.uint16)).view(np.float16).astype(np.float32)
        key = bins.astype(np.uint32) << np.uint32(32 - self.bits)
        return (key ^ np.where(key >> 31, 0x80000000, 0xFFFFFFFF).astype(np.uint32)).view(np.float32)

    @staticmethod
    def _count(counts: np.ndarray, bins: np.ndarray) -> None:
        counts += np.bincount(bins, minlength=len(counts))


def together(maps: Iterable[Any], masks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Map and mask of each picture, from two generators that must end together."""
    nothing = object()
    for values, mask in zip_longest(maps, masks, fillvalue=nothing):
        if values is nothing or mask is nothing:
            raise WrongInput("maps and masks differ in number; give one mask per map, None for good pictures.")
        yield values, mask


# Each takes the curve of bins and the value that ties inside bins would give; it returns the value and its bound.


def _auroc_bound(curve: Curve, value: float) -> tuple[float, float]:
    found, false = np.diff(curve.tp, prepend=0), curve.fp - curve.fp_above
    return value, (found * false).sum() / (2 * curve.positives * curve.negatives)


def _ap_bound(curve: Curve, value: float) -> tuple[float, float]:
    """Precision inside a bin lies between all its normal scores first and all its anomalous scores first."""
    tp, before = curve.tp, np.append(0, curve.tp[:-1])
    found = np.diff(curve.tp, prepend=0) / curve.positives
    lowest = (found * before / np.maximum(before + curve.fp, 1)).sum()
    highest = (found * tp / (tp + curve.fp_above)).sum()
    last = tp / (tp + curve.fp)
    first = np.where(before > 0, before / np.maximum(before + curve.fp_above, 1), last)
    middle = (found * (first + last)).sum() / 2
    return middle, max(highest - middle, middle - lowest)


def _f1_bound(curve: Curve, value: float) -> tuple[float, float]:
    best = (2 * curve.tp / (curve.tp + curve.fp_above + curve.positives)).max()
    return value, best - value


def _iou_bound(curve: Curve, value: float) -> tuple[float, float]:
    return value, (curve.tp / (curve.fp_above + curve.positives)).max() - value


def _aupro_bound(curve: Curve, value: float, limit: float) -> tuple[float, float]:
    assert curve.overlap is not None
    rise = np.diff(curve.overlap, prepend=0)
    start, end = curve.fp_above / curve.negatives, curve.fp / curve.negatives
    inside = end <= limit
    cut = ~inside & (start < limit)
    error = (0.5 * (end - start) * rise)[inside].sum() + ((limit - start) * rise)[cut].sum()
    return value, error / limit


BOUNDS: dict[ModuleType, Callable[..., tuple[float, float]]] = {
    auroc: _auroc_bound,
    average_precision: _ap_bound,
    f1max: _f1_bound,
    iou: _iou_bound,
    aupro: _aupro_bound,
}
