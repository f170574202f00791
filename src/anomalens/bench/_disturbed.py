"""The disturbed cells of one data set as curves over grades, and the measures of `robustness` with their intervals.

A curve is averaged over seeds and categories first; ratios, areas and half-lives are those of the mean curve, so that a
category without much to lose does not turn into a huge ratio. Grade 0 is measured on the pictures that are there at every
grade: one that loses its defect from the frame is left out of all of them. Where the benchmark has a row for grade 0, it is
that one; otherwise the clean row counts, for image metrics restricted to the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import metrics
from ..synthesis import corruptions
from . import robustness
from ._resampling import Draws, Row, common, finite_mean, mean_of, of_curve, value_of

GRADES = (1, 2, 3, 4, 5)
RATES = (0.01, 0.05)  # false-alarm rates of the operating point

Curves = dict[str, np.ndarray]  # corruption -> (6,) values at grades 0 to 5


@dataclass
class Disturbed:
    """Disturbed rows beside the clean ones of the same fit."""

    clean: Mapping[tuple[str, str], Mapping[int, Row]]  # (method, category) -> seed -> row
    categories: Sequence[str]
    draws: Draws
    rows: dict[tuple[str, str], dict[tuple[str, int], dict[int, Row]]] = field(default_factory=dict)

    def add(self, method: str, row: Row) -> None:
        held = row["cell"]["corruption"]
        of_pair = self.rows.setdefault((method, row["cell"]["data"]["category"]), {})
        of_pair.setdefault((held["name"], held["grade"]), {})[row["cell"]["seed"]] = row

    def summary(self, titles: Sequence[str], metric: str, baseline: str) -> dict[str, Any]:
        """Curves and measures of one metric for all methods; ratios are against `baseline`, where that has curves."""
        grades: dict[str, set[int]] = {}
        for of_pair in self.rows.values():
            for name, grade in of_pair:
                grades.setdefault(name, set()).add(grade)
        names = [name for name in corruptions.names() if name in grades] + sorted(
            set(grades) - set(corruptions.names())
        )
        whole = [name for name in names if set(GRADES) <= grades[name]]
        seen = [m for m in titles if any(method == m for method, _ in self.rows)]
        curves = {
            (m, c): {name: self.curve(m, c, name, metric) for name in names} for m in seen for c in self.categories
        }
        complete = {
            m: [c for c in self.categories if all(np.isfinite(curves[m, c][name]).all() for name in whole)]
            for m in seen
        }
        compared, shared = common(complete, self.categories) if whole else ([], [])
        base = baseline if baseline in compared else next(iter(compared), "")
        mean = {m: {name: np.mean([curves[m, c][name] for c in shared], axis=0) for name in whole} for m in compared}
        floors = {name: float(np.mean([self.floor(metric, c, name) for c in shared])) for name in whole if shared}
        drawn = {m: self.replicates(m, metric, shared, whole) for m in compared}
        shown: dict[str, Curves] = {}
        for m in seen:
            partial = {name: finite_means(curves[m, c][name] for c in shared or self.categories) for name in names}
            shown[m] = {**partial, **mean.get(m, {})}
        return {
            "metric": metric,
            "baseline": base,
            "categories": shared,
            "not_compared": [m for m in seen if m not in compared],
            "incomplete": [name for name in names if name not in whole],
            "lost": self.lost(names),
            "groups": {name: corruptions.card(name).group for name in names},
            "floors": floors,
            "curves": shown,
            "methods": {
                m: measures(mean[m], floors, mean[base], drawn[m], m != base and drawn[base]) for m in compared
            },
            "operating": {m: self.operating(m) for m in seen},
            "stability": {m: self.stability(m) for m in seen},
        }

    def curve(self, method: str, category: str, name: str, metric: str) -> np.ndarray:
        """(6,) values at grades 0 to 5, mean over seeds; NaN where there is none."""
        of_pair = self.rows.get((method, category), {})
        graded = [of_pair.get((name, grade), {}) for grade in GRADES]
        some = {seed: row for seeds in graded for seed, row in seeds.items()}  # every grade has the same pictures
        before = ((self.before(method, category, name, seed), row) for seed, row in some.items())
        first = [restricted(clean, row, metric) for clean, row in before if clean]
        return np.array(
            [finite_mean(first), *(finite_mean(value_of(row, metric) for row in seeds.values()) for seeds in graded)]
        )

    def before(self, method: str, category: str, name: str, seed: int) -> Row | None:
        """The undisturbed row that goes with a corruption: its own grade 0, or the clean one."""
        own = self.rows.get((method, category), {}).get((name, 0), {})
        return own.get(seed) or self.clean.get((method, category), {}).get(seed)

    def pairs(self, method: str) -> list[tuple[Row, Row]]:
        """Undisturbed and disturbed rows of a method."""
        return [
            (before, row)
            for category in self.categories
            for (name, grade), seeds in self.rows.get((method, category), {}).items()
            for seed, row in seeds.items()
            if grade and (before := self.before(method, category, name, seed))
        ]

    def floor(self, metric: str, category: str, name: str) -> float:
        """Level of chance among the pictures that are left under a corruption; it belongs to them, not to the method."""
        rows = (
            row
            for (_, c), of_pair in self.rows.items()
            for (held, _), seeds in of_pair.items()
            for row in seeds.values()
            if (c, held) == (category, name)
        )
        floors = (row["figures"].get(metric, {}).get("floor") for row in rows)
        return next((float(f) for f in floors if f is not None), math.nan)

    def lost(self, names: Sequence[str]) -> dict[str, int]:
        """Pictures that lose their defect from the frame, all categories together, for corruptions that have some."""
        most: dict[tuple[str, str], int] = {}
        for (_, category), of_pair in self.rows.items():
            for (name, _), seeds in of_pair.items():
                left = max(row["counts"]["left_out"] for row in seeds.values())
                most[name, category] = max(most.get((name, category), 0), left)
        totals = {name: sum(n for (held, _), n in most.items() if held == name) for name in names}
        return {name: total for name, total in totals.items() if total}

    def replicates(self, method: str, metric: str, categories: Sequence[str], names: Sequence[str]) -> Curves | None:
        """Corruption -> (B,) mean over grades of resampled pictures; None for metrics that cannot be resampled."""
        found = {}
        for name in names:
            drawn = mean_of(
                mean_of(self.draws.replicates(row, metric) for row in self.rows[method, c][name, grade].values())
                for c in categories
                for grade in GRADES
            )
            if drawn is None:
                return None
            found[name] = drawn
        return found

    def operating(self, method: str) -> dict[str, Any]:
        """False alarms and recall at the thresholds that clean held-out pictures set, on clean and on disturbed ones."""
        pairs = [(r["held_out"] or clean["held_out"], clean, r) for clean, r in self.pairs(method)]
        pairs = [pair for pair in pairs if pair[0]]
        found: dict[str, Any] = {"held_out": min((len(held) for held, _, _ in pairs), default=0)}
        for rate in RATES:
            sides = {
                "clean": [_point(held, clean, rate) for held, clean, _ in pairs],
                "disturbed": [_point(held, row, rate) for held, _, row in pairs],
            }
            found[f"{rate:g}"] = {
                side: {kind: finite_mean(p[i] for p in points) for i, kind in enumerate(("false_alarms", "recall"))}
                for side, points in sides.items()
            }
        return found

    def stability(self, method: str) -> float:
        """Mean rank correlation of the normal pictures' scores, clean and disturbed; NaN without any."""
        found = []
        for clean, row in self.pairs(method):
            before, after = _normal(clean), _normal(row)
            ids = [id for id in after if id in before]
            if len(ids) > 1:
                found.append(robustness.score_stability([before[i] for i in ids], [after[i] for i in ids]))
        return finite_mean(found)


def measures(
    curves: Curves, floors: Mapping[str, float], base: Curves, drawn: Curves | None, drawn_base: Curves | bool | None
) -> dict[str, Any]:
    """The measures of one method, of each corruption and over all of them.

    drawn, drawn_base: resampled means of the method and of the baseline; without them there is no interval.
    """
    each: dict[str, dict[str, float]] = {}
    for name, c in curves.items():
        curve, reference = [float(v) for v in c], [float(v) for v in base[name]]
        each[name] = {
            "clean": curve[0],
            "score": float(c[1:].mean()),
            "drop": float(np.mean(robustness.absolute_drop(curve[0], c[1:]))),
            "relative_drop": float(np.mean(robustness.relative_drop(curve[0], c[1:], floors[name]))),
            "area": robustness.severity_area(curve),
            "normalised_area": robustness.normalised_severity_area(curve, floors[name]),
            "error_ratio": robustness.corruption_error(curve[1:], reference[1:]),
            "drop_ratio": robustness.corruption_drop(curve, reference),
            "half_life": robustness.half_life(curve, floors[name]),
        }

    def over(key: str, of: Callable[[Any], Any] = np.mean) -> float:
        defined = [held[key] for held in each.values() if not math.isnan(held[key])]
        return float(of(defined)) if defined else math.nan

    values = {name: [float(v) for v in c[1:]] for name, c in curves.items()}
    groups = robustness.group_scores(values)
    grouped = interval = against = None
    if set(groups) & set(robustness.GROUPS):  # compounds alone have no headline
        grouped = robustness.grouped_score(values)
        if drawn:
            own = _headline(drawn)
            interval = np.percentile(own, (2.5, 97.5))
            if isinstance(drawn_base, dict):
                against = np.percentile(own - _headline(drawn_base), (2.5, 97.5))
    return {
        "grouped": grouped,
        "grouped_interval": interval,
        "against_baseline": against,
        "mean": robustness.mean_score(values),
        "groups": groups,
        "clean": over("clean"),
        "drop": over("drop"),
        "relative_drop": over("relative_drop"),
        "area": over("area"),
        "normalised_area": over("normalised_area"),
        "error_ratio": over("error_ratio"),
        "drop_ratio": over("drop_ratio", np.median),  # a baseline that hardly loses anything makes some of them huge
        "half_life": _grade(over("half_life", np.median)),
        "by_corruption": {name: {**held, "half_life": _grade(held["half_life"])} for name, held in each.items()},
    }


def restricted(clean: Row, disturbed: Row, metric: str) -> float:
    """A clean value on the pictures that are left under a corruption; that of all for pixel metrics, which need maps."""
    left, scores = set(disturbed["scores"]["ids"]), clean["scores"]
    kept = [place for place, id in enumerate(scores["ids"]) if id in left]
    if len(kept) == len(scores["ids"]) or not metric.startswith("image.") or of_curve(metric) is None:
        return value_of(clean, metric)
    labels, name = [scores["labels"][place] for place in kept], metric.partition(".")[2]
    if len(set(labels)) < 2:
        return math.nan
    return metrics.image([scores["values"][place] for place in kept], labels, [name], allow_inf=True)[name].value


def finite_means(curves: Iterable[np.ndarray]) -> np.ndarray:
    """Mean at each grade over the curves that have a value there."""
    return np.array([finite_mean(column) for column in np.array(list(curves)).T])


def _headline(drawn: Curves) -> np.ndarray:
    """(B,) grouped scores; the mean of five equal values is that value, so the rule for groups stays in one place."""
    count = len(next(iter(drawn.values())))
    return np.array([robustness.grouped_score({n: [v[b]] * 5 for n, v in drawn.items()}) for b in range(count)])


def _point(held_out: Sequence[float], row: Row, rate: float) -> tuple[float, float]:
    point = robustness.operating_point(held_out, row["scores"]["values"], row["scores"]["labels"], rate)
    return point.false_alarms, point.recall


def _normal(row: Row) -> dict[str, float]:
    """Scores of the normal pictures by id."""
    scores = row["scores"]
    together = zip(scores["ids"], scores["labels"], scores["values"], strict=True)
    return {id: value for id, label, value in together if label == 0}


def _grade(half_life: float) -> dict[str, Any]:
    """A half-life in JSON, which has no infinity."""
    if math.isinf(half_life):
        return {"value": None, "reason": "never"}
    return {"value": half_life, "reason": "undefined" if math.isnan(half_life) else ""}
