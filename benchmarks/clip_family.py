"""What the language methods add to CLIP's own forward pass: python benchmarks/clip_family.py [--backbone NAME] [--threads 1]

predict over pictures in memory, once the sentences of the class are encoded, over the bare picture tower at the same
size in the same process, in processor time. Random weights of real shapes: time does not depend on what a network knows.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
from _common import table

import anomalens as al
from anomalens.backbones import clip
from anomalens.types import Sample, View


def best(work, repeats: int) -> float:
    """Shortest processor time of several runs, seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def bare(backbone: str, side: int, count: int, threads: int) -> float:
    import torch

    tower = clip.load(backbone, threads=threads)
    pixels = tower.normalise(np.zeros((count, 3, side, side), np.float32))

    def forward() -> None:
        with torch.no_grad():
            tower.pool(tower.vision(tower.embed(pixels))[0])

    return best(forward, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="clip:ViT-B-16-plus-240?weights=random")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=2)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (480, 480, 3), np.uint8) for _ in range(options.pictures)]
    samples = [Sample(str(i), {"image": View("image", partial(np.array, p))}, "cloth") for i, p in enumerate(pictures)]
    rows = []
    for label, name, settings, references in (
        ("AdaCLIP", "adaclip", {"adapter": "random"}, 0),
        ("AdaCLIP, static prompts", "adaclip", {"adapter": "random", "type": "S"}, 0),
        ("APRIL-GAN", "april-gan", {"adapter": "random"}, 0),
        ("APRIL-GAN, 2 references", "april-gan", {"adapter": "random"}, 2),
        ("WinCLIP", "winclip", {}, 0),
        ("WinCLIP+, 2 references", "winclip", {}, 2),
    ):
        detector = al.create(
            name,
            backbone=options.backbone,
            image_size=240,
            batch_size=len(samples),
            threads=options.threads,
            **settings,
        )
        if references:
            detector.fit(samples[:references])
        first = best(lambda detector=detector: list(detector.predict(samples)), 1)  # with the sentences
        total = best(lambda detector=detector: list(detector.predict(samples)), 3)
        forward = bare(options.backbone, 240, len(samples), options.threads)
        rows.append((label, 1e3 * forward / len(samples), total / forward, (first - total) / forward * len(samples)))
    table(("method", "bare tower, ms a picture", "predict / bare", "sentences, once, in bare pictures"), rows)


if __name__ == "__main__":
    main()
