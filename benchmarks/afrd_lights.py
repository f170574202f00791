"""AFRD on a medal under six lights: the ways to fuse beside one light and the mean picture; accuracy, time, memory.

    python benchmarks/afrd_lights.py              # 3 seeds, one thread; goes on where it stopped
    python benchmarks/afrd_lights.py --sample     # what it says of the unlabelled things of the data pack

The things are those of the drawn category `relief`: bumps, dents and scratches change the height and show in light from
the right side, stains show in all. Each cell runs in a process of its own, so that its memory is its own. Seconds are
processor seconds of one thread, which do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESNET18, data, table

from anomalens import create, metrics, store
from anomalens.datasets.folder import Folder
from anomalens.datasets.procedural import Procedural
from anomalens.types import Sample, View

ROWS: dict[str, dict[str, Any]] = {
    "one light, light_0": {"fusion": "single", "light": "light_0"},
    "one light, light_2": {"fusion": "single", "light": "light_2"},
    "the mean picture": {"fusion": "image_mean"},
    "mean": {"fusion": "mean"},
    "max": {"fusion": "max"},
    "attention": {"fusion": "attention"},
}
KINDS = ("bump", "dent", "scratch", "stain")
FIGURES = ("image AUROC", *KINDS, "pixel AUROC", "fit, s", "ms a sample", "peak MB", "saved MB")


def run(row: str, seed: int, backbone: str, size: int, steps: int, folder: Path) -> dict[str, Any]:
    """One fit and one judgement."""
    drawn = Procedural("relief", size=size, seed=seed, train_count=40, good_count=20, bad_count=32)
    normal, test = [kept(s) for s in drawn.train()], [kept(s) for s in drawn.test()]
    detector: Any = create(
        "afrd", image_size=size, backbone=backbone, preset="ours", steps=steps, seed=seed, device="cpu", **ROWS[row]
    )
    started = time.process_time()
    detector.fit(normal)
    fitted = time.process_time()
    predictions = list(detector.predict(test))
    judged = time.process_time()
    store.save(detector, folder)
    scores, kinds = np.array([p.score for p in predictions]), np.array([s.defect for s in test])
    figures: dict[str, Any] = {}
    for kind in ("", *KINDS):
        here = (kinds == "good") | (kinds == kind) if kind else np.ones(len(kinds), bool)
        figures[kind or "image AUROC"] = metrics.image(scores[here], kinds[here] != "good", ["auroc"])["auroc"].value
    none = np.zeros((size, size), bool)
    masks = [none if s.mask is None else s.mask.read() for s in test]
    found = metrics.pixel([np.asarray(p.map) for p in predictions], masks, which=["auroc"])
    figures["pixel AUROC"] = found["auroc"].value
    figures["fit, s"], figures["ms a sample"] = fitted - started, 1000 * (judged - fitted) / len(test)
    figures["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    figures["saved MB"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    if detector.trained["alpha"] is not None:
        figures["alpha"] = dict(zip(detector.lights, detector.trained["alpha"].mean(0).tolist(), strict=True))
    return {"row": row, "seed": seed, "backbone": Path(backbone).name, "size": size, "steps": steps, **figures}


def kept(sample: Sample) -> Sample:
    """The sample with its lights drawn once, so that drawing them is not timed."""
    views = {n: View(n, partial(np.asarray, v.read())) for n, v in sample.views.items() if n != "image"}
    return replace(sample, views=views)


def sample(backbone: str, steps: int) -> None:
    """Eleven rendered things under six lights, without labels: fitted on nine, what is said of the other two."""
    things = Folder(data("multi_light_sample")).samples()
    normal, others = things[:-2], things[-2:]
    detector = create("afrd", image_size=128, backbone=backbone, preset="ours", steps=steps, device="cpu").fit(normal)
    print(detector.state())
    for prediction in detector.predict([*others, *normal[:2]]):
        print(prediction.id, round(prediction.score, 3), *(reason.text for reason in prediction.reasons), sep="; ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    weights = RESNET18.partition("@")[2]
    parser.add_argument("--backbone", default=RESNET18 if Path(weights).exists() else "tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--steps", type=int, default=100, help="of training, 8 samples each")
    parser.add_argument("--sample", action="store_true", help="the unlabelled things of the data pack instead")
    parser.add_argument("--out", type=Path, default=Path("afrd_lights.jsonl"), help="results; what is there is kept")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)  # row and seed: what a process of its own does
    chosen = parser.parse_args()
    if chosen.sample:
        return sample(chosen.backbone, chosen.steps)
    if chosen.cell:
        row, seed = chosen.cell
        model = chosen.out.with_suffix(".model")
        print(json.dumps(run(row, int(seed), chosen.backbone, chosen.size, chosen.steps, model)))
        return None
    settings = {"backbone": Path(chosen.backbone).name, "size": chosen.size, "steps": chosen.steps}
    lines = chosen.out.read_text().splitlines() if chosen.out.exists() else []
    done = [d for d in map(json.loads, lines) if settings.items() <= d.items() and d["seed"] < chosen.seeds]
    there = {(d["row"], d["seed"]) for d in done}
    for seed in range(chosen.seeds):
        for row in ROWS:
            if (row, seed) in there:
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--cell", row, str(seed)]
            ended = subprocess.run(
                command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
            )
            done.append(json.loads(ended.stdout))
            with chosen.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"{row}, seed {seed}: image AUROC {done[-1]['image AUROC']:.3f}", flush=True)

    def shown(row: str, figure: str) -> str:
        values = [d[figure] for d in done if d["row"] == row]
        spread = f" ± {np.std(values):.3f}" if figure in FIGURES[:6] else ""
        return f"{np.mean(values):.3f}{spread}" if spread else f"{np.mean(values):.0f}"

    table(("fusion", *FIGURES), [(row, *(shown(row, f) for f in FIGURES)) for row in ROWS])
    for d in done:
        if "alpha" in d:
            print(f"seed {d['seed']}, weights:", {k: round(v, 3) for k, v in d["alpha"].items()})


if __name__ == "__main__":
    main()
