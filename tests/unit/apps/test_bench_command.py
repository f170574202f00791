"""`anomalens bench` as a user types it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from anomalens.apps import bench
from anomalens.bench import plan as plans
from anomalens.datasets.procedural import Procedural
from anomalens.detectors.patchcore import PatchCore
from tests.support import command

run = partial(command.run, "bench")


@pytest.fixture(scope="module")
def cloth(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "cloth"
    Procedural("cloth", size=48, train_count=5, good_count=2, bad_count=2).write(root)
    return root


FAST = {"name": "patchcore", "settings": {"image_size": 64}}


@pytest.fixture
def plan(cloth, tmp_path) -> Path:
    path = tmp_path / "plan.json"
    raw = {"methods": [FAST], "data": [{"root": str(cloth)}], "corruptions": ["jpeg:1"], "seeds": [0, 1]}
    path.write_text(json.dumps(raw))
    return path


def test_a_plan_file_runs_says_what_came_out_and_goes_on(plan, tmp_path):
    out = tmp_path / "out"
    first = run(plan, "--out", out)
    head, line, *_ = first.stdout.splitlines()
    assert head.split() == ["method", "category", "shots", "image.auroc", "pixel.auroc", "pixel.aupro@0.3"]
    assert line.split()[:3] == ["patchcore", "cloth", "full"]
    assert f"4 of 4 cells have results: {out / 'results.jsonl'}" in first.stdout
    assert first.stderr.splitlines()[0] == "4 cells"
    assert first.stderr.splitlines()[-1].startswith("4/4 patchcore on cloth, shots full, seed 1, jpeg 1")
    again = run(plan, "--out", out)
    assert "(4 of them from earlier runs)" in again.stdout
    assert again.stderr.splitlines() == ["4 cells, 4 of them done earlier"]


def test_the_same_from_options(cloth, tmp_path, monkeypatch):
    asked = []
    summary = {"results": str(tmp_path / "none"), "cells": 0, "kept": 0, "ok": 0, "failed": 0, "errors": {}}
    monkeypatch.setattr(
        bench.runs, "run", lambda plan, out, executor, progress: (asked.append((plan, out, executor)), summary)[1]
    )
    for extra in ([], ["smoke"]):
        run("--method", "patchcore", "--method", "padim", "--data", cloth, "--category", "cloth", "--shots", "full,4",
            "--seeds", 3, "--backbone", "tiny", "--out", "x", "--robustness", *extra, "--mode", "matched",
            "--processes", 2, "--limit", 5)  # fmt: skip
    (plan, out, executor), (smoke, _, _) = asked
    assert (out, executor, plan.shots, plan.seeds) == ("x", "processes:2", ("full", 4), (0, 1, 2))
    assert (plan.mode, plan.limit, plan.backbones, len(plan.corruptions)) == ("matched", 5, ("tiny",), 25)
    assert len(smoke.corruptions) == 4
    assert [m.name for m in plan.methods] == ["patchcore", "padim"]
    assert plan.data[0].categories == ("cloth",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pictures", {"root": "pictures"}),
        ("rad=rad", {"root": "rad", "reader": "rad"}),
        ("procedural=", {"root": "", "reader": "procedural"}),
        ("a=b/pictures", {"root": "a=b/pictures"}),
    ],
)
def test_roots_and_readers(text, expected):
    assert bench._root(text) == expected


def test_json_is_the_summary_and_nothing_else(plan, tmp_path):
    result = run(plan, "--out", tmp_path / "out", "--json", "--limit", 1)
    summary = json.loads(result.stdout)
    assert (summary["cells"], summary["ok"], summary["failed"], summary["kept"]) == (4, 4, 0, 0)
    assert result.stderr == ""


def test_failed_cells_are_told_and_end_with_code_4(plan, tmp_path, monkeypatch):
    def broken(self, samples):
        raise ValueError("no luck")

    monkeypatch.setattr(PatchCore, "fit", broken)
    result = run(plan, "--out", tmp_path / "out", code=4)
    assert "4 failed; the same command tries them again:" in result.stdout
    assert "  4 x ValueError: no luck" in result.stdout
    assert "ValueError: no luck" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "bench needs a plan file, or --method and --data; --method NAME is missing."),
        (["--method", "padim"], "bench needs a plan file, or --method and --data; --data ROOT is missing."),
        (["plan.toml", "--method", "padim"], "bench got the plan plan.toml and --method"),
        (["--method", "padmi", "--data", "procedural="], "did you mean 'padim'"),
        (["--method", "padim", "--data", "procedural=", "--seeds", "0"], "--seeds is 0; give how many"),
        (["--method", "padim", "--data", "procedural=", "--robustness", "rad-light"], "did you mean 'rad-lite'?"),
        (["--method", "padim", "--data", "procedural=", "--shots", "four"], "give 'full' or whole numbers"),
        (["--method", "padim", "--data", "procedural=", "--processes", "0"], "give serial, or processes:N"),
        (["no.json"], "the plan no.json does not exist"),
    ],
)
def test_one_sentence_before_anything_runs(arguments, sentence):
    said = run(*arguments, code=2).stderr.strip().splitlines()
    assert said[-1].startswith("anomalens: ")
    assert sentence in said[-1]


def test_a_line_tells_the_time_left(capsys, monkeypatch):
    now = iter([0.0, 0.0, 0.5, 10.0, 11.0])
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(now))
    lines = bench.Lines()
    row = {"status": "ok", "cell": plans.cells(plans.make({"methods": [FAST], "data": [{"reader": "procedural"}]}))[0]}
    lines(None, 10, 20)
    lines(row, 11, 20)  # too soon after the last line
    lines(row, 12, 20)
    lines(row, 20, 20)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "20 cells, 10 of them done earlier"
    assert [line.partition(" ")[0] for line in said[1:]] == ["12/20", "20/20"]
    assert said[1].endswith(", about 40 s left")


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (90, "2 min"), (7200, "2.0 h")])
def test_durations(seconds, words):
    assert bench.duration(seconds) == words
