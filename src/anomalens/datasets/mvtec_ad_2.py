"""MVTec AD 2, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._files import mask_view, picture_view
from ._layouts import find_masks, in_order, make_sample, not_found, pictures, with_train

CARD = DatasetCard(
    title="MVTec AD 2",
    summary="Eight harder scenes: transparent and overlapping things, dark field and back light, changed lighting; the "
    "masks of two of its three test parts are secret.",
    home="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
    citation="Heckler-Kram, Neudeck, Scheler, König, Steger: The MVTec AD 2 Dataset: Advanced Scenarios for "
    "Unsupervised Anomaly Detection, 2025, https://arxiv.org/abs/2503.21622",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{train/good, validation/good, test_public/{good, bad, ground_truth/bad}, test_private, "
    "test_private_mixed}",
    masks=True,
    pictures=(0, 0),
    categories=("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"),
)


@dataclass(frozen=True)
class MVTecAD2:
    """One category; `test` is the public part, the only one with labels."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/good")

    def train(self) -> list[Sample]:
        return self._good("train/good")

    def validation(self) -> list[Sample]:
        """Further normal samples, to choose thresholds with."""
        return self._good("validation/good")

    def test(self) -> list[Sample]:
        public = Path(self.root) / self.category / "test_public"
        files = pictures(public / "bad")
        masks = find_masks(files, public / "ground_truth" / "bad")
        bad = [make_sample(self.root, p, self.category, "bad", mask_view([masks[p]], p)) for p in files]
        return in_order([*self._good("test_public/good"), *bad])

    def private(self, mixed: bool = False) -> list[Sample]:
        """Samples without labels, for the evaluation server; mixed: under seen and unseen lighting."""
        part = "test_private_mixed" if mixed else "test_private"
        return [
            Sample(p.relative_to(self.root).as_posix(), {"image": picture_view(p)}, self.category)
            for p in self._files(part)
        ]

    def _good(self, part: str) -> list[Sample]:
        return [make_sample(self.root, path, self.category, "good") for path in self._files(part)]

    def _files(self, part: str) -> list[Path]:
        found = pictures(Path(self.root) / self.category / part)
        if not found or not self.category:
            raise not_found("MVTecAD2", self.root, f"pictures in {self.category or '<category>'}/{part}/")
        return found


DATASET = MVTecAD2
