"""What makers draw, each by itself; what all of them owe is in tests/contract/test_makers.py."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from anomalens import synthesis
from anomalens.datasets.procedural import Procedural
from anomalens.errors import NotMade, WrongInput
from anomalens.images import encode
from anomalens.synthesis import _shapes, cutpaste, frequency, nsa, scratch, stain
from anomalens.synthesis._maker import Draft, closed, given, grow, is_grey, longest_side, measured
from anomalens.synthesis._places import busiest, elsewhere, healed, softened, standing_out, widened
from anomalens.synthesis._poisson import seamless, solve
from anomalens.types import Sample, View


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sample_of(picture: np.ndarray, name: str = "a.png") -> Sample:
    return Sample(name, {"image": View("image", partial(given, picture))}, label=0)


def noisy(shape: tuple[int, int] = (96, 96), level: float = 120, seed: int = 0) -> np.ndarray:
    return np.clip(rng(seed).normal(level, 12, (*shape, 3)), 0, 255).astype(np.uint8)


def with_disc(side: int = 96) -> np.ndarray:
    """A bright disc on an even dark ground."""
    y, x = np.mgrid[:side, :side]
    picture = np.full((side, side, 3), 60, np.uint8)
    picture[np.hypot(y - 0.5 * side, x - 0.5 * side) < 0.15 * side] = 220
    return picture


@pytest.fixture(scope="module")
def pill() -> Sample:
    return Procedural("pill", size=128, train_count=1).train()[0]


# --- masks and shapes -------------------------------------------------------------------------------------------------


def slow_grow(mask: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(mask, reach)
    shape = mask.shape
    return np.array([[padded[i : i + 2 * reach + 1, j : j + 2 * reach + 1].any() for j in range(shape[1])]
                     for i in range(shape[0])])  # fmt: skip


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_grow_reaches_a_square_around(reach):
    for seed in range(5):
        mask = rng(seed).random((9, 13)) < 0.1
        assert np.array_equal(grow(mask, reach), slow_grow(mask, reach))


def test_closed_fills_gaps_up_to_a_width_and_keeps_the_rest():
    mask = np.zeros((7, 20), bool)
    mask[1:6, [2, 5, 11]] = True  # gaps of 2 and of 5
    filled = closed(mask, 2)
    assert filled[2, [3, 4]].all()
    assert not filled[2, 6:11].any()
    assert (filled | ~mask).all()
    assert not filled[:, [0, 1, 12, 19]].any()


def test_longest_side_of_masks():
    mask = np.zeros((10, 10), bool)
    assert longest_side(mask) == 0
    mask[2, 3] = mask[4, 9] = True
    assert longest_side(mask) == 7


@pytest.mark.parametrize("draw", [_shapes.ellipse, _shapes.blob, cutpaste.scar, cutpaste.rectangle])
@pytest.mark.parametrize("length", [3, 10, 57, 200])
def test_shapes_have_the_length_asked_for(draw, length):
    for seed in range(5):
        cover = draw(length, rng(seed))
        assert max(cover.shape) == length
        assert 0 <= cover.min() <= cover.max() <= 1
        assert cover.max() > 0.5


def test_a_scar_is_thin_and_turned():
    assert max((cutpaste.scar(100, rng(i)) > 0.5).sum() for i in range(20)) < 0.4 * 100**2
    upright = [c.shape[0] > c.shape[1] for c in (cutpaste.scar(100, rng(i)) for i in range(20))]
    assert 0 < sum(upright) < 20


def test_a_scratch_has_two_flanks_within_its_length():
    for seed in range(10):
        groove, flank = scratch.strokes(60, 2.0, rng(seed))
        assert groove.shape == flank.shape
        assert 56 <= max(groove.shape) <= 62
        assert (groove > 0.5).any()
        assert (flank * (1 - groove) > 0.2).any()


def test_the_edge_of_a_stain_is_strongest():
    cover = np.ones((40, 40), np.float32)
    edge = stain.edge(cover)
    assert edge[0, 20] > edge[2, 20] > edge[20, 20] == 0


# --- places -----------------------------------------------------------------------------------------------------------


def draft(picture: np.ndarray, length: int = 20, severity: float = 1.0, seed: int = 0) -> Draft:
    return Draft({"image": picture}, length, severity, None, rng(seed))


def test_the_busiest_and_the_most_outstanding_place_are_found():
    picture = np.full((96, 96, 3), 100, np.uint8)
    picture[60:80, 10:30] = noisy((20, 20))
    box = busiest(draft(picture), 20, 20)
    assert 45 <= box[0].start <= 78
    assert box[1].start <= 28
    box = standing_out(draft(with_disc(), 30), _shapes.ellipse(30, rng()))
    assert abs((box[0].start + box[0].stop) / 2 - 48) < 20
    assert abs((box[1].start + box[1].stop) / 2 - 48) < 20
    with pytest.raises(NotMade, match="stands out"):
        standing_out(draft(np.full((96, 96, 3), 100, np.uint8)), np.ones((20, 20), np.float32))


def test_elsewhere_does_not_overlap_where_there_is_room():
    box = (slice(40, 60), slice(40, 60))
    for seed in range(20):
        other = elsewhere(box, (100, 100), rng(seed))
        assert abs(other[0].start - 40) >= 20 or abs(other[1].start - 40) >= 20


def test_widened_boxes_know_where_the_inner_one_lies():
    wide, inner = widened((slice(2, 6), slice(90, 96)), 4, (50, 100))
    assert wide == (slice(0, 10), slice(86, 100))
    assert inner == (slice(2, 6), slice(4, 10))


def test_a_hole_is_filled_with_what_is_around_it():
    even = with_disc()
    for side in (30, 60):  # with and without room for such a place elsewhere
        box = (slice(48 - side // 2, 48 + side // 2),) * 2
        filled = healed(draft(even), box, np.ones((side, side), bool))["image"]
        assert np.abs(filled * 255 - 60).max() < 1  # the ground, not the disc
    texture = noisy((120, 120))
    texture[10:40, 10:40] = 255
    box = (slice(5, 45), slice(5, 45))
    filled = healed(draft(texture), box, np.ones((40, 40), bool))["image"] * 255
    assert filled.mean() == pytest.approx(120, abs=10)
    assert filled.std() > 8  # as rough as the rest


def test_softened_is_a_gaussian_blur():
    from scipy.ndimage import gaussian_filter

    part = rng().random((31, 23, 2), np.float32)
    slow = np.stack([gaussian_filter(part[..., c], 2.0, mode="nearest", truncate=3.0) for c in range(2)], axis=2)
    assert np.allclose(softened(part, 2.0), slow, atol=1e-5)


# --- Poisson's equation -----------------------------------------------------------------------------------------------


def dense(rhs: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The same by a full matrix."""
    places = np.argwhere(region)
    index = {tuple(p): k for k, p in enumerate(places)}
    matrix = 4 * np.eye(len(places))
    for (i, j), k in index.items():
        for q in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if q in index:
                matrix[k, index[q]] = -1
    out = np.zeros_like(rhs, dtype=float)
    out[region] = np.linalg.solve(matrix, rhs[region].astype(float))
    return out


@pytest.mark.parametrize("shape", [(5, 5), (17, 24), (30, 9)])
def test_the_solver_agrees_with_a_full_matrix(shape):
    for seed in range(3):
        region = np.zeros(shape, bool)
        region[1:-1, 1:-1] = rng(seed).random((shape[0] - 2, shape[1] - 2)) < 0.9
        rhs = rng(seed).standard_normal((*shape, 3)).astype(np.float32)
        exact = dense(rhs, region)
        assert np.abs(solve(rhs, region) - exact).max() < 1e-3 * np.abs(exact).max()


def test_an_empty_region_and_channels_that_are_done_change_nothing():
    assert not solve(np.ones((8, 8, 3), np.float32), np.zeros((8, 8), bool)).any()
    rhs = np.zeros((12, 12, 2), np.float32)
    rhs[5, 5, 0] = 1
    region = np.zeros((12, 12), bool)
    region[2:-2, 2:-2] = True
    solved = solve(rhs, region)
    assert np.isfinite(solved).all()
    assert solved[..., 0].max() > 0.2
    assert not solved[..., 1].any()


def test_seamless_blending_keeps_differences_and_meets_the_border():
    y, x = np.mgrid[:40, :40] / 40
    under = np.stack([0.2 + 0.4 * x, 0.5 + 0 * x, 0.9 - 0.3 * y], -1).astype(np.float32)
    bump = np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.01)[..., None].astype(np.float32) * 0.1
    pasted = 0.05 + bump * np.ones(3, np.float32)  # another brightness: only its differences come along
    region = np.hypot(y - 0.5, x - 0.5) < 0.4
    blended = seamless(under, pasted, region)
    assert np.array_equal(blended[~region], under[~region])
    ground = seamless(under, np.full_like(under, 0.05), region)  # without the bump
    assert np.abs((blended - ground)[20, 20] - bump[20, 20]).max() < 0.01
    steps = np.abs(np.diff(blended, axis=1)).max()
    assert steps < 0.05  # no seam; the plain paste has one of 0.5
    strong = under + np.float32(0.2) * (rng().random((40, 40, 1)) > 0.5)
    mixed = seamless(strong.astype(np.float32), np.full_like(under, 0.05), region, mixed=True)
    assert np.abs(mixed - strong).max() < 1e-3  # nothing of an even patch is stronger


# --- each maker -------------------------------------------------------------------------------------------------------


def test_perlin_takes_textures_from_a_folder(tmp_path, pill):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "t.png").write_bytes(encode(noisy((40, 300), 200)))
    maker = synthesis.create("perlin", textures=str(tmp_path), size=(0.4, 0.6), severity=(1.0, 1.0))
    assert maker(pill, rng()).mask.read().any()
    assert maker(pill, rng()).made["settings"]["textures"] == str(tmp_path)
    with pytest.raises(WrongInput, match="no picture"):
        synthesis.create("perlin", textures=str(tmp_path / "nothing"))


def test_full_severity_of_paste_leaves_nothing_of_the_picture():
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[::2] = 255
    made = synthesis.create("paste", size=(0.5, 0.5), severity=(1.0, 1.0))(sample_of(stripes), rng(1))
    inner = ~grow(~made.mask.read(), 3)
    picture = made.image().astype(int)
    assert np.abs(np.diff(picture, axis=0))[inner[1:]].mean() < 60  # the stripes differ by 255


@pytest.mark.parametrize("kind", ["normal", "scar"])
def test_cutpaste_pastes_what_lies_elsewhere(kind):
    picture = np.full((96, 96, 3), 50, np.uint8)
    picture[:, 48:] = 200
    made = synthesis.create("cutpaste", kind=kind, size=(0.2, 0.2), severity=(1.0, 1.0))(sample_of(picture), rng(3))
    assert made.made["drawn"]["kind"] == kind
    mask = made.mask.read()
    inside = made.image()[mask].mean()
    other = 200 if picture[mask].mean() < 125 else 50
    assert abs(inside - other) < 0.45 * abs(other - (250 - other))
    assert mask[np.ix_(mask.any(axis=1), mask.any(axis=0))].all() == (kind == "normal")
    with pytest.raises(WrongInput, match="kind"):
        synthesis.create("cutpaste", kind="square")


def test_jitter_of_colours():
    part = rng().random((6, 6, 3), np.float32) * 0.5 + 0.2
    assert np.allclose(cutpaste.jittered(part, 1, 1, 1), part, atol=1e-6)
    assert cutpaste.jittered(part, 1.1, 1, 1).mean() == pytest.approx(1.1 * part.mean(), rel=1e-5)
    assert cutpaste.jittered(part, 1, 0.5, 1).std() == pytest.approx(0.5 * part.std(), rel=1e-4)
    grey = cutpaste.jittered(part, 1, 1, 0)
    assert np.allclose(grey, grey[..., :1])


def test_nsa_takes_patches_from_other_pictures(pill):
    other = sample_of(noisy((90, 110), 30), "other.png")
    maker = synthesis.create("nsa", others=(other,), severity=(1.0, 1.0))
    made = maker(pill, rng())
    assert made.made["drawn"]["donor"] == "other.png"
    assert "others" not in made.made["settings"]
    own = synthesis.create("nsa", severity=(1.0, 1.0))(pill, rng())
    assert "donor" not in own.made["drawn"]
    lights = replace(pill, views={"light_0": pill.views["image"], "light_1": pill.views["image"]})
    with pytest.raises(NotMade, match="lacks the views"):
        maker(lights, rng())


def test_nsa_meets_its_surroundings():
    """The step across the outline is that of the picture, unlike with a plain paste."""
    dark, bright = np.full((96, 96, 3), 60, np.uint8), with_disc() + 20
    made = synthesis.create("nsa", others=(sample_of(bright),), severity=(1.0, 1.0), size=(0.5, 0.6))(
        sample_of(dark), rng(2)
    )
    mask = made.mask.read()
    rim = mask & grow(~mask, 1)
    assert np.abs(made.image()[rim].astype(int) - 60).mean() < 0.3 * np.abs(made.image()[mask].astype(int) - 60).max()
    assert nsa.CARD.source.startswith("NSA")


def test_a_band_of_frequencies_holds_its_period_and_nothing_far_away():
    x = np.arange(64)
    waves = {p: np.repeat(np.sin(2 * np.pi * x / p)[None, :, None], 64, axis=0).astype(np.float32) for p in (4, 8, 32)}
    band = frequency.band_of((64, 64), 8.0)
    kept = {p: frequency.within_band(w, band).std() / w.std() for p, w in waves.items()}
    assert kept[8] == pytest.approx(1, abs=1e-3)
    assert kept[4] < 0.15
    assert kept[32] < 0.01


def test_frequency_takes_the_weave_out():
    x = np.arange(96)
    weave = np.clip(120 + 60 * np.sin(2 * np.pi * x / 6), 0, 255)[None, :, None].repeat(96, 0).repeat(3, 2)
    picture = weave.astype(np.uint8)
    softer = []
    for seed in range(4):
        made = synthesis.create("frequency", kind="remove", size=(0.5, 0.5), severity=(1.0, 1.0))(
            sample_of(picture), rng(seed)
        )
        inner = ~grow(~made.mask.read(), 5)
        softer.append(made.image()[inner].std() / picture[inner].std())
        assert made.made["drawn"]["kind"] == "remove"
    assert min(softer) < 0.5
    with pytest.raises(WrongInput, match="kind"):
        synthesis.create("frequency", kind="less")


def test_a_missing_part_is_gone():
    picture = with_disc()
    made = synthesis.create("geometric", kind="missing", size=(0.45, 0.5), severity=(1.0, 1.0))(
        sample_of(picture), rng(1)
    )
    assert (made.image() > 150).sum() < 0.6 * (picture > 150).sum()
    assert made.made["drawn"]["kind"] == "missing"


def test_a_duplicated_part_is_there_twice():
    picture = with_disc()
    made = synthesis.create("geometric", kind="duplicated", size=(0.4, 0.45), severity=(1.0, 1.0))(
        sample_of(picture), rng(2)
    )
    assert np.array_equal(made.image()[picture[..., 0] > 150].min() > 0, True)
    assert (made.image() > 150).sum() != (picture > 150).sum()


def test_a_displaced_part_moves_further_with_severity():
    picture = with_disc()
    ways = []
    for severity in (0.2, 0.6, 1.0):
        made = synthesis.create("geometric", kind="displaced", size=(0.5, 0.5), severity=(severity, severity))(
            sample_of(picture), rng(4)
        )
        ways.append(made.made["drawn"]["way"])
    assert ways == sorted(ways)
    assert ways[2] > 2 * ways[0]
    with pytest.raises(WrongInput, match="kind"):
        synthesis.create("geometric", kind="turned")


def test_a_texture_has_no_parts():
    with pytest.raises(NotMade, match="no part stands out"):
        synthesis.create("geometric")(Procedural("leather", size=96, train_count=1).train()[0], rng())


@pytest.mark.parametrize("radius", [-0.1, 0.5])
def test_a_blur_of_no_use_is_refused(radius):
    with pytest.raises(WrongInput, match="radius"):
        synthesis.create("blur", radius=radius)


def test_what_is_measured_agrees_with_the_whole_pictures():
    before = {"a": noisy((50, 70)), "b": noisy((50, 70), seed=1).astype(np.uint16) * 257}
    after = {name: picture.copy() for name, picture in before.items()}
    mask = np.zeros((50, 70), bool)
    mask[10:14, 20:41] = True
    after["a"][10:14, 20:41] += 9
    after["b"][40, 60] -= 3 * 257  # a change that the mask misses
    found = measured(before, after, mask)
    whole = {n: np.abs(after[n].astype(float) - before[n]) / (np.iinfo(before[n].dtype).max / 255) for n in before}
    assert found["contrast"] == pytest.approx(np.mean([d[mask].mean() for d in whole.values()]))
    assert found["outside"] == pytest.approx(3)
    assert (found["longest"], found["area"]) == (21, mask.mean())
    assert measured(before, before, np.zeros_like(mask))["contrast"] == 0


def test_stains_darken_what_is_bright_and_lighten_what_is_dark():
    for level, sign in ((180, -1), (20, 1)):
        picture = np.full((64, 64, 3), level, np.uint8)
        made = synthesis.create("stain", severity=(1.0, 1.0))(sample_of(picture), rng())
        assert np.sign(made.image()[made.mask.read()].astype(int).mean() - level) == sign
    even = np.full((64, 64, 3), (200, 180, 160), np.uint8)
    neutral = synthesis.create("stain", colour="neutral")(sample_of(even), rng())
    ratio = neutral.image()[neutral.mask.read()] / np.array([200, 180, 160])
    assert np.ptp(ratio, axis=1).max() < 0.02
    with pytest.raises(WrongInput, match="colour"):
        synthesis.create("stain", colour="red")


def test_scratches_stand_out_from_bright_and_dark_grounds():
    for level in (30, 220):
        made = synthesis.create("scratch", severity=(1.0, 1.0))(
            sample_of(np.full((96, 96, 3), level, np.uint8)), rng(1)
        )
        assert made.made["measured"]["contrast"] > 30
        assert made.made["measured"]["area"] < 0.05
        assert is_grey(made.image())


def test_blur_takes_detail_away():
    picture = noisy()
    made = synthesis.create("blur", severity=(1.0, 1.0), size=(0.4, 0.4))(sample_of(picture), rng())
    inner = ~grow(~made.mask.read(), 3)
    assert made.image()[inner].std() < 0.5 * picture[inner].std()


@pytest.mark.parametrize("where", ["bright", "dark"])
def test_defects_stay_in_the_foreground_that_is_asked_for(where):
    picture = np.full((96, 96, 3), 60, np.uint8)
    picture[20:80, 30:90] = 210
    allowed = picture[..., 0] == (210 if where == "bright" else 60)
    for seed in range(4):
        made = synthesis.create("stain", where=where, size=(0.2, 0.2))(sample_of(picture), rng(seed))
        outside = made.mask.read() & ~grow(allowed, 1)
        assert not outside.any()


def test_a_region_without_room_is_refused(tmp_path):
    file = tmp_path / "region.png"
    region = np.zeros((96, 96), np.uint8)
    region[40, 40] = 255
    file.write_bytes(encode(region))
    with pytest.raises(NotMade, match="30 attempts"):
        synthesis.create("stain", where=str(file))(sample_of(noisy()), rng())
