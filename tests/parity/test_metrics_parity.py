"""Every stored value of the benchmark authors' evaluation code; what is compared is listed by golden.json itself.

Tolerances are those of the folder's README: the official false-positive rate is single precision.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from anomalens.metrics import average, get
from anomalens.metrics._pixels import align, pixel_curve
from anomalens.metrics.aupro import aupro
from anomalens.metrics.spro import saturation_area, spro_by_kind, spro_by_type

FOLDER = Path(os.environ.get("ANOMALENS_PARITY") or Path(__file__).parents[2] / "../shared/parity") / "metrics"

AUPRO, CURVE, ANOMALIB, AREA, ADAPTIVE, SCORES = 1e-7, 1e-6, 2e-6, 1e-9, 1e-3, 1e-9


@lru_cache(maxsize=1)
def stored() -> tuple[dict, dict]:
    if not (FOLDER / "golden.json").exists():
        return {}, {}
    return json.loads((FOLDER / "golden.json").read_text()), load_file(FOLDER / "golden.safetensors")


pytestmark = pytest.mark.skipif(not stored()[0], reason=f"no stored metrics in {FOLDER} (set ANOMALENS_PARITY)")


def cases(part: str):
    return pytest.mark.parametrize("case", stored()[0].get(part, {}))


def inputs(case: str) -> tuple[dict, np.ndarray, np.ndarray]:
    return stored()[0]["aupro"][case], stored()[1][f"{case}.maps"], stored()[1][f"{case}.masks"]


@cases("aupro")
def test_aupro(case):
    values, maps, masks = inputs(case)
    for connectivity in (8, 4):
        pooled = pixel_curve(align(maps, masks)[0], regions=True, connectivity=connectivity)
        assert pooled.regions == values[f"regions_{connectivity}"]
        for limit, expected in values[f"aupro_{connectivity}"].items():
            found = aupro(maps, masks, float(limit), connectivity=connectivity)
            assert found == pytest.approx(expected, abs=AUPRO), (limit, connectivity)
    for limit, expected in values["aupro_anomalib_float32"].items():
        assert aupro(maps, masks, float(limit)) == pytest.approx(expected, abs=ANOMALIB)


@cases("aupro")
def test_curve(case):
    """The official curve has a point per distinct score; ours has those of anomalous pixels and is flat between."""
    _, maps, masks = inputs(case)
    fpr, pro = stored()[1][f"{case}.fpr"][1:], stored()[1][f"{case}.pro"][1:]
    scores = np.unique(maps)[::-1]
    curve = pixel_curve(align(maps, masks)[0], regions=True)
    place = np.searchsorted(-scores, -curve.thresholds)
    np.testing.assert_allclose(curve.fp / curve.negatives, fpr[place], atol=CURVE)
    np.testing.assert_allclose(curve.overlap, pro[place], atol=CURVE)
    held = np.searchsorted(-curve.thresholds, -scores, side="right") - 1  # the last anomalous score at or above each
    np.testing.assert_allclose(np.append(curve.overlap, 0)[held], pro[: len(scores)], atol=CURVE)


@cases("aupro")
def test_pixel_and_image_values(case):
    values, maps, masks = inputs(case)
    for name, key in (("auroc", "pixel_auroc"), ("ap", "pixel_ap"), ("f1max", "pixel_f1max")):
        assert get(name)(maps, masks) == pytest.approx(values[key], abs=SCORES)
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    for name, key in (("auroc", "image_auroc_halfcredit"), ("ap", "image_ap")):
        if key in values:
            assert get(name)(scores, labels) == pytest.approx(values[key], abs=SCORES)


def test_ties_of_pictures_count_one_half():
    ties = stored()[0]["image_auroc_ties"]
    scores, labels = ties["good"] + ties["bad"], [0] * len(ties["good"]) + [1] * len(ties["bad"])
    assert get("auroc")(scores, labels) == pytest.approx(ties["half_credit"], abs=SCORES)
    assert get("auroc")(scores, labels) == pytest.approx(ties["mvtec_ad_script"], abs=SCORES)


def loco(case: str) -> tuple[dict, list[np.ndarray], list[np.ndarray | None]]:
    values, arrays = stored()[0]["loco"][case], stored()[1]
    names = [f"{n:02d}" for n in range(len(values["kinds"]))]
    return values, [arrays[f"{case}.map{n}"] for n in names], [arrays.get(f"{case}.channels{n}") for n in names]


@cases("loco")
def test_saturation_areas(case):
    values, _, channels = loco(case)
    for number, expected in values["saturation_areas"].items():
        stack = channels[int(number)]
        found = [saturation_area(int((c > 0).sum()), int(c.max()), values["defects_config"]) for c in stack]
        assert found == expected


@cases("loco")
def test_spro_by_kind(case):
    values, maps, channels = loco(case)
    exact, adaptive = values["all_thresholds"], values["adaptive_default"]
    limits = {limit: float(limit) for limit in exact["mean"]}
    found = spro_by_kind(maps, channels, values["kinds"], values["defects_config"], tuple(limits.values()))
    assert {*found, "mean"} == set(exact)
    for limit, number in limits.items():
        ours = {kind: by_limit[number].value for kind, by_limit in found.items()}
        ours["mean"] = average(ours)
        for kind, value in ours.items():
            assert value == pytest.approx(exact[kind][limit], abs=AREA)
            if isinstance(adaptive, dict):
                assert value == pytest.approx(adaptive[kind][limit], abs=ADAPTIVE)


@cases("loco")
def test_spro_by_type(case):
    values, maps, channels = loco(case)
    expected = values["all_thresholds_per_defect_type"]
    limits = tuple({float(limit) for by_limit in expected.values() for limit in by_limit})
    found = spro_by_type(maps, channels, values["defects_config"], limits)
    for kind, by_limit in expected.items():
        for limit, value in by_limit.items():
            assert found[kind][float(limit)].value == pytest.approx(value, abs=AREA)


@cases("loco")
def test_classification_where_no_good_and_bad_picture_tie(case):
    values, maps, _ = loco(case)
    expected = values["classification"]["auc_roc"]
    for kind in set(values["kinds"]) - {"good"}:
        top = {k: [m.max() for m, k_ in zip(maps, values["kinds"], strict=True) if k_ == k] for k in ("good", kind)}
        if set(top["good"]) & set(top[kind]):
            continue
        found = get("auroc")(top["good"] + top[kind], [0] * len(top["good"]) + [1] * len(top[kind]))
        assert found == pytest.approx(expected[kind], abs=SCORES)
