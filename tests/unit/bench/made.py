"""Results files as `anomalens bench` writes them, with drawn numbers: what the report's tests and nothing else needs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from anomalens import metrics
from anomalens.synthesis import corruptions

Row = dict[str, Any]


def method(name: str, label: str = "", **settings: Any) -> Row:
    return {"name": name, "label": label or name, "settings": settings}


def data(category: str = "bottle", reader: str = "mvtec", root: str = "../data/mvtec") -> Row:
    return {"reader": reader, "root": root, "category": category, "options": {}}


def cell(how: Row, where: Row, seed: int = 0, shots: Any = "full", corruption: tuple[str, int] | None = None) -> Row:
    held = None if corruption is None else {"name": corruption[0], "grade": corruption[1]}
    return {
        "method": how, "data": where, "shots": shots, "seed": seed, "corruption": held, "mode": "shift",
        "metrics": {"image": ["auroc", "ap", "f1max"]}, "fit_on": where["category"],
    }  # fmt: skip


def row(of: Row, figures: dict[str, Any] | None = None, scores: Any = None, labels: Any = None, **more: Any) -> Row:
    """One row. figures: value, or a whole entry, by name; image scores give theirs themselves."""
    scores, labels = ([], []) if scores is None else (list(map(float, scores)), [int(v) for v in labels])
    found = {}
    if scores:
        measured = metrics.image(scores, labels)
        found = {f"image.{name}": entry(m.value, m.floor, m.reason) for name, m in measured.items()}
    for name, given in (figures or {}).items():
        found[name] = given if isinstance(given, dict) else entry(given)
    made = {
        "hash": hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest(), "cell": of, "status": "ok",
        "error": "", "figures": found, "held_out": [], "replicates": {},
        "scores": {"ids": [f"{i:03}.png" for i in range(len(scores))], "labels": labels, "values": scores},
        "counts": {"fit": 60, "good": labels.count(0), "anomalous": labels.count(1), "left_out": 0, "unreadable": 0},
        "seconds": {"fit": 3.0, "predict": 1.0, "predict_cpu": 1.5, "forward": 0.5}, "ratio": 2.0, "memory_mb": 512.0,
        "fitted_mb": 3.0,
    }  # fmt: skip
    return {**made, **more}


def entry(value: float, floor: float | None = None, reason: str = "") -> Row:
    value = None if math.isnan(value) else value
    return {"value": value, "interval": None, "floor": None if value is None else floor, "reason": reason}


def failed(of: Row, error: str) -> Row:
    return {**row(of), "status": "failed", "error": error, "figures": {}}


def write(path: Path, rows: list[Row], **header: Any) -> Path:
    first = {
        "format": 1, "plan": {}, "versions": {"anomalens": "0.1.0", "numpy": "2.0"},
        "machine": {"cpu": "a drawn one", "cores": 2, "system": "Linux"}, **header,
    }  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *rows)), encoding="utf-8")
    return path


METHODS = (("patchcore", 2.6, 40), ("padim", 2.1, 25), ("grnr", 1.8, 120))  # name, distance of the classes, ms
BACKBONES = (("tiny", 0.0, 1.0), ("timm:resnet18@../weights/resnet18_stem_to_layer3.safetensors", 0.5, 3.2))
FRAGILE = {"patchcore": 1.0, "padim": 1.5, "grnr": 0.6}


def study(
    categories: tuple[str, ...] = ("bottle", "cable", "carpet", "screw"),
    seeds: tuple[int, ...] = (0, 1, 2),
    disturbances: tuple[str, ...] = (),
    reader: str = "mvtec",
    pictures: tuple[int, int] = (25, 40),
    **plan: Any,
) -> tuple[list[Row], Row]:
    """Rows of a whole study, and the header's plan: three methods on two backbones."""
    rows = []
    hard = {c: 0.25 * i for i, c in enumerate(categories)}
    good, bad = pictures
    labels = np.repeat([0, 1], pictures)
    for m, (name, apart, ms) in enumerate(METHODS):
        for b, (backbone, gain, cost) in enumerate(BACKBONES):
            for c, category in enumerate(categories):
                for seed in seeds:
                    common = np.random.default_rng([7, c]).normal(size=good + bad)  # of the pictures
                    rng = np.random.default_rng([m, b, c, seed])
                    noise = 0.8 * common + 0.6 * rng.normal(size=good + bad)
                    how = method(
                        name, "" if len(BACKBONES) == 1 else f"{name}, {backbone.partition('@')[0]}", backbone=backbone
                    )
                    where = data(category, reader, f"../data/{reader}")
                    strength = apart + gain - hard[category]
                    seconds = ms * cost * (good + bad) / 1000 * rng.uniform(0.9, 1.1)
                    forward = seconds / (1.1 + 0.3 * m)
                    cost_of = {
                        "seconds": {
                            "fit": 0.1 * ms * cost, "predict": seconds, "predict_cpu": 1.7 * seconds, "forward": forward,
                        },
                        "ratio": 1.1 + 0.3 * m, "memory_mb": 400 + 90 * m + 200 * b, "fitted_mb": 2.0 + 3 * m,
                        "held_out": list(rng.normal(size=15)),
                    }  # fmt: skip
                    pixel = {}
                    for k, (kind, low, span) in enumerate(
                        (
                            ("auroc", 0.5, 0.48),
                            ("ap", 0.04, 0.6),
                            ("f1max", 0.08, 0.55),
                            ("aupro@0.3", 0.15, 0.75),
                            ("aupro@0.05", 0.025, 0.6),
                        )
                    ):
                        value = low + span * (1 - math.exp(-0.55 * strength)) + 0.004 * rng.normal()
                        pixel[f"pixel.{kind}"] = entry(min(value, 0.999), low)
                        shared = np.random.default_rng([9, c, k]).normal(size=200)
                        cost_of.setdefault("replicates", {})[f"pixel.{kind}"] = [
                            round(float(v), 5)
                            for v in np.clip(value + 0.012 * shared + 0.003 * rng.normal(size=200), 0, 1)
                        ]
                    if category == "carpet":
                        pixel = {k: entry(math.nan, None, "there is no anomalous item") for k in pixel}
                        cost_of["replicates"] = {}
                    scores = noise + strength * labels
                    rows.append(row(cell(how, where, seed), pixel, scores, labels, **cost_of))
                    for disturbance in disturbances:
                        fade = {"noise": 0.32, "blur": 0.22, "compression": 0.1, "compound": 0.4}.get(
                            corruptions.card(disturbance).group, 0.16
                        )
                        out = 2 if disturbance == "tilt" and category == "screw" else 0
                        for grade in range(1, 6):
                            weaker = strength * math.exp(-fade * FRAGILE[name] * grade**1.2 / 2)
                            moved = noise + 0.25 * grade * FRAGILE[name] * (1 + 0.4 * rng.normal(size=good + bad))
                            disturbed = (moved + weaker * labels)[: good + bad - out]
                            r = row(
                                cell(how, where, seed, corruption=(disturbance, grade)),
                                {},
                                disturbed,
                                labels[: good + bad - out],
                            )
                            r["counts"]["left_out"] = out
                            rows.append(r)
    return rows, {
        "title": "", "methods": [{"name": n, "label": n} for n, _, _ in METHODS], "backbones": [b for b, _, _ in BACKBONES],
        "data": [{"reader": reader, "root": f"../data/{reader}"}], "shots": ["full"], "seeds": list(seeds), **plan,
    }  # fmt: skip
