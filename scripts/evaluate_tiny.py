"""Image AUROC of a plain patch memory over `tiny`, over the same network with random weights, and over its teacher.

    python scripts/evaluate_tiny.py --data DATA --teacher resnet18.safetensors [--model runs/tiny/tiny.onnx ...]

DATA/<category> holds train/good, test/good and test/<defect>. The figures are for the ledger in docs/tiny.md; nothing
of the training is chosen by them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import train_tiny

from anomalens.backbones import tiny
from anomalens.backbones._onnx import OnnxNetwork
from anomalens.images import SUFFIXES, read_image, resize, to_float

Network = Callable[[np.ndarray], list[np.ndarray]]  # (B, 3, H, W) in [0, 1] -> maps of stride 8 and 16
CATEGORIES = ("magnetic_tile", "pcb", "hazelnut", "brain_mri")


def embedded(path: Path, threads: int) -> Network:
    return OnnxNetwork(path, ("stride8", "stride16"), threads=threads)


def untrained(seed: int, threads: int) -> Network:
    """The layout of tiny with random weights; batch norm in its initial state is the identity."""
    import torch

    torch.manual_seed(seed)
    student = train_tiny.make_student().eval()
    units = {s: (torch.zeros(c), torch.ones(c)) for s, c in train_tiny.TEACHER_CHANNELS.items()}
    model = train_tiny.onnx_bytes(train_tiny.fold(student, units))
    return OnnxNetwork(model, ("stride8", "stride16"), threads=threads)


def teacher(path: Path, threads: int) -> Network:
    import torch

    torch.set_num_threads(threads)
    network = train_tiny.load_teacher(path)
    mean, std = (torch.tensor(v)[:, None, None] for v in (tiny.CARD.mean, tiny.CARD.std))

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [m.numpy() for m in network((torch.from_numpy(np.ascontiguousarray(images)) - mean) / std)[1:]]

    return run


def read(folder: Path, size: int) -> Iterator[np.ndarray]:
    """(1, 3, H, W) for each picture of a folder: about size * size pixels, its own proportions, multiples of 16."""
    for path in sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES):
        picture = read_image(path)
        zoom = size / np.sqrt(picture.shape[0] * picture.shape[1])
        height, width = (max(16, 16 * round(side * zoom / 16)) for side in picture.shape[:2])
        yield to_float(resize(picture, (height, width))).transpose(2, 0, 1)[None]


def patches(maps: list[np.ndarray]) -> np.ndarray:
    """Maps of stride 8 and 16 -> (B, h * w, channels): each averaged over 3x3, the coarse one upsampled, joined."""
    fine, coarse = (_average3(m) for m in maps)
    joined = np.concatenate([fine, _double(coarse)], axis=1)
    return joined.reshape(*joined.shape[:2], -1).transpose(0, 2, 1)


def _average3(x: np.ndarray) -> np.ndarray:
    """3x3 mean with stride 1; at the border over the neighbours that exist."""
    for axis in (2, 3):
        padded = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        ones = np.pad(np.ones(x.shape[axis], x.dtype), 1)
        count = (ones[:-2] + ones[1:-1] + ones[2:]).reshape([-1 if a == axis else 1 for a in range(4)])
        n = x.shape[axis]
        x = sum(np.take(padded, range(k, k + n), axis=axis) for k in range(3)) / count
    return x


def _double(x: np.ndarray) -> np.ndarray:
    """Bilinear upsampling by two, pixel centres aligned, edges repeated."""
    for axis in (2, 3):
        n = x.shape[axis]
        before, after = (np.take(x, np.clip(np.arange(n) + d, 0, n - 1), axis=axis) for d in (-1, 1))
        pair = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pair.reshape([2 * n if a == axis else s for a, s in enumerate(x.shape)])
    return x


def image_auroc(network: Network, category: Path, *, size: int, kept: int, seed: int) -> float:
    """Patch memory: score of a picture = largest distance of a patch to the nearest of `kept` random training ones."""
    train = np.concatenate([patches(network(b))[0] for b in read(category / "train" / "good", size)])
    bank = train[np.random.default_rng(seed).permutation(len(train))[:kept]]
    squared = (bank**2).sum(1)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for folder in sorted(p for p in (category / "test").iterdir() if p.is_dir()):
        for image in read(folder, size):
            x = patches(network(image))[0]
            nearest = (x**2).sum(1) + (squared - 2 * (x @ bank.T)).min(1)
            scores[folder.name != "good"].append(float(nearest.max()))
    bad, good = np.array(scores[True]), np.array(scores[False])
    return float(((bad[:, None] > good).mean() + (bad[:, None] >= good).mean()) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="also judge the teacher")
    parser.add_argument(
        "--model", type=Path, nargs="*", default=[tiny.ASSET], help="ONNX files; default the embedded one"
    )
    parser.add_argument("--random", action="store_true", help="also judge random weights")
    parser.add_argument("--categories", nargs="*", default=CATEGORIES)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--kept", type=int, default=5000, help="training patches in the memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    networks: dict[str, Any] = {}
    if args.random:
        networks["random weights"] = untrained(args.seed, args.threads)
    networks |= {str(path): embedded(path, args.threads) for path in args.model}
    if args.teacher:
        networks["teacher"] = teacher(args.teacher, args.threads)
    print("| network | " + " | ".join(args.categories) + " | mean |")
    print("| --- " * (len(args.categories) + 2) + "|")
    for name, network in networks.items():
        figures = [
            image_auroc(network, args.data / c, size=args.size, kept=args.kept, seed=args.seed) for c in args.categories
        ]
        print(f"| {name} | " + " | ".join(f"{f:.3f}" for f in [*figures, np.mean(figures)]) + " |", flush=True)


if __name__ == "__main__":
    main()
