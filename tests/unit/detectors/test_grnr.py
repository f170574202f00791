"""GRNR: acceptance on synthetic features and drawn textures, the algebra against slow loops, and its refusals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from anomalens.backbones import tiny
from anomalens.detector import create
from anomalens.detectors import grnr
from anomalens.detectors.grnr import GRNR
from anomalens.errors import WrongInput
from anomalens.metrics.auroc import auroc
from anomalens.parts.grids import blur_matrix, to_numpy
from anomalens.types import Sample, View

CELLS, CHANNELS = 40, 128
ONE_SCALE = {"strides": (8,), "pool": 1}


# Synthetic features, as in the method's acceptance criteria -----------------------------------------------------------


def smoothed(x: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (C, h, w) with `sigma` cells."""
    down, across = (blur_matrix(n, sigma) for n in x.shape[1:])
    return down @ x @ across.T


def block(size: int, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((CELLS, CELLS), bool)
    y, x = rng.integers(2, CELLS - size - 2, 2)
    mask[y : y + size, x : x + size] = True
    return mask


def coherent(seed: int, size: int, level: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (C, h, w) before the last blur, the defect mask (h, w), and the base vector (C,)."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(CHANNELS)
    noise = smoothed(rng.standard_normal((CHANNELS, CELLS, CELLS)), 0.8)
    features = base[:, None, None] + noise * (level / noise.std())
    mask = block(size, rng)
    return features, mask, base


def with_offset(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    features, mask, _ = coherent(seed, size)
    features[:, mask] += np.random.default_rng([seed, 1]).standard_normal(CHANNELS)[:, None]
    return smoothed(features, 0.6), mask


def drifting(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A slow change across the width, 0.9 |base| high along one direction, and a small defect of 0.9 |base|."""
    features, mask, base = coherent(seed, 4, 0.25)
    rng = np.random.default_rng([seed, 2])
    height = 0.9 * np.linalg.norm(base)
    along, offset = rng.standard_normal((2, CHANNELS))
    along -= base * (along @ base) / (base @ base)
    wave = np.sin(2 * np.pi * np.arange(CELLS) / CELLS)
    features += (height * along / np.linalg.norm(along))[:, None, None] * wave
    features[:, mask] += (height * offset / np.linalg.norm(offset))[:, None]
    return smoothed(features, 0.6), mask


def scores(features: np.ndarray, **settings) -> np.ndarray:
    return GRNR(**ONE_SCALE, **settings).trace([features[None].astype(np.float32)])["score0"][0]


@pytest.mark.parametrize("size", [4, 8, 16])
def test_without_the_global_term_the_inside_of_a_defect_is_rebuilt(size):
    with_it, without = [], []
    for seed in range(3):
        features, mask = with_offset(seed, size)
        with_it.append(auroc(scores(features), mask))
        without.append(auroc(scores(features, lam=0.0), mask))
    assert min(with_it) >= 0.95
    assert np.mean(without) <= 0.65


def test_the_local_term_forgives_slow_drift():
    ours, mean, nearest = [], [], []
    for seed in range(5):
        features, mask = drifting(seed)
        stages = GRNR(**ONE_SCALE).trace([features[None]])
        rows = np.moveaxis(features, 0, 2).reshape(-1, CHANNELS)
        typical = rows[stages["support0"][0]]
        ours.append(auroc(stages["score0"][0], mask))
        mean.append(auroc(np.linalg.norm(rows - typical.mean(0), axis=1), mask.ravel()))
        nearest.append(auroc(np.linalg.norm(rows[:, None] - typical[None], axis=2).min(1), mask.ravel()))
    assert np.mean(ours) >= np.mean(mean) + 0.05
    assert np.mean(ours) >= np.mean(nearest)


def test_the_centre_in_its_own_support_explains_itself_away():
    features, _ = with_offset(0, 8)
    q = np.moveaxis(features, 0, 2)[None]
    padded = grnr.mirror(q, 1)
    without = grnr.window(3)
    for places, explained in (([*without[:4], (1, 1), *without[4:]], True), (without, False)):
        maps = [padded[:, y : y + CELLS, x : x + CELLS] for y, x in places]
        gram = grnr.shared_gram(padded, places, (CELLS, CELLS))
        _, rebuilt = grnr.project(q, maps, gram, 1e-10)
        miss = np.linalg.norm(q - rebuilt, axis=-1) / np.linalg.norm(q, axis=-1)
        assert miss.max() < 1e-6 if explained else miss.min() > 0.02


@pytest.mark.parametrize("seed", range(5))
def test_supports_hold_no_position_of_a_large_defect(seed):
    features, mask = with_offset(seed, 24)
    support = GRNR(**ONE_SCALE).trace([features[None]])["support0"][0]
    assert mask.mean() == pytest.approx(0.36)
    assert len(set(support)) == 40
    assert not mask.ravel()[support].any()


# The algebra, against loops that follow the formulas letter by letter -------------------------------------------------


def reflected(i: int, n: int) -> int:
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def slow(q: np.ndarray, typical: np.ndarray, lam: float, ridge: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The long closed form, position by position: weights (N, n) and scores (h, w) for q (h, w, C), typical (K, C)."""
    h, w, _ = q.shape
    r, k = size // 2, len(typical)
    weights, score = [], np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            around = [(y + a, x + b) for a in range(-r, r + 1) for b in range(-r, r + 1) if (a, b) != (0, 0)]
            S = np.array([q[reflected(a, h), reflected(b, w)] for a, b in around])
            gram = S @ S.T
            gram += ridge * np.trace(gram) / len(S) * np.eye(len(S))
            left = q[y, x] @ S.T + lam * sum(mu @ S.T for mu in typical)
            weights.append(left @ np.linalg.inv((1 + lam * k) * gram))
            score[y, x] = np.linalg.norm(q[y, x] - weights[-1] @ S)
    return np.array(weights), score


@pytest.mark.parametrize(("size", "lam"), [(3, 5.0), (3, 0.0), (5, 0.3)])
def test_projection_equals_the_long_closed_form(size, lam):
    x = np.random.default_rng(0).standard_normal((1, 40, 9, 11))
    detector = GRNR(image_size=64, strides=(8,), pool=1, k_global=6, lam=lam, neighborhood=size, ridge=1e-3)
    stages = detector.trace([x], cut=[0], crop=0, everything=True)
    q = np.moveaxis(x[0], 0, 2)
    typical = q.reshape(-1, 40)[stages["support0"][0]]
    weights, score = slow(q, typical, lam, 1e-3, size)
    assert np.allclose(stages["W0"][0], weights, atol=1e-6)
    assert np.allclose(stages["score0"][0], score, atol=1e-6)
    rebuilt = np.einsum("pn,pnc->pc", stages["W0"][0], stages["S0"][0]).reshape(9, 11, 40)
    assert np.allclose(np.moveaxis(stages["q_hat0"][0], 0, 2), rebuilt, atol=1e-9)


def test_only_lambda_times_k_counts():
    x = np.random.default_rng(1).standard_normal((1, 12, 8, 8))

    def score(lam: float, support: list[int]) -> np.ndarray:
        return GRNR(image_size=64, k_global=1, lam=lam, **ONE_SCALE).trace([x], supports=[np.array(support)])["score0"]

    several = [3, 17, 40]
    assert np.allclose(score(2.0, several), score(1.0, 2 * several), atol=1e-9)  # each typical position twice
    assert np.allclose(score(6.0, [5]), score(1.0, 6 * [5]), atol=1e-9)  # all mu_k equal
    assert not np.allclose(score(6.0, [5]), score(5.0, [5]), atol=1e-6)


@pytest.mark.parametrize("cells", [12, 20])  # fewer and more positions than one block of the distance matrix
def test_mean_distances_equal_all_pairs(cells):
    rows = np.random.default_rng(2).standard_normal((2, cells * cells, 7)) + 30
    expected = [[sum(np.linalg.norm(a - b) for b in picture) / (len(picture) - 1) for a in picture] for picture in rows]
    assert np.allclose(grnr.mean_distances(rows), expected, rtol=1e-10)
    assert np.allclose(grnr.mean_distances(rows.astype(np.float32)), expected, rtol=1e-4)


def test_enlarging_is_bilinear_then_gaussian():
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = np.random.default_rng(3).random((1, 6, 6))
    centre = np.clip((np.arange(96) + 0.5) / 16 - 0.5, 0, 5)
    up = ndimage.map_coordinates(grid[0], np.meshgrid(centre, centre, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(grnr.enlarge(grid, 96, 3.0)[0], ndimage.gaussian_filter(up, 3.0), atol=1e-9)


def test_border_cells_get_the_lowest_score():
    score = np.random.default_rng(4).random((2, 7, 9))
    cut = grnr.suppress_border(score, 2)
    assert np.array_equal(cut[:, 2:5, 2:7], score[:, 2:5, 2:7])
    assert np.array_equal(cut[0, :2], np.full((2, 9), score[0].min()))
    assert np.array_equal(cut[1, :, 7:], np.full((7, 2), score[1].min()))


def test_flat_features_stay_finite():
    for value in (0.0, 3.0):
        out = GRNR(image_size=64, k_global=5, strides=(8,)).trace([np.full((1, 4, 8, 8), value, np.float32)])
        assert all(np.isfinite(stage).all() for stage in out.values())


def test_precision_and_library_change_nothing():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    features = [rng.random((2, 16, 16, 16)), rng.random((2, 24, 8, 8))]
    detector = GRNR(image_size=128)
    double = detector.trace(features)
    single = detector.trace([x.astype(np.float32) for x in features])
    tensors = detector.trace([torch.from_numpy(x).float() for x in features])
    assert tensors["map"].dtype == torch.float32
    for name in double:
        assert single[name].dtype in (np.float32, np.int64)
        assert np.allclose(single[name], double[name], atol=1e-3 * np.abs(double[name]).max()), name
        assert np.allclose(to_numpy(tensors[name]), single[name], atol=1e-3 * np.abs(double[name]).max()), name
    assert np.allclose(to_numpy(tensors["map"]), single["map"], rtol=1e-4)  # weights of mirrored neighbours move more


def test_noise_in_place_of_the_ridge():
    features = [smoothed(np.random.default_rng(6).standard_normal((32, 16, 16)), 0.8)[None].astype(np.float32)]
    settings = {"image_size": 128, "strides": (8,), "ridge": 0.0, "noise": 1e-3}
    noisy, again, other = (GRNR(**settings, seed=seed).trace(features)["score0"] for seed in (0, 0, 1))
    ridge = GRNR(image_size=128, strides=(8,)).trace(features)["score0"]
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, other)
    assert np.allclose(noisy, ridge, rtol=0.05)


# Pictures ------------------------------------------------------------------------------------------------------------


@dataclass
class Colours:
    """A backbone of mean colours and mean slopes at two strides, quick and without weights."""

    device: str = "cpu"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        slopes = [np.abs(np.diff(images, axis=a, append=images.take([-1], a))) for a in (2, 3)]
        joined = np.concatenate([images, *slopes], axis=1)
        b, c, h, w = joined.shape
        return [joined.reshape(b, c, h // s, s, w // s, s).mean((3, 5)) for s in (8, 16)]


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr(grnr, "network", lambda detector: Colours())


def sample(picture: np.ndarray, name: str = "a") -> Sample:
    return Sample(name, {"image": View("image", lambda: picture)})


def plain(seed: int = 0, size: tuple[int, int] = (200, 240)) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 150, (*size, 3)).astype(np.uint8)


@pytest.mark.usefixtures("colours")
def test_shapes_and_batches():
    pictures = [sample(plain(i), str(i)) for i in range(3)]
    together = list(GRNR(batch_size=2).predict(pictures))
    alone = [next(iter(GRNR(batch_size=1).predict([s]))) for s in pictures]
    for a, b in zip(together, alone, strict=True):
        assert a.map.shape == (200, 240)
        assert a.map.dtype == np.float32
        assert a.score == pytest.approx(b.score, rel=1e-6)
        assert np.allclose(a.map, b.map, rtol=1e-5)
    features = Colours()(np.random.default_rng(0).random((2, 3, 320, 320), np.float32))
    stages = GRNR().trace(features)
    assert stages["map"].shape == (2, 256, 256)
    assert (stages["cut0"].shape, stages["cut1"].shape) == ((2, 40, 40), (2, 20, 20))
    assert len({float(v) for v in stages["cut0"][0, :3].flat} | {float(v) for v in stages["cut0"][0, :, -3:].flat}) == 1
    second = GRNR().trace([x[1:] for x in features])["map"][0]
    assert np.allclose(stages["map"][1], second, rtol=1e-4)


@pytest.mark.usefixtures("colours")
def test_a_defect_at_the_edge_needs_the_full_border():
    picture = plain(size=(320, 320))
    picture[100:130, :14] = (255, 0, 0)
    mask = np.zeros((320, 320), bool)
    mask[100:130, :14] = True
    (cropped,) = GRNR(border="crop").predict([sample(picture)])
    (full,) = GRNR(border="full").predict([sample(picture)])
    assert np.all(cropped.map[mask] == cropped.map.min())
    assert full.map[mask].min() > np.quantile(full.map[~mask], 0.99)
    assert full.score > 5 * cropped.score


@pytest.mark.parametrize(("size", "margin"), [(320, 32), (256, 32), (192, 16), (128, 16), (640, 64)])
def test_the_border_grows_with_the_picture(size, margin):
    detector = GRNR(image_size=size)
    assert detector.margin == margin
    assert GRNR(image_size=size, border="full").side == size + 2 * margin


@pytest.mark.usefixtures("colours")
def test_scores_and_fusions():
    picture = [sample(plain())]
    (top,) = GRNR(image_score="top1%").predict(picture)
    (highest,) = GRNR().predict(picture)
    assert np.quantile(highest.map, 0.9) < top.score < highest.score
    assert GRNR(image_score="top1%").score_of(np.arange(1000.0)) == pytest.approx(np.arange(990, 1000).mean())
    stages = GRNR(fusion="sum").trace(Colours()(np.random.default_rng(0).random((1, 3, 320, 320), np.float32)))
    assert np.allclose(stages["map"], stages["map0"] + stages["map1"])


@pytest.mark.usefixtures("colours")
def test_first_positions_as_a_diagnostic():
    features = Colours()(np.random.default_rng(0).random((2, 3, 320, 320), np.float32))
    first = GRNR(selection="first").trace(features)
    given = GRNR().trace(features, supports=[np.arange(40), np.arange(40)])
    assert np.array_equal(first["support0"], [range(40)] * 2)
    assert np.array_equal(first["map"], given["map"])
    assert not np.array_equal(first["map"], GRNR().trace(features)["map"])


# Six drawn textures with a foreign patch -----------------------------------------------------------------------------

SIDE = 320
KINDS = ("stripes", "weave", "noise", "checker", "dots", "wood")


def field(rng: np.random.Generator, down: float, across: float) -> np.ndarray:
    """A smooth random field (SIDE, SIDE) of deviation 1."""
    values = blur_matrix(SIDE, down) @ rng.standard_normal((SIDE, SIDE)) @ blur_matrix(SIDE, across).T
    return values / values.std()


def texture(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) in [0, 1]."""
    y, x = np.mgrid[:SIDE, :SIDE] + rng.integers(0, 20, (2, 1, 1))
    wobble = 2 * field(rng, 12, 12)

    def wave(position: np.ndarray, period: float) -> np.ndarray:
        return np.sin(2 * np.pi * position / period)

    height = {
        "stripes": lambda: wave(x + 0.4 * y + wobble, 14),
        "weave": lambda: np.where((x // 12 + y // 12) % 2, wave(y + wobble, 6), wave(x + wobble, 6)),
        "noise": lambda: field(rng, 2, 2),
        "checker": lambda: np.where(((x + wobble) // 16 + (y + wobble) // 16) % 2, 1.0, -1.0),
        "dots": lambda: np.where(np.hypot((x + wobble) % 20 - 10, (y + wobble) % 20 - 10) < 5, 1.0, -1.0),
        "wood": lambda: wave(x + 6 * field(rng, 40, 6), 18) + 0.5 * field(rng, 30, 1),
    }[kind]()
    colour = rng.uniform(0.35, 0.6, 3) + rng.uniform(0.12, 0.22) * height[..., None] * np.array([1, 0.9, 0.8])
    return np.clip(colour + 0.02 * rng.standard_normal((SIDE, SIDE, 3)), 0, 1)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_foreign_patches_in_drawn_textures(backbone, request):
    if backbone == "tiny" and not tiny.ASSET.exists():
        pytest.skip("the embedded backbone is not in this checkout")
    name = backbone if backbone == "tiny" else request.getfixturevalue("resnet18")
    samples, masks = [], []
    for i, kind in enumerate(KINDS):
        rng = np.random.default_rng(i)
        good, bad, foreign = texture(kind, rng), texture(kind, rng), texture(KINDS[(i + 1) % 6], rng)
        (y, x), size = rng.integers(48, 200, 2), rng.integers(40, 64)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + size, x : x + size] = True
        masks.append(mask)
        pair = good, np.where(mask[..., None], foreign, bad)
        samples += [sample((255 * picture).astype(np.uint8), f"{kind}-{j}") for j, picture in enumerate(pair)]
    predictions = list(create("grnr", backbone=name).predict(samples))
    good, bad = predictions[::2], predictions[1::2]
    found = [auroc(p.map, mask) for p, mask in zip(bad, masks, strict=True)]
    higher = [b.score > g.score for b in bad for g in good]
    assert np.mean(found) >= 0.90
    assert np.mean(higher) >= 0.80


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 96, "k_global": 40}, "k_global=40.*6 x 6"),
        ({"image_size": 300}, "image_size=300.*multiple of 32"),
        ({"image_size": 32, "k_global": 1}, "image_size=32.*64"),
        ({"neighborhood": 4}, "neighborhood=4.*odd"),
        ({"neighborhood": 1}, "neighborhood=1.*at least 3"),
        ({"image_size": 64, "k_global": 4, "neighborhood": 9}, "neighborhood=9.*4 x 4"),
        ({"pool": 2}, "pool=2.*odd"),
        ({"k_global": 0}, "k_global=0.*at least 1"),
        ({"lam": -1.0}, r"lam=-1\.0.*at least 0"),
        ({"ridge": 0.0}, "ridge=0.*noise=0"),
        ({"engine": "onnx-int8"}, "onnx-int8.*auto"),
    ],
)
def test_settings_are_refused_in_one_sentence(settings, words):
    with pytest.raises(WrongInput, match=words):
        create("grnr", **settings)


@pytest.mark.usefixtures("colours")
def test_a_missing_picture_and_a_small_grid_are_named():
    with pytest.raises(WrongInput, match=r"part/1\.png.*'depth'.*'image'"):
        list(GRNR().predict([Sample("part/1.png", {"depth": View("depth", lambda: plain())})]))
    with pytest.raises(WrongInput, match=r"k_global=40.*5 x 5"):
        GRNR().trace([np.zeros((1, 3, 5, 5), np.float32)])
    with pytest.raises(WrongInput, match="cut 4 cells"):
        GRNR(k_global=5).trace([np.ones((1, 3, 8, 8), np.float32)], cut=[4])
