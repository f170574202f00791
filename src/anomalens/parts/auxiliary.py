"""Learning from annotated pictures of other things, for methods that then judge things they never saw.

What such methods share: batches of pictures with masks, and the files that their trained parts ("adapters") lie in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingWeights, WrongInput
from ..files import write_atomic
from ..images import resize, to_8bit, to_float
from ..types import Sample
from .prompts import name_of
from .train import Shuffled

if TYPE_CHECKING:
    from torch import Tensor


# --- batches ----------------------------------------------------------------------------------------------------------


def auxiliary_batches(
    samples: Sequence[Sample],
    size: int,
    batch: int = 1,
    *,
    seed: int = 0,
    mosaic: float | Mapping[str, float] = 0.0,
    relabel: bool = True,
    name: Callable[[Sample], str] = name_of,
) -> Shuffled[Sample]:
    """Annotated samples as `train` takes them, every one once per epoch.

    size: S, side of the square that pictures are resized to (bicubic, aspect not kept). seed: of the order and mosaics.
    mosaic: share of the samples in whose place four random pictures of their category come, two by two; or such a share
        for each category, 0 for those not named.
    relabel: a mosaic is anomalous where one of its four pictures is; False keeps the label of the picture it replaces,
        as the authors of AdaCLIP do.

    Returns:
        Called with an epoch, batches of images (B, 3, S, S) float32 in [0, 1]; masks (B, S, S) float32 and labels (B,)
        float32, 1 is anomalous; names (B,), what the things are called; and has_mask (B,) bool. That is False where
        something is anomalous and nobody said where: the mask is zero, and would teach that nothing is wrong.

    Raises:
        WrongInput: no samples, or one that nobody has labelled.
    """
    alike: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.label is None:
            raise WrongInput(f"sample {sample.id} has no label; training needs to know whether it is anomalous.")
        alike.setdefault(sample.category, []).append(sample)
    if not alike:
        raise WrongInput("training needs annotated samples, normal and anomalous; got none.")

    def load(sample: Sample, rng: np.random.Generator) -> tuple[Any, ...]:
        chance = mosaic.get(sample.category, 0.0) if isinstance(mosaic, Mapping) else mosaic
        shown = [sample]
        if rng.random() < chance:
            others = alike[sample.category]
            shown = [others[i] for i in rng.choice(len(others), 4, replace=len(others) < 4)]
        picture, mask = two_by_two(shown) if len(shown) == 4 else read(sample)
        image = to_float(resize(picture, (size, size), "bicubic"))
        target = (soft_mask(mask, (size, size)) > 0.5).astype(np.float32)
        label = max(int(s.label or 0) for s in (shown if relabel else [sample]))
        has_mask = all(s.label == 0 or s.mask is not None for s in shown)
        return np.moveaxis(image, 2, 0), target, np.float32(label), name(sample), has_mask

    return Shuffled(list(samples), batch, load, seed)


def read(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) and its mask, bool; without one, and where it says "ignore", nothing is anomalous."""
    picture = sample.image()
    if sample.label == 0 or sample.mask is None:
        return picture, np.zeros(picture.shape[:2], bool)
    return picture, sample.mask.read() == 1


def two_by_two(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Four pictures, two by two, each of the size of the first one, with the masks that go with them."""
    found = [read(sample) for sample in samples]
    size = found[0][0].shape[:2]
    pictures = [resize(to_8bit(picture), size, "bicubic") for picture, _ in found]
    masks = [soft_mask(mask, size) > 0.5 for _, mask in found]
    halves = [np.concatenate(pictures[i : i + 2], axis=1) for i in (0, 2)]
    return np.concatenate(halves), np.block([masks[:2], masks[2:]])


def soft_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool -> (*size) float32 in [0, 1], bilinear with antialiasing; above 0.5 is anomalous."""
    return resize(mask.astype(np.uint8) * np.uint8(255), size).astype(np.float32) / np.float32(255)


# --- adapter files ----------------------------------------------------------------------------------------------------


def find_adapter(given: str, released: Mapping[str, str], *, folder: Path, source: str, megabytes: float) -> Path:
    """The file of trained parts: the one `given`, else the first of the `released` ones that lies in `folder`.

    released: file name to sha256 of what the authors published, "" where that is not known. source: where that is.
    megabytes: of one such file.

    Raises:
        MissingWeights: it is not there; the message says what to put where. WrongInput: a released name, other content.
    """
    found = [Path(given).expanduser()] if given else [folder / name for name in released]
    path = next((p for p in found if p.is_file()), None)
    if path is None:
        what = f"the adapter {given} is not a file" if given else "no adapter is on this machine"
        raise MissingWeights(
            f"{what}: take {' or '.join(released)} (about {megabytes:.0f} MB each) from {source} and save it in {folder}, "
            "or train one with `anomalens train-aux`, and name it with adapter=FILE."
        )
    if released.get(path.name):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != released[path.name]:
            raise WrongInput(
                f"{path} has the name of a published file but another content (sha256 {digest[:12]}..., published "
                f"{released[path.name][:12]}...); fetch it again, or give your own file another name."
            )
    return path


def read_adapter(path: Path, prefixes: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (float32, on the CPU) and facts of a file: .safetensors as `write_adapter` makes it, or .pth of tensors.

    A .pth may hold its tensors one level deep. `prefixes` are taken off the names. No code of the file runs.

    Raises:
        WrongInput: damaged, or something else than tensors.
    """
    import torch
    from safetensors import safe_open

    facts: dict[str, Any] = {}
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
                facts = json.loads((file.metadata() or {}).get("adapter", "{}"))
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            inner = next(iter(tensors.values()), None)
            tensors = inner if len(tensors) == 1 and isinstance(inner, Mapping) else tensors
        wrong = [str(key) for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
    except Exception as error:  # whatever a damaged file, or a program in disguise, makes the two readers raise
        raise WrongInput(
            f"{path} is not a readable file of tensors ({type(error).__name__}); fetch it again."
        ) from None
    if wrong:
        raise WrongInput(f"{path} holds {wrong[0]!r}, which is not a tensor; give a file of trained parts.")
    for prefix in prefixes:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() for key, value in tensors.items()}, facts


def write_adapter(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """All of it or nothing. facts: plain values that say how it was trained, kept as JSON in the header."""
    from safetensors.torch import save

    plain = {key: value.detach().float().cpu().contiguous() for key, value in tensors.items()}
    write_atomic(path, save(plain, {"adapter": json.dumps(dict(facts), allow_nan=False)}))


def require_shapes(tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], source: Any) -> None:
    """Raise WrongInput unless names and shapes are exactly the wanted ones."""
    bad = [f"{key} is missing" for key in wanted if key not in tensors]
    bad += [f"{key} is not known" for key in tensors if key not in wanted]
    bad += [
        f"{key} is {tuple(tensors[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if key in tensors and tuple(tensors[key].shape) != tuple(shape)
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise WrongInput(
            f"the adapter {source} does not fit: {'; '.join(bad[:3])}{more}; it belongs to another backbone or setting."
        )
