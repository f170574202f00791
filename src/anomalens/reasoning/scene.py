"""Scenes: what is in a picture, as plain numbers. Rules and programs see these and never a pixel.

Pixel (x, y) covers the square from (x, y) to (x + 1, y + 1), y down. Boxes are (x0, y0, x1, y1), x1 and y1 exclusive.
Every float is rounded to 6 significant digits, so that prompts and cache keys stay the same on every computer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, overload

import numpy as np

from ..errors import WrongInput
from ..images import to_float

SCHEMA = "logicode.scene/1"
UNKNOWN = "unknown"  # the label of a thing that looks like no kind the parser has learnt
DIGITS = 6  # significant
Box = tuple[float, float, float, float]
Attribute = str | float | bool
Stats = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class SceneObject:
    """One thing that a parser found.

    area: pixels; area_frac: of the picture. center: mean place of its pixels.
    length, thickness: sides of the smallest rectangle, of any direction, around the pixel squares; length >= thickness.
    angle: of the long side, degrees in [-90, 90), y down: 0 is level, positive falls to the right.
    aspect: length / thickness. fill: area / (length * thickness). rgb: mean, 0..255.
    hsv: mean hue in degrees (on the circle, weighted by saturation), mean saturation and mean value in 0..1.
    attributes: what else the parser knows, such as {"clamps": 3}. score: how sure the parser is, 1.0 for annotations.
    """

    id: int
    label: str
    score: float
    area: int
    area_frac: float
    bbox: tuple[int, int, int, int]
    center: tuple[float, float]
    length: float
    thickness: float
    angle: float
    aspect: float
    fill: float
    rgb: tuple[float, float, float]
    hsv: tuple[float, float, float]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """The objects of one picture, its named regions in pixels, and what is usual (`statistics`, from normal scenes)."""

    width: int
    height: int
    category: str = ""
    image_id: str = ""
    objects: tuple[SceneObject, ...] = ()
    regions: Mapping[str, Box] = field(default_factory=dict)
    stats: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def with_stats(self, stats: Stats) -> Scene:
        return replace(self, stats=stats)

    def with_regions(self, regions: Mapping[str, Sequence[float]]) -> Scene:
        """With further regions: in pixels, or in fractions of the picture where no number is above 1."""
        return replace(self, regions={**self.regions, **place_regions(regions, self.width, self.height)})

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it: lists, numbers and strings, with the schema's name."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {"schema": SCHEMA, **plain}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Scene:
        """The scene behind `to_dict`.

        Raises:
            WrongInput: another schema, or fields that are missing, unknown or of the wrong kind.
        """
        if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, Mapping) else type(content).__name__
            raise WrongInput(f"a scene has the schema {SCHEMA!r}; got {found!r}: write it with Scene.to_dict().")
        try:
            rest = {k: v for k, v in content.items() if k != "schema"}
            objects = tuple(_object(one) for one in rest.pop("objects"))
            regions = {str(name): _box(box) for name, box in rest.pop("regions").items()}
            scene = cls(objects=objects, regions=regions, **rest)
            return replace(scene, width=int(scene.width), height=int(scene.height), stats=dict(scene.stats))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WrongInput(f"this is not a scene ({error}); write it with Scene.to_dict().") from None


@dataclass(frozen=True)
class Parsed:
    """What a parser makes of a picture: the scene, and the mask (H, W) bool of each object in the scene's order."""

    scene: Scene
    masks: Sequence[np.ndarray]


@dataclass(frozen=True)
class Cut:
    """A mask as what lies within a box: shape (h, w) bool, whose first pixel is (left, top) of the picture."""

    shape: np.ndarray
    top: int
    left: int


@dataclass(frozen=True)
class Masks(Sequence[np.ndarray]):
    """Masks of a picture of this size (H, W), each made whole when it is taken: thousands of small ones fit in memory."""

    cuts: tuple[Cut, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.cuts)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Masks: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Masks:
        if isinstance(index, slice):
            return Masks(self.cuts[index], self.size)
        cut, whole = self.cuts[index], np.zeros(self.size, bool)
        height, width = cut.shape.shape
        whole[cut.top : cut.top + height, cut.left : cut.left + width] = cut.shape
        return whole


def cut_out(numbered: np.ndarray, smallest: float) -> list[Cut]:
    """The places (numbered from 1, as `regions.label` does) of at least `smallest` pixels, each cut out, in order."""
    y, x = np.nonzero(numbered)
    number = numbered[y, x]
    areas = np.bincount(number)[1:]
    ends = np.cumsum(areas)
    together = np.argsort(number, kind="stable")
    cuts = []
    for i in np.flatnonzero(areas >= smallest):
        own = together[ends[i] - areas[i] : ends[i]]
        rows, columns = y[own], x[own]
        top, left = int(rows.min()), int(columns.min())
        shape = np.zeros((int(rows.max()) + 1 - top, int(columns.max()) + 1 - left), bool)
        shape[rows - top, columns - left] = True
        cuts.append(Cut(shape, top, left))
    return cuts


def _object(content: Mapping[str, Any]) -> SceneObject:
    wanted = {f.name for f in fields(SceneObject)}
    if set(content) != wanted:
        raise ValueError(f"an object has the fields {sorted(content)}, expected {sorted(wanted)}")
    lists = {name: tuple(content[name]) for name in ("bbox", "center", "rgb", "hsv")}
    return SceneObject(**{**content, **lists, "attributes": dict(content["attributes"])})


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def rounded(value: float) -> float:
    """To 6 significant digits; -0.0 becomes 0.0."""
    return float(f"{float(value):.{DIGITS}g}") + 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return rounded(value) if isinstance(value, float) else value


# --- measuring ---------------------------------------------------------------------------------------------------


def measure(
    masks: Sequence[np.ndarray | Cut],
    labels: Sequence[str],
    image: np.ndarray,
    *,
    scores: Sequence[float] | None = None,
    attributes: Sequence[Mapping[str, Attribute]] | None = None,
    category: str = "",
    image_id: str = "",
    regions: Mapping[str, Sequence[float]] | None = None,
) -> Parsed:
    """Measure every object of a picture. Masks without a single pixel are left out.

    Args:
        masks: each (H, W), true where the object is, or cut out; they may overlap.
        labels: one for each mask.
        image: (H, W, 3) uint8 or uint16.
        scores: one for each mask, 0..1; 1.0 without.
        attributes: one mapping for each mask.
        regions: name to (x0, y0, x1, y1), in pixels, or in fractions where no number is above 1.

    Raises:
        WrongInput: lengths differ, or a mask has not the size of the picture.
    """
    count = len(masks)
    given = {"labels": labels, "scores": scores, "attributes": attributes}
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise WrongInput(f"{len(values)} {name} came with {count} masks; give one for each mask.")
    height, width = image.shape[:2]
    colours = to_float(image)
    objects: list[SceneObject] = []
    kept: list[Cut] = []
    for i, (mask, name) in enumerate(zip(masks, labels, strict=True)):
        if not isinstance(mask, Cut):
            mask = np.asarray(mask)
            if mask.shape != (height, width):
                raise WrongInput(
                    f"mask {i} ({name}) is {mask.shape}, the picture is {(height, width)}; "
                    "give (H, W) masks of the picture's size."
                )
            mask = _cut(mask.astype(bool, copy=False))
        if not mask.shape.any():
            continue
        extra = dict(attributes[i]) if attributes is not None else {}
        score = float(scores[i]) if scores is not None else 1.0
        objects.append(_measure(len(objects), str(name), score, mask, colours, extra))
        kept.append(mask)
    scene = Scene(width, height, category, image_id, tuple(objects), place_regions(regions or {}, width, height))
    return Parsed(scene, Masks(tuple(kept), (height, width)))


def _cut(mask: np.ndarray) -> Cut:
    """The part (h, w) of a mask (H, W) that holds its pixels, copied so that the whole need not be kept."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Cut(np.zeros((0, 0), bool), 0, 0)
    top, left = int(rows[0]), int(columns[0])
    return Cut(mask[top : rows[-1] + 1, left : columns[-1] + 1].copy(), top, left)


def _measure(
    number: int, name: str, score: float, mask: Cut, colours: np.ndarray, attributes: dict[str, Attribute]
) -> SceneObject:
    y, x = np.nonzero(mask.shape)
    y, x = y + mask.top, x + mask.left
    area = len(x)
    length, thickness, angle = smallest_rectangle(outer_corners(x, y))
    rgb = colours[y, x].astype(np.float64)
    return SceneObject(
        id=number,
        label=name,
        score=rounded(score),
        area=area,
        area_frac=rounded(area / (colours.shape[0] * colours.shape[1])),
        bbox=(int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1),
        center=(rounded(x.mean() + 0.5), rounded(y.mean() + 0.5)),
        length=rounded(length),
        thickness=rounded(thickness),
        angle=rounded(angle),
        aspect=rounded(length / thickness),
        fill=rounded(area / (length * thickness)),
        rgb=tuple(rounded(v) for v in rgb.mean(axis=0) * 255),  # type: ignore[arg-type]
        hsv=_mean_hsv(rgb),
        attributes={str(k): rounded(v) if isinstance(v, float) else v for k, v in attributes.items()},
    )


def outer_corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The corners (n, 2) of the first and the last pixel of each row, which alone can be on the convex hull.

    x, y: (pixels,) places of the pixels, row by row and left to right, as np.nonzero gives them.
    """
    start = np.flatnonzero(np.diff(y, prepend=-1))
    rows, left = y[start], x[start]
    right = x[np.append(start[1:], len(x)) - 1] + 1
    return np.stack([np.tile(np.concatenate([left, right]), 2), np.concatenate([rows, rows, rows + 1, rows + 1])], 1)


def smallest_rectangle(points: np.ndarray) -> tuple[float, float, float]:
    """(length, thickness, angle in degrees in [-90, 90)) of the rectangle of least area around points (n, 2) of (x, y).

    One of its sides lies on an edge of the convex hull. Among equally small ones the most level is taken, and a square
    is level where it can be.

    Source:
        Freeman and Shapira 1975, https://doi.org/10.1145/360881.360919
    """
    hull = convex_hull(points).astype(np.float64)
    edges = np.roll(hull, -1, axis=0) - hull
    along = edges / np.hypot(edges[:, 0], edges[:, 1])[:, None]  # (edges, 2), unit vectors
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    sides = np.stack([np.ptp(along @ hull.T, axis=1), np.ptp(across @ hull.T, axis=1)], 1)
    angles = np.degrees(np.arctan2(along[:, 1], along[:, 0]))
    turned = sides[:, 1] > sides[:, 0] * (1 + 1e-9)  # the long side is across the edge
    angles = np.where(turned, angles + 90, angles)
    angles = np.round((angles + 90) % 180 - 90, 9)
    square = np.isclose(sides[:, 0], sides[:, 1], rtol=1e-9)
    angles = np.where(square, (angles + 45) % 90 - 45, angles)
    areas = sides.prod(axis=1)
    smallest = np.flatnonzero(areas <= areas.min() * (1 + 1e-9))
    best = smallest[np.lexsort((angles[smallest], np.abs(angles[smallest])))[0]]
    return float(sides[best].max()), float(sides[best].min()), float(angles[best])


def convex_hull(points: np.ndarray) -> np.ndarray:
    """The corners (k, 2) of the convex hull of points (n, 2), without points in the middle of an edge.

    Source:
        Andrew 1979, https://doi.org/10.1016/0020-0190(79)90072-3
    """
    ordered = sorted({(float(x), float(y)) for x, y in points})

    def half(chain: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for p in chain:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], p) <= 0:
                kept.pop()
            kept.append(p)
        return kept

    return np.array(half(ordered)[:-1] + half(reversed(ordered))[:-1])


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def to_hsv(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) sRGB in 0..1 to hue in degrees [0, 360), saturation and value in 0..1; grey has hue 0.

    Source:
        Smith 1978, https://doi.org/10.1145/965139.807361
    """
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    spread = high - low
    r, g, b = np.moveaxis(rgb, -1, 0)
    safe = np.where(spread > 0, spread, 1)
    sector = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = np.where(spread > 0, sector * 60, 0) % 360
    return np.stack([hue, spread / np.where(high > 0, high, 1), high], axis=-1)


def _mean_hsv(rgb: np.ndarray) -> tuple[float, float, float]:
    hue, saturation, value = to_hsv(rgb).T
    turn = (saturation * np.exp(1j * np.radians(hue))).sum()
    mean = rounded(np.degrees(np.angle(turn)) % 360) % 360 if abs(turn) > 1e-9 else 0.0
    return mean, rounded(saturation.mean()), rounded(value.mean())


# --- what is usual -----------------------------------------------------------------------------------------------


def numbers(thing: SceneObject) -> dict[str, float]:
    """The single numbers of an object, by the names that `statistics` and size rules use.

    Beside its fields: x0, y0, x1, y1 of the box, center_x, center_y, red, green, blue, saturation, value, and
    attributes.NAME for each attribute that is a number. The hue is left out: it has no ordinary mean.
    """
    found: dict[str, float] = {
        name: getattr(thing, name)
        for name in ("score", "area", "area_frac", "length", "thickness", "angle", "aspect", "fill")
    }
    found |= dict(zip(("x0", "y0", "x1", "y1"), thing.bbox, strict=True))
    found |= dict(zip(("center_x", "center_y"), thing.center, strict=True))
    found |= dict(zip(("red", "green", "blue"), thing.rgb, strict=True))
    found |= {"saturation": thing.hsv[1], "value": thing.hsv[2]}
    for name, value in thing.attributes.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"attributes.{name}"] = value
    return found


def statistics(scenes: Iterable[Scene]) -> Stats:
    """What is usual: {label: {field: {n, mean, std, min, max}}} over all objects of normal scenes; std has ddof 0.

    `count` is over scenes (0 where a label is absent), every other field (see `numbers`) over objects.
    """
    scenes = list(scenes)
    values: dict[str, dict[str, list[float]]] = {}
    names = sorted({thing.label for scene in scenes for thing in scene.objects})
    for name in names:
        table = values.setdefault(name, {"count": []})
        for scene in scenes:
            things = [thing for thing in scene.objects if thing.label == name]
            table["count"].append(len(things))
            for thing in things:
                for key, value in numbers(thing).items():
                    table.setdefault(key, []).append(value)
    return {name: {key: _summary(found) for key, found in table.items()} for name, table in values.items()}


def _summary(values: Sequence[float]) -> dict[str, float]:
    x = np.asarray(values, np.float64)
    parts = {"mean": x.mean(), "std": x.std(), "min": x.min(), "max": x.max()}
    return {"n": len(x), **{key: rounded(value) for key, value in parts.items()}}


# --- regions -----------------------------------------------------------------------------------------------------


def place_regions(regions: Mapping[str, Sequence[float]], width: int, height: int) -> dict[str, Box]:
    """Boxes in pixels from boxes in pixels, or in fractions of the picture where no number is above 1.

    Raises:
        WrongInput: a box is not four numbers with x0 < x1 and y0 < y1.
    """
    placed = {}
    for name, box in regions.items():
        try:
            x0, y0, x1, y1 = (float(v) for v in box)
        except (TypeError, ValueError):
            raise WrongInput(f"region {name!r} is {box!r}; give four numbers: x0, y0, x1, y1.") from None
        if not (-np.inf < x0 < x1 < np.inf and -np.inf < y0 < y1 < np.inf):
            raise WrongInput(f"region {name!r} is {box!r}; x0 must be below x1, and y0 below y1.")
        fractions = max(abs(v) for v in (x0, y0, x1, y1)) <= 1
        across, down = (width, height) if fractions else (1, 1)
        placed[str(name)] = (rounded(x0 * across), rounded(y0 * down), rounded(x1 * across), rounded(y1 * down))
    return placed


def grid(rows: int, cols: int, box: Sequence[float] = (0, 0, 1, 1), name: str = "cell") -> dict[str, Box]:
    """The cells of a grid as regions `cell_1_1` (row, column) .. `cell_ROWS_COLS`, from the top left, row by row.

    Raises:
        WrongInput: no row or no column.
    """
    if rows < 1 or cols < 1:
        raise WrongInput(f"a grid of {rows} x {cols} has no cell; give at least one row and one column.")
    x0, y0, x1, y1 = box
    across, down = (x1 - x0) / cols, (y1 - y0) / rows
    return {
        f"{name}_{r + 1}_{c + 1}": (x0 + c * across, y0 + r * down, x0 + (c + 1) * across, y0 + (r + 1) * down)
        for r in range(rows)
        for c in range(cols)
    }
