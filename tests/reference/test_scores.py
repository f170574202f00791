"""Stored scores on a small input: a change of numbers is a decision, not an accident.

After a change that is meant: python -m tests.reference.test_scores  writes the file anew.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anomalens as al
from anomalens.detector import setting_types
from anomalens.registry import module
from anomalens.types import Sample, View
from tests.support.oracle import oracle_url
from tests.support.rules import BRIGHT, rules_against

FILE = Path(__file__).with_name("scores.json")
RELATIVE = 2e-3  # other CPUs and versions of numpy and ONNX Runtime round differently
TRAINED = 5e-2  # and rounding grows while a gradient descends


def picture(index: int) -> np.ndarray:
    """(64, 64, 3) uint8: a grid of soft noise; from index 100 on with a bright square."""
    rng = np.random.default_rng(index)
    values = np.kron(rng.integers(90, 140, (16, 16, 3)), np.ones((4, 4, 1)))
    if index >= 100:
        values[20:32, 36:48] += 70
    return values.astype(np.uint8)


def sample(index: int, lights: bool = False) -> Sample:
    """One picture; or three lights of one thing, only the last of which shows the square."""
    if not lights:
        return Sample(str(index), {"image": View("image", partial(picture, index))})
    shown = (index % 100, 50 + index % 100, index)
    return Sample(str(index), {f"light_{k}": View(f"light_{k}", partial(picture, i)) for k, i in enumerate(shown)})


def scores(name: str) -> list[float]:
    cls = module("detectors", "detector", name).DETECTOR
    hints = setting_types(cls)
    settings: dict[str, Any] = {"inner": al.create("patchcore", image_size=64)} if "inner" in hints else {}
    if "image_size" in hints:
        settings["image_size"] = 160 if al.card(name).trains == "no" else 64
    if str(getattr(cls, "backbone", "")).startswith("clip:"):
        settings |= {
            k: v for k, v in {"backbone": "clip:tiny?weights=random", "adapter": "random"}.items() if k in hints
        }
    if "base_url" in hints:
        settings |= {"base_url": oracle_url(), "model": "oracle", "cache": ""}
    if "parser_settings" in hints:
        settings |= rules_against(bright=BRIGHT)
    if "steps" in hints:  # of detectors that train
        settings["steps"] = 10
    lights = "image" not in al.card(name).needs
    detector = al.create(name, **settings).fit([sample(i, lights) for i in range(6)])
    return [p.score for p in detector.predict([sample(i, lights) for i in (10, 11, 100, 101)])]


@pytest.mark.parametrize("name", al.names())
def test_scores_are_those_stored(name):
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    assert name in stored, f"{name} has no stored scores: python -m tests.reference.test_scores"
    allowed = TRAINED if al.card(name).trains == "gradient" else RELATIVE
    assert scores(name) == pytest.approx(stored[name], rel=allowed)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: scores(name) for name in al.names()}, indent=1) + "\n", encoding="utf-8")
