"""Where a defect is drawn, where its patch comes from, and how a hole is filled so that nobody sees it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import NotMade
from ._maker import Box, Draft, box_at, grow
from ._poisson import seamless

CANDIDATES = 32  # places among which one is chosen
RING = 3  # pixels around a hole that its filling must match
PART = 0.05  # a part differs from its surroundings by this much, 1 is white
NOTICED = 8 / 255  # a pasted patch differs from what it covers by this much, once noise is smoothed away


def widened(box: Box, margin: int, shape: tuple[int, int]) -> tuple[Box, Box]:
    """A box with a margin, as far as the picture reaches, and where the first one lies in it."""
    rows, columns = (slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, shape, strict=True))
    top, left = box[0].start - rows.start, box[1].start - columns.start
    return (rows, columns), box_at(top, left, box[0].stop - box[0].start, box[1].stop - box[1].start)


def busiest(draft: Draft, height: int, width: int) -> Box:
    """Of some drawn places, the one with the most detail: the highest mean difference between neighbours."""

    def detail(box: Box) -> float:
        grey = grey_of(draft, box)
        return sum(float(np.abs(np.diff(grey, axis=axis)).mean()) for axis in (0, 1) if grey.shape[axis] > 1)

    return max((draft.place(height, width) for _ in range(CANDIDATES)), key=detail)


def standing_out(draft: Draft, cover: np.ndarray) -> Box:
    """Of some drawn places, the one where a shape holds what its surroundings do not: a part, a print, a thread.

    The measure is the difference of mean and of spread between inside and around, of grey values.

    Raises:
        NotMade: nothing stands out, as in an even texture.
    """
    margin = max(2, max(cover.shape) // 4)

    def contrast(box: Box) -> float:
        wide, inner = widened(box, margin, draft.shape)
        grey = grey_of(draft, wide)
        inside = np.zeros(grey.shape, bool)
        inside[inner] = cover > 0.5
        within, around = grey[inside], grey[~inside]
        return float(abs(within.mean() - around.mean()) + abs(within.std() - around.std()))

    found = [(contrast(box), k, box) for k in range(CANDIDATES) if (box := draft.place(*cover.shape))]
    best, _, box = max(found)
    if best < PART:
        raise NotMade("no part stands out from its surroundings.")
    return box


def require_noticed(under: Mapping[str, np.ndarray], over: Mapping[str, np.ndarray], cover: np.ndarray) -> None:
    """Refuse a patch that differs from what it covers in its noise only, in all views.

    Raises:
        NotMade: so it is.
    """
    inside = cover > 0.5
    for name, part in under.items():
        change = softened(over[name] - part, 1.5)
        if float(np.abs(change[inside]).mean()) >= NOTICED:
            return
    raise NotMade("the patch looks like what it would cover.")


def elsewhere(box: Box, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """A box of the same size anywhere in a picture of that shape; of some drawn ones the one that overlaps least."""
    height, width = (s.stop - s.start for s in box)

    def overlap(other: Box) -> int:
        sides = (max(0, min(a.stop, b.stop) - max(a.start, b.start)) for a, b in zip(box, other, strict=True))
        return int(np.prod(list(sides)))

    for _ in range(CANDIDATES):
        found = box_at(int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1)), height, width)
        if overlap(found) == 0:
            return found
    return found


def healed(draft: Draft, box: Box, hole: np.ndarray) -> dict[str, np.ndarray]:
    """What could be in a box if its hole had never been there: (h, w, 3) float32 by view.

    The ring around the hole is looked for elsewhere in the picture; what is inside the most similar one is blended in
    seamlessly. Where no other place has room, the hole is filled smoothly from its border. hole: (h, w) bool.
    """
    margin = RING + 1
    wide, inner = widened(box, margin, draft.shape)
    inside = np.zeros([s.stop - s.start for s in wide], bool)
    inside[inner] = hole
    inside = grow(inside, 1)
    ring = grow(inside, RING) & ~inside
    grey = grey_of(draft, wide)
    here = grey[ring]
    best, least = None, np.inf
    for _ in range(2 * CANDIDATES):
        other = elsewhere(wide, draft.shape, draft.rng)
        if (inside & _shifted(inside, wide, other)).any():
            continue
        distance = float(((grey_of(draft, other)[ring] - here) ** 2).mean())
        if distance < least:
            best, least = other, distance
    under = draft.cut(wide)
    there = draft.cut(best) if best else {name: np.zeros_like(part) for name, part in under.items()}
    filled = {name: seamless(part, there[name], inside) for name, part in under.items()}
    return {name: part[inner] for name, part in filled.items()}


def grey_of(draft: Draft, box: Box) -> np.ndarray:
    """(h, w) float32 in [0, 1]: mean over channels of `image`, or of the first light."""
    picture = draft.pictures.get("image", next(iter(draft.pictures.values())))
    part = picture[box]
    return part.mean(axis=2, dtype=np.float32) / np.float32(np.iinfo(part.dtype).max)


def softened(part: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (h, w, c) float32; the border is continued by its own values."""
    reach = int(3 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(part, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        part = sum(tap * np.take(padded, range(k, k + part.shape[axis]), axis) for k, tap in enumerate(taps))
    return part


def _shifted(inside: np.ndarray, wide: Box, other: Box) -> np.ndarray:
    """The hole as it lies in another box of the same size."""
    moved = np.zeros_like(inside)
    down, across = (a.start - b.start for a, b in zip(wide, other, strict=True))
    rows, columns = inside.shape
    if abs(down) < rows and abs(across) < columns:
        moved[max(0, down) : rows + min(0, down), max(0, across) : columns + min(0, across)] = inside[
            max(0, -down) : rows + min(0, -down), max(0, -across) : columns + min(0, -across)
        ]
    return moved
