"""What models say, as data: every way they wrap, break or contradict the JSON that was asked for."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalens.reasoning.answers import Defect, first_json, judge, refuses, share, verdict_probability
from anomalens.reasoning.endpoint import Answer, Token
from tests.support.answers import GOOD, NOISE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Sure! ```{"a": 1}``` Hope that helps.', {"a": 1}),
        ('Here {not json} it is: {"a": {"b": "}"}} and {"c": 2}', {"a": {"b": "}"}}),
        ('{"a": "line\nbreak and \\"quote\\" }"}', {"a": 'line\nbreak and "quote" }'}),
        (
            "{'a': 'it's fine', 'b': True, 'c': None, 'd': [1, 2,],}",
            {"a": "it's fine", "b": True, "c": None, "d": [1, 2]},
        ),
        ("""{'say': 'a "word"', "True": false}""", {"say": 'a "word"', "True": False}),
        ('{"a": "Zölle, 品質 \\u00e9"}', {"a": "Zölle, 品質 é"}),
        ('{"a": NaN, "b": Infinity}', {"a": None, "b": None}),
        ('a 5" pipe {"a": 1}', {"a": 1}),
        ('{"a": 1, "a": 1}', {"a": 1}),
        ('{"a": 1, "a": 2}', None),
        ('{"a": [{"b": 1}], "c": "cut o', None),
        ("[1, 2]", None),
        ("", None),
        ("{", None),
        ("}{", None),
    ],
)
def test_the_first_object_in_a_text(text, expected):
    assert first_json(text) == expected


def test_hostile_text_costs_little():
    assert first_json("{" * 50_000) is None
    assert first_json('{"a":' * 20_000 + "1" + "}" * 20_000) is None  # too deep to be meant
    assert first_json('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}") is None


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_no_text_raises(text):
    first_json(text)
    first_json("{" + text + "}")
    assert judge(Answer(text)).status in ("ok", "refused", "unparsable")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.booleans() | st.integers(-5, 5), max_size=4))
@settings(max_examples=100)
def test_every_object_survives_prose_and_fences(value):
    assert first_json(f"I think:\n```json\n{json.dumps(value, indent=2)}\n```\nThat is all.") == value


def test_a_good_answer():
    found = judge(Answer(GOOD))
    assert (found.status, found.anomalous, found.confidence, found.reasoning) == ("ok", True, 0.9, "a dent")
    assert found.defects == (Defect("dent", "left", (0, 0, 500, 250)),)
    assert found.error == ""


@pytest.mark.parametrize("name", NOISE)
def test_noise_gives_the_right_verdict_or_a_status(name):
    text, expected = NOISE[name]
    found = judge(Answer(text))
    if isinstance(expected, bool):
        assert (found.status, found.anomalous) == ("ok", expected)
        return
    assert (found.status, found.anomalous) == (expected, None)
    assert found.error.endswith((".", "'", "...", '"'))
    assert "\n" not in found.error
    assert found.text == text


def test_contradictions_are_named():
    assert "contradicts itself" in judge(Answer(NOISE["two answers"][0])).error
    assert "'crack'" in judge(Answer(NOISE["normal with a defect"][0])).error


def test_what_the_endpoint_says_is_passed_on():
    found = judge(Answer(GOOD, "truncated", "the answer was cut."))
    assert (found.status, found.anomalous, found.error) == ("truncated", None, "the answer was cut.")


def test_invalid_places_and_confidences_cost_only_themselves():
    boxes = [
        [0, 0, 1001, 5],
        [0, 0, 0, 5],
        [1, 2, 3],
        "left",
        [0, 0, True, 5],
        [900, 800, 100, 200],
        [0, 0, float("inf"), 1],
    ]
    defects = [{"type": "x", "box": b} for b in boxes] + ["bare words", 7, {"type": "none"}, {"mark": 2}]
    found = judge(Answer(json.dumps({"anomalous": 1, "confidence": 250, "defects": defects})))
    assert found.anomalous is True
    assert found.confidence is None
    assert [d.box for d in found.defects if d.box] == [(100, 200, 900, 800)]
    assert [d.kind for d in found.defects][-2:] == ["bare words", "defect"]
    assert found.defects[-1].mark == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [(93, 0.93), (93.5, 0.935), ("93%", 0.93), ("0.5", 0.5), (0.93, 0.93), (1.0, 1.0), (1, 0.01), (0, 0.0), (100, 1.0),
     (101, None), (-1, None), (True, None), (None, None), ("high", None), (math.nan, None), ([5], None)],
)  # fmt: skip
def test_confidence_as_a_share(value, expected):
    assert share(value) == expected


@pytest.mark.parametrize(
    "text", ["I’m sorry, I can't.", "I cannot judge this", "As an AI model", "Unfortunately, I am"]
)
def test_refusals(text):
    assert refuses(text)


def test_a_verdict_is_no_refusal():
    assert not refuses("The surface is sorry to look at")
    assert judge(Answer(f"I'm sorry for the delay. {GOOD}")).anomalous is True


def tokens(*pieces: str, verdict: str, top: dict[str, float]) -> tuple[Token, ...]:
    return tuple(Token(p, top[p] if p == verdict else -0.1, top if p == verdict else {}) for p in pieces)


def test_probability_of_the_verdict_token():
    top = {" true": math.log(0.6), " false": math.log(0.2), " maybe": math.log(0.2)}
    pieces = ('{"reasoning": "they say \\"anomalous\\": false"', ', "anom', 'alous":', " true", ', "confidence": 3}')
    found = verdict_probability(tokens(*pieces, verdict=" true", top=top))
    assert found == pytest.approx(0.75)
    answer = Answer("".join(pieces), tokens=tokens(*pieces, verdict=" true", top=top))
    assert judge(answer).probability == pytest.approx(0.75)


def test_probability_of_the_official_verdict_is_turned():
    top = {"1": math.log(0.9), "0": math.log(0.1)}
    assert verdict_probability(tokens('{"correctness": ', "1", "}", verdict="1", top=top)) == pytest.approx(0.1)


def test_without_tokens_there_is_no_probability():
    assert verdict_probability(()) is None
    assert verdict_probability((Token("hello", -0.1, {}),)) is None
    assert verdict_probability((Token('"anomalous": ', 0, {}), Token("perhaps", -0.1, {"perhaps": -0.1}))) is None
