"""PatchCore against the tensors stored from the official code and from anomalib; tolerances from the README beside them."""

from __future__ import annotations

import numpy as np
import pytest

from anomalens.detectors.patchcore import PatchCore, neighbourhoods, paper_weight
from anomalens.parts.coreset import distance_norms, greedy, mean_distances
from anomalens.parts.grids import score_map, to_numpy
from anomalens.parts.neighbours import Bank
from anomalens.parts.patches import embed

from ._stages import close, stages


def given(x: np.ndarray, library: str):
    return pytest.importorskip("torch").tensor(x) if library == "torch" else x


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("stored", stages("patchcore"))
def test_the_official_code(stored, library):
    config = stored.settings
    size, grid = tuple(config["size"]), stored.layers("feat_test")[0].shape[2:]
    detector = PatchCore(
        embedding="official", patch=config["patch"], pretrain_dim=config["pretrain_dim"],
        target_dim=config["target_dim"], neighbours=config["k"], squared=True, image_score="patch", search="exact",
    )  # fmt: skip

    last = stored.layers("feat_test")[-1][:1]
    b, c, h, w = last.shape
    windows = to_numpy(neighbourhoods(given(last, library), config["patch"]))
    windows = windows.reshape(b, c, config["patch"], config["patch"], h * w).transpose(0, 4, 1, 2, 3)
    close(windows, stored["patchify_test0_last"])

    train = detector.embed([given(x, library) for x in stored.layers("feat_train")])
    rows = detector.embed([given(x, library) for x in stored.layers("feat_test")])
    close(to_numpy(train), stored["embed_train"], absolute=1e-6)
    close(to_numpy(rows), stored["embed_test"], absolute=1e-6)

    reduced = to_numpy(train) @ stored["projection"].T
    close(reduced[:64], stored["reduced_train"], absolute=1e-5)
    count = config["n_bank"]
    starts = mean_distances(reduced, reduced[stored["start_points"]])
    chosen = greedy(reduced, count, first_distances=starts).indices
    assert np.array_equal(chosen, stored["coreset_indices_approx"])
    assert np.array_equal(
        greedy(reduced, count, first_distances=distance_norms(reduced)).indices, stored["coreset_indices_exact"]
    )

    detector.bank = stored["embed_train"][chosen]
    index = detector.index(rows)
    distances, nearest = index.nearest(rows, config["k"])
    close(to_numpy(distances) ** 2, stored["nn_squared_distances"], relative=1e-5)
    assert np.array_equal(to_numpy(nearest), stored["nn_indices"])
    patches = to_numpy(detector.in_unit(distances)).mean(axis=1).reshape(-1, *grid)
    close(patches, stored["patch_scores"], relative=1e-5)
    scores, maps = detector.score(index, rows, distances, nearest, (len(patches), *grid), size)
    close(maps, stored["map"], of_largest=1e-5)
    close(np.array(scores), stored["image_score"], relative=1e-5)
    close(np.array(config["image_score"]), stored["image_score"], relative=1e-6)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("stored", stages("patchcore"))
def test_the_closed_form_of_the_wide_resnet_setting(stored, library):
    """Where each layer holds 9c values for d, the pooling has a closed form (specification, section 1)."""
    config = stored.settings
    c2, c3 = config["channels"]
    d = config["target_dim"]
    if not (config["patch"] == 3 and config["pretrain_dim"] == d == 2 * c2 == c3):
        pytest.skip("this configuration has other channel ratios")
    fine, coarse = stored.layers("feat_test")
    pooled = embed([given(fine, library), given(coarse, library)])
    mean2, mean3 = to_numpy(pooled)[:, :c2], to_numpy(pooled)[:, c2:]
    own = np.moveaxis(fine, 1, 3).reshape(-1, c2)
    closed = np.concatenate([(9 * mean2 + own) / 10, mean3.reshape(len(mean3), -1, 2).mean(axis=2)], axis=1)
    close(closed, stored["embed_test"], absolute=1e-6)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("stored", stages("patchcore"))
def test_anomalib(stored, library):
    config = stored.settings
    size, grid = tuple(config["size"]), stored.layers("feat_test")[0].shape[2:]
    detector = PatchCore(
        neighbours=1, reweight=config["al_neighbors"], image_score="patch", search="exact", blur_padding="mirror"
    )
    train = to_numpy(detector.embed([given(x, library) for x in stored.layers("feat_train")]))
    rows = detector.embed([given(x, library) for x in stored.layers("feat_test")])
    close(train[: len(stored["al.embed_train_head"])], stored["al.embed_train_head"], absolute=1e-6)
    close(to_numpy(rows), stored["al.embed_test"], absolute=1e-6)

    chosen = greedy(
        train @ stored["al.projection"].T, len(stored["al.coreset_indices"]), start=config["al_start_index"]
    )
    assert np.array_equal(chosen.indices, stored["al.coreset_indices"])

    detector.bank = train[chosen.indices]
    index = detector.index(rows)
    distances, nearest = index.nearest(rows, 1)
    patches = to_numpy(distances).reshape(-1, *grid)
    close(patches, stored["al.patch_distances"], relative=1e-5)
    assert np.array_equal(to_numpy(nearest).reshape(stored["al.nn_indices"].shape), stored["al.nn_indices"])

    flat = patches.reshape(len(patches), -1)
    top = flat.argmax(axis=1)
    assert np.array_equal(top, stored["al.max_patch"])
    close(flat.max(axis=1), stored["al.image_score_max"], relative=1e-5)
    _, support = Bank(detector.bank).nearest(
        detector.bank[stored["al.nn_indices"][np.arange(len(top)), top]], config["al_neighbors"]
    )
    assert np.array_equal(support, stored["al.support_indices"])
    per_image = to_numpy(rows).reshape(*flat.shape, -1)
    away = [np.linalg.norm(detector.bank[s] - per_image[i, top[i]], axis=1) for i, s in enumerate(support)]
    close(np.array(away), stored["al.support_distances"], relative=1e-5)
    matched = to_numpy(nearest).reshape(flat.shape)
    weights = [
        paper_weight(per_image[i, top[i]], index, int(matched[i, top[i]]), config["al_neighbors"])
        for i in range(len(top))
    ]
    close(np.array(weights), stored["al.weights"], absolute=1e-5)
    scores, _ = detector.score(index, rows, distances, nearest, (len(patches), *grid), size)
    close(np.array(scores), stored["al.image_score"], relative=1e-5)
    maps = score_map(patches, size, detector.sigma, "mirror", "nearest")
    close(maps, stored["al.map"], of_largest=1e-5)
