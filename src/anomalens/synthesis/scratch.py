"""A scratch: a long thin groove, bright on one side and dark on the other as light falls into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..datasets import _draw
from ..types import MakerCard
from ._maker import Change, Draft, Maker
from ._places import grey_of
from ._shapes import crop_to

CARD = MakerCard(
    title="Scratch",
    summary="a thin bent groove with a bright and a dark flank",
    source="",
    severity="contrast of the groove",
    levels=("structural",),
    needs="",
    extras=(),
    differs="ours",
    limits="the same under every light of a sample, while a real groove changes with the light",
)

THINNEST, THICKEST = 1.2, 3.0  # pixels of a groove where the short side has 256; grows with the picture
BEND = 0.15  # most that the groove leaves the straight line, as a share of its length
STRONGEST = 0.55  # change of the grey value at full severity, 1 is white
FLANK = 0.5  # strength of the second flank


@dataclass
class Scratch(Maker):
    """Its settings are those of every maker; size is the longer side of the box around the scratch."""

    size: tuple[float, float] = (0.15, 0.5)

    def draw(self, draft: Draft) -> Change:
        rng = draft.rng
        width = max(THINNEST, float(rng.uniform(THINNEST, THICKEST)) * min(draft.shape) / 256)
        groove, flank = strokes(draft.length, min(width, draft.length / 3), rng)
        box = draft.place(*groove.shape)
        # Away from what is there: dark in bright places, bright in dark ones.
        sign = -1 if float(grey_of(draft, box).mean()) > 0.5 else 1
        relief = sign * STRONGEST * draft.severity * (groove - FLANK * flank * (1 - groove))
        views = {name: part + relief[..., None] for name, part in draft.cut(box).items()}
        return Change(box, views, notes={"width": width})


def strokes(length: int, width: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (h, w) of a groove and of its other flank; the longer side of both together is `length` pixels."""
    angle = float(rng.uniform(0, math.pi))
    bend, s_bend = (float(b) for b in rng.uniform(-BEND, BEND, 2))
    along = np.linspace(-0.5, 0.5, 24)
    aside = bend * (1 - 4 * along**2) + s_bend * np.sin(2 * math.pi * along) / 2
    x = along * math.cos(angle) - aside * math.sin(angle)
    y = along * math.sin(angle) + aside * math.cos(angle)
    room = length - 2.5 * width  # for the path itself: the groove and its flank need the rest
    scale = max(room, 1.0) / max(np.ptp(x), np.ptp(y))
    side = length + 2 * math.ceil(width) + 2
    points = [
        (
            float(px - (x.min() + x.max()) / 2) * scale / side + 0.5,
            float(py - (y.min() + y.max()) / 2) * scale / side + 0.5,
        )
        for px, py in zip(x, y, strict=True)
    ]
    shift = 0.75 * width / side
    groove = _draw.Stencil(side).line([(px - shift / 2, py - shift / 2) for px, py in points], width / side).cover()
    flank = _draw.Stencil(side).line([(px + shift / 2, py + shift / 2) for px, py in points], width / side).cover()
    groove, flank = crop_to(np.maximum(groove, flank), groove, flank)
    return groove, flank


MAKER = Scratch
