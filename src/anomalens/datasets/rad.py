"""RAD (robustness, CASE 2024), read from the folder that its archive unpacks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..types import DatasetCard, Sample
from ._layouts import good_and_defects, with_train

CARD = DatasetCard(
    title="RAD",
    summary="Foreign things on a metal platform, from free viewpoints, in uneven light and blurred. The good pictures "
    "(213 to train on, 73 to test on) are the same in each of the four categories and counted in each.",
    home="https://github.com/hustCYQ/RAD-dataset",
    citation="Cheng, Cao, Chen, Shen: RAD: A Dataset and Benchmark for Robustness of Image Anomaly Detection, CASE "
    "2024, https://arxiv.org/abs/2406.07176",
    licence="CC BY 4.0",
    commercial=True,
    views=("image",),
    levels=("structural",),
    layout="<root>/<category>/{train/good, test/{good, defect}, ground_truth/defect}",
    masks=True,
    pictures=(852, 1516),
    categories=("bolt", "ribbon", "sponge", "tape"),
)

ALIASES = {"cable_tie": "ribbon", "cabletie": "ribbon"}  # what the tables of the paper call a folder


@dataclass(frozen=True)
class RAD:
    """One kind of foreign thing; `cable_tie`, as the paper's tables say, is the folder `ribbon`.

    Masks are found by the name of their picture, with or without _mask or _gt; masks stored as JPEG are True above 127.
    """

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/good")

    def train(self) -> list[Sample]:
        return good_and_defects("RAD", self.root, self._folder, "train")

    def test(self) -> list[Sample]:
        truth = Path(self.root) / self._folder / "ground_truth" / "defect"
        lossy = truth.is_dir() and any(p.suffix.lower() in (".jpg", ".jpeg") for p in truth.iterdir())
        return good_and_defects("RAD", self.root, self._folder, "test", above=127 if lossy else 0)

    @property
    def _folder(self) -> str:
        return folder_of(self.category)


def folder_of(category: str) -> str:
    """The folder of a category, also when it is called as in the paper's tables."""
    return ALIASES.get(category.lower().replace("-", "_"), category)


DATASET = RAD
