"""HeadCT, read from the folder that its archive unpacks to."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..types import DatasetCard, Sample
from ._layouts import in_order, make_sample, not_found, pictures, split_off

CARD = DatasetCard(
    title="HeadCT",
    summary="Slices of heads, 100 with a haemorrhage and 100 without; labels of pictures only. It has no training "
    "part: by default all are to test on, as zero-shot benchmarks do.",
    home="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    citation="Kitamura: Head CT - hemorrhage, 2018",
    licence="stated on its page",
    commercial=None,
    views=("image",),
    levels=("structural",),
    layout="<root>/{labels.csv, head_ct/<number>.png}",
    masks=False,
    pictures=(0, 200),
    categories=("headct",),
)


@dataclass(frozen=True)
class HeadCT:
    """The whole set; labels.csv has a row (id, hemorrhage) for each picture.

    train_share: part of the good slices to train on, the first by number.
    """

    root: str | Path
    train_share: float = 0.0

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        return split_off(self._of(0), self.train_share, lambda s: s.id)[0]

    def test(self) -> list[Sample]:
        return in_order([*split_off(self._of(0), self.train_share, lambda s: s.id)[1], *self._of(1)])

    def _of(self, label: int) -> list[Sample]:
        return [s for s in self._samples if s.label == label]

    @cached_property
    def _samples(self) -> list[Sample]:
        root = Path(self.root)
        table = root / "labels.csv"
        folder = next((f for f in (root / "head_ct" / "head_ct", root / "head_ct") if pictures(f)), None)
        if folder is None or not table.is_file():
            raise not_found("HeadCT", root, "labels.csv and pictures in head_ct/")
        labels = _labels(table)
        return [
            make_sample(root, path, CARD.categories[0], "haemorrhage" if labels[int(path.stem)] else "good")
            for path in pictures(folder)
            if path.stem.isdigit() and int(path.stem) in labels
        ]


def _labels(table: Path) -> dict[int, int]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row][1:]
    try:
        return {int(row[0]): int(row[1]) for row in rows}
    except (ValueError, IndexError):
        raise WrongInput(f"{table} does not hold a number and a 0 or 1 in every row; copy it again.") from None


DATASET = HeadCT
