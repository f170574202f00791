"""Losses against slow numpy references."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomalens.parts.losses import dice, focal  # noqa: E402


@pytest.fixture
def drawn():
    """Probabilities (B, 2, H, W) of the two classes, and masks (B, H, W)."""
    rng = np.random.default_rng(0)
    abnormal = rng.random((2, 4, 3))
    return np.stack([1 - abnormal, abnormal], axis=1), (rng.random((2, 4, 3)) > 0.6).astype(float)


@pytest.mark.parametrize(("gamma", "smooth"), [(2.0, 1e-5), (0.0, 1e-5), (4.0, 0.1)])
def test_focal(drawn, gamma, smooth):
    probabilities, masks = drawn
    terms = []
    for b, y, x in np.ndindex(masks.shape):
        target = min(max(masks[b, y, x], smooth), 1 - smooth)
        p = (1 - target) * probabilities[b, 0, y, x] + target * probabilities[b, 1, y, x] + smooth
        terms.append(-((1 - p) ** gamma) * math.log(p))
    found = focal(torch.tensor(probabilities), torch.tensor(masks), gamma=gamma, smooth=smooth)
    assert found.item() == pytest.approx(np.mean(terms))


def test_focal_of_one_score_for_each_picture():
    found = focal(torch.tensor([[0.2, 0.8], [0.9, 0.1]]), torch.tensor([1, 0]))
    wanted = np.mean([-(0.2**2) * math.log(0.8), -(0.1**2) * math.log(0.9)])
    assert found.item() == pytest.approx(wanted, abs=1e-5)


def test_focal_stays_finite_and_prefers_the_truth(drawn):
    _, masks = (torch.tensor(x) for x in drawn)
    right, wrong = torch.stack([1 - masks, masks], 1), torch.stack([masks, 1 - masks], 1)
    assert 0 <= abs(focal(right, masks)) < 1e-3 < focal(wrong, masks)
    assert torch.isfinite(focal(wrong, masks))


@pytest.mark.parametrize("reduction", ["image", "row"])
@pytest.mark.parametrize("smooth", [1.0, 0.1])
def test_dice(drawn, reduction, smooth):
    probabilities, masks = drawn[0][:, 1], drawn[1]
    parts = []
    for p, g in zip(probabilities, masks, strict=True):
        for a, b in zip(p, g, strict=True) if reduction == "row" else [(p, g)]:
            parts.append(1 - (2 * (a * b).sum() + smooth) / (a.sum() + b.sum() + smooth))
    found = dice(torch.tensor(probabilities), torch.tensor(masks), reduction=reduction, smooth=smooth)
    assert found.item() == pytest.approx(np.mean(parts))


def test_dice_is_zero_for_the_truth_and_takes_masks_of_integers(drawn):
    masks = torch.tensor(drawn[1])
    assert dice(masks, masks.long()).item() == pytest.approx(0)
    assert dice(1 - masks, masks).item() > 0.5
    assert dice(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).item() == 0  # nothing there, nothing found


def test_gradients_pull_towards_the_truth(drawn):
    abnormal = torch.tensor(drawn[0][:, 1], requires_grad=True)
    masks = torch.tensor(drawn[1])
    loss = focal(torch.stack([1 - abnormal, abnormal], 1), masks) + dice(abnormal, masks)
    loss.backward()
    assert (abnormal.grad[masks > 0] < 0).all()
    assert (abnormal.grad[masks == 0] > 0).all()
