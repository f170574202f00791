"""Reverse distillation, in the paper's letters: teacher E, one-class embedding (OCE), student decoder D.

Deng and Li 2022, "Anomaly Detection via Reverse Distillation from One-Class Embedding",
https://arxiv.org/abs/2201.10703
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..backbones import Device, Engine, network
from ..detector import Detector
from ..errors import WrongInput
from ..images import resize
from ..parts import distillation
from ..parts.batches import ahead, batches
from ..parts.grids import resize_map, to_numpy
from ..parts.sizes import parse_bytes
from ..parts.threads import cores
from ..parts.train import Recipe, load_parameters, parameters_of, seeded, train, training_device
from ..types import Card, Prediction, Reported, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="Reverse distillation",
    paper="https://arxiv.org/abs/2201.10703",
    year=2022,
    venue="CVPR",
    summary="A student rebuilds a frozen network's features from a narrow code; it has learnt to do so for good pictures.",
    repo="hq-deng/RD4AD",
    code_licence="MIT",
    fidelity="parity",
    family="distillation",
    settings=("full-shot",),
    scope="single",
    normals=(2, 200),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural", "semantic"),
    focus="any",
    backbone="wide_resnet50_2, strides 4, 8, 16 @ 256",
    trains="gradient",
    fit_cost="F3",
    predict_cost="P1",
    gpu="fit",
    cpu_fit="F2",
    stored_mb=15.5,
    extras=("torch",),
    weights=(),
    pose="small",
    external=(),
    determinism="seeded",
    differs="the embedded backbone is the default, its student is built of ResNet18's blocks (paper: WideResNet50 with "
    "ImageNet weights, which is mirrored here too, 335 MB saved); on a CPU the training is cut to the preset 'small' "
    "(paper: 200 epochs, preset='published'); pictures are resized with an antialiased bilinear filter; the published "
    "embedding's unused layer is left out",
    pitfalls=(
        "batch norm learns from few pictures: with less than fifty the score moves by a point or two between epochs",
        "without a GPU a fit takes minutes; patchcore is as good after seconds",
        "large defects may be rebuilt together with what is around them",
    ),
    reported=(
        Reported("mvtec", "full-shot", "image_auroc", 98.5, "paper"),
        Reported("mvtec", "full-shot", "pixel_auroc", 97.8, "paper"),
        Reported("mvtec", "full-shot", "aupro", 93.9, "paper"),
        Reported("rad", "full-shot", "image_auroc", 97.6, "third-party"),
        Reported("rad", "full-shot", "pixel_auroc", 97.1, "third-party"),
    ),
    aliases=("rd4ad", "reverse-distillation"),
)

LENGTH: dict[str, dict[str, Any]] = {"published": {"epochs": 200}, "small": {"steps": 150}}


@dataclass
class RD(Detector):
    """Features of good pictures, rebuilt from a code; the score is how far the rebuilt ones point elsewhere.

    preset: how long to train: "published" is 200 epochs, "small" 150 steps; "auto" is the former on a GPU, the latter on
        a CPU. epochs, steps: other lengths, in place of the preset's; steps counts before epochs.
    batch_size: pictures per step. lr: learning rate of Adam, whose betas are 0.5 and 0.999.
    sigma: Gaussian blur of the map, in pixels of the resized picture. image_size: pixels, a multiple of 32, 64 or more.
    limit_memory: bytes, or text such as `1GB`, that the teacher's features may take while training on a CPU; where they
        need more they are computed again in every step.
    """

    backbone: str = "tiny"
    image_size: int = 256
    preset: Literal["auto", "published", "small"] = "auto"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 16
    lr: float = 0.005
    sigma: float = 4.0
    limit_memory: int | str = "1GB"
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    strides: ClassVar[tuple[int, ...]] = distillation.STRIDES
    learned: ClassVar[tuple[str, ...]] = ("weights", "student", "trained")

    def fit(self, samples: Iterable[Sample]) -> Self:
        device = training_device(self.device)
        distillation.check_sizes("RD", self.image_size, self.batch_size)
        pictures = list(ahead(self.picture, samples))
        if len(pictures) < 2:
            raise WrongInput(f"RD needs at least 2 normal pictures, better 200; got {len(pictures)}.")
        teacher = network(self, learn=distillation.as_samples(pictures))
        with seeded(self.seed):
            student = self.new_student().to(device)
        shown, maps_of = distillation.lessons(
            teacher, pictures, batch=self.batch_size, seed=self.seed, keep=parse_bytes(self.limit_memory), device=device
        )

        def loss(batch: Any) -> Any:
            features = maps_of(batch)
            return sum(distillation.losses(features, distillation.rebuild(student, features)))

        data = distillation.named(pictures, teacher.fingerprint)
        done = train(loss, student, shown, self.recipe(device.type), data=data)
        self.student = parameters_of(student)
        self.trained = {"steps": done.steps, "loss": done.loss}
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        teacher, (student, device) = network(self), self.ready_student()
        for batch in batches(samples, (self.image_size, self.image_size), self.batch_size):
            features = distillation.teach(teacher, batch.images, device)
            rebuilt = distillation.rebuild(student, features)
            maps = distillation.anomaly_maps(features, rebuilt, self.image_size, self.sigma, align_corners=True)
            for sample, values, picture in zip(batch.samples, to_numpy(maps), batch.sizes, strict=True):
                yield Prediction(sample.id, float(values.max()), resize_map(values, picture))

    def state(self) -> str:
        if not self.fitted:
            return ""
        return (
            f"The student was trained for {self.trained['steps']} steps; what it rebuilds of good pictures differs from "
            f"the original by {self.trained['loss']:.3g} (1 - cosine, sum of three scales)."
        )

    def recipe(self, device: str) -> Recipe:
        """How to train on "cpu" or "cuda"."""
        if self.steps is not None:
            length: dict[str, Any] = {"steps": self.steps}
        elif self.epochs is not None:
            length = {"epochs": self.epochs}
        else:
            length = LENGTH[("published" if device == "cuda" else "small") if self.preset == "auto" else self.preset]
        return Recipe(**length, lr=self.lr, betas=(0.5, 0.999), seed=self.seed)

    def picture(self, sample: Sample) -> np.ndarray:
        """(H, W, 3), resized."""
        return resize(sample.image(), (self.image_size, self.image_size))

    def new_student(self) -> Any:
        """An untrained student for the teacher."""
        return distillation.new_student(distillation.plan_for(self.backbone, network(self).channels))

    def ready_student(self) -> tuple[Any, Any]:
        """(the trained student, its device), built once from what was learnt."""
        kept = self.__dict__.get("_student")
        if kept is None or kept[0] is not self.student:
            device = training_device(self.device)  # says what to install where torch is missing
            import torch

            torch.set_num_threads(self.threads or min(torch.get_num_threads(), cores()))
            student = load_parameters(self.new_student(), self.student).to(device)
            kept = self.__dict__["_student"] = (self.student, student, device)
        return kept[1:]


DETECTOR = RD
