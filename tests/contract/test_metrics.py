"""What every metric owes its user; `names()` lists the folder."""

import inspect
import subprocess
import sys
import typing
import warnings

import numpy as np
import pytest

from anomalens import metrics, registry
from anomalens.types import MetricCard

MASKS = np.zeros((3, 8, 8), np.uint8)
MASKS[1, 1:4, 1:5] = 1
MASKS[2, 5:8, 4:8] = 1
MAPS = (np.random.default_rng(0).random(MASKS.shape) * 0.6 + 0.3 * MASKS).astype(np.float32)

each = pytest.mark.parametrize("name", metrics.names())


def quiet(name, maps, masks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.UndefinedMetric)
        return metrics.get(name)(maps, masks)


@each
def test_the_card_is_complete(name):
    card = metrics.card(name)
    hints = typing.get_type_hints(MetricCard)
    assert card.title
    assert card.summary.endswith(".")
    assert card.range[0] < card.range[1]
    assert card.direction in typing.get_args(hints["direction"])
    assert card.levels
    assert set(card.levels) <= {"image", "pixel", "region"}
    assert set(card.needs) <= {"anomalous", "normal"}
    assert "https://" in card.source
    assert card == registry.module("metrics", "metric", name).CARD


def test_no_title_is_another_title_or_another_file():
    titles = {name: metrics.card(name).title.lower() for name in metrics.names()}
    assert len(set(titles.values())) == len(titles)
    for name, title in titles.items():
        assert title == name or title not in titles


@each
def test_the_function_names_its_source_and_units(name):
    text = inspect.getdoc(metrics.get(name))
    for part in ("Args:", "Returns:", "Raises:", "Source:"):
        assert part in text
    assert "http" in text.partition("Source:")[2]


@each
def test_it_works_on_a_tiny_input(name):
    card, value = metrics.card(name), quiet(name, MAPS, MASKS)
    assert isinstance(value, float)
    assert card.range[0] <= value <= card.range[1]


@each
def test_a_perfect_map_is_best_and_an_inverted_one_is_not(name):
    card = metrics.card(name)
    ripple = np.linspace(0, 0.3, MASKS[0].size, dtype=np.float32).reshape(MASKS[0].shape)
    perfect, inverted = quiet(name, ripple + 0.6 * MASKS, MASKS), quiet(name, ripple + 0.6 * (1 - MASKS), MASKS)
    best = card.range[1] if card.direction == "higher is better" else card.range[0]
    assert perfect == pytest.approx(best, abs=0.02)
    assert abs(inverted - best) > 0.3


@each
def test_a_class_it_needs_and_misses_is_nan_with_a_warning(name):
    for missing, masks in (("anomalous", np.zeros_like(MASKS)), ("normal", np.ones_like(MASKS))):
        if missing in metrics.card(name).needs:
            with pytest.warns(metrics.UndefinedMetric, match=f"no {missing} item"):
                assert np.isnan(metrics.get(name)(MAPS, masks))
        else:
            assert np.isfinite(quiet(name, MAPS, masks))


@each
def test_inputs_are_left_as_they_were(name):
    maps, masks = MAPS.copy(), MASKS.copy()
    quiet(name, maps, masks)
    np.testing.assert_array_equal(maps, MAPS)
    np.testing.assert_array_equal(masks, MASKS)


@each
def test_the_call_of_its_level_gives_the_same(name):
    module, card = registry.module("metrics", "metric", name), metrics.card(name)
    if not (hasattr(module, "of_curve") or hasattr(module, "of_pairs")):
        pytest.skip(f"{name} takes more than masks")
    if {"pixel", "region"} & set(card.levels):
        (measured,) = metrics.pixel(MAPS, MASKS, which=[name], limits=[0.3]).values()
        assert measured.value == pytest.approx(quiet(name, MAPS, MASKS), abs=1e-12)
    if "image" in card.levels:
        measured = metrics.image(MAPS.ravel(), MASKS.ravel(), [name])[name]
        assert measured.value == pytest.approx(quiet(name, MAPS, MASKS), abs=1e-12)
        assert 0 <= measured.floor <= 1


def test_metrics_load_no_heavy_library():
    program = (
        "import sys, anomalens.metrics as m; [m.get(n) for n in m.names()];"
        "print([x for x in ('torch', 'scipy', 'sklearn', 'pandas') if x in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
