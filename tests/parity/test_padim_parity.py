"""PaDiM against the tensors stored from anomalib 2.7.0; tolerances from the README beside them."""

from __future__ import annotations

import numpy as np
import pytest

from anomalens.detectors.padim import PaDiM, gaussians
from anomalens.parts.grids import score_map

from ._stages import close, stages

RIDGE = 0.01001  # what that code adds: 0.01, and 1e-5 before inverting


@pytest.mark.parametrize("given", stages("padim"))
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_every_stage(given, library):
    wrap = pytest.importorskip("torch").tensor if library == "torch" else np.asarray
    size = tuple(given.settings["size"])
    detector = PaDiM(channels=given.settings["d"], ridge=RIDGE, blur_padding="mirror")
    detector.channel_index = given["channel_index"]

    train = detector.embed([wrap(x) for x in given.layers("feat_train")])
    test = detector.embed([wrap(x) for x in given.layers("feat_test")])
    close(train[:1], given["embed_train0"])
    close(test, given["embed_test"])

    x = np.asarray(detector.by_position(train), np.float64)
    detector.mean, detector.whiten = gaussians(x.sum(1), np.einsum("pbi,pbj->pij", x, x), len(x[0]), RIDGE)
    close(detector.mean.T, given["mean"], absolute=1e-6)
    inverse = detector.whiten @ detector.whiten.transpose(0, 2, 1)
    close(inverse, given["inv_covariance"], of_largest=1e-5)

    distance = np.asarray(detector.distances(test))
    close(distance, given["distance"], relative=1e-4)
    close(score_map(distance, size, 0.0), given["map_before_smoothing"], relative=1e-4)
    maps = score_map(distance, size, detector.sigma, detector.blur_padding)
    close(maps, given["map"], relative=1e-4)
    close(maps.max(axis=(1, 2)), given["image_score"], relative=1e-4)
