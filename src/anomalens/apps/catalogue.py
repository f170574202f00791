"""Cards as text: what `list` and `show` print and the README's table of methods."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import Any

from ..detector import card, class_of, names, setting_types
from ..errors import unknown
from ..registry import literal_card, stems
from ..types import BackboneCard, Card

WIDTH = 100


def listing(as_json: bool = False) -> str:
    """One line per detector."""
    cards = {name: card(name) for name in names()}
    if as_json:
        return json.dumps({name: dataclasses.asdict(c) for name, c in cards.items()}) + "\n"
    rows = [("name", "good pictures", "finds", "what it does")]
    rows += [(name, _wanted(c), ", ".join(c.levels), c.summary) for name, c in cards.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    indent = sum(widths) + 6
    lines = []
    for row in rows:
        head = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
        lines.append(
            textwrap.fill(row[3], max(WIDTH, indent + 40), initial_indent=head + "  ", subsequent_indent=" " * indent)
        )
    return "\n".join(lines) + "\n\n`anomalens show NAME` prints a card and its settings.\n"


def showing(name: str, as_json: bool = False) -> str:
    """Card and settings of one detector, or card of one backbone family."""
    spelled = name.lower().replace("_", "-").partition(":")[0]
    if spelled in stems("backbones"):
        return _backbone(literal_card("backbones", "backbone", spelled, "BackboneCard"), as_json)
    if spelled not in names():
        raise unknown("detector or backbone", name, (*names(), *stems("backbones")))
    described, settings = card(spelled), _settings(spelled)
    if as_json:
        return json.dumps({"name": spelled, "card": dataclasses.asdict(described), "settings": settings}) + "\n"
    lines = [f"{described.title} ({described.year}), --method {spelled}", *_wrapped("", described.summary)]
    for field in dataclasses.fields(Card):
        if field.name in ("title", "year", "summary", "reported"):
            continue
        value = getattr(described, field.name)
        if field.name == "normals":
            value = f"at least {value[0]}, better {value[1]}" if value[1] else "none needed"
        elif isinstance(value, tuple):
            value = ("; " if field.name == "pitfalls" else ", ").join(value)
        lines += _wrapped(field.name, value or "-")
    for figure in described.reported:
        mark = " (best epoch on the test set)" if figure.selection == "best-on-test" else ""
        lines += _wrapped(
            "reported", f"{figure.dataset}, {figure.setting}: {figure.metric} {figure.value} ({figure.source}){mark}"
        )
    lines += ["", "settings (--set KEY=VALUE, or create(name, key=value)):"]
    lines += [f"  {key} = {default}   ({kind})" for key, (kind, default) in settings.items()]
    return "\n".join(lines) + "\n"


def methods_table() -> str:
    """The README's table of methods, in Markdown."""
    lines = ["| method | what it does | good pictures | finds | paper |", "| --- | --- | --- | --- | --- |"]
    for name in names():
        c = card(name)
        paper = f"[{c.year}]({c.paper})" if c.paper else "ours"
        lines.append(f"| `{name}` | {c.summary} | {_wanted(c)} | {', '.join(c.levels)} | {paper} |")
    return "\n".join(lines) + "\n"


def _wanted(described: Card) -> str:
    least, good = described.normals
    if "zero-shot" in described.settings and least:
        return "as inner method"
    return "none" if not good else f"{least}+, better {good}+"


def _settings(name: str) -> dict[str, tuple[str, str]]:
    cls = class_of(name)
    hints = setting_types(cls)
    out = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind = str(hints[field.name]).replace("typing.", "").replace("anomalens.detector.", "")
        if isinstance(hints[field.name], type) and not kind.startswith("tuple["):
            kind = hints[field.name].__name__
        out[field.name] = (kind, repr(field.default))
    return out


def _backbone(described: BackboneCard, as_json: bool) -> str:
    if as_json:
        return json.dumps(dataclasses.asdict(described)) + "\n"
    lines: list[str] = []
    for field in dataclasses.fields(BackboneCard):
        lines += _wrapped(field.name, getattr(described, field.name) or "-")
    return "\n".join(lines) + "\n"


def _wrapped(label: str, text: Any) -> list[str]:
    head = f"{label:<12}" if label else ""
    return textwrap.wrap(f"{head}{text}", WIDTH, subsequent_indent=" " * len(head), break_long_words=False)
