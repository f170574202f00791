"""Figures of verdicts against counting by hand, and the official item list on a folder of the real shape."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from anomalens import metrics
from anomalens.bench.verdicts import POOLED, boxes_found, compare, official_items
from anomalens.errors import WrongInput

# Test pictures of MVTec AD: good, defective.
COUNTS = {
    "bottle": (20, 63), "cable": (58, 92), "capsule": (23, 109), "carpet": (28, 89), "grid": (21, 57),
    "hazelnut": (40, 70), "leather": (32, 92), "metal_nut": (22, 93), "pill": (26, 141), "screw": (41, 119),
    "tile": (33, 84), "toothbrush": (12, 30), "transistor": (60, 40), "wood": (19, 60), "zipper": (32, 119),
}  # fmt: skip


@dataclass
class Said:
    anomalous: bool | None
    score: float | None = None


def test_figures_by_hand():
    said = [
        Said(True, 0.9),
        Said(True, 0.6),
        Said(False, 0.2),
        Said(False, 0.4),
        Said(None),
        Said(True, 0.7),
        Said(None),
    ]
    labels = [1, 0, 0, 1, 1, 1, 0]
    found = compare(said, labels)[POOLED]
    assert found.count == 7
    assert found.coverage == 5 / 7
    assert found.accuracy == 3 / 7
    assert found.accuracy_answered == 3 / 5
    assert found.recall == found.precision == found.f1 == 2 / 3
    assert found.balanced_accuracy == (2 / 3 + 1 / 2) / 2
    assert found.auroc == 5 / 6  # of six pairs one is the wrong way round
    assert found.ap == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)


def test_each_category_and_all_together():
    found = compare([Said(True), Said(False), Said(True), Said(None)], [1, 0, 0, 1], ["a", "a", "b", "b"])
    assert list(found) == [POOLED, "a", "b"]
    assert (found["a"].accuracy, found["b"].accuracy, found["b"].coverage) == (1.0, 0.0, 0.5)
    assert math.isnan(found["b"].auroc)
    with pytest.raises(WrongInput, match="2 labels"):
        compare([Said(True)], [1, 0])


def test_nothing_answered():
    found = compare([Said(None)] * 3, [1, 0, 1])[POOLED]
    assert (found.count, found.coverage, found.accuracy) == (3, 0.0, 0.0)
    assert math.isnan(found.accuracy_answered)
    assert math.isnan(found.auroc)


def test_official_figures_are_those_of_the_turned_binary_answer():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    answers = [
        None if drop else bool(a) for a, drop in zip(rng.integers(0, 2, 200), rng.random(200) < 0.1, strict=True)
    ]
    found = compare([Said(a, 0.123) for a in answers], labels.tolist(), compat="official")[POOLED]
    kept = [(int(not a), int(not y)) for a, y in zip(answers, labels, strict=True) if a is not None]
    correctness, normal = (np.array(column) for column in zip(*kept, strict=True))
    assert found.count == len(kept)
    assert found.coverage == 1.0
    assert found.accuracy == (correctness == normal).mean()
    tpr, tnr = correctness[normal == 1].mean(), 1 - correctness[normal == 0].mean()
    assert found.auroc == pytest.approx((tpr + tnr) / 2)  # of a binary answer: balanced accuracy
    assert found.balanced_accuracy == pytest.approx(found.auroc)
    assert found.ap == pytest.approx(metrics.get("ap")(correctness.astype(float), normal))
    assert found.recall == pytest.approx(tpr)  # of normal ones


def test_the_official_items(tmp_path):
    for name, (good, bad) in COUNTS.items():
        for kind, count in (("good", good), ("crack", bad - bad // 2), ("hole", bad // 2)):
            (tmp_path / name / "test" / kind).mkdir(parents=True)
            (tmp_path / name / "ground_truth" / kind).mkdir(parents=True)
            for i in range(count):
                (tmp_path / name / "test" / kind / f"{i:03}.png").touch()
                (tmp_path / name / "ground_truth" / kind / f"{i:03}_mask.png").touch()
    items = official_items(tmp_path)
    assert len(items) == 1725
    assert Counter(item["label"] for item in items) == {0: 1258, 1: 467}
    assert {item["good_img_path"] for item in items} == {f"{name}/test/good/000.png" for name in COUNTS}
    assert sum(item["defect_img_path"] == item["good_img_path"] for item in items) == 15
    assert items[0] == {
        "object_type": "bottle", "defect_img_path": "bottle/test/crack/000.png",
        "good_img_path": "bottle/test/good/000.png", "label": 0, "defect_type": "crack",
    }  # fmt: skip
    with pytest.raises(WrongInput, match="MVTec AD"):
        official_items(tmp_path / "bottle")
    with pytest.raises(WrongInput, match="train/good holds no picture to compare with"):
        official_items(tmp_path, clean=True)
    for name in COUNTS:
        (tmp_path / name / "train" / "good").mkdir(parents=True)
        (tmp_path / name / "train" / "good" / "007.png").touch()
    clean = official_items(tmp_path, clean=True)
    assert [{**item, "good_img_path": ""} for item in clean] == [{**item, "good_img_path": ""} for item in items]
    assert {item["good_img_path"] for item in clean} == {f"{name}/train/good/007.png" for name in COUNTS}
    assert not any(item["defect_img_path"] == item["good_img_path"] for item in clean)


def test_boxes_that_meet_defects():
    mask = np.zeros((100, 100), bool)
    mask[10:30, 10:30] = True
    mask[60:80, 50:90] = True
    assert boxes_found([(10, 10, 30, 30), (50, 60, 90, 80)], mask) == (2, 2)
    assert boxes_found([(10, 10, 30, 30), (12, 10, 30, 30)], mask) == (1, 2)  # both mean the same
    assert boxes_found([(10, 10, 30, 49)], mask) == (1, 2)  # 400 of 780
    assert boxes_found([(10, 10, 30, 51)], mask) == (0, 2)  # 400 of 820
    assert boxes_found([], mask) == (0, 2)
    assert boxes_found([(0, 0, 5, 5)], np.zeros((10, 10), bool)) == (0, 0)
