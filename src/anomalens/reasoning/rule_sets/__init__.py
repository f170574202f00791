"""Rules that are ready to use, one YAML file for each category: those of MVTec LOCO AD, in our words.

Labels are ours: they must be those that the parser gives (rename them in a copy), and a rule about an attribute needs a
parser that knows it. Places are in fractions of the picture; what is usual in size and place comes from normal pictures.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import unknown
from ..rules import RuleSet
from ..rules import load as load_file

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Every category there are rules for."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name: str) -> RuleSet:
    """The rules of one category.

    Raises:
        UnknownName: there are none for it.
    """
    if name not in names():
        raise unknown("rule set", name, names())
    return load_file(FOLDER / f"{name}.yaml")
