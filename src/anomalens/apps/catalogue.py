"""Cards as text: what `list` and `show` print and the README's table of methods."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .. import synthesis
from ..detector import card, class_of, names, setting_types
from ..errors import UnknownName, WrongInput, unknown
from ..registry import literal_card, resolve, stems
from ..types import BackboneCard, Card, MakerCard

WIDTH = 100
COSTS = {
    "F0": "nothing to fit", "F1": "fits in seconds", "F2": "fits in minutes", "F3": "fits in under an hour",
    "F4": "fits in hours", "P0": "under 10 ms a picture", "P1": "under 50 ms a picture", "P2": "under 250 ms a picture",
    "P3": "under 2 s a picture", "P4": "more than 2 s a picture",
}  # fmt: skip
SETTINGS = ("full-shot", "few-shot", "zero-shot", "batched-zero-shot", "semi-supervised", "generation")
MODALITIES = ("image", "lights", "points", "video", "series")


def listing(as_json: bool = False, wanted: Sequence[str] = ()) -> str:
    """One line per detector. wanted: FIELD=VALUE, all of which must hold.

    Raises:
        UnknownName, WrongInput: no such field, or no card can have that value.
    """
    conditions = [condition(text) for text in wanted]
    cards = {name: card(name) for name in names()}
    cards = {name: c for name, c in cards.items() if all(holds(c, *one) for one in conditions)}
    if as_json:
        return json.dumps({name: dataclasses.asdict(c) for name, c in cards.items()}) + "\n"
    if not cards:
        return f"No detector has {' and '.join(wanted)}; `anomalens list` shows all.\n"
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


def condition(text: str) -> tuple[str, str]:
    """FIELD=VALUE as (field, value), both checked against the card."""
    field, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value:
        raise WrongInput(f"a condition is FIELD=VALUE, such as gpu=no; got {text!r}.")
    hints = typing.get_type_hints(Card)
    if field not in hints:
        raise unknown("field of a card", field, hints)
    if field == "settings":
        if value == "one-class":
            raise WrongInput(
                "one-class names several settings; say full-shot (many good pictures), few-shot or zero-shot."
            )
        value = "full-shot" if value == "unsupervised" else value
    inner = typing.get_args(hints[field])[:1] if typing.get_origin(hints[field]) is tuple else (hints[field],)
    if typing.get_origin(inner[0]) is typing.Literal and value not in typing.get_args(inner[0]):
        raise unknown(f"value of {field}", value, typing.get_args(inner[0]))
    return field, value


def holds(described: Card, field: str, value: str) -> bool:
    """Whether a field has the value, or holds it: yes and no for what is true or not, numbers as they are written."""
    found = getattr(described, field)
    parts = found if isinstance(found, tuple) else (found,)
    texts = [v for part in parts for v in (dataclasses.astuple(part) if dataclasses.is_dataclass(part) else (part,))]  # type: ignore[arg-type]
    return any(value.lower() == _plain(v).lower() for v in texts)


def showing(name: str, as_json: bool = False) -> str:
    """Card and settings of one detector or maker of defects, or card of one backbone family."""
    spelled = name.lower().replace("_", "-").partition(":")[0]
    if spelled in stems("backbones"):
        return _backbone(literal_card("backbones", "backbone", spelled, "BackboneCard"), as_json)
    if spelled in synthesis.names():
        return _maker(spelled, as_json)
    try:
        spelled = resolve("detectors", "detector", spelled)
    except UnknownName:
        known = (*names(), *stems("backbones"), *synthesis.names())
        raise unknown("detector, backbone or maker", name, known) from None
    described, settings = card(spelled), _settings(class_of(spelled))
    if as_json:
        return json.dumps({"name": spelled, "card": dataclasses.asdict(described), "settings": settings}) + "\n"
    lines = [f"{described.title} ({described.year}), --method {spelled}", *_wrapped("", described.summary)]
    for field in dataclasses.fields(Card):
        if field.name in ("title", "year", "summary", "reported"):
            continue
        value = getattr(described, field.name)
        if field.name == "normals":
            value = f"at least {value[0]}, better {value[1]}" if value[1] else "none needed"
        elif field.name == "weights":
            value = "; ".join(f"{w.title} ({w.licence}), {w.source}: {' or '.join(w.files)}" for w in value)
        elif field.name.endswith("_cost"):
            value = f"{value}, {COSTS[value]}"
        elif isinstance(value, tuple):
            value = ("; " if field.name == "pitfalls" else ", ").join(value)
        lines += _wrapped(field.name, _plain(value) or "-")
    by_category = [figure for figure in described.reported if "/" in figure.dataset]
    rest = [figure for figure in described.reported if figure not in by_category]
    for (dataset, setting, source, chosen), row in groupby(
        rest, lambda r: (r.dataset, r.setting, r.source, r.selection)
    ):
        mark = " (best epoch on the test set)" if chosen == "best-on-test" else ""
        figures = ", ".join(f"{figure.metric} {figure.value}" for figure in row)
        lines += _wrapped("reported", f"{dataset}, {setting}: {figures} ({source}){mark}")
    if by_category:
        lines += _wrapped("reported", f"{len(by_category)} more figures by category (--json)")
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


def matrix(level: str) -> str:
    """Which methods find anomalies of one level, by what they learn from and what they look at, in Markdown."""
    lines = [f"| | {' | '.join(MODALITIES)} |", "| --- |" + " --- |" * len(MODALITIES)]
    for setting in SETTINGS:
        cells = [
            ", ".join(
                f"`{n}`"
                for n in names()
                if level in (c := card(n)).levels and setting in c.settings and view in c.needs
            )
            for view in MODALITIES
        ]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def family_table() -> str:
    """Every method in its family, with what it costs and where the reference code is, in Markdown."""
    lines = [
        "| family | method | published | reference code | fit | predict | GPU | stored MB | pose | scores |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(names(), key=lambda n: (card(n).family, card(n).year, n)):
        c = card(name)
        code = f"{c.repo}, {c.code_licence}" if c.repo else c.code_licence
        scores = "need a batch" if c.transductive else c.determinism
        published = f"{c.venue} {c.year}" if c.venue else "ours"
        lines.append(
            f"| {c.family} | `{name}` | {published} | {code} | {c.fit_cost} | {c.predict_cost} | {c.gpu} | "
            f"{c.stored_mb:g} | {c.pose} | {scores} |"
        )
    return "\n".join(lines) + "\n"


def _wanted(described: Card) -> str:
    least, good = described.normals
    if "zero-shot" in described.settings and least:
        return "as inner method"
    return "none" if not good else f"{least}+, better {good}+"


def maker_table() -> str:
    """Every maker of drawn defects, in Markdown."""
    lines = ["| maker | draws | severity | limits | needs |", "| --- | --- | --- | --- | --- |"]
    for name in synthesis.names():
        c = synthesis.card(name)
        lines.append(f"| `{name}` | {c.summary} | {c.severity} | {c.limits} | {c.needs or 'nothing'} |")
    return "\n".join(lines) + "\n"


def _settings(cls: type) -> dict[str, tuple[str, str]]:
    hints = setting_types(cls)
    out = {}
    for field in dataclasses.fields(cls):
        kind = str(hints[field.name]).replace("typing.", "").replace("anomalens.detector.", "")
        if isinstance(hints[field.name], type) and not kind.startswith("tuple["):
            kind = hints[field.name].__name__
        made = field.default_factory
        out[field.name] = (kind, repr(field.default if made is dataclasses.MISSING else made()))
    return out


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _maker(name: str, as_json: bool) -> str:
    described, settings = synthesis.card(name), _settings(synthesis.class_of(name))
    if as_json:
        return json.dumps({"name": name, "card": dataclasses.asdict(described), "settings": settings}) + "\n"
    lines = [f"{described.title}, --maker {name}", *_wrapped("", described.summary)]
    for field in dataclasses.fields(MakerCard):
        if field.name not in ("title", "summary"):
            value = getattr(described, field.name)
            lines += _wrapped(field.name, (", ".join(value) if isinstance(value, tuple) else value) or "-")
    lines += ["", f"settings (--maker {name}:KEY=VALUE, or synthesis.create(name, key=value)):"]
    lines += [f"  {key} = {default}   ({kind})" for key, (kind, default) in settings.items()]
    return "\n".join(lines) + "\n"


def _backbone(described: BackboneCard, as_json: bool) -> str:
    if as_json:
        return json.dumps(dataclasses.asdict(described)) + "\n"
    lines: list[str] = []
    for field in dataclasses.fields(BackboneCard):
        lines += _wrapped(field.name, getattr(described, field.name) or "-")
    return "\n".join(lines) + "\n"


def _wrapped(label: str, text: Any) -> list[str]:
    head = f"{label:<14}" if label else ""
    return textwrap.wrap(f"{head}{text}", WIDTH, subsequent_indent=" " * len(head), break_long_words=False)
