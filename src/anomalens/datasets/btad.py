"""BTAD (beanTech), read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import good_and_defects, with_train

CARD = DatasetCard(
    title="BTAD",
    summary="Three products from a factory, with defects of body and surface; pictures of different sizes and formats.",
    home="https://avires.dimi.uniud.it/papers/btad/btad.zip",
    citation="Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: A Vision Transformer Network for Image Anomaly "
    "Detection and Localization, ISIE 2021, https://arxiv.org/abs/2104.10036",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{train/ok, test/{ok, ko}, ground_truth/ko}",
    masks=True,
    pictures=(1799, 741),
    categories=("01", "02", "03"),
)


@dataclass(frozen=True)
class BTAD:
    """One product; masks are named as their picture, in whatever format."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/ok")

    def train(self) -> list[Sample]:
        return good_and_defects("BTAD", self.root, self.category, "train", good="ok")

    def test(self) -> list[Sample]:
        return good_and_defects("BTAD", self.root, self.category, "test", good="ok")


DATASET = BTAD
