"""What a typed rule says: its form, read and checked word by word."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["quantity", "size", "position", "matching"]
KINDS: tuple[str, ...] = get_args(Kind)
LONGEST_NAME = 60  # characters of a label, region or attribute, so that reasons stay short
COLORS = ("black", "white", "grey", "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown")
RELATIONS = {"left_of": "left of", "right_of": "right of", "above": "above", "below": "below"}
MEASURES = {  # the name of a number of an object, to the expression that reads it
    **{name: f"thing.{name}" for name in ("area", "area_frac", "length", "thickness", "angle", "aspect", "fill")},
    "score": "thing.score",
    "center_x": "thing.center[0]",
    "center_y": "thing.center[1]",
    **{name: f"thing.bbox[{i}]" for i, name in enumerate(("x0", "y0", "x1", "y1"))},
    **{name: f"thing.rgb[{i}]" for i, name in enumerate(("red", "green", "blue"))},
    "saturation": "thing.hsv[1]",
    "value": "thing.hsv[2]",
}


@dataclass(frozen=True)
class Form:
    """One typed form: the kind of rule it is, and the words that may follow it."""

    kind: Kind
    words: tuple[str, ...]


FORMS = {
    "count": Form("quantity", ("exactly", "at_least", "at_most", "in", "cells")),
    "present": Form("quantity", ("in", "cells")),
    "absent": Form("quantity", ("in",)),
    "size": Form("size", ("field", "at_least", "at_most", "in", "learnt", "k")),
    "place": Form("position", ("in", "mode", *RELATIONS, "learnt", "k")),
    "match": Form("matching", ("to", "pairs")),
    "same": Form("matching", ("field", "within")),
}


@dataclass(frozen=True)
class Rule:
    """One rule. params: a typed form as in the file, {"count": "nut", "exactly": 4}; empty for a rule of words only."""

    id: str
    type: Kind
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Which typed form this is; "" for words only."""
        return next((word for word in FORMS if word in self.params), "")


class Wrong(Exception):
    """Why a rule cannot be understood; becomes a sentence."""


def number(rule: Rule, word: str, default: float | None = None) -> Any:
    value = rule.params.get(word, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 <= value <= 1e9:
        raise Wrong(f"{word} is {value!r}; give a number.")
    return value


def limits_of(rule: Rule) -> tuple[Any, Any]:
    """(low, high) of `exactly`, `at_least`, `at_most`; None for an open side."""
    exact, low, high = (number(rule, word) for word in ("exactly", "at_least", "at_most"))
    if exact is not None:
        if low is not None or high is not None:
            raise Wrong("exactly stands alone; leave out at_least and at_most.")
        return exact, exact
    if low is None and high is None:
        words = "at_least, at_most, or learnt: true" if rule.form == "size" else "exactly, at_least or at_most"
        raise Wrong(f"{rule.form!r} needs a range; add {words}.")
    if low is not None and high is not None and low > high:
        raise Wrong(f"at least {low:g} and at most {high:g} cannot both hold; exchange them.")
    return low, high


def labels_of(rule: Rule) -> list[str]:
    """Every label a typed rule speaks of."""
    params, form = rule.params, rule.form
    if form == "match":
        named = [property_of(rule, word)[0] for word in ("match", "to")]
    elif form == "same":
        named = list(params[form]) if isinstance(params[form], (list, tuple)) else [params[form]]
    else:
        named = [params[form], *(params[word] for word in RELATIONS if word in params)]
    if not named or not all(isinstance(name, str) and name for name in named):
        raise Wrong(f"{form} is {params[form]!r}; name a label.")
    return named


def property_of(rule: Rule, word: str) -> tuple[str, str]:
    """`cable.color` as (label, property)."""
    value = rule.params.get(word)
    label, dot, name = str(value or "").rpartition(".")
    if not dot or not label or not name:
        raise Wrong(f"{word} is {value!r}; write LABEL.color, LABEL.count or LABEL.ATTRIBUTE.")
    return label, name


def counted(rule: Rule) -> tuple[int, int | None, tuple[int, int] | None]:
    """(low, high, cells) of count, present and absent."""
    low, high = {"present": (1, None), "absent": (0, 0)}.get(rule.form) or limits_of(rule)
    for value in (low, high):
        if value is not None and (value < 0 or value != int(value)):
            raise Wrong(f"{value:g} is not a number of things; give 0, 1, 2, ...")
    cells = rule.params.get("cells")
    if cells is not None:
        if not isinstance(cells, (list, tuple)) or len(cells) != 2 or not all(_counts(v) for v in cells):
            raise Wrong(f"cells is {cells!r}; give [rows, columns], each 1 to 100.")
        cells = (int(cells[0]), int(cells[1]))
    return int(low or 0), None if high is None else int(high), cells


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100


def measured(rule: Rule) -> tuple[str, str]:
    """(name of the number, expression that reads it)."""
    name = str(rule.params.get("field", "area" if rule.form == "size" else "length"))
    prefix, dot, attribute = name.partition(".")
    if dot and prefix == "attributes" and attribute:
        return attribute, f"thing.attributes.get({quoted(attribute)})"
    if name not in MEASURES:
        known = [*MEASURES, "attributes.NAME"]
        raise Wrong(f"field is {name!r}; give one of {', '.join(known)}{near(name, known)}")
    return name, MEASURES[name]


def sized(rule: Rule) -> tuple[Any, Any] | float:
    """The range of a size rule, or its k where it is learnt."""
    measured(rule)
    learnt = rule.params.get("learnt", False)
    if not isinstance(learnt, bool):
        raise Wrong(f"learnt is {learnt!r}; write true, or leave it out.")
    if not learnt:
        if "k" in rule.params:
            raise Wrong("k is for learnt: true; add that, or leave out k.")
        return limits_of(rule)
    if any(word in rule.params for word in ("at_least", "at_most")):
        raise Wrong("a size is learnt or given; leave out learnt, or at_least and at_most.")
    if "in" in rule.params:
        raise Wrong("what is usual is learnt for the whole picture; leave out in, or give at_least and at_most.")
    return sigmas(rule)


def sigmas(rule: Rule) -> float:
    k = number(rule, "k", 3.0)
    if k <= 0:
        raise Wrong(f"k is {k:g}; give a number above 0, such as 3.")
    return float(k)


def placed_by(rule: Rule) -> str:
    """Which of its words a place rule goes by."""
    chosen = [word for word in ("in", *RELATIONS) if word in rule.params] + ["learnt"] * bool(rule.params.get("learnt"))
    if len(chosen) != 1:
        raise Wrong(
            f"place goes by exactly one of in, {', '.join(RELATIONS)}, learnt: true; it has {chosen or 'none'}."
        )
    if rule.params.get("mode", "center") not in ("center", "full", "overlap"):
        raise Wrong(f"mode is {rule.params['mode']!r}; give center, full or overlap.")
    if chosen[0] == "learnt":
        sigmas(rule)
    return chosen[0]


def pairs_of(rule: Rule) -> dict[Any, Any] | None:
    (_, given), (_, wanted) = property_of(rule, "match"), property_of(rule, "to")
    pairs = rule.params.get("pairs")
    if pairs is None:
        return None
    if not isinstance(pairs, Mapping) or not pairs:
        raise Wrong(f"pairs is {pairs!r}; give a mapping such as {{yellow: 2, blue: 3}}, or leave it out for equality.")
    return {_value(key, given): _value(value, wanted) for key, value in pairs.items()}


def _value(value: Any, name: str) -> Any:
    """One side of a pair, as the program will compare it."""
    if name == "color" and value not in COLORS:
        raise Wrong(f"{value!r} is not a colour; give one of {', '.join(COLORS)}{near(str(value), COLORS)}")
    if name == "count":
        try:
            value = int(value)  # JSON has only strings for keys
        except (TypeError, ValueError):
            raise Wrong(f"{value!r} is not a number of things; give 0, 1, 2, ...") from None
    if not isinstance(value, (str, int, float)):
        raise Wrong(f"{value!r} in pairs is neither a text nor a number.")
    return value


def share_of(rule: Rule) -> float:
    measured(rule)
    within = number(rule, "within", 0.1)
    if not 0 <= within < 1:
        raise Wrong(f"within is {within:g}; give a share from 0 up to 1, such as 0.1.")
    return float(within)


READ: dict[str, Any] = {
    **dict.fromkeys(("count", "present", "absent"), counted),
    "size": sized,
    "place": placed_by,
    "match": pairs_of,
    "same": share_of,
}


def near(word: str, known: Sequence[str], otherwise: str = ".") -> str:
    """The end of a sentence about a word that is not known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else otherwise


def quoted(text: str) -> str:
    """A Python literal in double quotes: JSON's escapes mean the same there."""
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
