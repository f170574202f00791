"""The drawings of the benchmark page as SVG: accuracy against speed, and curves over grades of a disturbance.

No script and no library: every mark carries its words as a title, colours come from the page's style (`.s0` to `.s7`), and
a method keeps its colour and its mark on the whole page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 8
LETTER = 7.4  # width of a bold letter at 13 px, on average
LINE = 16  # height of a line of words


@dataclass(frozen=True)
class Look:
    """How a method is drawn: colour by its name, mark and dashes by its backbone."""

    colour: int
    mark: int

    def line(self, path: str) -> str:
        return f'<path class="line s{self.colour % COLOURS} d{self.mark % 4}" d="{path}"/>'

    def at(self, x: float, y: float, r: float, title: str = "") -> str:
        """The mark at a place: disc, square, triangle or diamond; filled for the first eight, hollow for others."""
        shape = [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"',
            f'<rect x="{x - 0.9 * r:.1f}" y="{y - 0.9 * r:.1f}" width="{1.8 * r:.1f}" height="{1.8 * r:.1f}"',
            f'<path d="M{x:.1f} {y - 1.15 * r:.1f}l{1.15 * r:.1f} {2 * r:.1f}h{-2.3 * r:.1f}z"',
            f'<path d="M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}'
            f'l{-1.3 * r:.1f} {-1.3 * r:.1f}z"',
        ][self.mark % 4]
        hollow = " hollow" if self.colour >= COLOURS else ""
        named = f"<title>{escape(title)}</title>" if title else ""
        return f'{shape} class="mark s{self.colour % COLOURS}{hollow}">{named}</{shape[1:].split()[0]}>'


def looks(methods: Sequence[Mapping[str, object]]) -> dict[str, Look]:
    """A look for each method: title -> Look."""
    labels = list(dict.fromkeys(m["label"] for m in methods))
    rest = list(dict.fromkeys((m["backbone"], str(m["shots"]), m["mode"]) for m in methods))
    return {
        str(m["title"]): Look(labels.index(m["label"]), rest.index((m["backbone"], str(m["shots"]), m["mode"])))
        for m in methods
    }


@dataclass(frozen=True)
class Point:
    """One method in the drawing of accuracy against speed; x and y in their own units, y a share."""

    name: str
    x: float
    y: float
    title: str
    look: Look


def scatter(
    points: Sequence[Point], front: Sequence[str], x_words: str, y_words: str, width: int, height: int
) -> Markup:
    """Accuracy (upwards) against speed (to the right, logarithmic); a line joins the methods that no other one beats."""
    left, right, top, bottom = 52.0, width - 16.0, 14.0, height - 48.0
    xs = [math.log10(p.x) for p in points]
    pad = max(0.12 * (max(xs) - min(xs)), 0.15)
    low_x, high_x = min(xs) - pad, max(xs) + pad
    low_y, high_y, step = levels([p.y for p in points], 5)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * (math.log10(x) - low_x) / (high_x - low_x),
            bottom - (bottom - top) * (y - low_y) / (high_y - low_y),
        )

    parts = [f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
    for k in range(round((high_y - low_y) / step) + 1):
        y = place(1, low_y + k * step)[1]
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * (low_y + k * step):g}</text>')
    for value in decades(low_x, high_x):
        x = place(value, low_y)[0]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{right}" y="{height - 6}" text-anchor="end">{escape(x_words)}</text>')
    parts.append(f'<text x="0" y="{height - 6}">{escape(y_words)}, upwards</text>')
    at = {p.name: place(p.x, p.y) for p in points}
    best = [at[name] for name in front if name in at]
    if len(best) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in best)
        parts.append(f'<path class="front" d="M{path}"/>')
    spots = labels([(p.name, *at[p.name]) for p in points], (left, top - 8, right + 14, bottom))
    parts += [p.look.at(*at[p.name], 6, p.title) for p in points]
    for p in points:
        x, y, anchor = spots[p.name]
        strong = ' class="name"' if p.name in front else ""
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{strong}>{escape(p.name)}</text>')
    words = "; ".join(f"{p.name}: {p.title.splitlines()[-1]}" for p in points)
    return svg("scatter", width, height, parts, f"{y_words} against {x_words}. {words}")


def curves(
    lines: Mapping[str, Sequence[float | None]],
    floor: float | None,
    span: tuple[float, float, float],
    look: Mapping[str, Look],
    name: str,
    width: int = 250,
    height: int = 168,
) -> Markup:
    """One metric over grades 0 to 5 under one corruption, a line per method; `floor` is the level of chance.

    span: lowest and highest value, and the step between marked ones, from `levels`; the same for all drawings.
    """
    left, right, top, bottom = 30.0, width - 8.0, 8.0, height - 22.0
    low, high, step = span

    def place(grade: int, value: float) -> tuple[float, float]:
        return left + (right - left) * grade / 5, bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for k in range(round((high - low) / step) + 1):
        y = place(0, low + k * step)[1]
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * (low + k * step):g}</text>')
    parts += [
        f'<text x="{place(grade, low)[0]:.1f}" y="{height - 5}" text-anchor="middle">{grade}</text>'
        for grade in range(6)
    ]
    if floor is not None and low < floor < high:
        y = place(0, floor)[1]
        parts.append(
            f'<line class="chance" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"><title>chance</title></line>'
        )
    for method, values in lines.items():
        known = [(grade, value) for grade, value in enumerate(values) if value is not None]
        at = [(*place(grade, value), grade, value) for grade, value in known]
        if len(at) > 1:
            parts.append(look[method].line("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in at)))
        parts += [look[method].at(x, y, 3, f"{method}\ngrade {g}: {100 * value:.1f}") for x, y, g, value in at]
    said = "; ".join(f"{m} " + " ".join("-" if v is None else f"{100 * v:.1f}" for v in vs) for m, vs in lines.items())
    return svg("curves", width, height, parts, f"{name}, grades 0 to 5: {said}")


def levels(values: Sequence[float], wanted: int, highest: float = 1.0) -> tuple[float, float, float]:
    """(low, high, step) of an axis with round steps that holds the values, with about `wanted` steps."""
    low, high = min(values), max(values)
    rough = max(high - low, 0.004) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    bottom = math.floor(low / step - 0.25) * step
    top = min(math.ceil(high / step + 0.05) * step, max(highest, high))
    top = bottom + math.ceil((top - bottom) / step - 1e-9) * step
    return round(bottom, 10), round(top, 10), round(step, 10)


def decades(low: float, high: float) -> list[float]:
    """Round values within 10**low and 10**high: 1, 2, 5, or whole powers of ten where there are many."""
    digits = (1, 2, 5) if high - low < 2.2 else (1,)
    found = [d * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for d in digits]
    return [float(f"{v:.6g}") for v in found if low <= math.log10(v) <= high]


def labels(
    points: Sequence[tuple[str, float, float]], box: tuple[float, float, float, float]
) -> dict[str, tuple[float, float, str]]:
    """Where the names of points are written: (x, baseline, anchor), each in the place with the least in its way.

    points: (name, x, y). box: left, top, right and bottom of the drawing. Places are tried beside, above and below the
    mark, near first; the points with the most neighbours choose first.
    """
    marks = [(x - 8, y - 8, x + 8, y + 8) for _, x, y in points]
    taken: list[tuple[float, float, float, float]] = []
    found = {}
    crowd = {name: sum(abs(x - a) < 160 and abs(y - b) < 40 for _, a, b in points) for name, x, y in points}
    for name, x, y in sorted(points, key=lambda p: (-crowd[p[0]], p[2], p[1])):
        wide = LETTER * len(name)
        options = [
            (x + dx, y + dy, anchor)
            for dx, dy, anchor in (
                (11, 4.5, "start"), (-11, 4.5, "end"), (0, -12, "middle"), (0, 22, "middle"), (9, -9, "start"),
                (-9, -9, "end"), (9, 19, "start"), (-9, 19, "end"), (0, -28, "middle"), (0, 38, "middle"),
                (14, -24, "start"), (-14, -24, "end"), (14, 34, "start"), (-14, 34, "end"),
            )
        ]  # fmt: skip
        scored = []
        for rank, (px, py, anchor) in enumerate(options):
            start = px - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            area = (start, py - LINE + 4, start + wide, py + 4)
            outside = sum(max(0, d) for d in (box[0] - area[0], box[1] - area[1], area[2] - box[2], area[3] - box[3]))
            cost = sum(_shared(area, other) for other in [*taken, *marks]) + 40 * outside + 2 * rank
            scored.append((cost, rank, area))
        _, rank, area = min(scored)
        taken.append(area)
        found[name] = options[rank]
    return found


def svg(kind: str, width: int, height: int, parts: Sequence[str], words: str) -> Markup:
    return Markup(
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">'
        f"{''.join(parts)}</svg>"
    )


def key(method: str, look: Look) -> Markup:
    """A line and a mark for the legend."""
    return Markup(
        f'<svg class="chart key" viewBox="0 0 34 14" aria-hidden="true">{look.line("M1 7L33 7")}{look.at(17, 7, 4.2)}</svg>'
    ) + escape(method)


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes (left, top, right, bottom) have in common, pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
