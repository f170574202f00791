"""GRNR against the authors' public demo: every stored stage, in both precisions, with numpy and torch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from anomalens.detectors.grnr import GRNR
from anomalens.parts.grids import to_numpy

from ._golden import load, mismatch

GOLDEN = load("grnr")


@cache
def traced(case: str, run: str, precision: str, library: str) -> dict[str, np.ndarray]:
    """All stages of one run; the run '' is the case with its own settings, for tensors that belong to no run."""
    config = GOLDEN.cases[case]
    settings: dict[str, Any] = {"selection": "typical", "ridge": 1e-4, **config, **(config["runs"][run] if run else {})}
    scales = range(len(config["strides"]))
    features = [array(GOLDEN.tensor(case, "", f"feat{i}"), precision, library) for i in scales]
    given = settings["selection"] == "given"
    noisy = settings["noise_scale"] > 0
    detector = GRNR(
        strides=tuple(config["strides"]),
        **{k: settings[k] for k in ("image_size", "k_global", "lam", "neighborhood", "pool", "count_include_pad")},
        **{k: settings[k] for k in ("sigma", "fusion", "ridge")},
        noise=settings["noise_scale"],
        selection="typical" if given else settings["selection"],
    )
    stages = detector.trace(
        features,
        supports=[GOLDEN.tensors[f"{case}.{settings['given']}{i}".lstrip(".")] for i in scales] if given else None,
        noise=[GOLDEN.tensor(case, "", f"noise{i}") for i in scales] if noisy else None,
        cut=settings["cut_cells"],
        crop=settings["crop"],
        everything=True,
    )
    return {name: to_numpy(stage) for name, stage in stages.items()}


def array(stored: np.ndarray, precision: str, library: str) -> Any:
    stored = stored.astype(precision)
    return stored if library == "numpy" else pytest.importorskip("torch").from_numpy(stored)


def inside_cut(case: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Cells of a score grid that border suppression leaves alone."""
    cut = GOLDEN.cases[case]["cut_cells"][int(key[-1])] if key[-1].isdigit() else 0
    mask = np.zeros(shape, bool)
    mask[..., cut : shape[-2] - cut, cut : shape[-1] - cut] = True
    return mask


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("precision", list(GOLDEN.config["tolerances"]))
@pytest.mark.parametrize("name", GOLDEN.expected)
def test_stage_equals_the_demo(name, precision, library):
    case, run, key = GOLDEN.split(name)
    got = traced(case, run, precision, library)[key]
    if GOLDEN.cases[case]["batch"] == 1:
        got = got[0]
    regions = {"inside_cut": inside_cut(case, key, got.shape)} if got.ndim >= 2 else None
    GOLDEN.check(name, got, precision, regions)


@pytest.mark.parametrize("name", [n for n in GOLDEN.expected if not GOLDEN.rule(n, "float64").get("skip")])
def test_a_wrong_stage_is_noticed(name):
    stored = GOLDEN.tensors[name]
    with pytest.raises(AssertionError):
        GOLDEN.check(name, 2 * stored + 1, "float64")


def test_tolerances_by_hand():
    stored = np.array([1.0, 10.0, 100.0])
    off = np.array([1.0, 10.0, 101.0])
    assert mismatch(off, stored, {"mode": "abs", "value": 1.0}) == ""
    assert mismatch(off, stored, {"mode": "abs", "value": 0.9})
    assert mismatch(off, stored, {"mode": "abs", "value": 0.9, "fraction": 0.6}) == ""
    assert mismatch(off, stored, {"mode": "abs", "value": 0.9, "fraction": 0.7})
    assert mismatch(off, stored, {"mode": "abs", "value": 0.0, "index": 1}) == ""
    assert mismatch(off, stored, {"mode": "rel", "value": 0.01}) == ""
    assert mismatch(off[::-1], stored[::-1], {"mode": "rel", "value": 0.009, "index": 0})
    assert mismatch(stored + 0.5, stored, {"mode": "rel", "value": 0.01})
    assert mismatch(stored + 0.5, stored, {"mode": "rel_max", "value": 0.01}) == ""
    assert mismatch(off, stored, {"mode": "abs", "value": 0.9}, np.array([True, True, False])) == ""
    assert mismatch(off, stored, {"mode": "exact"})
    assert mismatch(np.array([3, 1, 2]), np.array([1, 2, 3]), {"mode": "set"}) == ""
    assert mismatch(np.array([3, 1, 1]), np.array([1, 2, 3]), {"mode": "set"})
    assert mismatch(stored * np.nan, stored, {"mode": "abs", "value": 1.0})
    assert mismatch(stored[:2], stored, {"mode": "exact"})
