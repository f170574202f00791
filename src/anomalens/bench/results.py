"""What a benchmark measured, read from its results files and brought together: plain data, `apps.bench_report` draws it.

    from anomalens.bench import results
    overall = results.summary(results.read("results.jsonl"))
    overall["data"][0]["tables"][0]["rows"][0]["cells"]["image.auroc"]  # value, sd, interval, best, tied, p, ...

A figure of a method is the mean over categories of the mean over seeds, a share in [0, 1]. Three questions, three answers:

    would another fit say the same?        `sd`, the standard deviation over seeds of the mean over categories
    would other pictures say the same?     `interval`, 95 %, from resampled test pictures
    is the method worse than the best?     `p`, of the difference to it, over pictures and seeds together

Pictures are resampled within each category and label, the same ones for all methods, seeds and corruptions; for pixel
metrics the resampled values were stored when the benchmark ran. Methods are compared on categories that all of them have.
A value that is undefined is None with its reason, never 0.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WrongInput, unknown
from ..synthesis import corruptions
from ._tables import DataSet, Row, card_of, data_title, one_model, shots_words

FORMAT = 1
FILE = "results.jsonl"
RESAMPLES = 1000


@dataclass(frozen=True)
class Results:
    """Rows of one or several results files.

    headers: first line of each file: plan, versions, machine. rows: one per cell, in the order of the plan.
    damaged: lines that are not JSON; an interrupted run leaves one, at the end. repeated: cells that came twice.
    """

    headers: tuple[Row, ...]
    rows: tuple[Row, ...]
    damaged: int = 0
    repeated: int = 0


def read(*paths: str | os.PathLike[str]) -> Results:
    """Rows of results files, or of folders that hold a results.jsonl; of a cell that comes twice the later one counts.

    Raises:
        WrongInput: no such file, nothing in it, not a results file, or one of another format.
    """
    if not paths:
        raise WrongInput(f"no results file was given; name a {FILE} that `anomalens bench` wrote.")
    headers: list[Row] = []
    rows: dict[str, Row] = {}
    damaged = lines = 0
    for given in map(Path, paths):
        path = given / FILE if given.is_dir() else given
        for number, line in enumerate(_lines(path)):
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if number == 0 and not (isinstance(found, dict) and "format" in found):
                raise WrongInput(
                    f"{path} is not a results file: its first line has no format; `anomalens bench` writes one."
                )
            if not isinstance(found, dict) or not {"format", "hash"} & set(found):
                damaged += 1
            elif "hash" not in found:
                if found["format"] != FORMAT:
                    raise WrongInput(
                        f"{path} has format {found['format']}; this version reads format {FORMAT}: update it."
                    )
                headers.append(found)
            else:
                rows[found["hash"]] = found
                lines += 1
    if not rows:
        raise WrongInput(f"there is no result yet in {', '.join(map(str, paths))}; run the benchmark first.")
    place = _plan_order(headers)
    ordered = tuple(sorted(rows.values(), key=lambda row: (*place(row["cell"]), row["hash"])))
    return Results(tuple(headers), ordered, damaged, lines - len(rows))


def summary(results: Results, *, metric: str = "", baseline: str = "", resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything a report says, as dicts, lists, numbers and words; the same for the same results, bit for bit.

    Args:
        metric: the headline: the one of the speed drawing, of the overview and of robustness; image.auroc when not given.
        baseline: method that losses are set in proportion to: its name, label or title; patchcore when not given and
            there, otherwise the first.
        resamples: of the pictures, for image metrics.

    Raises:
        UnknownName: no such metric or method in the results.
    """
    good = [row for row in results.rows if row["status"] == "ok"]
    known = list(dict.fromkeys(name for row in good for name in row["figures"]))
    if metric and metric not in known:
        raise unknown("metric of these results", metric, known)
    chosen = metric or ("image.auroc" if "image.auroc" in known else next(iter(known), ""))
    methods, title_of = _methods(results)
    base = _baseline(methods, baseline)
    data_of = _data_titles(results)
    sets = []
    for name in dict.fromkeys(data_of.values()):
        rows = [row for row in results.rows if data_of[row["hash"]] == name]
        if any(row["status"] == "ok" for row in rows):
            sets.append(DataSet(name, rows, title_of, resamples))
    data = [part.summary(methods, known, chosen, base) for part in sets]
    failed = [
        {
            "method": title_of[row["hash"]],
            "data": data_of[row["hash"]],
            "category": row["cell"]["data"]["category"],
            "seed": row["cell"]["seed"],
            "corruption": _disturbance_of(row["cell"]),
            "error": row["error"],
        }
        for row in results.rows
        if row["status"] != "ok"
    ]
    return _plain(
        {
            "format": FORMAT,
            "title": next((h["plan"]["title"] for h in results.headers if h.get("plan", {}).get("title")), ""),
            "metric": chosen,
            "metrics": known,
            "baseline": base,
            "resamples": resamples,
            "counts": {
                "cells": len(results.rows),
                "ok": len(good),
                "failed": len(failed),
                "damaged": results.damaged,
                "repeated": results.repeated,
                "unreadable": sum(row["counts"]["unreadable"] for row in good if not row["cell"]["corruption"]),
            },
            "machines": _different(header.get("machine") for header in results.headers),
            "versions": _different(header.get("versions") for header in results.headers),
            "methods": methods,
            "data": data,
            "overview": _overview(data, methods, chosen),
            "failed": failed,
        }
    )


def described(results: Results) -> dict[str, tuple[Row, str]]:
    """What the summary calls the method (its entry under `methods`) and the data set of each row, by the row's hash."""
    methods, title_of = _methods(results)
    entries, data_of = {m["title"]: m for m in methods}, _data_titles(results)
    return {hash: (entries[title], data_of[hash]) for hash, title in title_of.items()}


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise WrongInput(f"there is no results file {path}; `anomalens bench` writes {FILE} into its folder.") from None
    except OSError as error:
        raise WrongInput(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise WrongInput(f"{path} is empty; run the benchmark first.")
    return lines


def _plan_order(headers: Sequence[Row]) -> Callable[[Row], tuple[Any, ...]]:
    """Sorting key of a cell: where the plans name its parts, and the same order for what they do not name."""
    plans = [header.get("plan") or {} for header in headers]

    def listed(key: str) -> list[Any]:
        return [item for plan in plans for item in plan.get(key) or ()]

    labels = [m if isinstance(m, str) else m.get("label") or m.get("name") for m in listed("methods")]
    roots = [(d.get("reader"), d.get("root")) for d in listed("data")]
    categories = [c for d in listed("data") for c in d.get("categories") or ()]
    backbones, shots = listed("backbones"), listed("shots")
    disturbances = corruptions.names()

    def place(known: Sequence[Any], wanted: Any) -> int:
        return known.index(wanted) if wanted in known else len(known)

    def key(cell: Row) -> tuple[Any, ...]:
        method, data, held = cell["method"], cell["data"], cell["corruption"] or {"name": "", "grade": 0}
        return (
            place(roots, (data["reader"], data["root"])),
            _canonical({k: v for k, v in data.items() if k != "category"}),
            place(categories, data["category"]),
            data["category"],
            place(labels, _own_label(method)),
            _own_label(method),
            place(backbones, method["settings"].get("backbone")),
            place(shots, cell["shots"]),
            _canonical([method, cell["shots"], cell["mode"]]),
            cell["seed"],
            place(disturbances, held["name"]) if held["name"] else -1,
            held["grade"],
        )

    return key


def _methods(results: Results) -> tuple[list[Row], dict[str, str]]:
    """The methods as a reader tells them apart, in plan order, and the title of each row's method."""
    kinds: dict[str, Row] = {}
    kind_of = {}
    for row in results.rows:
        cell = row["cell"]
        key = _canonical([cell["method"], cell["shots"], cell["mode"]])
        kinds.setdefault(key, cell)
        kind_of[row["hash"]] = key
    cells = list(kinds.values())
    several = {part: len({_canonical(cell[part]) for cell in cells}) > 1 for part in ("shots", "mode")}
    backbones = {str(cell["method"]["settings"].get("backbone") or "") for cell in cells}
    titles = []
    for cell in cells:
        parts = [_label(cell["method"]), _backbone(cell["method"], backbones)]
        parts += [shots_words(cell["shots"])] * several["shots"] + [cell["mode"]] * several["mode"]
        titles.append(" · ".join(part for part in parts if part))
    alike = [titles.count(title) > 1 for title in titles]
    for place, cell in enumerate(cells):
        if alike[place]:
            others = {k: v for k, v in cell["method"]["settings"].items() if k != "backbone"}
            titles[place] += " · " + (", ".join(f"{k}={v}" for k, v in others.items()) or "default settings")
    for place, title in enumerate(titles):
        if title in titles[:place]:
            titles[place] = f"{title} ({place + 1})"
    methods = []
    for title, cell in zip(titles, cells, strict=True):
        name, described = cell["method"]["name"], card_of(cell["method"]["name"])
        methods.append(
            {
                "title": title,
                "label": _label(cell["method"]),
                "name": name,
                "backbone": _backbone(cell["method"], backbones),
                "settings": cell["method"]["settings"],
                "shots": cell["shots"],
                "mode": cell["mode"],
                "fidelity": described.fidelity if described else "",
                "paper": described.paper if described else "",
                "year": described.year if described else None,
            }
        )
    by_key = dict(zip(kinds, titles, strict=True))
    return methods, {hash: by_key[key] for hash, key in kind_of.items()}


def _own_label(method: Row) -> str:
    """What the plan calls a method, without the backbone that the benchmark adds where there are several."""
    return str(method["label"]).removesuffix(f", {str(method['settings'].get('backbone')).partition('@')[0]}")


def _label(method: Row) -> str:
    """The title of its card for a method that the plan has no other name for."""
    label, described = _own_label(method), card_of(method["name"])
    return described.title if described and label in ("", method["name"]) else label or method["name"]


def _backbone(method: Row, all_of_them: set[str]) -> str:
    """As little of its name as tells it from the others: the network, its options, the file of its weights."""

    def detail(name: str, level: int) -> str:
        network, _, file = name.partition("@")
        short = network.partition("?")[0]
        return (short, network, f"{network} ({Path(file).stem})")[level]

    own = str(method["settings"].get("backbone") or "")
    alone = (level for level in (0, 1) if [detail(n, level) for n in all_of_them].count(detail(own, level)) == 1)
    return detail(own, next(alone, 2 if "@" in own else 1)) if own else ""


def _data_titles(results: Results) -> dict[str, str]:
    """Title of each row's data set: that of its card, and what tells it from others; a folder of the user's by its name."""
    kinds: dict[str, dict[str, Any]] = {}
    kind_of = {}
    for row in results.rows:
        cell = row["cell"]
        data, size = cell["data"], cell["metrics"].get("size", "native")
        what = {
            "root": Path(str(data["root"])).name,
            "model": "one model" if one_model(cell) else "a model per category",
            "held out": f"{cell.get('hold_out') or 0:.0%} of the good pictures held out",
            "limit": f"at most {cell['limit']} pictures of a kind" if cell.get("limit") else "all pictures",
            "size": f"maps of size {size}",
        }
        key = _canonical([data["reader"], data["root"], data.get("options"), what])
        kinds.setdefault(key, {"name": data_title(data["reader"]), **what})
        kind_of[row["hash"]] = key
    titles: dict[str, str] = {}
    for key, what in kinds.items():
        same = [other for other in kinds.values() if other["name"] == what["name"]]
        several = [k for k in what if len({other[k] for other in same}) > 1]
        parts = [what["name"] or what["root"] or "folder", *(what[k] for k in several if k != "root" or what["name"])]
        title = ", ".join(parts)
        titles[key] = f"{title} ({len(titles) + 1})" if title in titles.values() else title
    return {hash: titles[key] for hash, key in kind_of.items()}


def _baseline(methods: Sequence[Row], wanted: str) -> str:
    """Title of the method that is called so, signs and capitals aside; of several the first in the plan."""

    def plain(text: str) -> str:
        return " ".join(re.findall(r"[^\W_]+", text.lower()))

    for key in ("title", "label", "name"):
        for method in methods:
            if plain(method[key]) == plain(wanted or "patchcore"):
                return str(method["title"])
    if wanted:
        raise unknown(
            "method in these results", wanted, dict.fromkeys(m[k] for k in ("title", "name") for m in methods)
        )
    return str(methods[0]["title"])


def _overview(data: Sequence[Row], methods: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """The headline of each method on each data set, and their mean where it has all of them."""
    found = []
    for method in methods:
        values = {}
        for part in data:
            cells = [r["cells"] for table in part["tables"] for r in table["rows"] if r["method"] == method["title"]]
            values[part["title"]] = cells[0].get(metric, {}).get("value") if cells else None
        numbers = [v for v in values.values() if v is not None]
        found.append(
            {
                "method": method["title"],
                "values": values,
                "mean": float(np.mean(numbers)) if numbers and len(numbers) == len(data) else None,
            }
        )
    return found


def _different(values: Iterable[Row | None]) -> list[Row]:
    """Each value once, in the order they come."""
    return list({_canonical(value): value for value in values if value}.values())


def _disturbance_of(cell: Row) -> str:
    held = cell["corruption"]
    return f"{held['name']} {held['grade']}" if held else ""


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """JSON's types alone; numbers to 6 digits behind the point, undefined ones None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(held) for held in value]
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) + 0.0 if math.isfinite(value) else None
    return value
