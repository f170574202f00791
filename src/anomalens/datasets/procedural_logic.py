"""Drawn scenes with rules: a tray of parts, two connectors, three bottles, a carton with a seal. No download.

    data = ProceduralLogic("tray")
    data.rules                          # what must hold, as typed rules
    data.oracle.parse(sample)           # what is in the picture: the truth, with masks
    data.reasons(sample)                # what is wrong with it, as a person would say it

Every thing in an anomalous picture is fine by itself; a rule about number, size, place or pairing is broken.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import WrongInput, unknown
from ..reasoning.parsers.annotations import StatedReason
from ..reasoning.parsers.color_blobs import ColorBlobs
from ..reasoning.rules import RuleSet
from ..reasoning.scene import Parsed, measure
from ..types import DatasetCard, Sample, View
from ._draw import lit
from ._logic import CATEGORIES, Stage, set_up
from .procedural import Shot, photograph

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = DatasetCard(
    title="Procedural, with rules",
    summary="Four drawn scenes whose parts are fine and whose whole may be wrong, with rules, true scenes and stated "
    "reasons: a tray of parts, two connectors, three bottles, a carton with a seal.",
    home="",
    citation="",
    licence="Apache-2.0",
    commercial=True,
    views=("image",),
    levels=("semantic",),
    layout="drawn when read",
    masks=True,
    pictures=(0, 0),
    categories=("bottles", "carton", "connectors", "tray"),
)


@dataclass(frozen=True)
class ProceduralLogic:
    """One drawn scene with rules. Pictures depend on their number alone, as in `Procedural`; violations take turns."""

    category: str = "tray"
    size: int = 256  # pixels per side
    seed: int = 0
    train_count: int = 30
    good_count: int = 10  # good pictures to test on
    bad_count: int = 20

    def __post_init__(self) -> None:
        if self.category not in CATEGORIES:
            raise unknown("drawn scene", self.category, CATEGORIES)
        if not 96 <= self.size <= 1024:
            raise WrongInput(f"ProceduralLogic draws 96 to 1024 pixels per side; got size={self.size}.")
        if min(self.seed, self.train_count, self.good_count, self.bad_count) < 0:
            raise WrongInput("ProceduralLogic needs seed, train_count, good_count and bad_count of 0 or more.")

    @property
    def categories(self) -> tuple[str, ...]:
        """Every scene that can be drawn."""
        return tuple(CATEGORIES)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Violations of this scene."""
        return CATEGORIES[self.category].kinds

    @property
    def rules(self) -> RuleSet:
        """What must hold, in typed forms."""
        return RuleSet.from_dict({"category": self.category, **CATEGORIES[self.category].rules})

    @property
    def oracle(self) -> Truth:
        """The parser that knows what was drawn."""
        return Truth(self)

    @property
    def parser(self) -> ColorBlobs:
        """A parser that looks at the picture alone, by the colours of the things."""
        return ColorBlobs(CATEGORIES[self.category].blobs, smallest=max(10, self.size**2 // 600))

    def train(self) -> list[Sample]:
        return [shot.sample() for shot in self._shots() if shot.split == "train"]

    def test(self) -> list[Sample]:
        return [shot.sample() for shot in self._shots() if shot.split != "train"]

    def reasons(self, sample: Sample) -> tuple[StatedReason, ...]:
        """What is wrong in one of its pictures; () for a good one."""
        return tuple(StatedReason(kind, text) for kind, text in stage(self._shot(sample)).reasons)

    def truth(self, sample: Sample) -> Parsed:
        """What is in one of its pictures: everything that was drawn, by what is seen of it."""
        things = stage(self._shot(sample)).things
        masks, labels = [mask for _, mask in things], [name for name, _ in things]
        return measure(masks, labels, sample.image(), category=self.category, image_id=sample.id)

    def _shot(self, sample: Sample) -> LogicShot:
        shots = {shot.id: shot for shot in self._shots()}
        if sample.id not in shots:
            raise unknown(f"picture of this drawn {self.category}", sample.id, shots)
        return shots[sample.id]

    def _shots(self) -> list[LogicShot]:
        """Every picture, in the order of the ids."""
        counts = {"train": self.train_count, "good": self.good_count, "bad": self.bad_count}
        numbered = [(split, i) for split, count in counts.items() for i in range(count)]
        shots = [
            LogicShot(self.category, self.size, self.seed, split, i, self._kind(split, i)) for split, i in numbered
        ]
        return sorted(shots, key=lambda shot: shot.id)

    def _kind(self, split: str, index: int) -> str:
        return self.kinds[index % len(self.kinds)] if split == "bad" else ""


@dataclass
class Truth:
    """The parser of a perfect eye: it gives what was drawn. Learns nothing."""

    data: ProceduralLogic
    learned: ClassVar[tuple[str, ...]] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.data.rules.labels

    def fit(self, samples: Iterable[Sample]) -> Self:
        return self

    def parse(self, sample: Sample) -> Parsed:
        return self.data.truth(sample)


class LogicShot(Shot):
    """One picture to draw; kind is "" for the good picture of this number."""

    @property
    def id(self) -> str:
        if self.split == "bad":
            number = self.index // len(CATEGORIES[self.category].kinds)
            return f"{self.category}/test/{self.kind}/{number:03d}.png"
        return f"{self.category}/{'train' if self.split == 'train' else 'test'}/good/{self.index:03d}.png"

    def rng(self, role: str) -> np.random.Generator:
        names = (zlib.crc32(name.encode()) for name in ("logic", self.category, self.split, role))
        return np.random.default_rng([self.seed, self.index, *names])

    def sample(self) -> Sample:
        return Sample(
            id=self.id,
            views={"image": View("image", partial(picture, self))},
            category=self.category,
            label=int(bool(self.kind)),
            mask=View("mask", partial(mask, self)) if self.kind else None,
            defect=self.kind or "good",
        )


def stage(shot: LogicShot) -> Stage:
    """Everything in one picture, before light and camera."""
    return set_up(shot.category, shot.size, shot.kind, shot.rng("thing"), shot.rng("violation"))


def picture(shot: LogicShot) -> np.ndarray:
    """(size, size, 3) uint8."""
    azimuth, elevation = shot.rng("light").uniform((-2.5, 0.85), (-2.2, 1.0)).tolist()
    return photograph(shot, lit(stage(shot).surface, azimuth, elevation, 0.45), "camera")


def mask(shot: LogicShot) -> np.ndarray:
    """(size, size) bool, True where a rule is broken."""
    return np.any(stage(shot).places, axis=0)


DATASET = ProceduralLogic
