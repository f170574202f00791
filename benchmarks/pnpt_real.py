"""PNPT as one model of four real categories, beside a model for each, and PatchCore: python benchmarks/pnpt_real.py

The categories of the data pack, all their good training pictures, ResNet18 with ImageNet weights; the test pictures come
with their category. One model of four is trained for --steps, a model of one category for --each, half as many, so that the
four are twice the work. PatchCore keeps one memory of all categories, or one for each, at its defaults. A seed trains PNPT
and starts PatchCore's coreset. Nothing is chosen on these labels. Times are of the processor, in one thread with
OMP_NUM_THREADS=1; memory is what a fit adds to the process, at most: the first one loads torch. Cells: mean and standard
deviation over the seeds. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _common import CATEGORIES, RESNET18, data, table
from _real import cost, going_on, judged, rows, spread, stored

import anomalens as al
from anomalens.datasets import open_folder

WAYS = ("patchcore, one model", "patchcore, four models", "pnpt, one model", "pnpt, four models")


def run(job: dict[str, Any], folders: dict[str, Any]) -> dict[str, Any]:
    """Figures of every category, and what all the models of this way cost together."""
    method, _, how = job["way"].partition(", ")
    out: dict[str, Any] = {"fit": 0.0, "stored MB": 0.0, "peak MB": 0.0, "predict": 0.0}
    for group in [CATEGORIES] if how == "one model" else [(c,) for c in CATEGORIES]:
        settings: dict[str, Any] = {}
        if method == "pnpt":
            settings = {
                "preset": "small",
                "steps": job["steps"] if how == "one model" else job["each"],
                "batch_size": 8,
            }
        common = {"backbone": RESNET18, "image_size": job["size"], "seed": job["seed"], "threads": 1, "device": "cpu"}
        detector = al.create(method, **common, **settings)
        spent = cost(lambda detector=detector, group=group: detector.fit([s for c in group for s in folders[c][0]]))
        out["fit"] += spent["fit"]
        out["stored MB"] += stored(detector)
        out["peak MB"] = max(out["peak MB"], spent["peak MB"])
        for category in group:
            found = judged(detector, folders[category][1], job["size"])
            out["predict"] += found.pop("predict") / len(CATEGORIES)
            out |= {f"{level} {category}": value for level, value in found.items()}
    return out


def tables(found: list[dict[str, Any]]) -> None:
    for level in ("image", "pixel"):
        lines = []
        for way in WAYS:
            mine = [r for r in found if r["way"] == way]
            cells = [spread([r[f"{level} {c}"] for r in mine if f"{level} {c}" in r]) for c in CATEGORIES]
            means = [np.mean([r[f"{level} {c}"] for c in CATEGORIES if f"{level} {c}" in r]) for r in mine]
            lines.append((way, *cells, spread(means), len(mine)))
        table((f"{level} AUROC", *CATEGORIES, "mean", "seeds"), lines)
    lines = []
    for way in WAYS:
        mine = [r for r in found if r["way"] == way]
        fit, stored_mb = (spread([r[k] for r in mine], 1) for k in ("fit", "stored MB"))
        most = f"{max((r['peak MB'] for r in mine), default=0):.0f}"
        lines.append((way, fit, most, stored_mb, spread([1e3 * r["predict"] for r in mine], 0)))
    table(
        ("all models of the way", "fit, CPU s", "fit adds at most, MB", "stored, MB", "judging a picture, CPU ms"),
        lines,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pnpt_real.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=240, help="of one model of all categories")
    parser.add_argument("--each", type=int, default=120, help="of a model of one category")
    parser.add_argument("--way", action="append", choices=WAYS, help="only these; all unless given")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    key = {"size": args.size, "steps": args.steps, "each": args.each}
    jobs = [{"way": w, "seed": seed, **key} for seed in range(args.seeds) for w in args.way or WAYS]
    if not args.tables:
        folders = {c: (open_folder(data(c)).train(), open_folder(data(c)).test()) for c in CATEGORIES}
        going_on(args.out, jobs, lambda job: run(job, folders))
    tables(rows(args.out, key))


if __name__ == "__main__":
    main()
