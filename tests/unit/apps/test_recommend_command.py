"""`anomalens recommend`, `--method auto`, the filters of `list`, and the tables made from cards."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

import anomalens as al
from anomalens.apps import recommend as app
from anomalens.apps.cli import main
from anomalens.bench.recommend import Query, recommend
from anomalens.datasets.procedural import Procedural
from anomalens.types import Card
from tests.support.chat_server import ScriptedChatServer
from tests.support.command import run
from tests.unit.spec_cards import CARDS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cloth(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("parts") / "some cloth"
    Procedural("cloth", size=64, train_count=6, good_count=1, bad_count=1).write(root)
    return root


def told(*arguments: object) -> dict:
    return json.loads(run("recommend", *arguments, "--json").stdout)


def test_what_is_in_the_folder_decides_and_options_go_first(cloth):
    query = told(cloth)["query"]
    assert (query["normals"], query["test_batch"], query["surface"]) == (6, 2, "texture")
    query = told(cloth, "--normals", 0, "--gpu", "fit", "--rules", "--need", "score", "--online")["query"]
    assert (query["normals"], query["test_batch"]) == (0, 8)  # all of the folder is to be judged
    assert (query["gpu"], query["rules"], query["need"], query["offline"]) == ("fit", "yes", ["score"], False)


def test_every_field_of_a_query_has_an_option():
    options = {p.name for p in main.commands["recommend"].params} | {"offline", "weights", "extras", "longest"}
    assert {f.name for f in dataclasses.fields(Query)} <= options


def test_what_it_says_to_type_runs(cloth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ((cloth,), (cloth / "train",), (cloth / "test", "--normals", 0)):
        text = run("recommend", *arguments, "--gpu", "none").stdout
        command = next(line for line in text.splitlines() if "$ anomalens" in line).partition("$ anomalens ")[2]
        assert run(*shlex.split(command)).exit_code == 0


def test_a_model_behind_a_server_is_asked_with_the_address_filled_in(cloth, tmp_path, monkeypatch):
    pytest.importorskip("httpx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "cache"))
    how = ("--anomaly", "semantic", "--need", "score", "--need", "text")
    verdict = '{"reasoning": "fine", "anomalous": false, "confidence": 90, "defects": []}'
    with ScriptedChatServer(lambda request: verdict) as server:
        for arguments in ((cloth,), (cloth / "train",), (cloth / "test", "--normals", 0)):
            text = run("recommend", *arguments, *how).stdout
            command = next(line for line in text.splitlines() if "$ anomalens" in line).partition("$ anomalens ")[2]
            assert "--method customizable-vlm --set base_url=URL --set model=NAME" in command
            assert run(*shlex.split(command.replace("URL", server.url))).exit_code == 0


def test_the_text_is_short_and_complete(cloth):
    text = run("recommend", cloth, "--gpu", "none").stdout
    assert len(text.splitlines()) <= 25
    for word in ("Looked at 6 good pictures", "Use       patchcore", "$ anomalens inspect"):
        assert word in text
    assert "patchcore" in run("recommend", "--normals", 300, "--gpu", "none").stdout


def test_at_most_25_lines_whatever_the_catalogue(monkeypatch):
    monkeypatch.setattr(app.registry, "card", CARDS.__getitem__)
    disturbed = {"pose": "free", "imaging": ("blur", "uneven-light")}
    for query in (Query(normals=213, **disturbed), Query(normals=213, **disturbed, latency_ms=60, storage_mb=120)):
        text = app.lines(recommend(query, CARDS), None, [])
        assert len(text) <= 25
        assert max(map(len, text)) <= 100
        assert sum(line.startswith("Or") for line in text) == 2
    monkeypatch.setattr(app, "LINES", 15)
    cut = app.lines(recommend(query, CARDS), None, [])
    assert len(cut) == 15
    assert cut[-1].endswith("--json tells all")
    assert cut[:-1] == text[:14]


def test_nothing_fits_is_said_with_what_would_help():
    text = run("recommend", "--surface", "object", "--text", "none").stdout
    assert "nothing that is built fits" in text
    assert "give 1 good picture: then patchcore" in text
    assert "Left out" in text


def test_where_rules_are_written_the_command_names_their_file(tmp_path):
    asked = ("recommend", "--rules", "yes", "--anomaly", "semantic", "--need", "score")
    assert "$ anomalens rules run RULES.yaml NEW --good GOOD\n" in run(*asked, "--normals", 80).stdout
    assert "$ anomalens rules run RULES.yaml NEW\n" in run(*asked, "--normals", 0).stdout


def test_missing_weights_are_named():
    card = CARDS["winclip"]
    answer = recommend(Query(weights=(), extras=()), {"winclip": card})
    text = "\n".join(app.lines(answer, None, app.commands(answer, None, None)))
    assert text.startswith("Would fit winclip")
    assert "needs pip install 'anomalens[clip]' and winclip first" in " ".join(text.split())
    assert "$ anomalens" not in text


def test_auto_says_what_it_chose_and_why(cloth, tmp_path):
    run(
        "inspect",
        cloth / "test",
        "--good",
        cloth / "train",
        "--method",
        "auto",
        "--out",
        tmp_path / "a",
        "--device",
        "cpu",
    )
    page = (tmp_path / "a" / "index.html").read_text()
    assert "chosen because of 6 good pictures" in page
    run("inspect", cloth / "test", "--method", "auto", "--out", tmp_path / "b", "--device", "cpu")
    assert json.loads((tmp_path / "b" / "run.json").read_text())["plan"]["method"] == "grnr"
    assert "new pictures and no good ones" in (tmp_path / "b" / "index.html").read_text()
    said = run("fit", cloth / "train", "--method", "auto", "--device", "cpu", "--out", tmp_path / "m").stdout
    assert said.startswith("patchcore learned")


def test_auto_that_can_choose_nothing_says_what_would_help(tmp_path, monkeypatch):
    Procedural("gear", size=64, train_count=4, good_count=0, bad_count=0).write(tmp_path / "gear")
    monkeypatch.setattr(app.probe, "machine", lambda cards: {"gpu": "none", "weights": (), "extras": ()})
    said = run("inspect", tmp_path / "gear", "--method", "auto", "--out", tmp_path / "out", code=2).stderr
    assert "no method can be chosen" in said


def listed(*arguments: object) -> set[str]:
    return set(json.loads(run("list", *arguments, "--json").stdout))


def test_list_filters():
    assert listed() == set(al.names())
    assert listed("--setting", "few-shot", "--modality", "lights", "--level", "structural") >= {"per-view"}
    assert "patchcore" not in listed("--modality", "lights")
    assert listed("--setting", "unsupervised") == listed("--setting", "full-shot") >= {"patchcore", "padim"}
    assert "grnr" not in listed("--setting", "unsupervised")
    assert listed("--family", "gaussian") >= {"padim"}
    assert "padim" in listed("--where", "year=2021") & listed("--where", "transductive=no") & listed(
        "--where", "venue=icpr"
    )
    assert listed("--where", "reported=mvtec") >= {"patchcore", "padim"}
    assert listed("--where", "stored_mb=0") >= {"grnr"}
    assert not listed("--family", "generator")
    assert "No detector has family=generator" in run("list", "--family", "generator").stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--setting", "one-class"), "full-shot"),
        (("--setting", "fewshot"), "few-shot"),
        (("--where", "gpuu=no"), "gpu"),
        (("--where", "gpu"), "FIELD=VALUE"),
        (("--modality", "sound"), "needs"),
    ],
)
def test_list_refuses_in_one_sentence(arguments, word):
    said = run("list", *arguments, code=2).stderr
    assert word in said
    assert len(said.strip().splitlines()) == 1


def test_aliases_stand_for_the_method():
    for name in al.names():
        for alias in al.card(name).aliases:
            assert al.card(alias) == al.card(name)
            assert f"--method {name}" in run("show", alias).stdout


def test_every_field_of_a_card_is_read():
    """By name, outside of the places that show all of them."""
    readers = [ROOT / "src/anomalens/bench/recommend.py", ROOT / "src/anomalens/bench/probe.py",
               ROOT / "src/anomalens/registry.py", *(ROOT / "src/anomalens/apps").glob("*.py")]  # fmt: skip
    code = "\n".join(path.read_text(encoding="utf-8") for path in readers)
    shown = {"paper", "pitfalls", "backbone"}  # by `show` and the tables of methods
    for field in dataclasses.fields(Card):
        read = re.search(rf"\.{field.name}\b|\"{field.name}\"", code)
        assert read or field.name in shown, f"nobody reads Card.{field.name}"


def test_show_says_it_in_words():
    text = run("show", "padim").stdout
    assert "P0, under 10 ms a picture" in text
    assert re.search(r"transductive +no\n", text)
    for name in al.names():
        for weights in al.card(name).weights:
            assert weights.title.split()[0] in run("show", name).stdout


def test_the_tables_of_the_taxonomy_are_up_to_date():
    spec = importlib.util.spec_from_file_location("taxonomy_table", ROOT / "scripts" / "taxonomy_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "taxonomy.md").read_text(encoding="utf-8")
    assert script.renewed(text) == text, "run python scripts/taxonomy_table.py"
    for name in al.names():
        assert text.count(f"`{name}`") >= 2
