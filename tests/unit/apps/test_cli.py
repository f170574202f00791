"""The commands as a user types them: what works, what is refused, and how the process ends."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomalens as al
from anomalens.apps import cli
from anomalens.apps.tasks import telling_view
from anomalens.datasets.procedural import Procedural
from anomalens.types import Prediction, Reason, Sample, View
from tests.support.command import run


def refused(*arguments: object) -> str:
    """The one sentence of a refusal, exit code 2."""
    said = run(*arguments, code=2).stderr.strip().splitlines()
    assert said[-1].startswith("anomalens: "), said
    assert "Traceback" not in "".join(said)
    return said[-1]


def test_our_warnings_are_sentences(capsys):
    told = []
    show = cli._said(lambda *given: told.append(given))
    show(UserWarning("the lamp is dark."), UserWarning, cli.__file__, 12)
    assert capsys.readouterr().err == "anomalens: the lamp is dark.\n"
    show(DeprecationWarning("old"), DeprecationWarning, cli.__file__, 12)
    show(UserWarning("theirs"), UserWarning, "/lib/other.py", 3)
    assert [given[1:] for given in told] == [(DeprecationWarning, cli.__file__, 12), (UserWarning, "/lib/other.py", 3)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A drawn category on disk, MVTec layout, 128 x 128."""
    root = tmp_path_factory.mktemp("parts") / "cloth"
    Procedural("cloth", size=128, train_count=14, good_count=5, bad_count=5).write(root)
    return root


SMALL = ("--set", "image_size=128")


@pytest.fixture(scope="module")
def model(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "m"
    run("fit", parts / "train" / "good", "--method", "patchcore", "--out", folder, *SMALL)
    return folder


@pytest.fixture(scope="module")
def report(parts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    run(
        "inspect",
        parts / "test",
        "--good",
        parts / "train" / "good",
        "--out",
        out,
        "--save-model",
        out.parent / "m",
        *SMALL,
    )
    return out


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_inspect_writes_everything_that_is_promised(report, parts):
    assert {p.name for p in report.iterdir()} == {"index.html", "results.csv", "results.jsonl", "run.json", "maps"}
    found = rows(report)
    pictures = sorted(p.relative_to(parts / "test").as_posix() for p in (parts / "test").rglob("*.png"))
    assert sorted(r["id"] for r in found) == pictures
    for row in found:
        assert row["verdict"] in ("pass", "review", "reject")
        assert 0 < row["p_value"] <= 1
        assert (report / row["map"]).exists()
        with Image.open(report / row["map"]) as values:
            assert values.mode == "I;16"
        for region in row["regions"]:
            x0, y0, x1, y1 = region["box"]
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
            assert region["area"] >= 4
    table = list(csv.DictReader((report / "results.csv").read_text().splitlines()))
    assert [float(t["score"]) for t in table] == [r["score"] for r in found]
    page = (report / "index.html").read_text()
    assert "good pictures" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_defects_are_rejected_and_good_pictures_rarely(report):
    verdicts = {r["id"]: r["verdict"] for r in rows(report)}
    bad = [v for name, v in verdicts.items() if not name.startswith("good/")]
    fine = [v for name, v in verdicts.items() if name.startswith("good/")]
    assert bad.count("reject") >= 0.6 * len(bad)
    assert fine.count("reject") <= 1


def test_run_json_reproduces_the_run(report):
    plan = json.loads((report / "run.json").read_text())["plan"]
    assert plan["settings"]["image_size"] == 128
    detector = al.fit_calibrated(
        al.create(plan["method"], **plan["settings"]), al.samples(plan["good"]), seed=plan["seed"]
    )
    for row, p in zip(rows(report), detector.predict(al.samples(plan["new"])), strict=True):
        judged = detector.calibration.judge(p, plan["false_alarm_rate"], plan["min_area"])
        assert (row["id"], row["score"], row["p_value"], row["verdict"]) == (
            p.id,
            p.score,
            judged.p_value,
            judged.verdict,
        )


def test_the_same_command_gives_the_same_results(parts, tmp_path):
    command = ("inspect", parts / "test", "--good", parts / "train" / "good", "--no-maps", *SMALL)
    run(*command, "--out", tmp_path / "a")
    run(*command, "--out", tmp_path / "b")
    assert (tmp_path / "a" / "results.csv").read_bytes() == (tmp_path / "b" / "results.csv").read_bytes()
    assert not (tmp_path / "a" / "maps").exists()


def test_fit_predict_and_inspect_agree(model, report, parts, tmp_path):
    run("predict", model, parts / "test", "--out", tmp_path / "out")
    assert rows(tmp_path / "out") == rows(report)


def test_python_gives_the_same_scores(report, parts):
    detector = al.create("patchcore", image_size=128).fit(al.samples(parts / "train" / "good"))
    scores = {p.id: p.score for p in detector.predict(al.samples(parts / "test"))}
    assert scores == {r["id"]: r["score"] for r in rows(report)}


def test_of_several_lights_the_page_shows_the_one_that_shows_most(tmp_path):
    pytest.importorskip("torch")
    root = Procedural("relief", size=64, train_count=5, good_count=1, bad_count=2).write(tmp_path / "relief")
    method = ("--method", "afrd", "--set", "image_size=64", "--set", "steps=2")
    run("inspect", root / "test", "--good", root / "train" / "good", *method, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    for found in rows(tmp_path / "out"):
        reason = found["reasons"][0]
        assert sum(reason["shares"].values()) == pytest.approx(1)
        most = max(reason["shares"], key=reason["shares"].get)
        card = page[page.index(f'data-id="{found["id"]}"') :]
        card = card[: card.index("</article>")]
        assert f'<span class="viewed">{most}</span>' in card
        with Image.open(io.BytesIO(base64.b64decode(re.search(r"image/jpeg;base64,([^\"]+)", card)[1]))) as shown:
            pixels = np.asarray(shown, float)
        lights = [np.asarray(Image.open(root / "test" / found["id"] / f"light_{k}.png"), float) for k in range(6)]
        assert np.argmin([np.abs(pixels - light).mean() for light in lights]) == int(most[-1])


def test_the_telling_view_has_a_file():
    views = {name: View(name, lambda: None, path) for name, path in (("left", None), ("right", "r.png"))}
    sample = Sample("0", views)

    def telling(**shares):
        return telling_view(Prediction("0", 1.0, reasons=(Reason("first"), Reason("", shares=shares))), sample)

    assert telling(left=0.9, right=0.1) == "right"
    assert telling(left=0.9, top=0.1) == ""
    assert telling() == ""


def test_without_good_pictures_a_zero_shot_method_is_used_and_named(parts, tmp_path):
    result = run("inspect", parts / "test", "--out", tmp_path / "out")
    assert "GRNR" in result.stderr
    assert "no good pictures were given" in result.stderr
    found = rows(tmp_path / "out")
    assert {r["p_value"] for r in found} == {None}
    assert {r["verdict"] for r in found} <= {"pass", "review"}
    assert all(r["regions"] == [] for r in found if r["verdict"] == "pass")


def test_evaluate(model, parts, tmp_path):
    result = run("evaluate", model, parts, "--out", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"image auroc", "image ap", "image f1max", "pixel auroc", "pixel aupro@0.3"} <= set(figures["figures"])
    for figure in figures["figures"].values():
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1] + 1e-9
    assert figures["figures"]["image auroc"]["value"] >= 0.8
    assert "95 % interval" in result.stdout
    at = figures["at_threshold"]
    assert at["good"] + at["anomalous"] == figures["pictures"]


def test_evaluate_needs_labels(model, parts):
    assert "no labelled pictures" in refused("evaluate", model, parts / "train" / "good")


def test_one_class_only_is_undefined_not_zero(model, parts):
    result = run("evaluate", model, parts / "test" / "good", code=2)
    assert "no labelled pictures" in result.stderr


def test_fail_on(model, parts, tmp_path):
    run("predict", model, parts / "test", "--out", tmp_path / "a", "--fail-on", "reject", code=3)
    run(
        "predict",
        model,
        parts / "train" / "good",
        "--out",
        tmp_path / "b",
        "--fail-on",
        "reject",
        "--false-alarm-rate",
        "0.01",
    )
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "good.png").write_bytes((parts / "train" / "good" / "000.png").read_bytes())
    (tmp_path / "torn" / "torn.png").write_bytes(b"")
    unread = ("predict", model, tmp_path / "torn", "--out", tmp_path / "c", "--fail-on")
    assert "2 pictures: 1 passed, 1 unreadable" in run(*unread, "review", code=3).stdout
    run(*unread, "reject")


def test_json_is_alone_on_stdout(model, parts, tmp_path):
    result = run("predict", model, parts / "test", "--out", tmp_path / "out", "--json")
    summary = json.loads(result.stdout)
    assert summary["counts"]["reject"] + summary["counts"]["review"] + summary["counts"]["pass"] == len(
        rows(tmp_path / "out")
    )
    assert json.loads(run("list", "--json").stdout)["patchcore"]["title"] == "PatchCore"
    assert json.loads(run("show", "patchcore", "--json").stdout)["settings"]["coreset"]


def test_list_and_show_name_everything():
    said = run("list").stdout
    assert all(name in said for name in al.names())
    for name in (*al.names(), "tiny", "timm"):
        shown = run("show", name).stdout
        assert len(shown) > 200
        assert "MISSING" not in shown
    assert "did you mean 'patchcore'" in refused("show", "patchcor")


def test_data_checks_a_local_copy(parts):
    counts = next(line for line in run("data", "mvtec", parts.parent).stdout.splitlines() if line.startswith("cloth"))
    assert counts.split()[1:5] == ["14", "5", "5", "5"]  # train, good, bad, masks
    assert json.loads(run("data", "mvtec", parts.parent, "--json", "--decode").stdout)
    assert "split_csv" in refused("data", "visa", parts)
    assert "did you mean" in refused("data", "mvtecc", parts)


def test_add_extends_a_saved_detector(parts, tmp_path):
    good = parts / "train" / "good"
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(good.iterdir())[:4]:
        (few / path.name).write_bytes(path.read_bytes())
    run("fit", few, "--out", tmp_path / "m", *SMALL)
    before = al.load(tmp_path / "m")
    said = run("add", tmp_path / "m", good).stdout
    after = al.load(tmp_path / "m")
    assert "14 more good pictures" in said
    assert len(after.bank) > len(before.bank)
    assert np.array_equal(after.calibration.scores, before.calibration.scores)
    run("fit", few, "--out", tmp_path / "p", "--method", "padim", *SMALL)
    assert "patchcore can" in refused("add", tmp_path / "p", good)


def test_a_place_that_cannot_be_written_is_named(model, parts):
    assert "cannot be written" in refused("predict", model, parts / "test", "--out", "/proc/anomalens/out")


def test_region_of_interest(parts, model, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(tmp_path / "roi.png")
    run("inspect", parts / "test", "--good", parts / "train" / "good", "--roi", tmp_path / "roi.png",
        "--out", tmp_path / "out", "--save-model", tmp_path / "m", *SMALL)  # fmt: skip
    for row in rows(tmp_path / "out"):
        assert all(region["box"][3] <= 64 for region in row["regions"])
    (tmp_path / "roi.png").unlink()  # the saved model brings its mask along
    run("predict", tmp_path / "m", parts / "test", "--out", tmp_path / "again")
    assert rows(tmp_path / "again") == rows(tmp_path / "out")


def test_tiles(parts, tmp_path):
    run("inspect", parts / "test" / "good", "--good", parts / "train" / "good", "--tile", 96,
        "--out", tmp_path / "out", *SMALL)  # fmt: skip
    assert len(rows(tmp_path / "out")) == 5


def test_unreadable_pictures_are_counted_never_passed(parts, tmp_path):
    good, new = tmp_path / "good", tmp_path / "new"
    for folder, source in ((good, parts / "train" / "good"), (new, parts / "test" / "good")):
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (good / "torn.png").write_bytes((parts / "train" / "good" / "000.png").read_bytes()[:500])
    (new / "empty.png").write_bytes(b"")
    (new / "text.png").write_text("not a picture")
    result = run("inspect", new, "--good", good, "--out", tmp_path / "out", *SMALL)
    assert "1 unreadable among the good pictures" in result.stderr
    assert "2 unreadable" in result.stdout
    failed = {r["id"]: r for r in rows(tmp_path / "out") if r["error"]}
    assert set(failed) == {"empty.png", "text.png"}
    assert {r["verdict"] for r in failed.values()} == {"review"}
    assert {r["score"] for r in failed.values()} == {None}


def test_a_damaged_good_picture_hides_no_new_one_of_the_same_name(parts, tmp_path):
    good, new = tmp_path / "good", tmp_path / "new"
    for folder, source in ((good, parts / "train" / "good"), (new, parts / "test" / "good")):
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (good / "000.png").write_bytes(b"")
    run("inspect", new, "--good", good, "--out", tmp_path / "out", *SMALL)
    judged = {r["id"]: r for r in rows(tmp_path / "out")}
    assert judged["000.png"]["score"] is not None
    assert judged["000.png"]["error"] == ""


def test_mixed_sizes_and_sixteen_bit(parts, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 300, 3), np.uint8)).save(new / "wide.jpg")
    Image.fromarray(rng.integers(0, 65535, (70, 40)).astype(np.uint16)).save(new / "deep.tiff")
    run("inspect", new, "--good", parts / "train" / "good", "--out", tmp_path / "out", *SMALL)
    assert {r["id"]: r["size"] for r in rows(tmp_path / "out")} == {"wide.jpg": [300, 50], "deep.tiff": [40, 70]}


def test_what_cannot_work_is_one_sentence_and_exit_code_2(parts, model, tmp_path):
    good = parts / "train" / "good"
    (tmp_path / "nothing").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "a.png").write_bytes((good / "000.png").read_bytes())
    out = ("--out", tmp_path / "out")
    assert "holds nothing at all" in refused("inspect", parts / "test", "--good", tmp_path / "nothing", *out)
    assert "holds 1 x .txt" in refused("inspect", tmp_path / "notes", "--good", good, *out)
    assert "cannot be judged" in refused("inspect", good, "--good", good, *out)
    assert "single good picture" in refused("inspect", parts / "test", "--good", tmp_path / "single", *out)
    assert "does not exist" in refused("inspect", tmp_path / "absent", "--good", good, *out)
    assert "patchcore" in refused("inspect", parts / "test", "--good", good, "--method", "patchcor", *out)
    assert "tiny" in refused("inspect", parts / "test", "--good", good, "--backbone", "tny", *out)
    assert "learns from good pictures" in refused("inspect", parts / "test", "--method", "padim", *out)
    said = refused("inspect", parts / "test", "--method", "vlad", *out)
    assert "learns from good pictures" in said
    assert "grnr" in said
    assert "logicode" not in said  # it asks for good pictures itself, as a rule
    assert "between 0 and 1" in refused("inspect", parts / "test", "--good", good, "--false-alarm-rate", 2, *out)
    assert "memory" in refused("inspect", parts / "test", "--good", good, "--limit-memory", "lots", *out)
    assert "memory" in refused("inspect", parts / "test", "--good", good, "--limit-memory", "10kB", *out)
    assert "no setting" in refused("inspect", parts / "test", "--good", good, "--set", "no_such=1", *out)
    assert "KEY=VALUE" in refused("inspect", parts / "test", "--good", good, "--set", "nonsense", *out)
    assert "not a saved detector" in refused("predict", tmp_path / "nothing", parts / "test", *out)
    assert "region of interest" in refused("inspect", parts / "test", "--good", good, "--roi", tmp_path / "x.png", *out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert "file" in refused("predict", model, parts / "test", "--out", tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("x")
    assert "foreign" in refused("predict", model, parts / "test", "--out", tmp_path / "foreign")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_named(model, parts, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refused("predict", model, parts / "test", "--out", tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_an_interrupted_run_goes_on_where_it_stopped(parts, tmp_path):
    """Killed between pictures, the second run fits nothing again and judges only the rest."""
    slow = (
        "import time, sys\n"
        "from anomalens.apps import run_folder\n"
        "whole = run_folder.RunFolder.add\n"
        "def add(self, *a, **k):\n    whole(self, *a, **k); time.sleep(0.3)\n"
        "run_folder.RunFolder.add = add\n"
        "from anomalens.apps.cli import main\nmain(sys.argv[1:])"
    )
    command = ["inspect", str(parts / "test"), "--good", str(parts / "train" / "good"), "--out", str(tmp_path / "out"),
               *SMALL, "--set", "batch_size=1"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", slow, *command], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "unfinished" / "rows.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or len(log.read_bytes().splitlines()) < 4):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "index.html").exists()
    done = len(log.read_bytes().splitlines()) - 1
    result = run(*command)
    assert "interrupted run" in result.stderr
    assert "calibrating" not in result.stderr  # the fitted detector was kept
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["resumed"] >= done - 1 > 0
    fresh = tmp_path / "fresh"
    run(*[fresh if c == str(tmp_path / "out") else c for c in command])
    assert rows(fresh) == rows(tmp_path / "out")


def test_demo(tmp_path):
    result = run("demo", "--out", tmp_path / "demo")
    assert "image auroc" in result.stdout
    assert (tmp_path / "demo" / "report" / "index.html").exists()
    run("demo", "--out", tmp_path / "demo")  # again: the drawn pictures are used as they are


def test_the_installed_command_is_light_and_complete():
    help_text = subprocess.run([sys.executable, "-m", "anomalens.apps.cli", "--help"], capture_output=True, text=True)
    for command in ("inspect", "fit", "predict", "evaluate", "list", "show", "demo"):
        assert command in help_text.stdout


@pytest.mark.parametrize("command", [(), ("rules",)])
def test_help_tells_every_command_in_a_whole_sentence(command):
    text = run(*command, "--help").stdout.partition("Commands:")[2]
    assert "..." not in text
    if not command:
        assert text.index("  inspect ") < text.index("  fit ") < text.index("  predict ") < text.index("  bench ")


def test_a_library_that_is_not_installed_is_a_sentence(parts, tmp_path, monkeypatch):
    from anomalens.apps import tasks

    def lacking(name):
        def inspect(*args, **how):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return inspect

    monkeypatch.setattr(tasks, "inspect", lacking("torch.nn"))
    assert "pip install 'anomalens[torch]'" in refused("inspect", parts / "test")
    monkeypatch.setattr(tasks, "inspect", lacking("anomalens.nothing"))
    with pytest.raises(ModuleNotFoundError):  # a bug keeps its traceback
        run("inspect", parts / "test")


def test_explain_is_refused_before_the_work_where_nothing_can_be_asked(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("anomalens.apps.cli.find_spec", lambda name: None)
    server = ("--explain", "--base-url", "http://127.0.0.1:9", "--model", "m")
    said = refused("inspect", parts / "test", "--good", parts / "train" / "good", *server, "--out", tmp_path / "out")
    assert "pip install 'anomalens[llm]'" in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_saved_is_refused_before_it_is_learnt(parts, report, tmp_path, monkeypatch):
    from anomalens.apps import tasks

    monkeypatch.setattr(tasks, "fit_calibrated", None)
    good = parts / "train" / "good"
    assert "is not a saved detector" in refused("fit", good, "--out", report)
    save = ("--save-model", report)
    assert "is not a saved detector" in refused(
        "inspect", parts / "test", "--good", good, *save, "--out", tmp_path / "o"
    )


def test_a_training_that_was_stopped_goes_on(parts, tmp_path, monkeypatch):
    """Stopped after the last step, before anything was saved: the second time no step is made."""
    pytest.importorskip("torch")
    from anomalens import store
    from anomalens.parts import train

    def stop(*args):
        raise KeyboardInterrupt

    command = ("fit", parts / "train" / "good", "--out", tmp_path / "m", "--method", "rd", "--set", "steps=2",
               "--set", "image_size=64")  # fmt: skip
    with monkeypatch.context() as stopping:
        stopping.setattr(store, "save", stop)
        assert "go on where it stopped" in run(*command, code=130).stderr
    assert [p.name for p in (tmp_path / "m.training").rglob("*.safetensors")] == ["training.safetensors"]
    monkeypatch.setattr(train._Run, "_one_step", None)
    run(*command)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_command_that_keeps_nothing_does_not_say_so_when_stopped(parts, tmp_path, monkeypatch):
    from anomalens.apps import tasks

    def stop(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "evaluate", stop)
    assert run("evaluate", tmp_path, parts, code=130).stderr == "anomalens: stopped.\n"


def test_settings_of_words_and_numbers_are_split_at_commas():
    from anomalens.apps.tasks import settings_for

    found = settings_for("vlad", settings=["makers=paste, stain", "layers=1,2", "phrases=a,b", "object=metal nut"])
    assert (found["makers"], found["layers"], found["object"]) == (("paste", "stain"), (1, 2), "metal nut")


def test_a_wrapper_needs_good_pictures_only_where_what_it_holds_does(parts, tmp_path):
    tiled = run("inspect", parts / "test", "--method", "tiled", "--set", "inner=grnr", "--out", tmp_path / "report")
    assert tiled.exit_code == 0, tiled.output
