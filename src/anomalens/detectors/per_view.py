"""Several pictures of one thing (lights, cameras): one detector each, the most suspicious view decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ..detector import Detector, create
from ..errors import WrongInput
from ..types import Card, Prediction, Reason, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="Per view",
    paper="",
    year=2026,
    venue="",
    summary="Runs another detector on every view of a sample and combines what they say.",
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
    needs=("image", "lights"),
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
    pose="free",
    external=(),
    determinism="seeded",
    differs="no paper; scores of the views are combined as they are, not standardised",
    pitfalls=("maps are combined only where all views have the same size",),
)


@dataclass
class PerView(Detector):
    """One detector per view.

    inner: the detector each view gets a copy of. views: their names; empty takes those of the first normal sample (all
    but `image` where there are others). combine: highest or mean over the views, for scores and maps.
    """

    inner: Detector | str = "patchcore"
    views: tuple[str, ...] = ()
    combine: Literal["max", "mean"] = "max"
    learned: ClassVar[tuple[str, ...]] = ("by_view",)

    def __post_init__(self) -> None:
        if isinstance(self.inner, str):
            self.inner = create(self.inner)
        self.pattern: Detector = self.inner
        self.by_view: dict[str, Detector] | None = None

    @property
    def needs_fit(self) -> bool:
        return self.pattern.needs_fit

    @property
    def fitted(self) -> bool:
        return self.by_view is not None or not self.needs_fit

    def fit(self, samples: Iterable[Sample]) -> Self:
        samples = list(samples)
        if not samples:
            raise WrongInput("PerView needs at least one normal sample; got none.")
        self.by_view = {}
        for name in self.views or own_views(samples[0]):
            self.by_view[name] = self.pattern.unfitted().fit(only(samples, name))
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        samples = iter(samples)
        first = next(samples, None)
        if first is None:
            return
        detectors = self.by_view or {name: self.pattern.unfitted() for name in self.views or own_views(first)}
        pending: list[Sample] = []
        for sample in chain([first], samples):
            pending.append(sample)
            if len(pending) == 8:
                yield from self._judge(pending, detectors)
                pending = []
        yield from self._judge(pending, detectors)

    def _judge(self, samples: list[Sample], detectors: dict[str, Detector]) -> Iterator[Prediction]:
        streams = [detector.predict(only(samples, name)) for name, detector in detectors.items()]
        for sample, *parts in zip(samples, *streams, strict=True):
            scores = np.array([p.score for p in parts])
            maps = [p.map for p in parts if p.map is not None]
            same = len(maps) == len(parts) and len({m.shape for m in maps}) == 1
            pick = np.max if self.combine == "max" else np.mean
            yield Prediction(
                sample.id,
                float(pick(scores)),
                pick(np.stack(maps), axis=0).astype(np.float32) if same else None,
                reasons=(most_suspicious(list(detectors), scores),) if len(parts) > 1 else (),
            )


def most_suspicious(views: list[str], scores: np.ndarray) -> Reason:
    """Which view has the highest score, and each score as a share of their sum, which needs scores of one sign."""
    text = f"most suspicious view: {views[int(scores.argmax())]}"
    if not (scores.min() >= 0 and 0 < scores.sum() < np.inf):
        return Reason(text, "views")
    return Reason(text, "views", shares=dict(zip(views, (scores / scores.sum()).tolist(), strict=True)))


def own_views(sample: Sample) -> tuple[str, ...]:
    """The views to judge: every picture, without the combined `image` where there are single ones."""
    return tuple(v for v in sample.views if v != "image") or tuple(sample.views)


def only(samples: Iterable[Sample], view: str) -> list[Sample]:
    """The same samples with one view, under the name `image`."""
    out = []
    for sample in samples:
        if view not in sample.views:
            raise WrongInput(f"sample {sample.id} has views {tuple(sample.views)}; a view named {view!r} is needed.")
        out.append(replace(sample, views={"image": sample.views[view]}))
    return out


DETECTOR = PerView
