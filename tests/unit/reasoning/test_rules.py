"""Typed rules: read, checked against each other, compiled, and judged by the programs they become."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml

from anomalens.errors import CannotWrite, Unreadable, WrongInput
from anomalens.metrics import image as image_metrics
from anomalens.reasoning import program_api, static_check
from anomalens.reasoning.parsers.parts import Parts
from anomalens.reasoning.rules import FORMS, Rule, RuleSet, compile, load, problems, save
from anomalens.reasoning.scene import Scene, measure, statistics
from anomalens.types import Sample, View
from tests.support import mini_loco

BLANK = np.zeros((100, 200, 3), np.uint8)


def rules(*given, regions=None, labels=(), **more) -> RuleSet:
    halves = {"left": [0, 0, 0.5, 1], "right": [0.5, 0, 1, 1], "corner": [0, 0, 0.25, 0.5]}
    return RuleSet.from_dict({"rules": list(given), "regions": regions or halves, "labels": list(labels), **more})


def scene(*objects, stats=None, attributes=None) -> Scene:
    """Objects as (label, x0, y0, x1, y1), or with a colour behind."""
    image, masks = BLANK.copy(), []
    for _, x0, y0, x1, y1, *colour in objects:
        mask = np.zeros(BLANK.shape[:2], bool)
        mask[y0:y1, x0:x1] = True
        image[mask] = colour[0] if colour else (200, 40, 40)
        masks.append(mask)
    names = [name for name, *_ in objects]
    return measure(masks, names, image, attributes=attributes).scene.with_stats(stats or {})


def run(source: str, one: Scene) -> list[dict]:
    assert static_check.check(source) == ()
    space = program_api.namespace()
    exec(source, space)  # trusted: written by compile, or by hand in mini_loco
    return space["check"](program_api.Image(one.to_dict()))


def judge(ruleset: RuleSet, one: Scene) -> list[dict]:
    return run(compile(ruleset), ruleset.place(one))


# --- forms ---


def test_count_says_what_was_found_and_expected_and_where_a_part_is_missing():
    four = rules({"count": "nut", "exactly": 2, "in": "left"})
    assert judge(four, scene(("nut", 5, 5, 15, 15), ("nut", 25, 5, 35, 15), ("nut", 150, 5, 160, 15))) == []
    (finding,) = judge(four, scene(("nut", 5, 5, 15, 15)))
    assert finding["reason"] == "nut: 1 in left, expected exactly 2"
    assert (finding["rule"], finding["type"], finding["severity"]) == ("R1", "quantity", 1.0)
    assert finding["boxes"] == [[0, 0, 100, 100]]
    (finding,) = judge(four, scene(*[("nut", x, 5, x + 5, 15) for x in (5, 15, 25)]))
    assert (sorted(finding["objects"]), finding["boxes"]) == ([0, 1, 2], [])


@pytest.mark.parametrize(
    ("limits", "right", "wrong", "said"),
    [
        ({"at_least": 2}, (2, 3), (0, 1), "at least 2"),
        ({"at_most": 2}, (0, 2), (3,), "at most 2"),
        ({"at_least": 1, "at_most": 2}, (1, 2), (0, 3), "1 to 2"),
        ({"exactly": 0}, (0,), (1,), "none"),
    ],
)
def test_count_ranges(limits, right, wrong, said):
    ruleset = rules({"count": "nut", **limits})
    for number in right:
        assert judge(ruleset, scene(*[("nut", 10 * i, 5, 10 * i + 5, 15) for i in range(number)])) == []
    for number in wrong:
        (finding,) = judge(ruleset, scene(*[("nut", 10 * i, 5, 10 * i + 5, 15) for i in range(number)]))
        assert finding["reason"] == f"nut: {number} in the picture, expected {said}"


def test_what_is_missing_anywhere_is_looked_for_where_it_usually_is():
    ruleset = rules({"count": "nut", "exactly": 1})
    (finding,) = judge(ruleset, scene())
    assert finding["boxes"] == [[0, 0, 200, 100]]
    stats = statistics([scene(("nut", 20, 30, 30, 40)), scene(("nut", 24, 28, 34, 38))])
    (finding,) = judge(ruleset, scene(stats=stats))
    assert finding["boxes"] == [[20, 28, 34, 40]]


def test_each_cell_of_a_grid():
    ruleset = rules({"count": "nut", "exactly": 1, "in": "left", "cells": [2, 2]})
    found = judge(
        ruleset, scene(("nut", 5, 5, 15, 15), ("nut", 60, 5, 70, 15), ("nut", 75, 5, 85, 15), ("nut", 5, 60, 9, 70))
    )
    assert [f["reason"] for f in found] == [
        "nut: 2 in row 1, column 2 of left, expected exactly 1",
        "nut: 0 in row 2, column 2 of left, expected exactly 1",
    ]
    assert found[0]["objects"] == [1, 2]
    assert found[1]["boxes"] == [[50, 50, 100, 100]]
    whole = rules({"present": "nut", "cells": [1, 2]})
    (finding,) = judge(whole, scene(("nut", 5, 5, 15, 15)))
    assert finding["reason"] == "nut: 0 in row 1, column 2 of the picture, expected at least 1"


def test_present_and_absent():
    assert judge(rules({"present": "nut"}), scene(("nut", 5, 5, 15, 15))) == []
    (finding,) = judge(rules({"present": "nut", "in": "right"}), scene(("nut", 5, 5, 15, 15)))
    assert finding["reason"] == "nut: 0 in right, expected at least 1"
    (finding,) = judge(rules({"absent": "nut", "in": "left", "type": "position"}), scene(("nut", 5, 5, 15, 15)))
    assert (finding["type"], finding["reason"]) == ("position", "nut: 1 in left, expected none")


def test_sizes_given():
    ruleset = rules({"size": "bar", "field": "length", "at_least": 20, "at_most": 30})
    assert judge(ruleset, scene(("bar", 5, 5, 30, 15))) == []
    assert judge(ruleset, scene(("bar", 5, 5, 15, 15)))[0]["reason"] == "bar: length is 10, expected at least 20"
    long = scene(("bar", 5, 5, 45, 15), ("bar", 5, 30, 30, 40))
    (finding,) = judge(ruleset, long)
    assert (finding["reason"], finding["objects"], finding["type"]) == (
        "bar: length is 40, expected at most 30",
        [0],
        "size",
    )
    there = rules({"size": "bar", "at_most": 5, "in": "right"})
    assert judge(there, scene(("bar", 5, 5, 30, 15))) == []
    assert judge(there, scene(("bar", 150, 5, 170, 15)))[0]["reason"] == "bar: area is 200, expected at most 5"


def test_sizes_learnt_are_k_sigma_or_the_range_seen():
    usual = statistics([scene(("bar", 0, 0, length, 10)) for length in (20, 22, 24)])
    std = float(np.std([20, 22, 24]))
    for k, allowed in ((3.0, 22 + 3 * std), (0.1, 24.0)):
        ruleset = rules({"size": "bar", "field": "length", "learnt": True, "k": k})
        assert judge(ruleset, scene(("bar", 0, 0, int(allowed), 10), stats=usual)) == []
        (finding,) = judge(ruleset, scene(("bar", 0, 0, int(allowed) + 1, 10), stats=usual))
        assert finding["reason"].endswith("as in normal pictures")
        assert f"length is {int(allowed) + 1}, expected " in finding["reason"]


def test_what_was_never_learnt_is_an_error_and_no_silence():
    with pytest.raises(KeyError, match="normal pictures had no 'bar'"):
        judge(rules({"size": "bar", "learnt": True}), scene(("bar", 0, 0, 9, 9)))


def test_places():
    inside = rules({"place": "nut", "in": "left"})
    assert judge(inside, scene(("nut", 80, 5, 115, 15))) == []  # by its centre
    assert judge(rules({"place": "nut", "in": "left", "mode": "full"}), scene(("nut", 80, 5, 115, 15)))
    (finding,) = judge(inside, scene(("nut", 150, 5, 160, 15)))
    assert finding["reason"] == "nut: at (155, 10), expected in left, from (0, 0) to (100, 100)"
    assert finding["type"] == "position"


@pytest.mark.parametrize(
    ("relation", "words", "holds"),
    [
        ("left_of", "x is 10, expected left of cap at", lambda a, b: a[0] < b[0]),
        ("right_of", "x is 10, expected right of cap at", lambda a, b: a[0] > b[0]),
        ("above", "y is 10, expected above cap at", lambda a, b: a[1] < b[1]),
        ("below", "y is 10, expected below cap at", lambda a, b: a[1] > b[1]),
    ],
)
def test_relations(relation, words, holds):
    ruleset = rules({"place": "nut", relation: "cap"})
    for x, y in ((0, 40), (40, 0), (40, 40), (0, 0)):
        one = scene(("nut", 5, 5, 15, 15), ("cap", x, y, x + 10, y + 10))
        found = judge(ruleset, one)
        assert bool(found) != holds((10, 10), (x + 5, y + 5))
        assert all(words in f["reason"] for f in found)
    assert judge(ruleset, scene(("nut", 5, 5, 15, 15))) == []


def test_places_learnt():
    usual = statistics([scene(("nut", x, 40, x + 10, 50)) for x in (10, 12, 14)])
    ruleset = rules({"place": "nut", "learnt": True})
    assert judge(ruleset, scene(("nut", 13, 40, 23, 50), stats=usual)) == []
    (finding,) = judge(ruleset, scene(("nut", 90, 40, 100, 50), stats=usual))
    assert finding["reason"].startswith("nut: center_x is 95, expected ")


def test_a_colour_decides_a_count():
    ruleset = rules({"match": "cable.color", "to": "clamp.count", "pairs": {"yellow": 2, "red": 1}})
    yellow = ("cable", 0, 0, 50, 5, (230, 210, 40))
    clamps = [("clamp", 10 * i, 50, 10 * i + 5, 60) for i in range(2)]
    assert judge(ruleset, scene(yellow, *clamps)) == []
    (finding,) = judge(ruleset, scene(yellow, clamps[0]))
    assert finding["reason"] == "clamp: count is 1, expected 2 because color of cable is yellow"
    assert (finding["type"], finding["objects"]) == ("matching", [0, 1])
    (finding,) = judge(ruleset, scene(("cable", 0, 0, 50, 5, (40, 60, 220)), *clamps))
    assert finding["reason"] == "cable: color is blue, expected one of yellow, red"


def test_an_attribute_decides_another():
    ruleset = rules({"match": "icon.fruit", "to": "juice.kind"})
    objects = [("icon", 0, 0, 5, 5), ("juice", 0, 20, 50, 60)]
    assert judge(ruleset, scene(*objects, attributes=[{"fruit": "cherry"}, {"kind": "cherry"}])) == []
    (finding,) = judge(ruleset, scene(*objects, attributes=[{"fruit": "cherry"}, {"kind": "plum"}]))
    assert finding["reason"] == "juice: kind is plum, expected cherry because fruit of icon is cherry"
    numbers = rules({"match": "icon.n", "to": "juice.count", "pairs": [[3, 1], [5, 2]]})
    assert judge(numbers, scene(*objects, attributes=[{"n": 3.0}, {}])) == []


def test_the_same_size():
    ruleset = rules({"same": ["a", "b"], "field": "length", "within": 0.1})
    assert judge(ruleset, scene(("a", 0, 0, 40, 5), ("b", 0, 20, 44, 25))) == []
    (finding,) = judge(ruleset, scene(("a", 0, 0, 40, 5), ("b", 0, 20, 50, 25)))
    assert finding["reason"] == "a and b: length is 40 to 50, expected the same within 10 %"
    assert judge(ruleset, scene(("a", 0, 0, 40, 5))) == []


def test_attributes_have_sizes_too():
    ruleset = rules({"size": "nut", "field": "attributes.pitch", "at_most": 2})
    assert judge(ruleset, scene(("nut", 0, 0, 5, 5), attributes=[{"pitch": 1.5}])) == []
    assert (
        "pitch is 3, expected" in judge(ruleset, scene(("nut", 0, 0, 5, 5), attributes=[{"pitch": 3.0}]))[0]["reason"]
    )
    assert "not known" in judge(ruleset, scene(("nut", 0, 0, 5, 5)))[0]["reason"]


def test_severity_is_passed_on_by_every_form():
    given = [
        {"count": "a", "exactly": 5},
        {"count": "a", "exactly": 5, "cells": [1, 1]},
        {"size": "a", "at_most": 1},
        {"place": "a", "in": "right"},
        {"place": "a", "right_of": "b"},
        {"size": "a", "learnt": True},
        {"match": "a.count", "to": "b.count", "pairs": {1: 3}},
        {"same": ["a", "b"], "within": 0},
    ]
    one = scene(("a", 0, 0, 10, 10), ("b", 20, 0, 60, 10), stats=statistics([scene(("a", 0, 0, 3, 3))]))
    for rule in given:
        found = judge(rules({**rule, "severity": 0.25}), one)
        assert [f["severity"] for f in found] == [0.25], rule


# --- compiled programs ---


HOSTILE = "\"; import os #\n\\{x}'\u2028é"


def test_any_text_stays_text():
    names = {"regions": {HOSTILE: [0, 0, 0.5, 1]}, "labels": [HOSTILE]}
    ruleset = rules(
        {"count": HOSTILE, "exactly": 1, "in": HOSTILE, "id": HOSTILE, "text": HOSTILE},
        {"match": f"{HOSTILE}.{HOSTILE}", "to": f"{HOSTILE}.count", "pairs": {HOSTILE: 1}},
        **names,
    )
    found = judge(ruleset, scene())
    assert HOSTILE.split("\n")[0] in found[0]["reason"]
    assert found[0]["rule"] == HOSTILE


def test_a_program_holds_what_it_needs_and_nothing_else():
    source = compile(rules({"count": "nut", "exactly": 1}))
    defined = [line.split("(")[0] for line in source.splitlines() if line.startswith("def ")]
    assert defined == ["def expected", "def count", "def usual_box", "def check"]
    assert "# R1: count nut: exactly 1" in source
    assert compile(rules({"count": "nut", "exactly": 1})) == source


def test_every_form_compiles_within_the_contract():
    given = [
        {"count": "a", "exactly": 1, "in": "left", "cells": [2, 2]},
        {"count": "a", "at_least": 1},
        {"present": "a"},
        {"absent": "b", "in": "corner"},
        {"size": "a", "at_least": 1},
        {"size": "a", "learnt": True},
        {"place": "a", "in": "left"},
        {"place": "a", "left_of": "b"},
        {"place": "a", "learnt": True},
        {"match": "a.color", "to": "b.kind"},
        {"same": "a"},
    ]
    assert {next(iter(rule)) for rule in given} == set(FORMS)
    assert problems(rules(*given)) == []
    assert static_check.check(compile(rules(*given))) == ()


def test_empty_scenes_and_strange_ones_raise_nothing():
    source = compile(
        rules(
            {"count": "a", "exactly": 1, "cells": [2, 2]},
            {"size": "a", "learnt": True},
            {"place": "a", "left_of": "b"},
            {"place": "b", "learnt": True},
            {"match": "a.color", "to": "b.color"},
            {"same": ["a", "b"]},
        )
    )
    stats = statistics([scene(("a", 0, 0, 5, 5), ("b", 20, 0, 25, 5))])
    twice = [("a", 0, 0, 5, 5), ("a", 0, 0, 5, 5), ("b", 20, 0, 25, 5)]
    for one in (scene(stats=stats), scene(*twice, stats=stats), scene(("c", 0, 0, 9, 9), stats=stats)):
        run(source, one)


def test_words_only_need_a_language_model():
    ruleset = rules({"count": "nut", "exactly": 1}, "position: the nut lies with its cap upwards")
    assert ruleset.rules[1] == Rule("R2", "position", "the nut lies with its cap upwards")
    assert problems(ruleset) == []
    with pytest.raises(WrongInput, match=r"rule R2 \('the nut lies .* language model"):
        compile(ruleset)
    with pytest.raises(WrongInput, match="no rule"):
        compile(RuleSet())


def test_unreviewed_rules_warn():
    with pytest.warns(UserWarning, match="unreviewed"):
        compile(rules({"count": "nut", "exactly": 1}, unreviewed=True))


def test_too_many_rules_are_refused():
    with pytest.raises(WrongInput, match="over the limit of 20000"):
        compile(rules(*[{"count": "nut", "exactly": 1, "text": "x" * 150} for _ in range(100)]))


# --- problems ---

CELLS = {"count": "nut", "exactly": 1, "in": "left", "cells": [2, 2]}
COLOUR = {"match": "nut.color", "to": "cap.count"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"count": "nut", "exactly": 2}, {"count": "nut", "exactly": 3}], "R1 and R2 contradict"),
        ([{"count": "nut", "exactly": 2, "in": "left"}, {"absent": "nut", "in": "left"}], "R1 and R2 contradict"),
        ([{"present": "nut", "in": "corner"}, {"absent": "nut", "in": "left"}], "R[12] and R[12] contradict"),
        ([{"count": "nut", "at_least": 3, "in": "left"}, {"count": "nut", "at_most": 2}], "contradict"),
        (
            [{"count": "nut", "exactly": 5}, CELLS, {"absent": "nut", "in": "right"}],
            "R1 and R2 and R3 contradict .* together at most 4",
        ),
        (
            [{"count": "nut", "at_most": 4}, CELLS, {"present": "nut", "in": "right"}],
            "together at least 5",
        ),
        ([{"count": "nut", "exactly": 1, "cells": [2, 2]}, {"count": "nut", "exactly": 2, "cells": [2, 2]}], "contradict"),
        ([{"count": "nut", "at_least": 3, "at_most": 2}], "at least 3 and at most 2 cannot both hold"),
        ([{"size": "nut", "at_least": 9}, {"size": "nut", "at_most": 5}], "at least 9 and at most 5"),
        ([{"place": "nut", "in": "left"}, {"place": "nut", "in": "right"}], "do not overlap"),
        ([{"place": "nut", "in": "left"}, {"present": "nut", "in": "right"}], "every nut is to be in left"),
        ([{"place": "nut", "left_of": "cap"}, {"place": "nut", "right_of": "cap"}], "left of nut is a circle"),
        ([{"place": "nut", "above": "cap"}, {"place": "cap", "above": "pin"}, {"place": "nut", "below": "pin"}], "circle"),
        ([{"place": "nut", "left_of": "nut"}], "circle"),
        (
            [{**COLOUR, "pairs": {"red": 1}}, {**COLOUR, "pairs": {"red": 2}}],
            "red of nut.color asks for 1 and for 2",
        ),
        ([{"match": "nut.color", "to": "cap.count", "pairs": {"red": 1}}, {"count": "cap", "exactly": 4}], "pairs ask for 1"),
    ],
)  # fmt: skip
def test_contradictions_are_one_sentence(given, said):
    found = problems(rules(*given))
    assert len(found) == 1, found
    assert re.search(said, found[0])
    with pytest.raises(WrongInput, match=r"contradict|cannot both hold"):
        compile(rules(*given))


@pytest.mark.parametrize(
    "given",
    [
        [{"count": "nut", "exactly": 4}, CELLS, {"absent": "nut", "in": "right"}],
        [{"count": "nut", "exactly": 2}, {"count": "cap", "exactly": 3}],
        [{"count": "nut", "at_least": 2}, {"count": "nut", "at_most": 2}],
        [{"count": "nut", "exactly": 1, "in": "corner"}, {"count": "nut", "exactly": 2, "in": "left"}],
        [{"size": "nut", "at_least": 5}, {"size": "nut", "at_most": 9}, {"size": "nut", "field": "length", "at_most": 1}],
        [{"size": "nut", "at_least": 9, "in": "left"}, {"size": "nut", "at_most": 5, "in": "right"}],
        [{"place": "nut", "left_of": "cap"}, {"place": "nut", "above": "cap"}, {"place": "cap", "left_of": "pin"}],
        [{"place": "nut", "in": "left"}, {"place": "nut", "in": "corner"}],
        [{"match": "nut.color", "to": "cap.count", "pairs": {"red": 1, "blue": 4}}, {"count": "cap", "exactly": 4}],
    ],
)  # fmt: skip
def test_rules_that_can_all_hold_are_left_alone(given):
    assert problems(rules(*given)) == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"count": "nut"}, "rule R1: 'count' needs a range"),
        ({"count": "nut", "exactly": 2, "at_most": 3}, "exactly stands alone"),
        ({"count": "nut", "exactly": 1.5}, "1.5 is not a number of things"),
        ({"count": "nut", "exactly": -1}, "-1 is not a number"),
        ({"count": "nut", "exactly": True}, "exactly is True; give a number"),
        ({"count": "nut", "exactly": "two"}, "exactly is 'two'; give a number"),
        ({"count": "nut", "exactly": 10**400}, "give a number"),
        ({"count": "nut", "exactly": float("nan")}, "give a number"),
        ({"count": 5, "exactly": 1}, "count is 5; name a label"),
        ({"count": "nut", "exacly": 4, "at_most": 4}, "not 'exacly'; did you mean 'exactly'"),
        ({"count": "nut", "exactly": 1, "in": "lefft"}, "no region is named 'lefft' .* did you mean 'left'"),
        ({"count": "nut", "exactly": 1, "in": ["left"]}, "no region is named"),
        ({"count": "nut", "exactly": 1, "in": "bowl"}, "no region is named 'bowl' .*; add it to regions"),
        ({"count": "nut", "exactly": 1, "cells": [2]}, r"cells is \[2\]; give \[rows, columns\]"),
        ({"count": "nut", "exactly": 1, "cells": [0, 2]}, "cells is"),
        ({"count": "nut", "exactly": 1, "severity": 0}, "severity is 0"),
        ({"size": "nut"}, "'size' needs a range; add at_least, at_most, or learnt: true"),
        ({"size": "nut", "field": "lenght", "at_most": 1}, "field is 'lenght'; .* did you mean 'length'"),
        ({"size": "nut", "field": ["length"], "at_most": 1}, "field is"),
        ({"size": "nut", "learnt": True, "at_most": 1}, "learnt or given"),
        ({"size": "nut", "learnt": "yes"}, "learnt is 'yes'"),
        ({"size": "nut", "learnt": True, "k": 0}, "k is 0"),
        ({"size": "nut", "at_most": 1, "k": 2}, "k is for learnt"),
        ({"size": "nut", "learnt": True, "in": "left"}, "whole picture"),
        ({"place": "nut"}, "exactly one of in, left_of"),
        ({"place": "nut", "in": "left", "above": "nut"}, "exactly one of"),
        ({"place": "nut", "in": "left", "mode": "whole"}, "mode is 'whole'"),
        ({"match": "nut", "to": "cap.count"}, "write LABEL.color"),
        ({"match": "nut.color"}, "to is None"),
        ({"match": "nut.color", "to": "cap.count", "pairs": {"rod": 1}}, "'rod' is not a colour; .* did you mean 'red'"),
        ({"match": "nut.color", "to": "cap.count", "pairs": {"red": "many"}}, "'many' is not a number of things"),
        ({"match": "nut.color", "to": "cap.count", "pairs": 3}, "pairs is 3"),
        ({"match": "nut.color", "to": "cap.count", "pairs": [[["a"], 1]]}, "pairs is"),
        ({"same": ["nut"], "within": 2}, "within is 2"),
        ({"same": []}, "name a label"),
        ({"exactly": 4, "type": "quantity", "text": "four"}, "'exactly' without a form"),
    ],
)  # fmt: skip
def test_what_a_rule_gets_wrong_is_one_sentence(rule, said):
    (found,) = problems(rules(rule))
    assert re.search(said, found)
    assert found.startswith("rule R1: ")
    assert found.count(". ") == 0


def test_labels_that_no_parser_knows():
    ruleset = rules({"count": "nutt", "exactly": 1}, {"place": "nut", "above": "bolt"})
    assert problems(ruleset, ("nut", "washer")) == [
        "rule R1: no parser here knows 'nutt' (known: nut, washer); did you mean 'nut'?",
        "rule R2: no parser here knows 'bolt' (known: nut, washer); name the parts in labels: [...], or correct the rule.",
    ]
    with pytest.raises(WrongInput, match=r"knows 'nutt' .* \(1 more: see problems\(\)\)"):
        compile(ruleset, ("nut", "washer"))
    assert problems(rules(labels=["nut", "cap"]), ("nut",)) == [
        "label 'cap': no parser here knows 'cap' (known: nut); correct the rule or the parser."
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("rules:\n- {count: nut, exactly: 4}\nrules:\n- {absent: nut}\n", r"'rules' twice in one place \(line 3\)"),
        ("rules:\n- {count: nut,\n   count: bolt, exactly: 4}\n", r"'count' twice in one place \(line 3\)"),
        ('{"rules": [{"count": "nut", "count": "bolt"}]}', "'count' twice in one place; write it once"),
    ],
)
def test_a_word_that_is_there_twice_hides_no_rule(tmp_path, written, said):
    path = tmp_path / ("rules.json" if written.startswith("{") else "rules.yaml")
    path.write_text(written)
    with pytest.raises(WrongInput, match=said):
        load(path)


def test_words_need_no_quotes(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        "labels: [nut, long screw]\nrules:\n- position: the caps point upwards\n- size: all nuts are equally long\n"
        "- 'quantity: four'\n- {id: B, matching: cap and base agree}\n- {size: long screw}\n"
        "- {size: nut, at_most: 4}\n"
    )
    assert [(r.id, r.type, r.text, r.form) for r in load(path).rules] == [
        ("R1", "position", "the caps point upwards", ""),
        ("R2", "size", "all nuts are equally long", ""),
        ("R3", "quantity", "four", ""),
        ("B", "matching", "cap and base agree", ""),
        ("R5", "size", "size long screw", "size"),
        ("R6", "size", "size nut: at most 4", "size"),
    ]


def test_a_region_of_mixed_units_or_outside_of_the_picture_checks_nothing_unsaid():
    half = rules({"absent": "nut", "in": "right"}, regions={"right": [0.66, 0, 1.5, 1]})
    assert [re.sub(":.*;", ";", said) for said in problems(half)] == [
        "region 'right' is [0.66, 0.0, 1.5, 1.0]; give fractions from 0 to 1, or pixels, for all four."
    ]
    assert problems(rules({"absent": "nut", "in": "right"}, regions={"right": [0, 0, 2, 2]})) == []
    away = rules({"absent": "nut", "in": "right"}, regions={"right": [200, 0, 300, 100]})
    with pytest.raises(WrongInput, match=r"region 'right' is \[200.0, .* outside of the picture with 200 x 100 pixels"):
        away.place(scene())
    edge = rules({"absent": "nut", "in": "right"}, regions={"right": [199, 0, 300, 100]})
    assert edge.place(scene()).regions == {"right": (199, 0, 300, 100)}


def test_a_pair_that_contradicts_is_told_once():
    said = problems(
        rules(
            {"count": "nut", "exactly": 4},
            {"count": "nut", "exactly": 5, "in": "left"},
            {"present": "nut", "in": "right"},
        )
    )
    assert [line.split(" contradict")[0] for line in said] == ["rules R1 and R2"]
    (said,) = problems(rules({"absent": "nut"}, {"count": "nut", "exactly": 5}))
    assert "no nut in the picture (R1), but exactly 5" in said


@pytest.mark.parametrize(
    "rule",
    [
        {"match": "juice.fruit", "to": "icon.fruit"},
        {"match": "juice.fruit", "to": "icon.count", "pairs": {"cherry": 1}},
        {"match": "icon.count", "to": "juice.fruit"},
        {"same": ["juice", "icon"], "field": "attributes.fruit"},
        {"size": "juice", "field": "attributes.fruit", "at_least": 1},
    ],
)
def test_an_attribute_that_the_parser_does_not_give_breaks_the_rule(rule):
    found = judge(rules(rule), scene(("juice", 5, 5, 15, 15), ("icon", 25, 5, 35, 15)))
    assert found
    assert all("not known" in finding["reason"] for finding in found)


def test_ids_must_differ_and_names_be_short():
    (found,) = problems(rules({"count": "a", "exactly": 1, "id": "A"}, {"count": "b", "exactly": 1, "id": "A"}))
    assert found == "rule A: more than one rule has this id; give each its own."
    (found,) = problems(rules({"count": "a" * 61, "exactly": 1}))
    assert "at most 60" in found
    (found,) = problems(RuleSet(regions={"left": (1, 0, 0, 1)}))
    assert "region 'left'" in found


# --- files ---


def test_rules_survive_being_written(tmp_path):
    ruleset = rules(
        {"count": "nut", "exactly": 4, "text": "Vier Nüsse"},
        {"match": "nut.color", "to": "cap.count", "pairs": {"red": 1}},
        {"match": "nut.n", "to": "cap.count", "pairs": {3: 1, 5: 2}},
        "size: all nuts are alike",
        category="tray",
        labels=["nut", "cap"],
        unreviewed=True,
    )
    for name in ("rules.yaml", "rules.yml", "rules.json"):
        again = load(save(ruleset, tmp_path / "deep" / name))
        assert (again.labels, again.regions, again.category, again.unreviewed) == (
            ruleset.labels,
            ruleset.regions,
            "tray",
            True,
        )
        with pytest.warns(UserWarning, match="unreviewed"):
            assert compile(RuleSet(rules=again.rules[:3], unreviewed=True)) == compile(
                RuleSet(rules=ruleset.rules[:3], unreviewed=True)
            )
        assert again.rules[3] == ruleset.rules[3]


def test_params_may_be_nested_and_ids_left_out():
    ruleset = RuleSet.from_dict({"rules": [{"params": {"count": "nut", "exactly": 4}}, {"id": "B", "present": "nut"}]})
    assert [(r.id, r.type, r.form) for r in ruleset.rules] == [
        ("R1", "quantity", "count"),
        ("B", "quantity", "present"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no list of rules"),
        ([], "has no list of rules"),
        ({"rules": {}}, "has no list of rules"),
        ({"rules": [], "lables": []}, "has 'lables'; .* did you mean 'labels'"),
        ({"rules": [], "labels": "nut"}, "labels of .* are 'nut'"),
        ({"rules": [], "regions": [1]}, r"regions of .* are \[1\]"),
        ({"rules": [], "regions": {"a": [1, 2]}}, "region 'a' is"),
        ({"rules": [5]}, "rule R1 of .* is 5"),
        ({"rules": [{}]}, "rule R1 of .* has no form and no type; begin with a form, one of count, "),
        ({"rules": [{"text": "four nuts"}]}, "has no form and no type"),
        ({"rules": [{"cuont": "nut", "exactly": 4}]}, "has no form and no type; did you mean 'count'?"),
        ({"rules": ["four nuts"]}, "rule R1 of .* is 'four nuts'; begin with its type, one of quantity, "),
        ({"rules": ["quantiy: four nuts"]}, "has the type 'quantiy'; .* did you mean 'quantity'?"),
        ({"rules": [{"type": "number", "count": "nut", "exactly": 1}]}, "has the type 'number'"),
        ({"rules": [{"type": "count", "text": "four nuts"}]}, "the type 'count', which is a form; write count: LABEL"),
        ({"rules": [{"type": "quantity"}]}, "says nothing"),
        ({"rules": [{"type": "quantity", "text": "a", "params": [1]}]}, r"params of rule R1 .* are \[1\]"),
    ],
)
def test_what_is_no_rule_set_is_refused(tmp_path, content, said):
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(WrongInput, match=said):
        load(path)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(Unreadable, match="no such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("rules: [\n- {count: nut\n")
    with pytest.raises(WrongInput, match=r"is not YAML \(line 2: expected the node content, but found '-'\)"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "bad.json").write_text('{"rules": [}')
    with pytest.raises(WrongInput, match=r"is not JSON \(line 1: Expecting value\)"):
        load(tmp_path / "bad.json")
    (tmp_path / "code.yaml").write_text("rules: !!python/object/apply:os.system ['true']")
    with pytest.raises(WrongInput, match="is not YAML"):
        load(tmp_path / "code.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"category: \xff\xfe\xff")
    with pytest.raises(Unreadable, match="UTF-8"):
        load(tmp_path / "latin.yaml")
    with pytest.raises(WrongInput, match=r"ends in \.txt"):
        save(RuleSet(), tmp_path / "rules.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite):
        save(RuleSet(), tmp_path / "file" / "rules.yaml")


# --- mini-LOCO ---


@pytest.mark.parametrize("category", mini_loco.CATEGORIES)
@pytest.mark.parametrize("by", ["typed rules", "hand"])
def test_mini_loco_is_judged_without_error(category, by):
    drawn = mini_loco.pictures(category, good=3, each=2, seed=20)
    ruleset = RuleSet.from_dict(mini_loco.RULES[category])
    stats = statistics([mini_loco.draw(category, "good", seed).parsed().scene for seed in range(5)])
    assert problems(ruleset, mini_loco.CATEGORIES[category].labels) == []
    source = compile(ruleset) if by == "typed rules" else mini_loco.PROGRAMS[category]
    for one in drawn:
        found = run(source, ruleset.place(one.parsed().scene).with_stats(stats))
        wanted = [reason.split(":")[0] for reason in one.reasons]
        assert [f["type"] for f in found] == wanted, (one.kind, found)
        for finding in found:
            assert finding["objects"] or finding["boxes"]


def test_mini_loco_has_the_four_types_and_knows_its_violations():
    types = {kind for category in mini_loco.CATEGORIES.values() for kind in category.violations.values()}
    assert types == set(program_api.TYPES)
    for name, category in mini_loco.CATEGORIES.items():
        for kind, right in category.violations.items():
            drawn = mini_loco.draw(name, kind)
            assert [reason.split(": ")[0] for reason in drawn.reasons] == [right]
            assert len(drawn.defects) == 1
            assert drawn.defects[0].any()
        assert mini_loco.draw(name).defects == mini_loco.draw(name).reasons == []
        assert np.array_equal(mini_loco.draw(name, "good", 3).image, mini_loco.draw(name, "good", 3).image)


# --- a tray of real nuts ---

TRAY = {
    "category": "nut_tray",
    "labels": ["nut"],
    "regions": {"left": [0, 0, 0.6667, 1], "right": [0.6667, 0, 1, 1]},
    "rules": [
        {"count": "nut", "exactly": 4, "text": "four nuts"},
        {"count": "nut", "exactly": 1, "in": "left", "cells": [2, 2], "text": "one in each of the four left cells"},
        {"absent": "nut", "in": "right", "text": "the right column stays empty"},
    ],
}


def test_a_tray_of_real_nuts(shared):
    from anomalens.images import read_image, read_mask

    root = shared / "data" / "nut_tray"
    if not root.is_dir():
        pytest.skip(f"the tray of nuts is not at {root}")

    def samples(folder: str, label: int) -> list[Sample]:
        return [
            Sample(f"{folder}/{p.name}", {"image": View("image", lambda p=p: read_image(p))}, label=label)
            for p in sorted((root / folder).glob("*.jpg"))
        ]

    ruleset = RuleSet.from_dict(json.loads(json.dumps(TRAY)))
    normal = samples("train/good", 0)[::5]
    parser = Parts(names=("nut",)).fit(normal)
    source = compile(ruleset, parser.labels)
    space = program_api.namespace()
    exec(source, space)
    test = samples("test/good", 0)
    for kind in ("extra", "missing", "misplaced"):
        test += samples(f"test/{kind}", 1)
    scores = []
    for sample in test:
        found = space["check"](program_api.Image(ruleset.place(parser.parse(sample).scene).to_dict()))
        scores.append(max((f["severity"] for f in found), default=0.0))
        if "missing" in sample.id:  # the finding names the empty cell
            boxes = [box for f in found if f["rule"] == "R2" for box in f["boxes"]]
            stem = sample.id.split("/")[-1].split(".")[0]
            y, x = np.nonzero(read_mask(root / "ground_truth" / "missing" / f"{stem}_mask.png"))
            assert any(np.abs(np.array(box) - [x.min(), y.min(), x.max() + 1, y.max() + 1]).max() < 2 for box in boxes)
    labels = np.array([s.label for s in test])
    assert image_metrics(np.array(scores), labels, ("auroc",))["auroc"].value >= 0.95
