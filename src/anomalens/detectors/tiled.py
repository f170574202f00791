"""Large pictures: cut into overlapping tiles, judged by any detector, put together without seams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..detector import Detector, create
from ..errors import WrongInput
from ..types import Card, Prediction, Sample, View

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="Tiled",
    paper="",
    year=2026,
    venue="",
    summary="Cuts large pictures into overlapping tiles for another detector, so that small defects stay visible.",
    repo="",
    code_licence="no-code",
    fidelity="ours",
    family="wrapper",
    settings=("full-shot", "few-shot", "zero-shot"),
    scope="single",
    normals=(1, 50),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="that of the inner detector",
    trains="statistics",
    fit_cost="F1",
    predict_cost="P3",
    gpu="no",
    stored_mb=8.0,
    extras=(),
    weights=(),
    pose="free",
    external=(),
    determinism="seeded",
    differs="no paper; maps of overlapping tiles are averaged with weights that fall towards the tile's border",
    pitfalls=(
        "a detector with statistics by position (PaDiM) shares them between all tiles",
        "the score is the highest of all tiles, so it grows with the number of tiles",
    ),
)

Corner = tuple[int, int]
Note = Callable[[tuple[str, tuple[int, int], list[Corner]]], None]


@dataclass
class Tiled(Detector):
    """Judge a picture tile by tile.

    inner: the detector that sees the tiles (a name, or a detector). tile: side in pixels of the picture; a picture
    that is smaller is one tile. overlap: pixels that neighbours share. The score is the highest tile score.
    """

    inner: Detector | str = "patchcore"
    tile: int = 512
    overlap: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise WrongInput(
                f"overlap goes from 0 to tile - 1 pixels; got overlap {self.overlap} and tile {self.tile}."
            )
        if isinstance(self.inner, str):
            self.inner = create(self.inner)
        self.detector: Detector = self.inner

    def fit(self, samples: Iterable[Sample]) -> Self:
        self.detector.fit(Tiles(samples, self.tile, self.overlap))
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        begun: deque[tuple[str, tuple[int, int], list[Corner]]] = deque()  # pictures whose tiles are under way
        parts: list[Prediction] = []
        for part in self.detector.predict(Tiles(samples, self.tile, self.overlap, begun.append)):
            parts.append(part)
            if len(parts) == len(begun[0][2]):
                yield self.join(*begun.popleft(), parts)
                parts = []

    def join(self, name: str, size: tuple[int, int], corners: list[Corner], parts: list[Prediction]) -> Prediction:
        """One prediction for the picture (H, W) = size from those of its tiles."""
        score = max(p.score for p in parts)
        if any(p.map is None for p in parts):
            return Prediction(name, score)
        total, weight = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for (y, x), part in zip(corners, parts, strict=True):
            assert part.map is not None
            h, w = part.map.shape
            share = np.outer(taper(h), taper(w))
            total[y : y + h, x : x + w] += share * part.map
            weight[y : y + h, x : x + w] += share
        return Prediction(name, score, total / weight)


@dataclass(frozen=True)
class Tiles:
    """The tiles of many pictures as samples, one picture in memory at a time; can be iterated again.

    note: told (id, size, corners) of each picture before its first tile.
    """

    samples: Iterable[Sample]
    tile: int
    overlap: int
    note: Note = lambda picture: None

    def __iter__(self) -> Iterator[Sample]:
        for sample in self.samples:
            picture = sample.image()
            h, w = picture.shape[:2]
            side_y, side_x = min(self.tile, h), min(self.tile, w)
            corners = [(y, x) for y in starts(h, side_y, self.overlap) for x in starts(w, side_x, self.overlap)]
            self.note((sample.id, (h, w), corners))
            for y, x in corners:
                crop = picture[y : y + side_y, x : x + side_x]
                yield Sample(f"{sample.id}#{y},{x}", {"image": View("image", partial(np.array, crop))}, sample.category)


def starts(length: int, side: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover `length`, evenly spread, sharing at least `overlap` pixels."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - min(overlap, side - 1)))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def taper(n: int) -> np.ndarray:
    """(n,) weights that rise from the border to the middle, never zero."""
    return np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) / n


DETECTOR = Tiled
