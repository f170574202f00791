"""CVC-ClinicDB, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import all_anomalous

CARD = DatasetCard(
    title="CVC-ClinicDB",
    summary="Frames of colonoscopies with the polyp masked; every picture shows one.",
    home="https://polyp.grand-challenge.org/CVCClinicDB/",
    citation="Bernal, Sánchez, Fernández-Esparrach, Gil, Rodríguez, Vilariño: WM-DOVA maps for accurate polyp "
    "highlighting in colonoscopy, Computerized Medical Imaging and Graphics 43, 2015, "
    "https://doi.org/10.1016/j.compmedimag.2015.02.007",
    licence="for research; stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{Original, Ground Truth}/<number>.tif, below PNG/ too, or images and masks",
    masks=True,
    pictures=(0, 612),
    categories=("cvc_clinicdb",),
)

FOLDERS = (
    ("Original", "Ground Truth"),
    ("PNG/Original", "PNG/Ground Truth"),
    ("images", "masks"),
)  # of pictures and of masks; the first that are there


@dataclass(frozen=True)
class CVCClinicDB:
    """The whole set; every picture shows a polyp, so image figures are undefined and there is nothing to train on."""

    root: str | Path

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        """No samples: none is normal."""
        return []

    def test(self) -> list[Sample]:
        return all_anomalous("CVCClinicDB", self.root, CARD.categories[0], FOLDERS, "polyp")


DATASET = CVCClinicDB
