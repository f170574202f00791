"""What the readers of public datasets share: listing pictures, finding masks by name, splitting, refusing a wrong root."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import WrongInput
from ..images import SUFFIXES
from ..types import Sample, View
from ._files import ignored, mask_view, picture_view, require_path
from .folder import SPLITS

T = TypeVar("T")
SHOWN = 8  # names in an error message


def pictures(folder: Path) -> list[Path]:
    """The picture files directly in a folder, sorted by name; none if there is no such folder."""
    return [p for p in _entries(folder) if p.suffix.lower() in SUFFIXES and p.is_file()]


def folders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name; none if there is no such folder."""
    return [p for p in _entries(folder) if p.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not ignored(name)] if folder.is_dir() else []


def not_found(reader: str, root: str | Path, wanted: str) -> WrongInput:
    """The error for a root that is not this dataset: what was looked for and what is there."""
    root = Path(root)
    require_path(root)
    names = [p.name for p in _entries(root)] if root.is_dir() else ["a file"]
    seen = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return WrongInput(f"{reader} looked for {wanted} in {root} and saw {seen or 'an empty folder'}; check the root.")


def first_folder(reader: str, root: str | Path, names: Sequence[str]) -> Path:
    """The first of several spellings of a folder that exists; "" is the root itself.

    Raises:
        WrongInput: none of them is there.
    """
    for name in names:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    raise not_found(reader, root, " or ".join(f"{name}/" for name in names))


def make_sample(
    root: str | Path, path: Path, category: str, defect: str, mask: View | None = None,
    views: Mapping[str, View] | None = None,
) -> Sample:  # fmt: skip
    """A labelled sample: `defect` is "good" or the kind of defect; the id is the path below the root."""
    return Sample(
        id=path.relative_to(root).as_posix(),
        views=views or {"image": picture_view(path)},
        category=category,
        label=int(defect != "good"),
        mask=mask if defect != "good" else None,
        defect=defect,
    )


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: s.id)


def find_masks(images: Sequence[Path], folder: Path, endings: Sequence[str] = ("_mask", "", "_gt")) -> dict[Path, Path]:
    """The mask of each picture: the same stem with one of the endings, upper and lower case alike.

    Where not one name fits and there are as many masks as pictures, they are paired in sorted order, with a warning. A
    picture without a mask gets the first name that was looked for, so that reading it says what is missing.
    """
    masks = {p.stem.lower(): p for p in pictures(folder)}
    found = {}
    for image in images:
        stems = [f"{image.stem}{ending}".lower() for ending in endings]
        found[image] = next((masks[s] for s in stems if s in masks), None)
    if masks and len(masks) == len(images) and not any(found.values()):
        by_order = dict(zip(sorted(images), sorted(masks.values()), strict=True))
        shown = ", ".join(f"{a.name} with {b.name}" for a, b in list(by_order.items())[:3])
        warnings.warn(f"no mask in {folder} is named after its picture; paired in sorted order: {shown}", stacklevel=4)
        return by_order
    return {i: m or folder / f"{i.stem}{endings[0]}.png" for i, m in found.items()}


def good_and_defects(
    reader: str, root: str | Path, category: str, split: str, good: str = "good", truth: str = "ground_truth",
    above: int = 0,
) -> list[Sample]:  # fmt: skip
    """Samples of <root>/<category>/<split>/<good or a defect>/*, masks in <root>/<category>/<truth>/<defect>/.

    In the split "train" only the good ones are read.
    """
    base = Path(root) / category
    kinds = [base / split / good] if split == "train" else folders(base / split)
    found = []
    for kind in kinds:
        files = pictures(kind)
        if kind.name == good:
            found += [make_sample(root, path, category, "good") for path in files]
        else:
            masks = find_masks(files, base / truth / kind.name)
            found += [make_sample(root, p, category, kind.name, mask_view([masks[p]], p, above)) for p in files]
    if not found or not category:
        inside = f"{split}/{good}" if split == "train" else f"{split}/<defect>"
        raise not_found(reader, root, f"pictures in {category or '<category>'}/{inside}/")
    return in_order(found)


def with_train(root: str | Path, inside: str) -> tuple[str, ...]:
    """Categories: the folders below the root that have a certain folder inside."""
    return tuple(p.name for p in folders(Path(root)) if (p / inside).is_dir())


def all_anomalous(
    reader: str, root: str | Path, category: str, pairs: Sequence[tuple[str, str]], defect: str,
    endings: Sequence[str] = ("", "_mask"),
) -> list[Sample]:  # fmt: skip
    """Samples of a segmentation set, in which every picture shows what is looked for.

    pairs: spellings of (folder of pictures, folder of masks), of which the first that exists is read. Masks are True
    above 127: those sets store them as JPEG, or resized.
    """
    for images, masks in pairs:
        files = pictures(Path(root) / images)
        if files and (Path(root) / masks).is_dir():
            paired = find_masks(files, Path(root) / masks, endings)
            return in_order(make_sample(root, p, category, defect, mask_view([paired[p]], p, 127)) for p in files)
    raise not_found(reader, root, " or ".join(f"pictures in {images}/ beside {masks}/" for images, masks in pairs))


def split_off(items: Sequence[T], share: float, key: Callable[[T], object] | None = None) -> tuple[list[T], list[T]]:
    """The first part of the sorted items to train on, the rest to test on.

    Neighbours stay together, because they often show the same piece again.

    Raises:
        WrongInput: share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise WrongInput(f"train_share is a part of the good pictures, from 0 to 1; got {share}.")
    ordered = sorted(items, key=key)  # type: ignore[type-var, arg-type]
    cut = math.floor(share * len(ordered) + 1e-9)
    return ordered[:cut], ordered[cut:]


def yes_and_no(reader: str, root: str | Path, category: str, defect: str) -> tuple[list[Sample], list[Sample]]:
    """(normal, anomalous) samples of <root>/no and <root>/yes."""
    good, bad = pictures(Path(root) / "no"), pictures(Path(root) / "yes")
    if not good or not bad:
        raise not_found(reader, root, "pictures in no/ and yes/")
    return [make_sample(root, p, category, "good") for p in good], [make_sample(root, p, category, defect) for p in bad]


def split_word(name: str) -> str:
    """Whether a name has the word train (or validation) or test in it: `instances_train2017` is "train"; "" if not."""
    words = (word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS)
    return SPLITS.get(next(words, ""), "")
