"""What embedding and search cost beside the backbone: (forward + embedding + search) / forward, batch 8 at 256 x 256.

The forward pass is ResNet18 up to layer3 in ONNX Runtime float32 on the same threads. Of several runs in one process
the shortest counts, in CPU time (which other processes do not disturb, but which counts waiting BLAS threads) and wall.

python benchmarks/neighbours.py [--threads N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _common import SHARED, data, table

CHANNEL_MEAN, CHANNEL_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(threads: int):
    """ResNet18's layer2 and layer3 in ONNX Runtime."""
    import timm
    import torch
    from safetensors.torch import load_file

    from anomalens.backbones._onnx import OnnxNetwork

    model = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2, 3)).eval()
    model.load_state_dict(load_file(SHARED / "weights" / "resnet18_stem_to_layer3.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.onnx"
        torch.onnx.export(
            model, (torch.zeros(2, 3, 256, 256),), path, dynamo=True, external_data=False, verbose=False,
            output_names=["layer2", "layer3"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
        return OnnxNetwork(path.read_bytes(), ("layer2", "layer3"), threads=threads)


def pictures(samples) -> list[np.ndarray]:
    from anomalens.parts.batches import batches

    mean, spread = (np.array(v, np.float32)[:, None, None] for v in (CHANNEL_MEAN, CHANNEL_SPREAD))
    return [(batch.images - mean) / spread for batch in batches(samples, (256, 256), 8)]


def cost(work: Callable[[], object], repeats: int = 7) -> np.ndarray:
    """CPU and wall milliseconds."""
    work()
    spent = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return 1e3 * np.min(spent, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = str(parser.parse_args().threads)
    if os.environ.get("ANOMALENS_BENCH") != threads:  # the BLAS reads its threads when it is loaded
        os.environ |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "ANOMALENS_BENCH": threads}
        os.execv(sys.executable, [sys.executable, *sys.argv])

    from anomalens.datasets import open_folder
    from anomalens.parts.coreset import greedy
    from anomalens.parts.neighbours import Bank
    from anomalens.parts.patches import embed

    net = network(int(threads))
    folder = open_folder(data("magnetic_tile"))
    train = np.concatenate([embed(net(images)) for images in pictures(folder.train()[:200])])
    tests = pictures(folder.test()[::5])
    tests = [images for images in tests if len(images) == 8]
    features = net(tests[0])
    forward = cost(lambda: net(tests[0]))
    embedding = cost(lambda: embed(features))
    order = greedy(train, 20_480, start=0).indices
    print(f"{threads} threads, CPU and wall ms: forward {forward.round()}, embedding {embedding.round(1)}\n")

    rows = []
    for size in (2048, 20_480):
        bank = train[order[:size]]
        exact = Bank(bank)
        for mode in ("exact", "pruned"):
            search = Bank(bank, mode)
            errors = []
            for images in tests:
                queries = embed(net(images))
                errors.append(search.nearest(queries)[0] / exact.nearest(queries)[0] - 1)
            error = np.concatenate(errors)
            added = cost(lambda search=search: search.nearest(embed(features)))
            ratios = (1 + added / forward).tolist()
            quality = (float((error < 1e-6).mean()), float(error.mean()), float(error.max()))
            rows.append((size, mode, float(added[0]), *ratios, *quality))
    costs = ("added CPU ms", "CPU ratio", "wall ratio")
    table(("bank", "mode", *costs, "patches equal", "mean error", "max error"), rows)


if __name__ == "__main__":
    main()
