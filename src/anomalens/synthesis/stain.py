"""A stain: something spilt that colours the surface, darker at its edge where it dried last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import WrongInput
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend
from ._places import grey_of
from ._shapes import blob

CARD = MakerCard(
    title="Stain",
    summary="a coloured spot through which the surface shows, with a dried edge",
    source="",
    severity="strength of the colour",
    levels=("structural",),
    needs="",
    extras=(),
    differs="ours",
    limits="in a grey picture only darker or lighter; no shine and no thickness",
)

DARK = 0.25  # mean grey value below which a stain lightens instead
PALEST, DEEPEST = 0.3, 0.85  # share of the light of a channel that is missing at full severity
PALE = 0.35  # added light at full severity in a dark place
MIDDLE = 0.75  # strength in the middle of the stain; 1 at its edge


@dataclass
class Stain(Maker):
    """colour: "any" draws a colour, "neutral" darkens or lightens all channels alike.

    The other settings are those of every maker.
    """

    colour: Literal["any", "neutral"] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colour not in ("any", "neutral"):
            raise WrongInput(f"stain setting colour is 'any' or 'neutral'; got {self.colour!r}.")

    def draw(self, draft: Draft) -> Change:
        rng = draft.rng
        cover = blob(draft.length, rng, rough=0.1)
        box = draft.place(*cover.shape)
        strength = cover * (MIDDLE + (1 - MIDDLE) * edge(cover))
        tint = rng.uniform(PALEST, DEEPEST, 3).astype(np.float32)
        tint[rng.integers(3)] = DEEPEST  # one channel always shows it well
        if self.colour == "neutral":
            tint[:] = tint.mean()
        under = draft.cut(box)
        lightens = float(grey_of(draft, box).mean()) < DARK
        over = {name: part + PALE * tint if lightens else part * (1 - tint) for name, part in under.items()}
        return Change(
            box, blend(under, over, draft.severity * strength), notes={"tint": [round(float(t), 3) for t in tint]}
        )


def edge(cover: np.ndarray) -> np.ndarray:
    """(h, w) in [0, 1]: 1 at the outline, falling to 0 an eighth of the longer side further in."""
    reach = max(1, max(cover.shape) // 8)
    inner = np.pad(cover > 0.5, 1)
    depth = np.zeros(inner.shape, np.float32)
    for _ in range(reach):
        depth += inner
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return 1 - depth[1:-1, 1:-1] / reach


MAKER = Stain
