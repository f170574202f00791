"""What rendering point clouds costs: processor time of one core, and the peak of memory.

OMP_NUM_THREADS=1 python benchmarks/point_clouds.py
"""

from __future__ import annotations

import resource
import time

import numpy as np
from _common import table

from anomalens.reasoning.point_clouds import estimated_normals, render

POINTS = 100_000


def seconds(work, *args) -> float:
    start = time.process_time()
    work(*args)
    return time.process_time() - start


def main() -> None:
    random = np.random.default_rng(0)
    sphere = random.normal(size=(POINTS, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    side = round(POINTS**0.5)
    y, x = np.mgrid[1 : -1 : side * 1j, -1 : 1 : side * 1j]
    relief = np.stack([x, y, 0.1 * np.sin(9 * x) * np.cos(7 * y)], axis=-1)
    table(
        ("what", "points", "CPU s"),
        [
            ("nine views without order", POINTS, seconds(render, sphere)),
            ("of these, normals", POINTS, seconds(estimated_normals, sphere)),
            ("nine views of a grid", side * side, seconds(render, relief)),
        ],
    )
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
