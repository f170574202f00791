"""Pictures per second from a folder to written scores, and what PatchCore adds to its backbone: ratios in one process.

python benchmarks/throughput.py [--threads N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from _common import RESNET18, SHARED, data, table

import anomalens as al
from anomalens import backbones
from anomalens.apps import tasks
from anomalens.datasets import open_folder
from anomalens.images import encode, resize
from anomalens.parts.batches import batches
from anomalens.types import Sample, View


def best(work, repeats: int = 7) -> float:
    """Shortest wall time of several runs: other processes only ever add."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def added(backbone: str, bank: int, threads: int | None) -> tuple[object, ...]:
    """predict / bare forward over 64 pictures of 256 x 256 in memory, batches of 8, in the same engine."""
    train = open_folder(data("magnetic_tile")).train()
    detector = al.create("patchcore", backbone=backbone, coreset=1.0, largest_bank=bank, threads=threads)
    detector.fit(train)
    pixels = [resize(s.image(), (256, 256)) for s in open_folder(data("magnetic_tile")).test()[:64]]
    samples = [Sample(str(i), {"image": View("image", partial(np.array, p))}) for i, p in enumerate(pixels)]
    net = backbones.network(detector)
    decoded = list(batches(samples, (256, 256), 8))
    forward = best(lambda: [net(b.images) for b in decoded])
    total = best(lambda: list(detector.predict(samples)))
    found = list(detector.predict(samples))
    detector.search = "exact"
    true = list(detector.predict(samples))
    score_error = max(abs(a.score - b.score) for a, b in zip(found, true, strict=True))
    map_error = [np.abs(a.map - b.map) / b.map for a, b in zip(found, true, strict=True)]
    return (
        backbone.partition("@")[0], len(detector.bank), forward / 64 * 1e3, total / forward, f"{score_error:.1e}",
        f"{np.mean(map_error):.1e} / {np.max(map_error):.1e}",
    )  # fmt: skip


def end_to_end(backbone: str, bank: int) -> list[tuple[object, ...]]:
    """`anomalens predict` in this process: decoding, network, search, map, verdict, regions, results, page."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("256 x 256 PNG", "as they are (JPEG, many shapes)"):
            (root / name).mkdir()
        pictures = [*open_folder(data("magnetic_tile")).train(), *open_folder(data("magnetic_tile")).test()]
        for i, sample in enumerate(pictures):
            path = sample.views["image"].path
            (root / "as they are (JPEG, many shapes)" / f"{i:04d}{Path(path).suffix}").symlink_to(path)
            (root / "256 x 256 PNG" / f"{i:04d}.png").write_bytes(encode(resize(sample.image(), (256, 256))))
        settings = (f"largest_bank={bank}", "coreset=1.0")
        good = str(data("magnetic_tile") / "train" / "good")
        tasks.fit(good, str(root / "m"), method="patchcore", backbone=backbone, settings=settings, quiet=True)
        for name in ("256 x 256 PNG", "as they are (JPEG, many shapes)"):
            for maps in (False, True):
                start = time.perf_counter()
                tasks.predict(
                    str(root / "m"), str(root / name), str(root / f"out {name} {maps}"), maps=maps, quiet=True
                )
                speed = len(pictures) / (time.perf_counter() - start)
                rows.append((backbone.partition("@")[0], bank, name, "with maps" if maps else "scores", speed))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int)
    threads = parser.parse_args().threads
    print(f"data pack at {SHARED.name}/data/magnetic_tile\n")
    table(
        (
            "backbone",
            "bank",
            "forward ms/picture",
            "predict / forward",
            "largest score error",
            "map error, relative: mean / max",
        ),
        [added(RESNET18, bank, threads) for bank in (2048, 20480)] + [added("tiny", 2048, threads)],
    )
    table(
        ("backbone", "bank", "320 pictures", "written", "pictures/s, whole command"),
        [*end_to_end(RESNET18, 2048), *end_to_end("tiny", 2048)],
    )


if __name__ == "__main__":
    main()
