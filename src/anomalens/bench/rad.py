"""RAD: the published figures of 11 methods on real pictures with free viewpoints, uneven light and blur.

    from anomalens.bench import rad
    rad.published("image", "bolt", "auroc")["PatchCore"]  # 93.7 percent

Source: Cheng, Cao, Chen and Shen 2024, RAD: A Dataset and Benchmark for Robustness of Image Anomaly Detection, IEEE CASE,
https://arxiv.org/abs/2406.07176, tables II (pictures) and III (pixels). Two other works share the name: a data set of
views from a robot's arm (arXiv 2410.00713) and a retrieval method (arXiv 2601.22763); these are not their figures.

One model learns from 213 normal pictures of an empty metal platform; four categories of foreign objects are four test
sets with the same 73 normal pictures. Nearly all test pictures are anomalous, so that chance alone reaches high AP and
max-F1: read them beside `floor`. `pro-rad` is the benchmark's own AUPRO, sampled at 200 thresholds and depending on the
scale of the scores; see `metrics.pro_rad`. The repository states no settings of the methods.
"""

from __future__ import annotations

import math

from ..datasets.rad import folder_of
from ..errors import unknown

METHODS = (
    "CFlow", "PyramidFlow", "RD", "RD++", "DSR", "CDO", "PatchCore", "GCPF", "SAA", "WinCLIP", "APRIL-GAN",
)  # fmt: skip
ZERO_SHOT = ("SAA", "WinCLIP", "APRIL-GAN")  # prompts and checkpoints are unknown: their figures inform, no more

TRAIN_NORMAL = 213  # pictures, shared by the four categories
TEST_NORMAL = 73  # likewise
TEST_ANOMALOUS = {"bolt": 327, "ribbon": 293, "sponge": 281, "tape": 323}

# Percent, in the order of METHODS. The row `mean` is printed in the source too; in cable ties the AUPRO of RD++, 95.6, is
# out of line with its AP and F1, but the printed mean agrees with it.
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "image": {
        "bolt": {
            "auroc": (92.0, 90.9, 95.4, 97.9, 96.4, 84.0, 93.7, 92.5, 75.3, 96.1, 88.8),
            "ap": (98.0, 97.5, 98.8, 99.4, 99.3, 92.9, 98.2, 98.0, 94.4, 99.1, 97.4),
            "f1max": (93.1, 93.2, 95.5, 97.9, 95.4, 91.7, 95.1, 94.2, 89.8, 95.0, 92.1),
        },
        "ribbon": {
            "auroc": (98.9, 94.1, 98.1, 97.5, 93.9, 93.6, 98.7, 97.0, 20.0, 98.6, 88.1),
            "ap": (99.7, 98.2, 99.3, 99.2, 98.3, 95.0, 99.5, 98.7, 70.2, 99.7, 96.4),
            "f1max": (99.2, 95.2, 99.3, 97.5, 93.9, 97.8, 99.3, 99.0, 89.1, 97.8, 92.2),
        },
        "sponge": {
            "auroc": (99.6, 82.8, 97.4, 97.9, 84.6, 96.4, 98.5, 95.0, 92.2, 99.8, 57.2),
            "ap": (99.9, 94.7, 98.8, 99.1, 95.9, 97.0, 99.3, 96.8, 97.9, 100.0, 86.2),
            "f1max": (99.1, 89.7, 99.3, 99.1, 90.9, 99.1, 99.3, 98.6, 93.8, 99.3, 88.5),
        },
        "tape": {
            "auroc": (99.9, 96.3, 99.3, 99.9, 99.7, 97.2, 99.2, 98.2, 44.6, 100.0, 97.3),
            "ap": (100.0, 99.1, 99.8, 100.0, 99.9, 97.6, 99.7, 99.4, 85.5, 100.0, 99.4),
            "f1max": (99.7, 96.0, 99.5, 99.7, 99.1, 99.4, 99.5, 99.5, 89.8, 99.8, 96.0),
        },
        "mean": {
            "auroc": (97.6, 91.0, 97.6, 98.3, 93.7, 92.8, 97.5, 95.7, 58.0, 98.6, 82.9),
            "ap": (99.4, 97.4, 99.2, 99.4, 98.4, 95.6, 99.2, 98.2, 87.0, 99.7, 94.9),
            "f1max": (97.8, 93.5, 98.4, 98.6, 94.8, 97.0, 98.3, 97.8, 90.6, 98.0, 92.2),
        },
    },
    "pixel": {
        "bolt": {
            "auroc": (96.2, 92.4, 99.1, 98.5, 95.6, 98.9, 97.8, 98.0, 54.7, 81.7, 98.7),
            "ap": (29.5, 8.4, 54.5, 49.4, 38.4, 44.7, 46.3, 45.5, 1.2, 9.1, 47.7),
            "f1max": (35.5, 16.6, 55.8, 51.8, 44.7, 51.2, 49.4, 48.8, 2.5, 15.9, 50.2),
            "pro-rad": (79.8, 75.4, 95.3, 92.6, 87.6, 94.1, 85.4, 89.2, 18.5, 42.5, 85.1),
        },
        "ribbon": {
            "auroc": (93.4, 87.1, 95.2, 95.4, 94.7, 97.6, 90.9, 96.5, 42.9, 77.1, 95.2),
            "ap": (29.8, 10.9, 29.2, 28.4, 46.4, 40.4, 16.1, 37.3, 1.9, 6.2, 30.7),
            "f1max": (36.6, 18.3, 36.6, 36.9, 48.9, 48.8, 27.8, 44.0, 4.5, 11.8, 39.4),
            "pro-rad": (69.5, 56.6, 84.7, 95.6, 81.3, 90.4, 63.3, 88.8, 11.9, 41.5, 63.5),
        },
        "sponge": {
            "auroc": (93.4, 49.6, 95.0, 86.6, 92.2, 99.0, 92.4, 88.8, 60.5, 70.7, 90.1),
            "ap": (55.1, 8.8, 54.9, 32.4, 71.1, 87.5, 61.5, 46.1, 12.2, 22.5, 49.8),
            "f1max": (57.7, 18.7, 62.6, 43.4, 67.5, 84.2, 62.8, 55.3, 21.1, 27.8, 51.9),
            "pro-rad": (71.9, 8.7, 84.5, 61.9, 82.8, 95.9, 75.0, 69.7, 22.6, 35.9, 60.3),
        },
        "tape": {
            "auroc": (98.5, 89.7, 99.0, 98.4, 99.2, 99.2, 98.9, 99.1, 50.6, 96.9, 99.3),
            "ap": (62.1, 31.5, 67.7, 58.9, 89.8, 73.6, 79.1, 82.4, 3.9, 58.3, 81.1),
            "f1max": (66.8, 40.4, 71.9, 64.9, 83.9, 74.2, 76.7, 79.1, 7.7, 58.5, 78.1),
            "pro-rad": (93.9, 72.1, 96.7, 94.4, 97.4, 97.1, 95.5, 97.2, 17.7, 87.1, 95.8),
        },
        "mean": {
            "auroc": (95.4, 79.7, 97.1, 94.7, 95.4, 98.7, 95.0, 95.6, 52.2, 81.6, 95.8),
            "ap": (44.1, 14.9, 51.6, 42.3, 61.4, 61.6, 50.8, 52.8, 4.8, 24.0, 52.3),
            "f1max": (49.2, 23.5, 56.7, 49.3, 61.3, 64.6, 54.2, 56.8, 9.0, 28.5, 54.9),
            "pro-rad": (78.8, 53.2, 90.3, 86.1, 87.3, 94.4, 79.8, 86.2, 17.7, 51.8, 76.2),
        },
    },
}

# Largest distance in points for "reproduced": (mean of the categories, one category); None where there is no rule.
BANDS: dict[tuple[str, str], tuple[float, float | None]] = {
    ("image", "auroc"): (2.0, 4.0),
    ("pixel", "auroc"): (1.5, None),
    ("pixel", "ap"): (6.0, None),
    ("pixel", "pro-rad"): (5.0, None),
}


def published(level: str, category: str, metric: str) -> dict[str, float]:
    """One row of the tables, in percent by method; higher is better.

    Args:
        level: "image" or "pixel".
        category: bolt, ribbon (also called cable_tie), sponge, tape, or mean.
        metric: auroc, ap, f1max; for pixels also pro-rad.

    Raises:
        UnknownName: no such level, category or metric.
    """
    if level not in PUBLISHED:
        raise unknown("level of RAD", level, PUBLISHED)
    rows = PUBLISHED[level]
    folder = folder_of(category).lower()
    if folder not in rows:
        raise unknown("category of RAD", category, rows)
    if metric not in rows[folder]:
        raise unknown(f"{level} metric of RAD", metric, rows[folder])
    return dict(zip(METHODS, rows[folder][metric], strict=True))


def floor(category: str, metric: str) -> float:
    """What constant picture scores reach in a category, as a share in [0, 1]: the level of chance.

    Raises:
        UnknownName: no such category or picture metric.
    """
    folder = folder_of(category).lower()
    if folder not in TEST_ANOMALOUS:
        raise unknown("category of RAD", category, TEST_ANOMALOUS)
    share = TEST_ANOMALOUS[folder] / (TEST_ANOMALOUS[folder] + TEST_NORMAL)
    floors = {"auroc": 0.5, "ap": share, "f1max": 2 * share / (1 + share)}
    if metric not in floors:
        raise unknown("image metric of RAD", metric, floors)
    return floors[metric]


def above_chance(value: float, floor: float) -> float:
    """(value - floor) / (1 - floor): 0 at the level of chance, 1 when perfect, negative below chance; shares in [0, 1]."""
    return (value - floor) / (1 - floor) if floor < 1 else math.nan


def reproduced(level: str, category: str, metric: str, method: str, value: float) -> bool | None:
    """Whether a figure in percent is close enough to the published one to be called reproduced.

    Returns:
        None where there is nothing to say: zero-shot methods, whose prompts are unknown, and rows without a rule.

    Raises:
        UnknownName: no such level, category, metric or method.
    """
    row = published(level, category, metric)
    if method not in row:
        raise unknown("method of RAD", method, row)
    of_mean, of_category = BANDS.get((level, metric), (None, None))
    band = of_mean if category.lower() == "mean" else of_category
    if method in ZERO_SHOT or band is None:
        return None
    return abs(value - row[method]) <= band + 1e-9
