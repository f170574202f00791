"""The page of `bench --logibench`: the tables, and the pictures that say most, with what was seen, said and true.

One file without script that asks no network; the style is that of the benchmark page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..images import to_8bit
from ..parts.batches import ahead
from .report import WEB, data_uri, marks, numbered, thumbnail

MOST = 24  # pictures shown of each mode
TONES = {
    "missed": "reject",
    "false alarm": "reject",
    "no verdict": "reject",
    "another reason": "review",
    "right": "pass",
}
SHARE = re.compile(r"[01]\.\d{3}")

Row = Mapping[str, Any]
Picture = Callable[[str, str], np.ndarray | None]


def render(
    figures: Mapping[str, Mapping[str, Any]],
    rows: Iterable[Row],
    picture: Picture,
    titles: Mapping[str, str],
    tables: Mapping[str, Sequence[tuple[str, Sequence[tuple[str, ...]]]]],
    notes: Mapping[str, Sequence[str]],
) -> str:
    """The HTML page.

    Args:
        figures: mode to `bench.logibench.summary`. rows: of `bench.logibench.run`, of all modes.
        picture: (mode, id) to (H, W, 3), or None where it cannot be read; called for those that are shown.
        titles, tables, notes: of each mode; a table has its title, its head and its rows.
    """
    judged = [row for row in rows if row["kind"] == "picture"]
    sections = []
    for mode, summary in figures.items():
        own = [row for row in judged if row["mode"] == mode]
        kinds = {row["id"]: kind_of(row, summary["claims"]) for row in own}
        shown = choose(own, kinds)
        drawn = {row["id"] for row in shown}
        wrong = [id for id, kind in kinds.items() if TONES[kind] == "reject"]
        pictures = ahead(lambda row, mode=mode: picture(mode, row["id"]), shown)  # type: ignore[misc]
        cards = [card(row, kinds[row["id"]], pixels) for row, pixels in zip(shown, pictures, strict=True)]
        drawn_tables = [
            (title, head, [[(cell, shade(cell)) for cell in line] for line in lines])
            for title, (head, *lines) in tables[mode]
        ]
        sections.append({
            "mode": mode, "title": titles[mode], "notes": notes[mode], "tables": drawn_tables, "cards": cards,
            "wrong": len(wrong), "left": len(set(wrong) - drawn),
        })  # fmt: skip
    style = "".join((WEB / f"{name}.css").read_text(encoding="utf-8") for name in ("report", "bench", "logibench"))
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("logibench.html.j2").render(
        headline=headline(figures), sections=sections, facts=facts(figures), style=Markup(style)
    )


def headline(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """How many pictures were judged rightly, in each mode."""
    said = []
    for mode, summary in figures.items():
        together = summary["binary"][""]
        scenes = "by true scenes" if mode == "oracle" else "by the scenes of a parser"
        said.append(f"{round(together['accuracy'] * together['count'])} of {together['count']} {scenes}")
    return f"Judged rightly: {', '.join(said)}"


def facts(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What was compared, in a few words."""
    programs = {name: one for summary in figures.values() for name, one in summary["programs"].items()}
    judges = {name for summary in figures.values() for name in summary["reasons"][""]["judges"]}
    return {
        "Categories": ", ".join(programs),
        "Programs": ", ".join(sorted({one["origin"] for one in programs.values()})),
        "Judges of reasons": ", ".join(sorted(judges)) or "-",
        "Sandbox": ", ".join(sorted({one["isolation"] for one in programs.values()})),
    }


def kind_of(row: Row, claims: Iterable[Row]) -> str:
    """What became of a picture: a key of TONES."""
    if row["status"] != "ok":
        return "no verdict"
    if bool(row["findings"]) != bool(row["label"]):
        return "missed" if row["label"] else "false alarm"
    own = [opinions(claim) for claim in claims if claim["image"] == row["id"]]
    first = [next(iter(judged.values()), None) for judged in own]
    return "another reason" if False in first else "right"


def opinions(claim: Row) -> dict[str, bool | None]:
    """What each judge said of a claim of a summary, in the order in which they were given."""
    return {name: said for name, said in claim.items() if name not in ("image", "finding", "type", "text", "true")}


def choose(rows: Sequence[Row], kinds: Mapping[str, str]) -> list[Row]:
    """At most MOST rows: what went wrong first, category by category in turn.

    Of pictures without a verdict, and of anomalous ones that were judged rightly, one of each sort is enough.
    """
    found: list[Row] = []
    for kind in TONES:
        own = [row for row in rows if kinds[row["id"]] == kind]
        if kind in ("no verdict", "right"):
            sorts = {(row["category"], row["status"], _types(row)): row for row in reversed(own)}
            own = [row for row in own if row in sorts.values() and (row["label"] or kind != "right")]
        by_category: dict[str, list[Row]] = {}
        for row in own:
            by_category.setdefault(row["category"], []).append(row)
        found += [row for turn in zip_longest(*by_category.values()) for row in turn if row]
    return found[:MOST]


def _types(row: Row) -> tuple[str, ...]:
    return tuple(sorted({finding["type"] for finding in row["findings"]}))


def card(row: Row, kind: str, picture: np.ndarray | None) -> Row:
    """What the template draws of one picture: its scene, its findings under numbers, and what is true."""
    size = [4, 3] if picture is None else [picture.shape[1], picture.shape[0]]
    boxes = {number: box for number, _, box in row["seen"]}
    said = [
        {
            **one,
            "text": one["reason"],
            "box": around([*(boxes[i] for i in one["objects"] if i in boxes), *one["boxes"]]),
        }
        for one in row["findings"]
    ]
    told = numbered({"reasons": said})
    return {
        "id": row["id"], "kind": kind, "tone": TONES[kind], "status": row["status"], "size": size, "told": told,
        "seen": [{"label": label, "box": box} for _, label, box in row["seen"]],
        "marks": marks(told, size), "true": [f"{one['type']}: {one['text']}" for one in row["reasons"]],
        "label": row["label"],
        "picture": None if picture is None else data_uri(thumbnail(to_8bit(picture)), "jpeg"),
    }  # fmt: skip


def around(boxes: Sequence[Sequence[float]]) -> tuple[float, ...] | None:
    """The box around boxes (x0, y0, x1, y1)."""
    if not boxes:
        return None
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def shade(cell: str) -> float | None:
    """The share that a cell of a table holds, for its colour."""
    return float(cell) if SHARE.fullmatch(cell) else None
