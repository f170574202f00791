"""Greedy coreset of 10 % of 204 800 x 384 patch features: CPU seconds and coverage radius. Then clusters, a stream.

python benchmarks/coreset.py [--threads N]
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from _common import RESNET18, data, table


def features(count: int = 200) -> np.ndarray:
    """Patch features of the normal training pictures of magnetic_tile: (count * 1024, 384)."""
    from anomalens import backbones
    from anomalens.datasets import open_folder
    from anomalens.parts.batches import batches
    from anomalens.parts.patches import embed

    net = backbones.get(RESNET18)
    samples = open_folder(data("magnetic_tile")).train()[:count]
    return np.concatenate([embed(net(batch.images)) for batch in batches(samples, (256, 256))])


def clusters(n: int, channels: int) -> np.ndarray:
    """A hundred Gaussian clusters whose variance falls from channel to channel."""
    rng = np.random.default_rng(0)
    shape = np.geomspace(1, 0.02, channels)
    centres = 2 * shape * rng.normal(size=(100, channels))
    return (centres[rng.integers(0, 100, n)] + shape * rng.normal(size=(n, channels))).astype(np.float32)


def violation(x: np.ndarray, picks: np.ndarray, sample: int = 8192) -> float:
    """How far any pick is from greedy: the largest relative amount by which, at any step, some vector (of a sample, in
    float64) lay farther from the earlier picks than the vector picked. 0 for the exact selection."""
    rng = np.random.default_rng(0)
    chosen = x[picks].astype(np.float64)
    some = x[rng.choice(len(x), min(sample, len(x)), replace=False)].astype(np.float64)
    worst, nearest = 0.0, np.full(len(some), np.inf)
    block = 256
    for start in range(0, len(picks), block):
        stop = min(start + block, len(picks))
        among = distances(chosen[start:stop], chosen[:stop])
        among[np.arange(stop) >= np.arange(start, stop)[:, None]] = np.inf
        value = among.min(axis=1)  # of each pick, when it was picked
        away = distances(some, chosen[start:stop])
        before = np.minimum.accumulate(np.concatenate([nearest[:, None], away], axis=1), axis=1)
        for step in range(int(start == 0), stop - start):
            worst = max(worst, float(before[:, step].max() / value[step] - 1))
        nearest = before[:, -1]
    return worst


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = str(parser.parse_args().threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    if os.environ.get("ANOMALENS_BENCH") != threads:  # the BLAS reads its threads when it is loaded
        os.environ["ANOMALENS_BENCH"] = threads
        import sys

        os.execv(sys.executable, [sys.executable, *sys.argv])

    from anomalens.parts.coreset import Streamed, greedy, random_projection

    real = features()
    rows = []
    for name, x in (("magnetic_tile, ResNet18", real), ("Gaussian clusters", clusters(*real.shape))):
        count = len(x) // 10
        cpu, wall = time.process_time(), time.perf_counter()
        found = greedy(x, count, start=0)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        rows.append((name, f"{len(x)} -> {count}", cpu, wall, found.radius, f"{violation(x, found.indices):.1e}"))

    cpu, wall = time.process_time(), time.perf_counter()
    reduced = real @ random_projection(real.shape[1]).T
    found = greedy(reduced, len(real) // 10, start=0)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    rows.append(("  random projection to 128", f"{len(real)} -> {len(found.indices)}", cpu, wall, "", ""))

    stream = Streamed(real.shape[1], memory=300_000_000, keep=25_000)
    cpu, wall = time.process_time(), time.perf_counter()
    for chunk in np.array_split(real, 25):
        stream.add(chunk)
    vectors, bound = stream.result(len(real) // 10)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    rows.append(("  streamed, 300 MB", f"{len(real)} -> {len(vectors)}", cpu, wall, f"<= {bound:.3f}", ""))
    table(("vectors", "size", "CPU s", "wall s", "radius", "violation of greedy"), rows)


if __name__ == "__main__":
    main()
