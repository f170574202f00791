"""Reverse distillation as a whole: it learns, leaves its teacher alone, resumes exactly, and says what it cannot do."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

import anomalens as al
from anomalens.backbones import get, network
from anomalens.datasets.procedural import Procedural
from anomalens.detectors.rd import RD
from anomalens.errors import MissingExtra, WrongInput
from anomalens.parts import distillation
from anomalens.parts.train import load_parameters, watching

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def drawn() -> Procedural:
    return Procedural("leather", size=64, train_count=8, good_count=2, bad_count=2)


@pytest.fixture(scope="module")
def good(drawn):
    return drawn.train()


@pytest.fixture(scope="module")
def fitted(good) -> RD:
    return RD(image_size=64, steps=8).fit(good)


def scores(detector, samples) -> list[float]:
    return [p.score for p in detector.predict(samples)]


def test_the_loss_halves_in_five_epochs(good):
    means = [0.0]
    with watching(lambda step, total, figures: means.append(figures["loss"]) if step else None):
        RD(image_size=64, epochs=5, batch_size=1).fit(good)
    sums = np.array(means) * np.arange(len(means))  # the report is the mean of all steps so far, up to 50
    losses = np.diff(sums)
    assert len(losses) == 5 * len(good)
    assert losses[-8:].mean() < losses[:8].mean() / 2


def test_the_teacher_stays_as_it_is(good):
    images = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    before = get("tiny", strides=distillation.STRIDES, engine="torch")(images)
    detector = RD(image_size=64, steps=2, engine="torch").fit(good)
    assert all(torch.equal(a, b) for a, b in zip(before, network(detector)(images), strict=True))


def test_the_prediction_is_the_published_map(fitted, drawn):
    """From the pieces: teacher, student, 1 - cosine per place, align_corners, Gaussian, highest value."""
    (sample,) = drawn.test()[:1]
    (prediction,) = fitted.predict([sample])
    image = distillation.as_input(sample.image())[None]
    features = [torch.as_tensor(f) for f in get("tiny", strides=distillation.STRIDES)(image)]
    student = load_parameters(distillation.new_student(distillation.plan_for("tiny", (32, 64, 128))), fitted.student)
    expected = distillation.anomaly_maps(features, distillation.rebuild(student, features), 64, 4.0, True)[0].numpy()
    assert np.allclose(prediction.map, expected, atol=1e-5)
    assert prediction.score == pytest.approx(expected.max(), abs=1e-5)


def test_presets_and_lengths():
    assert (RD().recipe("cuda").epochs, RD().recipe("cuda").steps) == (200, None)
    assert RD().recipe("cpu") == RD(preset="small").recipe("cuda")
    assert RD(preset="published").recipe("cpu").epochs == 200
    assert (RD(epochs=3).recipe("cuda").epochs, RD(epochs=3, steps=7).recipe("cuda").steps) == (3, 7)
    published = RD().recipe("cuda")
    assert (published.optimiser, published.lr, published.betas, published.schedule) == (
        "adam",
        0.005,
        (0.5, 0.999),
        "constant",
    )


def test_an_interrupted_training_goes_on_exactly(good, tmp_path, monkeypatch):
    recipe = RD.recipe
    monkeypatch.setattr(
        RD, "recipe", lambda self, device: dataclasses.replace(recipe(self, device), checkpoint_minutes=0.0)
    )
    detector = RD(image_size=64, steps=6, batch_size=3)
    straight = detector.unfitted().fit(good)

    def stop(step, total, figures):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watching(stop, tmp_path):
        detector.unfitted().fit(good)
    seen = []
    with watching(lambda step, total, figures: seen.append(step), tmp_path):
        resumed = detector.unfitted().fit(good)
    assert seen[0] >= 3
    assert all(np.array_equal(a, resumed.student[k]) for k, a in straight.student.items())
    with pytest.raises(WrongInput, match="another training"), watching(folder=tmp_path):
        detector.unfitted().fit(good[:-1])


def test_maps_that_do_not_fit_the_memory_are_computed_again(good, drawn):
    kept, anew = (RD(image_size=64, steps=2, limit_memory=m).fit(good) for m in ("1GB", "1KB"))
    assert scores(kept, drawn.test()) == pytest.approx(scores(anew, drawn.test()), rel=1e-2)


def test_works_inside_others_and_calibrates(good, drawn, tmp_path):
    tiled = al.create("tiled", inner=RD(image_size=64, steps=2), tile=48, overlap=16).fit(good)
    assert len(scores(tiled, drawn.test())) == 4
    calibrated = al.fit_calibrated(RD(image_size=64, steps=2), good[:4])
    al.save(calibrated, tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    assert (loaded.calibration.count, loaded.calibration.given) == (1, 4)  # trained once, on the other three
    assert scores(loaded, drawn.test()) == scores(calibrated, drawn.test())


def test_says_what_it_learnt(fitted):
    assert "8 steps" in fitted.state()
    assert RD().state() == ""


def test_wrong_input_is_named(good, fitted, tmp_path):
    with pytest.raises(WrongInput, match="at least 2 normal pictures"):
        RD(image_size=64, steps=1).fit(good[:1])
    with pytest.raises(WrongInput, match="multiple of 32"):
        RD(image_size=100).fit(good)
    with pytest.raises(WrongInput, match="batch_size of 1"):
        RD(image_size=64, batch_size=0).fit(good)
    al.save(fitted, tmp_path / "model")
    other = al.load(tmp_path / "model", backbone="tiny:int8")
    with pytest.raises(WrongInput, match="other weights"):
        scores(other, good)
    wrong = al.load(tmp_path / "model")
    del wrong.student["decoder.stage1.0.body.0.weight"]
    with pytest.raises(WrongInput, match="missing"):
        scores(wrong, good)


def test_an_iterator_of_samples_is_enough(good):
    assert RD(image_size=64, steps=1).fit(iter(good)).fitted


@pytest.mark.parametrize("alias", ["rd4ad", "Reverse_Distillation"])
def test_other_names(alias):
    assert isinstance(al.create(alias), RD)


def test_without_torch_it_says_what_to_install(fitted, good, tmp_path, monkeypatch):
    al.save(fitted, tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"anomalens\[torch\]"):
        RD().fit(good)
    with pytest.raises(MissingExtra, match=r"anomalens\[torch\]"):
        scores(loaded, good)
