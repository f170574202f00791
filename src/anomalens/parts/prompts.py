"""Sentences that describe a thing with and without a defect: states put into templates (compositional prompt ensemble).

Jeong et al. 2023 (WinCLIP), https://arxiv.org/abs/2303.14814
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..types import Sample

NORMAL = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
)  # fmt: skip
ABNORMAL = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
ABNORMAL_BROKEN = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")


def compose(name: str, states: Sequence[str], templates: Sequence[str], *, states_outside: bool = True) -> list[str]:
    """Every state of a thing in every template; the states are the outer loop, or the templates."""
    if states_outside:
        return [template.format(state.format(name)) for state in states for template in templates]
    return [template.format(state.format(name)) for template in templates for state in states]


def name_of(sample: Sample, given: str = "") -> str:
    """What to call the thing in a picture: as the user says, else as its category, else "object"."""
    return given or sample.category or "object"


def unit(x: Any) -> Any:
    """Rows of length 1 along the last axis, of numpy arrays and tensors; gradients pass through."""
    return x / (x * x).sum(-1)[..., None] ** 0.5
