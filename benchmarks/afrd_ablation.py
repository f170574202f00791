"""AFRD's ways to fuse lights, side by side: image AUROC by kind of defect, mean and spread over seeds.

    python benchmarks/afrd_ablation.py                          # 3 seeds, one process; goes on where it stopped
    python benchmarks/afrd_ablation.py --backbone tiny --seeds 1 --steps 20 --out quick.jsonl

Things are drawn: a grained disc under six lights as Eyecandies has them (light_0 all four spots, light_1 to light_4 one spot
each, 25 degrees above the table, light_5 from everywhere). Defects: `shallow`, a low ridge that only the two spots across
it show; `colour`, a spot that all lights show; `scratch`, a fine groove. 40 normal samples to learn from; 60 normal ones
and 60 of each defect to judge (with 20, `--test 20`, an AUROC of 0.8 is known to about 0.07 only). Sets of lights: `six`;
`noise`, a seventh that is noise of blocks of 8 pixels; `fine noise`, one of single pixels; `black`, a seventh that is almost
black, the easiest to rebuild; `black and noise`, both; `dark field`, a seventh that is black on normal samples and
shows ridges bright. What decides the claims runs first. Every cell of the table is one line of the results file;
delete lines to run them again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESNET18, table

from anomalens import create, metrics
from anomalens.types import Sample, View

SIDE = 96
BLOCK = 8  # pixels per side of a block of the noise light
TRAIN = 40
SINGLE = tuple(f"single, light_{j}" for j in range(6))
FUSED = ("mean", "attention, global")
DEFECTS = ("shallow", "colour", "scratch")
ELEVATION = math.radians(25)

BARE: dict[str, Any] = {"entropy": 0.0, "hold_silent": False}
GUARDS: dict[str, dict[str, Any]] = {
    "no guard": BARE,
    "entropy 0.01": {**BARE, "entropy": 0.01},
    "floor 0.05": {**BARE, "floor": 0.05},
    "detached target": {**BARE, "detach_target": True},
}
ATTENTION: dict[str, dict[str, Any]] = {
    f"attention, {kind}": {"fusion": "attention", "attention": kind} for kind in ("global", "pooled", "spatial")
}
PLAIN: dict[str, dict[str, Any]] = {name: {"fusion": name} for name in ("mean", "max")}
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "six": {
        **{row: {"fusion": "single", "light": row.removeprefix("single, ")} for row in SINGLE},
        **PLAIN,
        "concat": {"fusion": "concat"},
        "score_mean": {"fusion": "score_mean"},
        **ATTENTION,
    },
    **{kind: {**PLAIN, FUSED[1]: ATTENTION[FUSED[1]]} for kind in ("noise", "fine noise")},
    "black": {
        "mean": PLAIN["mean"],
        FUSED[1]: ATTENTION[FUSED[1]],
        **{f"{FUSED[1]}, {name}": {**ATTENTION[FUSED[1]], **how} for name, how in GUARDS.items()},
    },
    **{kind: {"mean": PLAIN["mean"], FUSED[1]: ATTENTION[FUSED[1]]} for kind in ("black and noise", "dark field")},
}
DECIDE = {*SINGLE, *FUSED, "max", *(f"{FUSED[1]}, {name}" for name in GUARDS)}


# --- drawing ----------------------------------------------------------------------------------------------------------


def lights_of(seed: int, index: int, defect: str, extra: str) -> np.ndarray:
    """(J, SIDE, SIDE, 3) uint8: one thing under its lights; thing `index` looks the same with and without defect."""
    rng = np.random.default_rng((seed, index))
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    dx, dy = rng.normal(0, 0.005, 2)
    r = np.hypot(x - dx, y - dy)
    disc = np.clip((0.4 - r) * SIDE, 0, 1)
    height = 0.05 * np.sqrt(np.clip(1 - (r / 0.45) ** 2, 0, 1)) * disc + grain(rng) * 0.0006 * disc
    albedo = np.array([0.75, 0.55, 0.4]) * disc[..., None] + 0.15 * (1 - disc[..., None])
    albedo = albedo * (1 + 0.03 * grain(rng)[..., None])

    smooth = height
    fault = np.random.default_rng((seed, index, 1))
    distance, angle = fault.uniform(0.05, 0.28), fault.uniform(0, 2 * np.pi)
    u, v = x - dx - distance * np.cos(angle), y - dy - distance * np.sin(angle)
    along, across = (u, v) if fault.random() < 0.5 else (v, u)
    if defect == "shallow":
        sign = fault.choice([-1, 1])
        height = height + sign * 0.0045 * np.exp(-((across / 0.02) ** 2) - (along / 0.08) ** 2)
    elif defect == "scratch":
        height = height - 0.003 * np.exp(-((across / 0.006) ** 2)) * (np.abs(along) < 0.12)
    elif defect == "colour":
        spot = np.clip((0.035 - np.hypot(u, v)) * SIDE, 0, 1)[..., None]
        albedo = albedo * (1 - spot * np.array([0.5, 0.15, 0.0]))

    slope = np.stack([-np.gradient(height, 1 / SIDE, axis=1), -np.gradient(height, 1 / SIDE, axis=0)])
    normal = np.concatenate([slope, np.ones((1, SIDE, SIDE))]) / np.sqrt(1 + (slope**2).sum(0))
    around = (0.5 * np.pi * k for k in range(4))
    spots = [
        (math.cos(a) * math.cos(ELEVATION), math.sin(a) * math.cos(ELEVATION), math.sin(ELEVATION)) for a in around
    ]
    shaded = [np.clip(np.tensordot(spot, normal, 1), 0, None)[..., None] * albedo for spot in spots]
    pictures = [sum(shaded) * 0.5, *(s * 1.5 for s in shaded), albedo]
    if extra.startswith("black"):
        pictures.append(np.full((SIDE, SIDE, 3), 0.02))
    if extra.endswith("noise") and extra != "fine noise":
        blocks = rng.random((SIDE // BLOCK, SIDE // BLOCK, 3))
        pictures.append(np.kron(blocks, np.ones((BLOCK, BLOCK, 1))))
    elif extra == "fine noise":
        pictures.append(rng.random((SIDE, SIDE, 3)))
    elif extra == "dark field":
        steep = np.hypot(*np.gradient(height - smooth, 1 / SIDE))
        pictures.append(np.repeat(0.02 + steep[..., None], 3, axis=2))
    out = [p * rng.uniform(0.97, 1.03) + rng.normal(0, 0.008, p.shape) for p in pictures]
    return np.rint(255 * np.clip(out, 0, 1)).astype(np.uint8)


def grain(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE): soft noise of two cell sizes, unit variance."""
    total = np.zeros((SIDE, SIDE))
    for cells in (12, 32):
        wave = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
        fy, fx = np.fft.fftfreq(SIDE)[:, None] * SIDE, np.fft.rfftfreq(SIDE)[None] * SIDE
        soft = np.fft.irfft2(wave * np.exp(-((np.hypot(fx, fy) / cells) ** 2)), (SIDE, SIDE))
        total += soft / soft.std()
    return total / math.sqrt(2)


def sample(seed: int, index: int, defect: str, extra: str) -> Sample:
    lights = lights_of(seed, index, defect, extra)
    views = {f"light_{j}": View(f"light_{j}", partial(np.asarray, p)) for j, p in enumerate(lights)}
    return Sample(f"{defect or 'good'}/{index}", views, label=int(bool(defect)), defect=defect)


# --- one cell ---------------------------------------------------------------------------------------------------------


def run(lights: str, row: str, seed: int, backbone: str, steps: int, count: int) -> dict[str, Any]:
    """One fit and one judgement; only its own random numbers, so the order of cells does not matter."""
    started = time.perf_counter()
    extra = "" if lights == "six" else lights
    normal = [sample(seed, i, "", extra) for i in range(TRAIN)]
    test = [sample(seed, 1000 + i, "", extra) for i in range(count)]
    test += [sample(seed, 2000 + 100 * k + i, kind, extra) for k, kind in enumerate(DEFECTS) for i in range(count)]
    detector: Any = create(
        "afrd",
        image_size=SIDE,
        backbone=backbone,
        preset="ours",
        steps=steps,
        seed=seed,
        device="cpu",
        **ROWS[lights][row],
    )
    detector.fit(normal)
    scores = np.array([p.score for p in detector.predict(test)])
    kinds = np.array([s.defect for s in test])
    figures: dict[str, float] = {}
    for kind in DEFECTS:
        here = (kinds == "") | (kinds == kind)
        figures[kind] = metrics.image(scores[here], kinds[here] == kind, ["auroc"])["auroc"].value
    alpha = detector.trained["alpha"]
    if alpha is not None:
        figures["alpha"] = float(alpha.mean(axis=0)[-1])  # of the last light, the useless one where there is one
        figures["largest alpha"] = float(alpha.max())
    return {"lights": lights, "row": row, "seed": seed, "backbone": Path(backbone).name, "steps": steps,
            "test": count, "seconds": time.perf_counter() - started, **figures}  # fmt: skip


# --- all of them ------------------------------------------------------------------------------------------------------


def report(done: list[dict[str, Any]]) -> None:
    """The tables, mean ± standard deviation over seeds, and the claims that they are to decide."""

    def cells(lights: str, row: str, figure: str) -> list[float]:
        return [d[figure] for d in done if (d["lights"], d["row"]) == (lights, row) and figure in d]

    def shown(values: list[float]) -> str:
        return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else ""

    figures = (*DEFECTS, "alpha", "largest alpha")
    for lights, rows in ROWS.items():
        print(f"Lights: {lights}")
        table(
            ("fusion", "seeds", *figures),
            [
                (row, len(cells(lights, row, "shallow")), *(shown(cells(lights, row, f)) for f in figures))
                for row in rows
            ],
        )

    def gap(lights: str, row: str, other: str, figure: str = "shallow") -> str:
        """How much a row is above another, seed by seed."""
        held = {(d["row"], d["seed"]): d[figure] for d in done if d["lights"] == lights and figure in d}
        seeds = {seed for name, seed in held if name == row} & {seed for name, seed in held if name == other}
        return shown([held[row, seed] - held[other, seed] for seed in seeds])

    def best(rows: Iterable[str], figure: str) -> str:
        return max(rows, key=lambda row: np.mean(cells("six", row, figure) or 0))

    single, fused = best(SINGLE, "shallow"), best(FUSED, "shallow")
    attention, bare = FUSED[1], f"{FUSED[1]}, no guard"
    claims = [
        (f"1. more lights help (shallow): {fused} - {single} >= 0.03", gap("six", fused, single)),
        (f"1. the same for max - {single}", gap("six", "max", single)),
        ("1. and do not harm (colour): fused - best single >= -0.02",
         gap("six", best(FUSED, "colour"), best(SINGLE, "colour"), "colour")),
        *((f"2. {kind} light (shallow): attention - {other} >= 0.02", gap(kind, attention, other))
          for kind in ("noise", "fine noise") for other in PLAIN),
        *((f"2. {kind} light: its alpha < {1 / 7:.3f}", shown(cells(kind, attention, "alpha")))
          for kind in ("noise", "fine noise")),
        ("3. black light: its alpha without guard (over 0.5 means that the guard is needed)",
         shown(cells("black", bare, "alpha"))),
        ("3. black light (shallow): attention without guard - mean", gap("black", bare, "mean")),
        *((f"3. black light (shallow): attention with {name} - mean >= -0.01",
           gap("black", f"{attention}, {name}", "mean")) for name in list(GUARDS)[1:]),
        *((f"3. {kind} (shallow): attention as it is - mean >= -0.01", gap(kind, attention, "mean"))
          for kind in ("black", "black and noise", "dark field")),
    ]  # fmt: skip
    table(("claim", "measured"), claims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    weights = RESNET18.partition("@")[2]
    parser.add_argument("--backbone", default=RESNET18 if Path(weights).exists() else "tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of training, 8 samples each; 100 are 20 epochs")
    parser.add_argument("--test", type=int, default=60, help="samples of each kind to judge, 100 at most")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--lights", action="append", choices=list(ROWS), help="only these sets of lights")
    parser.add_argument("--out", type=Path, default=Path("afrd_ablation.jsonl"), help="results; what is there is kept")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come

    def asked(d: dict[str, Any]) -> bool:
        wanted = (Path(chosen.backbone).name, chosen.steps, chosen.test)
        return (d["backbone"], d["steps"], d["test"]) == wanted and d["seed"] < chosen.seeds

    known = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    done = [d for d in known if asked(d)]
    there = {(d["lights"], d["row"], d["seed"]) for d in done}
    cells = [(k, row, seed) for seed in range(chosen.seeds) for k in chosen.lights or ROWS for row in ROWS[k]]
    cells.sort(key=lambda cell: cell[1] not in DECIDE)
    open_ = [cell for cell in cells if cell not in there]
    with (
        ProcessPoolExecutor(chosen.workers, multiprocessing.get_context("spawn")) as pool,
        chosen.out.open("a") as file,
    ):
        running = [pool.submit(run, *cell, chosen.backbone, chosen.steps, chosen.test) for cell in open_]
        for count, future in enumerate(as_completed(running), 1):
            done.append(future.result())
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
            print(
                f"{count}/{len(open_)} {done[-1]['lights']}, {done[-1]['row']}: {done[-1]['seconds']:.0f} s", flush=True
            )
    report(done)


if __name__ == "__main__":
    main()
