"""Random maps and masks, small enough for the slow references."""

from __future__ import annotations

import numpy as np


def pictures(seed: int, count: int = 4, side: tuple[int, int] = (14, 17), levels: int = 0, shift: float = 1.0):
    """Maps (float32) and uint8 masks of 0 and 1, the first one good; levels: distinct scores per unit / 4, 0 free."""
    rng = np.random.default_rng(seed)
    masks = (rng.random((count, *side)) < 0.08).astype(np.uint8)
    for mask in masks[1:]:
        y, x = rng.integers(0, side[0] - 5), rng.integers(0, side[1] - 5)
        mask[y : y + 4, x : x + 5] = 1
    masks[0] = 0
    maps = rng.normal(size=masks.shape) + shift * masks
    if levels:
        maps = np.round(maps * levels / 4)
    return maps.astype(np.float32), masks
