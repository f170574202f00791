"""What a generated program sees of a picture: plain numbers of named objects, and never a pixel.

    def check(image):
        washers = image.find("washer")
        if len(washers) != 2:
            return [image.finding("quantity", f"{len(washers)} washers, 2 expected", rule="R1", objects=washers)]
        return []

This file runs inside the sandbox too, loaded by path: it imports the standard library only. The reference in the prompt
is made of the docstrings below (`reference`), so that prompt and code cannot drift apart.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Collection, Iterable, Mapping

TYPES = ("quantity", "size", "position", "matching")  # of a finding
LONGEST_REASON = 300  # characters
LONGEST_RULE = 64

BUILTINS = (
    "abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "int", "isinstance", "len", "list", "map", "max",
    "min", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
EXCEPTIONS = ("ValueError", "TypeError", "KeyError", "IndexError", "ZeroDivisionError", "Exception")
MATH = ("sqrt", "hypot", "atan2", "degrees", "pi", "floor", "ceil", "isclose", "inf")

OBJECT_FIELDS = {
    "id": "int, names the object in a finding",
    "label": "str",
    "score": "float, certainty of the parser; 1.0 for annotations",
    "area": "int, pixels",
    "area_frac": "float, area as a fraction of the picture, 0..1",
    "bbox": "(x0, y0, x1, y1) in pixels, x1 and y1 exclusive",
    "center": "(x, y) in pixels, y points down",
    "length": "float, long side of the tightest turned rectangle, pixels",
    "thickness": "float, its short side, pixels",
    "angle": "float, direction of the long side in degrees, -90 <= angle < 90, y points down",
    "aspect": "float, length / thickness, 1 or more",
    "fill": "float, area / (length * thickness)",
    "rgb": "(r, g, b) mean colour, 0..255",
    "hsv": "(h, s, v) mean colour: h in degrees 0..360, s and v in 0..1",
    "attributes": "dict of what the parser knows besides, such as attributes['clamps']",
}
STAT_FIELDS = {
    "n": "int, how many values were seen",
    "mean": "float",
    "std": "float, standard deviation",
    "min": "float",
    "max": "float",
}


class _Record:
    """Fields that can be read and not changed."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, fields: Mapping[str, object]):
        for name in self.__slots__:
            value = fields[name]
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"{name} cannot be changed: objects and statistics are read-only")

    def __delattr__(self, name: str) -> None:
        raise TypeError(f"{name} cannot be deleted: objects and statistics are read-only")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


class Object(_Record):
    """One object of the picture."""

    __slots__ = tuple(OBJECT_FIELDS)

    # For type checkers; at run time the slots above hold them.
    id: int
    label: str
    score: float
    area: int
    area_frac: float
    bbox: tuple[float, float, float, float]
    center: tuple[float, float]
    length: float
    thickness: float
    angle: float
    aspect: float
    fill: float
    rgb: tuple[float, float, float]
    hsv: tuple[float, float, float]
    attributes: dict[str, str | float | bool]

    def __init__(self, fields: Mapping[str, object]):
        super().__init__(fields)
        object.__setattr__(self, "attributes", _ReadOnlyDict(self.attributes))


class Stat(_Record):
    """What normal pictures showed of one field of one label."""

    __slots__ = tuple(STAT_FIELDS)

    n: int
    mean: float
    std: float
    min: float
    max: float


class _ReadOnlyDict(dict):
    """A dict whose contents stay what they are."""

    def _refuse(self, *_: object, **__: object) -> None:
        raise TypeError("attributes of objects are read-only; copy() gives a dict of your own")

    __setitem__ = __delitem__ = pop = popitem = clear = setdefault = update = __ior__ = _refuse  # type: ignore[assignment]

    def copy(self) -> dict:
        return dict(self)


class Image:
    """One picture: `width` and `height` in pixels, `category`, and the methods below."""

    def __init__(self, scene: Mapping):
        """scene: a scene with schema `logicode.scene/1`, as plain JSON types.

        Raises:
            ValueError: a field is missing; the message names it.
        """
        try:
            self.width = scene["width"]
            self.height = scene["height"]
            self.category = scene.get("category", "")
            objects = sorted(map(Object, scene["objects"]), key=lambda o: (o.center[1], o.center[0]))
        except KeyError as missing:
            raise ValueError(
                f"the scene lacks the field {missing}; a scene or one of its objects is incomplete"
            ) from None
        self._ids = frozenset(thing.id for thing in objects)
        self._regions = {name: tuple(box) for name, box in scene.get("regions", {}).items()}
        self._stats = scene.get("stats", {})
        self._by_label: dict[str, list[Object]] = {}
        for thing in objects:
            self._by_label.setdefault(thing.label, []).append(thing)

    def labels(self) -> list[str]:
        """Labels of the objects that are in this picture, sorted, each once."""
        return sorted(self._by_label)

    def find(self, label: str) -> list[Object]:
        """All objects with this label, from top to bottom, then from left to right, by centre; [] where there is none."""
        return list(self._by_label.get(label, ()))

    def count(self, label: str) -> int:
        """How many objects have this label."""
        return len(self._by_label.get(label, ()))

    def exists(self, label: str) -> bool:
        """True where at least one object has this label."""
        return label in self._by_label

    def region(self, name: str) -> tuple[float, float, float, float]:
        """The box (x0, y0, x1, y1) of a named region of the picture. KeyError where the name is unknown."""
        if name not in self._regions:
            raise KeyError(f"no region is named {name!r}; known: {', '.join(self._regions) or 'none'}")
        return self._regions[name]

    def in_region(self, obj: Object, box_or_name: tuple | str, mode: str = "center", min_overlap: float = 0.5) -> bool:
        """Whether an object is in a box or named region.

        mode "center": its centre is inside; "full": its whole box is; "overlap": at least the fraction `min_overlap` of
        its box is.
        """
        box = self._box(box_or_name)
        if mode == "center":
            x, y = self._center(obj)
            return box[0] <= x < box[2] and box[1] <= y < box[3]
        if mode == "full":
            inner = self._box(obj)
            return box[0] <= inner[0] and box[1] <= inner[1] and inner[2] <= box[2] and inner[3] <= box[3]
        if mode == "overlap":
            return self.contains(box, obj) >= min_overlap
        raise ValueError(f"mode is {mode!r}; use 'center', 'full' or 'overlap'")

    def cells(self, box: tuple | str, rows: int, cols: int) -> list[tuple[float, float, float, float]]:
        """A box or named region cut into rows x cols boxes of equal size, row by row from the top left."""
        if rows < 1 or cols < 1:
            raise ValueError(f"cells got {rows} rows and {cols} columns; both must be 1 or more")
        x0, y0, x1, y1 = self._box(box)
        xs = [x0 + (x1 - x0) * i / cols for i in range(cols + 1)]
        ys = [y0 + (y1 - y0) * i / rows for i in range(rows + 1)]
        return [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(rows) for c in range(cols)]

    def iou(self, a: Object | tuple, b: Object | tuple) -> float:
        """Intersection over union of two boxes (or of the boxes of two objects), 0..1."""
        shared = _overlap(a := self._box(a), b := self._box(b))
        union = _area(a) + _area(b) - shared
        return shared / union if union > 0 else 0.0

    def contains(self, a: Object | tuple, b: Object | tuple) -> float:
        """The fraction of b's box that lies inside a's box, 0..1."""
        area = _area(inner := self._box(b))
        return _overlap(self._box(a), inner) / area if area > 0 else 0.0

    def distance(self, a: Object | tuple, b: Object | tuple) -> float:
        """Distance of the two centres as a fraction of the diagonal of the picture, 0..1."""
        (ax, ay), (bx, by) = self._center(a), self._center(b)
        return math.hypot(ax - bx, ay - by) / math.hypot(self.width, self.height)

    def left_of(self, a: Object | tuple, b: Object | tuple) -> bool:
        """True where the centre of a is further left than that of b."""
        return self._center(a)[0] < self._center(b)[0]

    def above(self, a: Object | tuple, b: Object | tuple) -> bool:
        """True where the centre of a is higher in the picture than that of b."""
        return self._center(a)[1] < self._center(b)[1]

    def color_name(self, obj: Object) -> str:
        """One of black, white, grey, red, orange, yellow, green, cyan, blue, purple, pink, brown."""
        hue, saturation, value = obj.hsv
        if value < 0.2:
            return "black"
        if saturation < 0.15:
            return "white" if value > 0.85 else "grey"
        name = next((name for edge, name in _HUES if hue % 360 < edge), "red")
        return "brown" if name == "orange" and value < 0.55 else name

    def stat(self, label: str, field: str) -> Stat:
        """What normal pictures showed: the record of a label's field; field "count" is objects per picture.

        KeyError where normal pictures had no such label or field.
        """
        fields = self._stats.get(label)
        if fields is None:
            raise KeyError(f"normal pictures had no {label!r}; they had: {', '.join(sorted(self._stats)) or 'nothing'}")
        if field not in fields:
            raise KeyError(f"{label!r} has no statistics of {field!r}; known: {', '.join(sorted(fields)) or 'none'}")
        return Stat(fields[field])

    def normal(self, value: float, stat: Stat, k: float = 3.0) -> bool:
        """Whether a value is in the normal range: lo <= value <= hi.

        lo = min(stat.min, stat.mean - k * stat.std) and hi = max(stat.max, stat.mean + k * stat.std).
        """
        low = min(stat.min, stat.mean - k * stat.std)
        return low <= value <= max(stat.max, stat.mean + k * stat.std)

    def finding(
        self,
        type: str,
        reason: str,
        rule: str | None = None,
        objects: Iterable[Object | int] | Object = (),
        boxes: Iterable[tuple] | tuple = (),
        severity: float = 1.0,
    ) -> dict:
        """One broken rule, to be returned by `check` in a list.

        type: "quantity", "size", "position" or "matching". reason: what was measured and what was expected. rule: its
        id, such as "R1". objects: those concerned. boxes: places concerned, such as where a missing part belongs.
        severity: 0..1, larger values count as 1.
        """
        if type not in TYPES:
            raise ValueError(f"the type of a finding is {type!r}; use one of {', '.join(TYPES)}")
        severity = float(severity)
        if math.isnan(severity):
            raise ValueError("the severity of a finding is not a number; use 0..1")
        things = [objects] if isinstance(objects, (Object, int)) else list(objects)
        places: list = [boxes] if _is_box(boxes) else list(boxes)
        return {
            "rule": "" if rule is None else str(rule)[:LONGEST_RULE],
            "type": type,
            "reason": _shortened(str(reason)),
            "objects": [thing.id if isinstance(thing, Object) else thing for thing in things],
            "boxes": [list(self._box(place)) for place in places],
            "severity": min(max(severity, 0.0), 1.0),
        }

    def _box(self, thing: Object | tuple | list | str) -> tuple:
        """The box of an object, of a named region, or the box itself."""
        if isinstance(thing, Object):
            return thing.bbox
        if isinstance(thing, str):
            return self.region(thing)
        if not _is_box(thing):
            raise ValueError(f"got {thing!r:.80}; use an object, the name of a region, or a box (x0, y0, x1, y1)")
        return tuple(thing)

    def _center(self, thing: Object | tuple | list | str) -> tuple[float, float]:
        if isinstance(thing, Object):
            return thing.center
        x0, y0, x1, y1 = self._box(thing)
        return (x0 + x1) / 2, (y0 + y1) / 2


# Upper edges of hue in degrees; from 345 on it is red again.
_HUES = (
    (15, "red"),
    (45, "orange"),
    (70, "yellow"),
    (170, "green"),
    (200, "cyan"),
    (260, "blue"),
    (290, "purple"),
    (345, "pink"),
)


def _is_box(thing: object) -> bool:
    return isinstance(thing, (tuple, list)) and len(thing) == 4 and all(isinstance(v, (int, float)) for v in thing)


def _area(box: tuple) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _overlap(a: tuple, b: tuple) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def checked_findings(answer: object, ids: Collection[int]) -> list[dict]:
    """What `check` returned, as findings with every key, in plain JSON types.

    answer: a list of findings, or of dicts with at least "type" and "reason". ids: of the objects of the picture.

    Raises:
        ValueError: it is anything else; the message says what, in one sentence.
    """
    if not isinstance(answer, (list, tuple)):
        raise ValueError(
            f"check returned {type(answer).__name__}; a list of findings is expected, [] for a normal picture"
        )
    return [_checked_finding(item, ids) for item in answer]


def _checked_finding(item: object, ids: Collection[int]) -> dict:
    if not isinstance(item, dict):
        raise ValueError(f"check returned a list with {type(item).__name__} in it; use image.finding(...)")
    full = {"rule": "", "objects": [], "boxes": [], "severity": 1.0, **item}
    if set(full) != {"rule", "type", "reason", "objects", "boxes", "severity"}:
        raise ValueError(f"a finding has the keys {', '.join(map(str, item))}; use image.finding(...)"[:LONGEST_REASON])
    rule, reason, objects, boxes, severity = (full[k] for k in ("rule", "reason", "objects", "boxes", "severity"))
    if full["type"] not in TYPES:
        raise ValueError(f"the type of a finding is {full['type']!r:.40}; use one of {', '.join(TYPES)}")
    if not isinstance(reason, str) or not reason.strip() or len(reason) > LONGEST_REASON:
        raise ValueError(f"the reason of a finding must be a text of 1 to {LONGEST_REASON} characters")
    if not isinstance(rule, str) or len(rule) > LONGEST_RULE:
        raise ValueError(f"the rule of a finding must be a text of at most {LONGEST_RULE} characters")
    if not isinstance(objects, (list, tuple)) or not all(type(i) is int and i in ids for i in objects):
        raise ValueError("the objects of a finding must be a list of ids of objects of this picture")
    if not isinstance(boxes, (list, tuple)) or not all(_is_box(b) and all(-1e6 < v < 1e6 for v in b) for b in boxes):
        raise ValueError("the boxes of a finding must be a list of (x0, y0, x1, y1) in pixels")
    if not isinstance(severity, (int, float)) or not 0 <= severity <= 1:
        raise ValueError("the severity of a finding must be a number in 0..1")
    return {
        "rule": printable(rule),
        "type": full["type"],
        "reason": printable(reason),
        "objects": list(objects),
        "boxes": [list(box) for box in boxes],
        "severity": float(severity),
    }


def printable(text: str) -> str:
    """No control characters: reasons go to terminals, logs and pages."""
    return "".join(c if c.isprintable() else " " for c in text)


class _Math:
    """The part of `math` that a program may use."""


for _name in MATH:
    setattr(_Math, _name, staticmethod(value) if callable(value := getattr(math, _name)) else value)


def namespace() -> dict[str, object]:
    """The globals that a program starts with: the builtins it may use, and `math`."""
    allowed = {name: getattr(builtins, name) for name in (*BUILTINS, *EXCEPTIONS)}
    return {"__builtins__": allowed, "__name__": "program", "math": _Math}


def methods() -> tuple[str, ...]:
    """Names of what an image offers besides width, height and category."""
    return tuple(name for name in vars(Image) if not name.startswith("_"))


def reference() -> str:
    """The reference for a prompt or a person: every method with its signature, every field, every name.

    Made from the docstrings of this file; the same text on every Python version.
    """
    lines = [_one_line(Image.__doc__), ""]
    for name in methods():
        method = getattr(Image, name)
        lines += [f"image.{name}{_signature(method)}", f"    {_one_line(method.__doc__)}"]
    for title, about, fields in (
        ("Object", Object.__doc__, OBJECT_FIELDS),
        ("Stat", Stat.__doc__, STAT_FIELDS),
    ):
        lines += ["", f"{title}: {_one_line(about)} Read-only fields:"]
        lines += [f"    {name}: {meaning}" for name, meaning in fields.items()]
    lines += [
        "",
        f"Builtins: {', '.join(BUILTINS)}.",
        f"Exceptions: {', '.join(EXCEPTIONS)}.",
        f"math: {', '.join(MATH)}.",
    ]
    return "\n".join(lines)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _signature(method) -> str:
    """`(label: str) -> list[Object]`, without self; annotations are text in this file."""
    code, notes = method.__code__, method.__annotations__
    names = code.co_varnames[1 : code.co_argcount]
    defaults = dict(zip(reversed(names), reversed(method.__defaults__ or ()), strict=False))
    arguments = [f"{n}: {notes[n]}" + (f" = {defaults[n]!r}" if n in defaults else "") for n in names]
    return f"({', '.join(arguments)}) -> {notes['return']}"
