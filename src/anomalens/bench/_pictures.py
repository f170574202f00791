"""The pictures of a plan: which categories there are, who is good and who is tested, decoded once where memory allows."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import datasets, registry
from ..errors import CannotWrite, Unreadable, WrongInput, unknown
from ..files import write_atomic
from ..parts.batches import ahead
from ..synthesis import corruptions
from ..types import Sample, View

KEEP = 512 * 2**20  # bytes of decoded test pictures that a job keeps; what is beyond is read again for every condition
SHELF = 8 * 2**30  # bytes of disturbed pictures that a run keeps on disk for its other methods and seeds
DRAW = 0  # seed of what must be the same for all methods and seeds: the limit, the hold-out, the disturbances of tests


def spelled(reader: str, category: str) -> str:
    """A category as the folder is called, where a data set has other names for it too (`cable_tie` of RAD is `ribbon`)."""
    return getattr(registry.module("datasets", "dataset", reader), "folder_of", str)(category)


def check_options(reader: str, root: str, options: Any) -> None:
    """Refuse options that the reader does not have, or cannot take."""
    known = _fields(reader)
    if not isinstance(options, Mapping):
        raise WrongInput(f"options of {reader} are {options!r}; give a table of key = value.")
    for key in options:
        if key not in known - {"root", "category"}:
            raise unknown(f"option of {reader}", key, sorted(known - {"root", "category"}))
    if "root" in known and not root:
        raise WrongInput(f"the data of reader {reader} has no root; give the folder of its pictures.")


def check_categories(reader: str, root: str, options: Mapping[str, Any], names: list[str], folder: Path) -> None:
    """Refuse categories that are not there."""
    if _in_folder(reader) and names and all((folder / root / name).is_dir() for name in names):
        return  # other folders beside them do not matter and need not be looked through
    known = categories(reader, root, options, folder)
    for name in names:
        if name not in known:
            raise unknown(f"category in {root or reader}", name, known)
    if len(set(names)) < len(names):
        raise WrongInput(f"categories of {root or reader} names {max(names, key=names.count)} twice; name each once.")


def categories(reader: str, root: str, options: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Every category of a data set, by name; a folder without categories has one, called like the folder.

    Raises:
        WrongInput: nothing of the data set is there.
    """
    found = _open(reader, root, options, folder, "").categories
    if not found:
        first = datasets.card(reader).categories
        _open(reader, root, options, folder, first[0] if first else "").train()  # says what it looked for
        raise WrongInput(f"{root} holds no category of {reader}; check the root.")
    return tuple(name or (folder / root).resolve().name for name in found)


def parts(data: Mapping[str, Any], category: str, folder: Path) -> tuple[list[Sample], list[Sample]]:
    """(good samples to learn from, labelled samples to test on) of one category, in the order of their ids.

    Raises:
        WrongInput: the reader finds nothing, or no sample to test on has a label.
    """
    reader, root, options = data["reader"], data["root"], data["options"]
    if _in_folder(reader) and (folder / root / category).is_dir():
        one = _open(reader, f"{root}/{category}", options, folder, "")
        train, test = ([replace(s, id=f"{category}/{s.id}") for s in some] for some in (one.train(), one.test()))
    else:
        one = _open(reader, root, options, folder, category)
        train, test = one.train(), one.test()
        if "category" not in _fields(reader) and len(one.categories) > 1:
            train, test = ([s for s in some if s.category == category] for some in (train, test))
    test = [s for s in test if s.label is not None]
    if not test:
        raise WrongInput(f"{root or reader} has no labelled test pictures of {category}; good and bad ones are needed.")
    return sorted(train, key=lambda s: s.id), sorted(test, key=lambda s: s.id)


def limited(test: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples of each class, drawn once for all."""
    if limit is None:
        return test
    kept: set[str] = set()
    for label in (0, 1):
        ids = [s.id for s in test if s.label == label]
        kept.update(ids[i] for i in np.random.default_rng(DRAW).permutation(len(ids))[:limit])
    return [s for s in test if s.id in kept]


def drawn(train: list[Sample], shots: int | str, seed: int, hold_out: float) -> tuple[list[Sample], list[Sample]]:
    """(samples to fit on, samples held out), both in order; few shots are drawn by the seed from what is not held out.

    The held-out share is the same for all seeds, and smaller where fit needs the pictures. Fewer shots of one seed are
    among the more.

    Raises:
        WrongInput: more shots than good pictures.
    """
    count = len(train)
    wanted = shots if isinstance(shots, int) else 0
    if wanted > count:
        raise WrongInput(f"{wanted} good pictures were asked for and there are {count}; lower shots.")
    held = min(round(hold_out * count), count - wanted)
    away = {int(i) for i in np.random.default_rng(DRAW).permutation(count)[:held]}
    left = [i for i in range(count) if i not in away]
    if shots != "full":
        left = sorted(left[i] for i in np.random.default_rng(seed).permutation(len(left))[:wanted])
    return [train[i] for i in left], [train[i] for i in sorted(away)]


def distinct(samples: Iterable[Sample]) -> tuple[list[Sample], dict[str, str]]:
    """Samples whose files hold different bytes, and for every id the id of the sample that stands for it."""
    first: dict[str, Sample] = {}
    stands_for: dict[str, str] = {}
    for sample in samples:
        stands_for[sample.id] = first.setdefault(_digest(sample), sample).id
    return list(first.values()), stands_for


def _digest(sample: Sample) -> str:
    files = [view.path for view in sample.views.values()]
    if not all(files):
        return sample.id
    try:
        return hashlib.sha256(b"".join(hashlib.sha256(Path(str(f)).read_bytes()).digest() for f in files)).hexdigest()
    except OSError:
        return sample.id  # reading it as a picture says what is wrong


@dataclass
class Readable:
    """Samples without those that cannot be read; can be iterated again.

    unreadable: sample id to the sentence that says why. keep: bytes of decoded pictures and masks to hold on to.
    """

    samples: list[Sample]
    keep: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    _kept: dict[str, Sample] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Sample]:
        for decoded in ahead(self._decode, (s for s in self.samples if s.id not in self.unreadable)):
            if decoded is not None:
                yield decoded

    def settled(self) -> list[Sample]:
        """The readable samples as a list: those within `keep` decoded, the others to be read again."""
        found, left = [], self.keep
        for sample, decoded in zip(self.samples, ahead(self._decode, self.samples), strict=True):
            if decoded is None:
                continue
            read = [*decoded.views.values(), *([decoded.mask] if decoded.mask else [])]
            left -= sum(view.read().nbytes for view in read)
            found.append(decoded if left >= 0 else sample)
        return found

    def _decode(self, sample: Sample) -> Sample | None:
        try:
            views = {name: _read(view) for name, view in sample.views.items()}
            return replace(sample, views=views, mask=_read(sample.mask) if sample.mask else None)
        except Unreadable as error:
            self.unreadable[sample.id] = str(error)
            return None


@dataclass
class Shelf:
    """Disturbed test pictures, kept on disk while a run lasts: every method and seed is tested on the same ones.

    folder: None keeps nothing. about: what tells pictures of one data set from those of another.
    """

    folder: Path | None
    about: Any = None
    _held: int | None = None

    def disturbed(self, samples: list[Sample], name: str, grade: int) -> list[Sample]:
        """The samples at one grade of a corruption."""
        return list(ahead(partial(self._one, name=name, grade=grade), samples))

    def _one(self, sample: Sample, name: str, grade: int) -> Sample:
        made = corruptions.apply(sample, name, grade, DRAW)
        path = self._path(sample.id, sample.category, _stamps(sample), name, grade)
        if path is None:
            return made
        if not path.exists():
            arrays = {f"view {view.name}": view.read() for view in made.views.values()}
            if made.mask is not None:
                arrays["mask"] = made.mask.read()
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]
            try:
                if not self._has_room(content.getbuffer().nbytes):
                    return made
                write_atomic(path, content.getvalue())
            except OSError:  # CannotWrite is one: it is made again by everyone who needs it
                return made
        views = {key: View(key, partial(_taken, path, f"view {key}"), view.path) for key, view in made.views.items()}
        mask = View("mask", partial(_taken, path, "mask")) if made.mask is not None else None
        return replace(made, views=views, mask=mask)

    def left_out(self, samples: list[Sample], name: str) -> set[str]:
        """Ids of the samples that lose their defect at some grade of a corruption."""
        path = self._path("left out", [s.id for s in samples], [_stamps(s) for s in samples], name)
        if path and path.exists():
            return set(json.loads(path.read_text(encoding="utf-8")))
        stay = ahead(lambda sample: corruptions.survives(sample, name, DRAW), samples)
        found = {s.id for s, kept in zip(samples, stay, strict=True) if not kept}
        if path:
            with suppress(CannotWrite):
                write_atomic(path, json.dumps(sorted(found)))
        return found

    def _path(self, *known_as: Any) -> Path | None:
        text = json.dumps([self.about, corruptions.VERSION, *known_as], default=str)
        return self.folder and self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _has_room(self, size: int) -> bool:
        """Whether the limit allows it, and three quarters of the free disk stay free. Processes count for themselves."""
        assert self.folder is not None
        if self._held is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = sum(file.stat().st_size for file in self.folder.iterdir())
        self._held += size
        return self._held <= min(SHELF, (shutil.disk_usage(self.folder).free + self._held) // 4)


def _stamps(sample: Sample) -> list[tuple[str, int]]:
    return [(v.path, Path(v.path).stat().st_mtime_ns) for v in sample.views.values() if v.path]


def _taken(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as held:
        return held[key]


def _read(view: View) -> View:
    return View(view.name, partial(np.asarray, view.read()), view.path)


def _fields(reader: str) -> set[str]:
    return {f.name for f in dataclasses.fields(datasets.reader(reader))}  # type: ignore[arg-type]


def _in_folder(reader: str) -> bool:
    """Whether a category is simply a folder below the root, for readers that take no category."""
    return reader == "folder"


def _open(reader: str, root: str, options: Mapping[str, Any], folder: Path, category: str) -> Any:
    fields = _fields(reader)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    if "root" in fields:
        given["root"] = folder / root
    if "category" in fields and (category or "root" in fields):
        given["category"] = category
    try:
        return datasets.reader(reader)(**given)
    except TypeError as error:
        raise WrongInput(f"the reader {reader} cannot be opened with {given}: {error}.") from None
