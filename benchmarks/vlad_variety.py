"""Does a variety of drawn defects help VLAD: python benchmarks/vlad_variety.py

Four categories of the data pack, all pictures and masks reduced to 128 pixels. No CLIP is at hand: the frozen network is
ResNet18 with ImageNet weights, with a linear head in place of sentences. A seed draws eight good pictures; into these 50
defects are drawn, by Perlin noise alone (as DRAEM), by the seven quick makers in turn, or half by Perlin noise and half by
the other six. Each is learnt for the same number of steps. Three readings of one model: what was learnt alone (K = 0), with
the eight pictures as references, and the references alone. Beside them PatchCore with every patch of the same pictures.
Nothing is chosen on these labels. Cells: mean and standard deviation over the seeds. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import CATEGORIES, RESNET18, data, table
from _real import going_on, judged, rows, spread

import anomalens as al
from anomalens import metrics
from anomalens.datasets import open_folder
from anomalens.detectors.vlad import DRAWN
from anomalens.images import resize, to_8bit
from anomalens.metrics import PixelEvalPolicy
from anomalens.parts.auxiliary import soft_mask
from anomalens.parts.batches import batches
from anomalens.parts.grids import to_numpy
from anomalens.types import Sample, View

SIZE, NORMALS, BATCH = 128, 8, 16
OTHERS = tuple(name for name in DRAWN if name != "perlin")
VARIANTS: dict[str, tuple[str, ...]] = {
    "perlin": ("perlin",),
    "seven makers": DRAWN,
    "mixed": tuple(name for other in OTHERS for name in ("perlin", other)),
}
READINGS = ("learnt", "with references", "references")


def reduced(sample: Sample) -> Sample:
    """At 128 pixels, in memory."""
    picture = resize(to_8bit(sample.image()), (SIZE, SIZE), "bicubic")
    mask = None
    if sample.mask:
        mask = View("mask", partial(np.asarray, soft_mask(sample.mask.read() == 1, (SIZE, SIZE)) > 0.5))
    return replace(sample, views={"image": View("image", partial(np.asarray, picture))}, mask=mask)


@lru_cache
def pictures(category: str) -> tuple[list[Sample], list[Sample]]:
    folder = open_folder(data(category))
    return [reduced(s) for s in folder.train()], [reduced(s) for s in folder.test()]


class Remembered:
    """A frozen network that looks at no batch twice: the test pictures are the same for every model."""

    def __init__(self, network: Any):
        self.network, self.seen = network, {}

    def __call__(self, images: np.ndarray) -> list[Any]:
        key = hash(images.tobytes())
        if key not in self.seen:
            self.seen[key] = self.network(images)
        return self.seen[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


EYES: dict[str, Any] = {}


def run(job: dict[str, Any]) -> dict[str, float]:
    train, test = pictures(job["category"])
    chosen = [train[i] for i in np.random.default_rng(job["seed"]).permutation(len(train))[:NORMALS]]
    settings: dict[str, Any] = {"backbone": RESNET18, "image_size": SIZE, "seed": job["seed"], "threads": 1}
    if job["method"] == "patchcore":
        found = judged(al.create("patchcore", coreset=1.0, **settings).fit(chosen), test, SIZE)
        return {level: found[level] for level in ("image", "pixel") if level in found}
    detector: Any = al.create(
        "vlad",
        makers=VARIANTS[job["method"]],
        shots=NORMALS,
        steps=job["steps"],
        batch_size=BATCH,
        device="cpu",
        **settings,
    )
    if not EYES:
        EYES["network"] = Remembered(detector.eye().network)
    detector.eye().network = EYES["network"]
    detector.fit(chosen)
    return {**readings(detector, test), "loss": detector.trained["loss"]}


def readings(detector: Any, test: list[Sample]) -> dict[str, float]:
    """AUROC of images, and of pixels where there are masks, of three readings of a model."""
    import torch

    scores: dict[str, list[float]] = {name: [] for name in READINGS}
    maps: dict[str, list[np.ndarray]] = {name: [] for name in READINGS}
    for batch in batches(test, (SIZE, SIZE), BATCH, interpolation="bicubic"):
        banks = [detector.bank_of(s.category) for s in batch.samples]
        out = detector.trace(batch.images, ["object"] * len(banks), banks)
        learnt, distance = (detector.blurred(out[name]) for name in ("s", "r"))
        both = out["map"]
        for name, found in zip(READINGS, (learnt, both, distance), strict=True):
            top = detector.highest(found)
            score = top if name == "references" else (top + out["p"]) / 2
            scores[name] += score.tolist()
            maps[name] += list(to_numpy(found))
        assert torch.allclose((detector.highest(both) + out["p"]) / 2, out["score"])
    labels = [int(s.label or 0) for s in test]
    told = {}
    for name in READINGS:
        told[f"{name}, image"] = metrics.image(scores[name], labels, ["auroc"])["auroc"].value
        if all(s.mask for s in test if s.label):
            masks = [s.mask.read() if s.mask else None for s in test]
            found = metrics.pixel(maps[name], masks, PixelEvalPolicy(size=SIZE), which=["auroc"])
            told[f"{name}, pixel"] = found["auroc"].value
    return told


def tables(found: list[dict[str, Any]]) -> None:
    for level in ("image", "pixel"):
        lines = []
        for reading in READINGS:
            for method in VARIANTS if reading != "references" else ("perlin",):
                drawn = "-" if reading == "references" else method
                lines.append((reading, drawn, *cells(found, method, f"{reading}, {level}")))
        lines.append(("PatchCore", "-", *cells(found, "patchcore", level)))
        table(("reading", f"drawn, {level} AUROC", *CATEGORIES, "mean"), lines)


def cells(found: list[dict[str, Any]], method: str, key: str) -> list[str]:
    """Of each category, and of the mean over the categories that have all seeds."""
    mine = [r for r in found if r["method"] == method and key in r]
    of = [[r[key] for r in mine if r["category"] == c] for c in CATEGORIES]
    whole = [values for values in of if values]
    count = min(map(len, whole), default=0)
    return [*map(spread, of), spread(list(np.mean([v[:count] for v in whole], axis=0))) if count else "-"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vlad_variety.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    jobs = [
        {"method": method, "category": category, "seed": seed, "steps": args.steps}
        for seed in range(args.seeds)
        for category in CATEGORIES
        for method in (*VARIANTS, "patchcore")
    ]
    if not args.tables:
        going_on(args.out, jobs, run)
    tables(rows(args.out, {"steps": args.steps}))


if __name__ == "__main__":
    main()
