"""TN3K, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import all_anomalous

CARD = DatasetCard(
    title="TN3K",
    summary="Ultrasound pictures of thyroid nodules, the test part; every picture shows one.",
    home="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
    citation="Gong, Chen, Chen, Li, Li, Chen: Thyroid region prior guided attention for ultrasound segmentation of "
    "thyroid nodules, Computers in Biology and Medicine 155, 2023, https://doi.org/10.1016/j.compbiomed.2022.106389",
    licence="stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{test-image, test-mask}/<number>.jpg, or images and masks",
    masks=True,
    pictures=(0, 614),
    categories=("tn3k",),
)

FOLDERS = (("test-image", "test-mask"), ("images", "masks"))  # of pictures and of masks; the first that are there


@dataclass(frozen=True)
class TN3K:
    """The whole set; every picture shows a nodule, so image figures are undefined and there is nothing to train on."""

    root: str | Path

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        """No samples: none is normal."""
        return []

    def test(self) -> list[Sample]:
        return all_anomalous("TN3K", self.root, CARD.categories[0], FOLDERS, "nodule")


DATASET = TN3K
