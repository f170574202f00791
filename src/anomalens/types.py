"""Plain frozen data that every layer passes around. Importing this loads no heavy library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import WrongInput

if TYPE_CHECKING:
    import numpy as np

Verdict = Literal["pass", "review", "reject"]


@dataclass(frozen=True)
class View:
    """One picture of a sample, read only when asked for.

    read: returns (H, W, 3) uint8 or uint16 for pictures; (H, W) bool for masks, or uint8 where 1 is anomalous and 255
        is ignored. It must be picklable for worker processes (use functools.partial, not a lambda) where `path` is set.
    path: the file behind it, when there is one.
    """

    name: str
    read: Callable[[], np.ndarray]
    path: str | None = None


@dataclass(frozen=True)
class Sample:
    """One thing to judge: its pictures, and what is known about it.

    id: the path relative to the folder that was given, with `/`; the same on every computer.
    views: pictures by name: `image`, or `light_0`..`light_5`, `depth`, ...
    label: 1 anomalous, 0 normal, None unknown. mask: True where anomalous.
    made: how the defect was drawn, where `synthesis` drew it (maker, settings, source, what was drawn and measured).
    """

    id: str
    views: Mapping[str, View]
    category: str = ""
    label: int | None = None
    mask: View | None = None
    defect: str = ""
    made: Mapping[str, Any] | None = None

    def image(self, name: str = "image") -> np.ndarray:
        """The picture of one view: (H, W, 3) uint8 or uint16."""
        if name not in self.views:
            raise WrongInput(f"sample {self.id} has views {tuple(self.views)}; a view named {name!r} is needed.")
        return self.views[name].read()


@dataclass(frozen=True)
class Region:
    """A connected place that stands out. Pixels of the input picture; box is (x0, y0, x1, y1), x1 and y1 exclusive.

    area: pixels. peak: highest map value inside, in the unit of the map. outline: closed polygon of (x, y).
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    outline: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Reason:
    """Why, in words: which rule or model said what, and where.

    shares: where there are several views, how what was found divides over them: 0 to 1 each, 1 in all.
    """

    text: str
    rule: str = ""
    box: tuple[int, int, int, int] | None = None
    shares: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one sample.

    score: higher is more anomalous; the unit is the method's own.
    map: (H, W) float32 of the input picture's size, same direction; None only where the card says so.
    p_value: share of normal pictures expected to score at least this high; None without calibration.
    category: what the method took it for, where it judges categories differently; else "".
    """

    id: str
    score: float
    map: np.ndarray | None = None
    regions: tuple[Region, ...] = ()
    reasons: tuple[Reason, ...] = ()
    p_value: float | None = None
    verdict: Verdict | None = None
    category: str = ""


@dataclass(frozen=True)
class Reported:
    """One published figure, in the unit of the source (percent as a rule)."""

    dataset: str
    setting: str
    metric: str
    value: float
    source: Literal["paper", "readme", "third-party"]
    selection: Literal["last", "best-on-test", "unknown"] = "unknown"


def reported_table(
    metrics: tuple[str, ...],
    source: Literal["paper", "readme", "third-party"],
    rows: Mapping[tuple[str, str], tuple[float, ...]],
) -> tuple[Reported, ...]:
    """A published table. rows: (data set, setting), or (data set/category, setting), to one figure for each metric."""
    return tuple(
        Reported(dataset, setting, metric, value, source)
        for (dataset, setting), values in rows.items()
        for metric, value in zip(metrics, values, strict=True)
    )


@dataclass(frozen=True)
class Weights:
    """Pretrained weights that a method cannot run without; the embedded backbone is not listed.

    title: what people call them. files: any one of these is enough; a file name, or `organisation/name` of the Hugging
        Face hub. They are looked for in $ANOMALENS_CACHE/weights and where torch and the hub keep theirs.
    commercial: whether the licence allows it; None where the source does not say.
    """

    title: str
    files: tuple[str, ...]
    source: str
    licence: str
    commercial: bool | None


@dataclass(frozen=True)
class Card:
    """What a method is and needs. Literals only: `list`, `recommend`, the docs and the report read it unimported.

    venue: where it was published, "" for ours. repo: `owner/name` of the authors' or the best known code, "" for none.
    code_licence: of that code (ours is written from the papers): an SPDX name, `none-found` or `no-code`.
    fidelity: parity = numbers compared with the authors' code; port = complete algorithm, not compared;
        reading = the paper is not fully public, this is our reading; ours = no paper.
    scope: single = one category per model; multi = one model for all; open = no category needed.
    normals: (fewest normal pictures `fit` accepts, number from which published behaviour is expected).
    abnormals: whether labelled defects can be learnt from. auxiliary: other data behind what was learnt elsewhere.
    needs: any one of these kinds of picture is enough. aliases: other names a user may type.
    text: what a person must write for it. transductive: the score of a picture depends on the others judged with it.
    trains: no; statistics = closed form or a memory; gradient = on the user's pictures; auxiliary = once, elsewhere.
    fit_cost: F0 none, F1 seconds, F2 minutes, F3 under an hour, F4 hours; for 200 pictures at published settings on one
        modern GPU. predict_cost: P0 < 10 ms, P1 < 50 ms, P2 < 250 ms, P3 < 2 s, P4 more, per picture. First estimates.
    gpu: no = a CPU will do; fit = one for fitting; yes = for both. cpu_fit: cost of the shortened training that the
        method chooses by itself where there is no GPU, in the same classes, for 100 pictures on 2 cores; "" for none.
    stored_mb: what `save` writes, without the backbone. extras: of `pip install anomalens[...]`.
    pose: aligned = statistics by position; small = tolerates small shifts; free = any pose.
    external: any one of these is needed beside the library. determinism: exact = nothing random; seeded; external =
        depends on a served model.
    """

    title: str
    paper: str
    year: int
    venue: str
    summary: str
    repo: str
    code_licence: str
    fidelity: Literal["parity", "port", "reading", "ours"]
    family: Literal[
        "memory",
        "gaussian",
        "flow",
        "distillation",
        "reconstruction",
        "synthesis",
        "vision-language",
        "segmenter",
        "mutual",
        "self-regression",
        "program",
        "language-model",
        "generator",
        "wrapper",
    ]
    settings: tuple[
        Literal["full-shot", "few-shot", "zero-shot", "batched-zero-shot", "semi-supervised", "generation"], ...
    ]
    scope: Literal["single", "multi", "open"]
    normals: tuple[int, int]
    abnormals: Literal["none", "optional"]
    auxiliary: tuple[Literal["annotated-ad", "textures", "vq-model", "generated"], ...]
    text: Literal["none", "class-name", "phrases", "rules", "dialogue"]
    transductive: bool
    needs: tuple[Literal["image", "lights", "points", "video", "series"], ...]
    gives: tuple[Literal["score", "map", "boxes", "text", "program", "images"], ...]
    levels: tuple[Literal["structural", "semantic"], ...]
    focus: Literal["any", "texture", "object"]
    backbone: str
    trains: Literal["no", "statistics", "gradient", "auxiliary"]
    fit_cost: Literal["F0", "F1", "F2", "F3", "F4"]
    predict_cost: Literal["P0", "P1", "P2", "P3", "P4"]
    gpu: Literal["no", "fit", "yes"]
    stored_mb: float
    extras: tuple[Literal["torch", "clip", "diffusion", "llm"], ...]
    weights: tuple[Weights, ...]
    pose: Literal["aligned", "small", "free"]
    external: tuple[Literal["local-llm", "remote-llm", "diffusion", "detector+sam"], ...]
    determinism: Literal["exact", "seeded", "external"]
    differs: str
    pitfalls: tuple[str, ...]
    reported: tuple[Reported, ...] = field(default=())
    aliases: tuple[str, ...] = field(default=())
    cpu_fit: Literal["", "F2"] = ""


@dataclass(frozen=True)
class BackboneCard:
    """What a family of feature extractors is: where its weights come from, under which licence, what it is bad at.

    file, sha256, bytes: the embedded asset, where there is one.
    """

    title: str
    summary: str
    licence: str
    source: str
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    limits: str
    file: str = ""
    sha256: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class MakerCard:
    """What a maker of drawn defects does. Literals only, like `Card`.

    source: who published the idea, with a link; "" for ours. severity: what grows from 0 to 1.
    levels: structural = a damaged surface; semantic = each place looks fine, the whole is wrong.
    needs: what it cannot work without beside normal pictures, "" for nothing. extras: of `pip install anomalens[...]`.
    differs: from the source. limits: where it shows nothing or looks drawn.
    """

    title: str
    summary: str
    source: str
    severity: str
    levels: tuple[Literal["structural", "semantic"], ...]
    needs: str
    extras: tuple[Literal["torch", "clip", "diffusion", "llm"], ...]
    differs: str
    limits: str


@dataclass(frozen=True)
class MetricCard:
    """What a metric says and where it is defined.

    range: lowest and highest value. needs: what the ground truth must hold; without it the value is NaN.
    """

    title: str
    summary: str
    range: tuple[float, float]
    direction: Literal["higher is better", "lower is better"]
    levels: tuple[Literal["image", "pixel", "region"], ...]
    needs: tuple[Literal["anomalous", "normal"], ...]
    source: str


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset or a layout is. Literals only, like `Card`.

    home: page of the dataset, "" for what is the user's own. citation: how its authors want to be named, "" for none.
    pictures: (normal pictures to train on, pictures to test on) of the whole; (0, 0) where it depends on the user.
    categories: names known in advance; () where it depends on the user.
    """

    title: str
    summary: str
    home: str
    citation: str
    licence: str
    commercial: bool | None
    views: tuple[Literal["image", "lights", "depth", "normals", "points", "video", "series"], ...]
    levels: tuple[Literal["structural", "semantic"], ...]
    layout: str
    masks: bool
    pictures: tuple[int, int]
    categories: tuple[str, ...]
