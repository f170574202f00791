"""Defects drawn into normal pictures, for training, for tests and for asking how small a defect may be.

    from anomalens import synthesis
    scratch = synthesis.create("scratch", size=(0.1, 0.3), severity=(0.5, 1.0))
    sample = scratch(normal, np.random.default_rng(0))       # label 1, mask, defect "scratch", made

A file of this folder is a maker: a `CARD` (a `MakerCard`) and a `MAKER`, a dataclass that inherits from `Maker`; names
come from listing the folder. `corruptions` is not a maker: it makes pictures worse without a defect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import registry
from ..detector import check_settings
from ..errors import NotMade, Unreadable, WrongInput, unknown
from ..types import MakerCard, Sample

if TYPE_CHECKING:
    from ._maker import Maker

NOT_MAKERS = ("corruptions",)
SOURCES_TRIED = 8  # pictures that `nth` tries before it gives up


def names() -> tuple[str, ...]:
    """Every maker."""
    return tuple(name for name in registry.stems("synthesis") if name not in NOT_MAKERS)


def card(name: str) -> MakerCard:
    """What a maker does, without importing it.

    Raises:
        UnknownName: no such maker; the message names the nearest ones.
    """
    return registry.literal_card("synthesis", "maker", _known(name), "MakerCard")


def class_of(name: str) -> type[Maker]:
    """The class behind a name; its fields are its settings."""
    return registry.module("synthesis", "maker", _known(name)).MAKER


def create(name: str, **settings: Any) -> Maker:
    """A maker: call it as maker(sample, rng).

    Raises:
        UnknownName: no such maker or setting; the message names the nearest ones.
        WrongInput: a setting of the wrong type, or out of its range.
    """
    cls = class_of(name)
    check_settings(_known(name), cls, settings)
    return cls(**settings)


def generate(samples: Sequence[Sample], makers: Sequence[Maker], count: int, *, seed: int = 0) -> Iterator[Sample]:
    """`count` samples with a defect each, see `nth`. Nothing is kept: memory is that of one sample."""
    return (nth(samples, makers, index, seed=seed) for index in range(count))


def nth(samples: Sequence[Sample], makers: Sequence[Maker], index: int, *, seed: int = 0) -> Sample:
    """Drawn sample number `index`, which depends on nothing but the arguments: any order, any process, resumed or not.

    Makers take turns; each goes through the samples in an order of its own, which the seed decides. A sample in which
    no defect can be drawn, or that cannot be read, gives way to the next one, up to 8 times.

    Raises:
        NotMade: in none of these a defect could be drawn. Unreadable: the last one could not be read.
        WrongInput: no sample or no maker.
    """
    import numpy as np

    if not samples or not makers:
        raise WrongInput(
            f"drawing defects needs normal pictures and makers; got {len(samples)} pictures and {len(makers)} makers."
        )
    turn, maker = divmod(index, len(makers))
    order = np.random.default_rng([seed, maker, turn // len(samples)]).permutation(len(samples))
    tries = min(SOURCES_TRIED, len(samples))
    for k in range(tries):
        source = samples[order[(turn + k) % len(samples)]]
        try:
            return makers[maker](source, np.random.default_rng([seed, index, k]))
        except (NotMade, Unreadable):
            if k == tries - 1:
                raise
    raise AssertionError("unreachable")


def _known(name: str) -> str:
    spelled = name.lower().replace("_", "-")
    if spelled not in names():
        raise unknown("maker", name, names())
    return spelled
