"""Eyecandies, read from the folders that its archives unpack to: six lights, depth and normals of every candy."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images import read_mask
from ..types import DatasetCard, Sample
from ._files import mask_view, picture_view
from ._layouts import make_sample, not_found, pictures, with_train

CARD = DatasetCard(
    title="Eyecandies",
    summary="Ten kinds of rendered candies, each seen under six lights, with depth (`depth`, 16 bit) and surface normals "
    "(`normals`); the labels of a further test part are secret.",
    home="https://eyecan-ai.github.io/eyecandies/",
    citation="Bonfiglioli, Toschi, Silvestri, Fioraio, De Gregorio: The Eyecandies Dataset for Unsupervised Multimodal "
    "Anomaly Detection and Localization, ACCV 2022, https://arxiv.org/abs/2210.04570",
    licence="stated on its page",
    commercial=None,
    views=("image", "lights", "depth", "normals"),
    levels=("structural",),
    layout="<root>/<category>/{train, val, test_public, test_private}/data/<index>_{image_0, ..., image_5, depth, "
    "normals, mask, metadata, ...}",
    masks=True,
    pictures=(10000, 500),
    categories=("CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear", "HazelnutTruffle",
                "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy"),
)  # fmt: skip

VIEWS = {"image": "image_0", **{f"light_{k}": f"image_{k}" for k in range(6)}, "depth": "depth", "normals": "normals"}
NAME = re.compile(r"(\d+)_(\w+)")
ANOMALOUS = re.compile(r"^\s*anomalous\s*:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Eyecandies:
    """One kind of candy; `test` is the public part, the only one with labels.

    A sample has the views light_0 (all spots on), light_1 to light_4 (one spot each), light_5 (light box), image (the
    same as light_0), and depth and normals as they are stored.
    """

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train")

    def train(self) -> list[Sample]:
        return [self._sample(files, "good") for files in self._split("train")]

    def validation(self) -> list[Sample]:
        """Further normal samples, to choose thresholds with."""
        return [self._sample(files, "good") for files in self._split("val")]

    def test(self) -> list[Sample]:
        return [self._sample(files, "anomaly" if _anomalous(files) else "good") for files in self._split("test_public")]

    def private(self) -> list[Sample]:
        """Samples without labels, for the organisers' leaderboard."""
        good = [self._sample(files, "good") for files in self._split("test_private")]
        return [Sample(s.id, s.views, s.category) for s in good]

    def _split(self, split: str) -> list[Mapping[str, Path]]:
        """The files of every candy by item."""
        folder = Path(self.root) / self.category / split / "data"
        found: dict[str, dict[str, Path]] = defaultdict(dict)
        others = folder.glob("*_metadata.y*ml") if folder.is_dir() else ()
        for path in (*pictures(folder), *others):
            name = NAME.fullmatch(path.stem)
            if name:
                found[name[1]][name[2]] = path
        candies: list[Mapping[str, Path]] = [files for _, files in sorted(found.items()) if "image_0" in files]
        if not candies or not self.category:
            raise not_found(
                "Eyecandies", self.root, f"{self.category or '<category>'}/{split}/data/<index>_image_0.png"
            )
        return candies

    def _sample(self, files: Mapping[str, Path], defect: str) -> Sample:
        views = {name: picture_view(files[item], name) for name, item in VIEWS.items() if item in files}
        image = files["image_0"]
        mask = files.get("mask", image.with_name(image.name.replace("_image_0", "_mask")))
        return make_sample(self.root, image, self.category, defect, mask_view([mask], image), views)


def _anomalous(files: Mapping[str, Path]) -> bool:
    """What the metadata say; without them, whether anything is masked."""
    if "metadata" in files:
        said = ANOMALOUS.search(files["metadata"].read_text(encoding="utf-8"))
        if said:
            return said[1].lower() not in ("0", "false", "no")
    return "mask" in files and bool(read_mask(files["mask"]).any())


DATASET = Eyecandies
