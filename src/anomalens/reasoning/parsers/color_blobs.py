"""Coloured things on a ground of another colour: ranges of hue, saturation and value, and connected components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...errors import WrongInput
from ...images import to_float
from ...regions import label as components
from ...types import Sample
from ..scene import Parsed, cut_out, measure, to_hsv

if TYPE_CHECKING:
    from typing_extensions import Self

NAMED = {  # (hue, saturation, value) ranges of the colours that programs name
    "black": ((0, 360), (0, 1), (0, 0.2)),
    "white": ((0, 360), (0, 0.15), (0.85, 1)),
    "grey": ((0, 360), (0, 0.15), (0.2, 0.85)),
    "red": ((345, 15), (0.15, 1), (0.2, 1)),
    "brown": ((15, 45), (0.15, 1), (0.2, 0.55)),
    "orange": ((15, 45), (0.15, 1), (0.55, 1)),
    "yellow": ((45, 70), (0.15, 1), (0.2, 1)),
    "green": ((70, 170), (0.15, 1), (0.2, 1)),
    "cyan": ((170, 200), (0.15, 1), (0.2, 1)),
    "blue": ((200, 260), (0.15, 1), (0.2, 1)),
    "purple": ((260, 290), (0.15, 1), (0.2, 1)),
    "pink": ((290, 345), (0.15, 1), (0.2, 1)),
}


@dataclass
class ColorBlobs:
    """Finds the connected places of given colours. Learns nothing.

    ranges: label to ((hue, hue), (saturation, saturation), (value, value)), from and to, in 0..360 degrees and 0..1; a hue
        range may go through 0, (345, 15). Or the name of a colour: {"nut": "brown"}.
    smallest: pixels of the smallest place that counts.
    regions: name to (x0, y0, x1, y1), in pixels, or in fractions where no number is above 1.
    """

    ranges: Mapping[str, str | Sequence[Sequence[float]]]
    smallest: int = 20
    regions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    learned: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.ranges or not isinstance(self.ranges, Mapping):
            raise WrongInput(
                f"ranges of color-blobs is {self.ranges!r}; give label to colour, such as {{'nut': 'brown'}}."
            )
        for name in self.ranges:
            self._bounds(name)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.ranges)

    def fit(self, samples: Iterable[Sample]) -> Self:
        return self

    def parse(self, sample: Sample) -> Parsed:
        image = sample.image()
        hsv = to_hsv(to_float(image))
        masks, names = [], []
        for name in self.ranges:
            places = cut_out(components(self._inside(name, hsv))[0], self.smallest)
            masks += places
            names += [name] * len(places)
        return measure(masks, names, image, category=sample.category, image_id=sample.id, regions=self.regions)

    def _inside(self, name: str, hsv: np.ndarray) -> np.ndarray:
        (from_hue, to_hue), *others = self._bounds(name)
        hue = hsv[..., 0]
        turn = (hue >= from_hue) & (hue <= to_hue) if from_hue <= to_hue else (hue >= from_hue) | (hue <= to_hue)
        for values, (low, high) in zip((hsv[..., 1], hsv[..., 2]), others, strict=True):
            turn &= (values >= low) & (values <= high)
        return turn

    def _bounds(self, name: str) -> list[tuple[float, float]]:
        given = self.ranges[name]
        if isinstance(given, str):
            if given not in NAMED:
                raise WrongInput(f"{name!r} has the colour {given!r}; give one of {', '.join(NAMED)}, or three ranges.")
            given = NAMED[given]
        try:
            bounds = [(float(low), float(high)) for low, high in given]
        except (TypeError, ValueError):
            bounds = []
        if len(bounds) != 3:
            raise WrongInput(
                f"the range of {name!r} is {given!r}; give ((hue, hue), (saturation, saturation), (value, value))."
            )
        return bounds


PARSER = ColorBlobs
