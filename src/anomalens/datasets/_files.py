"""The files behind samples: paths that exist, views that open their file only when read and can be pickled."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import WrongInput
from ..images import read_image, read_mask
from ..types import View

IGNORED = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
Box = tuple[int, int, int, int]
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height


def require_path(path: Path) -> None:
    """Refuse a path that does not exist, with the names that come near."""
    if path.exists():
        return
    parent = path.parent
    if not parent.is_dir():
        raise WrongInput(f"{path} does not exist, nor does the folder {parent}; check the path.")
    names = sorted(name for name in os.listdir(parent) if not ignored(name))
    if near := difflib.get_close_matches(path.name, names, n=3, cutoff=0.5):
        raise WrongInput(f"{path} does not exist; did you mean {' or '.join(near)}?")
    there = "this folder" if parent == Path() else parent
    raise WrongInput(f"{path} does not exist; {there} has {', '.join(names[:5]) if names else 'nothing in it'}.")


def ignored(name: str) -> bool:
    """What systems leave behind, and hidden files."""
    return name.startswith(".") or name.lower() in IGNORED


def picture_view(path: Path, name: str = "image") -> View:
    return View(name, partial(read_image, path), str(path))


def mask_view(masks: Sequence[Path], picture: Path, above: int = 0) -> View:
    """A mask kept in one file, or in several that are joined; `above` as in `read_mask_like`."""
    return View("mask", partial(read_mask_like, tuple(masks), picture, above), str(masks[0]))


def mean_view(lights: Sequence[Path]) -> View:
    """What the eye would see with all lights on: their mean."""
    return View("image", partial(read_mean, tuple(lights)))


def crop_views(picture: Path, masks: Sequence[Path], box: Box) -> tuple[View, View | None]:
    """A part of a picture, and the same part of its mask; box is (x0, y0, x1, y1), x1 and y1 exclusive."""
    mask = View("mask", partial(read_crop, partial(read_mask_like, tuple(masks), picture), box)) if masks else None
    return View("image", partial(read_crop, partial(read_image, picture), box)), mask


def read_crop(read: Callable[[], np.ndarray], box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return np.ascontiguousarray(read()[y0:y1, x0:x1])


def read_mask_like(masks: Sequence[Path], picture: Path, above: int = 0) -> np.ndarray:
    """The union (H, W) bool of mask files, which must have the size of the picture.

    above: values over this are True. 0 is exact; 127 is for masks that a JPEG or a resize has blurred.

    Raises:
        WrongInput: another size; the sentence names both files.
        Unreadable: a file is missing or damaged.
    """
    size = picture_size(picture)
    total = np.zeros(size, bool)
    for path in masks:
        mask = read_mask(path) if above == 0 else read_image(path).max(axis=2) > above
        if mask.shape != size:
            raise WrongInput(
                f"mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {picture} has "
                f"{size[1]} x {size[0]}; save the mask at the size of the picture."
            )
        total |= mask
    return total


def read_mean(lights: Sequence[Path]) -> np.ndarray:
    """Mean (H, W, 3) of pictures of one size and type."""
    pictures = [read_image(path) for path in lights]
    first = pictures[0]
    for path, picture in zip(lights, pictures, strict=True):
        if (picture.shape, picture.dtype) != (first.shape, first.dtype):
            raise WrongInput(
                f"{path} is {picture.shape[1]} x {picture.shape[0]} {picture.dtype} and {lights[0]} is "
                f"{first.shape[1]} x {first.shape[0]} {first.dtype}; pictures of one thing under several lights "
                "must agree."
            )
    return np.rint(np.mean(pictures, axis=0)).astype(first.dtype)


def picture_size(picture: Path) -> tuple[int, int]:
    """(height, width) of a picture as it will be read, from its header alone where that can be understood."""
    try:
        with Image.open(picture) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, ValueError, SyntaxError):
        shape = read_image(picture).shape  # says what is wrong with the file
        return shape[0], shape[1]
    return (width, height) if turned else (height, width)
