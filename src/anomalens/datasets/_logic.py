"""The drawn scenes with rules: a tray of parts, two connectors, three bottles, a carton with a seal.

Every function puts its things on a `Stage`, draws its normal variation from `stage.rng`, and whatever has to do with the
violation from `stage.fault_rng`. A thing has a label and the mask of what is seen of it; a violation has its type, what a
person would say of it, and the mask of the place that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._categories import plain
from ._draw import Colour, Pose, Stencil, Surface, dome, grid, inside, noise, numbers, rounded_box, step

Rng = np.random.Generator

RED, GREEN, BLUE = (0.80, 0.13, 0.15), (0.16, 0.58, 0.27), (0.17, 0.35, 0.78)
YELLOW, ORANGE, WHITE = (0.90, 0.84, 0.16), (0.93, 0.50, 0.10), (0.95, 0.95, 0.93)
BRASS, COPPER, STEEL = (0.80, 0.64, 0.26), (0.78, 0.40, 0.26), (0.78, 0.79, 0.81)


@dataclass
class Stage:
    """One picture while it is drawn.

    things: (label, (H, W) bool of what is seen of it) in the order they were put down. places: (H, W) bool, one for
    each violation; reasons: its (type, text).
    """

    size: int
    kind: str
    rng: Rng
    fault_rng: Rng
    surface: Surface
    things: list[tuple[str, np.ndarray]] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def put(
        self, label: str, edge: np.ndarray, colour: Colour, height: np.ndarray | float = 0.01, gloss: float = 0.2,
        shadow: float = 0.01,
    ) -> np.ndarray:  # fmt: skip
        """Lay a thing down and return its mask; "" is scenery. edge: signed distance (H, W), negative inside."""
        return self.lay(label, inside(edge, self.size), colour, height, gloss, shadow)

    def lay(
        self, label: str, cover: np.ndarray, colour: Colour, height: np.ndarray | float = 0.01, gloss: float = 0.2,
        shadow: float = 0.01,
    ) -> np.ndarray:  # fmt: skip
        """The same from a coverage (H, W)."""
        if shadow:
            self.surface.shadow(cover, shadow, 0.4)
        self.surface.paint(cover, colour, height, gloss)
        mask = cover > 0.5
        self.things = [(name, seen & ~mask) for name, seen in self.things]
        if label:
            self.things.append((label, mask))
        return mask

    def blame(self, kind: str, text: str, place: np.ndarray) -> None:
        self.reasons.append((kind, text))
        self.places.append(place)

    def one_of(self, count: int) -> int:
        """Which of several things the violation happens to."""
        return int(self.fault_rng.integers(count))

    def near(self, x: float, y: float, by: float = 0.01, turn: float = 0.0) -> Pose:
        dx, dy, angle = numbers(self.rng, -1, 1, 3)
        return Pose(x + by * dx, y + by * dy, turn * angle)


def _ring(stage: Stage, at: Pose, radius: float, hole: float) -> np.ndarray:
    u, v = at.local(stage.size)
    return np.abs(np.hypot(u, v) - (radius + hole) / 2) - (radius - hole) / 2


def _disc(stage: Stage, at: Pose, radius: float) -> np.ndarray:
    return np.hypot(*at.local(stage.size)) - radius


def _box(stage: Stage, at: Pose, half: tuple[float, float], radius: float = 0.008) -> np.ndarray:
    return rounded_box(*at.local(stage.size), half, radius)


# --- tray --------------------------------------------------------------------------------------------------------

COLUMNS, UPPER, LOWER, SLOT = (0.22, 0.50, 0.78), 0.23, 0.53, 0.83
CELL = (0.125, 0.125)


def tray(stage: Stage) -> None:
    """Three nuts in the upper cells, three washers in the cells below, a bolt in the slot."""
    grain = noise(stage.rng, stage.size, 100)
    for x in COLUMNS:
        for y in (UPPER, LOWER):
            _recess(stage, _box(stage, Pose(x, y), CELL, 0.03))
    _recess(stage, _box(stage, Pose(0.5, SLOT), (0.405, 0.095), 0.03))
    stage.surface.colour *= (1 + 0.02 * grain)[..., None]
    chosen, other = stage.one_of(3), stage.one_of(3)
    for row, y in (("nut", UPPER), ("washer", LOWER)):
        for i, x in enumerate(COLUMNS):
            at = stage.near(x, y, 0.025, math.pi)
            hit = i == (chosen if row == "nut" else other)
            if hit and row == "nut" and stage.kind == "missing_nut":
                stage.blame("quantity", "2 nuts instead of 3", _box(stage, Pose(x, y), CELL, 0.03) < 0)
                continue
            if hit and row == "washer" and stage.kind == "extra_washer":
                _part(stage, "washer", Pose(x - 0.055, y - 0.02))
                more = _part(stage, "washer", Pose(x + 0.055, y + 0.02))
                stage.blame("quantity", "4 washers instead of 3", more)
                continue
            if hit and stage.kind == "exchanged":
                wrong = "washer" if row == "nut" else "nut"
                stage.blame("position", f"a {wrong} lies among the {row}s", _part(stage, wrong, at))
                continue
            _part(stage, row, at)
    _bolt(stage, stage.near(0.5, SLOT, 0.015, 0.05))


def _recess(stage: Stage, edge: np.ndarray) -> None:
    stage.surface.paint(step(-edge, 0, 0.012), (0.36, 0.40, 0.45))
    stage.surface.height -= 0.03 * step(-edge, 0, 0.02)


def _part(stage: Stage, name: str, at: Pose) -> np.ndarray:
    if name == "washer":
        edge = _ring(stage, at, 0.052, 0.023)
        return stage.put("washer", edge, COPPER, np.clip(-edge, 0, 0.005), 0.2)
    u, v = at.local(stage.size)
    flats = [np.abs(u * math.cos(a) + v * math.sin(a)) for a in (0, math.pi / 3, 2 * math.pi / 3)]
    edge = np.maximum(np.maximum.reduce(flats) - 0.062, 0.032 - np.hypot(u, v))
    return stage.put("nut", edge, BRASS, np.clip(-edge, 0, 0.008), 0.25)


def _bolt(stage: Stage, at: Pose) -> None:
    u, v = at.local(stage.size)
    half = 0.27
    if stage.kind == "short_bolt":
        half = 0.27 - stage.fault_rng.uniform(0.06, 0.12)
    thread = 0.003 * np.cos(2 * np.pi * u / 0.02) * (u > 0)
    shank = np.maximum(np.abs(v) - 0.026 - thread, np.abs(u - 0.02) - half)
    edge = np.minimum(shank, rounded_box(u + half, v, (0.036, 0.056), 0.01))
    mask = stage.put("bolt", edge, STEEL, dome(v, 0.06 - 0.03 * step(u, 0.02 - half, 0.07 - half)) * 0.5, 0.15)
    if stage.kind == "short_bolt":
        stage.blame("size", "the bolt is too short", mask)


# --- connectors --------------------------------------------------------------------------------------------------

CABLES = {"yellow": (YELLOW, 2), "blue": (BLUE, 3), "red": (RED, 4)}  # colour of the cable, levers on each side


def connectors(stage: Stage) -> None:
    """Two housings with as many levers each as the colour of the cable says, and a level cable between them."""
    weave = noise(stage.rng, stage.size, 90, 2)
    stage.surface.colour *= (1 + 0.03 * weave)[..., None]
    names = list(CABLES)
    name = names[int(stage.rng.integers(3))]
    levers = CABLES[name][1]
    slot = int(stage.rng.integers(levers))
    dx, dy, sag = numbers(stage.rng, -1, 1, 3)
    x, y = 0.5 + 0.015 * dx, 0.5 + 0.015 * dy
    longer = stage.one_of(2) if stage.kind == "unlike_housings" else -1
    rows = [y + (i - (levers - 1) / 2) * 0.135 for i in range(levers)]
    if stage.kind == "wrong_cable":
        name = names[(names.index(name) + 1 + stage.one_of(2)) % 3]
    _cables(stage, x, rows, slot, (name, levers), sag)
    for side in (-1, 1):
        half = 0.32 + 0.07 * (side == 2 * longer - 1)
        at = Pose(x + side * 0.34, y)
        edge = _box(stage, at, (0.085, half), 0.02)
        body = stage.put("housing", edge, (0.15, 0.16, 0.18), np.clip(-edge, 0, 0.02), 0.12, shadow=0.015)
        if half > 0.33:
            stage.blame("matching", "the housings have different lengths", body)
        for row in rows:
            lever = _box(stage, Pose(at.x, row), (0.052, 0.032), 0.012)
            stage.put("lever", lever, WHITE, 0.02 + np.clip(-lever, 0, 0.012), 0.05, shadow=0.006)


def _cables(stage: Stage, middle: float, rows: list[float], slot: int, kind: tuple[str, int], sag: float) -> None:
    """The cable from the slot on the left to the same slot on the right, or what is there instead."""
    x, (name, levers) = middle, kind
    colour = CABLES[name][0]

    def path(t: np.ndarray, left: float, right: float) -> np.ndarray:
        return left + (right - left) * t + 0.010 * sag * np.sin(np.pi * t)

    def line(left: float, right: float) -> np.ndarray:
        t = np.linspace(0, 1, 25)
        points = zip(x - 0.28 + 0.56 * t, path(t, left, right), strict=True)
        return Stencil(stage.size).line(list(points), 0.034).cover()

    def cable(left: float, right: float) -> np.ndarray:
        cover = line(left, right)
        level = np.cos(np.arctan2(right - left, 0.56))
        off = (down - path(np.clip((seen - x + 0.28) / 0.56, 0, 1), left, right)) * np.float32(level)
        return stage.lay("cable", cover, colour, dome(off, 0.017) * cover, 0.15, shadow=0.012)

    seen, down = grid(stage.size)
    between = (seen > x - 0.255) & (seen < x + 0.255)  # the ends are under the housings
    row = rows[slot]
    if stage.kind == "no_cable":
        stage.blame("quantity", "no cable instead of 1", (line(row, row) > 0.5) & between)
        return
    if stage.kind == "two_cables":
        cable(row, row)
        other = rows[(slot + 1) % levers]
        stage.blame("quantity", "2 cables instead of 1", cable(other, other) & between)
    elif stage.kind == "crossed_cable":
        other = rows[slot + 1 if slot + 1 < levers else slot - 1]
        stage.blame("position", "the cable ends at different heights", cable(row, other) & between)
    else:
        mask = cable(row, row)
        if stage.kind == "wrong_cable":
            stage.blame("matching", f"a {name} cable between connectors with {levers} levers", mask & between)


# --- bottles -----------------------------------------------------------------------------------------------------

DRINKS = (RED, ORANGE, YELLOW)
LEVEL = 0.45  # y of a full bottle's surface


def bottles(stage: Stage) -> None:
    """Three bottles of one drink: filled to the same level, a cap on each, a level label on each."""
    x, y = grid(stage.size)
    shelf = step(y, 0.915, 0.925)
    stage.surface.colour *= (1 + 0.02 * noise(stage.rng, stage.size, 6, 2))[..., None]
    stage.surface.paint(shelf, (0.42, 0.36, 0.30), 0.0, 0.05)
    drink = DRINKS[int(stage.rng.integers(3))]
    chosen = stage.one_of(3)
    for i, centre in enumerate((0.2, 0.5, 0.8)):
        at = stage.near(centre, 0.0, 0.008)
        wrong = stage.kind if i == chosen else ""
        level = LEVEL + stage.rng.uniform(-0.012, 0.012)
        changed = level + stage.fault_rng.uniform(0.07, 0.13) * {"low_level": 1, "overfilled": -1}.get(wrong, 0)
        u, v = x - at.x, y - 0.62
        body = rounded_box(u, v, (0.098, 0.30), 0.05)
        neck = rounded_box(u, y - 0.285, (0.042, 0.08), 0.01)
        glass = np.minimum(body, neck)
        stage.put("", glass, (0.66, 0.71, 0.71), dome(u, 0.11) * 0.3, 0.04, shadow=0.02)
        within = body + 0.010
        stage.put("liquid", np.maximum(within, changed - y), drink, dome(u, 0.11) * 0.3, 0.04, shadow=0)
        if wrong in ("low_level", "overfilled"):
            word = "low" if wrong == "low_level" else "high"
            between = (within < 0) & (y > min(level, changed)) & (y < max(level, changed))
            stage.blame("size", f"the level of the liquid is too {word}", between)
        tilt = stage.fault_rng.uniform(0.22, 0.35) * (-1) ** stage.one_of(2) if wrong == "tilted_label" else 0.0
        _paper(stage, stage.near(at.x, 0.69, 0.003, 0.015), tilt)
        cap = rounded_box(u, y - 0.20, (0.052, 0.036), 0.012)
        if wrong == "missing_cap":
            stage.blame("quantity", "2 caps instead of 3", cap < 0)
        else:
            ribs = 0.004 * np.cos(2 * np.pi * u / 0.014)
            stage.put("cap", cap, BLUE, dome(u, 0.06) * 0.4 + ribs, 0.12, shadow=0.008)


def _paper(stage: Stage, at: Pose, tilt: float) -> None:
    """A white label with two printed lines, which belong to it."""
    at = Pose(at.x, at.y, at.angle + tilt)
    u, v = at.local(stage.size)
    mask = stage.put("label", rounded_box(u, v, (0.074, 0.050), 0.006), WHITE, 0.035, 0.0, shadow=0)
    for row in (-0.015, 0.015):
        stage.surface.paint(inside(rounded_box(u, v - row, (0.048, 0.006), 0.002), stage.size), (0.62, 0.62, 0.66))
    if tilt:
        stage.blame("position", "a label is tilted", mask)


# --- carton ------------------------------------------------------------------------------------------------------

KINDS = {"red": (RED, 1), "green": (GREEN, 2), "blue": (BLUE, 3)}  # colour of icon and seal, printed dots
BRIGHT = {"red": (0.96, 0.30, 0.30), "green": (0.28, 0.86, 0.42), "blue": (0.36, 0.58, 0.97)}
DARK = {"red": (0.60, 0.08, 0.11), "green": (0.09, 0.45, 0.20), "blue": (0.10, 0.22, 0.58)}


def carton(stage: Stage) -> None:
    """A carton whose label shows an icon and dots; the seal in the upper right corner has the colour of the icon."""
    box = stage.near(0.5, 0.5, 0.012, 0.03)
    fibre = noise(stage.rng, stage.size, (120, 40), 2)
    u, v = box.local(stage.size)
    stage.put("", rounded_box(u, v, (0.42, 0.42), 0.015), (0.66, 0.52, 0.36), 0.02, 0.0, shadow=0.03)
    stage.surface.colour *= (1 + 0.04 * fibre * inside(rounded_box(u, v, (0.42, 0.42), 0.015), stage.size))[..., None]
    tape = inside(np.abs(u) - 0.055, stage.size) * inside(np.abs(v) - 0.42, stage.size)
    stage.surface.paint(0.35 * tape, (0.80, 0.68, 0.50), None, 0.1)
    names = list(KINDS)
    name = names[int(stage.rng.integers(3))]
    paper = box.then(stage.near(-0.05, 0.10, 0.008, 0.02))
    stage.put("label", _box(stage, paper, (0.25, 0.20), 0.01), WHITE, 0.022, 0.0, shadow=0.004)
    _icon(stage, paper.then(Pose(0.0, -0.045)), BRIGHT[name])
    _dots(stage, paper, names, name)
    _seal(stage, box, names, name)


def _icon(stage: Stage, at: Pose, colour: Colour) -> None:
    """A drop."""
    u, v = at.local(stage.size)
    tip = np.maximum(np.abs(u) - 0.062 * np.clip((v + 0.105) / 0.105, 0, 1), np.abs(v + 0.052) - 0.052)
    stage.put("icon", np.minimum(np.hypot(u, v - 0.01) - 0.070, tip), colour, 0.022, 0.0, shadow=0)


def _dots(stage: Stage, paper: Pose, names: list[str], name: str) -> None:
    number = right = KINDS[name][1]
    if stage.kind == "wrong_dots":
        number = (right + stage.one_of(2)) % 3 + 1
    everywhere = np.zeros((stage.size, stage.size), bool)
    for i in range(number):
        at = paper.then(Pose((i - (number - 1) / 2) * 0.10, 0.130))
        everywhere |= stage.put("dot", _disc(stage, at, 0.028), (0.12, 0.12, 0.13), 0.022, 0.0, shadow=0)
    if stage.kind == "wrong_dots":
        stage.blame("matching", f"{number} dot{'s' * (number > 1)} below a {name} icon, which has {right}", everywhere)


def _seal(stage: Stage, box: Pose, names: list[str], name: str) -> None:
    near = stage.near(0.30, -0.29, 0.012, math.pi)
    at = box.then(near)
    u, v = at.local(stage.size)
    theta = np.arctan2(v, u)
    edge = np.hypot(u, v) - 0.078 - 0.005 * np.cos(14 * theta)
    if stage.kind == "missing_seal":
        stage.blame("quantity", "no seal instead of 1", edge < 0)
        return
    colour = name
    if stage.kind == "wrong_seal":
        colour = names[(names.index(name) + 1 + stage.one_of(2)) % 3]
    if stage.kind == "misplaced_seal":
        at = box.then(Pose(-0.28 + 0.03 * stage.fault_rng.uniform(-1, 1), near.y, near.angle))
        u, v = at.local(stage.size)
        edge = np.hypot(u, v) - 0.078 - 0.005 * np.cos(14 * np.arctan2(v, u))
    relief = 0.024 + 0.004 * np.cos(2 * np.pi * np.hypot(u, v) / 0.045)
    mask = stage.put("seal", edge, DARK[colour], relief, 0.10, shadow=0.006)
    if stage.kind == "wrong_seal":
        stage.blame("matching", f"the seal is {colour}, the icon is {name}", mask)
    if stage.kind == "misplaced_seal":
        stage.blame("position", "the seal is in the wrong corner", mask)


# --- all of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenery:
    """One category. ground: its colour. kinds: the violations. rules: as `RuleSet.from_dict` reads them.

    blobs: label to range of hue, saturation and value, for `color-blobs`: how a parser finds the things without the truth.
    """

    draw: Callable[[Stage], None]
    ground: Colour
    kinds: tuple[str, ...]
    rules: Mapping[str, Any]
    blobs: Mapping[str, Any]


ANY = (0, 360)
CATEGORIES = {
    "bottles": Scenery(
        bottles,
        (0.52, 0.57, 0.56),
        ("low_level", "missing_cap", "overfilled", "tilted_label"),
        {
            "labels": ["liquid", "cap", "label"],
            "rules": [
                {"count": "cap", "exactly": 3, "text": "Every one of the three bottles has a cap."},
                {"count": "label", "exactly": 3, "text": "Every one of the three bottles has a label."},
                {"size": "liquid", "field": "y0", "learnt": True, "text": "The bottles are filled to the usual level."},
                {"size": "label", "field": "angle", "at_least": -6, "at_most": 6, "type": "position",
                 "text": "The labels are level."},
            ],
        },
        {"liquid": ((345, 70), (0.55, 1), (0.35, 1)), "cap": ((200, 260), (0.4, 1), (0.25, 1)),
         "label": (ANY, (0, 0.15), (0.86, 1))},
    ),
    "carton": Scenery(
        carton,
        (0.38, 0.40, 0.43),
        ("misplaced_seal", "missing_seal", "wrong_dots", "wrong_seal"),
        {
            "labels": ["label", "icon", "dot", "seal"],
            "regions": {"corner": [0.62, 0.05, 0.97, 0.4]},
            "rules": [
                {"count": "seal", "exactly": 1, "text": "The carton has one seal."},
                {"place": "seal", "in": "corner", "text": "The seal is in the upper right corner."},
                {"match": "seal.color", "to": "icon.color", "text": "Seal and icon have the same colour."},
                {"match": "icon.color", "to": "dot.count", "pairs": {"red": 1, "green": 2, "blue": 3},
                 "text": "A red icon has one dot, a green one two, a blue one three."},
            ],
        },
        {"label": (ANY, (0, 0.15), (0.82, 1)), "icon": ((90, 12), (0.4, 1), (0.76, 1)),
         "dot": (ANY, (0, 0.3), (0, 0.18)), "seal": ((90, 12), (0.5, 1), (0.3, 0.72))},
    ),
    "connectors": Scenery(
        connectors,
        (0.60, 0.60, 0.58),
        ("crossed_cable", "no_cable", "two_cables", "unlike_housings", "wrong_cable"),
        {
            "labels": ["housing", "lever", "cable"],
            "rules": [
                {"count": "housing", "exactly": 2, "text": "There are two housings."},
                {"count": "cable", "exactly": 1, "text": "One cable joins the housings."},
                {"size": "cable", "field": "angle", "at_least": -7, "at_most": 7, "type": "position",
                 "text": "The cable is level: it ends at the same lever on both sides."},
                {"match": "cable.color", "to": "lever.count", "pairs": {"yellow": 4, "blue": 6, "red": 8},
                 "text": "A yellow cable has two levers on each side, a blue one three, a red one four."},
                {"same": ["housing"], "field": "length", "within": 0.06, "text": "The housings are equally long."},
            ],
        },
        {"housing": (ANY, (0, 0.4), (0, 0.30)), "lever": (ANY, (0, 0.15), (0.80, 1)),
         "cable": (ANY, (0.45, 1), (0.3, 1))},
    ),
    "tray": Scenery(
        tray,
        (0.24, 0.27, 0.31),
        ("exchanged", "extra_washer", "missing_nut", "short_bolt"),
        {
            "labels": ["nut", "washer", "bolt"],
            "regions": {"upper_row": [0.08, 0.09, 0.92, 0.38], "lower_row": [0.08, 0.38, 0.92, 0.68]},
            "rules": [
                {"count": "nut", "exactly": 3, "text": "There are three nuts."},
                {"count": "washer", "exactly": 3, "text": "There are three washers."},
                {"count": "bolt", "exactly": 1, "text": "There is one bolt."},
                {"size": "bolt", "field": "length", "learnt": True, "text": "The bolt is as long as usual."},
                {"place": "nut", "in": "upper_row", "text": "The nuts lie in the upper row."},
                {"place": "washer", "in": "lower_row", "text": "The washers lie in the lower row."},
            ],
        },
        {"nut": ((32, 62), (0.4, 1), (0.4, 1)), "washer": ((2, 30), (0.4, 1), (0.4, 1)),
         "bolt": (ANY, (0, 0.16), (0.5, 1))},
    ),
}  # fmt: skip


def set_up(category: str, size: int, kind: str, rng: Rng, fault_rng: Rng) -> Stage:
    """The stage of one picture, with everything on it."""
    scenery = CATEGORIES[category]
    stage = Stage(size, kind, rng, fault_rng, plain(size, scenery.ground, 0.02))
    scenery.draw(stage)
    return stage
