"""AFRD: one thing under several lights. In the paper's letters: J lights, F_j the features of light j, alpha its weight.

Zhang, Cao, Zhang, Shen 2024, "Attention Fusion Reverse Distillation for Multi-Lighting Image Anomaly Detection",
https://arxiv.org/abs/2406.04573

A frozen teacher sees every light; at each of three scales the J feature maps become one, and a reverse-distillation
student rebuilds that one from a narrow code. Every way of fusing is a sum of parts, one per light:

    F = sum_j part_j        attention: part_j = alpha_j F_j        mean: F_j / J        max, concat: see `parts_of`

so the score at a place, 1 - cos(F, G), is a sum over lights too, and says which of them showed what is wrong.
Shapes: B samples, J lights, feature maps (B, J, c, h, w) at each scale.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..backbones import Device, Engine, network
from ..detector import Detector
from ..errors import WrongInput
from ..images import resize, to_float
from ..parts import distillation
from ..parts.batches import ahead
from ..parts.grids import resize_map, smooth_matrix, to_numpy
from ..parts.sizes import parse_bytes
from ..parts.threads import cores
from ..parts.train import Group, Recipe, load_parameters, parameters_of, seeded, train, training_device
from ..types import Card, Prediction, Reason, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="AFRD",
    paper="https://arxiv.org/abs/2406.04573",
    year=2024,
    venue="IEEE CASE",
    summary="One thing under several lights: weighs the lights, rebuilds what they show together, says which one showed it.",
    repo="22strongestme/AFRD",
    code_licence="none-found",
    fidelity="parity",
    family="distillation",
    settings=("full-shot",),
    scope="single",
    normals=(2, 1000),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("lights",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="wide_resnet50_2, strides 4, 8, 16 @ 256, 6 lights",
    trains="gradient",
    fit_cost="F4",
    predict_cost="P1",
    gpu="fit",
    cpu_fit="F2",
    stored_mb=16.4,
    extras=("torch",),
    weights=(),
    pose="small",
    external=(),
    determinism="seeded",
    differs="Adam with rates 0.005 and 1e-4 (authors: AdamW with 0.4 for everything, preset='authors'); the weights of the "
    "lights start equal, an entropy bonus keeps them from choosing the light that is easiest to rebuild, and a light that "
    "shows nothing on the good samples is held at an even share (entropy=0.0, hold_silent=False is the authors' way); the "
    "embedded backbone is the default (authors: WideResNet50); pictures are resized to a square, bilinear (authors: "
    "shorter side, Lanczos, centre crop); on a CPU the training is cut to the preset 'small'; the attention is saved with "
    "the student (the authors' code loses it)",
    pitfalls=(
        "the lights must show the same thing from the same place: nothing is aligned here",
        "the weights are trained to make rebuilding easy, not to show defects: a light of which little changes from sample "
        "to sample is attractive; look at what the fitted detector says of its weights",
        "attention='global' ties weights to places; for things that move 'pooled' is the better choice",
        "fusion='concat' may learn to show the student nothing at all",
    ),
)

RECIPES: dict[str, dict[str, Any]] = {
    "authors": {"epochs": 20, "optimiser": "adamw", "lr": 0.4, "weight_decay": 1e-4},
    "ours": {"epochs": 20, "lr": 0.005, "betas": (0.5, 0.999)},
    "small": {"steps": 200, "lr": 0.005, "betas": (0.5, 0.999)},
}
LIGHT = re.compile(r"light_(\d+)")
SILENT = 0.1  # contrast, as a share of the lights' upper quartile, below which one shows nothing: real 0.6, black 0.01
SHOWN = 0.05  # share from which a light is named in the reasons


@dataclass
class AFRD(Detector):
    """Features of all lights, fused and rebuilt from a code; the score is how far the rebuilt ones point elsewhere.

    views: names of the lights; empty takes all named light_0, light_1, ... of the first normal sample.
    fusion: "attention" (the paper), "mean" or "max" of the features, "concat" (a learnt 1x1 convolution), "single" (one
        light, `light`), "image_mean" (the average picture), "score_mean" and "score_max" (a student for every light).
    attention: what the weight of a light is learnt from: "global" (all of its features, the paper), "pooled" (their mean
        over places), "spatial" (each place on its own).
    preset: "authors" (AdamW, 0.4, 20 epochs), "ours" (Adam, 20 epochs), "small" (ours, 200 steps); "auto" is "ours" on a
        GPU, "small" on a CPU. epochs, steps: other lengths; steps counts before epochs. lr, attention_lr: other
        learning rates. batch_size: samples, of J pictures each.
    entropy: weight of the entropy of alpha, in nats, in the loss, which rewards even weights; None is 0 for the authors'
        preset, else 0.01. hold_silent: keep the weight of a light that shows nothing on the good samples, as a black or an
        evenly grey picture, at the even share 1 / J; None is not to for the authors' preset, else to. floor: least weight
        of a light. detach_target: let the fused features be a target only, so that the attention learns through what the
        student sees.
    sigma: Gaussian blur of the map, in pixels of the resized picture. image_size: pixels, a multiple of 32, 64 or more.
    limit_memory: bytes, or text such as `1GB`, that the teacher's features may take while training on a CPU; where they
        need more they are computed again in every step.
    """

    backbone: str = "tiny"
    image_size: int = 256
    views: tuple[str, ...] = ()
    fusion: Literal["attention", "mean", "max", "concat", "single", "image_mean", "score_mean", "score_max"] = (
        "attention"
    )
    attention: Literal["global", "pooled", "spatial"] = "global"
    light: str = "light_0"
    preset: Literal["auto", "authors", "ours", "small"] = "auto"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 8
    lr: float | None = None
    attention_lr: float | None = None
    entropy: float | None = None
    hold_silent: bool | None = None
    floor: float = 0.0
    detach_target: bool = False
    sigma: float = 4.0
    limit_memory: int | str = "1GB"
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    strides: ClassVar[tuple[int, ...]] = distillation.STRIDES
    learned: ClassVar[tuple[str, ...]] = ("weights", "lights", "held", "students", "fuse", "trained")

    def fit(self, samples: Iterable[Sample]) -> Self:
        device = training_device(self.device)
        distillation.check_sizes("AFRD", self.image_size, self.batch_size)
        samples = iter(samples)
        first = list(islice(samples, 1))
        self.lights = self.lights_of(first)
        pictures = [lights for lights, _ in ahead(self.read_good, chain(first, samples))]
        if len(pictures) < 2:
            raise WrongInput(f"AFRD needs at least 2 normal samples, better 1000; got {len(pictures)}.")
        self.held = self.silent(pictures)
        if self.held:
            warnings.warn(f"{self.holding}; is the lamp on? hold_silent=False lets it be learnt.", stacklevel=2)
        teacher = network(self, learn=distillation.as_samples([lights[0] for lights in pictures]))
        with seeded(self.seed):
            students, fuse = self.new_students().to(device), self.new_fusion().to(device)
        shown, maps_of = distillation.lessons(
            teacher, pictures, batch=self.batch_size, seed=self.seed, keep=parse_bytes(self.limit_memory), device=device
        )
        recipe, attention_lr, entropy = self.recipe(device.type)

        def loss(batch: Any) -> Any:
            parts, alpha = self.parts_of(fuse, maps_of(batch))
            return self.loss(students, parts, alpha, entropy)

        groups = [Group(students)]
        if list(fuse.parameters()):
            groups.append(Group(fuse, lr=attention_lr if self.fusion == "attention" else None))
        data = distillation.named(pictures, teacher.fingerprint)
        done = train(loss, groups, shown, recipe, data=data)
        self.students, self.fuse = parameters_of(students), parameters_of(fuse)
        alpha = self.mean_weights(fuse, shown, maps_of)
        self.trained: dict[str, Any] = {"steps": done.steps, "loss": done.loss, "alpha": alpha}
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        teacher, (students, fuse, device) = network(self), self.ready()
        loaded = ahead(lambda sample: (sample, *self.read(sample)), samples, 2 * self.batch_size)
        while group := list(islice(loaded, self.batch_size)):
            images = np.stack([distillation.as_input(lights) for _, lights, _ in group])
            parts, alpha = self.parts_of(fuse, distillation.teach(teacher, images, device))
            maps, rebuilt = self.maps(students, parts)
            for i, (sample, _, size) in enumerate(group):
                values = to_numpy(maps[:, i])  # of each student
                joined = values.max(axis=0) if self.fusion == "score_max" else values.mean(axis=0)
                peak = divmod(int(joined.argmax()), joined.shape[1])
                shares = self.shares([p[i : i + 1] for p in parts], [g[i : i + 1] for g in rebuilt[0]], values, peak)
                reasons = self.reasons(shares, None if alpha is None else to_numpy(alpha[:, i]))
                yield Prediction(sample.id, float(joined.max()), resize_map(joined, size), reasons=reasons)

    def state(self) -> str:
        if not self.fitted:
            return ""
        said = (
            f"The student was trained for {self.trained['steps']} steps; what it rebuilds of good samples differs from "
            f"the original by {self.trained['loss']:.3g} (training loss)."
        )
        if self.trained["alpha"] is None:
            return said
        weights = listed("Weights of the lights over the good samples", self.lights, self.trained["alpha"].mean(0))
        return f"{said} {weights}." + (f" {self.holding}." if self.held else "")

    # --- the lights ---

    def lights_of(self, first: list[Sample]) -> tuple[str, ...]:
        """Names of the lights to use, taken from the first normal sample unless they are set."""
        if not first:
            raise WrongInput("AFRD needs at least 2 normal samples; got none.")
        (sample,) = first
        if self.fusion == "single":
            return (self.light,)
        found = self.views or tuple(sorted(filter(LIGHT.fullmatch, sample.views), key=lambda v: int(v[6:])))
        if not found:
            raise WrongInput(
                f"AFRD needs pictures of the same thing under several lights, in views named light_0, light_1, ...; "
                f"sample {sample.id} has views {tuple(sample.views)}; for one picture of each thing use rd."
            )
        if not 0 <= self.floor * len(found) < 1:
            raise WrongInput(
                f"AFRD with {len(found)} lights needs a floor below {1 / len(found):.3g}; got {self.floor}."
            )
        return found

    def read_good(self, sample: Sample) -> tuple[np.ndarray, tuple[int, int]]:
        """`read`, of a sample to learn from: its lights are those of the first one, no more and no fewer."""
        more = set(filter(LIGHT.fullmatch, sample.views)) - set(self.lights)
        if more and not self.views and self.fusion != "single":
            raise WrongInput(
                f"sample {sample.id} has {', '.join(sorted(more))}, which the first good sample has not; leave out the "
                "samples that lack a light, or name the lights to use with views."
            )
        return self.read(sample)

    def read(self, sample: Sample) -> tuple[np.ndarray, tuple[int, int]]:
        """The lights of a sample, resized, (J, H, W, 3) uint8 or uint16, and the (height, width) that they had.

        J is 1 for the fusions that look at one picture.
        """
        read = [sample.image(name) for name in self.lights]
        if len({(p.shape, p.dtype) for p in read}) > 1:
            kinds = ", ".join(
                f"{n} {p.shape[1]} x {p.shape[0]} {p.dtype}" for n, p in zip(self.lights, read, strict=True)
            )
            raise WrongInput(f"sample {sample.id} has lights of different sizes or depths ({kinds}); take them alike.")
        stack = np.stack([resize(p, (self.image_size, self.image_size)) for p in read])
        if self.fusion == "image_mean":
            stack = np.rint(np.mean(stack, axis=0, keepdims=True)).astype(stack.dtype)
        return stack, (read[0].shape[0], read[0].shape[1])

    def silent(self, pictures: Sequence[np.ndarray]) -> tuple[str, ...]:
        """Names of the lights that show nothing on the good samples, whose weight attention is not to learn.

        They are the easiest to rebuild, so it would favour them. One may yet show a defect best, as a grazing light does
        that a polished surface throws past the camera: hence they are held at their share, not left out.
        """
        hold = self.preset != "authors" if self.hold_silent is None else self.hold_silent
        if self.fusion != "attention" or not hold:
            return ()
        shown = np.median([contrasts(lights) for lights in pictures], axis=0)
        return tuple(self.lights[j] for j in np.flatnonzero(shown < SILENT * np.quantile(shown, 0.75)))

    @property
    def holding(self) -> str:
        """What is done with the lights that show nothing."""
        show = "show nothing" if len(self.held) > 1 else "shows nothing"
        return f"{' and '.join(self.held)} {show} on the good samples: weight held at 1/{len(self.lights)}"

    # --- fusion ---

    def new_fusion(self) -> Any:
        """What the fusion learns, one module per scale; empty where it learns nothing. Starts as the mean of the lights."""
        from torch import nn

        fuse = nn.ModuleDict()
        for i, (c, side) in enumerate(zip(network(self).channels, self.grids, strict=True), 1):
            if self.fusion == "attention":
                inputs = {"global": c * side * side, "pooled": c, "spatial": c}[self.attention]
                layer: Any = nn.Linear(inputs, 1)
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            elif self.fusion == "concat":
                layer = nn.Linear(len(self.lights) * c, c, bias=False)
                with_mean = np.tile(np.eye(c, dtype=np.float32), len(self.lights)) / len(self.lights)
                layer.weight.data.copy_(layer.weight.new_tensor(with_mean))
            else:
                continue
            fuse[f"scale{i}"] = layer
        return fuse

    @property
    def grids(self) -> tuple[int, ...]:
        """Cells per side of each feature map."""
        return tuple(self.image_size // stride for stride in self.strides)

    def parts_of(self, fuse: Any, features: Sequence[Any]) -> tuple[list[Any], Any]:
        """Features (B, J, c, h, w) of each scale -> parts of the same shapes whose sums over J are the fused maps, and
        alpha (scales, B, J), or None without attention. Where each light has its student, the parts are the features."""
        import torch

        if self.fusion == "attention":
            weights = [self.weigh(logits) for logits in self.logits(fuse, features)]  # (B, J, h, w) or (B, J, 1, 1)
            parts = [w[:, :, None] * f for w, f in zip(weights, features, strict=True)]
            return parts, torch.stack([w.mean(dim=(2, 3)) for w in weights])
        lights = features[0].shape[1]
        if self.fusion == "mean":
            return [f / lights for f in features], None
        if self.fusion == "max":
            lit = (torch.arange(lights, device=f.device)[:, None, None, None] for f in features)
            return [f * (f.argmax(dim=1, keepdim=True) == j) for f, j in zip(features, lit, strict=True)], None
        if self.fusion == "concat":
            return [by_light(fuse[f"scale{i}"].weight, f) for i, f in enumerate(features, 1)], None
        return list(features), None

    def logits(self, fuse: Any, features: Sequence[Any]) -> list[Any]:
        """a_j of each scale: (B, J, 1, 1), or (B, J, h, w) with spatial attention."""
        out = []
        for i, f in enumerate(features, 1):
            layer = fuse[f"scale{i}"]
            if self.attention == "spatial":
                out.append(layer(f.movedim(2, -1))[..., 0])
            else:
                seen = f.flatten(2) if self.attention == "global" else f.mean(dim=(3, 4))
                out.append(layer(seen)[..., None])
        return out

    def weigh(self, logits: Any) -> Any:
        """alpha (B, J, ...): softmax over the lights, none below the floor. A light that is held has 1 / J; the others share
        the rest, so equal logits are the mean all the same."""
        import torch

        free = [j for j, name in enumerate(self.lights) if name not in self.held]
        alpha = torch.full_like(logits, 1 / len(self.lights))
        rest = len(free) / len(self.lights) - self.floor * len(free)
        alpha[:, free] = self.floor + rest * logits[:, free].softmax(dim=1)
        return alpha

    def mean_weights(self, fuse: Any, shown: Any, maps_of: Any) -> np.ndarray | None:
        """alpha (scales, J), mean over the training samples."""
        if self.fusion != "attention":
            return None
        weights = [to_numpy(self.parts_of(fuse, maps_of(batch))[1]) for batch in shown(0)]
        return np.concatenate(weights, axis=1).mean(axis=1)

    # --- students ---

    @property
    def apart(self) -> bool:
        """Whether every light has a student of its own."""
        return self.fusion in ("score_mean", "score_max")

    def new_students(self) -> Any:
        from torch import nn

        plan = distillation.plan_for(self.backbone, network(self).channels)
        return nn.ModuleList(distillation.new_student(plan) for _ in (self.lights if self.apart else "1"))

    def targets(self, parts: Sequence[Any]) -> list[list[Any]]:
        """For each student the maps (B, c, h, w) that it is to rebuild."""
        if self.apart:
            return [[p[:, j] for p in parts] for j in range(parts[0].shape[1])]
        return [[p.sum(dim=1) for p in parts]]

    def loss(self, students: Any, parts: Sequence[Any], alpha: Any = None, entropy: float = 0.0) -> Any:
        """Sum over students and scales of 1 - cosine, less the entropy of alpha."""
        total = 0.0
        for student, seen in zip(students, self.targets(parts), strict=True):
            wanted = [f.detach() for f in seen] if self.detach_target else seen
            total = total + sum(distillation.losses(wanted, distillation.rebuild(student, seen)))
        if alpha is not None and entropy:
            total = total + entropy * (alpha * alpha.clamp_min(1e-12).log()).sum(dim=(0, 2)).mean()
        return total

    def maps(self, students: Any, parts: Sequence[Any]) -> tuple[Any, list[list[Any]]]:
        """(maps (students, B, side, side); what each student rebuilt)."""
        import torch

        targets = self.targets(parts)
        rebuilt = [distillation.rebuild(student, seen) for student, seen in zip(students, targets, strict=True)]
        pairs = zip(targets, rebuilt, strict=True)
        maps = [distillation.anomaly_maps(t, g, self.image_size, self.sigma, align_corners=False) for t, g in pairs]
        return torch.stack(maps), rebuilt

    def recipe(self, device: str) -> tuple[Recipe, float, float]:
        """(how to train on "cpu" or "cuda", learning rate of the attention, weight of its entropy)."""
        preset = ("ours" if device == "cuda" else "small") if self.preset == "auto" else self.preset
        chosen = dict(RECIPES[preset])
        if self.steps is not None or self.epochs is not None:
            chosen |= {"steps": self.steps, "epochs": self.epochs if self.steps is None else None}
        if self.lr is not None:
            chosen["lr"] = self.lr
        slow, even = (chosen["lr"], 0.0) if preset == "authors" else (1e-4, 0.01)
        return (
            Recipe(**chosen, seed=self.seed),
            slow if self.attention_lr is None else self.attention_lr,
            even if self.entropy is None else self.entropy,
        )

    def ready(self) -> tuple[Any, Any, Any]:
        """(the trained students, the trained fusion, their device), built once from what was learnt."""
        kept = self.__dict__.get("_ready")
        if kept is None or kept[0] is not self.students:
            device = training_device(self.device)  # says what to install where torch is missing
            import torch

            torch.set_num_threads(self.threads or min(torch.get_num_threads(), cores()))
            students = load_parameters(self.new_students(), self.students).to(device)
            fuse = load_parameters(self.new_fusion(), self.fuse).to(device)
            kept = self.__dict__["_ready"] = (self.students, students, fuse, device)
        return kept[1:]

    # --- explanation ---

    def shares(
        self, parts: Sequence[Any], rebuilt: Sequence[Any], values: np.ndarray, peak: tuple[int, int]
    ) -> np.ndarray | None:
        """(J,) what each light gives to the map at its peak; the sum is the value there. None where one picture is seen.

        parts (1, J, c, h, w), rebuilt (1, c, h, w), per scale; values (students, side, side): the maps of the students.
        """
        if self.fusion in ("single", "image_mean"):
            return None
        if self.apart:
            return values[:, peak[0], peak[1]]
        given = np.zeros(parts[0].shape[1])
        for light, grid in enumerate(contributions(parts, rebuilt)):
            for scale in grid:
                down, across = (smooth_matrix(n, self.image_size, self.sigma) for n in scale.shape)
                given[light] += down[peak[0]] @ scale @ across[peak[1]]
        return given

    def reasons(self, shares: np.ndarray | None, alpha: np.ndarray | None) -> tuple[Reason, ...]:
        """Which light showed what stands out most and, with attention, what weight (scales, J) it had."""
        if shares is None or len(shares) < 2:
            return ()
        positive = np.maximum(shares, 0)
        positive = positive / max(positive.sum(), np.finfo(float).tiny)
        out = [self.reason("Seen under", positive, "lights")]
        if alpha is not None:
            out.append(self.reason("Weights", alpha.mean(axis=0), "attention"))
        return tuple(out)

    def reason(self, what: str, shares: np.ndarray, rule: str) -> Reason:
        by_light = dict(zip(self.lights, shares.tolist(), strict=True)) if shares.any() else {}
        return Reason(listed(what, self.lights, shares), rule, shares=by_light)


def contrasts(lights: np.ndarray) -> np.ndarray:
    """(J, H, W, 3) -> (J,): standard deviation between means of 4 x 4 pixels, in [0, 0.5]; sensor noise hardly counts."""
    count, height, width = (n // k for n, k in zip(lights.shape[:3], (1, 4, 4), strict=True))
    cells = to_float(lights).reshape(count, height, 4, width, 4, 3).mean(axis=(2, 4))
    return cells.std(axis=(1, 2)).mean(axis=-1)


def by_light(weight: Any, features: Any) -> Any:
    """A 1x1 convolution (c, J c) of stacked lights, light by light: features (B, J, c, h, w) -> parts that sum to it."""
    import torch

    lights, c = features.shape[1:3]
    return torch.einsum("ojc,bjchw->bjohw", weight.reshape(c, lights, c), features)


def contributions(parts: Sequence[Any], rebuilt: Sequence[Any]) -> list[list[np.ndarray]]:
    """For each light, for each scale (h, w): its part of 1 - cos(F, G), where F = sum of parts, for one sample.

    1 - cos(F, G) = F . (F / |F| - G / |G|) / |F|, which is linear in the first F, so the parts share it exactly.
    """
    from torch.nn.functional import normalize

    scales = []
    for part, g in zip(parts, rebuilt, strict=True):
        f = part.sum(dim=1)
        away = normalize(f, dim=1) - normalize(g, dim=1)
        length = f.norm(dim=1, keepdim=True).clamp_min(1e-12)
        scales.append(to_numpy((part[0] * away).sum(dim=1) / length[0]))
    return [[scale[light] for scale in scales] for light in range(parts[0].shape[1])]


def listed(what: str, lights: Sequence[str], shares: np.ndarray) -> str:
    """'Seen under light_2 71 %, light_0 24 %': the largest first, small ones left out."""
    order = [j for j in np.argsort(-shares, kind="stable") if shares[j] >= SHOWN]
    named = ", ".join(f"{lights[j]} {100 * shares[j]:.0f} %" for j in order)
    return f"{what} {named or 'no single light'}"


DETECTOR = AFRD
