"""Mini-LOCO: the five scenes of MVTec LOCO AD as discs and rectangles on 160 x 120, with known violations.

    drawn = draw("screw_bag", "extra_washer", seed=3)   # a picture with its objects, defect masks and reasons
    write(root, "screw_bag")                            # the layout of MVTec LOCO AD, and annotations of LabelMe
    RULES["screw_bag"], PROGRAMS["screw_bag"]           # typed rules, and a program written by hand, that judge it right

Each violation has one cause, of one of the four types; its reason is "type: text".
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anomalens.images import encode
from anomalens.reasoning.scene import Parsed, measure
from anomalens.types import Sample, View

WIDTH, HEIGHT = 160, 120
Colour = tuple[int, int, int]
ORANGE, RED, YELLOW, BLUE, GREEN = (240, 140, 30), (200, 40, 40), (235, 215, 50), (50, 80, 210), (60, 160, 70)
BROWN, WHITE, GREY, PINK, STEEL = (120, 75, 35), (245, 245, 245), (120, 120, 120), (235, 120, 190), (170, 180, 190)


@dataclass
class Drawn:
    """One picture. objects: (label, mask). defects: masks, one for each violation. reasons: "type: text"."""

    category: str
    kind: str  # good, structural, or the name of a violation
    image: np.ndarray
    objects: list[tuple[str, np.ndarray]]
    defects: list[np.ndarray]
    reasons: list[str]

    def parsed(self, image_id: str = "") -> Parsed:
        """The true scene."""
        masks, labels = [m for _, m in self.objects], [name for name, _ in self.objects]
        return measure(masks, labels, self.image, category=self.category, image_id=image_id)

    def sample(self, image_id: str = "") -> Sample:
        mask = np.any(self.defects, axis=0) if self.defects else None
        return Sample(
            id=image_id or f"{self.category}/{self.kind}",
            views={"image": View("image", lambda: self.image)},
            category=self.category,
            label=int(self.kind != "good"),
            mask=View("mask", lambda: mask) if mask is not None else None,
            defect=self.kind,
        )


@dataclass
class Canvas:
    """A picture while it is drawn."""

    rng: np.random.Generator
    ground: Colour
    objects: list[tuple[str, np.ndarray]] = field(default_factory=list)
    defects: list[np.ndarray] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image = np.full((HEIGHT, WIDTH, 3), self.ground, np.float64)

    def add(self, label: str, mask: np.ndarray, colour: Colour) -> np.ndarray:
        """Paint an object; an empty label is scenery."""
        self.image[mask] = colour
        if label:
            self.objects.append((label, mask))
        return mask

    def fault(self, reason: str, mask: np.ndarray) -> None:
        self.reasons.append(reason)
        self.defects.append(mask)

    def near(self, x: float, y: float, by: float = 2.0) -> tuple[float, float]:
        return x + self.rng.uniform(-by, by), y + self.rng.uniform(-by, by)


def disc(x: float, y: float, radius: float, hole: float = 0.0) -> np.ndarray:
    rows, cols = np.ogrid[:HEIGHT, :WIDTH]
    square = (cols + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2
    return (square <= radius**2) & (square >= hole**2)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    rows, cols = np.ogrid[:HEIGHT, :WIDTH]
    return (cols + 0.5 >= x0) & (cols + 0.5 < x1) & (rows + 0.5 >= y0) & (rows + 0.5 < y1)


def bar(x: float, y: float, length: float, thickness: float, degrees: float) -> np.ndarray:
    rows, cols = np.ogrid[:HEIGHT, :WIDTH]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = cols + 0.5 - x, rows + 0.5 - y
    return (abs(u * c + v * s) <= length / 2) & (abs(v * c - u * s) <= thickness / 2)


def breakfast_box(canvas: Canvas, kind: str) -> None:
    """Two mandarins and a nectarine on the left; cereal at the upper right, chips at the lower right."""
    canvas.add("", box(78, 4, 80, 116), WHITE)
    for i, (x, y) in enumerate([canvas.near(22, 30), canvas.near(56, 34)]):
        if i == 1 and kind == "missing_mandarin":
            canvas.fault("quantity: 1 mandarin instead of 2", disc(x, y, 13))
        else:
            canvas.add("mandarin", disc(x, y, 13), ORANGE)
    nectarine = canvas.add("nectarine", disc(*canvas.near(32, 86), 16), RED)
    if kind == "extra_nectarine":
        canvas.fault("quantity: 2 nectarines instead of 1", canvas.add("nectarine", disc(62, 92, 12), RED))
    top = 56 + canvas.rng.uniform(-1, 1)
    if kind == "little_cereal":
        canvas.fault("size: the cereal covers too little", box(84, 30, 156, top))
        canvas.add("cereal", box(84, 6, 156, 30), YELLOW)
        canvas.add("chips", box(84, 64, 156, 114), BROWN)
    elif kind == "exchanged":
        canvas.add("cereal", box(84, 64, 156, 114), YELLOW)
        canvas.add("chips", box(84, 6, 156, top), BROWN)
        canvas.fault("position: the cereal is below the chips", box(84, 6, 156, 114))
    else:
        canvas.add("cereal", box(84, 6, 156, top), YELLOW)
        canvas.add("chips", box(84, 64, 156, 114), BROWN)
    assert nectarine.any()


def juice_bottle(canvas: Canvas, kind: str) -> None:
    """Juice up to a level, an upper label with a fruit of the juice's colour, and a lower label."""
    juices = {"cherry": RED, "orange": ORANGE, "banana": YELLOW}
    names = list(juices)
    juice = names[int(canvas.rng.integers(3))]
    x = 80 + canvas.rng.uniform(-3, 3)
    canvas.add("", box(x - 26, 4, x + 26, 118), (225, 230, 235))
    level = 22 + canvas.rng.uniform(-1, 1)
    if kind == "low_level":
        canvas.fault("size: the fill level is too low", box(x - 24, level, x + 24, 40))
        level = 40
    canvas.add("juice", box(x - 24, level, x + 24, 116), juices[juice])
    canvas.add("label", box(x - 18, 46, x + 18, 72), WHITE)
    fruit = juice
    if kind == "wrong_fruit":
        fruit = names[(names.index(juice) + 1) % 3]
    icon = canvas.add("icon", disc(x, 59, 9), juices[fruit])
    if kind == "wrong_fruit":
        canvas.fault(f"matching: the icon shows {fruit}, the juice is {juice}", icon)
    lower = box(x - 18, 86, x + 18, 102)
    if kind == "missing_label":
        canvas.fault("quantity: 1 label instead of 2", lower)
    elif kind == "misplaced_label":
        canvas.fault("position: the lower label is too high", canvas.add("label", box(x - 18, 74, x + 18, 90), WHITE))
    else:
        canvas.add("label", lower, WHITE)


def pushpins(canvas: Canvas, kind: str) -> None:
    """One pin in each of 3 x 5 compartments."""
    for i in range(1, 5):
        canvas.add("", box(32 * i - 1, 0, 32 * i + 1, HEIGHT), WHITE)
    for i in range(1, 3):
        canvas.add("", box(0, 40 * i - 1, WIDTH, 40 * i + 1), WHITE)
    chosen = int(canvas.rng.integers(15))
    for i in range(15):
        row, col = divmod(i, 5)
        x, y = canvas.near(32 * col + 10, 40 * row + 20, 3)
        if i == chosen and kind == "empty_compartment":
            canvas.fault("quantity: no pushpin in a compartment", box(32 * col, 40 * row, 32 * col + 32, 40 * row + 40))
            continue
        radius = 4.0
        if i == chosen and kind == "large_pin":
            radius = 7.0
        pin = canvas.add("pushpin", disc(x, y, radius), YELLOW)
        if i == chosen and kind == "large_pin":
            canvas.fault("size: a pushpin is too large", pin)
        if i == chosen and kind == "two_in_one":
            second = canvas.add("pushpin", disc(32 * col + 24, 40 * row + 20, 4), YELLOW)
            canvas.fault("quantity: 2 pushpins in a compartment", second)


def screw_bag(canvas: Canvas, kind: str) -> None:
    """Two washers, two nuts, a long and a short screw, all inside the bag."""
    canvas.add("", box(30, 4, 158, 116), (70, 75, 90))
    canvas.add("washer", disc(*canvas.near(50, 26), 10, 5), STEEL)
    if kind == "washer_outside":
        canvas.fault("position: a washer is outside the bag", canvas.add("washer", disc(15, 60, 10, 5), STEEL))
    else:
        canvas.add("washer", disc(*canvas.near(80, 26), 10, 5), STEEL)
    if kind == "extra_washer":
        canvas.fault("quantity: 3 washers instead of 2", canvas.add("washer", disc(110, 26, 10, 5), STEEL))
    canvas.add("nut", disc(*canvas.near(50, 54), 8), YELLOW)
    x, y = canvas.near(76, 54)
    if kind == "missing_nut":
        canvas.fault("quantity: 1 nut instead of 2", disc(x, y, 8))
    else:
        canvas.add("nut", disc(x, y, 8), YELLOW)
    canvas.add("screw", bar(*canvas.near(80, 80), 60, 7, canvas.rng.uniform(-5, 5)), GREEN)
    short = bar(*canvas.near(80, 103), 60 if kind == "two_long_screws" else 36, 7, canvas.rng.uniform(-5, 5))
    canvas.add("screw", short, GREEN)
    if kind == "two_long_screws":
        canvas.fault("size: the shorter screw is too long", short)


def splicing_connectors(canvas: Canvas, kind: str) -> None:
    """Two connectors of the same size, one level cable between them, its colour says how many clamps each has."""
    colours = {"yellow": (YELLOW, 2), "blue": (BLUE, 3), "red": (RED, 5)}
    names = list(colours)
    cable = names[int(canvas.rng.integers(3))]
    clamps = colours[cable][1]
    if kind == "wrong_cable":
        cable = names[(names.index(cable) + 1) % 3]
    x, y = canvas.near(80, 60)
    for side in (-1, 1):
        height = 104 if side > 0 and kind == "unlike_connectors" else 80
        connector = canvas.add(
            "connector", box(x + side * 60 - 12, y - height / 2, x + side * 60 + 12, y + height / 2), GREY
        )
        if height == 104:
            canvas.fault("matching: the connectors have different sizes", connector)
        for i in range(clamps):
            centre = y + (i - (clamps - 1) / 2) * 15
            canvas.add("clamp", box(x + side * 60 - 7, centre - 4, x + side * 60 + 7, centre + 4), PINK)
    tilt = 12.0 if kind == "tilted_cable" else 0.0
    line = bar(x, y, 92, 5, tilt)
    if kind == "no_cable":
        canvas.fault("quantity: no cable instead of 1", line)
        return
    canvas.add("cable", line, colours[cable][0])
    if kind == "two_cables":
        second = canvas.add("cable", bar(x, y + 12, 92, 5, 0), colours[cable][0])
        canvas.fault("quantity: 2 cables instead of 1", second)
    if kind == "tilted_cable":
        canvas.fault("position: the cable ends at different heights", line)
    if kind == "wrong_cable":
        canvas.fault(f"matching: a {cable} cable with {clamps} clamps on each side", line)


@dataclass(frozen=True)
class Category:
    """labels: what its rules speak of. violations: name to type."""

    paint: Callable[[Canvas, str], None]
    ground: Colour
    labels: tuple[str, ...]
    violations: dict[str, str]


CATEGORIES = {
    "breakfast_box": Category(
        breakfast_box,
        (60, 60, 70),
        ("mandarin", "nectarine", "cereal", "chips"),
        {
            "missing_mandarin": "quantity",
            "extra_nectarine": "quantity",
            "little_cereal": "size",
            "exchanged": "position",
        },
    ),
    "juice_bottle": Category(
        juice_bottle,
        (40, 45, 60),
        ("juice", "label", "icon"),
        {
            "missing_label": "quantity",
            "low_level": "size",
            "misplaced_label": "position",
            "wrong_fruit": "matching",
        },
    ),
    "pushpins": Category(
        pushpins,
        (90, 100, 110),
        ("pushpin",),
        {"empty_compartment": "quantity", "two_in_one": "quantity", "large_pin": "size"},
    ),
    "screw_bag": Category(
        screw_bag,
        (30, 30, 35),
        ("washer", "nut", "screw"),
        {
            "extra_washer": "quantity",
            "missing_nut": "quantity",
            "two_long_screws": "size",
            "washer_outside": "position",
        },
    ),
    "splicing_connectors": Category(
        splicing_connectors,
        (35, 40, 40),
        ("connector", "cable", "clamp"),
        {
            "no_cable": "quantity",
            "two_cables": "quantity",
            "tilted_cable": "position",
            "wrong_cable": "matching",
            "unlike_connectors": "matching",
        },
    ),
}


def draw(category: str, kind: str = "good", seed: int = 0) -> Drawn:
    """One picture: `good`, `structural` (a scratch), or one of the category's violations."""
    chosen = CATEGORIES[category]
    if kind not in ("good", "structural", *chosen.violations):
        raise KeyError(f"{category} has no {kind}; it has {', '.join(chosen.violations)}")
    rng = np.random.default_rng([seed, sum(map(ord, category))])
    canvas = Canvas(rng, chosen.ground)
    chosen.paint(canvas, kind)
    if kind == "structural":
        scratch = bar(rng.uniform(50, 110), rng.uniform(40, 80), 30, 3, rng.uniform(-90, 90))
        canvas.image[scratch] = (20, 20, 20)
        canvas.defects.append(scratch)
    noisy = canvas.image + rng.normal(0, 2, canvas.image.shape)
    image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return Drawn(category, kind, image, canvas.objects, canvas.defects, canvas.reasons)


def pictures(category: str, good: int = 4, each: int = 2, seed: int = 0) -> list[Drawn]:
    """Good pictures, then every violation; seeds go on from `seed`."""
    kinds = ["good"] * good + [kind for kind in CATEGORIES[category].violations for _ in range(each)]
    return [draw(category, kind, seed + i) for i, kind in enumerate(kinds)]


def write(
    root: Path, category: str, *, train: int = 8, validation: int = 2, good: int = 4, each: int = 2, seed: int = 0
) -> Path:
    """The layout of MVTec LOCO AD below `root`, with defects_config.json, and annotations in <root>/annotations.

    Returns the folder of annotations: LabelMe files with one mask for each object and the reasons under "gt".
    """
    violations = [*CATEGORIES[category].violations, "structural"]
    values = {name: 255 - i for i, name in enumerate(violations)}
    plan = (
        [("train/good", "good")] * train + [("validation/good", "good")] * validation + [("test/good", "good")] * good
    )
    for name in violations:
        folder = "structural_anomalies" if name == "structural" else "logical_anomalies"
        plan += [(f"test/{folder}", name)] * each
    numbers: dict[str, int] = {}
    for i, (folder, kind) in enumerate(plan):
        drawn = draw(category, kind, seed + i)
        stem = f"{numbers.setdefault(folder, 0):03d}"
        numbers[folder] += 1
        _write(root / category / folder / f"{stem}.png", encode(drawn.image))
        for j, mask in enumerate(drawn.defects):
            place = root / category / "ground_truth" / Path(folder).name / stem / f"{j:03d}.png"
            _write(place, encode(mask.astype(np.uint8) * values[kind]))
        note = json.dumps(_labelme(drawn, f"{stem}.png")).encode()
        _write(root / "annotations" / category / folder / f"{stem}.json", note)
    config = [
        {"defect_name": name, "pixel_value": value, "saturation_threshold": 1.0, "relative_saturation": True}
        for name, value in values.items()
    ]
    _write(root / category / "defects_config.json", json.dumps(config).encode())
    return root / "annotations"


def _labelme(drawn: Drawn, name: str) -> dict:
    shapes = []
    for label, mask in drawn.objects:
        y, x = np.nonzero(mask)
        x0, y0, x1, y1 = int(x.min()), int(y.min()), int(x.max()), int(y.max())
        png = encode(mask[y0 : y1 + 1, x0 : x1 + 1].astype(np.uint8) * 255)
        text = base64.b64encode(png).decode()
        shapes.append({"label": label, "shape_type": "mask", "points": [[x0, y0], [x1, y1]], "mask": text})
    return {"imagePath": name, "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes, "gt": drawn.reasons}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


RULES = {
    "breakfast_box": {
        "category": "breakfast_box",
        "labels": ["mandarin", "nectarine", "cereal", "chips"],
        "regions": {"left": [0, 0, 0.5, 1], "right": [0.5, 0, 1, 1]},
        "rules": [
            {"count": "mandarin", "exactly": 2},
            {"count": "nectarine", "exactly": 1},
            {"size": "cereal", "field": "area_frac", "at_least": 0.15, "at_most": 0.25},
            {"place": "mandarin", "in": "left"},
            {"place": "nectarine", "in": "left"},
            {"place": "cereal", "above": "chips"},
        ],
    },
    "juice_bottle": {
        "category": "juice_bottle",
        "labels": ["juice", "label", "icon"],
        "regions": {"between": [0, 0.6, 1, 0.72]},
        "rules": [
            {"count": "label", "exactly": 2},
            {"size": "juice", "field": "y0", "at_most": 30, "text": "The fill level is high."},
            {"absent": "label", "in": "between", "type": "position"},
            {"match": "juice.color", "to": "icon.color"},
        ],
    },
    "pushpins": {
        "category": "pushpins",
        "labels": ["pushpin"],
        "rules": [
            {"count": "pushpin", "exactly": 1, "cells": [3, 5]},
            {"size": "pushpin", "field": "area", "learnt": True},
        ],
    },
    "screw_bag": {
        "category": "screw_bag",
        "labels": ["washer", "nut", "screw"],
        "regions": {"bag": [0.18, 0, 1, 1], "bottom": [0, 0.77, 1, 1]},
        "rules": [
            *({"count": name, "exactly": 2} for name in ("washer", "nut", "screw")),
            {"place": "washer", "in": "bag"},
            {"size": "screw", "field": "length", "at_most": 45, "in": "bottom"},
        ],
    },
    "splicing_connectors": {
        "category": "splicing_connectors",
        "labels": ["connector", "cable", "clamp"],
        "rules": [
            {"count": "cable", "exactly": 1},
            {"size": "cable", "field": "angle", "at_least": -5, "at_most": 5, "type": "position"},
            {"match": "cable.color", "to": "clamp.count", "pairs": {"yellow": 4, "blue": 6, "red": 10}},
            {"same": ["connector"], "field": "length", "within": 0.1},
        ],
    },
}

PROGRAMS = {
    "breakfast_box": """
def wrong_count(image, label, right):
    number = image.count(label)
    if number == right:
        return []
    box = (0, 0, image.width / 2, image.height)
    return [image.finding("quantity", f"{label}: {number} found, {right} expected", rule="R1", boxes=[box])]


def check(image):
    found = wrong_count(image, "mandarin", 2) + wrong_count(image, "nectarine", 1)
    for cereal in image.find("cereal"):
        if cereal.area_frac < 0.15:
            reason = f"cereal: area {cereal.area_frac:.3f} of the picture, at least 0.15 expected"
            found.append(image.finding("size", reason, rule="R2", objects=[cereal]))
        if any([image.above(chips, cereal) for chips in image.find("chips")]):
            reason = f"cereal: at y {cereal.center[1]:.0f}, expected above the chips"
            found.append(image.finding("position", reason, rule="R3", objects=[cereal]))
    return found
""",
    "juice_bottle": """
def check(image):
    found = []
    labels = image.find("label")
    if len(labels) != 2:
        reason = f"label: {len(labels)} found, 2 expected"
        found.append(image.finding("quantity", reason, rule="R1", boxes=[(0, 80, image.width, 110)]))
    for thing in labels[1:]:
        if thing.center[1] < 90:
            reason = f"label: the lower one is at y {thing.center[1]:.0f}, at least 90 expected"
            found.append(image.finding("position", reason, rule="R2", objects=[thing]))
    for juice in image.find("juice"):
        if juice.bbox[1] > 30:
            reason = f"juice: level at y {juice.bbox[1]}, at most 30 expected"
            found.append(image.finding("size", reason, rule="R3", objects=[juice]))
        for icon in image.find("icon"):
            if image.color_name(icon) != image.color_name(juice):
                reason = f"icon: {image.color_name(icon)}, {image.color_name(juice)} expected like the juice"
                found.append(image.finding("matching", reason, rule="R4", objects=[icon, juice]))
    return found
""",
    "pushpins": """
ROWS, COLS = 3, 5


def check(image):
    found = []
    for cell in image.cells((0, 0, image.width, image.height), ROWS, COLS):
        pins = [pin for pin in image.find("pushpin") if image.in_region(pin, cell)]
        if len(pins) != 1:
            reason = f"pushpin: {len(pins)} in a compartment, 1 expected"
            found.append(image.finding("quantity", reason, rule="R1", objects=pins, boxes=[cell]))
    for pin in image.find("pushpin"):
        if pin.length > 11:
            reason = f"pushpin: length {pin.length:.1f}, at most 11 expected"
            found.append(image.finding("size", reason, rule="R2", objects=[pin]))
    return found
""".replace("ROWS, COLS = 3, 5", "ROWS = 3\nCOLS = 5"),
    "screw_bag": """
BAG = (29, 0, 160, 120)


def check(image):
    found = []
    for label in ("washer", "nut", "screw"):
        if image.count(label) != 2:
            reason = f"{label}: {image.count(label)} found, 2 expected"
            found.append(image.finding("quantity", reason, rule="R1", objects=image.find(label), boxes=[BAG]))
    for washer in image.find("washer"):
        if not image.in_region(washer, BAG):
            reason = f"washer: at x {washer.center[0]:.0f}, at least {BAG[0]} expected"
            found.append(image.finding("position", reason, rule="R2", objects=[washer]))
    lengths = sorted([screw.length for screw in image.find("screw")])
    if len(lengths) == 2 and lengths[0] > 45:
        reason = f"screw: the shorter one has length {lengths[0]:.0f}, at most 45 expected"
        found.append(image.finding("size", reason, rule="R3", objects=image.find("screw")))
    return found
""",
    "splicing_connectors": """
CLAMPS = {"yellow": 4, "blue": 6, "red": 10}


def check(image):
    found = []
    cables = image.find("cable")
    if len(cables) != 1:
        reason = f"cable: {len(cables)} found, 1 expected"
        boxes = [] if cables else [(0, 50, image.width, 70)]
        found.append(image.finding("quantity", reason, rule="R1", objects=cables, boxes=boxes))
    for cable in cables[:1]:
        if abs(cable.angle) > 5:
            reason = f"cable: angle {cable.angle:.0f} degrees, at most 5 expected"
            found.append(image.finding("position", reason, rule="R2", objects=[cable]))
        wanted = CLAMPS.get(image.color_name(cable))
        if image.count("clamp") != wanted:
            reason = f"clamp: {image.count('clamp')} found, {wanted} expected with this cable"
            found.append(image.finding("matching", reason, rule="R3", objects=[cable]))
    lengths = [connector.length for connector in image.find("connector")]
    if lengths and max(lengths) > 1.1 * min(lengths):
        reason = f"connector: lengths {min(lengths):.0f} to {max(lengths):.0f}, the same expected"
        found.append(image.finding("matching", reason, rule="R4", objects=image.find("connector")))
    return found
""",
}
