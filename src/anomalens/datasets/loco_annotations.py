"""LOCO-Annotations: what is in the pictures of MVTec LOCO AD, and why they are logically wrong, beside the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..reasoning.parsers.annotations import Annotations, Report, StatedReason
from ..types import DatasetCard, Sample
from .mvtec_loco import MVTecLOCO

CARD = DatasetCard(
    title="LOCO-Annotations",
    summary="Outlines of all objects in the good and the logically anomalous pictures of MVTec LOCO AD, and the reason of "
    "each anomaly in words; 1,772 of the training pictures and 1,136 test pictures are annotated.",
    home="https://github.com/22strongestme/LOCO-Annotations",
    citation="Zhang, Cao, Xu, Shen: LogiCode: an LLM-Driven Framework for Logical Anomaly Detection, 2024, "
    "https://arxiv.org/abs/2406.04687",
    licence="not stated",
    commercial=None,
    views=("image",),
    levels=("semantic",),
    layout="<root> as mvtec-loco; <root>/annotations, or any folder, with JSON files (LabelMe or COCO) that are named like "
    "the pictures: <category>/<split>/<kind>/<stem>.json",
    masks=True,
    pictures=(1772, 1136),
    categories=("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
)

STRUCTURAL = "structural_anomalies"


@dataclass(frozen=True)
class LOCOAnnotations:
    """The annotated pictures of one category: good ones to learn from, good and logically anomalous ones to judge.

    annotations: the folder or file with the annotations; <root>/annotations where it is not given.
    field_map: names in the files for ours (`reasoning.parsers.annotations`).

    What is anomalous is told by the folder of the picture, why by its annotation. Pictures without an annotation are left
    out; `report` names them.
    """

    root: str | Path
    category: str
    annotations: str | Path | None = None
    field_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def categories(self) -> tuple[str, ...]:
        return self._pictures.categories

    def train(self) -> list[Sample]:
        return self._annotated(self._pictures.train())

    def test(self) -> list[Sample]:
        return self._annotated([s for s in self._pictures.test() if s.defect != STRUCTURAL])

    def reasons(self, sample: Sample) -> tuple[StatedReason, ...]:
        """Why a person called this picture anomalous; () for a good one."""
        return self.oracle.reasons(sample)

    def report(self) -> Report:
        """Annotations without a picture, pictures without an annotation, reasons of no known type.

        Structural anomalies and the pictures for validation are not annotated, and not missed.
        """
        train, test = self._pictures.train(), self._pictures.test()
        wanted = {s.id for s in (*train, *test) if s.defect != STRUCTURAL}
        found = self.oracle.report([*train, *self._validation, *test])
        return replace(found, missing=tuple(name for name in found.missing if name in wanted))

    @cached_property
    def oracle(self) -> Annotations:
        """The parser that reads what people outlined."""
        folder = Path(self.root) / "annotations" if self.annotations is None else Path(self.annotations)
        if not folder.exists():
            raise WrongInput(
                f"LOCOAnnotations looked for the annotations in {folder}, which does not exist; unpack them there, or give "
                "their folder."
            )
        own = folder / self.category  # the other categories need not be read
        return Annotations(own if own.is_dir() else folder, self.field_map)

    @property
    def _pictures(self) -> MVTecLOCO:
        return MVTecLOCO(self.root, self.category)

    @property
    def _validation(self) -> list[Sample]:
        try:
            return self._pictures.validation()
        except WrongInput:
            return []  # there need not be any

    def _annotated(self, samples: list[Sample]) -> list[Sample]:
        without = set(self.oracle.report(samples).missing)
        found = [s for s in samples if s.id not in without]
        if not found:
            raise WrongInput(
                f"none of the {len(samples)} pictures of {Path(self.root) / self.category} has an annotation in "
                f"{self.oracle.root}; the files must be named like the pictures: test/good/000.json."
            )
        return found


DATASET = LOCOAnnotations
