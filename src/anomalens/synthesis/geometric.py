"""A part of the thing that is missing, there twice, or in the wrong place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import WrongInput
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend, box_at
from ._places import healed, require_noticed, standing_out
from ._shapes import blob

CARD = MakerCard(
    title="Geometric",
    summary="a part that is missing, duplicated or displaced",
    source="",
    severity="missing: how far the part has vanished; duplicated: opacity of the second one; displaced: how far it moved, "
    "up to its own size",
    levels=("structural", "semantic"),
    needs="",
    extras=(),
    differs="ours",
    limits="no part is recognised: of several drawn places the one that differs most from its surroundings is taken; the "
    "hole is filled from the most similar surroundings, which shows in pictures without a repeating ground",
)

KINDS = ("missing", "duplicated", "displaced")


@dataclass
class Geometric(Maker):
    """kind: missing, duplicated, displaced, or any of the three, drawn each time.

    The other settings are those of every maker.
    """

    size: tuple[float, float] = (0.15, 0.4)
    kind: Literal["any", "missing", "duplicated", "displaced"] = "any"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("any", *KINDS):
            raise WrongInput(f"geometric setting kind is 'any' or one of {KINDS}; got {self.kind!r}.")

    def draw(self, draft: Draft) -> Change:
        drawn = KINDS[draft.rng.integers(len(KINDS))]
        kind = drawn if self.kind == "any" else self.kind
        return {"missing": missing, "duplicated": duplicated, "displaced": displaced}[kind](draft)


def missing(draft: Draft) -> Change:
    cover = blob(draft.length, draft.rng)
    box = standing_out(draft, cover)
    filled = healed(draft, box, cover > 0)
    under = draft.cut(box)
    require_noticed(under, filled, cover)
    return Change(box, blend(under, filled, draft.severity * cover), 4, {"kind": "missing"})


def duplicated(draft: Draft) -> Change:
    cover = blob(draft.length, draft.rng)
    source, box = standing_out(draft, cover), draft.place(*cover.shape)
    under, part = draft.cut(box), draft.cut(source)
    require_noticed(under, part, cover)
    mixed = blend(under, part, draft.severity * cover)
    return Change(box, mixed, 4, {"kind": "duplicated", "from": [source[0].start, source[1].start]})


def displaced(draft: Draft) -> Change:
    """The part and its way fill the length asked for: the further it moves, the smaller it is."""
    rng = draft.rng
    part = max(2, round(draft.length / (1 + draft.severity)))
    way = max(1, draft.length - part)
    cover = blob(part, rng)
    axis, back = int(cover.shape[1] > cover.shape[0]), bool(rng.integers(2))  # along its longer side
    shift = (way, 0) if axis == 0 else (0, way)
    whole = np.zeros((cover.shape[0] + shift[0], cover.shape[1] + shift[1]), np.float32)
    corners = [(0, 0), shift]
    old, new = (box_at(*corner, *cover.shape) for corner in (corners[::-1] if back else corners))
    before, after = whole.copy(), whole
    before[old], after[new] = cover, cover
    box = standing_out(draft, before)
    filled = healed(draft, box, before > 0)
    under = draft.cut(box)
    require_noticed(under, filled, before)
    emptied = blend(under, filled, before)
    moved = {name: np.zeros_like(part) for name, part in under.items()}
    for name, whole_view in under.items():
        moved[name][new] = whole_view[old]
    angle = math.degrees(math.atan2(new[0].start - old[0].start, new[1].start - old[1].start))
    return Change(box, blend(emptied, moved, after), 4, {"kind": "displaced", "way": way, "direction": round(angle)})


MAKER = Geometric
