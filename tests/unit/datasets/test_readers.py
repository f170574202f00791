"""What single readers do beyond the contract: further parts, settings, irregular copies."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from anomalens.datasets import reader
from anomalens.errors import MissingExtra, UnknownName, Unreadable, WrongInput
from anomalens.metrics.spro import spro

from . import trees
from .trees import MARK, SIZE, mask, picture


def ids(samples):
    return [s.id for s in samples]


def marked() -> np.ndarray:
    """What a written mask is read as."""
    expected = np.zeros(SIZE, bool)
    expected[MARK] = True
    return expected


# Further parts of the benchmarks.


def test_mvtec_ad_2_has_validation_and_secret_parts(tmp_path):
    data = trees.mvtec_ad_2(tmp_path).reader("mvtec-ad-2")
    assert ids(data.validation()) == ["vial/validation/good/000_regular.png"]
    assert [s.label for s in data.private()] == [None, None]
    assert ids(data.private(mixed=True)) == ["vial/test_private_mixed/000_mixed.png"]
    assert np.array_equal(data.test()[0].mask.read(), marked())


def test_loco_gives_channels_and_config_to_spro(tmp_path):
    data = trees.mvtec_loco(tmp_path).reader("mvtec-loco")
    assert len(data.validation()) == 1
    test = data.test()
    channels = [data.channels(s) for s in test]
    assert [None if c is None else c.shape for c in channels] == [
        None, None, None, (1, *SIZE), (2, *SIZE), (1, *SIZE)
    ]  # fmt: skip
    assert set(np.unique(channels[4][1])) == {0, 253}
    for sample, stack in zip(test, channels, strict=True):
        if stack is not None:
            assert np.array_equal(sample.mask.read(), (stack != 0).any(axis=0))
    maps = [np.zeros(SIZE, np.float32) if c is None else (c != 0).any(axis=0).astype(np.float32) for c in channels]
    assert spro(maps, channels, data.config()) == pytest.approx(1)


def test_loco_without_its_config(tmp_path):
    data = trees.mvtec_loco(tmp_path).reader("mvtec-loco")
    (tmp_path / "pushpins/defects_config.json").write_text('{"pixel_value": 3}')
    with pytest.raises(WrongInput, match=r"defects_config\.json is not a list of entries with defect_name"):
        data.config()
    (tmp_path / "pushpins/defects_config.json").unlink()
    with pytest.raises(WrongInput, match=r"looked for pushpins/defects_config\.json"):
        data.config()


def test_visa_with_another_table_or_category(tmp_path):
    given = trees.visa(tmp_path).given
    with pytest.raises(WrongInput, match=r"looked for pcb9 in split_csv/1cls\.csv, which has candle, pcb1"):
        reader("visa")(**{**given, "category": "pcb9"}).train()
    (tmp_path / "split_csv/1cls.csv").write_text("object,image\n")
    with pytest.raises(WrongInput, match="object, split, label, image, mask are needed"):
        reader("visa")(**given).train()


def test_kolektor_in_pieces(tmp_path):
    data = trees.kolektor_sdd(tmp_path)
    whole, cut = data.reader("kolektor-sdd"), reader("kolektor-sdd")(tmp_path, pieces=3)
    assert len(whole.train()) + len(whole.test()) == 6
    assert len(cut.train()) + len(cut.test()) == 18
    bad = [s for s in cut.test() if s.label]
    # The mark lies in rows 4 to 8 of 20: pieces 0 (rows 0 to 5) and 1 (rows 6 to 12).
    assert ids(bad) == [f"{part}/{i}" for part in ("kos01/Part1.jpg", "kos03/Part0.jpg") for i in (0, 1)]
    picture = whole.test()[0].image()
    assert whole.test()[0].id == "kos01/Part1.jpg"
    assert np.array_equal(bad[1].image(), picture[6:13])
    assert np.array_equal(bad[1].mask.read(), marked()[6:13])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("kolektor-sdd2", ["train/10002.png"]), ("dagm", ["Class10/Train/0002.PNG"])],
)
def test_defective_pictures_of_the_training_part(name, expected, tmp_path):
    data = trees.write(name, tmp_path).reader(name)
    assert ids(data.defective()) == expected
    assert not {*expected} & {*ids(data.train())}
    assert np.array_equal(data.defective()[0].mask.read(), marked())


def test_real_iad_where_the_json_files_and_pictures_may_lie(tmp_path):
    given = trees.real_iad(tmp_path).given
    once = ids(reader("real-iad")(**given).test())
    (tmp_path / "realiad_jsons").rename(tmp_path / "inner")
    (tmp_path / "realiad_jsons").mkdir()
    (tmp_path / "inner").rename(tmp_path / "realiad_jsons/realiad_jsons")
    assert ids(reader("real-iad")(**given).test()) == once
    shutil.copytree(tmp_path / "realiad_256", tmp_path / "realiad_512")
    with pytest.raises(WrongInput, match="pictures of usb in realiad_256, realiad_512; choose one"):
        reader("real-iad")(**given).test()
    chosen = ids(reader("real-iad")(**given, pictures="realiad_512").test())
    assert chosen == [i.replace("_256", "_512") for i in once]


def test_real_iad_leaves_noise_out_of_training(tmp_path):
    given = trees.real_iad(tmp_path).given
    path = tmp_path / "realiad_jsons/usb.json"
    table = json.loads(path.read_text())
    table["train"].append(table["test"].pop())
    path.write_text(json.dumps(table))
    assert len(reader("real-iad")(**given).train()) == 4


def test_rad_by_the_paper_s_names_and_with_other_masks(tmp_path):
    tree = trees.rad(tmp_path)
    assert ids(reader("rad")(tmp_path, "Cable-tie").test()) == ids(tree.reader("rad").test())
    truth = tmp_path / "ribbon/ground_truth/defect"
    for i, stem in enumerate(("000", "001")):
        (truth / f"{stem}.png").unlink()
        mask(truth / f"label_{i}.jpg", quality=60)  # another name, and values near 0 and 255
    with pytest.warns(UserWarning, match=r"000\.png with label_0\.jpg"):
        bad = [s for s in reader("rad")(tmp_path, "ribbon").test() if s.label]
    assert np.array_equal(bad[0].mask.read(), marked())


def test_eyecandies_views_and_labels(tmp_path):
    data = trees.eyecandies(tmp_path).reader("eyecandies")
    assert len(data.validation()) == 1
    assert [s.label for s in data.private()] == [None, None]
    labels = [s.label for s in data.test()]
    assert labels == [0, 1, 0, 1]
    folder = tmp_path / "Lollipop/test_public/data"
    sample = data.test()[2]
    stored = np.asarray(Image.open(folder / "02_image_3.png"))
    assert np.array_equal(sample.image("light_3"), stored)
    assert np.array_equal(sample.image("image"), sample.image("light_0"))
    assert sample.image("depth").dtype == np.uint16
    for path in folder.glob("*_metadata.yaml"):
        path.unlink()
    assert [s.label for s in data.test()] == labels  # now from the masks


@pytest.mark.parametrize("write", [trees.eyecandies, trees.eyecandies_converted])
def test_eyecandies_lights_are_counted_not_spelt(write, tmp_path):
    tree = write(tmp_path, lights=12)
    for sample in tree.reader("eyecandies").test():
        assert tuple(sample.views) == tree.views  # ... light_9, light_10, light_11
        first = str(tmp_path / sample.id)
        for k in range(12):
            assert sample.views[f"light_{k}"].path == first.removesuffix("_0.png") + f"_{k}.png"


def test_eyecandies_converted(tmp_path):
    data = trees.eyecandies_converted(tmp_path).reader("eyecandies")
    assert data.categories == ("Confetto", "Lollipop")
    assert ids(data.train()) == [f"Lollipop/train/good/00{i}_0.png" for i in range(3)]
    test = data.test()
    assert [(s.id, s.label, s.defect) for s in test] == [
        ("Lollipop/test/bumps/000_0.png", 1, "bumps"),
        ("Lollipop/test/colors/000_0.png", 1, "colors"),
        ("Lollipop/test/good/000_0.png", 0, "good"),
        ("Lollipop/test/good/001_0.png", 0, "good"),
    ]
    for sample in test:
        assert np.array_equal(sample.image("image"), sample.image("light_0"))
        assert np.array_equal(sample.image("light_3"), np.asarray(Image.open(sample.views["light_3"].path)))
        assert not sample.label or np.array_equal(sample.mask.read(), marked())
    with pytest.raises(WrongInput, match=r"looked for Lollipop/val/data/<index>_image_0\.png in"):
        data.validation()
    shutil.rmtree(tmp_path / "Lollipop/train")
    with pytest.raises(WrongInput, match=r"<index>_image_0\.png or Lollipop/train/good/<id>_0\.png in"):
        data.train()


def test_eyecandies_in_both_layouts_is_read_as_rendered(tmp_path):
    trees.eyecandies_converted(tmp_path)
    data = trees.eyecandies(tmp_path).reader("eyecandies")
    assert all("/data/" in i for i in ids([*data.train(), *data.test()]))
    assert (len(data.train()), len(data.test())) == (3, 4)


def test_eyecandies_without_the_overall_mask(tmp_path):
    data = trees.eyecandies(tmp_path).reader("eyecandies")
    folder = tmp_path / "Lollipop/test_public/data"
    other = np.zeros(SIZE, np.uint8)
    other[12:15, 2:5] = 255
    Image.fromarray(other).save(folder / "01_colors_mask.png")
    assert np.array_equal(data.test()[1].mask.read(), marked())  # the overall mask counts while it is there
    for path in (*folder.glob("*_metadata.yaml"), *(folder / f"{i:02}_mask.png" for i in range(4))):
        path.unlink()
    for i in (0, 2):
        (folder / f"{i:02}_bumps_mask.png").unlink()  # good, and no mask at all
    test = data.test()
    assert [s.label for s in test] == [0, 1, 0, 1]
    assert [s.mask is None for s in test] == [True, False, True, False]
    assert np.array_equal(test[1].mask.read(), marked() | (other > 0))
    assert np.array_equal(test[3].mask.read(), marked())
    mask(folder / "01_dents_mask.png", empty=True)
    mask(folder / "01_bumps_mask.png", empty=True)
    assert np.array_equal(data.test()[1].mask.read(), other > 0)  # anomalous, whichever mask says so


def test_eyecandies_masks_that_are_missing_or_of_another_size(tmp_path):
    data = trees.eyecandies(tmp_path / "rendered").reader("eyecandies")
    folder = tmp_path / "rendered/Lollipop/test_public/data"
    (folder / "01_mask.png").unlink()
    mask(folder / "01_normals_mask.png", size=(10, 12))
    with pytest.raises(WrongInput, match=r"01_normals_mask\.png has 12 x 10 pixels, its picture .*01_image_0\.png has"):
        data.test()[1].mask.read()
    for path in folder.glob("01_*_mask.png"):
        path.unlink()
    with pytest.raises(Unreadable, match=r"01_mask\.png does not exist"):
        data.test()[1].mask.read()  # anomalous, as its metadata say
    data = trees.eyecandies_converted(tmp_path / "converted").reader("eyecandies")
    truth = tmp_path / "converted/Lollipop/ground_truth"
    mask(truth / "bumps/000_mask.png", size=(10, 12))
    (truth / "colors/000_mask.png").unlink()
    bumps, colors = data.test()[:2]
    with pytest.raises(WrongInput, match=r"000_mask\.png has 12 x 10 pixels, its picture .*000_0\.png has 24 x 20"):
        bumps.mask.read()
    with pytest.raises(Unreadable, match=r"colors.000_mask\.png does not exist"):
        colors.mask.read()


def test_points_of_mvtec_3d(tmp_path, monkeypatch):
    data = trees.mvtec_3d(tmp_path).reader("mvtec-3d")
    assert len(data.validation()) == 1
    sample = data.test()[0]
    points = sample.views["points"].read()
    assert points.dtype == np.float32
    assert points.shape == (*SIZE, 3)
    path = tmp_path / "rope/test/cut/xyz/000.tiff"
    assert sample.views["points"].path == str(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Unreadable, match="is damaged"):
        sample.views["points"].read()
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtra, match=r"anomalens\[images\]"):
        sample.views["points"].read()


# Cutting and dividing.


def test_aitex_in_tiles(tmp_path):
    given = trees.aitex(tmp_path).given
    strips, tiles = reader("aitex")(**given), reader("aitex")(**given, tile=16)
    assert len(tiles.train()) == 3 * 4
    test = tiles.test()
    assert len(test) == 3 * 4
    # The mark lies in columns 6 to 11: the first tile of each strip with a flaw.
    assert ids(s for s in test if s.label) == ["Defect_images/0011_006_03.png/00", "Defect_images/0012_999_03.png/00"]
    strip = next(s for s in strips.test() if s.id == "Defect_images/0011_006_03.png")
    parts = [s for s in test if s.id.startswith(strip.id)]
    assert np.array_equal(np.concatenate([s.image() for s in parts], axis=1), strip.image())
    assert np.array_equal(parts[0].mask.read(), strip.mask.read()[:, :16])


def test_aitex_with_two_masks_and_with_none(tmp_path):
    given = trees.aitex(tmp_path).given
    truth = tmp_path / "Mask_images"
    (truth / "0011_006_03_mask.png").rename(truth / "0011_006_03_mask1.png")
    second = np.zeros((16, 64), np.uint8)
    second[:, 60:] = 255
    Image.fromarray(second).save(truth / "0011_006_03_mask2.png")
    (truth / "0012_999_03_mask.png").unlink()
    both, none = (s for s in reader("aitex")(**given).test() if s.label)
    assert both.mask.read().sum() == 30 + 16 * 4
    assert none.mask is None
    assert not any("0012" in s.id for s in reader("aitex")(**given, tile=16).test())


def test_magnetic_tiles_are_divided_by_number(tmp_path):
    data = trees.magnetic_tile(tmp_path).reader("magnetic-tile")
    assert [s.id.rpartition("_")[2] for s in data.train()] == ["99.jpg", "98.jpg", "97.jpg"]
    assert ids(s for s in data.test() if not s.label) == ["MT_Free/Imgs/exp0_num_100.jpg"]


@pytest.mark.parametrize("name", ["headct", "brain-mri", "br35h"])
def test_a_part_to_train_on_can_be_asked_for(name, tmp_path):
    root = trees.write(name, tmp_path).given["root"]
    data = reader(name)(root, train_share=0.67)
    assert len(data.train()) == 2
    assert sum(s.label == 0 for s in data.test()) == 1
    assert not {*ids(data.train())} & {*ids(data.test())}
    with pytest.raises(WrongInput, match=r"train_share is a part .* got 2"):
        reader(name)(root, train_share=2).train()


def test_ucsd_frames_without_the_table_or_with_clips_missing(tmp_path):
    tree = trees.ucsd_ped(tmp_path)
    data = tree.reader("ucsd-ped")
    bad = ids(s for s in data.test() if s.label)
    assert bad == [f"UCSDped2/Test/{f}.tif" for f in ("Test001/002", "Test001/003", "Test002/001")]
    assert {s.category for s in data.test()} == {"UCSDped2/Test001", "UCSDped2/Test002"}
    (tmp_path / "UCSDped2/Test/UCSDped2.m").rename(tmp_path / "kept.m")
    assert ids(s for s in tree.reader("ucsd-ped").test() if s.label) == bad
    (tmp_path / "kept.m").rename(tmp_path / "UCSDped2/Test/UCSDped2.m")
    shutil.rmtree(tmp_path / "UCSDped2/Test/Test002")
    with pytest.raises(WrongInput, match="has 1 clips and labels for 2"):
        tree.reader("ucsd-ped").test()


# Exports of annotation tools.


def test_coco_masks_are_what_was_outlined(tmp_path):
    test = {s.id: s for s in trees.coco(tmp_path).reader("coco").test()}
    assert np.array_equal(test["images/00.png"].mask.read(), marked())
    runs = marked()
    runs[3:5, 0] = True  # the run length of the tree
    assert np.array_equal(test["images/01.png"].mask.read(), runs)
    assert test["images/01.png"].defect == "dent+scratch"


def test_coco_categories(tmp_path):
    trees.coco(tmp_path)
    assert sum(s.label for s in reader("coco")(tmp_path).test()) == 3  # a nut is anomalous too if nothing is said
    assert sum(s.label for s in reader("coco")(tmp_path, ("dent",)).test()) == 1
    with pytest.raises(UnknownName, match="did you mean 'scratch'"):
        reader("coco")(tmp_path, ("scrach",)).test()


def test_coco_pictures_named_from_a_folder_beside_them(tmp_path):
    root = trees.coco(tmp_path).given["root"]
    before = ids(reader("coco")(root).test())
    table = json.loads((root / "annotations.json").read_text())
    for image in table["images"]:
        image["file_name"] = f"../images/{image['file_name']}"
    (root / "annotations.json").unlink()
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text(json.dumps(table))
    assert ids(reader("coco")(str(root)).test()) == before
    assert ids(reader("coco")(f"{root}/images/..").test()) == before


def test_coco_files_that_say_what_they_are_for(tmp_path):
    root = trees.coco(tmp_path / "all").given["root"]
    table = json.loads((root / "annotations.json").read_text())
    (root / "annotations.json").unlink()
    for split, chosen in (("train", range(6)), ("valid", (6,)), ("test", (7,))):
        (tmp_path / split).mkdir()
        part = {**table, "images": [table["images"][i] for i in chosen]}
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(part))
        for image in part["images"]:
            shutil.copy(root / "images" / image["file_name"], tmp_path / split / image["file_name"])
    shutil.rmtree(root)
    data = reader("coco")(tmp_path, ("scratch", "dent"))
    assert ids(data.train()) == [*(f"train/0{i}.png" for i in range(2, 6)), "valid/06.png"]
    assert ids(data.test()) == ["test/07.png", "train/00.png", "train/01.png"]


def test_coco_files_that_do_not_fit(tmp_path):
    root = trees.coco(tmp_path).given["root"]
    path = root / "annotations.json"
    shutil.copy(path, root / "again.json")
    with pytest.raises(WrongInput, match=r"images/\d\d\.png is in more than one COCO file"):
        reader("coco")(root).test()
    assert reader("coco")(root, annotations="again.json").test()
    (root / "again.json").unlink()
    table = json.loads(path.read_text())
    table["annotations"][2]["segmentation"]["counts"] = [3, 2, 4]
    path.write_text(json.dumps(table))
    with pytest.raises(
        WrongInput, match=r"an annotation of .*01\.png does not fit it \(runs of 9 pixels for 24 x 20\)"
    ):
        next(s for s in reader("coco")(root).test() if s.id == "images/01.png").mask.read()
    (root / "images/05.png").unlink()
    with pytest.raises(WrongInput, match=r"names the picture 05\.png, which is neither beside it nor in"):
        reader("coco")(root).test()


@pytest.mark.parametrize(
    ("kind", "points", "pixels"),
    [
        ("polygon", [[6, 4], [12, 4], [12, 9], [6, 9]], 30),
        ("rectangle", [[12, 9], [6, 4]], 30),
        ("circle", [[10, 10], [10, 11.1]], 4),
        ("line", [[2.5, 3.5], [7.5, 3.5]], 6),
        ("linestrip", [[2.5, 3.5], [7.5, 3.5], [7.5, 5.5]], 8),
        ("point", [[2.9, 3.1]], 1),
        ("points", [[2.9, 3.1], [4, 4]], 2),
    ],
)
def test_labelme_shapes(kind, points, pixels, tmp_path):
    trees.labelme(tmp_path)
    shapes = [{"label": "dent", "shape_type": kind, "points": points}]
    (tmp_path / "parts/00.json").write_text(json.dumps({"shapes": shapes}))
    drawn = reader("labelme")(tmp_path, ("dent",)).test()[0].mask.read()
    assert drawn.sum() == pixels
    if pixels == 30:
        assert np.array_equal(drawn, marked())


def test_labelme_pasted_masks_and_unknown_shapes(tmp_path):
    import base64
    import io

    trees.labelme(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 6), 255, np.uint8)).save(buffer, "PNG")
    shape = {"label": "dent", "shape_type": "mask", "points": [[6, 4], [11, 8]],
             "mask": base64.b64encode(buffer.getvalue()).decode()}  # fmt: skip
    path = tmp_path / "parts/00.json"
    path.write_text(json.dumps({"shapes": [shape]}))
    view = next(s for s in reader("labelme")(tmp_path).test() if s.id == "parts/00.png").mask
    assert np.array_equal(view.read(), marked())
    path.write_text(json.dumps({"shapes": [{**shape, "shape_type": "spiral"}]}))
    with pytest.raises(WrongInput, match="a shape of the type 'spiral'; draw it as a polygon"):
        next(s for s in reader("labelme")(tmp_path).test() if s.id == "parts/00.png").mask.read()
    path.write_text("[]")
    with pytest.raises(WrongInput, match="has no list of shapes"):
        reader("labelme")(tmp_path).test()


def test_labelme_folders_that_say_what_they_are_for(tmp_path):
    trees.labelme(tmp_path)
    shutil.move(tmp_path / "parts", tmp_path / "train")
    picture(tmp_path / "test/99.png")
    data = reader("labelme")(tmp_path, ("scratch", "dent"))
    assert ids(data.train()) == [f"train/0{i}.png" for i in range(2, 8)]
    assert ids(data.test()) == ["test/99.png", "train/00.png", "train/01.png"]
    with pytest.raises(UnknownName, match="did you mean 'dent'"):
        reader("labelme")(tmp_path, ("dents",)).test()
