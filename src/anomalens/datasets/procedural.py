"""Drawn categories: textures, things on a ground, a tray with parts, a medal under six lights. No download."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import WrongInput, unknown
from ..files import replace_folder, write_atomic
from ..images import encode
from ..types import DatasetCard, Sample, View
from ._categories import FAINT, RECIPES, Draft, Part, make
from ._draw import Surface, grid, lit, numbers

CARD = DatasetCard(
    title="Procedural",
    summary="15 drawn categories with exact masks: seven textures, six things, a tray whose parts count, a medal "
    "under six lights.",
    home="",
    citation="",
    licence="Apache-2.0",
    commercial=True,
    views=("image", "lights"),
    levels=("structural", "semantic"),
    layout="drawn when read; write(folder) makes train/good, test/<defect>, ground_truth/<defect>",
    masks=True,
    pictures=(0, 0),
    categories=("board", "cap", "cloth", "cookie", "gear", "leather", "metal", "pill", "relief", "screw", "stripes",
                "terrazzo", "tiles", "tray", "wood"),
)  # fmt: skip

LIGHTS = 6  # of the category `relief`
MARK = ".anomalens-procedural.json"  # lies in the folders that `write` made


@dataclass(frozen=True)
class Procedural:
    """One drawn category.

    Picture i depends only on (category, size, seed, i) and on whether it is to train on, good or bad: asking for more
    pictures changes none of the earlier ones. Defect kinds take turns. The bytes are the same every time; another
    version of numpy or another processor may round a cosine otherwise and change a pixel here and there.
    """

    category: str = "cloth"
    size: int = 256  # pixels per side
    seed: int = 0
    train_count: int = 40
    good_count: int = 10  # good pictures to test on
    bad_count: int = 20

    def __post_init__(self) -> None:
        if self.category not in RECIPES:
            raise unknown("drawn category", self.category, RECIPES)
        if not 32 <= self.size <= 2048:
            raise WrongInput(f"Procedural draws 32 to 2048 pixels per side; got size={self.size}.")
        if min(self.seed, self.train_count, self.good_count, self.bad_count) < 0:
            raise WrongInput("Procedural needs seed, train_count, good_count and bad_count of 0 or more.")

    @property
    def categories(self) -> tuple[str, ...]:
        """Every category that can be drawn."""
        return tuple(RECIPES)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Defect kinds of this category."""
        return RECIPES[self.category].kinds

    def train(self) -> list[Sample]:
        return [shot.sample() for shot in self._shots() if shot.split == "train"]

    def test(self) -> list[Sample]:
        return [shot.sample() for shot in self._shots() if shot.split != "train"]

    def scene(self, sample_id: str) -> tuple[Part, ...]:
        """What lies on the tray in one of its pictures: the truth that counting rules are checked against."""
        if self.category != "tray":
            raise WrongInput(f"only the category 'tray' has parts to list; this is {self.category!r}.")
        shots = {shot.id: shot for shot in self._shots()}
        if sample_id not in shots:
            raise unknown("picture of this tray", sample_id, shots)
        return tuple(drawn(shots[sample_id])[0].parts)

    def write(self, folder: str | Path) -> Path:
        """Write the category as PNG files: train/good, test/<defect>, ground_truth/<defect>; returns the folder.

        Several lights of one thing become a folder of its number with light_0.png ... and image.png.

        Raises:
            WrongInput: the folder holds files that this method did not write; they are left alone.
            CannotWrite: the disk refuses.
        """
        folder = Path(folder)
        if folder.exists() and not _ours(folder):
            raise WrongInput(f"{folder} holds something else already; give a new or empty folder.")
        replace_folder(folder.resolve(), self._fill)
        return folder

    def _fill(self, folder: Path) -> None:
        for sample in [*self.train(), *self.test()]:
            path = folder / sample.id.removeprefix(f"{self.category}/")
            for name, view in sample.views.items():
                file = path if len(sample.views) == 1 else path.with_suffix("") / f"{name}.png"
                write_atomic(file, encode(view.read(), compress_level=3))
            if sample.mask:
                mask = folder / "ground_truth" / sample.defect / f"{path.stem}_mask.png"
                write_atomic(mask, encode(np.where(sample.mask.read(), 255, 0).astype(np.uint8)))
        mark = {"category": self.category, "size": self.size, "seed": self.seed, "files": _files(folder)}
        write_atomic(folder / MARK, json.dumps(mark))

    def _shots(self) -> list[Shot]:
        """Every picture, in the order of the ids."""
        counts = {"train": self.train_count, "good": self.good_count, "bad": self.bad_count}
        numbered = [(split, i) for split, count in counts.items() for i in range(count)]
        kinds = [self.kinds[i % len(self.kinds)] if split == "bad" else "" for split, i in numbered]
        shots = [
            Shot(self.category, self.size, self.seed, split, i, kind)
            for (split, i), kind in zip(numbered, kinds, strict=True)
        ]
        return sorted(shots, key=lambda shot: shot.id)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _ours(folder: Path) -> bool:
    """Whether nothing would be lost with this folder: it is empty, or `write` made all of it."""
    if not folder.is_dir():
        return False
    try:
        known = {MARK, *json.loads((folder / MARK).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    return known.issuperset(_files(folder))


@dataclass(frozen=True)
class Shot:
    """One picture to draw; kind is "" for the good picture of this number."""

    category: str
    size: int
    seed: int
    split: str
    index: int
    kind: str

    @property
    def id(self) -> str:
        if self.split == "bad":
            return f"{self.category}/test/{self.kind}/{self.index // len(RECIPES[self.category].kinds):03d}.png"
        return f"{self.category}/{'train' if self.split == 'train' else 'test'}/good/{self.index:03d}.png"

    def rng(self, role: str) -> np.random.Generator:
        """Random numbers for one purpose: drawing more for one does not change another."""
        names = (zlib.crc32(name.encode()) for name in (self.category, self.split, role))
        return np.random.default_rng([self.seed, self.index, *names])

    def sample(self) -> Sample:
        names: tuple[str, ...] = ("image",)
        if self.category == "relief":
            names = (*(f"light_{k}" for k in range(LIGHTS)), "image")
        return Sample(
            id=self.id,
            views={name: View(name, partial(picture, self, name)) for name in names},
            category=self.category,
            label=int(bool(self.kind)),
            mask=View("mask", partial(mask, self)) if self.kind else None,
            defect=self.kind or "good",
        )


def drawn(shot: Shot) -> tuple[Draft, Surface]:
    """The thing of one picture, before light and camera."""
    layout = np.random.default_rng([shot.seed, zlib.crc32(shot.category.encode())])
    draft = Draft(shot.size, shot.kind, shot.rng("thing"), shot.rng(f"defect {shot.kind}"), layout)
    return draft, make(draft, shot.category)


def picture(shot: Shot, view: str = "image") -> np.ndarray:
    """(size, size, 3) uint8. The `image` of several lights is their mean."""
    surface = drawn(shot)[1]
    if shot.category != "relief":
        azimuth, elevation = shot.rng("light").uniform((-2.5, 0.80), (-2.2, 0.95)).tolist()
        return photograph(shot, lit(surface, azimuth, elevation, RECIPES[shot.category].ambient), "camera")
    if view != "image":
        return _under(shot, surface, int(view.removeprefix("light_")))
    total = sum(_under(shot, surface, k).astype(np.uint16) for k in range(LIGHTS))
    return ((total + LIGHTS // 2) // LIGHTS).astype(np.uint8)  # type: ignore[union-attr]


def mask(shot: Shot) -> np.ndarray:
    """(size, size) bool, True where the defect is."""
    return drawn(shot)[1].fault > FAINT


def _under(shot: Shot, surface: Surface, light: int) -> np.ndarray:
    """One of six grazing lights, 60 degrees apart."""
    azimuth = 2 * math.pi * light / LIGHTS + 0.2
    return photograph(shot, lit(surface, azimuth, 0.6, RECIPES[shot.category].ambient), f"camera {light}")


def photograph(shot: Shot, colours: np.ndarray, role: str) -> np.ndarray:
    """Exposure, white balance, uneven light and sensor noise: (H, W, 3) float -> uint8."""
    rng = shot.rng(role)
    x, y = grid(shot.size)
    gain = rng.uniform(0.96, 1.04)
    left, top, *white = numbers(rng, -1, 1, 5)
    field = gain * (1 + 0.03 * left * (x - 0.5) + 0.03 * top * (y - 0.5))
    noisy = colours * field[..., None] * (1 + 0.008 * np.array(white, np.float32))
    noisy += 0.012 * rng.standard_normal((shot.size, shot.size, 3), np.float32)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


DATASET = Procedural
