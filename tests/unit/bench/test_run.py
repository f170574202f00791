"""Running plans: rows against slow references, resuming, failing, and the protocol of RAD."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import anomalens as al
from anomalens import metrics
from anomalens.bench import _job, _pictures
from anomalens.bench import plan as plans
from anomalens.bench import run as runs
from anomalens.datasets import _files, reader
from anomalens.datasets.procedural import Procedural
from anomalens.detector import Detector
from anomalens.detectors.padim import PaDiM
from anomalens.detectors.patchcore import PatchCore
from anomalens.errors import CannotWrite, Unreadable
from anomalens.images import encode
from anomalens.synthesis import corruptions
from anomalens.types import Prediction, View

OPTIONS = {"size": 48, "train_count": 10, "good_count": 3, "bad_count": 4}
SMALL = {"reader": "procedural", "categories": ["cloth"], "options": OPTIONS}
FAST = {"name": "patchcore", "settings": {"image_size": 64}}
MEASURED = ("seconds", "ratio", "memory_mb")


def made(folder=".", **changes):
    return plans.make({"methods": [FAST], "data": [SMALL], **changes}, folder)


def rows_of(folder) -> list[dict]:
    return list(runs.read_rows(Path(folder) / "results.jsonl"))


def settled(folder) -> dict[str, dict]:
    """Rows by hash without what is measured."""
    return {row["hash"]: {k: v for k, v in row.items() if k not in MEASURED} for row in rows_of(folder)}


def ran(plan, out, **how):
    summary = runs.run(plan, out, **how)
    assert not summary["failed"], summary["errors"]
    return rows_of(out)


def by_condition(rows):
    return {c and (c["name"], c["grade"]): row for row in rows for c in [row["cell"]["corruption"]]}


@pytest.fixture(scope="module")
def rad(tmp_path_factory) -> Path:
    """Four categories with the same good pictures, 6 to learn from and 3 to test on, and 2 defects each."""
    root = tmp_path_factory.mktemp("rad")
    good = Procedural("metal", size=48, train_count=6, good_count=3, bad_count=8)
    bad = [s for s in good.test() if s.label]
    for i, category in enumerate(("bolt", "ribbon", "sponge", "tape")):
        for k, sample in enumerate(good.train() + [s for s in good.test() if not s.label]):
            part = root / category / ("train" if k < 6 else "test") / "good"
            part.mkdir(parents=True, exist_ok=True)
            (part / f"{k:03d}.png").write_bytes(encode(sample.image()))
        for k, sample in enumerate(bad[2 * i : 2 * i + 2]):
            for part, pixels in (("test", sample.image()), ("ground_truth", sample.mask.read().astype(np.uint8) * 255)):
                (root / category / part / "defect").mkdir(parents=True, exist_ok=True)
                (root / category / part / "defect" / f"{k:03d}.png").write_bytes(encode(pixels))
    return root


def test_a_row_is_what_the_library_says_step_by_step(tmp_path):
    (row,) = ran(made(), tmp_path)
    data = Procedural("cloth", **OPTIONS)
    detector = al.create("patchcore", image_size=64, seed=2).fit(data.train())  # cloth is number 2 of its data set
    test = data.test()
    found = list(detector.predict(test))
    labels = [s.label for s in test]
    image = metrics.image([p.score for p in found], labels, interval=True)
    masks = [s.mask.read() if s.mask else None for s in test]
    pixel = metrics.pixel([p.map for p in found], masks, interval=True)
    expected = {**{f"image.{k}": m for k, m in image.items()}, **{f"pixel.{k}": m for k, m in pixel.items()}}
    assert list(row["figures"]) == list(expected)
    for name, measured in expected.items():
        figure = row["figures"][name]
        assert (figure["value"], figure["floor"]) == (measured.value, measured.floor)
        assert figure["interval"] == list(measured.interval)
    assert row["scores"] == {"ids": [s.id for s in test], "labels": labels, "values": [p.score for p in found]}
    assert row["counts"] == {"fit": 10, "good": 3, "anomalous": 4, "left_out": 0, "unreadable": 0}
    assert row["held_out"] == []
    assert row["detector_seed"] == 2
    assert {len(v) for v in row["replicates"].values()} == {200}
    low, high = np.percentile(row["replicates"]["pixel.auroc"], (2.5, 97.5))
    assert [low, high] == pytest.approx(row["figures"]["pixel.auroc"]["interval"], abs=1e-4)
    assert row["ratio"] > 0
    assert all(row["seconds"][k] > 0 for k in ("fit", "predict", "predict_cpu", "forward"))
    assert row["memory_mb"] > 10
    assert row["fitted_mb"] == pytest.approx(detector.bank.nbytes / 1e6, abs=0.01)
    assert {"anomalens", "python", "numpy", "onnxruntime"} <= row["versions"].keys()


def test_a_corrupted_row_is_what_the_library_says_step_by_step(tmp_path):
    found = by_condition(ran(made(corruptions=["rot:3"]), tmp_path))
    data = Procedural("cloth", **OPTIONS)
    learn, held = _pictures.drawn(data.train(), "full", 0, 0.2)
    assert (len(learn), len(held)) == (8, 2)
    detector = al.create("patchcore", image_size=64, seed=2).fit(learn)
    test = [corruptions.apply(s, "rot", 3, seed=0) for s in data.test()]
    predictions = list(detector.predict(test))
    row = found["rot", 3]
    assert row["scores"]["values"] == [p.score for p in predictions]
    pixel = metrics.pixel([p.map for p in predictions], [s.mask.read() for s in test])
    assert row["figures"]["pixel.aupro@0.3"]["value"] == pixel["aupro@0.3"].value
    assert row["figures"]["pixel.aupro@0.3"]["interval"] is None
    assert row["replicates"] == {}
    assert row["held_out"] == [p.score for p in detector.predict(held)]
    assert row["counts"]["fit"] == 8
    assert found["rot", 0]["scores"] == found[None]["scores"]
    assert found["rot", 0]["figures"] == found[None]["figures"]


def test_running_again_gives_the_same(tmp_path):
    plan = made(corruptions=["view:2", "gauss:1"], seeds=[0, 1])
    ran(plan, tmp_path / "a")
    ran(plan, tmp_path / "b")
    assert settled(tmp_path / "a") == settled(tmp_path / "b")
    assert len({row["seconds"]["predict"] for row in rows_of(tmp_path / "a") + rows_of(tmp_path / "b")}) > 1


def test_the_file_starts_with_the_plan(tmp_path):
    plan = made(shots=["full", 2])
    ran(plan, tmp_path)
    header = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert header["format"] == 1
    assert plans.make(header["plan"], plan.folder) == plan
    assert header["order"] == [plans.hash_of(c) for c in plans.cells(plan)]
    assert {"cpu", "cores", "system"} <= header["machine"].keys()


# Stopping and going on.


def test_a_torn_file_goes_on_where_it_stopped(tmp_path):
    plan = made(corruptions=["jpeg:1", "jpeg:3", "rot:1"], seeds=[0, 1])
    ran(plan, tmp_path)
    whole = settled(tmp_path)
    path = tmp_path / "results.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for end in (sum(map(len, lines[:3])) + 100, sum(map(len, lines[:8])), 40):
        path.write_bytes(data[:end])
        done: list[tuple] = []
        summary = runs.run(
            plan, tmp_path, progress=lambda row, n, total, done=done: done.append((row is None, n, total))
        )
        kept = max(0, data[:end].count(b"\n") - 1)
        assert summary["kept"] == kept
        assert done[0] == (True, kept, 10)
        assert len(done) == 10 - kept + 1
        assert settled(tmp_path) == whole


def test_ctrl_c_leaves_a_valid_file(tmp_path):
    plan = made(corruptions=["jpeg"])

    def press(row, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(plan, tmp_path, progress=press)
    assert len(rows_of(tmp_path)) == 3
    assert runs.run(plan, tmp_path)["kept"] == 3
    ran(plan, tmp_path / "whole")
    assert settled(tmp_path) == settled(tmp_path / "whole")


def test_another_plan_keeps_what_it_asks_for(tmp_path, monkeypatch):
    both, one = made(seeds=[0, 1]), made(seeds=[1], methods=[{**FAST, "label": "new name"}])
    ran(both, tmp_path)
    fits = []
    monkeypatch.setattr(PatchCore, "fit", lambda self, samples: fits.append(1))
    assert runs.run(one, tmp_path)["kept"] == 1
    assert [row["cell"]["method"]["label"] for row in rows_of(tmp_path)] == ["new name"]
    assert runs.run(both, tmp_path)["kept"] == 2  # the row that was set aside is used again
    assert not fits


def test_a_file_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"id": "a picture"}\n')
    with pytest.raises(CannotWrite, match=r"was not written by this version of bench"):
        runs.run(made(), tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == '{"id": "a picture"}\n'


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    plan = made(corruptions=["jpeg:1"])

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", full)
        with pytest.raises(CannotWrite, match="no space left"):
            runs.run(plan, tmp_path)
    data = (tmp_path / "results.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert rows_of(tmp_path) == []
    assert len(ran(plan, tmp_path)) == 2


# Failing.


def test_a_failed_fit_is_a_result_and_is_tried_again(tmp_path, monkeypatch):
    plan = made(methods=[FAST, {"name": "grnr", "settings": {"image_size": 64, "k_global": 4}}], corruptions=["jpeg:1"])

    def broken(self, samples):
        raise ValueError("no luck\ntoday")

    with monkeypatch.context() as patch:
        patch.setattr(PatchCore, "fit", broken)
        summary = runs.run(plan, tmp_path)
    assert (summary["ok"], summary["failed"]) == (2, 2)
    assert summary["errors"] == {"ValueError: no luck today": 2}
    failed = [row for row in rows_of(tmp_path) if row["status"] == "failed"]
    assert [row["error"] for row in failed] == ["ValueError: no luck today"] * 2
    assert set(failed[0]) == set(ran(plan, tmp_path)[0])
    assert runs.run(plan, tmp_path)["kept"] == 4


def test_one_condition_that_fails_takes_no_other_along(tmp_path, monkeypatch):
    true = corruptions.apply

    def broken(sample, name, grade, seed=0, **how):
        if name == "jpeg":
            raise MemoryError("too much")
        return true(sample, name, grade, seed, **how)

    monkeypatch.setattr(corruptions, "apply", broken)
    summary = runs.run(made(corruptions=["gamma:1", "jpeg:1", "cast:1"]), tmp_path)
    assert summary["errors"] == {"MemoryError: too much": 1}
    assert [row["status"] for row in rows_of(tmp_path)] == ["ok", "ok", "failed", "ok"]


def test_more_shots_than_pictures_is_a_sentence(tmp_path):
    summary = runs.run(made(shots=[11]), tmp_path)
    assert list(summary["errors"]) == ["WrongInput: 11 good pictures were asked for and there are 10; lower shots."]


def test_unreadable_pictures_are_left_out_and_counted(tmp_path):
    Procedural("cloth", **OPTIONS).write(tmp_path / "cloth")
    (tmp_path / "cloth" / "train" / "good" / "003.png").write_bytes(b"")
    (tmp_path / "cloth" / "test" / "good" / "001.png").write_bytes(b"not a picture")
    (row,) = ran(made(tmp_path, data=[{"root": ".", "categories": ["cloth"]}]), tmp_path / "out")
    assert row["counts"] == {"fit": 9, "good": 2, "anomalous": 4, "left_out": 0, "unreadable": 1}
    assert row["scores"]["ids"][0].startswith("cloth/test/")


# Who learns from what.


def test_few_shots_are_the_same_for_all_methods(tmp_path, monkeypatch):
    seen: dict[tuple, list] = {}

    def watched(cls, name):
        true = cls.fit

        def fit(self, samples):
            samples = list(samples)
            seen.setdefault((name, len(samples)), []).append([s.id for s in samples])
            return true(self, samples)

        monkeypatch.setattr(cls, "fit", fit)

    watched(PatchCore, "patchcore")
    watched(PaDiM, "padim")
    padim = {"name": "padim", "settings": {"image_size": 64, "channels": 4}}
    rows = ran(made(methods=[FAST, padim], shots=[2, 4], seeds=[0, 1]), tmp_path)
    assert seen["patchcore", 2] == seen["padim", 2]
    assert seen["patchcore", 4] == seen["padim", 4]
    first, second = seen["padim", 4]
    assert first != second
    assert set(seen["padim", 2][0]) < set(first)
    assert first == sorted(first)
    assert [row["counts"]["fit"] for row in rows] == [2, 2, 4, 4] * 2


def test_held_out_pictures_are_never_learnt_from():
    train = Procedural("cloth", **OPTIONS).train()
    for shots, seed in (("full", 0), ("full", 1), (3, 0), (9, 0), (10, 0)):
        learn, held = ([s.id for s in some] for some in _pictures.drawn(train, shots, seed, 0.2))
        assert not set(learn) & set(held)
        assert (len(learn), len(held)) == (8, 2) if shots == "full" else (shots, min(2, 10 - shots))
    same = [[s.id for s in _pictures.drawn(train, "full", seed, 0.2)[1]] for seed in range(4)]
    assert same == [same[0]] * 4
    assert _pictures.drawn(train, "full", 0, 0.0) == (train, [])


def test_modes_disturb_what_is_learnt_from(tmp_path, monkeypatch):
    seen: list[list[np.ndarray]] = []
    true = PatchCore.fit

    def fit(self, samples):
        samples = list(samples)
        seen.append([s.image() for s in samples])
        return true(self, samples)

    monkeypatch.setattr(PatchCore, "fit", fit)
    clean, _ = _pictures.drawn(Procedural("cloth", **OPTIONS).train(), "full", 0, 0.2)

    def disturbed(grade):
        return [corruptions.apply(s, "gauss", grade, seed=1).image() for s in clean]

    pictures = [s.image() for s in clean]
    expected = {
        "shift": [pictures],
        "matched": [pictures, disturbed(3)],
        "mixed": [pictures, [*pictures, *disturbed(1), *disturbed(2)]],
    }
    for mode, fits in expected.items():
        seen.clear()
        ran(made(corruptions=["gauss:3"], mode=mode), tmp_path / mode)
        assert [len(fit) for fit in seen] == [len(fit) for fit in fits], mode
        assert all(
            np.array_equal(a, b) for got, due in zip(seen, fits, strict=True) for a, b in zip(got, due, strict=True)
        )


def test_zero_shot_methods_learn_nothing_but_have_held_out_scores(tmp_path):
    grnr = {"name": "grnr", "settings": {"image_size": 64, "k_global": 4}}
    rows = ran(made(methods=[grnr], corruptions=["jpeg:1"], shots=["full", 3]), tmp_path)
    assert [row["cell"]["shots"] for row in rows] == [0, 0]
    assert [row["counts"]["fit"] for row in rows] == [0, 0]
    assert [len(row["held_out"]) for row in rows] == [2, 2]


def test_shots_0_fits_nothing(tmp_path):
    language = {"name": "winclip", "settings": {"backbone": "clip:tiny?weights=random", "image_size": 64}}
    none, some = ran(made(methods=[language], shots=[0, 2]), tmp_path)
    assert (none["counts"]["fit"], some["counts"]["fit"]) == (0, 2)
    assert none["scores"]["values"] != some["scores"]["values"]


def test_a_method_that_draws_nothing_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Detector, "draws", False)
    (row,) = ran(made(seeds=[5, 6]), tmp_path)
    assert (row["detector_seed"], row["note"]) == (None, "draws nothing: one run for all seeds")


# Who is tested on what.


def test_the_limit_is_per_class_and_the_same_for_all(tmp_path):
    rows = ran(made(limit=2, seeds=[0, 1], shots=["full", 2]), tmp_path)
    assert {tuple(row["scores"]["ids"]) for row in rows} == {tuple(rows[0]["scores"]["ids"])}
    assert rows[0]["scores"]["labels"].count(0) == rows[0]["scores"]["labels"].count(1) == 2
    assert rows[0]["cell"]["limit"] == 2


def test_a_picture_that_loses_its_defect_is_left_out_at_every_grade(tmp_path, monkeypatch):
    lost = "cloth/test/hole/000.png"
    monkeypatch.setattr(corruptions, "survives", lambda s, name, seed=0: name != "rot" or s.id != lost)
    found = by_condition(ran(made(corruptions=["rot:1", "rot:5", "shift:1", "jpeg:1"]), tmp_path))
    for condition, row in found.items():
        out = condition is not None and condition[0] == "rot"
        assert (lost in row["scores"]["ids"]) != out
        assert row["counts"]["left_out"] == out
    clean, zero = found[None], found["rot", 0]
    kept = [i for i, id in enumerate(clean["scores"]["ids"]) if id != lost]
    assert zero["scores"]["values"] == [clean["scores"]["values"][i] for i in kept]
    detector = al.create("patchcore", image_size=64, seed=2)
    data = Procedural("cloth", **OPTIONS)
    detector.fit(_pictures.drawn(data.train(), "full", 0, 0.2)[0])
    # Judged among all pictures: in other batches numbers round otherwise.
    pairs = [(p.map, s.mask.read() if s.mask else None) for p, s in
             zip(detector.predict(data.test()), data.test(), strict=True) if s.id != lost]  # fmt: skip
    expected = metrics.pixel(*zip(*pairs, strict=True))["auroc"].value
    assert zero["figures"]["pixel.auroc"]["value"] == expected != clean["figures"]["pixel.auroc"]["value"]
    assert zero["replicates"].keys() == clean["replicates"].keys()
    assert found["shift", 0]["figures"] == clean["figures"]


def test_originals_are_decoded_once_where_memory_allows(tmp_path, monkeypatch):
    Procedural("cloth", **OPTIONS).write(tmp_path / "cloth")
    opened: list[Path] = []
    true = _files.read_image
    monkeypatch.setattr(_files, "read_image", lambda path: (opened.append(Path(path)), true(path))[1])
    plan = made(tmp_path, data=[{"root": "cloth"}], corruptions=["gamma", "view:1", "jpeg:2"])
    ran(plan, tmp_path / "out")
    tested = [p for p in opened if "test" in p.parts]
    assert len(tested) == len(set(tested)) == 7
    opened.clear()
    monkeypatch.setattr(_pictures, "KEEP", 0)
    ran(plan, tmp_path / "again")
    assert len([p for p in opened if "test" in p.parts]) > 8 * 7
    assert settled(tmp_path / "out") == settled(tmp_path / "again")


def test_disturbed_pictures_are_made_once_for_all_methods(tmp_path, monkeypatch):
    Procedural("cloth", **OPTIONS).write(tmp_path / "cloth")
    made_of: list[str] = []
    true = corruptions._read_view
    monkeypatch.setattr(corruptions, "_read_view", lambda view, *how: (made_of.append(view.name), true(view, *how))[1])
    both = [FAST, {**FAST, "label": "other", "settings": {"image_size": 96}}]
    plan = made(tmp_path, data=[{"root": "cloth"}], methods=both, corruptions=["view:1", "jpeg:2"])
    ran(plan, tmp_path / "out")
    assert len(made_of) == 2 * 7
    assert not (tmp_path / "out" / "disturbed").exists()
    with monkeypatch.context() as patch:  # a full shelf changes nothing but the time
        patch.setattr(_pictures, "SHELF", 0)
        made_of.clear()
        ran(plan, tmp_path / "full")
        assert len(made_of) > 2 * 7
    for one in both:
        ran(made(tmp_path, data=[{"root": "cloth"}], methods=[one], corruptions=["view:1", "jpeg:2"]), tmp_path / "one")
        for name, row in settled(tmp_path / "one").items():  # labels say more where there are several methods
            assert {**settled(tmp_path / "out")[name], "cell": row["cell"]} == row
            assert {**settled(tmp_path / "full")[name], "cell": row["cell"]} == row


# One model for several categories.


def test_train_once_is_one_fit_for_all_categories_of_rad(rad, tmp_path, monkeypatch):
    seen = []
    true = PatchCore.fit

    def fit(self, samples):
        samples = list(samples)
        seen.append(len(samples))
        return true(self, samples)

    monkeypatch.setattr(PatchCore, "fit", fit)
    rows = ran(made(rad, data=[{"reader": "rad", "root": "."}]), tmp_path)  # rad trains once unless it is told not to
    assert seen == [6]
    counts = {row["cell"]["data"]["category"]: (row["counts"]["good"], row["counts"]["anomalous"]) for row in rows}
    assert counts == {"bolt": (3, 2), "ribbon": (3, 2), "sponge": (3, 2), "tape": (3, 2), "pooled": (3, 8)}
    assert {row["cell"]["fit_on"] for row in rows} == {"*"}
    good = {tuple(i for i in row["scores"]["ids"] if "/good/" in i) for row in rows}
    assert good == {("bolt/test/good/006.png", "bolt/test/good/007.png", "bolt/test/good/008.png")}
    data = reader("rad")(rad, "tape")
    detector = al.create("patchcore", image_size=64).fit(data.train())
    alone = list(detector.predict(data.test()))
    expected = metrics.image([p.score for p in alone], [s.label for s in data.test()])["auroc"].value
    assert rows[3]["figures"]["image.auroc"]["value"] == expected
    # The scores of the pool are those of the categories.
    pooled = dict(zip(rows[4]["scores"]["ids"], rows[4]["scores"]["values"], strict=True))
    for row in rows[:4]:
        assert all(pooled[i] == v for i, v in zip(row["scores"]["ids"], row["scores"]["values"], strict=True))


def test_categories_of_rad_by_other_names(rad, tmp_path):
    data = {"reader": "rad", "root": ".", "categories": ["cable_tie", "bolt"]}
    found = plans.cells(made(rad, data=[data]))
    assert [c["data"]["category"] for c in found] == ["ribbon", "bolt", "pooled"]
    rows = ran(made(rad, data=[data]), tmp_path)
    assert [row["cell"]["fit_on"] for row in rows] == ["ribbon+bolt"] * 3
    assert rows[2]["counts"]["anomalous"] == 4


def test_without_train_once_every_category_has_its_own_seed(rad, tmp_path):
    data = {"reader": "rad", "root": ".", "train_once": False}
    rows = ran(made(rad, data=[data], seeds=[0, 10]), tmp_path)
    names = ("bolt", "ribbon", "sponge", "tape")
    assert [(row["cell"]["data"]["category"], row["detector_seed"]) for row in rows] == [
        (name, seed + place) for seed in (0, 10) for place, name in enumerate(names)
    ]


def test_a_method_that_judges_batches_sees_each_category_alone(rad, tmp_path, monkeypatch):
    seen: list[list[str]] = []
    true = PatchCore.predict

    def predict(self, samples):
        samples = list(samples)
        seen.append([s.id for s in samples])
        yield from true(self, samples)

    monkeypatch.setattr(PatchCore, "predict", predict)
    described = replace(al.card("patchcore"), settings=("batched-zero-shot",))
    monkeypatch.setattr(_job, "card", lambda name: described)
    rows = ran(made(rad, data=[{"reader": "rad", "root": "."}]), tmp_path)
    judged = {tuple(ids) for ids in seen}
    assert {tuple(row["scores"]["ids"]) for row in rows} <= judged


# Figures that cannot be had.


def test_above_the_limit_of_pixels_figures_are_streamed(tmp_path, monkeypatch):
    plan = made(metrics={"pixel": ["auroc", "aupro", "pro-rad"], "limits": [0.3]})
    (exact,) = ran(plan, tmp_path / "exact")
    monkeypatch.setattr(_job, "EXACT_PIXELS", 3 * 48 * 48)
    (streamed,) = ran(plan, tmp_path / "streamed")
    for name in ("pixel.auroc", "pixel.aupro@0.3"):
        a, b = exact["figures"][name], streamed["figures"][name]
        assert abs(a["value"] - b["value"]) <= b["bound"]
        assert b["interval"] is None
    assert streamed["figures"]["pixel.pro-rad"]["value"] is None
    assert "set metrics.size" in streamed["figures"]["pixel.pro-rad"]["reason"]
    assert exact["figures"]["pixel.pro-rad"]["value"] is not None
    assert streamed["replicates"] == {}


def test_maps_are_compared_on_the_grid_of_the_plan(tmp_path):
    (row,) = ran(made(metrics={"size": 24}), tmp_path)
    data = Procedural("cloth", **OPTIONS)
    detector = al.create("patchcore", image_size=64, seed=2).fit(data.train())
    pairs = [(p.map, s.mask.read() if s.mask else np.zeros((48, 48), bool))
             for p, s in zip(detector.predict(data.test()), data.test(), strict=True)]  # fmt: skip
    expected = metrics.pixel(*zip(*pairs, strict=True), metrics.PixelEvalPolicy(size=24))
    assert row["figures"]["pixel.ap"]["value"] == expected["ap"].value


def test_without_masks_pixel_figures_are_undefined_with_a_reason(tmp_path):
    Procedural("cloth", **OPTIONS).write(tmp_path / "cloth")
    shutil.rmtree(tmp_path / "cloth" / "ground_truth")
    (row,) = ran(made(tmp_path, data=[{"root": "cloth"}]), tmp_path / "out")
    undefined = [name for name, figure in row["figures"].items() if figure["value"] is None]
    assert undefined == [name for name in row["figures"] if name.startswith("pixel.")]
    assert {row["figures"][name]["reason"] for name in undefined} == {"there are no masks"}
    assert not math.isnan(row["figures"]["image.auroc"]["value"])


def test_the_measure_of_speed_never_needs_a_backbone(tmp_path):
    tiled = {"name": "tiled", "settings": {"tile": 48, "overlap": 0, "inner": FAST}}
    (row,) = ran(made(methods=[tiled]), tmp_path)
    assert (row["ratio"], row["seconds"]["forward"]) == (None, None)
    assert row["fitted_mb"] > 0


def test_unreadable_says_why():
    def damaged():
        raise Unreadable("x.png is damaged.")

    sample = replace(Procedural("cloth", **OPTIONS).test()[0], views={"image": View("image", damaged)})
    some = _pictures.Readable([sample])
    assert some.settled() == []
    assert some.unreadable == {sample.id: "x.png is damaged."}
    assert list(some) == []


def test_a_picture_without_a_score_is_counted_and_left_out():
    tally = _job.Tally(frozenset("abc"), {"size": None}, masked=False)
    for id, score, label in (("a", 0.1, 0), ("b", math.nan, 0), ("c", 0.9, 1)):
        tally.add(Prediction(id, score), label, None)
    assert (tally.ids, tally.labels, tally.values) == (["a", "c"], [0, 1], [0.1, 0.9])
    assert tally.unanswered == 1
