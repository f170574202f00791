"""Peak memory of PatchCore's fit above its backbone, for 50, 200 and 400 pictures, each in its own process.

python benchmarks/memory.py [--backbone timm:wide_resnet50_2?weights=random]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from _common import table

WORK = """
import resource, sys, numpy as np, anomalens as al
from functools import partial
from anomalens import backbones
from anomalens.types import Sample, View
name, count = sys.argv[1], int(sys.argv[2])
def picture(i):
    rng = np.random.default_rng(i)
    return np.kron(rng.integers(0, 255, (32, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
samples = [Sample(str(i), {"image": View("image", partial(picture, i))}) for i in range(count)]
detector = al.create("patchcore", backbone=name)
if count:
    detector.fit(samples)
else:
    net = backbones.get(name)
    for _ in range(3):
        net(np.random.default_rng(0).random((8, 3, 256, 256), np.float32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, len(detector.bank) if count else 0)
"""


def peak(backbone: str, count: int) -> tuple[float, int]:
    run = subprocess.run([sys.executable, "-c", WORK, backbone, str(count)], capture_output=True, text=True, check=True)
    gigabytes, bank = run.stdout.split()[-2:]
    return float(gigabytes), int(bank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="timm:wide_resnet50_2?weights=random")
    options = parser.parse_args()
    peak(options.backbone, 0)  # converts the network once, so that no measured process does
    alone, _ = peak(options.backbone, 0)
    rows: list[tuple[object, ...]] = [("backbone alone", 0, alone, 0.0)]
    for count in (50, 200, 400):
        gigabytes, bank = peak(options.backbone, count)
        rows.append((f"fit on {count} pictures", bank, gigabytes, gigabytes - alone))
    table((options.backbone, "bank", "peak GB", "above the backbone"), rows)


if __name__ == "__main__":
    main()
