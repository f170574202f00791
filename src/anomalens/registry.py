"""Finding methods, backbones and readers by listing folders: a new file is a new name, there is no list to keep."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from . import types
from .errors import unknown

PACKAGE = Path(__file__).parent


@cache
def stems(folder: str) -> tuple[str, ...]:
    """Names in one folder of the package, as a user types them: `per_view.py` is `per-view`."""
    files = (PACKAGE / folder).glob("*.py")
    return tuple(sorted(f.stem.replace("_", "-") for f in files if not f.stem.startswith("_")))


def resolve(folder: str, kind: str, name: str) -> str:
    """The registered spelling of `name`; `_` and `-`, upper and lower case are the same, a card's aliases count."""
    spelled = name.lower().replace("_", "-")
    if spelled in stems(folder):
        return spelled
    for stem in stems(folder):
        if spelled in getattr(literal_card(folder, kind, stem), "aliases", ()):
            return stem
    raise unknown(kind, name, stems(folder))


def module(folder: str, kind: str, name: str) -> ModuleType:
    """Import the file behind a name."""
    stem = resolve(folder, kind, name).replace("-", "_")
    return import_module(f"anomalens.{folder}.{stem}")


@cache
def literal_card(folder: str, kind: str, name: str, constructor: str | None = None) -> Any:
    """The `CARD = Constructor(...)` of a file, read from its syntax tree: nothing of the file runs."""
    stem = resolve(folder, kind, name).replace("-", "_")
    tree = ast.parse((PACKAGE / folder / f"{stem}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CARD":
            return _build(node.value, constructor)
    raise TypeError(f"{folder}/{stem}.py has no CARD")


def _build(node: ast.expr, constructor: str | None = None) -> Any:
    """A literal, or one of our frozen dataclasses called with keyword literals; tables may be starred in a tuple."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if constructor and node.func.id != constructor:
            raise TypeError(f"CARD must be a {constructor}(...), it is a {node.func.id}(...)")
        positional = [_build(argument) for argument in node.args]
        return getattr(types, node.func.id)(*positional, **{str(k.arg): _build(k.value) for k in node.keywords})
    if isinstance(node, ast.Tuple):
        items = [(item, _build(item.value if isinstance(item, ast.Starred) else item)) for item in node.elts]
        return tuple(v for item, built in items for v in (built if isinstance(item, ast.Starred) else (built,)))
    return ast.literal_eval(node)
