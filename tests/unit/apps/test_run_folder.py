"""The run folder: nothing is lost, nothing passes unseen, and a stopped run ends like one that was never stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalens.apps import run_folder
from anomalens.apps.report import expand
from anomalens.apps.run_folder import COLUMNS, RunFolder, cell, map_name, shrink
from anomalens.errors import CannotWrite, WrongInput
from anomalens.images import decode_map, encode
from anomalens.types import Prediction, Reason, Region, Sample, View

PLAN = {"method": "patchcore", "map_scale": 4.0, "seed": 0}
IDS = [f"{group}/{k:03}.png" for group in ("good", "crack") for k in range(4)]
TIMES = ("started", "finished", "seconds", "pictures_per_second", "resumed")


@pytest.fixture
def pictures(tmp_path):
    """Eight small pictures on disk, as samples."""
    samples = []
    for k, id in enumerate(IDS):
        path = tmp_path / "new" / id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((20, 30, 3), 20 * k, np.uint8)))
        samples.append(Sample(id, {"image": View("image", lambda: None, str(path))}))
    return samples


def test_what_is_said_afterwards_stands_behind_the_reasons(tmp_path, pictures):
    with RunFolder(tmp_path / "out", PLAN) as run:
        for sample in run.pending(pictures):
            run.add(predict(sample.id), path=sample.views["image"].path)
        run.finish({}, reasons={IDS[2]: [Reason("a bent pin", "model", (1, 2, 5, 6))]})
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    said = {row["id"]: [reason["text"] for reason in row["reasons"]] for row in rows}
    assert said == {id: ["too long", "a bent pin"] if id == IDS[2] else ["too long"] for id in IDS}
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("a bent pin") == 1


def predict(id: str) -> Prediction:
    """A prediction that depends on the id alone."""
    rng = np.random.default_rng(list(id.encode()))
    values = rng.random((20, 30), np.float32) * 5
    region = Region((1, 2, 5, 6), 9, float(values.max()), ((1, 2), (5, 2), (5, 6)))
    reason = Reason("too long", shares={"left": np.float32(0.25), "right": np.float32(0.75)})
    return Prediction(id, float(rng.normal()), values, (region,), (reason,), p_value=1 / 3, verdict="reject")


def score_all(out: Path, samples, plan=PLAN, stop_after: int | None = None) -> list[str]:
    """One run; returns the ids that were scored, and finishes unless it is stopped."""
    scored = []
    with RunFolder(out, plan) as run:
        for sample in run.pending(samples):
            if len(scored) == stop_after:
                raise KeyboardInterrupt
            run.add(predict(sample.id), path=sample.views["image"].path, label=0)
            scored.append(sample.id)
        run.finish({"sentences": ["Nothing is promised."], "command": "anomalens inspect new", "good_scores": [0.1]})
    return scored


def content(out: Path) -> dict[str, bytes]:
    """Every result file but the page and the times, which differ between runs."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    found.pop("index.html")
    facts = {k: v for k, v in json.loads(found.pop("run.json")).items() if k not in TIMES}
    return {**found, "facts": json.dumps(facts).encode()}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_run_writes_every_file_in_input_order_with_full_precision(tmp_path, pictures):
    out = tmp_path / "out"
    score_all(out, pictures)
    assert {p.name for p in out.iterdir()} == {"index.html", "results.csv", "results.jsonl", "run.json", "maps"}
    expected = [predict(id) for id in IDS]
    objects = lines(out)
    assert [o["id"] for o in objects] == IDS
    assert [o["score"] for o in objects] == [p.score for p in expected]
    first = objects[0]
    assert first["size"] == [30, 20]
    assert first["regions"][0]["outline"] == [[1, 2], [5, 2], [5, 6]]
    assert first["reasons"] == [{"text": "too long", "rule": "", "box": None, "shares": {"left": 0.25, "right": 0.75}}]
    assert (first["map"], first["map_scale"], first["label"]) == ("maps/good/000.png.png", 4.0, 0)
    assert not {"path", "view", "stamp", "heat"} & first.keys()
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert tuple(table[0]) == COLUMNS
    assert [float(row[1]) for row in table[1:]] == [p.score for p in expected]
    assert [row[2:5] for row in table[1:]] == [["0.3333333333333333", "reject", "1"]] * 8
    assert json.loads(table[1][5]) == first["regions"]
    facts = json.loads((out / "run.json").read_text())
    assert facts["counts"] == {"reject": 8, "review": 0, "pass": 0, "unreadable": 0}
    assert facts["plan"] == PLAN
    assert facts["versions"]["numpy"] == np.__version__


def test_maps_come_back_within_half_a_step_and_say_their_scale(tmp_path, pictures):
    out = tmp_path / "out"
    score_all(out, pictures)
    for row in lines(out):
        found = decode_map(out / row["map"], row["map_scale"])
        assert np.abs(found - predict(row["id"]).map.clip(0, 4.0)).max() <= 4.0 / 65535
        with Image.open(out / row["map"]) as image:
            assert float(image.text["map_scale"]) == 4.0
            assert image.mode == "I;16"


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_a_stopped_run_is_continued_and_ends_as_if_never_stopped(tmp_path, pictures, stop_after):
    with pytest.raises(KeyboardInterrupt):
        score_all(tmp_path / "out", pictures, stop_after=stop_after)
    assert score_all(tmp_path / "out", pictures) == IDS[stop_after:]
    score_all(tmp_path / "whole", pictures)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_killed_process_loses_only_what_was_waiting_to_be_written(tmp_path, pictures):
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(out), *IDS], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"six added\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    written = (out / "unfinished" / "rows.jsonl").read_bytes().count(b"\n") - 1
    assert written >= 6 - run_folder.QUEUE
    rest = score_all(out, [Sample(id, {"image": View("image", lambda: None)}) for id in IDS], plan={"a": 1})
    assert rest == IDS[written:]
    assert [row["id"] for row in lines(out)] == IDS


CHILD = """
import sys, time
import numpy as np
from anomalens.apps.run_folder import RunFolder
from anomalens.types import Prediction, Sample
with RunFolder(sys.argv[1], {"a": 1}) as run:
    for k, sample in enumerate(run.pending(Sample(id, {}) for id in sys.argv[2:])):
        if k == 6:
            print("six added", flush=True)
            time.sleep(60)
        run.add(Prediction(sample.id, float(k), np.ones((8, 8), np.float32)))
"""


@pytest.mark.parametrize("torn", [b'{"id": "good/003.png", "sco', b"\x00\x00\n", b"[]\n"])
def test_a_torn_line_is_dropped(tmp_path, pictures, torn):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        score_all(out, pictures, stop_after=3)
    with (out / "unfinished" / "rows.jsonl").open("ab") as file:
        file.write(torn)
    assert score_all(out, pictures) == IDS[3:]
    assert [row["id"] for row in lines(out)] == IDS


def test_another_plan_starts_over_and_says_so(tmp_path, pictures):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        score_all(out, pictures, stop_after=3)
    with RunFolder(out, {**PLAN, "method": "padim"}) as run:
        assert "another method" in run.message
        assert "3 finished pictures" in run.message
        assert [s.id for s in run.pending(pictures)] == IDS
        assert run.resumed == 0


def test_the_same_plan_says_that_it_continues(tmp_path, pictures):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        score_all(out, pictures, stop_after=3)
    with RunFolder(out, PLAN) as run:
        assert "3 finished pictures" in run.message
        assert "continued" in run.message
        assert [s.id for s in run.pending(pictures)] == IDS[3:]
        assert run.resumed == 3


def test_a_picture_that_was_replaced_or_failed_is_scored_again(tmp_path, pictures):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), RunFolder(out, PLAN) as run:  # noqa: PT012
        todo = run.pending(pictures)
        for _ in range(3):
            sample = next(todo)
            run.add(predict(sample.id), path=sample.views["image"].path)
        run.fail(next(todo).id, "permission denied")
        raise KeyboardInterrupt
    Path(pictures[1].views["image"].path).write_bytes(encode(np.zeros((7, 7, 3), np.uint8)))
    assert score_all(out, pictures) == [IDS[1], *IDS[3:]]
    assert [row["id"] for row in lines(out)] == IDS
    assert not any(row["error"] for row in lines(out))


def test_a_picture_that_is_gone_is_not_in_the_results(tmp_path, pictures):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        score_all(out, pictures, stop_after=3)
    score_all(out, pictures[1:])
    assert [row["id"] for row in lines(out)] == IDS[1:]


def test_the_earlier_report_stays_until_the_new_one_is_complete(tmp_path, pictures):
    out = tmp_path / "out"
    score_all(out, pictures)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(KeyboardInterrupt):
        score_all(out, pictures[2:], {**PLAN, "map_scale": 2.0}, stop_after=2)
    assert all(path.read_bytes() == data for path, data in before.items())
    (out / "notes.txt").write_text("mine")
    score_all(out, pictures[2:], {**PLAN, "map_scale": 2.0})
    assert [row["id"] for row in lines(out)] == IDS[2:]
    assert not (out / "maps" / "good" / "000.png.png").exists()
    assert not (out / "unfinished").exists()
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("crash_at", range(6))
def test_a_crash_while_swapping_is_repaired_without_scoring_again(tmp_path, pictures, monkeypatch, crash_at):
    out = tmp_path / "out"
    score_all(out, pictures[:2])
    calls = []

    def crashing(old, new):
        calls.append(new)
        if len(calls) > crash_at:
            raise KeyboardInterrupt
        os.rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "replace", crashing)
        with pytest.raises(KeyboardInterrupt):
            score_all(out, pictures)
    assert score_all(out, pictures) == []
    score_all(tmp_path / "whole", pictures)
    assert content(out) == content(tmp_path / "whole")


def test_what_cannot_be_judged_is_review_with_its_error(tmp_path, pictures):
    out = tmp_path / "out"
    with RunFolder(out, PLAN) as run:
        for k, sample in enumerate(run.pending(pictures)):
            if k == 0:
                run.fail(sample.id, "is damaged")
                run.add(predict(sample.id))  # made from a stand-in: it does not count
            elif k == 1:
                run.add(Prediction(sample.id, float("nan")))
            elif k != 2:
                run.add(Prediction(sample.id, 1.0, verdict="pass" if k == 3 else None))
        run.finish({}, verdicts={IDS[0]: "pass", IDS[7]: "pass"})
    found = [(row["score"], row["verdict"], row["error"][:10]) for row in lines(out)]
    assert found == [
        (None, "review", "is damaged"),
        (None, "review", "the method"),
        (None, "review", "the method"),
        (1.0, "pass", ""),
        (1.0, "review", ""),
        (1.0, "review", ""),
        (1.0, "review", ""),
        (1.0, "pass", ""),
    ]
    with (out / "results.csv").open(newline="") as file:
        assert [row["score"] for row in csv.DictReader(file)][:3] == ["", "", ""]
    assert json.loads((out / "run.json").read_text())["counts"] == {
        "reject": 0, "review": 3, "pass": 2, "unreadable": 3
    }  # fmt: skip
    assert "is damaged" in (out / "index.html").read_text()


def test_spreadsheets_run_no_formula(tmp_path):
    ids = ["=1+1.png", "+a.png", "-a.png", "@a.png", "a=1.png"]
    with RunFolder(tmp_path / "out", PLAN) as run:
        for id in ids:
            run.add(Prediction(id, -1.5, verdict="pass"))
        run.finish({})
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == ["'=1+1.png", "'+a.png", "'-a.png", "'@a.png", "a=1.png"]
    assert table[0]["score"] == "-1.5"  # a number is no formula
    assert [row["id"] for row in lines(tmp_path / "out")] == ids
    assert cell("\t=1") == "'\t=1"


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "run.json").write_text('{"by": "another tool"}')
    with pytest.raises(CannotWrite, match="no run of anomalens"), RunFolder(tmp_path, PLAN):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "run.json"}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match="is a file"), RunFolder(tmp_path / "file", PLAN):
        pass
    with pytest.raises(CannotWrite, match="cannot be written"), RunFolder(tmp_path / "file" / "out", PLAN):
        pass


def test_a_full_disk_keeps_what_was_finished(tmp_path, pictures):
    resource = pytest.importorskip("resource", reason="needs a limit on file sizes, which this system has not")
    out = tmp_path / "out"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    plan = {**PLAN, "maps": False}
    with pytest.raises(CannotWrite, match="cannot be written"), RunFolder(out, plan) as run:  # noqa: PT012
        for k, sample in enumerate(run.pending(pictures)):
            if k == 4:
                run._drain()
                size = (out / "unfinished" / "rows.jsonl").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limit[1]))  # the next line does not fit
            try:
                run.add(predict(sample.id), path=sample.views["image"].path)
                run._drain()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert score_all(out, pictures, plan) == IDS[4:]
    assert [row["id"] for row in lines(out)] == IDS


def test_a_run_that_scored_nothing_leaves_nothing(tmp_path, pictures):
    with pytest.raises(KeyboardInterrupt):
        score_all(tmp_path / "out", pictures, stop_after=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "out", PLAN) as run:  # noqa: PT012
        run.scratch.mkdir()
        (run.scratch / "model").write_text("fitted")
        raise KeyboardInterrupt
    with RunFolder(tmp_path / "out", PLAN) as run:
        assert (run.scratch / "model").read_text() == "fitted"


def test_two_samples_of_one_name_are_refused(tmp_path, pictures):
    with pytest.raises(WrongInput, match="two samples"), RunFolder(tmp_path / "out", PLAN) as run:
        list(run.pending([*pictures, pictures[0]]))


def test_without_a_scale_the_first_map_sets_one_for_all(tmp_path):
    with RunFolder(tmp_path / "out", {}) as run:
        for k in (1, 2, 3):
            run.add(Prediction(f"{k}.png", k, np.full((4, 4), k, np.float32), verdict="pass"))
        run.finish({})
    assert [row["map_scale"] for row in lines(tmp_path / "out")] == [4.0] * 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["map_scale"] == 4.0


def test_maps_that_are_not_wanted_or_not_given_are_not_written(tmp_path):
    with RunFolder(tmp_path / "out", {"maps": False}) as run:
        run.add(Prediction("a.png", 1.0, np.ones((4, 4), np.float32), verdict="pass"))
        run.add(Prediction("b.png", 1.0, verdict="pass"), picture_size=(3, 5))
        run.finish({"reject": float("inf")})
    assert [(row["map"], row["size"]) for row in lines(tmp_path / "out")] == [(None, [4, 4]), (None, [5, 3])]
    assert not (tmp_path / "out" / "maps").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["reject"] is None


def test_a_map_with_values_that_are_no_numbers_is_still_written(tmp_path):
    values = np.array([[np.nan, np.inf], [1, -np.inf]], np.float32)
    with RunFolder(tmp_path / "out", {"map_scale": 2.0}) as run:
        run.add(Prediction("a.png", 1.0, values, verdict="pass"))
        run.finish({})
    assert decode_map(tmp_path / "out" / "maps" / "a.png.png", 2.0) == pytest.approx(
        np.array([[0, 1], [1, 1]]), abs=1e-4
    )


def test_map_names_stay_inside_the_folder_and_fit_the_file_system():
    assert map_name("crack/001.png") == "maps/crack/001.png.png"
    long = map_name("a/" + "é" * 125 + ".png")
    assert len(os.fsencode(long.rpartition("/")[2])) < 255
    assert long != map_name("a/" + "é" * 125 + ".jpg")
    for id in ("../a.png", "/a.png", "a/../../b.png", ""):
        with pytest.raises(WrongInput):
            map_name(id)


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (200, 333), (1000, 3), (30, 20)])
def test_the_heat_grid_keeps_the_maximum_of_every_area(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    heat = shrink(values)
    h, w = heat["size"]
    assert max(h, w) == min(64, max(shape))
    slow = np.array([
        [values[i * shape[0] // h : (i + 1) * shape[0] // h, j * shape[1] // w : (j + 1) * shape[1] // w].max()
         for j in range(w)] for i in range(h)
    ])  # fmt: skip
    assert np.abs(expand(heat) - slow).max() <= (slow.max() - slow.min()) / 255


def test_writing_waits_behind_a_bounded_queue(tmp_path, monkeypatch):
    """A slow disk slows the run down; it does not fill the memory with maps."""
    running = []
    real = run_folder.encode_map
    monkeypatch.setattr(run_folder, "encode_map", lambda *a: time.sleep(0.01) or running.append(1) or real(*a))
    with RunFolder(tmp_path / "out", PLAN) as run:
        for k in range(12):
            run.add(Prediction(f"{k}.png", 1.0, np.ones((4, 4), np.float32), verdict="pass"))
            assert k + 1 - len(running) <= run_folder.QUEUE
        run.finish({})
    assert len(lines(tmp_path / "out")) == 12


def test_a_name_that_is_no_text_survives(tmp_path):
    """Linux file names are bytes; those that are no UTF-8 arrive as surrogates."""
    id = os.fsdecode(b"\xff\xfe.png")
    with RunFolder(tmp_path / "out", PLAN) as run:
        run.add(Prediction(id, 1.0, np.ones((4, 4), np.float32), verdict="pass"))
        run.finish({})
    assert lines(tmp_path / "out")[0]["id"] == id
    (tmp_path / "out" / "results.csv").read_text(encoding="utf-8")
    (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
