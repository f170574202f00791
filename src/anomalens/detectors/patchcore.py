"""PatchCore: a memory of locally averaged patch features of normal pictures, thinned by a greedy coreset.

Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler 2022, https://arxiv.org/abs/2106.08265
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace, device

from ..backbones import Device, Engine, network
from ..detector import Detector
from ..errors import WrongInput
from ..parts.batches import Batch, batches, through
from ..parts.coreset import Streamed, extend
from ..parts.grids import (
    Padding,
    like,
    resize_features,
    resize_map,
    rows_of,
    score_map,
    smooth_matrix,
    to_numpy,
)  # fmt: skip
from ..parts.neighbours import Bank, Mode
from ..parts.patches import embed
from ..parts.sizes import parse_bytes
from ..parts.threads import one_blas_thread
from ..types import Card, Prediction, Reported, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="PatchCore",
    paper="https://arxiv.org/abs/2106.08265",
    year=2022,
    venue="CVPR",
    summary="Keeps a coreset of normal patch features; the score is the distance to the nearest one.",
    repo="amazon-science/patchcore-inspection",
    code_licence="Apache-2.0",
    fidelity="parity",
    family="memory",
    settings=("full-shot", "few-shot"),
    scope="single",
    normals=(1, 50),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="wide_resnet50_2, strides 8, 16 @ 224",
    trains="statistics",
    fit_cost="F1",
    predict_cost="P1",
    gpu="no",
    stored_mb=8.0,
    extras=(),
    weights=(),
    pose="free",
    external=(),
    determinism="seeded",
    reported=(
        Reported("mvtec", "full-shot, WideResNet50, 10 % coreset, 224", "image_auroc", 99.2, "readme"),
        Reported("mvtec", "full-shot, WideResNet50, 10 % coreset, 224", "pixel_auroc", 98.1, "readme"),
        Reported("mvtec", "full-shot, WideResNet50, 10 % coreset, 224", "aupro", 94.4, "readme"),
        Reported("rad", "full-shot", "image_auroc", 97.5, "third-party"),
    ),
    differs="the image score is the highest value of the smoothed map, so that score, map and regions agree (official "
    "code: highest patch distance, image_score='patch'); Euclidean distances (official: squared, squared=True); "
    "pooled layers are concatenated (official: pooled to 1024 values, embedding='official'); the coreset is the exact "
    "greedy one on all channels (official: on 128 random projections) and holds at most largest_bank patches; the "
    "whole picture is resized to the area of a square in its own aspect ratio, nothing is cropped away (official: "
    "centre crop 224 of 256)",
    pitfalls=(
        "patches that look normal one by one in the wrong place or number are not found",
        "defects among the good pictures enter the memory and will not be found again",
    ),
)

PRUNE_FROM = 1024  # bank rows from which `auto` searches through projections
VERIFY = 1e-4  # weight in a map pixel below which a patch need not be proven exact; the pixel then errs by less


@dataclass
class PatchCore(Detector):
    """Nearest-neighbour distance to a memory of normal patches.

    coreset: share of all normal patches kept. largest_bank: at most this many, so that predict stays fast whatever the
    number of pictures; the coverage radius that results is reported as `radius`.
    embedding: `concat` of 3x3 pooled layers, or `official`, which pools each layer to pretrain_dim values, then both to
    target_dim. patch: neighbourhood, cells. neighbours: mean distance to this many. reweight: number of bank
    neighbours of the paper's re-weighting of the image score (0: off; forces image_score `patch`).
    search: `exact`, or `pruned` (projected candidates, exact re-ranking, image scores proven exact), or `auto`.
    limit_memory: bytes, or text such as `1GB`, that fitting may hold besides the network.
    image_size: pixels, a multiple of 32; keep_aspect resizes a picture to that area in its own aspect ratio, instead of
    to a square. sigma: blur of the map, in pixels of the resized picture.
    """

    backbone: str = "tiny"
    strides: tuple[int, ...] = (8, 16)
    image_size: int = 256
    keep_aspect: bool = True
    embedding: Literal["concat", "official"] = "concat"
    patch: int = 3
    pretrain_dim: int = 1024
    target_dim: int = 1024
    coreset: float = 0.1
    largest_bank: int = 10_000
    neighbours: int = 1
    squared: bool = False
    reweight: int = 0
    image_score: Literal["map", "patch"] = "map"
    search: Literal["auto", "exact", "pruned"] = "auto"
    sigma: float = 4.0
    blur_padding: Padding = "reflect"
    limit_memory: int | str = "800MB"
    batch_size: int = 8
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("weights", "bank", "radius", "patches_seen")

    def fit(self, samples: Iterable[Sample]) -> Self:
        if not 0 < self.coreset <= 1 or self.largest_bank < 1 or self.neighbours < 1:
            raise WrongInput(
                f"PatchCore keeps a share coreset of all patches, over 0 and at most 1, and at least one patch, and compares "
                f"with one neighbour or more; got coreset={self.coreset}, largest_bank={self.largest_bank}, "
                f"neighbours={self.neighbours}."
            )
        net = network(self, learn=samples)
        memory = None
        for _, features in through(net, self.batches(samples)):
            rows = to_numpy(self.embed(features))
            if memory is None:
                memory = Streamed(rows.shape[1], parse_bytes(self.limit_memory), seed=self.seed)
            memory.add(rows)
        if memory is None:
            raise WrongInput("PatchCore needs at least one normal picture to fit on; got none.")
        self.patches_seen = memory.seen
        wanted = max(1, int(self.coreset * memory.seen))
        self.bank, self.radius = memory.result(min(wanted, self.largest_bank, memory.held))
        return self

    def add(self, samples: Iterable[Sample]) -> Self:
        """Extend a fitted memory by what new normal samples hold beyond its coverage radius, without refitting.

        Scores of all pictures can only fall, so a calibrated threshold keeps its promise.
        """
        self.require_fit()
        net = network(self)
        for _, features in through(net, self.batches(samples)):
            rows = to_numpy(self.embed(features))
            new = extend(self.bank, rows, self.radius)
            self.bank = np.concatenate([self.bank, rows[new.indices]])
            self.patches_seen += len(rows)
        return self

    def state(self) -> str:
        if not self.fitted:
            return ""
        return (
            f"The memory holds {len(self.bank)} of {self.patches_seen} patches; every patch seen lies within "
            f"{self.radius:.3g} (feature distance) of one of them."
        )

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        net = network(self)
        waiting: list[tuple[Batch, tuple[int, ...], Any]] = []
        for batch, features in through(net, self.batches(samples)):
            waiting.append((batch, features[0].shape[2:], self.embed(features)))
            if sum(len(b.samples) for b, _, _ in waiting) >= self.batch_size:
                yield from self.judge(waiting)
                waiting = []
        yield from self.judge(waiting)

    def batches(self, samples: Iterable[Sample]) -> Iterator[Batch]:
        return batches(samples, (self.image_size, self.image_size), self.batch_size, keep_aspect=self.keep_aspect)

    def embed(self, features: list[Any]) -> Any:
        """Feature maps, finest first -> one row per patch, ordered image, row, column."""
        if self.embedding == "official":
            return official_embedding(features, self.patch, self.pretrain_dim, self.target_dim)
        return embed(features, self.patch)

    def index(self, rows: Any) -> Bank:
        """The bank, ready to be searched where `rows` live; made once."""
        pruned = self.search == "pruned" or (self.search == "auto" and len(self.bank) >= PRUNE_FROM)
        mode: Mode = "pruned" if pruned and self.neighbours == 1 else "exact"
        kept = self.__dict__.get("_index")
        if kept is None or kept[0] is not self.bank or kept[1:3] != (mode, device(rows)):
            kept = self.__dict__["_index"] = (self.bank, mode, device(rows), Bank(like(self.bank, rows), mode))
        return kept[3]

    def judge(self, parts: list[tuple[Batch, tuple[int, ...], Any]]) -> Iterator[Prediction]:
        """Predictions for batches, their grids (h, w) and patch rows; all patches are searched together."""
        if not parts:
            return
        xp = array_namespace(parts[0][2])
        rows = xp.concat([rows for _, _, rows in parts]) if len(parts) > 1 else parts[0][2]
        bank = self.index(rows)
        distances, nearest = bank.nearest(rows, min(self.neighbours, len(self.bank)))
        start = 0
        for batch, grid, own in parts:
            here = slice(start, start := start + own.shape[0])
            shape, size = (len(batch.samples), grid[0], grid[1]), batch.images.shape[2:]
            scores, maps = self.score(bank, own, distances[here], nearest[here], shape, size)
            for sample, picture, score, values in zip(batch.samples, batch.sizes, scores, maps, strict=True):
                yield Prediction(sample.id, score, resize_map(values, picture))

    @one_blas_thread()
    def score(
        self, bank: Bank, rows: Any, distances: Any, nearest: Any, grid: tuple[int, int, int], size: tuple[int, int]
    ) -> tuple[list[float], np.ndarray]:
        """Image scores and maps (B, *size) from the neighbours (n, k) of the patches of a grid (B, h, w)."""
        patches = to_numpy(self.in_unit(distances).mean(axis=1)).reshape(grid)
        patches = self.prove(bank, rows, patches, size)
        maps = score_map(patches, size, self.sigma, self.blur_padding)
        if self.scores_map:
            return maps.max(axis=(1, 2)).tolist(), maps
        flat = patches.reshape(grid[0], -1)
        top = flat.argmax(axis=1)
        scores = flat[np.arange(len(flat)), top]
        if self.reweight:
            at = [i * flat.shape[1] + int(patch) for i, patch in enumerate(top)]
            scores = scores * [paper_weight(rows[i], bank, int(nearest[i, 0]), self.reweight) for i in at]
        return scores.tolist(), maps

    @property
    def scores_map(self) -> bool:
        """Whether the image score is read off the map; the paper's weights belong to single patches."""
        return self.image_score == "map" and not self.reweight

    def in_unit(self, distances: Any) -> Any:
        return distances**2 if self.squared else distances

    def prove(self, bank: Bank, rows: Any, patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Patch scores (B, h, w) that decide an image score, made exact; the others may be a little high.

        A pruned search gives distances to some bank row, never below the nearest. The map is a positive weighting of
        patches, so a map of upper bounds lies above the true one: when every patch that carries its peak is exact, the
        peak is the true maximum. The same holds for the highest patch.
        """
        if bank.mode == "exact":
            return patches
        xp = array_namespace(rows)
        _, h, w = patches.shape
        measured = np.zeros(patches.shape, bool)
        down = smooth_matrix(h, size[0], self.sigma, self.blur_padding)
        across = smooth_matrix(w, size[1], self.sigma, self.blur_padding)
        open_ = list(range(len(patches)))
        while open_:
            wanted = np.zeros(patches.shape, bool)
            for i in open_:
                if self.scores_map:
                    values = down @ patches[i] @ across.T
                    y, x = divmod(int(values.argmax()), values.shape[1])
                    wanted[i] = np.outer(down[y], across[x]) > VERIFY
                else:
                    wanted[i].flat[patches[i].argmax()] = True
            wanted &= ~measured
            open_ = np.flatnonzero(wanted.any(axis=(1, 2))).tolist()
            if open_:
                at = xp.asarray(np.flatnonzero(wanted), device=device(rows))
                exact, _ = bank.nearest(rows[at], exact=True)
                patches[wanted] = to_numpy(self.in_unit(exact))[:, 0]
                measured |= wanted
        return patches


def paper_weight(patch: Any, bank: Bank, nearest: int, count: int) -> float:
    """The paper's weight of an image score, in [0, 1]: small where the matched bank row lies in a dense place.

    patch: (D,) the patch with the highest score; nearest: its bank row; count: bank neighbours of that row (itself
    first) whose distances to the patch enter a softmax. With one neighbour the weight is 1.
    """
    if count <= 1:
        return 1.0
    _, index = bank.nearest(bank.rows[nearest][None], min(count, bank.rows.shape[0]))
    away = np.linalg.norm(to_numpy(bank.rows[index[0]]) - to_numpy(patch), axis=1)
    share = np.exp(away - away.max())
    return float(1 - share[0] / share.sum())


def official_embedding(features: list[Any], patch: int, pretrain_dim: int, target_dim: int) -> Any:
    """The authors' patch vectors: (B * h * w, target_dim), h and w of the first (finest) layer.

    Each layer's patch x patch neighbourhoods (channel, row, column) are average-pooled to pretrain_dim values and
    brought to the finest grid; the layers in sequence are pooled to target_dim. Pooling before resizing equals the
    published order, resizing first, because both are linear.
    """
    xp = array_namespace(features[0])
    grid = tuple(features[0].shape[2:])
    layers = [resize_features(pool_channels(neighbourhoods(x, patch), pretrain_dim), grid) for x in features]
    return rows_of(pool_channels(xp.concat(layers, axis=1), target_dim))


def neighbourhoods(x: Any, patch: int) -> Any:
    """(B, C, h, w) -> (B, C * patch * patch, h, w): the zero-padded window around each cell, stride 1."""
    xp = array_namespace(x)
    b, c, h, w = x.shape
    r = patch // 2
    padded = xp.zeros((b, c, h + 2 * r, w + 2 * r), dtype=x.dtype, device=device(x))
    padded[:, :, r : r + h, r : r + w] = x
    taps = [padded[:, :, i : i + h, j : j + w] for i in range(patch) for j in range(patch)]
    return xp.reshape(xp.stack(taps, axis=2), (b, c * patch * patch, h, w))


def pool_channels(x: Any, count: int) -> Any:
    """(B, L, h, w) -> (B, count, h, w): value i is the mean of channels floor(i L / count) to ceil((i + 1) L / count)."""
    length = x.shape[1]
    first = np.arange(count) * length // count
    last = -(-(np.arange(count) + 1) * length // count)
    total = None
    for step in range(int((last - first).max())):
        inside = like((first + step < last).astype(np.float32)[None, :, None, None], x)
        part = x[:, np.minimum(first + step, last - 1)] * inside
        total = part if total is None else total + part
    return total / like((last - first).astype(np.float32)[None, :, None, None], x)


DETECTOR = PatchCore
