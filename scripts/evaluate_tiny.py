"""Image AUROC of a plain patch memory over `tiny`, over the same network with random weights, and over its teacher.

    python scripts/evaluate_tiny.py --data DATA --teacher resnet18.safetensors [--model runs/tiny/tiny.onnx ...]

DATA/<category> holds train/good, test/good and test/<defect>. These figures are for the ledger in docs/tiny.md; nothing of
the training is chosen by them. Versions may be chosen by the last column: drawn surfaces with drawn defects.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import train_tiny

from anomalens.backbones import tiny
from anomalens.backbones._onnx import OnnxNetwork
from anomalens.images import SUFFIXES, read_image, resize, to_float

Network = Callable[[np.ndarray], list[np.ndarray]]  # (B, 3, H, W) in [0, 1] -> maps of stride 8 and 16
Batches = Iterable[np.ndarray]
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
            return [m.numpy() for m in network((torch.from_numpy(images) - mean) / std)[1:]]

    return run


def read(folder: Path, size: int) -> Iterator[np.ndarray]:
    """Batches (B, 3, size, size) of the pictures of one folder, in the order of their names."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    for start in range(0, len(files), 8):
        pictures = [to_float(resize(read_image(f), (size, size))) for f in files[start : start + 8]]
        yield np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def patches(maps: list[np.ndarray]) -> np.ndarray:
    """Maps of stride 8 and 16 -> (B, h * w, channels): each averaged over 3x3, the coarse one upsampled, joined."""
    fine, coarse = (_average3(m) for m in maps)
    joined = np.concatenate([fine, _double(coarse)], axis=1)
    return joined.reshape(*joined.shape[:2], -1).transpose(0, 2, 1)


def _average3(x: np.ndarray) -> np.ndarray:
    """3x3 mean with stride 1 over a zero border, which keeps the border from looking anomalous by itself."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = sum(padded[:, :, k : k + height] for k in range(3))
    return sum(rows[..., k : k + width] for k in range(3)) / np.float32(9)


def _double(x: np.ndarray) -> np.ndarray:
    """Bilinear upsampling by two, pixel centres aligned, edges repeated."""
    for axis in (2, 3):
        n = x.shape[axis]
        before, after = (np.take(x, np.clip(np.arange(n) + d, 0, n - 1), axis=axis) for d in (-1, 1))
        pair = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pair.reshape([2 * n if a == axis else s for a, s in enumerate(x.shape)])
    return x


def image_auroc(network: Network, train: Batches, good: Batches, bad: Batches, *, kept: int, seed: int) -> float:
    """Patch memory: score of a picture = largest distance of a patch to the nearest of `kept` random training ones."""
    known = np.concatenate([patches(network(batch)) for batch in train])
    known = known.reshape(-1, known.shape[-1])
    bank = known[np.random.default_rng(seed).permutation(len(known))[:kept]]
    squared = (bank**2).sum(1)

    def scores(batches: Batches) -> np.ndarray:
        found = [x for batch in batches for x in patches(network(batch))]
        return np.array([((x**2).sum(1) + (squared - 2 * (x @ bank.T)).min(1)).max() for x in found])

    low, high = scores(good), scores(bad)[:, None]
    return float(((high > low).mean() + (high >= low).mean()) / 2)


def category_auroc(network: Network, category: Path, *, size: int, kept: int, seed: int) -> float:
    folders = sorted(p for p in (category / "test").iterdir() if p.is_dir() and p.name != "good")
    bad = (batch for folder in folders for batch in read(folder, size))
    train, good = read(category / "train" / "good", size), read(category / "test" / "good", size)
    return image_auroc(network, train, good, bad, kept=kept, seed=seed)


def drawn_auroc(network: Network, *, count: int, kept: int, seed: int) -> float:
    """Mean over `count` drawn surfaces with drawn defects: what versions may be chosen by."""
    surfaces = [drawn_surface(index) for index in range(count)]
    return float(np.mean([image_auroc(network, *([x] for x in s), kept=kept, seed=seed) for s in surfaces]))


def drawn_surface(index: int, side: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(24, 16, 16) crops of one drawn canvas: to learn, good, and with a soft-edged patch.

    The patch is another texture, the canvas itself turned, a flat colour, or a change of light.
    """
    rng = np.random.default_rng((77, index))
    canvas = (train_tiny.texture, train_tiny.leaves, train_tiny.lines)[index % 3](rng, 512)
    foreign = train_tiny.texture(rng, 512)
    canvas = train_tiny.finish(rng, canvas)

    def crop(picture: np.ndarray) -> np.ndarray:
        y, x = rng.integers(0, 512 - side, 2)
        return picture[y : y + side, x : x + side]

    learn, good, bad = [crop(canvas) for _ in range(24)], [crop(canvas) for _ in range(16)], []
    for place in range(16):
        base = crop(canvas)
        mask = train_tiny.blob(rng, side, rng.uniform(30, 98, 2), rng.uniform(8, 22))[..., None] * rng.uniform(0.5, 1)
        patch = (
            crop(foreign),
            np.rot90(crop(canvas)),
            np.broadcast_to(rng.random(3), base.shape),
            np.clip(base * rng.uniform(0.5, 1.6), 0, 1),
        )[place % 4]
        bad.append(base * (1 - mask) + patch * mask)
    groups = (np.rint(np.stack(group).transpose(0, 3, 1, 2) * 255) / 255 for group in (learn, good, bad))
    return tuple(np.ascontiguousarray(group, np.float32) for group in groups)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="also judge the teacher")
    parser.add_argument(
        "--model", type=Path, nargs="*", default=[tiny.ASSET], help="ONNX files; default the embedded one"
    )
    parser.add_argument("--random", action="store_true", help="also judge random weights")
    parser.add_argument("--categories", nargs="*", default=CATEGORIES)
    parser.add_argument("--drawn", type=int, default=30, help="drawn surfaces")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--kept", type=int, default=4000, help="training patches in the memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    networks: dict[str, Any] = {}
    if args.random:
        networks["random weights"] = untrained(args.seed, args.threads)
    networks |= {str(path): embedded(path, args.threads) for path in args.model}
    if args.teacher:
        networks["teacher"] = teacher(args.teacher, args.threads)
    print("| network | " + " | ".join(args.categories) + " | mean | drawn |")
    print("| --- " * (len(args.categories) + 3) + "|")
    for name, network in networks.items():
        how = {"kept": args.kept, "seed": args.seed}
        figures = [category_auroc(network, args.data / c, size=args.size, **how) for c in args.categories]
        figures += [float(np.mean(figures)), drawn_auroc(network, count=args.drawn, **how)]
        print(f"| {name} | " + " | ".join(f"{f:.3f}" for f in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
