"""What every family of backbones owes its user. Families are found by listing the folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from anomalens import backbones
from anomalens.errors import MissingExtra, UnknownName, WrongInput
from anomalens.parts.grids import to_numpy


@dataclass(frozen=True)
class Cheap:
    """One of a family that needs no file of weights. strides: all that its outputs have, finest first."""

    name: str
    strides: tuple[int, ...] = (4, 8, 16)
    engines: tuple[str, ...] = ("onnx", "torch")


CHEAP = {
    "tiny": Cheap("tiny"),
    "timm": Cheap("timm:resnet18?weights=random"),
    "clip": Cheap("clip:tiny?weights=random", strides=(16,), engines=("torch",)),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Converted networks go to a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def built(cheap: Cheap, **settings):
    try:
        return backbones.get(cheap.name, device="cpu", **settings)
    except MissingExtra as error:
        pytest.skip(str(error))


@pytest.fixture(params=CHEAP)
def family(request) -> Cheap:
    return CHEAP[request.param]


@pytest.fixture
def make(family, cache):
    return partial(built, family)


@pytest.fixture(
    scope="module",
    params=[pytest.param((c, engine), id=f"{name}-{engine}") for name, c in CHEAP.items() for engine in c.engines],
)
def pair(request) -> tuple[Cheap, str]:
    """A family and one of its engines."""
    return request.param


@pytest.fixture(scope="module")
def backbone(pair, cache):
    cheap, engine = pair
    return built(cheap, strides=cheap.strides, engine=engine)


@pytest.fixture
def images():
    return np.random.default_rng(0).random((3, 3, 96, 64), dtype=np.float32)


def test_every_family_is_tested():
    assert set(CHEAP) == set(backbones.names()), "say how to make a cheap backbone of the new family"


def test_it_says_what_it_is(backbone, pair):
    cheap, engine = pair
    assert backbone.name == cheap.name
    assert backbone.strides == cheap.strides
    assert backbone.device == "cpu"
    assert backbone.engine == engine
    assert len(backbone.fingerprint) == 64
    int(backbone.fingerprint, 16)


def test_outputs_have_the_declared_channels_and_strides(backbone, images):
    outputs = backbone(images)
    assert [tuple(y.shape) for y in outputs] == [
        (3, c, 96 // s, 64 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert all(to_numpy(y).dtype == np.float32 and np.isfinite(to_numpy(y)).all() for y in outputs)
    assert all(to_numpy(y).std() > 0 for y in outputs)


def test_a_batch_is_the_same_as_single_pictures(backbone, images):
    together = backbone(images)
    alone = [backbone(images[i : i + 1]) for i in range(3)]
    for level, y in enumerate(together):
        parts = np.concatenate([to_numpy(x[level]) for x in alone])
        assert np.abs(parts - to_numpy(y)).max() <= 1e-5 * np.abs(parts).max()


def test_calls_repeat_and_leave_the_input_alone(backbone, images):
    before = images.copy()
    first, second = backbone(images), backbone(images)
    assert (images == before).all()
    assert all((to_numpy(a) == to_numpy(b)).all() for a, b in zip(first, second, strict=True))


def test_read_only_and_strided_arrays_are_taken(backbone, images):
    expected = [to_numpy(y) for y in backbone(images)]
    images.setflags(write=False)
    wide = np.moveaxis(np.ascontiguousarray(np.moveaxis(images, 1, 3)), 3, 1)  # as cut from (B, H, W, 3)
    assert not wide.flags.c_contiguous
    for variant in (images, wide):
        for y, z in zip(expected, backbone(variant), strict=True):
            assert np.abs(y - to_numpy(z)).max() <= 1e-5 * np.abs(y).max()


def test_normalisation_is_inside(backbone, images):
    """Features of a picture depend on its absolute brightness, and black is not zero after the first layer."""
    outputs = backbone(np.zeros_like(images))
    assert any(np.abs(to_numpy(y)).max() > 0 for y in outputs)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 3, 64, 64), np.int64),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((0, 3, 64, 64), np.float32),
    ],
    ids=["uint8", "int64", "one picture", "channels last", "empty"],
)
def test_wrong_input_is_refused(backbone, wrong):
    with pytest.raises(WrongInput, match=r"float32|\(B, 3, H, W\)"):
        backbone(wrong)


def test_engines_agree_and_share_a_fingerprint(family, make, images):
    first, *others = (make(strides=family.strides, engine=engine) for engine in family.engines)
    for other in others:
        assert first.fingerprint == other.fingerprint
        assert first.channels == other.channels
        for a, b in zip(first(images), other(images), strict=True):
            assert np.abs(to_numpy(a) - to_numpy(b)).max() <= 1e-4 * np.abs(to_numpy(a)).max()


def test_an_engine_that_it_does_not_have_is_refused(family, make):
    for engine in {"onnx", "torch"} - set(family.engines):
        with pytest.raises(WrongInput, match=engine):
            make(strides=family.strides, engine=engine)


def test_strides_are_chosen_and_come_finest_first(family, make, images):
    turned, alone = (
        make(strides=family.strides[::-1], engine="torch"),
        make(strides=family.strides[-1:], engine="torch"),
    )
    assert turned.strides == family.strides
    outputs = turned(images)
    assert [tuple(y.shape[2:]) for y in outputs] == [(96 // s, 64 // s) for s in family.strides]
    assert np.allclose(to_numpy(alone(images)[0]), to_numpy(outputs[-1]), atol=1e-5)


@pytest.mark.parametrize("settings", [{"strides": ()}, {"strides": (8, 8)}, {"strides": (7,)}, {"engine": "onx"}])
def test_impossible_settings_are_refused(make, settings):
    with pytest.raises(WrongInput):
        make(**settings)


@pytest.mark.parametrize("family", backbones.names())
def test_card_is_complete(family):
    card = backbones.card(family)
    for field in ("title", "summary", "licence", "source", "limits"):
        assert getattr(card, field).strip(), f"{family}: the card says nothing about {field}"
    assert (card.mean is None) == (card.std is None)
    assert bool(card.file) == bool(card.sha256) == bool(card.bytes)
    assert dataclasses.asdict(card)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UnknownName, match="'tiny'"):
        backbones.get("tinny")
