"""A patch out of focus: grease on the lens, a smeared print, a worn surface."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import WrongInput
from ..types import MakerCard
from ._maker import Change, Draft, Maker, blend
from ._places import busiest, softened, widened
from ._shapes import blob

CARD = MakerCard(
    title="Blur",
    summary="a patch whose detail is smeared",
    source="",
    severity="share of the detail that is lost",
    levels=("structural",),
    needs="",
    extras=(),
    differs="ours",
    limits="shows nothing where the picture is even; of several drawn places the one with the most detail is taken",
)

LEAST = 1.5  # pixels, of the blur


@dataclass
class Blur(Maker):
    """radius: standard deviation of the blur, as a share of the picture's short side, 0 to 0.2; at least 1.5 pixels.

    The other settings are those of every maker.
    """

    radius: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.radius <= 0.2:
            raise WrongInput(
                f"blur setting radius is a share of the picture's short side, 0 to 0.2; got {self.radius:g}."
            )

    def draw(self, draft: Draft) -> Change:
        cover = blob(draft.length, draft.rng)
        box = busiest(draft, *cover.shape)
        sigma = max(LEAST, self.radius * min(draft.shape))
        wide, inner = widened(box, round(3 * sigma), draft.shape)
        blurred = {name: softened(part, sigma)[inner] for name, part in draft.cut(wide).items()}
        return Change(box, blend(draft.cut(box), blurred, draft.severity * cover), grain=round(2 * sigma))


MAKER = Blur
