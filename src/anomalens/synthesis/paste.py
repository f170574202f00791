"""The plainest maker: an ellipse filled with a drawn texture. What generators and detectors are tried out with.

from anomalens import synthesis
sample = synthesis.create("paste")(normal, rng)
"""

from __future__ import annotations

from dataclasses import dataclass

from ..images import to_float
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend
from ._shapes import ellipse
from .perlin import drawn_texture

CARD = MakerCard(
    title="Paste",
    summary="an ellipse filled with a drawn texture",
    source="",
    severity="opacity of the texture",
    levels=("structural",),
    needs="",
    extras=(),
    differs="ours",
    limits="a sharp outline and a texture that occurs nowhere else: easier to find than most real defects",
)


@dataclass
class Paste(Maker):
    """See the card; its settings are those of every maker."""

    def draw(self, draft: Draft) -> Change:
        cover = ellipse(draft.length, draft.rng)
        box = draft.place(*cover.shape)
        texture = to_float(drawn_texture(cover.shape, draft.rng))
        under = draft.cut(box)
        return Change(box, blend(under, dict.fromkeys(under, texture), draft.severity * cover))


MAKER = Paste
