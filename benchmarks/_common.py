"""What the benchmarks share: the data pack beside the repository, and tables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SHARED = Path(os.environ.get("ANOMALENS_SHARED", Path(__file__).parents[2] / "shared"))
RESNET18 = f"timm:resnet18@{SHARED / 'weights' / 'resnet18_stem_to_layer3.safetensors'}"
CATEGORIES = ("magnetic_tile", "pcb", "hazelnut", "brain_mri")


def data(category: str) -> Path:
    folder = SHARED / "data" / category
    if not folder.exists():
        sys.exit(f"{folder} is absent; set ANOMALENS_SHARED to the data pack.")
    return folder


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print a Markdown table; numbers with three decimals."""
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(len(str(r[i])) for r in [head, *cells]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *cells]:
        print("| " + " | ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)) + " |", flush=True)
    print()
