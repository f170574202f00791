"""The texts that models are given, as versioned data beside this file: a text that changes is a new file."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def load(name: str) -> dict[str, Any]:
    """The texts of one file, such as `customizable_vlm_1`; their version is its name."""
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


def fill(text: str, **values: str) -> str:
    """Put values in place of {name}. One pass: braces in a value, and in the JSON of a text, stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text).strip()
