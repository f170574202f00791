"""Reverse distillation: a student rebuilds a frozen teacher's feature maps from a narrow code; what it cannot rebuild is new.

    teacher's maps f1, f2, f3 (finest first) -> one-class embedding (OCE) -> code -> decoder -> g1, g2, g3

The decoder mirrors the teacher and sees nothing but the code. Deng and Li 2022, https://arxiv.org/abs/2201.10703

Shapes: B pictures; f1, g1 (B, c1, h, w), f2, g2 (B, c2, h/2, w/2), f3, g3 (B, c3, h/4, w/4), code (B, 2 c3, h/8, w/8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from ..errors import WrongInput
from ..images import to_float
from ..types import Sample, View
from .grids import blur_matrix, like, to_numpy
from .train import Shuffled

Tensor = Any  # torch.Tensor
Module = Any  # torch.nn.Module

STRIDES = (4, 8, 16)  # of the teacher's maps; each is half as fine as the one before
SMALLEST = 64  # pixels per side: below, the code has one cell, over which no statistics can be taken


@dataclass(frozen=True)
class Plan:
    """The form of a student. channels: of the teacher's maps, finest first.

    blocks: residual blocks of the decoder's stages, coarsest first. embedding: residual blocks of the OCE.
    expansion: 1 for blocks of two 3x3 convolutions; otherwise blocks of 1x1, 3x3, 1x1 whose output has `expansion` times
        as many channels as planes, and whose middle has `widen` times as many as planes.
    signed: the teacher's maps have negative values, which blocks that end in a ReLU cannot give: each map comes out of
        one more 1x1 convolution (not in the paper, whose teachers end in a ReLU too).
    """

    channels: tuple[int, int, int]
    blocks: tuple[int, int, int] = (2, 2, 2)
    embedding: int = 2
    expansion: int = 1
    widen: int = 1
    signed: bool = False


MIRRORED: dict[str, dict[str, Any]] = {
    "resnet18": {"blocks": (2, 2, 2), "embedding": 2},
    "resnet34": {"blocks": (3, 4, 6), "embedding": 3},
    "resnet50": {"blocks": (3, 4, 6), "embedding": 3, "expansion": 4},
    "wide_resnet50_2": {"blocks": (3, 4, 6), "embedding": 3, "expansion": 4, "widen": 2},
}


def plan_for(backbone: str, channels: Sequence[int]) -> Plan:
    """The student of a teacher: the mirror of a ResNet; for every other network blocks as in ResNet18, signed.

    backbone: a name such as `timm:wide_resnet50_2.tv_in1k@FILE`.
    """
    network = backbone.partition(":")[2]
    for end in "@?.":
        network = network.partition(end)[0]
    return Plan(tuple(channels), **MIRRORED.get(network, {"signed": True}))  # type: ignore[arg-type]


def check_sizes(method: str, side: int, batch: int) -> None:
    """Refuse sides of the resized picture whose maps cannot be halved three times, and empty batches."""
    if side < SMALLEST or side % 32:
        raise WrongInput(f"{method} needs an image_size of {SMALLEST} or more that is a multiple of 32; got {side}.")
    if batch < 1:
        raise WrongInput(f"{method} needs a batch_size of 1 or more; got {batch}.")


# --- the student ------------------------------------------------------------------------------------------------------


def new_student(plan: Plan) -> Module:
    """A student to train: module `oce` (`from1`, `from2`, `blocks`) and module `decoder` (`stage3`, `stage2`, `stage1`),
    with `heads` of the same names where maps are signed.

    Convolutions start Kaiming-normal (fan out), transposed ones as torch draws them; both from torch's generator.
    """
    from torch import nn

    c1, c2, c3 = plan.channels
    code = 2 * c3
    oce = nn.ModuleDict(
        {
            "from1": nn.Sequential(*_conv(c1, c2, 3, 2), nn.ReLU(), *_conv(c2, c3, 3, 2), nn.ReLU()),
            "from2": nn.Sequential(*_conv(c2, c3, 3, 2), nn.ReLU()),
            "blocks": _stage(plan, 3 * c3, code, plan.embedding, _conv),
        }
    )
    sizes = zip((3, 2, 1), (code, c3, c2), (c3, c2, c1), plan.blocks, strict=True)
    decoder = nn.ModuleDict({f"stage{i}": _stage(plan, a, b, n, _transposed) for i, a, b, n in sizes})
    student = nn.ModuleDict({"oce": oce, "decoder": decoder})
    if plan.signed:
        student["heads"] = nn.ModuleDict({f"stage{i}": nn.Conv2d(c, c, 1) for i, c in enumerate(plan.channels, 1)})
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return student


def embed(student: Module, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """(the maps brought to the coarsest grid, each c3 channels; the code)."""
    import torch

    f1, f2, f3 = features
    oce = student["oce"]
    together = [oce["from1"](f1), oce["from2"](f2), f3]
    return together, oce["blocks"](torch.cat(together, dim=1))


def decode(student: Module, code: Tensor) -> list[Tensor]:
    """The code -> g1, g2, g3."""
    maps = []
    for name, stage in student["decoder"].items():
        code = stage(code)
        maps.append(student["heads"][name](code) if "heads" in student else code)
    return maps[::-1]


def rebuild(student: Module, features: Sequence[Tensor]) -> list[Tensor]:
    """f1, f2, f3 -> g1, g2, g3, all through the code."""
    return decode(student, embed(student, features)[1])


def _stage(plan: Plan, inside: int, out: int, count: int, change: Callable[..., list[Module]]) -> Module:
    """Residual blocks, the first of which halves or doubles the grid: `change` makes the convolution that does."""
    from torch import nn

    def block(inside: int, change: Callable[..., list[Module]], size: int, stride: int) -> Module:
        if plan.expansion == 1:
            body = [*change(inside, out, size, stride), nn.ReLU(), *_conv(out, out, 3, 1)]
        else:
            middle = out // plan.expansion * plan.widen
            body = [*_conv(inside, middle, 1, 1), nn.ReLU(), *change(middle, middle, size, stride), nn.ReLU()]
            body += _conv(middle, out, 1, 1)
        small = 1 if change is _conv else size
        shortcut = nn.Sequential(*change(inside, out, small, stride)) if stride > 1 else nn.Identity()
        return _residual(nn.Sequential(*body), shortcut)

    first = block(inside, change, 3 if change is _conv else 2, 2)
    return nn.Sequential(first, *(block(out, _conv, 3, 1) for _ in range(count - 1)))


def _residual(body: Module, shortcut: Module) -> Module:
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.relu(self.body(x) + self.shortcut(x))

    return Residual()


def _conv(inside: int, out: int, size: int, stride: int) -> list[Module]:
    from torch import nn

    return [nn.Conv2d(inside, out, size, stride, size // 2, bias=False), _norm(out)]


def _transposed(inside: int, out: int, size: int, stride: int) -> list[Module]:
    from torch import nn

    return [nn.ConvTranspose2d(inside, out, size, stride, bias=False), _norm(out)]


def _norm(channels: int) -> Module:
    from torch import nn

    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None  # a counter that nothing reads: neither saved nor compared
    return norm


# --- teaching ---------------------------------------------------------------------------------------------------------


def as_input(picture: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 or uint16 -> (..., 3, H, W) float32 in [0, 1]."""
    return np.moveaxis(to_float(picture), -1, -3)


def as_samples(pictures: Sequence[np.ndarray]) -> list[Sample]:
    """Pictures (H, W, 3) as samples, for those who ask for samples."""
    return [Sample(str(i), {"image": View("image", partial(np.asarray, p))}) for i, p in enumerate(pictures)]


def teach(teacher: Any, images: np.ndarray, device: Any) -> list[Tensor]:
    """Feature maps of pictures (..., 3, H, W): one tensor (..., c, h, w) per stride, on the student's device."""
    import torch

    lead = images.shape[:-3]
    maps = teacher(images.reshape(-1, *images.shape[-3:]))
    return [torch.as_tensor(f, device=device).reshape(*lead, *f.shape[1:]) for f in maps]


def lessons(
    teacher: Any, pictures: Sequence[np.ndarray], *, batch: int, seed: int, keep: int, device: Any
) -> tuple[Shuffled, Callable[[Any], list[Tensor]]]:
    """(batches for `train`; batch -> the teacher's maps of it, each (B, ..., c, h, w)).

    Without augmentation the teacher says the same in every epoch, so on a CPU its maps are kept where all of them fit
    `keep` bytes. pictures: (..., H, W, 3) each, resized.
    """
    import torch

    if teacher.device == "cpu":
        told = (teach(teacher, as_input(picture)[None], "cpu") for picture in pictures)
        first = next(told)
        if len(pictures) * sum(f.nbytes for f in first) <= keep:
            kept = [tuple(to_numpy(f[0]) for f in maps) for maps in chain([first], told)]
            return Shuffled(kept, batch, lambda maps, rng: maps, seed), lambda maps: [
                torch.from_numpy(f).to(device) for f in maps
            ]
    shown = Shuffled(pictures, batch, lambda picture, rng: as_input(picture), seed)
    return shown, lambda images: teach(teacher, images, device)


def named(pictures: Sequence[np.ndarray], *settings: object) -> str:
    """A name of training data, for checkpoints: other pictures or other settings give another name."""
    digest = hashlib.sha256(repr(settings).encode())
    for picture in pictures:
        digest.update(np.ascontiguousarray(picture).data)
    return f"{len(pictures)} samples {digest.hexdigest()[:16]}"


def losses(targets: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> list[Tensor]:
    """For each scale the mean over pictures of 1 - cosine between whole maps, flattened: in [0, 2], 0 is perfect.

    As in the authors' code; the mean over places of a cosine per place, which the paper writes, trains worse.
    """
    from torch.nn.functional import cosine_similarity

    pairs = zip(targets, rebuilt, strict=True)
    return [(1 - cosine_similarity(t.flatten(1), r.flatten(1))).mean() for t, r in pairs]


# --- judging ----------------------------------------------------------------------------------------------------------


def differences(targets: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> list[Tensor]:
    """For each scale (B, h, w): 1 - cosine over channels at each place, in [0, 2]."""
    from torch.nn.functional import cosine_similarity

    return [1 - cosine_similarity(t, r, dim=1) for t, r in zip(targets, rebuilt, strict=True)]


def enlarge(grids: Sequence[Tensor], side: int, align_corners: bool) -> list[Tensor]:
    """Grids (B, h, w) -> (B, side, side), bilinear."""
    from torch.nn.functional import interpolate

    return [interpolate(g[:, None], (side, side), mode="bilinear", align_corners=align_corners)[:, 0] for g in grids]


def blur(maps: Tensor, sigma: float) -> Tensor:
    """(B, H, W): a Gaussian of sigma pixels."""
    down, across = (like(blur_matrix(n, sigma), maps) for n in maps.shape[1:])
    return down @ maps @ across.T


def anomaly_maps(
    targets: Sequence[Tensor], rebuilt: Sequence[Tensor], side: int, sigma: float, align_corners: bool
) -> Tensor:
    """(B, side, side): the differences of all scales, enlarged, summed and blurred; higher is more anomalous."""
    return blur(sum(enlarge(differences(targets, rebuilt), side, align_corners)), sigma)
