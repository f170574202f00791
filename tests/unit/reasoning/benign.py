"""Programs that a language model may well write: the static check accepts them, and the sandbox runs them.

Each is run on `scene()`. `FINDINGS` says how many findings each gives.
"""

# ruff: noqa: E501  programs are kept on one line where that reads better

from __future__ import annotations


def thing(id: int, label: str, x: float = 10, y: float = 10, w: float = 8, h: float = 8, **fields) -> dict:
    """An object with a full set of fields, its box centred on (x, y)."""
    return {
        "id": id,
        "label": label,
        "score": 1.0,
        "area": int(w * h),
        "area_frac": w * h / 19200,
        "bbox": [x - w / 2, y - h / 2, x + w / 2, y + h / 2],
        "center": [x, y],
        "length": max(w, h),
        "thickness": min(w, h),
        "angle": 0.0,
        "aspect": max(w, h) / min(w, h),
        "fill": 1.0,
        "rgb": [200.0, 40.0, 40.0],
        "hsv": [0.0, 0.8, 0.8],
        "attributes": {},
        **fields,
    }


def scene(pins: int = 15) -> dict:
    """Fifteen pins on a grid of 3 x 5, two washers, a long and a short screw, and a connector with three clamps."""
    objects = [thing(i, "pin", 16 + 32 * (i % 5), 20 + 40 * (i // 5)) for i in range(pins)]
    objects += [
        thing(100, "washer", 30, 60, attributes={"hole": True}),
        thing(101, "washer", 90, 60),
        thing(102, "screw", 40, 100, 40, 6),
        thing(103, "screw", 120, 100, 20, 6),
        thing(104, "connector", 80, 30, 20, 10, hsv=[50.0, 0.9, 0.9], attributes={"clamps": 3, "side": "left"}),
    ]
    size = {"n": 300, "mean": 64.0, "std": 4.0, "min": 50.0, "max": 80.0}
    count = {"n": 20, "mean": 15.0, "std": 0.0, "min": 15.0, "max": 15.0}
    return {
        "schema": "logicode.scene/1",
        "width": 160,
        "height": 120,
        "category": "drawn",
        "image_id": "test/0",
        "objects": objects,
        "regions": {"all": [0, 0, 160, 120], "left": [0, 0, 80, 120]},
        "stats": {"pin": {"area": size, "count": count}},
    }


def body(text: str) -> str:
    """A program whose check holds these lines."""
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "def check(image):\n" + "\n".join("    " + line[indent:] for line in lines) + "\n"


PROGRAMS = {
    "nothing": "def check(image):\n    return []\n",
    "one liner": "def check(image): return []",
    "docstrings": '"""Rules of the tray."""\n\ndef check(image):\n    """Check it."""\n    return []\n',
    "count": body("""
        n = image.count("pin")
        if n != 15:
            return [image.finding("quantity", f"{n} pins, 15 expected", rule="R1", objects=image.find("pin"))]
        return []
    """),
    "helpers per rule": """
PINS = 15
LABELS = ("washer", "nut")
WANTED = {"washer": 2, "nut": 2}
LIMITS = [-1.5, +2.5, {"a": None, "b": True}]

def r1(image):
    return [] if image.count("pin") == PINS else [image.finding("quantity", "pins", rule="R1")]

def r2(image):
    found = []
    for label in LABELS:
        n = image.count(label)
        if n != WANTED[label]:
            found.append(image.finding("quantity", f"{n} x {label}, {WANTED[label]} expected", rule="R2"))
    return found

def check(image):
    return r1(image) + r2(image)
""",
    "annotations": """
K: float = 3.0

def far(a: Object, b: Object, image: Image) -> float:
    return image.distance(a, b)

def check(image: Image) -> list[Finding]:
    found: list[dict] = []
    return found
""",
    "region": body("""
        x0, y0, x1, y1 = image.region("left")
        inside = [o for o in image.find("washer") if image.in_region(o, "left")]
        return [] if inside and x1 > x0 else [image.finding("position", "no washer on the left", boxes=[(x0, y0, x1, y1)])]
    """),
    "region modes": body("""
        o = image.find("washer")[0]
        modes = [image.in_region(o, (0, 0, 80, 120), mode=m) for m in ("center", "full", "overlap")]
        return [] if all(modes) and image.in_region(o, "left", "overlap", 0.9) else [image.finding("position", "outside")]
    """),
    "cells": body("""
        empty = []
        for box in image.cells("all", 3, 5):
            if sum(image.in_region(pin, box) for pin in image.find("pin")) != 1:
                empty.append(box)
        return [image.finding("position", f"compartment {box} is empty", boxes=[box]) for box in empty]
    """),
    "size": body("""
        out = []
        for pin in image.find("pin"):
            stat = image.stat("pin", "area")
            if not image.normal(pin.area, stat, k=3.0):
                out.append(image.finding("size", f"area {pin.area}, normal {stat.min:.0f} to {stat.max:.0f}", objects=[pin]))
        return out
    """),
    "two screws": body("""
        screws = sorted(image.find("screw"), key=lambda s: s.length, reverse=True)
        if len(screws) < 2 or screws[0].length < 1.5 * screws[-1].length:
            return [image.finding("matching", "one long and one short screw expected", objects=screws)]
        return []
    """),
    "colours": body("""
        clamps = {"yellow": 2, "blue": 3, "red": 5}
        c = image.find("connector")[0]
        colour = image.color_name(c)
        has = c.attributes.get("clamps", 0)
        if clamps.get(colour) != has:
            return [image.finding("matching", f"{colour} cable with {has} clamps", rule="R4", objects=[c], severity=0.8)]
        return []
    """),
    "left and above": body("""
        a, b = image.find("washer")
        assert image.left_of(a, b) and not image.above(a, b), "order"
        return []
    """),
    "iou and contains": body("""
        a, b = image.find("screw")
        box = (0, 0, image.width, image.height)
        return [] if image.iou(a, b) == 0 and image.contains(box, a) == 1.0 else [image.finding("position", "overlap")]
    """),
    "maths": body("""
        a, b = image.find("washer")
        d = math.hypot(a.center[0] - b.center[0], a.center[1] - b.center[1])
        angle = math.degrees(math.atan2(b.center[1] - a.center[1], b.center[0] - a.center[0]))
        ok = math.isclose(d, 60.0) and angle == 0 and math.floor(math.pi) == 3 and math.ceil(math.sqrt(2)) == 2
        return [] if ok and d < math.inf else [image.finding("position", f"distance {d:.1f}")]
    """),
    "powers": body("""
        x = sum((p.center[0] - 80) ** 2 for p in image.find("pin")) ** 0.5 + 10 ** -3 + 2 ** 8
        x **= 2
        return [] if x > 0 else [image.finding("position", "spread")]
    """),
    "bits": body("return [] if (1 << 8) >> 2 == 64 and 5 & 3 | 4 ^ 1 and ~0 == -1 else [image.finding('size', 'bits')]"),
    "comprehensions": body("""
        by_row = {round(p.center[1]): [q.id for q in image.find("pin") if q.center[1] == p.center[1]] for p in image.find("pin")}
        labels = {label for label in image.labels() if image.exists(label)}
        total = sum(len(row) for row in by_row.values())
        return [] if total == 15 and "pin" in labels else [image.finding("quantity", f"rows {by_row}")]
    """),
    "loops": body("""
        i, seen = 0, []
        while True:
            i += 1
            if i % 2:
                continue
            seen.append(i)
            if i >= 10:
                break
        else:
            pass
        for j, k in zip(range(3), reversed([1, 2, 3])):
            seen.extend([j, k])
        return [] if len(seen) == 11 else [image.finding("quantity", "loops")]
    """),
    "errors caught": body("""
        try:
            first = image.find("nut")[0]
        except IndexError as problem:
            return [image.finding("quantity", f"no nut: {problem}", rule="R3")]
        except (KeyError, ValueError):
            raise
        else:
            return []
        finally:
            done = True
    """),
    "errors raised": body("""
        try:
            if image.count("pin") == 15:
                raise ValueError("fifteen")
        except Exception:
            return []
        return [image.finding("quantity", "never")]
    """),
    "no statistics": body("""
        try:
            stat = image.stat("nut", "area")
        except KeyError:
            stat = None
        return [] if stat is None else [image.finding("size", "never")]
    """),
    "walrus and conditional": body("""
        if (n := image.count("washer")) == 2:
            return []
        return [image.finding("quantity", "few" if n < 2 else "many")]
    """),
    "sorting": body("""
        pins = image.find("pin")
        pins.sort(key=lambda p: (p.center[0], -p.center[1]))
        pins.reverse()
        top = min(pins, key=lambda p: p.center[1])
        return [] if pins[0].center[0] == 144 and top.center[1] == 20 else [image.finding("position", "order")]
    """),
    "texts": body("""
        words = "One, two , THREE".lower().replace(",", " ").split()
        text = "-".join(w.strip().upper() for w in words)
        ok = text.startswith("ONE") and text.endswith("THREE") and "12".isdigit() and "%d of %s" % (1, "x") == "1 of x"
        return [] if ok else [image.finding("matching", text)]
    """),
    "number formats": body("""
        x = 1234.5678
        text = f"{x:.2f} {x:,.1f} {x!r:>12} {int(x):05d} {x:e} {x:%} {x:n} {'ä':*^5} {x=}"
        return [] if len(text) > 20 else [image.finding("size", text)]
    """),
    "dictionaries": body("""
        counts = {}
        for label in image.labels():
            counts[label] = counts.get(label, 0) + image.count(label)
        more = dict(counts, extra=1)
        more.update({"pin": 0})
        more.pop("extra")
        both = {**counts, **more}
        return [] if sorted(both.keys()) == image.labels() and both["pin"] == 0 else [image.finding("quantity", str(both))]
    """),
    "sets": body("""
        have, want = set(image.labels()), {"pin", "washer"}
        missing = want.difference(have).union(set()).intersection(want)
        have.add("x")
        return [image.finding("quantity", f"no {m}") for m in sorted(missing)]
    """),
    "lists": body("""
        a = [3, 1, 2]
        a.insert(0, 9)
        a.remove(1)
        b = a.copy()
        b.extend([a.index(2), a.count(3), a.pop()])
        first, *rest = b
        a[0], b[-1] = b[-1], a[0]
        return [] if len(b[1:3] + b[::-1]) == 8 and (first, len(rest)) == (9, 5) else [image.finding("quantity", str((a, b)))]
    """),
    "builtins": body("""
        values = list(map(float, filter(lambda v: v is not None, (1, "2", None, True))))
        ok = any(values) and abs(round(-2.567, 1)) == 2.6 and max(values) == 2 and isinstance(values, (list, tuple))
        both = bool(ok) and int("7") + len(str(tuple(set(values)))) > 7
        return [] if both and list(enumerate("ab"))[1] == (1, "b") and not False else [image.finding("size", "builtins")]
    """),
    "recursion": """
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)

def check(image):
    return [] if depth(200) == 200 else [image.finding("size", "depth")]
""",
    "closures": """
def counter(label):
    def of(image, *more, default=0, **names):
        return image.count(label) + default
    return of

def check(image):
    return [] if counter("pin")(image, 1, default=0, other=2) == 15 else [image.finding("quantity", "pins")]
""",
    "a generator": body("""
        gaps = (b.center[0] - a.center[0] for a, b in zip(image.find("pin"), image.find("pin")[1:]) if a.center[1] == b.center[1])
        return [] if all(gap == 32 for gap in gaps) else [image.finding("position", "gaps differ")]
    """),
    "attributes": body("""
        c = image.find("connector")[0]
        mine = c.attributes.copy()
        mine["clamps"] = 2
        ok = c.attributes["clamps"] == 3 and "side" in c.attributes and list(c.attributes.items())[1][1] == "left"
        return [] if ok else [image.finding("matching", f"{mine}")]
    """),
    "every field": body("""
        o = image.find("washer")[0]
        seen = (o.id, o.label, o.score, o.area, o.area_frac, o.bbox, o.center, o.length, o.thickness, o.angle, o.aspect,
                o.fill, o.rgb, o.hsv, o.attributes)
        stat = image.stat("pin", "count")
        return [] if len(seen) == 15 and (stat.n, stat.mean, stat.std) == (20, 15, 0) else [image.finding("size", str(seen))]
    """),
    "dicts instead of findings": body("""
        return [{"type": "size", "reason": "by hand", "rule": "R9", "objects": [100], "boxes": [[0, 0, 5, 5]], "severity": 0.5}]
    """),
    "short dict": body('return [{"type": "size", "reason": "by hand"}]'),
    "a tuple of findings": body('return (image.finding("size", "a"), image.finding("quantity", "b"))'),
    "one object, one box": body('return [image.finding("size", "a", objects=image.find("pin")[0], boxes=(0, 0, 4, 4))]'),
    "long reason": body('return [image.finding("size", "long " * 200)]'),
    "severity clipped": body('return [image.finding("size", "strong", severity=7), image.finding("size", "weak", severity=-1)]'),
    "many findings": body('return [image.finding("position", f"pin {p.id} moved", objects=[p.id]) for p in image.find("pin")]'),
    "warnings of the parser": body('return [] if 1 is 1 and "\\\\d" != 2 else [image.finding("size", "x")]'),
    "other alphabets": body("größe = 3\nreturn [] if größe == 3 and '\\N{DEGREE SIGN}' == '°' else [image.finding('size', 'ß')]"),
    "memory": body("""
        big = [i * 1.5 for i in range(1000000)]
        text = "x" * 30000000
        return [] if len(big) + len(text) == 31000000 else [image.finding("size", "memory")]
    """),
    "pairs": body("""
        close = []
        for i, a in enumerate(image.find("pin")):
            for b in image.find("pin")[i + 1:]:
                if image.distance(a, b) < 0.01:
                    close.append((a, b))
        return [image.finding("position", "two pins in one place", objects=[a, b]) for a, b in close]
    """),
}  # fmt: skip

FINDINGS = {
    "helpers per rule": 1,
    "colours": 1,
    "errors caught": 1,
    "dicts instead of findings": 1,
    "short dict": 1,
    "a tuple of findings": 2,
    "one object, one box": 1,
    "long reason": 1,
    "severity clipped": 2,
    "many findings": 15,
}
