"""Sentences about things, and unit rows."""

from __future__ import annotations

import numpy as np
import pytest

from anomalens.parts.prompts import ABNORMAL, ABNORMAL_BROKEN, NORMAL, compose, name_of, unit
from anomalens.types import Sample


def test_the_published_states():
    assert [len(NORMAL), len(ABNORMAL), len(ABNORMAL_BROKEN)] == [7, 4, 5]
    assert set(ABNORMAL_BROKEN) - set(ABNORMAL) == {"broken {}"}
    assert all(state.count("{}") == 1 for state in (*NORMAL, *ABNORMAL_BROKEN))


def test_every_state_in_every_template_in_either_order():
    states, templates = ("{}", "damaged {}"), ("a {}.", "the {}.", "one {}.")
    assert compose("nut", states, templates) == [
        "a nut.", "the nut.", "one nut.", "a damaged nut.", "the damaged nut.", "one damaged nut.",
    ]  # fmt: skip
    other = compose("nut", states, templates, states_outside=False)
    assert other[:3] == ["a nut.", "a damaged nut.", "the nut."]
    assert sorted(other) == sorted(compose("nut", states, templates))


def test_a_name_may_hold_anything():
    assert compose("{} 100 %", ("damaged {}",), ("a {}",)) == ["a damaged {} 100 %"]


def test_what_a_thing_is_called():
    bolt = Sample("1", {}, category="bolt")
    assert name_of(bolt) == "bolt"
    assert name_of(bolt, "hex bolt") == "hex bolt"
    assert name_of(Sample("1", {})) == "object"


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_unit_rows(library):
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    given = pytest.importorskip("torch").tensor(x) if library == "torch" else x
    slow = [[row / sum(v * v for v in row) ** 0.5 for row in rows] for rows in x]
    assert np.allclose(unit(given), slow)


def test_gradients_pass_through_unit_rows():
    torch = pytest.importorskip("torch")
    x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    unit(x)[0].backward()
    assert x.grad.tolist() == pytest.approx([16 / 125, -12 / 125])  # (|x|^2 - x0^2, -x0 x1) / |x|^3
