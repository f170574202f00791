"""Pictures per second from a folder to written scores, and what PatchCore adds to its backbone: ratios in one process.

python benchmarks/throughput.py [--threads N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import RESNET18, SHARED, data, table

import anomalens as al
from anomalens import backbones
from anomalens.apps import tasks
from anomalens.datasets import open_folder
from anomalens.parts.batches import batches


def best(work, repeats: int = 7) -> float:
    """Shortest wall time of several runs: other processes only ever add."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def added(backbone: str, bank: int, threads: int | None) -> tuple[object, ...]:
    """(forward + everything PatchCore adds) / forward, on one batch of 8 decoded pictures."""
    train, test = open_folder(data("magnetic_tile")).train(), open_folder(data("magnetic_tile")).test()
    detector = al.create("patchcore", backbone=backbone, coreset=1.0, largest_bank=bank, threads=threads).fit(train)
    net = backbones.network(detector)
    batch = next(batches(test[::15], (256, 256), 8))
    rows = detector.embed(net(batch.images))
    index, exact = detector.index(rows), type(detector.index(rows))(detector.bank)
    grid = (8, 32, 32)

    def whole() -> list[tuple[float, np.ndarray]]:
        return list(detector.judge(index, detector.embed(net(batch.images)), grid, (256, 256)))

    scores = np.array([s for s, _ in whole()])
    truth = np.array([s for s, _ in detector.judge(exact, rows, grid, (256, 256))])
    maps = np.stack([m for _, m in whole()])
    true_maps = np.stack([m for _, m in detector.judge(exact, rows, grid, (256, 256))])
    forward = best(lambda: net(batch.images))
    total = best(whole)
    return (
        backbone.partition("@")[0], len(detector.bank), forward / 8 * 1e3, total / forward,
        f"{np.abs(scores - truth).max():.1e}", f"{(np.abs(maps - true_maps) / true_maps).max():.1e}",
    )  # fmt: skip


def end_to_end(backbone: str, bank: int) -> list[tuple[object, ...]]:
    """`anomalens predict` in this process: decoding, network, search, map, verdict, regions, results, page."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        new = root / "new"
        new.mkdir()
        pictures = [*open_folder(data("magnetic_tile")).train(), *open_folder(data("magnetic_tile")).test()]
        for i, sample in enumerate(pictures):
            (new / f"{i:04d}{Path(sample.views['image'].path).suffix}").symlink_to(sample.views["image"].path)
        settings = (f"largest_bank={bank}", "coreset=1.0")
        tasks.fit(str(data("magnetic_tile") / "train" / "good"), str(root / "m"), method="patchcore", backbone=backbone,
                  settings=settings, quiet=True)  # fmt: skip
        for maps in (False, True):
            summary = tasks.predict(str(root / "m"), str(new), str(root / f"out-{maps}"), maps=maps, quiet=True)
            rows.append((backbone.partition("@")[0], bank, "with maps" if maps else "scores", len(pictures),
                         float(summary["pictures_per_second"])))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int)
    threads = parser.parse_args().threads
    print(f"data pack at {SHARED.name}/data/magnetic_tile\n")
    table(
        ("backbone", "bank", "forward ms/picture", "predict / forward", "score error", "largest map error (relative)"),
        [added(RESNET18, bank, threads) for bank in (2048, 20480)] + [added("tiny", 2048, threads)],
    )
    table(
        ("backbone", "bank", "written", "pictures", "pictures/s"), end_to_end(RESNET18, 2048) + end_to_end("tiny", 2048)
    )


if __name__ == "__main__":
    main()
