"""What to compare: methods, data, numbers of good pictures, seeds and disturbances, spelled out as cells.

    from anomalens.bench import plan
    todo = plan.cells(plan.read("plan.toml"))

A cell is one evaluation, as plain JSON values; `hash_of` names it. Cells that learn from the same pictures with the same
settings share their fit and form a job. Everything in a plan is looked up before anything runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import backbones, metrics, registry
from ..detector import Detector, card, class_of, create, setting_types
from ..errors import WrongInput, unknown
from ..synthesis import corruptions
from . import _pictures

KEYS = ("title", "methods", "backbones", "shots", "seeds", "corruptions", "mode", "metrics", "data", "limit")
METHOD_KEYS = ("name", "label", "settings")
DATA_KEYS = ("reader", "root", "categories", "train_once", "options")
MODES = ("shift", "matched", "mixed")
METRICS: dict[str, Any] = {
    "image": ["auroc", "ap", "f1max"],
    "pixel": ["auroc", "ap", "f1max", "aupro"],
    "limits": [0.3, 0.05],
    "size": "native",
}
HOLD_OUT = 0.2  # share of the good pictures that a plan with corruptions keeps from fit, for the operating point
SHARED_NORMALS = ("rad",)  # readers whose categories have the same good pictures: one model unless the plan says no
POOLED = "pooled"  # the category of all categories together

Cell = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A detector with settings; `label` is what the report calls it."""

    name: str
    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """A data set. categories: () for all. train_once: one model for all of them, each tested alone.

    root: as written, relative to the plan. options: further fields of the reader.
    """

    reader: str
    root: str
    categories: tuple[str, ...]
    train_once: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A plan that has been checked. folder: where its relative paths start; it is no part of any hash.

    corruptions: (name, grade) pairs; () tests on clean pictures only. limit: most test pictures of each class, or None.
    """

    methods: tuple[Method, ...]
    data: tuple[Data, ...]
    metrics: Mapping[str, Any]
    backbones: tuple[str, ...] = ()
    shots: tuple[int | str, ...] = ("full",)
    seeds: tuple[int, ...] = (0,)
    corruptions: tuple[tuple[str, int], ...] = ()
    mode: str = "shift"
    limit: int | None = None
    title: str = ""
    folder: Path = Path()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, as `make` takes them."""
        return {
            "title": self.title,
            "methods": [{"name": m.name, "label": m.label, "settings": dict(m.settings)} for m in self.methods],
            "backbones": list(self.backbones),
            "shots": list(self.shots),
            "seeds": list(self.seeds),
            "corruptions": [f"{name}:{grade}" for name, grade in self.corruptions],
            "mode": self.mode,
            "metrics": dict(self.metrics),
            "data": [{**vars(d), "categories": list(d.categories), "options": dict(d.options)} for d in self.data],
            "limit": self.limit,
        }


def read(path: str | Path) -> Plan:
    """A plan from a .toml or .json file of the same keys; paths in it are relative to the file.

    Raises:
        WrongInput: no such file, not TOML or JSON, or what `make` refuses.
        UnknownName: a key, method, setting, reader, category, backbone, corruption or metric that does not exist.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise WrongInput(f"the plan {path} {reason}; give a .toml or .json file.") from None
    try:
        if path.suffix.lower() == ".json":
            return make(json.loads(text), path.parent)
        if path.suffix.lower() != ".toml":
            raise WrongInput(f"the plan {path} is neither .toml nor .json; rename it to what it is.")
        if sys.version_info < (3, 11):
            raise WrongInput(f"{path} is TOML, which needs Python 3.11 or later; write the plan as .json instead.")
        import tomllib

        return make(json.loads(json.dumps(tomllib.loads(text), default=str)), path.parent)
    except ValueError as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"the plan {path} is not valid {path.suffix[1:].upper()}: {error}.") from None


def make(raw: Mapping[str, Any], folder: str | Path = ".") -> Plan:
    """A plan from plain values, every name looked up. folder: where relative paths start.

    Raises:
        WrongInput: a value of the wrong kind, nothing to compare, or a file that is missing.
        UnknownName: see `read`.
    """
    folder = Path(folder)
    raw = _table(raw, "plan", KEYS)
    for key in ("methods", "data"):
        if not _list(raw.get(key, []), key):
            raise WrongInput(f"the plan names no {key}; give at least one.")
    plan = Plan(
        methods=_labelled([_method(entry, folder) for entry in raw["methods"]]),
        data=tuple(_data(entry, folder) for entry in raw["data"]),
        backbones=tuple(_backbone(name, folder) for name in _list(raw.get("backbones", []), "backbones")),
        shots=tuple(_shots(k) for k in _list(raw.get("shots", ["full"]), "shots")) or ("full",),
        seeds=tuple(_whole(s, "a seed", 0) for s in _list(raw.get("seeds", [0]), "seeds")) or (0,),
        corruptions=_corruptions(raw.get("corruptions") or []),
        mode=str(raw.get("mode", "shift")),
        metrics=_metrics(raw.get("metrics", {})),
        limit=None if raw.get("limit") is None else _whole(raw["limit"], "limit", 1),
        title=str(raw.get("title", "")),
        folder=folder,
    )
    if plan.mode not in MODES:
        raise unknown("mode of a plan", plan.mode, MODES)
    if plan.backbones and not any("backbone" in setting_types(class_of(m.name)) for m in plan.methods):
        raise WrongInput("the plan names backbones, but none of its methods looks through one; leave them out.")
    names = Counter(hash_of(cell) for cell in cells(plan))
    if max(names.values()) > 1:
        raise WrongInput(
            "the plan asks for the same evaluation twice; remove the method, data, seed or shots named again."
        )
    return plan


def cells(plan: Plan) -> list[Cell]:
    """Every evaluation of a plan, in the order of the report.

    A method that needs no good picture has shots 0. What would be the same for every seed is there once, with the first:
    a method that draws nothing, unless good pictures are drawn for it. Methods that cannot do without good pictures have
    no cell of shots 0.
    """
    found = []
    for data in plan.data:
        every = _pictures.categories(data.reader, data.root, data.options, plan.folder)
        names = data.categories or every
        together = data.train_once and len(names) > 1
        fit_on = "*" if set(names) == set(every) else "+".join(names)
        for method in _variants(plan):
            for shots, seed in _draws(plan, method):
                for category in (*names, POOLED) if together else names:
                    shared = {
                        "method": {"name": method.name, "label": method.label, "settings": dict(method.settings)},
                        "data": {
                            "reader": data.reader, "root": data.root, "category": category,
                            "options": dict(data.options),
                        },
                        "shots": shots, "seed": seed, "mode": plan.mode, "metrics": dict(plan.metrics),
                        "fit_on": fit_on if together else category,
                        "hold_out": HOLD_OUT if plan.corruptions else 0.0, "limit": plan.limit,
                    }  # fmt: skip
                    found += [{**shared, "corruption": corruption} for corruption in _conditions(plan)]
    return found


def hash_of(cell: Cell) -> str:
    """Name of a cell: sha256 of its canonical JSON. The label is left out, so that renaming recomputes nothing."""
    method = {key: value for key, value in cell["method"].items() if key != "label"}
    text = json.dumps({**cell, "method": method}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fit_key(cell: Cell) -> str:
    """The same for cells that share their fit."""
    data = {key: value for key, value in cell["data"].items() if key != "category"}
    shared = {**cell, "data": data, "corruption": learnt_under(cell)}
    return hash_of({key: value for key, value in shared.items() if key not in ("metrics", "limit")})


def learnt_under(cell: Cell) -> Any:
    """What the good pictures of a cell's fit are disturbed by: None, {"name", "grade"}, or for mode mixed {"name"}."""
    corruption = cell["corruption"]
    if corruption is None or cell["mode"] == "shift":
        return None
    if cell["mode"] == "mixed":
        return {"name": corruption["name"]}
    return corruption if corruption["grade"] else None


def jobs(todo: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that share their fit, in the order in which each fit is first needed."""
    found: dict[str, list[Cell]] = {}
    for cell in todo:
        found.setdefault(fit_key(cell), []).append(cell)
    return list(found.values())


def build(name: str, settings: Mapping[str, Any], folder: Path, seed: int | None = None) -> Detector:
    """The detector of a cell. A setting that is {"name", "settings"} is a detector itself; files are found from `folder`.

    seed: given to the detector and to those it holds, where they have such a setting.
    """
    values = {key: _setting(value, folder) for key, value in settings.items()}
    if isinstance(values.get("backbone"), str):
        values["backbone"] = _located(values["backbone"], folder)
    detector = create(name, **values)
    for part in parts(detector):
        if seed is not None and hasattr(part, "seed"):
            part.seed = seed
    return detector


def parts(detector: Detector) -> Iterator[Detector]:
    """The detector and those it holds, outermost first."""
    yield detector
    for value in detector.settings().values():
        if isinstance(value, Detector):
            yield from parts(value)


def zero_shot(detector: Detector) -> bool:
    """Whether it needs no good picture, and would learn nothing from any."""
    innermost = list(parts(detector))[-1]
    return not detector.learns and card(innermost.method).normals[0] == 0


def _setting(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping) and "name" in value:
        entry = _table(value, "method", METHOD_KEYS)
        return build(entry["name"], entry.get("settings", {}), folder)
    return tuple(_setting(v, folder) for v in value) if isinstance(value, list) else value


def _located(backbone: str, folder: Path) -> str:
    name, at, file = backbone.partition("@")
    return f"{name}@{folder / file}" if at else name


def _variants(plan: Plan) -> Iterator[Method]:
    """The methods, each with every backbone that its own settings leave open."""
    for method in plan.methods:
        if plan.backbones and "backbone" in setting_types(class_of(method.name)) and "backbone" not in method.settings:
            for backbone in plan.backbones:
                label = f"{method.label}, {backbone.partition('@')[0]}" if len(plan.backbones) > 1 else method.label
                yield replace(method, label=label, settings={**method.settings, "backbone": backbone})
        else:
            yield method


def _draws(plan: Plan, method: Method) -> Iterator[tuple[int | str, int]]:
    """(shots, seed) of a method, without repeating what cannot differ."""
    detector = build(method.name, method.settings, plan.folder)
    able = [k for k in plan.shots if k != 0 or not detector.needs_fit]
    for shots in (0,) if zero_shot(detector) else able:
        drawn = detector.draws or shots not in (0, "full")
        for seed in plan.seeds if drawn else plan.seeds[:1]:
            yield shots, seed


def _conditions(plan: Plan) -> Iterator[dict[str, Any] | None]:
    """Clean, then every corruption; grade 0 where its clean point is another one: other pictures, or another fit."""
    yield None
    for name in dict.fromkeys(name for name, _ in plan.corruptions):
        grades = [grade for other, grade in plan.corruptions if other == name]
        if corruptions.card(name).kind != "photometric" or plan.mode == "mixed":
            grades = [0, *grades]
        yield from ({"name": name, "grade": grade} for grade in grades)


def _method(entry: Any, folder: Path) -> Method:
    entry = {"name": entry} if isinstance(entry, str) else _table(entry, "method", METHOD_KEYS)
    if not isinstance(entry.get("name"), str):
        raise WrongInput(f"the method {entry!r} has no name; `anomalens list` shows all.")
    name = registry.resolve("detectors", "detector", entry["name"])
    settings = entry.get("settings", {})
    if not isinstance(settings, Mapping):
        raise WrongInput(f"settings of {name} are {settings!r}; give a table of key = value.")
    if "seed" in settings:
        raise WrongInput(f"{name} has a seed among its settings; list it under seeds of the plan instead.")
    if isinstance(settings.get("backbone"), str):
        _backbone(settings["backbone"], folder)
    build(name, settings, folder)
    return Method(name, str(entry.get("label", "")), dict(settings))


def _labelled(found: Sequence[Method]) -> tuple[Method, ...]:
    """Methods with a label each; one that is used twice without a label is called by its settings."""
    counts = Counter(m.name for m in found)
    named = []
    for m in found:
        told = ", ".join(f"{k}={v}" for k, v in m.settings.items())
        named.append(replace(m, label=m.label or (f"{m.name} ({told})" if told and counts[m.name] > 1 else m.name)))
    again = [label for label, count in Counter(m.label for m in named).items() if count > 1]
    if again:
        raise WrongInput(f"two methods of the plan are called {again[0]!r}; give each its own label.")
    return tuple(named)


def _data(entry: Any, folder: Path) -> Data:
    entry = _table(entry, "[[data]]", DATA_KEYS)
    reader = registry.resolve("datasets", "dataset", str(entry.get("reader", "folder")))
    root = str(entry.get("root", ""))
    options = entry.get("options", {})
    _pictures.check_options(reader, root, options)
    names = [_pictures.spelled(reader, str(c)) for c in _list(entry.get("categories", []), "categories")]
    _pictures.check_categories(reader, root, options, names, folder)
    once = entry.get("train_once", reader in SHARED_NORMALS)
    if not isinstance(once, bool):
        raise WrongInput(f"train_once is {once!r}; give true or false.")
    return Data(reader, root, tuple(names), once, dict(options))


def _backbone(name: Any, folder: Path) -> str:
    family, _, rest = str(name).partition(":")
    if family not in backbones.names():
        raise unknown("backbone", str(name), backbones.names())
    file = rest.partition("@")[2]
    if file and not (folder / file).exists():
        raise WrongInput(
            f"the weights {folder / file} of backbone {name} do not exist; paths are relative to the plan."
        )
    return str(name)


def _shots(value: Any) -> int | str:
    if value == "full":
        return "full"
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WrongInput(f"shots has {value!r}; give 'full' or whole numbers, 0 for methods that can do without.")
    return value


def _corruptions(given: Any) -> tuple[tuple[str, int], ...]:
    """A suite by name, or a list of `rot`, which is all five grades, and `rot:2`."""
    if isinstance(given, str):
        return corruptions.suite(given)
    found: list[tuple[str, int]] = []
    for entry in _list(given, "corruptions"):
        name, colon, grade = str(entry).partition(":")
        corruptions.card(name)
        if colon and grade not in ("1", "2", "3", "4", "5"):
            raise WrongInput(f"corruptions has {entry!r}; a grade is 1 to 5, such as {name}:2, and {name} is all five.")
        found += [(name.lower(), g) for g in ([int(grade)] if colon else corruptions.GRADES[1:])]
    return tuple(dict.fromkeys(found))


def _metrics(given: Any) -> dict[str, Any]:
    """The metrics, each tried on two pictures, so that one that cannot be measured is refused now."""
    wanted = {**METRICS, **_table(given, "metrics", tuple(METRICS))}
    for level in ("image", "pixel"):
        wanted[level] = [str(name).lower().replace("_", "-") for name in _list(wanted[level], f"metrics.{level}")]
    wanted["limits"] = _list(wanted["limits"], "metrics.limits")
    if not all(isinstance(x, (int, float)) and 0 < x <= 1 for x in wanted["limits"]):
        raise WrongInput(f"metrics.limits is {wanted['limits']}; false-positive rates lie over 0 and up to 1.")
    metrics.PixelEvalPolicy(size=wanted["size"])
    metrics.image([0.0, 1.0], [0, 1], wanted["image"])
    mask = np.eye(4, dtype=bool)
    metrics.pixel([mask * 1.0], [mask], limits=wanted["limits"], which=wanted["pixel"])
    return wanted


def _table(given: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise WrongInput(f"{what} is {given!r}; a table with the keys {', '.join(known)} was expected.")
    for key in given:
        if key not in known:
            raise unknown(f"key of {what}", str(key), known)
    return dict(given)


def _list(given: Any, key: str) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        raise WrongInput(f"{key} is {given!r}; give a list, such as [{given!r}].")
    return list(given)


def _whole(given: Any, what: str, least: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise WrongInput(f"{what} is {given!r}; give a whole number from {least} up.")
    return given
