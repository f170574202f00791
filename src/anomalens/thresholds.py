"""Thresholds and p-values with a promised false-alarm rate, from normal pictures alone (split-conformal prediction).

The scores of n normal pictures that the detector has not learnt from are kept. If a new normal picture is drawn like
those n (exchangeable), the chance that its p-value is at most a is at most a, whatever the detector and the
distribution of its scores. Test labels never enter. Where the pictures are of several categories the same holds within
each of them, for its own scores (Mondrian conformal prediction).

Source: Vovk, Gammerman, Shafer 2005, Algorithmic Learning in a Random World, section 4.5 for categories; Laxhammar and
Falkman 2011 for anomaly detection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .errors import WrongInput
from .regions import find_regions
from .types import Prediction, Verdict

REVIEW = 5  # the review zone reaches from the false-alarm rate a to REVIEW * a
MOST_ASIDE = 3  # a training that is not repeated leaves out at most one picture in so many
NAMED = 4  # categories that a sentence names; of more it gives the number
SLACK = 1e-12  # rounding that comparisons of rates forgive
LOW_QUANTILE = 0.995  # share of a normal picture's pixels that the lower hysteresis threshold lies above


@dataclass(frozen=True, eq=False)
class Calibration:
    """What normal pictures score.

    scores: (n,) float64, image scores of normal pictures not learnt from. peaks, highs: (n,) highest map value and its
        LOW_QUANTILE; empty where the method gives no map.
    how: held-out, or cross-fitted (each picture scored by a detector fitted without it), or unseen (the detector
        learns nothing, so that every normal picture is unseen).
    categories: (n,) the category behind each score; empty where all are of one.
    given: number of good pictures of which these were kept aside because the detector is trained only once; else 0.
    """

    scores: np.ndarray
    peaks: np.ndarray
    highs: np.ndarray
    how: Literal["held-out", "cross-fitted", "unseen"]
    categories: tuple[str, ...] = ()
    given: int = 0

    @property
    def count(self) -> int:
        return len(self.scores)

    @property
    def smallest_rate(self) -> float:
        """The lowest false-alarm rate that this many normal pictures can promise: 1 / (n + 1)."""
        return 1 / (self.count + 1)

    @cached_property
    def _ascending(self) -> np.ndarray:
        return np.sort(self.scores)

    @cached_property
    def parts(self) -> dict[str, Calibration]:
        """By category, in alphabetical order: what its own normal pictures score; empty where all are of one."""
        names, parts = np.array(self.categories), {}
        for name in sorted(set(self.categories)):
            own = names == name
            peaks, highs = (x[own] if len(x) else x for x in (self.peaks, self.highs))
            parts[name] = Calibration(self.scores[own], peaks, highs, self.how)
        return parts

    def own(self, category: str, rate: float) -> Calibration:
        """What judges a picture of this category: its own scores where they can promise the rate, else all of them."""
        part = self.parts.get(category)
        return part if part is not None and part.smallest_rate <= rate + SLACK else self

    def p_value(self, score: float) -> float:
        """(1 + number of normal scores >= score) / (n + 1); a small value means that normal pictures rarely get there."""
        above = self.count - int(np.searchsorted(self._ascending, score, "left"))
        return (1 + above) / (self.count + 1)

    def threshold(self, rate: float) -> float:
        """Scores strictly above it have p-value <= rate; infinite when so few normal pictures cannot promise the rate."""
        return _conformal_threshold(self._ascending, rate)

    def rate(self, wanted: float | None) -> float:
        """The rate to use: the wanted one, or, when none was asked for, 1 % or the lowest that can be promised."""
        if wanted is None:
            return max(0.01, self.smallest_rate)
        if not 0 < wanted < 1:
            raise WrongInput(f"a false-alarm rate lies between 0 and 1; got {wanted}.")
        return wanted

    def verdict(self, p_value: float, rate: float) -> Verdict:
        """reject at p <= rate, review at p <= review_rate(rate), else pass."""
        return "reject" if p_value <= rate + SLACK else "review" if p_value <= review_rate(rate) + SLACK else "pass"

    def pixel_thresholds(self, rate: float) -> tuple[float, float] | None:
        """(low, high) map values for regions, or None without maps.

        A normal picture has a pixel above `high` with probability at most `rate` (or 1 / (n + 1) where that is more);
        a region starts there and grows over all connected pixels above `low`.
        """
        if not len(self.peaks):
            return None
        reachable = max(rate, self.smallest_rate)
        high = _conformal_threshold(np.sort(self.peaks), reachable)
        low = _conformal_threshold(np.sort(self.highs), reachable)
        return min(low, high), high

    def judge(
        self, prediction: Prediction, rate: float | None = None, min_area: int = 1, category: str = ""
    ) -> Prediction:
        """The same prediction with p-value, verdict and, unless it passes, regions.

        min_area: smallest region kept, in pixels of the picture. category: of the sample; it counts where the method
            did not decide on one by itself. Without a score (NaN) there is no p-value, and the verdict is "review".
        """
        if math.isnan(prediction.score):
            return replace(prediction, verdict="review")
        rate = self.rate(rate)
        own = self.own(prediction.category or category, rate)
        p_value = own.p_value(prediction.score)
        verdict = own.verdict(p_value, rate)
        limits = own.pixel_thresholds(rate)
        regions = prediction.regions
        if verdict != "pass" and prediction.map is not None and limits is not None:
            regions = find_regions(prediction.map, low=limits[0], high=limits[1], min_area=min_area)
        return replace(prediction, p_value=p_value, verdict=verdict, regions=regions)

    def promise(self, wanted: float | None = None) -> str:
        """What can be promised, in words."""
        return " ".join(self.sentences(wanted))

    def sentences(self, wanted: float | None = None) -> list[str]:
        """The promise, and then what it rests on and how far it goes."""
        rate, n = self.rate(wanted), self.count
        if rate < self.smallest_rate:
            return [
                f"{n} good pictures{self._aside()}{',' * bool(self.given)} cannot promise a false-alarm rate below "
                f"{percent(self.smallest_rate)}, so nothing is rejected at {percent(rate)}. What stands out is marked for "
                "review.",
                f"{self._enough(rate)} would allow {percent(rate)}.",
                *self._about_categories(rate),
            ]
        source = {
            "held-out": f"from {n} good pictures{self._aside() or ' kept aside from fitting'}",
            "cross-fitted": f"from {n} good pictures, each scored by a model fitted without it",
            "unseen": f"from {n} good pictures, of which the method learns nothing",
        }[self.how]
        low, high = self.actual_rate(rate)
        least = (
            f" {n} good pictures cannot promise less; {self._enough(0.01)} would allow 1 %."
            if wanted is None and rate > 0.01
            else ""
        )
        return [
            f"At most {percent(rate)} of good pictures like these will be rejected.",
            f"That is an average over draws of good pictures, {source}; for this very draw the rate lies between "
            f"{percent(low)} and {percent(high)} with 95 % confidence.{least}",
            *self._about_categories(rate),
        ]

    def _aside(self) -> str:
        """Why so few of those that were given."""
        return f" of {self.given}, kept aside because the method is trained only once" if self.given else ""

    def _enough(self, rate: float) -> str:
        """How many good pictures could promise a rate."""
        needed = needed_for(rate)
        return f"{needed} of at least {MOST_ASIDE * needed} good pictures" if self.given else f"{needed} good pictures"

    def _about_categories(self, rate: float) -> list[str]:
        """Which categories have a threshold of their own, and what holds for the others."""
        enough = [name for name, part in self.parts.items() if part.smallest_rate <= rate + SLACK]
        few = {name: part for name, part in self.parts.items() if name not in enough}
        words = []
        if enough:
            own = _listed([f"{name or 'no name'} ({self.parts[name].count})" for name in enough])
            words.append(
                f"Judged by the good pictures of their own category, for which the promise holds by itself: {own}."
            )
        if few:
            limits = _listed(
                [f"{name or 'no name'} ({p.count}: {percent(p.smallest_rate)} at best)" for name, p in few.items()]
            )
            words.append(
                f"Too few for a threshold of their own at {percent(rate)}, which takes {needed_for(rate)}: {limits}. "
                f"They, and pictures of unknown category, are judged by all {self.count} together: that promise is for the "
                "mixture, and one category may be rejected more often."
            )
        return words

    def actual_rate(self, rate: float) -> tuple[float, float]:
        """95 % range of the false-alarm rate that this very threshold has: it follows Beta(k, n + 1 - k)."""
        k = math.floor(rate * (self.count + 1) + 1e-9)
        return _beta_quantile(0.025, k, self.count), _beta_quantile(0.975, k, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Fields that say nothing (no categories, all pictures used) are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if k not in ("categories", "given") or v}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Raises WrongInput for values that no calibration has."""
        arrays = [np.asarray(values[k], np.float64) for k in ("scores", "peaks", "highs")]
        categories, given = tuple(values.get("categories", ())), values.get("given", 0)
        if (
            values["how"] not in ("held-out", "cross-fitted", "unseen")
            or any(a.ndim != 1 or not np.isfinite(a).all() or len(a) not in (0, len(arrays[0])) for a in arrays)
            or len(categories) not in (0, len(arrays[0]))
            or not all(isinstance(name, str) for name in categories)
            or not isinstance(given, int)
        ):
            raise WrongInput("the saved calibration is damaged; fit and save again.")
        scores, peaks, highs = arrays
        return cls(scores, peaks, highs, values["how"], categories, given)


def needed_for(rate: float) -> int:
    """Fewest normal pictures that can promise a false-alarm rate."""
    return math.ceil(1 / rate - 1e-9) - 1


def review_rate(rate: float) -> float:
    """Upper end of the review zone: REVIEW times the rate, but never more than half of the good pictures."""
    return max(rate, min(REVIEW * rate, 0.5))


def stands_out(scores: Sequence[float] | np.ndarray, factor: float = 3.5) -> tuple[float, np.ndarray]:
    """Which scores stand out from their own batch when no good picture is known: (limit, mask). Promises nothing.

    The limit is median + factor * 1.4826 * MAD (Iglewicz and Hoaglin 1993, factor 3.5).
    """
    values = np.asarray(scores, np.float64)
    centre = float(np.median(values)) if len(values) else 0.0
    spread = 1.4826 * float(np.median(np.abs(values - centre))) if len(values) else 0.0
    limit = centre + factor * spread
    return limit, values > limit


def percent(rate: float) -> str:
    """0.0256 -> '2.6 %', 0.01 -> '1 %', 0.0001 -> '0.01 %'."""
    return f"{float(f'{100 * rate:.2g}'):g} %"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def _conformal_threshold(ascending: np.ndarray, rate: float) -> float:
    k = math.floor(rate * (len(ascending) + 1) + 1e-9)
    return math.inf if k < 1 else -math.inf if k > len(ascending) else float(ascending[-k])


def _beta_quantile(q: float, k: int, n: int) -> float:
    """Quantile of Beta(k, n + 1 - k) through the binomial: P(Beta <= x) = P(Binomial(n, x) >= k). Bisection."""
    if k > n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        below = sum(
            math.exp(
                math.lgamma(n + 1)
                - math.lgamma(i + 1)
                - math.lgamma(n - i + 1)
                + i * math.log(x)
                + (n - i) * math.log1p(-x)
            )
            for i in range(k)
        )
        low, high = (x, high) if 1 - below < q else (low, x)
    return (low + high) / 2
