"""A piece of the picture, cut out and pasted somewhere else: a rectangle (normal) or a thin turned one (scar)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..datasets import _draw
from ..errors import WrongInput
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend
from ._places import elsewhere, require_noticed
from ._shapes import fitted

CARD = MakerCard(
    title="CutPaste",
    summary="a rectangle or a thin scar cut out of the same picture and pasted elsewhere, its colours jittered",
    source="CutPaste, Li et al. 2021, https://arxiv.org/abs/2104.04015",
    severity="opacity of what is pasted",
    levels=("structural",),
    needs="",
    extras=(),
    differs="the size asked for decides (paper: 2 to 15 % of the area; scars of 10 to 25 x 2 to 16 pixels); the piece "
    "may be translucent; hue is not jittered; the outline of a scar is turned, what is in it is not",
    limits="in an even picture only the jitter of the colours shows",
)

ASPECT = 3.3  # longest to shortest side of a rectangle, at most
SCAR = (4.0, 12.0)  # length to width of a scar
TURN = 45.0  # degrees: a scar is turned by up to this, either way
JITTER = 0.1  # brightness, contrast and saturation change by up to this share


@dataclass
class CutPaste(Maker):
    """kind: normal, scar, or any of the two, drawn each time.

    The other settings are those of every maker.
    """

    kind: Literal["any", "normal", "scar"] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("any", "normal", "scar"):
            raise WrongInput(f"cutpaste setting kind is 'any', 'normal' or 'scar'; got {self.kind!r}.")

    def draw(self, draft: Draft) -> Change:
        rng = draft.rng
        drawn = ("normal", "scar")[rng.integers(2)]
        kind = drawn if self.kind == "any" else self.kind
        cover = rectangle(draft.length, rng) if kind == "normal" else scar(draft.length, rng)
        box = draft.place(*cover.shape)
        source = elsewhere(box, draft.shape, rng)
        gains = rng.uniform(1 - JITTER, 1 + JITTER, 3).tolist()
        pasted = {name: jittered(part, *gains) for name, part in draft.cut(source).items()}
        under = draft.cut(box)
        require_noticed(under, pasted, cover)
        mixed = blend(under, pasted, draft.severity * cover)
        return Change(box, mixed, grain=4, notes={"kind": kind, "from": [source[0].start, source[1].start]})


def rectangle(length: int, rng: np.random.Generator) -> np.ndarray:
    """All covered, (length, shorter) or (shorter, length)."""
    aspect = math.exp(rng.uniform(0, math.log(ASPECT)))
    sides = (length, max(2, round(length / aspect)))
    return np.ones(sides if rng.random() < 0.5 else sides[::-1], np.float32)


def scar(length: int, rng: np.random.Generator) -> np.ndarray:
    """A thin rectangle with rounded corners, turned by up to 45 degrees from lying or standing."""
    size = max(64, min(length, 512))
    aspect, turn = rng.uniform(*SCAR), math.radians(rng.uniform(-TURN, TURN)) + (math.pi / 2) * rng.integers(2)
    u, v = _draw.Pose(angle=float(turn)).local(size)
    half = 0.34
    return fitted(_draw.inside(_draw.rounded_box(u, v, (half, half / float(aspect)), 0.01), size), length)


def jittered(part: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """(h, w, 3) in [0, 1] with its grey value, its spread about the mean and its colourfulness multiplied."""
    part = part * np.float32(brightness)
    mean = part.mean()
    part = mean + (part - mean) * np.float32(contrast)
    grey = part.mean(axis=2, keepdims=True)
    return np.clip(grey + (part - grey) * np.float32(saturation), 0, 1)


MAKER = CutPaste
