"""`anomalens synth`: a folder of good pictures in, a labelled folder with masks out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from anomalens import synthesis
from anomalens.apps import synth as command
from anomalens.apps.cli import main
from anomalens.datasets import open_folder
from anomalens.datasets.procedural import Procedural
from anomalens.errors import CannotWrite, NotMade, UnknownName, WrongInput
from anomalens.images import read_image, read_mask


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    Procedural("pill", size=96, train_count=5, good_count=1, bad_count=1).write(root / "pill")
    return root / "pill" / "train" / "good"


def run(*words):
    return CliRunner().invoke(main, ["synth", *map(str, words)])


def rows(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_writes_a_folder_that_every_command_reads(good, tmp_path):
    out = tmp_path / "drawn"
    result = run(good, "--maker", "perlin,scratch:severity=0.4..0.8,size=0.3", "--n", 6, "--out", out, "--with-good")
    assert result.exit_code == 0, result.output
    assert "6 pictures with a drawn defect (perlin 3, scratch 3), from 5 good ones" in result.stdout
    test = open_folder(out).test()
    assert sorted(s.defect for s in test) == ["good"] * 5 + ["perlin"] * 3 + ["scratch"] * 3
    by_name = {s.id: s for s in test}
    for row in rows(out):
        sample = by_name[row["files"][0]]
        source = read_image(good / row["source"])
        mask = sample.mask.read()
        assert np.array_equal(mask, read_mask(out / row["mask"]))
        assert np.array_equal(sample.image()[~mask], source[~mask])
        assert (sample.image() != source).any()
        assert row["measured"]["area"] == mask.mean()
        assert row["seed"] == 0
        assert row["version"]
    scratches = [row for row in rows(out) if row["maker"] == "scratch"]
    assert all(0.4 <= row["severity"] <= 0.8 and row["size"] == 0.3 for row in scratches)
    assert all(abs(row["measured"]["longest"] - 0.3 * 96) <= 3 for row in scratches)
    sheet = read_image(out / "contact_sheet.png")
    assert 3 * 2 * command.TILE < sheet.shape[1] < 4 * 2 * command.TILE  # three examples of each, no empty columns
    assert sheet.std() > 20


def test_fit_and_evaluate_read_it(good, tmp_path):
    out = tmp_path / "drawn"
    assert run(good, "--maker", "paste", "--severity", "1.0", "--n", 4, "--out", out, "--with-good").exit_code == 0
    model = tmp_path / "model"
    fitted = CliRunner().invoke(main, ["fit", str(good), "--out", str(model), "--set", "image_size=96"])
    assert fitted.exit_code == 0, fitted.output
    result = CliRunner().invoke(main, ["evaluate", str(model), str(out), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["pictures"], figures["anomalous"]) == (9, 4)
    assert figures["figures"]["pixel auroc"]["value"] > 0.8


def test_the_same_command_writes_the_same_bytes(good, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        assert run(good, "--maker", "stain,blur", "--n", 3, "--seed", 5, "--out", folder).exit_code == 0
    assert content(folders[0]) == content(folders[1])
    assert run(good, "--maker", "stain,blur", "--n", 3, "--seed", 6, "--out", tmp_path / "other").exit_code == 0
    assert content(tmp_path / "other") != content(folders[0])


def test_goes_on_where_it_was_stopped_and_can_be_enlarged(good, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    words = (good, "--maker", "scratch,perlin", "--out")
    assert run(*words, whole, "--n", 6).exit_code == 0

    real, calls = synthesis.nth, []

    def stopping(*given, **more):
        calls.append(given[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(synthesis, "nth", stopping)
    stopped = run(*words, out, "--n", 4)
    assert stopped.exit_code == 130
    monkeypatch.setattr(synthesis, "nth", real)
    with (out / "manifest.jsonl").open("a") as file:
        file.write('{"index": 3, "fi')  # the line that was being written
    (out / rows_upto_damage(out)[1]["mask"]).unlink()  # and a file that is gone
    calls.clear()
    monkeypatch.setattr(synthesis, "nth", lambda *given, **more: calls.append(given[2]) or real(*given, **more))
    result = run(*words, out, "--n", 6, "--json")
    assert result.exit_code == 0, result.output
    assert calls == [1, 3, 4, 5]
    assert json.loads(result.stdout)["resumed"] == 2
    assert content(out) == content(whole)
    calls.clear()
    assert run(*words, out, "--n", 6).exit_code == 0
    assert calls == []


def rows_upto_damage(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines() if line.endswith("}")]


def test_another_run_and_foreign_files_are_left_alone(good, tmp_path):
    out = tmp_path / "drawn"
    assert run(good, "--maker", "stain", "--n", 1, "--out", out).exit_code == 0
    before = content(out)
    for words, said in (
        (("--maker", "stain", "--seed", 1), "seed: 0, now 1"),
        (("--maker", "scratch"), "makers: stain, now scratch"),
        (("--maker", "stain", "--severity", "0.9"), "makers: stain severity [0.3, 1.0], now [0.9, 0.9]"),
        (("--maker", "stain", "--with-good"), "with-good"),
    ):
        result = run(good, *words, "--n", 1, "--out", out)
        assert result.exit_code == 2
        assert said in result.stderr
    assert content(out) == before
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(CannotWrite, match="not written"):
        command.synth(str(good), str(foreign), makers=("stain",), n=1, quiet=True)
    with pytest.raises(CannotWrite, match="is a file"):
        command.synth(str(good), str(foreign / "letter.txt"), makers=("stain",), n=1, quiet=True)
    with pytest.raises(WrongInput, match="inside"):
        command.synth(str(good), str(good / "drawn"), makers=("stain",), n=1, quiet=True)


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(good, tmp_path, monkeypatch):
    out, real = tmp_path / "drawn", command.write_atomic

    def full(path, data):
        if path.name == "001_mask.png":
            raise CannotWrite(f"{path} cannot be written: no space left on device.")
        real(path, data)

    monkeypatch.setattr(command, "write_atomic", full)
    result = run(good, "--maker", "stain", "--n", 3, "--out", out)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("no space left on device.")
    monkeypatch.setattr(command, "write_atomic", real)
    assert run(good, "--maker", "stain", "--n", 3, "--out", out).exit_code == 0
    assert [row["index"] for row in rows(out)] == [0, 1, 2]


def test_errors_are_sentences(good, tmp_path):
    def synth(source=good, **how):
        return command.synth(str(source), str(tmp_path / "out"), quiet=True, **how)

    with pytest.raises(UnknownName, match="'scratch'"):
        synth(makers=("scrach",))
    with pytest.raises(UnknownName, match="'severity'"):
        synth(makers=("scratch:severty=1",))
    with pytest.raises(WrongInput, match="range"):
        synth(makers=("scratch:size=big",))
    with pytest.raises(WrongInput, match="0 < low"):
        synth(makers=("scratch",), size="0.5..0.2")
    for text in (":size=1", "size=1", "scratch:size", " , "):
        with pytest.raises(WrongInput, match="--maker"):
            synth(makers=(text,))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WrongInput, match="no pictures"):
        synth(empty)
    with pytest.raises(WrongInput, match="does not exist"):
        synth(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_makers_that_show_nothing_are_told_of(tmp_path):
    Procedural("leather", size=96, train_count=2, good_count=0, bad_count=0).write(tmp_path / "leather")
    good = tmp_path / "leather" / "train" / "good"
    summary = command.synth(str(good), str(tmp_path / "a"), makers=("stain,geometric",), n=4, quiet=True)
    assert summary["drawn"] == {"stain": 2}
    assert set(summary["left_out"]) == {"1", "3"}
    assert "2 could not be drawn (geometric 2); the first because geometric drew no" in summary["words"]
    with pytest.raises(NotMade, match="no part stands out"):
        command.synth(str(good), str(tmp_path / "b"), makers=("geometric",), n=2, quiet=True)


def test_a_start_that_drew_nothing_does_not_hold_the_folder(good, tmp_path):
    out = tmp_path / "drawn"
    wrong = run(good, "--maker", "stain", "--where", tmp_path / "no-mask.png", "--n", 1, "--out", out)
    assert wrong.exit_code == 2
    assert (out / command.MARK).exists()
    right = run(good, "--maker", "scratch", "--n", 1, "--out", out)
    assert right.exit_code == 0, right.output
    assert json.loads((out / command.MARK).read_text())["makers"][0][0] == "scratch"


def test_one_picture_is_told_of_as_one(good, tmp_path):
    result = run(good, "--maker", "stain", "--n", 1, "--out", tmp_path / "drawn")
    assert result.stdout.startswith("1 picture with a drawn defect (stain 1), from 5 good ones: ")
    assert " to " not in result.stdout.splitlines()[1].partition(";")[0]
    again = run(good, "--maker", "stain", "--n", 1, "--out", tmp_path / "drawn")
    assert "has 1 of them already." in again.stderr
    assert run(good, "--maker", "stain", "--n", 1, "--seed", -1, "--out", tmp_path / "other").exit_code == 2


def test_the_frame_on_the_sheet_is_around_the_defect_at_any_scale():
    for side in (20, 128, 640):
        mask = np.zeros((side, side), bool)
        mask[side // 4 : side // 2, side // 2 : 3 * side // 4] = True
        picture = np.full((side, side, 3), 90, np.uint8)
        whole, _ = command.tiles(picture, mask)
        rows, columns = np.nonzero((whole == (255, 0, 0)).all(axis=2))
        scale = command.TILE / side
        for found, low, high in ((rows, side // 4, side // 2), (columns, side // 2, 3 * side // 4)):
            assert 1 <= low * scale - found.min() <= 4
            assert 1 <= found.max() + 1 - high * scale <= 4


def test_makers_are_parsed():
    assert command.parsed("perlin, scratch:size=0.1..0.3,severity=0.5,stain") == [
        ("perlin", {}),
        ("scratch", {"size": "0.1..0.3", "severity": "0.5"}),
        ("stain", {}),
    ]
    assert command.parsed('cut:prompt="a nut, cracked: deep",object=nut') == [
        ("cut", {"prompt": "a nut, cracked: deep", "object": "nut"})
    ]
    assert command.parsed("perlin:textures=a=b/c,nsa:mixed=true") == [
        ("perlin", {"textures": "a=b/c"}),
        ("nsa", {"mixed": "true"}),
    ]
    maker = command.made("nsa", {"mixed": "true", "size": "0.2"}, [])
    assert (maker.mixed, maker.size) == (True, (0.2, 0.2))
    assert command.made("scratch", {"severity": "0.2..0.5"}, []).severity == (0.2, 0.5)


def test_several_categories_and_lights_keep_their_places(tmp_path):
    for category in ("cloth", "wood"):
        Procedural(category, size=64, train_count=2, good_count=0, bad_count=0).write(tmp_path / "data" / category)
    command.synth(f"mvtec={tmp_path / 'data'}", str(tmp_path / "many"), makers=("stain",), n=4, quiet=True)
    read = open_folder(tmp_path / "many")
    assert set(read.categories) == {"cloth", "wood"}
    assert all(s.mask.read().any() for s in read.test())
    Procedural("relief", size=64, train_count=2, good_count=0, bad_count=0).write(tmp_path / "relief")
    command.synth(str(tmp_path / "relief"), str(tmp_path / "lit"), makers=("stain",), n=2, with_good=True, quiet=True)
    drawn = [s for s in open_folder(tmp_path / "lit").test() if s.label]
    assert len(drawn) == 2
    assert {"light_0", "light_5", "image"} <= drawn[0].views.keys()
    assert drawn[0].mask.read().shape == (64, 64)


def test_sixteen_bit_colour_is_kept(tmp_path):
    pytest.importorskip("imagecodecs")
    picture = np.random.default_rng(0).integers(0, 65536, (9, 13, 3)).astype(np.uint16)
    for name, pixels in (("colour", picture), ("grey", np.repeat(picture[..., :1], 3, axis=2))):
        file = tmp_path / f"{name}.png"
        file.write_bytes(command.png(pixels))
        assert np.array_equal(read_image(file), pixels)
        assert read_image(file).dtype == np.uint16


def test_show_prints_a_maker():
    shown = CliRunner().invoke(main, ["show", "scratch"])
    assert shown.exit_code == 0
    assert "--maker scratch" in shown.stdout
    assert "severity = (0.3, 1.0)" in shown.stdout
    told = json.loads(CliRunner().invoke(main, ["show", "NSA", "--json"]).stdout)
    assert told["card"]["title"] == "NSA"
    assert "mixed" in told["settings"]
