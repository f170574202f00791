"""Plans: what they spell out, what they refuse, and names of cells that stay."""

from __future__ import annotations

import copy
import json
import sys

import pytest

from anomalens.bench import plan as plans
from anomalens.detector import Detector
from anomalens.errors import UnknownName, WrongInput

SMALL = {"reader": "procedural", "categories": ["cloth"], "options": {"size": 32, "train_count": 4}}
SIMPLE = {"methods": ["patchcore"], "data": [SMALL]}


def cells(**changes):
    return plans.cells(plans.make({**SIMPLE, **changes}))


def labels(found):
    return list(dict.fromkeys(cell["method"]["label"] for cell in found))


TOML = """
title = "Two methods"
methods = ["patchcore", {name = "grnr", label = "GRNR, full border", settings = {border = "full"}}]
shots = ["full", 4]
seeds = [0, 1]
corruptions = ["rot:2", "jpeg"]
mode = "shift"
metrics = {image = ["auroc"], pixel = ["aupro"], limits = [0.3]}
[[data]]
reader = "procedural"
categories = ["cloth", "wood"]
options = {size = 32}
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML needs Python 3.11")
def test_toml_and_json_are_the_same_plan(tmp_path):
    (tmp_path / "plan.toml").write_text(TOML)
    first = plans.read(tmp_path / "plan.toml")
    (tmp_path / "plan.json").write_text(json.dumps(first.to_dict()))
    assert plans.read(tmp_path / "plan.json") == first
    assert first.corruptions == (("rot", 2), *(("jpeg", g) for g in range(1, 6)))
    # 2 categories x (2 shots x 2 seeds of patchcore + grnr) x (clean, rot 0, rot 2, five times jpeg)
    assert len(plans.cells(first)) == 2 * (4 + 1) * 8


def test_toml_on_python_3_10_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "plan.toml").write_text(TOML)
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    with pytest.raises(WrongInput, match=r"needs Python 3\.11 or later; write the plan as \.json"):
        plans.read(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("plan.json", "{", "not valid JSON"),
        ("plan.yaml", "", r"neither \.toml nor \.json"),
        ("other.json", None, "does not exist"),
        ("plan.json", "[]", "a table with the keys"),
        *([("plan.toml", "a = ", "not valid TOML")] if sys.version_info >= (3, 11) else []),
    ],
)
def test_files_that_are_no_plan(tmp_path, name, text, match):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(WrongInput, match=match):
        plans.read(tmp_path / name)


def changed(path, value):
    raw = copy.deepcopy(SIMPLE)
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["seed"], [1], "no key of plan is named 'seed'; did you mean 'seeds'"),
        (["methods"], ["patchcor"], "no detector is named 'patchcor'; did you mean 'patchcore'"),
        (["methods"], [{"name": "padim", "set": {}}], "no key of method is named 'set'"),
        (["methods"], [{"name": "padim", "settings": {"chanels": 3}}], "did you mean 'channels'"),
        (["methods"], [{"name": "padim", "settings": {"channels": "3"}}], "not of type int"),
        (["methods"], [{"name": "padim", "settings": {"seed": 3}}], "list it under seeds"),
        (["methods"], [{"label": "x"}], "has no name"),
        (["methods"], [{"name": "tiled", "settings": {"inner": {"name": "padmi"}}}], "did you mean 'padim'"),
        (["methods"], "padim", r"give a list, such as \['padim'\]"),
        (["methods"], [], "names no methods"),
        (["methods"], [{"name": "padim", "label": "a"}, {"name": "grnr", "label": "a"}], "called 'a'"),
        (["methods"], ["padim", {"name": "padim", "label": "again"}], "same evaluation twice"),
        (["data"], [], "names no data"),
        (["data", 0, "reader"], "procedura", "did you mean 'procedural'"),
        (["data", 0, "categories"], ["cloht"], "did you mean 'cloth'"),
        (["data", 0, "categories"], ["cloth", "cloth"], "name each once"),
        (["data", 0, "options"], {"sise": 3}, "did you mean 'size'"),
        (["data", 0, "options"], {"root": "x"}, "no option of procedural is named 'root'"),
        (["data", 0, "train_once"], 1, "give true or false"),
        (["data", 0, "rot"], "x", "did you mean 'root'"),
        (["data"], [{"reader": "folder"}], "has no root"),
        (["data"], [{"root": "no/such/folder"}], "does not exist"),
        (["backbones"], ["tinny"], "did you mean 'tiny'"),
        (["backbones"], ["timm:resnet18@nowhere.safetensors"], r"nowhere\.safetensors of backbone .* do not exist"),
        (["shots"], [-1], "give 'full' or whole numbers"),
        (["shots"], ["all"], "give 'full'"),
        (["seeds"], [-1], "whole number from 0"),
        (["limit"], 0, "whole number from 1"),
        (["corruptions"], "ful", "no suite of corruptions is named 'ful'"),
        (["corruptions"], ["rott"], "did you mean 'rot'"),
        (["corruptions"], ["rot:6"], "a grade is 1 to 5"),
        (["mode"], "shifted", "did you mean 'shift'"),
        (["metrics"], {"image": ["aurok"]}, "did you mean 'auroc'"),
        (["metrics"], {"image": ["aupro"]}, "level region"),
        (["metrics"], {"pixels": []}, "did you mean 'pixel'"),
        (["metrics"], {"pixel": ["spro"]}, "needs more than masks"),
        (["metrics"], {"limits": [3]}, "false-positive rates"),
        (["metrics"], {"size": -3}, "policy size"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(path, value, match):
    with pytest.raises(WrongInput, match=match):
        plans.make(changed(path, value))


def test_errors_of_names_are_of_their_kind():
    with pytest.raises(UnknownName):
        plans.make(changed(["corruptions"], ["rott"]))


def test_backbones_are_crossed_with_methods_that_leave_them_open():
    own = {"name": "padim", "settings": {"backbone": "tiny:int8"}}
    found = cells(methods=["patchcore", own, {"name": "tiled"}], backbones=["tiny", "timm:resnet18"])
    assert [(c["method"]["label"], c["method"]["settings"].get("backbone")) for c in found] == [
        ("patchcore, tiny", "tiny"), ("patchcore, timm:resnet18", "timm:resnet18"), ("padim", "tiny:int8"), ("tiled", None),
    ]  # fmt: skip
    with pytest.raises(WrongInput, match="none of its methods looks through one"):
        cells(methods=["tiled"], backbones=["tiny"])


def test_a_method_used_twice_is_called_by_its_settings():
    found = cells(methods=["patchcore", {"name": "patchcore", "settings": {"coreset": 1.0}}])
    assert labels(found) == ["patchcore", "patchcore (coreset=1.0)"]


def test_what_cannot_differ_runs_once(monkeypatch):
    methods, seeds, shots = ["patchcore", "grnr"], [3, 4, 5], ["full", 2]
    found = cells(methods=methods, seeds=seeds, shots=shots)
    ran = [(c["method"]["name"], c["shots"], c["seed"]) for c in found]
    assert ran == [("patchcore", k, s) for k in shots for s in seeds] + [("grnr", 0, 3)]  # by default it draws nothing
    found = cells(methods=[{"name": "grnr", "settings": {"noise": 0.001}}], seeds=seeds)
    assert [c["seed"] for c in found] == seeds
    monkeypatch.setattr(Detector, "draws", False)
    found = cells(methods=methods, seeds=seeds, shots=shots)
    ran = [(c["method"]["name"], c["shots"], c["seed"]) for c in found]
    # Few good pictures are drawn by the seed, also for a method that draws nothing.
    assert ran == [("patchcore", "full", 3), *(("patchcore", 2, s) for s in seeds), ("grnr", 0, 3)]


def test_no_shots_are_for_methods_that_can_do_without():
    language = {"name": "winclip", "settings": {"backbone": "clip:tiny?weights=random"}}
    found = cells(methods=["patchcore", "grnr", language], shots=[0, 2])
    assert [(c["method"]["name"], c["shots"]) for c in found] == [
        ("patchcore", 2),
        ("grnr", 0),
        ("winclip", 0),
        ("winclip", 2),
    ]


def test_wrappers_are_what_they_hold():
    nested = {"name": "tiled", "settings": {"inner": {"name": "grnr", "settings": {"border": "full"}}}}
    found = cells(methods=[nested], seeds=[0, 1])
    assert [(c["shots"], c["seed"]) for c in found] == [(0, 0)]
    detector = plans.build("tiled", found[0]["method"]["settings"], plans.Path(), seed=7)
    assert (detector.inner.border, detector.inner.seed) == ("full", 7)


def test_grade_0_is_a_cell_where_the_clean_point_is_another():
    def conditions(mode):
        return [c["corruption"] and tuple(c["corruption"].values()) for c in cells(corruptions="smoke", mode=mode)]

    some = [("grad", 2), ("defocus", 2), ("jpeg", 2)]
    assert conditions("shift") == conditions("matched") == [None, ("rot", 0), ("rot", 2), *some]
    assert conditions("mixed") == [None, *((c, g) for c in ("rot", "grad", "defocus", "jpeg") for g in (0, 2))]


@pytest.mark.parametrize(
    ("mode", "sizes"),
    # shift: one fit. matched: a clean one, which has rot 0 too, and one per corruption and grade. mixed: one per corruption.
    [("shift", [8]), ("matched", [2, 1, 1, 1, 1, 1, 1]), ("mixed", [1, 2, 6])],
)
def test_cells_that_share_their_fit_are_a_job(mode, sizes):
    found = plans.jobs(cells(corruptions=["rot:2", "jpeg"], mode=mode))
    assert [len(job) for job in found] == sizes


def test_jobs_differ_by_everything_a_fit_depends_on():
    every = cells(
        methods=["patchcore", "padim"],
        shots=["full", 2],
        seeds=[0, 1],
        data=[{**SMALL, "categories": ["cloth", "wood"]}],
    )
    assert [len(job) for job in plans.jobs(every)] == [1] * 16


def test_train_once_is_one_job_for_all_categories():
    once = {**SMALL, "categories": ["cloth", "wood"], "train_once": True}
    found = cells(data=[once])
    assert [(c["data"]["category"], c["fit_on"]) for c in found] == [
        ("cloth", "cloth+wood"), ("wood", "cloth+wood"), ("pooled", "cloth+wood")
    ]  # fmt: skip
    assert len(plans.jobs(found)) == 1
    assert {c["fit_on"] for c in cells(data=[{**once, "categories": []}])} == {"*"}


def test_the_name_of_a_cell_stays():
    """A change here throws away what people have computed: change it only with the meaning of a cell."""
    (cell,) = cells()
    assert plans.hash_of(cell) == "8398d202b2c5538a6b57d880ddbf537576deee5215de0158860302e13b7ded74"
    again = json.loads(json.dumps(dict(reversed(cell.items()))))
    assert plans.hash_of(again) == plans.hash_of(cell)


def test_a_name_depends_on_what_matters_and_on_nothing_else(tmp_path):
    (tmp_path / "a" / "pcb").mkdir(parents=True)
    (tmp_path / "b" / "x" / "pcb").mkdir(parents=True)
    raw = {"methods": ["padim"], "data": [{"root": ".", "categories": ["pcb"]}]}
    for folder in (tmp_path / "a", tmp_path / "b" / "x"):
        from anomalens.datasets.procedural import Procedural

        Procedural("cloth", size=32, train_count=2, good_count=1, bad_count=1).write(folder / "pcb")
    here, there = (plans.cells(plans.make(raw, f)) for f in (tmp_path / "a", tmp_path / "b" / "x"))
    assert [plans.hash_of(c) for c in here] == [plans.hash_of(c) for c in there]

    (plain,) = cells()
    (renamed,) = cells(methods=[{"name": "patchcore", "label": "another name"}])
    assert plans.hash_of(renamed) == plans.hash_of(plain)
    others = [
        cells(methods=[{"name": "patchcore", "settings": {"coreset": 0.2}}]), cells(seeds=[1]), cells(shots=[2]),
        cells(limit=3), cells(mode="mixed"), cells(metrics={"size": 64}), cells(backbones=["tiny"]),
        cells(corruptions=["jpeg:1"]), cells(data=[{**SMALL, "options": {"size": 33}}]),
    ]  # fmt: skip
    names = [plans.hash_of(plain), *(plans.hash_of(c) for some in others for c in some)]
    assert len(set(names)) == len(names) == 11
