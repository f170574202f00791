"""Every sample query of the specification, and what must hold for any query."""

from __future__ import annotations

import dataclasses
import itertools
import string
import typing

import pytest

import anomalens as al
from anomalens.bench.recommend import FILTERS, LAST, RULES, Query, recommend, setting_used
from anomalens.errors import UnknownName, WrongInput
from anomalens.types import Card

from ..spec_cards import CARDS

UNEVEN = {"pose": "free", "imaging": ("uneven-light", "blur")}
SCORE = {"need": ("score",)}
QUERIES = [
    ({"normals": 213, **UNEVEN}, "cdo", "R16"),
    ({"normals": 213, **UNEVEN, **SCORE}, "winclip", "R16, scores"),
    ({"normals": 0}, "adaclip", "R9"),
    ({"normals": 0, "gpu": "none"}, "adaclip", "R9"),
    ({"normals": 0, "surface": "texture", "gpu": "none"}, "grnr", "R7"),
    ({"normals": 0, "test_batch": 100, "abnormal_share": 0.05}, "musc", "R8"),
    ({"normals": 4, "gpu": "none"}, "anomalydino", "R10"),
    ({"normals": 200, "categories": 15, "unified": True}, "dinomaly", "R13"),
    ({"normals": 200, "pose": "aligned", "gpu": "none"}, "patchcore", "R15"),
    ({"normals": 1000, "views": ("lights",)}, "afrd", "R4"),
    ({"rules": "yes", "anomaly": "semantic", **SCORE}, "logicode", "R1"),
    ({"anomaly": "semantic", **SCORE}, "customizable-vlm", "R2"),
    ({"rules": "yes", "anomaly": "semantic", "normals": 200}, "dinomaly", "R2"),
    ({"rules": "with-objects", "anomaly": "semantic", "normals": 200}, "logicode", "R1"),
    ({"normals": 300, "abnormals": 10}, "cdo", "R6"),
    ({"normals": 200, "latency_ms": 20}, "simplenet", "R14"),
    ({"normals": 200, "pose": "aligned", "gpu": "none", "latency_ms": 20}, "padim", "R14"),
    ({"normals": 200, "train_clean": "unknown"}, "patchcore", "R12"),
    ({"normals": 200}, "dinomaly", "R17"),
    ({"normals": 30}, "patchcore", "R18"),
]


def asked(cards=CARDS, **given):
    return recommend(Query(**given), cards)


@pytest.mark.parametrize(("given", "first", "rule"), QUERIES)
def test_sample_queries(given, first, rule):
    answer = asked(**given)
    assert (answer.proposal.name, answer.proposal.rule) == (first, rule)
    assert asked(**given) == answer
    names = [c.name for c in (answer.proposal, *answer.alternatives)]
    assert len(set(names)) == len(names) <= 3


def test_nothing_left_says_what_would_help():
    answer = asked(normals=0, text="none", surface="object")
    assert answer.proposal is None
    assert answer.ready is None
    assert answer.relaxation == "give a class name: then adaclip"
    assert {r.name for r in answer.removed} == set(CARDS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"normals": 200, "latency_ms": 1}, "allow 10 ms a picture: then simplenet"),
        (
            {"normals": 40, "surface": "object", "storage_mb": 1, "gpu": "none", "text": "none"},
            "allow 1.6 MB: then anomalydino",
        ),
        (
            {"normals": 40, "surface": "object", "gpu": "none", "unified": True, "categories": 3, "text": "none"},
            "use a GPU: then dinomaly",
        ),
        ({"normals": 0, "text": "none", "surface": "object", "views": ("lights",)}, "give a class name: then adaclip"),
        ({"normals": 0, "views": ("video",)}, "do without a map: then customizable-vlm"),
        ({"normals": 200, "views": ("video",), "text": "none"}, "no single change gives an answer"),
    ],
)
def test_the_smallest_relaxation(given, words):
    assert asked(**given).relaxation == words


def test_a_batch_or_good_pictures_may_be_what_is_missing():
    few = {name: CARDS[name] for name in ("musc", "patchcore")}
    assert asked(few).relaxation == "judge 20 pictures at once: then musc"
    assert asked({"padim": CARDS["padim"]}, pose="aligned").relaxation == "give 20 good pictures: then padim"
    assert asked({"patchcore": CARDS["patchcore"]}).relaxation == "give 1 good picture: then patchcore"


def test_marks_and_remarks():
    slow = asked(normals=0, gpu="none").proposal
    assert slow.slow
    assert "slow: made for a GPU" in slow.notes
    assert not asked(normals=0).proposal.slow
    part = asked(rules="yes", anomaly="semantic", normals=200).proposal
    assert any("sees only part" in note for note in part.notes)
    free = asked(normals=213, **UNEVEN)
    assert any("by design" in note for c in free.alternatives if c.name == "dinomaly" for note in c.notes)
    figures = {(e.metric, e.value) for e in free.proposal.evidence}
    assert figures == {("pixel_auroc", 98.7), ("pixel_pro-rad", 94.4)}
    assert any("our reading" in n for n in asked({"pnpt": CARDS["pnpt"]}, normals=99).proposal.notes)


def test_what_is_missing_comes_last_and_says_what_to_fetch():
    here = ("anomalydino", "patchcore")
    answer = asked(normals=0, weights=("winclip",), extras=("clip",))
    assert answer.proposal.name == "winclip"
    assert [c.name for c in answer.alternatives] == ["adaclip", "april-gan"]
    assert answer.alternatives[0].missing == ("adaclip",)
    assert all(c.missing for c in asked(normals=0, weights=("winclip",), extras=()).alternatives)
    assert asked({"winclip": CARDS["winclip"]}, extras=()).proposal.missing == ("pip install 'anomalens[clip]'",)
    assert asked({"winclip": CARDS["winclip"]}, extras=()).ready is None
    assert asked(normals=200, weights=here).proposal.name == "patchcore"


def test_slow_ones_come_after_the_others():
    order = [c.name for c in (lambda a: (a.proposal, *a.alternatives))(asked(normals=4, pose="aligned", gpu="none"))]
    assert order == ["anomalydino", "patchcore", "padim"]  # winclip is second in the rule, but needs a GPU


def test_what_a_cpu_trains_for_minutes_comes_after_what_needs_no_gpu_and_says_so():
    short = {**CARDS, "rd": dataclasses.replace(CARDS["rd"], cpu_fit="F2")}
    given = {"normals": 200, "anomaly": "semantic", "gpu": "none", "weights": ("rd", "patchcore"), "need": ("score",)}
    assert "rd" not in [c.name for c in (lambda a: (a.proposal, *a.alternatives))(asked(**given))]
    answer = asked(short, **given)
    assert [c.name for c in (answer.proposal, *answer.alternatives)][:2] == ["patchcore", "rd"]
    assert any("shorter than published" in note for note in answer.alternatives[0].notes)
    for gpu in ("fit", "both"):
        assert not any("shorter" in note for note in asked(short, **given | {"gpu": gpu}).proposal.notes)
    alone = asked({"rd": short["rd"]}, normals=200, gpu="none")
    assert alone.proposal.name == "rd"
    assert recommend(Query(normals=200, gpu="none")).proposal.name == "patchcore"


def test_no_dead_card():
    """Each detector is the proposal of some query when only its own weights are here."""
    grid = itertools.product((0, 4, 30, 200), (1, 100), ("unknown", "aligned", "free"), (("score",), ("score", "map")))
    base = [dict(zip(("normals", "test_batch", "pose", "need"), values, strict=True)) for values in grid]
    more = (
        {}, {"anomaly": "semantic"}, {"anomaly": "semantic", "rules": "yes"}, {"views": ("lights",)}, {"gpu": "none"},
        {"train_clean": "unknown"}, {"unified": True, "categories": 15}, {"surface": "texture"},
    )  # fmt: skip
    alive = set()
    for one, other in itertools.product(more, base):
        given = other | one
        for name in set(CARDS) - alive:
            proposal = asked(**given, weights=(name,)).proposal if _plausible(name, given) else None
            if proposal and proposal.name == name and proposal.rule != "last":
                alive.add(name)
    assert set(CARDS) - alive == {"cut"}
    assert any("cut" in line for line in asked(normals=200, abnormals=2).advice)


def _plausible(name, given) -> bool:
    """Whether a rule that applies names this method: saves asking for all the others."""
    query = Query(**given)
    return any(name in rule.names(query) for rule in RULES.values() if rule.when(query))


def test_more_good_pictures_never_take_an_answer_away():
    for gpu, surface, views, text, need, rules in itertools.product(
        ("both", "none"), ("texture", "object"), (("image",), ("lights",), ("points",)), ("class-name", "none"),
        (("score",), ("score", "map")), ("no", "yes"),
    ):  # fmt: skip
        given = {"gpu": gpu, "surface": surface, "views": views, "text": text, "need": need, "rules": rules}
        answers = [asked(normals=n, **given).proposal is not None for n in (0, 1, 5, 19, 20, 49, 50, 300, 5000)]
        assert answers == sorted(answers), given


def test_reasons_cite_only_fields_of_the_query():
    fields = {f.name for f in dataclasses.fields(Query)}
    for rule in RULES.values():
        cited = {name for _, name, _, _ in string.Formatter().parse(rule.reason) if name}
        assert cited <= fields
        assert not any(c.isdigit() for c in string.Formatter().vformat(rule.reason, (), _Blank()))
    assert "{" not in LAST


class _Blank(dict):
    def __missing__(self, key):
        return ""


def test_every_removal_is_explained():
    for given, _, _ in QUERIES:
        answer = asked(**given)
        for removal in answer.removed:
            assert removal.reason
            assert removal.filter in FILTERS
        kept = set(CARDS) - {r.name for r in answer.removed}
        assert {c.name for c in (answer.proposal, *answer.alternatives)} <= kept


@pytest.mark.parametrize(
    ("name", "given", "filter_", "word"),
    [
        ("afrd", {"normals": 200}, "views", "lights"),
        ("cflow", {"normals": 19}, "numbers", "20 good pictures"),
        ("cut", {"normals": 200}, "numbers", "judges none"),
        ("musc", {"test_batch": 19}, "numbers", "20"),
        ("logicode", {"rules": "yes"}, "outputs", "map"),
        ("adaclip", {"text": "none"}, "text", "class-name"),
        ("grnr", {"surface": "object"}, "text", "texture"),
        ("rd", {"normals": 200, "gpu": "none"}, "gpu", "training"),
        ("saa", {"test_batch": 20, "gpu": "fit"}, "gpu", "GPU"),
        ("patchcore", {"normals": 9, "latency_ms": 49}, "speed and size", "50 ms"),
        ("adaclip", {"gpu": "none", "latency_ms": 1000}, "speed and size", "12500 ms"),
        ("patchcore", {"normals": 9, "storage_mb": 67}, "speed and size", "68 MB"),
        ("patchcore", {"normals": 9, "unified": True, "categories": 2}, "unified", "one category"),
    ],
)
def test_each_filter(name, given, filter_, word):
    (removal,) = [r for r in asked(**given).removed if r.name == name]
    assert removal.filter == filter_
    assert word in removal.reason


def test_licences_and_served_models():
    closed = dataclasses.replace(CARDS["winclip"].weights[0], commercial=False)
    unsure = dataclasses.replace(closed, commercial=None)
    for weights, out in ((closed, True), (unsure, False)):
        cards = {"winclip": dataclasses.replace(CARDS["winclip"], weights=(weights,))}
        answer = asked(cards, commercial=True)
        assert (answer.proposal is None) == out
        assert out or any("not stated" in note for note in answer.proposal.notes)
        assert asked(cards).proposal
    remote = {"customizable-vlm": dataclasses.replace(CARDS["customizable-vlm"], external=("remote-llm",))}
    assert asked(remote, need=("score",)).relaxation.startswith("allow a model outside")
    assert asked(remote, need=("score",), offline=False).proposal


def test_the_baseline_is_the_one_to_beat():
    assert asked(normals=200).baseline.name == "patchcore"
    assert asked(normals=0, test_batch=50).baseline.name == "adaclip"
    assert asked({"grnr": CARDS["grnr"]}).baseline is None


def test_the_setting_a_method_would_be_used_in():
    for name, given, setting in (
        ("cdo", {"normals": 30, "abnormals": 1}, "semi-supervised"), ("patchcore", {"normals": 3}, "few-shot"),
        ("patchcore", {"normals": 30}, "full-shot"), ("winclip", {"normals": 30}, "few-shot"),
        ("winclip", {}, "zero-shot"), ("musc", {"test_batch": 30}, "batched-zero-shot"),
    ):  # fmt: skip
        assert setting_used(Query(**given), CARDS[name]) == setting


def test_only_what_is_built_is_recommended_and_no_wrapper():
    for normals, surface in itertools.product((0, 3, 30, 300), ("unknown", "texture", "object")):
        answer = recommend(Query(normals=normals, surface=surface, pose="aligned"))
        for choice in filter(None, (answer.proposal, *answer.alternatives, answer.baseline)):
            assert choice.name in al.names()
            assert al.card(choice.name).family != "wrapper"


def test_without_a_rule_what_can_run_is_still_named():
    answer = asked({"grnr": CARDS["grnr"]}, normals=0)
    assert (answer.proposal.name, answer.proposal.reason) == ("grnr", LAST)
    assert asked({"grnr": CARDS["grnr"], "adaclip": CARDS["adaclip"]}, weights=("grnr",)).proposal.name == "grnr"


def test_advice():
    built = {name: al.card(name) for name in ("per-view", "tiled")} | CARDS
    lines = " ".join(asked(built, normals=30, views=("lights",), longest=4000).advice)
    assert "--set inner=patchcore" in lines
    assert "--tile" in lines
    assert "second stage" in " ".join(asked(normals=30, need=("score", "map", "text")).advice)
    assert "collect" in " ".join(asked({"patchcore": CARDS["patchcore"]}, normals=3).advice)
    assert "keep the 3 bad ones" in " ".join(asked(normals=30, abnormals=3, gpu="none").advice)
    assert "rules run RULES.yaml" in " ".join(asked(built, normals=30, rules="yes").advice)
    assert "afrd weighs the lights" in lines
    assert "afrd" not in " ".join(asked(built, normals=60, views=("lights",)).advice)
    assert "write down the rules" in " ".join(asked(anomaly="semantic", need=("score",)).advice)


def test_queries_are_checked():
    with pytest.raises(UnknownName, match="aligned"):
        Query(pose="algned")
    with pytest.raises(UnknownName, match="lights"):
        Query(views=("light",))
    with pytest.raises(WrongInput, match="negative"):
        Query(normals=-1)
    with pytest.raises(WrongInput, match="0 to 1"):
        Query(abnormal_share=2)
    with pytest.raises(WrongInput, match="at least one"):
        Query(need=())


def test_every_value_a_card_may_have_is_used_by_some_card():
    every = [*CARDS.values(), *map(al.card, al.names())]
    hints = typing.get_type_hints(Card)
    for field in dataclasses.fields(Card):
        hint = hints[field.name]
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        if typing.get_origin(inner) is typing.Literal:
            values = [getattr(c, field.name) for c in every]
            used = {v for value in values for v in (value if isinstance(value, tuple) else (value,))}
            unused = set(typing.get_args(inner)) - used
            assert not unused, f"no card has {field.name} {unused}"
