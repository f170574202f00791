"""DTD-Synthetic, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import good_and_defects, with_train

CARD = DatasetCard(
    title="DTD-Synthetic",
    summary="Twelve textures of the Describable Textures Dataset, turned and cut, with defects put in by computer.",
    home="https://openaccess.thecvf.com/content/WACV2023/html/"
    "Aota_Zero-Shot_Versus_Many-Shot_Unsupervised_Texture_Anomaly_Detection_WACV_2023_paper.html",
    citation="Aota, Tong, Okatani: Zero-shot versus Many-shot: Unsupervised Texture Anomaly Detection, WACV 2023",
    licence="not stated",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{train/good, test/<defect>, ground_truth/<defect>}",
    masks=True,
    pictures=(1200, 1304),
    categories=("Blotchy_099", "Fibrous_183", "Marbled_078", "Matted_069", "Mesh_114", "Perforated_037",
                "Stratified_154", "Woven_001", "Woven_068", "Woven_104", "Woven_125", "Woven_127"),
)  # fmt: skip


@dataclass(frozen=True)
class DTDSynthetic:
    """One texture."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/good")

    def train(self) -> list[Sample]:
        return good_and_defects("DTDSynthetic", self.root, self.category, "train")

    def test(self) -> list[Sample]:
        return good_and_defects("DTDSynthetic", self.root, self.category, "test")


DATASET = DTDSynthetic
