"""KolektorSDD, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..images import read_mask
from ..types import DatasetCard, Sample
from ._files import crop_views, mask_view, picture_size
from ._layouts import folders, in_order, make_sample, not_found, pictures, split_off

CARD = DatasetCard(
    title="KolektorSDD",
    summary="Surfaces of 50 electrical commutators, 347 good and 52 with a crack; no official division for learning "
    "from good ones, so the first three quarters of them are to train on.",
    home="https://www.vicos.si/resources/kolektorsdd/",
    citation="Tabernik, Šela, Skvarč, Skočaj: Segmentation-based deep-learning approach for surface-defect detection, "
    "Journal of Intelligent Manufacturing 31, 2020, https://doi.org/10.1007/s10845-019-01476-x",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/kos<NN>/{Part<N>.jpg, Part<N>_label.bmp}",
    masks=True,
    pictures=(260, 139),
    categories=("KolektorSDD",),
)


@dataclass(frozen=True)
class KolektorSDD:
    """All commutators. Every mask is read for listing, because only they say which surface has a crack.

    pieces: 3 cuts each of the tall pictures into three along its height, as zero-shot benchmarks do; a piece is
        anomalous where its part of the mask is.
    train_share: part of the good pictures to train on, the first in the order of the commutators.
    """

    root: str | Path
    pieces: int = 1
    train_share: float = 0.75

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise WrongInput(f"pieces is at least 1; got {self.pieces}.")

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        return split_off(self._good, self.train_share, lambda s: s.id)[0]

    def test(self) -> list[Sample]:
        good = split_off(self._good, self.train_share, lambda s: s.id)[1]
        return in_order([*good, *(s for s in self._samples if s.label == 1)])

    @property
    def _good(self) -> list[Sample]:
        return [s for s in self._samples if s.label == 0]

    @cached_property
    def _samples(self) -> list[Sample]:
        files = [p for folder in folders(Path(self.root)) for p in pictures(folder)]
        found = [p for p in files if not p.stem.lower().endswith("_label")]
        if not found or len(found) == len(files):
            raise not_found("KolektorSDD", self.root, "kos01/Part0.jpg with kos01/Part0_label.bmp")
        return [s for path in found for s in self._of(path)]

    def _of(self, path: Path) -> list[Sample]:
        label = next((p for p in pictures(path.parent) if p.stem == f"{path.stem}_label"), None)
        if label is None:
            raise not_found("KolektorSDD", path.parent, f"{path.stem}_label.bmp")
        truth = read_mask(label)
        if self.pieces == 1:
            defect = "crack" if truth.any() else "good"
            return [make_sample(self.root, path, CARD.categories[0], defect, mask_view([label], path))]
        height, width = picture_size(path)
        found = []
        for i in range(self.pieces):
            top, end = i * height // self.pieces, (i + 1) * height // self.pieces
            image, mask = crop_views(path, [label], (0, top, width, end))
            defect = "crack" if truth[top:end].any() else "good"
            sample = make_sample(self.root, path, CARD.categories[0], defect, mask, {"image": image})
            found.append(replace(sample, id=f"{sample.id}/{i}"))
        return found


DATASET = KolektorSDD
