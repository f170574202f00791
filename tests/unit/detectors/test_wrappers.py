"""Detectors that hold detectors: tiles, views, regions of interest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import anomalens as al
from anomalens.datasets.procedural import Procedural
from anomalens.detector import Detector
from anomalens.detectors.per_view import most_suspicious
from anomalens.detectors.tiled import Tiled, starts
from anomalens.detectors.within import Within
from anomalens.errors import WrongInput
from anomalens.types import Prediction, Sample, View


@dataclass
class Brightness(Detector):
    """The map is the red channel; the score its maximum."""

    learned: ClassVar[tuple[str, ...]] = ()

    def predict(self, samples):
        for s in samples:
            red = s.image()[..., 0].astype(np.float32)
            yield Prediction(s.id, float(red.max()), red)


def sample(picture: np.ndarray, name: str = "a") -> Sample:
    return Sample(name, {"image": View("image", lambda: picture)})


@pytest.mark.parametrize("length", [10, 64, 65, 100, 1000, 1023])
@pytest.mark.parametrize(("side", "overlap"), [(64, 0), (64, 16), (64, 63), (500, 100)])
def test_tiles_cover_everything_and_share_the_overlap(length, side, overlap):
    first = starts(length, side, overlap)
    covered = np.zeros(length, int)
    for a in first:
        assert 0 <= a <= max(0, length - side)
        covered[a : a + side] += 1
    assert covered.min() >= 1
    for a, b in pairwise(first):
        assert a + side - b >= overlap


def test_tiles_of_a_map_that_knows_no_borders_join_to_the_same_map():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((130, 300), (64, 64), (20, 500), (97, 129))]
    tiled = Tiled(inner=Brightness(), tile=64, overlap=20)
    for p, picture in zip(tiled.predict([sample(x, str(i)) for i, x in enumerate(pictures)]), pictures, strict=True):
        assert np.allclose(p.map, picture[..., 0], atol=1e-3)
        assert p.score == picture[..., 0].max()


def test_only_one_large_picture_is_held_at_a_time():
    alive, most = 0, 0

    class Big(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def read():
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return np.zeros((400, 400, 3), np.uint8).view(Big)

    samples = [Sample(str(i), {"image": View("image", read)}) for i in range(6)]
    made = 0
    for _ in Tiled(inner=Brightness(), tile=100, overlap=10).predict(samples):
        made += 1
    assert made == 6


def test_small_defects_of_a_large_picture_stay_visible_in_tiles():
    rng = np.random.default_rng(0)
    weave = np.kron(rng.integers(90, 110, (2, 2, 3)), np.ones((2, 2, 1)))

    def large(seed: int, defect: bool) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 4, (640, 640, 1))
        picture = np.tile(weave, (160, 160, 1)) + noise
        if defect:
            picture[300:309, 420:429] += 60
        return np.clip(picture, 0, 255).astype(np.uint8)

    good = [sample(large(i, False), f"g{i}") for i in range(4)]
    tests = [sample(large(50 + i, i % 2 == 1), f"t{i}") for i in range(4)]
    detector = al.create("tiled", inner=al.create("patchcore", image_size=128), tile=160, overlap=32).fit(good)
    found = list(detector.predict(tests))
    scores = [p.score for p in found]
    assert min(scores[1::2]) > max(scores[::2])
    for p in found[1::2]:
        y, x = np.unravel_index(p.map.argmax(), p.map.shape)
        assert abs(y - 304) < 24
        assert abs(x - 424) < 24


def test_impossible_tiles_are_refused():
    with pytest.raises(WrongInput, match="overlap"):
        al.create("tiled", tile=64, overlap=64)


def test_every_view_gets_its_own_detector_and_the_worst_one_is_named():
    relief = Procedural("relief", size=96, train_count=6, good_count=2, bad_count=4)
    detector = al.create("per-view", inner=al.create("patchcore", image_size=96)).fit(relief.train())
    assert sorted(detector.by_view) == [f"light_{i}" for i in range(6)]
    test = relief.test()
    for s, p in zip(test, detector.predict(test), strict=True):
        alone = {v: next(iter(d.predict([only_view(s, v)]))).score for v, d in detector.by_view.items()}
        assert p.score == pytest.approx(max(alone.values()), rel=1e-5)
        assert p.reasons[0].text == f"most suspicious view: {max(alone, key=alone.get)}"
        total = sum(alone.values())
        assert p.reasons[0].shares == pytest.approx({v: score / total for v, score in alone.items()}, rel=1e-4)
    mean = al.create("per-view", inner=al.create("patchcore", image_size=96), combine="mean").fit(relief.train())
    assert next(mean.predict(test)).score < next(detector.predict(test)).score


@pytest.mark.parametrize("scores", [[-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [1.0, float("inf")]])
def test_scores_that_have_no_shares_have_none(scores):
    assert most_suspicious(["a", "b"], np.array(scores)).shares == {}


def only_view(s: Sample, view: str) -> Sample:
    return Sample(s.id, {"image": s.views[view]})


def test_a_missing_view_is_named():
    relief = Procedural("relief", size=64, train_count=3, good_count=1, bad_count=1)
    detector = al.create("per-view", inner=al.create("patchcore", image_size=64), views=("light_0", "light_9"))
    with pytest.raises(WrongInput, match="light_9"):
        detector.fit(relief.train())


def test_what_lies_outside_the_region_of_interest_never_counts(tmp_path):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[5, 50] = 200  # outside
    picture[30, 10] = 100  # inside
    mask = np.zeros((20, 30), np.uint8)
    mask[10:, :15] = 255
    Image.fromarray(mask).save(tmp_path / "roi.png")
    (p,) = Within(inner=Brightness(), mask_file=str(tmp_path / "roi.png")).predict([sample(picture)])
    assert p.score == 100
    assert p.map[5, 50] == p.map.min()
    (whole,) = Within(inner=Brightness()).predict([sample(picture)])
    assert whole.score == 200


def test_regions_of_interest_that_mean_nothing_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(WrongInput, match="not zero"):
        Within(inner=Brightness(), mask_file=str(tmp_path / "black.png"))
    with pytest.raises(WrongInput, match="does not exist"):
        Within(inner=Brightness(), mask_file="nowhere.png").fit([])
    speck = np.zeros((500, 500), np.uint8)
    speck[0, 1] = 255
    Image.fromarray(speck).save(tmp_path / "speck.png")
    with pytest.raises(WrongInput, match="covers no pixel"):
        list(
            Within(inner=Brightness(), mask_file=str(tmp_path / "speck.png")).predict(
                [sample(np.zeros((9, 9, 3), np.uint8))]
            )
        )
