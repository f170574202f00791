"""KolektorSDD2, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..images import read_mask
from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import make_sample, not_found, pictures

CARD = DatasetCard(
    title="KolektorSDD2",
    summary="One coloured surface with scratches, spots and imperfections; the 246 defective pictures of its training "
    "part are given by `defective`.",
    home="https://www.vicos.si/resources/kolektorsdd2/",
    citation="Božič, Tabernik, Skočaj: Mixed supervision for surface-defect detection: from weakly to fully "
    "supervised learning, Computers in Industry 129, 2021, https://doi.org/10.1016/j.compind.2021.103459",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/{train, test}/{<number>.png, <number>_GT.png}",
    masks=True,
    pictures=(2085, 1004),
    categories=("KolektorSDD2",),
)


@dataclass(frozen=True)
class KolektorSDD2:
    """The whole set. Every mask is read for listing, because only they say which picture has a defect."""

    root: str | Path

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        return [s for s in self._train if s.label == 0]

    def defective(self) -> list[Sample]:
        """The anomalous pictures of the training part, for methods that learn from some defects."""
        return [s for s in self._train if s.label == 1]

    def test(self) -> list[Sample]:
        return self._split("test")

    @cached_property
    def _train(self) -> list[Sample]:
        return self._split("train")

    def _split(self, split: str) -> list[Sample]:
        files = {p.stem.lower(): p for p in pictures(Path(self.root) / split)}
        found = [self._sample(p, files[f"{stem}_gt"]) for stem, p in files.items() if f"{stem}_gt" in files]
        if not found:
            raise not_found("KolektorSDD2", self.root, f"pictures <number>.png with <number>_GT.png in {split}/")
        return sorted(found, key=lambda s: s.id)

    def _sample(self, path: Path, truth: Path) -> Sample:
        defect = "defect" if read_mask(truth).any() else "good"
        return make_sample(self.root, path, CARD.categories[0], defect, mask_view([truth], path))


DATASET = KolektorSDD2
