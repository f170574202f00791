"""`anomalens train-aux`: data sets in, an adapter out, and the command that uses it."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("open_clip")

from anomalens.apps import train_aux as command
from anomalens.apps.cli import main
from anomalens.datasets.procedural import Procedural
from anomalens.errors import UnknownName, WrongInput
from anomalens.parts.auxiliary import read_adapter

SMALL = ["--backbone", "clip:tiny?weights=random", "--set", "image_size=32", "--set", "clusters=1"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two data sets in MVTec AD's layout: cloth and leather, and wood."""
    root = tmp_path_factory.mktemp("data")
    for part, categories in (("one", ("cloth", "leather")), ("two", ("wood",))):
        for category in categories:
            Procedural(category, size=64, train_count=1, good_count=1, bad_count=2).write(root / part / category)
    return root


def run(*words: str):
    return CliRunner().invoke(main, ["train-aux", *map(str, words)])


def test_trains_on_all_that_is_named_and_says_how_to_use_it(roots, tmp_path):
    out, new = tmp_path / "a b.safetensors", roots / "two" / "wood" / "test" / "good"
    result = run(
        "adaclip", "--data", f"mvtec={roots / 'one'}", f"mvtec={roots / 'two'}", "--out", out, "--epochs", "1", *SMALL
    )
    assert result.exit_code == 0, result.output
    assert "9 pictures of 3 categories (6 anomalous), epochs: 1" in result.stderr
    assert read_adapter(out)[1]["trained_on"] == "3 of cloth, 3 of leather, 3 of wood"
    assert not out.with_name(out.name + ".training").exists()
    use = shlex.split(result.stdout.splitlines()[-1].partition("To use it: ")[2])
    assert use[:2] == ["anomalens", "inspect"]
    use[use.index("NEW")] = str(new)
    shown = CliRunner().invoke(main, [*use[1:], "--out", str(tmp_path / "report")])
    assert shown.exit_code == 0, shown.output
    assert "trained on 3 of cloth" in (tmp_path / "report" / "index.html").read_text()


def test_data_to_validate_on_is_kept_apart_and_said(roots, tmp_path):
    out = tmp_path / "a.safetensors"
    result = run(
        "adaclip", "--validate", f"mvtec={roots / 'two'}", "--data", f"mvtec={roots / 'one'}", "--out", out,
        "--epochs", "1", "--json", *SMALL,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["pictures"], len(told["scores"])) == (6, 1)
    assert "no figure of unseen data" in told["words"]
    facts = read_adapter(out)[1]
    assert (facts["select"], facts["validated_on"]) == ("best", "3 of wood")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["grnr", "--data", "mvtec=ROOT", "--out", "a.safetensors"], "grnr learns nothing.*adaclip"),
        (["adaclip", "--data", "mvtec=ROOT", "--out", "a.pth"], r"ends in \.safetensors; got a\.pth"),
        (["adaclip", "--data", "ROOT", "--out", "a.safetensors"], "READER=ROOT"),
        (["adaclip", "--data", "procedural=ROOT", "--out", "a.safetensors"], "reads no folder"),
        (["adaclip", "--data", "mvtek=ROOT", "--out", "a.safetensors"], "did you mean 'mvtec'"),
        (["adaclip", "--data", "mvtec=nowhere", "--out", "a.safetensors"], "nowhere"),
        (["adaclip", "--data", "mvtec=ROOT", "--out", "a.safetensors", "--recipe", "odd", *SMALL], "no recipe.*'odd'"),
        (["april-gan", "--data", "mvtec=ROOT", "--out", "a.safetensors", "--recipe", "odd", *SMALL[:2]], "no --recipe"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(roots, words, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("ROOT", str(roots / "one")) for word in words]
    result = run(*given)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()[-1]) > 20
    assert re.search(complaint, result.stderr), result.stderr
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_adapter_that_exists_is_not_overwritten(roots, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    result = run("adaclip", "--data", f"mvtec={roots / 'one'}", "--out", tmp_path / "a.safetensors", *SMALL)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"


def test_readers_without_categories_are_read_too(tmp_path):
    Procedural("cloth", size=64, train_count=1, good_count=1, bad_count=1).write(tmp_path / "cloth")
    assert {s.label for s in command.annotated([f"folder={tmp_path / 'cloth'}"])} == {0, 1}
    with pytest.raises(UnknownName):
        command.annotated(["nothing=here"])
    with pytest.raises(WrongInput, match="READER=ROOT"):
        command.annotated(["mvtec="])
