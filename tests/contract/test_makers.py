"""What every maker of drawn defects owes its user. Makers are found by listing the folder."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from anomalens import synthesis
from anomalens.datasets.procedural import Procedural
from anomalens.errors import NotMade, UnknownName, WrongInput
from anomalens.synthesis._maker import Maker, closed, given
from anomalens.types import MakerCard, Sample, View

SIZE, SEVERITY = (0.2, 0.4), (0.5, 1.0)


def plain(name: str) -> Callable[..., Maker]:
    return partial(synthesis.create, name)


def tiny_cut(**settings: Any) -> Maker:
    """CUT with a diffusion model of random weights, which paints something."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from anomalens.synthesis.cut import Cut

    words = {"object_name": "hazelnut", "phrase": "crack", "prompt": "a photo of a hazelnut with a crack",
             "detailed_prompt": "a hazelnut with a deep crack"}  # fmt: skip
    return Cut.from_pipeline(tiny_pipeline(), image_size=64, steps=6, inner=1, filtered=False, **words, **settings)


@cache
def tiny_pipeline() -> Any:
    import tempfile
    from pathlib import Path

    from tests.unit.synthesis._tiny_diffusion import pipeline

    return pipeline(Path(tempfile.mkdtemp()))


# A maker that needs something to be built from: how the tests build it. What it paints is not ours to decide, so the
# severity of one draw need not show more change than that of another.
SPECIAL: dict[str, Callable[..., Maker]] = {"cut": tiny_cut}
DRAWN = [name for name in synthesis.names() if name not in SPECIAL]


@pytest.fixture(scope="module")
def thing() -> list[Sample]:
    """Normal pictures of a thing with parts on an even ground: every maker finds something to do."""
    return [whole(s) for s in Procedural("pill", size=128, train_count=4).train()]


def whole(sample: Sample) -> Sample:
    """The same with its pictures in memory."""
    return replace(sample, views={n: View(n, partial(given, v.read())) for n, v in sample.views.items()})


@pytest.fixture(params=synthesis.names())
def make(request) -> Callable[..., Maker]:
    """Builds the maker with given settings."""
    return SPECIAL.get(request.param, plain(request.param))


@pytest.fixture(params=DRAWN)
def drawn(request) -> Callable[..., Maker]:
    """The same for those that draw by themselves."""
    return plain(request.param)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def change(sample: Sample, made: Sample) -> np.ndarray:
    """(H, W) largest absolute difference of a channel."""
    return np.abs(made.image().astype(int) - sample.image()).max(axis=2)


def test_makers_are_found_and_corruptions_are_none():
    assert {"perlin", "cutpaste", "nsa", "frequency", "geometric", "stain", "scratch", "blur", "paste"} <= set(
        synthesis.names()
    )
    assert "corruptions" not in synthesis.names()
    assert set(SPECIAL) <= set(synthesis.names())


@pytest.mark.parametrize("name", synthesis.names())
def test_card_is_literal_and_complete(name):
    card = synthesis.card(name)
    assert isinstance(card, MakerCard)
    for field in ("title", "summary", "severity", "levels", "differs", "limits"):
        assert getattr(card, field), f"{name}: the card says nothing about {field}"
    assert card.source or card.differs == "ours"
    assert json.dumps(dataclasses.asdict(card))
    assert synthesis.class_of(name).__module__.endswith(name.replace("-", "_"))


def test_a_defect_is_labelled_masked_and_explained(make, thing):
    maker = make(size=SIZE)
    sample = thing[0]
    before = sample.image().copy()
    made = maker(sample, rng())
    mask, picture = made.mask.read(), made.image()
    assert made.label == 1
    assert made.defect == maker.name
    assert made.id.startswith(f"{sample.id}+{maker.name}-")
    assert made.category == sample.category
    assert mask.dtype == bool
    assert mask.shape == before.shape[:2]
    assert mask.any()
    assert picture.dtype == before.dtype
    assert picture.shape == before.shape
    assert np.array_equal(sample.image(), before), "the source was changed"
    assert sample.label == 0
    told = made.made
    assert told["maker"] == maker.name
    assert told["source"] == sample.id
    assert SIZE[0] <= told["size"] <= SIZE[1]
    assert maker.severity[0] <= told["severity"] <= maker.severity[1]
    assert told["settings"]["size"] == SIZE
    assert json.dumps(told)


def test_the_mask_is_what_changed_and_outside_nothing_did(make, thing):
    made = make(size=SIZE)(thing[0], rng(1))
    mask, difference = made.mask.read(), change(thing[0], made)
    assert (difference[~mask] == 0).all()
    assert (difference[mask] >= 1).mean() > 0.5  # the rest are gaps that belong to the defect
    assert (mask & ~closed(difference > 0, 24)).sum() == 0


def test_what_is_measured_is_what_the_picture_shows(make, thing):
    made = make(size=SIZE)(thing[0], rng(2))
    mask = made.mask.read()
    difference = np.abs(made.image().astype(float) - thing[0].image())
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    measured = made.made["measured"]
    assert measured["area"] == mask.mean()
    assert measured["longest"] == longest
    assert measured["size"] == longest / 128
    assert measured["contrast"] == pytest.approx(difference[mask].mean())
    assert measured["outside"] == difference[~mask].max() == 0


def test_a_state_of_the_generator_gives_the_same_bytes(make, thing):
    maker, other = make(size=SIZE), make(size=SIZE)
    first, second = maker(thing[0], rng(3)), other(thing[0], rng(3))
    assert np.array_equal(first.image(), second.image())
    assert np.array_equal(first.mask.read(), second.mask.read())
    assert first.id == second.id
    assert first.made == second.made
    assert not np.array_equal(maker(thing[0], rng(4)).image(), first.image())


def test_samples_and_masks_can_be_pickled(make, thing):
    made = make(size=SIZE)(thing[0], rng())
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.image(), made.image())
    assert np.array_equal(again.mask.read(), made.mask.read())
    assert again.made == made.made


def test_impossible_settings_are_refused(make):
    for wrong in ({"size": (0.0, 0.2)}, {"size": (0.3, 0.2)}, {"severity": (0.5, 1.5)}, {"severity": (0.0, 1.0)}):
        with pytest.raises(WrongInput, match=next(iter(wrong))):
            make(**wrong)


def test_anomalous_and_pictureless_samples_are_refused(make, thing):
    with pytest.raises(WrongInput, match="anomalous"):
        make()(replace(thing[0], label=1, defect="crack"), rng())
    with pytest.raises(WrongInput, match="views"):
        make()(replace(thing[0], views={"depth": thing[0].views["image"]}), rng())


# What those owe in addition that draw by themselves.


@pytest.mark.parametrize("size", [(0.1, 0.12), (0.2, 0.4), (0.5, 0.5)])
def test_the_size_is_within_what_was_asked_for(drawn, size, thing):
    for seed in range(3):
        longest = drawn(size=size, severity=SEVERITY)(thing[seed], rng(seed)).made["measured"]["longest"]
        low, high = size[0] * 128, size[1] * 128
        assert low - max(2, 0.1 * low) <= longest <= high + max(2, 0.1 * high)


def test_nothing_is_shorter_than_asked_for_by_design(drawn, thing):
    """On a ground that every change shows on, the longest of some defects is as long as was asked for."""
    longest = [
        drawn(size=(0.3, 0.3), severity=(1.0, 1.0))(thing[k % 4], rng(k)).made["measured"]["longest"] for k in range(6)
    ]
    assert max(longest) >= round(0.3 * 128) - 1


def test_more_severity_is_more_change_on_average(drawn, thing):
    contrasts = []
    for severity in (0.4, 0.7, 1.0):
        made = [drawn(size=SIZE, severity=(severity, severity))(s, rng(i)) for i, s in enumerate(thing)]
        contrasts.append(np.mean([m.made["measured"]["contrast"] * m.made["measured"]["area"] for m in made]))
    assert contrasts == sorted(contrasts)
    assert contrasts[2] > 1.2 * contrasts[0]


def test_the_generator_moves_on_by_the_same_whatever_the_settings(drawn, thing):
    one, other = rng(5), rng(5)
    drawn(size=SIZE, severity=(0.5, 0.5))(thing[0], one)
    drawn(size=(0.3, 0.3), severity=(1.0, 1.0))(thing[0], other)
    assert one.integers(2**40) == other.integers(2**40)


def test_sixteen_bits_stay_sixteen_bits(drawn, thing):
    fine = thing[0].image().astype(np.uint16) * 257
    fine[1::2] += (100 * (fine[1::2] < 65000)).astype(np.uint16)  # values that eight bits do not have
    sample = replace(thing[0], views={"image": View("image", partial(given, fine))})
    made = drawn(size=SIZE, severity=SEVERITY)(sample, rng(1))
    difference = change(sample, made)
    assert made.image().dtype == np.uint16
    assert (difference[~made.mask.read()] == 0).all()
    assert made.made["measured"]["contrast"] < 256  # grey levels of 255, whatever the type
    assert ((made.image() % 257 != 0) & (made.image() != fine)).any()


def test_grey_stays_grey(drawn, thing):
    grey = np.repeat(thing[0].image()[..., :1], 3, axis=2)
    picture = drawn(size=SIZE, severity=SEVERITY)(
        replace(thing[0], views={"image": View("image", partial(given, grey))}), rng(1)
    ).image()
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize("shape", [(97, 61), (40, 203), (33, 33)])
def test_odd_sizes_are_fine(drawn, shape, thing):
    picture = thing[0].image()
    picture = np.tile(picture, (2, 2, 1))[20 : 20 + shape[0], 10 : 10 + shape[1]]
    made = drawn(size=(0.3, 0.6), severity=SEVERITY)(
        replace(thing[0], views={"image": View("image", partial(given, picture))}), rng(1)
    )
    assert made.image().shape == picture.shape
    assert made.mask.read().any()


def test_tiny_pictures_are_refused_in_words(drawn, thing):
    small = replace(thing[0], views={"image": View("image", partial(given, thing[0].image()[:15, :40]))})
    with pytest.raises(NotMade, match="40 x 15 pixels"):
        drawn()(small, rng())


def test_a_picture_in_which_nothing_can_show_is_refused_or_shown_in(drawn, thing):
    even = replace(thing[0], views={"image": View("image", partial(given, np.full((64, 64, 3), 90, np.uint8)))})
    try:
        made = drawn(size=SIZE, severity=SEVERITY)(even, rng())
    except NotMade as error:
        assert "30 attempts" in str(error)  # noqa: PT017
    else:
        assert change(even, made).max() >= 4


def test_lights_change_at_the_same_place_and_depth_stays(drawn, thing):
    picture = thing[0].image()
    views = {
        "light_0": View("light_0", partial(given, picture)),
        "light_1": View("light_1", partial(given, (picture * 0.8).astype(np.uint8))),
        "depth": View("depth", partial(given, np.zeros((5, 5)))),
    }
    made = drawn(size=SIZE, severity=SEVERITY)(replace(thing[0], views=views), rng(1))
    mask = made.mask.read()
    assert made.views["depth"] is views["depth"]
    for name in ("light_0", "light_1"):
        difference = np.abs(made.image(name).astype(int) - views[name].read()).max(axis=2)
        assert (difference[~mask] == 0).all()
        assert (difference[mask] > 0).mean() > 0.3
    odd = {**views, "light_1": View("light_1", partial(given, picture[:50]))}
    with pytest.raises(WrongInput, match="different sizes"):
        drawn()(replace(thing[0], views=odd), rng())


def test_a_region_keeps_the_defect_in(drawn, thing, tmp_path):
    from anomalens.images import encode

    region = np.zeros((128, 128), np.uint8)
    region[20:110, 10:120] = 255
    file = tmp_path / "region.png"
    file.write_bytes(encode(region))
    for seed in range(3):
        made = drawn(size=(0.2, 0.3), severity=SEVERITY, where=str(file))(thing[0], rng(seed))
        assert not made.mask.read()[region == 0].any()
    small = replace(thing[0], views={"image": View("image", partial(given, thing[0].image()[:100]))})
    with pytest.raises(WrongInput, match="128 x 128"):
        drawn(where=str(file))(small, rng())


# Names and many at once.


def test_names_are_forgiving_and_errors_name_the_nearest():
    assert synthesis.create("CutPaste").name == "cutpaste"
    with pytest.raises(UnknownName, match="'scratch'"):
        synthesis.create("scrach")
    with pytest.raises(UnknownName, match="'severity'"):
        synthesis.create("scratch", severty=0.5)
    with pytest.raises(WrongInput, match="size"):
        synthesis.create("scratch", size=0.5)
    with pytest.raises(UnknownName):
        synthesis.card("corruptions")


def test_a_drawn_sample_depends_on_its_number_alone(thing):
    makers = [synthesis.create(name) for name in ("scratch", "stain", "perlin")]
    all_of_them = list(synthesis.generate(thing, makers, 7, seed=2))
    assert [s.defect for s in all_of_them] == ["scratch", "stain", "perlin", "scratch", "stain", "perlin", "scratch"]
    assert len({s.id for s in all_of_them}) == 7
    alone = synthesis.nth(thing, makers, 5, seed=2)
    assert np.array_equal(alone.image(), all_of_them[5].image())
    assert not np.array_equal(synthesis.nth(thing, makers, 5, seed=3).image(), alone.image())
    of_scratch = [synthesis.nth(thing, makers[:1], i).made["source"] for i in range(4)]
    assert set(of_scratch) == {s.id for s in thing}  # each once before one comes again


def test_a_picture_that_shows_nothing_gives_way_to_the_next(thing):
    even = replace(
        thing[0], id="even", views={"image": View("image", partial(given, np.full((64, 64, 3), 90, np.uint8)))}
    )
    blur = synthesis.create("blur")
    for index in range(4):
        assert synthesis.nth([even, thing[1]], [blur], index).made["source"] == thing[1].id
    with pytest.raises(NotMade, match="blur"):
        synthesis.nth([even], [blur], 0)
    with pytest.raises(WrongInput, match="0 pictures"):
        synthesis.nth([], [blur], 0)
