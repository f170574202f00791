"""What every detector owes its user, checked for every file in detectors/; there is no list to keep."""

from __future__ import annotations

import dataclasses
import typing
from functools import partial

import numpy as np
import pytest

import anomalens as al
from anomalens import datasets
from anomalens.detector import LEAST, Detector, setting_types
from anomalens.errors import NotFitted, UnknownName, WrongInput
from anomalens.registry import module
from anomalens.types import Card, Sample, View
from tests.support.oracle import oracle_url
from tests.support.rules import DARK, PALE, rules_against

NAMES = al.names()
MAY_BE_EMPTY = (
    "paper", "venue", "repo", "pitfalls", "reported", "normals", "auxiliary", "stored_mb", "extras", "weights", "external",
    "aliases", "cpu_fit",
)  # fmt: skip


def small(name: str, **settings) -> Detector:
    """A detector of this name that is quick on 128-pixel pictures; found by its settings, not by its name."""
    cls = module("detectors", "detector", name).DETECTOR
    hints = setting_types(cls)
    wanted = {"image_size": 128, "steps": 30}  # steps: of detectors that train
    if "inner" in hints:
        return al.create(name, inner=small("patchcore", **settings))
    if "base_url" in hints:  # asks a served model: here one that sees what was drawn
        wanted |= {"base_url": oracle_url(), "model": "oracle", "cache": ""}
    if "exemplars" in hints:  # attention to a prompt says nothing for the first dozens of steps
        wanted["steps"] = 60
    if "parser_settings" in hints:  # checks written rules
        wanted |= rules_against(pale=PALE, dark=DARK)
    if needs_language(cls):  # random weights: everything but knowledge
        wanted = {"backbone": "clip:tiny?weights=random", "adapter": "random", **wanted}
    return al.create(name, **{k: v for k, v in {**wanted, **settings}.items() if k in hints})


def needs_language(cls: type) -> bool:
    return str(getattr(cls, "backbone", "")).startswith("clip:")


def knows_something(name: str) -> None:
    """Language methods without their weights judge at random: their tests of accuracy are their own."""
    if needs_language(module("detectors", "detector", name).DETECTOR):
        pytest.skip(f"{name} knows nothing without the weights of CLIP")


def seen_by(name: str, samples: list[Sample]) -> list[Sample]:
    """The samples as a method needs them: one that looks at lights also gets the picture under three of them."""
    if "lights" not in al.card(name).needs or "image" in al.card(name).needs:
        return samples
    lights = [
        {f"light_{k}": View(f"light_{k}", partial(dimmed, s.views["image"], k)) for k in range(3)} for s in samples
    ]
    return [dataclasses.replace(s, views={**s.views, **more}) for s, more in zip(samples, lights, strict=True)]


def dimmed(view: View, light: int) -> np.ndarray:
    """The picture itself, or at 5/6 and 4/6 of its brightness."""
    picture = view.read()
    return (picture // 6) * (6 - light) if light else picture


@pytest.fixture
def good(name, drawn) -> list[Sample]:
    return seen_by(name, drawn.train())


@pytest.fixture
def mixed(name, drawn) -> list[Sample]:
    return seen_by(name, drawn.test())


@pytest.fixture(scope="module")
def fitted(drawn) -> dict[str, Detector]:
    return {name: small(name).fit(seen_by(name, drawn.train())) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_complete(name):
    card = al.card(name)
    hints = typing.get_type_hints(Card)
    for field in dataclasses.fields(Card):
        value = getattr(card, field.name)
        assert fits(value, hints[field.name]), f"{field.name}={value!r} is not {hints[field.name]}"
        if not isinstance(value, bool) and field.name not in MAY_BE_EMPTY:
            assert value, f"{field.name} is empty"
    least, enough = card.normals
    assert 0 <= least <= enough
    own = set(card.settings)
    if card.family != "wrapper":  # one that holds a detector asks for what that one asks for
        assert (least == 0) == bool(own & {"zero-shot", "batched-zero-shot"})
    assert card.trains not in ("statistics", "gradient") or least >= 1 or "few-shot" in own
    assert card.trains != "no" or card.fit_cost == "F0"
    assert card.family not in ("program", "language-model") or card.text != "none"
    assert "semi-supervised" not in own or card.abnormals != "none"
    assert own != {"batched-zero-shot"} or card.transductive
    assert bool(card.repo) != (card.code_licence == "no-code")
    assert card.gpu != "fit" or card.trains == "gradient"
    assert not (set(card.aliases) & set(NAMES))
    assert card == module("detectors", "detector", name).CARD  # what the syntax tree says is what the module holds


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_name_a_reader(name):
    """DATASET or DATASET/CATEGORY, so that the benchmark's report finds them."""
    assert {r.dataset.partition("/")[0] for r in al.card(name).reported} <= set(datasets.names())


def fits(value, hint) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        return isinstance(value, tuple) and len(inner) == len(value) and all(map(fits, value, inner))
    return isinstance(value, hint)


@pytest.mark.parametrize("name", NAMES)
def test_predicts_only_after_fit(name, mixed):
    detector = small(name)
    if not detector.needs_fit:
        assert len(list(detector.predict(mixed[:1]))) == 1
        return
    with pytest.raises(NotFitted, match="fit"):
        list(detector.predict(mixed))
    with pytest.raises(NotFitted):
        al.save(detector, "nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_one_prediction_per_sample_in_order(name, fitted, mixed):
    predictions = list(fitted[name].predict(mixed))
    assert [p.id for p in predictions] == [s.id for s in mixed]
    for p, s in zip(predictions, mixed, strict=True):
        assert isinstance(p.score, float)
        assert np.isfinite(p.score)
        assert p.map.shape == s.image().shape[:2]
        assert p.map.dtype == np.float32
        assert np.isfinite(p.map).all()
    assert list(fitted[name].predict([])) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_defect_scores_higher(name, fitted, mixed):
    knows_something(name)
    scores = {p.id: p.score for p in fitted[name].predict(mixed)}
    bad = np.array([scores[s.id] for s in mixed if s.label])
    fine = np.array([scores[s.id] for s in mixed if not s.label])
    assert (bad[:, None] > fine[None]).mean() >= 0.8


@pytest.mark.parametrize("name", NAMES)
def test_the_map_points_at_the_defect(name, fitted, mixed):
    knows_something(name)
    inside, outside = [], []
    for p, s in zip(fitted[name].predict(mixed), mixed, strict=True):
        if s.label:
            mask = s.mask.read()
            inside.append(p.map[mask].mean())
            outside.append(p.map[~mask].mean())
    assert np.mean(inside) > np.mean(outside)


@pytest.mark.parametrize("name", NAMES)
def test_batches_change_nothing(name, fitted, mixed):
    together = list(fitted[name].predict(mixed))
    for sample, other in zip(mixed, together, strict=True):
        (alone,) = fitted[name].predict([sample])
        assert alone.score == pytest.approx(other.score, rel=1e-4)
        assert np.allclose(alone.map, other.map, rtol=1e-3, atol=1e-4 * abs(other.map).max())


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_the_same_bit_for_bit(name, fitted, mixed, tmp_path):
    al.save(fitted[name], tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    assert loaded.method == name
    for a, b in zip(fitted[name].predict(mixed), loaded.predict(mixed), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.map, b.map)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_detector(name, fitted, good, mixed):
    again = fitted[name].unfitted().fit(good)
    for a, b in zip(fitted[name].predict(mixed[:4]), again.predict(mixed[:4]), strict=True):
        assert a.score == b.score


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name, mixed):
    pictures = [s.image().copy() for s in mixed[:3]]
    held = [p.copy() for p in pictures]
    for p in pictures:
        p.setflags(write=False)
    samples = seen_by(name, [Sample(f"{i}", {"image": View("image", lambda p=p: p)}) for i, p in enumerate(pictures)])
    detector = small(name).fit(samples)
    list(detector.predict(samples))
    assert all(np.array_equal(a, b) for a, b in zip(pictures, held, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_any_size_and_depth(name, fitted):
    rng = np.random.default_rng(0)
    shapes = [((90, 210, 3), np.uint8), ((300, 64, 3), np.uint8), ((128, 128, 3), np.uint16), ((1, 1, 3), np.uint8)]
    pictures = [rng.integers(0, np.iinfo(t).max, s).astype(t) for s, t in shapes]
    samples = seen_by(name, [Sample(f"{i}", {"image": View("image", lambda p=p: p)}) for i, p in enumerate(pictures)])
    for prediction, picture in zip(fitted[name].predict(samples), pictures, strict=True):
        assert prediction.map.shape == picture.shape[:2]


@pytest.mark.parametrize("name", NAMES)
def test_predict_streams(name, fitted, mixed):
    read = []

    def endless():
        for i in range(10_000):
            read.append(i)
            yield dataclasses.replace(mixed[0], id=str(i))

    stream = fitted[name].predict(endless())
    next(stream)
    stream.close()
    assert len(read) <= 64


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_view_is_named(name, fitted):
    sample = Sample("part/7.png", {"depth": View("depth", lambda: np.zeros((8, 8, 3), np.uint8))})
    with pytest.raises(WrongInput, match=r"part/7\.png.*depth"):
        list(fitted[name].predict([sample]))


@pytest.mark.parametrize("name", NAMES)
def test_no_normal_picture_is_refused(name):
    detector = small(name)
    if detector.needs_fit:
        with pytest.raises(WrongInput):
            detector.fit([])


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_checked(name):
    with pytest.raises(UnknownName, match="no setting"):
        al.create(name, no_such_setting=1)
    for key, hint in setting_types(module("detectors", "detector", name).DETECTOR).items():
        if hint is int:
            with pytest.raises(WrongInput, match=key):
                al.create(name, **{key: "many"})
        if key in LEAST:
            with pytest.raises(WrongInput, match=f"{key} is {LEAST[key]} or more; got {LEAST[key] - 1}"):
                al.create(name, **{key: LEAST[key] - 1})


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_torch_agree(name, good, mixed):
    pytest.importorskip("torch")
    by_numpy, by_torch = scores_under(name, good, mixed[:6], {"engine": "onnx"}, {"engine": "torch"})
    assert np.allclose(by_numpy, by_torch, rtol=2e-3)


def scores_under(name: str, good: list[Sample], mixed: list[Sample], *settings: dict[str, str]) -> list[list[float]]:
    """Scores under each of the settings. Rounding grows in a training: what was learnt by gradient is shared instead."""
    detectors = [small(name, **chosen) for chosen in settings]
    for detector in detectors:
        if detector is detectors[0] or al.card(name).trains != "gradient":
            detector.fit(good)
        for key in detector.learned if al.card(name).trains == "gradient" else ():
            setattr(detector, key, getattr(detectors[0], key))
    return [[p.score for p in detector.predict(mixed)] for detector in detectors]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cpu_and_gpu_agree(name, good, mixed):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_cpu, on_gpu = scores_under(name, good, mixed, {"device": "cpu"}, {"device": "cuda"})
    assert np.allclose(on_cpu, on_gpu, rtol=5e-3)


def test_near_names_are_offered():
    with pytest.raises(UnknownName, match="patchcore"):
        al.create("patchcor")
