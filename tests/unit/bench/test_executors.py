"""Executors: the same rows from one process and from several, and what happens when one dies."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from anomalens.bench import executors
from anomalens.bench import plan as plans
from anomalens.bench import run as runs
from anomalens.errors import WrongInput

MEASURED = ("seconds", "ratio", "memory_mb")
OPTIONS = {"size": 48, "train_count": 5, "good_count": 2, "bad_count": 2}


def plan(**changes):
    raw = {
        "methods": [{"name": "patchcore", "settings": {"image_size": 64}}],
        "data": [{"reader": "procedural", "categories": ["cloth", "wood"], "options": OPTIONS}],
        "corruptions": ["rot:2", "gauss:2"],
    }
    return plans.make({**raw, **changes})


def settled(folder) -> dict[str, dict]:
    rows = runs.read_rows(Path(folder) / "results.jsonl")
    return {row["hash"]: {k: v for k, v in row.items() if k not in MEASURED} for row in rows}


def test_serial_and_processes_give_the_same_rows(tmp_path):
    runs.run(plan(), tmp_path / "serial")
    runs.run(plan(), tmp_path / "processes", executor="processes:2")
    assert settled(tmp_path / "serial") == settled(tmp_path / "processes")
    assert len(settled(tmp_path / "serial")) == 8


def worker(tmp_path, monkeypatch, code: str) -> None:
    """Use a script as the worker."""
    path = tmp_path / "worker.py"
    path.write_text(f"import json, os, signal, sys, time\nfrom anomalens.bench._job import work\n{code}")
    monkeypatch.setattr(executors, "WORKER", (sys.executable, str(path)))


def test_a_killed_worker_takes_only_its_unfinished_cells_along(tmp_path, monkeypatch):
    """It dies in the middle of its second row, on cloth alone."""
    worker(
        tmp_path, monkeypatch,
        "text = sys.stdin.read()\n"
        "for n, line in enumerate(work(text)):\n"
        "    if n == 1 and json.loads(line)['cell']['data']['category'] == 'cloth':\n"
        "        sys.stdout.write(line[:50]); sys.stdout.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    print(line, flush=True)\n",
    )  # fmt: skip
    summary = runs.run(plan(), tmp_path / "out", executor="processes:2")
    assert (summary["ok"], summary["failed"]) == (5, 3)
    (error,) = summary["errors"]
    assert error == (
        "Crashed: the process of this job was ended by SIGKILL; often for want of memory: run fewer processes."
    )
    failed = [row for row in settled(tmp_path / "out").values() if row["status"] == "failed"]
    assert {row["cell"]["data"]["category"] for row in failed} == {"cloth"}
    monkeypatch.undo()
    assert runs.run(plan(), tmp_path / "out", executor="processes:1")["kept"] == 5
    runs.run(plan(), tmp_path / "whole")
    assert settled(tmp_path / "out") == settled(tmp_path / "whole")


def test_a_worker_that_gives_up_says_its_last_words(tmp_path, monkeypatch):
    worker(tmp_path, monkeypatch, "print('loading'); sys.exit('no such library')")
    summary = runs.run(plan(corruptions=[]), tmp_path / "out", executor="processes:1")
    assert list(summary["errors"]) == [
        "Crashed: the process of this job ended with code 1 before its rows were complete: no such library"
    ]
    assert summary["failed"] == 2


def test_ctrl_c_ends_the_workers(tmp_path, monkeypatch):
    worker(
        tmp_path, monkeypatch,
        "text = sys.stdin.read()\n"
        f"open({str(tmp_path)!r} + '/' + str(os.getpid()), 'w').close()\n"
        "for line in work(text):\n"
        "    print(line, flush=True)\n"
        "    time.sleep(60)\n",
    )  # fmt: skip

    def press(row, done, total):
        if done == 2:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runs.run(plan(), tmp_path / "out", executor="processes:2", progress=press)
    assert time.monotonic() - began < 50
    assert len(settled(tmp_path / "out")) == 2
    for pid in (int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()):
        assert not Path(f"/proc/{pid}").exists()


def test_every_process_gets_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "cores", lambda: 8)
    worker(tmp_path, monkeypatch, "sys.exit(','.join(os.environ[k] for k in " + repr(executors.THREADS) + "))")
    summary = runs.run(plan(), tmp_path / "out", executor="processes:3")
    assert [error.rpartition(": ")[2] for error in summary["errors"]] == ["2,2,2"]


def test_what_libraries_print_does_not_disturb_the_rows(tmp_path, monkeypatch):
    code = (
        "from anomalens.bench import executors\nfrom anomalens.detectors.patchcore import PatchCore\n"
        "true = PatchCore.fit\n"
        "def fit(self, samples):\n    print('hello'); os.system('echo there'); return true(self, samples)\n"
        "PatchCore.fit = fit\nexecutors.main()\n"
    )
    worker(tmp_path, monkeypatch, code)
    lines = list(executors.processes(1)([json.dumps({"cells": plans.cells(plan())[:1], "folder": "."})]))
    assert [json.loads(line)["status"] for line in lines] == ["ok"]


@pytest.mark.parametrize("name", ["proceses:2", "processes", "processes:0", "processes:x", "serial:2", ""])
def test_executors_that_do_not_exist(name):
    with pytest.raises(WrongInput, match="give serial, or processes:N"):
        executors.get(name)


def test_no_jobs_no_rows():
    assert list(executors.serial([])) == list(executors.processes(2)([])) == []
