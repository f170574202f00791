"""Looking over a local copy: `_check.check` and what the command prints."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from anomalens import datasets
from anomalens.apps.data_check import report
from anomalens.datasets._check import check
from anomalens.errors import UnknownName, WrongInput

from . import trees


def looked_over(name, root, decode=False):
    return check(datasets.reader(name), root, datasets.card(name), decode)


@pytest.mark.parametrize("name", [n for n in datasets.names() if not n.startswith("procedural")])
@pytest.mark.parametrize("decode", [False, True])
def test_whole_trees_have_no_broken_files(name, decode, tmp_path):
    tree = trees.write(name, tmp_path)
    result = looked_over(name, tmp_path, decode)
    for counts in result["categories"].values():
        assert not any(counts[kind] for kind in ("unreadable", "no_mask", "mask_size", "empty_mask"))
    mine = next(c for k, c in result["categories"].items() if k == tree.given.get("category", k))
    if name != "coco" and name != "labelme":  # here every annotation counts, in the tree only some
        assert (mine["train"], mine["good"], mine["bad"]) == (tree.train, tree.good, tree.bad)
    json.dumps(result)


def test_what_is_broken_is_found(tmp_path):
    trees.mpdd(tmp_path)
    truth, test = tmp_path / "tubes/ground_truth/anomalous", tmp_path / "tubes/test"
    (truth / "000_mask.png").unlink()
    Image.new("L", (5, 5), 255).save(truth / "001_mask.png")
    cut = test / "good/000.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (test / "good/001.png").write_bytes(b"")
    trees.mask(tmp_path / "connector/ground_truth/anomalous/000_mask.png", empty=True)
    for decode in (False, True):
        found = looked_over("mpdd", tmp_path, decode)
        tubes = found["categories"]["tubes"]
        assert tubes["no_mask"] == ["tubes/test/anomalous/000.png"]
        assert tubes["mask_size"] == ["tubes/test/anomalous/001.png"]
        assert tubes["unreadable"] == ["tubes/test/good/000.png", "tubes/test/good/001.png"]
        empty = ["connector/test/anomalous/000.png"] if decode else []  # only decoding can tell
        assert found["categories"]["connector"]["empty_mask"] == empty
        assert not found["ok"]
    assert "tubes: the mask is missing: 1 (tubes/test/anomalous/000.png)." in found["problems"]


def test_counts_are_compared_where_all_categories_are_there(tmp_path):
    trees.mpdd(tmp_path)
    found = looked_over("mpdd", tmp_path)
    assert found["missing"] == ["bracket_black", "bracket_brown", "bracket_white", "metal_plate"]
    assert found["expected"] is None
    assert not found["ok"]
    whole = looked_over("headct", trees.headct(tmp_path / "head").given["root"])
    assert (whole["found"], whole["expected"], whole["ok"]) == ([0, 5], [0, 200], True)
    assert "0 and 200 were expected" in whole["problems"][0]


def test_one_category_that_cannot_be_listed_does_not_hide_the_others(tmp_path):
    trees.mpdd(tmp_path)
    shutil.rmtree(tmp_path / "connector/test")
    found = looked_over("mpdd", tmp_path)
    assert list(found["categories"]) == ["tubes"]
    assert "looked for pictures in connector/test/" in found["unlisted"]["connector"]
    assert found["unlisted"]["connector"] in found["problems"][0]
    assert not found["ok"]
    shutil.rmtree(tmp_path / "tubes/test")
    with pytest.raises(WrongInput, match="looked for pictures in tubes/test/"):
        looked_over("mpdd", tmp_path)


def test_bad_pictures_that_the_archive_has_no_mask_of_are_not_broken(tmp_path):
    trees.aitex(tmp_path)
    (tmp_path / "Mask_images/0012_999_03_mask.png").unlink()
    found = looked_over("aitex", tmp_path)
    assert found["categories"]["03"]["no_mask"] == []
    assert "03: 1 of 2 bad pictures come without a mask." in found["problems"]


def test_the_report(tmp_path):
    trees.mpdd(tmp_path)
    text = report("mpdd", str(tmp_path))
    assert "MPDD in" in text
    assert "CC BY-NC-SA 4.0" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["tubes", "3", "2", "2", "2", "0", "0", "0", "0"] in rows
    assert ["all", "6", "4", "4", "4", "0", "0", "0", "0"] in rows
    assert "Categories that are not there: bracket_black" in text
    assert json.loads(report("mpdd", str(tmp_path), as_json=True)) == looked_over("mpdd", tmp_path)


def test_wrong_names_and_roots(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'mpdd'"):
        report("mpd", str(tmp_path))
    with pytest.raises(
        WrongInput, match=r"MPDD looked for pictures in bracket_black/train/good/ in .* and saw an empty"
    ):
        report("mpdd", str(tmp_path))
    with pytest.raises(WrongInput, match="drawn by the library"):
        report("procedural", str(tmp_path))
