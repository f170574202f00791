"""Br35H, read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import in_order, split_off, yes_and_no

CARD = DatasetCard(
    title="Br35H",
    summary="Slices of heads, 1,500 with a tumour and 1,500 without; labels of pictures only. It has no training "
    "part: by default all are to test on, as zero-shot benchmarks do.",
    home="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
    citation="Hamada: Br35H: Brain Tumor Detection 2020, 2020",
    licence="stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{no, yes}/<name>.jpg",
    masks=False,
    pictures=(0, 3000),
    categories=("br35h",),
)


@dataclass(frozen=True)
class Br35H:
    """The whole set: yes/ shows a tumour, no/ does not.

    train_share: part of the good slices to train on, the first by name.
    """

    root: str | Path
    train_share: float = 0.0

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        good, _ = yes_and_no("Br35H", self.root, CARD.categories[0], "tumour")
        return split_off(good, self.train_share, lambda s: s.id)[0]

    def test(self) -> list[Sample]:
        good, bad = yes_and_no("Br35H", self.root, CARD.categories[0], "tumour")
        return in_order([*split_off(good, self.train_share, lambda s: s.id)[1], *bad])


DATASET = Br35H
