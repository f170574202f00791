"""The one contract: a detector fits on normal samples and predicts one prediction per sample, in order, streamed."""

from __future__ import annotations

import dataclasses
import sys
import types as _types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union

from . import registry
from .errors import NotFitted, WrongInput, unknown
from .types import Card, Prediction, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

    from .thresholds import Calibration


class Detector:
    """Parent of every method. A method is a `@dataclass` whose fields are its settings.

    learned: names of the attributes that `fit` makes and `save` writes: arrays, numbers, strings, detectors, or
        dictionaries of these. A detector that learns nothing is always ready.
    calibration: what the scores of normal pictures look like; None until `fit_calibrated`, saved with the detector.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    calibration: Calibration | None = None

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Learn what normal looks like. Methods that need no normal picture return unchanged."""
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """One prediction per sample, in order, while reading only a batch ahead."""
        raise TypeError(f"{type(self).__name__} does not say how it predicts")

    def state(self) -> str:
        """What it has learnt, in one sentence for people; empty where there is nothing to tell."""
        return " ".join(v.state() for v in self.settings().values() if isinstance(v, Detector)).strip()

    @property
    def method(self) -> str:
        """Name in the registry: the name of the file."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def needs_fit(self) -> bool:
        """Whether it learns anything; one that holds detectors learns when they do."""
        inner = [v for v in self.settings().values() if isinstance(v, Detector)]
        return bool(self.learned) or any(v.needs_fit for v in inner)

    @property
    def learns(self) -> bool:
        """Whether `fit` makes a difference; a method may learn from normal pictures without needing any."""
        return self.needs_fit or any(v.learns for v in self.settings().values() if isinstance(v, Detector))

    @property
    def draws(self) -> bool:
        """Whether another `seed` makes another detector."""
        return hasattr(self, "seed") or any(v.draws for v in self.settings().values() if isinstance(v, Detector))

    @property
    def trains_by_gradient(self) -> bool:
        """Whether `fit` is a training, too long to be repeated; one that holds detectors trains when they do."""
        card = getattr(sys.modules[type(self).__module__], "CARD", None)
        inner = [v for v in self.settings().values() if isinstance(v, Detector)]
        return getattr(card, "trains", "") == "gradient" or any(v.trains_by_gradient for v in inner)

    @property
    def fitted(self) -> bool:
        inner = [v for v in self.settings().values() if isinstance(v, Detector)]
        return all(getattr(self, k, None) is not None for k in self.learned) and all(v.fitted for v in inner)

    def require_fit(self) -> None:
        if not self.fitted:
            raise NotFitted(
                f"{type(self).__name__} predicts only after fit: call fit(samples) with normal samples, "
                "or load a saved folder."
            )

    def settings(self) -> dict[str, Any]:
        """The dataclass fields, as given."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def unfitted(self) -> Self:
        """A new detector of the same settings that has seen nothing."""
        copies = {k: v.unfitted() if isinstance(v, Detector) else v for k, v in self.settings().items()}
        return type(self)(**copies)


def names() -> tuple[str, ...]:
    """Every detector that can be created."""
    return registry.stems("detectors")


def card(name: str) -> Card:
    """What a method is and needs, without importing it."""
    return registry.literal_card("detectors", "detector", name, "Card")


def create(name: str, **settings: Any) -> Detector:
    """A new, unfitted detector.

    Raises:
        UnknownName: no such detector or setting; the message names the nearest ones.
        WrongInput: a setting of the wrong type.
    """
    cls = class_of(name)
    check_settings(name, cls, settings)
    return cls(**settings)


LEAST = {"image_size": 1, "batch_size": 1, "threads": 1, "seed": 0}  # of settings that most methods share


def check_settings(name: str, cls: type, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a dataclass does not have, of another type, or below what they can be (LEAST).

    Raises:
        UnknownName: no such setting; the message names the nearest ones. WrongInput: a setting of the wrong type or size.
    """
    hints = setting_types(cls)
    for key, value in settings.items():
        if key not in hints:
            raise unknown(f"setting of {name}", key, hints)
        if not _fits(value, hints[key]):
            raise WrongInput(f"{name} setting {key}={value!r} is not of type {_spell(hints[key])}.")
        if key in LEAST and isinstance(value, int) and value < LEAST[key]:
            raise WrongInput(f"{name} setting {key} is {LEAST[key]} or more; got {value}.")


def class_of(name: str) -> type[Detector]:
    """The class behind a name; its fields are its settings."""
    return registry.module("detectors", "detector", name).DETECTOR


def setting_types(cls: type) -> dict[str, Any]:
    """Field name to type, for a detector class."""
    hints = typing.get_type_hints(cls, localns={"Calibration": Any})  # not a setting, and imported for types only
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, _types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        inner = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return len(value) == len(inner) and all(_fits(v, a) for v, a in zip(value, inner, strict=True))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
