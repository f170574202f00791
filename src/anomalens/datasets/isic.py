"""ISIC 2016, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import all_anomalous

CARD = DatasetCard(
    title="ISIC 2016",
    summary="Dermoscopic pictures of skin lesions, the test part of the segmentation task; every picture shows one.",
    home="https://challenge.isic-archive.com/data/#2016",
    citation="Gutman, Codella, Celebi, Helba, Marchetti, Mishra, Halpern: Skin Lesion Analysis toward Melanoma "
    "Detection, 2016, https://arxiv.org/abs/1605.01397",
    licence="CC0 1.0",
    commercial=True,
    views=("image",),
    levels=("structural",),
    layout="<root>/{ISBI2016_ISIC_Part1_Test_Data/<name>.jpg, "
    "ISBI2016_ISIC_Part1_Test_GroundTruth/<name>_Segmentation.png}, or images and masks",
    masks=True,
    pictures=(0, 379),
    categories=("isic",),
)

FOLDERS = (
    ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    ("images", "masks"),
)  # of pictures and of masks; the first that are there


@dataclass(frozen=True)
class ISIC:
    """The whole set; every picture shows a lesion, so image figures are undefined and there is nothing to train on."""

    root: str | Path

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        """No samples: none is normal."""
        return []

    def test(self) -> list[Sample]:
        return all_anomalous("ISIC", self.root, CARD.categories[0], FOLDERS, "lesion", ("_segmentation", "", "_mask"))


DATASET = ISIC
