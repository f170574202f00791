"""Only part of the picture counts: a mask of the region of interest around any detector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..detector import Detector, create
from ..errors import WrongInput
from ..images import read_mask
from ..types import Card, Prediction, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="Within",
    paper="",
    year=2026,
    venue="",
    summary="Limits another detector to a region of interest; what lies outside never counts.",
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
    predict_cost="P1",
    gpu="no",
    stored_mb=8.0,
    extras=(),
    weights=(),
    pose="aligned",
    external=(),
    determinism="seeded",
    differs="no paper; the score becomes the highest map value inside the region",
    pitfalls=("the map is blurred, so a defect just outside the region still shows a little inside it",),
)


@dataclass
class Within(Detector):
    """Judge only what lies inside a mask.

    inner: the detector. mask_file: a picture whose non-zero pixels are the region of interest; it is scaled to each
    picture (nearest), read once and kept with the saved detector. Empty: the whole picture.
    """

    inner: Detector | str = "patchcore"
    mask_file: str = ""
    learned: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self) -> None:
        if isinstance(self.inner, str):
            self.inner = create(self.inner)
        self.detector: Detector = self.inner
        self.mask: np.ndarray | None = None
        if not self.mask_file:
            self.mask = np.ones((1, 1), bool)
        elif Path(self.mask_file).exists():  # a loaded detector brings its mask along
            self.mask = read_mask(self.mask_file)
            if not self.mask.any():
                raise WrongInput(
                    f"{self.mask_file} has no pixel that is not zero; mark the region of interest in white."
                )

    @property
    def needs_fit(self) -> bool:
        return self.detector.needs_fit

    def fit(self, samples: Iterable[Sample]) -> Self:
        if self.mask is None:
            raise WrongInput(
                f"the region of interest {self.mask_file} does not exist; give the path of a mask picture."
            )
        self.detector.fit(samples)
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        for prediction in self.detector.predict(samples):
            if prediction.map is None:
                raise WrongInput(
                    f"{self.detector.method} gives no map, so a region of interest cannot be applied to it."
                )
            inside = self.inside(prediction.map.shape)
            if not inside.any():
                raise WrongInput(
                    f"the region of interest {self.mask_file} covers no pixel of {prediction.id}; draw it larger."
                )
            values = np.where(inside, prediction.map, prediction.map.min())
            yield replace(prediction, score=float(values[inside].max()), map=values)

    def inside(self, size: tuple[int, ...]) -> np.ndarray:
        """The mask at the size (H, W) of a picture."""
        assert self.mask is not None
        rows = np.arange(size[0]) * self.mask.shape[0] // size[0]
        columns = np.arange(size[1]) * self.mask.shape[1] // size[1]
        return self.mask[rows][:, columns]


DETECTOR = Within
