"""What is said of results: by hand, by slow loops, and on data made so that the answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from anomalens import metrics
from anomalens.bench import plan, results, robustness
from anomalens.bench._resampling import Draws, Mean, common, holm, p_value
from anomalens.bench._tables import POOLED, _front, _metric_of, _same_shots
from anomalens.errors import UnknownName, WrongInput

from . import made
from .made import cell, data, method, row

LABELS = np.repeat([0, 1], [12, 18])


def scores(seed: int, apart: float = 1.5, labels: np.ndarray = LABELS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=len(labels)) + apart * labels


def told(path, rows, **options):
    return results.summary(results.read(made.write(path / "r.jsonl", rows)), resamples=200, **options)


def cells_of(summary, metric, data=0, table=0):
    return {r["method"]: r["cells"][metric] for r in summary["data"][data]["tables"][table]["rows"]}


# Reading.


def test_a_half_written_last_line_is_left_out_and_counted(tmp_path):
    path = made.write(tmp_path / "r.jsonl", [row(cell(method("padim"), data()), {"image.auroc": 0.9})])
    whole = results.read(path)
    with path.open("a") as file:
        file.write('{"hash": "abc", "cell": {"met')
    torn = results.read(path)
    assert torn.rows == whole.rows
    assert (whole.damaged, torn.damaged) == (0, 1)


def test_two_files_are_merged_and_the_later_row_counts(tmp_path):
    of = [cell(method("padim"), data(c)) for c in ("bottle", "cable")]
    first = made.write(tmp_path / "a.jsonl", [row(of[0], {"image.auroc": 0.5}), row(of[1], {"image.auroc": 0.6})])
    second = made.write(tmp_path / "b.jsonl", [row(of[0], {"image.auroc": 0.8})])
    both = results.read(first, second)
    values = {r["cell"]["data"]["category"]: r["figures"]["image.auroc"]["value"] for r in both.rows}
    assert values == {"bottle": 0.8, "cable": 0.6}
    assert both.repeated == 1
    back = results.read(second, first)
    assert {r["figures"]["image.auroc"]["value"] for r in back.rows} == {0.5, 0.6}


def test_a_folder_stands_for_its_file(tmp_path):
    made.write(tmp_path / "results.jsonl", [row(cell(method("padim"), data()), {"image.auroc": 0.9})])
    assert results.read(tmp_path).rows == results.read(tmp_path / "results.jsonl").rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no results file"),
        ("", "empty"),
        ('{"a": 1}\n', "not a results file"),
        ("hello\n", "not a results file"),
        ('{"format": 2, "plan": {}}\n', "format 2"),
        ('{"format": 1, "plan": {}}\n', "no result yet"),
    ],
)
def test_what_is_no_results_file_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WrongInput, match=words):
        results.read(path)
    with pytest.raises(WrongInput, match="was given"):
        results.read()


def test_the_order_of_the_lines_changes_nothing(tmp_path):
    rows, of = made.study(("bottle", "cable"), (0, 1))
    there = made.write(tmp_path / "a.jsonl", rows, plan=of)
    back = made.write(tmp_path / "b.jsonl", rows[::-1], plan=of)
    a, b = (json.dumps(results.summary(results.read(p), resamples=50)) for p in (there, back))
    assert a == b
    titles = [m["title"] for m in json.loads(a)["methods"]]
    assert titles[:2] == ["PatchCore · tiny", "PatchCore · timm:resnet18"]  # as in the plan
    assert titles[-1] == "GRNR · timm:resnet18"


# Means, spreads, intervals.


def test_means_and_spreads_by_hand(tmp_path):
    held = {("bottle", 0): 0.90, ("bottle", 1): 0.94, ("cable", 0): 0.70, ("cable", 1): 0.78}
    rows = [row(cell(method("padim"), data(c), seed), {"image.auroc": v}) for (c, seed), v in held.items()]
    summary = told(tmp_path, rows)
    figure = cells_of(summary, "image.auroc")["PaDiM"]
    assert figure["value"] == pytest.approx((0.92 + 0.74) / 2)
    assert figure["sd"] == pytest.approx(np.std([0.80, 0.86], ddof=1), abs=1e-6)  # of the means over categories
    assert figure["interval"] is None  # no scores
    table = summary["data"][0]["by_category"]["image.auroc"]["rows"]["PaDiM"]
    assert table["cable"]["value"] == pytest.approx(0.74)
    assert table["cable"]["sd"] == pytest.approx(np.std([0.70, 0.78], ddof=1), abs=1e-6)


def test_one_seed_has_no_spread(tmp_path):
    summary = told(tmp_path, [row(cell(method("padim"), data()), {"image.auroc": 0.9})])
    assert cells_of(summary, "image.auroc")["PaDiM"]["sd"] is None


def test_undefined_is_none_with_its_reason_never_zero(tmp_path):
    why = made.entry(math.nan, None, "there is no anomalous item")
    rows = [row(cell(method("padim"), data(c)), {"pixel.ap": v}) for c, v in (("bottle", 0.4), ("cable", why))]
    summary = told(tmp_path, rows)
    figure = cells_of(summary, "pixel.ap")["PaDiM"]
    assert figure["value"] == pytest.approx(0.4)
    assert figure["missing"] == {"cable": "there is no anomalous item"}
    entry = summary["data"][0]["by_category"]["pixel.ap"]["rows"]["PaDiM"]["cable"]
    assert entry["value"] is None
    assert entry["reason"] == "there is no anomalous item"
    alone = told(tmp_path, rows[1:])
    assert cells_of(alone, "pixel.ap")["PaDiM"]["value"] is None
    assert "no anomalous" in cells_of(alone, "pixel.ap")["PaDiM"]["reason"]


def test_resampled_values_are_those_of_pictures_drawn_again():
    r = row(cell(method("padim"), data()), {}, scores(0), LABELS)
    draws = Draws("MVTec AD", [r], 20)
    found = draws.replicates(r, "image.auroc")
    _, weights = draws._weights("bottle")
    assert (weights[:, LABELS == 1].sum(axis=1) == 18).all()  # stratified
    assert (weights[:, LABELS == 0].sum(axis=1) == 12).all()
    for value, drawn in zip(found, weights, strict=True):
        again = np.repeat(np.arange(len(LABELS)), drawn)
        assert value == pytest.approx(metrics.get("auroc")(scores(0)[again], LABELS[again]))


def test_methods_and_seeds_see_the_same_resamples_and_categories_others():
    of = [cell(method("padim"), data()), cell(method("patchcore"), data()), cell(method("padim"), data(), 1)]
    rows = [row(c, {}, scores(0), LABELS) for c in of]
    other = row(cell(method("padim"), data("cable")), {}, scores(0), LABELS)
    draws = Draws("MVTec AD", [*rows, other], 50)
    first, *rest = (draws.replicates(r, "image.auroc") for r in [*rows, other])
    assert all((first == r).all() for r in rest[:-1])
    assert (first != rest[-1]).any()


def test_the_good_pictures_of_rad_are_shared_and_drawn_alike():
    rows = [row(cell(method("padim"), data(c, "rad")), {}, scores(i), LABELS) for i, c in enumerate(("bolt", "tape"))]
    draws = Draws("RAD", rows, 50)
    a, b = (draws._weights(c)[1] for c in ("bolt", "tape"))
    assert (a[:, :12] == b[:, :12]).all()
    assert (a[:, 12:] != b[:, 12:]).any()


def test_intervals_of_pixel_metrics_come_from_the_stored_values(tmp_path):
    stored = list(np.linspace(0.4, 0.6, 201))
    r = row(cell(method("padim"), data()), {"pixel.ap": 0.5}, replicates={"pixel.ap": stored})
    low, high = cells_of(told(tmp_path, [r]), "pixel.ap")["PaDiM"]["interval"]
    assert (low, high) == (pytest.approx(0.405), pytest.approx(0.595))


# Which methods differ.


def test_identical_methods_are_not_told_apart_and_a_clearly_better_one_is(tmp_path):
    rows = []
    for c in range(3):
        where, good = data(f"c{c}"), scores(c, 3.0)
        rows.append(row(cell(method("patchcore"), where), {}, good, LABELS))
        rows.append(row(cell(method("padim"), where), {}, good, LABELS))
        rows.append(row(cell(method("grnr"), where), {}, scores(10 + c, 0.3), LABELS))
    found = cells_of(told(tmp_path, rows), "image.auroc")
    alike = [found["PatchCore"], found["PaDiM"]]
    assert sorted(f["best"] for f in alike) == [False, True]
    assert all(f["tied"] for f in alike)
    assert next(f["p"] for f in alike if not f["best"]) == 1
    assert not found["GRNR"]["tied"]
    assert found["GRNR"]["p"] < 0.001


def test_seeds_that_disagree_make_a_difference_doubtful():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=500)
    calm = Mean(0.95, {0: 0.95, 1: 0.95, 2: 0.95}, 0.95 + 0.001 * shared)
    steady = Mean(0.93, {0: 0.931, 1: 0.93, 2: 0.929}, 0.93 + 0.001 * rng.normal(size=500))
    wild = Mean(0.93, {0: 0.97, 1: 0.92, 2: 0.90}, steady.replicates)
    assert p_value(calm, steady) < 0.01
    assert p_value(calm, wild) > 0.3
    assert p_value(calm, Mean(0.93, {}, None)) is None
    assert p_value(calm, calm) == 1


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_resamples_the_best_alone_is_marked(tmp_path):
    rows = [row(cell(method(m), data()), {"pixel.ap": v}) for m, v in (("padim", 0.5), ("grnr", 0.501))]
    summary = told(tmp_path, rows)
    found = cells_of(summary, "pixel.ap")
    assert not summary["data"][0]["tables"][0]["metrics"][0]["tested"]
    assert found["GRNR"]["tied"]
    assert not found["PaDiM"]["tied"]


def test_lower_is_better_where_the_card_says_so(tmp_path):
    rows = [row(cell(method(m), data()), {"image.fpr-at-recall": v}) for m, v in (("padim", 0.5), ("grnr", 0.2))]
    assert cells_of(told(tmp_path, rows), "image.fpr-at-recall")["GRNR"]["best"]


def test_only_common_categories_are_compared(tmp_path):
    values = {"patchcore": {"a": 0.9, "b": 0.7, "c": 0.8}, "padim": {"a": 0.8, "b": 0.9}, "grnr": {"c": 0.99}}
    rows = [row(cell(method(m), data(c)), {"image.auroc": v}) for m, held in values.items() for c, v in held.items()]
    rows.append(made.failed(cell(method("padim"), data("c")), "OutOfMemory: no."))
    summary = told(tmp_path, rows)
    found, column = cells_of(summary, "image.auroc"), summary["data"][0]["tables"][0]["metrics"][0]
    assert column["categories"] == ["a", "b"]
    assert column["left_out"] == ["c"]
    assert found["PatchCore"]["value"] == pytest.approx(0.8)  # without c
    assert found["PaDiM"]["best"]
    assert found["PaDiM"]["missing"] == {"c": "failed"}
    assert not found["GRNR"]["compared"]  # one category of three would take the others from everybody
    assert not found["GRNR"]["tied"]
    assert found["GRNR"]["value"] == pytest.approx(0.99)
    assert found["GRNR"]["missing"] == {"a": "not run", "b": "not run"}


def test_common():
    assert common({"m": "abc", "n": "ab"}, "abc") == (["m", "n"], ["a", "b"])
    assert common({"m": "abcd", "n": "a"}, "abcd") == (["m"], list("abcd"))
    assert common({"m": "ab", "n": "cd"}, "abcd") == ([], [])
    assert common({}, "") == ([], [])


def test_shots_are_compared_among_themselves_and_zero_shot_joins_a_single_group(tmp_path):
    rows = [row(cell(method("patchcore"), data(), shots=s), {"image.auroc": 0.9}) for s in ("full", 4)]
    summary = told(tmp_path, [*rows, row(cell(method("grnr"), data(), shots=0), {"image.auroc": 0.8})])
    assert [t["group"] for t in summary["data"][0]["tables"]] == ["full-shot", "4-shot", "zero-shot"]
    assert "PatchCore · 4-shot" in cells_of(summary, "image.auroc", table=1)
    summary = told(tmp_path, [rows[0], row(cell(method("grnr"), data(), shots=0), {"image.auroc": 0.8})])
    assert list(cells_of(summary, "image.auroc")) == ["PatchCore · full-shot", "GRNR · zero-shot"]


def test_titles_tell_methods_apart(tmp_path):
    hows = [
        method("patchcore", "patchcore, tiny", backbone="tiny"),
        method("patchcore", "patchcore, timm:a", backbone="timm:a@/home/me/a_weights.safetensors"),
        method("patchcore", "mine", backbone="tiny", ratio=0.2),
        method("patchcore", "mine", backbone="tiny", ratio=0.5),
        method("somebodys"),
    ]
    summary = told(tmp_path, [row(cell(how, data()), {"image.auroc": 0.9}) for how in hows])
    assert {m["title"] for m in summary["methods"]} == {
        "PatchCore · tiny", "PatchCore · timm:a", "mine · tiny · ratio=0.2", "mine · tiny · ratio=0.5", "somebodys",
    }  # fmt: skip
    assert {m["name"]: m["fidelity"] for m in summary["methods"]} == {"patchcore": "parity", "somebodys": ""}


def test_backbones_are_named_as_shortly_as_they_differ(tmp_path):
    names = ["tiny", "timm:b?pad=same@w/b.safetensors", "timm:a@w/one.safetensors", "timm:a@w/two.safetensors",
             "timm:c?x=1", "timm:c?x=2"]  # fmt: skip
    hows = [method("patchcore", f"patchcore, {name.partition('@')[0]}", backbone=name) for name in names]
    summary = told(tmp_path, [row(cell(how, data()), {"image.auroc": 0.9}) for how in hows])
    assert {m["backbone"] for m in summary["methods"]} == {
        "tiny", "timm:b", "timm:a (one)", "timm:a (two)", "timm:c?x=1", "timm:c?x=2",
    }  # fmt: skip


def test_data_sets_that_differ_in_what_was_held_out_stand_apart(tmp_path):
    of = cell(method("padim"), data())
    rows = [row({**of, "hold_out": share}, {"image.auroc": 0.9}) for share in (0.0, 0.2)]
    rows.append(row(cell(method("padim"), data("x", "folder", "/somewhere/screws")), {"image.auroc": 0.9}))
    titles = [d["title"] for d in told(tmp_path, rows)["data"]]
    assert sorted(titles) == [
        "MVTec AD, 0% of the good pictures held out", "MVTec AD, 20% of the good pictures held out", "screws",
    ]  # fmt: skip


def test_all_categories_pooled_is_a_column_of_its_own_and_in_no_mean(tmp_path):
    assert plan.POOLED == POOLED
    rows = []
    for c, value in (("a", 0.9), ("b", 0.7), (POOLED, 0.1)):
        rows.append(row({**cell(method("padim"), data(c)), "fit_on": "*"}, {"image.auroc": value}))
    summary = told(tmp_path, rows)
    assert summary["data"][0]["categories"] == ["a", "b"]
    assert cells_of(summary, "image.auroc")["PaDiM"]["value"] == pytest.approx(0.8)
    assert summary["data"][0]["by_category"]["image.auroc"]["rows"]["PaDiM"][POOLED]["value"] == pytest.approx(0.1)


def test_the_floor_and_what_is_above_it(tmp_path):
    rows = [row(cell(method("padim"), data(c)), {"image.ap": made.entry(0.9, f)}) for c, f in (("a", 0.8), ("b", 0.6))]
    summary = told(tmp_path, rows)
    assert summary["data"][0]["tables"][0]["metrics"][0]["floor"] == pytest.approx(0.7)
    table = summary["data"][0]["by_category"]["image.ap"]["rows"]["PaDiM"]
    assert (table["a"]["above_chance"], table["b"]["above_chance"]) == (pytest.approx(0.5), pytest.approx(0.75))


# Speed.


def test_speed_by_hand(tmp_path):
    rows = []
    for seed, seconds in enumerate((3.0, 6.0, 60.0)):
        made_row = row(cell(method("padim"), data(), seed), {}, scores(seed), LABELS)
        cost = {"fit": seed + 1.0, "predict": seconds, "predict_cpu": 2 * seconds, "forward": None}
        rows.append({**made_row, "seconds": cost, "ratio": None})
    (s,) = told(tmp_path, rows)["data"][0]["speed"]
    assert s["ms"] == pytest.approx(6000 / 30)  # the median, 30 pictures
    assert s["cpu_ms"] == pytest.approx(400)
    assert s["per_second"] == pytest.approx(5)
    assert s["fit_seconds"] == 2
    assert s["ratio"] is None
    assert s["memory_mb"] == 512


def test_the_front_holds_whom_nobody_beats():
    held = {"fast": (100, 0.7), "bad": (50, 0.6), "middle": (40, 0.8), "slow": (1, 0.9), "same": (0.5, 0.9)}
    speed = [{"method": m, "per_second": x, "accuracy": y} for m, (x, y) in held.items()]
    assert _front([*speed, {"method": "none", "per_second": 200, "accuracy": None}]) == ["fast", "middle", "slow"]


# What others published.


def test_published_figures_stand_beside_ours(tmp_path):
    figures = {"image.auroc": 0.95, "pixel.aupro@0.3": 0.9}
    rows = [row(cell(method("patchcore"), data(c)), figures) for c in ("bottle", "cable")]
    rows.append(row(cell(method("patchcore"), data("bottle"), shots=4), figures))
    found = {(p["method"], p["metric"]): p for p in told(tmp_path, rows)["data"][0]["published"]}
    ours = found["PatchCore · full-shot", "image.auroc"]
    assert (ours["ours"], ours["theirs"], ours["categories"]) == (pytest.approx(95), 99.2, 2)
    assert ours["difference"] == pytest.approx(-4.2)
    assert found["PatchCore · full-shot", "pixel.aupro@0.3"]["theirs"] == 94.4
    assert not any("4-shot" in m for m, _ in found)  # published with all pictures


def test_names_of_published_figures():
    assert [_metric_of(m) for m in ("image_auroc", "aupro", "pixel_aupro", "Image-AP", "pixel_f1_max")] == [
        "image.auroc", "pixel.aupro@0.3", "pixel.aupro@0.3", "image.ap", "pixel.f1max",
    ]  # fmt: skip
    assert _same_shots("full-shot, 224", "full")
    assert not _same_shots("full-shot", 4)
    assert _same_shots("4-shot", 4)
    assert not _same_shots("4-shot", 2)
    assert _same_shots("few-shot", 2)
    assert _same_shots("zero-shot", 0)
    assert _same_shots("as in the paper", 7)


def test_rad_is_reproduced_within_its_bands(tmp_path):
    ours = {"bolt": 0.947, "ribbon": 0.90, "sponge": 0.985, "tape": 0.992}  # published 93.7, 98.7, 98.5, 99.2
    rows = [row(cell(method("patchcore"), data(c, "rad")), {"image.auroc": v}) for c, v in ours.items()]
    found = {f["category"]: f for f in told(tmp_path, rows)["data"][0]["rad"]}
    assert found["bolt"]["reproduced"] is True  # 1.0 of 4
    assert found["ribbon"]["reproduced"] is False  # 8.7 of 4
    assert found["mean"]["reproduced"] is True  # 1.5 of 2
    assert found["mean"]["theirs"] == 97.5
    some = told(tmp_path, rows[:2])["data"][0]["rad"]
    assert "mean" not in {f["category"] for f in some}  # of two categories there is no mean of four


# Disturbances.


def disturbed(tmp_path, rows, **options):
    return told(tmp_path, rows, **options)["data"][0]["robustness"]


def fading(name: str, apart: float, loss: float, where=None, seed: int = 0, what=("rot", "gauss")):
    """A clean row and five grades of each disturbance."""
    where = where or data()
    first = row(cell(method(name), where, seed), {}, scores(seed, apart), LABELS)
    rows = [{**first, "held_out": list(np.random.default_rng(5).normal(size=20))}]
    for d in what:
        for grade in range(1, 6):
            held = scores(seed, apart - loss * grade)
            rows.append(row(cell(method(name), where, seed, corruption=(d, grade)), {}, held, LABELS))
    return rows


def test_measures_are_those_of_the_mean_curves(tmp_path):
    rows = fading("patchcore", 2.0, 0.3) + fading("padim", 2.0, 0.4)
    found = disturbed(tmp_path, rows)
    curve = [metrics.get("auroc")(scores(0, 2.0 - 0.4 * g), LABELS) for g in range(6)]
    base = [metrics.get("auroc")(scores(0, 2.0 - 0.3 * g), LABELS) for g in range(6)]
    row_of = found["methods"]["PaDiM"]
    assert found["baseline"] == "PatchCore"
    assert found["curves"]["PaDiM"]["rot"] == pytest.approx(curve, abs=1e-6)
    assert row_of["grouped"] == pytest.approx(np.mean(curve[1:]), abs=1e-6)
    assert row_of["normalised_area"] == pytest.approx(robustness.normalised_severity_area(curve, 0.5), abs=1e-6)
    assert row_of["error_ratio"] == pytest.approx(robustness.corruption_error(curve[1:], base[1:]), abs=1e-6)
    assert row_of["drop_ratio"] == pytest.approx(robustness.corruption_drop(curve, base), abs=1e-6)
    assert row_of["half_life"]["value"] == pytest.approx(robustness.half_life(curve, 0.5), abs=1e-6)
    assert found["methods"]["PatchCore"]["error_ratio"] == 1
    assert disturbed(tmp_path, rows, baseline="padim")["methods"]["PaDiM"]["error_ratio"] == 1


def test_half_lives_that_never_come_and_groups(tmp_path):
    found = disturbed(tmp_path, fading("padim", 3.0, 0.0, what=("rot", "tilt", "gauss")))["methods"]["PaDiM"]
    assert found["half_life"] == {"value": None, "reason": "never"}
    assert found["drop"] == 0
    assert set(found["groups"]) == {"viewpoint", "noise"}


def test_the_intervals_of_the_headline_agree_with_the_ones_of_one_set_of_pictures(tmp_path):
    rows = fading("patchcore", 1.6, 0.2) + fading("padim", 1.2, 0.2)
    held = {
        m: {d: np.array([scores(0, a - 0.2 * g) for g in range(1, 6)]) for d in ("rot", "gauss")}
        for m, a in (("PatchCore", 1.6), ("PaDiM", 1.2))
    }
    reference = robustness.intervals(held, LABELS, resamples=2000)
    summary = results.summary(results.read(made.write(tmp_path / "r.jsonl", rows)), resamples=2000)
    found = summary["data"][0]["robustness"]["methods"]["PaDiM"]
    mean, difference = reference.means["PaDiM"], reference.differences["PatchCore", "PaDiM"]
    assert found["grouped"] == pytest.approx(mean.value, abs=1e-6)
    assert found["grouped_interval"] == pytest.approx([mean.low, mean.high], abs=0.015)  # other draws
    assert found["against_baseline"] == pytest.approx([-difference.high, -difference.low], abs=0.01)


def test_the_clean_value_is_that_of_the_pictures_that_are_left(tmp_path):
    clean = row(cell(method("padim"), data()), {}, scores(0), LABELS)
    rows = [clean]
    for grade in range(1, 6):
        r = row(cell(method("padim"), data(), corruption=("rot", grade)), {}, scores(0)[:-4], LABELS[:-4])
        r["counts"]["left_out"] = 4
        rows.append(r)
    found = disturbed(tmp_path, rows)
    left = metrics.get("auroc")(scores(0)[:-4], LABELS[:-4])
    assert found["curves"]["PaDiM"]["rot"] == pytest.approx([left] * 6, abs=1e-6)
    assert left != pytest.approx(clean["figures"]["image.auroc"]["value"])
    assert found["lost"] == {"rot": 4}
    own = row(cell(method("padim"), data(), corruption=("rot", 0)), {"image.auroc": 0.123})
    assert disturbed(tmp_path, [*rows, own])["curves"]["PaDiM"]["rot"][0] == 0.123  # the benchmark's own clean point


def test_the_operating_point_and_stability_compare_with_the_undisturbed_row(tmp_path):
    rows = fading("padim", 1.5, 0.3)
    found = disturbed(tmp_path, rows)
    held = rows[0]["held_out"]
    point = robustness.operating_point(held, scores(0), LABELS, 0.05)
    under = [robustness.operating_point(held, scores(0, 1.5 - 0.3 * g), LABELS, 0.05) for g in range(1, 6)]
    operating = found["operating"]["PaDiM"]
    assert operating["held_out"] == 20
    assert operating["0.05"]["clean"]["recall"] == pytest.approx(point.recall)
    assert operating["0.05"]["disturbed"]["recall"] == pytest.approx(np.mean([p.recall for p in under]), abs=1e-6)
    assert found["stability"]["PaDiM"] == pytest.approx(1)  # normal scores stay as they are


def test_without_held_out_pictures_there_is_no_operating_point(tmp_path):
    rows = [{**r, "held_out": []} for r in fading("padim", 1.5, 0.3)]
    operating = disturbed(tmp_path, rows)["operating"]["PaDiM"]
    assert operating["held_out"] == 0
    assert operating["0.01"]["disturbed"] == {"false_alarms": None, "recall": None}


def test_grades_that_are_missing_leave_points_but_no_measures(tmp_path):
    rows = [r for r in fading("padim", 1.5, 0.3) if (r["cell"]["corruption"] or {"grade": 2})["grade"] == 2]
    found = disturbed(tmp_path, rows)
    assert found["incomplete"] == ["rot", "gauss"]
    assert found["methods"] == {}
    assert [v is not None for v in found["curves"]["PaDiM"]["rot"]] == [True, False, True, False, False, False]


def test_what_is_asked_for_must_be_there(tmp_path):
    path = made.write(tmp_path / "r.jsonl", [row(cell(method("padim"), data()), {"image.auroc": 0.9})])
    found = results.read(path)
    with pytest.raises(UnknownName, match="metric"):
        results.summary(found, metric="image.aurok")
    with pytest.raises(UnknownName, match="method"):
        results.summary(found, baseline="patchcore")


def test_only_failures_are_told_too(tmp_path):
    summary = told(tmp_path, [made.failed(cell(method("padim"), data()), "WrongInput: no.")])
    assert summary["data"] == []
    assert summary["failed"][0]["error"] == "WrongInput: no."
    assert summary["counts"] | {"ok": 0, "failed": 1} == summary["counts"]
