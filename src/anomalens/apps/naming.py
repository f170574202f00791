"""What the thing in the pictures of a folder is called, for methods that read sentences about it."""

from __future__ import annotations

from pathlib import Path

from ..datasets import open_folder
from ..datasets.folder import BAD, GOOD, MASKS, NEW, SPLITS

# Folders that hold pictures of anything.
ANYTHING = NEW | {
    "all", "data", "dataset", "datasets", "desktop", "documents", "downloads", "examples", "files", "folder", "home",
    "image", "images", "img", "imgs", "input", "inputs", "items", "object", "objects", "out", "output", "parts", "photos",
    "pics", "picture", "pictures", "queries", "query", "samples", "temp", "things", "tmp", "user", "work",
}  # fmt: skip
LONGEST = 3  # words


def called(*folders: str | None) -> str:
    """A name for the thing, from the first folder that is called like one; "" where none is.

    Also "" where the pictures bring categories along, since each then has its own name. Folders of a layout (train,
    test, good, ...) take the name of the folder above, if that holds nothing but such folders.
    """
    given = [folder for folder in folders if folder]
    if any(any(open_folder(folder).categories) for folder in given):
        return ""
    return next(filter(None, map(name_of_thing, given)), "")


def name_of_thing(folder: str) -> str:
    """Words in lower case, such as `metal nut` for `.../Metal_Nut/test/bad`; "" for names that say nothing."""
    path = Path(folder).resolve()
    path = path.parent if path.is_file() else path
    while is_layout(path.name):
        path = path.parent
        if not all(is_layout(p.name) for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
            return ""
    words = path.name.lower().replace("_", " ").replace("-", " ").split()
    is_name = 0 < len(words) <= LONGEST and all(word.isalpha() for word in words) and max(map(len, words)) > 2
    return " ".join(words) if is_name and not ANYTHING & set(words) else ""


def is_layout(name: str) -> bool:
    return bool(name.lower() in {*SPLITS, *MASKS} or GOOD.fullmatch(name) or BAD.fullmatch(name))
