"""The state of a training on disk: one safetensors file, its scalars as JSON in the header. Nothing is pickled.

The file is replaced by a single rename, so a reader finds the old state or the new one, never half of either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AnomalensError, CannotWrite, WrongInput
from ..files import writing

NAME = "training.safetensors"
FORMAT = 1


def write(folder: Path, tensors: Mapping[str, Any], facts: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder` (made if need be).

    Raises:
        CannotWrite: rights, a full disk, a file in the way. The old checkpoint is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {"training": json.dumps({"format": FORMAT, **facts}, allow_nan=False)}
    on_host = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{NAME}.new"
        try:
            save_file(on_host, fresh, header)
            os.replace(fresh, folder / NAME)
        except SafetensorError as error:  # how safetensors passes on what the system said
            raise CannotWrite(f"{folder} cannot be written: {error}; nothing that was there is lost.") from error
        finally:
            fresh.unlink(missing_ok=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(tensors by name, on the CPU; facts), or None where no checkpoint lies.

    Raises:
        WrongInput: the file is damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["training"])
            if facts["format"] != FORMAT:
                raise WrongInput(f"{path} has format {facts['format']!r}, this version reads {FORMAT}; remove it.")
            return {k: file.get_tensor(k) for k in file.keys()}, facts  # noqa: SIM118 - it is not a dict
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, AnomalensError):
            raise
        raise WrongInput(f"{path} is damaged ({type(error).__name__}); remove it to train from the start.") from None


def first_difference(here: Any, there: Any, name: str = "") -> str:
    """Where two JSON values differ first, in words; empty where they do not."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in [*here, *(k for k in there if k not in here)]:
            if found := first_difference(here.get(key), there.get(key), f"{name} {key}".strip()):
                return found
        return ""
    return "" if here == there else f"{name}: {there} there, {here} here"
