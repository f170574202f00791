"""Parsers: from a picture to a scene. Each file of this folder without a leading underscore is one parser, `PARSER`.

annotations   what people drew (LabelMe, COCO, folders of masks)
color-blobs   connected places within ranges of hue, saturation and value
segments      any function that returns masks and labels, such as a promptable segmenter
parts         needs no model: what differs from the background, in the kinds that normal pictures show
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from ... import registry
from ...errors import WrongInput, unknown
from ...types import Sample
from ..scene import Parsed

if TYPE_CHECKING:
    from typing_extensions import Self


@runtime_checkable
class Parser(Protocol):
    """A dataclass whose fields are its settings; `learned` names what `fit` makes, in arrays, numbers and strings."""

    learned: ClassVar[tuple[str, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label it can give; () where that is not known in advance."""
        ...

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Learn from normal samples; parsers that need none return unchanged."""
        ...

    def parse(self, sample: Sample) -> Parsed:
        """The scene of one picture, with a mask for each object."""
        ...


def names() -> tuple[str, ...]:
    """Every parser, by file name."""
    return registry.stems("reasoning/parsers")


def create(name: str, /, **settings: Any) -> Parser:
    """A parser with these settings.

    Raises:
        UnknownName: no parser, or none of its settings, has this name. WrongInput: a setting is missing or wrong.
    """
    stem = name.lower().replace("_", "-")
    if stem not in names():
        raise unknown("parser", name, names())
    kind = import_module(f"{__name__}.{stem.replace('-', '_')}").PARSER
    fields = dataclasses.fields(kind)
    known = [f.name for f in fields]
    for word in settings:
        if word not in known:
            raise unknown(f"setting of {stem}", word, known)
    default = dataclasses.MISSING
    needed = [f.name for f in fields if f.default is default and f.default_factory is default]
    for word in needed:
        if word not in settings:
            raise WrongInput(
                f"the parser {stem} is missing its setting {word!r}; give it in parser_settings, {{{word!r}: ...}}, see "
                "docs/rules.md."
            )
    try:
        parser: Parser = kind(**settings)
    except TypeError as error:
        raise WrongInput(f"a setting of the parser {stem} is of another kind than it takes: {error}.") from None
    return parser


def to_state(parser: Any) -> dict[str, Any]:
    """Everything about a parser in arrays, numbers, strings, lists and mappings, to be saved with a detector.

    A function, such as that of `segments`, is left out.
    """
    fields = {f.name: getattr(parser, f.name) for f in dataclasses.fields(parser)}
    return {
        "parser": type(parser).__module__.rpartition(".")[2].replace("_", "-"),
        "settings": {name: value for name, value in fields.items() if not callable(value)},
        "learned": {name: getattr(parser, name, None) for name in parser.learned},
    }


def from_state(state: Mapping[str, Any], /, **settings: Any) -> Parser:
    """The parser behind `to_state`; `settings` override, and bring back the function of `segments`.

    Raises:
        WrongInput: this is not the state of a parser.
    """
    try:
        parser = create(state["parser"], **{**state["settings"], **settings})
        for name in parser.learned:
            if state["learned"][name] is not None:
                setattr(parser, name, state["learned"][name])
    except (KeyError, TypeError) as error:
        raise WrongInput(f"this is not the state of a parser ({error}); save it again.") from None
    return parser
