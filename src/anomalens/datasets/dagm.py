"""DAGM 2007, read from the folders that its archives unpack to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import make_sample, not_found, pictures, with_train

CARD = DatasetCard(
    title="DAGM 2007",
    summary="Ten computed textures, each with one kind of defect, roughly marked by an ellipse; the 1,046 defective "
    "pictures of its training part are given by `defective`.",
    home="https://zenodo.org/records/12750201",
    citation="Wieler, Hahn: Weakly Supervised Learning for Industrial Optical Inspection, DAGM 2007, "
    "https://doi.org/10.5281/zenodo.12750201",
    licence="stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/Class<N>/{Train, Test}/{<number>.PNG, Label/<number>_label.PNG}",
    masks=True,
    pictures=(7004, 8050),
    categories=("Class1", "Class10", "Class2", "Class3", "Class4", "Class5", "Class6", "Class7", "Class8", "Class9"),
)


@dataclass(frozen=True)
class DAGM:
    """One texture with its official division; a picture is anomalous where Label/ has a mask of its number."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "Train")

    def train(self) -> list[Sample]:
        return [s for s in self._split("Train") if s.label == 0]

    def defective(self) -> list[Sample]:
        """The anomalous pictures of the training part, for methods that learn from some defects."""
        return [s for s in self._split("Train") if s.label == 1]

    def test(self) -> list[Sample]:
        return self._split("Test")

    def _split(self, split: str) -> list[Sample]:
        folder = Path(self.root) / self.category / split
        found = pictures(folder)
        if not found or not self.category:
            raise not_found("DAGM", self.root, f"pictures in {self.category or 'Class<N>'}/{split}/")
        labels = {p.stem.lower().removesuffix("_label"): p for p in pictures(folder / "Label")}
        return [self._sample(path, labels.get(path.stem.lower())) for path in found]

    def _sample(self, path: Path, label: Path | None) -> Sample:
        if label is None:
            return make_sample(self.root, path, self.category, "good")
        return make_sample(self.root, path, self.category, "defect", mask_view([label], path))


DATASET = DAGM
