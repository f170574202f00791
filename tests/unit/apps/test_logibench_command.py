"""`anomalens bench --logibench` as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from anomalens.apps.cli import main
from tests.support import mini_loco
from tests.support.chat_server import ScriptedChatServer

CATEGORY = "screw_bag"
BLOBS = {
    "parser": "color-blobs",
    "ranges": {
        "washer": [[180, 240], [0.05, 0.25], [0.6, 0.9]],
        "nut": "yellow",
        "screw": "green",
    },
}


def bench(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output + result.stderr
    return result


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
