"""The two calls, the grid policy, labels and averages."""

import numpy as np
import pytest

from anomalens import metrics
from anomalens.errors import UnknownName, WrongInput
from anomalens.metrics import PixelEvalPolicy, UndefinedMetric, average, image, image_labels, pixel
from anomalens.metrics._pixels import align, resize_map, resize_truth

from . import slow
from .drawn import pictures


def test_names_titles_and_misspelt_names():
    assert metrics.get("ap") is metrics.get("average-precision") is metrics.get("Average_Precision")
    assert metrics.card("max-f1").title == "max-F1"
    with pytest.raises(UnknownName, match="auroc"):
        metrics.get("aurok")


def test_image_says_all_of_a_metric():
    found = image([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 0, 1], {"auroc": {}, "recall-at-fpr": {"fpr": 0.4}})
    assert list(found) == ["auroc", "recall-at-fpr"]
    assert found["auroc"].value == pytest.approx(5 / 6)
    assert (found["auroc"].n_pos, found["auroc"].n_neg) == (2, 3)
    assert found["recall-at-fpr"].value == 1
    assert found["recall-at-fpr"].threshold == 3
    assert found["recall-at-fpr"].settings == {"fpr": 0.4}
    assert list(image([1.0, 2.0], [0, 1])) == ["auroc", "ap", "f1max"]


def test_image_gives_the_reason_of_nan():
    found = image([1.0, 2.0], [0, 0])
    assert all(np.isnan([m.value, m.threshold, m.floor]).all() and m.reason for m in found.values())


def test_pixel_is_the_plain_functions_from_one_ranking():
    maps, masks = pictures(0, levels=15)
    which = ["auroc", "ap", "f1max", "iou", "aupro", "pro-rad", "pro-rd", "fpr-at-recall", "recall-at-fpr"]
    found = pixel(maps, masks, which={**{name: {} for name in which}, "f1-at-threshold": {"threshold": 3.0}})
    for name in which:
        key = "aupro@0.3" if name == "aupro" else name
        assert found[key].value == pytest.approx(metrics.get(name)(maps, masks), abs=1e-12)
    assert found["f1-at-threshold"].value == metrics.get("f1-at-threshold")(maps, masks, 3.0)
    assert found["aupro@0.05"].value == pytest.approx(slow.aupro(maps, masks, 0.05), abs=1e-12)
    assert found["aupro@0.05"].settings["limit"] == 0.05
    assert found["f1max"].threshold == slow.best_f1(maps.ravel(), masks.ravel())[1]
    assert found["auroc"].n_pos == masks.sum()
    assert found["auroc"].settings["size"] == "native"


def test_pixel_without_pictures_is_undefined():
    assert all(np.isnan(m.value) and m.reason for m in pixel([], []).values())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: image([1.0], [1], "auroc"), r"\['auroc'\]"),
        (lambda: image([1.0], [1], ["aupro"]), "level image"),
        (lambda: pixel([np.eye(2)], [np.eye(2)], which=["spro"]), "needs more than masks"),
        (lambda: pixel([np.eye(2)], [np.eye(2)], variant="fast"), "'exact' or 'stream'"),
        (lambda: pixel([np.eye(2)], []), "1 maps and 0 masks"),
        (lambda: pixel([np.ones(3)], [None]), "map 0 has shape"),
        (lambda: pixel([np.eye(2)], [np.ones(2)]), "mask 0 has shape"),
        (lambda: pixel([np.eye(2), np.eye(2) * np.nan], [None, None]), "map 1 holds NaN"),
        (lambda: pixel([np.eye(2)], [np.eye(2) * 128]), "mask > 127"),
        (lambda: pixel([np.eye(2), np.eye(2)], [np.eye(4), None]), "native size"),
        (lambda: PixelEvalPolicy(size="256"), "size"),
        (lambda: PixelEvalPolicy(size=(3, 4, 5)), "size"),
        (lambda: PixelEvalPolicy(mask_rule="half"), "mask_rule"),
        (lambda: PixelEvalPolicy(map_interp="cubic"), "map_interp"),
        (lambda: PixelEvalPolicy(crop=0), "crop"),
    ],
)
def test_wrong_input(call, said):
    with pytest.raises(WrongInput, match=said):
        call()


# Policy


def test_native_brings_the_map_to_the_mask():
    rng = np.random.default_rng(0)
    small, mask = rng.normal(size=(4, 5)).astype(np.float32), rng.random((8, 10)) < 0.3
    ((scores, truth),) = align([small], [mask])[0]
    assert scores.shape == truth.shape == (8, 10)
    np.testing.assert_array_equal(truth, mask)


def test_resize_map_is_bilinear_with_half_pixel_centres():
    values = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    for size in ((14, 13), (3, 20), (5, 5)):
        found = resize_map(values, size)
        for y in range(size[0]):
            for x in range(size[1]):
                place = []
                for at, new, old in ((y, size[0], 7), (x, size[1], 9)):
                    centre = min(max((at + 0.5) * old / new - 0.5, 0), old - 1)
                    place.append((int(centre), min(int(centre) + 1, old - 1), centre - int(centre)))
                (y0, y1, v), (x0, x1, u) = place
                top, bottom = ((1 - u) * values[row, x0] + u * values[row, x1] for row in (y0, y1))
                assert found[y, x] == pytest.approx((1 - v) * top + v * bottom, abs=1e-6)


@pytest.mark.parametrize("size", [(3, 4), (5, 2), (12, 16), (7, 9)])
def test_mask_rules_are_the_covered_area(size):
    """Reference: every pixel is repeated until source and target grids are both whole."""
    truth = np.random.default_rng(1).choice([0, 1, 255], (6, 8), p=[0.5, 0.3, 0.2]).astype(np.uint8)
    fine = truth.repeat(size[0], 0).repeat(size[1], 1).reshape(size[0], 6, size[1], 8)
    anomalous, ignored = (fine == 1).mean(axis=(1, 3)), (fine == 255).mean(axis=(1, 3))
    for rule, bar in (("area>0", 0), ("area>0.5", 0.5)):
        expected = np.where(anomalous > bar, 1, np.where(ignored > bar, 255, 0))
        np.testing.assert_array_equal(resize_truth(truth, size, PixelEvalPolicy(size, mask_rule=rule)), expected)
    nearest = resize_truth(truth, size, PixelEvalPolicy(size, mask_rule="nearest"))
    for y in range(size[0]):
        for x in range(size[1]):
            assert nearest[y, x] == truth[int((y + 0.5) * 6 / size[0]), int((x + 0.5) * 8 / size[1])]


def test_the_rules_keep_or_lose_a_thin_defect():
    mask = np.zeros((64, 64), bool)
    mask[:, 20] = True
    maps, policies = [np.zeros((64, 64))], {r: PixelEvalPolicy(16, mask_rule=r) for r in ("area>0", "area>0.5")}
    found = {rule: pixel(maps, [mask], policy, which=["ap"])["ap"] for rule, policy in policies.items()}
    assert found["area>0"].n_pos == 16
    assert found["area>0.5"].n_pos == 0
    assert found["area>0"].settings["mask_rule"] == "area>0"


def test_cropping_counts_what_it_loses():
    mask = np.zeros((16, 16), bool)
    mask[0, :4] = True  # cut off
    mask[8, 8:12] = True
    maps = np.random.default_rng(0).normal(size=(1, 16, 16))
    found = pixel(maps, [mask], PixelEvalPolicy(crop=0.875), which=["auroc"])["auroc"]
    assert found.settings["crop_lost_positive_fraction"] == 0.5
    assert found.n_pos + found.n_neg == 14 * 14
    assert found.value == pixel(maps[:, 1:15, 1:15], [mask[1:15, 1:15]], which=["auroc"])["auroc"].value
    assert pixel(maps, [mask])["auroc"].settings["crop_lost_positive_fraction"] == 0


# Labels and averages


def test_image_labels():
    masks = [None, np.zeros((2, 2), bool), np.eye(2), np.full((2, 2), 255)]
    assert image_labels(masks).tolist() == [False, False, True, False]
    assert image_labels(masks, [0, None, 1, None]).tolist() == [False, False, True, False]
    with pytest.warns(UserWarning, match=r"2 pictures, first at positions \[1, 2\]"):
        assert image_labels(masks, [0, 1, 0, 0]).tolist() == [False, True, False, False]
    with pytest.raises(WrongInput, match="one of each"):
        image_labels(masks, [0])


def test_average_over_categories():
    assert average({"bottle": 0.5, "cable": 1.0}) == 0.75
    with pytest.warns(UndefinedMetric, match="cable"):
        assert average({"bottle": 0.5, "cable": np.nan}) == 0.5
    with pytest.raises(WrongInput, match="cable"):
        average({"bottle": 0.5, "cable": np.nan}, nan_policy="raise")
    with pytest.warns(UndefinedMetric):
        assert np.isnan(average({"cable": np.nan}))
