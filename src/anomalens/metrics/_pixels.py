"""Maps and masks of pictures brought together: alignment to one grid, regions, and the pixel curve."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ..errors import WrongInput
from ..parts.grids import bilinear_matrix
from ..regions import label
from ._curves import IGNORE, Curve, as_float, as_truth, trace

CHUNK = 1 << 24  # normal pixels sorted at once: 64 MiB of float32

Pair = tuple[np.ndarray, "np.ndarray | None"]  # scores (H, W) floating, truth (H, W) uint8 or None for a good picture


@dataclass(frozen=True)
class PixelEvalPolicy:
    """On which grid maps and masks are compared. Papers differ silently here; results record it.

    size: "native" keeps every mask as it is and brings its map to that size; an int is both sides; or (height, width).
    map_interp: maps are resized bilinearly, half-pixel centres, without antialiasing.
    mask_rule: a resized mask pixel is anomalous when anomalous area covers more than half of it, or any of it, or its
        centre ("nearest", which loses thin defects and is there to repeat published numbers). A pixel is ignored when
        the same rule holds for ignored area, and it is not anomalous.
    crop: centre share of both sides that is compared, for methods that see 224 of 256 pixels only.
    """

    size: Literal["native"] | int | tuple[int, int] = "native"
    map_interp: Literal["bilinear"] = "bilinear"
    mask_rule: Literal["area>0.5", "area>0", "nearest"] = "area>0.5"
    crop: float = 1.0

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if self.size != "native" and not (len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
            raise WrongInput(f"policy size is {self.size!r}; give 'native', a side in pixels, or (height, width).")
        if self.map_interp != "bilinear":
            raise WrongInput(f"policy map_interp is {self.map_interp!r}; 'bilinear' is the only one.")
        if self.mask_rule not in ("area>0.5", "area>0", "nearest"):
            raise WrongInput(f"policy mask_rule is {self.mask_rule!r}; give 'area>0.5', 'area>0' or 'nearest'.")
        if not 0 < self.crop <= 1:
            raise WrongInput(f"policy crop is {self.crop!r}; give the share of each side that is kept, in (0, 1].")


NATIVE = PixelEvalPolicy()


def pair(
    values: Any, mask: Any, policy: PixelEvalPolicy = NATIVE, number: int = 0
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The scores and the truth of picture `number` on the grid of the policy, and the anomalous pixels its crop lost.

    Raises:
        WrongInput: the map is not (H, W) finite numbers, or the mask is not (H, W) of 0, 1 and 255.
    """
    scores, truth = checked_map(values, number), None if mask is None else as_truth(np.asarray(mask))
    if truth is not None and truth.ndim != 2:
        raise WrongInput(f"mask {number} has shape {truth.shape}; (height, width) was expected.")
    if policy.size == "native":
        size = scores.shape if truth is None else truth.shape
    else:
        size = policy.size if isinstance(policy.size, tuple) else (policy.size, policy.size)
    return _crop(resize_map(scores, size), None if truth is None else resize_truth(truth, size, policy), policy.crop)


def checked_map(values: Any, number: int) -> np.ndarray:
    """Map number `number` as (H, W) float32 or float64."""
    values = np.asarray(values)
    if values.ndim != 2 or not values.size:
        raise WrongInput(f"map {number} has shape {values.shape}; (height, width) was expected.")
    scores = as_float(values)
    if not np.isfinite(scores).all():
        raise WrongInput(f"map {number} holds NaN or infinite scores; repair the detector or leave this picture out.")
    return scores


def _crop(scores: np.ndarray, truth: np.ndarray | None, share: float) -> tuple[np.ndarray, np.ndarray | None, int]:
    if share == 1:
        return scores, truth, 0
    cut = []
    for side in scores.shape:
        kept = max(1, round(side * share))
        first = (side - kept) // 2
        cut.append(slice(first, first + kept))
    rows, columns = cut
    if truth is None:
        return scores[rows, columns], None, 0
    kept_truth = truth[rows, columns]
    return scores[rows, columns], kept_truth, int((truth == 1).sum() - (kept_truth == 1).sum())


def resize_map(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> size, bilinear with half-pixel centres and without antialiasing."""
    if scores.shape == tuple(size):
        return scores
    down, across = bilinear_matrix(scores.shape[0], size[0]), bilinear_matrix(scores.shape[1], size[1])
    return (down @ scores @ across.T).astype(scores.dtype)


def resize_truth(truth: np.ndarray, size: tuple[int, int], policy: PixelEvalPolicy) -> np.ndarray:
    """(H, W) uint8 of 0, 1, IGNORE -> size, by the mask rule of the policy."""
    if truth.shape == tuple(size):
        return truth
    if policy.mask_rule == "nearest":
        rows = (2 * np.arange(size[0]) + 1) * truth.shape[0] // (2 * size[0])
        columns = (2 * np.arange(size[1]) + 1) * truth.shape[1] // (2 * size[1])
        return truth[rows][:, columns]
    down, across = _overlaps(truth.shape[0], size[0]), _overlaps(truth.shape[1], size[1])
    bar = 0 if policy.mask_rule == "area>0" else truth.size / 2  # one target pixel has an area of H * W units
    found = np.zeros(size, np.uint8)
    found[down @ (truth == IGNORE) @ across.T > bar] = IGNORE
    found[down @ (truth == 1) @ across.T > bar] = 1
    return found


@lru_cache(maxsize=64)
def _overlaps(source: int, target: int) -> np.ndarray:
    """(target, source) lengths that cells share when the axis is source * target units long: whole numbers."""
    i, j = np.arange(target)[:, None], np.arange(source)[None, :]
    shared = np.minimum((i + 1) * source, (j + 1) * target) - np.maximum(i * source, j * target)
    return np.maximum(shared, 0).astype(np.float64)


def align(maps: Iterable[Any], masks: Iterable[Any], policy: PixelEvalPolicy = NATIVE) -> tuple[list[Pair], float]:
    """All pairs on the grid of the policy, in one precision, and the share of anomalous pixels that its crop lost.

    Raises:
        WrongInput: see `pair`; or maps and masks differ in number, or the native size of a picture cannot be known.
    """
    maps, masks = list(maps), list(masks)
    if len(maps) != len(masks):
        raise WrongInput(f"there are {len(maps)} maps and {len(masks)} masks; give one mask per map, None if good.")
    if policy.size == "native":
        sizes = [
            (np.shape(values), np.shape(mask)) for values, mask in zip(maps, masks, strict=True) if mask is not None
        ]
        resized = next((a for a, b in sizes if a != b), None)
        if resized and len(sizes) < len(maps):
            raise WrongInput(
                f"a map of {resized} differs in size from its mask, so one without mask does not tell the native size: "
                "give good pictures a mask of zeros, or set the size of the policy."
            )
    triples = [pair(values, mask, policy, n) for n, (values, mask) in enumerate(zip(maps, masks, strict=True))]
    common = np.result_type(*{scores.dtype for scores, _, _ in triples}) if triples else np.float32
    pairs: list[Pair] = [(scores.astype(common, copy=False), truth) for scores, truth, _ in triples]
    lost = sum(count for _, _, count in triples)
    kept = sum(int((truth == 1).sum()) for _, truth in pairs if truth is not None) if lost else 0
    return pairs, lost / (lost + kept) if lost else 0.0


def region_shares(
    anomalous: np.ndarray, connectivity: Literal[4, 8] = 8, min_region_area: int = 0
) -> tuple[np.ndarray, int]:
    """For the anomalous pixels of one picture in raster order, the share of its region that each is; number of regions.

    Regions smaller than `min_region_area` pixels count as no region, and their pixels have share 0.
    """
    labels, count = label(anomalous, connectivity)
    number = labels[anomalous]
    area = np.bincount(number, minlength=count + 1)
    counted = area >= max(min_region_area, 1)
    counted[0] = False
    return (counted / np.maximum(area, 1))[number], int(counted.sum())


def pixel_curve(
    pairs: Sequence[Pair],
    *,
    regions: bool = False,
    connectivity: Literal[4, 8] = 8,
    min_region_area: int = 0,
    limit: float = 1.0,
) -> Curve:
    """The exact curve of all pixels of all pictures.

    limit: false-positive rate up to which the curve is needed. Below 1, only the scores that lie before it are sorted.
    """
    empty = np.zeros(0, pairs[0][0].dtype if pairs else np.float32)
    anomalous, shares, count, negatives = [empty], [np.zeros(0)], 0, 0
    for scores, truth in pairs:
        if truth is None:
            negatives += scores.size
            continue
        bad = truth == 1
        negatives += int(np.count_nonzero(truth == 0))
        if not bad.any():
            continue
        anomalous.append(scores[bad])
        if regions:
            share, found = region_shares(bad, connectivity, min_region_area)
            shares.append(share)
            count += found
    found_scores, found_shares = np.concatenate(anomalous), np.concatenate(shares)
    positives = len(found_scores)
    chunks: Iterable[np.ndarray] = normal_chunks(pairs)
    if limit < 1:
        normals, lowest = highest(chunks, int(limit * negatives) + 1)
        before = found_scores >= lowest
        found_scores, found_shares, chunks = found_scores[before], found_shares[before], [normals]
    return trace(found_scores, chunks, positives, negatives, found_shares if regions else None, count)


def normal_chunks(pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
    """The normal scores of all pictures, as fresh arrays of about CHUNK elements."""
    return chunked(scores.ravel() if truth is None else scores[truth == 0] for scores, truth in pairs)


def chunked(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The elements of flat arrays, as fresh arrays of about CHUNK elements."""
    waiting: list[np.ndarray] = []
    total = 0
    for array in arrays:
        waiting.append(array)
        total += len(array)
        if total >= CHUNK:
            yield np.concatenate(waiting)
            waiting.clear()
            total = 0
    if waiting:
        yield np.concatenate(waiting)


def highest(chunks: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, float]:
    """The `count` highest scores together with all that tie with the lowest of them, and that lowest one.

    The first point of the curve beyond the limit is the group of ties of that lowest score, so it must be complete.
    The chunks are reordered in place.
    """
    kept, lowest = np.zeros(0, np.float32), -np.inf
    for chunk in chunks:
        fresh = chunk if lowest == -np.inf else chunk[chunk >= lowest]
        kept = np.concatenate([kept, fresh]) if len(kept) else fresh
        if len(kept) > count:
            cut = len(kept) - count
            kept.partition(cut)
            lowest = float(kept[cut])
            ties = np.count_nonzero(kept[:cut] == kept[cut])
            kept = kept[cut - ties :]
            kept[:ties] = lowest
    return kept, lowest


def image_labels(masks: Iterable[Any], labels: Iterable[Any] | None = None) -> np.ndarray:
    """(N,) bool: a picture is anomalous when its folder says so, or, without folder labels, when its mask does.

    labels: per picture 0, 1 or None for unknown. Where label and mask disagree, the label counts and a warning tells.
    """
    from_masks = [mask is not None and bool((as_truth(np.asarray(mask)) == 1).any()) for mask in masks]
    if labels is None:
        return np.array(from_masks, bool)
    given = list(labels)
    if len(given) != len(from_masks):
        raise WrongInput(f"there are {len(given)} labels and {len(from_masks)} masks; give one of each per picture.")
    differ = [i for i, (a, b) in enumerate(zip(given, from_masks, strict=True)) if a is not None and bool(a) != b]
    if differ:
        warnings.warn(
            f"label and mask disagree for {len(differ)} pictures, first at positions {differ[:5]}; the label is used.",
            stacklevel=2,
        )
    return np.array([b if a is None else bool(a) for a, b in zip(given, from_masks, strict=True)], bool)
