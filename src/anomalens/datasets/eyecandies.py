"""Eyecandies, read from the folders that its archives unpack to, or converted: six lights of every candy."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images import read_mask
from ..types import DatasetCard, Sample
from ._files import mask_view, picture_view
from ._layouts import folders, in_order, make_sample, not_found, pictures, with_train

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
    "normals, mask, metadata, ...}; or converted: <root>/<category>/{{train/good, test/<defect>}/<id>_<light>.png, "
    "ground_truth/<defect>/<id>_mask.png}",
    masks=True,
    pictures=(10000, 500),
    categories=("CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear", "HazelnutTruffle",
                "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy"),
)  # fmt: skip

RENDERED = re.compile(r"(\d+)_(?:image_)?(\w+)")  # candy; light or other item
CONVERTED = re.compile(r"(.+)_(\d+)")  # candy, light
LIGHT = re.compile(r"light_\d+")
DEFECT_MASKS = ("bumps_mask", "dents_mask", "colors_mask", "normals_mask")
ANOMALOUS = re.compile(r"^\s*anomalous\s*:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Eyecandies:
    """One kind of candy; `test` is the public part, the only one with labels.

    A sample has the views light_0 (all spots on), light_1 to light_4 (one spot each), light_5 (light box), image (the
    same as light_0), and depth and normals as they are stored; other numbers of lights are read too. Where a part is
    not there as it was rendered, the files that AFRD's authors convert it to are read: pictures of the lights alone,
    the defects told by folders.
    """

    root: str | Path
    category: str

    @property
    def categories(self) -> tuple[str, ...]:
        return with_train(self.root, "train")

    def train(self) -> list[Sample]:
        return self._split("train", "train")

    def validation(self) -> list[Sample]:
        """Further normal samples, to choose thresholds with."""
        return self._split("val")

    def test(self) -> list[Sample]:
        return self._split("test_public", "test")

    def private(self) -> list[Sample]:
        """Samples without labels, for the organisers' leaderboard."""
        return [Sample(s.id, s.views, s.category) for s in self._split("test_private")]

    def _split(self, split: str, converted: str = "") -> list[Sample]:
        """The samples of a part; `converted` is its name in the converted layout, where it has one."""
        found = self._rendered(split) or (self._converted(converted) if converted else [])
        if not found or not self.category:
            category = self.category or "<category>"
            other = f" or {category}/{converted}/good/<id>_0.png" if converted else ""
            raise not_found("Eyecandies", self.root, f"{category}/{split}/data/<index>_image_0.png{other}")
        return in_order(found)

    def _rendered(self, split: str) -> list[Sample]:
        folder = Path(self.root) / self.category / split / "data"
        others = folder.glob("*_metadata.y*ml") if folder.is_dir() else ()
        candies = _candies((*pictures(folder), *others), RENDERED)
        labelled = split == "test_public"
        return [
            self._sample(files, "anomaly" if labelled and _anomalous(files) else "good") for files in candies.values()
        ]

    def _converted(self, split: str) -> list[Sample]:
        base = Path(self.root) / self.category
        found = []
        for kind in [base / "train" / "good"] if split == "train" else folders(base / split):
            for candy, files in _candies(pictures(kind), CONVERTED).items():
                mask = base / "ground_truth" / kind.name / f"{candy}_mask.png"
                found.append(self._sample({**files, "mask": mask}, kind.name))
        return found

    def _sample(self, files: Mapping[str, Path], defect: str) -> Sample:
        image = files["light_0"]
        lights = sorted(filter(LIGHT.fullmatch, files), key=lambda item: int(item[6:]))  # light_10 after light_9
        items = {"image": "light_0", **{item: item for item in (*lights, "depth", "normals") if item in files}}
        views = {name: picture_view(files[item], name) for name, item in items.items()}
        missing = image.with_name(f"{image.stem.partition('_')[0]}_mask{image.suffix}")  # reading it says so
        return make_sample(self.root, image, self.category, defect, mask_view(_masks(files) or [missing], image), views)


def _candies(paths: Iterable[Path], name: re.Pattern[str]) -> dict[str, dict[str, Path]]:
    """The files of every candy by item: light_0, light_1, ..., the others as they are named."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in paths:
        parts = name.fullmatch(path.stem)
        if parts:
            candy, item = parts.groups()
            found[candy][f"light_{int(item)}" if item.isdecimal() else item] = path
    return {candy: files for candy, files in found.items() if "light_0" in files}


def _masks(files: Mapping[str, Path]) -> list[Path]:
    """The overall mask; without it, those of the kinds of defects, whose union it is."""
    return [files[item] for item in (("mask",) if "mask" in files else DEFECT_MASKS) if item in files]


def _anomalous(files: Mapping[str, Path]) -> bool:
    """What the metadata say; without them, whether anything is masked."""
    if "metadata" in files:
        said = ANOMALOUS.search(files["metadata"].read_text(encoding="utf-8"))
        if said:
            return said[1].lower() not in ("0", "false", "no")
    return any(read_mask(path).any() for path in _masks(files))


DATASET = Eyecandies
