"""Saturated per-region overlap, for defects of which finding a part is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import WrongInput
from ..types import MetricCard
from ._curves import Curve, Measured, measure, settle, trace
from ._pixels import checked_map, chunked
from .aupro import check_limit, floor
from .aupro import of_curve as area

CARD = MetricCard(
    title="AU-sPRO",
    summary="As AUPRO, but a defect counts as fully found once a given part of its area is covered; made for logical "
    "anomalies, whose extent has no single answer.",
    range=(0.0, 1.0),
    direction="higher is better",
    levels=("region",),
    needs=("anomalous", "normal"),
    source="Bergmann et al. 2022, https://doi.org/10.1007/s11263-022-01578-9",
)

Config = Sequence[Mapping[str, Any]]  # entries of defects_config.json


def spro(maps: Iterable[Any], channels: Iterable[Any], config: Config | None = None, limit: float = 0.05) -> float:
    """Area under the mean saturated overlap of defects against the pixel false-positive rate, divided by `limit`.

    The saturated overlap of a defect is the number of its pixels found over its saturation area, at most 1. Its pixels
    are normal only outside every channel of their picture. Every distinct score is a threshold.

    Args:
        maps: per picture (H, W) scores, higher is more anomalous, any unit.
        channels: per picture (C, H, W), one channel per defect whose non-zero value is the type of the defect, also
            when it falls into several parts; (H, W) is one channel; None for a good picture.
        config: the entries of the dataset's `defects_config.json`: pixel_value, saturation_threshold (a share of the
            defect, or pixels) and relative_saturation. Without it a defect saturates at its whole area.
        limit: highest false-positive rate, in (0, 1].

    Returns:
        A value in [0, 1]; NaN, with an UndefinedMetric warning, without defects or normal pixels.

    Raises:
        WrongInput: maps and channels do not fit together, or a defect type is not in the config.

    Source:
        Bergmann et al. 2022, https://doi.org/10.1007/s11263-022-01578-9, section 4
    """
    check_limit(limit)
    return settle(measure(CARD, area, floor, spro_curve(list(zip_pictures(maps, channels)), config), limit=limit), CARD)


def spro_by_kind(
    maps: Iterable[Any],
    channels: Iterable[Any],
    kinds: Sequence[str],
    config: Config | None = None,
    limits: Sequence[float] = (0.05,),
) -> dict[str, dict[float, Measured]]:
    """AU-sPRO of each kind of anomaly against the good pictures, by limit: what MVTec LOCO AD reports.

    kinds: per picture "good" or the name of its kind, such as "structural" and "logical". Average them with
        `metrics.average`.
    """
    pictures = list(zip_pictures(maps, channels))
    if len(kinds) != len(pictures):
        raise WrongInput(f"there are {len(kinds)} kinds and {len(pictures)} maps; give one kind per map.")
    found = {}
    for kind in sorted(set(kinds) - {"good"}):
        curve = spro_curve([p for p, k in zip(pictures, kinds, strict=True) if k in ("good", kind)], config)
        found[kind] = {limit: measure(CARD, area, floor, curve, limit=limit) for limit in limits}
    return found


def saturation_area(area: int, value: int, config: Config | None = None) -> int:
    """Pixels from which a defect of this type and area counts as found: at least 1, even for a tiny defect."""
    if config is None:
        return area
    entry = next((e for e in config if e["pixel_value"] == value), None)
    if entry is None:
        known = sorted(e["pixel_value"] for e in config)
        raise WrongInput(f"a defect channel has the value {value}, which the config does not name; it has {known}.")
    threshold = entry["saturation_threshold"]
    return max(1, int(threshold * area) if entry["relative_saturation"] else int(min(threshold, area)))


def spro_by_type(
    maps: Iterable[Any], channels: Iterable[Any], config: Config, limits: Sequence[float] = (0.05,)
) -> dict[str, dict[float, Measured]]:
    """AU-sPRO of each defect type of the config, by limit: good pictures and those that show the type."""
    pictures = list(zip_pictures(maps, channels))
    found = {}
    for entry in config:
        value = entry["pixel_value"]
        chosen = [p for p in pictures if not p[1].any() or (p[1] == value).any()]
        curve = spro_curve(chosen, config, only=value)
        found[entry["defect_name"]] = {limit: measure(CARD, area, floor, curve, limit=limit) for limit in limits}
    return found


def spro_curve(
    pictures: Sequence[tuple[np.ndarray, np.ndarray]], config: Config | None, only: int | None = None
) -> Curve:
    """The exact curve. Only the S highest scores of a defect that saturates at S pixels move it, by 1 / S each.

    Which of several pixels that tie at the S-th place are taken does not matter: they enter together.
    only: the defect type that counts; the pixels of the others are still not normal.
    """
    scores, shares = [np.zeros(0, np.float32)], [np.zeros(0)]
    for values, channels in pictures:
        for channel in channels:
            inside = values[channel != 0]
            if not len(inside) or only not in (None, int(channel.max())):
                continue
            size = saturation_area(len(inside), int(channel.max()), config)
            scores.append(np.partition(inside, len(inside) - size)[len(inside) - size :])
            shares.append(np.full(size, 1 / size))
    found = np.concatenate(scores)
    negatives = sum(int(np.count_nonzero(~channels.any(axis=0))) for _, channels in pictures)
    normals = chunked(values[~channels.any(axis=0)] for values, channels in pictures)
    return trace(found, normals, len(found), negatives, np.concatenate(shares), len(shares) - 1)


def zip_pictures(maps: Iterable[Any], channels: Iterable[Any]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Scores (H, W) and channels (C, H, W) of each picture; C is 0 for a good one."""
    maps, channels = list(maps), list(channels)
    if len(maps) != len(channels):
        raise WrongInput(f"there are {len(maps)} maps and {len(channels)} channel stacks; give one per picture.")
    for number, (values, stack) in enumerate(zip(maps, channels, strict=True)):
        scores = checked_map(values, number)
        stack = np.zeros((0, *scores.shape), np.uint8) if stack is None else np.asarray(stack)
        stack = stack[None] if stack.ndim == 2 else stack
        if stack.shape[1:] != scores.shape:
            raise WrongInput(f"map {number} is {scores.shape} and its channels are {stack.shape[1:]}; resize the map.")
        yield scores, stack


METRIC = spro
