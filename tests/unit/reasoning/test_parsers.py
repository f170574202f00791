"""Parsers find what is there, learn only from normal pictures, and refuse what does not fit in one sentence."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anomalens.datasets.mvtec_loco import MVTecLOCO
from anomalens.errors import NotFitted, UnknownName, WrongInput
from anomalens.images import encode
from anomalens.reasoning import parsers
from anomalens.reasoning.parsers.annotations import Annotations, StatedReason
from anomalens.reasoning.parsers.color_blobs import ColorBlobs
from anomalens.reasoning.parsers.parts import Parts, _depth, _seeds, _split
from anomalens.reasoning.parsers.segments import Segments
from anomalens.types import Sample, View
from tests.support import mini_loco

SIZE = (120, 160)


def sample(image: np.ndarray, name: str = "train/good/000.png", category: str = "") -> Sample:
    return Sample(name, {"image": View("image", lambda: image)}, category=category)


def counts(parsed) -> dict[str, int]:
    return dict(Counter(thing.label for thing in parsed.scene.objects))


# --- what every parser owes ---


def ready() -> list:
    return [
        ColorBlobs({"red": "red"}),
        Segments(lambda image: ([np.ones(image.shape[:2], bool)], ["all"]), names=("all",)),
        Parts().fit([sample(tray(i)) for i in range(4)]),
    ]


def test_every_file_of_the_folder_is_a_parser():
    assert parsers.names() == ("annotations", "color-blobs", "parts", "segments")
    assert isinstance(parsers.create("color_blobs", ranges={"nut": "brown"}), parsers.Parser)
    assert isinstance(parsers.create("parts"), parsers.Parser)
    with pytest.raises(UnknownName, match="'part'; did you mean 'parts'"):
        parsers.create("part")
    with pytest.raises(UnknownName, match="'name'; did you mean 'names'"):
        parsers.create("parts", name="nut")


def test_masks_and_objects_are_in_the_same_order_and_state_brings_the_parser_back():
    picture = sample(tray(9), "a/b.png", "tray")
    for parser in ready():
        parsed = parser.parse(picture)
        assert (parsed.scene.image_id, parsed.scene.category) == ("a/b.png", "tray")
        assert len(parsed.masks) == len(parsed.scene.objects) > 0
        assert [int(mask.sum()) for mask in parsed.masks] == [thing.area for thing in parsed.scene.objects]
        assert {thing.label for thing in parsed.scene.objects} <= set(parser.labels)
        state = parsers.to_state(parser)
        more = {"segment": parser.segment} if isinstance(parser, Segments) else {}
        again = parsers.from_state(state, **more)
        assert again.parse(picture).scene == parsed.scene


def test_state_is_plain():
    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or isinstance(value, (bool, int, float, str, np.ndarray))

    assert all(plain(parsers.to_state(parser)) for parser in ready())
    with pytest.raises(WrongInput, match="not the state of a parser"):
        parsers.from_state({"parser": "parts"})


# --- colour blobs ---


def test_color_blobs_are_components_of_a_range():
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[10:20, 10:30] = (200, 40, 40)
    image[40:50, 10:30] = (200, 40, 60)  # hue 352: the range of red goes through 0
    image[70:72, 10:12] = (200, 40, 40)  # four pixels
    image[10:30, 60:80] = (40, 60, 200)
    parser = ColorBlobs({"red": "red", "sea": ((200, 260), (0.5, 1), (0.5, 1))}, regions={"left": (0, 0, 0.25, 1)})
    parsed = parser.parse(sample(image))
    assert counts(parsed) == {"red": 2, "sea": 1}
    assert [thing.bbox for thing in parsed.scene.objects] == [(10, 10, 30, 20), (10, 40, 30, 50), (60, 10, 80, 30)]
    assert parsed.scene.regions == {"left": (0, 0, 40, 120)}
    assert counts(ColorBlobs({"red": "red"}, smallest=1).parse(sample(image))) == {"red": 3}


def test_color_blobs_name_colours_as_programs_do():
    from anomalens.reasoning.program_api import Image
    from anomalens.reasoning.scene import measure

    colours = np.random.default_rng(0).integers(0, 256, (60, 3))
    whole = np.ones((4, 4), bool)
    for colour in colours:
        image = np.broadcast_to(colour.astype(np.uint8), (4, 4, 3)).copy()
        scene = measure([whole], ["a"], image).scene
        name = Image(scene.to_dict()).color_name(Image(scene.to_dict()).find("a")[0])
        found = ColorBlobs({name: name}, smallest=1).parse(sample(image))
        assert counts(found) == {name: 1}, (colour, name)


@pytest.mark.parametrize("ranges", [{}, {"nut": "nutty"}, {"nut": (1, 2)}, {"nut": ((0, 1), (0, 1))}])
def test_bad_colour_ranges_are_refused(ranges):
    with pytest.raises(WrongInput, match=r"ranges|nut"):
        ColorBlobs(ranges)


# --- any function ---


def test_segments_take_masks_labels_and_scores():
    masks = np.zeros((3, *SIZE), np.uint8)
    masks[0, :5, :5], masks[1, 10:15, :5], masks[2, 20:25, :5] = 255, 1, 1
    image = np.zeros((*SIZE, 3), np.uint8)
    parser = Segments(lambda _: (masks, ["a", "b", "a"], [0.9, 0.2, 0.6]), least=0.5)
    assert [(o.label, o.score) for o in parser.parse(sample(image)).scene.objects] == [("a", 0.9), ("a", 0.6)]
    assert counts(Segments(lambda _: (masks[:1], ["a"])).parse(sample(image))) == {"a": 1}
    assert counts(Segments(lambda _: ([], [])).parse(sample(image))) == {}


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        (None, "needs a function"),
        (lambda image: None, "NoneType"),
        (lambda image: ([np.ones(SIZE)], []), "1 masks, 0 labels"),
        (lambda image: ([np.ones((3, 3))], ["a"]), r"\(3, 3\)"),
    ],
)
def test_wrong_answers_of_a_function_are_refused(segment, said):
    with pytest.raises(WrongInput, match=said):
        Segments(segment).parse(sample(np.zeros((*SIZE, 3), np.uint8)))


# --- annotations ---


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


SQUARE = [[10, 10], [30, 10], [30, 20], [10, 20]]
LABELME = {
    "imageHeight": 120,
    "imageWidth": 160,
    "shapes": [
        {"label": "nut", "points": SQUARE, "shape_type": "polygon", "attributes": {"clamps": 3}},
        {"label": "bag", "points": [[50, 50], [60, 50]], "shape_type": "circle", "description": "size: too large"},
    ],
    "gt": "Quantity anomaly: 3 washers; position： left of the nut\nsomething else",
    "flags": {"position anomalies: upside down": True, "checked": False},
}
BLANK = np.zeros((*SIZE, 3), np.uint8)


def test_labelme_files(tmp_path):
    write(tmp_path / "test" / "bad" / "007.json", LABELME)
    write(tmp_path / "test" / "good" / "007.json", {"imageHeight": 120, "imageWidth": 160, "shapes": []})
    parser = Annotations(tmp_path)
    bad, good = sample(BLANK, "bags/test/bad/007.png"), sample(BLANK, "test/good/007.jpg")
    parsed = parser.parse(bad)
    assert counts(parsed) == {"nut": 1, "bag": 1}
    assert parsed.scene.objects[0].bbox == (10, 10, 30, 20)
    assert parsed.scene.objects[0].attributes == {"clamps": 3}
    assert parsed.scene.objects[1].area == pytest.approx(np.pi * 100, rel=0.03)
    assert parser.labels == ("bag", "nut")
    assert counts(parser.parse(good)) == {}
    assert parser.reasons(good) == ()
    assert set(parser.reasons(bad)) == {
        StatedReason("quantity", "3 washers"),
        StatedReason("position", "left of the nut"),
        StatedReason("unknown", "something else"),
        StatedReason("position", "upside down"),
        StatedReason("size", "too large"),
    }


def test_what_is_not_paired_is_listed(tmp_path):
    write(tmp_path / "test" / "bad" / "007.json", LABELME)
    write(tmp_path / "test" / "bad" / "008.json", LABELME)
    report = Annotations(tmp_path).report([sample(BLANK, "test/bad/007.png"), sample(BLANK, "train/bad/008.png")])
    assert [Path(name).name for name in report.unmatched] == ["008.json"]
    assert report.missing == ("train/bad/008.png",)
    assert report.unknown == 2  # "something else", in both files
    with pytest.raises(WrongInput, match=r"train/bad/008.png has no annotation"):
        Annotations(tmp_path).parse(sample(BLANK, "train/bad/008.png"))


def test_coco_polygons_boxes_and_run_lengths(tmp_path):
    runs = [0, 120 * 10, 120 * 150]  # the first ten columns
    content = {
        "images": [
            {"id": 1, "file_name": "test\\bad\\a.png", "width": 160, "height": 120, "reason": ["matching: red"]}
        ],
        "categories": [{"id": 1, "name": "nut"}, {"id": 2, "name": "bag"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]},
            {"image_id": 1, "category_id": 2, "bbox": [5, 5, 10, 20]},
            {"image_id": 1, "category_id": 2, "segmentation": {"counts": [0, *runs[1:]], "size": [120, 160]}},
        ],
    }
    path = write(tmp_path / "notes.json", content)
    parser = Annotations(path)
    parsed = parser.parse(sample(BLANK, "test/bad/a.png"))
    assert [(o.label, o.bbox) for o in parsed.scene.objects] == [
        ("nut", (10, 10, 30, 20)),
        ("bag", (5, 5, 15, 25)),
        ("bag", (0, 0, 10, 120)),
    ]
    assert parser.reasons(sample(BLANK, "test/bad/a.png")) == (StatedReason("matching", "red"),)


def test_folders_of_masks(tmp_path):
    for name, column in {"nut.png": 0, "nut_2.png": 20, "003_bolt.png": 40, "004.png": 60}.items():
        mask = np.zeros(SIZE, np.uint8)
        mask[10:20, column : column + 10] = 236
        path = tmp_path / "test" / "bad" / "007" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(mask))
    (tmp_path / "test" / "good" / "000").mkdir(parents=True)
    parser = Annotations(tmp_path)
    assert counts(parser.parse(sample(BLANK, "test/bad/007.png"))) == {"nut": 2, "bolt": 1, "object": 1}
    assert counts(parser.parse(sample(BLANK, "test/good/000.png"))) == {}


def test_a_file_of_an_unknown_kind_is_explained_and_field_map_translates_it(tmp_path):
    theirs = {
        "imageHeight": 120,
        "imageWidth": 160,
        "objects": [{"class": "nut", "polygon": SQUARE}],
        "verdict": "size: small",
    }
    write(tmp_path / "a.json", theirs)
    with pytest.raises(WrongInput, match=r"has imageHeight, imageWidth, objects, verdict: .* field_map"):
        Annotations(tmp_path).parse(sample(BLANK, "a.png"))
    names = {"shapes": "objects", "label": "class", "points": "polygon", "reason": "verdict"}
    parser = Annotations(tmp_path, field_map=names)
    assert counts(parser.parse(sample(BLANK, "a.png"))) == {"nut": 1}
    assert parser.reasons(sample(BLANK, "a.png")) == (StatedReason("size", "small"),)
    with pytest.raises(WrongInput, match=r"without 'label'.*field_map"):
        Annotations(tmp_path, field_map={"shapes": "objects"}).parse(sample(BLANK, "a.png"))


def test_annotations_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(WrongInput, match="does not exist"):
        Annotations(tmp_path / "none").parse(sample(BLANK))
    with pytest.raises(WrongInput, match="has no annotations"):
        Annotations(tmp_path).parse(sample(BLANK))
    write(tmp_path / "a.json", "{")
    with pytest.raises(WrongInput, match=r"a.json is not JSON"):
        Annotations(tmp_path).parse(sample(BLANK, "a.png"))
    write(tmp_path / "a.json", LABELME)
    with pytest.raises(WrongInput, match=r"is for 160 x 120 pixels, a.png has 20 x 10"):
        Annotations(tmp_path).parse(sample(np.zeros((10, 20, 3), np.uint8), "a.png"))
    write(tmp_path / "b" / "a.json", LABELME)
    write(tmp_path / "c" / "a.json", LABELME)
    with pytest.raises(WrongInput, match="could be"):
        Annotations(tmp_path).parse(sample(BLANK, ["a", "a.png"][1]))


def test_mini_loco_is_read_back_exactly(tmp_path):
    notes = mini_loco.write(tmp_path, "splicing_connectors", train=1, validation=1, good=1, each=1)
    data = MVTecLOCO(tmp_path, "splicing_connectors")
    parser = Annotations(notes)
    report = parser.report([*data.train(), *data.validation(), *data.test()])
    assert (report.unmatched, report.missing, report.unknown) == ((), (), 0)
    bad = [s for s in data.test() if s.defect == "logical_anomalies"]
    violations = mini_loco.CATEGORIES["splicing_connectors"].violations
    for i, (kind, one) in enumerate(zip(violations, bad, strict=True)):
        truth = mini_loco.draw("splicing_connectors", kind, 3 + i)
        parsed = parser.parse(one)
        assert np.array_equal(one.image(), truth.image)
        assert [o.label for o in parsed.scene.objects] == [name for name, _ in truth.objects]
        assert all(np.array_equal(a, b) for a, (_, b) in zip(parsed.masks, truth.objects, strict=True))
        assert [f"{r.type}: {r.text}" for r in parser.reasons(one)] == truth.reasons
        assert {r.type for r in parser.reasons(one)} == {violations[kind]}
        channels = data.channels(one)
        assert np.array_equal(channels[0] > 0, truth.defects[0])
    assert len(data.config()) == len(violations) + 1


# --- parts without a model ---


def tray(
    seed: int, *, light: float = 0.0, noise: float = 0.01, grey: bool = False, shapes: str = "dddbbrr"
) -> np.ndarray:
    """Discs (d), bars (b) and rings (r) at places of their own on a plain ground, 160 x 120."""
    rng = np.random.default_rng(seed)
    picture = np.full((*SIZE, 3), 0.5)
    places = [(20 + 40 * (i // 4), 20 + 40 * (i % 4)) for i in range(12)]
    rng.shuffle(places)
    rows, cols = np.mgrid[:120, :160] + 0.5
    for shape, (y, x) in zip(shapes, places, strict=False):
        y, x = y + rng.uniform(-3, 3), x + rng.uniform(-3, 3)
        away = np.hypot(rows - y, cols - x)
        turn = rng.uniform(0, np.pi)
        along, across = (
            (cols - x) * np.cos(turn) + (rows - y) * np.sin(turn),
            (rows - y) * np.cos(turn) - (cols - x) * np.sin(turn),
        )
        mask, colour = {
            "d": (away < 12, (0.75, 0.25, 0.2)),
            "b": ((abs(along) < 15) & (abs(across) < 3), (0.2, 0.25, 0.3)),
            "r": ((away < 10) & (away > 5), (0.8, 0.8, 0.35)),
            "x": ((abs(along) < 16) & (abs(across) < 16), (0.1, 0.9, 0.9)),
        }[shape]
        picture[mask] = colour
    picture *= 1 + light * ((cols / 160 - 0.5) + 0.6 * (rows / 120 - 0.5) ** 2)[..., None]
    picture += rng.normal(0, noise, picture.shape)
    if grey:
        picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def truth(shapes: str = "dddbbrr") -> dict[str, int]:
    names = {"d": "disc", "b": "bar", "r": "ring", "x": "unknown"}
    return dict(Counter(names[shape] for shape in shapes))


CASES = {
    "plain": {},
    "uneven light": {"light": 0.7},
    "noise": {"noise": 0.05},
    "grey": {"grey": True},
    "grey in uneven light": {"grey": True, "light": 0.4, "noise": 0.02},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parts_are_found_and_told_apart(case):
    parser = Parts(names=("disc", "ring", "bar")).fit([sample(tray(i, **case)) for i in range(5)])
    assert parser.labels == ("disc", "ring", "bar", "unknown")
    for seed, shapes in enumerate(("dddbbrr", "ddbbrr", "dddbbbrr", "r", "")):
        assert counts(parser.parse(sample(tray(100 + seed, shapes=shapes, **case)))) == truth(shapes)


def test_the_number_of_kinds_comes_from_the_pictures():
    parser = Parts().fit([sample(tray(i)) for i in range(6)])
    rows = parser.describe()
    assert [(row["label"], row["count"]) for row in rows] == [("part_1", 3.0), ("part_2", 2.0), ("part_3", 2.0)]
    assert rows[0]["area_frac"] == pytest.approx(np.pi * 144 / (120 * 160), rel=0.15)
    assert rows[2]["aspect"] > 2.5
    only = Parts().fit([sample(tray(i, shapes="dddd")) for i in range(6)])
    assert only.labels == ("part_1", "unknown")


def test_what_looks_like_no_kind_is_unknown():
    parser = Parts(names=("disc", "ring", "bar")).fit([sample(tray(i)) for i in range(6)])
    assert counts(parser.parse(sample(tray(50, shapes="dddxb")))) == truth("dddxb")


def test_one_name_covers_kinds_that_look_different():
    parser = Parts(names=("thing",)).fit([sample(tray(i)) for i in range(6)])
    assert counts(parser.parse(sample(tray(50)))) == {"thing": 7}


def test_rare_clutter_of_normal_pictures_is_left_out():
    shapes = ["dddd"] * 9 + ["ddddx"]
    parser = Parts(names=("disc",)).fit([sample(tray(i, shapes=s)) for i, s in enumerate(shapes)])
    assert set(counts(parser.parse(sample(tray(50, shapes="ddddx"))))) <= {"disc", "unknown"}
    assert counts(parser.parse(sample(tray(50, shapes="ddddx"))))["disc"] == 4


def touching(gap: float) -> np.ndarray:
    rows, cols = np.mgrid[:120, :160] + 0.5
    picture = np.full((*SIZE, 3), 128, np.uint8)
    for x in (60, 60 + gap):
        picture[np.hypot(rows - 60, cols - x) < 12] = (190, 60, 50)
    return picture


def test_touching_parts_are_split_where_the_neck_is_plain():
    parser = Parts(names=("disc",)).fit([sample(tray(i, shapes="dddd")) for i in range(4)])
    parsed = parser.parse(sample(touching(22)))
    assert counts(parsed) == {"disc": 2}
    assert sorted(o.center[0] for o in parsed.scene.objects) == pytest.approx([60, 82], abs=1)
    assert not (parsed.masks[0] & parsed.masks[1]).any()
    whole = Parts(names=("disc",), split=False).fit([sample(tray(i, shapes="dddd")) for i in range(4)])
    assert len(whole.parse(sample(touching(22))).masks) == 1


def test_one_part_stays_one_whatever_its_shape():
    rows, cols = np.mgrid[:60, :60] + 0.5
    corner = ((rows < 12) | (cols < 12)) & (rows < 50) & (cols < 50)
    moon = (np.hypot(rows - 30, cols - 30) < 25) & (np.hypot(rows - 30, cols - 45) > 20)
    ring = (np.hypot(rows - 30, cols - 30) < 25) & (np.hypot(rows - 30, cols - 30) > 12)
    for shape in (corner, moon, ring):
        assert len(_split(shape)) == 1


def test_splitting_keeps_every_pixel_once():
    rows, cols = np.mgrid[:40, :100] + 0.5
    chain = np.any([np.hypot(rows - 20, cols - x) < 14 for x in (20, 46, 72)], axis=0)
    parts = _split(chain)
    assert len(parts) == 3
    assert np.array_equal(np.sum(parts, axis=0), chain.astype(int))
    seeds, level = _seeds(_depth(chain))
    assert len(seeds) == 3
    assert level > 0


def test_the_depth_of_a_disc_is_its_radius():
    rows, cols = np.mgrid[:60, :60] + 0.5
    depth = _depth(np.hypot(rows - 30, cols - 30) < 25)
    assert depth.max() == pytest.approx(25, rel=0.15)
    assert (depth[0] == 0).all()


def test_a_fixed_ground_may_have_any_pattern():
    rows, cols = np.mgrid[:120, :160]
    pattern = np.where((rows // 15 + cols // 15) % 2, 60, 190)[..., None].repeat(3, 2).astype(np.uint8)

    def picture(seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        image = pattern.copy()
        for x in rng.permutation(4)[:count]:
            y = rng.integers(20, 100)
            image[np.hypot(rows - y, cols - (20 + 40 * x)) < 12] = (220, 30, 30)
        return image

    parser = Parts(names=("disc",), background="fixed").fit([sample(picture(i, 2)) for i in range(9)])
    assert counts(parser.parse(sample(picture(50, 3)))) == {"disc": 3}


def test_large_pictures_are_measured_at_their_own_size():
    def large(seed: int, shapes: str) -> np.ndarray:
        return tray(seed, shapes=shapes).repeat(8, axis=0).repeat(8, axis=1)  # 1280 x 960

    parser = Parts(names=("disc",)).fit([sample(large(i, "dd")) for i in range(2)])
    parsed = parser.parse(sample(large(50, "d")))
    assert parsed.masks[0].shape == (960, 1280)
    assert parsed.scene.objects[0].length == pytest.approx(24 * 8, rel=0.1)


def test_the_same_pictures_give_the_same_parser():
    one, two = (Parts().fit([sample(tray(i)) for i in range(4)]) for _ in range(2))
    first, second = parsers.to_state(one)["learned"], parsers.to_state(two)["learned"]
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_parts_refuse_what_they_cannot_learn_from():
    with pytest.raises(NotFitted, match="only after fit"):
        Parts().parse(sample(tray(0)))
    with pytest.raises(WrongInput, match="got none"):
        Parts().fit([])
    with pytest.raises(WrongInput, match="nothing stands out"):
        Parts().fit([sample(tray(i, shapes="")) for i in range(3)])
    with pytest.raises(WrongInput, match=r"3 kinds .* have 1 parts"):
        Parts(kinds=3).fit([sample(tray(0, shapes="d"))])
    for wrong in ({"names": ("a", "a")}, {"names": ("a",), "kinds": 2}, {"kinds": 0}, {"background": "sky"}):
        with pytest.raises(WrongInput, match="give"):
            Parts(**wrong)
    with pytest.raises(WrongInput, match="above 0"):
        Parts(sensitivity=0)


def test_thousands_of_small_things_fit_in_memory():
    picture = np.zeros((512, 512, 3), np.uint8)
    for y in range(4, 508, 8):
        for x in range(4, 508, 8):
            picture[y : y + 4, x : x + 5] = (255, 0, 0)
    tracemalloc.start()
    parsed = ColorBlobs({"spot": "red"}).parse(sample(picture))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(parsed.masks) == 63 * 63
    assert peak < 63 * 63 * 512 * 512 / 10  # a whole mask for each of them would take ten times as much
    assert np.array_equal(np.flatnonzero(parsed.masks[-1].any(axis=1)), np.arange(500, 504))
