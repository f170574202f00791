"""Kvasir-SEG, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import all_anomalous

CARD = DatasetCard(
    title="Kvasir-SEG",
    summary="Pictures from colonoscopies with the polyp masked; every picture shows one.",
    home="https://datasets.simula.no/kvasir-seg/",
    citation="Jha, Smedsrud, Riegler, Halvorsen, de Lange, Johansen, Johansen: Kvasir-SEG: A Segmented Polyp Dataset, "
    "MMM 2020, https://arxiv.org/abs/1911.07069",
    licence="for research and education",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{images, masks}/<name>.jpg",
    masks=True,
    pictures=(0, 1000),
    categories=("kvasir",),
)

FOLDERS = (
    ("images", "masks"),
    ("Kvasir-SEG/images", "Kvasir-SEG/masks"),
)  # of pictures and of masks; the first that are there


@dataclass(frozen=True)
class Kvasir:
    """The whole set; every picture shows a polyp, so image figures are undefined and there is nothing to train on."""

    root: str | Path

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        """No samples: none is normal."""
        return []

    def test(self) -> list[Sample]:
        return all_anomalous("Kvasir", self.root, CARD.categories[0], FOLDERS, "polyp")


DATASET = Kvasir
