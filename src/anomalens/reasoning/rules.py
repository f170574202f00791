"""Rules: what must hold in a normal picture, in a file that people write, and as a program that checks it.

A rule is words, for a language model, or one of the typed forms below, which need none: `compile` writes the same kind of
program that a language model would. The first word of a typed rule names its form and says which label it speaks of.

    count: nut        exactly: 4 | at_least: 1 | at_most: 5      in: REGION    cells: [rows, columns]
    present: nut                                                 in: REGION    cells: [rows, columns]
    absent: nut                                                  in: REGION
    size: nut         field: length     at_least: 20, at_most: 30, in: REGION | learnt: true, k: 3
    place: nut        in: REGION, mode: center | left_of/right_of/above/below: LABEL | learnt: true, k: 3
    match: cable.color        to: clamp.count                    pairs: {yellow: 2, blue: 3}
    same: [connector]         field: length     within: 0.1
"""

from __future__ import annotations

import ast
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..errors import Unreadable, WrongInput
from ..files import write_atomic
from ._contradictions import contradictions
from ._typed import (
    FORMS,
    KINDS,
    LONGEST_NAME,
    MEASURES,
    READ,
    RELATIONS,
    Form,
    Kind,
    Rule,
    Wrong,
    counted,
    labels_of,
    measured,
    near,
    number,
    pairs_of,
    placed_by,
    property_of,
    quoted,
    share_of,
    sigmas,
    sized,
)
from .scene import UNKNOWN, Box, Scene, place_regions

__all__ = [
    "FORMS",
    "Form",
    "Kind",
    "Rule",
    "RuleSet",
    "compile",
    "load",
    "parse",
    "problems",
    "save",
    "to_json",
    "warn_unreviewed",
]

LARGEST_PROGRAM = 20_000  # characters, the limit of the program's contract


@dataclass(frozen=True)
class RuleSet:
    """What must hold for one category.

    labels: what the rules may speak of; () does not check. unreviewed: drafted by a model, not yet read by a person.
    regions: name to (x0, y0, x1, y1), in fractions of the picture where no number is above 1, else in pixels.
    """

    category: str = ""
    labels: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    regions: Mapping[str, Box] = field(default_factory=dict)
    unreviewed: bool = False

    def place(self, scene: Scene) -> Scene:
        """The scene with the regions of the rules, in its pixels; a program asks for them by name.

        Raises:
            WrongInput: a region lies outside of the picture, so that nothing could ever be in it.
        """
        placed = scene.with_regions(self.regions)
        for name in self.regions:
            x0, y0, x1, y1 = box = placed.regions[name]
            if x0 >= scene.width or y0 >= scene.height or x1 <= 0 or y1 <= 0:
                raise WrongInput(
                    f"region {name!r} is {list(box)}, outside of {scene.image_id or 'the picture'} with {scene.width} x "
                    f"{scene.height} pixels; correct it, or give fractions from 0 to 1."
                )
        return placed

    def to_dict(self) -> dict[str, Any]:
        """As a file holds it; what follows from a typed form is left out, so that editing the form is enough."""
        rules = [_written(rule) for rule in self.rules]
        content: dict[str, Any] = {"category": self.category, "labels": list(self.labels)}
        content |= {"regions": {name: list(box) for name, box in self.regions.items()}, "rules": rules}
        return {**content, "unreviewed": True} if self.unreviewed else content

    @classmethod
    def from_dict(cls, content: Any, source: str = "this rule set") -> RuleSet:
        """The rules in a mapping as a file holds it. A rule's id, and the type and text of a typed one, may be left out.

        Raises:
            WrongInput: another structure; the sentence names the place. What the rules say is judged by `problems`.
        """
        known = ("category", "labels", "regions", "rules", "unreviewed")
        if not isinstance(content, Mapping) or not isinstance(content.get("rules"), list):
            raise WrongInput(f"{source} has no list of rules; write category, labels, regions and rules: [...].")
        for word in content:
            if word not in known:
                raise WrongInput(f"{source} has {word!r}; a rule set has {', '.join(known)}{near(str(word), known)}")
        labels = content.get("labels") or ()
        if isinstance(labels, str) or not all(isinstance(v, str) for v in labels):
            raise WrongInput(f"labels of {source} are {labels!r}; write a list of names.")
        regions = content.get("regions") or {}
        if not isinstance(regions, Mapping):
            raise WrongInput(f"regions of {source} are {regions!r}; write name: [x0, y0, x1, y1].")
        place_regions(regions, 1, 1)  # refuses what is not a box
        rules = tuple(_read_rule(rule, f"R{i}", source, labels) for i, rule in enumerate(content["rules"], 1))
        boxes = {str(name): tuple(float(v) for v in box) for name, box in regions.items()}
        category = str(content.get("category") or "")
        return cls(category, tuple(labels), rules, boxes, bool(content.get("unreviewed")))  # type: ignore[arg-type]


def load(path: str | os.PathLike[str]) -> RuleSet:
    """Read rules from a YAML (.yaml, .yml) or JSON (.json) file.

    Raises:
        Unreadable: there is no such file, or it cannot be read.
        WrongInput: not YAML or JSON, or no rule set.
    """
    path = Path(path)
    kind: Literal["JSON", "YAML"] = "JSON" if _is_json(path) else "YAML"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not text in UTF-8"
        raise Unreadable(f"{path} cannot be read: {reason}.") from None
    return parse(text, kind, str(path))


def parse(text: str, kind: Literal["JSON", "YAML"], source: str = "this rule set") -> RuleSet:
    """Rules from the text of a file.

    Raises:
        WrongInput: not YAML or JSON, or no rule set.
    """
    import yaml

    try:
        content = json.loads(text, object_pairs_hook=_each_once) if kind == "JSON" else _yaml(text)
    except _Twice as error:
        raise WrongInput(f"{source} says {error}; write it once.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", None)
        why = getattr(error, "problem", None) or getattr(error, "msg", None)
        place = f" (line {line}{f': {_one_line(why)}' if why else ''})" if line else ""
        raise WrongInput(f"{source} is not {kind}{place}; correct it there.") from None
    return RuleSet.from_dict(content, source)


class _Twice(Exception):
    """A word that a mapping has twice, and where: readers of YAML and JSON would take the last one, unsaid."""


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    again = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if again:
        raise _Twice(f"{again[0]!r} twice in one place")
    return dict(pairs)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise _Twice(f"{key.value!r} twice in one place (line {key.start_mark.line + 1})")
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def save(ruleset: RuleSet, path: str | os.PathLike[str]) -> Path:
    """Write rules as YAML or JSON, by the file's ending, completely or not at all."""
    import yaml

    path = Path(path)
    if _is_json(path):
        text = to_json(ruleset) + "\n"
    else:
        content = _plain(ruleset.to_dict())
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    write_atomic(path, text)
    return path


def to_json(ruleset: RuleSet) -> str:
    """Rules as the text of a JSON file."""
    return json.dumps(_plain(ruleset.to_dict()), indent=1, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Lists and mappings only; a mapping with other keys than texts, which JSON lacks, as a list of pairs."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(inner) for key, inner in value.items()}
        return [[key, _plain(inner)] for key, inner in value.items()]
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_json(path: Path) -> bool:
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise WrongInput(f"{path} ends in {path.suffix or 'nothing'}; rules are in .yaml, .yml or .json.")
    return path.suffix.lower() == ".json"


def _read_rule(content: Any, number: str, source: str, labels: Sequence[str]) -> Rule:
    if isinstance(content, str):  # "quantity: the tray holds four nuts"
        kind, colon, text = content.partition(":")
        if not colon:
            raise WrongInput(
                f"rule {number} of {source} is {content[:60]!r}; begin with its type, one of {', '.join(KINDS)}, and a colon."
            )
        content = {"type": kind.strip().lower(), "text": text.strip()}
    if isinstance(content, Mapping):
        content = _typed_words(content, labels)
    else:
        raise WrongInput(
            f"rule {number} of {source} is {content!r}; write a form such as `count: nut`, or type and text."
        )
    name = str(content.get("id") or number)
    params = {str(k): v for k, v in content.items() if k not in ("id", "type", "text", "params")}
    nested = content.get("params") or {}
    if not isinstance(nested, Mapping):
        raise WrongInput(f"params of rule {name} of {source} are {nested!r}; write a mapping such as {{count: nut}}.")
    params |= {str(k): v for k, v in nested.items()}
    if _is_pairs(params.get("pairs")):
        params["pairs"] = dict(params["pairs"])
    form = next((word for word in FORMS if word in params), "")
    kind = str(content.get("type") or (FORMS[form].kind if form else ""))
    if kind not in KINDS:
        raise WrongInput(f"rule {name} of {source} {_no_kind(kind, params)}")
    text = " ".join(str(content.get("text") or "").split())
    if not form and not text:
        raise WrongInput(f"rule {name} of {source} says nothing; give it a form such as `count: nut`, or a text.")
    return Rule(name, kind, text or _in_words(params), params)  # type: ignore[arg-type]


def _typed_words(content: Mapping[Any, Any], labels: Sequence[str]) -> Mapping[Any, Any]:
    """`position: the caps point up`, which YAML reads as a mapping where it has no quotes, as type and text.

    `size` is a form too, which never stands alone: alone, and with words instead of a label, it is the type.
    """
    for kind in KINDS:
        said = content.get(kind)
        if not isinstance(said, str) or "type" in content or "text" in content:
            continue
        if kind not in FORMS or (content.keys() <= {"id", kind} and " " in said.strip() and said not in labels):
            return {**{word: value for word, value in content.items() if word != kind}, "type": kind, "text": said}
    return content


def _no_kind(kind: str, params: Mapping[str, Any]) -> str:
    """What is wrong with a rule that has neither a form nor one of the types."""
    types = f"a rule is one of {', '.join(KINDS)}"
    if kind in FORMS:
        return f"has the type {kind!r}, which is a form; write {kind}: LABEL in place of type and text."
    if kind:
        return f"has the type {kind!r}; {types}{near(kind, KINDS)}"
    close = next(filter(None, (near(word, (*FORMS, *KINDS), "") for word in params)), "")
    begin = f"; begin with a form, one of {', '.join(FORMS)}, or a type, one of {', '.join(KINDS)}."
    return f"has no form and no type{close or begin}"


def _is_pairs(value: Any) -> bool:
    """Whether this is a mapping written as a list of pairs, as JSON must where keys are numbers."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int, float)) for pair in value
    )


def _written(rule: Rule) -> dict[str, Any]:
    content: dict[str, Any] = {"id": rule.id, **rule.params}
    if not rule.form or rule.type != FORMS[rule.form].kind:
        content["type"] = rule.type
    if not rule.form or rule.text != _in_words(rule.params):
        content["text"] = rule.text
    return content


def _in_words(params: Mapping[str, Any]) -> str:
    """A sentence for a typed rule that came without one."""
    form = next(word for word in FORMS if word in params)
    rest = ", ".join(_say(word, value) for word, value in params.items() if word not in (form, "severity"))
    return f"{_say(form, params[form])}: {rest}" if rest else _say(form, params[form])


def _say(word: str, value: Any) -> str:
    if word == "learnt":
        return "as in normal pictures"
    if word == "cells" and isinstance(value, (list, tuple)):
        return f"in each of {' x '.join(map(str, value))} cells"
    if isinstance(value, Mapping):
        value = ", ".join(f"{k} -> {v}" for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        value = " and ".join(map(str, value))
    return f"{word.replace('_', ' ')} {value}"


# --- what is wrong with rules ------------------------------------------------------------------------------------


def problems(ruleset: RuleSet, labels: Sequence[str] | None = None) -> list[str]:
    """What is wrong with the rules, one sentence each; empty when nothing is.

    labels: what the parser can name; without them, the labels of the rule set and `unknown`, or none are checked.
    """
    known = (*ruleset.labels, UNKNOWN) if labels is None and ruleset.labels else tuple(labels or ())
    correct = (
        "correct the rule or the parser" if ruleset.labels else "name the parts in labels: [...], or correct the rule"
    )
    advice = f"; {correct}."
    found = [_again(name) for name, times in Counter(r.id for r in ruleset.rules).items() if times > 1]
    if labels is not None:
        found += [f"label {name!r}: {_no_label(name, known, advice)}" for name in ruleset.labels if name not in known]
    found += [_too_long(name) for name in (*ruleset.labels, *ruleset.regions) if len(name) > LONGEST_NAME]
    try:
        place_regions(ruleset.regions, 1, 1)
    except WrongInput as error:
        return [*found, str(error)]  # places cannot be compared
    found += [_too_narrow(name, box) for name, box in ruleset.regions.items() if _is_narrow(box)]
    sound = []
    for rule in ruleset.rules:
        own = list(_problems_of(rule, ruleset, known, advice))
        found += own
        if not own and rule.form:
            sound.append(rule)
    return found + list(contradictions(sound, ruleset.regions))


def _again(name: str) -> str:
    return f"rule {name}: more than one rule has this id; give each its own."


def _too_long(name: str) -> str:
    return f"{name[:20]!r}... is a name of {len(name)} characters; use at most {LONGEST_NAME}."


def _is_narrow(box: Sequence[float]) -> bool:
    """Whether a box in pixels is hardly one: a fraction above 1 makes pixels of all four."""
    return max(map(abs, box)) > 1 and min(box[2] - box[0], box[3] - box[1]) < 2


def _too_narrow(name: str, box: Sequence[float]) -> str:
    return (
        f"region {name!r} is {list(box)}: pixels, since a number is above 1, and less than 2 of them wide or high; "
        "give fractions from 0 to 1, or pixels, for all four."
    )


def _no_label(name: str, known: Sequence[str], advice: str) -> str:
    listed = ", ".join(known) or "nothing"
    return f"no parser here knows {name!r} (known: {listed}){near(name, known, advice)}"


def _problems_of(rule: Rule, ruleset: RuleSet, known: Sequence[str], advice: str) -> Iterator[str]:
    """What is wrong with one rule by itself."""
    params, form = rule.params, rule.form
    if not form:
        if params:
            given = ", ".join(map(repr, params))
            yield f"rule {rule.id}: {given} without a form; begin with one of {', '.join(FORMS)}."
        return
    words = (*FORMS[form].words, "severity")
    if rule.type not in KINDS:
        yield f"rule {rule.id}: the type {rule.type!r} is none of {', '.join(KINDS)}."
    for word in params:
        if word != form and word not in words:
            yield f"rule {rule.id}: {form!r} takes {', '.join(words)}, not {word!r}{near(word, words)}"
    try:
        labels_of(rule)
        READ[form](rule)
        severity = number(rule, "severity", 1.0)
        if not 0 < severity <= 1:
            raise Wrong(f"severity is {severity:g}; give a number above 0, up to 1.")
    except Wrong as wrong:
        yield f"rule {rule.id}: {wrong}"
        return
    for name in labels_of(rule):
        if known and name not in known:
            yield f"rule {rule.id}: {_no_label(name, known, advice)}"
        elif len(name) > LONGEST_NAME:
            yield f"rule {rule.id}: {_too_long(name)}"
    place = params.get("in")
    if place is not None and (not isinstance(place, str) or place not in ruleset.regions):
        listed = ", ".join(ruleset.regions) or "none"
        hint = near(str(place), list(ruleset.regions), "; add it to regions: {NAME: [x0, y0, x1, y1]}.")
        yield f"rule {rule.id}: no region is named {place!r} (known: {listed}){hint}"


# --- compiling ---------------------------------------------------------------------------------------------------


def compile(ruleset: RuleSet, labels: Sequence[str] | None = None) -> str:
    """The source of a program that checks typed rules: `check(image)` returns a finding for whatever breaks one.

    Scenes must carry the regions of the rules (`RuleSet.place`) and, where something is learnt, what is usual
    (`Scene.with_stats`); a program that asks for something that was never learnt ends with an error that says so.

    Raises:
        WrongInput: there is no rule, a rule is words only, or `problems` finds something; the first is told.
    """
    if not ruleset.rules:
        raise WrongInput("the rule set has no rule; add one, such as `- {count: nut, exactly: 4}`.")
    for rule in ruleset.rules:
        if not rule.form and not rule.params:
            raise WrongInput(
                f"rule {rule.id} ({rule.text[:60]!r}) is words only and needs a language model; "
                f"for use without one, give it a form: {', '.join(FORMS)}."
            )
    wrong = problems(ruleset, labels)
    if wrong:
        more = f" ({len(wrong) - 1} more: see problems())" if len(wrong) > 1 else ""
        raise WrongInput(wrong[0] + more)
    warn_unreviewed(ruleset)
    lines = [line for rule in ruleset.rules for line in ("    # " + _one_line(f"{rule.id}: {rule.text}"), _call(rule))]
    title = _one_line(f"What breaks a rule of {ruleset.category or 'this category'}; empty for a normal picture.")
    body = "\n".join(["def check(image):", f"    {quoted(title)}", "    found = []", *lines, "    return found"])
    source = "\n\n\n".join([*_functions(body), body]) + "\n"
    if len(source) > LARGEST_PROGRAM:
        raise WrongInput(
            f"{len(ruleset.rules)} rules make a program of {len(source)} characters, over the limit of {LARGEST_PROGRAM}; "
            "use fewer rules or shorter texts."
        )
    return source


def warn_unreviewed(ruleset: RuleSet) -> None:
    """Say so when rules were drafted by a model and nobody has read them."""
    if ruleset.unreviewed:
        warnings.warn(unreviewed_in_words(ruleset), UserWarning, stacklevel=3)


def unreviewed_in_words(ruleset: RuleSet) -> str:
    """What `warn_unreviewed` says."""
    return (
        f"the rules of {ruleset.category or 'this category'} were drafted by a model and are unreviewed; "
        "read them, correct them, and remove `unreviewed: true`."
    )


def _one_line(text: str) -> str:
    """Fit for a comment: what does not print is left out."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:160]


def _literal(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def _call(rule: Rule) -> str:
    """The line of `check` that checks one rule."""
    params, form = rule.params, rule.form
    if form in ("count", "present", "absent"):
        low, high, cells = counted(rule)
        name, arguments = ("count_in_cells" if cells else "count"), [params[form], low, high]
        if cells:
            arguments += [params.get("in", ""), *cells]
        elif "in" in params:
            arguments.append(params["in"])
    elif form == "size":
        limits = sized(rule)
        name = "size" if isinstance(limits, tuple) else "usual"
        arguments = [params[form], *_reader(rule), *(limits if isinstance(limits, tuple) else (limits,))]
        arguments += [params["in"]] if "in" in params else []
    elif form == "place":
        return _call_place(rule)
    elif form == "match":
        (label, given), (other, wanted) = property_of(rule, "match"), property_of(rule, "to")
        name, arguments = "match", [label, given, _values(given), other, wanted, _values(wanted), pairs_of(rule)]
    else:
        labels = labels_of(rule)
        name, arguments = "same", [tuple(labels), *_reader(rule), share_of(rule)]
    return _line(rule, name, arguments)


def _call_place(rule: Rule) -> str:
    params, label = rule.params, rule.params["place"]
    by = placed_by(rule)
    if by == "in":
        return _line(rule, "inside", [label, params["in"], params.get("mode", "center")])
    if by in RELATIONS:
        return _line(rule, "ordered", [label, RELATIONS[by], params[by]])
    axes = ("center_x", "center_y")
    return "\n".join(_line(rule, "usual", [label, axis, _Code(_lambda(axis)), sigmas(rule)]) for axis in axes)


class _Code(str):
    """An argument that is an expression, not a text."""


def _line(rule: Rule, function: str, arguments: Sequence[Any]) -> str:
    shown = [str(a) if isinstance(a, _Code) else _literal(a) for a in (rule.id, rule.type, *arguments)]
    if "severity" in rule.params:
        shown.append(f"severity={float(rule.params['severity'])!r}")
    return f"    found += {function}(image, {', '.join(shown)})"


def _reader(rule: Rule) -> tuple[str, _Code]:
    """The name under which a number is known and learnt, and the expression that reads it."""
    _, expression = measured(rule)
    default = "area" if rule.form == "size" else "length"
    return str(rule.params.get("field", default)), _Code(f"lambda thing: {expression}")


def _lambda(name: str) -> str:
    return f"lambda thing: {MEASURES[name]}"


def _values(name: str) -> _Code:
    """The expression that lists (value, objects) of a property."""
    if name in ("count", "color"):
        return _Code(f"{name}s")
    read = f"thing.attributes.get({quoted(name)})"
    return _Code(f"lambda image, label: [({read}, [thing]) for thing in image.find(label)]")


@cache
def _library() -> dict[str, tuple[str, frozenset[str]]]:
    """The functions of _forms.py: name to (source, names it uses)."""
    text = (Path(__file__).parent / "_forms.py").read_text(encoding="utf-8")
    return {
        node.name: (
            ast.get_source_segment(text, node) or "",
            frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name)),
        )
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def _functions(body: str) -> list[str]:
    """The functions that a program needs, in the order of the library."""
    library = _library()
    wanted = {n.id for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Name)}
    while True:
        grown = wanted.union(*(library[name][1] for name in wanted & library.keys()))
        if grown == wanted:
            return [source for name, (source, _) in library.items() if name in wanted]
        wanted = grown
