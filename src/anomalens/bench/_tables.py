"""The rows of one data set as tables: the means, each category, what it costs, and what others published."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from .. import detector, metrics, registry
from ..errors import UnknownName
from ..types import Card, DatasetCard
from . import rad
from ._disturbed import Disturbed
from ._resampling import Draws, Mean, Row, common, holm, mean_of, p_value, value_of

POOLED = "pooled"  # what the benchmark calls the category of all categories together; no mean holds it
LEVEL = 0.05  # of the test against the best method, after Holm's correction
SAME_METRIC = {"aupro": "aupro@0.3", "pro": "aupro@0.3", "max-f1": "f1max", "f1-max": "f1max"}
SAME_METHOD = {"rdpp": "RD++", "rdplusplus": "RD++", "reversedistillation": "RD", "rd4ad": "RD"}


class DataSet:
    """The rows of one data set."""

    def __init__(self, title: str, rows: Sequence[Row], title_of: Mapping[str, str], resamples: int) -> None:
        """title_of: title of the method of each row, by hash."""
        self.title, self.title_of = title, title_of
        self.rows = [row for row in rows if row["status"] == "ok"]
        every = dict.fromkeys(row["cell"]["data"]["category"] for row in rows)
        self.one_model = one_model(rows[0]["cell"])
        self.categories = [c for c in every if not (self.one_model and c == POOLED)]
        self.columns = [*self.categories, *(c for c in every if c not in self.categories)]
        bad = (row for row in rows if row["status"] != "ok")
        self.failed = {(title_of[row["hash"]], row["cell"]["data"]["category"]) for row in bad}
        self.clean: dict[tuple[str, str], dict[int, Row]] = {}  # (method, category) -> seed -> row
        self.draws = Draws(title, self.rows, resamples)
        self.disturbed = Disturbed(self.clean, self.categories, self.draws)
        for row in self.rows:
            method, category = title_of[row["hash"]], row["cell"]["data"]["category"]
            if not row["cell"]["corruption"]:
                self.clean.setdefault((method, category), {})[row["cell"]["seed"]] = row
            elif category in self.categories:
                self.disturbed.add(method, row)

    def summary(self, methods: Sequence[Row], known: Sequence[str], metric: str, baseline: str) -> dict[str, Any]:
        """Everything about this data set; `metric` is the headline, ratios of losses are against `baseline`."""
        here = {self.title_of[row["hash"]] for row in self.rows} | {method for method, _ in self.failed}
        present = [method for method in methods if method["title"] in here]
        titles = [method["title"] for method in present]
        used = [name for name in known if any(name in row["figures"] for row in self.rows)]
        tables = [self.table(name, group, used) for name, group in _groups(present).items()]
        cells = {row["method"]: row["cells"] for table in tables for row in table["rows"]}
        speed = self.speed(titles, {m: (cells[m].get(metric) or {}).get("value") for m in titles})
        reader = self.rows[0]["cell"]["data"]["reader"]
        return {
            "title": self.title,
            "reader": reader,
            "one_model": self.one_model,
            "limit": self.rows[0]["cell"].get("limit"),
            "held_out": self.rows[0]["cell"].get("hold_out") or 0.0,
            "categories": self.categories,
            "of_categories": all_categories(reader),
            "pictures": self.pictures(),
            "tables": tables,
            "by_category": {name: self.by_category(name, titles) for name in used},
            "speed": speed,
            "front": _front(speed),
            "published": _published(reader, present, cells),
            "rad": self.against_rad(present) if reader == "rad" else None,
            "robustness": self.disturbed.summary(titles, metric, baseline) if self.disturbed.rows else None,
        }

    def pictures(self) -> dict[str, int]:
        """Test pictures of all categories, of the method that read most."""
        counts: dict[str, dict[str, int]] = {}
        for (_, category), seeds in self.clean.items():
            for row in seeds.values() if category in self.categories else ():
                held = counts.setdefault(category, {"good": 0, "anomalous": 0})
                for kind in held:
                    held[kind] = max(held[kind], row["counts"][kind])
        return {kind: sum(held[kind] for held in counts.values()) for kind in ("good", "anomalous")}

    # One figure, from cells to a column of the table.

    def values(self, method: str, category: str, metric: str) -> dict[int, float]:
        """Defined values by seed."""
        held = self.clean.get((method, category), {})
        return {seed: v for seed, row in held.items() if math.isfinite(v := value_of(row, metric))}

    def why(self, method: str, category: str, metric: str) -> str:
        """Why there is no value."""
        held = self.clean.get((method, category), {})
        if not held:
            return "failed" if (method, category) in self.failed else "not run"
        return next((r for row in held.values() if (r := row["figures"].get(metric, {}).get("reason"))), "not measured")

    def mean(self, method: str, metric: str, categories: Sequence[str]) -> Mean:
        """One figure of one method over categories in which it is defined."""
        held = {c: self.values(method, c, metric) for c in categories}
        seeds = [s for s in sorted(set().union(*held.values())) if all(s in by_seed for by_seed in held.values())]
        drawn = [
            [self.draws.replicates(self.clean[method, c][seed], metric) for seed in by_seed]
            for c, by_seed in held.items()
        ]
        return Mean(
            float(np.mean([np.mean(list(by_seed.values())) for by_seed in held.values()])),
            {seed: float(np.mean([by_seed[seed] for by_seed in held.values()])) for seed in seeds},
            mean_of(mean_of(of_category) for of_category in drawn),
        )

    def floor(self, metric: str, category: str) -> float:
        """Level of chance in a category; it belongs to the pictures, not to the method."""
        rows = (row for (_, c), seeds in self.clean.items() if c == category for row in seeds.values())
        floors = (row["figures"].get(metric, {}).get("floor") for row in rows)
        return next((float(f) for f in floors if f is not None), math.nan)

    def table(self, group: str, methods: Sequence[Row], used: Sequence[str]) -> dict[str, Any]:
        """The main table of methods that are compared with each other."""
        titles = [method["title"] for method in methods]
        columns = {metric: self.column(metric, titles) for metric in used}
        rows = []
        for title in titles:
            seeds = [len(self.clean.get((title, c), {})) for c in self.categories]
            run = [n for n in seeds if n]
            rows.append(
                {
                    "method": title,
                    "categories": len(run),
                    "seeds": [min(run), max(run)] if run else [0, 0],
                    "cells": {metric: column["cells"][title] for metric, column in columns.items()},
                }
            )
        return {
            "group": group,
            "metrics": [
                {"metric": metric, **{k: v for k, v in column.items() if k != "cells"}}
                for metric, column in columns.items()
            ],
            "rows": rows,
        }

    def column(self, metric: str, titles: Sequence[str]) -> dict[str, Any]:
        """One metric of all methods: means, spreads, intervals and the test against the best."""
        held = {m: [c for c in self.categories if self.values(m, c, metric)] for m in titles}
        compared, shared = common(held, self.categories)
        means = {m: self.mean(m, metric, shared if m in compared else own) for m, own in held.items() if own}
        sign = 1 if _higher_is_better(metric) else -1
        best = max(compared, key=lambda m: sign * means[m].value, default="")
        others = [m for m in compared if m != best]
        tests = {m: p_value(means[best], means[m]) for m in others}
        tested = [m for m in others if tests[m] is not None]
        corrected = dict(zip(tested, holm([tests[m] or 0.0 for m in tested]), strict=True))
        cells = {}
        for m in titles:
            reasons = {c: self.why(m, c, metric) for c in self.categories if c not in held[m]}
            cells[m] = {
                "value": means[m].value if m in means else None,
                "sd": means[m].sd() if m in means else None,
                "interval": means[m].interval() if m in means else None,
                "categories": len(shared) if m in compared else len(held[m]),
                "own": len(held[m]),
                "compared": m in compared,
                "best": m == best,
                "tied": m == best or corrected.get(m, 0) > LEVEL,
                "p": corrected.get(m),
                "reason": "" if m in means else "; ".join(dict.fromkeys(reasons.values())),
                "missing": reasons,
            }
        floors = [self.floor(metric, c) for c in shared]
        return {
            "categories": shared,
            "left_out": [c for c in self.categories if c not in shared and any(c in own for own in held.values())],
            "floor": float(np.mean(floors)) if floors else None,
            "best": best,
            "tested": bool(tested),
            "cells": cells,
        }

    def by_category(self, metric: str, titles: Sequence[str]) -> dict[str, Any]:
        """Methods by categories: mean and standard deviation over seeds, and the place between chance and perfect."""
        floors = {c: self.floor(metric, c) for c in self.columns}
        rows: dict[str, dict[str, Any]] = {}
        for m in titles:
            rows[m] = {}
            for c in self.columns:
                values = list(self.values(m, c, metric).values())
                mean = float(np.mean(values)) if values else math.nan
                rows[m][c] = {
                    "value": mean,
                    "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "seeds": len(values),
                    "above_chance": rad.above_chance(mean, floors[c]),
                    "reason": "" if values else self.why(m, c, metric),
                }
        return {"categories": self.columns, "floors": floors, "rows": rows}

    def speed(self, titles: Sequence[str], accuracy: Mapping[str, float | None]) -> list[dict[str, Any]]:
        """What each method costs on clean pictures: medians over cells, memory the highest."""
        found = []
        for m in titles:
            rows = [row for c in self.categories for row in self.clean.get((m, c), {}).values()]
            seen = [(row, row["counts"]["good"] + row["counts"]["anomalous"]) for row in rows]
            per_picture = _median(row["seconds"]["predict"] / n for row, n in seen if n)
            found.append(
                {
                    "method": m,
                    "accuracy": accuracy[m],
                    "fit_seconds": _median(row["seconds"]["fit"] for row in rows),
                    "ms": 1000 * per_picture,
                    "cpu_ms": 1000 * _median(row["seconds"]["predict_cpu"] / n for row, n in seen if n),
                    "per_second": 1 / per_picture if per_picture > 0 else math.nan,
                    "ratio": _median(row["ratio"] for row in rows),
                    "memory_mb": max(
                        (row["memory_mb"] for row in rows if row["memory_mb"] is not None), default=math.nan
                    ),
                    "fitted_mb": _median(row["fitted_mb"] for row in rows),
                }
            )
        return found

    def against_rad(self, methods: Sequence[Row]) -> list[dict[str, Any]]:
        """Our figures beside RAD's published ones, with the verdict of its bands: reproduced, not, or None for no rule."""
        found = []
        for method in methods:
            theirs = _rad_method(method["name"])
            if not theirs or (method["shots"] != "full" and theirs not in rad.ZERO_SHOT):
                continue
            for level, categories in rad.PUBLISHED.items():
                for metric in categories["mean"]:
                    name = f"{level}.{metric}"
                    ours = {
                        rad.folder_of(c): float(np.mean(list(v.values())))
                        for c in self.categories
                        if (v := self.values(method["title"], c, name))
                    }
                    if set(rad.TEST_ANOMALOUS) <= set(ours):
                        ours["mean"] = float(np.mean([ours[c] for c in rad.TEST_ANOMALOUS]))
                    found += [
                        {
                            "method": method["title"],
                            "published_as": theirs,
                            "metric": name,
                            "category": category,
                            "ours": 100 * value,
                            "theirs": (number := rad.published(level, category, metric)[theirs]),
                            "difference": 100 * value - number,
                            "reproduced": rad.reproduced(level, category, metric, theirs, 100 * value),
                        }
                        for category, value in ours.items()
                        if category in categories
                    ]
        return found


def one_model(cell: Row) -> bool:
    """Whether the fit behind a cell serves several categories."""
    return bool(cell["fit_on"] != cell["data"]["category"])


def shots_words(shots: Any) -> str:
    """Normal pictures given to fit, as people say it: full-shot, 4-shot, zero-shot."""
    return "zero-shot" if shots == 0 else f"{shots}-shot"


def _groups(methods: Sequence[Row]) -> dict[str, list[Row]]:
    """Methods that had the same number of normal pictures; zero-shot ones join where there is but one other number."""
    numbers = list(dict.fromkeys(m["shots"] for m in methods if m["shots"] != 0))
    one_mode = len({m["mode"] for m in methods}) == 1
    found: dict[str, list[Row]] = {}
    for method in sorted(methods, key=lambda m: (m["shots"] != "full", -m["shots"] if m["shots"] != "full" else 0)):
        shots = numbers[0] if method["shots"] == 0 and len(numbers) == 1 else method["shots"]
        found.setdefault(shots_words(shots) + ("" if one_mode else f", {method['mode']}"), []).append(method)
    return found


def _front(speed: Sequence[Row]) -> list[str]:
    """Methods that no other one beats in accuracy without being slower, fastest first."""
    known = [s for s in speed if s["accuracy"] is not None and not math.isnan(s["per_second"])]
    front: list[str] = []
    highest = -math.inf
    for s in sorted(known, key=lambda s: (-s["per_second"], -s["accuracy"])):
        if s["accuracy"] > highest:
            highest = s["accuracy"]
            front.append(s["method"])
    return front


def _published(reader: str, methods: Sequence[Row], cells: Mapping[str, Row]) -> list[dict[str, Any]]:
    """What the cards of the methods report for this data set, beside ours."""
    found = []
    for method in methods:
        described = card_of(method["name"])
        for reported in described.reported if described else ():
            metric = _metric_of(reported.metric)
            cell = cells[method["title"]].get(metric)
            if reported.dataset != reader or cell is None or not _same_shots(reported.setting, method["shots"]):
                continue
            ours = None if cell["value"] is None else 100 * cell["value"]
            theirs = reported.value if reported.value > 1.5 else 100 * reported.value
            found.append(
                {
                    "method": method["title"],
                    "metric": metric,
                    "setting": reported.setting,
                    "ours": ours,
                    "theirs": theirs,
                    "difference": None if ours is None else ours - theirs,
                    "categories": cell["categories"],
                    "source": reported.source,
                    "selection": reported.selection,
                }
            )
    return found


def _metric_of(name: str) -> str:
    """image_auroc -> image.auroc; region metrics are those of pixels, at the usual limit of 0.3."""
    level, _, rest = name.lower().replace("_", "-").partition("-")
    level, rest = (level, rest) if level in ("image", "pixel") else ("pixel", name.lower().replace("_", "-"))
    return f"{level}.{SAME_METRIC.get(rest, rest)}"


def _same_shots(setting: str, shots: Any) -> bool:
    """Whether a published setting, such as `full-shot, WideResNet50`, had as many normal pictures."""
    number = re.search(r"(\d+|full|few|zero)-shot", setting.lower())
    if not number:
        return True
    word = number[1]
    return (
        shots == word
        or (word == "zero" and shots == 0)
        or (word == "few" and shots not in ("full", 0))
        or word == str(shots)
    )


def _rad_method(name: str) -> str:
    plain = re.sub(r"[^a-z0-9+]", "", name.lower())
    known = {re.sub(r"[^a-z0-9+]", "", method.lower()): method for method in rad.METHODS}
    return known.get(plain) or SAME_METHOD.get(plain, "")


@cache
def all_categories(reader: str) -> int | None:
    """How many categories a data set has; None where that is the user's own matter."""
    described = _data_card(reader)
    return len(described.categories) or None if described else None


@cache
def data_title(reader: str) -> str:
    """What people call a data set; empty for a folder of the user's own."""
    described = _data_card(reader)
    return "" if reader == "folder" else described.title if described else reader


@cache
def _data_card(reader: str) -> DatasetCard | None:
    try:
        found: DatasetCard = registry.literal_card("datasets", "dataset", reader, "DatasetCard")
    except UnknownName:
        return None  # somebody's own reader
    return found


@cache
def _higher_is_better(metric: str) -> bool:
    try:
        return metrics.card(metric.partition(".")[2].partition("@")[0]).direction == "higher is better"
    except UnknownName:
        return True


@cache
def card_of(name: str) -> Card | None:
    try:
        return detector.card(name)
    except UnknownName:
        return None  # somebody's own method


def _median(values: Iterable[float | None]) -> float:
    found = [value for value in values if value is not None]
    return float(np.median(found)) if found else math.nan
