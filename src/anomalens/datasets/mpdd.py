"""MPDD (metal parts), read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import good_and_defects, with_train

CARD = DatasetCard(
    title="MPDD",
    summary="Six kinds of painted metal parts in changing positions, light and background, some of them several in a "
    "picture.",
    home="https://github.com/stepanje/MPDD",
    citation="Jezek, Jonak, Burget, Dvorak, Skotak: Deep learning-based defect detection of metal parts: evaluating "
    "current methods in complex conditions, ICUMT 2021, https://doi.org/10.1109/ICUMT54235.2021.9631567",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{train/good, test/<defect>, ground_truth/<defect>}",
    masks=True,
    pictures=(888, 458),
    categories=("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
)


@dataclass(frozen=True)
class MPDD:
    """One kind of part."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/good")

    def train(self) -> list[Sample]:
        return good_and_defects("MPDD", self.root, self.category, "train")

    def test(self) -> list[Sample]:
        return good_and_defects("MPDD", self.root, self.category, "test")


DATASET = MPDD
