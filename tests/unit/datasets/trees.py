"""Tiny copies of every dataset's layout: one function per reader, of its name, that writes a tree and tells what is in it.

A new reader without a function here fails the contract test; add one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalens import datasets
from anomalens.datasets.procedural import Procedural
from tests.support import mini_loco

SIZE = (20, 24)  # height, width of the pictures
MARK = (slice(4, 9), slice(6, 12))  # where a written mask is True


@dataclass(frozen=True)
class Tree:
    """What a written tree must be read as. given: fields of the reader; masks: anomalous samples have one."""

    given: dict[str, Any]
    train: int
    good: int
    bad: int
    category: str  # of every sample, or the beginning of it
    masks: bool = True
    size: tuple[int, int] = SIZE
    views: tuple[str, ...] = ("image",)
    categories: tuple[str, ...] = ()
    defects: frozenset[str] = field(default_factory=frozenset)  # where given: the kinds of defects

    def reader(self, name: str) -> Any:
        return datasets.reader(name)(**self.given)


def write(name: str, root: Path) -> Tree:
    """Write the tree of a reader."""
    maker = globals().get(name.replace("-", "_"))
    if maker is None:
        pytest.fail(f"no writer for the reader {name!r}: add `def {name.replace('-', '_')}(root)` to {__file__}")
    return maker(root)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.as_posix().encode()[-12:]])
    Image.fromarray(rng.integers(1, 250, (*size, 3), np.uint8)).save(path, **how)


def pictures(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        picture(folder / name)


def mask(path: Path, value: int = 255, size: tuple[int, int] = SIZE, empty: bool = False, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[MARK] = 0 if empty else value
    Image.fromarray(pixels).save(path, **how)


def masks(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        mask(folder / name)


def _drawn(root: Path) -> Procedural:
    drawn = Procedural("cloth", 48, train_count=4, good_count=2, bad_count=4)
    drawn.write(root / "cloth")
    return drawn


def folder(root: Path) -> Tree:
    _drawn(root)
    return Tree({"root": root}, 4, 2, 4, "cloth", size=(48, 48), categories=("cloth",))


def mvtec(root: Path) -> Tree:
    _drawn(root)
    return Tree({"root": root, "category": "cloth"}, 4, 2, 4, "cloth", size=(48, 48), categories=("cloth",))


def procedural(root: Path) -> Tree:
    given = {"category": "cloth", "size": 48, "train_count": 4, "good_count": 2, "bad_count": 4}
    return Tree(given, 4, 2, 4, "cloth", size=(48, 48))


def procedural_logic(root: Path) -> Tree:
    given = {"category": "carton", "size": 96, "train_count": 3, "good_count": 2, "bad_count": 4}
    defects = frozenset({"misplaced_seal", "missing_seal", "wrong_dots", "wrong_seal"})
    return Tree(given, 3, 2, 4, "carton", size=(96, 96), defects=defects)


def loco_annotations(root: Path) -> Tree:
    mini_loco.write(root, "screw_bag", train=3, good=2, each=1)
    kinds = frozenset({"logical_anomalies"})
    size = (mini_loco.HEIGHT, mini_loco.WIDTH)
    given = {"root": root, "category": "screw_bag"}
    return Tree(given, 3, 2, 4, "screw_bag", size=size, categories=("screw_bag",), defects=kinds)


def mvtec_ad_2(root: Path) -> Tree:
    for category in ("can", "vial"):
        base = root / category
        pictures(base / "train/good", ["000_regular.png", "001_regular.png", "002_regular.png"])
        pictures(base / "validation/good", ["000_regular.png"])
        pictures(base / "test_public/good", ["000_regular.png", "000_overexposed.png"])
        pictures(base / "test_public/bad", ["000_regular.png", "001_regular.png", "001_shift_1.png"])
        bad = ["000_regular_mask.png", "001_regular_mask.png", "001_shift_1_mask.png"]
        masks(base / "test_public/ground_truth/bad", bad)
        pictures(base / "test_private", ["000_regular.png", "001_regular.png"])
        pictures(base / "test_private_mixed", ["000_mixed.png"])
    return Tree({"root": root, "category": "vial"}, 3, 2, 3, "vial", categories=("can", "vial"))


def mvtec_loco(root: Path) -> Tree:
    base = root / "pushpins"
    pictures(base / "train/good", ["000.png", "001.png"])
    pictures(base / "validation/good", ["000.png"])
    pictures(base / "test/good", ["000.png", "001.png", "002.png"])
    pictures(base / "test/logical_anomalies", ["000.png", "001.png"])
    pictures(base / "test/structural_anomalies", ["000.png"])
    truth = base / "ground_truth"
    mask(truth / "logical_anomalies/000/000.png", 254)
    mask(truth / "logical_anomalies/001/000.png", 254)
    mask(truth / "structural_anomalies/000/000.png", 250)
    second = np.zeros(SIZE, np.uint8)
    second[12:15, 2:5] = 253
    Image.fromarray(second).save(truth / "logical_anomalies/001/001.png")
    (base / "defects_config.json").write_text(json.dumps([
        {"defect_name": "missing", "pixel_value": 254, "saturation_threshold": 10, "relative_saturation": False},
        {"defect_name": "additional", "pixel_value": 253, "saturation_threshold": 0.5, "relative_saturation": True},
        {"defect_name": "broken", "pixel_value": 250, "saturation_threshold": 1.0, "relative_saturation": True},
    ]))  # fmt: skip
    kinds = frozenset({"logical_anomalies", "structural_anomalies"})
    return Tree({"root": root, "category": "pushpins"}, 2, 3, 3, "pushpins", categories=("pushpins",), defects=kinds)


def visa(root: Path) -> Tree:
    rows = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        data = root / category / "Data"
        for i in range(5):
            picture(data / f"Images/Normal/{i:04}.JPG", quality=95)
            split = "train" if i < 3 else "test"
            rows.append(f"{category},{split},normal,{category}/Data/Images/Normal/{i:04}.JPG,")
        for i in range(2):
            picture(data / f"Images/Anomaly/{i:03}.JPG", quality=95)
            mask(data / f"Masks/Anomaly/{i:03}.png", value=i + 1)
            where = f"{category}/Data/Images/Anomaly/{i:03}.JPG,{category}/Data/Masks/Anomaly/{i:03}.png"
            rows.append(f"{category},test,anomaly,{where}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return Tree({"root": root, "category": "pcb1"}, 3, 2, 2, "pcb1", categories=("candle", "pcb1"))


def btad(root: Path) -> Tree:
    for category, suffix in (("01", "bmp"), ("02", "png")):
        base = root / category
        pictures(base / "train/ok", [f"{i:04}.{suffix}" for i in range(3)])
        pictures(base / "test/ok", [f"{i:04}.{suffix}" for i in range(2)])
        pictures(base / "test/ko", [f"{i:04}.{suffix}" for i in range(2)])
        masks(base / "ground_truth/ko", ["0000.png", "0001.png"])
    return Tree({"root": root, "category": "01"}, 3, 2, 2, "01", categories=("01", "02"), defects=frozenset({"ko"}))


def _mvtec_like(root: Path, categories: tuple[str, ...], defects: tuple[str, ...], end: str = "_mask") -> None:
    for category in categories:
        pictures(root / category / "train/good", ["000.png", "001.png", "002.png"])
        pictures(root / category / "test/good", ["000.png", "001.png"])
        for defect in defects:
            pictures(root / category / "test" / defect, ["000.png", "001.png"])
            masks(root / category / "ground_truth" / defect, [f"000{end}.png", f"001{end}.png"])


def mpdd(root: Path) -> Tree:
    _mvtec_like(root, ("connector", "tubes"), ("anomalous",))
    return Tree({"root": root, "category": "tubes"}, 3, 2, 2, "tubes", categories=("connector", "tubes"))


def kolektor_sdd(root: Path) -> Tree:
    for folder in ("kos01", "kos02", "kos03"):
        for part in range(2):
            picture(root / folder / f"Part{part}.jpg")
            mask(root / folder / f"Part{part}_label.bmp", empty=(folder, part) not in (("kos01", 1), ("kos03", 0)))
    return Tree({"root": root}, 3, 1, 2, "KolektorSDD", categories=("KolektorSDD",), defects=frozenset({"crack"}))


def kolektor_sdd2(root: Path) -> Tree:
    for split, bad in (("train", {10002}), ("test", {20000, 20003})):
        for i in range(4):
            number = (10000 if split == "train" else 20000) + i
            picture(root / split / f"{number}.png")
            mask(root / split / f"{number}_GT.png", empty=number not in bad)
    return Tree({"root": root}, 3, 2, 2, "KolektorSDD2", categories=("KolektorSDD2",))


def dagm(root: Path) -> Tree:
    for category in ("Class1", "Class10"):
        for split, bad in (("Train", {2}), ("Test", {1, 4})):
            for i in range(1, 5):
                picture(root / category / split / f"{i:04}.PNG")
                if i in bad:
                    mask(root / category / split / "Label" / f"{i:04}_label.PNG")
        (root / category / "Train/Label/Labels.txt").write_text("1\n")
    return Tree({"root": root, "category": "Class10"}, 3, 2, 2, "Class10", categories=("Class1", "Class10"))


def dtd_synthetic(root: Path) -> Tree:
    _mvtec_like(root, ("Mesh_114", "Woven_001"), ("bad",))
    return Tree({"root": root, "category": "Mesh_114"}, 3, 2, 2, "Mesh_114", categories=("Mesh_114", "Woven_001"))


def real_iad(root: Path) -> Tree:
    for category in ("mint", "usb"):
        base = root / "realiad_256" / category
        table: dict[str, Any] = {"meta": {"prefix": f"{category}/", "normal_class": "OK"}, "train": [], "test": []}
        for part in range(3):
            for side in (1, 2):
                name = f"OK/S{part:04}/{category}_{part:04}_OK_C{side}_20230101.jpg"
                picture(base / name)
                entry = {"category": category, "anomaly_class": "OK", "image_path": name, "mask_path": None}
                table["train" if part < 2 else "test"].append(entry)
        for defect in ("HS", "PS"):
            stem = f"NG/{defect}/S0007/{category}_0007_NG_{defect}_C1_20230101"
            picture(base / f"{stem}.jpg")
            mask(base / f"{stem}.png")
            table["test"].append({"category": category, "anomaly_class": defect, "image_path": f"{stem}.jpg",
                                  "mask_path": f"{stem}.png"})  # fmt: skip
        (root / "realiad_jsons").mkdir(exist_ok=True)
        (root / "realiad_jsons" / f"{category}.json").write_text(json.dumps(table))
    given = {"root": root, "category": "usb"}
    return Tree(given, 4, 2, 2, "usb", categories=("mint", "usb"), defects=frozenset({"HS", "PS"}))


def rad(root: Path) -> Tree:
    _mvtec_like(root, ("bolt", "ribbon"), ("defect",), end="")
    return Tree({"root": root, "category": "ribbon"}, 3, 2, 2, "ribbon", categories=("bolt", "ribbon"))


def eyecandies(root: Path, lights: int = 6) -> Tree:
    for category in ("Confetto", "Lollipop"):
        for split, count, bad in (
            ("train", 3, ()),
            ("val", 1, ()),
            ("test_public", 4, (1, 3)),
            ("test_private", 2, ()),
        ):
            data = root / category / split / "data"
            for i in range(count):
                for item in (*(f"image_{k}" for k in range(lights)), "normals"):
                    picture(data / f"{i:02}_{item}.png", seed=i)
                depth = np.random.default_rng(i).integers(0, 60000, SIZE, np.uint16)
                Image.fromarray(depth).save(data / f"{i:02}_depth.png")
                (data / f"{i:02}_info_depth.yaml").write_text("normalization:\n  min: 1.0\n")
                if split == "test_public":
                    mask(data / f"{i:02}_mask.png", empty=i not in bad)
                    mask(data / f"{i:02}_bumps_mask.png", empty=i not in bad)
                    (data / f"{i:02}_metadata.yaml").write_text(f"anomalous: {int(i in bad)}\nbumps: 1\n")
    views = ("image", *(f"light_{k}" for k in range(lights)), "depth", "normals")
    given = {"root": root, "category": "Lollipop"}
    return Tree(given, 3, 2, 2, "Lollipop", views=views, categories=("Confetto", "Lollipop"))


def eyecandies_converted(root: Path, lights: int = 6) -> Tree:
    """The second layout of the reader `eyecandies`."""
    for category in ("Confetto", "Lollipop"):
        base = root / category
        for kind, count in (("train/good", 3), ("test/good", 2), ("test/bumps", 1), ("test/colors", 1)):
            pictures(base / kind, [f"{i:03}_{k}.png" for i in range(count) for k in range(lights)])
        for kind in ("bumps", "colors"):
            mask(base / "ground_truth" / kind / "000_mask.png")
    views = ("image", *(f"light_{k}" for k in range(lights)))
    given, kinds = {"root": root, "category": "Lollipop"}, frozenset({"bumps", "colors"})
    return Tree(given, 3, 2, 2, "Lollipop", views=views, categories=("Confetto", "Lollipop"), defects=kinds)


def mvtec_3d(root: Path) -> Tree:
    tifffile = pytest.importorskip("tifffile")

    def scan(folder: Path, number: int, bad: bool = False) -> None:
        picture(folder / f"rgb/{number:03}.png", seed=number)
        mask(folder / f"gt/{number:03}.png", empty=not bad)
        (folder / "xyz").mkdir(exist_ok=True)
        points = np.random.default_rng(number).random((*SIZE, 3), np.float32)
        tifffile.imwrite(folder / f"xyz/{number:03}.tiff", points, photometric="rgb")

    for category in ("bagel", "rope"):
        base = root / category
        for split, count in (("train", 3), ("validation", 1), ("test", 2)):
            for i in range(count):
                scan(base / split / "good", i)
        scan(base / "test/hole", 0, bad=True)
        scan(base / "test/cut", 0, bad=True)
        (base / "calibration").mkdir()
        (base / "calibration/camera_parameters.json").write_text("{}")
    given = {"root": root, "category": "rope"}
    return Tree(given, 3, 2, 2, "rope", views=("image", "points"), categories=("bagel", "rope"))


def aitex(root: Path) -> Tree:
    strip = (16, 64)
    for code, fabric in (("00", "2306881-210020u"), ("03", "2311694-1930c7u")):
        for i in range(4):
            picture(root / f"NODefect_images/{fabric}/{i:04}_000_{code}.png", size=strip)
    for name in ("0010_002_00", "0011_006_03", "0012_999_03"):
        picture(root / f"Defect_images/{name}.png", size=strip)
        mask(root / f"Mask_images/{name}_mask.png", size=strip)
    given = {"root": root, "category": "03"}
    kinds = frozenset({"broken_yarn", "999"})
    return Tree(given, 3, 1, 2, "03", size=strip, categories=("00", "03"), defects=kinds)


def magnetic_tile(root: Path) -> Tree:
    for i in range(4):
        picture(root / f"MT_Free/Imgs/exp{i}_num_{100 - i}.jpg")
        mask(root / f"MT_Free/Imgs/exp{i}_num_{100 - i}.png", empty=True)
    for kind in ("Blowhole", "Crack"):
        picture(root / f"MT_{kind}/Imgs/exp1_num_7.jpg")
        mask(root / f"MT_{kind}/Imgs/exp1_num_7.png")
    kinds = frozenset({"blowhole", "crack"})
    return Tree({"root": root}, 3, 1, 2, "magnetic_tile", categories=("magnetic_tile",), defects=kinds)


def headct(root: Path) -> Tree:
    rows = ["id, hemorrhage"]
    for i in range(5):
        picture(root / f"head_ct/{i:03}.png")
        rows.append(f"{i}, {int(i < 2)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return Tree({"root": root}, 0, 3, 2, "headct", masks=False, categories=("headct",))


def _yes_no(root: Path, category: str) -> Tree:
    pictures(root / "no", ["1 no.jpeg", "2 no.jpg", "N3.JPG"])
    pictures(root / "yes", ["Y1.jpg", "Y2.jpg"])
    return Tree({"root": root}, 0, 3, 2, category, masks=False, categories=(category,), defects=frozenset({"tumour"}))


def brain_mri(root: Path) -> Tree:
    return _yes_no(root, "brain_mri")


def br35h(root: Path) -> Tree:
    return _yes_no(root, "br35h")


def _all_bad(category: str, root: Path) -> Tree:
    return Tree({"root": root}, 0, 0, 3, category, categories=(category,))


def isic(root: Path) -> Tree:
    names = [f"ISIC_000000{i}" for i in range(3)]
    pictures(root / "ISBI2016_ISIC_Part1_Test_Data", [f"{n}.jpg" for n in names])
    masks(root / "ISBI2016_ISIC_Part1_Test_GroundTruth", [f"{n}_Segmentation.png" for n in names])
    return _all_bad("isic", root)


def cvc_clinicdb(root: Path) -> Tree:
    pictures(root / "PNG/Original", ["1.png", "2.png", "10.png"])
    masks(root / "PNG/Ground Truth", ["1.png", "2.png", "10.png"])
    return _all_bad("cvc_clinicdb", root)


def cvc_colondb(root: Path) -> Tree:
    pictures(root / "images", ["1.png", "2.png", "10.png"])
    masks(root / "masks", ["1.png", "2.png", "10.png"])
    return _all_bad("cvc_colondb", root)


def tn3k(root: Path) -> Tree:
    pictures(root / "test-image", ["0000.jpg", "0001.jpg", "0002.jpg"])
    masks(root / "test-mask", ["0000.jpg", "0001.jpg", "0002.jpg"])
    pictures(root / "trainval-image", ["0000.jpg"])
    masks(root / "trainval-mask", ["0000.jpg"])
    return _all_bad("tn3k", root)


def kvasir(root: Path) -> Tree:
    pictures(root / "images", ["a.jpg", "b.jpg", "c.jpg"])
    masks(root / "masks", ["a.jpg", "b.jpg", "c.jpg"])
    return _all_bad("kvasir", root)


def ucsd_ped(root: Path) -> Tree:
    base = root / "UCSDped2"
    for clip in ("Train001", "Train002"):
        pictures(base / "Train" / clip, ["001.tif", "002.tif"])
    for clip, bad in (("Test001", {2, 3}), ("Test002", {1})):
        pictures(base / "Test" / clip, ["001.tif", "002.tif", "003.tif"])
        for i in (1, 2, 3):
            mask(base / f"Test/{clip}_gt/{i:03}.bmp", empty=i not in bad)
    (base / "Test/UCSDped2.m").write_text(
        "TestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [2:3];\nTestVideoFile{end+1}.gt_frame = [1];\n"
    )
    return Tree({"root": root, "category": "UCSDped2"}, 4, 3, 3, "UCSDped2/Test", categories=("UCSDped2",))


def coco(root: Path) -> Tree:
    names = [f"{i:02}.png" for i in range(8)]
    pictures(root / "images", names)
    outline = [6, 4, 12, 4, 12, 9, 6, 9]
    annotations = [
        {"image_id": 100, "category_id": 1, "segmentation": [outline], "bbox": [6, 4, 6, 5]},
        {"image_id": 101, "category_id": 1, "bbox": [6, 4, 6, 5]},
        {"image_id": 101, "category_id": 2, "segmentation": {"size": list(SIZE), "counts": [3, 2, 475]}, "bbox": []},
        {"image_id": 102, "category_id": 3, "segmentation": [outline], "bbox": [6, 4, 6, 5]},
    ]
    table = {
        "images": [{"id": 100 + i, "file_name": name, "height": 20, "width": 24} for i, name in enumerate(names)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "scratch"}, {"id": 2, "name": "dent"}, {"id": 3, "name": "nut"}],
    }
    (root / "annotations.json").write_text(json.dumps(table))
    given = {"root": root, "anomalous": ("scratch", "dent")}
    return Tree(given, 4, 2, 2, root.name, categories=(root.name,), defects=frozenset({"scratch", "dent+scratch"}))


def labelme(root: Path) -> Tree:
    pictures(root / "parts", [f"{i:02}.png" for i in range(8)])

    def shapes(name: str, *drawn: tuple[str, str, list[list[float]]]) -> None:
        listed = [{"label": label, "shape_type": kind, "points": points, "flags": {}} for label, kind, points in drawn]
        text = json.dumps({"version": "5.2.1", "shapes": listed, "imagePath": f"{name}.png", "imageData": None})
        (root / "parts" / f"{name}.json").write_text(text)

    shapes("00", ("scratch", "polygon", [[6, 4], [12, 4], [12, 9], [6, 9]]))
    shapes("01", ("dent", "circle", [[10, 10], [13, 10]]), ("nut", "rectangle", [[0, 0], [24, 20]]))
    shapes("02", ("nut", "rectangle", [[6, 4], [12, 9]]))
    shapes("03")
    given = {"root": root, "anomalous": ("scratch", "dent")}
    return Tree(given, 4, 2, 2, root.name, categories=(root.name,), defects=frozenset({"scratch", "dent"}))


def json_lines(root: Path) -> Tree:
    pictures(root / "good", ["0.png", "1.png"])
    pictures(root / "new", ["fine.png", "torn.png", "worn.png"])
    masks(root / "masks", ["torn.png", "worn.png"])
    both = {"modality": "image", "references": ["good/0.png", "good/1.png"], "category": "nut"}
    lines = [
        {**both, "id": "new/fine", "paths": ["new/fine.png"], "label": 0},
        {**both, "id": "new/torn", "paths": "new/torn.png", "label": 1, "defect": "tear", "mask": "masks/torn.png"},
        {**both, "id": "new/worn", "paths": "new/worn.png", "defect": "wear", "mask": "masks/worn.png"},
    ]
    (root / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    defects = frozenset({"tear", "wear"})
    return Tree({"root": root}, 2, 1, 2, "nut", categories=("nut",), defects=defects)
