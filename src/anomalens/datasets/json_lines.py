"""Anything that can be judged, listed in a file: pictures, point clouds, frames, curves, each with its references.

A line of the file is one sample, as JSON; paths are relative to the file:

    {"id": "part/7", "modality": "image", "paths": "new/7.png", "references": ["good/1.png"], "label": 1}

    id          unique, a name or a relative path
    modality    image (if it is left out), points, video, series or lights
    paths       one file; frames and lights are several, or a folder of them. A cloud may come with its picture
    references  what a normal one looks like: paths as above, or {"paths", "label": "abnormal", "note"}
    label       1 anomalous, 0 normal; without it `defect` tells ("good", or a kind), else it is unknown
    defect, mask, category    as the other readers have them

Clouds are .npy, .tiff (h, w, 3) or text with three columns; curves are .npy or text with a column for each channel.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import Unreadable, WrongInput, unknown
from ..images import SUFFIXES, read_mask
from ..types import DatasetCard, Sample, View
from ._files import mask_view, mean_view, picture_view
from ._layouts import in_order, not_found, pictures
from .mvtec_3d import read_points

CARD = DatasetCard(
    title="JSON Lines",
    summary="Your own pictures, point clouds, clips and curves, one in each line of a file, with the references they are "
    "compared with.",
    home="",
    citation="",
    licence="yours",
    commercial=None,
    views=("image", "lights", "points", "video", "series"),
    levels=("structural", "semantic"),
    layout="<root>.jsonl, or the only one in <root>, with lines {id, modality, paths, references, label, defect, mask, "
    "category}",
    masks=True,
    pictures=(0, 0),
    categories=(),
)

ENDINGS = (".jsonl", ".ndjson")
KEYS = ("id", "modality", "paths", "references", "label", "defect", "mask", "category")
MODALITIES = ("image", "lights", "points", "series", "video")
SPELLED = {"pointcloud": "points", "point-cloud": "points", "frames": "video", "time-series": "series"}
LABELS = {"0": 0, "normal": 0, "good": 0, "false": 0, "1": 1, "anomalous": 1, "abnormal": 1, "true": 1}
TEXTS = (".csv", ".txt", ".tsv", ".xyz")
Files = tuple[Path, ...]


@dataclass(frozen=True)
class JsonLines:
    """The samples of a .jsonl file, or of the only one in a folder.

    category: of the samples; "" reads all. `train` are the normal references. Where the samples of a category list other
    references, or are of other modalities, each such group is a category of its own (`nut/1`, `nut/2`), so that a method
    compares with what was listed; samples that list none share those of their category.

    What is a reference is not tested: a line whose files are also listed as a reference is left out, with a warning.
    """

    root: str | Path
    category: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({item.category for item in self._listed}))

    def train(self) -> list[Sample]:
        return [s for s in self._references if s.label == 0]

    def defective(self) -> list[Sample]:
        """The references that are labelled abnormal; the kind of defect is their note."""
        return [s for s in self._references if s.label == 1]

    def test(self) -> list[Sample]:
        return in_order(item.sample(self._groups) for item in self._items)

    def samples(self) -> list[Sample]:
        """What is to be judged, which references are not."""
        return self.test()

    def describe(self) -> str:
        """One sentence: what there is."""
        kinds = Counter(item.modality for item in self._items)
        said = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "nothing"
        normal, abnormal = len(self.train()), len(self.defective())
        also = f" and {abnormal} abnormal" if abnormal else ""
        left = f"; left out as references themselves: {', '.join(self._doubled)}" if self._doubled else ""
        return f"Read as JSON Lines ({self._file.name}): {said} to judge; {normal} normal{also} references{left}."

    @cached_property
    def _file(self) -> Path:
        root = Path(self.root)
        found = [root] if root.is_file() else sorted(p for p in root.glob("*") if p.suffix.lower() in ENDINGS)
        if len(found) != 1:
            raise not_found("JsonLines", root, f"one file {' or '.join(f'*{e}' for e in ENDINGS)}")
        return found[0]

    @cached_property
    def _listed(self) -> list[Item]:
        try:
            lines = self._file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise WrongInput(f"{self._file} cannot be read as text in UTF-8; save it again.") from None
        items = [item_of(line, self._file, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not items:
            raise WrongInput(f"{self._file} holds no line; write one JSON object for each sample.")
        again = next((id for id, count in Counter(item.id for item in items).items() if count > 1), None)
        if again:
            raise WrongInput(f"{self._file} has the id {again!r} twice; each line needs its own.")
        return items

    @cached_property
    def _chosen(self) -> list[Item]:
        """Those of the category; the name of the file, or of its folder, stands for what has none."""
        if not self.category:
            return self._listed
        own = self.category if self.category in self.categories else ""
        found = [item for item in self._listed if item.category == own]
        if not found or (not own and self.category != Path(self.root).resolve().name):
            raise unknown(f"category of {self._file.name}", self.category, self.categories)
        return found

    @cached_property
    def _doubled(self) -> tuple[str, ...]:
        """Ids of lines that are references of some line."""
        known = {os.path.realpath(file) for item in self._listed for r in item.references for file in r.files}
        return tuple(item.id for item in self._chosen if any(os.path.realpath(file) in known for file in item.files))

    @cached_property
    def _items(self) -> list[Item]:
        """What is tested."""
        if self._doubled:
            warnings.warn(
                f"{self._file} lists {', '.join(self._doubled)} as a sample and as a reference; what is compared with itself "
                "says nothing, so it is not tested.",
                stacklevel=4,
            )
        found = [item for item in self._chosen if item.id not in self._doubled]
        if not found:
            raise WrongInput(f"{self._file} lists only references; add lines for what is to be judged.")
        return found

    @cached_property
    def _groups(self) -> dict[Group, str]:
        """Samples that share category, modality and references, and what their category is called."""
        sets: dict[tuple[str, str], list[tuple[Reference, ...]]] = {}
        for item in self._chosen:
            own = sets.setdefault((item.category, item.modality), [])
            if item.references and item.references not in own:
                own.append(item.references)
        for item in self._chosen:
            if not item.references and len(sets[item.category, item.modality]) > 1:
                raise WrongInput(
                    f"{self._file}: {item.id} lists no references, and others like it list different ones; give its own."
                )
        groups = [(*key, some) for key, own in sets.items() for some in own or [()]]
        counts, numbers = Counter(category for category, _, _ in groups), Counter[str]()
        names = {}
        for category, modality, some in groups:
            numbers[category] += 1
            name = "/".join(filter(None, (category, str(numbers[category])))) if counts[category] > 1 else category
            names[category, modality, some] = name
            if len(sets[category, modality]) == 1:
                names[category, modality, ()] = name
        return names

    @cached_property
    def _references(self) -> list[Sample]:
        found = {name: (modality, some) for (_, modality, some), name in self._groups.items() if some}
        return in_order(
            reference.sample(modality, name, number)
            for name, (modality, some) in found.items()
            for number, reference in enumerate(some)
        )


@dataclass(frozen=True)
class Reference:
    """What samples are compared with."""

    files: Files
    label: int = 0
    note: str = ""

    def sample(self, modality: str, category: str, number: int) -> Sample:
        name = f"{number:03d}-{self.files[0].name}"  # in the order they are listed
        id = "/".join(filter(None, (category, "references", name)))
        defect = (self.note or "abnormal") if self.label else "good"
        return Sample(id, views_of(modality, self.files), category, self.label, None, defect)


Group = tuple[str, str, tuple[Reference, ...]]  # category, modality, references


@dataclass(frozen=True)
class Item:
    """One line."""

    id: str
    modality: str
    files: Files
    references: tuple[Reference, ...] = ()
    label: int | None = None
    defect: str = ""
    mask: Path | None = None
    category: str = ""

    def sample(self, groups: Mapping[Group, str]) -> Sample:
        mask = None
        if self.mask and self.label != 0:
            on_picture = self.files[0].suffix.lower() in SUFFIXES and self.modality != "points"
            mask = mask_view([self.mask], self.files[0]) if on_picture else _plain_mask(self.mask)
        category = groups[self.category, self.modality, self.references]
        return Sample(self.id, views_of(self.modality, self.files), category, self.label, mask, self.defect)


def _plain_mask(path: Path) -> View:
    return View("mask", partial(read_mask, path), str(path))


# A line.


def item_of(line: str, file: Path, number: int) -> Item:
    """A line of the file as what it lists.

    Raises:
        WrongInput: it is no JSON object, a key is missing, misspelt or has no sense, or a file is not there.
    """
    where = f"{file}, line {number}"
    try:
        given = json.loads(line)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise WrongInput(f"{where} is no JSON object; write {{...}} on one line for each sample.")
    for key in given:
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)
        if key not in KEYS and near:
            raise WrongInput(f"{where} has the key {key!r}; did you mean {near[0]!r}?")
    id = given.get("id")
    path = PurePosixPath(id) if isinstance(id, str) else PurePosixPath()
    if not isinstance(id, str) or not id.strip() or path.is_absolute() or ".." in path.parts or "\\" in id:
        raise WrongInput(f"{where} has the id {id!r}; give a name, or a relative path with /.")
    word = str(given.get("modality", "image")).lower().replace("_", "-")
    modality = SPELLED.get(word, word)
    if modality not in MODALITIES:
        raise WrongInput(f"{where} has the modality {word!r}; give {', '.join(MODALITIES)}.")
    files = _files(given.get("paths"), modality, file.parent, where)
    references = given.get("references") or []
    if not isinstance(references, list):
        references = [references]
    label, defect = _told(given, where)
    mask = given.get("mask")
    if mask and modality in ("video", "series"):
        raise WrongInput(f"{where} has a mask, which samples of the modality {modality} do not have; leave it out.")
    return Item(
        id, modality, files, tuple(_reference(one, modality, file.parent, where) for one in references), label, defect,
        _there(mask, file.parent, where) if mask else None, str(given.get("category") or ""),
    )  # fmt: skip


def _told(given: Mapping[str, Any], where: str) -> tuple[int | None, str]:
    """(label, kind of defect)."""
    word, defect = given.get("label"), str(given.get("defect") or "")
    label = None if word is None else LABELS.get(str(word).lower())
    if word is not None and label is None:
        raise WrongInput(f"{where} has the label {word!r}; give 1 for anomalous, 0 for normal, or leave it out.")
    if label is None and defect:
        label = int(defect != "good")
    if label is not None and defect and label != int(defect != "good"):
        raise WrongInput(f"{where} has the label {word!r} and the defect {defect!r}, which contradict each other.")
    return label, defect or {0: "good", 1: "anomalous", None: ""}[label]


def _reference(given: Any, modality: str, folder: Path, where: str) -> Reference:
    if not isinstance(given, dict):
        return Reference(_files(given, modality, folder, where))
    label = LABELS.get(str(given.get("label", 0)).lower())
    if label is None:
        raise WrongInput(f"{where} has a reference with the label {given['label']!r}; give normal or abnormal.")
    files = _files(given.get("paths"), modality, folder, where)
    return Reference(files, label, str(given.get("note") or ""))


def _files(given: Any, modality: str, folder: Path, where: str) -> Files:
    """The files that are named; a folder of frames or lights is those in it, 2.png before 10.png."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise WrongInput(f"{where} gives {given!r} where paths were expected; give a file, or a list of files.")
    files = tuple(_there(name, folder, where) for name in names)
    if modality in ("video", "lights"):
        if len(files) == 1 and files[0].is_dir():
            files = tuple(sorted(pictures(files[0]), key=_by_number))
        if len(files) < 2:
            raise WrongInput(f"{where} gives fewer than 2 pictures for {modality}; list them, or give their folder.")
    elif len(files) > (2 if modality == "points" else 1) or files[0].is_dir():
        what = "a file, and perhaps its picture" if modality == "points" else "one file"
        raise WrongInput(f"{where} gives {given!r} for {modality}; {what} was expected.")
    return files


def _there(name: Any, folder: Path, where: str) -> Path:
    path = folder / str(name).replace("\\", "/")
    if not path.exists():
        raise WrongInput(f"{where} names {name}, which does not exist; paths are relative to {folder}.")
    return path


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


# What is in the files.


def views_of(modality: str, files: Sequence[Path]) -> dict[str, View]:
    """The views of a sample, by the names that tell its kind."""
    if modality == "image":
        return {"image": picture_view(files[0])}
    if modality == "lights":
        lights = {f"light_{i}": picture_view(path, f"light_{i}") for i, path in enumerate(files)}
        return {**lights, "image": mean_view(files)}
    if modality == "video":
        return {f"frame_{i}": picture_view(path, f"frame_{i}") for i, path in enumerate(files)}
    read = read_cloud if modality == "points" else read_numbers
    numbers = {modality: View(modality, partial(read, files[0]), str(files[0]))}
    return {**({"image": picture_view(files[1])} if len(files) > 1 else {}), **numbers}


def read_cloud(path: Path) -> np.ndarray:
    """Points (N, 3) or (h, w, 3) float; of more columns the first three.

    Raises:
        Unreadable: damaged, or something else. MissingExtra: see `mvtec_3d.read_points`.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        return read_points(path)
    points = read_numbers(path)
    if points.ndim not in (2, 3) or points.shape[-1] < 3 or (points.ndim == 3 and points.shape[-1] > 3):
        raise Unreadable(f"{path} holds {points.shape}; points (N, 3) or (h, w, 3) were expected.")
    return points[..., :3]


def read_numbers(path: Path) -> np.ndarray:
    """Numbers of a .npy file as they are, or (rows, columns) float of a text; an empty field is NaN.

    In a text fields are apart by commas, semicolons or blanks; a first line with words is a heading.

    Raises:
        Unreadable: damaged, not numbers, or another kind of file.
    """
    try:
        if path.suffix.lower() == ".npy":
            found = np.load(path, allow_pickle=False)
            if not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
                raise ValueError(f"{found.dtype}")
            return found
        if path.suffix.lower() in TEXTS:
            return _table(path.read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {(error.strerror or 'damaged').lower()}.") from None
    except (ValueError, EOFError) as error:
        raise Unreadable(f"{path} holds no table of numbers ({error}); correct it, or leave it out.") from None
    raise Unreadable(f"{path} is neither .npy nor text ({' '.join(TEXTS)}); save it as .npy.")


def _table(lines: Iterable[str]) -> np.ndarray:
    rows = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not rows:
        raise ValueError("nothing in it")
    mark = next((mark for mark in ",;\t" if mark in rows[0]), None)
    fields = [[field.strip() for field in row.split(mark)] for row in rows]
    if not all(map(_is_number, fields[0])):
        fields = fields[1:]
    return np.array([[float(field or "nan") for field in row] for row in fields])


def _is_number(field: str) -> bool:
    try:
        float(field or "nan")
    except ValueError:
        return False
    return True


DATASET = JsonLines
