"""AdaCLIP: CLIP, taught on annotated pictures of other things to say which patches of a new thing look damaged.

Cao et al. 2024, "AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection",
https://arxiv.org/abs/2407.15795

Both towers of CLIP stay frozen. Learnt are prompts, tokens put into their first blocks, and projections of what comes
out. A prompt is static (the same for every picture) plus dynamic (made from the picture). Where paper and authors' code
differ, this is the code, since the published weights were made with it: text prompts overwrite the words of the
template instead of being put before the sentence, and only the most anomalous patches are clustered.
Shapes: B pictures, S side in pixels, N patches, M prompt tokens, J prompted blocks, L layers looked at, Cv and Ct
widths of the towers, E the dimension that pictures and sentences share, K clusters.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .. import __version__
from ..backbones import Device
from ..backbones._onnx import cache_folder
from ..backbones.clip import Precision, Shape, load, tokenise
from ..datasets import card as dataset_card
from ..detector import Detector
from ..errors import WrongInput, unknown
from ..metrics import pixel as pixel_metrics
from ..parts.auxiliary import auxiliary_batches, find_adapter, read_adapter, require_shapes, write_adapter
from ..parts.batches import batches
from ..parts.grids import blur_matrix, like, resize_map, to_numpy
from ..parts.losses import dice, focal
from ..parts.prompts import ABNORMAL_BROKEN, NORMAL, compose, name_of, unit
from ..parts.train import Recipe, Report, Trained, rank, seeded, train, training_device
from ..types import Card, Prediction, Reported, Sample, Weights

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from ..backbones._clip import Before, Clip

CARD = Card(
    title="AdaCLIP",
    paper="https://arxiv.org/abs/2407.15795",
    year=2024,
    venue="ECCV",
    summary="Finds damage on things it never saw: CLIP with prompts that were learnt on annotated pictures of others.",
    repo="caoyunkang/AdaCLIP",
    code_licence="MIT",
    fidelity="parity",
    family="vision-language",
    settings=("zero-shot",),
    scope="open",
    normals=(0, 0),
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
    stored_mb=42.7,
    extras=("torch", "clip"),
    weights=(
        Weights(
            title="CLIP ViT-L/14-336 of OpenAI",
            files=("timm/vit_large_patch14_clip_336.openai",),
            source="https://github.com/openai/CLIP",
            licence="MIT",
            commercial=True,
        ),
        Weights(
            title="AdaCLIP's prompts and projections",
            files=("pretrained_mvtec_colondb.pth", "pretrained_visa_clinicdb.pth", "pretrained_all.pth"),
            source="https://github.com/caoyunkang/AdaCLIP",
            licence="not stated",
            commercial=None,
        ),
    ),
    pose="free",
    external=(),
    determinism="seeded",
    differs="follows the authors' code where it differs from the paper. Batches of any size with one name per picture "
    "(theirs: one picture); k-means is our own and seeded, and skips empty clusters (theirs: unseeded, NaN on flat "
    "pictures); adapters are loaded strictly; the projections run in float32 at any precision of the towers (theirs: "
    "float16). Training: CLIP is really frozen, steps that are not finite are skipped, pictures without a mask do not "
    "teach the map, a mosaic gets the label of its pictures, the last epoch is kept unless validation is asked for; "
    "recipe='published' trains as they did. Dynamic text prompts without static ones work here and not there",
    pitfalls=(
        "an adapter trained on a data set knows it: judge MVTec AD and ColonDB with pretrained_visa_clinicdb.pth, all "
        "else with pretrained_mvtec_colondb.pth, and nothing published with pretrained_all.pth",
        "the name of the thing matters: give object=... where folders are not called after it",
        "knows damage, not rules: missing, surplus or wrongly placed parts look fine to it",
        "scores are not calibrated between kinds of things; good pictures are needed for a threshold",
        "a picture is squeezed into a square of 518 pixels: defects of a few pixels in large pictures vanish, see `tiled`",
        "two passes of ViT-L and 48 sentences per picture: seconds on a CPU",
    ),
    reported=(
        Reported("mvtec", "zero-shot", "image_auroc", 89.2, "paper", "best-on-test"),
        Reported("mvtec", "zero-shot", "image_f1max", 90.6, "paper", "best-on-test"),
        Reported("visa", "zero-shot", "image_auroc", 85.8, "paper", "best-on-test"),
        Reported("visa", "zero-shot", "image_f1max", 83.1, "paper", "best-on-test"),
        Reported("mpdd", "zero-shot", "image_auroc", 76.0, "paper"),
        Reported("mpdd", "zero-shot", "image_f1max", 82.5, "paper"),
        Reported("btad", "zero-shot", "image_auroc", 88.6, "paper"),
        Reported("btad", "zero-shot", "image_f1max", 88.2, "paper"),
        Reported("kolektor-sdd", "zero-shot", "image_auroc", 97.1, "paper"),
        Reported("kolektor-sdd", "zero-shot", "image_f1max", 90.7, "paper"),
        Reported("dagm", "zero-shot", "image_auroc", 99.1, "paper"),
        Reported("dagm", "zero-shot", "image_f1max", 97.5, "paper"),
        Reported("dtd-synthetic", "zero-shot", "image_auroc", 95.5, "paper"),
        Reported("dtd-synthetic", "zero-shot", "image_f1max", 94.7, "paper"),
        Reported("headct", "zero-shot", "image_auroc", 91.4, "paper"),
        Reported("headct", "zero-shot", "image_f1max", 85.2, "paper"),
        Reported("brain-mri", "zero-shot", "image_auroc", 94.8, "paper"),
        Reported("brain-mri", "zero-shot", "image_f1max", 91.2, "paper"),
        Reported("br35h", "zero-shot", "image_auroc", 97.7, "paper"),
        Reported("br35h", "zero-shot", "image_f1max", 92.4, "paper"),
        Reported("mvtec", "zero-shot", "pixel_auroc", 88.7, "paper", "best-on-test"),
        Reported("mvtec", "zero-shot", "pixel_f1max", 43.4, "paper", "best-on-test"),
        Reported("visa", "zero-shot", "pixel_auroc", 95.5, "paper", "best-on-test"),
        Reported("visa", "zero-shot", "pixel_f1max", 37.7, "paper", "best-on-test"),
        Reported("mpdd", "zero-shot", "pixel_auroc", 96.1, "paper"),
        Reported("mpdd", "zero-shot", "pixel_f1max", 34.9, "paper"),
        Reported("btad", "zero-shot", "pixel_auroc", 92.1, "paper"),
        Reported("btad", "zero-shot", "pixel_f1max", 51.7, "paper"),
        Reported("kolektor-sdd", "zero-shot", "pixel_auroc", 97.7, "paper"),
        Reported("kolektor-sdd", "zero-shot", "pixel_f1max", 54.5, "paper"),
        Reported("dagm", "zero-shot", "pixel_auroc", 91.5, "paper"),
        Reported("dagm", "zero-shot", "pixel_f1max", 57.5, "paper"),
        Reported("dtd-synthetic", "zero-shot", "pixel_auroc", 97.9, "paper"),
        Reported("dtd-synthetic", "zero-shot", "pixel_f1max", 71.6, "paper"),
        Reported("isic", "zero-shot", "pixel_auroc", 89.3, "paper"),
        Reported("isic", "zero-shot", "pixel_f1max", 71.4, "paper"),
        Reported("cvc-colondb", "zero-shot", "pixel_auroc", 90.4, "paper"),
        Reported("cvc-colondb", "zero-shot", "pixel_f1max", 58.2, "paper"),
        Reported("cvc-clinicdb", "zero-shot", "pixel_auroc", 84.4, "paper"),
        Reported("cvc-clinicdb", "zero-shot", "pixel_f1max", 58.2, "paper"),
        Reported("tn3k", "zero-shot", "pixel_auroc", 77.2, "paper"),
        Reported("tn3k", "zero-shot", "pixel_f1max", 41.9, "paper"),
        Reported("mvtec", "zero-shot, the published pretrained_visa_clinicdb.pth", "image_auroc", 90.29, "third-party"),
        Reported("mvtec", "zero-shot, the published pretrained_visa_clinicdb.pth", "pixel_auroc", 89.15, "third-party"),
        Reported("mvtec", "zero-shot, the published pretrained_visa_clinicdb.pth", "pixel_f1max", 41.74, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "image_auroc", 92.0, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "image_f1max", 92.7, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "image_ap", 96.4, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "pixel_auroc", 88.5, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "pixel_f1max", 43.9, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "pixel_ap", 41.0, "third-party"),
        Reported("mvtec", "zero-shot, a reproduction in VisualAD's readme", "aupro", 47.6, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "image_auroc", 79.7, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "image_f1max", 79.6, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "image_ap", 83.2, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "pixel_auroc", 95.1, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "pixel_f1max", 33.8, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "pixel_ap", 29.2, "third-party"),
        Reported("visa", "zero-shot, a reproduction in VisualAD's readme", "aupro", 71.3, "third-party"),
    ),
)

# What the authors published: file, sha256, and what it was trained on. The first one that is there is used.
RELEASED = {
    "pretrained_mvtec_colondb.pth": "be51a42c052bd4cf060e54f503a1f5d0b2a3b899bc8dc2e243042f18b215427e",
    "pretrained_visa_clinicdb.pth": "3deabbbaf1e412cfdfcb42923a500b986f4b9ee96ccbc7a735d89dbc87df44c8",
    "pretrained_all.pth": "33e8d3db1cb4aab030866b8b70a46e10aa27ebf2c23b5463cb07f2574addd98c",
}
TRAINED_ON = dict(
    zip(RELEASED, ("MVTec AD and ColonDB", "VisA and ClinicDB", "the 14 data sets of the paper"), strict=True)
)

TEMPLATES = (
    "a bad photo of a {}.", "a low resolution photo of the {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
)  # fmt: skip
CALLED = {
    "cvc_colondb": "ColonDB",
    "cvc_clinicdb": "ClinicDB",
    "KolektorSDD": "SDD",
}  # categories, and the paper's word
SCALE = 100.0  # of cosines, before the softmax
MIX = 0.2  # share of the clustered patches in the picture's embedding
TOWERS = {"V": "visual", "L": "text"}

Kind = Literal["", "S", "D", "SD"]
Branch = Literal["", "V", "L", "VL"]


@dataclass(frozen=True)
class Layout:
    """Which parts are learnt. type: S static prompts, D dynamic ones, SD their sum. branch: the towers that get them.

    depth: J, blocks. length: M, tokens. taps: the L blocks whose output is looked at, 1 is the first.
    """

    type: Kind
    branch: Branch
    depth: int
    length: int
    taps: tuple[int, ...]

    def shapes(self, clip: Shape) -> dict[str, tuple[int, ...]]:
        """Every learnt tensor under the authors' name. Generators of dynamic prompts exist for both towers or none."""
        found: dict[str, tuple[int, ...]] = {}

        def linear(name: str, count: int, source: int, target: int) -> None:
            for i in range(count):
                found[f"{name}.head.{i}.weight"], found[f"{name}.head.{i}.bias"] = (target, source), (target,)

        for letter, width in (("V", clip.width), ("L", clip.text_width)):
            if "S" in self.type and letter in self.branch:
                prompts = [f"{TOWERS[letter]}_prompter.static_prompts.{j}" for j in range(self.depth)]
                found |= dict.fromkeys(prompts, (self.length, width))
            if "D" in self.type:
                linear(f"dynamic_{TOWERS[letter]}_prompt_generator", self.length, clip.embed, width)
        linear("patch_token_layer", len(self.taps), clip.width, clip.embed)
        linear("cls_token_layer", 1, clip.embed, clip.embed)
        return found

    def check(self, clip: Shape) -> None:
        """Raise WrongInput where the towers are too small for it."""
        for letter, layers in (("V", clip.layers), ("L", clip.text_layers)):
            if letter in self.branch and self.depth > layers:
                raise WrongInput(
                    f"AdaCLIP depth={self.depth} is more than the {layers} blocks of this {TOWERS[letter]} tower; "
                    f"choose at most {layers}."
                )
        if "L" in self.branch and self.length >= clip.context:
            raise WrongInput(
                f"AdaCLIP length={self.length} does not fit sentences of {clip.context} tokens; choose less."
            )
        if not self.taps or list(self.taps) != sorted(set(self.taps) & set(range(1, clip.layers + 1))):
            raise WrongInput(
                f"AdaCLIP taps={self.taps} must be blocks from 1 to {clip.layers} in rising order, such as 6,12,18,24."
            )


@dataclass
class AdaCLIP(Detector):
    """Zero-shot detection with CLIP and learnt prompts; needs the name of the thing and an adapter, no good picture.

    backbone: clip:NETWORK, the one that the adapter was trained with.
    adapter: file of trained parts: published .pth or own .safetensors; "" is the first published one in the folder
        `weights` of the cache; "random" is untrained, for tests.
    object: what the thing is called; "" is the sample's category, else "object".
    image_size: S, pixels, a multiple of the patch size.
    type, branch, depth, length, taps: see `Layout`, of an adapter to be trained; a file says its own. taps: None is every
        quarter of the blocks.
    fusion: whether the most anomalous patches join the image score. clusters: K; 5 K patches are put into K clusters.
    prompt_cast: "half" rounds prompts to float16 as the authors' code does, on which the published weights rely.
    sigma: Gaussian blur of the map, in pixels of S. precision: of both towers, by autocast.
    seed: of k-means, and of training.
    """

    backbone: str = "clip:ViT-L-14-336"
    adapter: str = ""
    object: str = ""
    image_size: int = 518
    type: Kind = "SD"
    branch: Branch = "VL"
    depth: int = 4
    length: int = 5
    taps: tuple[int, ...] | None = None
    fusion: bool = True
    clusters: int = 20
    prompt_cast: Literal["half", "none"] = "half"
    sigma: float = 4.0
    precision: Precision = "float32"
    batch_size: int = 4
    device: Device = "auto"
    threads: int | None = None
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        for name, least in (
            ("image_size", 1),
            ("depth", 1),
            ("length", 1),
            ("clusters", 1),
            ("batch_size", 1),
            ("sigma", 0),
        ):
            if getattr(self, name) < least:
                raise WrongInput(f"AdaCLIP {name}={getattr(self, name)} is too low; it must be at least {least}.")
        if self.type not in ("", "S", "D", "SD") or self.branch not in ("", "V", "L", "VL"):
            raise WrongInput(
                f"AdaCLIP got type={self.type!r} and branch={self.branch!r}; type is '', S, D or SD, branch '', V, L or VL."
            )
        if self.branch and not self.type:
            raise WrongInput(
                f"AdaCLIP type='' has no prompts for branch={self.branch!r}; choose type='SD', or branch=''."
            )

    # --- what is learnt elsewhere ---

    @property
    def needs_fit(self) -> bool:
        return False

    @property
    def fitted(self) -> bool:
        return True

    @property
    def weights(self) -> dict[str, Any]:
        """The adapter: "tensors" by the authors' names, "facts" about them. Read on first use, saved with the detector.

        Raises:
            MissingWeights: no file; the message says which to put where. WrongInput: it is not an adapter.
        """
        if "_weights" not in self.__dict__:
            if self.adapter == "random":
                with seeded(self.seed):
                    made = fresh(self._layout(self.clip.shape).shapes(self.clip.shape))
                self.weights = {"tensors": {k: t.numpy() for k, t in made.items()}, "facts": {"file": "random"}}
            else:
                path = find_adapter(
                    self.adapter, RELEASED, folder=cache_folder() / "weights",
                    source="the project's page https://github.com/caoyunkang/AdaCLIP", megabytes=42.7,
                )  # fmt: skip
                tensors, facts = read_adapter(path, ("module.", "clip_model."))
                about = {"trained_on": TRAINED_ON.get(path.name, "unknown data"), **facts, "file": path.name}
                self.weights = {"tensors": {k: t.numpy() for k, t in tensors.items()}, "facts": about}
        return self.__dict__["_weights"]

    @weights.setter
    def weights(self, value: dict[str, Any]) -> None:
        self.__dict__["_weights"] = value
        self.__dict__.pop("_network", None)

    @property
    def clip(self) -> Clip:
        """Both towers, loaded on first use; see `backbones.clip.load` for the errors."""
        if "_clip" not in self.__dict__:
            self.__dict__["_clip"] = load(self.backbone, device=self.device, threads=self.threads)
        return self.__dict__["_clip"]

    @property
    def network(self) -> Network:
        """Towers and adapter together."""
        if "_network" not in self.__dict__:
            clip, tensors, facts = self.clip, self.weights["tensors"], self.weights["facts"]
            import torch  # after CLIP, which says what to install

            layout = layout_of(tensors, facts, self._layout(clip.shape))
            require_shapes(tensors, layout.shapes(clip.shape), facts["file"])
            if facts.setdefault("clip", clip.fingerprint) != clip.fingerprint:
                raise WrongInput(
                    f"the adapter {facts['file']} was made for other weights of CLIP than those of {self.backbone} here "
                    f"(sha256 {facts['clip'][:12]}..., here {clip.fingerprint[:12]}...); use the same weights."
                )
            on_device = {k: torch.as_tensor(np.asarray(v), device=clip.device) for k, v in tensors.items()}
            self.__dict__["_network"] = Network(clip, on_device, layout, self)
        return self.__dict__["_network"]

    def unfitted(self) -> Self:
        """A new detector of the same settings and adapter."""
        again = super().unfitted()
        again.__dict__.update({k: v for k, v in self.__dict__.items() if k in ("_clip", "_weights")})
        return again

    def state(self) -> str:
        facts = self.weights["facts"]
        return f"Adapter {facts['file']}, trained on {facts.get('trained_on', 'nothing')}."

    def _layout(self, clip: Shape) -> Layout:
        """Of the settings."""
        quarters = tuple(clip.layers // 4 * i for i in (1, 2, 3, 4))
        return Layout(self.type, self.branch, self.depth, self.length, self.taps or quarters)

    # --- prediction ---

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        return self._judge(self.network, samples)

    def _judge(self, network: Network, samples: Iterable[Sample]) -> Iterator[Prediction]:
        import torch

        size = (self.image_size, self.image_size)
        for batch in batches(samples, size, self.batch_size, interpolation="bicubic"):
            with torch.no_grad():
                out = network(network.clip.normalise(batch.images), [self.called(s) for s in batch.samples])
                maps, scores = to_numpy(self.smooth(out["map"])), to_numpy(out["score"])
            for sample, score, values, picture in zip(batch.samples, scores, maps, batch.sizes, strict=True):
                yield Prediction(sample.id, float(score), resize_map(values, picture))

    def called(self, sample: Sample) -> str:
        """What the thing in a picture is called in the sentences."""
        name = name_of(sample, self.object)
        return CALLED.get(name, name)

    def smooth(self, maps: Any) -> Any:
        """(B, S, S) -> the same, blurred."""
        blur = like(blur_matrix(self.image_size, self.sigma), maps)
        return blur @ maps @ blur.T

    def trace(
        self, images: Any, names: Sequence[str], *, labels: Any = None, training: bool = False, everything: bool = False
    ) -> dict[str, Tensor]:
        """Every stage by name; docs/parity.md lists them.

        images: (B, 3, S, S) in [0, 1]. names: of the B things. labels: (B, 5 K) clusters of the chosen patches, in place
            of k-means.
        training: probabilities of both classes instead of the map and score of the second. everything: also the inputs
            and outputs of the blocks, which takes memory.
        """
        import torch

        network = self.network
        with torch.set_grad_enabled(training):
            out = network(
                network.clip.normalise(images), list(names), labels=labels, training=training, everything=everything
            )
            if not training:
                out["map_smoothed"] = self.smooth(out["map"])
        return out

    # --- training ---

    def train_auxiliary(
        self,
        samples: Iterable[Sample],
        *,
        recipe: Literal["stable", "published"] = "stable",
        epochs: int = 5,
        lr: float = 0.01,
        batch: int = 1,
        dice_over: Literal["row", "image"] = "row",
        mosaic: float | Mapping[str, float] | None = None,
        validation: Iterable[Sample] = (),
        select: Literal["last", "best"] = "last",
        out: str | Path | None = None,
        checkpoints: str | Path | None = None,
        report: Report | None = None,
    ) -> Trained:
        """Learn an adapter from annotated pictures of other things, normal and anomalous, and use it from now on.

        recipe: "stable" runs the towers in `precision` and the rest in float32, leaves the map alone where a mask is
            missing and labels mosaics by what they show; "published" runs all of the forward pass in float16 without
            scaling the loss, teaches zero masks and keeps the label of the picture that a mosaic replaces.
        dice_over: what one Dice loss is of: each row of pixels, as the authors' code has it, or each picture.
        mosaic: as in `auxiliary_batches`; None is 0.2 for MVTec AD's categories, 0 for others.
        validation: annotated samples; after each epoch the mean over their categories of pixel max-F1 is written down.
        select: "best" keeps the epoch with the highest of these. It is then no longer a figure of unseen data.
        out: .safetensors file to write, with facts about the training inside. checkpoints: a folder; what an interrupted
            training of the same settings and samples left there is continued.

        Raises:
            WrongInput: no samples or no labels; nothing to validate on. Diverged: 50 steps in a row were not finite.
        """
        device, samples, validation = training_device(self.device), list(samples), list(validation)
        import torch

        if recipe not in ("stable", "published"):
            raise unknown("recipe", recipe, ("stable", "published"))
        if (validation or select == "best") and not any(s.label and s.mask for s in validation):
            raise WrongInput("validation needs anomalous samples with masks; give them, or none and select='last'.")
        published = recipe == "published"
        if mosaic is None:
            mosaic = dict.fromkeys(dataset_card("mvtec").categories, 0.2)
        data = auxiliary_batches(
            samples, self.image_size, batch, seed=self.seed, mosaic=mosaic, relabel=not published, name=self.called
        )
        clip = self.clip.to(device)
        layout = self._layout(clip.shape)
        with seeded(self.seed):
            made = fresh(layout.shapes(clip.shape))
        tensors = {k: t.to(device).requires_grad_() for k, t in made.items()}
        network = Network(clip, tensors, layout, self)

        def loss(group: Any) -> tuple[Tensor, dict[str, float]]:
            images, masks, labels, names, has_mask = group
            masks, labels = (torch.as_tensor(x, device=device) for x in (masks, labels))
            out = network(clip.normalise(images), [str(n) for n in names], training=True, half=published)
            terms = losses(out, masks, labels, None if published else has_mask, dice_over)
            return torch.stack(list(terms.values())).sum(), {}

        def validate() -> float:
            network.texts.clear()  # of the prompts as they were an epoch ago
            return self._pixel_f1(network, validation)

        facts: dict[str, Any] = {
            "method": "adaclip", "layout": asdict(layout), "backbone": self.backbone, "clip": clip.fingerprint,
            "image_size": self.image_size, "fusion": self.fusion, "clusters": self.clusters,
            "prompt_cast": self.prompt_cast, "precision": self.precision, "recipe": recipe, "epochs": epochs, "lr": lr,
            "batch": batch, "dice_over": dice_over, "mosaic": mosaic, "seed": self.seed, "select": select,
            "trained_on": in_words(samples), "validated_on": in_words(validation), "anomalens": __version__,
        }  # fmt: skip
        known = json.dumps([facts, [[s.id, s.label, s.category] for s in (*samples, *validation)]], sort_keys=True)
        trained = train(
            loss, tensors, data,
            Recipe(epochs=epochs, optimiser="adamw", lr=lr, betas=(0.5, 0.999), weight_decay=0.01, seed=self.seed,
                   on_nan="skip", keep=select, checkpoint_epochs=True),
            validate=validate if validation else None, folder=checkpoints,
            data=hashlib.sha256(known.encode()).hexdigest(), report=report,
        )  # fmt: skip
        facts |= {
            "steps": trained.steps, "skipped": trained.skipped, "loss": trained.loss, "seconds": trained.seconds,
            "scores": trained.scores, "step_kept": trained.best_step if select == "best" else trained.steps,
        }  # fmt: skip
        arrays = {k: t.detach().cpu().numpy() for k, t in tensors.items()}
        self.weights = {"tensors": arrays, "facts": {**facts, "file": Path(out).name if out else "just trained"}}
        if out and rank() == 0:
            write_adapter(Path(out), tensors, facts)
        return trained

    def _pixel_f1(self, network: Network, samples: Sequence[Sample]) -> float:
        """Mean over categories of the pixel max-F1 in [0, 1]; categories without anomalous pixels do not count."""
        masked: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.label == 0 or sample.mask is not None:
                masked.setdefault(sample.category, []).append(sample)
        found = []
        for group in masked.values():
            if any(s.label for s in group):
                maps = (p.map for p in self._judge(network, group))
                masks = (s.mask.read() if s.label and s.mask else None for s in group)
                found.append(pixel_metrics(maps, masks, which=("f1max",), variant="stream")["f1max"].value)
        return float(np.mean(found))


# --- the network ------------------------------------------------------------------------------------------------------


class Network:
    """CLIP with prompts, as a function of normalised pixels (B, 3, S, S) and B names.

    tensors: learnt ones by name, as in `Layout.shapes`. texts: T of names whose prompts no picture changes.
    """

    def __init__(self, clip: Clip, tensors: Mapping[str, Tensor], layout: Layout, how: AdaCLIP):
        layout.check(clip.shape)
        if how.image_size % clip.shape.patch:
            near = max(1, round(how.image_size / clip.shape.patch)) * clip.shape.patch
            raise WrongInput(
                f"AdaCLIP image_size={how.image_size} is not a multiple of the patch size {clip.shape.patch} of "
                f"{how.backbone}; choose {near}."
            )
        self.clip, self.tensors, self.layout, self.how = clip, tensors, layout, how
        self.ids: dict[str, Tensor] = {}
        self.texts: dict[str, Tensor] = {}

    def __call__(
        self,
        pixels: Tensor,
        names: Sequence[str],
        *,
        labels: Any = None,
        training: bool = False,
        everything: bool = False,
        half: bool = False,
    ) -> dict[str, Tensor]:
        """Stages by name, the last ones "map" (B, S, S) and "score" (B,) in [0, 1], higher is more anomalous; in training
        "maps.{l}" (B, 2, S, S) and "score" (B, 2), probabilities of normal and anomalous.

        half: float16 in all of it. The other arguments are those of `AdaCLIP.trace`.
        """
        import torch

        clip, layout = self.clip, self.layout
        out: dict[str, Tensor] = {}
        with self.autocast("float16" if half else self.how.precision):
            # First pass: what the tower says of the whole picture, without prompts, makes the dynamic ones.
            tokens = clip.embed(pixels)
            prompted = "V" in layout.branch
            if "D" in layout.type or not prompted or everything:
                with torch.no_grad(), recorded(clip.visual, "vision", out, everything and not prompted):
                    last, tapped = clip.vision(tokens, taps=layout.taps)
                    out["g"] = clip.pool(last)
            if everything:
                out["vision.embed"] = tokens
                out |= {f"unprompted_tokens.{i}": x for i, x in enumerate(tapped)}
            if "D" in layout.type:
                out["D_v"], out["D_t"] = (self.generate(tower, out["g"]) for tower in TOWERS.values())

            # Second pass, with prompts.
            if prompted:
                with recorded(clip.visual, "vision", out, everything):
                    last, tapped = clip.vision(tokens, taps=layout.taps, before=self.into_pictures(out.get("D_v")))
                tapped = [x[:, : -layout.length] for x in tapped]
            out |= {f"tokens.{i}": x for i, x in enumerate(tapped)}
            out["pooled"] = clip.pool(last)
            out["T"] = self.text(names, out, everything)

        with self.autocast("float16" if half else "float32"):
            # Projections to where the sentences are; A are the logits of every patch, normal and anomalous.
            Z = [unit(self.linear(f"patch_token_layer.head.{i}", x[:, 1:].float())) for i, x in enumerate(tapped)]
            A = [SCALE * z @ out["T"] for z in Z]
            out["c"] = unit(self.linear("cls_token_layer.head.0", out["pooled"].float()))
            out |= {f"Z.{i}": z for i, z in enumerate(Z)} | {f"A.{i}": a for i, a in enumerate(A)}
            if training:
                out |= {f"maps.{i}": self.enlarge(a).float().softmax(1) for i, a in enumerate(A)}
            else:
                out["map"] = self.enlarge(torch.stack(A).mean(0)).softmax(1)[:, 1]
            out["f"] = self.fuse(torch.stack(Z), torch.stack(A), labels, out) if self.how.fusion else out["c"]
            both = (SCALE * out["f"][:, None] @ out["T"])[:, 0].float().softmax(-1)
            out["score"] = both if training else both[:, 1]
        return out

    def autocast(self, precision: Precision) -> Any:
        import torch

        if precision == "float32":
            return torch.autocast(self.clip.device.type, enabled=False)
        return torch.autocast(self.clip.device.type, dtype=getattr(torch, precision))

    def linear(self, name: str, x: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def generate(self, tower: str, g: Tensor) -> Tensor:
        """Dynamic prompts (B, M, width) of pictures (B, E); the same ones go into every block."""
        import torch

        heads = (f"dynamic_{tower}_prompt_generator.head.{m}" for m in range(self.layout.length))
        return torch.stack([self.linear(head, g) for head in heads], dim=1)

    def prompt(self, tower: str, block: int, dynamic: Tensor | None, like_this: Tensor) -> Tensor:
        """Prompts of one block (B, M, width) for its tokens (B, N, width)."""
        static = self.tensors.get(f"{tower}_prompter.static_prompts.{block}")
        P = sum(part for part in (dynamic, static) if part is not None)
        P = P.expand(len(like_this), *P.shape[-2:])
        return (P.half() if self.how.prompt_cast == "half" else P).to(like_this.dtype)

    def into_pictures(self, dynamic: Tensor | None) -> Before:
        """Prompts stand behind the patches: added before the first block, replaced before the others of the depth."""
        import torch

        def before(block: int, x: Tensor) -> Tensor:
            if block >= self.layout.depth:
                return x
            kept = x[:, : -self.layout.length] if block else x
            return torch.cat([kept, self.prompt("visual", block, dynamic, x)], dim=1)

        return before

    def into_sentences(self, dynamic: Tensor | None) -> Before:
        """Prompts overwrite the words behind the start, before every block of the depth but the first."""
        import torch

        def before(block: int, x: Tensor) -> Tensor:
            if not 1 <= block < self.layout.depth:
                return x
            P = self.prompt("text", block, dynamic, x)[:, : x.shape[1] - 1]
            return torch.cat([x[:, :1], P, x[:, 1 + P.shape[1] :]], dim=1)

        return before

    def text(self, names: Sequence[str], out: dict[str, Tensor], everything: bool) -> Tensor:
        """T (B, E, 2): what normal and anomalous things of these names are described as, unit length."""
        import torch

        prompted = "L" in self.layout.branch
        dynamic = out.get("D_t") if prompted else None
        if everything or dynamic is not None or (prompted and torch.is_grad_enabled()):
            return self.describe(names, dynamic, out, everything)
        for name in set(names) - set(self.texts):
            with torch.no_grad():
                self.texts[name] = self.describe([name], None, {}, False)[0]
        return torch.stack([self.texts[name] for name in names])

    def describe(
        self, names: Sequence[str], dynamic: Tensor | None, out: dict[str, Tensor], everything: bool
    ) -> Tensor:
        """T from 28 normal and 20 anomalous sentences per picture; dynamic: (B, M, Ct) or None."""
        import torch

        for name in set(names) - set(self.ids):
            self.ids[name] = tokenise(sentences(name), self.clip.shape.context).to(self.clip.device)
        ids = torch.cat([self.ids[name] for name in names])
        each = len(ids) // len(names)
        if dynamic is not None:
            dynamic = dynamic.repeat_interleave(each, dim=0)
        before = self.into_sentences(dynamic) if "L" in self.layout.branch else None
        with recorded(self.clip, "text", out, everything):
            features = self.clip.text(ids, before=before, whole=everything).unflatten(0, (len(names), each)).float()
        normal, abnormal = features.split([len(NORMAL) * len(TEMPLATES), len(ABNORMAL_BROKEN) * len(TEMPLATES)], dim=1)
        if everything:
            out["text.normal.sentence_features"], out["text.abnormal.sentence_features"] = normal, abnormal
        return torch.stack([unit(unit(group).mean(1)) for group in (normal, abnormal)], dim=-1)

    def enlarge(self, A: Tensor) -> Tensor:
        """Logits of patches (B, N, 2) to those of pixels (B, 2, S, S)."""
        import torch.nn.functional as F

        size, cells = self.how.image_size, self.how.image_size // self.clip.shape.patch
        grid = A.transpose(1, 2).unflatten(2, (cells, cells))
        return F.interpolate(grid, (size, size), mode="bilinear", align_corners=True)

    def fuse(self, Z: Tensor, A: Tensor, labels: Any, out: dict[str, Tensor]) -> Tensor:
        """Hybrid semantic fusion: the class token, and the mean over clusters of the most anomalous patches; (B, E).

        Z: (L, B, N, E). A: (L, B, N, 2). Every cluster counts the same, so that a small defect is not outvoted.
        """
        import torch

        K = self.how.clusters
        out["hsf.a"] = A.mean(0).float().softmax(-1)[..., 1]
        chosen = out["hsf.topk_indices"] = out["hsf.a"].topk(min(5 * K, Z.shape[2]), dim=1).indices  # (B, k)
        S = Z.gather(2, chosen[None, :, :, None].expand(len(Z), -1, -1, Z.shape[-1]))  # (L, B, k, E)
        points = out["hsf.kmeans_input"] = S.permute(1, 2, 0, 3).flatten(2)
        if labels is None:
            labels = np.stack([kmeans(to_numpy(p.float()), K, self.how.seed) for p in points])
        labels = out["hsf.labels"] = torch.as_tensor(np.asarray(labels), device=Z.device)
        member = (labels[:, None] == torch.arange(K, device=Z.device)[:, None]).to(S.dtype)  # (B, K, k)
        centres = member @ S.mean(0) / member.sum(-1, keepdim=True).clamp(min=1)  # an empty cluster adds nothing
        out["h"] = unit(centres.sum(1))
        return unit(MIX * out["h"] + (1 - MIX) * out["c"])


@contextmanager
def recorded(tower: Any, name: str, out: dict[str, Tensor], wanted: bool) -> Iterator[None]:
    """Put inputs and outputs of the blocks of a tower into `out`, if wanted."""

    def hook(index: int) -> Callable[..., None]:
        def keep(_: Any, given: tuple[Tensor, ...], result: Tensor) -> None:
            out[f"{name}.block{index}.in"], out[f"{name}.block{index}.out"] = given[0], result

        return keep

    blocks = tower.transformer.resblocks if wanted else ()
    hooks = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def sentences(name: str) -> list[str]:
    """28 sentences of a normal thing and 20 of an anomalous one."""
    name = name.replace("-", " ")
    return compose(name, NORMAL, TEMPLATES) + compose(name, ABNORMAL_BROKEN, TEMPLATES)


def losses(
    out: Mapping[str, Tensor], masks: Tensor, labels: Tensor, has_mask: Any = None,
    dice_over: Literal["row", "image"] = "row",
) -> dict[str, Tensor]:  # fmt: skip
    """The terms whose sum is the loss; out: of a network in training. masks (B, S, S) and labels (B,) of 0 and 1.

    has_mask: (B,) bool, pictures that pixel losses are taken of; None is all.
    """
    terms = {"cls.focal": focal(out["score"], labels)}
    wanted = np.ones(len(labels), bool) if has_mask is None else np.asarray(has_mask)
    if not wanted.any():
        return terms
    index = np.flatnonzero(wanted).tolist()
    truth = masks[index]
    for i in range(sum(key.startswith("maps.") for key in out)):
        maps = out[f"maps.{i}"][index]
        terms[f"seg.{i}.focal"] = focal(maps, truth)
        terms[f"seg.{i}.dice_abnormal"] = dice(maps[:, 1], truth, reduction=dice_over)
        terms[f"seg.{i}.dice_normal"] = dice(maps[:, 0], 1 - truth, reduction=dice_over)
    return terms


# --- the adapter ------------------------------------------------------------------------------------------------------


def fresh(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors before training, drawn from torch's generator: prompts N(0, 0.02^2), heads within fan_in^-1/2."""
    import torch

    made = {}
    for name, shape in shapes.items():
        if "static_prompts" in name:
            made[name] = 0.02 * torch.randn(shape)
        else:
            bound = shapes[name.replace(".bias", ".weight")][1] ** -0.5
            made[name] = torch.empty(shape).uniform_(-bound, bound)
    return made


def layout_of(tensors: Mapping[str, Any], facts: Mapping[str, Any], settings: Layout) -> Layout:
    """What an adapter is: as its file says, else read off names and shapes, else (branch of dynamic prompts) the settings."""
    try:
        if "layout" in facts:
            return Layout(**{**facts["layout"], "taps": tuple(facts["layout"]["taps"])})
    except (TypeError, KeyError):
        raise WrongInput(
            f"the adapter {facts.get('file')} says nonsense about itself; fetch it or train it again."
        ) from None

    def count(prefix: str) -> int:
        return sum(key.startswith(prefix) and not key.endswith(".bias") for key in tensors)

    static = {letter: count(f"{tower}_prompter.static_prompts.") for letter, tower in TOWERS.items()}
    dynamic = max(count(f"dynamic_{tower}_prompt_generator.") for tower in TOWERS.values())
    kind: Any = ("S" if any(static.values()) else "") + ("D" if dynamic else "")
    branch: Any = "".join(letter for letter, found in static.items() if found)
    if kind == "D":
        branch = settings.branch
    lengths = [len(value) for key, value in tensors.items() if "static_prompts" in key]
    return Layout(
        kind, branch, max(static.values()) or settings.depth, lengths[0] if lengths else dynamic or settings.length,
        settings.taps,
    )  # fmt: skip


def in_words(samples: Sequence[Sample]) -> str:
    counts = Counter(s.category or "no category" for s in samples)
    return ", ".join(f"{n} of {category}" for category, n in counts.items()) or "nothing"


def kmeans(points: np.ndarray, k: int, seed: int = 0, rounds: int = 300) -> np.ndarray:
    """Clusters of points (n, d) as numbers (n,) below k; fewer than k where fewer points differ.

    k-means++ with a few candidates per centre, then Lloyd's rounds until nothing moves. All distances come from the
    (n, n) inner products, so the high dimension is paid for once.

    Source: Arthur and Vassilvitskii 2007, https://dl.acm.org/doi/10.5555/1283383.1283494
    """
    n = len(points)
    if not np.isfinite(points).all():
        return np.zeros(n, int)  # a step of training that will be skipped
    points = points.astype(np.float64)
    points -= points.mean(axis=0)
    inner = points @ points.T
    squares = inner.diagonal()
    apart = squares[:, None] + squares - 2 * inner
    apart[apart < 1e-12 * max(squares.max(), 1e-300)] = 0  # equal but for rounding
    rng = np.random.default_rng(seed)
    centres = [int(rng.integers(n))]
    while len(centres) < k:
        nearest = apart[centres].min(axis=0)
        if not nearest.any():
            break
        candidates = rng.choice(n, 2 + int(math.log(k)), p=nearest / nearest.sum())
        centres.append(int(min(candidates, key=lambda i: np.minimum(nearest, apart[i]).sum())))
    labels = apart[centres].argmin(axis=0)
    for _ in range(rounds):
        member = (labels == np.arange(len(centres))[:, None]).astype(np.float64)
        size = member.sum(axis=1, keepdims=True)
        mean = member / np.maximum(size, 1)
        shared = mean @ inner
        distance = (shared * mean).sum(axis=1, keepdims=True) - 2 * shared  # but for the point's own square
        distance[size[:, 0] == 0] = np.inf
        moved = distance.argmin(axis=0)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels


DETECTOR = AdaCLIP
