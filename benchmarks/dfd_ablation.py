"""What the parts of DFD are worth: bands, paths, shots, and simpler ways, on drawn pictures with three kinds of defect.

    python benchmarks/dfd_ablation.py            # 150 fits; interrupted, it goes on where it was
    python benchmarks/dfd_ablation.py --table    # what is there so far

Three textures and two things, four good pictures to learn from, twenty good ones to test on and twenty with each kind of
defect: `scratch`, 1 to 2 pixels wide, 3 to 6 % darker or lighter; `stain`, smooth, 4 to 8 %; `patch`, another texture.
Every way has the same number of steps. Cells: mean over the five categories, and the standard deviation of that mean over
the seeds, which draw the pictures and train the networks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import anomalens as al
from anomalens import metrics
from anomalens.datasets._draw import Pose, Stencil, inside, mix, noise, numbers, rounded_box, step
from anomalens.synthesis.perlin import drawn_texture
from anomalens.types import Sample, View

Rng = np.random.Generator
DFD: dict[str, Any] = {"per_picture": 20}
WAYS: dict[str, dict[str, Any]] = {
    "low + high, both paths": {},
    "RGB": {"frequencies": "rgb"},
    "low": {"frequencies": "low"},
    "high": {"frequencies": "high"},
    "Gaussian path": {"paths": "gaussian"},
    "Perlin path": {"paths": "perlin"},
    "one shot": {"shots": 1},
    "RGB, Gaussian path (as SimpleNet)": {"frequencies": "rgb", "paths": "gaussian"},
    "RGB, Perlin path (as DRAEM)": {"frequencies": "rgb", "paths": "perlin"},
    "patch k-NN": {"method": "patchcore"},
}
TEST = 20  # good pictures, and pictures with each kind of defect


# --- pictures ---------------------------------------------------------------------------------------------------------


def clouds(size: int, rng: Rng) -> np.ndarray:
    """Smooth felt."""
    return mix(colour(size, 0.45, 0.5, 0.42), (0.56, 0.6, 0.5), 0.5 + 0.5 * noise(rng, size, 6, 2))


def stripes(size: int, rng: Rng) -> np.ndarray:
    """Broad soft stripes, slightly slanted."""
    u, _ = Pose(angle=rng.uniform(-0.1, 0.1)).local(size)
    return mix(
        colour(size, 0.35, 0.42, 0.55), (0.6, 0.62, 0.6), 0.5 + 0.5 * np.sin(2 * math.pi * (5 * u + rng.random()))
    )


def weave(size: int, rng: Rng) -> np.ndarray:
    """A grid of soft threads of about nine pixels where the picture has 96."""
    u, v = Pose(angle=rng.uniform(-0.05, 0.05)).local(size)
    shift = rng.random(2)
    threads = np.sin(2 * math.pi * (10 * u + shift[0])) * np.sin(2 * math.pi * (10 * v + shift[1]))
    return mix(colour(size, 0.5, 0.42, 0.33), (0.64, 0.55, 0.44), 0.5 + 0.5 * threads)


def disc(size: int, rng: Rng) -> np.ndarray:
    """A cap on a ground."""
    u, v = pose(rng).local(size)
    distance = np.hypot(u, v)
    ring = 0.5 * step(0.02 - abs(distance - 0.22), 0.0, 0.015)
    return mix(
        mix(colour(size, 0.25, 0.25, 0.27), (0.7, 0.45, 0.3), inside(distance - 0.33, size)), (0.5, 0.3, 0.2), ring
    )


def box(size: int, rng: Rng) -> np.ndarray:
    """A plate with a hole on a ground."""
    u, v = pose(rng).local(size)
    plate = mix(colour(size, 0.72, 0.72, 0.7), (0.35, 0.45, 0.5), inside(rounded_box(u, v, (0.34, 0.24), 0.06), size))
    return mix(plate, (0.72, 0.72, 0.7), inside(np.hypot(u - 0.15, v) - 0.07, size))


CATEGORIES: dict[str, Callable[[int, Rng], np.ndarray]] = {
    "clouds": clouds, "stripes": stripes, "weave": weave, "disc": disc, "box": box,
}  # fmt: skip


def colour(size: int, *rgb: float) -> np.ndarray:
    return np.tile(np.array(rgb, np.float32), (size, size, 1))


def pose(rng: Rng) -> Pose:
    x, y, angle = numbers(rng, -1, 1, 3)
    return Pose(0.5 + 0.02 * x, 0.5 + 0.02 * y, 0.06 * angle)


def scratch(size: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of a slightly bent line, and what it adds."""
    x, y = rng.uniform(0.3, 0.7, 2)
    angle, length, bend = rng.uniform((0, 0.25, -0.3), (2 * math.pi, 0.5, 0.3)).tolist()
    turns = angle + bend * np.linspace(-1, 1, 12)
    points = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 12, axis=0)
    points += np.array([x, y]) - points.mean(axis=0)
    cover = Stencil(size).line([(float(a), float(b)) for a, b in points], rng.uniform(1, 2) / size).cover()
    return cover, cover * signed(rng, 0.03, 0.06)


def stain(size: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    u, v = Pose(*rng.uniform((0.35, 0.35, 0), (0.65, 0.65, math.pi)).tolist()).local(size)
    a, b = rng.uniform(0.08, 0.14, 2)
    bump = np.exp(-((u / a) ** 2 + (v / b) ** 2) / 2)
    return bump, bump * signed(rng, 0.04, 0.08)


def signed(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high) * (1 if rng.random() < 0.5 else -1))


def picture(category: str, size: int, kind: str, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and the mask of the defect."""
    rng = np.random.default_rng([sorted(CATEGORIES).index(category), *seeds])
    values = CATEGORIES[category](size, rng)
    cover = np.zeros((size, size), np.float32)
    if kind == "patch":
        u, v = Pose(*rng.uniform((0.35, 0.35, 0), (0.65, 0.65, math.pi)).tolist()).local(size)
        cover = inside(rounded_box(u, v, tuple(rng.uniform(0.05, 0.1, 2)), 0.02), size)
        values = mix(values, drawn_texture((size, size), rng).astype(np.float32) / 255, cover)
    elif kind != "good":
        cover, added = {"scratch": scratch, "stain": stain}[kind](size, rng)
        values = values + added[..., None]
    values = values * rng.uniform(0.98, 1.02) + 0.006 * rng.standard_normal(values.shape, np.float32)
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8), cover > 0.3


KINDS = ("scratch", "stain", "patch")


def sample(category: str, size: int, kind: str, *seeds: int) -> Sample:
    image, mask = picture(category, size, kind, seeds)
    views = {"image": View("image", lambda: image)}
    return Sample(f"{category}/{kind}/{seeds}", views, "", int(kind != "good"), View("mask", lambda: mask), kind)


# --- runs -------------------------------------------------------------------------------------------------------------


def run(way: str, category: str, seed: int, size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Image and pixel AUROC of each kind of defect."""
    own = {**WAYS[way]}
    shots, method = own.pop("shots", 4), own.pop("method", "dfd")
    common = {**DFD, **settings, "seed": seed} if method == "dfd" else {"seed": seed}
    began = time.perf_counter()
    detector = al.create(method, image_size=size, **common, **own)
    detector.fit([sample(category, size, "good", seed, 0, i) for i in range(shots)])
    spent = time.perf_counter() - began
    found = {}
    for number, kind in enumerate(("good", *KINDS)):
        test = [sample(category, size, kind, seed, 1 + number, i) for i in range(TEST)]
        predictions = list(detector.predict(test))
        found[kind] = (
            [p.score for p in predictions],
            [p.map for p in predictions],
            [s.mask.read() for s in test if s.mask],
        )
    out: dict[str, Any] = {"way": way, "category": category, "seed": seed, "size": size, **settings, "seconds": spent}
    labels = np.repeat([0, 1], TEST)
    for kind in KINDS:
        scores, maps, masks = (a + b for a, b in zip(found["good"], found[kind], strict=True))
        out[f"image {kind}"] = metrics.image(scores, labels, ["auroc"])["auroc"].value
        out[f"pixel {kind}"] = metrics.pixel(maps, masks, which=["auroc"])["auroc"].value
    return out


def known(path: Path, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs in the file that were made with these settings."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [r for r in map(json.loads, lines) if all(r.get(k) == v for k, v in key.items())]


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: for each way the AUROCs, pixel and image, of each kind of defect, and their mean."""
    columns = [f"{level} {kind}" for level in ("pixel", "image") for kind in KINDS]
    yield "| | " + " | ".join([*columns, "pixel mean", "fits"]) + " |"
    yield "| --- |" + " --- |" * (len(columns) + 2)
    for way in WAYS:
        mine = [r for r in runs if r["way"] == way]
        if not mine:
            continue
        seeds = sorted({r["seed"] for r in mine})
        # (seeds, columns): the mean over categories
        values = np.array([[np.mean([r[c] for r in mine if r["seed"] == s]) for c in columns] for s in seeds])
        values = np.column_stack([values, values[:, : len(KINDS)].mean(axis=1)])
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(values.shape[1], math.nan)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(values.mean(axis=0), spread, strict=True)]
        yield f"| {way} | " + " | ".join([*cells, str(len(mine))]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("dfd_ablation.jsonl"), help="a file of JSON lines, one per fit"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--size", type=int, default=96, help="pixels per side, a multiple of 32")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--way", action="append", help="only these ways; all unless given")
    parser.add_argument("--category", action="append", help="only these categories; all unless given")
    arguments = parser.parse_args()
    settings = {"steps": arguments.steps, "dim": arguments.dim, "backbone": "tiny"}
    key = {"size": arguments.size, **settings}
    wanted = [
        (way, category, seed)
        for seed in range(arguments.seeds)
        for way in arguments.way or WAYS
        for category in arguments.category or CATEGORIES
    ]
    done = {(r["way"], r["category"], r["seed"]) for r in known(arguments.out, key)}
    for number, (way, category, seed) in enumerate([] if arguments.table else wanted, 1):
        if (way, category, seed) in done:
            continue
        result = run(way, category, seed, arguments.size, settings)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        pixels = ", ".join(f"{kind} {result[f'pixel {kind}']:.3f}" for kind in KINDS)
        print(f"{number}/{len(wanted)} {way}, {category}, seed {seed}: {result['seconds']:.0f} s, {pixels}", flush=True)
    print("\n" + "\n".join(table(known(arguments.out, key))))


if __name__ == "__main__":
    main()
