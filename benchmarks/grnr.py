"""GRNR beside simpler ways to let one texture picture explain itself: a table of AUROC, and the cost of a prediction.

    python benchmarks/grnr.py                                     # drawn textures, embedded backbone
    python benchmarks/grnr.py --data DATA/magnetic_tile --data DATA/pcb
    python benchmarks/grnr.py --backbone tiny --backbone timm:resnet18@FILE.safetensors

Every folder given as --data has test/good, test/<defect> and ground_truth/<defect>. Pixel AUROC is of all pixels of a
set, and the mean over its anomalous pictures; both over the whole picture: pixels that a way has no opinion on have its
lowest value. `drawn` is the mean over the seven drawn textures. The last table is time per picture on this machine, all
in one process; `ratio` is predict over the bare forward pass of the backbone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anomalens import metrics
from anomalens.backbones import Backbone, get
from anomalens.datasets import open_folder
from anomalens.datasets.procedural import Procedural
from anomalens.detectors.grnr import GRNR, enlarge, suppress_border
from anomalens.parts.batches import batches
from anomalens.parts.grids import average_pool, rows_of, to_numpy
from anomalens.types import Sample

TEXTURES = ("cloth", "leather", "metal", "stripes", "terrazzo", "tiles", "wood")
Way = Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]  # (features of a picture, of a normal one) -> map

DEFAULT = GRNR()


def ours(**settings: Any) -> Way:
    detector = GRNR(**settings)
    return lambda features, normal: detector.trace(features)["map"][0]


def by_position(distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Way:
    """A map from distance(rows, supports, normal rows) -> (N,), with borders and fusion as in GRNR."""

    def way(features: list[np.ndarray], normal: list[np.ndarray]) -> np.ndarray:
        stages = DEFAULT.trace(features)
        out = 1.0
        for i, (x, n) in enumerate(zip(features, normal, strict=True)):
            rows, normal_rows = rows_of(stages[f"pooled{i}"]), rows_of(average_pool(n, DEFAULT.pool))
            scores = distance(rows, rows[stages[f"support{i}"][0]], normal_rows).reshape(1, *x.shape[2:])
            cut = np.ceil(0.75 * DEFAULT.margin * x.shape[2] / DEFAULT.side).astype(int)
            inside = slice(DEFAULT.margin, DEFAULT.side - DEFAULT.margin)
            out = out * enlarge(suppress_border(scores, cut), DEFAULT.side, DEFAULT.sigma)[0, inside, inside]
        return out

    return way


def pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (len(a), len(b))."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))


def nearest_within(rows: np.ndarray) -> np.ndarray:
    """Mean distance to the k_global nearest other positions of the picture."""
    return np.partition(pairwise(rows, rows), DEFAULT.k_global, axis=1)[:, 1 : DEFAULT.k_global + 1].mean(1)


CROPPED: dict[str, Way] = {
    "GRNR": ours(),
    "GRNR, mean of top 1 %": ours(image_score="top1%"),
    "GRNR, sum of scales": ours(fusion="sum"),
    "GRNR, K first positions": ours(selection="first"),
    "lambda = 0": ours(lam=0.0),
    "distance to mean support": by_position(lambda rows, support, _: np.linalg.norm(rows - support.mean(0), axis=1)),
    "distance to nearest support": by_position(lambda rows, support, _: pairwise(rows, support).min(1)),
    "nearest within the picture": by_position(lambda rows, _support, _normal: nearest_within(rows)),
    "nearest in one normal picture": by_position(lambda rows, _, normal: pairwise(rows, normal).min(1)),
}
FULL: dict[str, Way] = {
    "GRNR, border full": ours(border="full"),
    "GRNR, border full, lambda = 0": ours(border="full", lam=0.0),
}


def sets(folders: list[Path], pictures: int) -> Iterator[tuple[str, list[Sample], Sample]]:
    """Name, test samples (at most `pictures` of each label), one normal picture."""
    for category in TEXTURES:
        drawn = Procedural(category, train_count=1, good_count=pictures, bad_count=pictures)
        yield category, drawn.test(), drawn.train()[0]
    for folder in folders:
        found = open_folder(folder)
        test = found.test()
        chosen = []
        for label in (0, 1):
            same = [s for s in test if s.label == label]
            chosen += same[:: -(-len(same) // pictures)]
        yield folder.name, chosen, found.train()[0]


def judge(net: Backbone, samples: list[Sample], normal: Sample) -> dict[str, tuple[float, float, float]]:
    size = (DEFAULT.image_size, DEFAULT.image_size)
    masks = [s.mask.read() if s.mask else np.zeros(s.image().shape[:2], bool) for s in samples]
    labels = np.array([int(s.label or 0) for s in samples])
    out = {}
    for ways, border in ((CROPPED, "crop"), (FULL, "full")):
        detector = GRNR(border=border)  # type: ignore[arg-type]
        scores: dict[str, list[float]] = {name: [] for name in ways}
        maps: dict[str, list[np.ndarray]] = {name: [] for name in ways}
        reference = features_of(net, detector.surround(next(batches([normal], size)).images))
        for batch in batches(samples, size):
            features = features_of(net, detector.surround(batch.images))
            for i, picture in enumerate(batch.sizes):
                for name, way in ways.items():
                    values = way([x[i : i + 1] for x in features], reference)
                    judged = GRNR(image_score="top1%") if "top" in name else DEFAULT
                    scores[name].append(judged.score_of(values))
                    maps[name].append(DEFAULT.on_picture(values, picture))
        for name in ways:
            within = [metrics.get("auroc")(m, k) for m, k in zip(maps[name], masks, strict=True) if k.any()]
            out[name] = (
                metrics.image(scores[name], labels, ["auroc"])["auroc"].value,
                metrics.pixel(maps[name], masks, which=["auroc"])["auroc"].value,
                float(np.mean(within)),
            )
    return out


def features_of(net: Backbone, images: np.ndarray) -> list[np.ndarray]:
    return [to_numpy(x) for x in net(images)]


def cost(backbone: str) -> str:
    """Milliseconds of one picture: the fastest of several rounds, so that other work on the machine counts less."""
    rounds, count = 5, 8
    samples = Procedural("leather", size=320, train_count=count, good_count=0, bad_count=0).train()
    held = [s.image() for s in samples]
    samples = [
        Sample(s.id, {"image": type(s.views["image"])("image", lambda p=p: p)})
        for s, p in zip(samples, held, strict=True)
    ]
    detector = GRNR(backbone=backbone)
    net = get(backbone)
    images = next(batches(samples, (320, 320), count)).images
    features = features_of(net, images)
    spent: dict[str, list[float]] = {"forward": [], "trace": [], "predict": []}
    list(detector.predict(samples))
    for _ in range(rounds):
        for name, work in {
            "forward": lambda: net(images),
            "trace": lambda: [detector.trace([x[i : i + 1] for x in features]) for i in range(count)],
            "predict": lambda: list(detector.predict(samples)),
        }.items():
            start = time.perf_counter()
            work()
            spent[name].append(1e3 * (time.perf_counter() - start) / count)
    forward, trace, predict = (min(spent[name]) for name in ("forward", "trace", "predict"))
    return f"{backbone[:40]:40s} {forward:9.1f} {trace:9.1f} {predict:9.1f} {predict / forward:7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, action="append", default=[], help="a folder with test/ and ground_truth/")
    parser.add_argument("--backbone", action="append", help="as for create(..., backbone=...); tiny unless given")
    parser.add_argument("--pictures", type=int, default=20, help="at most this many of each label")
    arguments = parser.parse_args()
    backbones = arguments.backbone or ["tiny"]
    for backbone in backbones:
        net = get(backbone)
        results = {name: judge(net, test, normal) for name, test, normal in sets(arguments.data, arguments.pictures)}
        names = list(CROPPED) + list(FULL)
        names = [*CROPPED, *FULL]
        results["drawn"] = {n: tuple(np.mean([results[t][n] for t in TEXTURES], axis=0)) for n in names}
        for k, measure in enumerate(("image AUROC", "pixel AUROC", "pixel AUROC within a picture")):
            print(f"\n{measure:32s}" + "".join(f"{column[:13]:>14s}" for column in results) + f"   {backbone}")
            for name in names:
                print(f"{name:32s}" + "".join(f"{cells[name][k]:14.3f}" for cells in results.values()), flush=True)
    print(f"\n{'ms per picture':40s} {'forward':>9s} {'trace':>9s} {'predict':>9s} {'ratio':>7s}")
    for backbone in backbones:
        print(cost(backbone), flush=True)


if __name__ == "__main__":
    main()
