"""VLAD: a frozen CLIP and linear layers that learn from drawn defects what "damaged" looks like; references sharpen the map.

Sun, Cao, Fink 2024, "CUT: A Controllable, Universal, and Training-Free Visual Anomaly Generation Framework",
https://arxiv.org/abs/2406.01078v1, train a detector of this name on generated pictures; how is not public, no code was
published, and the second version leaves it out. This is our reading, in the style of the adapters for CLIP of its time:

    picture -> frozen CLIP -> patch tokens f_l of four blocks, and the token of the picture c
    s_l = softmax(cos(W_l f_l, [t+, t-]) / 0.01), the share of t-        p = the same of c + 0.2 (A(c) - c)
    r_l = (1 - max cos(f_l, B_l)) / 2, B_l tokens of K good pictures
    map = mean over l of s_l; with references half of that, half the mean of r_l; blurred
    score = half p, half the mean of the highest 0.5 % of the map

t+, t-: mean of sentences on a good and a damaged thing. W_l and A learn from pairs of a good picture and one with a drawn
defect. A backbone without language has t+ and t- learnt too. Shapes: B pictures of side S, N patches, C channels of a
layer, E of the space in which patches and sentences meet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageEnhance

from .. import __version__, backbones, synthesis
from ..backbones import Device
from ..backbones.clip import Precision, activation_of, load, tokenise
from ..datasets import open_folder
from ..detector import Detector
from ..errors import MissingWeights, NotMade, WrongInput
from ..images import resize, to_8bit
from ..parts.auxiliary import read_adapter, require_shapes, soft_mask, write_adapter
from ..parts.batches import ahead, batches
from ..parts.distillation import as_input, named
from ..parts.grids import bilinear_matrix, blur_matrix, like, resize_map, to_numpy
from ..parts.losses import dice, focal
from ..parts.prompts import ABNORMAL, NORMAL, compose, name_of, unit
from ..parts.sizes import parse_bytes
from ..parts.threads import cores
from ..parts.train import (
    Group,
    Recipe,
    Report,
    Shuffled,
    Trained,
    load_parameters,
    parameters_of,
    seeded,
    train,
    training_device,
)
from ..types import Card, Prediction, Reported, Sample, View, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

CARD = Card(
    title="VLAD",
    paper="https://arxiv.org/abs/2406.01078v1",
    year=2024,
    venue="arXiv",
    summary="CLIP with linear layers that learn from defects drawn into good pictures, of any maker or painted by CUT; for "
    "the things they were drawn into, or for others.",
    repo="",
    code_licence="no-code",
    fidelity="reading",
    family="vision-language",
    settings=("zero-shot", "few-shot"),
    scope="open",
    normals=(0, 1),
    abnormals="none",
    auxiliary=("generated",),
    text="class-name",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural",),
    focus="any",
    backbone="CLIP ViT-L/14-336 @ 518",
    trains="gradient",
    fit_cost="F2",
    predict_cost="P2",
    gpu="yes",
    stored_mb=104.0,
    extras=("torch", "clip"),
    weights=(
        Weights(
            title="CLIP ViT-L/14-336 of OpenAI",
            files=("ViT-L-14-336px.pt", "timm/vit_large_patch14_clip_336.openai"),
            source="https://github.com/openai/CLIP",
            licence="MIT",
            commercial=True,
        ),
    ),
    pose="free",
    external=(),
    determinism="seeded",
    differs="only the name and the training on generated pictures are public; architecture, loss and schedule are ours. "
    "Drawn defects of seven makers are the default, as CUT needs Stable Diffusion: its pictures are taken from a folder "
    "(generated=FOLDER). A backbone without language (timm:..., tiny) has a linear head in place of sentences: t+ and t- are "
    "two learnt directions, and the highest value of each channel stands for the token of the picture. Each "
    "lesson is turned, mirrored and recoloured once, not in every epoch, so that frozen features are computed once",
    pitfalls=(
        "it learns what is drawn: a kind of defect that no maker resembles is left to the references",
        "without CLIP (ResNet18, four real categories) its references alone and patchcore were better than what it learnt",
        "a training on drawn defects says nothing of missing or misplaced parts",
        "without a GPU CLIP ViT-L at 518 pixels takes seconds for each of 100 pictures per category before it learns",
        "one threshold per category: maps of different categories are not on one scale",
    ),
    reported=(
        Reported(
            "mvtec", "1-shot, trained on AnomalyAny's pictures (second version)", "image_auroc", 94.9, "third-party"
        ),
        Reported(
            "mvtec", "1-shot, trained on AnomalyAny's pictures (second version)", "pixel_auroc", 95.4, "third-party"
        ),
        Reported(
            "visa", "1-shot, trained on AnomalyAny's pictures (second version)", "image_auroc", 89.7, "third-party"
        ),
        Reported(
            "visa", "1-shot, trained on AnomalyAny's pictures (second version)", "pixel_auroc", 97.7, "third-party"
        ),
    ),
)

DRAWN = ("perlin", "cutpaste", "scratch", "stain", "paste", "blur", "frequency")  # those that take milliseconds
LENGTH: dict[str, dict[str, int]] = {"published": {"epochs": 20}, "small": {"steps": 150}}
TEMPLATES = (
    "a photo of {}.", "a picture of {}.", "a close-up of {}.", "an image of {}.", "a view of {}.", "a photograph of {}.",
    "a photo that shows {}.", "here is {}.", "this is {}.", "{}.",
)  # fmt: skip
TEMPERATURE = 0.01  # of the softmax over cosines
RESIDUAL = 0.2  # share of the adapted token of the picture
NARROW = 4  # times narrower inside that adapter
WORDS, PROMPT_LR = 4, 1e-4  # learnt words on each side, and their learning rate
SIDE = 256  # pixels of S for which sigma holds
TOP = 0.005  # share of the map that the score looks at
WIDTH = 256  # E of a backbone without language
STRIDES = (8, 16)  # of its maps
IGNORED = 255
HELD_OUT = 5  # one lesson of so many, where the best moment is looked for
TURN, JITTER = 10.0, 0.1  # degrees; change of brightness, contrast and colour


@dataclass
class VLAD(Detector):
    """Learns from drawn defects what damage looks like, and compares with references.

    backbone: clip:NETWORK, or timm:NETWORK and tiny, which know no language, see the card.
    adapter: file of `train_auxiliary`: predict then needs no fit, and fit keeps references and trains nothing; "" is what
        was trained here; "random" is like "", but predict runs before fit, with layers that know nothing.
    makers: which defects are drawn, see docs/synthesis.md; () is seven quick ones, and none where `generated` is given.
    generated: folder of `anomalens synth` or of CUT, whose pictures with a defect are learnt from; with `makers` half of
        the lessons is of each. generations: M, lessons of each category.
    shots: K, references kept of each category; 0 is none. rotations: also turned by 90, 180 and 270 degrees.
    image_size: S, pixels, a multiple of the patch size. layers: blocks to tap, 1 is the first, () the quarters of the
        depth; of other backbones strides, () is 8, 16.
    object: what the thing is called; "" is its category, else "object". phrases: defects in words, for more sentences on
        damaged things; those of CUT's pictures are added.
    learn_prompts: in place of templates four learnt words on each side.
    preset: "published" is 20 epochs, "small" 150 steps; "auto" is the former on a GPU, the latter on a CPU. epochs, steps:
        other lengths; steps counts before epochs. batch_size: pictures per step, half of them good.
    augment: lessons are mirrored, turned by up to 10 degrees and recoloured.
    select: the moment that is kept, the "last" or the "best" on every fifth lesson, which is then not learnt from.
    sigma: Gaussian blur of the map, in pixels of a picture of 256.
    limit_memory: bytes, or text such as `1GB`, for features kept while training on a CPU.
    """

    backbone: str = "clip:ViT-L-14-336"
    adapter: str = ""
    makers: tuple[str, ...] = ()
    generated: str = ""
    generations: int = 50
    shots: int = 4
    rotations: bool = False
    image_size: int = 518
    layers: tuple[int, ...] = ()
    object: str = ""
    phrases: tuple[str, ...] = ()
    learn_prompts: bool = False
    preset: Literal["auto", "published", "small"] = "auto"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 16
    lr: float = 1e-3
    augment: bool = True
    select: Literal["last", "best"] = "last"
    sigma: float = 4.0
    precision: Precision = "float32"
    limit_memory: int | str = "1GB"
    device: Device = "auto"
    threads: int | None = None
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("weights", "parts", "memory", "trained")

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("generations", 1), ("shots", 0), ("batch_size", 2), ("sigma", 0)):
            if getattr(self, name) < least:
                raise WrongInput(f"VLAD {name}={getattr(self, name)} is too low; it must be at least {least}.")
        if any(layer < 1 for layer in self.layers) or list(self.layers) != sorted(set(self.layers)):
            raise WrongInput(f"VLAD layers={self.layers} must be numbers from 1 up, each above the one before.")
        if self.learn_prompts and not self.has_language:
            raise WrongInput(f"VLAD learn_prompts needs a backbone with language, clip:NETWORK; got {self.backbone!r}.")
        for maker in self.makers:
            synthesis.card(maker)  # an unknown name is said here
        # sha256 of the backbone that the rest was made with, as {"fingerprint": ...}
        self.weights: dict[str, str] | None = None
        # W_l and A, and what else was learnt, by name
        self.parts: dict[str, np.ndarray] | None = None
        # category -> for each layer the unit tokens of its references (rows, C)
        self.memory: dict[str, list[np.ndarray]] | None = None
        # steps, loss, lessons, "here" or the file or the things learnt from elsewhere, phrases
        self.trained: dict[str, Any] | None = None

    @property
    def has_language(self) -> bool:
        return self.backbone.startswith("clip:")

    @property
    def needs_fit(self) -> bool:
        return not (self.adapter or self.learnt_elsewhere)

    @property
    def learns(self) -> bool:
        return True

    @property
    def fitted(self) -> bool:
        return self.parts is not None or bool(self.adapter)

    @property
    def learnt_elsewhere(self) -> bool:
        """Whether the layers come from other things, so that fit leaves them alone."""
        return (self.trained or {}).get("where", "here") != "here" or self.adapter not in ("", "random")

    def unfitted(self) -> Self:
        """Without references; what was learnt from other things stays."""
        fresh = super().unfitted()
        if self.learnt_elsewhere:
            fresh.parts, fresh.weights, fresh.trained = self.parts, self.weights, self.trained
        fresh.__dict__.update({k: v for k, v in self.__dict__.items() if k == "_eye"})
        return fresh

    def state(self) -> str:
        told = []
        if self.trained and "steps" in self.trained:
            where = "" if self.trained["where"] == "here" else f" on {self.trained['where']}"
            told.append(f"It learnt from {self.trained['lessons']} defects{where} in {self.trained['steps']} steps.")
        if self.memory:
            held = ", ".join(f"{len(rows[0])} patches of {c or 'object'}" for c, rows in self.memory.items())
            told.append(f"It compares with {held} from good pictures.")
        return " ".join(told)

    # --- learning -----------------------------------------------------------------------------------------------------

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Draw defects into good pictures, learn to find them, and keep `shots` of the pictures as references.

        Raises:
            WrongInput: no samples, or nothing to learn from in `generated`. NotMade: no maker shows anything in them.
            MissingWeights, MissingExtra: as the backbone and `adapter`. Diverged: the loss is not finite.
        """
        good = by_category(samples)
        if not good:
            raise WrongInput("VLAD got no good picture to draw defects into; give some, or an adapter and no fit.")
        if not self.learnt_elsewhere:
            bad = self.from_folder(good) if self.generated else {}
            self.learn(good, bad, self.recipe(training_device(self.device).type), where="here")
        else:
            self.head()  # what is missing is said before the work
        rng = np.random.default_rng(self.seed)
        self.memory = {}
        for category, alike in good.items() if self.shots else ():
            drawn = sorted(rng.choice(len(alike), min(self.shots, len(alike)), replace=False))
            self.memory[category] = self.tokens_of([alike[i] for i in drawn])
        return self

    def train_auxiliary(
        self,
        samples: Iterable[Sample],
        *,
        epochs: int = 20,
        out: str | Path | None = None,
        checkpoints: str | Path | None = None,
        report: Report | None = None,
    ) -> Trained:
        """Learn from other things what damage looks like, for things that are then judged with no or few good pictures.

        Defects are drawn into the good samples of each category. Anomalous samples that have masks, of any maker or real,
        are learnt from instead; where `makers` are named, half and half.

        out: .safetensors file to write, with facts about the training inside, for `adapter`. checkpoints: a folder; what
            an interrupted training of the same settings and samples left there is continued.

        Raises:
            WrongInput: no good sample, of all or of a category with anomalous ones; or one that nobody has labelled.
            NotMade, Diverged: as `fit`.
        """
        samples = list(samples)
        if unknown := next((s for s in samples if s.label is None), None):
            raise WrongInput(f"sample {unknown.id} has no label; training needs to know whether it is anomalous.")
        good = by_category(s for s in samples if s.label != 1)
        bad = by_category(s for s in samples if s.label == 1 and s.mask is not None)
        if not good or (lonely := [c for c in bad if c not in good]):
            of = f" of {lonely[0] or 'no category'}" if good else ""
            raise WrongInput(f"VLAD learns from pairs of a good and a bad picture; got no good one{of}.")
        where = ", ".join(f"{c or 'object'}" for c in sorted(good))
        done = self.learn(good, bad, self.recipe_of({"epochs": epochs}), where, checkpoints, report)
        self.memory = None
        if out:
            facts = {
                "method": self.method, "backbone": self.backbone, "fingerprint": self.eye().fingerprint,
                "image_size": self.image_size, "layers": list(self.eye().layers), "trained": self.trained,
                "makers": list(self.makers or DRAWN), "generations": self.generations, "seed": self.seed,
                "pictures": dict(sorted(Counter(s.category or "object" for s in samples).items())),
                "anomalens": __version__,
            }  # fmt: skip
            write_adapter(Path(out), self.head().state_dict(), facts)
        return done

    def learn(
        self, good: Mapping[str, list[Sample]], bad: Mapping[str, list[Sample]], recipe: Recipe, where: str,
        checkpoints: str | Path | None = None, report: Report | None = None,
    ) -> Trained:  # fmt: skip
        """Train new layers on lessons of these pictures, and use them from now on."""
        device = training_device(self.device)
        import torch

        self.weights = None
        eye = self.eye().to(device)
        lessons = [lesson for c, alike in good.items() for lesson in self.lessons(alike, bad.get(c, []))]
        if self.select == "best" and len(lessons) < 2:
            raise WrongInput(
                "VLAD select='best' sets one lesson in five aside and got one in all; use 'last', or more."
            )
        phrases = [*dict.fromkeys((*self.phrases, *(phrase_of(s) for c in bad.values() for s in c)))]
        phrases = [phrase for phrase in phrases if phrase]
        head = self.new_head(self.learn_prompts).to(device)
        fixed: dict[str, Tensor] = {}

        def loss(batch: Sequence[np.ndarray], recall: Callable[[Sequence[np.ndarray]], Any]) -> Tensor:
            *given, masks, numbers = batch  # of pairs: the good picture, the bad one
            tokens, c = recall(given)
            T = eye.texts([lessons[i].name for i in numbers], head, phrases, fixed).repeat_interleave(2, dim=0)
            grids, p = forward(head, tokens, c, T)
            truth = torch.as_tensor(np.stack([np.zeros_like(masks), masks], axis=1), device=device).flatten(0, 1)
            label = torch.tensor([0.0, 1.0], device=device).repeat(len(numbers))
            return sum(losses(self.enlarge(grids), p, truth, label).values())

        held = range(0, len(lessons), HELD_OUT) if self.select == "best" else range(0)
        shown, recall = self.shown(eye, lessons, [i for i in range(len(lessons)) if i not in held])
        unseen, recall_unseen = self.shown(eye, lessons, held)

        def validate() -> float:
            fixed.clear()  # of learnt words as they were an epoch ago
            return -float(np.mean([float(loss(batch, recall_unseen)) for batch in unseen(0)]))

        groups = [Group(head["adapters"])]
        if self.learn_prompts:
            groups.append(Group(head["prompts"], lr=PROMPT_LR))
        done = train(
            lambda batch: loss(batch, recall), groups, shown, recipe, validate=validate if held else None,
            folder=checkpoints, data=self.data(lessons, phrases), report=report,
        )  # fmt: skip
        self.parts, self.weights = parameters_of(head), {"fingerprint": eye.fingerprint}
        self.trained = {
            "steps": done.steps, "loss": done.loss, "lessons": len(lessons), "where": where, "phrases": phrases,
        }  # fmt: skip
        return done

    def recipe(self, device: str) -> Recipe:
        """How fit trains on "cpu" or "cuda"."""
        if self.steps is not None:
            return self.recipe_of({"steps": self.steps})
        if self.epochs is not None:
            return self.recipe_of({"epochs": self.epochs})
        preset = ("published" if device == "cuda" else "small") if self.preset == "auto" else self.preset
        return self.recipe_of(LENGTH[preset])

    def recipe_of(self, length: Mapping[str, Any]) -> Recipe:
        return Recipe(
            **length, lr=self.lr, weight_decay=1e-4, schedule="cosine", clip=1.0, keep=self.select, seed=self.seed
        )

    # --- lessons ------------------------------------------------------------------------------------------------------

    def lessons(self, good: Sequence[Sample], bad: Sequence[Sample]) -> list[Lesson]:
        """Up to M pairs of one category, at the size that the network sees; defects are drawn at that size too."""
        makers = self.makers or (() if bad else DRAWN)
        count = self.generations if not makers else self.generations // 2
        rng = np.random.default_rng((self.seed, 0))
        chosen = [bad[i] for i in sorted(rng.permutation(len(bad))[:count])]
        resized = list(ahead(self.resized, good))
        pairs = list(ahead(self.with_mask, chosen))
        if makers:
            pairs += self.drawn(resized, makers, self.generations - len(pairs))
        order = np.random.default_rng((self.seed, 1)).permutation(len(resized))
        made = []
        for i, (picture, mask) in enumerate(pairs):
            lesson = Lesson(name_of(good[0], self.object), resized[order[i % len(order)]].image(), picture, mask)
            made.append(lesson.augmented(np.random.default_rng((self.seed, 2, i))) if self.augment else lesson)
        return made

    def resized(self, sample: Sample) -> Sample:
        picture = resize(to_8bit(sample.image()), (self.image_size, self.image_size), "bicubic")
        return replace(sample, views={"image": View("image", partial(np.asarray, picture))}, label=0, mask=None)

    def with_mask(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Picture and mask of a sample with a defect, resized; 1 anomalous, 255 ignored."""
        assert sample.mask is not None
        given, size = sample.mask.read(), (self.image_size, self.image_size)
        mask = (soft_mask(given == 1, size) > 0.5).astype(np.uint8)
        mask[(soft_mask(given == IGNORED, size) > 0.5) & (mask == 0)] = IGNORED
        return self.resized(sample).image(), mask

    def drawn(
        self, good: Sequence[Sample], names: Sequence[str], count: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`count` pictures with a defect and their masks; where a maker shows nothing, the next one has its turn."""
        makers = [synthesis.create(name) for name in names]

        def draw(index: int) -> tuple[np.ndarray, np.ndarray] | None:
            with suppress(NotMade):
                return self.with_mask(synthesis.nth(good, makers, index, seed=self.seed))
            return None

        made = list(islice((pair for pair in ahead(draw, range(3 * count)) if pair), count))
        if not made:
            raise NotMade(
                f"{', '.join(names)} found nothing to show in {len(good)} pictures of {self.image_size} pixels, such as "
                f"{good[0].id}; name other makers."
            )
        return iter(made)

    def from_folder(self, good: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
        """Pictures with a defect in `generated`, by the categories of the good ones."""
        found = by_category(generations(self.generated))
        if len(good) == 1:  # whatever the folder calls it
            found = {next(iter(good)): [s for alike in found.values() for s in alike]}
        missing = [c for c in good if not found.get(c)]
        if missing:
            held = ", ".join(sorted(c or "no category" for c in found)) or "no pictures with a defect and its mask"
            raise WrongInput(
                f"generated={self.generated!r} has nothing of {missing[0] or 'the good pictures'}; it holds {held}."
            )
        return found

    def shown(self, eye: Eye, lessons: Sequence[Lesson], which: Sequence[int]) -> tuple[Shuffled[int], Any]:
        """(batches of pairs; what a batch holds of each -> tokens and c of all its pictures).

        A lesson is the same in every epoch, so on a CPU its features are kept where all of them fit `limit_memory`.
        """
        import torch

        pairs = max(1, self.batch_size // 2)

        def look(images: np.ndarray) -> list[np.ndarray]:
            tokens, c = eye(images.reshape(-1, *images.shape[-3:]))
            return [to_numpy(x).reshape(*images.shape[:-3], *x.shape[1:]) for x in (*tokens, c)]

        def from_images(given: Sequence[np.ndarray]) -> Any:
            return eye(given[0].reshape(-1, *given[0].shape[-3:]))

        def from_features(given: Sequence[np.ndarray]) -> Any:
            *tokens, c = (torch.from_numpy(x).flatten(0, 1) for x in given)
            return tokens, c

        def item(i: int, rng: np.random.Generator) -> tuple[Any, ...]:
            return lessons[i].images(), lessons[i].mask, np.int64(i)

        if which and eye.device.type == "cpu":
            first = look(lessons[which[0]].images())
            if len(which) * sum(x.nbytes for x in first) <= parse_bytes(self.limit_memory):
                kept = {i: look(lessons[i].images()) for i in which}
                return Shuffled(
                    which, pairs, lambda i, rng: (*kept[i], lessons[i].mask, np.int64(i)), self.seed
                ), from_features
        return Shuffled(which, pairs, item, self.seed), from_images

    def data(self, lessons: Sequence[Lesson], phrases: Sequence[str]) -> str:
        """A name of the training data, for checkpoints."""
        pictures = [x for lesson in lessons for x in (lesson.good, lesson.bad, lesson.mask)]
        told = [self.eye().fingerprint, self.eye().layers, self.learn_prompts, phrases, [x.name for x in lessons]]
        return named(pictures, told)

    # --- judging ------------------------------------------------------------------------------------------------------

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        head = self.head()
        for batch in batches(samples, (self.image_size, self.image_size), self.batch_size, interpolation="bicubic"):
            names = [name_of(s, self.object) for s in batch.samples]
            banks = [self.bank_of(s.category) for s in batch.samples] if self.memory else None
            out = self.trace(batch.images, names, banks, head)
            maps, scores = to_numpy(out["map"]), out["score"].tolist()
            for sample, values, score, picture in zip(batch.samples, maps, scores, batch.sizes, strict=True):
                yield Prediction(sample.id, score, resize_map(values, picture))

    def trace(
        self,
        images: np.ndarray,
        names: Sequence[str],
        banks: Sequence[Sequence[Tensor]] | None = None,
        head: Any = None,
    ) -> dict[str, Tensor]:
        """Every stage of a batch by name; all but cosines in [0, 1], higher is more anomalous.

        images: (B, 3, S, S) in [0, 1]. names: of the things. banks: for each picture the references, (rows, C) by layer.

        Returns:
            s.{l} (B, h, w) by layer; s (B, S, S), their mean; p (B,), of the whole picture; with banks r.{l} (B, h, w) and
            r (B, S, S); map (B, S, S), blurred; score (B,).
        """
        import torch

        head = self.head() if head is None else head
        eye = self.eye()
        with torch.no_grad():
            tokens, c = eye(images)
            T = eye.texts(names, head, (self.trained or {}).get("phrases", self.phrases), self.texts_of(head))
            grids, p = forward(head, tokens, c, T)
            out: dict[str, Tensor] = {f"s.{i}": grid for i, grid in enumerate(grids)}
            out["s"], out["p"] = self.enlarge(grids), p.sigmoid()
            found = out["s"]
            if banks is not None:
                far = [
                    square(torch.stack([distance(x, bank[i]) for x, bank in zip(layer, banks, strict=True)]))
                    for i, layer in enumerate(tokens)
                ]
                out |= {f"r.{i}": grid for i, grid in enumerate(far)}
                out["r"] = self.enlarge(far)
                found = (out["s"] + out["r"]) / 2
            out["map"] = self.blurred(found)
            out["score"] = (out["p"] + self.highest(out["map"])) / 2
        return out

    def blurred(self, maps: Tensor) -> Tensor:
        """(B, S, S) in [0, 1], the same."""
        blur = like(blur_matrix(self.image_size, self.sigma * self.image_size / SIDE), maps)
        return (blur @ maps @ blur.T).clamp(0, 1)

    def highest(self, maps: Tensor) -> Tensor:
        """(B, S, S) -> (B,), the mean of the highest 0.5 %."""
        return maps.flatten(1).topk(max(1, round(TOP * self.image_size**2)), dim=1).values.mean(dim=1)

    def enlarge(self, grids: Sequence[Tensor]) -> Tensor:
        """The mean of grids (B, h, w), each brought to (B, S, S)."""
        larger = []
        for grid in grids:
            up = like(bilinear_matrix(grid.shape[1], self.image_size), grid)
            larger.append(up @ grid @ up.T)
        return sum(larger) / len(larger)

    def tokens_of(self, references: Sequence[Sample]) -> list[np.ndarray]:
        """For each layer the unit tokens (rows, C) float32 of pictures, one after the other."""
        eye, kept = self.eye(), []
        for batch in batches(references, (self.image_size, self.image_size), self.batch_size, interpolation="bicubic"):
            for turn in range(4 if self.rotations else 1):
                tokens, _ = eye(np.rot90(batch.images, turn, axes=(2, 3)))
                kept.append([to_numpy(unit_rows(x).flatten(0, 1)) for x in tokens])
        return [np.concatenate(layer) for layer in zip(*kept, strict=True)]

    def bank_of(self, category: str) -> list[Tensor]:
        """References of a category on the device, by layer. Those of one category serve for all."""
        import torch

        memory = self.memory or {}
        if category not in memory and len(memory) > 1:
            raise WrongInput(
                f"VLAD has references of {', '.join(sorted(memory))}, none of {category or 'unnamed things'!r}; fit on good "
                "pictures of it too, or of one category alone."
            )
        key = category if category in memory else next(iter(memory))
        held: Any = self.__dict__.get("_banks")
        if held is None or held[0] is not memory:
            held = self.__dict__["_banks"] = (memory, {})
        if key not in held[1]:
            held[1][key] = [torch.as_tensor(np.asarray(rows), device=self.eye().device) for rows in memory[key]]
        return held[1][key]

    # --- networks -----------------------------------------------------------------------------------------------------

    def eye(self) -> Eye:
        """The frozen backbone, built once.

        Raises:
            MissingExtra, MissingWeights, UnknownName: as the backbone. WrongInput: a size or layer that it does not have,
            or other weights than those that something was learnt with.
        """
        if "_eye" not in self.__dict__:
            self.__dict__["_eye"] = WithLanguage(self) if self.has_language else WithoutLanguage(self)
        eye = self.__dict__["_eye"]
        known = (self.weights or {}).get("fingerprint", eye.fingerprint)
        if known != eye.fingerprint:
            raise WrongInput(
                f"this vlad learnt with other weights of {self.backbone} (sha256 {known[:12]}..., here "
                f"{eye.fingerprint[:12]}...); use the same weights, or fit again."
            )
        return eye

    def new_head(self, learnt_words: bool) -> nn.ModuleDict:
        """W_l, A and, where there are any, learnt directions and words, as they are before training, by the seed."""
        import torch
        from torch import nn

        eye = self.eye()
        with seeded(self.seed):
            adapters = {"patches": nn.ModuleList(nn.Linear(c, eye.embed) for c in eye.channels)}
            if not eye.speaks:
                adapters["whole"] = nn.ModuleList([nn.Linear(eye.channels[-1], eye.embed)])
            inside = max(1, eye.embed // NARROW)
            adapters["picture"] = nn.ModuleList([nn.Linear(eye.embed, inside), nn.Linear(inside, eye.embed)])
            made = nn.ModuleDict({"adapters": nn.ModuleDict(adapters)})
            for parameter in made.parameters():
                nn.init.normal_(parameter, std=0.02)
            if not eye.speaks:  # nearly the same to begin with, as sentences are
                T = torch.randn(eye.embed, 1) + 0.1 * torch.randn(eye.embed, 2)
                made["adapters"]["directions"] = nn.ParameterDict({"T": nn.Parameter(T)})
            if learnt_words:
                words = 0.02 * torch.randn(2, WORDS, eye.text_width)
                made["prompts"] = nn.ParameterDict({"words": nn.Parameter(words)})
        return made

    def head(self) -> nn.ModuleDict:
        """What was learnt, ready on the device: here, in a file, or ("random") nowhere."""
        if self.parts is None:
            self.parts, self.trained = self.from_adapter()
            self.weights = {"fingerprint": self.eye().fingerprint}
        kept = self.__dict__.get("_head")
        if kept is None or kept[0] is not self.parts:
            made = load_parameters(self.new_head("prompts.words" in self.parts), self.parts)
            kept = self.__dict__["_head"] = (self.parts, made.to(self.eye().device))
        return kept[1]

    def from_adapter(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(tensors, what is known of their training) of the file, or of untrained layers."""
        if self.adapter == "random":
            return parameters_of(self.new_head(self.learn_prompts)), {"where": "here", "phrases": list(self.phrases)}
        path = Path(self.adapter).expanduser()
        if not path.is_file():
            raise MissingWeights(
                f"the adapter {path} is not a file; train one with `anomalens train-aux vlad`, or leave adapter out and fit."
            )
        tensors, facts = read_adapter(path)
        wanted = self.new_head("prompts.words" in tensors).state_dict()
        require_shapes(tensors, {k: tuple(v.shape) for k, v in wanted.items()}, path)
        known, here = facts.get("fingerprint", self.eye().fingerprint), self.eye().fingerprint
        if known != here:
            raise WrongInput(
                f"the adapter {path} was trained on other weights than those of {self.backbone} here (sha256 "
                f"{known[:12]}..., here {here[:12]}...); use the same weights."
            )
        about = {"phrases": list(self.phrases), **(facts.get("trained") or {})}
        return {k: t.numpy() for k, t in tensors.items()}, {**about, "where": about.get("where") or path.name}

    def texts_of(self, head: Any) -> dict[str, Tensor]:
        """T of names that were asked for with these layers."""
        held = self.__dict__.get("_texts")
        if held is None or held[0] is not head:
            held = self.__dict__["_texts"] = (head, {})
        return held[1]


# --- what is seen -----------------------------------------------------------------------------------------------------


class WithLanguage:
    """CLIP: tokens of its blocks, the token of the picture in the space of sentences, and sentences."""

    speaks = True

    def __init__(self, settings: VLAD):
        name = settings.backbone
        self.clip = load(
            name, activation=activation_of(name), precision=settings.precision, device=settings.device,
            threads=settings.threads,
        )  # fmt: skip
        shape, size = self.clip.shape, settings.image_size
        if size % shape.patch:
            near = max(1, round(size / shape.patch)) * shape.patch
            raise WrongInput(f"VLAD image_size={size} does not fit patches of {shape.patch} pixels; choose {near}.")
        quarters = {max(1, shape.layers * quarter // 4) for quarter in (1, 2, 3, 4)}
        self.layers = settings.layers or tuple(sorted(quarters))
        if self.layers[-1] > shape.layers:
            raise WrongInput(f"VLAD taps block {self.layers[-1]} of a tower of {shape.layers}; give layers up to that.")
        self.channels, self.embed = (shape.width,) * len(self.layers), shape.embed
        self.text_width, self.fingerprint = shape.text_width, self.clip.fingerprint

    @property
    def device(self) -> Any:
        return self.clip.device

    def to(self, device: Any) -> WithLanguage:
        self.clip.to(device)
        return self

    def __call__(self, images: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """(B, 3, S, S) in [0, 1] -> patch tokens (B, N, C) by layer, and c (B, E); float32, without gradients."""
        import torch

        clip = self.clip
        with torch.no_grad(), clip.autocast():
            pixels = clip.normalise(np.ascontiguousarray(images))
            last, tapped = clip.vision(clip.embed(pixels), taps=self.layers)
            return [x[:, 1:].float() for x in tapped], clip.pool(last).float()

    def texts(self, names: Sequence[str], head: Any, phrases: Sequence[str], held: dict[str, Tensor]) -> Tensor:
        """T (B, E, 2), unit columns t+ and t-, of things by name. held: those made before; learnt words change."""
        import torch

        words = head["prompts"]["words"] if "prompts" in head else None
        if words is not None and torch.is_grad_enabled():
            held = {}
        for name in dict.fromkeys(names):
            if name not in held:
                each = (None, None) if words is None else words
                groups = zip(sentences(name, phrases, words is not None), each, strict=True)
                held[name] = torch.stack([self.mean(group, learnt) for group, learnt in groups], dim=-1)
        return torch.stack([held[name] for name in names])

    def mean(self, group: Sequence[str], learnt: Tensor | None) -> Tensor:
        """(E,) unit mean of the unit features of sentences, whose first words are the `learnt` ones (n, width)."""
        import torch

        clip = self.clip

        def before(block: int, x: Tensor) -> Tensor:
            if block or learnt is None:
                return x
            words = learnt + clip.positional_embedding[1 : 1 + len(learnt)]
            return torch.cat([x[:, :1], words.expand(len(x), -1, -1), x[:, 1 + len(learnt) :]], dim=1)

        with torch.set_grad_enabled(learnt is not None and torch.is_grad_enabled()), clip.autocast():
            return unit(unit(clip.text(tokenise(group, clip.shape.context), before=before).float()).mean(dim=0))


class WithoutLanguage:
    """Maps of any other backbone; the highest value of each channel stands for the token of the picture.

    Highest, as a mean over places would drown a small defect.
    """

    speaks = False
    embed, text_width = WIDTH, 0

    def __init__(self, settings: VLAD):
        self.device = training_device(settings.device)  # says what to install where torch is missing
        import torch

        torch.set_num_threads(settings.threads or min(torch.get_num_threads(), cores()))
        self.layers = settings.layers or STRIDES
        self.network = backbones.get(
            settings.backbone, strides=self.layers, device=settings.device, threads=settings.threads
        )
        self.channels, self.fingerprint = self.network.channels, self.network.fingerprint

    def to(self, device: Any) -> WithoutLanguage:
        return self

    def __call__(self, images: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """As `WithLanguage`, but c is (B, C)."""
        import torch

        with torch.no_grad():
            maps = [torch.as_tensor(x, device=self.device).float() for x in self.network(np.ascontiguousarray(images))]
        return [x.flatten(2).transpose(1, 2) for x in maps], maps[-1].amax(dim=(2, 3))

    def texts(self, names: Sequence[str], head: Any, phrases: Sequence[str], held: dict[str, Tensor]) -> Tensor:
        """T (B, E, 2), the two learnt directions, the same for every name."""
        T = head["adapters"]["directions"]["T"]
        return unit(T.T).T.expand(len(names), -1, -1)


Eye = WithLanguage | WithoutLanguage


def sentences(name: str, phrases: Sequence[str] = (), learnt_words: bool = False) -> tuple[list[str], list[str]]:
    """On a good thing of this name, and on a damaged one; with learnt words, four places for them and no template."""
    name = name.replace("_", " ")
    abnormal = (*ABNORMAL, *("{} with " + phrase.replace("{", "").replace("}", "") for phrase in phrases))
    templates = (" ".join(["x"] * WORDS) + " {}.",) if learnt_words else TEMPLATES
    return compose(name, NORMAL, templates), compose(name, abnormal, templates)


def forward(head: Any, tokens: Sequence[Tensor], c: Tensor, T: Tensor) -> tuple[list[Tensor], Tensor]:
    """s_l (B, h, w) by layer in [0, 1], and the logit of p (B,). tokens, c: of an eye. T: (B, E, 2)."""
    import torch.nn.functional as F

    adapters = head["adapters"]
    grids = [
        square((unit_rows(W(f)) @ T / TEMPERATURE).softmax(dim=-1)[..., 1])
        for W, f in zip(adapters["patches"], tokens, strict=True)
    ]
    if "whole" in adapters:
        c = adapters["whole"][0](c)
    down, up = adapters["picture"]
    c = (1 - RESIDUAL) * c + RESIDUAL * up(F.gelu(down(c)))
    normal, abnormal = ((unit_rows(c)[:, None] @ T)[:, 0] / TEMPERATURE).unbind(dim=-1)
    return grids, abnormal - normal


def losses(s: Tensor, p: Tensor, truth: Tensor, label: Tensor) -> dict[str, Tensor]:
    """ "focal" and "dice" of maps s (B, S, S) where truth is not 255, and half the cross-entropy "bce" of the logits p (B,).

    truth: (B, S, S), 1 anomalous, 255 ignored. label: (B,) of 0 and 1. The sum is the loss; 0 is perfect.
    """
    import torch
    import torch.nn.functional as F

    known = truth != IGNORED
    target = (truth == 1).to(s.dtype)
    both = torch.stack([1 - s[known], s[known]], dim=1)
    return {
        "focal": 0.5 * focal(both, target[known]),
        "dice": dice(s * known, target),
        "bce": 0.5 * F.binary_cross_entropy_with_logits(p, label),
    }


def distance(tokens: Tensor, bank: Tensor) -> Tensor:
    """(N, C) against unit rows (rows, C) -> (N,): half of the smallest 1 - cos, in [0, 1]."""
    return ((1 - (unit_rows(tokens) @ bank.T).amax(dim=1)) / 2).clamp(min=0)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1 along the last axis; zeros stay zeros."""
    import torch.nn.functional as F

    return F.normalize(x, dim=-1)


def square(values: Tensor) -> Tensor:
    """(B, N) -> (B, h, w), h = w."""
    side = math.isqrt(values.shape[1])
    return values.unflatten(1, (side, side))


# --- lessons ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """A good picture and a bad one of a thing. good, bad: (S, S, 3) uint8. mask: (S, S), 1 anomalous, 255 ignored."""

    name: str
    good: np.ndarray
    bad: np.ndarray
    mask: np.ndarray

    def images(self) -> np.ndarray:
        """(2, 3, S, S) float32 in [0, 1]."""
        return as_input(np.stack([self.good, self.bad]))

    def augmented(self, rng: np.random.Generator) -> Lesson:
        """Both pictures mirrored, turned and recoloured, each its own way."""
        good, _ = augmented(self.good, np.zeros_like(self.mask), rng)
        return Lesson(self.name, good, *augmented(self.bad, self.mask, rng))


def augmented(picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored or not, turned by up to 10 degrees with mirrored corners, and in slightly other colours."""
    angle, mirror = float(rng.uniform(-TURN, TURN)), rng.random() < 0.5
    edge = max(1, len(mask) // 8)  # more than the corners of a square need at that angle
    inner = slice(edge, -edge)

    def turned(plane: np.ndarray, how: Image.Resampling) -> np.ndarray:
        frame = [(edge, edge)] * 2 + [(0, 0)] * (plane.ndim - 2)
        out = np.asarray(Image.fromarray(np.pad(plane, frame, "symmetric")).rotate(angle, how))[inner, inner]
        return out[:, ::-1] if mirror else out

    shown = Image.fromarray(np.ascontiguousarray(turned(picture, Image.Resampling.BILINEAR)))
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        shown = change(shown).enhance(float(rng.uniform(1 - JITTER, 1 + JITTER)))
    return np.array(shown), np.ascontiguousarray(turned(mask, Image.Resampling.NEAREST))


def generations(folder: str | Path) -> list[Sample]:
    """Samples with a defect and its mask in a folder that CUT or `anomalens synth` has written, or laid out like the latter.

    Of CUT's pictures those that passed its filter.
    """
    from ..synthesis.cut import read

    path = Path(folder).expanduser()
    manifest = path / "manifest.jsonl"
    with suppress(OSError, UnicodeDecodeError), manifest.open(encoding="utf-8") as lines:
        if '"accepted"' in next(lines, ""):
            return read(path)
    return [s for s in open_folder(path).test() if s.label == 1 and s.mask is not None]


def phrase_of(sample: Sample) -> str:
    """The defect in words, where the maker was given any."""
    request = (sample.made or {}).get("request")
    return str(request.get("anomaly_phrase", "")) if isinstance(request, Mapping) else ""


def by_category(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.category, []).append(sample)
    return found


DETECTOR = VLAD
