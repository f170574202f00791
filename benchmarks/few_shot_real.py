"""DFD and PatchCore from one, two and four real pictures: python benchmarks/few_shot_real.py

Four categories of the data pack, ResNet18 with ImageNet weights. A seed draws the pictures from the training ones, the
same for both methods, and trains DFD; all test pictures are judged. PatchCore keeps every patch of so few pictures.
Nothing is chosen on these labels. Times are of the processor, in one thread with OMP_NUM_THREADS=1; memory is what a fit
adds to the process, at most: the first one loads torch. Cells: mean and standard deviation, of AUROC over the seeds, of
costs over all fits. Stopped, it goes on where it was.
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

SHOTS = (1, 2, 4)
METHODS = ("dfd", "patchcore")


def run(job: dict[str, Any], folders: dict[str, Any]) -> dict[str, float]:
    train, test = folders[job["category"]]
    chosen = np.random.default_rng(job["seed"]).permutation(len(train))[: job["shots"]]  # more shots: others are added
    settings: dict[str, Any] = {"coreset": 1.0}
    if job["method"] == "dfd":
        settings = {"preset": "small", "steps": job["steps"], "dim": job["dim"], "per_picture": 20, "device": "cpu"}
    detector = al.create(
        job["method"], backbone=RESNET18, image_size=job["size"], seed=job["seed"], threads=1, **settings
    )
    spent = cost(lambda: detector.fit([train[i] for i in chosen]))
    return {**judged(detector, test, job["size"]), **spent, "stored MB": stored(detector)}


def tables(found: list[dict[str, Any]]) -> None:
    for level in ("image", "pixel"):
        lines = []
        for shots in SHOTS:
            for method in METHODS:
                mine = [r for r in found if (r["shots"], r["method"]) == (shots, method) and level in r]
                cells = [spread(r[level] for r in mine if r["category"] == c) for c in CATEGORIES]
                seeds = sorted({r["seed"] for r in mine})
                means = [np.mean([r[level] for r in mine if r["seed"] == seed]) for seed in seeds]
                lines.append((shots, method, *cells, spread(means)))
        table(("shots", f"{level} AUROC", *CATEGORIES, "mean"), lines)
    lines = []
    for shots in SHOTS:
        for method in METHODS:
            mine = [r for r in found if (r["shots"], r["method"]) == (shots, method)]
            fit, stored_mb = (spread([r[k] for r in mine], 1) for k in ("fit", "stored MB"))
            most = f"{max((r['peak MB'] for r in mine), default=0):.0f}"
            lines.append((shots, method, fit, most, stored_mb, spread([1e3 * r["predict"] for r in mine], 0)))
    table(("shots", "method", "fit, CPU s", "fit adds at most, MB", "stored, MB", "judging a picture, CPU ms"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/few_shot_real.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    key = {"size": args.size, "steps": args.steps, "dim": args.dim}
    jobs = [
        {"method": method, "category": category, "shots": shots, "seed": seed, **key}
        for seed in range(args.seeds)
        for method in METHODS[::-1]
        for category in CATEGORIES
        for shots in SHOTS
    ]
    if not args.tables:
        folders = {c: (open_folder(data(c)).train(), open_folder(data(c)).test()) for c in CATEGORIES}
        going_on(args.out, jobs, lambda job: run(job, folders))
    tables(rows(args.out, key))


if __name__ == "__main__":
    main()
