"""What training on annotated pictures of other things teaches, in miniature: no language, no knowledge, other kinds.

The towers are random. Contaminations and stains on metal, terrazzo, cloth and wood are shown, holes in leather, tiles and
stripes are asked for. benchmarks/adaclip_learns.py is the experiment of which this is the smallest version.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")

from anomalens.datasets.procedural import Procedural
from anomalens.detector import create
from anomalens.metrics.auroc import auroc

LEARN, ASK = ("metal", "terrazzo", "cloth", "wood"), ("leather", "tiles", "stripes")
SIZE = 64
SMALL = {"adaclip": {"depth": 1, "length": 2, "clusters": 2, "sigma": 1.0}, "april-gan": {}}


def drawn(categories, kinds, bad: int, seed: int) -> list:
    made = [s for c in categories for s in Procedural(c, SIZE, seed, 0, 1, bad).test()]
    return [s for s in made if s.label == 0 or s.defect in kinds]


def pixel_auroc(detector, samples) -> float:
    """Mean over pictures with a defect."""
    bad = [s for s in samples if s.label]
    maps = [p.map for p in detector.predict(bad)]
    return float(np.mean([auroc(m.ravel(), s.mask.read().ravel()) for m, s in zip(maps, bad, strict=True)]))


@pytest.mark.parametrize("name", SMALL)
def test_training_finds_kinds_it_never_saw(name):
    learn, ask = drawn(LEARN, ("contamination", "stain"), 16, 0), drawn(ASK, ("hole",), 16, 1)
    assert not {(s.category, s.defect) for s in learn if s.label} & {(s.category, s.defect) for s in ask}
    detector = create(
        name, backbone="clip:tiny?weights=random&patch=8&text_layers=1", adapter="random", image_size=SIZE,
        object="surface", **SMALL[name],
    )  # fmt: skip
    before = pixel_auroc(detector, ask)
    detector.train_auxiliary(learn, epochs=8, batch=4, lr=0.003, mosaic=0.0)
    after = pixel_auroc(detector, ask)
    assert after > max(before + 0.1, 0.65), (before, after)
