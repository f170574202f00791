"""`anomalens rules` and `--explain` as a user types them, against a scripted server on this machine."""

from __future__ import annotations

import json
import re

import pytest

from anomalens.apps import explain as stage
from anomalens.apps.report import marks, numbered
from anomalens.errors import SandboxUnavailable
from anomalens.reasoning import rules as rule_files
from anomalens.reasoning.logicode import load_program
from anomalens.reasoning.sandbox import sandbox
from tests.support.chat_server import ScriptedChatServer, Step
from tests.support.command import run
from tests.support.rules import COUNTS, IN_WORDS, LEARNT, NUTS, TRAY, write_trays

PARSER = ("--parser", NUTS["parser"], "--set", f"parser_settings={json.dumps(NUTS['parser_settings'])}")
SEEN = json.dumps(
    {"reasoning": "a nut is not there", "anomalous": True, "defects": [{"mark": 1, "type": "missing nut"}]}
)
DRAFT = json.dumps({"rules": [{"type": "quantity", "text": "Four nuts."}, {"type": "position", "text": "All left."}]})


@pytest.fixture(autouse=True, scope="module")
def _sandbox():
    try:
        sandbox()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """good/ with eight trays, new/ with four, one of them fine; tray.yaml, learnt.yaml, words.yaml."""
    root = write_trays(tmp_path_factory.mktemp("trays"))
    for name, text in (("tray", TRAY), ("learnt", LEARNT), ("words", IN_WORDS)):
        (root / f"{name}.yaml").write_text(text)
    return root


def refused(*words) -> str:
    """The one sentence of a refusal."""
    said = run(*words, code=2).stderr.strip().splitlines()[-1]
    assert said.startswith("anomalens: "), said
    return said


def rows(out) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def server_options(server):
    return ("--base-url", server.url, "--model", "scripted")


# rules run


def test_without_good_pictures_a_broken_rule_is_rejected(folder, tmp_path):
    result = run("rules", "run", folder / "tray.yaml", folder / "new", *PARSER, "--out", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert {name: row["verdict"] for name, row in found.items()} == {
        "extra.png": "reject", "fine.png": "pass", "misplaced.png": "reject", "missing.png": "reject",
    }  # fmt: skip
    assert [(r["rule"], r["text"]) for r in found["missing.png"]["reasons"]] == [
        ("R1", "nut: 3 in the picture, expected exactly 4"),
        ("R2", "nut: 0 in row 2, column 2 of left, expected exactly 1"),
    ]
    assert "1 of 4 pictures keeps all 3 rules. Broken: R1 (count nut: exactly 4) in 2, R2 (" in result.stdout
    assert "no false-alarm rate is promised: a picture that breaks a rule is rejected" in result.stdout
    page = (tmp_path / "out" / "index.html").read_text()
    assert "3 of 4 pictures break a rule" in page
    assert "stands out" not in page


def test_the_page_draws_each_reason_under_its_number(folder, tmp_path):
    run("rules", "run", folder / "tray.yaml", folder / "new", *PARSER, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    card = page[page.index('data-id="misplaced.png"') :]
    card = card[: card.index("</article>")]
    reasons = rows(tmp_path / "out")["misplaced.png"]["reasons"]
    for number, reason in enumerate(reasons, 1):
        x0, y0, x1, y1 = reason["box"]
        assert f'<rect class="place" x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>' in card
        assert re.search(
            rf">{number}</b> <span class=\"rule\">{reason['rule']}</span> {re.escape(reason['text'])}", card
        )
    assert len(re.findall('class="tag" x', card)) == len(reasons) == 2
    fine = page[page.index('data-id="fine.png"') :]
    assert 'class="place"' not in fine[: fine.index("</article>")]


def test_reasons_of_the_same_place_share_a_number_and_tags_do_not_cover_each_other():
    boxes = [[1, 1, 9, 9], None, [1, 1, 9, 9], [2, 1, 9, 9], [90, 0, 99, 9]]
    told = numbered({"reasons": [{"text": "", "rule": "", "box": box} for box in boxes]})
    assert [reason["number"] for reason in told] == [1, None, 1, 2, 3]
    drawn = marks(told, [100, 50])
    assert [mark["number"] for mark in drawn] == [1, 2, 3]
    assert drawn[1]["x"] - drawn[0]["x"] >= drawn[0]["side"]
    assert all(mark["x"] + mark["side"] <= 100 for mark in drawn)


def test_with_good_pictures_the_promise_holds_and_evaluate_measures(folder, tmp_path):
    run(
        "rules", "run", folder / "learnt.yaml", folder / "new", "--good", folder / "good", *PARSER,
        "--out", tmp_path / "out", "--save-model", tmp_path / "m", "--fail-on", "reject", code=3,
    )  # fmt: skip
    found = rows(tmp_path / "out")
    assert found["fine.png"]["p_value"] == 1
    assert {found[n]["p_value"] for n in ("extra.png", "misplaced.png", "missing.png")} == {1 / 9}
    labelled = tmp_path / "labelled"
    for name in found:
        target = labelled / "test" / ("good" if name == "fine.png" else "bad") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / "new" / name).read_bytes())
    assert re.search(r"image auroc +1\.000", run("evaluate", tmp_path / "m", labelled).stdout)
    run("predict", tmp_path / "m", folder / "new", "--out", tmp_path / "again")
    assert rows(tmp_path / "again") == found


def test_inspect_takes_the_same_settings(folder, tmp_path):
    run("rules", "run", folder / "tray.yaml", folder / "new", *PARSER, "--out", tmp_path / "a")
    run(
        "inspect", folder / "new", "--method", "logicode", "--set", f"rules={folder / 'tray.yaml'}", "--set",
        f"parser={NUTS['parser']}", *PARSER[2:], "--out", tmp_path / "b",
    )  # fmt: skip
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_wrong_input_is_one_sentence(folder, tmp_path):
    (tmp_path / "contrary.yaml").write_text(
        "labels: [nut]\nrules: [{count: nut, exactly: 4}, {count: nut, exactly: 5}]"
    )
    new, out = folder / "new", ("--out", tmp_path / "out")
    assert "R1" in refused("rules", "run", tmp_path / "contrary.yaml", new, *out)
    assert "cannot be read" in refused("rules", "run", tmp_path / "nothere.yaml", new, *out)
    assert "--good GOOD" in refused("rules", "run", folder / "learnt.yaml", new, *PARSER, *out)
    assert "words only" in refused("rules", "run", folder / "words.yaml", new, *PARSER, *out)
    assert "no parser here knows 'nut'" in refused(
        "rules", "run", folder / "tray.yaml", new, "--parser", "color-blobs",
        "--set", 'parser_settings={"ranges": {"bolt": "red"}}', *out,
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_program_that_never_ends_leaves_a_complete_report(folder, tmp_path):
    slow = 'def check(image):\n    while image.count("nut") == 5:\n        pass\n    return []\n'
    (tmp_path / "slow.py").write_text(slow)
    run("rules", "run", tmp_path / "slow.py", folder / "new", *PARSER, "--out", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert {name: row["verdict"] for name, row in found.items()} == {
        "extra.png": "reject", "fine.png": "pass", "misplaced.png": "pass", "missing.png": "pass",
    }  # fmt: skip
    assert "did not end in time" in found["extra.png"]["reasons"][0]["text"]


# rules check


def test_check_says_one_line_for_each_problem(folder, tmp_path):
    assert run("rules", "check", folder / "learnt.yaml").stdout == (
        f"{folder / 'learnt.yaml'}: 4 typed rules, 0 in words, no problem found.\n"
    )
    lines = run("rules", "check", folder / "tray.yaml", "--labels", "bolt, nuts", code=2).stdout.splitlines()
    assert len(lines) == 4
    assert all("no parser here knows 'nut'" in line for line in lines)
    (tmp_path / "p.py").write_text("import os\n\n\ndef check(image):\n    return open('x')\n")
    lines = run(
        "rules", "check", tmp_path / "p.py", folder / "tray.yaml", tmp_path / "no.yaml", code=2
    ).stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'p.py'}: line 1: ")
    assert lines[-3].startswith(f"{tmp_path / 'p.py'}: line 5: ")
    assert "no.yaml cannot be read" in lines[-2]
    assert "no problem found" in lines[-1]
    assert json.loads(run("rules", "check", tmp_path / "p.py", "--json", code=2).stdout)["problems"] == lines[:-2]


# rules compile


def test_typed_rules_compile_offline_and_the_program_judges_alone(folder, tmp_path):
    said = run("rules", "compile", folder / "tray.yaml", "--out", tmp_path / "p.py").stdout
    assert "checks 3 rules" in said
    assert load_program(tmp_path / "p.py").edited is False
    assert "keeps the contract" in run("rules", "check", tmp_path / "p.py").stdout
    run("rules", "run", folder / "tray.yaml", folder / "new", *PARSER, "--out", tmp_path / "a")
    run("rules", "run", folder / "tray.yaml", folder / "new", "--program", tmp_path / "p.py", *PARSER, "--out",
        tmp_path / "b")  # fmt: skip
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    (tmp_path / "p.py").write_text((tmp_path / "p.py").read_text() + "\n\nMORE = 1\n")
    assert "changed by a person" in refused("rules", "compile", folder / "tray.yaml", "--out", tmp_path / "p.py")


def test_compile_tries_the_program_on_good_pictures(folder, tmp_path):
    said = run("rules", "compile", folder / "learnt.yaml", folder / "good", *PARSER, "--out", tmp_path / "p.py").stdout
    assert "of 8 good pictures all keep them" in said
    assert load_program(tmp_path / "p.py").normal_fa == 0


def test_a_model_compiles_rules_in_words(folder, tmp_path):
    pytest.importorskip("httpx")
    words = ("rules", "compile", folder / "words.yaml", folder / "good", *PARSER, "--out", tmp_path / "p.py")
    with ScriptedChatServer(["no", f"```python\n{COUNTS}```"]) as server:
        dry = run(*words, *server_options(server), "--dry-run").stdout
        assert "Nothing was asked (--dry-run); the first request would send: 1 request, 0 pictures" in dry
        assert not server.requests
        said = run(*words, *server_options(server)).stdout
        assert "by a program that scripted wrote" in said
        assert len(server.requests) == 2
        run(*words, *server_options(server))
        assert len(server.requests) == 2
    program = load_program(tmp_path / "p.py")
    assert (program.model, program.edited) == ("scripted", False)
    run("rules", "run", tmp_path / "p.py", folder / "new", *PARSER, "--out", tmp_path / "out")
    assert rows(tmp_path / "out")["extra.png"]["reasons"][0]["text"] == "5 nuts, 4 expected"
    assert "tried on good pictures" in refused("rules", "compile", folder / "words.yaml", "--model", "m", "--base-url",
                                               "http://127.0.0.1:9/v1", "--out", tmp_path / "q.py")  # fmt: skip


def test_a_server_without_a_usable_answer_is_one_sentence(folder, tmp_path):
    pytest.importorskip("httpx")
    with ScriptedChatServer(lambda request: "I cannot do that.") as server:
        said = refused("rules", "run", folder / "words.yaml", folder / "new", "--good", folder / "good", *PARSER,
                       *server_options(server), "--out", tmp_path / "out")  # fmt: skip
    assert "no program was accepted" in said


# rules draft


def test_draft_writes_unreviewed_rules(folder, tmp_path):
    pytest.importorskip("httpx")
    words = ("rules", "draft", folder / "good", "--out", tmp_path / "r.yaml", "--labels", "nut", "--pictures", 2)
    with ScriptedChatServer([DRAFT]) as server:
        dry = run(*words, *server_options(server), "--dry-run").stdout
        assert "drafting would send: 1 request, 2 pictures" in dry
        assert not server.requests
        said = run(*words, *server_options(server)).stdout
        assert "R2 [position] All left." in said
    drafted = rule_files.load(tmp_path / "r.yaml")
    assert (drafted.unreviewed, drafted.labels, len(drafted.rules)) == (True, ("nut",), 2)
    assert "unreviewed" in run("rules", "check", tmp_path / "r.yaml").stdout
    assert "is there already" in refused(*words, "--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert "r.txt ends in .txt" in refused("rules", "draft", folder / "good", "--out", tmp_path / "r.txt")


def test_a_slow_server_is_waited_for_and_drafted_rules_are_used_with_a_word(folder, tmp_path):
    pytest.importorskip("httpx")
    words = ("rules", "draft", folder / "good", "--out", tmp_path / "r.yaml", "--labels", "nut")
    with ScriptedChatServer([Step(DRAFT, delay=1.5)] * 4) as server:
        run(*words, *server_options(server), "--timeout", 9, "--max-tokens", 8192)
        assert [request.json["max_tokens"] for request in server.requests] == [8192]
    (tmp_path / "t.yaml").write_text(TRAY + "unreviewed: true\n")
    made = run("rules", "compile", tmp_path / "t.yaml", "--out", tmp_path / "p.py")
    assert made.stderr.count("were drafted by a model and are unreviewed; read them") == 1
    judged = run("rules", "run", tmp_path / "t.yaml", folder / "new", *PARSER, "--out", tmp_path / "out")
    assert judged.stderr.count("were drafted by a model and are unreviewed; read them") == 1


def test_rules_that_no_good_picture_keeps_are_told_on_top(folder, tmp_path):
    (tmp_path / "five.yaml").write_text("labels: [nut]\nrules: [{count: nut, exactly: 5}]\n")
    told = run("rules", "run", tmp_path / "five.yaml", folder / "new", "--good", folder / "good", *PARSER, "--out",
               tmp_path / "out").stdout  # fmt: skip
    assert "3 of 4 pictures" not in told
    assert "Most good pictures break R1, so that breaking it rejects nothing: look at what the parser finds" in told
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Most good pictures break R1" in page
    assert "The rules do not fit: most good pictures break them" in page
    assert "pictures belong" not in page


# --explain


def explained(folder, out, *options, code: int = 0):
    return run(
        "inspect", folder / "new", "--method", "logicode", "--set", f"rules={folder / 'tray.yaml'}", "--set",
        f"parser={NUTS['parser']}", *PARSER[2:], "--out", out, "--explain", *options, code=code,
    )  # fmt: skip


def test_flagged_pictures_are_explained_and_nothing_is_asked_twice(folder, tmp_path):
    pytest.importorskip("httpx")
    told = ("--context", "A tray of nuts.", "--rules", "Four nuts lie on the left.")
    with ScriptedChatServer(lambda request: SEEN) as server:
        said = explained(folder, tmp_path / "out", *server_options(server), *told).stdout
        assert "scripted explained 3 flagged pictures; its words change no verdict." in said
        assert len(server.requests) == 3
        assert "Four nuts lie on the left." in " ".join(server.requests[0].texts)
        explained(folder, tmp_path / "out", *server_options(server), *told)
        assert len(server.requests) == 3
    found = rows(tmp_path / "out")
    assert found["fine.png"]["reasons"] == []
    assert [r["rule"] for r in found["extra.png"]["reasons"]] == ["R1", "R3", "scripted", "scripted"]
    assert found["extra.png"]["reasons"][2]["text"] == "a nut is not there"
    assert found["extra.png"]["verdict"] == "reject"
    assert "a nut is not there" in (tmp_path / "out" / "index.html").read_text()


def test_a_stopped_explanation_goes_on(folder, tmp_path, monkeypatch):
    pytest.importorskip("httpx")
    whole = stage.counting

    def stopped(items, *words, **more):
        yield next(iter(items))
        raise KeyboardInterrupt

    with ScriptedChatServer(lambda request: SEEN) as server:
        monkeypatch.setattr(stage, "counting", stopped)
        explained(folder, tmp_path / "out", *server_options(server), code=130)
        assert not (tmp_path / "out" / "index.html").exists()
        monkeypatch.setattr(stage, "counting", whole)
        said = explained(folder, tmp_path / "out", *server_options(server))
        assert "it is continued" in said.stderr
        assert len(server.requests) == 3
    assert len(rows(tmp_path / "out")["missing.png"]["reasons"]) == 4


def test_a_failing_server_leaves_the_report_complete(folder, tmp_path):
    pytest.importorskip("httpx")
    with ScriptedChatServer(lambda request: Step(status=404)) as server:
        said = explained(folder, tmp_path / "out", *server_options(server)).stdout
    assert "3 of 3 flagged pictures could not be explained: the server at" in said
    assert [r["rule"] for r in rows(tmp_path / "out")["extra.png"]["reasons"]] == ["R1", "R3"]
    assert "could not be explained" in (tmp_path / "out" / "index.html").read_text()


def test_a_server_that_keeps_failing_is_asked_no_more():
    from anomalens.reasoning.endpoint import Message, Model

    pytest.importorskip("httpx")
    with ScriptedChatServer(lambda request: Step(status=404)) as server:
        patient = stage.Patient(Model(server.url, "scripted"))
        answers = [patient.ask([Message.of("user", str(i))]) for i in range(8)]
        assert len(server.requests) == stage.PATIENCE
    assert {answer.status for answer in answers} == {"api_error"}
    assert answers[-1].error == answers[0].error


def test_explain_on_predict_dry_and_refused(folder, tmp_path):
    pytest.importorskip("httpx")
    run(
        "rules", "run", folder / "learnt.yaml", folder / "new", "--good", folder / "good", *PARSER,
        "--out", tmp_path / "a", "--save-model", tmp_path / "m",
    )  # fmt: skip
    words = ("predict", tmp_path / "m", folder / "new", "--out", tmp_path / "b", "--explain")
    with ScriptedChatServer(lambda request: SEEN) as server:
        dry = run(*words, *server_options(server), "--dry-run").stdout
        assert re.search(r"explaining 3 flagged pictures would send: 3 requests, 6 pictures", dry)
        assert not server.requests
        run(*words, *server_options(server))
        assert len(server.requests) == 3
    assert "give --base-url URL and --model NAME" in refused(*words)
    assert "NO_SUCH_KEY holds no key" in refused(*words, *server_options(server), "--key-env", "NO_SUCH_KEY")
    assert "goes with --explain" in run(*words[:-1], "--context", "x", code=2).stderr
