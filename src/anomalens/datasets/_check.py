"""Looking over a local copy of a dataset: is everything there, can it be read, do the masks fit?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import Unreadable, WrongInput
from ..types import DatasetCard, Sample, View
from ._files import picture_size

NAMED = 5  # files named in the report for each problem
KINDS = {
    "unreadable": "cannot be read",
    "no_mask": "the mask is missing",
    "mask_size": "mask of another size",
    "empty_mask": "nothing in the mask",
}


def check(reader: type[Any], root: str | Path, card: DatasetCard, decode: bool = False) -> dict[str, Any]:
    """Count and look at every file of a dataset, category by category.

    decode: read every picture and every mask completely; without it the pictures' files are verified and the masks'
        headers read, which finds missing, cut off and foreign files.

    Returns:
        JSON-able: title, root, ok, categories {name: {train, good, bad, unlabelled, masks, and lists of ids: unreadable,
        no_mask, mask_size, empty_mask}}, missing (categories), unlisted {category: why it cannot be listed}, found and
        expected (train, test), problems (sentences). expected is None where the card does not tell, or not all
        categories are there. Other counts than the card's are a problem, since archives do get revised, but `ok` is
        False only where something is missing or broken.

    Raises:
        WrongInput: the dataset is not one of files, or nothing of it is below the root.
    """
    fields = {f.name for f in dataclasses.fields(reader)}
    if "root" not in fields:
        raise WrongInput(f"{card.title} is drawn by the library; there are no files to check.")
    given = {"root": root}
    names = reader(**given, category="").categories if "category" in fields else ("",)
    if not names:  # the reader says itself what it looked for
        reader(**given, category=card.categories[0] if card.categories else "").train()
        raise WrongInput(f"{root} holds no category of {card.title}.")
    report: dict[str, dict[str, Any]] = {}
    unlisted: dict[str, str] = {}
    for name in names:
        one = reader(**given, category=name) if "category" in fields else reader(**given)
        try:
            train, test = one.train(), one.test()
        except WrongInput as error:
            unlisted[name] = str(error)
            if len(unlisted) == len(names):
                raise
        else:
            report[name or ", ".join(one.categories)] = _category(train, test, card, decode)
    found = [
        sum(c["train"] for c in report.values()),
        sum(c["good"] + c["bad"] + c["unlabelled"] for c in report.values()),
    ]
    missing = sorted(set(card.categories) - set(names)) if "category" in fields else []
    whole = any(card.pictures) and not missing and not unlisted
    result: dict[str, Any] = {
        "title": card.title, "root": str(root), "categories": report, "missing": missing, "unlisted": unlisted,
        "found": found, "expected": list(card.pictures) if whole else None,
    }  # fmt: skip
    broken = any(c[kind] for c in report.values() for kind in KINDS)
    return {**result, "ok": not (broken or missing or unlisted), "problems": list(_problems(result))}


def _category(train: list[Sample], test: list[Sample], card: DatasetCard, decode: bool) -> dict[str, Any]:
    labels = Counter(s.label for s in test)
    found: dict[str, Any] = {
        "train": len(train), "good": labels[0], "bad": labels[1], "unlabelled": labels[None],
        "masks": sum(s.mask is not None for s in test), **{kind: [] for kind in KINDS},
    }  # fmt: skip
    for sample in (*train, *test):
        kind = _trouble(sample, card, decode)
        if kind:
            found[kind].append(sample.id)
    return found


def _trouble(sample: Sample, card: DatasetCard, decode: bool) -> str:
    """The first thing that is wrong with a sample, a key of KINDS; "" for nothing."""
    if not all(_readable(view, decode) for view in sample.views.values()):
        return "unreadable"
    if sample.label != 1 or not card.masks:
        return ""
    if sample.mask is None:  # some archives have no masks for a part of their pictures; the report says how many
        return ""
    if sample.mask.path and not Path(sample.mask.path).is_file():
        return "no_mask"
    if decode:
        try:
            return "" if sample.mask.read().any() else "empty_mask"
        except Unreadable:
            return "unreadable"
        except WrongInput:
            return "mask_size"
    return _mask_by_header(sample)


def _readable(view: View, decode: bool) -> bool:
    try:
        if decode:
            view.read()
        elif view.path is not None:
            if Path(view.path).stat().st_size == 0:
                return False
            if view.name not in ("points", "series"):  # Pillow cannot open clouds and curves
                with Image.open(view.path) as image:
                    image.verify()
    except (WrongInput, OSError, ValueError, SyntaxError, EOFError):
        return False
    return True


def _mask_by_header(sample: Sample) -> str:
    path = sample.mask.path if sample.mask else None
    picture = sample.views["image"].path if "image" in sample.views else None
    if path is None or picture is None:
        return ""
    try:
        return "" if picture_size(Path(path)) == picture_size(Path(picture)) else "mask_size"
    except Unreadable:
        return "unreadable"


def _problems(result: dict[str, Any]) -> Iterable[str]:
    for name, counts in result["categories"].items():
        for kind, words in KINDS.items():
            if counts[kind]:
                some = ", ".join(counts[kind][:NAMED]) + (", ..." if len(counts[kind]) > NAMED else "")
                yield f"{name}: {words}: {len(counts[kind])} ({some})."
        if 0 < counts["masks"] < counts["bad"]:
            yield f"{name}: {counts['bad'] - counts['masks']} of {counts['bad']} bad pictures come without a mask."
    yield from (f"{name}: {why}" for name, why in result["unlisted"].items())
    if result["missing"]:
        yield f"Categories that are not there: {', '.join(result['missing'])}."
    expected, found = result["expected"], result["found"]
    if expected and expected != found:
        yield (
            f"{found[0]} pictures to train on and {found[1]} to test on were found, {expected[0]} and {expected[1]} were "
            "expected; archives do get revised."
        )
