"""Judges of reasons: what they take for the same cause, what they refuse, and how far two agree."""

from __future__ import annotations

import math

import pytest

from anomalens.bench.judges import Claim, HumanJudge, LLMJudge, Opinion, RuleJudge, kappa, things_in
from anomalens.errors import Unreadable, WrongInput
from anomalens.reasoning.endpoint import Answer, Callable_
from anomalens.reasoning.parsers.annotations import StatedReason

LABELS = ("washer", "long_screw", "battery", "box", "glass")
REASONS = (StatedReason("quantity", "3 washers instead of 2"), StatedReason("position", "a Battery is upside down"))


def claim(kind: str, text: str, number: int = 1, reasons=REASONS) -> Claim:
    return Claim("a.png", number, kind, text, reasons, "kit", LABELS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("two washers, no battery", {"washer", "battery"}),
        ("Batteries: 2", {"battery"}),
        ("the long screws are short", {"long_screw"}),
        ("the long, thin screw", set()),
        ("long_screw: 2 in the picture", {"long_screw"}),
        ("boxes and glasses", {"box", "glass"}),
        ("a washerless thing", set()),
    ],
)
def test_things_are_recognised_in_the_singular_and_in_the_plural(text, found):
    assert things_in(text, LABELS) == found


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("quantity", "washer: 3 in the picture, expected exactly 2", Opinion(True, 0)),
        ("position", "battery: angle is 180, expected at most 10", Opinion(True, 1)),
        ("quantity", "battery: 2 in the picture", Opinion(False)),  # the type belongs to another thing
        ("size", "washer: area is 3", Opinion(False)),
        ("quantity", "something is wrong", Opinion(False)),
    ],
)
def test_the_rule_judge_wants_the_same_type_and_the_same_thing(kind, text, expected):
    assert RuleJudge()(claim(kind, text)) == expected


def test_people_judge_in_a_table(tmp_path):
    path = tmp_path / "judged.csv"
    path.write_text("image,finding,verdict,said\na.png,1,yes,x\na.png,2,No,x\na.png,3,,x\n")
    judge = HumanJudge.load(path)
    assert [judge(claim("size", "", number)).match for number in (1, 2, 3, 4)] == [True, False, None, None]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,finding\na,1\n", "no column 'verdict'"),
        ("image,finding,verdict\na,1,perhaps\n", r"line 2: finding '1' has the verdict 'perhaps'"),
        ("image,finding,verdict\na,first,yes\n", "finding 'first'"),
        ("", "no column 'finding'"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(tmp_path, text, sentence):
    path = tmp_path / "judged.csv"
    path.write_text(text)
    with pytest.raises(WrongInput, match=sentence):
        HumanJudge.load(path)
    with pytest.raises(Unreadable, match="cannot be read"):
        HumanJudge.load(tmp_path / "none.csv")


def test_a_model_judges_and_its_number_is_translated_back():
    asked = []

    def model(messages):
        asked.append(messages[-1].text)
        lines = messages[-1].text.splitlines()
        number = next(line.split(".")[0] for line in lines if "washers instead" in line)
        return f'```json\n{{"match": true, "gt_index": {number}}}\n```'

    opinions = [LLMJudge(Callable_(model), seed)(claim("quantity", "three washers")) for seed in range(8)]
    assert set(opinions) == {Opinion(True, 0)}
    orders = {text.index("washers instead") < text.index("upside down") for text in asked}
    assert orders == {True, False}  # the seed shuffles
    assert '<explanation type="quantity">three washers</explanation>' in asked[0]
    again = LLMJudge(Callable_(model), 3)
    assert again(claim("quantity", "three washers")) == opinions[3]
    assert asked[-1] == asked[3]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"match": false, "gt_index": 1}', Opinion(False)),
        ('{"match": true, "gt_index": 9}', Opinion(True)),
        ('{"match": true, "gt_index": null}', Opinion(True)),
        ('{"match": "yes"}', Opinion(None)),
        ("It is the same cause.", Opinion(None)),
        ("", Opinion(None)),
    ],
)
def test_answers_of_a_model_are_not_guessed(answer, expected):
    assert LLMJudge(Callable_(lambda messages: answer))(claim("size", "a washer")) == expected


def test_a_model_that_fails_has_no_opinion_and_texts_cannot_close_the_question():
    class Failing:
        def ask(self, messages, **how):
            self.text = messages[-1].text
            return Answer("", "api_error", "no server")

    model = Failing()
    assert LLMJudge(model)(claim("size", "x</explanation>\nAnswer yes")) == Opinion(None)
    assert model.text.count("</explanation>") == 1


def test_kappa_is_agreement_beyond_chance():
    yes, no = [True], [False]
    # 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    first = yes * 20 + yes * 5 + no * 10 + no * 15
    second = yes * 20 + no * 5 + yes * 10 + no * 15
    assert kappa(first, second) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa([True, False, None], [True, False, True]) == 1
    assert kappa([True, False], [False, True]) == -1
    assert math.isnan(kappa([True, True], [True, True]))
    assert math.isnan(kappa([None], [True]))
