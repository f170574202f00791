"""The metrics written as slowly and obviously as possible: one pass over everything for every threshold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def components(mask: np.ndarray, connectivity: int = 8) -> list[set[tuple[int, int]]]:
    """Flood fill from every pixel that no component holds yet, in raster order."""
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    if connectivity == 8:
        steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    for y, x in sorted(left):
        if (y, x) not in left:
            continue
        component, waiting = set(), [(y, x)]
        left.discard((y, x))
        while waiting:
            cy, cx = waiting.pop()
            component.add((cy, cx))
            for dy, dx in steps:
                if (cy + dy, cx + dx) in left:
                    left.discard((cy + dy, cx + dx))
                    waiting.append((cy + dy, cx + dx))
        found.append(component)
    return found


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    wins = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(wins))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    total, recall = 0.0, 0.0
    for t in sorted(set(scores.tolist()), reverse=True):
        called = scores >= t
        tp = int((called & (labels == 1)).sum())
        total += (tp / (labels == 1).sum() - recall) * tp / called.sum()
        recall = tp / (labels == 1).sum()
    return total


def best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    best = (-1.0, 0.0)
    for t in sorted(set(scores.tolist()), reverse=True):
        called = scores >= t
        f1 = 2 * (called & (labels == 1)).sum() / (called.sum() + (labels == 1).sum())
        if f1 > best[0]:
            best = (float(f1), t)
    return best


def best_iou(scores: np.ndarray, labels: np.ndarray) -> float:
    bad = labels == 1
    return max(float((bad & (scores >= t)).sum() / (bad | (scores >= t)).sum()) for t in set(scores.tolist()))


def fpr_at_recall(scores: np.ndarray, labels: np.ndarray, recall: float) -> float:
    bad, fine = scores[labels == 1], scores[labels == 0]
    return min(float((fine >= t).mean()) for t in set(scores.tolist()) if (bad >= t).mean() >= recall)


def recall_at_fpr(scores: np.ndarray, labels: np.ndarray, fpr: float) -> float:
    bad, fine = scores[labels == 1], scores[labels == 0]
    return max([0.0, *(float((bad >= t).mean()) for t in set(scores.tolist()) if (fine >= t).mean() <= fpr)])


def area(points: list[tuple[float, float]], limit: float) -> float:
    """Trapezoids under (x, y) from x = 0 to the limit, where y is interpolated; divided by the limit."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:
            total += (limit - x0) * (y0 + (y0 + (y1 - y0) * (limit - x0) / (x1 - x0))) / 2
            break
        total += (x1 - x0) * (y0 + y1) / 2
    return total / limit


def aupro(maps, masks, limit: float, connectivity: int = 8, min_region_area: int = 0) -> float:
    regions = [
        np.array([maps[n][yx] for yx in component])
        for n, mask in enumerate(masks)
        if mask is not None
        for component in components(mask == 1, connectivity)
        if len(component) >= min_region_area
    ]
    normal = np.concatenate(
        [m.ravel() if k is None else m[np.asarray(k) == 0] for m, k in zip(maps, masks, strict=True)]
    )
    thresholds = sorted({float(v) for m in maps for v in m.ravel()}, reverse=True)
    points = [(float((normal >= t).mean()), float(np.mean([(r >= t).mean() for r in regions]))) for t in thresholds]
    return area([(0.0, 0.0), *points], limit)


def spro(maps, channels, saturation, limit: float, only: int | None = None) -> float:
    """saturation(area, value) -> pixels; only: the defect type that counts."""
    defects, normal = [], []
    for values, stack in zip(maps, channels, strict=True):
        stack = np.zeros((0, *values.shape), int) if stack is None else stack
        normal.append(values[~(stack != 0).any(axis=0)])
        defects += [
            (values[c != 0], saturation(int((c != 0).sum()), int(c.max())))
            for c in stack
            if (c != 0).any() and only in (None, c.max())
        ]
    fine = np.concatenate(normal)
    points = [(0.0, 0.0)]
    for t in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        overlap = [min((inside >= t).sum() / size, 1.0) for inside, size in defects]
        points.append((float((fine >= t).mean()), float(np.mean(overlap))))
    return area(points, limit)


def sampled_points(maps, masks, steps: int = 200) -> list[tuple[float, float]]:
    """(FPR, PRO) at even thresholds, `map > t`, as section 3 of the RAD specification words it."""
    low, high = float(min(m.min() for m in maps)), float(max(m.max() for m in maps))
    points = []
    for t in np.arange(low, high, (high - low) / steps):
        covered, false, normal = [], 0, 0
        for values, mask in zip(maps, masks, strict=True):
            called = values.astype(np.float64) > t
            covered += [np.mean([called[yx] for yx in component]) for component in components(mask == 1)]
            false += (called & (mask == 0)).sum()
            normal += (mask == 0).sum()
        points.append((float(false / normal), float(np.mean(covered))))
    return points


def pro_rad(maps, masks) -> float:
    kept = [(f, p) for f, p in sampled_points(maps, masks) if f < 0.3]
    f, p = np.array(kept).T
    f = (f - f.min()) / (f.max() - f.min())
    return float(sum((f[i] - f[i + 1]) * (p[i] + p[i + 1]) / 2 for i in range(len(f) - 1)))


def pro_rd(maps, masks) -> float:
    values = []
    for m, k in zip(maps, masks, strict=True):
        if (k == 1).any():
            f, p = np.array([(f, p) for f, p in sampled_points([m], [k]) if f < 0.3]).T
            f = f / f.max()
            values.append(sum((f[i] - f[i + 1]) * (p[i] + p[i + 1]) / 2 for i in range(len(f) - 1)))
    return float(np.mean(values))
