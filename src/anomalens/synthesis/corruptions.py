"""Seventeen disturbances in five grades: what happens to pictures in production, drawn so that it can be repeated.

    from anomalens.synthesis import corruptions
    harder = [corruptions.apply(sample, "defocus", grade=3, seed=0) for sample in samples]

Grade 0 is the picture itself. What is drawn (a direction, the place of a spot, the field of noise) depends on the seed,
the corruption and the sample, never on the grade: a curve over the grades follows one disturbance as it grows. All views
of a sample move together; light and noise are drawn for each view. Viewpoint corruptions move the mask too, and mark
what was outside the frame with 255, which the metrics leave out.

The suite is our own. Kin: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261 (corruptions of ImageNet) and
RAD, https://arxiv.org/abs/2406.07176 (real viewpoints, light and blur).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import WrongInput, unknown
from ..files import write_atomic
from ..images import resize, to_8bit
from ..types import Sample, View
from . import _light, _warp
from ._warp import IGNORE

VERSION = 1  # of the suite; part of every seed, so that other pictures have another number
GRADES = (0, 1, 2, 3, 4, 5)
ATTEMPTS = 10  # times a viewpoint is drawn again when the defect has left the frame
SHARE_LEFT = 0.25  # of the defect's area must stay in the frame at every grade
AREA_LEFT = 9  # pixels of the defect must be left at grade 5, where the short side has 256
PLAIN = ("depth",)  # views that are no photographs: they move, light and noise do not touch them

Group = Literal["viewpoint", "illumination", "blur", "noise", "compression", "compound"]


@dataclass(frozen=True)
class CorruptionCard:
    """What a corruption does.

    kind: geometric moves the mask, photometric leaves it as it is, mixed does both. amounts: of grade 1 to 5; none for a
    composition. amount: what they are, with the unit; lengths in pixels are meant for a short side of 256 and grow with
    the picture. parts: what is composed, in order.
    """

    title: str
    summary: str
    group: Group
    kind: Literal["geometric", "photometric", "mixed"]
    amount: str = ""
    amounts: tuple[float, ...] = ()
    parts: tuple[str, ...] = ()


CARDS = {
    "rot": CorruptionCard(
        "Rotation", "turns in the plane", "viewpoint", "geometric", "degrees", (3, 7, 15, 30, 60)
    ),
    "tilt": CorruptionCard(
        "Tilt", "looks from the side, about a drawn axis", "viewpoint", "geometric", "degrees", (5, 10, 17, 25, 35)
    ),
    "zoom": CorruptionCard(
        "Zoom", "comes closer or goes away", "viewpoint", "geometric", "factor, or 1 / factor",
        (1.06, 1.15, 1.3, 1.55, 2.0),
    ),
    "shift": CorruptionCard(
        "Shift", "moves sideways", "viewpoint", "geometric", "percent of the short side", (2, 4, 8, 14, 20)
    ),
    "view": CorruptionCard(
        "Free view", "rotation, tilt and zoom at once", "viewpoint", "geometric", parts=("rot", "tilt", "zoom")
    ),
    "grad": CorruptionCard(
        "Gradient", "light falls off across the picture", "illumination", "photometric",
        "share of the light at the corner", (0.15, 0.3, 0.45, 0.6, 0.8),
    ),
    "spot": CorruptionCard(
        "Spot", "glare that saturates", "illumination", "photometric", "added light, 1 is white",
        (0.15, 0.35, 0.6, 1.0, 1.6),
    ),
    "gamma": CorruptionCard(
        "Gamma", "darker or lighter mid tones", "illumination", "photometric", "exponent, or 1 / exponent",
        (1.2, 1.45, 1.8, 2.3, 3.0),
    ),
    "cast": CorruptionCard(
        "Colour cast", "another colour of light", "illumination", "photometric", "largest change of a channel's gain",
        (0.06, 0.12, 0.2, 0.3, 0.42),
    ),
    "shadow": CorruptionCard(
        "Shadow", "a half-plane is darker", "illumination", "photometric", "share of the light that is missing",
        (0.15, 0.3, 0.45, 0.6, 0.75),
    ),
    "defocus": CorruptionCard(
        "Defocus", "a lens out of focus", "blur", "photometric", "radius of the disc in pixels", (0.8, 1.5, 2.5, 4, 6)
    ),
    "motion": CorruptionCard(
        "Motion", "moves while the shutter is open", "blur", "photometric", "length of the line in pixels",
        (3, 6, 10, 16, 24),
    ),
    "lowres": CorruptionCard(
        "Low resolution", "a camera with fewer pixels", "blur", "photometric", "factor of the size",
        (0.7, 0.5, 0.35, 0.25, 0.16),
    ),
    "gauss": CorruptionCard(
        "Gaussian noise", "noise of the amplifier", "noise", "photometric", "standard deviation, white is 1",
        (0.02, 0.04, 0.07, 0.11, 0.16),
    ),
    "shot": CorruptionCard(
        "Shot noise", "few photons", "noise", "photometric", "photons in a white pixel", (400, 150, 60, 25, 10)
    ),
    "jpeg": CorruptionCard(
        "JPEG", "strong compression", "compression", "photometric", "quality of libjpeg", (60, 40, 25, 15, 8)
    ),
    "rad": CorruptionCard(
        "As in RAD", "free view, spot, and defocus or motion (drawn) one grade weaker, at least grade 1", "compound",
        "mixed", parts=("view", "spot", "defocus", "motion"),
    ),
}  # fmt: skip

SUITES = {
    "full": tuple((name, grade) for name in CARDS for grade in GRADES[1:]),
    "rad-lite": tuple((name, grade) for name in ("view", "spot", "grad", "defocus", "motion") for grade in GRADES[1:]),
    "smoke": (("rot", 2), ("grad", 2), ("defocus", 2), ("jpeg", 2)),
}


def names() -> tuple[str, ...]:
    """Every corruption, viewpoint first."""
    return tuple(CARDS)


def card(name: str) -> CorruptionCard:
    """What a corruption does and how strong its grades are.

    Raises:
        UnknownName: no such corruption.
    """
    return CARDS[_known(name)]


def suite(name: str = "full") -> tuple[tuple[str, int], ...]:
    """(corruption, grade) of a preset: `full` has all 85, `rad-lite` 25, `smoke` 4. Grade 0 is not among them.

    Raises:
        UnknownName: no such suite.
    """
    if name not in SUITES:
        raise unknown("suite of corruptions", name, SUITES)
    return SUITES[name]


def apply(sample: Sample, name: str, grade: int, seed: int = 0, *, coupled_lighting: bool = False) -> Sample:
    """The sample as it would be seen under a corruption. Nothing is read now; views and mask change when they are read.

    The same (seed, name, grade, sample.category, sample.id) gives the same pixels in any order and in any process;
    another version of numpy or another processor may round otherwise and change a value by one here and there. A view
    keeps no path, since no file holds what it reads. After a viewpoint corruption the mask is uint8 with 1 anomalous, 0
    normal and 255 for pixels from outside the frame; a normal sample gets such a mask too. A viewpoint under which the
    defect leaves the frame is drawn again, see `survives`.

    Args:
        sample: a picture sample; its views read (H, W, 3) uint8 or uint16.
        name: one of names().
        grade: 0 (the sample itself) to 5.
        seed: another number is another draw.
        coupled_lighting: light and noise are the same in all views instead of drawn for each.

    Raises:
        UnknownName: no such corruption.
        WrongInput: no such grade.
    """
    name, grade = _known(name), _checked(grade)
    if grade == 0:
        return sample
    how = _How(name, grade, seed, sample.category, sample.id)
    marked = sample.mask if sample.label != 0 else None
    views = {
        n: View(n, partial(_read_view, view, marked, how, "" if coupled_lighting else n))
        for n, view in sample.views.items()
    }
    mask = sample.mask
    if CARDS[name].kind != "photometric" and (sample.mask is not None or sample.label == 0):
        first = next(iter(sample.views.values()))
        mask = View("mask", partial(_read_mask, sample.mask or first, marked, how, sample.mask is not None))
    return replace(sample, views=views, mask=mask)


def survives(sample: Sample, name: str, seed: int = 0) -> bool:
    """Whether enough of the defect stays in the frame at all grades: 25 % of its area, and 9 pixels at grade 5.

    The 9 pixels are meant for a short side of 256 and grow with the area of the picture. A viewpoint is drawn up to 10
    times more; a sample for which all draws fail belongs out of the comparison at every grade, so that all points of a
    curve stand for the same pictures. True where there is no mask, or where the corruption moves nothing.
    """
    name = _known(name)
    if CARDS[name].kind == "photometric" or sample.mask is None or sample.label == 0:
        return True
    how = _How(name, 5, seed, sample.category, sample.id)
    return _attempt(np.asarray(sample.mask.read()), how) is not None


def corrupt(picture: np.ndarray, name: str, grade: int, rng: np.random.Generator) -> np.ndarray:
    """One picture under a corruption; shape and type stay.

    Args:
        picture: (H, W, 3) uint8 or uint16.
        name: one of names().
        grade: 0 (the picture itself) to 5.
        rng: what is drawn; a generator in the same state draws the same at every grade.

    Raises:
        UnknownName: no such corruption.
        WrongInput: no such grade, or not a picture.
    """
    return _change(_picture(picture), _known(name), _checked(grade), rng, rng)


def corrupt_mask(mask: np.ndarray, name: str, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The mask of a picture under a corruption; photometric ones and grade 0 return the mask itself.

    Args:
        mask: (H, W) bool, or whole numbers from 0 to 255: each value moves by itself, so numbers of regions are kept.
        rng: in the state that `corrupt` got for the picture.

    Returns:
        (H, W) uint8, 255 where the picture shows what was outside the frame.

    Raises:
        UnknownName: no such corruption.
        WrongInput: no such grade, or not a mask.
    """
    name, grade = _known(name), _checked(grade)
    if mask.ndim != 2 or mask.dtype.kind not in "bui" or (mask.size and not 0 <= mask.min() <= mask.max() <= IGNORE):
        raise WrongInput(
            f"a mask is (H, W) of truth values or of whole numbers 0 to 255; got {mask.shape} {mask.dtype}."
        )
    if grade == 0 or CARDS[name].kind == "photometric":
        return mask
    return _warp.move_mask(mask, _matrix(name, grade, mask.shape, rng))


def corrupt_map(values: np.ndarray, name: str, grade: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A map of scores, moved as `corrupt` moves the picture: what an equivariant detector would say.

    values: (H, W) float. rng: in the state that `corrupt` got for the picture. Returns the map (H, W) float32 and, as
    (H, W) bool, where it was inside the frame.

    Raises:
        UnknownName: no such corruption.
        WrongInput: no such grade.
    """
    name, grade = _known(name), _checked(grade)
    if grade == 0 or CARDS[name].kind == "photometric":
        return np.asarray(values, np.float32), np.ones(values.shape, bool)
    matrix = _matrix(name, grade, values.shape, rng)
    return _warp.move_map(values, matrix), _warp.inside(values.shape, matrix)


def generator(sample: Sample, name: str, seed: int = 0) -> np.random.Generator:
    """The generator that `apply` moves a sample with, for `corrupt_map`."""
    how = _How(_known(name), 5, seed, sample.category, sample.id)
    return _moving(sample.mask if sample.label != 0 else None, how)


def contact_sheet(
    picture: np.ndarray,
    path: str | os.PathLike[str] | None = None,
    *,
    which: Iterable[str] = (),
    side: int = 88,
    seed: int = 0,
) -> bytes:
    """Every corruption at each grade on one page, with its name and amounts: a PNG file of at most 256 colours.

    Args:
        picture: (H, W, 3) uint8 or uint16; tiles show its middle square, for blur, noise and compression half of it.
        path: where to write the file; not at all for None.
        which: corruptions to show; all when empty.
        side: of a tile, in pixels.
        seed: of what is drawn.
    """
    shown = [_known(name) for name in which] or list(CARDS)
    picture = _picture(picture)
    line, gap = 15, 3
    half = -(-len(shown) // 2)
    wide = len(GRADES) * (side + gap) + 2 * gap
    page = Image.new("RGB", (2 * wide - gap, half * (side + line + gap) + gap), (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for place, name in enumerate(shown):
        left, top = place // half * wide + gap, place % half * (side + line + gap) + gap
        for grade in GRADES:
            x = left + grade * (side + gap)
            rng = _rng(seed, "", "contact sheet", name)
            part = 2 if CARDS[name].group in ("blur", "noise", "compression") else 1  # to see detail
            tile = _square(to_8bit(corrupt(picture, name, grade, rng)), part, side)
            page.paste(Image.fromarray(tile), (x, top + line))
            amounts = CARDS[name].amounts
            label = name if grade == 0 else f"{amounts[grade - 1]:g}" if amounts else str(grade)
            pen.text((x + 1, top), label, fill=(0, 0, 0) if grade == 0 else (90, 90, 90), font=font)
    # The palette comes from one pixel in 16: the best one for all takes seconds and looks the same.
    palette = page.resize((page.width // 4, page.height // 4), Image.Resampling.NEAREST).quantize(256, kmeans=1)
    few = page.quantize(palette=palette, dither=Image.Dither.NONE)
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True)
    data = file.getvalue()
    if path is not None:
        write_atomic(Path(path), data)
    return data


@dataclass(frozen=True)
class _How:
    """All that the random numbers of a sample depend on, and the grade, which they do not depend on."""

    name: str
    grade: int
    seed: int
    category: str
    id: str

    def rng(self, purpose: str) -> np.random.Generator:
        return _rng(self.seed, self.category, self.id, self.name, purpose)


def _rng(*names: object) -> np.random.Generator:
    """Philox, counted from a digest of the names: the same on every platform and for any order of the samples."""
    digest = hashlib.sha256(repr((VERSION, *names)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _read_view(view: View, marked: View | None, how: _How, lights: str) -> np.ndarray:
    picture = _picture(view.read())
    changing = how.rng(f"light {lights}")
    moving = changing if CARDS[how.name].kind == "photometric" else _moving(marked, how)
    return _change(picture, how.name, how.grade, moving, None if view.name in PLAIN else changing)


def _read_mask(view: View, marked: View | None, how: _How, is_mask: bool) -> np.ndarray:
    """The moved mask; that of a normal sample, which has none, takes its size from a picture."""
    found = np.asarray(view.read())
    return corrupt_mask(
        found if is_mask else np.zeros(found.shape[:2], bool), how.name, how.grade, _moving(marked, how)
    )


def _moving(marked: View | None, how: _How) -> np.random.Generator:
    """The generator of the viewpoint; when every draw loses the defect it is the first, see `survives`."""
    attempt = 0 if marked is None else _attempt(np.asarray(marked.read()), how)
    return how.rng(f"view {attempt or 0}")


def _attempt(mask: np.ndarray, how: _How) -> int | None:
    """Number of the first draw that keeps enough of the defect in the frame at every grade; None when there is none."""
    marked = (mask > 0) & (mask != IGNORE) if mask.dtype != bool else mask
    if not marked.any():
        return 0
    needed = AREA_LEFT * (min(mask.shape) / 256) ** 2
    for attempt in range(1 + ATTEMPTS):
        left = [
            _warp.visible(marked, _matrix(how.name, grade, mask.shape, how.rng(f"view {attempt}")))
            for grade in GRADES[1:]
        ]
        if min(share for share, _ in left) >= SHARE_LEFT and left[-1][1] >= needed:
            return attempt
    return None


def _change(
    picture: np.ndarray, name: str, grade: int, moving: np.random.Generator, changing: np.random.Generator | None
) -> np.ndarray:
    """Viewpoint first, then light and lens; without a generator `changing` the viewpoint alone."""
    if grade == 0:
        return picture
    kind = CARDS[name].kind
    if kind != "photometric":
        picture = _warp.move_picture(picture, _matrix(name, grade, picture.shape[:2], moving))
    if kind != "geometric" and changing is not None:
        for part, strength in _changes(name, grade, changing):
            picture = _light.CHANGES[part](picture, CARDS[part].amounts[strength - 1], changing)
    return picture


def _changes(name: str, grade: int, rng: np.random.Generator) -> tuple[tuple[str, int], ...]:
    """The photometric steps of a corruption and their grades."""
    if name != "rad":
        return ((name, grade),)
    return ("spot", grade), ("defocus" if rng.random() < 0.5 else "motion", max(1, grade - 1))


def _matrix(name: str, grade: int, size: _warp.Size, rng: np.random.Generator) -> np.ndarray:
    """From places of the picture to places under the corruption."""
    matrix = np.eye(3)
    for part in CARDS["view"].parts if name in ("view", "rad") else (name,):
        matrix = _warp.MOVES[part](CARDS[part].amounts[grade - 1], size, rng) @ matrix
    return matrix


def _known(name: str) -> str:
    if name.lower() not in CARDS:
        raise unknown("corruption", name, CARDS)
    return name.lower()


def _checked(grade: int) -> int:
    if grade not in GRADES:
        raise WrongInput(f"grade is {grade!r}; give a whole number from 0 (the picture itself) to 5.")
    return int(grade)


def _picture(picture: np.ndarray) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype not in (np.uint8, np.uint16) or not picture.size:
        raise WrongInput(f"a picture is (H, W, 3) uint8 or uint16; got {picture.shape} {picture.dtype}.")
    return picture


def _square(picture: np.ndarray, part: int, side: int) -> np.ndarray:
    """The middle square of 1 / part of the short side, made `side` pixels large."""
    height, width = picture.shape[:2]
    cut = max(1, min(height, width) // part)
    top, left = (height - cut) // 2, (width - cut) // 2
    return resize(picture[top : top + cut, left : left + cut], (side, side))
