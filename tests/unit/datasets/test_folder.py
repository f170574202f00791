"""Any folder: every layout on a generated tree, what is said of it, and every way it can be wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalens.datasets import open_folder, samples
from anomalens.datasets.folder import BAD, GOOD, Folder
from anomalens.errors import Unreadable, WrongInput


def picture(path: Path, value: int = 100, size: tuple[int, int] = (8, 6)) -> Path:
    """A small even picture; size = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (8, 6), empty: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    if not empty:
        image.putpixel((2, 1), 255)
    image.save(path)
    return path


def tree(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        picture(root / name, k)
    return root


def ids(some) -> list[str]:
    return [s.id for s in some]


# Pictures only.


def test_pictures_only(tmp_path):
    tree(tmp_path, "b.png", "a.JPG", "line2/cam/c.Png", "line2/a.bmp", "a.jpeg")
    folder = open_folder(tmp_path)
    assert ids(folder.samples()) == ["a.JPG", "a.jpeg", "b.png", "line2/a.bmp", "line2/cam/c.Png"]
    assert ids(folder.train()) == ids(folder.samples())
    assert folder.test() == []
    assert {(s.label, s.mask, s.defect, s.category) for s in folder.samples()} == {(None, None, "", "")}
    assert folder.describe() == "Read as pictures only: 5 pictures without a label, to use as good or as new."


def test_views_are_late_picklable_and_have_a_path(tmp_path):
    tree(tmp_path, "a.png")
    (sample,) = samples(tmp_path)
    view = pickle.loads(pickle.dumps(sample.views["image"]))
    assert view.path == str(tmp_path / "a.png")
    assert view.read().shape == (6, 8, 3)
    (tmp_path / "a.png").unlink()
    with pytest.raises(Unreadable):
        view.read()


def test_what_systems_leave_behind_is_ignored_and_other_files_are_named(tmp_path):
    tree(tmp_path, "a.png", ".cache/b.png", "__MACOSX/c.png", "x/._d.png")
    for name in ("Thumbs.db", ".DS_Store", "x/desktop.ini"):
        (tmp_path / name).write_text("")
    folder = open_folder(tmp_path)
    assert ids(folder.samples()) == ["a.png"]
    assert "left alone" not in folder.describe()
    (tmp_path / "notes.txt").write_text("")
    assert folder.describe() == open_folder(tmp_path).describe().split("; 1 file")[0] + "."
    assert "1 file that is not a picture was left alone (notes.txt)" in open_folder(tmp_path).describe()
    for name in ("plan.pdf", "x/model.onnx", "z.txt"):
        (tmp_path / name).write_text("")
    assert "4 files that are not pictures were left alone (notes.txt, plan.pdf, x/model.onnx, ...)" in (
        open_folder(tmp_path).describe()
    )


# Good and bad.


@pytest.mark.parametrize(
    "name", ["good", "OK", "Normal", "pass", "ok_front", "defect_free", "no-defect", "good 2", "GOOD1"]
)
def test_good_names(name):
    assert GOOD.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["bad", "NG", "defect", "Defects", "defective", "anomaly", "Anomalous", "reject", "nok", "not_ok",
             "def_front", "abnormal", "faulty", "damaged", "not good", "bad2"],
)  # fmt: skip
def test_bad_names(name):
    assert BAD.fullmatch(name)
    assert not GOOD.fullmatch(name)


@pytest.mark.parametrize("name", ["images", "goods", "angle", "crack", "new", "badge", "normals", "okra", "ngc"])
def test_names_that_say_nothing(name):
    assert not GOOD.fullmatch(name)
    assert not BAD.fullmatch(name)


def test_good_and_bad(tmp_path):
    tree(tmp_path, *(f"Good/{k}.png" for k in range(9)), "NG/1.png", "NG/scratch/2.png", "NG/hole/deep/3.png")
    folder = open_folder(tmp_path)
    assert ids(folder.train()) == [f"Good/{k}.png" for k in (0, 1, 2, 4, 5, 6, 8)]
    assert [(s.id, s.label, s.defect) for s in folder.test()] == [
        ("Good/3.png", 0, "good"),
        ("Good/7.png", 0, "good"),
        ("NG/1.png", 1, "NG"),
        ("NG/hole/deep/3.png", 1, "hole"),
        ("NG/scratch/2.png", 1, "scratch"),
    ]
    assert folder.describe() == (
        "Read as folders of good and bad pictures: 7 good pictures to train on; 2 good pictures to test on; "
        "3 bad pictures to test on (NG 1, hole 1, scratch 1); no masks; "
        "every fourth good picture is kept for testing."
    )


def test_only_good_is_all_for_training(tmp_path):
    tree(tmp_path, *(f"good/{k}.png" for k in range(8)))
    folder = open_folder(tmp_path)
    assert len(folder.train()) == 8
    assert {s.label for s in folder.train()} == {0}
    assert "kept for testing" not in folder.describe()


def test_good_beside_named_defects(tmp_path):
    """The test folder of the usual layout, given by itself."""
    tree(tmp_path, "good/0.png", "crack/0.png", "hole/0.png", "new/0.png")
    found = {s.id: (s.label, s.defect) for s in samples(tmp_path)}
    assert found == {
        "good/0.png": (0, "good"), "crack/0.png": (1, "crack"), "hole/0.png": (1, "hole"), "new/0.png": (None, ""),
    }  # fmt: skip


def test_other_folders_beside_good_and_bad_stay_unlabelled(tmp_path):
    folder = open_folder(tree(tmp_path, "good/0.png", "bad/0.png", "today/0.png", "1.png"))
    assert {s.id: s.label for s in folder.samples()} == {
        "good/0.png": 0, "bad/0.png": 1, "today/0.png": None, "1.png": None,
    }  # fmt: skip
    assert "today/0.png" not in ids([*folder.train(), *folder.test()])
    assert "2 pictures without a label or a split, for neither" in folder.describe()


def test_good_and_bad_in_several_categories(tmp_path):
    tree(tmp_path, *(f"{c}/{kind}/{k}.png" for c in ("gear", "cap") for kind in ("ok", "ng") for k in range(4)))
    folder = open_folder(tmp_path)
    assert folder.categories == ("cap", "gear")
    assert ids(s for s in folder.test() if not s.label) == ["cap/ok/3.png", "gear/ok/3.png"]
    assert "2 categories (cap, gear)" in folder.describe()


def test_masks_beside_and_in_a_mask_folder(tmp_path):
    tree(tmp_path, "good/1.png", "bad/crack/1.png", "bad/crack/2.jpg", "bad/hole/1.png")
    mask(tmp_path / "bad/crack/1_mask.png")
    mask(tmp_path / "masks/crack/2.png")
    mask(tmp_path / "masks/hole/1_mask.png", empty=True)
    folder = open_folder(tmp_path)
    found = {s.id: s.mask for s in folder.samples()}
    assert set(found) == {"good/1.png", "bad/crack/1.png", "bad/crack/2.jpg", "bad/hole/1.png"}
    assert found["good/1.png"] is None
    for name in ("bad/crack/1.png", "bad/crack/2.jpg"):
        expected = np.zeros((6, 8), bool)
        expected[1, 2] = True
        assert np.array_equal(found[name].read(), expected)
    assert not found["bad/hole/1.png"].read().any()
    assert "masks for 3 of the bad ones" in folder.describe()


# Train and test.


def usual(root: Path, test: str = "test") -> Path:
    tree(
        root, "train/good/0.png", "train/good/1.png", f"{test}/good/0.png", f"{test}/crack/0.png", f"{test}/hole/0.png"
    )
    mask(root / "ground_truth/crack/0_mask.png")
    mask(root / "ground_truth/hole/0.png")
    return root


def test_the_usual_layout(tmp_path):
    folder = open_folder(usual(tmp_path / "bottle"))
    assert ids(folder.train()) == ["train/good/0.png", "train/good/1.png"]
    assert [(s.id, s.label, s.defect) for s in folder.test()] == [
        ("test/crack/0.png", 1, "crack"), ("test/good/0.png", 0, "good"), ("test/hole/0.png", 1, "hole"),
    ]  # fmt: skip
    assert [bool(s.mask) for s in folder.test()] == [True, False, True]
    assert folder.categories == ("bottle",)
    assert folder.describe() == (
        "Read as train and test folders: 2 good pictures to train on; 1 good picture to test on; "
        "2 bad pictures to test on (crack 1, hole 1); masks for 2 of the bad ones."
    )


def test_a_root_with_categories(tmp_path):
    usual(tmp_path / "bottle")
    usual(tmp_path / "cable", "Test")
    tree(tmp_path, "readme/logo.png")
    folder = open_folder(tmp_path)
    assert folder.categories == ("bottle", "cable")
    assert len(folder.train()) == 4
    assert {s.category for s in folder.test() if s.id.startswith("cable/")} == {"cable"}
    assert all(s.mask.read().any() for s in folder.test() if s.label)
    assert "1 picture outside train and test left alone (in readme)" in folder.describe()


def test_validation_joins_train_and_bad_ones_leave_it(tmp_path):
    tree(tmp_path, "train/ok_front/0.png", "train/def_front/0.png", "validation/good/0.png", "test/ok_front/0.png")
    folder = open_folder(tmp_path)
    assert ids(folder.train()) == ["train/ok_front/0.png", "validation/good/0.png"]
    assert [(s.id, s.label) for s in folder.test()] == [("test/ok_front/0.png", 0), ("train/def_front/0.png", 1)]


def test_test_pictures_of_which_nothing_is_said(tmp_path):
    folder = open_folder(tree(tmp_path, "train/01/0.png", "test/02/0.png", "test/1.png"))
    assert [s.label for s in folder.train()] == [0]
    assert [(s.id, s.label) for s in folder.test()] == [("test/02/0.png", None), ("test/1.png", None)]
    assert "2 pictures to test on without a label" in folder.describe()


def test_several_masks_of_one_picture_are_joined(tmp_path):
    tree(tmp_path, "train/good/0.png", "test/good/0.png", "test/logical/000.png")
    mask(tmp_path / "ground_truth/logical/000/000.png")
    other = Image.new("L", (8, 6))
    other.putpixel((7, 5), 9)
    other.save(tmp_path / "ground_truth/logical/000/001.png")
    (bad,) = [s for s in samples(tmp_path) if s.label]
    assert sorted(map(tuple, np.argwhere(bad.mask.read()))) == [(1, 2), (5, 7)]


def test_masks_of_good_pictures_are_not_needed(tmp_path):
    usual(tmp_path)
    mask(tmp_path / "ground_truth/good/0_mask.png", empty=True)
    assert [s.mask is None for s in open_folder(tmp_path).test()] == [False, True, False]


def test_several_lights_of_one_thing(tmp_path):
    for thing, base in (("001", 10), ("002", 20)):
        for k in (0, 1, 2, 10):
            picture(tmp_path / thing / f"light_{k}.png", base + k)
        picture(tmp_path / thing / "depth.png", 1)
    first, second = samples(tmp_path)
    assert (first.id, second.id) == ("001", "002")
    assert list(first.views) == ["depth", "light_0", "light_1", "light_2", "light_10", "image"]
    assert (first.image("light_10")[0, 0] == 20).all()
    assert (second.image()[0, 0] == np.rint(20 + 13 / 4)).all()  # the mean of the lights, without depth
    assert "2 things seen under several lights" in open_folder(tmp_path).describe()
    assert ids(samples(tmp_path / "002")) == ["002"]
    picture(tmp_path / "001/light_1.png", 10, size=(4, 4))
    with pytest.raises(WrongInput, match=r"light_1.png is 4 x 4 .* must agree"):
        first.image()


# Tables.


def table(root: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    (root / name).write_bytes(text.encode(encoding))
    return root


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.png,0\nb.png,1\nsub/c.png,good\n",
        "File Name;Anomaly;x\nb.png;bad;7\na.png;normal;\nsub\\c.png;OK;\n",
        "\ufeffpath\ttarget\na.png\tFalse\nb.png\ttrue\nsub/c.png\tno\n",
        '"image_path","label"\r\n"a.png","good"\r\n"b.png","melted, bent"\r\n"sub/c.png","good"\r\n',
    ],
)
def test_tables(tmp_path, text):
    tree(table(tmp_path, text), "a.png", "b.png", "sub/c.png")
    for folder in (open_folder(tmp_path), open_folder(tmp_path / "labels.csv")):
        assert {s.id: s.label for s in folder.samples()} == {"a.png": 0, "b.png": 1, "sub/c.png": 0}
        assert ids(folder.train()) == ["a.png", "sub/c.png"]
        assert ids(folder.test()) == ["b.png"]


def test_a_table_with_everything(tmp_path):
    tree(tmp_path, "a.png", "b.png", "c.png", "d.png", "unused.png")
    mask(tmp_path / "m/b.png")
    table(
        tmp_path,
        "image,label,mask,split,category,defect\na.png,0,,train,cap,\nb.png,1,m/b.png,test,cap,hole\n"
        "c.png,0,,val,gear,\nd.png,,,test,gear,\n",
    )
    folder = open_folder(tmp_path)
    assert [(s.id, s.category) for s in folder.train()] == [("a.png", "cap"), ("c.png", "gear")]
    assert [(s.id, s.label, s.defect) for s in folder.test()] == [("b.png", 1, "hole"), ("d.png", None, "")]
    assert folder.test()[0].mask.read().sum() == 1
    assert folder.describe() == (
        "Read as the table labels.csv (columns image as path, label, mask, split, category, defect): 2 good pictures "
        "to train on; 1 bad picture to test on (hole 1); 1 picture to test on without a label; masks for 1 of the bad "
        "ones; 2 categories (cap, gear); 1 picture that the table does not name left alone (unused.png)."
    )


def test_a_table_that_tells_nothing_does_not_count(tmp_path):
    usual(tmp_path)
    table(tmp_path, "file,camera\ntrain/good/0.png,left\n", "origin.csv")
    table(tmp_path, "day,count\n1,2\n", "log.csv")
    folder = open_folder(tmp_path)
    assert folder.describe().startswith("Read as train and test folders")
    assert "2 files that are not pictures were left alone (log.csv, origin.csv)" in folder.describe()
    assert ids(open_folder(tmp_path / "origin.csv").samples()) == ["train/good/0.png"]


def test_a_table_of_labels_and_folders_of_splits(tmp_path):
    tree(tmp_path, "train/1/0.png", "train/1/1.png", "test/2/0.png", "test/2/1.png")
    table(tmp_path, "file,anomalous\ntest/2/0.png,0\ntest/2/1.png,1\n")
    mask(tmp_path / "ground_truth/2/1_mask.png")
    folder = open_folder(tmp_path)
    assert [bool(s.mask) for s in folder.test()] == [False, True]
    assert "left alone" not in folder.describe()
    assert ids(folder.train()) == ["train/1/0.png", "train/1/1.png"]
    assert [(s.id, s.label) for s in folder.test()] == [("test/2/0.png", 0), ("test/2/1.png", 1)]
    assert "train and test are told by the folders" in folder.describe()


def test_train_in_a_table_without_labels_is_good(tmp_path):
    tree(table(tmp_path, "image,split\na.png,train\nb.png,test\n"), "a.png", "b.png")
    assert [(s.id, s.label) for s in samples(tmp_path)] == [("a.png", 0), ("b.png", None)]


def test_old_spreadsheets(tmp_path):
    tree(table(tmp_path, "datei,image,label\nü,a.png,0\n", encoding="latin-1"), "a.png")
    assert ids(samples(tmp_path)) == ["a.png"]


# What can be wrong.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png,0\nx.png,1\ny.png,1\n", "2 missing files, the first is x.png; paths are relative to"),
        ("image,mask\na.png,m.png\n", "1 missing file, the first is m.png"),
        ("image,label\na.png,0\na.png,1\n", "1 picture more than once, the first is a.png"),
        ("image,label\na.png,7\n", "has the label '7'; labels are 0 or 1, good or bad"),
        ("image,split\na.png,holdout\n", "has the split 'holdout'"),
        ("image,label\n,0\n", "names no picture"),
    ],
)
def test_wrong_tables(tmp_path, text, message):
    tree(table(tmp_path, text), "a.png")
    with pytest.raises(WrongInput, match=message):
        open_folder(tmp_path)


def test_a_table_without_a_path_column(tmp_path):
    tree(table(tmp_path, "part,label\na,0\n"), "a.png")
    with pytest.raises(WrongInput, match="has the columns part, label; one named path, image or file is needed"):
        open_folder(tmp_path / "labels.csv")
    assert ids(samples(tmp_path)) == ["a.png"]


def test_two_tables(tmp_path):
    tree(table(tmp_path, "image,label\na.png,0\n"), "a.png")
    table(tmp_path, "image,label\na.png,1\n", "other.csv")
    with pytest.raises(WrongInput, match=r"2 tables of pictures \(labels.csv, other.csv"):
        open_folder(tmp_path)
    assert open_folder(tmp_path / "other.csv").samples()[0].label == 1


def test_no_such_path(tmp_path):
    tree(tmp_path, "bottles/a.png", "caps/a.png")
    with pytest.raises(WrongInput, match=r"botles does not exist; did you mean bottles\?"):
        samples(tmp_path / "botles")
    with pytest.raises(WrongInput, match=r"qqq does not exist; .* has bottles, caps\."):
        samples(tmp_path / "qqq")
    with pytest.raises(WrongInput, match="nor does the folder"):
        samples(tmp_path / "x" / "y")


def test_no_pictures(tmp_path):
    with pytest.raises(WrongInput, match=r"no pictures \(.png .jpg .* it holds nothing at all"):
        samples(tmp_path)
    for name in ("a.heic", "b.heic", "c.txt", "README"):
        (tmp_path / name).write_text("")
    with pytest.raises(WrongInput, match=r"it holds 2 x .heic, 1 x no suffix, 1 x .txt"):
        samples(tmp_path)
    with pytest.raises(WrongInput, match="neither a picture"):
        samples(tmp_path / "c.txt")


def test_masks_without_a_picture(tmp_path):
    usual(tmp_path)
    mask(tmp_path / "ground_truth/crack/7_mask.png")
    mask(tmp_path / "ground_truth/dent/0_mask.png")
    with pytest.raises(WrongInput, match=r"2 masks in .* without a picture, the first is .*crack/7_mask.png"):
        open_folder(tmp_path)


def test_a_mask_that_fits_two_pictures(tmp_path):
    tree(tmp_path, "good/0.png", "bad/a/1.png", "bad/b/1.png")
    mask(tmp_path / "masks/1.png")
    with pytest.raises(WrongInput, match=r"fits 2 pictures \(bad/a/1.png, bad/b/1.png"):
        open_folder(tmp_path)


def test_a_mask_of_another_size(tmp_path):
    usual(tmp_path)
    mask(tmp_path / "ground_truth/crack/0_mask.png", size=(4, 6))
    bad = open_folder(tmp_path).test()[0]
    with pytest.raises(WrongInput, match=r"4 x 6 pixels, its picture .*0.png has 8 x 6; save the mask at the size"):
        bad.mask.read()


def test_masks_of_turned_and_of_damaged_pictures(tmp_path):
    """The size that counts is the one after the camera's orientation is applied."""
    tree(tmp_path, "good/0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "bad").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "bad/1.jpg", exif=exif)
    (tmp_path / "bad/2.png").write_bytes(b"not a picture")
    mask(tmp_path / "masks/1.png", size=(6, 8))
    mask(tmp_path / "masks/2.png")
    turned, damaged = (s for s in samples(tmp_path) if s.label)
    assert turned.mask.read().shape == turned.image().shape[:2] == (8, 6)
    with pytest.raises(Unreadable, match=r"2.png is not a picture"):
        damaged.mask.read()


# Links, lists, single pictures.


def test_links_to_files_and_loops_of_folders(tmp_path):
    tree(tmp_path, "data/a.png", "elsewhere/b.png")
    try:
        os.symlink(tmp_path / "elsewhere" / "b.png", tmp_path / "data" / "b.png")
        os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "more")
        os.symlink(tmp_path / "data", tmp_path / "data" / "again")
        os.symlink(tmp_path / "data", tmp_path / "elsewhere" / "back")
    except OSError:
        pytest.skip("this system makes no links")
    assert ids(samples(tmp_path / "data")) == ["a.png", "b.png", "more/b.png"]


def test_one_picture_and_lists(tmp_path):
    tree(tmp_path, "x/a.png", "x/b.png", "y/a.png")
    (one,) = samples(tmp_path / "x" / "a.png")
    assert (one.id, one.label, one.image().shape) == ("a.png", None, (6, 8, 3))
    assert ids(samples([tmp_path / "x/b.png", str(tmp_path / "y/a.png")])) == ["x/b.png", "y/a.png"]
    assert ids(samples([tmp_path / "x/b.png", tmp_path / "x/a.png"])) == ["b.png", "a.png"]
    with pytest.raises(WrongInput, match="empty list"):
        samples([])
    with pytest.raises(WrongInput, match="is not one"):
        samples([tmp_path / "x/a.png", tmp_path / "y"])
    with pytest.raises(WrongInput, match=r"b.png more than once"):
        samples([tmp_path / "x/b.png", tmp_path / "x/b.png"])


def test_ids_do_not_depend_on_where_the_folder_is(tmp_path, monkeypatch):
    usual(tmp_path / "one" / "bottle")
    usual(tmp_path / "two" / "deep" / "bottle")
    monkeypatch.chdir(tmp_path / "one" / "bottle")
    first, second = Folder("."), Folder(tmp_path / "two" / "deep" / "bottle")
    assert [(s.id, s.category) for s in first.samples()] == [(s.id, s.category) for s in second.samples()]


def test_the_data_pack(shared):
    """Real folders, with tables of origins and other files beside the pictures."""
    data = shared / "data"
    pcb = open_folder(data / "pcb")
    assert (len(pcb.train()), len(pcb.test())) == (55, 65)
    assert sum(s.mask is not None for s in pcb.test()) == 40
    bad = next(s for s in pcb.test() if s.label)
    assert bad.mask.read().shape == bad.image().shape[:2]
    assert len(open_folder(data / "nut_tray").train()) == 80
    assert len(open_folder(data / "multi_light_sample").samples()) == 11
