"""How good scores and maps are: `image(scores, labels)` for pictures, `pixel(maps, masks)` for pixels and regions.

Each file of this folder without a leading underscore is one metric with a `CARD` (a `MetricCard`), the plain function
`METRIC`, `floor` (what constant scores reach), and `of_curve`, which reads the value off a curve that several metrics
share, or `of_pairs`, which takes the pixels. A metric answers to its file name and to the title of its card.

Values are float64 in [0, 1]; an undefined value is NaN with the reason beside it, never 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from types import ModuleType
from typing import Any, Literal

import numpy as np

from .. import registry
from ..errors import UnknownName, WrongInput
from ..types import MetricCard
from ._bootstrap import (
    Comparison,
    compare_images,
    compare_pixels,
    image_replicates,
    interval_of,
    picture_counts,
    pixel_replicates,
)
from ._curves import Curve, Measured, OfCurve, UndefinedMetric, checked, measure, rank
from ._pixels import NATIVE, PixelEvalPolicy, align, image_labels, pair, pixel_curve
from ._stream import PixelAccumulator, together

__all__ = [
    "Comparison",
    "Curve",
    "Measured",
    "OfCurve",
    "PixelAccumulator",
    "PixelEvalPolicy",
    "UndefinedMetric",
    "average",
    "card",
    "checked",
    "compare",
    "get",
    "image",
    "image_labels",
    "names",
    "pair",
    "pixel",
]

Which = Iterable[str] | Mapping[str, Mapping[str, Any]]


def names() -> tuple[str, ...]:
    """Every metric, by file name."""
    return registry.stems("metrics")


def card(name: str) -> MetricCard:
    """What a metric says and where it is defined, without importing it."""
    return registry.literal_card("metrics", "metric", _stem(name), "MetricCard")


def get(name: str) -> Callable[..., float]:
    """The plain function of a metric: scores and labels of one shape, or maps and masks for region metrics."""
    return _module(name).METRIC


def image(
    scores: Any,
    labels: Any,
    which: Which = ("auroc", "ap", "f1max"),
    *,
    allow_inf: bool = False,
    interval: bool = False,
    seed: int = 0,
) -> dict[str, Measured]:
    """Metrics of pictures.

    Args:
        scores: (N,), higher is more anomalous, any unit.
        labels: (N,), 1 or True for anomalous, 0 for normal; see `image_labels`.
        which: metric names; or names with settings, such as {"fpr-at-recall": {"recall": 0.99}}.
        allow_inf: accept +inf scores (above every other); NaN and -inf are always refused.
        interval: also the 95 % bootstrap interval of every metric that has one, from 1000 resamples of the pictures.
        seed: of the resamples.

    Returns:
        What each metric says, by the name it was asked for.

    Raises:
        WrongInput: shapes differ, a score is not finite, or a metric is not one of pictures.
        UnknownName: no such metric.
    """
    asked = _asked(which, "image")
    curve, flat = rank(scores, labels, allow_inf=allow_inf), checked(scores, labels, allow_inf=allow_inf)
    found = {}
    for name, (module, settings) in asked.items():
        if hasattr(module, "of_curve"):
            measured = measure(module.CARD, module.of_curve, module.floor, curve, **settings)
        else:
            measured = module.of_pairs([(flat[0][None], flat[1][None])], **settings)
        found[name] = replace(measured, settings=dict(settings))
    if not interval:
        return found
    curves = _curve_metrics(asked, found)
    replicates = image_replicates(*flat, list(curves.values()), seed=seed) if curves else ()
    return _with_intervals(found, curves, replicates)


def pixel(
    maps: Iterable[Any],
    masks: Iterable[Any],
    policy: PixelEvalPolicy = NATIVE,
    limits: Iterable[float] = (0.3, 0.05),
    which: Which = ("auroc", "ap", "f1max", "aupro"),
    *,
    variant: Literal["exact", "stream"] = "exact",
    connectivity: Literal[4, 8] = 8,
    min_region_area: int = 0,
    interval: bool = False,
    seed: int = 0,
) -> dict[str, Measured]:
    """Metrics of all pixels of all pictures, and of anomalous regions, from one ranking.

    Args:
        maps: per picture (H, W) scores, higher is more anomalous, any unit; sizes may differ.
        masks: per picture (H, W), 1 or True where anomalous, 255 where ignored; None for a good picture.
        policy: on which grid they are compared.
        limits: false-positive rates up to which AUPRO is averaged: one result `aupro@0.3` per limit.
        which: metric names; or names with settings, such as {"f1-at-threshold": {"threshold": 1.2}}.
        variant: "exact", or "stream": one pass, constant memory, each value with a certified bound of its error; maps
            and masks may then be generators.
        connectivity: whether pixels that share a corner alone are one region (8) or not (4).
        min_region_area: regions of fewer pixels count as none; their pixels are not normal either.
        interval: also the 95 % bootstrap interval of every curve metric, from 200 resamples of the pictures.
        seed: of the resamples.

    Returns:
        What each metric says, by the name it was asked for.

    Raises:
        WrongInput: maps and masks do not fit together, or a metric is not one of pixels.
        UnknownName: no such metric.
    """
    limits = tuple(limits)
    asked = {
        key: expanded
        for name, (module, settings) in _asked(which, "pixel", "region").items()
        for key, expanded in _by_limit(name, module, settings, limits)
    }
    how = {**asdict(policy), "variant": variant, "connectivity": connectivity, "min_region_area": min_region_area}
    if variant == "stream":
        if interval:
            raise WrongInput("intervals need every picture again: set variant to 'exact' or interval to False.")
        accumulator = PixelAccumulator(policy=policy, connectivity=connectivity, min_region_area=min_region_area)
        for values, mask in together(maps, masks):
            accumulator.update(values, mask)
        streamed = accumulator.curve()
        found = {name: accumulator.measure(module, streamed, **settings) for name, (module, settings) in asked.items()}
        return {name: replace(m, settings={**how, **asked[name][1]}) for name, m in found.items()}
    if variant != "exact":
        raise WrongInput(f"variant is {variant!r}; give 'exact' or 'stream'.")
    pairs, lost = align(maps, masks, policy)
    how["crop_lost_positive_fraction"] = lost
    regions = any("region" in module.CARD.levels for module, _ in asked.values())
    curve = pixel_curve(pairs, regions=regions, connectivity=connectivity, min_region_area=min_region_area)
    found = {}
    for name, (module, settings) in asked.items():
        if hasattr(module, "of_curve"):
            measured = measure(module.CARD, module.of_curve, module.floor, curve, **settings)
        elif "region" in module.CARD.levels:
            measured = module.of_pairs(pairs, connectivity, **settings)
        else:
            measured = module.of_pairs(pairs, **settings)
        found[name] = replace(measured, settings={**how, **settings})
    curves = _curve_metrics(asked, found) if interval else {}
    if not curves:
        return found
    counts = picture_counts(pairs, connectivity, min_region_area)
    return _with_intervals(found, curves, pixel_replicates([counts], list(curves.values()), seed=seed)[0])


def compare(
    first: Any,
    second: Any,
    truth: Any,
    metric: str = "auroc",
    *,
    level: Literal["image", "pixel"] = "image",
    policy: PixelEvalPolicy = NATIVE,
    resamples: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Comparison:
    """Whether two methods differ on the same pictures: paired interval of the difference, and a p-value.

    Args:
        first, second: scores (N,) of the two methods; maps for level "pixel".
        truth: labels (N,); masks for level "pixel".
        metric: any that is read off a curve; settings such as `limit` follow by name.
        policy: on which grid maps and masks are compared.
        resamples: 1000 for pictures and 200 for pixels unless given.

    Raises:
        WrongInput: inputs do not fit together, or the metric has no curve at this level.
        UnknownName: no such metric.
    """
    asked = _asked({metric: settings}, *(("image",) if level == "image" else ("pixel", "region")))
    module = asked[metric][0]
    if not hasattr(module, "of_curve"):
        raise WrongInput(f"{metric} is not read off a curve, so it cannot be resampled; compare auroc, ap or aupro.")
    of_curve = partial(module.of_curve, **settings)
    count = resamples if resamples is not None else {"image": 1000, "pixel": 200}[level]
    if level == "image":
        return compare_images(first, second, truth, of_curve, resamples=count, seed=seed)
    return compare_pixels(first, second, truth, of_curve, policy=policy, resamples=count, seed=seed)


def average(values: Mapping[str, float], nan_policy: Literal["omit", "raise"] = "omit") -> float:
    """Unweighted mean over categories; undefined ones are left out with a warning, or refused.

    Raises:
        WrongInput: a value is NaN and nan_policy is "raise".
    """
    undefined = [name for name, value in values.items() if math.isnan(value)]
    if undefined:
        message = f"{len(undefined)} of {len(values)} categories have no value: {', '.join(undefined)}"
        if nan_policy == "raise":
            raise WrongInput(f"{message}; repair their ground truth, or set nan_policy to 'omit'.")
        warnings.warn(f"{message}; the mean leaves them out.", UndefinedMetric, stacklevel=2)
    defined = [value for value in values.values() if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _stem(name: str) -> str:
    """File name of a metric that is called by it or by the title of its card."""
    try:
        return registry.resolve("metrics", "metric", name)
    except UnknownName:
        for stem in names():
            if registry.literal_card("metrics", "metric", stem, "MetricCard").title.lower() == name.lower():
                return stem
        raise


def _module(name: str) -> ModuleType:
    return registry.module("metrics", "metric", _stem(name))


Asked = dict[str, tuple[ModuleType, Mapping[str, Any]]]


def _asked(which: Which, *levels: str) -> Asked:
    """Module and settings of each metric asked for, all of them of one of the levels."""
    if isinstance(which, str):
        raise WrongInput(f"which is the text {which!r}; give a list of names, such as [{which!r}].")
    asked = {name: (_module(name), which[name] if isinstance(which, Mapping) else {}) for name in which}
    for name, (module, _) in asked.items():
        if not set(levels) & set(module.CARD.levels):
            own, taken = " and ".join(module.CARD.levels), " or ".join(levels)
            raise WrongInput(f"{name} is of level {own}; this call takes metrics of level {taken}.")
        if not hasattr(module, "of_curve") and not hasattr(module, "of_pairs"):
            raise WrongInput(f"{name} needs more than masks: call metrics.get({name!r}) with what its text asks for.")
    return asked


def _by_limit(
    name: str, module: ModuleType, settings: Mapping[str, Any], limits: Iterable[float]
) -> list[tuple[str, tuple[ModuleType, Mapping[str, Any]]]]:
    """A region metric that is read off the curve is one result per limit."""
    if "region" not in module.CARD.levels or not hasattr(module, "of_curve"):
        return [(name, (module, settings))]
    return [(f"{name}@{limit:g}", (module, {**settings, "limit": limit})) for limit in limits]


def _curve_metrics(asked: Asked, found: Mapping[str, Measured]) -> dict[str, OfCurve]:
    """The metrics that can be resampled: defined, and read off a curve."""
    return {
        name: partial(module.of_curve, **settings)
        for name, (module, settings) in asked.items()
        if hasattr(module, "of_curve") and not found[name].reason
    }


def _with_intervals(
    found: dict[str, Measured], curves: Mapping[str, OfCurve], replicates: Iterable[np.ndarray]
) -> dict[str, Measured]:
    for name, values in zip(curves, replicates, strict=True):
        if not np.isnan(values).any():
            kept = tuple(map(float, values))
            found[name] = replace(found[name], interval=interval_of(values), replicates=kept)
    return found
