"""CVC-ColonDB, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import all_anomalous

CARD = DatasetCard(
    title="CVC-ColonDB",
    summary="Frames of colonoscopies with the polyp masked; every picture shows one.",
    home="https://doi.org/10.1109/TMI.2015.2487997",
    citation="Tajbakhsh, Gurudu, Liang: Automated Polyp Detection in Colonoscopy Videos Using Shape and Context "
    "Information, IEEE TMI 35, 2016, https://doi.org/10.1109/TMI.2015.2487997",
    licence="not stated",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{images, masks}/<number>.png",
    masks=True,
    pictures=(0, 380),
    categories=("cvc_colondb",),
)

FOLDERS = (
    ("images", "masks"),
    ("CVC-ColonDB/images", "CVC-ColonDB/masks"),
)  # of pictures and of masks; the first that are there


@dataclass(frozen=True)
class CVCColonDB:
    """The whole set; every picture shows a polyp, so image figures are undefined and there is nothing to train on."""

    root: str | Path

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        """No samples: none is normal."""
        return []

    def test(self) -> list[Sample]:
        return all_anomalous("CVCColonDB", self.root, CARD.categories[0], FOLDERS, "polyp")


DATASET = CVCColonDB
