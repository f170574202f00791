"""What the thing is called: by --object, by a category, or by the name of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import anomalens as al
from anomalens.apps import tasks
from anomalens.apps.naming import called, name_of_thing
from anomalens.datasets.procedural import Procedural
from anomalens.errors import WrongInput
from tests.support.command import run


@pytest.fixture(scope="module")
def gear(tmp_path_factory) -> Path:
    """A drawn category in the layout of MVTec AD, in a folder of its own."""
    root = tmp_path_factory.mktemp("line") / "Metal_Gear"
    Procedural("gear", size=64, train_count=6, good_count=2, bad_count=2).write(root)
    return root


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Metal_Nut", "metal nut"), ("hex-bolt", "hex bolt"), ("bolt/train/good", "bolt"), ("bolt/ok", "bolt"),
        ("bolt/new", ""), ("pictures", ""), ("new images", ""), ("batch_07", ""), ("2024-03-12", ""), ("ab", ""),
        ("a b", ""), ("all the many kinds of bolts", ""),
    ],
)  # fmt: skip
def test_folders_that_are_called_like_a_thing(tmp_path, path, name):
    folder = tmp_path / "data" / path
    folder.mkdir(parents=True)
    assert name_of_thing(str(folder)) == name


def test_a_folder_that_holds_more_than_a_layout_names_nothing(tmp_path):
    """test/ in somebody's home folder is no test of the thing that is called like that person."""
    for name in ("joe/test", "joe/music"):
        (tmp_path / name).mkdir(parents=True)
    assert name_of_thing(str(tmp_path / "joe" / "test")) == ""


def test_categories_go_first_and_the_next_folder_may_know(gear, tmp_path):
    assert called(str(gear)) == ""  # its pictures have the category Metal_Gear
    assert called(str(gear / "test")) == "metal gear"
    (tmp_path / "new").symlink_to(gear / "train" / "good")
    (tmp_path / "new2").mkdir()
    picture = next((gear / "train" / "good").iterdir())
    (tmp_path / "new2" / picture.name).write_bytes(picture.read_bytes())
    assert called(str(tmp_path / "new2")) == ""
    assert called(str(tmp_path / "new2"), None, str(gear / "train" / "good")) == "metal gear"
    assert called(str(picture)) == "metal gear"


def test_the_method_that_reads_names_gets_one(gear):
    def chosen(method: str, **how):
        return tasks.choose(method, False, new=str(gear / "test"), **how)

    detector, words = chosen("winclip")
    assert detector.object == "metal gear"
    assert "'metal gear'" in words
    assert "--object" in words
    assert chosen("winclip", thing="cog")[0].object == "cog"
    assert chosen("winclip", settings=("object=wheel",))[0].object == "wheel"
    assert chosen("winclip", thing="cog", tile=64)[0].inner.object == "cog"
    assert "call the thing" not in chosen("grnr")[1]
    with pytest.raises(WrongInput, match="grnr reads no sentences"):
        chosen("grnr", thing="cog")


# --- the commands -----------------------------------------------------------------------------------------------------

SMALL = ("--method", "winclip", "--backbone", "clip:tiny?weights=random", "--set", "image_size=64")


@pytest.fixture
def language():
    pytest.importorskip("torch")
    pytest.importorskip("open_clip")


def test_inspect_without_good_pictures(language, gear, tmp_path):
    result = run("inspect", gear / "test", "--object", "metal nut", *SMALL, "--out", tmp_path / "r")
    assert "Its sentences call the thing 'metal nut'" in result.stderr
    assert "4 pictures: " in result.stdout
    assert "nothing is promised" in result.stdout
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["plan"]["settings"]["object"] == "metal nut"
    assert "metal nut" in (tmp_path / "r" / "index.html").read_text()
    other = run("inspect", gear / "test", *SMALL, "--out", tmp_path / "r2", "--json")
    assert json.loads((tmp_path / "r2" / "run.json").read_text())["plan"]["settings"]["object"] == "metal gear"
    assert json.loads(other.stdout)["method"] == "winclip"


def test_inspect_without_weights_says_where_they_are_from(language, gear, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    result = run("inspect", gear / "test", "--method", "winclip", "--out", tmp_path / "r", code=2)
    said = result.stderr.strip().splitlines()[-1]
    for part in ("834 MB", "timm/vit_base_patch16_plus_clip_240", str(tmp_path / "cache" / "weights"), "download=yes"):
        assert part in said


def test_fit_learns_references_and_predict_keeps_the_name(language, gear, tmp_path):
    said = run("fit", gear / "train" / "good", *SMALL, "--object", "cog", "--out", tmp_path / "m").stdout
    assert "keeps as references: 6 of 6." in said
    detector = al.load(tmp_path / "m")
    assert detector.object == "cog"
    assert detector.calibration.how == "cross-fitted"
    run("predict", tmp_path / "m", gear / "test", "--object", "cog", "--out", tmp_path / "p")
    refused = run("predict", tmp_path / "m", gear / "test", "--object", "nut", "--out", tmp_path / "q", code=2)
    assert "calibrated with the thing called 'cog', not 'nut'" in refused.stderr
    zero = al.create("winclip", backbone="clip:tiny?weights=random", image_size=64)
    al.save(zero, tmp_path / "zero")
    run("predict", tmp_path / "zero", gear / "test", "--object", "nut", "--out", tmp_path / "z")
    assert json.loads((tmp_path / "z" / "run.json").read_text())["plan"]["settings"]["object"] == "nut"


def test_a_name_for_a_method_that_reads_none_is_refused(gear, tmp_path):
    said = run("inspect", gear / "test", "--method", "grnr", "--object", "cog", "--out", tmp_path, code=2).stderr
    assert "leave --object out" in said
    al.save(al.create("grnr"), tmp_path / "m")
    said = run("predict", tmp_path / "m", gear / "test", "--object", "cog", "--out", tmp_path / "r", code=2).stderr
    assert "grnr reads no sentences" in said
