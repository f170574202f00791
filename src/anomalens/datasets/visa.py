"""VisA, read from the folder that its archive unpacks to, split by its own table."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import in_order, make_sample, not_found

CARD = DatasetCard(
    title="VisA",
    summary="Twelve things: circuit boards, one piece, several pieces in a picture; split by split_csv/1cls.csv.",
    home="https://github.com/amazon-science/spot-diff",
    citation="Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised Pre-training for Anomaly "
    "Detection and Segmentation, ECCV 2022, https://arxiv.org/abs/2207.14315",
    licence="CC BY 4.0",
    commercial=True,
    views=("image",),
    levels=("structural",),
    layout="<root>/{split_csv/1cls.csv, <category>/Data/{Images/{Normal, Anomaly}, Masks/Anomaly}}",
    masks=True,
    pictures=(8659, 2162),
    categories=("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2",
                "pcb3", "pcb4", "pipe_fryum"),
)  # fmt: skip

TABLE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")


@dataclass(frozen=True)
class VisA:
    """One category; which picture is for what stands in split_csv/1cls.csv."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({row["object"] for row in self._rows}))

    def train(self) -> list[Sample]:
        return [s for s in self._split("train") if s.label == 0]

    def test(self) -> list[Sample]:
        return self._split("test")

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        path = Path(self.root) / TABLE
        if not path.is_file():
            raise not_found("VisA", self.root, TABLE)
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if not set(COLUMNS) <= set(table.fieldnames or ()):
                raise WrongInput(f"{path} has the columns {table.fieldnames}; {', '.join(COLUMNS)} are needed.")
            return list(table)

    def _split(self, split: str) -> list[Sample]:
        rows = [row for row in self._rows if row["object"] == self.category and row["split"] == split]
        if not rows:
            raise WrongInput(
                f"VisA looked for {self.category or 'a category'} in {TABLE}, which has {', '.join(self.categories)}."
            )
        return in_order(self._sample(row) for row in rows)

    def _sample(self, row: dict[str, str]) -> Sample:
        root = Path(self.root)
        path = root / row["image"].replace("\\", "/")
        if row["label"] == "normal":
            return make_sample(root, path, self.category, "good")
        mask = mask_view([root / row["mask"].replace("\\", "/")], path) if row["mask"] else None
        return make_sample(root, path, self.category, "anomaly", mask)


DATASET = VisA
