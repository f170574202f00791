"""Pictures per second of ResNet18 up to stride 16 by engine, and of tiny: 256 x 256, batches of 8, in one process.

    python benchmarks/backbones.py [WEIGHTS.safetensors]      random weights without a file: the speed is the same

The engines take turns and the median is shown, so that the ratios hold on a busy machine; the absolute numbers do not.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import timm
import torch

from anomalens import backbones
from anomalens.parts.threads import cores

BATCH, SIDE, ROUNDS = 8, 256, 7
STRIDES = (4, 8, 16)


def plain_torch(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """What one writes from timm's manual."""
    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 2, 3)).eval()
    centre, scale = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (mean, std))

    def run(images: np.ndarray) -> list:
        with torch.no_grad():
            return network((torch.from_numpy(images) - centre) / scale)

    return run


def main() -> None:
    name = f"timm:resnet18@{sys.argv[1]}" if len(sys.argv) > 1 else "timm:resnet18?weights=random"
    images = np.random.default_rng(0).random((BATCH, 3, SIDE, SIDE), dtype=np.float32)
    print(f"{'threads':>7}  {'':28} {'pictures/s':>10} {'ratio':>6}")
    for threads in sorted({1, cores()}):

        def get(what: str, engine: str, threads: int = threads):
            return backbones.get(what, strides=STRIDES, engine=engine, device="cpu", threads=threads)

        runs = {
            "timm, torch eager": plain_torch((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            "resnet18, engine torch": get(name, "torch"),
            "resnet18, engine onnx": get(name, "onnx"),
            "resnet18, engine onnx-int8": get(name, "onnx-int8").quantize([images]),
            "tiny, engine onnx": get("tiny", "onnx"),
        }
        torch.set_num_threads(threads)
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        for turn in range(ROUNDS + 1):
            for label, run in runs.items():
                start = time.perf_counter()
                run(images)
                if turn:  # the first one warms up
                    seconds[label].append(time.perf_counter() - start)
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        base = medians["timm, torch eager"]
        for label, median in medians.items():
            print(f"{threads:7}  {label:28} {BATCH / median:10.1f} {base / median:5.1f}x")


if __name__ == "__main__":
    main()
