"""Annotations in the format of COCO, as annotation tools export them: pictures and JSON files that outline things."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WrongInput, unknown
from ..parts.outlines import fill_annotation
from ..types import DatasetCard, Sample, View
from ._files import picture_size, picture_view, require_path
from ._layouts import in_order, not_found, split_off, split_word

CARD = DatasetCard(
    title="COCO export",
    summary="Your own pictures with outlines, boxes or run lengths in COCO's JSON; you say which categories are "
    "anomalous.",
    home="https://cocodataset.org/#format-data",
    citation="",
    licence="yours",
    commercial=None,
    views=("image",),
    levels=("structural", "semantic"),
    layout="<root>/{<any>.json with images, annotations and categories; pictures where file_name says, beside the JSON, "
    "or in images/}",
    masks=True,
    pictures=(0, 0),
    categories=(),
)


@dataclass(frozen=True)
class Coco:
    """A folder with one or several COCO files. A picture without an anomalous annotation is normal.

    anomalous: names of the annotated categories that are anomalous; () is every one.
    annotations: a COCO file below the root; "" takes all *.json of the root and of the folders right below it.
    train_share: part of the normal pictures to train on, where neither the name of the file nor that of its folder
        says train, valid or test. Only normal pictures are trained on; validation counts as training.

    The kind of defect is the name of the category, or several joined with `+`.
    """

    root: str | Path
    anomalous: tuple[str, ...] = ()
    annotations: str = ""
    train_share: float = 0.75

    @property
    def categories(self) -> tuple[str, ...]:
        return (Path(self.root).resolve().name,)

    def train(self) -> list[Sample]:
        return self._divided[0]

    def test(self) -> list[Sample]:
        return self._divided[1]

    @cached_property
    def _divided(self) -> tuple[list[Sample], list[Sample]]:
        train: list[Sample] = []
        test: list[Sample] = []
        for path, table in self._tables:
            samples = self._samples(path, table)
            good, bad = [s for s in samples if s.label == 0], [s for s in samples if s.label == 1]
            split = split_word(path.stem) or split_word(path.parent.name if path.parent != Path(self.root) else "")
            share = {"train": 1.0, "test": 0.0}.get(split, self.train_share)
            learn, judge = split_off(good, share, lambda s: s.id)
            train += learn
            test += [*judge, *bad]
        counts = Counter(s.id for s in (*train, *test))
        again = next((name for name, count in counts.items() if count > 1), None)
        if again:
            raise WrongInput(f"{again} is in more than one COCO file of {self.root}; choose one with annotations=....")
        return in_order(train), in_order(test)

    @cached_property
    def _tables(self) -> list[tuple[Path, dict[str, Any]]]:
        root = Path(self.root)
        require_path(root)
        if self.annotations:
            require_path(root / self.annotations)
            paths = [root / self.annotations]
        else:
            paths = sorted([*root.glob("*.json"), *root.glob("*/*.json")])
        found = [(path, table) for path in paths if (table := _table(path)) is not None]
        if not found:
            raise not_found("Coco", root, self.annotations or "a .json with images, annotations and categories")
        known = sorted({c["name"] for _, table in found for c in table["categories"]})
        for name in self.anomalous:
            if name not in known:
                raise unknown("annotated category", name, known)
        return found

    def _samples(self, path: Path, table: dict[str, Any]) -> list[Sample]:
        names = {c["id"]: c["name"] for c in table["categories"]}
        bad: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in table["annotations"]:
            if not self.anomalous or names.get(annotation["category_id"]) in self.anomalous:
                bad[annotation["image_id"]].append(annotation)
        return [self._sample(path, image, bad[image["id"]], names) for image in table["images"]]

    def _sample(
        self, path: Path, image: dict[str, Any], bad: Sequence[dict[str, Any]], names: dict[int, str]
    ) -> Sample:
        root, name = Path(self.root), image["file_name"].replace("\\", "/")
        places = [path.parent / name, root / name, path.parent / "images" / name, root / "images" / name]
        stem = path.stem.removeprefix("instances_")
        places += [root / stem / name, root / "images" / stem / name]
        picture = next((p for p in map(_plain, places) if p.is_file() and p.is_relative_to(_plain(root))), None)
        if picture is None:
            raise WrongInput(f"{path} names the picture {name}, which is neither beside it nor in {root}/images.")
        shapes = tuple((a.get("segmentation"), a.get("bbox")) for a in bad)
        return Sample(
            id=picture.relative_to(_plain(root)).as_posix(),
            views={"image": picture_view(picture)},
            category=self.categories[0],
            label=int(bool(bad)),
            mask=View("mask", partial(read_annotations, picture, shapes)) if bad else None,
            defect="+".join(sorted({str(names.get(a["category_id"])) for a in bad})) or "good",
        )


def _plain(path: Path) -> Path:
    """Without `..`, which tools write that keep annotations in a folder of their own."""
    return Path(os.path.normpath(path))


def _table(path: Path) -> dict[str, Any] | None:
    """The content of a COCO file; None for other JSON."""
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return None
    return table if isinstance(table, dict) and {"images", "annotations", "categories"} <= table.keys() else None


def read_annotations(picture: Path, shapes: Sequence[tuple[Any, Any]]) -> np.ndarray:
    """The union (H, W) bool of (segmentation, bbox) pairs; a box counts where there is no outline.

    Raises:
        WrongInput: an annotation that does not fit the picture.
    """
    total = np.zeros(picture_size(picture), bool)
    for segmentation, box in shapes:
        fill_annotation(total, segmentation, box, str(picture))
    return total


DATASET = Coco
