"""`anomalens bench --logibench` as a user types it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.support import command, mini_loco
from tests.support.chat_server import ScriptedChatServer
from tests.unit.apps.test_bench_report import Page

CATEGORY = "screw_bag"
BLOBS = {
    "parser": "color-blobs",
    "ranges": {
        "washer": [[180, 240], [0.05, 0.25], [0.6, 0.9]],
        "nut": "yellow",
        "screw": "green",
    },
}


bench = partial(command.run, "bench")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("loco")
    mini_loco.write(root, CATEGORY, train=5, good=2, each=1)
    (root / "rules").mkdir()
    (root / "rules" / f"{CATEGORY}.yaml").write_text(yaml.safe_dump(mini_loco.RULES[CATEGORY]))
    (root / "blobs.yaml").write_text(yaml.safe_dump(BLOBS))
    return root


def test_typed_rules_on_true_scenes_and_on_those_of_a_parser(root, tmp_path):
    out = tmp_path / "out"
    run = bench("--logibench", root, "--rules", root / "rules", "--parser", root / "blobs.yaml", "--out", out)
    assert "True scenes (oracle)" in run.stdout
    assert "binary accuracy (library definition)" in run.stdout
    figures = json.loads((out / "logibench.json").read_text())["modes"]
    assert list(figures) == ["oracle", "parsed"]
    assert figures["oracle"]["binary"][""]["accuracy"] == 1
    assert figures["parsed"]["binary"][""]["count"] == 6
    page = (out / "LOGIBENCH.md").read_text()
    tables = page.split("## ")
    assert page.count("Binary accuracy (library definition)") == 2
    assert not any("oracle" in part and "parsed" in part for part in tables)
    found = list(csv.DictReader((out / "claims-oracle.csv").read_text().splitlines()))
    assert len(found) == 4
    assert found[0]["verdict"] == ""
    assert f"Report: {out / 'index.html'}" in run.stdout


def test_the_page_shows_what_was_seen_said_and_true(root, tmp_path):
    """Rules that have one washer too many in mind: false alarms, a miss, and right verdicts for another reason."""
    strange = {
        **mini_loco.RULES[CATEGORY],
        "rules": [{"count": "washer", "exactly": 3}, {"count": "nut", "exactly": 2}],
    }
    (tmp_path / "strange.yaml").write_text(yaml.safe_dump(strange))
    how = ("--logibench", root, "--rules", tmp_path / "strange.yaml", "--mode", "oracle", "--out", tmp_path / "out")
    bench(*how)
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert "<script" not in text
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    assert "Judged rightly: 3 of 6 by true scenes" in page.text
    assert page.text.count("false alarm") == 2
    assert page.text.count("missed") == 1  # the picture with three washers
    assert "quantity: 3 washers instead of 2" in page.text
    assert "washer: 2 in the picture, expected exactly 3" in page.text
    assert page.text.count("another reason") == 3
    shown = [a["aria-label"] for a in page.all("svg") if a.get("role") == "img"]
    assert len(shown) == text.count("data:image/jpeg") == 6
    assert shown[0].endswith(": 7 objects seen, 0 places named")  # what was missed comes first
    assert shown[1].endswith("test/good/000.png: 6 objects seen, 1 places named")
    assert len(page.all("caption")) == len(page.all("table")) == 2
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    bench(*how)
    assert (tmp_path / "out" / "index.html").read_text() == text


def test_the_page_counts_failures_and_outlives_lost_pictures(root, tmp_path):
    pytest.importorskip("httpx")
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    how = ("--logibench", copy, "--rules", copy / "rules", "--mode", "oracle", "--out", tmp_path / "out", "--judge", "llm",
           "--model", "scripted", "--attempts", 1)  # fmt: skip
    with ScriptedChatServer(lambda request: "No <b>idea</b>.") as server:
        run = bench(*how, "--base-url", server.url, "--cache", tmp_path / "answers")
        for path in (copy / CATEGORY / "test").rglob("*.png"):
            path.write_bytes(b"lost")
        bench(*how, "--base-url", server.url, "--cache", tmp_path / "answers")
    assert "pictures without a verdict, which count as wrong" in run.stdout
    text = (tmp_path / "out" / "index.html").read_text()
    assert "no verdict (no program)" in text
    assert "no_code 1" in text
    assert "the picture cannot be read" in text
    assert "data:image" not in text


def test_people_judge_what_was_written_for_them(root, tmp_path):
    first = ("--logibench", root, "--rules", root / "rules", "--mode", "oracle", "--out", tmp_path)
    bench(*first)
    table = (tmp_path / "claims-oracle.csv").read_text().splitlines()
    (tmp_path / "judged.csv").write_text(
        "\n".join([table[0], *(line.replace(",1,,", ",1,yes,") for line in table[1:])])
    )
    run = bench(*first, "--judge", "rule", "--judge", f"human={tmp_path / 'judged.csv'}", "--json")
    reasons = json.loads(run.stdout)["modes"]["oracle"]["reasons"][""]
    assert reasons["judges"]["human"] == {"precision": 1.0, "judged": 4, "not_judged": 0}
    assert "rule, human" in reasons["kappa"]


def test_a_model_writes_and_judges_and_the_answers_are_kept(root, tmp_path):
    pytest.importorskip("httpx")

    def answers(request) -> str:
        if "Experts gave these reasons" in str(request.json["messages"][-1]):
            return '{"match": true, "gt_index": 1}'
        return f"```python\n{mini_loco.PROGRAMS[CATEGORY]}\n```"

    how = ("--logibench", root, "--rules", root / "rules", "--mode", "oracle", "--attempts", 2, "--model", "scripted",
           "--judge", "llm", "--cache", tmp_path / "answers")  # fmt: skip
    with ScriptedChatServer(answers) as server:
        run = bench(*how, "--base-url", server.url, "--out", tmp_path / "asked")
    assert "code generation success rate (library definition)" in run.stdout
    bench(*how, "--out", tmp_path / "recorded")  # no server any more
    asked, recorded = (json.loads((tmp_path / name / "logibench.json").read_text()) for name in ("asked", "recorded"))
    assert asked == recorded
    oracle = asked["modes"]["oracle"]
    assert oracle["generation"][CATEGORY]["cgsr"][0] == 1
    assert oracle["reasons"][""]["judges"]["llm"]["precision"] == 1
    bench(*how[:-6], "--model", "scripted", "--cache", tmp_path, "--attempts", 0, "--out", tmp_path / "typed")
    typed = json.loads((tmp_path / "typed" / "logibench.json").read_text())["modes"]["oracle"]
    assert typed["generation"] == {}


def test_drawn_scenes_need_nothing(tmp_path, monkeypatch):
    from anomalens.datasets import procedural_logic

    kind = procedural_logic.ProceduralLogic
    monkeypatch.setattr(
        procedural_logic, "DATASET", lambda **how: kind(**{"size": 128, "train_count": 4, "bad_count": 4, **how})
    )
    run = bench("--logibench", "procedural-logic=", "--category", "carton", "--limit", 2, "--out", tmp_path, "--json")
    figures = json.loads(run.stdout)["modes"]
    assert figures["oracle"]["binary"]["carton"]["count"] == 4
    assert figures["parsed"]["binary"]["carton"]["count"] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mode", "shift"], "it is oracle, parsed or both"),
        (["--judge", "jury"], "no judge is called 'jury'"),
        (["--judge", "llm"], "--judge llm needs --model"),
        (["--model", "m"], "needs --base-url"),
        (["--cache", "c"], "belong to a model"),
        (["--attempts", "3"], "name it with --model"),
        (["--mode", "oracle", "--parser", "parts"], "true scenes need none"),
        (["--method", "patchcore"], "--logibench and --method"),
        (["--rules", "{root}/annotations"], "has no screw_bag.yaml"),
        (["--parser", "nobody"], "is neither a parser"),
        (["--mode", "both"], "has no parser of its own"),
        (["--annotations", "{root}/none"], "does not exist"),
        ([], "do not fit"),  # the ready rules name long and short screws, which these annotations do not tell apart
    ],
)
def test_what_does_not_fit_is_one_sentence(root, tmp_path, arguments, sentence):
    arguments = [text.format(root=root) for text in arguments]
    given = [] if "--rules" in arguments or not arguments else ["--rules", root / "rules"]
    run = bench("--logibench", root, *given, *arguments, "--out", tmp_path, code=2)
    assert sentence in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_its_options_mean_nothing_without_it(root):
    assert "--rules belongs to --logibench" in bench("--rules", root, code=2).stderr
    assert "has no true scenes" in bench("--logibench", f"mvtec={root}", code=2).stderr
    assert "--logibench and the plan" in bench("plan.toml", "--logibench", root, code=2).stderr
