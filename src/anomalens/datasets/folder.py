"""Any folder of pictures: finds out by itself what is good, what is bad and where the masks are, and says so."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import WrongInput
from ..images import SUFFIXES
from ..types import DatasetCard, Sample
from ._files import ignored, mask_view, mean_view, picture_view, require_path

CARD = DatasetCard(
    title="Folder",
    summary="Your own pictures in any folder; the layout is found, and described in words.",
    home="",
    citation="",
    licence="yours",
    commercial=None,
    views=("image", "lights"),
    levels=("structural", "semantic"),
    layout="pictures only; good/ and bad/; train/good, test/<defect>, ground_truth/<defect>; or a .csv table",
    masks=True,
    pictures=(0, 0),
    categories=(),
)

GOOD = re.compile(
    r"(good|ok|okay|normal|pass|passed|fine|io|healthy|(defect|anomaly)[-_ ]?free|(no|non)[-_ ]?(defect\w*|anomal\w*))"
    r"([-_ 0-9].*)?",
    re.IGNORECASE,
)
BAD = re.compile(
    r"(bad|ng|nok|nio|def|fail|failed|failure|broken|scrap|not[-_ ]?(ok|good|normal))([-_ 0-9].*)?"
    r"|(defect|anomal|abnormal|reject|fault|damag).*",
    re.IGNORECASE,
)
SPLITS = {"train": "train", "training": "train", "val": "train", "valid": "train", "validation": "train",
          "test": "test", "testing": "test"}  # fmt: skip
MASKS = {"ground_truth", "groundtruth", "gt", "mask", "masks"}
NEW = {"new", "unknown", "unlabeled", "unlabelled", "unsorted", "incoming"}
MASK_SUFFIX = re.compile(r"[-_ ](mask|gt|ground_?truth)$", re.IGNORECASE)
LIGHT = re.compile(r"light_\d+")
HELD_OUT = 4  # every 4th good picture is for testing where the folder has bad ones but no train and test

COLUMNS = {
    "path": ("path", "image", "file", "filename", "file_name", "image_path", "img_path", "file_path", "filepath",
             "image_file", "img", "picture"),
    "label": ("label", "target", "anomaly", "is_anomaly", "anomalous", "verdict", "status", "quality"),
    "mask": ("mask", "mask_path", "mask_file", "ground_truth", "gt"),
    "split": ("split", "set", "subset", "phase"),
    "category": ("category", "object", "product", "class_name"),
    "defect": ("defect", "defect_type", "defect_kind", "anomaly_type", "kind"),
}  # fmt: skip
ZERO = {"0", "0.0", "false", "no"}
ONE = {"1", "1.0", "true", "yes"}


@dataclass(frozen=True)
class Folder:
    """A folder of pictures, or a .csv table that names them.

    Without a train / test division in the layout, every fourth good picture is kept for testing beside the bad ones.
    Pictures of which nothing is known have label None: `train` gives them all, since they can only be learnt from
    (or, through `samples`, judged).

    Raises:
        WrongInput: no such path, no pictures, a table or masks that do not fit the pictures.
    """

    root: str | Path

    def train(self) -> list[Sample]:
        return [e.sample() for e in self._found.entries if e.split == "train"]

    def test(self) -> list[Sample]:
        return [e.sample() for e in self._found.entries if e.split == "test"]

    def samples(self) -> list[Sample]:
        """Every picture once, in the order of the ids."""
        return [e.sample() for e in self._found.entries]

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({e.category for e in self._found.entries}))

    def describe(self) -> str:
        """One paragraph: how the folder was understood, what is used for what, what was left alone."""
        return self._found.describe()

    @cached_property
    def _found(self) -> Found:
        return find(Path(self.root))


DATASET = Folder


@dataclass(frozen=True)
class Entry:
    """One thing found. dirs and stem are its place below the root; views are its files by name."""

    id: str
    dirs: tuple[str, ...]
    stem: str
    views: Mapping[str, Path]
    split: str = ""
    label: int | None = None
    defect: str = ""
    category: str = ""
    masks: tuple[Path, ...] = ()

    def sample(self) -> Sample:
        views = {name: picture_view(path, name) for name, path in self.views.items()}
        if "image" not in views:
            views["image"] = mean_view([path for name, path in self.views.items() if LIGHT.fullmatch(name)])
        first = next(iter(self.views.values()))
        mask = mask_view(self.masks, first) if self.masks else None
        return Sample(self.id, views, self.category, self.label, mask, self.defect)

    def judged(self, bad: bool, kind: str) -> Entry:
        return replace(self, label=int(bad), defect=kind if bad else "good")


@dataclass(frozen=True)
class Found:
    """What was understood. rule and notes are parts of sentences for `describe`."""

    rule: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    def describe(self) -> str:
        return f"{self.rule}: {'; '.join([*self._uses(), *self.notes])}."

    def _uses(self) -> Iterator[str]:
        counts = Counter((e.split, e.label) for e in self.entries)
        kinds = Counter(e.defect for e in self.entries if e.label == 1)
        masks = sum(bool(e.masks) for e in self.entries if e.label != 0)
        if counts["train", 0]:
            yield f"{plural(counts['train', 0], 'good picture')} to train on"
        if counts["train", None]:
            yield f"{plural(counts['train', None], 'picture')} without a label, to use as good or as new"
        if counts["test", 0]:
            yield f"{plural(counts['test', 0], 'good picture')} to test on"
        if counts["test", 1]:
            named = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
            yield f"{plural(counts['test', 1], 'bad picture')} to test on ({named})"
        if counts["test", None]:
            yield f"{plural(counts['test', None], 'picture')} to test on without a label"
        neither = sum(n for (split, _), n in counts.items() if not split)
        if neither:
            yield f"{plural(neither, 'picture')} without a label or a split, for neither"
        if counts["test", 1]:
            yield f"masks for {masks} of the bad ones" if masks else "no masks"
        elif masks:
            yield plural(masks, "mask")
        names = sorted({e.category for e in self.entries})
        if len(names) > 1:
            yield f"{len(names)} categories ({', '.join(names[:15])}{', ...' if len(names) > 15 else ''})"
        lights = sum(len(e.views) > 1 for e in self.entries)
        if lights:
            yield f"{plural(lights, 'thing')} seen under several lights"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def find(path: Path) -> Found:
    """Look at a path and decide how to read it."""
    require_path(path)
    if path.is_file():
        if path.suffix.lower() == ".csv":
            table = Table(path)
            if "path" not in table.columns:
                raise WrongInput(f"{path} has the columns {table.header}; one named path, image or file is needed.")
            return table.found(listing(path.parent))
        if path.suffix.lower() not in SUFFIXES:
            raise WrongInput(f"{path} is neither a picture ({' '.join(SUFFIXES)}) nor a .csv table nor a folder.")
        return Found("Read as one picture", (Entry(path.name, (), path.stem, {"image": path}, "train"),), ())
    seen = listing(path)
    # A table that only lists files (where they are from, how large they are) says nothing about good and bad.
    tables = [
        t for t in map(Table, seen.tables) if "path" in t.columns and {"label", "mask", "split"} & t.columns.keys()
    ]
    if len(tables) > 1:
        raise WrongInput(f"{path} has {len(tables)} tables of pictures ({tables[0].path.name}, {tables[1].path.name}, "
                         "...); give the one that is meant.")  # fmt: skip
    if tables:
        return tables[0].found(seen)
    if not seen.pictures:
        kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in seen.others)
        saw = ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common(5)) or "nothing at all"
        raise WrongInput(f"{path} holds no pictures ({' '.join(SUFFIXES)}); it holds {saw}.")
    return by_names(path, seen)


# What is in a folder.


@dataclass(frozen=True)
class Listing:
    """Relative paths with `/`, sorted: pictures, tables in the folder itself, all other files."""

    root: Path
    pictures: tuple[str, ...]
    tables: tuple[Path, ...]
    others: tuple[str, ...]

    def left_alone(self) -> list[str]:
        """Parts of sentences for what is not a picture."""
        if not self.others:
            return []
        some = ", ".join(self.others[:3]) + (", ..." if len(self.others) > 3 else "")
        is_one = len(self.others) == 1
        what = "is not a picture was" if is_one else "are not pictures were"
        return [f"{plural(len(self.others), 'file')} that {what} left alone ({some})"]


def listing(root: Path) -> Listing:
    """Everything below a folder. Links to files and folders are followed, but never back into a folder above."""
    files: list[str] = []

    def walk(folder: Path, place: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            here = folder.stat()
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise WrongInput(f"{folder} cannot be listed: {os.strerror(error.errno or 0).lower()}.") from None
        if (here.st_dev, here.st_ino) in above:
            return
        for name in names:
            if ignored(name):
                continue
            if (folder / name).is_dir():
                walk(folder / name, f"{place}{name}/", (*above, (here.st_dev, here.st_ino)))
            else:
                files.append(place + name)

    walk(root, "", ())
    files.sort()
    pictures = [name for name in files if name.lower().endswith(SUFFIXES)]
    others = [name for name in files if not name.lower().endswith(SUFFIXES)]
    tables = [root / name for name in others if name.lower().endswith(".csv") and "/" not in name]
    return Listing(root, tuple(pictures), tuple(tables), tuple(others))


def entries_of(root: Path, pictures: Iterable[str]) -> list[Entry]:
    """One entry for each picture, or for each folder of pictures light_0, light_1, ... of one thing."""
    folders: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for name in pictures:
        *dirs, file = name.split("/")
        folders[tuple(dirs)].append((Path(file).stem, name))
    entries: list[Entry] = []
    for place, files in folders.items():
        if sum(bool(LIGHT.fullmatch(stem)) for stem, _ in files) > 1:
            views = {stem: root / name for stem, name in sorted(files, key=_by_number)}
            stem = place[-1] if place else root.resolve().name
            entries.append(Entry("/".join(place) or stem, place[:-1], stem, views))
        else:
            entries += [Entry(name, place, stem, {"image": root / name}) for stem, name in files]
    return sorted(entries, key=lambda e: e.id)


def _by_number(file: tuple[str, str]) -> tuple[str, int]:
    """light_2 before light_10."""
    word, _, number = file[0].rpartition("_")
    return (word, int(number)) if number.isdigit() else (file[0], 0)


# Layouts told by the names of folders.


def by_names(root: Path, seen: Listing) -> Found:
    """Sort entries by the names of the folders they are in."""
    pictures, masks = split_masks(entries_of(root, seen.pictures))
    notes = seen.left_alone()
    if any(d.lower() in SPLITS for e in pictures for d in e.dirs):
        rule = "Read as train and test folders"
        entries, outside = with_splits(root, pictures, {m.dirs[: mask_part(m)] for m in masks})
        if outside:
            tops = sorted({"/".join(e.dirs) or "." for e in outside})
            shown = ", ".join(tops[:3]) + (", ..." if len(tops) > 3 else "")
            notes.insert(0, f"{plural(len(outside), 'picture')} outside train and test left alone (in {shown})")
        entries = with_masks(root, entries, masks, outside)
    elif any(GOOD.fullmatch(d) or BAD.fullmatch(d) for e in pictures for d in e.dirs):
        rule = "Read as folders of good and bad pictures"
        entries, note = held_out(with_masks(root, good_and_bad(pictures), masks))
        notes[:0] = note
    else:
        rule = "Read as pictures only"
        entries = with_masks(root, [replace(e, split="train") for e in pictures], masks)
    return Found(rule, tuple(entries), tuple(notes))


def with_splits(
    root: Path, pictures: list[Entry], mask_places: set[tuple[str, ...]]
) -> tuple[list[Entry], list[Entry]]:
    """Entries below train and test folders, and those outside of them."""
    inside: list[tuple[Entry, int]] = []
    outside = []
    for e in pictures:
        at = next((k for k, d in enumerate(e.dirs) if d.lower() in SPLITS), None)
        if at is None:
            outside.append(e)
        else:
            inside.append((e, at))
    # A strange name below test is a defect where good or bad folders or masks lie beside it; else it may be anything.
    told = set(mask_places)
    named: set[tuple[str, ...]] = set()
    for e, at in inside:
        if any(GOOD.fullmatch(d) or BAD.fullmatch(d) for d in e.dirs[at + 1 : at + 2]):
            named.add(e.dirs[: at + 1])
            if SPLITS[e.dirs[at].lower()] == "test":
                told.add(e.dirs[:at])
    entries = []
    for e, at in inside:
        split, below = SPLITS[e.dirs[at].lower()], e.dirs[at + 1 :]
        e = replace(e, split=split, category="/".join(e.dirs[:at]) or root.resolve().name)
        if below and GOOD.fullmatch(below[0]):
            e = e.judged(False, "good")
        elif below and BAD.fullmatch(below[0]):
            e = e.judged(True, below[1] if len(below) > 1 else below[0])
        elif below and (e.dirs[:at] in told if split == "test" else e.dirs[: at + 1] in named):
            e = e.judged(True, below[0])
        elif split == "train":
            e = e.judged(False, "good")
        entries.append(replace(e, split="test") if e.label == 1 else e)
    return entries, outside


def good_and_bad(pictures: list[Entry]) -> list[Entry]:
    """Labels from the first folder that is called good or bad."""
    any_bad = any(BAD.fullmatch(d) and not GOOD.fullmatch(d) for e in pictures for d in e.dirs)
    beside_good = {e.dirs[:k] for e in pictures for k, d in enumerate(e.dirs) if GOOD.fullmatch(d)}
    entries = []
    for e in pictures:
        at = next((k for k, d in enumerate(e.dirs) if GOOD.fullmatch(d) or BAD.fullmatch(d)), None)
        if at is not None:
            bad = not GOOD.fullmatch(e.dirs[at])
            e = replace(e, category="/".join(e.dirs[:at])).judged(bad, e.dirs[min(at + 1, len(e.dirs) - 1)])
        elif not any_bad:  # good beside crack, hole, ...: the defects are called by their names
            at = next((k for k in range(len(e.dirs)) if e.dirs[:k] in beside_good), None)
            if at is not None and e.dirs[at].lower() not in NEW:
                e = replace(e, category="/".join(e.dirs[:at])).judged(True, e.dirs[at])
        entries.append(e)
    if len({e.category for e in entries if e.label is not None}) == 1:  # a folder above, no division into categories
        entries = [replace(e, category="") for e in entries]
    return entries


def held_out(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Divide labelled entries into train and test, in every category; the second value says so in words."""
    with_bad = {e.category for e in entries if e.label == 1}
    good: Counter[str] = Counter()
    divided, kept = [], 0
    for e in entries:
        if e.label == 0:
            good[e.category] += 1
            test = e.category in with_bad and good[e.category] % HELD_OUT == 0
            kept += test
            divided.append(replace(e, split="test" if test else "train"))
        else:
            divided.append(replace(e, split="test" if e.label == 1 else ""))
    return divided, ["every fourth good picture is kept for testing"] if kept else []


# Masks.


def mask_part(entry: Entry) -> int:
    """Which of its folders is the mask folder; the number of folders where none is."""
    return next((k for k, d in enumerate(entry.dirs) if d.lower() in MASKS), len(entry.dirs))


def split_masks(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Pictures, and masks: what lies in a mask folder, or is called like the picture beside it plus `_mask`."""
    places = {(e.dirs, e.stem) for e in entries}
    pictures: list[Entry] = []
    masks: list[Entry] = []
    for e in entries:
        bare = MASK_SUFFIX.sub("", e.stem)
        beside = bare != e.stem and (e.dirs, bare) in places
        (masks if beside or mask_part(e) < len(e.dirs) else pictures).append(e)
    return pictures, masks


def with_masks(root: Path, entries: list[Entry], masks: list[Entry], outside: Iterable[Entry] = ()) -> list[Entry]:
    """Give every mask to its picture: same stem, and the folders below the mask folder end the picture's folders.

    Masks of good pictures and of pictures that are not used are left out.
    """
    by_stem: dict[str, list[Entry]] = defaultdict(list)
    for e in (*entries, *outside):
        by_stem[e.stem].append(e)
    found: dict[str, list[Path]] = defaultdict(list)
    lost = []
    for m in masks:
        at = mask_part(m)
        above, below = m.dirs[:at], m.dirs[at + 1 :]
        owners = []
        # <defect>/<stem>_mask.png, <defect>/<stem>.png, or <defect>/<stem>/<any>.png with several masks of a picture
        ways = [(below, m.stem), (below, MASK_SUFFIX.sub("", m.stem)), (below[:-1], below[-1] if below else "")]
        for dirs, stem in ways:
            owners = [
                e for e in by_stem[stem] if e.dirs[: len(above)] == above and e.dirs[len(e.dirs) - len(dirs) :] == dirs
            ]
            owners = [e for e in owners if e.label == 1] or owners
            owners = [e for e in owners if e.dirs == m.dirs] or owners  # beside the picture
            if owners:
                break
        if len(owners) > 1 and any(e.label != 0 for e in owners):
            raise WrongInput(
                f"mask {m.id} in {root} fits {len(owners)} pictures ({owners[0].id}, {owners[1].id}, ...); "
                "put masks in the same sub-folders as their pictures."
            )
        if owners:
            found[owners[0].id] += m.views.values()
        else:
            lost.append(m.id)
    if lost:
        raise WrongInput(f"{plural(len(lost), 'mask')} in {root} without a picture, the first is {lost[0]}; "
                         "add the picture or remove the mask.")  # fmt: skip
    return [replace(e, masks=tuple(found[e.id])) if e.id in found and e.label != 0 else e for e in entries]


# Tables.


class Table:
    """A .csv file, comma, semicolon or tab between the cells. columns: what each known column is called in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise WrongInput(f"{path} cannot be read: {os.strerror(error.errno or 0).lower()}.") from None
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
        try:
            self.rows = [{k: v.strip() for k, v in row.items() if k and v is not None} for row in reader]
        except csv.Error as error:
            raise WrongInput(f"{path} is not a table we can read: {error}.") from None
        self.header = ", ".join(reader.fieldnames or ()) or "none"
        spelled = {re.sub(r"\W+", "_", name.strip().lower()): name for name in reader.fieldnames or ()}
        self.columns = {  # for every role, its first spelling that is there
            role: next(spelled[name] for name in names if name in spelled)
            for role, names in COLUMNS.items()
            if not spelled.keys().isdisjoint(names)
        }

    def cell(self, row: Mapping[str, str], role: str) -> str:
        return row.get(self.columns[role], "") if role in self.columns else ""

    def found(self, seen: Listing) -> Found:
        """Entries from the rows; paths are relative to the table."""
        root = self.path.parent
        rows = [row for row in self.rows if self.cell(row, "path")]
        if not rows:
            raise WrongInput(
                f"{self.path} names no picture; every row needs a file in its column {self.columns['path']}."
            )
        for role in ("path", "mask"):
            named = [name for row in rows if (name := self._relative(self.cell(row, role)))]
            missing = [name for name in named if not (root / name).is_file()]
            if missing:
                raise WrongInput(
                    f"{self.path} names {plural(len(missing), 'missing file')}, the first is {missing[0]}; "
                    f"paths are relative to {root}."
                )
            twice = [name for name, n in Counter(named).items() if n > 1]
            if role == "path" and twice:
                raise WrongInput(
                    f"{self.path} names {plural(len(twice), 'picture')} more than once, the first is {twice[0]}; "
                    "leave one row for each."
                )
        good_named = any(GOOD.fullmatch(self.cell(row, "label")) for row in rows)
        entries = sorted((self._entry(row, root, good_named) for row in rows), key=lambda e: e.id)
        notes: list[str] = []
        named_files = {self._relative(self.cell(row, role)) for row in rows for role in ("path", "mask")}
        if "split" not in self.columns:
            labelled = any(e.label is not None for e in entries)
            if labelled and any(d.lower() in SPLITS for name in seen.pictures for d in name.split("/")[:-1]):
                entries = self._told(by_names(root, seen).entries, entries)
                notes.append("train and test are told by the folders")
            elif labelled:
                entries, notes = held_out(entries)
            else:
                entries = [replace(e, split="train") for e in entries]
        used = {path for e in entries for path in (*e.views.values(), *e.masks)}
        unused = [name for name in seen.pictures if root / name not in used and name not in named_files]
        if unused:
            notes.append(f"{plural(len(unused), 'picture')} that the table does not name left alone ({unused[0]}"
                         f"{', ...' if len(unused) > 1 else ''})")  # fmt: skip
        others = replace(seen, others=tuple(name for name in seen.others if name != self.path.name))
        columns = ", ".join(f"{name} as {role}" if name != role else name for role, name in self.columns.items())
        return Found(
            f"Read as the table {self.path.name} (columns {columns})", tuple(entries), (*notes, *others.left_alone())
        )

    @staticmethod
    def _told(by_folder: Iterable[Entry], by_table: Iterable[Entry]) -> list[Entry]:
        """What the folders say, corrected by the labels of the table."""
        told = {e.id: e for e in by_folder}
        for e in by_table:
            if e.label is not None:
                known = told.get(e.id, e)
                told[e.id] = replace(
                    e,
                    split="test" if e.label == 1 else known.split,
                    category=e.category or known.category,
                    masks=e.masks or (known.masks if e.label == 1 else ()),
                )
        return sorted(told.values(), key=lambda e: e.id)

    def _relative(self, name: str) -> str:
        """A cell as a path relative to the table, with `/`."""
        if not name:
            return ""
        path = Path(name.replace("\\", "/"))
        if path.is_absolute() and path.is_relative_to(self.path.parent.resolve()):
            path = path.relative_to(self.path.parent.resolve())
        return path.as_posix()

    def _entry(self, row: Mapping[str, str], root: Path, good_named: bool) -> Entry:
        name = self._relative(self.cell(row, "path"))
        *dirs, file = name.split("/")
        label, kind = self._judge(self.cell(row, "label"), good_named)
        if label is None and self.cell(row, "mask"):
            label = 1
        split = self._split(self.cell(row, "split"))
        if split == "train" and label is None and "label" not in self.columns:
            label = 0
        mask = self._relative(self.cell(row, "mask"))
        return Entry(
            id=name, dirs=tuple(dirs), stem=Path(file).stem, views={"image": root / name},
            split="test" if label == 1 else split,
            label=label,
            defect="good" if label == 0 else "" if label is None else self.cell(row, "defect") or kind,
            category=self.cell(row, "category"),
            masks=(root / mask,) if mask and label != 0 else (),
        )  # fmt: skip

    def _judge(self, word: str, good_named: bool) -> tuple[int | None, str]:
        """(label, kind of defect) of a cell; any other word is a kind of defect where good ones are called good."""
        if not word:
            return None, ""
        if word.lower() in ZERO or GOOD.fullmatch(word):
            return 0, "good"
        if word.lower() in ONE or BAD.fullmatch(word):
            return 1, "bad" if word.lower() in ONE else word
        if good_named:
            return 1, word
        raise WrongInput(f"{self.path} has the label {word!r}; labels are 0 or 1, good or bad, normal or anomaly.")

    def _split(self, word: str) -> str:
        if word and word.lower() not in SPLITS:
            raise WrongInput(f"{self.path} has the split {word!r}; splits are train, validation and test.")
        return SPLITS.get(word.lower(), "")
