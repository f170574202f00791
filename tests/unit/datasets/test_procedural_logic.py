"""Drawn scenes with rules: the same bytes every time, a truth that the picture shows, rules that say what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from anomalens.datasets._logic import CATEGORIES
from anomalens.datasets.procedural_logic import ProceduralLogic
from anomalens.errors import UnknownName, WrongInput
from anomalens.reasoning.logicode import for_program, from_rules
from anomalens.reasoning.rules import problems
from anomalens.reasoning.sandbox import sandbox
from anomalens.reasoning.scene import statistics


def small(category: str, **counts: int) -> ProceduralLogic:
    return ProceduralLogic(category, size=128, **{"train_count": 4, "good_count": 1, "bad_count": 5, **counts})


@pytest.fixture(scope="module", params=CATEGORIES)
def data(request) -> ProceduralLogic:
    return small(request.param)


def test_pictures_depend_on_their_number_alone(data):
    first = {s.id: s.image() for s in data.test()}
    assert all(np.array_equal(first[s.id], s.image()) for s in data.test())
    more = {s.id: s.image() for s in replace(data, good_count=2, train_count=0).test()}
    assert first.keys() < more.keys()
    assert all(np.array_equal(more[name], picture) for name, picture in first.items())
    other = {s.id: s.image() for s in replace(data, seed=1).test()}
    assert not any(np.array_equal(other[name], picture) for name, picture in first.items())


def test_every_violation_takes_its_turn_and_is_told(data):
    bad = [s for s in data.test() if s.label]
    assert {s.defect for s in bad} == set(data.kinds)
    for sample in bad:
        told = data.reasons(sample)
        assert {r.type for r in told} <= {"quantity", "size", "position", "matching"}
        assert told
        assert 0 < sample.mask.read().mean() < 0.35
    assert data.reasons(data.train()[0]) == ()


def test_the_truth_is_what_is_seen(data):
    """Masks do not overlap, and where the truth has a thing, the picture shows its colour."""
    nothing = np.zeros((128, 128), bool)
    for sample in data.test():
        parsed = data.oracle.parse(sample)
        assert {o.label for o in parsed.scene.objects} <= set(data.rules.labels)
        assert np.sum(parsed.masks, axis=0).max() == 1
        found = data.parser.parse(sample)
        for name in data.rules.labels:
            seen, true = (
                sum((m for o, m in zip(p.scene.objects, p.masks, strict=True) if o.label == name), nothing)
                for p in (found, parsed)
            )
            assert (seen & true).sum() >= 0.55 * (seen | true).sum(), (sample.id, name)  # edges are a large part here


def test_the_rules_find_exactly_what_was_told(data):
    assert problems(data.rules, data.oracle.labels) == []
    usual = statistics(data.truth(s).scene for s in data.train())
    with sandbox().load(from_rules(data.rules, data.oracle.labels).source) as program:
        for sample in (*data.train()[:2], *data.test()):
            outcome = program.run(for_program(data.truth(sample), data.rules, usual))
            assert outcome.status == "ok"
            told = Counter(r.type for r in data.reasons(sample))
            assert Counter(f.type for f in outcome.findings) == told, sample.id


def test_wrong_settings_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'tray'"):
        ProceduralLogic("trey")
    with pytest.raises(WrongInput, match="96 to 1024"):
        ProceduralLogic("tray", size=64)
    with pytest.raises(WrongInput, match="0 or more"):
        ProceduralLogic("tray", bad_count=-1)
    with pytest.raises(UnknownName, match="no picture of this drawn tray"):
        small("tray").reasons(small("carton").train()[0])
