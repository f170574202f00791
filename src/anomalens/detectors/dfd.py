"""DFD, in the paper's letters: low and high image I_l, I_h, patch features p, adaptor psi, discriminators phi^G, phi^P.

Bai et al. 2024, "Dual-path Frequency Discriminators for Few-shot Anomaly Detection", https://arxiv.org/abs/2403.04151

    image -> I_l, I_h -> frozen network -> p -> psi(p) = q -> phi^G(q), phi^P(q)       score = -phi

phi^G learns to tell q from q + noise, phi^P good pictures from pictures with drawn defects. Shapes: B pictures of side S,
n grid cells per side, T = n * n, D dimensions; rows are (B * T, D), ordered picture, row, column.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image

from .. import metrics
from ..backbones import Device, Engine, network
from ..datasets import open_folder
from ..detector import Detector
from ..errors import WrongInput
from ..images import resize, to_float
from ..parts.auxiliary import soft_mask
from ..parts.batches import ahead, batches
from ..parts.distillation import as_input, named
from ..parts.frequency import split
from ..parts.grids import resize_map, smooth_matrix, to_numpy
from ..parts.sizes import parse_bytes
from ..parts.threads import cores
from ..parts.train import Group, Recipe, Shuffled, load_parameters, parameters_of, seeded, train, training_device
from ..synthesis.perlin import PerlinDefects, foreground
from ..types import Card, Prediction, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="DFD",
    paper="https://arxiv.org/abs/2403.04151",
    year=2024,
    venue="Knowledge-Based Systems",
    summary="Learns from one to four good pictures, split into coarse and fine detail, what drawn defects look like.",
    repo="yuhbai/DFD",
    code_licence="MIT",
    fidelity="parity",
    family="synthesis",
    settings=("few-shot", "full-shot"),
    scope="single",
    normals=(1, 4),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="wide_resnet50_2, strides 8, 16 @ 256, two frequency bands",
    trains="gradient",
    fit_cost="F3",
    predict_cost="P1",
    gpu="fit",
    cpu_fit="F2",
    stored_mb=3.0,
    extras=("torch",),
    weights=(),
    pose="free",
    external=(),
    determinism="seeded",
    differs="the embedded backbone and drawn textures are the default (paper: WideResNet50 with ImageNet weights, pictures "
    "of DTD: textures=FOLDER); sizes, noise and the Gaussian path's learning rate follow the backbone's channels, the "
    "published ones are those of WideResNet50; on a CPU the training is cut to the preset 'small' (paper: 80 epochs, "
    "preset='published'); the last epoch is kept "
    "(paper: the one that is best on the test set) and the two paths are brought to one scale with good pictures and drawn "
    "defects (paper: with the test set), so that a single picture can be scored; channels are red, green, blue (authors' "
    "code: channel_order='bgr'); the network's batch norms stay as published (their code moves them once, with a picture of "
    "ones); pictures are resized with an antialiased filter; textures are changed with Pillow's operations (authors: imgaug)",
    pitfalls=(
        "good pictures are turned by up to 90 degrees while it learns: a defect that is a wrong angle is not found, and "
        "black corners become normal (rotation_fill='reflect', rotation='quarter')",
        "without a GPU a fit takes minutes; patchcore on the same few pictures takes seconds",
        "what it learns depends on the drawn defects: faint stains are unlike them",
        "two trainings differ: the paths share the layer before them, and after 150 steps either may be the better one",
    ),
    aliases=("dual-path-frequency-discriminators",),
)

LOG = logging.getLogger("anomalens")
Tensor = Any  # torch.Tensor
Module = Any  # torch.nn.Module
Path = Literal["gaussian", "perlin"]

LENGTH: dict[str, dict[str, int]] = {"published": {"epochs": 80}, "small": {"steps": 150}}
PUBLISHED_DIM = 1536
BANDS = {"both": ("low", "high"), "low": ("low",), "high": ("high",), "rgb": ("rgb",)}
MARGIN = 0.5  # of both hinges
LR_END, DECAY_UNTIL = 4e-5, 76 / 80  # the cosine of the authors ends after 76 of 80 epochs
WEIGHT_DECAY = 1e-5  # of the discriminators
MEAN = np.array((0.485, 0.456, 0.406), np.float32)[:, None, None]  # of ImageNet, what most networks subtract
HELD = 32  # pictures with drawn defects that the scale of the paths, and select="pseudo", are taken from
HELD_OUT = 10  # of so many good pictures or more, one in so many is held out for select="pseudo"
ROUNDS = 20  # times a training is looked at where its best moment is kept
OUTER = (0.1, 99.9)  # percentiles in place of smallest and largest

# MVTec AD: categories of things on an even ground, and whether the thing is the bright part.
THINGS: dict[str, Literal["bright", "dark"]] = {
    "hazelnut": "bright", "metal_nut": "bright", "pill": "bright", "toothbrush": "bright",
    "capsule": "dark", "transistor": "dark", "bottle": "dark", "screw": "dark",
}  # fmt: skip


@dataclass
class DFD(Detector):
    """Two discriminators of patch features; one learns from noise on features, the other from defects drawn in pictures.

    image_size: S, pixels, a multiple of 32, 64 or more.
    preset: how long to train: "published" is 80 epochs, "small" 150 steps; "auto" is the former on a GPU, the latter on a
        CPU. epochs, steps: other lengths, in place of the preset's; steps counts before epochs.
    per_picture: turned copies of each good picture, made once; an epoch draws as many as there are, with replacement.
    dim: D; hidden, heads: of phi^G and phi^P. None are all channels of the backbone, two thirds of D, and one head for 96
        dimensions, which for WideResNet50 are the published 1536, 1024 and 16.
    batch_size: pictures per step. lr_gaussian, lr_perlin, lr_adaptor: Adam's learning rates; the first two fall to 4e-5.
        lr_gaussian is for 1536 dimensions; in D it is 1536 / D times as high, as a narrow layer needs longer steps.
    textures: folder of foreign textures for drawn defects, such as DTD; "" draws them.
    foreground: where defects are drawn: "none" is everywhere, "bright" or "dark" that side of Otsu's threshold, "auto" as
        the authors do for categories of MVTec AD, by their names, and everywhere for others.
    normal_share: of the copies that get no defect (authors: 0.2 for MVTec AD, 0.3 for VisA).
    rotation: of good pictures by "any" angle up to 90 degrees, or none and 90 ("quarter"). rotation_fill: corners are even
        ("constant": black, or the ground of a thing), or mirrored.
    noise: standard deviation of the noise on features in 1536 dimensions; in fewer it is as long, (1536 / D) ** 0.5 times as
        high, since a short one is not learnt from. sigma: Gaussian blur of the map, pixels of the resized picture.
    frequencies, paths: what is left in; "rgb" is the picture itself. normalize_high: "zero_mean" shifts I_h, whose values
        lie around 0, by the mean that the network subtracts ("imagenet": left black, as published).
    channel_order: "bgr" as in the authors' code, which normalises the wrong way round.
    select: which moment of the training is kept: the "last", the best on further drawn defects ("pseudo"), or the best on
        the labelled test pictures of `test_folder` ("oracle_test"), whose figures are then too good to be true. "pseudo"
        looks twenty times, at defects in every tenth good picture, which is then not learnt from; of fewer than ten
        pictures, in further copies of all. patience: with "pseudo", stop after so many looks that found nothing better.
    normalize: how paths are brought to one scale before their mean is taken: once after fit ("fit"), or by the pictures
        that are judged together ("test_set", as published; predict then reads all of them before the first answer).
    limit_memory: bytes, or text such as `1GB`, for what is kept of copies while training.
    """

    backbone: str = "tiny"
    image_size: int = 256
    preset: Literal["auto", "published", "small"] = "auto"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 8
    per_picture: int = 80
    dim: int | None = None
    hidden: int | None = None
    heads: int | None = None
    lr_gaussian: float = 2e-4
    lr_perlin: float = 1e-4
    lr_adaptor: float = 5e-4
    textures: str = ""
    foreground: Literal["auto", "none", "bright", "dark"] = "auto"
    normal_share: float = 0.2
    rotation: Literal["any", "quarter"] = "any"
    rotation_fill: Literal["constant", "reflect"] = "constant"
    noise: float = 0.015
    sigma: float = 4.0
    frequencies: Literal["both", "low", "high", "rgb"] = "both"
    paths: Literal["both", "gaussian", "perlin"] = "both"
    normalize_high: Literal["imagenet", "zero_mean"] = "imagenet"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    select: Literal["last", "pseudo", "oracle_test"] = "last"
    test_folder: str = ""
    patience: int | None = None
    normalize: Literal["fit", "test_set"] = "fit"
    limit_memory: int | str = "1GB"
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    strides: ClassVar[tuple[int, ...]] = (8, 16)
    learned: ClassVar[tuple[str, ...]] = ("weights", "form", "networks", "scale", "trained")

    def __post_init__(self) -> None:
        if self.image_size < 64 or self.image_size % 32:
            raise WrongInput(f"DFD needs an image_size of 64 or more that is a multiple of 32; got {self.image_size}.")
        if self.engine == "onnx-int8":
            raise WrongInput("DFD shows its network differences too, outside the ranges of int8; use engine='auto'.")
        if self.per_picture < 1:
            raise WrongInput(f"DFD needs per_picture of 1 or more; got {self.per_picture}.")
        if (self.select == "oracle_test") != bool(self.test_folder):
            raise WrongInput(
                f"DFD got select={self.select!r} with test_folder={self.test_folder!r}; 'oracle_test' and a folder with "
                "labelled test pictures go together."
            )
        if self.patience is not None and self.select != "pseudo":
            raise WrongInput(
                "DFD stops early by drawn defects, never by test pictures: patience needs select='pseudo'; got "
                f"select={self.select!r}."
            )

    # --- learning ---

    def fit(self, samples: Iterable[Sample]) -> Self:
        device = training_device(self.device)
        size = (self.image_size, self.image_size)
        read = list(ahead(lambda sample: (sample.category, resize(sample.image(), size)), samples))
        if not read:
            raise WrongInput("DFD needs at least 1 normal picture, better 4; got none.")
        given, side = [picture for _, picture in read], self.side_of(read[0][0])
        pictures = unseen = given
        if self.select == "pseudo" and len(given) >= HELD_OUT:
            pictures, unseen = [p for i, p in enumerate(given) if i % HELD_OUT], given[::HELD_OUT]
        net = network(self, learn=())
        form = self.form_for(net.channels)
        copies = Copies(self, pictures, side)
        with seeded(self.seed):
            networks = new_networks(form, self.used_paths).to(device)

        count = self.per_picture * len(pictures)
        shown, rows_of = self.lessons(net, copies, count, form, device)

        def loss(batch: Any) -> Any:
            p, noise, mask = rows_of(batch)
            normal, pasted = ([p[:, i].flatten(0, 1) for i in some] for some in self.halves)
            return train_loss(networks, normal, pasted, mask, [noise[:, i].flatten(0, 1) for i in self.halves[0]])

        validate = self.validation(net, networks, Copies(self, unseen, side), count)
        rates = {"gaussian": self.lr_gaussian * PUBLISHED_DIM / form.dim, "perlin": self.lr_perlin}
        groups = [Group(networks[path], lr=rates[path]) for path in self.used_paths]
        groups.append(Group(networks["adaptor"], lr=self.lr_adaptor, weight_decay=0.0, schedule="constant"))
        recipe, data = self.recipe(device.type, len(shown)), self.data(given, net.fingerprint)
        done = train(loss, groups, shown, recipe, validate=validate, data=data)
        self.form, self.networks = asdict(form), parameters_of(networks)
        self.trained = {
            "steps": done.steps,
            "loss": done.loss,
            "kept": done.best_step or done.steps,
            "how": self.select,
        }
        self.scale = self.scale_of(net, networks.eval(), pictures, copies)
        return self

    def form_for(self, channels: Sequence[int]) -> Form:
        """Of the networks, for a backbone with these channels."""
        dim = sum(channels) if self.dim is None else self.dim
        heads = max(n for n in range(1, max(1, dim // 96) + 1) if dim % n == 0) if self.heads is None else self.heads
        form = Form(
            dim,
            max(1, dim * 2 // 3) if self.hidden is None else self.hidden,
            heads,
            self.image_size // min(self.strides),
        )
        if min(asdict(form).values()) < 1 or dim % heads:
            raise WrongInput(
                "DFD needs dim, hidden and heads of 1 or more, and dim a multiple of heads; got "
                f"dim={dim}, hidden={form.hidden} and heads={heads}."
            )
        return form

    def recipe(self, device: str, per_epoch: int) -> Recipe:
        """How to train on "cpu" or "cuda", for so many batches per epoch."""
        preset = ("published" if device == "cuda" else "small") if self.preset == "auto" else self.preset
        epochs, steps = self.epochs, self.steps
        if epochs is None and steps is None:
            epochs, steps = LENGTH[preset].get("epochs"), LENGTH[preset].get("steps")
        elif steps is not None:
            epochs = None
        return Recipe(
            epochs=epochs,
            steps=steps,
            lr=self.lr_gaussian,
            weight_decay=WEIGHT_DECAY,
            schedule="cosine",
            lr_end=LR_END,
            decay_until=DECAY_UNTIL,
            changes="epoch" if epochs else "step",
            keep="last" if self.select == "last" else "best",
            validate_every=max(1, (steps or (epochs or 0) * per_epoch) // ROUNDS),
            patience=self.patience,
            seed=self.seed,
        )

    @property
    def used_paths(self) -> tuple[Path, ...]:
        return ("perlin", "gaussian") if self.paths == "both" else (self.paths,)

    @property
    def halves(self) -> tuple[range, range]:
        """Places in a lesson of the bands of the good picture, and of the one with a defect."""
        count = len(BANDS[self.frequencies])
        return range(count), range(count, 2 * count if "perlin" in self.used_paths else count)

    def side_of(self, category: str) -> Literal["bright", "dark"] | None:
        """Where defects are drawn; None is everywhere."""
        if self.foreground == "auto":
            return THINGS.get(category)
        return None if self.foreground == "none" else self.foreground

    def data(self, pictures: Sequence[np.ndarray], weights: str) -> str:
        """A name of the training data, for checkpoints."""
        free = ("device", "engine", "threads", "limit_memory", "normalize", "sigma")
        return named(pictures, weights, {k: v for k, v in self.settings().items() if k not in free})

    def lessons(
        self, net: Any, copies: Copies, count: int, form: Form, device: Any
    ) -> tuple[Shuffled[int], Callable[[Any], tuple[Tensor, ...]]]:
        """(batches for `train`; batch -> patch features p (B, pictures of a lesson, T, D), noise (B, bands, T, D) and
        masks (B, S, S)).

        A lesson is the bands of a copy, then those of the copy with a defect. On a CPU its features are kept, else its
        pictures, as long as there is memory: copies are drawn again and again.
        """
        import torch

        bands, ends = self.halves[0].stop, self.halves[1].stop
        on_cpu, lock = device.type == "cpu", threading.Lock()

        def features(images: np.ndarray) -> Tensor:  # (N, 3, S, S) -> (N, T, D)
            with torch.no_grad():
                maps = [torch.as_tensor(m, device=device) for m in net(images)]
                return patch_features(maps, form.dim, form.dim).unflatten(0, (len(images), -1))

        def lesson(index: int) -> tuple[np.ndarray, np.ndarray]:
            copy = copies(index)
            images = np.concatenate([self.bands(x[None])[:, 0] for x in (copy.normal, copy.pasted)])[:ends]
            if not on_cpu:
                return images, copy.mask
            with lock:  # the network has as many threads as there are cores
                return to_numpy(features(images)), copy.mask

        kept = Kept(lesson, parse_bytes(self.limit_memory))

        def load(index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
            noise = rng.standard_normal((bands, form.cells**2, form.dim), np.float32)
            return *kept(index), noise * np.float32(self.noise * (PUBLISHED_DIM / form.dim) ** 0.5)

        def rows_of(batch: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
            given, mask, noise = batch
            p = (
                torch.from_numpy(given)
                if on_cpu
                else features(given.reshape(-1, *given.shape[2:])).unflatten(0, (-1, ends))
            )
            return p, torch.as_tensor(noise, device=device), torch.as_tensor(mask, device=device)

        return Shuffled(range(count), self.batch_size, load, self.seed, replace=True), rows_of

    def validation(self, net: Any, networks: Module, copies: Copies, count: int) -> Callable[[], float] | None:
        """What tells the best moment of the training: image AUROC + pixel AUROC + AUPRO; None where the last is kept."""
        if self.select == "last":
            return None
        if self.select == "oracle_test":
            test = open_folder(self.test_folder).test()
            LOG.warning("dfd is chosen on the test pictures of %s: its figures there are too good.", self.test_folder)

        def batches_of() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            size = (self.image_size, self.image_size)
            if self.select == "oracle_test":
                for batch in batches(test, size, self.batch_size):
                    yield batch.images, np.stack([mask_of(sample, size) for sample in batch.samples])
            else:
                for index in range(count, count + HELD):  # copies that no lesson is made of
                    copy = copies(index)
                    yield np.stack([copy.normal, copy.pasted]), np.stack([np.zeros(size, bool), copy.mask])

        def validate() -> float:
            found: dict[Path, list[np.ndarray]] = {path: [] for path in self.used_paths}
            masks = []
            for images, mask in batches_of():
                for path, values in self.path_maps(net, networks, images).items():
                    found[path].append(values)
                masks.append(mask)
            joined = {path: np.concatenate(values) for path, values in found.items()}
            scores, maps = fuse(joined, scale_by_set(joined))
            truth = np.concatenate(masks)
            labels = truth.any(axis=(1, 2)).astype(int)
            of_image = metrics.image(scores, labels, ["auroc"])
            of_pixel = metrics.pixel(list(maps), list(truth), which=["auroc", "aupro"])
            return float(np.nansum([m.value for m in (*of_image.values(), *of_pixel.values())]))

        return validate

    def scale_of(self, net: Any, networks: Module, pictures: Sequence[np.ndarray], copies: Copies) -> dict[Path, Any]:
        """What brings both paths to one scale, from good pictures and drawn defects: see `fuse`."""
        chosen = [*map(as_input, pictures[:HELD]), *(copies(i).pasted for i in range(HELD))]
        found = [
            self.path_maps(net, networks, np.stack(chosen[i : i + self.batch_size]))
            for i in range(0, len(chosen), self.batch_size)
        ]
        scale: dict[Path, Any] = {}
        for path in self.used_paths:
            values = np.concatenate([f[path] for f in found])
            ends = {"score": values.max(axis=(1, 2)), "map": values}
            scale[path] = {k: affine(*np.percentile(v, OUTER)) for k, v in ends.items()}
        return scale

    # --- judging ---

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        net, networks = network(self), self.ready()
        scale = self.scale
        judged = (
            (batch, self.path_maps(net, networks, batch.images))
            for batch in batches(samples, (self.image_size, self.image_size), self.batch_size)
        )
        if self.normalize == "test_set":
            held = list(judged)
            if not held:
                return
            scale = scale_by_set({path: np.concatenate([maps[path] for _, maps in held]) for path in self.used_paths})
            judged = (pair for pair in held)
        for batch, found in judged:
            scores, maps = fuse(found, scale)
            for sample, score, values, size in zip(batch.samples, scores, maps, batch.sizes, strict=True):
                yield Prediction(sample.id, float(score), resize_map(values, size))

    def path_maps(self, net: Any, networks: Module, images: np.ndarray) -> dict[Path, np.ndarray]:
        """Pictures (B, 3, S, S) in [0, 1] -> for each path its maps (B, S, S), the sum over bands."""
        import torch

        bands = self.bands(images)
        device = next(networks.parameters()).device
        maps = [torch.as_tensor(m, device=device) for m in net(bands.reshape(-1, *bands.shape[2:]))]
        n = maps[0].shape[-1]
        dim = networks["adaptor"].in_features
        with torch.no_grad():
            q = networks["adaptor"](patch_features(maps, dim, dim))
            grids = {path: -networks[path](q).reshape(len(bands), -1, n, n) for path in self.used_paths}
        return {path: enlarge(to_numpy(g), self.image_size, self.sigma).sum(axis=0) for path, g in grids.items()}

    def bands(self, images: np.ndarray) -> np.ndarray:
        """Pictures (B, 3, S, S) -> what the network sees of them, (bands, B, 3, S, S)."""
        if self.channel_order == "bgr":
            images = np.ascontiguousarray(images[:, ::-1])
        if self.frequencies == "rgb":
            return images[None]
        low, high = split(images)
        if self.normalize_high == "zero_mean":
            high = high + MEAN
        both = {"low": low, "high": high}
        return np.stack([both[band] for band in BANDS[self.frequencies]])

    def state(self) -> str:
        if not self.fitted:
            return ""
        said = f"The discriminators were trained for {self.trained['steps']} steps, loss {self.trained['loss']:.3g}."
        if self.trained["how"] == "pseudo":
            said += f" Step {self.trained['kept']} was best on drawn defects and is kept."
        if self.trained["how"] == "oracle_test":
            said += (
                f" Step {self.trained['kept']} was chosen on the test pictures: figures measured there are too good."
            )
        return said

    def ready(self) -> Module:
        """The trained networks, built once from what was learnt."""
        import torch

        kept = self.__dict__.get("_ready")
        if kept is None or kept[0] is not self.networks:
            torch.set_num_threads(self.threads or min(torch.get_num_threads(), cores()))
            made = load_parameters(new_networks(Form(**self.form), self.used_paths), self.networks)
            kept = self.__dict__["_ready"] = (self.networks, made.to(training_device(self.device)))
        return kept[1]


# --- lessons ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A turned good picture, the same with a drawn defect, (3, S, S) float32 in [0, 1], and where it is, (S, S) bool."""

    normal: np.ndarray
    pasted: np.ndarray
    mask: np.ndarray


class Copies:
    """Copy number `index`: of picture index % k, the same one every time it is asked for."""

    def __init__(self, detector: DFD, pictures: Sequence[np.ndarray], side: Literal["bright", "dark"] | None):
        self.detector, self.pictures, self.side = detector, pictures, side
        self.defects = PerlinDefects(detector.textures, detector.normal_share)

    def __call__(self, index: int) -> Copy:
        rng = np.random.default_rng((self.detector.seed, index))
        image = to_float(self.pictures[index % len(self.pictures)])
        ground = float(image[0, 0, 0]) if self.side else 0.0
        if self.detector.rotation == "quarter":
            image = np.rot90(image, int(rng.integers(-1, 2))).copy()
        else:
            image = rotated(
                image, float(rng.uniform(-90, 90)), None if self.detector.rotation_fill == "reflect" else ground
            )
        made = self.defects(image, rng, foreground(image, self.side) if self.side else None)
        return Copy(np.moveaxis(image, 2, 0), np.moveaxis(made.image, 2, 0), made.mask)


class Kept:
    """make(index), remembered as long as `limit` bytes allow."""

    def __init__(self, make: Callable[[int], tuple[np.ndarray, ...]], limit: int):
        self.make, self.left = make, limit
        self.made: dict[int, tuple[np.ndarray, ...]] = {}

    def __call__(self, index: int) -> tuple[np.ndarray, ...]:
        found = self.made.get(index)
        if found is None:
            found = self.make(index)
            needed = sum(a.nbytes for a in found)
            if needed <= self.left:
                self.made[index] = found
                self.left -= needed
        return found


def mask_of(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """(*size) bool; a sample without a mask is normal everywhere."""
    return soft_mask(sample.mask.read() == 1, size) > 0.5 if sample.mask else np.zeros(size, bool)


def rotated(image: np.ndarray, degrees: float, fill: float | None) -> np.ndarray:
    """(H, W, 3) float32 turned about the centre, bilinear; corners get `fill`, or with None are mirrored."""
    height, width = image.shape[:2]
    margin = 0 if fill is not None else int(0.25 * max(height, width))  # (sqrt(2) - 1) / 2 of a square is seen
    if margin:
        image = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    planes = [
        np.asarray(Image.fromarray(plane).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill or 0.0))
        for plane in np.ascontiguousarray(np.moveaxis(image, 2, 0))
    ]
    return np.stack(planes, axis=2)[margin : margin + height, margin : margin + width]


# --- fine-grained feature construction --------------------------------------------------------------------------------


def patch_features(maps: Sequence[Tensor], per_layer: int, dim: int) -> Tensor:
    """Feature maps (B, C, h, w) of each stride, finest first -> rows p (B * T, dim)."""
    from torch.nn.functional import adaptive_avg_pool1d

    return adaptive_avg_pool1d(layer_features(maps, per_layer).flatten(1)[None], dim)[0]


def layer_features(maps: Sequence[Tensor], per_layer: int) -> Tensor:
    """Rows (B * T, layers, per_layer): the 3 x 3 windows of each map, C * 9 numbers averaged to per_layer.

    Windows are resized to the finest grid. That is done last: averaging over channels and resizing over places can be
    exchanged, and the coarse grid has a quarter of the windows.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool1d, interpolate, unfold

    layers = []
    for x in maps:
        windows = unfold(x, 3, padding=1).transpose(1, 2)  # (B, h * w, C * 9), zeros beyond the border
        pooled = adaptive_avg_pool1d(windows, per_layer).transpose(1, 2).unflatten(2, x.shape[2:])
        if x.shape != maps[0].shape:
            pooled = interpolate(pooled, maps[0].shape[2:], mode="bilinear", align_corners=False)
        layers.append(pooled.flatten(2).transpose(1, 2).flatten(0, 1))
    return torch.stack(layers, dim=1)


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """Of the networks. dim: D. hidden: of phi^G. heads: of phi^P, which divide D. cells: n, per side of the grid."""

    dim: int
    hidden: int
    heads: int
    cells: int


def new_networks(form: Form, paths: Sequence[Path] = ("perlin", "gaussian")) -> Module:
    """Untrained modules `adaptor`, `gaussian` and `perlin`, all from rows (B * T, D), by torch's generator.

    The discriminators return (B * T, 1); high is normal.
    """
    from torch import nn

    made = nn.ModuleDict({"adaptor": nn.Linear(form.dim, form.dim)})
    nn.init.xavier_normal_(made["adaptor"].weight)
    if "gaussian" in paths:
        made["gaussian"] = nn.Sequential(*_layer(form.dim, form.hidden), nn.Linear(form.hidden, 1, bias=False))
        for module in (made["gaussian"][0], made["gaussian"][-1]):
            nn.init.xavier_normal_(module.weight)
    if "perlin" in paths:
        made["perlin"] = nn.Sequential(
            *_layer(form.dim, form.dim), _transformer(form), nn.Linear(form.dim, 1, bias=False)
        )
    return made


def _layer(inside: int, out: int) -> list[Module]:
    from torch import nn

    norm = nn.BatchNorm1d(out)
    norm.num_batches_tracked = None  # a counter that nothing reads: neither saved nor compared
    return [nn.Linear(inside, out), norm, nn.LeakyReLU(0.2)]


def _transformer(form: Form) -> Module:
    """Rows -> rows: one block of a vision transformer over the cells of each picture, with a class token beside them."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.empty(1, 1, form.dim))
            self.positions = nn.Parameter(torch.empty(1, form.cells**2 + 1, form.dim))
            self.block = nn.TransformerEncoderLayer(
                form.dim, form.heads, 4 * form.dim, dropout=0.0, activation="gelu", layer_norm_eps=1e-6,
                batch_first=True, norm_first=True,
            )  # fmt: skip
            self.norm = nn.LayerNorm(form.dim, eps=1e-6)
            nn.init.normal_(self.token, std=1e-6)
            nn.init.trunc_normal_(self.positions, std=0.02)
            for name, tensor in self.block.named_parameters():
                if "norm" not in name:
                    nn.init.zeros_(tensor) if tensor.ndim == 1 else nn.init.trunc_normal_(tensor, std=0.02)

        def forward(self, rows: Tensor) -> Tensor:
            x = rows.unflatten(0, (-1, form.cells**2))
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
            return self.norm(self.block(x))[:, 1:].flatten(0, 1)

    return Transformer()


# --- losses -----------------------------------------------------------------------------------------------------------


def train_loss(
    networks: Module, normal: Sequence[Tensor], pasted: Sequence[Tensor], mask: Tensor, noise: Sequence[Tensor]
) -> Tensor:
    """L, the sum over bands of L_Gau + L_Per + L_Sim, of the paths that there are.

    normal, pasted: rows p for each band. mask: (B, S, S), 1 where a defect is. noise: rows for each band, added to q.
    """
    q = [adapted(networks["adaptor"], p) for p in normal]
    total = normal[0].new_zeros(())
    if "perlin" in networks:
        for (clean, _), p in list(zip(q, pasted, strict=True))[::-1]:  # the authors' order, which batch norm remembers
            defective, judged = adapted(networks["adaptor"], p)
            total = total + perlin_loss(networks["perlin"](judged), mask) + similarity(clean, defective, mask)
    if "gaussian" in networks:
        for (_, judged), e in zip(q, noise, strict=True):
            total = total + gaussian_loss(networks["gaussian"](_both(judged, judged + e)))
    return total


def adapted(adaptor: Module, p: Tensor) -> tuple[Tensor, Tensor]:
    """Rows q, and the same rows for a discriminator that is learning: from there no gradient reaches the bias.

    The batch norm behind the discriminator's first layer takes away what all rows have in common, so that gradient is
    zero. Added up over thousands of rows in float32 it is not: its rounding errors can be larger than the bias's gradient
    from L_Sim, and Adam would follow them.
    """
    from torch.nn.functional import linear

    rows = linear(p, adaptor.weight)
    return rows + adaptor.bias, rows + adaptor.bias.detach()


def _both(*rows: Tensor) -> Tensor:
    import torch

    return torch.cat(rows)


def gaussian_loss(scores: Tensor) -> Tensor:
    """L_Gau of phi^G on rows [q; q + noise], scored together so that batch norm sees both."""
    clean, noisy = scores.chunk(2)
    return hinge(clean).mean() + hinge(-noisy).mean()


def perlin_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """L_Per of phi^P on rows q: half of each of `perlin_losses`."""
    pixel, image = perlin_losses(scores, mask)
    return 0.5 * pixel + 0.5 * image


def perlin_losses(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(L_pix, L_cls) of scores (B * T, 1) and masks (B, S, S)."""
    import torch
    from torch.nn.functional import interpolate, mse_loss

    cells = int((len(scores) // len(mask)) ** 0.5)
    s = interpolate(scores.reshape(-1, 1, cells, cells), mask.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    bad = mask > 0
    pixel = torch.stack([part.mean() for part in (hinge(-s[bad]), hinge(s[~bad])) if part.numel()]).sum()
    return pixel, mse_loss(torch.sigmoid(-s).amax(dim=(1, 2)), bad.any(dim=2).any(dim=1).to(s))


def similarity(normal: Tensor, pasted: Tensor, mask: Tensor) -> Tensor:
    """L_Sim: mean cosine of rows q of good pictures and of those with defects, in the cells that hold a defect; or 0."""
    from torch.nn.functional import cosine_similarity

    inside = on_grid(mask, int((len(normal) // len(mask)) ** 0.5)).flatten() > 0
    return cosine_similarity(normal[inside], pasted[inside]).mean() if inside.any() else normal.new_zeros(())


def on_grid(mask: Tensor, cells: int) -> Tensor:
    """Masks (B, S, S) -> (B, cells, cells) float, 1 where any pixel of a cell is."""
    from torch.nn.functional import max_pool2d

    return max_pool2d(mask.float()[:, None], mask.shape[-1] // cells)[:, 0]


def hinge(scores: Tensor) -> Tensor:
    """max(0, MARGIN - s): what is missing for a normal place."""
    return (MARGIN - scores).clamp(min=0)


# --- maps and their fusion --------------------------------------------------------------------------------------------


def enlarge(grids: np.ndarray, side: int, sigma: float) -> np.ndarray:
    """(..., n, n) -> (..., side, side): bilinear, then a Gaussian of sigma pixels."""
    dtype: Any = grids.dtype.type
    matrix = smooth_matrix(grids.shape[-1], side, sigma, dtype=dtype)
    return matrix @ grids @ matrix.T


def fuse(found: Mapping[Path, np.ndarray], scale: Mapping[Path, Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Maps (B, S, S) of each path -> image scores (B,) and maps (B, S, S): the mean over paths, brought to one scale.

    scale: for each path (slope, shift) of its "score", which is its highest map value, and of its "map".
    """
    scores, maps = [], []
    for path, values in found.items():
        (slope, shift), (map_slope, map_shift) = scale[path]["score"], scale[path]["map"]
        scores.append(values.max(axis=(1, 2)) * slope + shift)
        maps.append(values * values.dtype.type(map_slope) + values.dtype.type(map_shift))
    return sum(scores) / len(scores), sum(maps) / len(maps)


def affine(low: np.ndarray | float, high: np.ndarray | float) -> tuple[float, float]:
    """(slope, shift) that takes low to 0 and high to 1; of several pairs, the mean of what each says."""
    width = np.maximum(np.asarray(high, np.float64) - low, 1e-12)
    return float(np.mean(1 / width)), float(np.mean(-np.asarray(low, np.float64) / width))


def scale_by_set(found: Mapping[Path, np.ndarray]) -> dict[Path, dict[str, tuple[float, float]]]:
    """What `fuse` needs, from the very maps (N, S, S) it joins, as the authors do.

    Scores by their smallest and largest. Maps by the mean of what each picture's smallest and largest value say, which is
    one straight line for all of them.
    """
    out = {}
    for path, values in found.items():
        peaks, floors = values.max(axis=(1, 2)), values.min(axis=(1, 2))
        out[path] = {"score": affine(peaks.min(), peaks.max()), "map": affine(floors, peaks)}
    return out


DETECTOR = DFD
