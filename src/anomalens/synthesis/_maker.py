"""What all makers share: where and how large a defect is, what of it can be seen, and what is measured of it.

A maker draws into a box of the picture. What it drew is rounded to whole grey levels and looked at: the mask is where a
channel of a view changed by at least VISIBLE grey levels, with gaps closed that are no wider than the grain of the
change. Everything outside the mask is put back, so outside is exactly the normal picture. A defect that changes its mask
by less than SHOWS grey levels on average, or whose mask is smaller or larger than asked for, is drawn again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NotMade, WrongInput
from ..images import read_mask, resize, to_8bit, to_float
from ..regions import otsu
from ..types import Sample, View

SMALLEST = 16  # pixels on the short side of a picture
SHORTEST = 3  # pixels on the longest side of a defect
VISIBLE = 2  # grey levels of 255 by which each pixel of the mask changed, but for closed gaps,
SHOWS = 4  # and the mean of them: less is lost in the noise of a camera
ATTEMPTS = 30
SLACK = 0.1  # a mask may be this share, or 2 pixels, longer or shorter than the sizes asked for
COARSE = 128  # pixels of the long side of the copy in which foregrounds are found
PICTURE = re.compile(r"image|light_\d+")  # views that show the defect; depth and others stay as they are

Range = tuple[float, float]
Box = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Draft:
    """What one defect is drawn from.

    pictures: (H, W, 3) uint8 or uint16 by view, all of one size. length: longest side of the defect, pixels.
    severity: 0 invisible to 1 strongest. allowed: (H, W) bool, where a defect may be, or None for anywhere.
    rng: everything random comes from here.
    """

    pictures: Mapping[str, np.ndarray]
    length: int
    severity: float
    allowed: np.ndarray | None
    rng: np.random.Generator

    @property
    def shape(self) -> tuple[int, int]:
        return next(iter(self.pictures.values())).shape[:2]

    def cut(self, box: Box) -> dict[str, np.ndarray]:
        """(h, w, 3) float32 in [0, 1] of each view."""
        return {name: to_float(picture[box]) for name, picture in self.pictures.items()}

    def place(self, height: int, width: int) -> Box:
        """A drawn box inside the picture, its centre where a defect may be.

        Raises:
            NotMade: no such place.
        """
        rows, columns = self.shape[0] - height + 1, self.shape[1] - width + 1
        if min(rows, columns) < 1:
            raise NotMade(f"the picture has no room for {height} x {width} pixels.")
        if self.allowed is None:
            return box_at(int(self.rng.integers(rows)), int(self.rng.integers(columns)), height, width)
        centres = np.flatnonzero(self.allowed[height // 2 :, width // 2 :][:rows, :columns])
        if not len(centres):
            raise NotMade(f"no place where a defect may be has room for {height} x {width} pixels.")
        top, left = divmod(int(centres[self.rng.integers(len(centres))]), columns)
        return box_at(top, left, height, width)


@dataclass(frozen=True)
class Change:
    """What a maker drew: views as (h, w, 3) float32 of the box.

    grain: pixels; invisible gaps up to this width inside the defect belong to it. notes: what else was drawn, for
    `Sample.made`.
    """

    box: Box
    views: Mapping[str, np.ndarray]
    grain: int = 2
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Maker:
    """Parent of every maker; a maker is a dataclass that adds its settings and says how to `draw`.

    size: (low, high), longest side of the defect as a share of the picture's short side, evenly drawn.
    severity: (low, high) in (0, 1], evenly drawn; 0 would be invisible, 1 is the strongest.
    where: "" anywhere; "bright" or "dark": only in that part of the picture, split by Otsu's threshold; or the path of
        a mask picture, whose non-zero pixels are where a defect may be.

    Raises:
        WrongInput: a range that is empty or leaves 0 to 1.
    """

    size: Range = (0.1, 0.3)
    severity: Range = (0.3, 1.0)
    where: str = ""

    def __post_init__(self) -> None:
        for setting in ("size", "severity"):
            low, high = getattr(self, setting)
            if not 0 < low <= high <= 1:
                raise WrongInput(
                    f"{self.name} setting {setting} is (low, high) with 0 < low <= high <= 1; got ({low:g}, {high:g})."
                )
            setattr(self, setting, (float(low), float(high)))

    @property
    def name(self) -> str:
        """Name in the registry: the name of the file."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    def settings(self) -> dict[str, Any]:
        """The dataclass fields, as given."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def plain_settings(self) -> dict[str, Any]:
        """The settings that JSON can hold; what is an object (samples, a network) is left out."""
        return {key: value for key, value in self.settings().items() if _plain(value)}

    def draw(self, draft: Draft) -> Change:
        """Draw one defect of about draft.length pixels."""
        raise TypeError(f"{type(self).__name__} does not say how it draws")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with a drawn defect: label 1, a mask, defect = the maker's name, `made` says how.

        All lights of a sample change at the same place in the same way; depth and other views stay as they are. Its
        pictures are read now. The same sample and state of rng give the same bytes. rng moves on by one number, whatever
        the settings: with another severity the same defect is drawn stronger or weaker.

        Raises:
            NotMade: the picture is too small, or shows nothing of a defect in 30 attempts.
            WrongInput: the sample is anomalous already, or its pictures are none or differ in size.
        """
        pictures = pictures_of(sample)
        shape = next(iter(pictures.values())).shape[:2]
        short = min(shape)
        if short < SMALLEST or self.size[1] * short < SHORTEST:
            raise NotMade(
                f"sample {sample.id} has {shape[1]} x {shape[0]} pixels; {self.name} needs {SMALLEST} on the short side, "
                f"and {SHORTEST} for the longest side of a defect (size is up to {self.size[1]:g} of {short})."
            )
        allowed = where_allowed(self.where, pictures, sample.id)
        grey = {name for name, picture in pictures.items() if is_grey(picture)}
        base = int(rng.integers(2**63))
        reason = ""
        for attempt in range(ATTEMPTS):
            own = np.random.default_rng([base, attempt])
            size, severity = (float(own.uniform(*r)) for r in (self.size, self.severity))
            length = min(max(SHORTEST, round(size * short)), short)
            try:
                change = self.draw(Draft(pictures, length, severity, allowed, own))
            except NotMade as error:
                reason = str(error)
                continue
            boxes, visible, strength = seen(pictures, change, allowed, grey)
            longest = longest_side(visible)
            if strength < SHOWS:
                reason = f"the last one changed the picture by {strength:.1f} grey levels, {SHOWS} are needed."
            elif not self._fits(longest, short):
                reason = f"the last one showed {longest} pixels of {length}."
            else:
                after, mask = put_in(pictures, change.box, boxes, visible)
                notes = {"attempt": attempt, **change.notes}
                return finish(self, sample, pictures, after, mask, size, severity, notes, f"{base:016x}")
        raise NotMade(
            f"{self.name} drew no defect of size {self.size[0]:g} to {self.size[1]:g} that shows in sample {sample.id} in "
            f"{ATTEMPTS} attempts: {reason.rstrip('.')}; try another picture, size or severity."
        )

    def _fits(self, longest: int, short: int) -> bool:
        low, high = (share * short for share in self.size)
        return longest > 0 and low - max(2, SLACK * low) <= longest <= high + max(2, SLACK * high)


def finish(
    maker: Maker,
    sample: Sample,
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    mask: np.ndarray,
    size: float,
    severity: float,
    notes: Mapping[str, Any],
    key: str,
) -> Sample:
    """The sample with its changed views, label, mask and `made`.

    before, after: (H, W, 3) by view, of the same types. mask: (H, W) bool. size, severity: what was drawn. key: tells
        this defect from others in the same picture.
    """
    views = {**sample.views, **{name: View(name, partial(given, picture)) for name, picture in after.items()}}
    made = {
        "maker": maker.name,
        "settings": maker.plain_settings(),
        "source": sample.id,
        "size": size,
        "severity": severity,
        "drawn": dict(notes),
        "measured": measured(before, after, mask),
    }
    return replace(
        sample, id=f"{sample.id}+{maker.name}-{key}", views=views, label=1, mask=View("mask", partial(given, mask)),
        defect=maker.name, made=made,
    )  # fmt: skip


def measured(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    """What became of a defect.

    area: share of the picture. longest: pixels, of the box around the mask. size: the same as a share of the short side.
    contrast: mean absolute difference inside the mask, over channels and views; outside: the largest one outside of it.
        Both in grey levels of 255.
    """
    touched = np.logical_or.reduce([(after[name] != old).any(axis=2) for name, old in before.items()])
    box = box_around(mask | touched)  # nothing but zeros lies beyond it, and that may be most of a large picture
    within = mask[box]
    inside, outside = [], 0.0
    for name, old in before.items():
        levels = np.iinfo(old.dtype).max / 255
        difference = np.abs(after[name][box].astype(np.int32) - old[box]) / levels
        inside.append(float(difference[within].mean()) if within.any() else 0.0)
        outside = max(outside, float(difference[~within].max(initial=0)))
    longest = longest_side(mask)
    return {
        "area": float(mask.mean()), "longest": longest, "size": longest / min(mask.shape),
        "contrast": float(np.mean(inside)), "outside": outside,
    }  # fmt: skip


def pictures_of(sample: Sample) -> dict[str, np.ndarray]:
    """The views that show a defect, read.

    Raises:
        WrongInput: the sample is anomalous, has no such view, or views of different sizes.
    """
    if sample.label == 1:
        raise WrongInput(f"sample {sample.id} is anomalous already ({sample.defect}); draw defects into normal ones.")
    pictures = {name: view.read() for name, view in sample.views.items() if PICTURE.fullmatch(name)}
    if not pictures:
        raise WrongInput(
            f"sample {sample.id} has views {tuple(sample.views)}; image or light_0, light_1 ... is needed."
        )
    shapes = {name: picture.shape for name, picture in pictures.items()}
    if len(set(shapes.values())) > 1:
        raise WrongInput(f"sample {sample.id} has views of different sizes, {shapes}; a defect needs the same for all.")
    return pictures


def where_allowed(where: str, pictures: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """(H, W) bool, or None for everywhere; see `Maker.where`."""
    first = pictures.get("image", next(iter(pictures.values())))
    if not where:
        return None
    if where not in ("bright", "dark"):
        mask = read_mask(Path(where).expanduser())
        if mask.shape != first.shape[:2]:
            raise WrongInput(
                f"where={where!r} has {mask.shape[1]} x {mask.shape[0]} pixels, sample {name} has {first.shape[1]} x "
                f"{first.shape[0]}; give a mask of the same size, or 'bright' or 'dark'."
            )
        return mask
    height, width = first.shape[:2]
    factor = max(1.0, max(height, width) / COARSE)
    coarse = resize(to_8bit(first), (round(height / factor), round(width / factor)))  # without it noise has holes
    split = otsu(coarse.mean(axis=2).astype(np.uint8))
    bright = resize(coarse, (height, width)).mean(axis=2) > split
    return bright if where == "bright" else ~bright


def seen(
    pictures: Mapping[str, np.ndarray], change: Change, allowed: np.ndarray | None, grey: Collection[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """The box of each view after a change, where in it the change can be seen, (h, w) bool, and how strong it is there.

    The strength is the mean, over what can be seen, of the largest change of a channel of a view, grey levels of 255.
    grey: views from a camera without colour; they stay grey.
    """
    boxes: dict[str, np.ndarray] = {}
    largest = np.zeros([s.stop - s.start for s in change.box])
    for name, picture in pictures.items():
        new = change.views[name]
        if name in grey:
            new = np.repeat(new.mean(axis=2, keepdims=True), 3, axis=2)
        top = np.iinfo(picture.dtype).max
        boxes[name] = np.rint(np.clip(new, 0, 1) * np.float32(top)).astype(picture.dtype)
        difference = np.abs(boxes[name].astype(np.int32) - picture[change.box]).max(axis=2)
        np.maximum(largest, difference * (255 / top), out=largest)
    visible = closed(largest >= VISIBLE, change.grain)
    if allowed is not None:
        visible &= allowed[change.box]
    return boxes, visible, float(largest[visible].mean()) if visible.any() else 0.0


def put_in(
    pictures: Mapping[str, np.ndarray], box: Box, boxes: Mapping[str, np.ndarray], visible: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Copies of the pictures, changed where the change is visible and nowhere else, and the mask (H, W) bool."""
    made = {name: picture.copy() for name, picture in pictures.items()}
    for name, picture in made.items():
        picture[box][visible] = boxes[name][visible]
    mask = np.zeros(next(iter(made.values())).shape[:2], bool)
    mask[box] = visible
    return made, mask


def is_grey(picture: np.ndarray) -> bool:
    first = picture[..., 0]
    return bool((first == picture[..., 1]).all() and (first == picture[..., 2]).all())


def blend(under: Mapping[str, np.ndarray], over: Mapping[str, np.ndarray], cover: np.ndarray) -> dict[str, np.ndarray]:
    """under + cover * (over - under) for each view; cover: (h, w) in [0, 1]."""
    return {name: old + (over[name] - old) * cover[..., None] for name, old in under.items()}


def longest_side(mask: np.ndarray) -> int:
    """Longer side of the box around a mask, pixels; 0 for an empty one."""
    return max(side.stop - side.start for side in box_around(mask))


def box_around(mask: np.ndarray) -> Box:
    """The smallest box that holds every True; an empty one for none."""
    if not mask.any():
        return box_at(0, 0, 0, 0)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def box_at(top: int, left: int, height: int, width: int) -> Box:
    return slice(top, top + height), slice(left, left + width)


def closed(mask: np.ndarray, width: int) -> np.ndarray:
    """Gaps up to `width` pixels wide filled, everything else kept: a square grows and shrinks again."""
    reach = -(-width // 2)
    grown = grow(np.pad(mask, reach), reach)
    shrunk = ~grow(~grown, reach)
    inner = shrunk[reach : reach + mask.shape[0], reach : reach + mask.shape[1]]
    return mask | inner


def grow(mask: np.ndarray, reach: int) -> np.ndarray:
    """True within a square of `reach` pixels around every True; nothing comes in from outside the array."""
    sums = np.pad(mask, reach + 1)[:-1, :-1].cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    sums = np.pad(sums, ((0, 1), (0, 1)), mode="edge")
    side = 2 * reach + 1
    height, width = mask.shape
    inside = (
        sums[side : side + height, side : side + width] - sums[:height, side : side + width]
        - sums[side : side + height, :width] + sums[:height, :width]
    )  # fmt: skip
    return inside > 0


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float))


def given(pixels: np.ndarray) -> np.ndarray:
    """What a view of a drawn sample reads."""
    return pixels
