"""MVTec 3D-AD, read from the folder that its archive unpacks to: a picture and a point for each of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import MissingExtra, Unreadable
from ..types import DatasetCard, Sample, View
from ._files import mask_view, picture_view
from ._layouts import folders, in_order, make_sample, not_found, pictures, with_train

CARD = DatasetCard(
    title="MVTec 3D-AD",
    summary="Ten things scanned in 3-D: a colour picture, and the view `points` with the place of every pixel in "
    "metres.",
    home="https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
    citation="Bergmann, Jin, Sattlegger, Steger: The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and "
    "Localization, VISAPP 2022, https://arxiv.org/abs/2112.09045",
    licence="CC BY-NC-SA 4.0",
    commercial=False,
    views=("image", "points"),
    levels=("structural",),
    layout="<root>/<category>/{train, validation, test}/<good or a defect>/{rgb/<number>.png, xyz/<number>.tiff, "
    "gt/<number>.png}",
    masks=True,
    pictures=(2656, 1197),
    categories=("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire"),
)


@dataclass(frozen=True)
class MVTec3D:
    """One thing. The view `points` is (H, W, 3) float32, x y z in metres, all zero where the sensor saw nothing."""

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train/good")

    def train(self) -> list[Sample]:
        return self._split("train")

    def validation(self) -> list[Sample]:
        """Further normal samples, to choose thresholds with."""
        return self._split("validation")

    def test(self) -> list[Sample]:
        return self._split("test")

    def _split(self, split: str) -> list[Sample]:
        kinds = folders(Path(self.root) / self.category / split)
        found = [self._sample(path) for kind in kinds for path in pictures(kind / "rgb")]
        if not found or not self.category:
            wanted = f"pictures in {self.category or '<category>'}/{split}/<good or a defect>/rgb/"
            raise not_found("MVTec3D", self.root, wanted)
        return in_order(found)

    def _sample(self, path: Path) -> Sample:
        kind = path.parent.parent
        cloud = kind / "xyz" / f"{path.stem}.tiff"
        views = {"image": picture_view(path), "points": View("points", partial(read_points, cloud), str(cloud))}
        mask = mask_view([kind / "gt" / f"{path.stem}.png"], path)
        return make_sample(self.root, path, self.category, kind.name, mask, views)


def read_points(path: Path) -> np.ndarray:
    """An organised cloud (H, W, 3) float32.

    Raises:
        MissingExtra: tifffile is not installed.
        Unreadable: missing, damaged, or not (H, W, 3).
    """
    try:
        import tifffile
    except ImportError:
        raise MissingExtra("reading points from a .tiff needs: pip install 'anomalens[images]'.") from None
    try:
        points = np.asarray(tifffile.imread(path))
    except FileNotFoundError:
        raise Unreadable(f"{path} does not exist.") from None
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise Unreadable(f"{path} is damaged ({error}); copy it again or leave it out.") from None
    if points.ndim != 3 or points.shape[2] != 3:
        raise Unreadable(f"{path} decodes to {points.shape}; an organised cloud (H, W, 3) was expected.")
    return points.astype(np.float32)


DATASET = MVTec3D
