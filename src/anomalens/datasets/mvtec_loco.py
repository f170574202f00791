"""MVTec LOCO AD, read from the folder that its archive unpacks to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WrongInput
from ..images import read_image
from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import folders, in_order, make_sample, not_found, pictures, with_train

CARD = DatasetCard(
    title="MVTec LOCO AD",
    summary="Five scenes with logical anomalies (too many, too few, the wrong one, the wrong place) and structural "
    "ones; several masks per picture, each with its own saturation threshold. The paper counts 1,772 pictures to train "
    "on, the archive has 1,778.",
    home="https://www.mvtec.com/company/research/datasets/mvtec-loco",
    citation="Bergmann, Batzner, Fauser, Sattlegger, Steger: Beyond Dents and Scratches: Logical Constraints in "
    "Unsupervised Anomaly Detection and Localization, IJCV 130, 2022, https://doi.org/10.1007/s11263-022-01578-9",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural", "semantic"),
    layout="<root>/<category>/{train/good, validation/good, test/{good, logical_anomalies, structural_anomalies}, "
    "ground_truth/<kind>/<stem>/<000>.png, defects_config.json}",
    masks=True,
    pictures=(1778, 1568),
    categories=("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
)


@dataclass(frozen=True)
class MVTecLOCO:
    """One category. A sample's mask is the union of its channels; `metrics.spro` wants `channels` and `config`."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/good")

    def train(self) -> list[Sample]:
        return self._split("train")

    def validation(self) -> list[Sample]:
        """Further normal samples, to choose thresholds with."""
        return self._split("validation")

    def test(self) -> list[Sample]:
        return self._split("test")

    def channels(self, sample: Sample) -> np.ndarray | None:
        """Masks (C, H, W) uint8 of a sample, one per defect; its value is the defect's `pixel_value` in `config`.

        None for a normal sample.
        """
        if not sample.label:
            return None
        return np.stack([read_image(path)[..., 0] for path in self._masks(Path(self.root) / sample.id)])

    def config(self) -> list[dict[str, Any]]:
        """The entries of `defects_config.json`: defect_name, pixel_value, saturation_threshold, relative_saturation.

        Raises:
            WrongInput: the file is missing or is not a list of such entries.
        """
        path = Path(self.root) / self.category / "defects_config.json"
        if not path.is_file():
            raise not_found("MVTecLOCO", self.root, f"{self.category}/defects_config.json")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise WrongInput(f"{path} is not JSON; copy it again from the archive.") from None
        keys = {"defect_name", "pixel_value", "saturation_threshold", "relative_saturation"}
        if not isinstance(entries, list) or not all(isinstance(e, dict) and keys <= e.keys() for e in entries):
            raise WrongInput(f"{path} is not a list of entries with {', '.join(sorted(keys))}; copy it again.")
        return entries

    def _split(self, split: str) -> list[Sample]:
        base = Path(self.root) / self.category / split
        files = [path for kind in folders(base) for path in pictures(kind)]
        if not files or not self.category:
            raise not_found("MVTecLOCO", self.root, f"pictures in {self.category or '<category>'}/{split}/<kind>/")
        return in_order(self._sample(path) for path in files)

    def _sample(self, path: Path) -> Sample:
        kind = path.parent.name
        mask = mask_view(self._masks(path), path) if kind != "good" else None
        return make_sample(self.root, path, self.category, kind, mask)

    def _masks(self, path: Path) -> list[Path]:
        folder = Path(self.root) / self.category / "ground_truth" / path.parent.name / path.stem
        return pictures(folder) or [folder / "000.png"]


DATASET = MVTecLOCO
