"""LabelMe's annotations: a JSON file beside each picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WrongInput, unknown
from ..parts.outlines import fill_shape
from ..types import DatasetCard, Sample, View
from ._files import picture_size, picture_view, require_path
from ._layouts import folders, in_order, not_found, pictures, split_off, split_word

CARD = DatasetCard(
    title="LabelMe export",
    summary="Your own pictures with shapes drawn in LabelMe; you say which labels are anomalous.",
    home="https://github.com/wkentaro/labelme",
    citation="",
    licence="yours",
    commercial=None,
    views=("image",),
    levels=("structural", "semantic"),
    layout="<root>/[train/, valid/, test/]{<name>.<picture>, <name>.json}; a picture without a JSON file is normal",
    masks=True,
    pictures=(0, 0),
    categories=(),
)


@dataclass(frozen=True)
class LabelMe:
    """A folder, with all folders in it. A picture without an anomalous shape, or without a JSON file, is normal.

    anomalous: labels of the shapes that are anomalous; () is every one.
    train_share: part of the normal pictures to train on, where no folder is called train, valid or test. Only normal
        pictures are trained on; validation counts as training.

    The kind of defect is the label, or several joined with `+`.
    """

    root: str | Path
    anomalous: tuple[str, ...] = ()
    train_share: float = 0.75

    @property
    def categories(self) -> tuple[str, ...]:
        return (Path(self.root).resolve().name,)

    def train(self) -> list[Sample]:
        return in_order([*self._good("train"), *self._undivided[0]])

    def test(self) -> list[Sample]:
        return in_order([*self._good("test"), *self._undivided[1], *(s for s, _ in self._samples if s.label == 1)])

    def _good(self, split: str) -> list[Sample]:
        return [s for s, part in self._samples if s.label == 0 and part == split]

    @property
    def _undivided(self) -> tuple[list[Sample], list[Sample]]:
        return split_off(self._good(""), self.train_share, lambda s: s.id)

    @cached_property
    def _samples(self) -> list[tuple[Sample, str]]:
        """Every sample with its split, "" where no folder tells."""
        root = Path(self.root)
        require_path(root)
        files = _walk(root)
        tables = {path: _shapes(path.with_suffix(".json")) for path in files if path.with_suffix(".json").is_file()}
        if not tables:
            raise not_found("LabelMe", root, "pictures with a .json of the same name")
        known = sorted({str(shape["label"]) for shapes in tables.values() for shape in shapes})
        for name in self.anomalous:
            if name not in known:
                raise unknown("label of a shape", name, known)
        return [self._sample(root, path, tables.get(path, [])) for path in files]

    def _sample(self, root: Path, path: Path, shapes: Sequence[dict[str, Any]]) -> tuple[Sample, str]:
        bad = tuple(s for s in shapes if not self.anomalous or s["label"] in self.anomalous)
        inside = path.relative_to(root)
        sample = Sample(
            id=inside.as_posix(),
            views={"image": picture_view(path)},
            category=self.categories[0],
            label=int(bool(bad)),
            mask=View("mask", partial(read_shapes, path, bad)) if bad else None,
            defect="+".join(sorted({str(s["label"]) for s in bad})) or "good",
        )
        return sample, next((word for part in inside.parts[:-1] if (word := split_word(part))), "")


def _walk(folder: Path) -> list[Path]:
    return [*pictures(folder), *(path for inner in folders(folder) for path in _walk(inner))]


def _shapes(path: Path) -> list[dict[str, Any]]:
    """What the file outlines, without the copy of the picture that it may hold."""
    try:
        shapes = json.loads(path.read_text(encoding="utf-8-sig"))["shapes"]
        return [{k: s.get(k) for k in ("label", "points", "shape_type", "mask")} for s in shapes]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WrongInput(f"{path} has no list of shapes; it is not a file of LabelMe.") from None


def read_shapes(picture: Path, shapes: Sequence[dict[str, Any]]) -> np.ndarray:
    """The union (H, W) bool of LabelMe's shapes: polygon, rectangle, circle, line, linestrip, point(s), mask.

    Raises:
        WrongInput: a shape of another type, or one that is damaged.
    """
    total = np.zeros(picture_size(picture), bool)
    for shape in shapes:
        fill_shape(total, shape, str(picture))
    return total


DATASET = LabelMe
