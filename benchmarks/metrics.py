"""Cost of the pixel metrics: CPU seconds and peak memory, beside scikit-learn on the same arrays.

    python benchmarks/metrics.py            # both sizes; the large one needs about 2 GB of memory
    python benchmarks/metrics.py --small    # 120 maps of 256 x 256 alone

Each row runs in a process of its own. Peak memory holds the maps and masks too; CPU seconds are those of the metrics
alone. `ratio` is scikit-learn over ours for AUROC, AP and the precision-recall curve (it has no AUPRO).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator

import numpy as np

THREE = ("auroc", "ap", "f1max")
FOUR = (*THREE, "aupro")


def pictures(count: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Smooth maps with distinct scores; two of three have one to three disks that score higher."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    waves = [np.sin(x * a + y * b).astype(np.float32) for a, b in rng.uniform(-0.2, 0.2, (6, 2))]
    for number in range(count):
        scores = rng.standard_normal((side, side), dtype=np.float32) * np.float32(0.3)
        for wave, height in zip(waves, rng.normal(size=len(waves)), strict=True):
            scores += wave * np.float32(height)
        if number % 3 == 0:
            yield scores, None
            continue
        mask = np.zeros((side, side), bool)
        for _ in range(rng.integers(1, 4)):
            cy, cx = rng.integers(0, side, 2)
            mask |= (y - cy) ** 2 + (x - cx) ** 2 < rng.integers(2, side // 12) ** 2
        scores += mask * np.float32(rng.normal(3, 1))
        yield scores, mask


def exact(count: int, side: int, which: tuple[str, ...]) -> dict[str, float]:
    from anomalens import metrics

    maps, masks = zip(*pictures(count, side), strict=True)
    start = time.process_time()
    found = metrics.pixel(maps, masks, which=which)
    return {"cpu": time.process_time() - start} | {name: measured.value for name, measured in found.items()}


def stream(count: int, side: int, which: tuple[str, ...]) -> dict[str, float]:
    from anomalens import metrics

    accumulator = metrics.PixelAccumulator()
    spent = 0.0
    for scores, mask in pictures(count, side):
        start = time.process_time()
        accumulator.update(scores, mask)
        spent += time.process_time() - start
    found = accumulator.compute()
    return {"cpu": spent} | {f"{name} bound": measured.bound for name, measured in found.items()}


def scikit(count: int, side: int, which: tuple[str, ...]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    maps, masks = zip(*pictures(count, side), strict=True)
    scores = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate(
        [np.zeros(m.size, bool) if k is None else k.ravel() for m, k in zip(maps, masks, strict=True)]
    )
    start = time.process_time()
    found = {"auroc": roc_auc_score(labels, scores), "ap": average_precision_score(labels, scores)}
    precision, recall, _ = precision_recall_curve(labels, scores)
    found["f1max"] = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    return {"cpu": time.process_time() - start} | found


def row(work, count: int, side: int, which: tuple[str, ...], send) -> None:
    result = work(count, side, which)
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    send.send(result)


def measured(work, count: int, side: int, which: tuple[str, ...] = FOUR) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=row, args=(work, count, side, which, send))
    process.start()
    result = receive.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="leave out 1000 maps of 512 x 512")
    arguments = parser.parse_args()

    ours, three = measured(exact, 120, 256), measured(exact, 120, 256, THREE)
    reference = measured(scikit, 120, 256)
    for name in THREE:
        assert abs(three[name] - reference[name]) < 1e-9, (name, three[name], reference[name])
    rows = [
        ("120 x 256^2", "four metrics, exact", ours, None),
        ("120 x 256^2", "three metrics, exact", three, reference["cpu"] / three["cpu"]),
        ("120 x 256^2", "three metrics, scikit-learn", reference, None),
        ("120 x 256^2", "four metrics, stream", measured(stream, 120, 256), None),
    ]
    if not arguments.small:
        rows += [
            ("1000 x 512^2", "four metrics, exact", measured(exact, 1000, 512), None),
            ("1000 x 512^2", "four metrics, stream", measured(stream, 1000, 512), None),
        ]
    print(f"{'maps':14}{'work':30}{'CPU s':>8}{'peak GB':>9}{'ratio':>7}   worst bound")
    for size, what, result, ratio in rows:
        bound = max((v for k, v in result.items() if k.endswith("bound")), default=0.0)
        print(
            f"{size:14}{what:30}{result['cpu']:8.2f}{result['peak']:9.2f}"
            f"{'' if ratio is None else f'{ratio:.0f} x':>7}   {f'{bound:.1e}' if bound else 'exact'}"
        )


if __name__ == "__main__":
    main()
