"""What a folder and this machine tell of themselves: the facts that `recommend` decides by, cheaply measured.

At most PICTURES pictures are read, fewer when they are large. The thresholds were set on drawn and real categories;
docs/choosing.md holds the figures.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..backbones._onnx import cache_folder
from ..datasets._files import picture_size
from ..datasets.folder import LIGHT, SPLITS, Folder, plural
from ..errors import MissingExtra, Unreadable
from ..images import resize, to_8bit
from ..parts.batches import ahead
from ..types import Card, Sample

PICTURES = 64
PIXELS = 40_000_000  # read at most, so that large pictures cost no more than small ones
ALIGNED = 0.85  # correlation of edges with what all pictures have in common, as they lie
SMALL_MOVE = 3  # cells of 32: shifts up to a tenth of the side count as small
EVEN = 0.16  # unevenness of edges over the picture, below which it is a texture
MODULES = {"torch": ("torch", "timm"), "clip": ("open_clip",), "diffusion": ("diffusers",), "llm": ("httpx",)}


@dataclass(frozen=True)
class Facts:
    """A folder in numbers.

    normals: pictures to learn from. abnormals: bad ones outside test folders. test: pictures in test folders; pictures:
        all of them. unlabelled: whether nothing says which are good, so that all count as normal.
    alignment: agreement of edges between the pictures, 0 to 1; None for fewer than three pictures or a texture.
    unevenness: of edges over the picture, 0 is perfectly even. longest: side in pixels.
    """

    said: str
    normals: int
    abnormals: int
    test: int
    pictures: int
    unlabelled: bool
    categories: int
    views: tuple[str, ...]
    surface: Literal["texture", "object", "unknown"]
    pose: Literal["aligned", "small", "free", "unknown"]
    alignment: float | None
    unevenness: float | None
    longest: int

    def query(self) -> dict[str, Any]:
        """As fields of `recommend.Query`."""
        same = ("normals", "abnormals", "categories", "views", "surface", "pose", "longest")
        return {name: getattr(self, name) for name in same} | {"test_batch": max(1, self.test)}

    def words(self) -> str:
        """One line for people."""
        what = "pictures, taken as good" if self.unlabelled else "good pictures"
        parts = [f"{self.normals} {what}"]
        if self.abnormals:
            parts.append(f"{self.abnormals} bad")
        if self.test:
            parts.append(f"{self.test} to test on")
        if self.categories > 1:
            parts.append(f"{self.categories} categories")
        if "lights" in self.views:
            parts.append("several lights")
        parts.append(f"up to {self.longest} pixels")
        if self.unevenness is not None and self.surface != "unknown":
            parts.append(f"{self.surface} (unevenness {self.unevenness:.2f})")
        if self.alignment is not None:
            parts.append(f"pose {self.pose} (edges agree {self.alignment:.2f})")
        return ", ".join(parts)


def probe(path: str | Path) -> Facts:
    """Look at a folder or a table.

    Raises:
        WrongInput: as `datasets.folder.Folder`.
        Unreadable: none of the pictures looked at can be read.
    """
    folder = Folder(path)
    every = folder.samples()
    normal = [s for s in folder.train() if s.label != 1]
    test = [s for s in every if any(SPLITS.get(part.lower()) == "test" for part in s.id.split("/")[:-1])]
    inside = {s.id for s in test}
    lights = sum(bool(LIGHT.fullmatch(view)) for view in every[0].views) > 1
    looked, pictures = some_pictures(normal or every)
    shown = defaultdict(list)
    for sample, picture in zip(looked, pictures, strict=True):
        shown[sample.category].append(grey(picture))
    uneven = [float(np.median([unevenness(one) for one in group])) for group in shown.values()]
    flat = [value < EVEN for value in uneven]
    surface: Any = "texture" if all(flat) else "unknown" if any(flat) else "object"
    moved = [alignment(group) for group in shown.values() if len(group) >= 3]
    pose: Any = "unknown"  # a texture has none
    still = None
    if moved and surface != "texture":
        still, nearly = np.mean(moved, axis=0).tolist()
        pose = "aligned" if still >= ALIGNED else "small" if nearly >= ALIGNED else "free"
    return Facts(
        said=folder.describe(),
        normals=len(normal),
        abnormals=sum(s.label == 1 and s.id not in inside for s in every),
        test=len(test),
        pictures=len(every),
        unlabelled=bool(normal) and all(s.label is None for s in normal),
        categories=max(1, len(folder.categories)),
        views=("lights",) if lights else ("image",),
        surface=surface,
        pose=pose,
        alignment=still,
        unevenness=float(np.mean(uneven)),
        longest=max(max(p.shape[:2]) for p in pictures),
    )


def some_pictures(samples: Sequence[Sample]) -> tuple[list[Sample], list[np.ndarray]]:
    """Evenly spread samples and their pictures; those that cannot be read are passed over."""
    first = samples[0].views["image"].path
    try:
        pixels = int(np.prod(picture_size(Path(first)))) if first else 1
    except (Unreadable, MissingExtra):
        pixels = 1
    count = min(PICTURES, len(samples), max(4, PIXELS // max(1, pixels)))
    chosen = [samples[i * len(samples) // count] for i in range(count)]
    errors: list[Exception] = []

    def read(sample: Sample) -> np.ndarray | None:
        try:
            return sample.image()
        except (Unreadable, MissingExtra) as error:
            errors.append(error)
            return None

    both = [(s, p) for s, p in zip(chosen, ahead(read, chosen), strict=True) if p is not None]
    if not both:
        raise Unreadable(f"none of {plural(count, 'picture')} looked at can be read (first: {errors[0]})")
    return [s for s, _ in both], [p for _, p in both]


def grey(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (128, 128) float64, the grey values of a small copy."""
    return resize(to_8bit(picture), (128, 128)).astype(np.float64).mean(axis=2)


def edges(values: np.ndarray) -> np.ndarray:
    """(h, w) -> (h, w): how steep the values are."""
    return np.hypot(*np.gradient(values))


def unevenness(values: np.ndarray) -> float:
    """Spread of the mean edge strength over 4 x 4 blocks of a (128, 128) picture, as a share of its mean."""
    blocks = edges(values).reshape(4, 32, 4, 32).mean(axis=(1, 3))
    return float(blocks.std() / max(blocks.mean(), 1e-9))


def alignment(group: Sequence[np.ndarray]) -> tuple[float, float]:
    """How well the edges of (128, 128) pictures agree, 0 to 1: as they lie, and with small shifts undone.

    Edges rather than grey values, since a bright thing on a dark ground correlates with itself in every pose.
    """
    small = np.stack([edges(values.reshape(32, 4, 32, 4).mean(axis=(1, 3))) for values in group])
    small -= small.mean(axis=(1, 2), keepdims=True)
    small /= np.maximum(small.std(axis=(1, 2), keepdims=True), 1e-9)
    still = _agreement(small)
    target = small[0]
    for _ in range(3):  # to the first picture, then to what all look like on average
        small = np.stack([_shifted(one, target) for one in small])
        target = small.mean(axis=0)
    return still, max(still, _agreement(small))


def _agreement(small: np.ndarray) -> float:
    """Correlation with what all have in common, from the mean over pairs, so that it does not grow with their number."""
    n, cells = len(small), small[0].size
    pairs = float((small.sum(axis=0) ** 2).sum() / cells - (small**2).sum() / cells) / (n * (n - 1))
    return max(pairs, 0.0) ** 0.5


def _shifted(one: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Moved by at most SMALL_MOVE cells, to where it agrees best with the target."""
    match = np.fft.ifft2(np.fft.fft2(target) * np.conj(np.fft.fft2(one))).real
    near = np.roll(match, (SMALL_MOVE, SMALL_MOVE), axis=(0, 1))[: 2 * SMALL_MOVE + 1, : 2 * SMALL_MOVE + 1]
    dy, dx = np.unravel_index(near.argmax(), near.shape)
    return np.roll(one, (int(dy) - SMALL_MOVE, int(dx) - SMALL_MOVE), axis=(0, 1))


# This machine.


def machine(cards: Iterable[Card]) -> dict[str, Any]:
    """As fields of `recommend.Query`: GPU, weights on disk, optional libraries. Nothing is imported for it.

    A GPU is believed in where the NVIDIA driver or its tool `nvidia-smi` is installed.
    """
    found = {w.title for c in cards for w in c.weights if any(on_disk(f) for f in w.files)}
    gpu = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    return {
        "gpu": "both" if gpu else "none",
        "weights": tuple(sorted(found)),
        "extras": tuple(e for e, modules in MODULES.items() if all(find_spec(m) for m in modules)),
    }


def on_disk(file: str, env: Mapping[str, str] = os.environ) -> bool:
    """Whether weights lie where we, torch, CLIP or the Hugging Face hub keep them; see `Weights.files`."""
    home = Path.home() / ".cache"
    ours = cache_folder() / "weights"
    if (ours / file).is_file() or (ours / f"{file.replace('/', '--')}.safetensors").is_file():
        return True
    if "/" not in file:
        torch = Path(env.get("TORCH_HOME", home / "torch")) / "hub" / "checkpoints"
        return any((place / file).is_file() for place in (home / "clip", torch))
    hub = Path(env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME", home / "huggingface")) / "hub")
    kept = hub / f"models--{file.replace('/', '--')}" / "snapshots"
    return any(p.suffix in (".safetensors", ".bin", ".pt", ".pth") for p in kept.glob("*/*"))
