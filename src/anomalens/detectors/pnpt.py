"""PNPT, our reading: class-specific normality prompting pool (CS-NPP), hierarchical patch embedding (HPE), semantic
alignment coupling encoding (SACE), contextual semantic conditional decoding (CSCD).

Yao, Cao, Luo, Zhang, Yu, Shen 2024, "Prior Normality Prompt Transformer for Multi-class Industrial Image Anomaly
Detection", https://arxiv.org/abs/2406.11507. There is no public code and the equations could not be read: modules,
their roles, the two streams and the cosine loss over scales are the paper's, everything else is ours.

Letters: B pictures, N = h w places of the coarsest grid, D width, T prompts for one picture, K exemplars; X sample tokens
(B, N, D), P prompt tokens (B, T N, D), F_1..F_3 frozen features, R^P and R^S what the streams rebuild of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .. import metrics
from ..backbones import Device, Engine, network
from ..detector import Detector
from ..errors import WrongInput
from ..images import resize, to_8bit, to_float
from ..parts import distillation
from ..parts.batches import ahead, batches
from ..parts.coreset import greedy
from ..parts.grids import resize_map, to_numpy
from ..parts.sizes import parse_bytes
from ..parts.threads import cores
from ..parts.train import Recipe, Shuffled, load_parameters, parameters_of, seeded, train, training_device
from ..synthesis.perlin import PerlinDefects
from ..types import Card, Prediction, Reason, Sample, View

if TYPE_CHECKING:
    from typing_extensions import Self

Tensor = Any  # torch.Tensor
Module = Any  # torch.nn.Module

CARD = Card(
    title="PNPT",
    paper="https://arxiv.org/abs/2406.11507",
    year=2024,
    venue="IEEE TII",
    summary="One model for many categories: a transformer rebuilds features out of those of a good picture of the category.",
    repo="",
    code_licence="no-code",
    fidelity="reading",
    family="reconstruction",
    settings=("full-shot",),
    scope="multi",
    normals=(2, 200),
    abnormals="none",
    auxiliary=(),
    text="none",
    transductive=False,
    needs=("image",),
    gives=("score", "map"),
    levels=("structural", "semantic"),
    focus="any",
    backbone="wide_resnet50_2 @ 224",
    trains="gradient",
    fit_cost="F4",
    predict_cost="P1",
    gpu="fit",
    cpu_fit="F2",
    stored_mb=6.0,
    extras=("torch",),
    weights=(),
    pose="small",
    external=(),
    determinism="seeded",
    differs="the paper's equations and settings could not be read: only its modules, their roles, the two streams and the "
    "kind of loss are the paper's, the rest is our reading and its figures are ours; the embedded backbone is the default "
    "(our reading of the paper: WideResNet50); on a CPU a smaller network is trained for fewer steps (preset 'small')",
    pitfalls=(
        "without a GPU a fit takes minutes; on one category patchcore is as good after seconds",
        "a defect that covers most of a picture of unknown category may call up exemplars of another category",
        "a rare but legal arrangement that no exemplar shows may look wrong: raise exemplars, and top_t to 3",
    ),
)

SCALES = (1, 2, 3)
PATCH = (4, 2, 1)  # kernel and stride of each scale's embedding: all scales meet on the coarsest grid
CONTEXT = 16  # context tokens
EPS = 1e-6  # added to norms in cosines
POOLED = 16  # pixels: side of the window of image_score="pooled"
COPY = 2.0  # mean difference in grey levels below which two pictures show the same thing
LEAST_RATE = 0.01  # the learning rate ends at this share of its peak
HELD_OUT = 10  # select="pseudo" holds out one good picture in so many of each category,
DRAWN = 2  # draws so many defects into each,
ROUNDS = 20  # and looks so many times
ASIDE = " (pictures kept aside for a threshold do not count)"
WARM = 40  # one part in so many of the training is warm-up: 5 of 200 epochs
PRESETS: dict[str, dict[str, Any]] = {
    "published": {"width": 384, "layers": 4, "heads": 8, "exemplars": 10, "lr": 1e-4, "epochs": 200},
    "small": {"width": 128, "layers": 2, "heads": 4, "exemplars": 3, "lr": 2e-3, "steps": 400},
}


@dataclass
class PNPT(Detector):
    """Features of a picture, rebuilt out of those of good pictures of its category; the score is how far they miss.

    preset: "published" is the network of the reading and 200 epochs, "small" a smaller one and 400 steps; "auto" is the
        former on a GPU, the latter on a CPU. epochs, steps (steps count first), lr, width D, layers (of the encoder, and
        of the decoder), heads, exemplars: in place of the preset's.
    pool: where prompts come from: "exemplars", good pictures of the category; "learnable", trained tokens for each
        category; "off", one set of trained tokens for all. top_t: exemplars shown at a time.
    prompt: how the category is found: "label" takes the sample's, which must be known; "retrieve" that of the exemplar
        that looks most alike; "auto" the sample's where it is known.
    streams: "prior" is rebuilt from prompts alone, "sample" also from the picture; "both" takes the mean of their maps.
    jitter: noise on sample tokens in training, in units of their norm / D. dropout: share.
    embed: scales that are shown to the network ("all", or only the "last"). align: whether prompts are aligned to the
        picture, or taken place by place. couple_back: whether the picture may change the prompts. context: whether the
        prior stream is told of the picture as a whole. neighbours: odd side of the window that sample tokens do not see
        of themselves; 0 for none.
    loss: cosine of each "cell", or of whole maps, "flat". image_score: highest pixel of the map, "max", or highest mean
        of 16 x 16 pixels, "pooled".
    sigma: Gaussian blur of the map, in pixels of the resized picture. image_size: pixels, a multiple of 16.
    select: which moment of the training is kept: the "last", or ("pseudo") the best of twenty on defects drawn into every
        tenth good picture of each category, which is then not learnt from. patience: with "pseudo", stop after so many
        looks that found nothing better.
    limit_memory: bytes, or text such as `1GB`, that frozen features may take while training on a CPU; where they need
        more they are computed again in every step.
    """

    backbone: str = "tiny"
    image_size: int = 224
    preset: Literal["auto", "published", "small"] = "auto"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 16
    lr: float | None = None
    pool: Literal["exemplars", "learnable", "off"] = "exemplars"
    exemplars: int | None = None
    top_t: int = 1
    prompt: Literal["auto", "label", "retrieve"] = "auto"
    streams: Literal["both", "prior", "sample"] = "both"
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    dropout: float = 0.1
    jitter: float = 20.0
    embed: Literal["all", "last"] = "all"
    align: bool = True
    couple_back: bool = True
    context: bool = True
    neighbours: int = 0
    loss: Literal["cell", "flat"] = "cell"
    image_score: Literal["max", "pooled"] = "max"
    sigma: float = 4.0
    select: Literal["last", "pseudo"] = "last"
    patience: int | None = None
    limit_memory: int | str = "1GB"
    device: Device = "auto"
    engine: Engine = "auto"
    threads: int | None = None
    seed: int = 0

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16)
    learned: ClassVar[tuple[str, ...]] = (
        "weights",
        "categories",
        "pictures",
        "keys",
        "owners",
        "parameters",
        "trained",
    )

    def fit(self, samples: Iterable[Sample]) -> Self:
        device = training_device(self.device)
        import torch  # after training_device, which says in a sentence that it is missing

        size = (self.image_size, self.image_size)
        chosen = self.sizes(device.type)
        check(self, chosen)

        def load(sample: Sample) -> tuple[np.ndarray, str]:
            return resize(sample.image(), size), sample.category

        read = list(ahead(load, samples))
        held = held_out([category for _, category in read]) if self.select == "pseudo" else set()
        unseen, learnt = ([pair for i, pair in enumerate(read) if (i in held) == out] for out in (True, False))
        pictures, names = [picture for picture, _ in learnt], [category for _, category in learnt]
        check_pictures(names, self.pool)
        teacher = network(self, learn=[Sample("", {"image": View("image", partial(np.asarray, p))}) for p in pictures])
        kept, looks = self.look(teacher, pictures)

        # CS-NPP: the exemplars of each category, and who may be shown which.
        self.categories = tuple(sorted(set(names)))
        owners = np.array([self.categories.index(name) for name in names])
        places = choose(looks, owners, chosen["exemplars"]) if self.pool != "off" else []
        self.pictures = np.array([to_8bit(pictures[i]) for i in places], np.uint8).reshape(-1, *size, 3)
        self.keys = looks[places].reshape(-1, looks.shape[1])
        self.owners = owners[places]
        lessons = self.lessons(pictures, kept, owners, places)

        self.trained = {k: chosen[k] for k in ("width", "layers", "heads")}
        with seeded(self.seed):
            net = self.new_network().to(device)
        if self.pool == "learnable":
            self.start_prompts(net, teacher)

        def maps_of(seen: Any) -> Any:
            return seen if kept else distillation.teach(teacher, seen[0], device)

        def loss(batch: Any) -> Tensor:
            *seen, owner = batch
            shown = [torch.as_tensor(f, device=device) for f in maps_of(seen)]  # (B, 1 + T, c, h, w) per scale
            F = [f[:, 0] for f in shown]
            P = self.prompts(net, shown, torch.as_tensor(owner, device=device))
            stages = self.rebuild(net, F, P)
            return sum(misses(F, stages[R], self.loss) for R in ("R_P", "R_S") if R in stages)

        free = ("device", "engine", "threads", "limit_memory", "prompt", "image_score", "sigma")  # of what is learnt
        about = (teacher.fingerprint, names, places, {k: v for k, v in self.settings().items() if k not in free})
        done = train(
            loss, net, lessons, self.recipe(chosen, len(lessons)), validate=self.validation(net, teacher, unseen, device),
            data=distillation.named([*pictures, *(picture for picture, _ in unseen)], *about),
        )  # fmt: skip
        self.parameters = parameters_of(net)
        self.trained |= {"steps": done.steps, "loss": done.loss, "kept": done.best_step}
        for kept_before in ("_net", "_tokens"):
            self.__dict__.pop(kept_before, None)
        return self

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        self.require_fit()
        for batch in batches(samples, (self.image_size, self.image_size), self.batch_size):
            stages = self.trace(batch.images, [s.category for s in batch.samples])
            scores, maps = to_numpy(self.image_scores(stages["map"])), to_numpy(stages["map"])
            told = zip(stages["category"], stages["reason"], strict=True)
            for sample, score, values, size, (category, reasons) in zip(
                batch.samples, scores, maps, batch.sizes, told, strict=True
            ):
                yield Prediction(sample.id, float(score), resize_map(values, size), reasons=reasons, category=category)

    def trace(self, images: np.ndarray, categories: Sequence[str], prompts: Tensor | None = None) -> dict[str, Any]:
        """Every stage of the inference.

        images: (B, 3, S, S) float32 in [0, 1]. categories: of each, "" for unknown. prompts: P in place of those that
        the pool gives, see `tokens_of`.

        Returns:
            category, reason: of each picture, "" and () without a pool. chosen: (B, T) exemplars. F: features. E_A, E_X:
            (B, N, D). R_P, R_S: rebuilt features. m_P, m_S, map: (B, S, S), how far each stream misses, and the map.
        """
        net, device = self.ready_network()
        F = distillation.teach(network(self), images, device)
        stages: dict[str, Any] = {"F": F} | self.retrieve(look(F[-1]), categories)
        if prompts is None:
            prompts = self.prompts_for(net, stages["chosen"], stages["owner"], len(images))
        stages |= self.rebuild(net, F, prompts)
        return stages | self.maps(F, stages)

    def state(self) -> str:
        if not self.fitted:
            return ""
        n = len(self.categories)
        pool = f"{len(self.pictures)} good pictures are its prompts; it " if len(self.pictures) else "It "
        return (
            f"One model of {n} {'category' if n == 1 else 'categories'}, our reading of PNPT. {pool}was trained for "
            f"{self.trained['steps']} steps; what it rebuilds of good pictures differs from the original by "
            f"{self.trained['loss']:.3g} (1 - cosine, sum of three scales and of its streams)."
            + (f" Step {kept} was best on drawn defects and is kept." if (kept := self.trained.get("kept")) else "")
        )

    # --- CS-NPP: the pool ---------------------------------------------------------------------------------------------

    def look(self, teacher: Any, pictures: Sequence[np.ndarray]) -> tuple[list[tuple[np.ndarray, ...]], np.ndarray]:
        """(features of every picture, or [] where they do not fit limit_memory; keys (n, c))."""
        kept: list[tuple[np.ndarray, ...]] = []
        keys, room = [], parse_bytes(self.limit_memory) if teacher.device == "cpu" else 0
        for picture in pictures:
            F = distillation.teach(teacher, distillation.as_input(picture)[None], "cpu")
            keys.append(look(F[-1])[0])
            if room >= len(pictures) * sum(f.nbytes for f in F):
                kept.append(tuple(to_numpy(f[0]) for f in F))
        return kept, np.stack(keys)

    def lessons(
        self, pictures: Sequence[np.ndarray], kept: list[Any], owners: np.ndarray, places: list[int]
    ) -> Shuffled[int]:
        """Batches of what `train` takes: per scale (B, 1 + T, c, h, w), or pictures (B, 1 + T, 3, S, S); and owners (B,).

        The sample comes first, then T exemplars of its category, drawn anew every time: never itself or a copy of it.
        Pictures without such an exemplar (the only one of a pool of one) teach nothing and are left out.
        """
        allowed: dict[int, list[int]] = {i: [] for i in range(len(pictures))}
        if self.pool == "exemplars":
            small = [to_8bit(p).astype(np.int16) for p in pictures]
            for i, own in enumerate(owners):
                others = [j for j in places if owners[j] == own and j != i]
                allowed[i] = [j for j in others if np.abs(small[i] - small[j]).mean() > COPY]
            allowed = {i: others for i, others in allowed.items() if others}
            if not allowed:
                raise WrongInput("PNPT needs good pictures that differ; all of each category are copies of one.")

        def load(i: int, rng: np.random.Generator) -> tuple[Any, ...]:
            shown = [i]
            if allowed[i]:
                shown += rng.choice(allowed[i], self.top_t, replace=len(allowed[i]) < self.top_t).tolist()
            if kept:
                return (*(np.stack([kept[j][k] for j in shown]) for k in range(len(SCALES))), owners[i])
            return np.stack([distillation.as_input(pictures[j]) for j in shown]), owners[i]

        return Shuffled(sorted(allowed), self.batch_size, load, self.seed)

    def validation(
        self, net: Module, teacher: Any, unseen: Sequence[tuple[np.ndarray, str]], device: Any
    ) -> Callable[[], float] | None:
        """Image AUROC + pixel AUROC of held-out pictures, with and without drawn defects; None where the last is kept."""
        if not unseen:
            return None
        import torch

        draw = PerlinDefects(normal_share=0.0)

        def validate() -> float:
            maps, truth = [], []
            for i, (picture, category) in enumerate(unseen):
                rng, good = np.random.default_rng((self.seed, i)), to_float(picture)
                bad = [draw(good, rng) for _ in range(DRAWN)]
                images = np.moveaxis(np.stack([good, *(made.image for made in bad)]), -1, 1)
                F = distillation.teach(teacher, images, device)
                told = self.retrieve(look(F[-1]), [category] * len(images))
                shown = [f[:, None] for f in F]
                if self.pool == "exemplars":
                    exemplars = distillation.teach(
                        teacher, distillation.as_input(self.pictures[told["chosen"]]), device
                    )
                    shown = [torch.cat(pair, dim=1) for pair in zip(shown, exemplars, strict=True)]
                P = self.prompts(net, shown, torch.as_tensor(told["owner"], device=device))
                maps.append(self.maps(F, self.rebuild(net, F, P))["map"])
                truth += [np.zeros(good.shape[:2], bool), *(made.mask for made in bad)]
            values = torch.cat(maps)
            of_image = metrics.image(to_numpy(self.image_scores(values)), [int(m.any()) for m in truth], ["auroc"])
            of_pixel = metrics.pixel(list(to_numpy(values)), truth, which=["auroc"])
            return float(np.nansum([m.value for m in (*of_image.values(), *of_pixel.values())]))

        return validate

    def retrieve(self, keys: np.ndarray, categories: Sequence[str]) -> dict[str, Any]:
        """Which category each picture (B, c) is taken for, and its nearest exemplars there (B, T)."""
        if self.pool == "off":
            nobody = np.zeros(len(keys), int)
            return {"category": [""] * len(keys), "reason": [()] * len(keys), "owner": nobody, "chosen": None}
        likeness = keys @ self.keys.T  # (B, K)
        owner, reasons = [], []
        for row, category in zip(likeness, categories, strict=True):
            known = category in self.categories
            if self.prompt == "label" and not known:
                raise WrongInput(
                    f"a picture has the category {category!r}; prompt='label' knows {', '.join(map(repr, self.categories))}. "
                    "Use prompt='auto', which finds the nearest."
                )
            found = (
                self.categories.index(category) if known and self.prompt != "retrieve" else self.owners[row.argmax()]
            )
            owner.append(int(found))
            told = len(self.categories) > 1 and not (known and self.prompt != "retrieve")
            text = f"It was compared with good pictures of {self.categories[found]!r}, which look most alike."
            reasons.append((Reason(text, "retrieval"),) if told else ())
        chosen = []
        for row, own in zip(likeness, owner, strict=True):
            members = np.flatnonzero(self.owners == own)
            order = members[np.argsort(-row[members], kind="stable")]
            chosen.append(np.resize(order, self.top_t))  # repeated where there are fewer
        return {
            "category": [self.categories[own] for own in owner], "reason": reasons, "owner": np.array(owner),
            "chosen": np.array(chosen),
        }  # fmt: skip

    def prompts(self, net: Module, shown: Sequence[Tensor], owner: Tensor) -> Tensor:
        """P in training: from features (B, 1 + T, c, h, w) the T after the sample, or trained tokens."""
        if self.pool != "exemplars":
            return net["tokens"]["prompts"][owner if self.pool == "learnable" else owner * 0]
        tokens = embed(net, [f[:, 1:].flatten(0, 1) for f in shown], self.embed)
        return tokens.reshape(len(owner), -1, tokens.shape[-1])

    def prompts_for(self, net: Module, chosen: np.ndarray | None, owner: np.ndarray, count: int) -> Tensor:
        """P (B, T N, D) in inference; tokens of an exemplar are computed when it is first needed."""
        import torch

        if self.pool == "off":
            return net["tokens"]["prompts"].expand(count, -1, -1)
        if self.pool == "learnable":
            return net["tokens"]["prompts"][torch.from_numpy(owner)]
        held = self.__dict__.setdefault("_tokens", (self.parameters, {}))
        if held[0] is not self.parameters:
            held = self.__dict__["_tokens"] = (self.parameters, {})
        assert chosen is not None
        for j in sorted(set(chosen.ravel().tolist()) - set(held[1])):
            held[1][j] = self.tokens_of(distillation.as_input(self.pictures[j])[None])[0]
        return torch.stack([torch.cat([held[1][j] for j in row]) for row in chosen.tolist()])

    def tokens_of(self, images: np.ndarray) -> Tensor:
        """Pictures (B, 3, S, S) as prompts, one for each: (B, N, D)."""
        net, device = self.ready_network()
        return embed(net, distillation.teach(network(self), images, device), self.embed)

    def start_prompts(self, net: Module, teacher: Any) -> None:
        """Learnable prompts begin as the mean tokens of their category's exemplars."""
        import torch

        with torch.no_grad():
            tokens = net["tokens"]["prompts"]
            for own in range(len(self.categories)):
                shown = distillation.as_input(self.pictures[self.owners == own])
                tokens[own] = embed(net, distillation.teach(teacher, shown, tokens.device), self.embed).mean(0)

    # --- the network --------------------------------------------------------------------------------------------------

    def new_network(self) -> Module:
        """An untrained network for this backbone and these settings; random numbers are torch's."""
        rows = {"exemplars": 0, "learnable": len(self.categories), "off": 1}[self.pool]
        return new_network(network(self).channels, self.image_size // 16, rows, self.dropout, **self.shape())

    def rebuild(self, net: Module, F: Sequence[Tensor], P: Tensor) -> dict[str, Any]:
        """SACE and CSCD: features (B, c, h, w) per scale and prompt tokens (B, T N, D) -> E_A, E_X, R_P, R_S."""
        import torch

        h, w = F[-1].shape[-2:]
        X = embed(net, F, self.embed, self.jitter if net.training else 0.0)
        visible = neighbour_mask(h, w, self.neighbours).to(X.device) if self.neighbours else None
        E_X, E_A = encode(net, X, P, align=self.align, couple_back=self.couple_back, visible=visible)
        out: dict[str, Any] = {"E_A": E_A, "E_X": E_X}
        if self.streams != "sample":
            out["R_P"] = decode(net, E_A, context_of(net, E_X) if self.context else None, (h, w))
        if self.streams != "prior":
            queries, place = net["tokens"]["queries"].expand_as(E_A), positions(h, w, E_A.shape[-1]).to(E_A)
            out["R_S"] = decode(net, queries, torch.cat([E_X + place, E_A + place], dim=1), (h, w))
        return out

    def maps(self, F: Sequence[Tensor], stages: dict[str, Any]) -> dict[str, Tensor]:
        """m_P and m_S (B, S, S), of the streams that there are, and their mean, the map."""
        found = {m: self.anomaly_map(F, stages[R]) for m, R in (("m_P", "R_P"), ("m_S", "R_S")) if R in stages}
        return found | {"map": sum(found.values()) / len(found)}

    def anomaly_map(self, F: Sequence[Tensor], R: Sequence[Tensor]) -> Tensor:
        """(B, S, S): 1 - cosine, enlarged, summed over scales, blurred."""
        grids = [1 - cosine(f, r) for f, r in zip(F, R, strict=True)]
        enlarged = distillation.enlarge(grids, self.image_size, align_corners=False)
        return distillation.blur(sum(enlarged), self.sigma)

    def image_scores(self, maps: Tensor) -> Tensor:
        """(B, S, S) -> (B,)."""
        from torch.nn.functional import avg_pool2d

        pooled = avg_pool2d(maps[:, None], POOLED, stride=1) if self.image_score == "pooled" else maps
        return pooled.flatten(1).amax(1)

    def sizes(self, device: str) -> dict[str, Any]:
        """The preset for "cpu" or "cuda", with what was set in its place."""
        name = ("published" if device == "cuda" else "small") if self.preset == "auto" else self.preset
        own = {k: getattr(self, k) for k in PRESETS["small"] | PRESETS["published"] if getattr(self, k) is not None}
        return PRESETS[name] | own

    def shape(self) -> dict[str, int]:
        return {k: self.trained[k] for k in ("width", "layers", "heads")}

    def recipe(self, chosen: dict[str, Any], per_epoch: int) -> Recipe:
        """How to train, in `per_epoch` batches."""
        by_steps = self.steps is not None or (self.epochs is None and "steps" in chosen)
        length = {"steps": chosen["steps"]} if by_steps else {"epochs": chosen["epochs"]}
        total = chosen["steps"] if by_steps else chosen["epochs"] * per_epoch
        return Recipe(
            **length, optimiser="adamw", lr=chosen["lr"], betas=(0.9, 0.95), weight_decay=1e-4, clip=1.0, seed=self.seed,
            schedule="cosine", lr_end=LEAST_RATE * chosen["lr"], warmup=total // WARM, patience=self.patience,
            keep="last" if self.select == "last" else "best", validate_every=max(1, total // ROUNDS),
        )  # fmt: skip

    def ready_network(self) -> tuple[Any, Any]:
        """(the trained network, its device), built once from what was learnt."""
        import torch

        held = self.__dict__.get("_net")
        if held is None or held[0] is not self.parameters:
            torch.set_num_threads(self.threads or min(torch.get_num_threads(), cores()))
            device = training_device(self.device)
            net = load_parameters(self.new_network(), self.parameters).to(device)
            held = self.__dict__["_net"] = (self.parameters, net, device)
        return held[1:]


# --- what is refused --------------------------------------------------------------------------------------------------


def check(detector: PNPT, chosen: dict[str, Any]) -> None:
    """Refuse settings that do not fit together."""
    side, cells = detector.image_size, detector.image_size // 16
    if side < 32 or side % 16:
        raise WrongInput(f"PNPT needs an image_size of 32 or more that is a multiple of 16; got {side}.")
    if chosen["width"] % (4 * chosen["heads"]):
        raise WrongInput(
            f"PNPT needs a width that is a multiple of 4 x heads; got width {chosen['width']} and {chosen['heads']} heads."
        )
    if detector.patience is not None and detector.select != "pseudo":
        raise WrongInput("PNPT stops early by drawn defects: patience needs select='pseudo'; got select='last'.")
    if min(chosen["layers"], chosen["exemplars"], detector.top_t) < 1:
        raise WrongInput("PNPT needs layers, exemplars and top_t of 1 or more.")
    if detector.neighbours and not (detector.neighbours % 2 and detector.neighbours // 2 < cells // 2):
        raise WrongInput(
            f"PNPT hides an odd window of fewer than {2 * (cells // 2)} cells at {side} pixels; "
            f"got neighbours {detector.neighbours}."
        )


def held_out(names: Sequence[str]) -> set[int]:
    """Places of every HELD_OUT-th picture of each category that has so many."""
    places = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    held = {i for own in places.values() if len(own) >= HELD_OUT for i in own[::HELD_OUT]}
    if not held:
        raise WrongInput(
            f"PNPT with select='pseudo' holds out every tenth good picture of a category, and none has {HELD_OUT}; "
            f"give more, or select='last'."
        )
    return held


def check_pictures(names: Sequence[str], pool: str) -> None:
    """Refuse a category whose only picture would have to be its own prompt."""
    if len(names) < 2:
        raise WrongInput(
            f"PNPT learns from at least 2 normal pictures, better 40 of each category; got {len(names)}{ASIDE}."
        )
    alone = [name for name in dict.fromkeys(names) if names.count(name) == 1]
    if pool == "exemplars" and alone:
        raise WrongInput(
            "PNPT learns from at least 2 normal pictures of each category; there is one of "
            f"{', '.join(map(repr, alone[:3]))}{ASIDE}."
        )


# --- CS-NPP -----------------------------------------------------------------------------------------------------------


def look(f: Tensor) -> np.ndarray:
    """What a picture looks like as a whole: (B, c, h, w) -> keys (B, c), the mean over places, of length 1."""
    mean = to_numpy(f).mean(axis=(2, 3))
    return mean / (np.linalg.norm(mean, axis=1, keepdims=True) + EPS)


def choose(keys: np.ndarray, owners: np.ndarray, count: int) -> list[int]:
    """Up to `count` pictures of each owner: the medoid, then greedily the one farthest from those before it."""
    places: list[int] = []
    for own in range(owners.max() + 1):
        members = np.flatnonzero(owners == own)
        rows = keys[members]
        medoid = np.sqrt(np.maximum(2 - 2 * rows @ rows.T, 0)).sum(axis=1).argmin()
        places += members[greedy(rows, min(count, len(rows)), start=int(medoid)).indices].tolist()
    return places


# --- HPE, SACE, CSCD: a network holds parameters, functions say what is done with them ------------------------------------


def new_network(
    channels: Sequence[int], side: int, rows: int, dropout: float, *, width: int, layers: int, heads: int
) -> Module:
    """Parameters for features of these channels on a grid of side x side places, and `rows` sets of prompt tokens.

    Weights start Xavier-uniform, queries and tokens normal 0.02, gamma 0; random numbers are torch's.
    """
    import torch
    from torch import nn

    D, N = width, side * side

    def attention() -> Module:
        made = nn.ModuleDict({name: nn.Linear(D, D, bias=False) for name in "qkvo"})
        made.heads, made.dropout = heads, dropout
        return made

    def layer(attentions: Sequence[str]) -> Module:
        hidden = [nn.Linear(D, 4 * D), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * D, D), nn.Dropout(dropout)]
        parts = {name: attention() for name in attentions} | {"ffn": nn.Sequential(*hidden)}
        return nn.ModuleDict(parts | {f"norm_{name}": nn.LayerNorm(D) for name in parts})

    scales = list(zip(SCALES, channels, PATCH, strict=True))
    net = nn.ModuleDict(
        {
            "hpe": nn.ModuleDict(
                {f"norm{k}": nn.LayerNorm(c) for k, c, _ in scales}
                | {f"conv{k}": nn.Conv2d(c, D, p, p) for k, c, p in scales}
            ),
            # What the picture would change in the last layer's prompts is not read any more: no coupling back there.
            "sace": nn.ModuleList([layer(("msa", "back")[: 1 + (i < layers - 1)]) for i in range(layers)]),
            "alignment": nn.ModuleDict({"norm": nn.LayerNorm(D), "mca": attention()}),
            "bottleneck": nn.Sequential(nn.Linear(D, D // 4), nn.GELU(), nn.Linear(D // 4, D)),
            "context": attention(),
            "cscd": nn.ModuleList([layer(("msa", "mca")) for _ in range(layers)]),
            "heads": nn.ModuleDict({f"scale{k}": nn.Linear(D, c * p * p) for k, c, p in scales}),
        }
    )
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1).detach())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    net["tokens"] = nn.ParameterDict(
        {
            "prompts": nn.Parameter(0.02 * torch.randn(rows, N, D)),
            "queries": nn.Parameter(0.02 * torch.randn(N, D)),
            "context": nn.Parameter(0.02 * torch.randn(CONTEXT, D)),
            "gamma": nn.Parameter(torch.zeros(layers)),
        }
    )
    return net


def embed(net: Module, F: Sequence[Tensor], scales: str = "all", jitter: float = 0.0) -> Tensor:
    """HPE: features (B, c, h, w) per scale -> tokens (B, N, D): strided convolutions, summed, and positions."""
    import torch

    hpe = net["hpe"]
    normed = {
        k: hpe[f"norm{k}"](F[k - 1].movedim(1, -1)).movedim(-1, 1) for k in (SCALES if scales == "all" else SCALES[-1:])
    }
    tokens: Tensor = sum(hpe[f"conv{k}"](f).flatten(2).mT for k, f in normed.items())
    h, w = F[-1].shape[-2:]
    if jitter:
        scale = jitter * tokens.norm(dim=-1, keepdim=True) / tokens.shape[-1]
        tokens = tokens + scale.detach() * torch.randn_like(tokens)
    return tokens + positions(h, w, tokens.shape[-1]).to(tokens)


def encode(
    net: Module, X: Tensor, P: Tensor, *, align: bool = True, couple_back: bool = True, visible: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """SACE: X (B, N, D), P (B, T N, D) -> E_X, E_A, each (B, N, D). visible: (N, N) what sample tokens see of themselves.

    E_A holds nothing but prompts: each row is the prompt at that place and, head by head, a weighted mean of the values of
    all places; X only gives the weights. Without the former, every place starts as the same mean over the whole prompt,
    and hundreds of steps pass before the attention says anything about places.
    """
    for i, layer in enumerate(net["sace"]):
        X, P = think(layer, X, visible=visible), think(layer, P)
        if couple_back and "back" in layer:
            norm = layer["norm_back"]
            P = P + net["tokens"]["gamma"][i] * attend(layer["back"], norm(P), norm(X))
    E_A = P.unflatten(1, (-1, X.shape[1])).mean(1)
    if align:
        norm = net["alignment"]["norm"]
        E_A = E_A + attend(net["alignment"]["mca"], norm(X), norm(P))
    return net["bottleneck"](X), E_A


def context_of(net: Module, E_X: Tensor) -> Tensor:
    """C_X (B, 16, D): what the picture is as a whole, too little to carry the place of a defect."""
    return attend(net["context"], net["tokens"]["context"].expand(len(E_X), -1, -1), E_X)


def decode(net: Module, Y: Tensor, condition: Tensor | None, grid: tuple[int, int]) -> list[Tensor]:
    """CSCD: tokens (B, N, D) -> features (B, c, h, w) per scale; positions are added here."""
    from torch.nn.functional import pixel_shuffle

    Y = Y + positions(*grid, Y.shape[-1]).to(Y)
    for layer in net["cscd"]:
        Y = think(layer, Y, condition)
    rows = [net["heads"][f"scale{k}"](Y).mT.unflatten(2, grid) for k in SCALES]
    return [pixel_shuffle(r, p) for r, p in zip(rows, PATCH, strict=True)]


def think(layer: Module, Y: Tensor, condition: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
    """One transformer layer: self-attention, attention to a condition (where there is one), feed-forward."""
    normed = layer["norm_msa"](Y)
    Y = Y + attend(layer["msa"], normed, normed, visible)
    if condition is not None:
        Y = Y + attend(layer["mca"], layer["norm_mca"](Y), condition)
    return Y + layer["ffn"](layer["norm_ffn"](Y))


def attend(block: Module, queries: Tensor, keys: Tensor, visible: Tensor | None = None) -> Tensor:
    """Attention of several heads, without any residual: (B, n, D), (B, m, D) -> (B, n, D)."""
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (
        block[name](x).unflatten(2, (block.heads, -1)).transpose(1, 2)
        for name, x in (("q", queries), ("k", keys), ("v", keys))
    )
    dropout = block.dropout if block.training else 0.0
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
    return block["o"](mixed.transpose(1, 2).flatten(2))


def positions(h: int, w: int, width: int) -> Tensor:
    """(N, D): sines and cosines of the row in one half of the channels, of the column in the other."""
    import torch

    rates = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = (torch.arange(n)[:, None] * rates for n in (h, w))
    waves = [torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (row, column)]
    both = [waves[0][:, None].expand(h, w, -1), waves[1][None].expand(h, w, -1)]
    return torch.cat(both, dim=2).flatten(0, 1)


def neighbour_mask(h: int, w: int, window: int) -> Tensor:
    """(N, N) bool, False where one place lies in the window x window around the other."""
    import torch

    place = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    return (place[:, None] - place).abs().amax(dim=2) > window // 2


def misses(F: Sequence[Tensor], R: Sequence[Tensor], form: str) -> Tensor:
    """Sum over scales of the mean of 1 - cosine, of each place ("cell") or of whole maps ("flat")."""
    if form == "flat":
        F, R = [f.flatten(1) for f in F], [r.flatten(1) for r in R]
    return sum((1 - cosine(f, r)).mean() for f, r in zip(F, R, strict=True))


def cosine(f: Tensor, r: Tensor) -> Tensor:
    """Over dimension 1, in [-1, 1]; 0 where one is zero."""
    return (f * r).sum(1) / ((f.norm(dim=1) + EPS) * (r.norm(dim=1) + EPS))


DETECTOR = PNPT
