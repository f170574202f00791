"""AUROC of the default settings on the real categories: python benchmarks/accuracy.py [--methods patchcore,padim] [--seeds 3]

Fit on train/good, judge test; image AUROC from scores, pixel AUROC and AUPRO (limit 0.3) where there are masks, at the
pictures' own size. Nothing is chosen on these labels.
"""

from __future__ import annotations

import argparse

import numpy as np
from _common import CATEGORIES, RESNET18, data, table

import anomalens as al
from anomalens import metrics
from anomalens.datasets import open_folder


def figures(method: str, backbone: str, category: str, seed: int) -> tuple[float, float, float]:
    folder = open_folder(data(category))
    test = folder.test()
    detector = al.create(method, backbone=backbone, seed=seed).fit(folder.train())
    predictions = list(detector.predict(test))
    labels = [s.label for s in test]
    image = metrics.image([p.score for p in predictions], labels, ["auroc"])["auroc"].value
    pairs = [
        (p.map, s.mask.read() if s.mask else None)
        for p, s in zip(predictions, test, strict=True)
        if s.mask or not s.label
    ]
    if not any(mask is not None for _, mask in pairs):
        return image, float("nan"), float("nan")
    pixel = metrics.pixel(*zip(*pairs, strict=True), limits=(0.3,), which=("auroc", "aupro"))
    return image, pixel["auroc"].value, pixel["aupro@0.3"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="patchcore,padim,grnr")
    parser.add_argument("--backbones", default=f"tiny,{RESNET18}")
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    categories = options.categories.split(",")
    rows: list[tuple[object, ...]] = []
    for method in options.methods.split(","):
        for backbone in options.backbones.split(","):
            values = np.array(
                [[figures(method, backbone, c, seed) for c in categories] for seed in range(options.seeds)]
            )  # (seeds, categories, 3)
            for i, name in enumerate(("image AUROC", "pixel AUROC", "AUPRO@0.3")):
                mean = values[:, :, i].mean(axis=0)
                known = mean[~np.isnan(mean)]
                spread = np.nanmax(np.ptp(values[:, :, i], axis=0))
                rows.append(
                    (method, backbone.partition("@")[0], name, *map(float, mean), float(known.mean()), float(spread))
                )
    table(("method", "backbone", "figure", *categories, "mean", "largest range over seeds"), rows)


if __name__ == "__main__":
    main()
