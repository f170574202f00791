"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from ..errors import WrongInput

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(amount: int | str) -> int:
    """'2GB' -> 2000000000, '512MiB' -> 536870912, 1000 -> 1000.

    Raises:
        WrongInput: not a positive amount with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(amount))
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise WrongInput(f"{amount!r} is not an amount of memory; write for instance 2GB, 500MB or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
