"""LogiCode as a detector: rules in, verdicts with reasons and places out; nothing untrusted is run, nothing disappears."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import anomalens as al
from anomalens.calibrate import fit_calibrated
from anomalens.datasets.folder import Folder
from anomalens.detectors.logicode import LogiCode, asks_what_is_usual, whole_pixels
from anomalens.errors import NotFitted, ProgramGenerationError, SandboxUnavailable, UnknownName, Unreadable, WrongInput
from anomalens.metrics import image as image_metrics
from anomalens.reasoning import rules as rule_files
from anomalens.reasoning.endpoint import Callable_
from anomalens.reasoning.logicode import from_rules, save_program
from anomalens.reasoning.parsers.segments import Segments
from anomalens.reasoning.rules import RuleSet
from anomalens.reasoning.sandbox import sandbox
from anomalens.types import Sample, View
from tests.support import mini_loco
from tests.support.rules import (
    COUNTS,
    ENDLESS,
    EXTRA,
    IN_WORDS,
    LEARNT,
    LEFT,
    MISPLACED,
    MISSING,
    NUTS,
    TRAY,
    tray,
    trays,
)


@pytest.fixture(autouse=True, scope="module")
def _sandbox():
    try:
        sandbox()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def made(rules: str = TRAY, **settings) -> LogiCode:
    return al.create("logicode", **{"rules": rules, "cache": "", **NUTS, **settings})


def one(detector, *sample):
    (prediction,) = detector.predict([tray(*sample)])
    return prediction


# Verdicts without good pictures: rules that need no statistics and a parser that learns nothing.


def test_a_broken_rule_is_a_reject_with_rule_reason_and_place():
    detector = made()
    assert not detector.needs_fit
    fine, missing, extra, misplaced = detector.predict([tray(c, 7) for c in (LEFT, MISSING, EXTRA, MISPLACED)])
    assert (fine.verdict, fine.score, fine.reasons, float(fine.map.max())) == ("pass", 0.0, (), 0.0)
    assert {p.verdict for p in (missing, extra, misplaced)} == {"reject"}
    assert {p.score for p in (missing, extra, misplaced)} == {1.0}
    assert [r.rule for r in missing.reasons] == ["R1", "R2"]
    assert missing.reasons[1].text == "nut: 0 in row 2, column 2 of left, expected exactly 1"
    assert missing.reasons[1].box == (64, 64, 129, 128)  # left ends at 0.6667 * 192
    assert [r.rule for r in misplaced.reasons] == ["R2", "R3"]
    x0, y0, x1, y1 = misplaced.reasons[1].box
    assert x0 >= 128
    assert y0 >= 64
    assert 36 <= x1 - x0 <= 44
    assert 36 <= y1 - y0 <= 44


def test_the_map_is_of_the_picture_and_narrow_places_stand_out():
    extra = one(made(), EXTRA)
    assert extra.map.shape == (128, 192)
    assert extra.map.dtype == np.float32
    x0, y0, x1, y1 = extra.reasons[1].box  # the nut in the right column, named by the rule for that column
    middle = extra.map[(y0 + y1) // 2, (x0 + x1) // 2]
    others = extra.map[:, :128]
    assert 0 < others.max() < middle < 1
    assert extra.map[60:68, 60:68].max() == 0  # between the nuts


def test_severity_is_the_score():
    detector = made("labels: [nut]\nrules:\n  - {count: nut, exactly: 4, severity: 0.3}\n")
    assert one(detector, MISSING).score == 0.3


def test_a_finding_without_a_place_keeps_its_score():
    program = 'def check(image):\n    return [image.finding("quantity", "something is wrong", rule="R9")]\n'
    prediction = one(made("", program=program))
    assert (prediction.score, prediction.verdict) == (1.0, "reject")
    assert prediction.reasons[0].box is None
    assert prediction.map.max() == 0


def test_boxes_become_whole_pixels_within_the_picture():
    assert whole_pixels((-3.5, 1.2, 7.9, 200), 20, 10) == (0, 1, 8, 10)
    assert whole_pixels((30, 30, 40, 40), 20, 10) == (19, 9, 20, 10)
    assert whole_pixels((4, 4, 4, 4), 20, 10) == (4, 4, 5, 5)


def test_several_workers_change_nothing():
    samples = [tray(cells, i) for i in range(4) for cells in (LEFT, MISSING, EXTRA)]
    assert [(p.id, p.score, p.reasons) for p in made(workers=3).predict(samples)] == [
        (p.id, p.score, p.reasons) for p in made().predict(samples)
    ]


# With good pictures.


def test_what_needs_good_pictures_says_why():
    with pytest.raises(NotFitted, match="R4 goes by what is usual"):
        one(made(LEARNT))
    with pytest.raises(NotFitted, match="the parser parts learns"):
        one(al.create("logicode", rules=TRAY))
    with pytest.raises(NotFitted, match="the program is tried on them"):
        one(made(IN_WORDS, program="model"))
    assert not asks_what_is_usual(from_rules(rule_files.parse(TRAY, "YAML")).source)
    assert asks_what_is_usual(from_rules(rule_files.parse(LEARNT, "YAML")).source)


def test_learnt_sizes_and_the_k_of_the_detector():
    detector = made(LEARNT).fit(trays(8))
    assert [r.rule for r in one(detector, LEFT, 99, 26).reasons] == ["R4"] * 4
    assert one(detector, LEFT, 99).verdict == "pass"
    assert one(made(LEARNT, k=60.0).fit(trays(8)), LEFT, 99, 26).verdict == "pass"
    assert detector.state() == "LogiCode checks 4 rules; of 8 good pictures all keep them."


def test_good_pictures_that_break_rules_are_counted():
    state = made().fit([*trays(5), tray(MISSING, 3)]).state()
    assert state == "LogiCode checks 3 rules; of 6 good pictures 1 breaks one (R1: 1, R2: 1)."


def test_rules_that_do_not_fit_and_rules_that_are_not_checked_are_named():
    state = made("labels: [nut]\nrules: [{count: nut, exactly: 5}]\n").fit(trays(6)).state()
    assert "6 break one (R1: 6). Most good pictures break R1, so that breaking it rejects nothing: look at" in state
    state = made(program="def check(image):\n    return []\n").fit(trays(6)).state()
    assert state.endswith("all keep them. The program never names R1, R2 and R3: look whether it checks that.")
    with pytest.warns(UserWarning, match="unreviewed"):
        state = made(TRAY + "unreviewed: true\n").fit(trays(6)).state()
    assert state.endswith("all keep them. The rules were drafted by a model and are unreviewed.")


def test_a_program_of_your_own_that_fails_is_to_be_corrected():
    with pytest.raises(WrongInput, match=r"failed in line 2 .* on the good picture .*; correct the program\."):
        made(program='def check(image):\n    return [image.find("nut")[4]]\n').fit(trays(3))


def test_a_region_outside_of_the_picture_is_refused_or_told():
    rules = TRAY.replace("right: [0.6667, 0, 1, 1]", "right: [900, 0, 1000, 100]")
    with pytest.raises(WrongInput, match=r"region 'right' is .* outside of 4-0.png with 192 x 128 pixels"):
        made(rules).fit(trays(3))
    found = one(made(rules))
    assert (found.verdict, found.score) == ("reject", 1.0)
    assert "outside of" in found.reasons[0].text


def test_calibration_promises_what_the_count_allows():
    detector = fit_calibrated(made(LEARNT), trays(12))
    fine, missing = (detector.calibration.judge(p) for p in detector.predict([tray(LEFT, 70), tray(MISSING, 71)]))
    assert (fine.p_value, fine.verdict, fine.regions) == (1.0, "pass", ())
    assert (missing.p_value, missing.verdict) == (1 / 13, "reject")
    assert missing.regions


def test_the_parser_parts_learns_and_takes_its_names_from_the_rules():
    detector = al.create("logicode", rules=TRAY).fit(trays(6))
    assert detector.kept["parser"]["settings"]["names"] == ("nut",)
    assert [one(detector, cells, 30).verdict for cells in (LEFT, MISSING)] == ["pass", "reject"]


@pytest.mark.parametrize("category", ["screw_bag", "splicing_connectors"])
def test_annotated_pictures_are_judged_right(category, tmp_path):
    notes = mini_loco.write(tmp_path, category, train=8, validation=0, good=3, each=1)
    rules = RuleSet.from_dict(mini_loco.RULES[category])
    detector = al.create("logicode", rules=rules, parser="annotations", parser_settings={"root": str(notes / category)})

    def there(part: str) -> list[Sample]:
        found = al.samples(str(tmp_path / category / part))
        return [replace(s, id=f"{part}/{s.id}") for s in found]

    detector.fit(there("train/good"))
    assert {p.verdict for p in detector.predict(there("test/good"))} == {"pass"}
    wrong = list(detector.predict(there("test/logical_anomalies")))
    assert {p.verdict for p in wrong} == {"reject"}
    assert all(p.reasons[0].box and p.map.max() > 0 for p in wrong)


def test_on_composed_photographs(shared):
    folder = Folder(str(shared / "data" / "nut_tray"))
    detector = al.create("logicode", rules=TRAY).fit(folder.train()[::7])
    test = folder.test()[::3]
    scores = np.array([p.score for p in detector.predict(test)])
    assert image_metrics(scores, np.array([s.label for s in test]))["auroc"].value >= 0.95


# Saved: everything is in the folder.


def test_a_saved_detector_needs_no_other_file(tmp_path):
    (tmp_path / "tray.yaml").write_text(LEARNT)
    save_program(from_rules(rule_files.parse(LEARNT, "YAML")), tmp_path / "p.py")
    detector = made(str(tmp_path / "tray.yaml"), program=str(tmp_path / "p.py")).fit(trays(5))
    al.save(detector, tmp_path / "model")
    for name in ("tray.yaml", "p.py", "p.json"):
        (tmp_path / name).unlink()
    loaded = al.load(tmp_path / "model")
    before, after = one(detector, MISSING), one(loaded, MISSING)
    assert before.reasons == after.reasons
    assert np.array_equal(before.map, after.map)
    assert loaded.state() == detector.state()


@pytest.mark.parametrize("change", ["return []", "import os"])
def test_a_program_that_was_tampered_with_is_refused(change, tmp_path):
    al.save(made(program=COUNTS).fit(trays(3)), tmp_path / "model")
    path = tmp_path / "model" / "detector.json"
    text = path.read_text()
    kept = text.rindex("nuts = image.find")
    path.write_text(text[:kept] + change + "\\n    " + text[kept:])
    with pytest.raises(WrongInput, match=r"not the one that was saved|may not be run"):
        al.load(tmp_path / "model")


def test_a_saved_folder_cannot_ask_for_less_isolation(tmp_path):
    al.save(made(program=COUNTS).fit(trays(2)), tmp_path / "model")
    path = tmp_path / "model" / "detector.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "settings": {**saved["settings"], "allow_unsafe_execution": True}}))
    with pytest.raises(UnknownName, match="allow_unsafe_execution"):
        al.load(tmp_path / "model")
    path.write_text(json.dumps({**saved, "settings": {**saved["settings"], "isolation": "process-only"}}))
    with pytest.raises(WrongInput, match="allow_unsafe_execution=True"):
        one(al.load(tmp_path / "model"))
    trusting = made(program=COUNTS, isolation="process-only")
    trusting.allow_unsafe_execution = True
    with pytest.warns(UserWarning, match="without isolation"):
        assert one(trusting.unfitted(), MISSING).verdict == "reject"


def test_a_parser_of_your_own(tmp_path):
    def segment(picture):
        return [picture[..., 0] > 120], ["nut"]

    detector = made("labels: [nut]\nrules: [{present: nut}]", parser=Segments(segment, ("nut",)), parser_settings={})
    assert one(detector.fit(trays(3)), LEFT).verdict == "pass"
    assert one(detector.unfitted(), ()).reasons[0].rule == "R1"
    al.save(detector, tmp_path / "model")
    assert "function" in one(al.load(tmp_path / "model")).reasons[0].text
    assert one(al.load(tmp_path / "model", parser=Segments(segment, ("nut",)))).verdict == "pass"


# Pictures that cannot be judged.


@pytest.mark.parametrize(
    ("on_error", "score", "verdict"),
    [("anomalous", 1.0, "reject"), ("normal", 0.0, "pass"), ("review", None, "review")],
)
def test_what_cannot_be_judged_does_not_disappear(on_error, score, verdict):
    fails = 'def check(image):\n    if image.count("nut") < 4:\n        raise ValueError("no")\n    return []\n'
    detector = made(program=fails, on_error=on_error)
    fine, failed = detector.predict([tray(LEFT), tray(MISSING)])
    assert fine.verdict == "pass"
    assert failed.verdict == verdict
    assert math.isnan(failed.score) if score is None else failed.score == score
    assert failed.reasons[0].text.startswith("Could not be judged: the program failed in line 3 (")
    assert failed.map.shape == (128, 192)


def test_raise_names_the_picture():
    fails = 'def check(image):\n    return [1 / (image.count("nut") - 3)][:0]\n'
    with pytest.raises(WrongInput, match=r"3-0\.png could not be judged: the program failed in line 2"):
        one(made(program=fails, on_error="raise"), MISSING)


def test_a_program_that_never_ends_is_ended():
    failed = one(made(program=ENDLESS))
    assert failed.verdict == "reject"
    assert "did not end in time" in failed.reasons[0].text
    with pytest.raises(WrongInput, match=r"did not end in time .* on the good picture"):
        made(program=ENDLESS).fit(trays(2))


def test_a_picture_without_annotation_is_not_judged_and_not_lost(tmp_path):
    (tmp_path / "4-1.json").write_text(json.dumps({"shapes": [], "imageHeight": 128, "imageWidth": 192}))
    detector = al.create("logicode", rules=TRAY, parser="annotations", parser_settings={"root": str(tmp_path)})
    known, unknown = detector.predict([tray(LEFT, 1), tray(LEFT, 2)])
    assert known.reasons[0].text == "nut: 0 in the picture, expected exactly 4"
    assert "has no annotation" in unknown.reasons[0].text
    assert unknown.verdict == "reject"


def test_a_damaged_picture_is_an_error_as_with_every_method(tmp_path):
    def torn():
        raise Unreadable("torn.png is damaged.")

    with pytest.raises(Unreadable, match="torn"):
        list(made().predict([Sample("torn.png", {"image": View("image", torn)})]))


# Wrong input: one sentence each, before anything is judged.


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rules": "labels: [nut]\nrules: [{count: nut, exactly: 4}, {count: nut, at_least: 5}]"}, WrongInput, "R1"),
        ({"rules": "nothere.yaml"}, Unreadable, "nothere.yaml cannot be read"),
        ({"rules": "rules: ["}, WrongInput, r"ends in|cannot be read|is not YAML"),
        ({"rules": "a: 1\nb: 2"}, WrongInput, "has no list of rules"),
        ({"parser": "colour-blobs"}, UnknownName, "did you mean 'color-blobs'"),
        ({"parser_settings": {}}, WrongInput, "missing .*ranges"),
        ({"parser_settings": {"range": 1}}, UnknownName, "did you mean 'ranges'"),
        ({"program": "import os\n\n\ndef check(image):\n    return []\n"}, WrongInput, "may not be run: line 1"),
        ({"program": "nothere.py"}, Unreadable, "nothere.py cannot be read"),
        ({"program": "{}"}, WrongInput, "no program"),
        ({"workers": 0}, WrongInput, "at least 1"),
    ],
)
def test_wrong_settings_are_refused_when_it_is_made(settings, error, said):
    with pytest.raises(error, match=said):
        made(**settings)


def test_labels_that_no_parser_knows_are_named():
    rules = TRAY.replace("labels: [nut]", "labels: [nut, washer]")
    with pytest.raises(WrongInput, match=r"label 'washer': no parser here knows 'washer' \(known: nut"):
        made(rules).fit(trays(2))
    with pytest.raises(WrongInput, match="washer"):
        one(made(rules))


def test_rules_are_needed_and_words_need_a_model():
    with pytest.raises(WrongInput, match="no rules to check"):
        made("").fit(trays(2))
    with pytest.raises(WrongInput, match="no rules to check"):
        one(made(""))
    with pytest.raises(WrongInput, match="is words only: let a language model"):
        made(IN_WORDS).fit(trays(2))
    with pytest.raises(WrongInput, match="could read none of 0"):
        made().fit([])
    with pytest.raises(WrongInput, match=r"base_url|server|address"):
        made(IN_WORDS, program="model").fit(trays(2))


def test_rules_may_be_a_ready_set_or_an_object():
    ready = made("pushpins")
    assert [rule.id for rule in ready.ruleset.rules] == ["R1", "R2"]
    assert made(rule_files.parse(TRAY, "YAML")).rules == made().rules
    assert made(json.dumps(json.loads(made().rules))).ruleset == made().ruleset
    assert isinstance(made().ruleset, RuleSet)


# A language model writes the program.


class Scripted:
    """A model that gives these answers, and counts."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), 0

    def __call__(self, messages) -> str:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]

    def settings(self) -> dict:
        return {"program": "model", "model": Callable_(self, "scripted")}


def fenced(source: str) -> str:
    return f"```python\n{source}\n```"


def test_a_model_writes_the_program_once(tmp_path):
    model = Scripted("no idea", fenced(COUNTS))
    detector = made(IN_WORDS, cache=str(tmp_path), **model.settings()).fit(trays(6))
    assert model.asked == 2  # one correction
    assert (
        detector.state() == "LogiCode checks 1 rule by a program that scripted wrote; of 6 good pictures all keep them."
    )
    assert one(detector, MISSING).reasons[0].text == "3 nuts, 4 expected"
    again = detector.unfitted().fit(trays(6))
    assert model.asked == 2  # from the cache
    assert again.kept == detector.kept
    al.save(detector, tmp_path / "model")
    assert one(al.load(tmp_path / "model"), EXTRA).verdict == "reject"
    assert model.asked == 2


def test_calibration_asks_a_model_once():
    model = Scripted(fenced(COUNTS))
    detector = fit_calibrated(made(IN_WORDS, **model.settings()), trays(12))
    assert model.asked == 1
    assert detector.calibration.how == "held-out"


def test_a_server_that_lies_is_told_in_one_sentence(tmp_path):
    spy = tmp_path / "owned"
    hostile = f"import pathlib\n\n\ndef check(image):\n    pathlib.Path({str(spy)!r}).touch()\n    return []\n"
    model = Scripted(fenced(hostile), fenced("def check(image):\n    return 5\n"), "{}", fenced(ENDLESS[:20]))
    with pytest.raises(ProgramGenerationError, match="no program was accepted for tray in 4 answers") as refused:
        made(IN_WORDS, **model.settings()).fit(trays(3))
    assert [report.result for report in refused.value.reports] == ["static", "invalid_output", "no_code", "syntax"]
    assert "\n" not in str(refused.value)
    assert not spy.exists()
