"""Where samples come from. One file per layout: a `CARD` and a `DATASET` with train(), test() and categories.

    from anomalens.datasets import open_folder, samples
    parts = open_folder("bottle")
    print(parts.describe())

A reader lists samples and nothing else: no transforms, batches or downloads. A view opens its file when read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .. import registry
from ..errors import WrongInput
from ..types import DatasetCard, Sample

if TYPE_CHECKING:
    from .folder import Folder
    from .json_lines import JsonLines


class Dataset(Protocol):
    """What every reader offers. Samples are in the order of their ids."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories that can be read."""

    def train(self) -> list[Sample]:
        """Normal samples to learn from."""

    def test(self) -> list[Sample]:
        """Samples to judge, normal and anomalous."""


def names() -> tuple[str, ...]:
    """Every reader."""
    return registry.stems("datasets")


def card(name: str) -> DatasetCard:
    """What a dataset is, without importing its reader."""
    return registry.literal_card("datasets", "dataset", name, "DatasetCard")


def reader(name: str) -> type[Dataset]:
    """The class of a reader; its fields are what it needs: a root, a category, ...

    Raises:
        UnknownName: no such reader; the message names the nearest ones.
    """
    return registry.module("datasets", "dataset", name).DATASET


def open_folder(path: str | os.PathLike[str]) -> Folder | JsonLines:
    """Understand a folder of pictures, a .csv table of them, or a .jsonl list: train(), test(), samples(), describe().

    Raises:
        WrongInput: no such path, no pictures, a table or masks that do not fit the pictures.
    """
    from .folder import Folder  # here, so that names() and card() load no numpy
    from .json_lines import ENDINGS, JsonLines

    listed = Path(path).suffix.lower() in ENDINGS and Path(path).is_file()
    folder = JsonLines(Path(path)) if listed else Folder(Path(path))
    folder.describe()  # looks at the folder now, so that errors come from here
    return folder


def samples(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Sample]:
    """Every picture of a folder, a table, a list of pictures, or one picture.

    Labels are None unless the names of the folders or the table tell. Ids are relative to the folder, or to the
    folder that all pictures of a list have in common.

    Raises:
        WrongInput: nothing there, or not pictures.
    """
    if isinstance(path, (str, os.PathLike)):
        return open_folder(path).samples()
    paths = [Path(p) for p in path]
    if not paths:
        raise WrongInput("samples got an empty list; give a folder, a picture or a list of pictures.")
    found = [open_folder(p).samples() for p in paths]
    for p, some in zip(paths, found, strict=True):
        if p.is_dir() or len(some) != 1:
            raise WrongInput(f"samples takes a list of pictures; {p} is not one, give a folder by itself.")
    above = Path(os.path.commonpath([p.absolute().parent for p in paths]))
    ids = [p.absolute().relative_to(above).as_posix() for p in paths]
    if len(set(ids)) < len(ids):
        again = next(i for k, i in enumerate(ids) if i in ids[:k])
        raise WrongInput(f"samples got the picture {again} more than once.")
    return [Sample(id, some[0].views) for id, some in zip(ids, found, strict=True)]
