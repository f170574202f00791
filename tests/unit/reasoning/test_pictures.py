"""Clouds, clips, series and lights as pictures, against shapes whose picture is known, and back from boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anomalens.errors import WrongInput
from anomalens.reasoning.pictures import (
    GAP,
    MARGIN,
    PLOT,
    clips,
    crops,
    frame_scores,
    in_cell,
    kind_of,
    likeness,
    marked,
    on_its_grid,
    plot,
    show,
    spread,
    starts,
    tiled,
    unlikeness,
)
from anomalens.reasoning.point_clouds import (
    ALBEDO,
    FILL,
    HALF,
    LIGHT,
    NINE,
    estimated_normals,
    points_in,
    render,
    rotation,
)
from anomalens.types import Region, Sample, View

S = 448


def sample(id: str = "a", **views) -> Sample:
    return Sample(id, {name: View(name, lambda v=v: v) for name, v in views.items()})


def sphere(n: int) -> np.ndarray:
    """Evenly spread points on the unit sphere (a Fibonacci spiral)."""
    i = np.arange(n)
    z = 1 - (2 * i + 1) / n
    turn = i * math.pi * (3 - math.sqrt(5))
    return np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1)


def plane(side: int, height=0.0, camera: bool = False) -> np.ndarray:
    """An organised square in [-1, 1], rows from top to bottom; height (side, side) towards the viewer."""
    y, x = np.mgrid[1 : -1 : side * 1j, -1 : 1 : side * 1j]
    z = np.broadcast_to(height, x.shape) + 0.0
    return np.stack([x, -y, 5 - z], axis=-1) if camera else np.stack([x, y, z], axis=-1)


def is_background(picture: np.ndarray) -> np.ndarray:
    return (picture == 255).all(axis=2)


def expected_shade(normal) -> float:
    n = np.asarray(normal, float) / np.linalg.norm(normal)
    return ALBEDO * (0.25 + 0.65 * max(0, n @ LIGHT) + 0.10 * max(0, n @ HALF) ** 16)


# Clouds.


def test_a_sphere_has_the_outline_of_a_disc():
    views = render(sphere(60_000))
    assert len(views) == len(NINE) == 9
    for view in views:
        area = (~is_background(view.picture)).sum()
        assert area == pytest.approx(math.pi * (FILL * S) ** 2, rel=0.02)


def test_a_sphere_is_shaded_by_its_normals():
    (view,) = render(sphere(20_000), angles=((0, 0),))
    for x, y in ((0, 0), (0.5, 0.3), (-0.6, 0.2), (0.1, -0.7)):
        normal = (x, y, math.sqrt(1 - x * x - y * y))
        u, v = int((FILL * x + 0.5) * S), int((0.5 - FILL * y) * S)
        assert view.picture[v, u, 0] / 255 == pytest.approx(expected_shade(normal), abs=0.02)


@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize("organised", [True, False])
def test_a_plane_that_faces_the_viewer_has_one_shade(organised, camera):
    points = plane(80, camera=camera)
    if camera and not organised:
        points = plane(80)  # without rows nothing tells the axes
    (view,) = render(points if organised else points.reshape(-1, 3), angles=((0, 0),))
    inside = view.picture[~is_background(view.picture)]
    assert (inside == round(255 * expected_shade((0, 0, 1)))).all()
    side = 2 * FILL * S / math.sqrt(2)  # the corners lie on the unit sphere
    assert len(inside) == pytest.approx(side**2, rel=0.05)


def test_axes_of_a_camera_are_turned_to_ours():
    height = np.zeros((60, 60))
    height[5:15, 40:55] = 0.3  # near the top, at the right
    ours, theirs = (render(plane(60, height, camera), angles=((20, 10),))[0] for camera in (False, True))
    assert np.array_equal(ours.picture, theirs.picture)
    (view,) = render(plane(60, height, camera=True), angles=((0, 0),), mode="depth")
    row, column = np.divmod(view.pixel.reshape(60, 60)[5:15, 40:55], S)
    assert row.max() < S / 2 < column.min()
    assert (view.picture[row, column] == 255).all()  # near is bright


def test_the_nearer_point_hides_the_other():
    far = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60), [-0.2]), -1).reshape(-1, 3)
    near = far[(abs(far[:, 0]) < 0.3) & (abs(far[:, 1]) < 0.3)] + [0, 0, 0.4]
    colours = np.concatenate([np.full_like(far, 0), np.full_like(near, 0)]).astype(np.uint8)
    colours[: len(far), 2], colours[len(far) :, 0] = 255, 255
    for order in (slice(None), slice(None, None, -1)):
        points, rgb = np.concatenate([far, near])[order], colours[order]
        (view,) = render(points, rgb, mode="rgb", angles=((0, 0),))
        middle, edge = view.picture[S // 2, S // 2], view.picture[S // 2, int(0.24 * S)]
        assert middle[0] > 100 > middle[2]
        assert edge[2] > 100 > edge[0]


def bumpy(side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A plane with a smooth bump, and where the bump is, without its foot and its very top."""
    y, x = np.mgrid[1 : -1 : side * 1j, -1 : 1 : side * 1j]
    r = np.hypot(x - 0.3, y - 0.2) / 0.25
    height = 0.15 * np.where(r < 1, np.cos(r * math.pi / 2) ** 2, 0)
    return plane(side, height), (r < 0.9) & (r > 0.1)


def test_a_bump_changes_its_pixels():
    points, bump = bumpy()
    (with_bump,), (without,) = (render(p, angles=((0, 0),)) for p in (points, plane(160)))
    pixel = with_bump.pixel.reshape(160, 160)[bump]
    changed = (with_bump.picture != without.picture).any(axis=2).ravel()[pixel[pixel >= 0]]
    assert (pixel >= 0).mean() > 0.9
    assert changed.mean() >= 0.9


@pytest.mark.parametrize("organised", [True, False])
def test_boxes_lead_back_to_the_bump(organised):
    points, bump = bumpy()
    flat, inside = points.reshape(-1, 3), bump.ravel()
    views = render(points if organised else flat)
    boxes = []
    for (a, b), view in zip(NINE, views, strict=True):
        pixel = view.pixel[inside]
        row, column = np.divmod(pixel[pixel >= 0], S)
        boxes.append([(column.min(), row.min(), column.max() + 1, row.max() + 1)])
        centre = (flat[inside].mean(axis=0) - flat.mean(axis=0)) / np.linalg.norm(
            flat - flat.mean(axis=0), axis=1
        ).max()
        u = (FILL * (rotation(a, b) @ centre)[0] + 0.5) * S
        assert boxes[-1][0][0] < u < boxes[-1][0][2]
    found = points_in(views, boxes)
    assert found[inside].mean() > 0.98
    assert found.sum() < 1.6 * inside.sum()  # boxes have corners
    one = points_in(views, [*[[]] * 4, boxes[4], *[[]] * 4])  # views without any box do not vote
    assert one[inside].mean() > 0.9
    assert not points_in(views, [[]] * 9).any()


def test_a_box_needs_half_of_the_views_that_vote():
    points, bump = bumpy()
    views = render(points)
    row, column = np.divmod(views[4].pixel.reshape(160, 160)[bump], S)
    box = (column.min(), row.min(), column.max(), row.max())
    elsewhere = (0, 0, 1, 1)
    assert not points_in(views, [[box] if i == 4 else [elsewhere] for i in range(9)])[bump.ravel()].any()


def test_holes_and_steps_stay_open():
    height = np.zeros((120, 120))
    height[:, 60:] = 0.8  # a step: no wall is drawn
    points = plane(120, height)
    points[50:70, 20:40] = 0  # a hole: missing
    points[0, 0] = np.nan
    view, turned = render(points, angles=((0, 0), (0, 40)))
    assert (view.pixel.reshape(120, 120)[50:70, 20:40] == -1).all()
    assert view.pixel[0] == -1
    corner = view.pixel.reshape(120, 120)
    row, column = (corner[60, 19] // S, (corner[60, 19] % S + corner[60, 40] % S) // 2)
    assert is_background(view.picture)[row, column]
    filled = ~is_background(turned.picture)
    gaps = [np.diff(np.flatnonzero(line)).max(initial=1) for line in filled[S // 2 - 5 : S // 2 + 5]]
    assert max(gaps) > 5  # between the levels


def test_a_coarse_grid_has_no_gaps_inside():
    for angles in ((0, 0), (30, -30)):
        (view,) = render(plane(12), angles=(angles,))
        filled = ~is_background(view.picture)
        assert all(len(line) == np.ptp(line) + 1 for line in map(np.flatnonzero, filled) if len(line))


def test_depth_is_bright_where_it_is_near():
    ramp = plane(50, np.linspace(0, 1, 50)[None])
    (view,) = render(ramp, angles=((0, 0),), mode="depth")
    line = view.picture[S // 2, :, 0].astype(int)
    inside = line[np.flatnonzero(~is_background(view.picture)[S // 2])]
    assert (np.diff(inside) >= 0).all()
    assert inside[0] == 0
    assert inside[len(inside) // 2] == pytest.approx(127, abs=4)


@pytest.mark.parametrize("organised", [True, False])
def test_the_ground_can_be_left_out(organised):
    height = np.zeros((100, 100))
    height[40:60, 40:60] = 0.4
    points = plane(100, height)
    points = points if organised else points.reshape(-1, 3)
    (view,) = render(points, angles=((0, 0),), without_plane=True)
    seen = (view.pixel >= 0).reshape(100, 100)
    assert seen[40:60, 40:60].all()
    assert seen.sum() == 400
    inner = points.reshape(100, 100, 3)[30:70, 30:70].copy()
    inner[:5] = inner[-5:] = inner[:, :5] = inner[:, -5:] = (
        0  # the plane ends before the sides: it is part of the thing
    )
    (whole,) = render(inner, angles=((0, 0),), without_plane=True)
    assert (whole.pixel >= 0).sum() == 30 * 30


def test_normals_point_away_from_a_sphere():
    points = sphere(5000) * [1, 1, 1] + [100, -50, 7]  # far from the origin
    normals = estimated_normals(points)
    away = points - [100, -50, 7]
    assert (abs((normals * away).sum(axis=1)) > 0.995).mean() > 0.99
    assert (normals[:, 2] >= 0).all()


def test_normals_of_few_and_of_equal_points():
    assert np.isfinite(estimated_normals(np.zeros((5, 3)))).all()
    assert np.isfinite(estimated_normals(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]))).all()


def test_rendering_gives_the_same_bytes():
    points = np.random.default_rng(0).normal(size=(5000, 3))
    a, b = (b"".join(v.picture.tobytes() for v in render(points)) for _ in range(2))
    assert a == b


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.zeros(3), np.zeros((9, 3)), np.full((5, 5, 3), np.nan)])
def test_what_is_no_cloud_is_refused(points):
    with pytest.raises(WrongInput, match=r"point cloud"):
        render(points)
    with pytest.raises(WrongInput, match="sample part: "):
        show(sample("part", points=points))


def test_colours_must_fit():
    with pytest.raises(WrongInput, match="same shape"):
        render(plane(5), np.zeros((4, 5, 3), np.uint8), mode="rgb")


def test_a_cloud_as_a_tiled_picture():
    points, bump = bumpy(80)
    shown = show(sample(points=points))
    assert shown.kind == "points"
    assert shown.size == (80, 80)
    assert shown.picture.shape == (3 * S + 2 * GAP, 3 * S + 2 * GAP, 3)
    x0, y0, _, _ = shown.cells[4]  # a box in the front view, in thousandths of the whole
    row, column = np.divmod(shown.views[4].pixel.reshape(80, 80)[bump], S)
    h, w = shown.picture.shape[:2]
    box = ((x0 + column.min()) * 1000 / w, (y0 + row.min()) * 1000 / h, (x0 + column.max() + 1) * 1000 / w,
           (y0 + row.max() + 1) * 1000 / h)  # fmt: skip
    mask = shown.mask([box])
    assert mask[bump].mean() > 0.95
    place = shown.place(box)
    assert place.words == "view 5"
    bx0, by0, bx1, by1 = place.box
    assert mask[by0:by1, bx0:bx1].mean() > 0.7
    assert not mask[:by0].any()
    assert show(sample(points=points.reshape(-1, 3))).mask([box]) is None
    assert show(sample(points=points), sides=1).picture.shape == (S, S, 3)


# Clips.


def test_frames_are_spread_evenly():
    for count in (1, 8, 9, 10, 100, 181):
        expected = range(count) if count <= 9 else [math.floor((i + 0.5) * count / 9 - 0.5 + 0.5) for i in range(9)]
        assert spread(count, 9) == list(expected)
    assert spread(18, 9) == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_a_clip_reads_only_the_frames_it_shows():
    read = []

    def frame(i: int) -> np.ndarray:
        read.append(i)
        return np.full((24, 36, 3), i, np.uint8)

    views = {
        f"frame_{i}": View(f"frame_{i}", lambda i=i: frame(i)) for i in (11, 2, 10, *range(3, 10), 1, *range(12, 20))
    }
    shown = show(Sample("clip", views), fps=10)
    assert shown.kind == "video"
    assert read == [1 + i for i in spread(19, 9)]  # in order of time, not of names
    assert shown.picture.shape == (3 * 256 + 2 * GAP, 3 * 384 + 2 * GAP, 3)
    assert shown.names[0] == f"frame {read[0]} ({read[0] / 10:.2f} s)"
    x0, y0, x1, y1 = shown.cells[5]
    assert (shown.picture[(y0 + y1) // 2, (x0 + x1) // 2] == read[5]).all()  # row by row
    assert (shown.picture[256 : 256 + GAP] == 255).all()
    h, w = shown.picture.shape[:2]
    place = shown.place((1000 * x0 / w, 1000 * y0 / h, 1000 * (x0 + 192) / w, 1000 * y1 / h))
    assert place.words == shown.names[5]
    assert place.box == (0, 0, 18, 24)
    assert shown.mask([(0, 0, 10, 10)]) is None


def test_captions_are_burnt_in_with_an_outline():
    shown = tiled("video", [np.full((100, 100, 3), 128, np.uint8)] * 2, ["7", "8"])
    (x0, y0, *_), (x1, y1, *_) = shown.cells
    first, second = shown.picture[y0 : y0 + 40, x0 : x0 + 40], shown.picture[y1 : y1 + 40, x1 : x1 + 40]
    for corner in (first, second):
        assert (corner == 255).all(axis=2).any()
        assert (corner == 0).all(axis=2).any()
    assert not np.array_equal(first, second)
    assert (shown.picture[200:300, 50:300] == 128).all()


def test_windows_cover_all_frames():
    assert starts(0) == []
    assert starts(5) == [0]
    assert starts(16) == [0]
    assert starts(30) == [0, 8, 14]
    assert starts(32) == [0, 8, 16]
    with pytest.raises(WrongInput, match="hop"):
        starts(10, hop=0)


def test_clips_and_their_scores():
    frames = [
        Sample(f"v/{i:03}.png", {"image": View("image", lambda: None)}, "v", label=int(i == 20)) for i in range(30)
    ]
    found = clips(frames)
    assert [c.id for c in found] == ["v/000.png+16", "v/008.png+16", "v/014.png+16"]
    assert [c.label for c in found] == [0, 1, 1]
    assert list(found[2].views) == [f"frame_{i}" for i in range(14, 30)]
    scores = frame_scores([0.0, 0.5, 1.0], 30)
    expected = [np.mean([v for s, v in ((0, 0.0), (8, 0.5), (14, 1.0)) if s <= i < s + 16]) for i in range(30)]
    assert np.allclose(scores, expected)
    assert frame_scores([math.nan, 0.5, 1.0], 30)[9] == 0.5
    assert np.isnan(frame_scores([math.nan, 0.5, 1.0], 30)[3])
    with pytest.raises(WrongInput, match="image"):
        clips([sample(depth=np.zeros((2, 2, 3), np.uint8))])


def test_a_box_between_tiles_belongs_to_the_nearest():
    cells = [(0, 0, 100, 100), (110, 0, 210, 100)]
    assert in_cell((0, 0, 400, 1000), (100, 210), cells)[0] == 0
    cell, inside = in_cell((104 / 0.21, 0, 107 / 0.21, 1000), (100, 210), cells)
    assert cell == 1
    assert inside[0] == inside[2] == 0


# Series, lights, pictures.


def test_a_curve_lies_where_its_values_are():
    values = np.zeros(101)
    values[50] = 2.0
    shown = plot(values)
    assert shown.picture.shape == (*PLOT, 3)
    coloured = (shown.picture == (31, 119, 180)).all(axis=2)
    top, right, bottom, left = MARGIN
    columns = np.flatnonzero(coloured[top + 10 : top + 60].any(axis=0))  # near the peak
    assert abs(columns.mean() - (left + (PLOT[1] - left - right) / 2)) < 3
    rows = np.flatnonzero(coloured[:, left + 40])
    assert abs(rows.mean() - (PLOT[0] - bottom)) < 2
    box = (columns.min() / PLOT[1] * 1000, 0, columns.max() / PLOT[1] * 1000, 500)
    first, last = shown.span(box)
    assert first <= 50 <= last
    assert last - first <= 4
    assert shown.place(box).words == f"from {first} to {last}"


def test_curves_of_odd_series():
    two = plot(np.stack([np.arange(50.0), np.arange(50.0)[::-1]], axis=1)).picture
    assert (two == (31, 119, 180)).all(axis=2).any()
    assert (two == (214, 39, 40)).all(axis=2).any()
    gap = np.sin(np.arange(100.0))
    gap[40:60] = np.nan
    drawn = (plot(gap).picture == (31, 119, 180)).all(axis=2)
    _, right, _, left = MARGIN
    hole = slice(left + round(0.42 * (PLOT[1] - left - right)), left + round(0.58 * (PLOT[1] - left - right)))
    assert not drawn[:, hole].any()
    assert plot(np.full(10, 3.0)).picture.shape == (*PLOT, 3)
    assert plot(np.array([1.0])).span((0, 0, 1000, 1000)) == (0, 0)
    for values in (np.zeros(0), np.full(4, np.nan), np.zeros((2, 2, 2))):
        with pytest.raises(WrongInput, match="time series"):
            show(sample(series=values))


def test_lights_share_one_scene():
    lights = {f"light_{k}": np.full((40, 60, 3), 40 * k, np.uint8) for k in range(4)}
    shown = show(sample(**lights, image=np.zeros((40, 60, 3), np.uint8)))
    assert shown.kind == "lights"
    assert shown.size == (40, 60)
    x0, y0, x1, y1 = shown.cells[3]
    h, w = shown.picture.shape[:2]
    box = (1000 * (x0 + x1) / 2 / w, 1000 * y0 / h, 1000 * x1 / w, 1000 * (y0 + y1) / 2 / h)
    place = shown.place(box)
    assert place.words == "light 3"
    assert place.box == (30, 0, 60, 20)
    mask = shown.mask([box])
    assert mask[:20, 30:].all()
    assert mask.sum() == 600


def test_a_box_on_a_picture():
    shown = show(sample(image=np.zeros((50, 200, 3), np.uint8)))
    assert shown.place((0, 0, 1000, 1000)).box == (0, 0, 200, 50)
    assert shown.place((999.9, 999.9, 1000, 1000)).box == (199, 49, 200, 50)
    assert shown.place((250, 500, 500, 700)).box == (50, 25, 100, 35)
    assert shown.mask([(0, 0, 10, 20), (990, 980, 1000, 1000)]).sum() == 4
    assert shown.mask([]).sum() == 0


def test_the_kind_of_a_sample():
    picture = np.zeros((4, 4, 3), np.uint8)
    assert kind_of(sample(image=picture)) == "image"
    assert kind_of(sample(image=picture, points=picture)) == "points"
    assert kind_of(sample(frame_0=picture, image=picture)) == "video"
    assert show(sample(image=picture, points=picture), "image").kind == "image"
    with pytest.raises(WrongInput, match=r"a has views \('depth',\)"):
        kind_of(sample(depth=picture))
    with pytest.raises(WrongInput, match="series"):
        show(sample(image=picture), "series")


def test_crops_overlap_and_cover():
    picture = np.arange(100 * 60 * 3, dtype=np.uint16).reshape(100, 60, 3)
    parts = crops(picture, 2, 2)
    assert [p.shape for p in parts] == [(53, 32, 3)] * 4
    assert np.array_equal(parts[0][0, 0], picture[0, 0])
    assert np.array_equal(parts[3][-1, -1], picture[-1, -1])
    assert np.array_equal(parts[0][-1, -1], picture[52, 31])
    assert np.array_equal(parts[3][0, 0], picture[47, 28])


def test_marks_are_outlined_and_numbered():
    picture = np.full((200, 200, 3), 100, np.uint8)
    mask = np.zeros((200, 200), bool)
    mask[120:160, 30:80] = True
    out = marked(picture, [Region((100, 20, 150, 60), 2000, 1.0), mask])
    assert (picture == 100).all()
    yellow = (out == (255, 255, 0)).all(axis=2)
    assert yellow[20, 110:140].all()  # a region without an outline by its box
    assert yellow[120, 50:75].all()  # a mask
    assert (out[25:55, 125:145] == 100).all()
    assert (out[:, 170:] == 100).all()
    white = (out == 255).all(axis=2)
    assert white[20:45, 100:125].any()
    assert white[120:145, 30:55].any()


def test_likeness_knows_colour_and_layout():
    rng = np.random.default_rng(0)
    red, blue = (np.zeros((40, 40, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 200, 200
    half = red.copy()
    half[20:] = 0
    noisy = np.clip(red + rng.integers(0, 5, red.shape), 0, 255).astype(np.uint8)
    to = [float(unlikeness(likeness(red), likeness(p))) for p in (red, noisy, half, blue)]
    assert to[0] == 0
    assert to[1] < 0.05 < to[2]
    assert to[1] < to[3] <= 2
    assert likeness(red).shape == (64 + 1024,)
    assert likeness(red)[:64].sum() == pytest.approx(1)


def test_clouds_and_curves_for_people_lie_on_their_grid():
    y, x = np.mgrid[-1:1:20j, -1:1:30j]
    z = np.where((np.abs(x) < 0.3) & (np.abs(y) < 0.3), 1.0, 0.5)  # towards the viewer, y upwards
    points = np.stack([x, -y, z], -1)
    points[0, 0] = 0  # missing
    shown = on_its_grid(sample(points=points))
    assert shown.shape == (20, 30, 3)
    assert shown.dtype == np.uint8
    assert (shown[10, 15] > shown[2, 2]).all()
    assert (shown[0, 0] == 255).all()
    camera = np.stack([x, y, -z], -1)  # the same in the axes of a camera: a small z is near
    assert (on_its_grid(sample(points=camera))[10, 15] > on_its_grid(sample(points=camera))[2, 2]).all()
    assert np.array_equal(on_its_grid(sample(series=np.arange(9.0))), plot(np.arange(9.0)).picture)
    assert on_its_grid(sample(points=points.reshape(-1, 3))).shape == (1352, 1352, 3)  # nine views
