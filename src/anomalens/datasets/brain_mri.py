"""Brain MRI, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import in_order, split_off, yes_and_no

CARD = DatasetCard(
    title="Brain MRI",
    summary="Slices of heads, 155 with a tumour and 98 without; labels of pictures only. It has no training part: by "
    "default all are to test on, as zero-shot benchmarks do.",
    home="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
    citation="Chakrabarty: Brain MRI Images for Brain Tumor Detection, 2019",
    licence="stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{no, yes}/<name>.jpg",
    masks=False,
    pictures=(0, 253),
    categories=("brain_mri",),
)


@dataclass(frozen=True)
class BrainMRI:
    """The whole set: yes/ shows a tumour, no/ does not.

    train_share: part of the good slices to train on, the first by name.
    """

    root: str | Path
    train_share: float = 0.0

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        good, _ = yes_and_no("BrainMRI", self.root, CARD.categories[0], "tumour")
        return split_off(good, self.train_share, lambda s: s.id)[0]

    def test(self) -> list[Sample]:
        good, bad = yes_and_no("BrainMRI", self.root, CARD.categories[0], "tumour")
        return in_order([*split_off(good, self.train_share, lambda s: s.id)[1], *bad])


DATASET = BrainMRI
