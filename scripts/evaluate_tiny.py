"""How `tiny` compares with its teacher ResNet18: PatchCore's AUROC at its default settings, and speed on one thread.

    python scripts/evaluate_tiny.py --data DATA --teacher resnet18.safetensors [--seeds 3] [--int8] [--random]
                                    [--model runs/1/tiny.onnx ...]

Pictures: DATA/<category> with train/good, test/<defect> and ground_truth/<defect>, and the 15 drawn categories of
`anomalens.datasets.procedural` at 256 x 256. A seed is where the coreset starts, and which drawings are made. Everything
runs on one thread. These figures are for the ledger in docs/tiny.md; nothing of the training is chosen by them.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import train_tiny

import anomalens as al
from anomalens import backbones, metrics
from anomalens.backbones import tiny
from anomalens.datasets import open_folder
from anomalens.datasets.procedural import CARD as PROCEDURAL
from anomalens.datasets.procedural import Procedural
from anomalens.types import Sample

THE_FOUR = ("magnetic_tile", "pcb", "hazelnut", "brain_mri")
STRIDES = (8, 16)  # PatchCore's


class Network(NamedTuple):
    """A backbone; file: an ONNX file of the layout of `tiny` in the place of the embedded one."""

    backbone: str
    file: Path = tiny.ASSET


class Figures(NamedTuple):
    """AUROC; pixel is NaN without masks; by_defect: image AUROC of each kind of defect against all good pictures."""

    image: float
    pixel: float
    by_defect: dict[str, float]


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


def read(category: str, data: Path, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Train and test samples, their pictures in memory, so that every network gets them without drawing anew."""
    drawn = category in PROCEDURAL.categories
    source: Any = Procedural(category, size=256, seed=seed) if drawn else open_folder(data / category)

    def held(sample: Sample) -> Sample:
        image = replace(sample.views["image"], read=partial(np.array, sample.image()))
        mask = sample.mask and replace(sample.mask, read=partial(np.array, sample.mask.read()))
        return replace(sample, views={"image": image}, mask=mask)

    return [held(s) for s in source.train()], [held(s) for s in source.test()]


def judge(network: Network, train: list[Sample], test: list[Sample], seed: int) -> Figures:
    tiny.ASSET = network.file
    detector = al.create("patchcore", backbone=network.backbone, threads=1, seed=seed).fit(train)
    predictions = list(detector.predict(test))
    scores, labels = np.array([p.score for p in predictions]), np.array([s.label for s in test])
    defects = np.array([s.defect for s in test])

    def image(chosen: np.ndarray) -> float:
        return metrics.image(scores[chosen], labels[chosen], ["auroc"])["auroc"].value

    by_defect = {str(d): image((labels == 0) | (defects == d)) for d in np.unique(defects[labels == 1])}
    pixel = float("nan")
    if any(s.mask for s in test):
        maps, masks = [p.map for p in predictions], [s.mask and s.mask.read() for s in test]
        pixel = metrics.pixel(maps, masks, which=("auroc",))["auroc"].value
    return Figures(image(labels >= 0), pixel, by_defect)


def random_weights(folder: Path) -> Path:
    """The layout of tiny with random weights; batch norm in its initial state is the identity."""
    import torch

    torch.manual_seed(0)
    student = train_tiny.make_student().eval()
    units = {s: (torch.zeros(c), torch.ones(c)) for s, c in train_tiny.TEACHER_CHANNELS.items()}
    file = folder / "random.onnx"
    file.write_bytes(train_tiny.onnx_bytes(train_tiny.fold(student, units)))
    return file


def accuracy_table(found: dict[tuple[str, str], list[Figures]], networks: list[str], categories: list[str]) -> None:
    """found: (network, category) -> one entry per seed."""
    columns = [f"{name}, {what}" for name in networks for what in ("image", "pixel")]
    print("| AUROC: mean of the seeds (largest - smallest) | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    real, drawn = ([c for c in categories if (c in THE_FOUR) == four] for four in (True, False))
    groups = {c: [c] for c in categories}
    groups |= {"**the four**": real, "**the procedural**": drawn, "**all**": categories}
    for label, group in groups.items():
        cells = []
        for name in networks:
            figures = np.array([[f[:2] for f in found[name, c]] for c in group])  # (categories, seeds, 2)
            known = figures[~np.isnan(figures[:, 0, 1])]
            cells += [_cell(figures[:, :, 0]), _cell(known[:, :, 1])]
        print(f"| {label} | " + " | ".join(cells) + " |")
    print()


def _cell(values: np.ndarray) -> str:
    """values: (categories, seeds)."""
    if not len(values):
        return ""
    by_seed = values.mean(axis=0)
    return f"{by_seed.mean():.3f} ({np.ptp(by_seed):.3f})"


def defects_table(found: dict[tuple[str, str], list[Figures]], ours: str, theirs: str, categories: list[str]) -> None:
    """The ten kinds of defect that lose most."""
    rows = []
    for category in categories:
        for defect in found[ours, category][0].by_defect:
            pair = [float(np.mean([f.by_defect[defect] for f in found[n, category]])) for n in (ours, theirs)]
            rows.append((pair[0] - pair[1], category, defect, *pair))
    print(f"| category | defect | {ours}, image | {theirs}, image | difference |\n| --- | --- | --- | --- | --- |")
    for difference, category, defect, a, b in sorted(rows)[:10]:
        print(f"| {category} | {defect} | {a:.3f} | {b:.3f} | {difference:.3f} |")
    better = sum(row[0] >= 0 for row in rows)
    print(f"\n{ours} is at least as good on {better} of {len(rows)} kinds of defect.\n")


# ---------------------------------------------------------------------------------------------------------------------
# Speed


def eager_resnet18() -> Callable[[np.ndarray], Any]:
    """Layers 1 to 3 in torch, as one writes them from timm's manual; random weights are as fast as others."""
    import timm
    import torch

    torch.set_num_threads(1)
    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 2, 3)).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (tiny.CARD.mean, tiny.CARD.std))

    def run(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return network((torch.from_numpy(images) - mean) / std)

    return run


def speed_table(rounds: int = 41) -> None:
    """Networks take turns in one process and medians are shown, so that the ratios hold on a busy machine."""
    networks = {"ResNet18, layers 1 to 3, eager torch": eager_resnet18()}
    for name in ("tiny", "tiny:int8"):
        networks[name] = backbones.get(name, strides=STRIDES, device="cpu", engine="onnx", threads=1)
    print("| one thread, 256 x 256 | batch | ms per picture | times eager ResNet18 | times tiny in float32 |")
    print("| --- | --- | --- | --- | --- |")
    for batch in (1, 8):
        images = np.random.default_rng(0).random((batch, 3, 256, 256), dtype=np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for turn in range(rounds):
            for name, network in networks.items():
                start = time.perf_counter()
                network(images)
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        eager = next(iter(median.values()))
        for name, m in median.items():
            print(f"| {name} | {batch} | {m / batch * 1e3:.2f} | {eager / m:.2f} | {median['tiny'] / m:.2f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="ResNet18 weights, safetensors, torchvision names")
    parser.add_argument("--seeds", type=int, default=3, help="0 measures the speed alone")
    parser.add_argument("--int8", action="store_true", help="also judge tiny:int8")
    parser.add_argument("--random", action="store_true", help="also judge random weights")
    parser.add_argument(
        "--model", type=Path, nargs="*", default=[], help="also judge these ONNX files of train_tiny.py"
    )
    parser.add_argument("--categories", nargs="*", default=[*THE_FOUR, *PROCEDURAL.categories])
    args = parser.parse_args()

    speed_table()
    if not args.seeds:
        return
    with tempfile.TemporaryDirectory() as folder:
        networks = {"tiny": Network("tiny"), "ResNet18": Network(f"timm:resnet18@{args.teacher}")}
        if args.int8:
            networks["tiny:int8"] = Network("tiny:int8")
        networks |= {str(path): Network("tiny", path) for path in args.model}
        if args.random:
            networks["random"] = Network("tiny", random_weights(Path(folder)))
        found: dict[tuple[str, str], list[Figures]] = {}
        for category in args.categories:
            for seed in range(args.seeds):
                train, test = read(category, args.data, seed)
                for name, network in networks.items():
                    found.setdefault((name, category), []).append(judge(network, train, test, seed))
            print(f"{category} done", file=sys.stderr, flush=True)
    accuracy_table(found, list(networks), args.categories)
    defects_table(found, "tiny", "ResNet18", args.categories)


if __name__ == "__main__":
    main()
