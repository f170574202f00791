"""Scenes from any function that finds masks, such as a promptable segmenter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import WrongInput
from ...types import Sample
from ..scene import Parsed, measure

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Segments:
    """Calls a function for each picture. Learns nothing.

    segment: picture (H, W, 3) uint8 or uint16 to (masks, labels) or (masks, labels, scores): masks (n, H, W) or a list of
        (H, W), n labels, n scores in 0..1. It is not saved with a detector and must be given again.
    names: the labels it can give, so that rules can be checked against them; () where that is not known.
    least: objects with a lower score are left out.
    regions: name to (x0, y0, x1, y1), in pixels, or in fractions where no number is above 1.
    """

    segment: Callable[[np.ndarray], Any] | None = None
    names: Sequence[str] = ()
    least: float = 0.0
    regions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    learned: ClassVar[tuple[str, ...]] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.names)

    def fit(self, samples: Iterable[Sample]) -> Self:
        return self

    def parse(self, sample: Sample) -> Parsed:
        if self.segment is None:
            raise WrongInput("segments needs a function: picture to (masks, labels); give it as segment=....")
        image = sample.image()
        answer = self.segment(image)
        if not isinstance(answer, (tuple, list)) or len(answer) not in (2, 3):
            raise WrongInput(
                f"the segmenting function returned {type(answer).__name__}; (masks, labels) or (masks, labels, scores) "
                "was expected."
            )
        masks = [np.asarray(mask) != 0 for mask in answer[0]]
        names = [str(name) for name in answer[1]]
        scores = [float(score) for score in answer[2]] if len(answer) == 3 else [1.0] * len(masks)
        if not len(masks) == len(names) == len(scores):
            raise WrongInput(
                f"the segmenting function returned {len(masks)} masks, {len(names)} labels and {len(scores)} scores; "
                "give one of each for every object."
            )
        kept = [i for i, score in enumerate(scores) if score >= self.least]
        return measure(
            [masks[i] for i in kept],
            [names[i] for i in kept],
            image,
            scores=[scores[i] for i in kept],
            category=sample.category,
            image_id=sample.id,
            regions=self.regions,
        )


PARSER = Segments
