"""APRIL-GAN: CLIP finds defects by language; linear layers, learnt on other things, let its patches speak it too.

Chen, Han, Zhang 2023, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND
Workshop Challenge Tracks 1&2", https://arxiv.org/abs/2305.17382

Four blocks of the frozen picture tower are tapped. A linear layer for each takes its patch tokens to the space that
pictures share with sentences, Z = fc(tokens), and the map of a layer is the share of "abnormal" in

    softmax(100 cos(Z, T)),    T (E, 2): mean of 245 sentences on a good thing, of 175 on a damaged one.

The map of a picture is the sum over the layers. Good pictures, where there are any, add for every tapped block the
distance 1 - cos of each patch to the nearest one of theirs. The image score is plain CLIP and knows nothing of the
linear layers. B pictures, (h, w) patches, N = h w, C width of the tower, E the shared space, S side of the picture.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .. import __version__
from ..backbones import Device
from ..backbones._onnx import cache_folder
from ..backbones.clip import Precision, load, tokenise
from ..datasets import card as dataset_card
from ..detector import Detector
from ..errors import WrongInput
from ..parts.auxiliary import auxiliary_batches, find_adapter, read_adapter, require_shapes, write_adapter
from ..parts.batches import batches
from ..parts.grids import resize_map
from ..parts.losses import dice, focal
from ..parts.prompts import ABNORMAL_BROKEN, NORMAL, compose, name_of, unit
from ..parts.train import (
    Recipe,
    Report,
    Trained,
    load_parameters,
    parameters_of,
    seeded,
    train,
    training_device,
)  # fmt: skip
from ..types import Card, Prediction, Reported, Sample, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

    from ..backbones._clip import Clip

CARD = Card(
    title="APRIL-GAN",
    paper="https://arxiv.org/abs/2305.17382",
    year=2023,
    venue="CVPR workshop VAND",
    summary="CLIP with sentences on good and damaged things, and linear layers for its patches that were learnt on "
    "annotated pictures of other things; a few good pictures sharpen the map.",
    repo="ByChelsea/VAND-APRIL-GAN",
    code_licence="MIT",
    fidelity="parity",
    family="vision-language",
    settings=("zero-shot", "few-shot"),
    scope="open",
    normals=(0, 4),
    abnormals="none",
    auxiliary=("annotated-ad",),
    text="class-name",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="CLIP ViT-L/14-336 @ 518",
    trains="auxiliary",
    fit_cost="F0",
    predict_cost="P2",
    gpu="yes",
    stored_mb=102.3,
    extras=("torch", "clip"),
    weights=(
        Weights(
            title="CLIP ViT-L/14-336 of OpenAI",
            files=("ViT-L-14-336px.pt", "timm/vit_large_patch14_clip_336.openai"),
            source="https://github.com/openai/CLIP",
            licence="MIT",
            commercial=True,
        ),
        Weights(
            title="APRIL-GAN's linear layers",
            files=("mvtec_pretrained.pth", "visa_pretrained.pth"),
            source="https://github.com/ByChelsea/VAND-APRIL-GAN",
            licence="MIT",
            commercial=None,
        ),
    ),
    pose="free",
    external=(),
    determinism="exact",
    differs="the few-shot image score takes the peak of the map as a share of its highest possible value, so that a "
    "picture is judged by itself (official: min-max over all test pictures of the class, image_norm='class_minmax'); at "
    "most `shots` references of a category, drawn without replacement (official: with); everything runs in float32 "
    "unless precision says otherwise, and then only the tower does (official: float16 autocast, but for the memory); "
    "training uses Dice per picture in every batch (official: per row of pixels in a last batch of one); pictures "
    "without a mask are left out of training; samples of the linear layers' training set are not refused",
    pitfalls=(
        "the published layers are named after what they were trained on: mvtec_pretrained.pth on MVTec AD leaks",
        "the image score of zero-shot use is plain CLIP: training the layers does not change it",
        "a class name that says nothing (pcb1, 01) costs accuracy; `object` gives a better one",
        "scores with and without references are on different scales; calibrate after fit",
        "one threshold per category: maps of different categories are not on one scale",
    ),
    reported=(
        Reported("mvtec", "zero-shot", "image_auroc", 86.1, "third-party"),
        Reported("mvtec", "zero-shot", "pixel_auroc", 87.6, "third-party"),
        Reported("mvtec", "zero-shot", "aupro", 44.0, "third-party"),
        Reported("mvtec", "zero-shot", "image_f1max", 90.4, "third-party"),
        Reported("mvtec", "zero-shot", "pixel_f1max", 42.3, "third-party"),
        Reported("visa", "zero-shot", "image_auroc", 77.4, "third-party"),
        Reported("visa", "zero-shot", "image_f1max", 78.6, "third-party"),
        Reported("visa", "zero-shot", "pixel_auroc", 93.8, "third-party"),
        Reported("visa", "zero-shot", "pixel_f1max", 32.6, "third-party"),
        Reported("visa", "zero-shot", "aupro", 86.5, "third-party"),
        Reported("mvtec", "zero-shot", "image_ap", 93.6, "third-party"),
        Reported("mvtec", "zero-shot", "pixel_ap", 39.1, "third-party"),
        Reported("visa", "zero-shot", "image_ap", 80.9, "third-party"),
        Reported("visa", "zero-shot", "pixel_ap", 26.2, "third-party"),
        Reported("rad", "zero-shot", "image_auroc", 82.9, "third-party"),
    ),
    aliases=("vand",),
)

PHOTOS = (
    "a bad photo of a", "a low resolution photo of the", "a bad photo of the", "a cropped photo of the",
    "a bright photo of a", "a dark photo of the", "a photo of my", "a photo of the cool", "a close-up photo of a",
    "a black and white photo of the", "a bright photo of the", "a cropped photo of a", "a jpeg corrupted photo of a",
    "a blurry photo of the", "a photo of the", "a good photo of the", "a photo of one", "a close-up photo of the",
    "a photo of a", "a low resolution photo of a", "a photo of a large", "a blurry photo of a",
    "a jpeg corrupted photo of the", "a good photo of a", "a photo of the small", "a photo of the large",
    "a black and white photo of a", "a dark photo of a", "a photo of a cool", "a photo of a small",
)  # fmt: skip
SCENES = ("there is a", "there is the", "this is a", "this is the", "this is one")
TEMPLATES = (*(f"{photo} {{}}." for photo in PHOTOS), *(f"{scene} {{}} in the scene." for scene in SCENES))

RELEASED = {"visa_pretrained.pth": "", "mvtec_pretrained.pth": ""}  # no published checksum; the sizes are checked
SOURCE = "https://github.com/ByChelsea/VAND-APRIL-GAN (exps/pretrained)"
SCALE = 100.0  # of a cosine in the softmax
FARTHEST = 2.0  # 1 - cos of opposite vectors


@dataclass
class AprilGan(Detector):
    """Sentences against the projected patches of CLIP; with references, also the distance to the nearest good patch.

    adapter: file of the linear layers, one of the authors' or written by `train_auxiliary`; "" is what was trained here or,
        without that, a published file in the cache folder; "random" is the start of a training, which knows nothing.
    image_size: S, pixels, a multiple of the patch size of the backbone.
    layers: blocks to tap, 1 is the first, each with its linear layer; () is the quarters of the depth (6, 12, 18, 24).
    few_shot_layers: blocks whose tokens are compared with the references; () is `layers`.
    shots: references kept of each category; of more pictures, `fit` draws as many by the seed.
    image_norm: how the peak of the map enters the image score where there are references: "fixed" divides it by the
        highest value a map can have; "class_minmax" brings it to [0, 1] over all pictures of a category given to one
        `predict`, which then reads all of them before it answers and keeps their maps (transductive, as published).
    object: what the thing is called; "" is its category, else "object".
    activation: "auto" is the authors': exact GELU at any other size than the one the backbone was trained on, QuickGELU
        at that one. antialias: of the bicubic resize of the positions. precision: of the picture tower.
    """

    backbone: str = "clip:ViT-L-14-336"
    adapter: str = ""
    image_size: int = 518
    layers: tuple[int, ...] = ()
    few_shot_layers: tuple[int, ...] = ()
    shots: int = 4
    image_norm: Literal["fixed", "class_minmax"] = "fixed"
    object: str = ""
    activation: Literal["auto", "gelu", "quick_gelu"] = "auto"
    antialias: bool = True
    precision: Precision = "float32"
    batch_size: int = 8
    device: Device = "auto"
    threads: int | None = None
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("weights", "fc", "memory")

    def __post_init__(self) -> None:
        for name in ("image_size", "shots", "batch_size"):
            if getattr(self, name) < 1:
                raise WrongInput(f"AprilGan {name}={getattr(self, name)} is too low; it must be at least 1.")
        for name in ("layers", "few_shot_layers"):
            taps = getattr(self, name)
            if any(tap < 1 for tap in taps) or list(taps) != sorted(set(taps)):
                raise WrongInput(f"AprilGan {name}={taps} must be block numbers from 1 up, each above the one before.")
        # sha256 of the backbone that the rest was made with, as {"fingerprint": ...}
        self.weights: dict[str, str] | None = None
        # linear layers in use: "fc.0.weight" (E, C), "fc.0.bias" (E,), ...
        self.fc: dict[str, np.ndarray] | None = None
        # category -> for each few-shot layer the tokens of its references (k N, C)
        self.memory: dict[str, list[np.ndarray]] | None = None

    @property
    def needs_fit(self) -> bool:
        return False

    @property
    def learns(self) -> bool:
        return True

    @property
    def fitted(self) -> bool:
        return True

    def unfitted(self) -> Self:
        """Without references; the linear layers stay, as they know nothing of the things to judge."""
        fresh = super().unfitted()
        if self.fc is not None:
            fresh.fc, fresh.weights = self.fc, self.weights
        fresh.__dict__.update({k: v for k, v in self.__dict__.items() if k in ("_clip", "_texts", "_linear")})
        return fresh

    def state(self) -> str:
        held = {category or "object": len(tokens[0]) for category, tokens in (self.memory or {}).items()}
        told = ", ".join(f"{rows} patches of {category}" for category, rows in held.items())
        return f"It compares with {told} from good pictures." if told else ""

    # --- references ---------------------------------------------------------------------------------------------------

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Keep the tokens of up to `shots` good pictures of each category; nothing is trained.

        Raises:
            WrongInput: no samples. MissingWeights, MissingExtra: as the backbone and `adapter`.
        """
        found: dict[str, list[Sample]] = {}
        for sample in samples:
            found.setdefault(sample.category, []).append(sample)
        if not found:
            raise WrongInput("AprilGan got no reference to fit on; give good pictures, or predict without fit.")
        self.linear_layers()  # what is missing is said before the work
        rng = np.random.default_rng(self.seed)
        memory = {}
        for category, alike in found.items():
            drawn = sorted(rng.choice(len(alike), min(self.shots, len(alike)), replace=False))
            memory[category] = self.tokens_of([alike[i] for i in drawn])
        self.memory = memory
        self.__dict__.pop("_banks", None)
        return self

    def tokens_of(self, references: Sequence[Sample]) -> list[np.ndarray]:
        """For each few-shot layer (k N, C) float32, one reference after the other."""
        clip = self.clip()
        size = (self.image_size, self.image_size)
        parts = [
            self.bank(clip.normalise(batch.images))
            for batch in batches(references, size, self.batch_size, interpolation="bicubic")
        ]
        return [np.concatenate([rows.cpu().numpy() for rows in layer]) for layer in zip(*parts, strict=True)]

    def bank_of(self, category: str) -> list[Tensor]:
        """What the patches of a category are compared with, on the device. References of one category serve for all."""
        import torch

        memory = self.memory or {}
        if category not in memory and len(memory) > 1:
            raise WrongInput(
                f"AprilGan has references of {', '.join(sorted(memory))}, none of {category or 'unnamed things'!r}; "
                "fit on good pictures of it too, or of one category alone."
            )
        key = category if category in memory else next(iter(memory))
        banks = self.__dict__.setdefault("_banks", {})
        if key not in banks:
            banks[key] = [torch.as_tensor(np.asarray(t)).to(self.clip().device) for t in memory[key]]
        return banks[key]

    # --- judging ------------------------------------------------------------------------------------------------------

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        judged = self.judge(samples)
        if not self.memory:
            yield from (prediction for prediction, _, _ in judged)
        elif self.image_norm == "fixed":
            yield from (replace(p, score=(p.score + peak / self.highest()) / 2) for p, peak, _ in judged)
        else:
            everything = list(judged)
            scores = class_minmax(
                [prediction.score for prediction, _, _ in everything],
                [peak for _, peak, _ in everything],
                [category for _, _, category in everything],
            )
            yield from (replace(p, score=score) for (p, _, _), score in zip(everything, scores, strict=True))

    def judge(self, samples: Iterable[Sample]) -> Iterator[tuple[Prediction, float, str]]:
        """For each sample a prediction with its zero-shot score, the highest value of the map, and its category."""
        clip = self.clip()
        for batch in batches(samples, (self.image_size, self.image_size), self.batch_size, interpolation="bicubic"):
            texts = [self.text(name_of(s, self.object)) for s in batch.samples]
            banks = [self.bank_of(s.category) for s in batch.samples] if self.memory else None
            stages = self.trace(clip.normalise(batch.images), texts, banks)
            maps = stages["map_zero_shot" if banks is None else "map_few_shot_total"].cpu().numpy()
            scores = stages["score_zero_shot"].tolist()
            for sample, picture, values, score in zip(batch.samples, batch.sizes, maps, scores, strict=True):
                yield Prediction(sample.id, score, resize_map(values, picture)), float(values.max()), sample.category

    def highest(self) -> float:
        """No value of a map can exceed this."""
        zero_shot, few_shot = self.taps()
        return len(zero_shot) + FARTHEST * len(few_shot) * bool(self.memory)

    def trace(
        self, pixels: Tensor, texts: Sequence[Tensor], banks: Sequence[Sequence[Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Every stage of a batch by name.

        pixels: (B, 3, S, S), normalised. texts: for each picture T (E, 2). banks: for each picture what its patches are
            compared with, one (rows, C) per few-shot layer.

        Returns:
            For each zero-shot layer l: tokens.{l} (B, 1 + N, C), Z.{l} (B, N, E) not normalised, logits.{l} (B, N, 2)
            and map.{l} (B, S, S) in [0, 1]; map_zero_shot (B, S, S), their sum; image_features (B, E), not normalised;
            score_zero_shot (B,) in [0, 1]. With banks, for each few-shot layer m: few_shot_map.{m} (B, S, S) in [0, 2];
            and map_few_shot_total (B, S, S), the sum of all. Higher is stranger.
        """
        import torch

        zero_shot, few_shot = self.taps()
        with torch.no_grad():
            last, tapped = self.see(pixels)
            T = torch.stack(list(texts))  # (B, E, 2)
            size = pixels.shape[2:]
            out: dict[str, Tensor] = {}
            projected = self.project(self.linear_layers(), [tapped[layer] for layer in zero_shot], T)
            for i, (layer, (Z, logits)) in enumerate(zip(zero_shot, projected, strict=True)):
                out[f"tokens.{i}"], out[f"Z.{i}"], out[f"logits.{i}"] = tapped[layer], Z, logits
                out[f"map.{i}"] = self.enlarge(logits, size).softmax(dim=1)[:, 1]
            out["map_zero_shot"] = sum(out[f"map.{i}"] for i in range(len(zero_shot)))
            out["image_features"] = self.clip().pool(last).float()
            logits = SCALE * unit(out["image_features"])[:, None] @ T  # (B, 1, 2)
            out["score_zero_shot"] = logits[:, 0].softmax(dim=1)[:, 1]
            if banks is None:
                return out
            for m, layer in enumerate(few_shot):
                distances = [
                    nearest(patches, bank[m]) for patches, bank in zip(tapped[layer][:, 1:], banks, strict=True)
                ]
                out[f"few_shot_map.{m}"] = self.enlarge(torch.stack(distances)[..., None], size)[:, 0]
            total = sum(out[f"few_shot_map.{m}"] for m in range(len(few_shot)))
            out["map_few_shot_total"] = out["map_zero_shot"] + total
            return out

    def bank(self, pixels: Tensor) -> list[Tensor]:
        """Normalised references (k, 3, S, S) to the tokens (k N, C) of each few-shot layer."""
        import torch

        with torch.no_grad():
            _, tapped = self.see(pixels)
        return [tapped[layer][:, 1:].flatten(0, 1) for layer in self.taps()[1]]

    def see(self, pixels: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The last tokens of the picture tower, and those of the tapped blocks by number, (B, 1 + N, C) float32."""
        clip = self.clip()
        wanted = sorted({*self.taps()[0], *self.taps()[1]})
        with clip.autocast():
            last, tapped = clip.vision(clip.embed(pixels), taps=wanted)
        return last, {layer: tokens.float() for layer, tokens in zip(wanted, tapped, strict=True)}

    def project(self, linear: Any, tokens: Sequence[Tensor], T: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each layer Z (B, N, E) and logits (B, N, 2) of its tokens; T (B, E, 2). Gradients pass through."""
        for fc, layer in zip(linear["fc"], tokens, strict=True):
            Z = fc(layer[:, 1:])
            yield Z, SCALE * unit(Z) @ T

    def enlarge(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """(B, N, channels) of a square grid -> (B, channels, *size), bilinear with aligned corners."""
        import torch.nn.functional as F

        side = math.isqrt(values.shape[1])
        grid = values.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(grid, tuple(size), mode="bilinear", align_corners=True)

    # --- language -----------------------------------------------------------------------------------------------------

    def text(self, name: str) -> Tensor:
        """T (E, 2) of a thing: unit columns normal, abnormal. Made once for each name."""
        import torch

        held = self.__dict__.setdefault("_texts", {})
        if name not in held:
            with torch.no_grad():
                groups = [unit(unit(self.encode(group)).mean(dim=0)) for group in sentences(name)]
            held[name] = torch.stack(groups, dim=1)
        return held[name]

    def encode(self, group: Sequence[str]) -> Tensor:
        """Sentences to features (n, E), not normalised."""
        clip = self.clip()
        with clip.autocast():
            return clip.text(tokenise(group, clip.shape.context)).float()

    # --- training on annotated pictures of other things ---------------------------------------------------------------

    def train_auxiliary(
        self,
        samples: Iterable[Sample],
        *,
        epochs: int = 3,
        lr: float = 1e-3,
        batch: int = 8,
        mosaic: float | Mapping[str, float] | None = None,
        out: str | Path | None = None,
        checkpoints: str | Path | None = None,
        report: Report | None = None,
    ) -> Trained:
        """Learn the linear layers from normal and anomalous samples with masks, and use them from now on.

        CLIP stays as it is. The samples must not be of the things, nor of the data set, that are to be judged; one that
        is anomalous and has no mask is left out.

        epochs: published are 3 for MVTec AD and 15 for VisA.
        mosaic: as in `auxiliary_batches`; None is 0.2 for MVTec AD's categories, 0 for others.
        out: .safetensors file to write, with facts about the training inside, for `adapter`. checkpoints: a folder; what
            an interrupted training of the same settings and samples left there is continued.

        Raises:
            WrongInput: no usable sample, or one without a label. Diverged: the loss is not finite.
        """
        device = training_device(self.device)
        import torch

        usable = [s for s in samples if s.label != 1 or s.mask is not None]
        if mosaic is None:
            mosaic = dict.fromkeys(dataset_card("mvtec").categories, 0.2)
        source = auxiliary_batches(
            usable, self.image_size, batch, seed=self.seed, mosaic=mosaic, name=lambda s: name_of(s, self.object)
        )
        clip = self.clip().to(device)
        linear = self.start().to(device)

        def loss(group: tuple[np.ndarray, ...]) -> Tensor:
            images, masks, _, names, _ = group
            texts = torch.stack([self.text(str(name)) for name in names])
            maps = self.training_maps(linear, clip.normalise(images), texts)
            return sum(losses(maps, torch.as_tensor(masks, device=device)).values())

        facts: dict[str, Any] = {
            "method": self.method, "backbone": self.backbone, "clip": clip.fingerprint, "layers": self.taps()[0],
            "image_size": self.image_size, "precision": self.precision, "activation": self.activation, "epochs": epochs,
            "lr": lr, "batch": batch, "mosaic": mosaic, "seed": self.seed, "object": self.object,
            "trained_on": dict(sorted(Counter(s.category or "object" for s in usable).items())),
            "anomalens": __version__,
        }  # fmt: skip
        known = json.dumps([facts, [[s.id, s.label, s.category] for s in usable]], sort_keys=True)
        recipe = Recipe(epochs=epochs, lr=lr, betas=(0.5, 0.999), seed=self.seed)
        trained = train(
            loss, linear, source, recipe, folder=checkpoints, data=hashlib.sha256(known.encode()).hexdigest(),
            report=report,
        )  # fmt: skip
        self.fc, self.weights = parameters_of(linear), {"fingerprint": clip.fingerprint}
        self.__dict__["_linear"] = linear.requires_grad_(False)
        if out:
            write_adapter(Path(out), linear.state_dict(), {**facts, "loss": trained.loss, "seconds": trained.seconds})
        return trained

    def training_maps(self, linear: Any, pixels: Tensor, T: Tensor) -> list[Tensor]:
        """For each layer (B, 2, S, S), the shares of normal and abnormal; gradients reach the linear layers only."""
        import torch

        with torch.no_grad():
            _, tapped = self.see(pixels)
        projected = self.project(linear, [tapped[layer] for layer in self.taps()[0]], T)
        return [self.enlarge(logits, pixels.shape[2:]).softmax(dim=1) for _, logits in projected]

    # --- networks -----------------------------------------------------------------------------------------------------

    def clip(self) -> Clip:
        """Both towers, frozen, built once.

        Raises:
            MissingExtra, MissingWeights, UnknownName: as `load`. WrongInput: a size or block that they do not have, or
            other weights than those that something was learnt with.
        """
        if "_clip" in self.__dict__:
            return self.__dict__["_clip"]
        activation: Any = "gelu" if self.activation == "auto" else self.activation
        how = {
            "antialias": self.antialias,
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
        }
        clip = load(self.backbone, activation=activation, **how)  # type: ignore[arg-type]
        if self.activation == "auto" and clip.shape.size == self.image_size:
            clip = load(self.backbone, activation="quick_gelu", **how)  # type: ignore[arg-type]
        self.use(clip)
        known = (self.weights or {}).get("fingerprint", clip.fingerprint)
        if known != clip.fingerprint:
            del self.__dict__["_clip"]
            raise WrongInput(
                f"this april-gan learnt with other weights of {self.backbone} (sha256 {known[:12]}..., here "
                f"{clip.fingerprint[:12]}...); use the same weights, or fit and train again."
            )
        return clip

    def use(self, clip: Clip) -> None:
        """Look through these towers."""
        shape = clip.shape
        if self.image_size % shape.patch:
            near = max(1, round(self.image_size / shape.patch)) * shape.patch
            raise WrongInput(
                f"AprilGan image_size={self.image_size} does not fit patches of {shape.patch} pixels; choose {near}."
            )
        self.__dict__["_clip"] = clip
        deepest = max(max(taps) for taps in self.taps())
        if deepest > shape.layers:
            del self.__dict__["_clip"]
            raise WrongInput(
                f"AprilGan taps block {deepest} of a tower of {shape.layers}; give layers from 1 to {shape.layers}."
            )

    def taps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks of the zero-shot map, and of the comparison with references."""
        depth = self.clip().shape.layers
        layers = self.layers or tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)}))
        return layers, self.few_shot_layers or layers

    def start(self) -> nn.Module:
        """Linear layers as they are before training, by the seed."""
        shape = self.clip().shape
        from torch import nn  # after CLIP, which says what to install

        with seeded(self.seed):
            layers = [nn.Linear(shape.width, shape.embed) for _ in self.taps()[0]]
        return nn.ModuleDict({"fc": nn.ModuleList(layers)})

    def linear_layers(self) -> nn.Module:
        """One for each zero-shot layer, C -> E: trained here or saved, else as `adapter` says; from then on its own."""
        if "_linear" not in self.__dict__:
            linear = self.start()
            if self.fc is not None:
                load_parameters(linear, self.fc)
            elif self.adapter != "random":
                path = self.adapter_file()
                tensors, facts = read_adapter(path)
                require_shapes(tensors, {k: tuple(v.shape) for k, v in linear.state_dict().items()}, path)
                if facts.get("clip", self.clip().fingerprint) != self.clip().fingerprint:
                    raise WrongInput(
                        f"the adapter {path} was trained on other weights than those of {self.backbone} here (sha256 "
                        f"{facts['clip'][:12]}..., here {self.clip().fingerprint[:12]}...); use the same weights."
                    )
                linear.load_state_dict(tensors)
            self.fc, self.weights = parameters_of(linear), {"fingerprint": self.clip().fingerprint}
            self.__dict__["_linear"] = linear.requires_grad_(False).to(self.clip().device).eval()
        return self.__dict__["_linear"]

    def adapter_file(self) -> Path:
        """Where the linear layers are; see `find_adapter` for what it raises."""
        return find_adapter(self.adapter, RELEASED, folder=cache_folder() / "weights", source=SOURCE, megabytes=12.6)


def sentences(name: str) -> tuple[list[str], list[str]]:
    """245 sentences on a good thing of this name, and 175 on a damaged one."""
    return compose(name, NORMAL, TEMPLATES), compose(name, ABNORMAL_BROKEN, TEMPLATES)


def nearest(patches: Tensor, bank: Tensor) -> Tensor:
    """(N, C) against (rows, C) -> (N,) the smallest 1 - cos, in [0, 2]."""
    return (1 - (unit(patches) @ unit(bank).T).amax(dim=1)).clamp(min=0)


def losses(maps: Sequence[Tensor], masks: Tensor, reduction: Literal["image", "row"] = "image") -> dict[str, Tensor]:
    """ "{l}.focal" and "{l}.dice" of each layer; the loss is their sum.

    maps: for each layer (B, 2, S, S), normal and abnormal. masks: (B, S, S) of 0 and 1. reduction: of `dice`.
    """
    out = {}
    for layer, values in enumerate(maps):
        out[f"{layer}.focal"] = focal(values, masks)
        out[f"{layer}.dice"] = dice(values[:, 1], masks, reduction=reduction)
    return out


def class_minmax(scores: Sequence[float], peaks: Sequence[float], categories: Sequence[str]) -> list[float]:
    """Half the zero-shot score, half the peak of the map on the scale of its category's lowest and highest, 0 to 1.

    Where all peaks of a category are the same, they count as 0.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for peak, category in zip(peaks, categories, strict=True):
        low[category] = min(peak, low.get(category, peak))
        high[category] = max(peak, high.get(category, peak))
    return [
        (score + (peak - low[c]) / ((high[c] - low[c]) or 1.0)) / 2
        for score, peak, c in zip(scores, peaks, categories, strict=True)
    ]


DETECTOR = AprilGan
