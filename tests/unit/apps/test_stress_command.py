"""`anomalens stress`: a saved detector and good pictures in, a page and numbers out; stopped, it goes on."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

import anomalens as al
from anomalens.apps import stress as command
from anomalens.apps.cli import main
from anomalens.calibrate import fit_calibrated
from anomalens.datasets.procedural import Procedural
from anomalens.errors import CannotWrite

FEW = ["--maker", "scratch,stain", "--maker", "stain", "--size", "0.1", "--size", "0.4",
       "--severity", "0.2", "--severity", "1", "--pictures", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(saved PaDiM, folder of cloth in MVTec AD's layout: five good pictures to test on)."""
    root = tmp_path_factory.mktemp("stress")
    cloth = Procedural("cloth", size=64, train_count=20, good_count=5, bad_count=2)
    cloth.write(root / "cloth")
    detector = al.create("padim", image_size=64, channels=8)
    fit_calibrated(detector, cloth.train())
    al.save(detector, root / "model")
    return root / "model", root / "cloth"


def run(*words: object):
    return CliRunner().invoke(main, ["stress", *map(str, words)])


def test_page_numbers_and_words(inputs, tmp_path):
    result = run(*inputs, "--out", tmp_path / "out", *FEW, "--mm-per-pixel", "0.5")
    assert result.exit_code == 0, result.output
    assert "5 of" in result.stderr
    assert ", its test part" in result.stderr
    assert re.search(r"^Scratch: .* px \([\d.]+ mm\)", result.stdout, re.M), result.stdout
    facts = json.loads((tmp_path / "out" / "stress.json").read_text())
    assert facts["good"]["pictures"] == 5
    assert {name: m["trials"] + m["not_drawn"] for name, m in facts["makers"].items()} == {"scratch": 8, "stain": 8}
    rows = (tmp_path / "out" / "trials.jsonl").read_text().splitlines()
    assert len(rows) == 1 + 5 + 16
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('<section id="') == 2
    assert page.count("data:image/jpeg") == sum(len(m["cells"]) for m in facts["makers"].values())
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", page)
    assert "<script" not in page


def test_an_engineer_reads_size_and_contrast(inputs, tmp_path):
    result = run(*inputs, "--out", tmp_path / "out", *FEW, "--mm-per-pixel", "20", "--where", "bright")
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / "stress.json").read_text())
    assert facts["folder"] == str(inputs[1])
    assert facts["where"] == "bright"
    assert facts["looks_learnt"] is False
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<b>Lowest contrast found with") == 2
    assert "longest side, mm" in page
    assert "in the bright part" in page
    for words in (result.stdout, page):
        assert not re.search(r"\de\+\d", words)  # no 1.3e+03 mm
    assert re.search(r"Scratch: at a contrast of \d+ grey levels .*\d of 8 found", result.stdout)


def test_figures_have_no_powers_of_ten():
    assert [command.figure(x) for x in (0.0512, 2.34, 23.4, 234.5, 1234.5)] == ["0.051", "2.3", "23", "230", "1200"]
    assert command.length(1234.5, 0.1) == "1230 px (120 mm)"


def test_of_several_contrasts_the_one_that_is_found_is_told():
    limits = [
        {"contrast": c, "value": v, "upper": None, "below": False} for c, v in ((9, None), (20, None), (50, 31.0))
    ]
    maker = {"smallest_size": limits, "trials": 10, "found": 4, "curve": {"sizes": (3, 60)}}
    facts = {"makers": {"scratch": maker}, "mm_per_pixel": 0.1, "wanted": 0.9}
    assert command.headline(facts) == "Scratch of 31 px (3.1 mm): found with 90 % probability at 50 grey levels"
    limits[2]["value"] = None
    assert command.headline(facts) == "Scratch: no size that was tried is found with 90 % probability"


def test_more_good_pictures_rejected_than_promised_are_a_question():
    facts = {"makers": {}, "wanted": 0.9, "false_alarm_rate": 0.01, "looks_learnt": False}
    told = command.findings({**facts, "good": {"rejected": 9, "pictures": 20, "interval": (0.25, 0.66)}})
    assert told[-1] == "That is more than the 1 % promised: are these good pictures?"
    assert len(command.findings({**facts, "good": {"rejected": 1, "pictures": 20, "interval": (0.0, 0.2)}})) == 1


def test_pictures_that_were_learnt_from_are_told(inputs, tmp_path):
    flat = inputs[1] / "train" / "good"
    result = run(inputs[0], flat, "--out", tmp_path / "out", *FEW)
    assert result.exit_code == 0, result.output
    assert "it has probably learnt from them" in result.stdout
    assert "it has probably learnt from them" in (tmp_path / "out" / "index.html").read_text()


def test_a_full_disk_is_one_sentence(inputs, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            self.file.close()
            raise OSError(28, "No space left on device")

    entered = command.Ledger.__enter__

    def full(self):
        entered(self)
        self._file = Full(self._file)
        return self

    monkeypatch.setattr(command.Ledger, "__enter__", full)
    result = run(*inputs, "--out", tmp_path / "out", *FEW)
    assert result.exit_code == 2
    assert "no space left on device" in result.stderr.splitlines()[-1].lower()
    monkeypatch.undo()
    # Nothing was tried yet, so the folder is free for any other test.
    assert run(*inputs, "--out", tmp_path / "out", *FEW, "--seed", "1").exit_code == 0


def test_interrupted_it_goes_on_and_ends_the_same(inputs, tmp_path, monkeypatch):
    assert run(*inputs, "--out", tmp_path / "whole", *FEW).exit_code == 0
    added = command.Ledger.add

    def stopping(self, trial):
        if len(self.trials) == 9:
            raise KeyboardInterrupt
        added(self, trial)

    monkeypatch.setattr(command.Ledger, "add", stopping)
    stopped = run(*inputs, "--out", tmp_path / "cut", *FEW)
    assert stopped.exit_code == 130
    assert not (tmp_path / "cut" / "index.html").exists()
    with (tmp_path / "cut" / "trials.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    monkeypatch.undo()
    assert "Going on: 9 of 21 trials" in run(*inputs, "--out", tmp_path / "cut", *FEW).stderr
    for name in ("trials.jsonl", "stress.json", "index.html"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text(), name


def test_a_folder_of_another_test_is_left_alone(inputs, tmp_path):
    assert run(*inputs, "--out", tmp_path / "out", *FEW).exit_code == 0
    before = (tmp_path / "out" / "trials.jsonl").read_bytes()
    other = run(*inputs, "--out", tmp_path / "out", *FEW, "--seed", "1")
    assert other.exit_code == 2
    assert "choose another --out" in other.stderr
    assert (tmp_path / "out" / "trials.jsonl").read_bytes() == before
    (tmp_path / "out" / "trials.jsonl").write_text("not json\n")
    with pytest.raises(CannotWrite, match="is damaged"), command.Ledger(tmp_path / "out" / "trials.jsonl", {}):
        pass


def test_json_says_the_same_on_stdout_alone(inputs, tmp_path):
    result = run(*inputs, "--out", tmp_path / "out", *FEW, "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["makers"].keys() == {"scratch", "stain"}


def test_plain_folders_and_unreadable_pictures(inputs, tmp_path):
    model, cloth = inputs
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((cloth / "test" / "good").iterdir())[:3]:
        (flat / path.name).write_bytes(path.read_bytes())
    (flat / "broken.png").write_bytes(b"no picture")
    result = run(model, flat, "--out", tmp_path / "out", *FEW)
    assert result.exit_code == 0, result.output
    assert "must not be ones it has learnt from" in result.stderr
    assert "1 unreadable" in result.stderr
    assert json.loads((tmp_path / "out" / "stress.json").read_text())["good"]["pictures"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--maker", "scrach"], "no maker is named"),
        (["--severity", "2"], "severity lies above 0"),
        (["--wanted", "1.5"], "between 0 and 1"),
        (["--mm-per-pixel", "0"], "above 0; got 0"),
        (["--mm-per-pixel", "nan"], "above 0; got nan"),
    ],
)
def test_wrong_options_are_a_sentence(inputs, tmp_path, words, said):
    result = run(*inputs, "--out", tmp_path / "out", *words, *([] if words[0] == "--severity" else FEW))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_detector_without_threshold_is_refused(inputs, tmp_path):
    al.save(
        al.create("padim", image_size=64, channels=8).fit(Procedural("cloth", size=64, train_count=6).train()),
        tmp_path / "m",
    )
    result = run(tmp_path / "m", inputs[1], "--out", tmp_path / "out", *FEW)
    assert result.exit_code == 2
    assert "has no threshold" in result.stderr
