"""What `anomalens data NAME ROOT` prints: a local copy of a dataset, looked over."""

from __future__ import annotations

import json
from typing import Any

from .. import datasets

HEAD = ("category", "train", "good", "bad", "masks", "unreadable", "no mask", "mask size", "empty mask")
LISTS = ("unreadable", "no_mask", "mask_size", "empty_mask")


def report(name: str, root: str, as_json: bool = False, decode: bool = False) -> str:
    """A short table, a line per category, and sentences about what is wrong; or the same as one line of JSON.

    decode: read every picture and mask completely instead of verifying their files.

    Raises:
        UnknownName: no such dataset.
        WrongInput: the root is not this dataset; the sentence says what was looked for and what is there.
    """
    from ..datasets._check import check

    card = datasets.card(name)
    result = check(datasets.reader(name), root, card, decode)
    return json.dumps(result) + "\n" if as_json else _table(result, card.licence, card.citation)


def _table(result: dict[str, Any], licence: str, citation: str) -> str:
    rows = [HEAD, *((name, *_numbers(counts)) for name, counts in result["categories"].items())]
    if len(rows) > 2:
        rows.append(("all", *(str(sum(int(row[i]) for row in rows[1:])) for i in range(1, len(HEAD)))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [f"{result['title']} in {result['root']} (licence: {licence})", ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines += ["", *(result["problems"] or ["Everything is there and can be read."])]
    if citation:
        lines.append(f"Cite: {citation}")
    return "\n".join(lines) + "\n"


def _numbers(counts: dict[str, Any]) -> tuple[str, ...]:
    plain = (counts[key] for key in ("train", "good", "bad", "masks"))
    return tuple(str(n) for n in (*plain, *(len(counts[key]) for key in LISTS)))
