"""PatchCore: what its settings promise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import anomalens as al
from anomalens.datasets.procedural import Procedural
from anomalens.errors import OutOfMemory, WrongInput
from anomalens.parts.batches import same_area


@pytest.fixture(scope="module")
def wood():
    return Procedural("wood", size=128, train_count=24, good_count=6, bad_count=6)


def scores(detector, samples) -> np.ndarray:
    return np.array([p.score for p in detector.predict(samples)])


def test_the_bank_has_the_size_that_was_asked_for(wood):
    detector = al.create("patchcore", image_size=128, coreset=0.1).fit(wood.train())
    assert detector.patches_seen == 24 * 16 * 16
    assert detector.bank.shape == (int(0.1 * 24 * 256), 192)
    assert detector.radius > 0
    capped = al.create("patchcore", image_size=128, coreset=0.5, largest_bank=300).fit(wood.train())
    assert len(capped.bank) == 300
    assert capped.radius > detector.radius


@pytest.mark.parametrize("image_score", ["map", "patch"])
def test_pruned_search_gives_the_exact_image_scores_and_maps_never_below(wood, image_score):
    exact = al.create("patchcore", image_size=128, coreset=0.5, search="exact", image_score=image_score).fit(
        wood.train()
    )
    found = list(exact.predict(wood.test()))
    exact.search = "pruned"
    pruned = list(exact.predict(wood.test()))
    for a, b in zip(found, pruned, strict=True):
        assert b.score == pytest.approx(a.score, rel=1e-4)
        assert (b.map >= a.map - 1e-4 * a.map.max()).all()
        assert np.median(b.map / a.map) < 1.02


def test_adding_samples_extends_the_bank_and_can_only_lower_scores(wood):
    half = wood.train()[:8]
    detector = al.create("patchcore", image_size=128).fit(half)
    before, rows = scores(detector, wood.test()), len(detector.bank)
    kept = detector.bank.copy()
    detector.add(wood.train()[8:])
    assert len(detector.bank) > rows
    assert np.array_equal(detector.bank[:rows], kept)
    assert detector.patches_seen == 24 * 256
    after = scores(detector, wood.test())
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    again = len(detector.bank)
    detector.add(wood.train())  # nothing new: all lie within the radius
    assert len(detector.bank) == again


def test_little_memory_gives_a_smaller_stage_and_too_little_a_sentence(wood):
    with pytest.raises(OutOfMemory, match=r"allow at least \d+MB"):
        al.create("patchcore", image_size=128, limit_memory="1MB").fit(wood.train())
    tight = al.create("patchcore", image_size=128, limit_memory="66MB").fit(wood.train())
    roomy = al.create("patchcore", image_size=128, limit_memory="1GB").fit(wood.train())
    assert tight.radius >= roomy.radius
    bad = np.array([s.label for s in wood.test()], bool)
    for detector in (tight, roomy):
        s = scores(detector, wood.test())
        assert (s[bad][:, None] > s[~bad]).mean() >= 0.8


def test_settings_that_make_no_sense_are_refused(wood):
    for settings in ({"coreset": 0.0}, {"coreset": 1.5}, {"largest_bank": 0}):
        with pytest.raises(WrongInput, match="coreset"):
            al.create("patchcore", image_size=64, **settings).fit(wood.train()[:2])
    with pytest.raises(WrongInput, match="memory"):
        al.create("patchcore", limit_memory="plenty").fit(wood.train()[:2])


def test_squares_neighbours_and_weights_change_what_they_say(wood):
    base = al.create("patchcore", image_size=128, image_score="patch", search="exact").fit(wood.train())
    plain = scores(base, wood.test())
    base.squared = True
    assert scores(base, wood.test()) == pytest.approx(plain**2, rel=1e-4)
    base.squared, base.neighbours = False, 3
    assert (scores(base, wood.test()) >= plain * (1 - 1e-6)).all()
    base.neighbours, base.reweight = 1, 9
    weighted = scores(base, wood.test())
    assert (weighted < plain).all()
    assert (weighted > 0).all()


def test_the_official_embedding_runs_end_to_end(wood):
    detector = al.create("patchcore", image_size=128, embedding="official", pretrain_dim=64, target_dim=96)
    s = scores(detector.fit(wood.train()), wood.test())
    bad = np.array([x.label for x in wood.test()], bool)
    assert detector.bank.shape[1] == 96
    assert (s[bad][:, None] > s[~bad]).mean() >= 0.8


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ((256, 256), (256, 256)),
        ((640, 640), (256, 256)),
        ((100, 400), (128, 512)),
        ((4000, 10), (512, 128)),
        ((1, 1), (256, 256)),
    ],
)
def test_pictures_keep_their_aspect_ratio(original, expected):
    assert same_area(original, (256, 256)) == expected


def test_pictures_of_many_shapes_are_searched_together(wood):
    rng = np.random.default_rng(0)
    shapes = [(128, 128), (60, 250), (60, 250), (250, 60), (128, 128), (90, 200)]
    pictures = [rng.integers(0, 255, (*s, 3), np.uint8) for s in shapes]
    template = wood.test()[0]
    samples = [
        dataclasses.replace(
            template, id=str(i), views={"image": dataclasses.replace(template.views["image"], read=lambda p=p: p)}
        )
        for i, p in enumerate(pictures)
    ]
    detector = al.create("patchcore", image_size=128).fit(wood.train())
    together = list(detector.predict(samples))
    for sample, p in zip(samples, together, strict=True):
        (alone,) = detector.predict([sample])
        assert alone.id == p.id
        assert alone.score == pytest.approx(p.score, rel=1e-4)


def test_other_weights_are_noticed(wood, tmp_path):
    detector = al.create("patchcore", image_size=64).fit(wood.train()[:3])
    detector.weights["fingerprint"] = "0" * 64
    al.save(detector, tmp_path / "m")
    with pytest.raises(WrongInput, match="other weights"):
        list(al.load(tmp_path / "m").predict(wood.test()))


def test_int8_is_calibrated_on_the_good_pictures_and_saved(wood, resnet18, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "cache"))
    settings = {"image_size": 128, "backbone": resnet18}
    full = al.create("patchcore", **settings).fit(wood.train())
    small = al.create("patchcore", engine="onnx-int8", **settings).fit(wood.train())
    assert min(small.weights["cosine"]) > 0.98
    al.save(small, tmp_path / "m")
    loaded = al.load(tmp_path / "m")
    assert np.array_equal(scores(loaded, wood.test()), scores(small, wood.test()))
    bad = np.array([s.label for s in wood.test()], bool)
    for detector in (full, loaded):
        s = scores(detector, wood.test())
        assert (s[bad][:, None] > s[~bad]).mean() >= 0.9
    with pytest.raises(WrongInput, match="twice"):
        al.create("patchcore", engine="onnx-int8", **settings).fit(iter(wood.train()))
