"""What a program sees of a picture, against values worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from anomalens.reasoning import program_api
from anomalens.reasoning.program_api import Image, checked_findings, methods, namespace, reference

from .benign import scene, thing


def image(*objects: dict, **fields) -> Image:
    return Image({"width": 160, "height": 120, "objects": list(objects), **fields})


def coloured(h: float, s: float, v: float):
    return image(thing(0, "x", hsv=[h, s, v])).find("x")[0]


def test_objects_come_from_top_to_bottom_then_left_to_right():
    drawn = image(thing(1, "a", 50, 20), thing(2, "a", 10, 20), thing(3, "a", 90, 10), thing(4, "b"))
    assert [o.id for o in drawn.find("a")] == [3, 2, 1]
    assert drawn.find("c") == []
    assert (drawn.count("a"), drawn.count("c"), drawn.exists("b"), drawn.exists("c")) == (3, 0, True, False)
    assert drawn.labels() == ["a", "b"]


def test_a_found_list_is_the_programs_own():
    drawn = image(thing(1, "a"))
    drawn.find("a").clear()
    assert drawn.count("a") == 1


@pytest.mark.parametrize(
    ("box", "mode", "inside"),
    [
        ((6, 6, 14, 14), "full", True),  # the box of the object exactly
        ((6.5, 6, 14, 14), "full", False),
        ((10, 10, 11, 11), "center", True),  # half-open: the low edge belongs to it
        ((0, 0, 10, 20), "center", False),  # and the high edge does not
        ((10, 6, 20, 14), "overlap", True),  # half of it is enough by default
        ((10.1, 6, 20, 14), "overlap", False),
    ],
)
def test_in_region(box, mode, inside):
    drawn = image(thing(1, "a", 10, 10), regions={"named": box})
    for place in (box, list(box), "named"):
        assert drawn.in_region(drawn.find("a")[0], place, mode) is inside


def test_in_region_overlap_can_be_stricter():
    drawn = image(thing(1, "a", 10, 10))
    assert not drawn.in_region(drawn.find("a")[0], (10, 6, 20, 14), "overlap", 0.51)
    with pytest.raises(ValueError, match="'centre'"):
        drawn.in_region(drawn.find("a")[0], (0, 0, 1, 1), "centre")


def test_cells_are_row_major_and_fill_the_box():
    assert image().cells((0, 0, 30, 20), 2, 3) == [
        (0, 0, 10, 10), (10, 0, 20, 10), (20, 0, 30, 10), (0, 10, 10, 20), (10, 10, 20, 20), (20, 10, 30, 20),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="0 rows"):
        image().cells((0, 0, 1, 1), 0, 3)


def test_boxes_and_centres():
    drawn = image(thing(1, "a", 10, 10), thing(2, "b", 14, 10), thing(3, "c", 40, 50))
    a, b, c = (drawn.find(label)[0] for label in "abc")
    assert drawn.iou(a, b) == pytest.approx(32 / 96)  # 4 x 8 shared of 64 + 64 - 32
    assert drawn.iou(a, c) == 0
    assert drawn.contains(a, b) == 0.5
    assert drawn.contains((0, 0, 160, 120), c) == 1
    assert drawn.contains(a, (5, 5, 5, 9)) == 0  # nothing is inside of which there is nothing
    assert drawn.distance(a, c) == pytest.approx(math.hypot(30, 40) / 200)
    assert drawn.left_of(a, b)
    assert not drawn.left_of(b, a)
    assert drawn.above(a, c)
    assert not drawn.above(a, b)


@pytest.mark.parametrize(
    ("hsv", "name"),
    [
        ((0, 1, 0.19), "black"), ((0, 0.14, 0.86), "white"), ((0, 0.14, 0.85), "grey"), ((14.9, 1, 1), "red"),
        ((15, 1, 0.55), "orange"), ((15, 1, 0.54), "brown"), ((45, 1, 1), "yellow"), ((70, 1, 1), "green"),
        ((170, 1, 1), "cyan"), ((200, 1, 1), "blue"), ((260, 1, 1), "purple"), ((290, 1, 1), "pink"),
        ((345, 1, 1), "red"), ((360, 1, 1), "red"),
    ],
)  # fmt: skip
def test_color_name(hsv, name):
    assert image().color_name(coloured(*hsv)) == name


def test_statistics_and_normal_range():
    drawn = Image(scene())
    area = drawn.stat("pin", "area")  # mean 64, std 4, min 50, max 80
    assert (area.n, area.mean, area.std, area.min, area.max) == (300, 64.0, 4.0, 50.0, 80.0)
    assert [drawn.normal(v, area) for v in (49.9, 50, 80, 80.1)] == [False, True, True, False]  # min and max are wider
    assert [drawn.normal(v, area, k=5) for v in (43.9, 44, 84, 84.1)] == [False, True, True, False]  # k sigma is
    with pytest.raises(KeyError, match="normal pictures had no 'nut'; they had: pin"):
        drawn.stat("nut", "area")
    with pytest.raises(KeyError, match="no statistics of 'size'; known: area, count"):
        drawn.stat("pin", "size")


def test_regions_are_named():
    assert Image(scene()).region("left") == (0, 0, 80, 120)
    with pytest.raises(KeyError, match="no region is named 'right'; known: all, left"):
        Image(scene()).region("right")


@pytest.mark.parametrize(
    "change",
    [
        lambda o, s: setattr(o, "area", 1),
        lambda o, s: delattr(o, "area"),
        lambda o, s: setattr(o, "new", 1),
        lambda o, s: o.attributes.update(hole=False),
        lambda o, s: o.attributes.pop("hole"),
        lambda o, s: o.attributes.__setitem__("hole", False),
        lambda o, s: setattr(s, "mean", 1),
        lambda o, s: o.bbox.__setitem__(0, 1),
    ],
)
def test_records_are_read_only(change):
    drawn = Image(scene())
    washer = drawn.find("washer")[0]
    with pytest.raises((TypeError, AttributeError)):
        change(washer, drawn.stat("pin", "area"))
    assert (washer.area, washer.attributes["hole"], washer.bbox[0]) == (64, True, 26)


def test_a_finding_is_complete_plain_and_bounded():
    drawn = image(thing(7, "a"), regions={"corner": [0, 0, 5, 5]})
    a = drawn.find("a")
    finding = drawn.finding("size", "x" * 400, rule="R1", objects=a, boxes=[(1, 2, 3, 4), "corner"], severity=3)
    assert finding == {
        "rule": "R1", "type": "size", "reason": "x" * 299 + "…", "objects": [7],
        "boxes": [[1, 2, 3, 4], [0, 0, 5, 5]], "severity": 1.0,
    }  # fmt: skip
    assert checked_findings([finding], {7}) == [finding]
    one = drawn.finding("size", "x", objects=a[0], boxes=(1, 2, 3, 4), severity=-2)
    assert (one["objects"], one["boxes"], one["severity"]) == ([7], [[1, 2, 3, 4]], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.finding("kind", "x"), "'kind'; use one of quantity"),
        (lambda i: i.finding("size", "x", severity=math.nan), "not a number"),
        (lambda i: i.finding("size", "x", boxes=[(1, 2, 3)]), "use an object, the name of a region, or a box"),
        (lambda i: Image({"width": 1, "height": 1}), "lacks the field 'objects'"),
        (lambda i: Image({"width": 1, "height": 1, "objects": [{"id": 1}]}), "lacks the field"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(image())


GOOD = {"type": "size", "reason": "r", "rule": "R1", "objects": [7], "boxes": [[0, 0, 1, 1]], "severity": 0.5}


def test_findings_by_hand_are_completed():
    assert checked_findings(({"type": "size", "reason": "a\x1b[31m\nb"},), ()) == [
        {"rule": "", "type": "size", "reason": "a [31m b", "objects": [], "boxes": [], "severity": 1.0}
    ]


@pytest.mark.parametrize(
    "answer",
    [
        None, 1, "size", {"type": "size", "reason": "r"}, [None], [[]], [{}], [{"type": "size"}], [{"reason": "r"}],
        [{**GOOD, "extra": 1}], [{**GOOD, "type": "kind"}], [{**GOOD, "type": []}], [{**GOOD, "reason": ""}],
        [{**GOOD, "reason": "x" * 301}], [{**GOOD, "reason": 3}], [{**GOOD, "rule": None}],
        [{**GOOD, "rule": "x" * 65}], [{**GOOD, "objects": [8]}], [{**GOOD, "objects": ["7"]}],
        [{**GOOD, "objects": 7}], [{**GOOD, "objects": [True]}], [{**GOOD, "boxes": [[0, 0, 1]]}],
        [{**GOOD, "boxes": [[0, 0, 1, math.nan]]}], [{**GOOD, "boxes": [[0, 0, 1, 10**9]]}],
        [{**GOOD, "severity": 1.1}], [{**GOOD, "severity": math.nan}], [{**GOOD, "severity": "1"}], [{1: 2}],
    ],
)  # fmt: skip
def test_anything_else_is_no_finding(answer):
    assert checked_findings([GOOD], {7, 1}) == [GOOD]
    with pytest.raises(ValueError, match=r"check returned|finding"):
        checked_findings(answer, {7, 1})


def test_the_reference_holds_every_method_field_and_name():
    text = reference()
    assert (
        "image.in_region(obj: Object, box_or_name: tuple | str, mode: str = 'center', min_overlap: float = 0.5)" in text
    )
    for name in methods():
        assert f"image.{name}(" in text
        assert getattr(Image, name).__doc__.split()[0] in text
    for name in (*program_api.OBJECT_FIELDS, *program_api.STAT_FIELDS, *program_api.BUILTINS, *program_api.MATH):
        assert name in text


def test_programs_get_these_builtins_and_no_more():
    names = namespace()
    assert set(names) == {"__builtins__", "__name__", "math"}
    assert set(names["__builtins__"]) == {*program_api.BUILTINS, *program_api.EXCEPTIONS}
    public = {name for name in vars(names["math"]) if not name.startswith("_")}
    assert public == set(program_api.MATH)
    assert names["math"].hypot(3, 4) == 5
    assert names["__builtins__"] is not namespace()["__builtins__"]


def test_it_imports_the_standard_library_alone():
    code = "import sys; sys.path.append(sys.argv[1]); import program_api; print(*sys.modules)"
    folder = str(Path(program_api.__file__).parent)
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code, folder], capture_output=True, text=True, check=True)
    foreign = {name.partition(".")[0] for name in run.stdout.split()} - sys.stdlib_module_names
    assert foreign == {"__main__", "program_api"}
