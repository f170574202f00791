"""Stored scores on a small input: a change of numbers is a decision, not an accident.

After a change that is meant: python tests/reference/test_scores.py  writes the file anew.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import anomalens as al
from anomalens.detector import setting_types
from anomalens.registry import module
from anomalens.types import Sample, View

FILE = Path(__file__).with_name("scores.json")
RELATIVE = 2e-3  # other CPUs and versions of numpy and ONNX Runtime round differently


def picture(index: int) -> np.ndarray:
    """(64, 64, 3) uint8: a grid of soft noise; from index 100 on with a bright square."""
    rng = np.random.default_rng(index)
    values = np.kron(rng.integers(90, 140, (16, 16, 3)), np.ones((4, 4, 1)))
    if index >= 100:
        values[20:32, 36:48] += 70
    return values.astype(np.uint8)


def sample(index: int) -> Sample:
    return Sample(str(index), {"image": View("image", partial(picture, index))})


def scores(name: str) -> list[float]:
    hints = setting_types(module("detectors", "detector", name).DETECTOR)
    settings = {"inner": al.create("patchcore", image_size=64)} if "inner" in hints else {}
    if "image_size" in hints:
        settings["image_size"] = 160 if al.card(name).trains == "no" else 64
    detector = al.create(name, **settings).fit([sample(i) for i in range(6)])
    return [p.score for p in detector.predict([sample(i) for i in (10, 11, 100, 101)])]


@pytest.mark.parametrize("name", al.names())
def test_scores_are_those_stored(name):
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    assert name in stored, f"{name} has no stored scores: python tests/reference/test_scores.py"
    assert scores(name) == pytest.approx(stored[name], rel=RELATIVE)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: scores(name) for name in al.names()}, indent=1) + "\n", encoding="utf-8")
