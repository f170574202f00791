"""The report page: one HTML file that holds everything it shows, opens from a disk and never asks the network.

`render` draws it from plain rows, so that any program that has scores, maps and words can write one. Pictures, heat
maps and the histogram are made here; `web/` holds the template, the style and the script that are put inside.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from ..images import encode, resize
from ..parts.batches import ahead

WEB = Path(__file__).parent / "web"
THUMBNAIL = 480  # longest side of an embedded picture, pixels
QUALITY = 80  # of its JPEG
MOST_NAMED = 5000  # rows of the table of pictures that are not shown
VERDICTS = ("reject", "review", "pass")

# Heat colours at shares of the range shown: (share, red, green, blue, alpha). With a calibrated map one half is the
# pixel threshold, so that what good pictures also show stays cool and nearly clear.
HEAT = (
    (0.00, 48, 30, 130, 0),
    (0.38, 90, 34, 150, 0),
    (0.50, 140, 40, 150, 110),
    (0.62, 214, 60, 90, 185),
    (0.80, 246, 140, 40, 220),
    (1.00, 255, 238, 120, 245),
)

Row = dict[str, Any]


class Summary(TypedDict, total=False):
    """What the page and run.json say about a run. Everything is optional; what is missing is not shown.

    headline: the result in one line, where `headline` below does not say it as it is.
    sentences: what is promised and what is not, the most important first.
    method, backbone, differs, licence: as a reader should see them; from the cards.
    good_scores: scores of the good pictures behind the thresholds; empty or missing means nothing is promised.
    reject, review: scores above these are rejected or reviewed; None where no score can be.
    pixel_threshold: map value above which a place stands out. map_scale: map value of the brightest pixel in maps/;
        None when no maps were written.
    command, seed, versions, data: how to run it again, and on what.
    started, finished (ISO 8601), seconds, pictures_per_second, resumed: filled in by RunFolder.
    """

    headline: str
    sentences: Sequence[str]
    method: str
    backbone: str
    differs: str
    licence: str
    good_scores: Sequence[float]
    reject: float | None
    review: float | None
    pixel_threshold: float | None
    map_scale: float | None
    command: str
    seed: int | None
    versions: dict[str, str]
    data: str
    started: str
    finished: str
    seconds: float
    pictures_per_second: float | None
    resumed: int


def choose(rows: Iterable[Row], limit: int = 200) -> list[Row]:
    """The rows that get a picture on the page, highest score first: rejects before others when there are too many."""
    scored = [row for row in rows if row["score"] is not None]
    scored.sort(key=lambda row: (row["verdict"] != "reject", -row["score"]))
    return sorted(scored[:limit], key=lambda row: -row["score"])


def render(
    summary: Summary | Mapping[str, Any],
    rows: Sequence[Row],
    pictures: Callable[[str], np.ndarray | None],
    *,
    limit: int = 200,
) -> str:
    """The complete HTML page.

    rows: one per picture with id, score (None: it could not be judged), p_value, verdict, error, and for those that
        are shown (`choose`) also regions, reasons, size [w, h], heat (`run_folder.shrink`), label and view (which of
        several views `pictures` gives), as far as known.
    pictures: id -> (H, W, 3) uint8, or None when there is none; called in threads, `limit` times at most.
    limit: most pictures on the page; all others are named in a table.
    """
    shown = choose(rows, limit)
    good = [float(score) for score in summary.get("good_scores") or ()]
    span = heat_range(shown, summary)

    def card(row: Row) -> dict[str, Any]:
        picture, heat = pictures(row["id"]), row.get("heat")
        size = row.get("size") or (picture is not None and [picture.shape[1], picture.shape[0]]) or [4, 3]
        told = numbered(row)
        return {
            **row,
            "picture": None if picture is None else data_uri(thumbnail(picture), "jpeg"),
            "heat": heat and data_uri(heat_png(heat, span), "png"),
            "size": size,
            "bars": view_bars(row),
            "told": told,
            "marks": marks(told, size),
            "share": chance(row, good),
            "link": "#open=" + quote(row["id"], safe="/", errors="replace"),
        }

    cards = list(ahead(card, shown, depth=8))
    hidden = sorted((r for r in rows if r["score"] is not None), key=lambda r: -r["score"])
    ids = {card["id"] for card in cards}
    hidden = [row for row in hidden if row["id"] not in ids]
    links = {card["id"]: card["link"] for card in cards}
    script, style = (_inline(f"report.{kind}") for kind in ("js", "css"))
    counts = Counter(row["verdict"] for row in rows if row["score"] is not None)
    unreadable = [row for row in rows if row["score"] is None]
    page = _environment().get_template("report.html.j2")
    return page.render(
        summary=summary,
        calibrated=bool(good),
        headline=summary.get("headline") or headline(counts, bool(good)),
        counts={verdict: counts[verdict] for verdict in VERDICTS},
        total=len(rows),
        unreadable=unreadable,
        cards=cards,
        filters={verdict: sum(card["verdict"] == verdict for card in cards) for verdict in VERDICTS},
        aspect=_aspect(cards),
        hidden=hidden[:MOST_NAMED],
        unnamed=len(hidden) - len(hidden[:MOST_NAMED]),
        wide=histogram(rows, summary, links, width=1080, height=264),
        narrow=histogram(rows, summary, links, width=380, height=250),
        good=good,
        heat_gradient=_gradient(),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def headline(counts: Counter[str], calibrated: bool) -> str:
    """The result in one line."""
    total, out, doubt = sum(counts.values()), counts["reject"], counts["review"]
    if not total:
        return "No picture could be judged"
    of = f"of {total:,} picture{'s' * (total != 1)}"
    if not calibrated:
        found = out + doubt
        if not found:
            return f"None {of} stands out from the others"
        return f"{found:,} {of} stand{'s' * (found == 1)} out from the others"
    second = f"{doubt:,} need{'s' * (doubt == 1)} a second look"
    if out:
        return f"{out:,} {of} do{'es' * (out == 1)} not belong" + (f", {second}" if doubt else "")
    if doubt:
        return f"{doubt:,} {of} need{'s' * (doubt == 1)} a second look, the others belong"
    return "The one picture belongs" if total == 1 else f"All {total:,} pictures belong"


def chance(row: Row, good: Sequence[float]) -> str:
    """A p-value in words."""
    p = row.get("p_value")
    if p is None or not 0 < p <= 1:
        return ""
    if good and row["score"] > max(good):
        return f"above all {len(good)} good pictures (at most 1 in {len(good) + 1} scores this high)"
    if p > 0.95:
        return "nearly every good picture scores this high"
    if p > 0.15:
        return f"about {round(10 * p)} in 10 good pictures score this high"
    return f"about 1 in {_round(1 / p):,} good pictures scores this high"


def view_bars(row: Row) -> list[dict[str, Any]]:
    """What each view shows of what was found, where a reason says so: view, share, and mark, the share that the next
    such reason gives it (for AFRD the weight of the light), None without."""
    told = [reason["shares"] for reason in row.get("reasons") or () if reason.get("shares")]
    if not told:
        return []
    first, marks = told[0], told[1] if len(told) > 1 else {}
    most = max(first, key=lambda view: first[view])
    return [{"view": v, "share": share, "mark": marks.get(v), "most": v == most} for v, share in first.items()]


def numbered(row: Row) -> list[dict[str, Any]]:
    """The reasons without those of `view_bars`; each with a box gets the number under which it is drawn, others None."""
    told = [reason for reason in row.get("reasons") or () if not reason.get("shares")]
    places = [reason.get("box") for reason in told]
    boxes = list(dict.fromkeys(tuple(box) for box in places if box))  # the same place has one number
    return [
        {**reason, "number": boxes.index(tuple(box)) + 1 if box else None}
        for reason, box in zip(told, places, strict=True)
    ]


def marks(told: Sequence[dict[str, Any]], size: Sequence[int]) -> list[dict[str, Any]]:
    """What to draw on a picture of `size` [w, h]: number, box, and a tag (x, y, side), none over another."""
    side = max(size) / 16
    drawn: list[dict[str, Any]] = []
    for number, box in sorted({reason["number"]: reason["box"] for reason in told if reason["number"]}.items()):
        x, y = box[0], box[1]
        while any(abs(mark["x"] - x) < side and abs(mark["y"] - y) < side for mark in drawn):
            x += side
        drawn.append({"number": number, "box": box, "x": min(x, size[0] - side), "y": y, "side": side})
    return drawn


def thumbnail(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a JPEG file of at most THUMBNAIL pixels on its longest side."""
    shrunk = min(1.0, THUMBNAIL / max(picture.shape[:2]))
    size = max(1, round(picture.shape[0] * shrunk)), max(1, round(picture.shape[1] * shrunk))
    return encode(resize(picture, size), "JPEG", quality=QUALITY, optimize=1)


def expand(heat: dict[str, Any]) -> np.ndarray:
    """(h, w) float32 map values behind a `heat` entry, to 1/255 of its own range."""
    levels = np.frombuffer(zlib.decompress(base64.b64decode(heat["data"])), np.uint8).reshape(heat["size"])
    return levels.astype(np.float32) * np.float32((heat["high"] - heat["low"]) / 255) + np.float32(heat["low"])


def heat_range(rows: Sequence[Row], summary: Mapping[str, Any]) -> tuple[float, float]:
    """(low, high) map values of the clear and of the strongest heat colour, the same for all pictures of the page.

    With a pixel threshold: 0 to twice the threshold. Otherwise from an ordinary picture's lowest value to the peak that
    one picture in twenty reaches, or to half of the highest one where that is more, so that a few strong defects leave
    ordinary pictures clear.
    """
    threshold = summary.get("pixel_threshold")
    if threshold is not None and 0 < threshold < math.inf:
        return 0.0, 2 * threshold
    heats = [row["heat"] for row in rows if row.get("heat")]
    if not heats:
        return 0.0, 1.0
    low = float(np.median([heat["low"] for heat in heats]))
    peaks = [heat["high"] - low for heat in heats]
    return low, low + max(float(np.quantile(peaks, 0.95)), max(peaks) / 2, 1e-12)


def heat_png(heat: dict[str, Any], span: tuple[float, float]) -> bytes:
    """The heat of one picture as a small PNG with transparency: 256 colours of HEAT, stretched by whoever shows it."""
    share = (expand(heat) - span[0]) / (span[1] - span[0])
    image = Image.fromarray(np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8), "L")
    image.putpalette(_PALETTE[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, transparency=_PALETTE[:, 3].tobytes())
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def histogram(
    rows: Sequence[Row], summary: Mapping[str, Any], links: dict[str, str], width: int, height: int
) -> Markup:
    """Scores as an SVG drawing: new pictures above the axis, one mark each where there is room; good ones below it.

    The axis is logarithmic when all scores are positive and the highest is 30 times the lowest.
    """
    new = [row for row in rows if row["score"] is not None]
    good = [float(score) for score in summary.get("good_scores") or ()]
    lines = {name: summary.get(name) for name in ("review", "reject")}
    limits = {name: float(v) for name, v in lines.items() if v is not None and math.isfinite(v)}
    values = [row["score"] for row in new] + good
    if not values:
        return Markup()
    axis = _Axis([*values, *limits.values()], width)
    bins = max(8, min(64, width // 17))
    above: dict[int, list[Row]] = {}
    for row in sorted(new, key=lambda row: (-VERDICTS.index(row["verdict"]), row["score"])):
        above.setdefault(axis.bin(row["score"], bins), []).append(row)
    below = Counter(axis.bin(score, bins) for score in good)
    base = height - (84 if good else 40)
    room, depth = base - 34, 38
    step = axis.room / bins
    tallest = max(map(len, above.values()), default=1)
    unit = min(step, room / tallest)
    parts = []
    for k, column in above.items():
        x = axis.left + (k + 0.5) * step
        if unit >= 5:
            parts += [_mark(row, x, base - (n + 0.5) * unit - 3, unit, links) for n, row in enumerate(column)]
        else:
            parts += _bar(column, x, base - 3, step, room / tallest, axis.words(k, bins))
    deepest = max(below.values(), default=1)
    for k, count in below.items():
        deep = max(2.0, depth * count / deepest)
        title = f"{count} good picture{'s' * (count != 1)}, score {axis.words(k, bins)}"
        parts.append(
            f'<rect class="good" x="{axis.left + k * step + 1:.1f}" y="{base + 4}" width="{step - 2:.1f}" '
            f'height="{deep:.1f}"><title>{title}</title></rect>'
        )
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>')
    labels = base + (depth + 24 if good else 22)
    for value, major in axis.ticks():
        x = axis(value)
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + (7 if major else 4)}"/>')
        if major:
            parts.append(f'<text x="{x:.1f}" y="{labels}" text-anchor="middle">{value:g}</text>')
    parts += _needles({name: axis(value) for name, value in limits.items()}, limits, base, width)
    if good:
        parts.append(f'<text class="side" x="0" y="{base + 16}">good</text>')
        parts.append(f'<text class="side" x="0" y="{base - 8}">new</text>')
    parts.append(
        f'<text x="{width}" y="{height - 3}" text-anchor="end">score{", logarithmic" if axis.log else ""}</text>'
    )
    label = f"Histogram of {len(new)} scores from {min(values):.4g} to {max(values):.4g}" + "".join(
        f"; {name} above {value:.4g}" for name, value in limits.items()
    )
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


class _Axis:
    """Scores to places on the drawing."""

    def __init__(self, values: Sequence[float], width: int) -> None:
        low, high = min(values), max(values)
        self.log = low > 0 and high / low >= 30
        self.left, self.room = 34.0, width - 34.0 - 14.0
        self.low, self.high = self._scale(low), self._scale(high)
        pad = 0.02 * (self.high - self.low) or 0.5 * abs(self.low) or 0.5
        self.low, self.high = self.low - pad, self.high + pad

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _back(self, share: float) -> float:
        value = self.low + share * (self.high - self.low)
        return 10**value if self.log else value

    def __call__(self, value: float) -> float:
        return self.left + self.room * (self._scale(value) - self.low) / (self.high - self.low)

    def bin(self, value: float, bins: int) -> int:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return min(bins - 1, max(0, int(bins * share)))

    def words(self, k: int, bins: int) -> str:
        return f"{self._back(k / bins):.4g} to {self._back((k + 1) / bins):.4g}"

    def ticks(self) -> list[tuple[float, bool]]:
        """(value, whether it carries a number) of round values within the axis."""
        if self.log:
            decades = self.high - self.low
            every = math.ceil(decades / 8)  # with more than 8 decades only some of them are marked
            digits = range(1, 10) if every == 1 else (1,)
            found = [
                (digit * 10.0**decade, digit == 1 or (digit in (2, 5) and decades < 3))
                for decade in range(math.ceil(self.low) - 1, math.floor(self.high) + 1)
                for digit in digits
                if decade % every == 0
            ]
            return [(v, major) for v, major in found if self.low <= math.log10(v) <= self.high]
        wanted = 8 if self.room > 600 else 4
        rough = (self.high - self.low) / wanted
        power: float = 10.0 ** math.floor(math.log10(rough))
        step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
        minor = step / (4 if round(step / power) == 2 else 5)
        first, last = math.ceil(self.low / minor), math.floor(self.high / minor)
        parts = round(step / minor)
        return [(float(f"{k * minor:.12g}"), k % parts == 0) for k in range(first, last + 1)]


def _mark(row: Row, x: float, y: float, unit: float, links: dict[str, str]) -> str:
    """One picture as a small square, triangle or disc, by verdict; it leads to the picture where that is shown."""
    title = Markup("<title>{}\n{}, score {:.4g}</title>").format(row["id"], row["verdict"], row["score"])
    r = 0.42 * unit
    shapes = {
        "reject": f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}"',
        "review": f'<path d="M{x:.1f} {y - r:.1f}l{r:.1f} {2 * r:.1f}h{-2 * r:.1f}z"',
        "pass": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"',
    }
    shape = f'{shapes[row["verdict"]]} class="{row["verdict"]}">{title}</{shapes[row["verdict"]][1:].split()[0]}>'
    link = links.get(row["id"])
    return str(Markup('<a href="{}" tabindex="-1">{}</a>').format(link, Markup(shape))) if link else shape


def _bar(column: list[Row], x: float, base: float, step: float, unit: float, words: str) -> list[str]:
    """A column of more pictures than there is room for marks; the smallest part keeps 3 units of height."""
    parts = []
    counts = Counter(row["verdict"] for row in column)
    for verdict in reversed(VERDICTS):
        if count := counts[verdict]:
            high = max(3.0, count * unit)
            base -= high
            title = f"{count} {verdict}, score {words}"
            parts.append(
                f'<rect class="{verdict}" x="{x - step / 2 + 1:.1f}" y="{base:.1f}" width="{step - 2:.1f}" '
                f'height="{high:.1f}"><title>{title}</title></rect>'
            )
    return parts


def _needles(places: dict[str, float], limits: dict[str, float], base: float, width: int) -> list[str]:
    """Threshold lines with their words above, kept apart when they are close."""
    parts = []
    close = len(places) == 2 and abs(places["reject"] - places["review"]) < 130
    for name, x in places.items():
        before = x > 130 and (x > width - 130 or (close and name == "review"))
        second = close and name == "review" and not before  # no room beside it: a line lower, behind the other needle
        at = x - 6 if before else (places["reject"] if second else x) + 6
        y = 26 if second else 11
        parts.append(
            f'<line class="needle {name}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 10}" y2="{base}"/>'
            f'<text class="needle {name}" x="{at:.1f}" y="{y}" text-anchor="{"end" if before else "start"}">'
            f"{name} above {limits[name]:.3g}</text>"
        )
    return parts


def _palette() -> np.ndarray:
    """(256, 4) uint8 of HEAT, linear between its stops."""
    stops = np.asarray(HEAT, float)
    share = np.linspace(0, 1, 256)
    return np.stack([np.rint(np.interp(share, stops[:, 0], stops[:, c])) for c in range(1, 5)], 1).astype(np.uint8)


_PALETTE = _palette()


def _gradient() -> str:
    """HEAT as a CSS gradient, for the legend."""
    stops = ", ".join(f"rgb({r} {g} {b} / {a / 255:.2f}) {100 * t:g}%" for t, r, g, b, a in HEAT)
    return f"linear-gradient(to right, {stops})"


def _aspect(cards: Sequence[dict[str, Any]]) -> float:
    """Width over height of the frame that all cards share."""
    found = sorted(card["size"][0] / card["size"][1] for card in cards)
    return min(1.6, max(0.75, found[len(found) // 2])) if found else 1.0


def _round(value: float) -> int:
    """Two digits are enough for a chance: 39 stays 39, 417 becomes 420."""
    return int(float(f"{value:.2g}"))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _moment(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return text


def _inline(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    found = Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters.update(short=lambda value: f"{value:.4g}", duration=_duration, moment=_moment)
    return found
