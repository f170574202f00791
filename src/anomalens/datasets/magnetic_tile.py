"""Magnetic tile defects (MTD), read from the folders of its repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..types import DatasetCard, Sample
from ._files import mask_view
from ._layouts import folders, in_order, make_sample, not_found, pictures, split_off

CARD = DatasetCard(
    title="Magnetic Tile",
    summary="Ground magnets, 952 good and 392 with one of five defects, in many sizes; no official division, so the "
    "first three quarters of the good ones in the order they were taken are to train on.",
    home="https://github.com/abin24/Magnetic-tile-defect-datasets.",
    citation="Huang, Qiu, Yuan: Surface defect saliency of magnetic tile, The Visual Computer 36, 2020, "
    "https://doi.org/10.1007/s00371-018-1588-5",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image",),
    levels=("structural",),
    layout="<root>/MT_{Blowhole, Break, Crack, Fray, Free, Uneven}/Imgs/{<name>.jpg, <name>.png}",
    masks=True,
    pictures=(714, 630),
    categories=("magnetic_tile",),
)


@dataclass(frozen=True)
class MagneticTile:
    """The whole set: a JPEG is a picture, the PNG of the same name its mask (True above 127).

    train_share: part of the good pictures to train on. They are divided by the number in their name, because
        neighbouring numbers show one tile under several lights.
    """

    root: str | Path
    train_share: float = 0.75

    @property
    def categories(self) -> tuple[str, ...]:
        return CARD.categories

    def train(self) -> list[Sample]:
        return in_order(self._sample(path, "good") for path in self._good[0])

    def test(self) -> list[Sample]:
        bad = [self._sample(p, kind) for kind, files in self._kinds.items() if kind != "free" for p in files]
        return in_order([*(self._sample(path, "good") for path in self._good[1]), *bad])

    @property
    def _good(self) -> tuple[list[Path], list[Path]]:
        return split_off(self._kinds["free"], self.train_share, _number)

    @cached_property
    def _kinds(self) -> dict[str, list[Path]]:
        kinds = {}
        for folder in folders(Path(self.root)):
            if folder.name.startswith("MT_"):
                files = pictures(folder / "Imgs") or pictures(folder)
                kinds[folder.name[3:].lower()] = [p for p in files if p.suffix.lower() in (".jpg", ".jpeg")]
        if not kinds.get("free"):
            raise not_found("MagneticTile", self.root, "MT_Free/Imgs/<name>.jpg beside MT_Blowhole and others")
        return kinds

    def _sample(self, path: Path, kind: str) -> Sample:
        mask = mask_view([path.with_suffix(".png")], path, 127)
        return make_sample(self.root, path, CARD.categories[0], kind, mask)


def _number(path: Path) -> tuple[int, str]:
    """exp1_num_108719 by 108719."""
    last = re.search(r"(\d+)$", path.stem)
    return (int(last[1]) if last else 0, path.name)


DATASET = MagneticTile
