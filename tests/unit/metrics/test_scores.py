"""Metrics of scores and labels: against slow references, scikit-learn, and their own laws."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalens.errors import WrongInput
from anomalens.metrics import UndefinedMetric, get, image
from anomalens.metrics.f1_at_threshold import f1_at_threshold, threshold_from_normals

from . import slow

CURVES = ("auroc", "ap", "f1max", "iou", "fpr-at-recall", "recall-at-fpr")


def value(name, scores, labels, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetric)
        return get(name)(scores, labels, **settings)


@st.composite
def items(draw):
    """Few distinct scores, so that ties are common; both classes are there."""
    labels = draw(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda x: 0 < sum(x) < len(x)))
    scores = draw(st.lists(st.integers(-6, 6), min_size=len(labels), max_size=len(labels)))
    return np.array(scores, np.float64), np.array(labels, int)


@settings(max_examples=150)
@given(items())
def test_against_the_definitions(both):
    scores, labels = both
    assert value("auroc", scores, labels) == pytest.approx(slow.auroc(scores, labels), abs=1e-12)
    assert value("ap", scores, labels) == pytest.approx(slow.average_precision(scores, labels), abs=1e-12)
    assert value("iou", scores, labels) == pytest.approx(slow.best_iou(scores, labels), abs=1e-12)
    best, at = slow.best_f1(scores, labels)
    found = image(scores, labels, ["f1max"])["f1max"]
    assert found.value == pytest.approx(best, abs=1e-12)
    assert found.threshold == at  # the highest of equally good thresholds
    for share in (0.01, 0.05, 0.3, 0.5, 0.95, 1.0):
        expected = slow.fpr_at_recall(scores, labels, share)
        assert value("fpr-at-recall", scores, labels, recall=share) == pytest.approx(expected, abs=1e-12)
        expected = slow.recall_at_fpr(scores, labels, share)
        assert value("recall-at-fpr", scores, labels, fpr=share) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(items(), st.randoms())
def test_rising_transforms_and_order_change_nothing(both, random):
    scores, labels = both
    order = list(range(len(labels)))
    random.shuffle(order)
    for name in CURVES:
        plain = value(name, scores, labels)
        assert value(name, np.exp(scores / 3) * 7 - 2, labels) == plain
        assert value(name, scores**3 + scores, labels) == plain
        assert value(name, scores[order], labels[order]) == plain


@settings(max_examples=60)
@given(items())
def test_swapped_labels_and_swapped_scores_mirror_the_auroc(both):
    scores, labels = both
    assert value("auroc", scores, 1 - labels) == pytest.approx(1 - value("auroc", scores, labels), abs=1e-12)
    assert value("auroc", -scores, labels) == pytest.approx(1 - value("auroc", scores, labels), abs=1e-12)


@settings(max_examples=60)
@given(items())
def test_iou_is_f1_over_two_minus_f1_at_the_same_threshold(both):
    found = image(*both, ["f1max"])["f1max"]
    from anomalens.metrics._curves import rank
    from anomalens.metrics.iou import of_curve

    iou, threshold = of_curve(rank(*both))
    assert iou == pytest.approx(found.value / (2 - found.value), abs=1e-12)
    assert threshold == found.threshold


@pytest.mark.parametrize("levels", [0, 5, 50])
def test_against_scikit_learn(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(levels)
    labels = rng.random(4000) < 0.07
    scores = (rng.normal(size=4000) + labels).astype(np.float32)
    scores = np.round(scores * levels) if levels else scores
    assert value("auroc", scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-9)
    assert value("ap", scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-9)
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-30))
    assert value("f1max", scores, labels) == pytest.approx(best, abs=1e-9)


def test_constant_scores_reach_the_floor():
    labels = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    for measured in image(np.full(10, 3.0), labels, [n for n in CURVES if n != "iou"]).values():
        assert measured.value == pytest.approx(measured.floor, abs=1e-15)
    assert value("auroc", np.zeros(10), labels) == 0.5
    assert value("ap", np.zeros(10), labels) == 0.2
    assert value("f1max", np.zeros(10), labels) == pytest.approx(2 * 0.2 / 1.2)
    assert value("iou", np.zeros(10), labels) == pytest.approx(0.2)


@pytest.mark.parametrize("name", CURVES)
def test_a_missing_class_is_nan_with_a_warning(name):
    with pytest.warns(UndefinedMetric, match="no anomalous item"):
        assert np.isnan(get(name)(np.arange(4.0), np.zeros(4)))
    if name in ("auroc", "fpr-at-recall", "recall-at-fpr"):
        with pytest.warns(UndefinedMetric, match="no normal item"):
            assert np.isnan(get(name)(np.arange(4.0), np.ones(4)))
    else:
        assert get(name)(np.arange(4.0), np.ones(4)) == 1


def test_label_255_is_left_out():
    scores, labels = np.array([3.0, 9.0, 1.0, 2.0]), np.array([1, 255, 0, 255])
    assert get("auroc")(scores, labels) == 1
    measured = image(scores, labels, ["ap"])["ap"]
    assert (measured.n_pos, measured.n_neg) == (1, 1)


def test_double_precision_is_not_cut_to_single():
    assert get("auroc")(np.array([1.0, 1.0 + 1e-12]), [0, 1]) == 1
    assert get("auroc")(np.array([2**24, 2**24 + 1]), [0, 1]) == 1  # whole numbers too


def test_infinite_scores():
    scores, labels = [0.0, np.inf, 1.0, np.inf], [0, 1, 0, 0]
    with pytest.raises(WrongInput, match=r"positions \[1, 3\]"):
        get("auroc")(scores, labels)
    assert get("auroc")(scores, labels, allow_inf=True) == pytest.approx(2.5 / 3)
    for bad in (np.nan, -np.inf):
        with pytest.raises(WrongInput, match="NaN or infinite"):
            get("auroc")([0.0, bad], [0, 1], allow_inf=True)


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([1.0, 2.0], [1], "one label per score"),
        ([1.0, 2.0], [1, 2], "1 is anomalous"),
        ([1.0, 2.0], [0.0, 0.5], "1 is anomalous"),
        (["a", "b"], [0, 1], "real numbers"),
    ],
)
def test_wrong_input(scores, labels, said):
    with pytest.raises(WrongInput, match=said):
        get("auroc")(scores, labels)


@pytest.mark.parametrize(("name", "wrong"), [("fpr-at-recall", {"recall": 0}), ("recall-at-fpr", {"fpr": 1.5})])
def test_wrong_settings(name, wrong):
    with pytest.raises(WrongInput, match="give a share"):
        get(name)([1.0, 2.0], [0, 1], **wrong)


def test_f1_at_a_threshold_from_normals():
    normals = [np.array([1.0, 3.0]), np.array([[2.0, 2.0]])]
    assert threshold_from_normals(normals, 2) == pytest.approx(2 + 2 * np.sqrt(0.5))
    scores, labels = np.array([1.0, 4.0, 5.0, 6.0]), np.array([0, 0, 1, 1])
    assert f1_at_threshold(scores, labels, 4.0) == pytest.approx(2 * 2 / (3 + 2))
    assert f1_at_threshold(scores, labels, 6.5) == 0
    assert f1_at_threshold(scores, labels, 4.5) == get("f1max")(scores, labels) == 1
