"""Things to check rules on: settings of LogiCode for the drawn pictures of the contract tests, and drawn trays of nuts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomalens.images import encode
from anomalens.types import Sample, View

PALE, DARK = ((0, 360), (0, 0.43), (0, 1)), ((0, 360), (0, 1), (0, 0.27))  # leather is brown and lit evenly
BRIGHT = ((0, 360), (0, 1), (0.62, 1))


def rules_against(**ranges: Any) -> dict[str, Any]:
    """Settings of LogiCode: nothing of these colours may be there."""
    lines = [f"labels: [{', '.join(ranges)}]", "rules:", *(f"  - absent: {name}" for name in ranges)]
    return {
        "rules": "\n".join(lines),
        "parser": "color-blobs",
        "parser_settings": {"ranges": ranges, "smallest": 2},
    }


# Trays of 2 x 3 cells: four brown nuts in the left 2 x 2, the right column empty.

LEFT = ((0, 0), (0, 1), (1, 0), (1, 1))
NUTS = {"parser": "color-blobs", "parser_settings": {"ranges": {"nut": ((10, 40), (0.3, 1), (0.3, 1))}}}
TRAY = """
category: tray
labels: [nut]
regions: {left: [0, 0, 0.6667, 1], right: [0.6667, 0, 1, 1]}
rules:
  - {count: nut, exactly: 4}
  - {count: nut, exactly: 1, in: left, cells: [2, 2]}
  - {absent: nut, in: right, type: position}
"""
LEARNT = TRAY + "  - {size: nut, field: length, learnt: true}\n"
IN_WORDS = """
category: tray
labels: [nut]
rules:
  - "quantity: The tray holds exactly four nuts."
"""
COUNTS = """
def check(image):
    nuts = image.find("nut")
    if len(nuts) == 4:
        return []
    return [image.finding("quantity", f"{len(nuts)} nuts, 4 expected", rule="R1", objects=nuts)]
"""
ENDLESS = "def check(image):\n    while True:\n        pass\n"


def tray_picture(cells: Sequence[tuple[int, int]] = LEFT, seed: int = 0, radius: float = 20) -> np.ndarray:
    """(128, 192, 3) uint8 with a nut in each of these (row, column)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :192]
    picture = np.full((128, 192, 3), 40) + (x / 10)[..., None]
    for row, col in cells:
        cy, cx = 64 * row + 32 + rng.uniform(-5, 5), 64 * col + 32 + rng.uniform(-5, 5)
        picture[np.hypot(y - cy, x - cx) < radius + rng.uniform(-1, 1)] = (150, 90, 60)
    return (picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


def tray(cells: Sequence[tuple[int, int]] = LEFT, seed: int = 0, radius: float = 20) -> Sample:
    """A tray as a sample, labelled by whether its cells are the right ones."""
    picture = tray_picture(cells, seed, radius)
    label = int(set(cells) != set(LEFT))
    return Sample(f"{len(cells)}-{seed}.png", {"image": View("image", partial(np.copy, picture))}, "tray", label)


MISSING, EXTRA = LEFT[:3], (*LEFT, (0, 2))
MISPLACED = (*LEFT[:3], (1, 2))


def trays(count: int, seed: int = 0) -> list[Sample]:
    """Good ones."""
    return [tray(LEFT, seed + i) for i in range(count)]


def write_trays(root: Path, good: int = 8) -> Path:
    """The same on disk: root/good with good ones, root/new with fine, missing, extra and misplaced."""
    content = {f"good/{i:02}.png": tray_picture(LEFT, i) for i in range(good)}
    wrong = {"missing": MISSING, "extra": EXTRA, "misplaced": MISPLACED}
    content |= {f"new/{name}.png": tray_picture(cells, 50) for name, cells in {"fine": LEFT, **wrong}.items()}
    for name, picture in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture))
    return root
