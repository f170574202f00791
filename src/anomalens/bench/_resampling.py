"""How sure the mean of a benchmark is: test pictures drawn again, the same ones for all methods, seeds and corruptions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from .. import metrics
from ..errors import UnknownName
from .robustness import _resampled

Row = dict[str, Any]


@dataclass
class Mean:
    """A figure of one method: mean over categories of the mean over seeds."""

    value: float
    per_seed: dict[int, float]  # mean over categories, for seeds that have all of them
    replicates: np.ndarray | None  # (B,) the value under resampled pictures

    def sd(self) -> float | None:
        """Standard deviation over seeds; None with one seed."""
        return float(np.std(list(self.per_seed.values()), ddof=1)) if len(self.per_seed) > 1 else None

    def interval(self) -> tuple[float, float] | None:
        """The middle 95 % of the resamples; None without them."""
        if self.replicates is None:
            return None
        low, high = np.percentile(self.replicates, (2.5, 97.5))
        return float(low), float(high)


def p_value(first: Mean, second: Mean) -> float | None:
    """Two-sided p-value of no difference; None where the pictures cannot be resampled alike.

    The difference over its standard error is taken as normal: unlike a share of resamples on the other side of zero,
    which is never below 2 / (B + 1), this leaves something for Holm's correction of many methods. The squared error is the
    variance under paired resamples of pictures plus that of the mean over seeds, paired where both have the same seeds.
    """
    if first.replicates is None or second.replicates is None or first.replicates.shape != second.replicates.shape:
        return None
    difference = first.value - second.value
    variance = float(np.var(first.replicates - second.replicates, ddof=1))
    a, b = first.per_seed, second.per_seed
    if a.keys() == b.keys():
        seeds = [np.array([a[seed] - b[seed] for seed in a])]
    else:
        seeds = [np.array(list(held.values())) for held in (a, b)]
    variance += sum(float(np.var(v, ddof=1)) / len(v) for v in seeds if len(v) > 1)
    if variance < 1e-18:
        return float(abs(difference) < 1e-9)
    return math.erfc(abs(difference) / math.sqrt(2 * variance))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, each corrected so that all of them together err with the level of one.

    Source: Holm 1979, https://www.jstor.org/stable/4615733
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def common(held: Mapping[str, Iterable[str]], order: Sequence[str]) -> tuple[list[str], list[str]]:
    """Methods that can be compared, and the categories all of them have, in `order`.

    held: categories of each method. A method with less than half of the categories is left out, so that it does not
    take them from all others. No category in common: nobody can be compared.
    """
    has = {method: set(categories) for method, categories in held.items()}
    total = len(set().union(*has.values())) if has else 0
    compared = [method for method, categories in has.items() if categories and 2 * len(categories) >= total]
    shared = [c for c in order if compared and all(c in has[method] for method in compared)]
    return (compared, shared) if shared else ([], [])


class Draws:
    """Resamples of the pictures of each category: multiplicities that all methods, seeds and corruptions share."""

    def __init__(self, title: str, rows: Sequence[Row], resamples: int) -> None:
        self.title, self.resamples = title, resamples
        self.labels: dict[str, dict[str, int]] = {}
        for row in rows:
            held = self.labels.setdefault(row["cell"]["data"]["category"], {})
            held.update(zip(row["scores"]["ids"], row["scores"]["labels"], strict=True))
        # RAD's four categories share their normal pictures, so these are drawn alike.
        self.shared = bool(rows) and rows[0]["cell"]["data"]["reader"] == "rad"
        self.weights: dict[str, tuple[dict[str, int], np.ndarray]] = {}

    def replicates(self, row: Row, metric: str) -> np.ndarray | None:
        """(B,) values of a metric of one row under the resamples; None where it has none."""
        return self._image(row, metric) if metric.startswith("image.") else self._stored(row, metric)

    def _stored(self, row: Row, metric: str) -> np.ndarray | None:
        """The benchmark draws alike in every category; in another order the categories are independent, as they should."""
        values = np.array(row["replicates"].get(metric) or [math.nan], float)
        if np.isnan(values).any():
            return None
        return values[self._rng(row["cell"]["data"]["category"], "order").permutation(len(values))]

    def _image(self, row: Row, metric: str) -> np.ndarray | None:
        read, labels = of_curve(metric), np.array(row["scores"]["labels"])
        if read is None or not len(labels) or labels.min() == labels.max():
            return None
        places, weights = self._weights(row["cell"]["data"]["category"])
        drawn = weights[:, [places[id] for id in row["scores"]["ids"]]]
        if not all(drawn[:, labels == kind].any(axis=1).all() for kind in (0, 1)):
            return None  # pictures are missing in this row, and some resample has none of a class
        return _resampled(np.array(row["scores"]["values"], float), labels, drawn, read)

    def _weights(self, category: str) -> tuple[dict[str, int], np.ndarray]:
        """Place of each picture, and (B, N) how often each is drawn; the numbers of both labels stay."""
        if category not in self.weights:
            ids = sorted(self.labels[category])
            labels = np.array([self.labels[category][id] for id in ids])
            weights = np.zeros((self.resamples, len(ids)), np.int16)
            for kind in (0, 1):
                count = int((labels == kind).sum())
                if count:
                    rng = self._rng("" if self.shared and kind == 0 else category, str(kind))
                    weights[:, labels == kind] = rng.multinomial(count, np.full(count, 1 / count), size=self.resamples)
            self.weights[category] = {id: place for place, id in enumerate(ids)}, weights
        return self.weights[category]

    def _rng(self, category: str, purpose: str) -> np.random.Generator:
        digest = hashlib.sha256("\n".join((self.title, category, purpose)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@cache
def of_curve(metric: str) -> Any:
    """Reads an image metric off a curve; None for one that is not read so."""
    try:
        module = import_module(metrics.get(metric.partition(".")[2]).__module__)
    except UnknownName:
        return None
    return getattr(module, "of_curve", None)


def value_of(row: Row, metric: str) -> float:
    """The figure of one cell, NaN where it is undefined or was not measured."""
    value = row["figures"].get(metric, {}).get("value")
    return math.nan if value is None else float(value)


def mean_of(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """Mean of (B,) arrays; None where one is missing or their lengths differ."""
    found = list(parts)
    arrays = [part for part in found if part is not None]
    if not arrays or len(arrays) < len(found) or len({part.shape for part in arrays}) > 1:
        return None
    return np.mean(arrays, axis=0)


def finite_mean(values: Iterable[float]) -> float:
    """Mean of the values that are defined; NaN without any."""
    kept = [v for v in values if math.isfinite(v)]
    return float(np.mean(kept)) if kept else math.nan
