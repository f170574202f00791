"""What AdaCLIP's training teaches a CLIP that has no knowledge of language: a table over its kinds of prompts.

    python scripts/train_small_clip.py small_clip.safetensors
    python benchmarks/adaclip_learns.py small_clip.safetensors --work runs/adaclip_learns

The categories and defect kinds that the small CLIP was trained on, named in its file, are what AdaCLIP learns from too, on
other pictures; it is judged on CATEGORIES and KINDS, which neither of them has seen. As nobody ever told either of them the
names of these, everything is called "surface". A last column is of OTHERS, kinds that cover much and break nothing.

A run is one variant and one seed, which draws the training pictures, the initial values and the order. Its figures lie in
--work as JSON; started again, only missing runs are made. Figures are means over the categories; the table has their mean
over the seeds, lowest and highest in brackets. Seconds are of training, processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import table
from safetensors import safe_open

from anomalens import metrics
from anomalens.datasets.procedural import Procedural
from anomalens.detectors.adaclip import AdaCLIP
from anomalens.detectors.april_gan import AprilGan
from anomalens.files import write_atomic
from anomalens.parts.batches import batches
from anomalens.parts.grids import resize_map
from anomalens.parts.prompts import unit
from anomalens.types import Prediction, Sample

CATEGORIES, KINDS, OTHERS = ("leather", "stripes", "wood"), ("hole", "scratch"), ("colour", "misprint")
SIZE = 96
NETWORK = {
    "image_size": SIZE,
    "object": "surface",
    "depth": 2,
    "length": 3,
    "clusters": 4,
    "sigma": 1.0,
    "batch_size": 8,
}
ALONE, BEFORE = "the small CLIP alone", "before training"
VARIANTS: dict[str, dict[str, Any]] = {
    ALONE: {},
    BEFORE: {},
    "no prompts": {"type": "", "branch": ""},
    "static": {"type": "S"},
    "dynamic": {"type": "D"},
    "static and dynamic": {},
    "static and dynamic, without fusion": {"fusion": False},
}
FIGURES = ("image AUROC", "pixel AUROC", "pixel max-F1", "pixel AUROC, others", "seconds")


class Alone:
    """The tower's own last patches and picture against the sentences, without anything learnt by AdaCLIP."""

    def __init__(self, detector: AdaCLIP):
        self.clip = detector.clip
        self.texts = AprilGan(backbone=detector.backbone, adapter="random", image_size=SIZE, activation="gelu")

    def predict(self, samples: list[Sample]) -> Iterator[Prediction]:
        T = self.texts.text("surface")
        for batch in batches(samples, (SIZE, SIZE), 8, interpolation="bicubic"):
            with torch.no_grad():
                tokens, _ = self.clip.vision(self.clip.embed(self.clip.normalise(batch.images)))
                abnormal = (unit(self.clip.visual.ln_post(tokens) @ self.clip.visual.proj) @ T).diff(dim=-1)[..., 0]
            side = self.clip.shape.grid
            for sample, values in zip(batch.samples, abnormal.numpy(), strict=True):
                grid = values[1:].reshape(side, side)
                yield Prediction(sample.id, float(values[0]), resize_map(grid, (SIZE, SIZE)))


def annotated(categories: tuple[str, ...], kinds: tuple[str, ...], good: int, bad: int, seed: int) -> list[Sample]:
    """`good` pictures of each category, and about `bad` with defects of these kinds."""
    found = []
    for category in categories:
        own = Procedural(category).kinds
        asked = round(bad * len(own) / max(len(set(kinds) & set(own)), 1))  # kinds take turns
        drawn = Procedural(category, size=SIZE, seed=seed, train_count=0, good_count=good, bad_count=asked)
        found += [s for s in drawn.test() if s.label == 0 or s.defect in kinds]
    return found


def figures(detector: AdaCLIP | Alone) -> dict[str, float]:
    """Means over categories."""
    found, others = [], []
    for category in CATEGORIES:
        own = annotated((category,), KINDS, 12, 24, 7)
        predictions = list(detector.predict(own))
        image = metrics.get("auroc")([p.score for p in predictions], [s.label for s in own])
        masks = [s.mask.read() if s.mask else None for s in own]
        pixel = metrics.pixel([p.map for p in predictions], masks, which=("auroc", "f1max"))
        found.append((image, pixel["auroc"].value, pixel["f1max"].value))
        large = [s for s in annotated((category,), OTHERS, 0, 12, 7) if s.label]
        if large:
            maps = [p.map for p in detector.predict(large)]
            others.append(metrics.pixel(maps, [s.mask.read() for s in large], which=("auroc",))["auroc"].value)
    return dict(zip(FIGURES, [*np.mean(found, axis=0).tolist(), float(np.mean(others))], strict=False))


def run(clip: Path, variant: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train one variant and judge it."""
    with safe_open(clip, "pt") as file:
        about = json.loads(file.metadata()["small clip"])
    if {*CATEGORIES, *KINDS, *OTHERS} & {*about["categories"], *about["kinds"]}:
        raise SystemExit(f"{clip} has seen some of {CATEGORIES}, {KINDS} or {OTHERS}; train another one.")
    detector = AdaCLIP(backbone=f"clip:@{clip}", adapter="random", seed=seed, **{**NETWORK, **VARIANTS[variant]})
    began = time.process_time()
    if variant not in (ALONE, BEFORE):
        learn = annotated(tuple(about["categories"]), tuple(about["kinds"]), args.good, args.bad, 100 + seed)
        detector.train_auxiliary(learn, epochs=args.epochs, batch=args.batch, lr=args.lr, dice_over="image", mosaic=0.0)
    seconds = time.process_time() - began
    return {**figures(Alone(detector) if variant == ALONE else detector), "seconds": seconds}


def spread(values: list[float]) -> str:
    digits = 3 if max(values) <= 1 else 0
    mean, low, high = (f"{v:.{digits}f}" for v in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 or low == high else f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="what scripts/train_small_clip.py wrote")
    parser.add_argument("--work", type=Path, default=Path("runs/adaclip_learns"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--good", type=int, default=6, help="good training pictures of each category")
    parser.add_argument("--bad", type=int, default=16, help="damaged ones")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.001)
    args = parser.parse_args()
    rows = []
    for variant in args.variants:
        found = []
        for seed in range(1 if variant == ALONE else args.seeds):
            held = args.work / f"{variant.replace(',', '').replace(' ', '-')}-{seed}.json"
            if not held.exists():
                write_atomic(held, json.dumps(run(args.clip, variant, seed, args)))
            found.append(json.loads(held.read_text()))
            print(f"{variant}, seed {seed}: {found[-1]}", flush=True)
        rows.append((variant, *(spread([f[name] for f in found]) for name in FIGURES)))
    table(("variant", *FIGURES), rows)


if __name__ == "__main__":
    main()
