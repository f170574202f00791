"""A disturbance in a band of frequencies: ripples laid over the surface, or the weave of a texture taken out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import WrongInput
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend
from ._places import busiest
from ._shapes import blob

CARD = MakerCard(
    title="Frequency",
    summary="a patch in which a band of frequencies is added (ripples) or removed (lost weave)",
    source="",
    severity="amplitude of the band that is added, or share of it that is removed",
    levels=("structural",),
    needs="",
    extras=(),
    differs="ours",
    limits="removing shows nothing where the picture has no detail in the band: such draws are repeated",
)

SHORTEST, LONGEST = 3.0, 16.0  # pixels per period in the middle of the band; at most half the patch
OCTAVE = 0.5  # half width of the band
STRONGEST = 0.16  # standard deviation of the added band at full severity, 1 is white


@dataclass
class Frequency(Maker):
    """kind: add, remove, or any of the two, drawn each time.

    The other settings are those of every maker.
    """

    size: tuple[float, float] = (0.15, 0.4)
    kind: Literal["any", "add", "remove"] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("any", "add", "remove"):
            raise WrongInput(f"frequency setting kind is 'any', 'add' or 'remove'; got {self.kind!r}.")

    def draw(self, draft: Draft) -> Change:
        rng = draft.rng
        kind = ("add", "remove")[rng.integers(2)] if self.kind == "any" else self.kind
        cover = blob(draft.length, rng)
        box = busiest(draft, *cover.shape) if kind == "remove" else draft.place(*cover.shape)
        longest = max(SHORTEST, min(LONGEST, draft.length / 2))
        period = math.exp(rng.uniform(math.log(SHORTEST), math.log(longest)))
        band = band_of(cover.shape, period)
        under = draft.cut(box)
        if kind == "add":
            ripples = within_band(rng.standard_normal((*cover.shape, 1)).astype(np.float32), band)
            ripples *= STRONGEST / max(float(ripples.std()), 1e-6)
            over = {name: part + ripples for name, part in under.items()}
        else:
            over = {name: part - within_band(part, band) for name, part in under.items()}
        notes = {"kind": kind, "period": round(period, 2)}
        return Change(box, blend(under, over, draft.severity * cover), grain=math.ceil(period), notes=notes)


def band_of(shape: tuple[int, ...], period: float) -> np.ndarray:
    """(h, w // 2 + 1) weights in [0, 1] of the frequencies of rfft2: 1 / period, half an octave either way."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    octaves = np.log2(np.maximum(frequency, 1e-6) * period)
    return np.exp(-0.5 * (octaves / OCTAVE) ** 2).astype(np.float32)


def within_band(part: np.ndarray, band: np.ndarray) -> np.ndarray:
    """The share of (h, w, c) that lies in the band; its mean is 0."""
    return np.fft.irfft2(np.fft.rfft2(part, axes=(0, 1)) * band[..., None], part.shape[:2], (0, 1)).astype(np.float32)


MAKER = Frequency
