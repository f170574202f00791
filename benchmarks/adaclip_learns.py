"""What AdaCLIP's training teaches a CLIP that has no knowledge of language: a table over its kinds of prompts.

    python scripts/train_small_clip.py small_clip.safetensors
    python benchmarks/adaclip_learns.py small_clip.safetensors --work runs/adaclip_learns

The categories and defect kinds that the small CLIP was trained on, named in its file, are what AdaCLIP learns from too, on
other pictures; it is judged on CATEGORIES and KINDS, which neither of them has seen. As nobody ever told either of them the
names of these, everything is called "surface". A last column is of OTHERS, kinds that cover much and break nothing.

--choose compares learning rates and epochs on a development split, and prints the best: AdaCLIP then learns without
DEVELOPMENT's categories and kinds, and is judged on them. Nothing is chosen on CATEGORIES and KINDS.

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
DEVELOPMENT = ("cap", "terrazzo"), ("stain",)  # seen by the small CLIP, but not by AdaCLIP where it chooses
RATES, EPOCHS = (0.0003, 0.001, 0.003, 0.01), (3, 6)
CHOOSING = (100, 101)  # seeds of their own
DRAW = 17  # seed of the pictures that are judged
FIRST = 3  # seed; 0 to 2 were looked at, on other pictures, while this was written
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


def judged(detector: AdaCLIP | Alone, categories: tuple[str, ...], kinds: tuple[str, ...]) -> list[float]:
    """Image AUROC, pixel AUROC and pixel max-F1, means over the categories."""
    found = []
    for category in categories:
        own = annotated((category,), kinds, 12, 24, DRAW)
        predictions = list(detector.predict(own))
        image = metrics.get("auroc")([p.score for p in predictions], [s.label for s in own])
        masks = [s.mask.read() if s.mask else None for s in own]
        pixel = metrics.pixel([p.map for p in predictions], masks, which=("auroc", "f1max"))
        found.append((image, pixel["auroc"].value, pixel["f1max"].value))
    return np.mean(found, axis=0).tolist()


def figures(detector: AdaCLIP | Alone) -> dict[str, float]:
    """Means over categories."""
    others = []
    for category in CATEGORIES:
        large = [s for s in annotated((category,), OTHERS, 0, 12, DRAW) if s.label]
        if large:
            maps = [p.map for p in detector.predict(large)]
            others.append(metrics.pixel(maps, [s.mask.read() for s in large], which=("auroc",))["auroc"].value)
    return dict(zip(FIGURES, [*judged(detector, CATEGORIES, KINDS), float(np.mean(others))], strict=False))


def about(clip: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Categories and kinds that a small CLIP was trained on."""
    with safe_open(clip, "pt") as file:
        seen = json.loads(file.metadata()["small clip"])
    if {*CATEGORIES, *KINDS, *OTHERS} & {*seen["categories"], *seen["kinds"]}:
        raise SystemExit(f"{clip} has seen some of {CATEGORIES}, {KINDS} or {OTHERS}; train another one.")
    return tuple(seen["categories"]), tuple(seen["kinds"])


def choose(clip: Path, args: argparse.Namespace) -> None:
    """Print what the development split says of every learning rate and number of epochs."""
    categories, kinds = (
        tuple(x for x in seen if x not in out) for seen, out in zip(about(clip), DEVELOPMENT, strict=True)
    )
    rows = []
    for lr in RATES:
        for epochs in EPOCHS:
            held = args.work / f"choose-{lr:g}-{epochs}.json"
            if not held.exists():
                found = []
                for seed in CHOOSING:
                    detector = AdaCLIP(backbone=f"clip:@{clip}", adapter="random", seed=seed, **NETWORK)
                    learn = annotated(categories, kinds, args.good, args.bad, 100 + seed)
                    detector.train_auxiliary(
                        learn, epochs=epochs, batch=args.batch, lr=lr, dice_over="image", mosaic=0.0
                    )
                    found.append(judged(detector, *DEVELOPMENT))
                write_atomic(held, json.dumps(np.mean(found, axis=0).tolist()))
            rows.append((f"{lr:g}", epochs, *json.loads(held.read_text())))
            print(*rows[-1], flush=True)
    table(("rate", "epochs", *FIGURES[:3]), rows)
    print("highest pixel max-F1: rate {}, {} epochs".format(*max(rows, key=lambda row: row[-1])))


def run(clip: Path, variant: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train one variant and judge it."""
    categories, kinds = about(clip)
    detector = AdaCLIP(backbone=f"clip:@{clip}", adapter="random", seed=seed, **{**NETWORK, **VARIANTS[variant]})
    began = time.process_time()
    if variant not in (ALONE, BEFORE):
        learn = annotated(categories, kinds, args.good, args.bad, 100 + seed)
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
    parser.add_argument("--choose", action="store_true", help="compare rates and epochs on the development split")
    args = parser.parse_args()
    if args.choose:
        choose(args.clip, args)
        return
    rows = []
    for variant in args.variants:
        found = []
        for seed in range(FIRST, FIRST + (1 if variant == ALONE else args.seeds)):
            held = args.work / f"{variant.replace(',', '').replace(' ', '-')}-{seed}.json"
            if not held.exists():
                write_atomic(held, json.dumps(run(args.clip, variant, seed, args)))
            found.append(json.loads(held.read_text()))
            print(f"{variant}, seed {seed}: {found[-1]}", flush=True)
        rows.append((variant, *(spread([f[name] for f in found]) for name in FIGURES)))
    table(("variant", *FIGURES), rows)


if __name__ == "__main__":
    main()
