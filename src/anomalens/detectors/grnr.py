"""GRNR: one texture picture explains itself. In the paper's letters: q query, S neighbours, mu_k typical positions.

Yao et al. 2025, "Global-Regularized Neighborhood Regression for Efficient Zero-Shot Texture Anomaly Detection",
https://arxiv.org/abs/2406.07333

Every position of the feature map is rebuilt as a combination of its neighbours; alone, that would rebuild the inside
of any defect. The same combination therefore has to explain the most typical positions of the whole picture too:

    W = argmin ||q - W S||^2 + lambda * sum_k ||mu_k - W S||^2        score = ||q - W S||

which is a plain projection of the blended target t = (q + lambda K mu_bar) / (1 + lambda K) on the span of S.
Shapes: B pictures, (h, w) grid positions, N = h * w, C channels, n neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from ..backbones import Device, Engine, network
from ..detector import Detector
from ..errors import WrongInput
from ..parts.batches import batches
from ..parts.grids import Array, average_pool, like, resize_features, resize_map, smooth_matrix, to_numpy
from ..parts.threads import one_blas_thread
from ..types import Card, Prediction, Sample

CARD = Card(
    title="GRNR",
    paper="https://arxiv.org/abs/2406.07333",
    year=2025,
    venue="IEEE TSMC",
    summary="Rebuilds each place of one texture picture from its neighbours and the typical places; needs no training.",
    repo="hmyao22/GRNR",
    code_licence="none-found",
    fidelity="parity",
    family="self-regression",
    settings=("zero-shot",),
    scope="open",
    normals=(0, 0),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="texture",
    backbone="wide_resnet50_2, strides 8, 16 @ 320",
    trains="no",
    fit_cost="F0",
    predict_cost="P2",
    gpu="no",
    stored_mb=0.0,
    extras=(),
    weights=(),
    pose="free",
    external=(),
    determinism="exact",
    differs="the embedded backbone is the default (demo: WideResNet50 with ImageNet weights); a ridge keeps the Gram "
    "matrices solvable (demo: random noise; noise=1e-3, ridge=0); the typical positions are those that the paper "
    "describes (the demo in effect takes the first ones: selection='first'); pictures are resized with an antialiased "
    "bilinear filter (demo: Lanczos); the image score is the highest map value (the demo has none). As in the demo the "
    "outer tenth has no opinion: it gets the lowest map value, because what the network sees there is its own padding; "
    "border='full' lowered image AUROC on drawn textures from 0.94 to 0.89 (ResNet18)",
    pitfalls=(
        "defects within a tenth of the edge are missed unless border='full', which costs 1.4 times the forward pass "
        "and raises false alarms on slanted patterns",
        "a defect that covers most of the picture becomes the norm",
        "patterns of few large cells (tiles) have no single typical place; one good picture and patchcore do better",
        "two materials or strong perspective in one picture break the idea that typical means normal",
        "scores grow with the feature norms of the backbone: compare them between pictures, not between backbones",
    ),
)

BLOCK = 256  # rows of the distance matrix held at once: BLOCK * N numbers


@dataclass
class GRNR(Detector):
    """Rebuilds every position of a texture from its neighbours, pulled toward the typical positions of the picture.

    image_size: side of the square the picture is resized to, pixels, a multiple of 32.
    k_global: K, how many typical positions of each scale are kept. lam: weight of each of them against the query; only
        lam * k_global counts, 0 leaves plain neighbourhood regression.
    neighborhood: side of the window of neighbours, odd, in cells. pool: side of the averaging window, odd, 1 is none.
    count_include_pad: whether the zeros around the picture count in that average.
    sigma: Gaussian blur of the map, in pixels of the resized picture.
    border: "crop" has no opinion on the outer tenth, which gets the lowest map value; "full" first mirrors the picture
        outward by as much, so that only mirror image is lost.
    fusion: how the maps of the scales are joined.
    ridge: added to the diagonal of each Gram matrix S S^T, as a share of its mean diagonal.
    noise: height of the uniform noise added to the neighbours, in feature units, as the authors' demo does instead of a
        ridge; 0 adds none. seed: of that noise.
    selection: which K positions are typical: those with the smallest mean distance to all others, or simply the first
        ones in row order (a diagnostic: how much does the choice matter).
    image_score: highest map value, or the mean of the highest hundredth.
    """

    backbone: str = "tiny"
    strides: tuple[int, ...] = (8, 16)
    image_size: int = 320
    k_global: int = 40
    lam: float = 5.0
    neighborhood: int = 3
    pool: int = 3
    count_include_pad: bool = True
    sigma: float = 3.0
    border: Literal["crop", "full"] = "crop"
    fusion: Literal["product", "sum"] = "product"
    ridge: float = 1e-4
    noise: float = 0.0
    selection: Literal["typical", "first"] = "typical"
    image_score: Literal["max", "top1%"] = "max"
    batch_size: int = 8
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts, weights = ("k_global", "pool", "batch_size"), ("lam", "sigma", "ridge", "noise")
        for name, least in [("neighborhood", 3), *((n, 1) for n in counts), *((n, 0) for n in weights)]:
            if getattr(self, name) < least:
                raise WrongInput(f"GRNR {name}={getattr(self, name)} is too low; it must be at least {least}.")
        for name in ("neighborhood", "pool"):
            if getattr(self, name) % 2 == 0:
                raise WrongInput(
                    f"GRNR {name}={getattr(self, name)} is even and has no centre cell; choose an odd number."
                )
        if self.ridge == 0 and self.noise == 0:
            raise WrongInput(
                "GRNR with ridge=0 and noise=0 cannot tell mirrored neighbours at the edge apart; "
                "set ridge=1e-4, or noise=1e-3 as in the demo."
            )
        if self.image_size < 64 or self.image_size % 32:
            raise WrongInput(f"GRNR image_size={self.image_size} is not a multiple of 32 from 64 up; choose 320.")
        if self.engine == "onnx-int8":
            raise WrongInput("GRNR learns from no pictures, so engine='onnx-int8' has none to quantise on; use 'auto'.")
        cells = self.image_size // max(self.strides)
        self.check_grid(cells, cells)

    def check_grid(self, h: int, w: int) -> None:
        if self.k_global > h * w or self.neighborhood // 2 >= min(h, w):
            raise WrongInput(
                f"GRNR has k_global={self.k_global} and neighborhood={self.neighborhood}, too many for features of "
                f"{h} x {w} positions; lower them or raise image_size."
            )

    @property
    def draws(self) -> bool:
        return self.noise > 0

    @property
    def margin(self) -> int:
        """Pixels that the map loses on each side: the demo's 32 of 320, else the multiple of 16 nearest to a tenth."""
        return max(16, 16 * round(self.image_size / 160))

    @property
    def side(self) -> int:
        """Side of what the network sees, pixels."""
        return self.image_size + (2 * self.margin if self.border == "full" else 0)

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        net = network(self)
        for batch in batches(samples, (self.image_size, self.image_size), self.batch_size):
            features = net(self.surround(batch.images))
            # A GPU takes the batch at once; on a CPU one picture after the other stays in the cache, twice as fast.
            step = 1 if net.device == "cpu" else len(batch.samples)
            starts = range(0, len(batch.samples), step)
            maps = [to_numpy(self.trace([x[i : i + step] for x in features])["map"]) for i in starts]
            for sample, values, picture in zip(batch.samples, np.concatenate(maps), batch.sizes, strict=True):
                yield Prediction(sample.id, self.score_of(values), self.on_picture(values, picture))

    def surround(self, images: np.ndarray) -> np.ndarray:
        """(B, 3, image_size, image_size) -> (B, 3, side, side): mirrored outward where every pixel is to be judged."""
        outward = (self.side - self.image_size) // 2
        return np.pad(images, 2 * [(0, 0)] + 2 * [(outward, outward)], mode="reflect") if outward else images

    @one_blas_thread()
    def trace(
        self,
        features: Sequence[Array],
        *,
        supports: Sequence[Array] | None = None,
        noise: Sequence[Array] | None = None,
        cut: Sequence[int] | None = None,
        crop: int | None = None,
        everything: bool = False,
    ) -> dict[str, Array]:
        """Feature maps, finest first, each (B, C, h, w), to the final map, with the stages on the way by name.

        supports: given typical positions of each scale, (K,) or (B, K) row-order indices, in place of `selection`.
        noise: given numbers in [0, 1) for each scale, (N, C, neighborhood^2) with the window in row order, in place of
            drawn ones; `self.noise` times them is added to the neighbours.
        cut: cells at the edge of each scale that get the lowest score. crop: pixels the maps then lose on each side.
            In place of three quarters of `margin`, and `margin`.
        everything: also return what the map does not need: distances{i} (B, N, N), S{i} (B, N, n, C) and up{i}.

        Returns:
            For each scale i: pooled{i} (B, C, h, w), mean_distance{i} (B, N), support{i} (B, K), mu_bar{i} (B, C),
            W{i} (B, N, n), q_hat{i} (B, C, h, w), score{i} and cut{i} (B, h, w), smooth{i} (B, side, side) and map{i}
            (B, side - 2 crop, side - 2 crop); and map, their fusion. Distances of features; higher is stranger.

        Raises:
            WrongInput: a grid too small for k_global or the neighbourhood.
        """
        side = self.side
        crop = self.margin if crop is None else crop
        inside = slice(crop, side - crop)
        if cut is None:
            cut = [math.ceil(0.75 * self.margin * x.shape[2] / side) for x in features]  # the demo's 3 of 40, 2 of 20
        out: dict[str, Array] = {}
        for i, x in enumerate(features):
            support = None if supports is None else supports[i]
            stages = self.rebuild(x, support, self.draw(i, x.shape) if noise is None else noise[i], everything)
            stages["cut"] = suppress_border(stages["score"], cut[i])
            if everything:
                stages["up"] = resize_features(stages["cut"][:, None], (side, side))[:, 0]
            stages["smooth"] = enlarge(stages["cut"], side, self.sigma)
            stages["map"] = stages["smooth"][:, inside, inside]
            out.update({f"{name}{i}": stage for name, stage in stages.items()})
        scales = [out[f"map{i}"] for i in range(len(features))]
        out["map"] = math.prod(scales) if self.fusion == "product" else sum(scales)
        return out

    def rebuild(self, x: Array, support: Array | None, noise: Array | None, everything: bool) -> dict[str, Array]:
        """One scale (B, C, h, w) to its score grid; arguments and stages as in `trace`, for this scale."""
        xp = array_namespace(x)
        b, c, h, w = x.shape
        self.check_grid(h, w)
        out: dict[str, Array] = {}

        # Feature embedding; from here on channels come last, so that each position is one contiguous vector.
        out["pooled"] = average_pool(x, self.pool, self.count_include_pad)
        rows = xp.reshape(xp.permute_dims(out["pooled"], (0, 2, 3, 1)), (b, h * w, c))
        q = xp.reshape(rows, (b, h, w, c))

        # Global normality support S_G: the positions that resemble all others most.
        out["mean_distance"] = mean_distances(rows)
        if support is not None:
            out["support"] = xp.broadcast_to(xp.asarray(support), (b, support.shape[-1]))
        elif self.selection == "first":
            out["support"] = xp.broadcast_to(xp.arange(self.k_global), (b, self.k_global))
        else:
            out["support"] = xp.argsort(out["mean_distance"], axis=1, stable=True)[:, : self.k_global]
        typical = [picture[index] for picture, index in zip(rows, out["support"], strict=True)]
        out["mu_bar"] = xp.stack([xp.mean(mu, axis=0) for mu in typical])

        # Local neighbourhood support S_L: n shifted maps, one for each place in the window.
        padded = mirror(q, self.neighborhood // 2)
        places = window(self.neighborhood)
        if noise is None:
            S = [padded[:, y : y + h, x : x + w] for y, x in places]
            gram = shared_gram(padded, places, (h, w))
        else:  # only the noise tells mirrored neighbours apart: needs double precision
            q, padded = xp.astype(q, xp.float64), xp.astype(padded, xp.float64)
            raised = self.noise * xp.reshape(like(noise, padded), (h, w, c, self.neighborhood, self.neighborhood))
            S = [padded[:, y : y + h, x : x + w] + raised[..., y, x] for y, x in places]
            gram = xp.stack([xp.stack([inner(s, r) for r in S], axis=-1) for s in S], axis=-1)

        # Regularised regression: project the blended target t on the span of the neighbours.
        pull = self.lam * out["support"].shape[1]  # lambda K
        t = (q + pull * out["mu_bar"][:, None, None, :]) / (1 + pull)
        W, q_hat = project(t, S, gram, self.ridge)
        miss = q - q_hat
        out["score"] = xp.astype(xp.sqrt(inner(miss, miss)), x.dtype)
        out["W"] = xp.reshape(W, (b, h * w, len(S)))
        out["q_hat"] = xp.permute_dims(q_hat, (0, 3, 1, 2))
        if everything:
            out["distances"] = xp.stack([distances(*distance_factors(picture)) for picture in rows])
            out["S"] = xp.reshape(xp.stack(S, axis=3), (b, h * w, len(S), c))
        return out

    def draw(self, scale: int, shape: Sequence[int]) -> np.ndarray | None:
        """The demo's noise for one scale of features (B, C, h, w): the same for every picture; None without noise."""
        _, c, h, w = shape
        return drawn_noise(self.seed, scale, h * w, c, self.neighborhood**2) if self.noise else None

    def score_of(self, values: np.ndarray) -> float:
        """Image score of one map."""
        if self.image_score == "max":
            return float(values.max())
        top = max(1, round(values.size / 100))
        return float(np.partition(values, -top, axis=None)[-top:].mean())

    def on_picture(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """One map to float32 of the picture's size; a cropped border gets the lowest value."""
        lost = (self.image_size - values.shape[0]) // 2
        values = np.pad(values.astype(np.float32), lost, constant_values=values.min())
        return resize_map(values, size)


def inner(a: Array, b: Array) -> Array:
    """Inner products over the last axis; einsum makes no product array of that size."""
    return array_namespace(a, b).einsum("...c,...c->...", a, b)


def mean_distances(rows: Array) -> Array:
    """(B, N, C) -> (B, N): mean Euclidean distance of each position to the N - 1 others of its picture."""
    xp = array_namespace(rows)
    n = rows.shape[1]
    total = xp.zeros_like(rows[:, :, 0])
    for picture, sums in zip(rows, total, strict=True):
        left, right = distance_factors(picture)
        for start in range(0, n, BLOCK):  # a block of the upper triangle serves its rows and its columns
            block = distances(left[start : start + BLOCK], right[start:])
            sums[start : start + BLOCK] += xp.sum(block, axis=1)
            sums[start + BLOCK :] += xp.sum(block[:, BLOCK:], axis=0)
    return total / (n - 1)


def distance_factors(rows: Array) -> tuple[Array, Array]:
    """(N, C) -> left and right, (N, C + 2), whose product left @ right.T holds the squared distances."""
    xp = array_namespace(rows)
    rows = rows - xp.mean(rows, axis=0)  # leaves distances alone, and less to round
    squares = inner(rows, rows)[:, None]
    ones = xp.ones_like(squares)
    return xp.concat([-2 * rows, squares, ones], axis=1), xp.concat([rows, ones, squares], axis=1)


def distances(left: Array, right: Array) -> Array:
    """Euclidean distances of factors (a, C + 2) and (b, C + 2) that start at the same position: zero diagonal."""
    xp = array_namespace(left)
    squared = xp.abs(xp.matmul(left, right.T))  # rounding leaves small numbers of either sign between equal positions
    diagonal = xp.arange(left.shape[0])
    squared[diagonal, diagonal] = 0
    return xp.sqrt(squared)


def window(size: int) -> list[tuple[int, int]]:
    """(row, column) of the places in a size x size window without its centre, in row order."""
    return [(y, x) for y in range(size) for x in range(size) if (y, x) != (size // 2, size // 2)]


def mirror(q: Array, radius: int) -> Array:
    """Pad (B, h, w, C) by `radius` cells on all sides, mirrored about the edge cells (c b | a b c)."""
    for axis in (1, 2):
        n = q.shape[axis]
        index = np.abs(np.arange(-radius, n + radius))
        index = np.minimum(index, 2 * (n - 1) - index)
        q = q[:, index] if axis == 1 else q[:, :, index]
    return q


def shared_gram(padded: Array, places: Sequence[tuple[int, int]], grid: tuple[int, int]) -> Array:
    """Gram matrices S S^T of all positions, (B, h, w, n, n), without forming S.

    The product of two neighbours depends on where the first lies and on the displacement between them. A 3 x 3 window
    has 13 displacements, so 13 products over the padded map (B, h + 2r, w + 2r, C) hold all n * n of them.
    """
    xp = array_namespace(padded)
    (h, w), (tall, wide) = grid, padded.shape[1:3]
    products: dict[tuple[int, int], Array] = {}

    def entry(first: tuple[int, int], second: tuple[int, int]) -> Array:
        (y, x), (y2, x2) = sorted((first, second))
        down, left, right = y2 - y, max(0, x - x2), max(0, x2 - x)
        if (down, x2 - x) not in products:
            above, below = padded[:, : tall - down, left : wide - right], padded[:, down:, right : wide - left]
            products[down, x2 - x] = inner(above, below)
        return products[down, x2 - x][:, y : y + h, x - left : x - left + w]

    return xp.stack([xp.stack([entry(a, b) for b in places], axis=-1) for a in places], axis=-1)


def project(t: Array, S: Sequence[Array], gram: Array, ridge: float) -> tuple[Array, Array]:
    """Rebuild targets t (B, h, w, C) from neighbours S, n maps of that shape: weights W (B, h, w, n) and W S.

    W = t S^T (S S^T + ridge * mean diagonal * I)^-1, solved in double precision. Equal to the paper's
    (q S^T + lambda sum_k mu_k S^T) ((1 + lambda K) S S^T)^-1 for t = (q + lambda K mu_bar) / (1 + lambda K).
    """
    xp = array_namespace(t)
    gram = xp.astype(gram, xp.float64)
    share = xp.mean(xp.linalg.diagonal(gram), axis=-1) * ridge + xp.finfo(gram.dtype).smallest_normal
    gram = gram + share[..., None, None] * like(np.eye(len(S)), gram)
    right = xp.astype(xp.stack([inner(t, s) for s in S], axis=-1), xp.float64)
    W = xp.astype(xp.linalg.solve(gram, right[..., None])[..., 0], t.dtype)
    rebuilt = xp.zeros_like(t)
    for i, s in enumerate(S):
        rebuilt += W[..., i, None] * s
    return W, rebuilt


def suppress_border(score: Array, cut: int) -> Array:
    """(B, h, w): the outer `cut` cells get the lowest value of their map."""
    xp = array_namespace(score)
    h, w = score.shape[1:]
    if 2 * cut >= min(h, w):
        raise WrongInput(f"GRNR cannot cut {cut} cells from each side of a {h} x {w} grid; lower cut.")
    out = xp.zeros_like(score) + xp.min(score, axis=(1, 2), keepdims=True)
    inside = (slice(None), slice(cut, h - cut), slice(cut, w - cut))
    out[inside] = score[inside]
    return out


def enlarge(grid: Array, size: int, sigma: float) -> Array:
    """(B, h, w) -> (B, size, size): bilinear, then a Gaussian of `sigma` pixels; one small matrix for each axis."""
    xp = array_namespace(grid)
    down, across = (like(smooth_matrix(cells, size, sigma, dtype=np.float64), grid) for cells in grid.shape[1:])
    return xp.matmul(xp.matmul(down, grid), across.T)


@lru_cache(maxsize=8)
def drawn_noise(seed: int, scale: int, n: int, channels: int, places: int) -> np.ndarray:
    """(N, C, places) float32 in [0, 1)."""
    return np.random.default_rng((seed, scale)).random((n, channels, places), np.float32)


DETECTOR = GRNR
