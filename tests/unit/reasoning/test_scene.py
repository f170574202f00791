"""Objects are measured as their definitions say, and scenes survive being written."""

from __future__ import annotations

import colorsys
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalens.errors import WrongInput
from anomalens.reasoning.scene import (
    Masks,
    Scene,
    convex_hull,
    cut_out,
    grid,
    measure,
    place_regions,
    rounded,
    smallest_rectangle,
    statistics,
    to_hsv,
)
from anomalens.regions import label as components

GREY = np.full((40, 60, 3), 128, np.uint8)


def one(mask: np.ndarray, image: np.ndarray = GREY, **more):
    return measure([mask], ["thing"], image, **more).scene.objects[0]


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(GREY.shape[:2], bool)
    mask[y0:y1, x0:x1] = True
    return mask


def tilted(degrees: float, length: float = 30, thickness: float = 8, size: int = 400, scale: int = 10) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (abs(x * c + y * s) <= length * scale / 2) & (abs(y * c - x * s) <= thickness * scale / 2)


def test_a_box_is_measured_by_its_pixel_squares():
    thing = one(box(10, 5, 30, 15))
    assert (thing.area, thing.area_frac) == (200, rounded(200 / 2400))
    assert thing.bbox == (10, 5, 30, 15)
    assert thing.center == (20.0, 10.0)
    assert (thing.length, thing.thickness, thing.angle) == (20.0, 10.0, 0.0)
    assert (thing.aspect, thing.fill, thing.score) == (2.0, 1.0, 1.0)


def test_one_pixel_is_a_unit_square():
    thing = one(box(3, 4, 4, 5))
    assert (thing.length, thing.thickness, thing.angle, thing.fill) == (1.0, 1.0, 0.0, 1.0)
    assert thing.center == (3.5, 4.5)


def test_an_upright_box_lies_at_minus_90_degrees_which_is_in_the_range():
    thing = one(box(10, 5, 14, 25))
    assert (thing.length, thing.thickness, thing.angle) == (20.0, 4.0, -90.0)


@pytest.mark.parametrize("degrees", [-80, -45, -20, 0, 10, 30, 60, 85])
def test_a_tilted_bar_has_its_own_length_and_angle(degrees):
    mask = tilted(degrees)
    thing = one(mask, np.zeros((*mask.shape, 3), np.uint8))
    assert thing.length == pytest.approx(300, abs=3)
    assert thing.thickness == pytest.approx(80, abs=3)
    assert thing.angle == pytest.approx(degrees, abs=0.5)  # y points down: positive falls to the right


def slow_rectangle(points: np.ndarray) -> float:
    """Least area over directions through any two points: the hull's edges are among them."""
    best = np.inf
    for a in points:
        for b in points:
            if (a != b).any():
                u = (b - a) / np.hypot(*(b - a))
                along, across = points @ u, points @ np.array([-u[1], u[0]])
                best = min(best, np.ptp(along) * np.ptp(across))
    return best


@settings(max_examples=40)
@given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=7))
def test_the_rectangle_is_the_smallest_of_all(pixels):
    x, y = np.array(sorted(pixels)).T
    corners = np.concatenate([np.stack([x + i, y + j], 1) for i in (0, 1) for j in (0, 1)]).astype(float)
    length, thickness, angle = smallest_rectangle(corners)
    assert length >= thickness
    assert -90 <= angle < 90
    assert length * thickness == pytest.approx(slow_rectangle(corners))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12))
def test_every_point_is_inside_of_the_hull_and_no_corner_is_flat(points):
    points = np.array(points, float)
    hull = convex_hull(points)
    if len(hull) < 3:
        return  # all on one line
    edges = np.roll(hull, -1, axis=0) - hull
    for a, edge in zip(hull, edges, strict=True):
        offset = points - a
        assert (edge[0] * offset[:, 1] - edge[1] * offset[:, 0] >= 0).all()
    following = np.roll(edges, -1, axis=0)
    assert (edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0] > 0).all()


def test_hue_is_averaged_on_the_circle_and_weighted_by_saturation():
    image = GREY.copy()
    image[:, :2] = (255, 0, 21)  # hue near 355
    image[:, 2:4] = (255, 21, 0)  # hue near 5
    image[:, 4:6] = (128, 128, 128)  # grey has no say
    thing = one(box(0, 0, 6, 40), image)
    assert min(thing.hsv[0], 360 - thing.hsv[0]) < 0.5
    assert thing.hsv[1] == pytest.approx(2 / 3, abs=1e-5)
    assert thing.hsv[2] == pytest.approx((255 + 255 + 128) / 3 / 255, abs=1e-5)
    assert thing.rgb == pytest.approx(image[:, :6].reshape(-1, 3).mean(0), abs=1e-3)


def test_grey_has_hue_zero():
    assert one(box(0, 0, 5, 5)).hsv[:2] == (0.0, 0.0)


def test_conversion_agrees_with_the_standard_library():
    rng = np.random.default_rng(0)
    rgb = np.concatenate([rng.random((200, 3)), np.eye(3), [[0, 0, 0], [1, 1, 1], [1, 1, 0]]])
    expected = [[h * 360, s, v] for h, s, v in (colorsys.rgb_to_hsv(*c) for c in rgb)]
    np.testing.assert_allclose(to_hsv(rgb), expected, atol=1e-9)


def test_16_bit_pictures_are_measured_in_the_same_unit():
    deep = np.full((40, 60, 3), 65535, np.uint16)
    assert one(box(0, 0, 5, 5), deep).rgb == (255.0, 255.0, 255.0)


def test_objects_and_masks_stay_together_and_empty_masks_are_left_out():
    parsed = measure([box(0, 0, 2, 2), box(0, 0, 0, 0), box(5, 5, 9, 9)], ["a", "b", "c"], GREY, scores=[0.5, 0.6, 0.7])
    assert [(o.id, o.label, o.score) for o in parsed.scene.objects] == [(0, "a", 0.5), (1, "c", 0.7)]
    assert [mask.sum() for mask in parsed.masks] == [4, 16]
    assert np.array_equal(parsed.masks[-1], box(5, 5, 9, 9))
    assert [np.array_equal(mask, box(0, 0, 2, 2)) for mask in parsed.masks[:1]] == [True]


def test_floats_have_six_significant_digits():
    y, x = np.nonzero(np.random.default_rng(1).random((40, 60)) < 0.3)
    mask = np.zeros((40, 60), bool)
    mask[y, x] = True
    content = json.dumps(measure([mask], ["a"], GREY).scene.to_dict())
    numbers = [
        v for v in json.loads(content, parse_float=str)["objects"][0].values() if isinstance(v, str) and v[0].isdigit()
    ]
    assert numbers
    assert all(len(v.replace(".", "").lstrip("0")) <= 6 for v in numbers)
    assert rounded(-0.0) == 0.0
    assert str(rounded(-0.0)) == "0.0"


def test_a_scene_survives_being_written():
    parsed = measure(
        [box(1, 2, 9, 8)],
        ["nut"],
        GREY,
        attributes=[{"clamps": 3, "kind": "m4", "shiny": True, "pitch": 1 / 3}],
        category="bag",
        image_id="test/000.png",
        regions={"left": (0, 0, 0.5, 1), "hole": (3, 4, 30, 40)},
    )
    scene = parsed.scene.with_stats(statistics([parsed.scene]))
    text = json.dumps(scene.to_dict())
    assert json.loads(text)["schema"] == "logicode.scene/1"
    again = Scene.from_dict(json.loads(text))
    assert again.to_dict() == scene.to_dict()
    assert again.objects == scene.objects
    assert again.regions == {"left": (0, 0, 30, 40), "hole": (3, 4, 30, 40)}
    assert scene.objects[0].attributes["pitch"] == 0.333333


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(schema="logicode.scene/2"),
        lambda c: c.pop("objects"),
        lambda c: c.pop("width"),
        lambda c: c.update(extra=1),
        lambda c: c["objects"][0].pop("fill"),
        lambda c: c["objects"][0].update(secret=1),
        lambda c: c.update(regions=[1]),
        lambda c: c.update(regions={"a": [1, 2]}),
    ],
)
def test_what_is_no_scene_is_refused(spoil):
    content = measure([box(1, 2, 9, 8)], ["nut"], GREY).scene.to_dict()
    spoil(content)
    with pytest.raises(WrongInput, match="scene"):
        Scene.from_dict(content)


def test_statistics_are_over_objects_and_counts_over_scenes():
    first = measure([box(0, 0, 4, 4), box(10, 0, 16, 4)], ["a", "a"], GREY).scene
    second = measure([box(0, 0, 2, 2)], ["b"], GREY).scene
    stats = statistics([first, second])
    assert stats["a"]["count"] == {"n": 2, "mean": 1.0, "std": 1.0, "min": 0.0, "max": 2.0}
    assert stats["a"]["area"] == {"n": 2, "mean": 20.0, "std": 4.0, "min": 16.0, "max": 24.0}
    assert stats["a"]["x1"]["max"] == 16
    assert stats["b"]["count"]["n"] == 2
    assert stats["b"]["center_y"]["mean"] == 1.0


def test_statistics_know_numeric_attributes():
    scene = measure([box(0, 0, 4, 4)], ["a"], GREY, attributes=[{"clamps": 3, "name": "x", "ok": True}]).scene
    table = statistics([scene])["a"]
    assert table["attributes.clamps"]["mean"] == 3
    assert not {"attributes.name", "attributes.ok"} & table.keys()


def test_regions_are_fractions_or_pixels():
    placed = place_regions({"left": (0, 0, 0.5, 1), "one": (0, 0, 1, 1), "box": (2, 3, 4, 5)}, 60, 40)
    assert placed == {"left": (0, 0, 30, 40), "one": (0, 0, 60, 40), "box": (2, 3, 4, 5)}


@pytest.mark.parametrize(
    "bad",
    [(0, 0, 1), (1, 0, 0, 1), (0, 1, 1, 1), "left", None, (0, 0, "a", 1), (0, 0, math.nan, 1), (0, 0, math.inf, 1)],
)
def test_a_bad_region_is_named(bad):
    with pytest.raises(WrongInput, match="region 'left'"):
        place_regions({"left": bad}, 10, 10)


def test_a_grid_is_numbered_by_row_and_column():
    cells = grid(2, 3, (0, 0, 0.6, 1))
    assert list(cells) == ["cell_1_1", "cell_1_2", "cell_1_3", "cell_2_1", "cell_2_2", "cell_2_3"]
    assert cells["cell_2_3"] == pytest.approx((0.4, 0.5, 0.6, 1))
    with pytest.raises(WrongInput, match="0 x 3"):
        grid(0, 3)


def test_wrong_calls_are_one_sentence():
    with pytest.raises(WrongInput, match=r"2 labels came with 1 masks"):
        measure([box(0, 0, 1, 1)], ["a", "b"], GREY)
    with pytest.raises(WrongInput, match=r"mask 0 \(a\) is \(3, 3\)"):
        measure([np.ones((3, 3), bool)], ["a"], GREY)


def test_places_are_cut_out_in_order():
    numbered, count = components(np.random.default_rng(0).random((40, 50)) > 0.6)
    cuts = cut_out(numbered, 3)
    whole = [numbered == i for i in range(1, count + 1)]
    whole = [mask for mask in whole if mask.sum() >= 3]
    assert len(cuts) == len(whole) > 10
    assert all(np.array_equal(a, b) for a, b in zip(Masks(tuple(cuts), (40, 50)), whole, strict=True))
    grey = np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    labels = ["a"] * len(cuts)
    assert measure(cuts, labels, grey).scene == measure(whole, labels, grey).scene
    assert cut_out(np.zeros((4, 4), int), 1) == []
