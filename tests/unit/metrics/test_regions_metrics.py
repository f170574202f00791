"""AUPRO, sPRO and the sampled variants: by hand, against every threshold, and in their edge cases."""

import warnings

import numpy as np
import pytest

from anomalens.errors import WrongInput
from anomalens.metrics import UndefinedMetric, get, pixel
from anomalens.metrics._pixels import align, pixel_curve
from anomalens.metrics.aupro import aupro, of_curve, region_overlap
from anomalens.metrics.pro_rad import pro_rad
from anomalens.metrics.pro_rd import pro_rd
from anomalens.metrics.spro import saturation_area, spro, spro_by_kind, spro_by_type

from . import slow
from .drawn import pictures

HAND = np.array([[9, 8, 0, 1], [0, 0, 1, 0], [0, 0, 0, 4], [7, 1, 0, 3]], np.float32)
HAND_MASK = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]], bool)


def test_by_hand():
    """Regions {9, 8} and {4, 3}; twelve normal pixels: 7, three of 1, eight of 0.

    Points (FPR, PRO): (0, 1/4), (0, 1/2), 7: (1/12, 1/2), 4: (1/12, 3/4), 3: (1/12, 1), 1: (4/12, 1), 0: (1, 1).
    """
    assert aupro([HAND], [HAND_MASK], 1.0) == pytest.approx(1 / 12 / 2 + 11 / 12)
    assert aupro([HAND], [HAND_MASK], 0.3) == pytest.approx((1 / 24 + 0.3 - 1 / 12) / 0.3)
    assert aupro([HAND], [HAND_MASK], 0.05) == pytest.approx(0.5)  # flat at 1/2 up to 1/12
    found = region_overlap([HAND], [HAND_MASK], fpr=0.05)
    assert found.threshold == 8  # the score 7 is a false alarm of 1/12
    assert found.overlap.tolist() == [1, 0]
    assert found.area.tolist() == [2, 2]
    assert region_overlap([HAND], [HAND_MASK], fpr=0.1).overlap.tolist() == [1, 1]


def test_by_hand_a_tie_of_normal_and_anomalous_pixels_is_a_straight_slope():
    scores, mask = np.array([[2.0, 2.0, 2.0, 1.0]]), np.array([[1, 0, 0, 0]])
    # One group at 2: from (0, 0) to (2/3, 1).
    assert aupro([scores], [mask], 2 / 3) == pytest.approx(0.5)
    assert aupro([scores], [mask], 1 / 3) == pytest.approx(0.25)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [0, 3, 12])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_pruned_and_full_are_brute_force(limit, levels, connectivity):
    maps, masks = pictures(levels, levels=levels)
    expected = slow.aupro(maps, masks, limit, connectivity)
    assert aupro(maps, masks, limit, connectivity=connectivity) == pytest.approx(expected, abs=1e-12)
    full = pixel_curve(align(maps, masks)[0], regions=True, connectivity=connectivity)
    assert of_curve(full, limit)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 300, 10_000])
def test_chunks_change_nothing(chunk, monkeypatch):
    maps, masks = pictures(5, levels=7)
    monkeypatch.setattr("anomalens.metrics._pixels.CHUNK", chunk)
    assert aupro(maps, masks, 0.3) == pytest.approx(slow.aupro(maps, masks, 0.3), abs=1e-12)
    found = pixel(maps, masks)
    assert found["auroc"].value == pytest.approx(slow.auroc(maps.ravel(), masks.ravel()), abs=1e-12)
    assert found["aupro@0.05"].value == pytest.approx(slow.aupro(maps, masks, 0.05), abs=1e-12)


def test_maps_of_different_sizes_ignored_pixels_and_good_pictures():
    rng = np.random.default_rng(3)
    maps = [rng.normal(size=s).astype(np.float32) for s in ((9, 14), (20, 8), (5, 5))]
    masks = [(rng.random(m.shape) < 0.15).astype(np.uint8) for m in maps]
    masks[0][2:5, 3:9] = 255
    masks[2] = None
    assert aupro(maps, masks) == pytest.approx(slow.aupro(maps, masks, 0.3), abs=1e-12)
    used = np.concatenate([m.ravel() for m in maps])
    truth = np.concatenate([masks[0].ravel(), masks[1].ravel(), np.zeros(25, np.uint8)])
    found = pixel(maps, masks)["auroc"]
    assert found.value == pytest.approx(slow.auroc(used, truth), abs=1e-12)
    assert found.n_pos + found.n_neg == (truth != 255).sum()


def test_an_ignored_pixel_splits_a_region_and_leaves_its_area():
    scores = np.array([[5.0, 0.0, 4.0, 1.0, 1.0]])
    assert pixel([scores], [np.array([[1, 255, 1, 0, 0]])], which=["aupro"])["aupro@0.3"].n_regions == 2
    assert aupro([scores], [np.array([[1, 255, 1, 0, 0]])]) == 1


def test_an_anomalous_picture_with_an_empty_mask_counts_as_normal_pixels():
    maps, masks = pictures(8)
    extra = np.concatenate([maps, maps[:1] + 1])
    with_mask = aupro(extra, [*masks, np.zeros_like(masks[0])])
    assert with_mask == aupro(extra, [*masks, None])
    assert with_mask != aupro(maps, masks)


def test_connectivity_of_a_diagonal_pair():
    mask = np.eye(2, dtype=bool)
    for connectivity, regions in ((8, 1), (4, 2)):
        found = pixel([np.eye(2)], [mask], which=["aupro"], connectivity=connectivity)["aupro@0.3"]
        assert found.n_regions == regions
        assert found.settings["connectivity"] == connectivity


def test_small_regions_can_be_left_out():
    maps, masks = pictures(11, levels=9)
    for least in (2, 5, 20):
        expected = slow.aupro(maps, masks, 0.3, min_region_area=least)
        assert aupro(maps, masks, min_region_area=least) == pytest.approx(expected, abs=1e-12)
    with pytest.warns(UndefinedMetric, match="min_region_area"):
        assert np.isnan(aupro(maps, masks, min_region_area=10_000))


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_constant_maps_reach_half_the_limit(limit):
    _, masks = pictures(0)
    measured = pixel(np.full(masks.shape, 2.0), masks, limits=[limit], which=["aupro"])[f"aupro@{limit:g}"]
    assert measured.value == pytest.approx(limit / 2, abs=1e-15)
    assert measured.floor == limit / 2


def test_perfect_and_inverted_maps():
    _, masks = pictures(0)
    assert aupro(masks.astype(float), masks) == pytest.approx(1)
    assert aupro(-masks.astype(float), masks) == 0


def test_picture_order_and_rising_transforms_change_nothing():
    maps, masks = pictures(2, levels=20)
    plain = {name: measured.value for name, measured in pixel(maps, masks).items()}
    order = [2, 0, 3, 1]
    for changed in ((maps[order], masks[order]), (np.exp(maps), masks), (maps**3 - 4, masks)):
        for name, measured in pixel(*changed).items():
            assert measured.value == pytest.approx(plain[name], abs=1e-12)


@pytest.mark.parametrize("name", ["aupro", "spro", "pro-rad", "pro-rd"])
def test_undefined(name):
    maps = np.arange(18.0).reshape(2, 3, 3)
    for masks, said in ((np.zeros((2, 3, 3), int), "no anomalous item"), (np.ones((2, 3, 3), int), "no normal item")):
        with pytest.warns(UndefinedMetric, match=said):
            assert np.isnan(get(name)(maps, masks))


def test_masks_of_0_and_255_are_explained():
    with pytest.warns(UndefinedMetric, match="mask > 0"):
        assert np.isnan(aupro([np.eye(3)], [np.eye(3, dtype=np.uint8) * 255]))


@pytest.mark.parametrize("limit", [0, -0.1, 1.1])
def test_wrong_limits(limit):
    for function in (aupro, spro):
        with pytest.raises(WrongInput, match="limit"):
            function([np.eye(3)], [np.eye(3, dtype=int)], limit=limit)


# Sampled variants


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sampled_variants_are_their_definitions(seed):
    maps, masks = pictures(seed, count=3, side=(10, 11), levels=30 * (seed == 1))
    assert pro_rad(maps, masks) == pytest.approx(slow.pro_rad(maps, masks), abs=1e-12)
    assert pro_rd(maps, masks) == pytest.approx(slow.pro_rd(maps, masks), abs=1e-12)


def test_the_rad_variant_depends_on_the_scale_and_the_exact_one_does_not():
    maps, masks = pictures(4)
    assert abs(pro_rad(np.exp(3 * maps), masks) - pro_rad(maps, masks)) > 0.01
    assert aupro(np.exp(3 * maps), masks) == pytest.approx(aupro(maps, masks), abs=1e-12)


def test_the_rad_variant_is_nan_without_a_range():
    _, masks = pictures(0)
    for maps in (np.zeros(masks.shape), masks.astype(float)):  # no threshold at all; no false positive at any
        with pytest.warns(UndefinedMetric, match="span no"):
            assert np.isnan(pro_rad(maps, masks))


# Saturated overlap


CONFIG = [
    {"defect_name": "share", "pixel_value": 3, "saturation_threshold": 0.4, "relative_saturation": True},
    {"defect_name": "pixels", "pixel_value": 7, "saturation_threshold": 6, "relative_saturation": False},
    {"defect_name": "large", "pixel_value": 9, "saturation_threshold": 10_000, "relative_saturation": False},
]


def stacks(seed: int, levels: int):
    """Maps and channels: overlapping defects, one of them in two parts, one of a single pixel."""
    maps, _ = pictures(seed, count=4, levels=levels, shift=0)
    channels = [None]
    for n in range(1, 4):
        stack = np.zeros((3, *maps[0].shape), np.uint8)
        stack[0, 1:6, n : n + 5] = 3
        stack[1, 4:9, 3:8] = 7
        stack[1, 12, 12 + n] = 7
        stack[2, 10, n] = 9 if n > 1 else 3
        maps[n] += (stack != 0).any(axis=0) * 0.8
        channels.append(stack)
    return np.round(maps) if levels else maps, channels


@pytest.mark.parametrize("levels", [0, 6])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_spro_is_brute_force(levels, limit):
    maps, channels = stacks(1, levels)
    expected = slow.spro(maps, channels, lambda area, value: saturation_area(area, value, CONFIG), limit)
    assert spro(maps, channels, CONFIG, limit) == pytest.approx(expected, abs=1e-12)


def test_spro_by_kind_and_type_select_pictures():
    maps, channels = stacks(2, 6)
    kinds = ["good", "logical", "structural", "logical"]
    found = spro_by_kind(maps, channels, kinds, CONFIG, limits=(0.05, 0.3))
    assert found["logical"][0.3].value == spro(maps[[0, 1, 3]], [channels[n] for n in (0, 1, 3)], CONFIG, 0.3)
    assert found["structural"][0.05].value == spro(maps[[0, 2]], [channels[n] for n in (0, 2)], CONFIG, 0.05)
    typed = spro_by_type(maps, channels, CONFIG, limits=(0.3,))
    assert typed["large"][0.3].n_regions == 2
    for entry in CONFIG:
        value = entry["pixel_value"]
        shown = [n for n in range(4) if channels[n] is None or (channels[n] == value).any()]
        expected = slow.spro(
            maps[shown],
            [channels[n] for n in shown],
            lambda area, kind: saturation_area(area, kind, CONFIG),
            0.3,
            only=value,
        )
        assert typed[entry["defect_name"]][0.3].value == pytest.approx(expected, abs=1e-12)


def test_pro_is_the_special_case_of_spro():
    maps, masks = pictures(6, levels=8)
    channels = [
        np.stack([_filled(mask.shape, c) for c in slow.components(mask)]) if mask.any() else None for mask in masks
    ]
    assert spro(maps, channels, None, 0.3) == pytest.approx(aupro(maps, masks, 0.3), abs=1e-12)


def _filled(shape, component):
    channel = np.zeros(shape, np.uint8)
    channel[tuple(np.array(sorted(component)).T)] = 1
    return channel


def test_saturation_areas():
    assert [saturation_area(area, 3, CONFIG) for area in (1, 2, 10, 91)] == [1, 1, 4, 36]
    assert [saturation_area(area, 7, CONFIG) for area in (4, 6, 90)] == [4, 6, 6]
    assert saturation_area(17, 42) == 17
    with pytest.raises(WrongInput, match=r"value 42.*\[3, 7, 9\]"):
        saturation_area(17, 42, CONFIG)


def test_spro_refuses_what_does_not_fit():
    with pytest.raises(WrongInput, match="resize the map"):
        spro([np.zeros((4, 4))], [np.ones((1, 5, 5))])
    with pytest.raises(WrongInput, match="one per picture"):
        spro([np.zeros((4, 4))], [])
    with pytest.raises(WrongInput, match="one kind per map"):
        spro_by_kind([np.zeros((4, 4))], [None], [])
    with warnings.catch_warnings(), pytest.raises(WrongInput, match="NaN"):
        spro([np.full((4, 4), np.nan)], [np.ones((4, 4))])
