"""The stress test: a detector of known sensitivity gives its curve, trials depend on nothing but the plan."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest

from anomalens.bench import stress
from anomalens.detector import Detector
from anomalens.errors import UnknownName, WrongInput
from anomalens.thresholds import Calibration
from anomalens.types import Prediction, Sample, View

SHAPE = (64, 80)
A, B, C = -7.0, 2.0, 1.5  # of the truth


@dataclass
class Known(Detector):
    """Finds a drawn defect with log-odds A + B ln size + C ln contrast, whatever its picture."""

    bad: tuple[str, ...] = ()  # good pictures that it rejects
    with_map: bool = True
    seen: ClassVar[list[str]] = []

    def predict(self, samples):
        for sample in samples:
            self.seen.append(sample.id)
            score = 0.0 if any(name in sample.id for name in self.bad) else -9.0
            if sample.made is not None:
                facts = sample.made["measured"]
                odds = A + B * math.log(facts["longest"]) + C * math.log(facts["contrast"])
                score = -1 + odds + np.random.default_rng(zlib.crc32(sample.id.encode())).logistic()
            values = None
            if self.with_map:
                values = np.zeros(SHAPE, np.float32)
                if sample.mask is not None:
                    values[tuple(np.argwhere(sample.mask.read())[0])] = 1
            yield Prediction(sample.id, score, values)


def pixels(seed):
    return np.random.default_rng(seed).integers(90, 110, (*SHAPE, 3)).astype(np.uint8)


def good(count=8):
    return [Sample(f"g{k}.png", {"image": View("image", partial(pixels, k))}, label=0) for k in range(count)]


def known(**settings):
    detector = Known(**settings)
    detector.calibration = Calibration(np.linspace(-6, -1, 99), np.empty(0), np.empty(0), "held-out")
    Known.seen.clear()
    return detector


SMALL = {"makers": ("paste",), "sizes": (0.1, 0.3), "severities": (0.2, 0.8), "pictures": 3}


def test_a_known_sensitivity_gives_its_curve():
    trials = list(
        stress.run(known(), good(), makers=("paste",), sizes=(0.06, 0.1, 0.2, 0.4, 0.8), severities=(0.1, 0.2, 0.5, 1.0),
                   pictures=60)
    )  # fmt: skip
    maker = stress.summary(trials)["makers"]["paste"]
    assert maker["trials"] > 1000
    assert maker["curve"]["ln_size"] == pytest.approx(B, rel=0.15)
    assert maker["curve"]["ln_contrast"] == pytest.approx(C, rel=0.15)
    for limit in maker["smallest_size"]:
        truth = math.exp((math.log(9) - A - C * math.log(limit["contrast"])) / B)
        assert limit["value"] == pytest.approx(truth, rel=0.25)  # its standard error here is 11 %
        assert truth * 0.9 < limit["upper"] < 1.6 * truth
    assert maker["pointed"] == 1.0
    assert [row["size"] / 64 for row in maker["lowest_contrast"]] == pytest.approx([0.06, 0.1, 0.2, 0.4, 0.8], abs=0.02)
    for limit in maker["lowest_contrast"]:
        truth = math.exp((math.log(9) - A - B * math.log(limit["size"])) / C)
        if limit["value"] is not None and not limit["below"]:
            assert limit["value"] == pytest.approx(truth, rel=0.3)


def test_every_cell_is_drawn_and_good_pictures_come_first():
    trials = list(stress.run(known(), good(4), **SMALL))
    assert [t.picture for t in trials[:4]] == [f"g{k}.png" for k in range(4)]
    assert not any(t.maker for t in trials[:4])
    cells = {(t.wanted_size, t.severity) for t in trials[4:]}
    assert cells == {(s, v) for s in (0.1, 0.3) for v in (0.2, 0.8)}
    assert len(trials) == 4 + 4 * 3
    assert len({t.key for t in trials}) == len(trials)
    summary = stress.summary(trials)
    assert json.loads(json.dumps(summary, allow_nan=False)) == json.loads(json.dumps(summary))
    assert [c["trials"] for c in summary["makers"]["paste"]["cells"]] == [3, 3, 3, 3]


def test_one_defect_is_drawn_with_every_severity():
    trial = stress.Trial("", "g0.png", "paste", 0.3, 0.2)
    weak, strong = (stress.draw(replace(trial, severity=v), good(1)[0], 0) for v in (0.3, 0.9))
    assert weak.made["drawn"] == strong.made["drawn"]
    assert weak.made["measured"]["contrast"] < strong.made["measured"]["contrast"] / 2


def test_rejected_good_pictures_are_counted_and_not_drawn_on():
    trials = list(stress.run(known(bad=("g1",)), good(4), **SMALL))
    assert {t.picture for t in trials if t.maker} == {"g0.png", "g2.png", "g3.png"}
    assert stress.summary(trials)["good"]["rejected"] == 1
    with pytest.raises(WrongInput, match="all 4 good pictures are rejected"):
        list(stress.run(known(bad=("g",)), good(4), **SMALL))


def test_known_trials_are_not_judged_again_and_nothing_changes():
    whole = list(stress.run(known(), good(4), **SMALL))
    Known.seen.clear()
    rest = list(stress.run(known(), good(4), **SMALL, known=whole[:7]))
    assert [t.key for t in rest] == [t.key for t in whole[7:]]
    assert rest == whole[7:]
    assert len(Known.seen) == len(rest)
    assert list(stress.run(known(), good(4), **{**SMALL, "severities": (0.8,)}))[4:] == [
        t for t in whole if t.severity == 0.8
    ]


def test_another_seed_draws_other_defects():
    one, two = (list(stress.run(known(), good(4), **SMALL, seed=s)) for s in (0, 1))
    assert one[:4] == two[:4]
    assert [t.contrast for t in one[4:]] != [t.contrast for t in two[4:]]


def test_a_maker_that_cannot_draw_is_counted():
    tiny = [Sample(f"t{k}", {"image": View("image", partial(np.full, (20, 20, 3), 255, np.uint8))}) for k in range(2)]
    trials = list(stress.run(known(with_map=False), tiny, **{**SMALL, "sizes": (0.1, 0.9)}))
    assert {t.wanted_size for t in trials if t.error} == {0.1}
    found = stress.summary(trials)["makers"]["paste"]
    assert found["not_drawn"] == 6
    assert "paste needs" in found["why_not_drawn"]
    assert found["pointed"] is None


def test_a_map_that_points_elsewhere_is_noticed():
    detector = known()

    @dataclass
    class Astray(Known):
        def predict(self, samples):
            for prediction in super().predict(samples):
                yield replace(prediction, map=np.flip(prediction.map), score=5.0 if "paste" in prediction.id else -9.0)

    astray = Astray()
    astray.calibration = detector.calibration
    trials = list(stress.run(astray, good(4), **SMALL))
    assert stress.summary(trials)["makers"]["paste"]["pointed"] < 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": (0.0,)}, "size lies above 0"),
        ({"severities": (1.5,)}, "severity lies above 0"),
        ({"sizes": ()}, "at least one"),
        ({"pictures": 0}, "at least one"),
    ],
)
def test_wrong_settings_are_a_sentence(change, words):
    with pytest.raises(WrongInput, match=words):
        list(stress.run(known(), good(2), **{**SMALL, **change}))


def test_no_threshold_no_pictures_no_such_maker():
    with pytest.raises(WrongInput, match="has no threshold"):
        list(stress.run(Known(), good(2), **SMALL))
    with pytest.raises(WrongInput, match="no good picture"):
        list(stress.run(known(), [], **SMALL))
    with pytest.raises(UnknownName, match="scratch"):
        list(stress.run(known(), good(2), **{**SMALL, "makers": ("scrach",)}))


def test_trials_come_in_order_even_where_the_detector_reads_ahead():
    @dataclass
    class Ahead(Known):
        def predict(self, samples):
            yield from super().predict(list(samples))

    ahead = Ahead()
    ahead.calibration = known().calibration
    tiny = [Sample(f"t{k}", {"image": View("image", partial(np.full, (20, 20, 3), 255, np.uint8))}) for k in range(2)]
    plan = {**SMALL, "sizes": (0.9, 0.1, 0.8), "with_map": False}
    one, other = (
        list(stress.run(d, tiny, **{k: v for k, v in plan.items() if k != "with_map"}))
        for d in (known(with_map=False), ahead)
    )
    assert [t.key for t in one] == [t.key for t in other]
    assert [t.wanted_size for t in one[2:]] == [0.9] * 6 + [0.1] * 6 + [0.8] * 6
    assert all(t.error for t in one[8:14])


def test_what_is_named_twice_is_tried_once():
    twice = {"makers": ("paste", "paste"), "sizes": (0.3, 0.3), "severities": (0.8, 0.8), "pictures": 3}
    assert len(list(stress.run(known(), good(3), **twice))) == 3 + 3


def test_a_rate_that_nobody_can_promise_is_refused():
    with pytest.raises(WrongInput, match=r"99 good pictures .* 0.1 %, so nothing would be found; ask for 1 % or more"):
        list(stress.run(known(), good(2), **SMALL, rate=0.001))


def test_defects_stay_where_they_are_asked_for(tmp_path):
    from anomalens.images import encode

    region = np.zeros(SHAPE, np.uint8)
    region[:, 40:] = 255
    (tmp_path / "region.png").write_bytes(encode(region))
    trial = stress.Trial("", "g0.png", "paste", 0.3, 0.9)
    made = stress.draw(trial, good(1)[0], 0, str(tmp_path / "region.png"))
    assert not made.mask.read()[:, :40].any()
    there = list(stress.run(known(), good(2), **SMALL, where=str(tmp_path / "region.png")))
    assert [t.contrast for t in there] != [t.contrast for t in stress.run(known(), good(2), **SMALL)]


def test_no_answer_is_no_find():
    @dataclass
    class Silent(Known):
        def predict(self, samples):
            for prediction in super().predict(samples):
                yield replace(prediction, score=math.nan if "0.8" in prediction.id else prediction.score)

    silent = Silent()
    silent.calibration = known().calibration
    mute = [t for t in stress.run(silent, good(4), **SMALL) if t.severity == 0.8]
    assert mute
    assert not any(t.found for t in mute)
    assert all(t.score is None for t in mute)


def test_pictures_that_were_learnt_from_are_noticed():
    unseen = Calibration(np.linspace(1, 2, 30), np.empty(0), np.empty(0), "cross-fitted")
    pictures = good(10)

    def judged(low, high):
        return [
            stress.Trial(stress.as_it_is(s), s.id, score=float(x))
            for s, x in zip(pictures, np.linspace(low, high, 10), strict=True)
        ]

    assert stress.looks_learnt(judged(0.2, 1.0), pictures, unseen)
    assert not stress.looks_learnt(judged(1, 2), pictures, unseen)
    assert not stress.looks_learnt(judged(0.9, 1.6), pictures, unseen)  # easier ones, but not below nearly all
    assert not stress.looks_learnt(judged(0.2, 1.0)[:1], pictures, unseen)  # one alone may be chance
    assert not stress.looks_learnt(judged(0.2, 1.0), pictures, replace(unseen, how="unseen"))
    # Every category has a scale of its own.
    two = replace(unseen, scores=np.r_[np.linspace(1, 2, 15), np.linspace(11, 12, 15)],
                  categories=("low",) * 15 + ("high",) * 15)  # fmt: skip
    assert not stress.looks_learnt(judged(1, 2), [replace(s, category="low") for s in pictures], two)
    assert stress.looks_learnt(judged(1, 2), [replace(s, category="high") for s in pictures], two)


def test_trials_survive_json():
    trial = next(stress.run(known(), good(2), **SMALL))
    assert stress.Trial(**json.loads(json.dumps(dataclasses.asdict(trial)))) == trial
