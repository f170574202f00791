"""Fitting so that some normal pictures stay unseen, and their scores become the thresholds (`thresholds`).

Source of cross-fitting: Vovk 2015, https://doi.org/10.1007/s10472-013-9368-4.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from .detector import Detector
from .errors import WrongInput
from .thresholds import LOW_QUANTILE, MOST_ASIDE, Calibration, needed_for
from .types import Prediction, Sample

AnyDetector = TypeVar("AnyDetector", bound=Detector)
Measured = tuple[float, float, float, str]  # score, highest map value, its LOW_QUANTILE, category
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]  # wraps an iterable to show progress: (items, what, total)

HOLD_OUT_FROM = 300  # normal pictures from which a third is held out; below, cross-fitting uses every picture
FOLDS = 5
LEAST_ASIDE = (
    5  # a training that is not repeated leaves out at least one picture in so many, at most one in MOST_ASIDE,
)
AIM = 0.05  # or what this false-alarm rate needs, where none is asked for


def fit_calibrated(
    detector: AnyDetector,
    samples: Iterable[Sample],
    *,
    folds: int | None = None,
    seed: int = 0,
    rate: float | None = None,
    track: Track = lambda items, what, total: items,
) -> AnyDetector:
    """Fit on normal samples and calibrate on normal samples that the fit did not see.

    With HOLD_OUT_FROM or more samples a random third (100 to 1000) is held out. With fewer, each is scored by one of
    FOLDS detectors fitted without it and the final detector learns from all; its own scores are then a little lower
    than the stored ones (it saw more), so that the promise errs on the safe side. A detector that trains by gradient is
    fitted only once: `kept_aside` says how many samples it does not see. Samples of several categories are divided so
    that each category has its share in every part. Returns the same detector.

    folds: cross-fit with so many folds, also what trains by gradient; it then trains folds + 1 times.
    rate: the false-alarm rate that will be asked for, where it is known: what trains by gradient keeps aside what it needs.
    track: called as track(items, what, total) around every pass over pictures, to show progress.

    Raises:
        WrongInput: fewer than two samples, or one is labelled anomalous.
    """
    samples = list(samples)
    bad = [s.id for s in samples if s.label == 1]
    if bad:
        raise WrongInput(f"{len(bad)} of the good pictures are labelled anomalous (first: {bad[0]}); leave them out.")
    n = len(samples)
    if n < 2:
        raise WrongInput(
            f"calibration needs at least 2 good pictures, got {n}; 99 allow a false-alarm rate of 1 %. "
            "To fit without a calibrated threshold, call fit(samples)."
        )
    order = np.random.default_rng(seed).permutation(n)
    aside = kept_aside(n, rate) if detector.trains_by_gradient and folds is None else 0
    names = {s.id: s.category for s in samples}

    def measured(predictions: Iterable[Prediction]) -> list[Measured]:
        # Where a model withholds an answer and says so, what it does answer is exchangeable among itself.
        told = (p for p in predictions if not (math.isnan(p.score) and p.reasons))
        return [(*_measure(p), p.category or names[p.id]) for p in told]

    if not detector.learns:
        scored = measured(detector.predict(track(samples, "scoring good pictures", n)))
        detector.calibration = _collect(scored, "unseen")
    elif n >= HOLD_OUT_FROM or aside:
        order = _mixed(samples, order)
        held = min(max(n // 3, 100), 1000) if n >= HOLD_OUT_FROM else aside
        detector.fit(track(_in_order(samples, order[held:]), "learning from good pictures", n - held))
        kept = track(_in_order(samples, order[:held]), "scoring good pictures kept aside", held)
        scored = measured(detector.predict(kept))
        detector.calibration = _collect(scored, "held-out", n if n < HOLD_OUT_FROM else 0)
    else:
        folds = max(2, min(folds or FOLDS, n))
        shuffled = [samples[i] for i in _grouped(samples, order)]
        scored = []
        for fold in range(folds):
            rest = [s for i, s in enumerate(shuffled) if i % folds != fold]
            out = [s for i, s in enumerate(shuffled) if i % folds == fold]
            trial = detector.unfitted()
            trial.fit(track(rest, f"calibrating {fold + 1}/{folds}: learning", len(rest)))
            scored += measured(trial.predict(track(out, f"calibrating {fold + 1}/{folds}: scoring", len(out))))
        detector.fit(track(samples, "learning from good pictures", n))
        detector.calibration = _collect(scored, "cross-fitted")
    return detector


def kept_aside(n: int, rate: float | None = None) -> int:
    """Of n good pictures, fewer than HOLD_OUT_FROM, how many a training that is not repeated does not see.

    What the rate needs where that is at most a third; otherwise a fifth, or, with few pictures, more: up to a third, as
    long as that is no more than a rate of 5 % needs. A threshold from five pictures would say very little, and a third
    fewer to learn from costs little.
    """
    most, least = max(n // MOST_ASIDE, 1), -(-n // LEAST_ASIDE)
    needed = needed_for(AIM if rate is None else rate)
    return max(least, needed if needed <= most else min(needed_for(AIM), most))


def _mixed(samples: list[Sample], order: np.ndarray) -> np.ndarray:
    """The order, changed so that its beginnings hold every category in its share; of one category it stays."""
    names = [samples[i].category for i in order]
    total, seen, places = Counter(names), Counter[str](), []
    for name in names:
        places.append((seen[name] + 0.5) / total[name])
        seen[name] += 1
    return order[np.argsort(places, kind="stable")]


def _grouped(samples: list[Sample], order: np.ndarray) -> np.ndarray:
    """The order, category after category, so that folds taken in turns share each of them; of one category it stays."""
    names = [samples[i].category for i in order]
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    return order[np.argsort([first[name] for name in names], kind="stable")]


def _in_order(samples: list[Sample], chosen: np.ndarray) -> list[Sample]:
    return [samples[i] for i in sorted(chosen)]


def _measure(prediction: Prediction) -> tuple[float, float, float]:
    if prediction.map is None:
        return prediction.score, math.nan, math.nan
    flat = prediction.map.ravel()
    kth = min(int(LOW_QUANTILE * flat.size), flat.size - 1)
    return prediction.score, float(flat.max()), float(np.partition(flat, kth)[kth])


def _collect(scored: list[Measured], how: Any, given: int = 0) -> Calibration:
    if not scored:
        raise WrongInput(
            "none of the good pictures got a score, so there is no threshold; look at what the method says."
        )
    table = np.asarray([row[:3] for row in scored], np.float64)
    categories = tuple(row[3] for row in scored)
    if not np.isfinite(table[:, 0]).all():
        raise WrongInput(
            "the detector gave a score that is not a number for a good picture; calibration is impossible."
        )
    maps = table[:, 1:] if np.isfinite(table).all() else table[:0, 1:]
    several = categories if len(set(categories)) > 1 else ()
    return Calibration(table[:, 0], maps[:, 0], maps[:, 1], how, several, given)
