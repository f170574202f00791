"""Probability of detection: how likely a defect of some size and contrast is to be found, from hits and misses.

The model is the one of non-destructive testing: the log-odds of a hit are linear in the logarithms of size and contrast
(MIL-HDBK-1823A, hit/miss data). It is fitted by maximum likelihood with Firth's penalty (Firth 1993, Bias reduction of
maximum likelihood estimates), which stays finite where everything is found, or nothing. Limits of confidence come from
fits without one picture after the other (jackknife), because defects drawn on one picture are found or missed together; with
few pictures this is wide enough where drawing them again (bootstrap) is not (MacKinnon, Nielsen and Webb 2024,
https://arxiv.org/abs/2406.00650).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import WrongInput

DRAWS = 2000
MOST_GROUPS = 50  # of more pictures several are left out at once
STEPS = 60  # of Newton's method; ten are usual
LARGEST_STEP = 4.0  # in any coefficient, so that a start far away does not overshoot


@dataclass(frozen=True)
class Limit:
    """A size or contrast at which defects are found with the wanted probability.

    value: None where no tested one is large enough, then `reason` says so. upper: 95 % confidence that the true one is not
        above it; None where the data do not say. below: the smallest tested one is found already, and `value` is that one.
    """

    value: float | None
    upper: float | None = None
    below: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """P(found) = 1 / (1 + exp(-(a + b ln size + c ln contrast))).

    coefficients: (3,) a, b, c; b or c is 0 where all trials had one size, or one contrast. replicates: (B, 3) what they
        might be as well, from what single pictures change; (0, 3) where all trials are on one picture. sizes, contrasts:
        (lowest, highest) tried; nothing is said beyond them.
    """

    coefficients: np.ndarray
    replicates: np.ndarray
    sizes: tuple[float, float]
    contrasts: tuple[float, float]

    def probability(self, size: float, contrast: float) -> float:
        """Of finding a defect, 0 to 1. size and contrast are in the units of the trials, above 0."""
        return float(_logistic(self.coefficients @ (1.0, math.log(size), math.log(contrast))))

    def band(self, size: float, contrast: float) -> tuple[float, float]:
        """The middle 95 % of what the probability might be; (0, 1) where all trials are on one picture."""
        if not len(self.replicates):
            return 0.0, 1.0
        drawn = _logistic(self.replicates @ (1.0, math.log(size), math.log(contrast)))
        low, high = np.percentile(drawn, (2.5, 97.5))
        return float(low), float(high)

    def smallest_size(self, contrast: float, wanted: float = 0.9) -> Limit:
        """The smallest size that is found with probability `wanted` at this contrast."""
        return self._limit(1, 2, contrast, wanted, self.sizes, "size")

    def lowest_contrast(self, size: float, wanted: float = 0.9) -> Limit:
        """The lowest contrast at which a defect of this size is found with probability `wanted`."""
        return self._limit(2, 1, size, wanted, self.contrasts, "contrast")

    def _limit(
        self, of: int, given: int, at: float, wanted: float, tried: tuple[float, float], noun: str
    ) -> Limit:  # fmt: skip
        if not 0 < wanted < 1:
            raise WrongInput(f"a probability of detection lies between 0 and 1; got {wanted}.")
        odds = math.log(wanted / (1 - wanted))

        def solve(rows: np.ndarray) -> np.ndarray:
            rest = odds - rows[:, 0] - rows[:, given] * math.log(at)
            rising = rows[:, of] > 1e-9
            exponent = np.where(rising, rest / np.where(rising, rows[:, of], 1.0), np.where(rest <= 0, -np.inf, np.inf))
            return np.exp(np.clip(exponent, -700, 700))

        value = float(solve(self.coefficients[None])[0])
        drawn = solve(self.replicates)
        upper = float(np.percentile(drawn, 95, method="higher")) if len(drawn) else math.inf
        low, high = tried
        if value > high * (1 + 1e-9):
            return Limit(None, None, reason=f"not reached: no {noun} up to {high:.3g} is found that often")
        bounded = max(upper, low) if upper <= high else None
        return Limit(max(value, low), bounded, below=value < low)


def fit(
    sizes: Sequence[float],
    contrasts: Sequence[float],
    hits: Sequence[bool],
    pictures: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Curve:
    """The curve through n trials.

    sizes, contrasts: (n,) above 0, in any unit. hits: (n,) was it found. pictures: (n,) what it was drawn on. draws: how
        many replicates.

    Raises:
        WrongInput: no trial, unequal lengths, or a size or contrast that is not above 0.
    """
    size, contrast = np.asarray(sizes, float), np.asarray(contrasts, float)
    hit, names = np.asarray(hits, float), np.asarray(pictures)
    if not len(size) or not len(size) == len(contrast) == len(hit) == len(names):
        raise WrongInput(
            f"a curve needs as many sizes, contrasts, hits and pictures, at least one; got {len(size)}, {len(contrast)}, "
            f"{len(hit)}, {len(names)}."
        )
    if not (np.isfinite(size).all() and np.isfinite(contrast).all() and size.min() > 0 and contrast.min() > 0):
        raise WrongInput("sizes and contrasts must be finite and above 0, because the curve is over their logarithms.")
    columns = np.column_stack((np.ones(len(size)), np.log(size), np.log(contrast)))
    kept = [0, *(k for k in (1, 2) if np.ptp(columns[:, k]) > 1e-9)]
    coefficients = _firth(columns[:, kept], hit)
    groups = np.array_split(np.unique(names), min(len(np.unique(names)), MOST_GROUPS))
    left_out = [_firth(columns[others][:, kept], hit[others]) for g in groups if (others := ~np.isin(names, g)).any()]
    replicates = _around(coefficients, np.array(left_out), draws, np.random.default_rng(seed))
    bounds = [(float(v.min()), float(v.max())) for v in (size, contrast)]
    return Curve(_spread(coefficients, kept), _spread(replicates, kept), *bounds)


def wilson(found: int, tried: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) without trials."""
    if not tried:
        return 0.0, 1.0
    z = 1.959963984540054
    share, scale = found / tried, 1 + z * z / tried
    middle = (share + z * z / (2 * tried)) / scale
    half = z * math.sqrt(share * (1 - share) / tried + z * z / (4 * tried * tried)) / scale
    low = 0.0 if found == 0 else middle - half  # what rounding leaves of 0 and 1
    return low, 1.0 if found == tried else middle + half


def _firth(columns: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Coefficients that maximise log-likelihood + 0.5 log det(information): logistic regression without separation."""
    middle = columns[:, 1:].mean(axis=0)
    scale = columns[:, 1:].std(axis=0)
    scale[scale < 1e-12] = 1.0
    x = np.column_stack((columns[:, 0], (columns[:, 1:] - middle) / scale))
    beta = np.zeros(x.shape[1])
    best = _penalised(x, hit, beta)
    for _ in range(STEPS):
        p = _logistic(x @ beta)
        weight = p * (1 - p)
        information = x.T @ (weight[:, None] * x) + 1e-10 * np.eye(len(beta))
        inverse = np.linalg.inv(information)
        leverage = weight * np.einsum("ij,jk,ik->i", x, inverse, x)
        step = inverse @ (x.T @ (hit - p + leverage * (0.5 - p)))
        step *= min(1.0, LARGEST_STEP / max(np.abs(step).max(), 1e-12))
        while (value := _penalised(x, hit, beta + step)) < best - 1e-12 and np.abs(step).max() > 1e-9:
            step /= 2
        beta, best = beta + step, value
        if np.abs(step).max() < 1e-8:
            break
    slopes = beta[1:] / scale
    return np.concatenate(([beta[0] - slopes @ middle], slopes))


def _penalised(x: np.ndarray, hit: np.ndarray, beta: np.ndarray) -> float:
    z = x @ beta
    p = _logistic(z)
    _, volume = np.linalg.slogdet(x.T @ ((p * (1 - p))[:, None] * x) + 1e-10 * np.eye(len(beta)))
    return float(np.sum(hit * z - np.logaddexp(0, z)) + 0.5 * volume)


def _around(fitted: np.ndarray, left_out: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, k) coefficients as uncertain as the jackknife says: Student's t of one degree of freedom less than groups.

    left_out: (groups, k), fitted without one group each; with less than two nothing is known, and (0, k) comes back.
    """
    groups = len(left_out)
    if groups < 2:
        return np.empty((0, len(fitted)))
    apart = left_out - fitted
    values, vectors = np.linalg.eigh(apart.T @ apart * (groups - 1) / groups)
    root = vectors * np.sqrt(np.maximum(values, 0))
    normal = rng.standard_normal((draws, len(fitted)))
    return fitted + normal @ root.T / np.sqrt(rng.chisquare(groups - 1, (draws, 1)) / (groups - 1))


def _spread(fitted: np.ndarray, kept: list[int]) -> np.ndarray:
    """(..., k) -> (..., 3), zeros for what was not fitted."""
    full = np.zeros((*fitted.shape[:-1], 3))
    full[..., kept] = fitted
    return full


def _logistic(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -500, 500)))
