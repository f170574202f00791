"""What people drew: LabelMe files, COCO files, or folders of masks. Pictures are judged as if parsing were perfect.

Annotations of MVTec LOCO AD circulate without a documented schema, so names may differ: `field_map` translates them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import Unreadable, WrongInput
from ...images import SUFFIXES, read_mask
from ...parts.outlines import fill_annotation, fill_shape
from ...types import Sample
from ..scene import Attribute, Parsed, measure

if TYPE_CHECKING:
    from typing_extensions import Self

REASON_KEYS = {
    "gt", "ground_truth", "reason", "reasons", "anomaly", "anomalies", "description", "flags", "caption",
}  # fmt: skip
NO_REASON = {"", "good", "normal", "none", "ok"}
TYPED = re.compile(r"^\s*(quantity|size|position|matching)\w*(\s+anomal\w*)?\s*[:：]\s*(.+)$", re.IGNORECASE)


@dataclass(frozen=True)
class StatedReason:
    """Why a person called a picture anomalous. type: quantity, size, position or matching, else unknown."""

    type: str
    text: str


@dataclass(frozen=True)
class Report:
    """How annotations and pictures fit together.

    unmatched: annotations without a picture. missing: ids of pictures without an annotation.
    unknown: reasons that do not begin with one of the four types.
    """

    unmatched: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: int


@dataclass(frozen=True)
class _Drawn:
    """The annotation of one picture: (label, how to draw it, attributes) for each object, and the reasons."""

    source: str
    objects: tuple[tuple[str, Any, dict[str, Attribute]], ...]
    reasons: tuple[StatedReason, ...]
    size: tuple[int, int] | None  # (height, width) where the file tells


@dataclass
class Annotations:
    """Reads the objects of a picture from a file. Learns nothing.

    root: a JSON file, or a folder with LabelMe files, COCO files, or one folder of masks per picture, named like the
        picture, whose files are named after the label: nut.png, nut_2.png.
    field_map: names in your files for ours, {"shapes": "objects", "label": "class"}; ours are those of LabelMe (shapes,
        label, points, shape_type) and COCO (images, annotations, categories, segmentation, bbox, ...), and "reason".
    names: the labels it can give; () reads all annotations to find out.
    regions: name to (x0, y0, x1, y1), in pixels, or in fractions where no number is above 1.

    A picture and an annotation belong together when the path of one, without its ending, ends with that of the other.
    """

    root: str | Path
    field_map: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    regions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    learned: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.root = str(self.root)

    @property
    def labels(self) -> tuple[str, ...]:
        if self.names:
            return tuple(self.names)
        return tuple(sorted({name for drawn in self._drawn.values() for name, _, _ in drawn.objects}))

    def fit(self, samples: Iterable[Sample]) -> Self:
        return self

    def parse(self, sample: Sample) -> Parsed:
        """The annotated objects of a picture.

        Raises:
            WrongInput: no annotation belongs to the picture, more than one does, or it does not fit.
        """
        drawn = self._find(sample)
        if drawn is None:
            raise WrongInput(f"{sample.id} has no annotation in {self.root}; add it, or leave the picture out.")
        image = sample.image()
        size = image.shape[:2]
        if drawn.size is not None and drawn.size != size:
            height, width = drawn.size
            raise WrongInput(
                f"{drawn.source} is for {width} x {height} pixels, {sample.id} has {size[1]} x {size[0]}; "
                "give the picture that was annotated."
            )
        masks = [_draw(how, size, drawn.source) for _, how, _ in drawn.objects]
        return measure(
            masks,
            [name for name, _, _ in drawn.objects],
            image,
            attributes=[attributes for _, _, attributes in drawn.objects],
            category=sample.category,
            image_id=sample.id,
            regions=self.regions,
        )

    def reasons(self, sample: Sample) -> tuple[StatedReason, ...]:
        """Why a person called this picture anomalous; () for a normal one, and where there is no annotation."""
        drawn = self._find(sample)
        return drawn.reasons if drawn else ()

    def report(self, samples: Iterable[Sample]) -> Report:
        """What does not fit together."""
        found = [(sample, self._find(sample)) for sample in samples]
        used = {drawn.source for _, drawn in found if drawn}
        return Report(
            unmatched=tuple(sorted({d.source for d in self._drawn.values()} - used)),
            missing=tuple(sample.id for sample, drawn in found if drawn is None),
            unknown=sum(r.type == "unknown" for d in self._drawn.values() for r in d.reasons),
        )

    def _find(self, sample: Sample) -> _Drawn | None:
        own = _key(sample.id)
        keys = [key for key in self._by_stem.get(own[-1], ()) if _ends_alike(key, own)]
        if len(keys) > 1 and sample.category:
            keys = [key for key in keys if sample.category in key] or keys
        if len(keys) > 1:
            longest = max(map(len, keys))
            keys = [key for key in keys if len(key) == longest and len(key) <= len(own)] or keys
        if len(keys) > 1:
            raise WrongInput(
                f"{sample.id} could be {' or '.join(self._drawn[k].source for k in keys[:2])}; give a narrower root."
            )
        return self._drawn[keys[0]] if keys else None

    @cached_property
    def _by_stem(self) -> dict[str, list[tuple[str, ...]]]:
        found: dict[str, list[tuple[str, ...]]] = {}
        for key in self._drawn:
            found.setdefault(key[-1], []).append(key)
        return found

    @cached_property
    def _drawn(self) -> dict[tuple[str, ...], _Drawn]:
        """Every annotation, by the parts of its path."""
        root = Path(self.root)
        if not root.exists():
            raise WrongInput(f"{root} does not exist; give the file or folder with the annotations.")
        files = [root] if root.is_file() else sorted(root.rglob("*.json"))
        found: dict[tuple[str, ...], _Drawn] = {}
        for path in files:
            found.update(self._read(path, root))
        if not found and root.is_dir():
            found.update(_mask_folders(root))
        if not found:
            raise WrongInput(f"{root} has no annotations: no .json file and no folder of masks was found in it.")
        return found

    def _read(self, path: Path, root: Path) -> dict[tuple[str, ...], _Drawn]:
        try:
            content = _renamed(json.loads(path.read_text(encoding="utf-8-sig")), self.field_map)
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
        except (ValueError, RecursionError):
            raise WrongInput(f"{path} is not JSON; export it again.") from None
        keys = set(content) if isinstance(content, dict) else set()
        try:
            if "shapes" in keys:
                inside = path.relative_to(root).as_posix() if path != root else path.name
                return {_key(inside): _labelme(content, str(path))}
            if {"images", "annotations", "categories"} <= keys:
                return dict(_coco(content, str(path)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, WrongInput):
                raise
            raise WrongInput(
                f"{path} has an annotation without {error}; if yours has another name for it, say so with field_map."
            ) from None
        shown = ", ".join(sorted(map(str, keys))[:12]) or type(content).__name__
        raise WrongInput(
            f"{path} is neither LabelMe (shapes) nor COCO (images, annotations, categories); it has {shown}: say what is "
            "what with field_map, such as {'shapes': 'objects', 'label': 'class', 'points': 'polygon'}."
        )


def _key(path: str) -> tuple[str, ...]:
    return PurePosixPath(path.replace("\\", "/")).with_suffix("").parts


def _ends_alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    shared = min(len(a), len(b))
    return a[-shared:] == b[-shared:]


def _renamed(value: Any, field_map: Mapping[str, str]) -> Any:
    """With our names for theirs, everywhere."""
    ours = {theirs: own for own, theirs in field_map.items()}
    if not ours:
        return value
    if isinstance(value, dict):
        return {ours.get(k, k): _renamed(v, field_map) for k, v in value.items()}
    return [_renamed(v, field_map) for v in value] if isinstance(value, list) else value


def _labelme(content: dict[str, Any], source: str) -> _Drawn:
    shapes = content["shapes"]
    objects = tuple((str(s["label"]), ("shape", _shape(s)), _attributes(s)) for s in shapes)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    reasons = tuple(_reasons([content, *shapes]))
    return _Drawn(source, objects, reasons, (int(height), int(width)) if height and width else None)


def _shape(shape: dict[str, Any]) -> dict[str, Any]:
    return {"points": shape["points"], "shape_type": shape.get("shape_type"), "mask": shape.get("mask")}


def _coco(content: dict[str, Any], source: str) -> Iterator[tuple[tuple[str, ...], _Drawn]]:
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    of: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        of.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        own = of.get(image["id"], [])
        objects = tuple(
            (names[a["category_id"]], ("coco", (a.get("segmentation"), a.get("bbox"))), _attributes(a)) for a in own
        )
        height, width = image.get("height"), image.get("width")
        size = (int(height), int(width)) if height and width else None
        key = _key(image["file_name"])
        yield key, _Drawn(f"{source}: {image['file_name']}", objects, tuple(_reasons([image, *own])), size)


def _mask_folders(root: Path) -> dict[tuple[str, ...], _Drawn]:
    """Folders without folders in them: one for each annotated picture, one file for each object."""
    files: dict[Path, list[Path]] = {}
    for folder in sorted(p for p in root.rglob("*") if p.is_dir()):
        inside = sorted(folder.iterdir())
        if not any(p.is_dir() for p in inside):
            files[folder] = [p for p in inside if p.suffix.lower() in SUFFIXES]
    return {
        folder.relative_to(root).parts: _Drawn(str(folder), tuple((_name(p), ("mask", p), {}) for p in own), (), None)
        for folder, own in files.items()
    }


def _name(path: Path) -> str:
    """The label in the name of a mask file: `nut` for nut.png, nut_2.png and 002_nut.png."""
    return re.sub(r"^\d+|[_\-. ]+\d+$", "", path.stem).strip("_-. ") or "object"


def _draw(how: tuple[str, Any], size: tuple[int, int], source: str) -> np.ndarray:
    kind, what = how
    if kind == "mask":
        mask = read_mask(what)
        if mask.shape != size:
            raise WrongInput(f"mask {what} is {mask.shape}, its picture {size}; save it at the size of the picture.")
        return mask
    mask = np.zeros(size, bool)
    if kind == "shape":
        fill_shape(mask, what, source)
    else:
        segmentation, box = what
        fill_annotation(mask, segmentation, box, source)
    return mask


def _attributes(content: dict[str, Any]) -> dict[str, Attribute]:
    """Plain values under `attributes`, as annotation tools write them."""
    found = content.get("attributes")
    if not isinstance(found, dict):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, (str, int, float, bool))}


def _reasons(places: Iterable[dict[str, Any]]) -> Iterator[StatedReason]:
    for place in places:
        for name, value in place.items():
            if str(name).lower() in REASON_KEYS:
                for text in _texts(value):
                    match = TYPED.match(text)
                    yield StatedReason(match[1].lower(), match[3].strip()) if match else StatedReason("unknown", text)


def _texts(value: Any) -> Iterator[str]:
    """Every statement in a value: lines and parts between semicolons; of truth values, the names that are true."""
    if isinstance(value, str):
        parts = (part.strip() for part in re.split(r"[\n;]", value))
        yield from (part for part in parts if part.lower() not in NO_REASON)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if inner is True:
                yield from _texts(str(name))
            elif isinstance(inner, str):
                yield from (f"{name}: {text}" for text in _texts(inner))
            elif isinstance(inner, list):
                yield from (f"{name}: {text}" for text in _texts([v for v in inner if isinstance(v, str)]))


PARSER = Annotations
