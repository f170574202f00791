"""Losses of maps of probabilities, for tensors; gradients pass through."""

from __future__ import annotations

from typing import Any, Literal


def focal(probabilities: Any, target: Any, *, gamma: float = 2.0, smooth: float = 1e-5) -> Any:
    """Mean of -(1 - p)^gamma log p of the true class, over all places; 0 is perfect.

    probabilities: (B, 2, ...) in [0, 1], channel 0 normal, 1 abnormal. target: (B, ...) of 0 and 1. smooth: the target
    is kept this far from 0 and 1, and p from 0.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """
    abnormal = target.to(probabilities.dtype).clamp(smooth, 1 - smooth)
    p = (1 - abnormal) * probabilities[:, 0] + abnormal * probabilities[:, 1] + smooth
    return (-((1 - p) ** gamma) * p.log()).mean()


def dice(probabilities: Any, target: Any, *, reduction: Literal["image", "row"] = "image", smooth: float = 1.0) -> Any:
    """1 - (2 sum p g + smooth) / (sum p + sum g + smooth), mean over pictures, or over the rows of pixels; 0 is perfect.

    probabilities, target: (B, H, W). Row by row is what code that squeezes a batch of one picture computes.

    Source: Milletari et al. 2016, https://arxiv.org/abs/1606.04797
    """
    over = (-2, -1) if reduction == "image" else (-1,)
    target = target.to(probabilities.dtype)
    both = (probabilities * target).sum(over)
    return (1 - (2 * both + smooth) / (probabilities.sum(over) + target.sum(over) + smooth)).mean()
