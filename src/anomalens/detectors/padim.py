"""PaDiM, in the paper's letters: N normal pictures, (h, w) grid positions, d feature channels kept of all.

Defard, Setkov, Loesch, Audigier 2021, https://arxiv.org/abs/2011.08785
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from ..backbones import Device, Engine, network
from ..detector import Detector
from ..errors import WrongInput
from ..parts.batches import batches, through
from ..parts.grids import Padding, like, resize_features, resize_map, score_map, to_numpy
from ..types import Card, Prediction, Reported, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="PaDiM",
    paper="https://arxiv.org/abs/2011.08785",
    year=2021,
    venue="ICPR",
    summary="One Gaussian of patch features at each position; the score is the Mahalanobis distance.",
    repo="open-edge-platform/anomalib",
    code_licence="Apache-2.0",
    fidelity="parity",
    family="gaussian",
    settings=("full-shot", "few-shot"),
    scope="single",
    normals=(2, 100),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="resnet18 or wide_resnet50_2, strides 4, 8, 16 @ 224",
    trains="statistics",
    fit_cost="F1",
    predict_cost="P0",
    gpu="no",
    stored_mb=165.0,
    extras=(),
    weights=(),
    pose="aligned",
    external=(),
    determinism="seeded",
    reported=(
        Reported("mvtec", "full-shot, WideResNet50, 550 channels", "pixel_auroc", 97.5, "paper"),
        Reported("mvtec", "full-shot, WideResNet50, 550 channels", "aupro", 92.1, "paper"),
    ),
    differs="the whole picture is resized to a square, nothing is cropped away (paper: centre crop 224 of 256); "
    "the embedded backbone is the default (paper: ResNet18 or WideResNet50 with ImageNet weights)",
    pitfalls=(
        "statistics by position assume that parts lie the same way in every picture; shared=True drops that",
        "the choice of channels depends on the seed: about one point of AUROC",
    ),
)


@dataclass
class PaDiM(Detector):
    """Gaussian model of normal features at each position.

    channels: how many of the concatenated channels are kept, chosen at random once; 0 keeps all.
    ridge: added to the diagonal of each covariance, in squared feature units.
    shared: one Gaussian for all positions, for things that lie in any pose.
    sigma: Gaussian blur of the map, in pixels of the resized picture. image_size: pixels, a multiple of 32.
    """

    backbone: str = "tiny"
    strides: tuple[int, ...] = (4, 8, 16)
    image_size: int = 256
    channels: int = 100
    ridge: float = 0.01
    shared: bool = False
    sigma: float = 4.0
    blur_padding: Padding = "reflect"
    batch_size: int = 8
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("weights", "channel_index", "mean", "whiten")

    def fit(self, samples: Iterable[Sample]) -> Self:
        net = network(self, learn=samples)
        available = sum(net.channels)
        kept = min(self.channels, available) if self.channels else available
        index = np.random.default_rng(self.seed).choice(available, kept, replace=False)
        self.channel_index = np.sort(index)
        # First and second moments at every position, in float64, while the pictures stream by.
        n, total, products = 0, None, None
        for _, features in through(net, batches(samples, (self.image_size, self.image_size), self.batch_size)):
            x = self.by_position(self.embed(features))  # (P, B, d)
            xp = array_namespace(x)
            x = xp.astype(x, xp.float64)
            seen, outer = xp.sum(x, axis=1), xp.matmul(xp.permute_dims(x, (0, 2, 1)), x)
            total, products = (seen, outer) if total is None else (total + seen, products + outer)
            n += x.shape[1]
        if n < 2:
            raise WrongInput(f"PaDiM needs at least 2 normal pictures for a covariance; got {n}.")
        self.mean, self.whiten = gaussians(total, products, n, self.ridge)
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        net = network(self)
        size = (self.image_size, self.image_size)
        for batch, features in through(net, batches(samples, size, self.batch_size)):
            grids = to_numpy(self.distances(self.embed(features)))
            for sample, grid, picture in zip(batch.samples, grids, batch.sizes, strict=True):
                smooth = score_map(grid, size, self.sigma, self.blur_padding)
                yield Prediction(sample.id, float(smooth.max()), resize_map(smooth, picture))

    def embed(self, features: list[Any]) -> Any:
        """Feature maps -> (B, d, h, w): coarser maps replicated to the finest grid, chosen channels."""
        grid = tuple(features[0].shape[2:])
        xp = array_namespace(features[0])
        joined = xp.concat([resize_features(f, grid, "nearest") for f in features], axis=1)
        return joined[:, self.channel_index]

    def by_position(self, x: Any) -> Any:
        """(B, d, h, w) -> (P, B, d), or one position that holds them all when `shared`."""
        xp = array_namespace(x)
        b, d, h, w = x.shape
        x = xp.permute_dims(xp.reshape(x, (b, d, h * w)), (2, 0, 1))
        return xp.reshape(x, (1, h * w * b, d)) if self.shared else x

    def distances(self, x: Any) -> Any:
        """(B, d, h, w) -> (B, h, w) Mahalanobis distance to the Gaussian of the position."""
        xp = array_namespace(x)
        b, d, h, w = x.shape
        if self.mean.shape != (1 if self.shared else h * w, d):
            raise WrongInput(
                f"PaDiM holds statistics of {self.mean.shape} (positions, channels), the pictures give {(h * w, d)}; "
                "use the image_size and backbone it was fitted with."
            )
        offset = self.by_position(x) - like(self.mean[:, None, :], x)
        away = xp.linalg.vector_norm(xp.matmul(offset, like(self.whiten, x)), axis=-1)  # (P, B)
        return xp.permute_dims(xp.reshape(away, (h, w, b)), (2, 0, 1))


def gaussians(total: Any, products: Any, n: int, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Moments over n vectors -> mean (P, d) and whiten (P, d, d), both float32, with whiten @ whiten.T = covariance^-1.

    total: (P, d) sums; products: (P, d, d) sums of outer products; the covariance is the unbiased one plus ridge * I.
    """
    total, products = to_numpy(total), to_numpy(products)
    mean = total / n
    covariance = (products - n * mean[:, :, None] * mean[:, None, :]) / (n - 1)
    covariance += ridge * np.eye(mean.shape[1])
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    # In the layout that loading gives: sums over another layout round otherwise.
    return mean.astype(np.float32, order="C"), whiten.astype(np.float32, order="C")


DETECTOR = PaDiM
