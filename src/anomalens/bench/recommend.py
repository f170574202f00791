"""Which method for what there is: hard filters, then rules, over the cards of the methods that exist.

    from anomalens.bench.recommend import Query, recommend
    print(recommend(Query(normals=200, gpu="none")).proposal)

A pure function of the query and the cards: nothing is read, measured or imported for it. `probe` fills a query from a
folder and this machine. The rules name methods that may not be built yet; only those with a card are ever proposed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import detector
from ..errors import WrongInput, unknown
from ..types import Card
from . import rad

BATCH = 20  # pictures that must be judged together for methods in which pictures judge each other
SLOWER = 50  # a CPU against the GPU that a method is made for
MILLISECONDS = {"P0": 10.0, "P1": 50.0, "P2": 250.0, "P3": 2000.0, "P4": float("inf")}
LARGE = 1500  # pixels of the longest side, above which a small defect vanishes when the picture is made small
FEW = 20  # good pictures below which the few-shot rules hold
MORE_NORMALS = (1, FEW, 50)  # numbers of good pictures at which rules begin


def one_of(*values: str) -> Any:
    return dataclasses.field(default=values[0], metadata={"values": values})


def some_of(*values: str, default: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"values": values})


@dataclass(frozen=True)
class Query:
    """What there is and what is wanted.

    normals: good pictures. abnormals: labelled bad ones to learn from. train_clean: whether all good ones are good.
    categories: kinds of things to serve; unified: by one model. views: what pictures there are of each thing.
    anomaly: structural = something looks wrong; semantic = everything looks right but is missing, too many, misplaced.
    surface: an even texture or an object. pose: do things lie the same way. imaging: what disturbs the pictures.
    test_batch: pictures that may be judged together; abnormal_share: share of bad ones among them, 0 to 1.
    text: what a person can write; rules: are there written rules, and can the parts they name be marked.
    gpu: for fitting, for both, or none. latency_ms: allowed for one picture. storage_mb: allowed for a fitted model.
    offline: nothing may leave this machine. commercial: licences of weights must allow it.
    weights: titles of the weights on this machine; extras: optional libraries installed; None counts all as present.
    longest: side of the largest picture in pixels, 0 for unknown.
    """

    normals: int = 0
    abnormals: int = 0
    train_clean: str = one_of("yes", "unknown")
    categories: int = 1
    unified: bool = False
    views: tuple[str, ...] = some_of("image", "lights", "points", "depth", "video", "series", default=("image",))
    anomaly: str = one_of("unknown", "structural", "semantic", "both")
    surface: str = one_of("unknown", "texture", "object")
    pose: str = one_of("unknown", "aligned", "small", "free")
    imaging: tuple[str, ...] = some_of("uneven-light", "blur", "noise")
    test_batch: int = 1
    abnormal_share: float = 0.2
    text: str = one_of("class-name", "expert", "none")
    rules: str = one_of("no", "yes", "with-objects")
    need: tuple[str, ...] = some_of("score", "map", "text", default=("score", "map"))
    gpu: str = one_of("both", "fit", "none")
    latency_ms: float | None = None
    storage_mb: float | None = None
    offline: bool = True
    commercial: bool = False
    weights: tuple[str, ...] | None = None
    extras: tuple[str, ...] | None = None
    longest: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, known = getattr(self, f.name), f.metadata.get("values", ())
            for one in value if isinstance(value, tuple) else (value,):
                if known and one not in known:
                    raise unknown(f"value of {f.name}", str(one), known)
            if isinstance(value, (int, float)) and value < 0:
                raise WrongInput(f"{f.name} cannot be negative; got {value}.")
        if not self.views or not self.need:
            raise WrongInput("views and need name at least one thing each.")
        if self.abnormal_share > 1:
            raise WrongInput(f"abnormal_share goes from 0 to 1; got {self.abnormal_share}.")


@dataclass(frozen=True)
class Evidence:
    """A published figure behind a choice, in the unit of its source (percent as a rule)."""

    method: str
    dataset: str
    setting: str
    metric: str
    value: float
    source: str
    selection: str


@dataclass(frozen=True)
class Choice:
    """A method and why. slow: made for a GPU that is not there; of methods that need one for training alone, the
    training is shortened. missing: what has to be fetched before it runs."""

    name: str
    title: str
    rule: str
    reason: str
    notes: tuple[str, ...]
    slow: bool
    missing: tuple[str, ...]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Removal:
    """Why a method is out. filter: which of FILTERS; relax: what would bring it back, "" where nothing can."""

    name: str
    filter: str
    reason: str
    relax: str


@dataclass(frozen=True)
class Recommendation:
    """The answer; proposal is None when nothing is left. `relaxation` says what would help where nothing can run."""

    query: Query
    proposal: Choice | None
    alternatives: tuple[Choice, ...]
    baseline: Choice | None
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    removed: tuple[Removal, ...]
    relaxation: str

    @property
    def ready(self) -> Choice | None:
        """The best one that runs here and now."""
        return next((c for c in (self.proposal, *self.alternatives) if c and not c.missing), None)


def recommend(query: Query, cards: Mapping[str, Card] | None = None) -> Recommendation:
    """The best method for a query, up to two alternatives, and what was left out and why.

    Args:
        query: what there is and what is wanted.
        cards: methods by name; those that are built by default. Wrappers are never proposed themselves.
    """
    if cards is None:
        cards = {name: detector.card(name) for name in detector.names()}
    methods = {name: c for name, c in cards.items() if c.family != "wrapper"}
    found, removed = _ranked(query, methods)
    proposal = found[0] if found else None
    base = "patchcore" if query.normals else "adaclip"
    return Recommendation(
        query=query,
        proposal=proposal,
        alternatives=tuple(found[1:3]),
        baseline=next((c for c in found if c.name == base), None),
        advice=tuple(_advice(query, proposal, cards)),
        notes=tuple(_notes(query)),
        removed=removed,
        relaxation=_relaxation(query, methods) if all(c.missing for c in found) else "",
    )


# Hard filters, in their order. Each says (why the card is out, what would bring it back), or None.

Verdict = tuple[str, str] | None


def _views(card: Card, q: Query) -> Verdict:
    there = {*q.views, *(["image"] if {"lights", "points", "depth"} & set(q.views) else [])}
    if there & set(card.needs):
        return None
    return f"looks at {' or '.join(card.needs)}, not at {' and '.join(q.views)}", ""


def _numbers(card: Card, q: Query) -> Verdict:
    if card.settings == ("generation",):
        return "makes pictures and judges none", ""
    if card.transductive and q.test_batch < BATCH:
        return f"lets pictures judge each other and needs {BATCH} of them at once", f"judge {BATCH} pictures at once"
    if "zero-shot" in card.settings or ("batched-zero-shot" in card.settings and q.test_batch >= BATCH):
        return None
    least = max(1, card.normals[0])
    if q.normals < least:
        return f"needs {_count(least, 'good picture')}", f"give {_count(least, 'good picture')}"
    return None


def _outputs(card: Card, q: Query) -> Verdict:
    gives = {*card.gives, "text", *(["map"] if card.family == "program" and q.rules == "with-objects" else [])}
    if lacking := [n for n in q.need if n not in gives]:
        return f"gives no {' and no '.join(lacking)}", f"do without a {' and a '.join(lacking)}"
    return None


def _text(card: Card, q: Query) -> Verdict:
    if card.text in ("class-name", "phrases", "dialogue") and q.text == "none":
        return (
            f"needs words ({card.text})",
            "give a class name" if card.text == "class-name" else "describe it in words",
        )
    if card.text == "rules" and q.rules == "no":
        return "needs written rules", "write rules"
    if card.focus == "texture" and q.surface == "object":
        return "is for even textures, not for objects", ""
    return None


def _gpu(card: Card, q: Query) -> Verdict:
    if q.gpu == "none" and card.trains == "gradient" and card.fit_cost in ("F3", "F4") and not card.cpu_fit:
        return "needs a GPU for training", "use a GPU"
    if q.gpu != "both" and card.gpu == "yes" and card.predict_cost in ("P3", "P4"):
        return "needs a GPU", "use a GPU"
    return None


def _speed_and_size(card: Card, q: Query) -> Verdict:
    takes = MILLISECONDS[card.predict_cost] * (SLOWER if _slow(card, q) else 1)
    late = q.latency_ms is not None and takes > q.latency_ms
    large = q.storage_mb is not None and card.stored_mb > q.storage_mb
    if not late and not large:
        return None
    time = "may take longer than any limit" if takes == float("inf") else f"may take {takes:g} ms a picture"
    said = ([time] if late else []) + ([f"stores {card.stored_mb:g} MB"] if large else [])
    wish = ([f"allow {takes:g} ms a picture" if takes < float("inf") else "allow any time"] if late else []) + (
        [f"allow {card.stored_mb:g} MB"] if large else []
    )
    return " and ".join(said), " and ".join(wish)


def _offline(card: Card, q: Query) -> Verdict:
    if q.offline and card.external and all(e.startswith("remote") for e in card.external):
        return "asks a model outside this machine", "allow a model outside this machine"
    return None


def _commercial(card: Card, q: Query) -> Verdict:
    if q.commercial and (forbidden := [w.title for w in card.weights if w.commercial is False]):
        return f"needs weights that forbid commercial use ({', '.join(forbidden)})", "use it for research only"
    return None


def _unified(card: Card, q: Query) -> Verdict:
    if q.unified and q.categories > 1 and card.scope == "single":
        return "learns one category per model", "fit one model per category"
    return None


FILTERS: dict[str, Callable[[Card, Query], Verdict]] = {
    "views": _views,
    "numbers": _numbers,
    "outputs": _outputs,
    "text": _text,
    "gpu": _gpu,
    "speed and size": _speed_and_size,
    "offline": _offline,
    "commercial": _commercial,
    "unified": _unified,
}
RELAXED = ("speed and size", "gpu", "unified", "text", "outputs", "commercial", "offline")  # smallest change first


def _filtered(query: Query, cards: Mapping[str, Card], skip: str = "") -> tuple[dict[str, Card], tuple[Removal, ...]]:
    kept, removed = {}, []
    for name, card in cards.items():
        verdicts = ((label, check(card, query)) for label, check in FILTERS.items() if label != skip)
        out = next(((label, v) for label, v in verdicts if v), None)
        if out:
            removed.append(Removal(name, out[0], *out[1]))
        else:
            kept[name] = card
    return kept, tuple(removed)


def _slow(card: Card, q: Query) -> bool:
    return card.gpu == "yes" and q.gpu != "both"


def _short(card: Card, q: Query) -> bool:
    """Whether it would be trained for less than published, because there is no GPU."""
    return bool(card.cpu_fit) and q.gpu == "none"


def missing(card: Card, query: Query) -> tuple[str, ...]:
    """What has to be installed or fetched before the method runs here."""
    extras = [e for e in card.extras if query.extras is not None and e not in query.extras]
    weights = [w for w in card.weights if query.weights is not None and w.title not in query.weights]
    return (
        *([f"pip install 'anomalens[{','.join(extras)}]'"] if extras else []),
        *(w.title for w in weights),
    )


# Rules, from top to bottom: where one applies, its candidates join the list in their order.


@dataclass(frozen=True)
class Rule:
    """when it applies, whom it names, and why: {fields} are those of the query.

    beside: a remark on one candidate. figures: metrics of the RAD benchmark, (level, metric), that it rests on.
    """

    when: Callable[[Query], bool]
    names: Callable[[Query], tuple[str, ...]]
    reason: str
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    figures: tuple[tuple[str, str], ...] = ()


def _named(*names: str) -> Callable[[Query], tuple[str, ...]]:
    """Candidates; one written `padim@aligned` counts only where things lie the same way."""

    def chosen(q: Query) -> tuple[str, ...]:
        return tuple(n.partition("@")[0] for n in names if "@" not in n or n.endswith(f"@{q.pose}"))

    return chosen


def _semantic(q: Query) -> bool:
    return q.anomaly in ("semantic", "both")


def _robust(q: Query) -> bool:
    return q.normals >= FEW and (q.pose == "free" or bool(q.imaging))


BY_DESIGN = {"dinomaly": "not among the methods of that benchmark, here by design"}
RULES: dict[str, Rule] = {
    "R1": Rule(
        lambda q: _semantic(q) and q.rules != "no",
        _named("logicode", "customizable-vlm"),
        "rules speak of counts, places and pairings; a checked program answers the same each time and explains itself",
    ),
    "R2": Rule(
        _semantic,
        _named("customizable-vlm", "dinomaly", "rd"),
        "what is wrong is a relation, so the whole picture counts",
        beside=dict.fromkeys(("dinomaly", "rd"), "sees only part of it; write rules for the rest"),
    ),
    "R4": Rule(
        lambda q: "lights" in q.views and q.normals >= 50,
        _named("afrd"),
        "several lights show what one hides",
    ),
    "R5": Rule(
        lambda q: bool({"points", "depth"} & set(q.views)) and "image" not in q.views,
        _named("customizable-vlm", "patchcore"),
        "there is no method of its own for points or depth yet, so rendered pictures are judged",
    ),
    "R6": Rule(
        lambda q: q.abnormals >= 1 and q.normals >= FEW,
        _named("cdo"),
        "{abnormals} labelled bad pictures guide the boundary; keep half of their kinds for checking",
    ),
    "R7": Rule(
        lambda q: q.normals == 0 and q.surface == "texture",
        _named("grnr", "musc", "adaclip"),
        "an even texture explains itself: each place is compared with the rest of its picture",
    ),
    "R8": Rule(
        lambda q: q.normals == 0 and q.test_batch >= BATCH and q.abnormal_share < 0.5,
        _named("musc", "anomalydino"),
        "{test_batch} pictures judge each other, which fails where most of them are bad",
    ),
    "R9": Rule(
        lambda q: q.normals == 0,
        _named("adaclip", "april-gan", "winclip", "vlad", "customizable-vlm", "saa"),
        "no good picture is needed: it knows pictures and words in general; in the order of published averages",
        beside={"saa": "needs tuned phrases and failed on RAD"},
    ),
    "R10": Rule(
        lambda q: 1 <= q.normals < FEW and q.pose in ("free", "unknown"),
        _named("anomalydino", "dfd", "patchcore", "winclip", "vlad"),
        "few good pictures ({normals}), pose {pose}: strong features compared directly, methods without training first",
    ),
    "R11": Rule(
        lambda q: 1 <= q.normals < FEW and q.pose in ("aligned", "small"),
        _named("anomalydino", "winclip", "dfd", "patchcore", "padim@aligned"),
        "few good pictures ({normals}), pose {pose}: strong features compared directly",
    ),
    "R12": Rule(
        lambda q: q.train_clean == "unknown" and q.normals >= FEW,
        _named("patchcore", "gcpf"),
        "bad pictures may be among the good ones: suspects can be taken out of a memory, training would learn them",
    ),
    "R13": Rule(
        lambda q: q.unified and q.categories > 1,
        _named("dinomaly", "uniad", "pnpt"),
        "made to serve many categories, here {categories}, with one model",
    ),
    "R14": Rule(
        lambda q: any(limit is not None and limit <= 20 for limit in (q.latency_ms, q.storage_mb)),
        _named("simplenet", "padim@aligned", "anomalydino"),
        "small and fast: little is stored and one pass decides",
    ),
    "R15": Rule(
        lambda q: q.gpu == "none" and q.normals >= FEW,
        _named("patchcore", "padim@aligned", "gcpf", "anomalydino"),
        "no GPU: it learns {normals} good pictures without gradient training",
    ),
    "R16": Rule(
        lambda q: _robust(q) and "map" in q.need,
        _named("cdo", "rd", "dinomaly", "patchcore", "dsr"),
        "pose {pose} or disturbed pictures: by the pixel figures of the RAD benchmark, taken under such conditions",
        beside=BY_DESIGN,
        figures=(("pixel", "auroc"), ("pixel", "pro-rad")),
    ),
    "R16, scores": Rule(
        lambda q: _robust(q) and "map" not in q.need,
        _named("winclip", "rdpp", "patchcore", "cflow"),
        "pose {pose} or disturbed pictures: by the image figures of the RAD benchmark, taken under such conditions",
        figures=(("image", "auroc"),),
    ),
    "R17": Rule(
        lambda q: q.normals >= 50,
        _named(*["dinomaly", "patchcore", "rd", "cdo", "rdpp", "simplenet", "cflow", "draem", "dsr", "pyramidflow"]),
        "{normals} good pictures are enough for any method; in the order of published figures",
    ),
    "R18": Rule(
        lambda q: FEW <= q.normals < 50,
        _named("patchcore", "anomalydino", "dinomaly", "padim@aligned"),
        "{normals} good pictures: a memory needs fewer of them than training does",
    ),
    "R19": Rule(
        lambda q: True,
        lambda q: ("patchcore",) if q.normals else ("adaclip",),
        "the baseline that others have to beat",
    ),
}
LAST = "it can run with what there is, though no rule speaks for it"
RAD_NAMES = {
    "cflow": "CFlow", "pyramidflow": "PyramidFlow", "rd": "RD", "rdpp": "RD++", "dsr": "DSR", "cdo": "CDO",
    "patchcore": "PatchCore", "gcpf": "GCPF", "saa": "SAA", "winclip": "WinCLIP", "april-gan": "APRIL-GAN",
}  # fmt: skip


def _ranked(query: Query, cards: Mapping[str, Card], skip: str = "") -> tuple[list[Choice], tuple[Removal, ...]]:
    """Everything that passes, best first: runnable, then slow, then incomplete, each in the order of the rules."""
    kept, removed = _filtered(query, cards, skip)
    found: dict[str, Choice] = {}
    for number, rule in RULES.items():
        if rule.when(query):
            for name in rule.names(query):
                if name in kept and name not in found:
                    found[name] = _choice(query, name, kept[name], number, rule)
    if all(choice.missing for choice in found.values()):
        for name, card in kept.items():
            if name not in found:
                found[name] = _choice(query, name, card, "last", Rule(lambda q: True, _named(), LAST))
    return sorted(found.values(), key=lambda c: (bool(c.missing), c.slow)), removed


def _choice(query: Query, name: str, card: Card, number: str, rule: Rule) -> Choice:
    return Choice(
        name=name,
        title=card.title,
        rule=number,
        reason=rule.reason.format(**vars(query)),
        notes=tuple(_remarks(query, name, card, rule)),
        slow=_slow(card, query) or _short(card, query),
        missing=missing(card, query),
        evidence=tuple(_evidence(query, name, card, rule)),
    )


def _remarks(query: Query, name: str, card: Card, rule: Rule) -> Iterator[str]:
    if name in rule.beside:
        yield rule.beside[name]
    if _slow(card, query):
        yield "slow: made for a GPU"
    if _short(card, query):
        yield "trained for minutes on a CPU, much shorter than published: its published figures do not hold for that"
    if _semantic(query) and "semantic" not in card.levels:
        yield "finds what looks wrong; a missing or misplaced part will mostly pass"
    if card.focus != "any" and query.surface == "unknown":
        yield "for even textures only" if card.focus == "texture" else "for objects"
    if card.fidelity == "reading":
        yield "our reading of a paper that is not fully public"
    if "image" in card.needs and "image" not in query.views:
        yield "judges the mean of the lights" if "lights" in query.views else "judges rendered pictures"
    if card.text == "phrases" and query.text == "class-name":
        yield "general phrases instead of ones for this product"
    if card.auxiliary:
        yield f"learnt from other data ({', '.join(card.auxiliary)}), on which its figures would be too good"
    if query.commercial and any(w.commercial is None for w in card.weights):
        yield "whether its weights may be used commercially is not stated"
    if card.determinism == "external":
        yield "answers depend on a served model"


def _evidence(query: Query, name: str, card: Card, rule: Rule) -> Iterator[Evidence]:
    """Figures of the rule's benchmark; else what was reported for the setting that would be used."""
    if rule.figures:
        for level, metric in rule.figures:
            if value := rad.published(level, "mean", metric).get(RAD_NAMES.get(name, "")):
                yield Evidence(name, "rad", "mean", f"{level}_{metric}", value, "third-party", "unknown")
        return
    used = setting_used(query, card)
    for r in card.reported:
        if r.setting.startswith(used):
            yield Evidence(name, r.dataset, r.setting, r.metric, r.value, r.source, r.selection)


def setting_used(query: Query, card: Card) -> str:
    """In which of its settings a method would work on what there is."""
    if query.abnormals and "semi-supervised" in card.settings:
        order = ["semi-supervised"]
    elif query.normals == 0:
        order = ["zero-shot", "batched-zero-shot"]
    elif query.normals < FEW:
        order = ["few-shot", "full-shot"]
    else:
        order = ["full-shot", "few-shot"]
    return next((s for s in (*order, "zero-shot") if s in card.settings), card.settings[0])


# What stands beside the proposal.


def _advice(q: Query, proposal: Choice | None, cards: Mapping[str, Card]) -> Iterator[str]:
    if "text" in q.need and "customizable-vlm" in cards and (proposal is None or proposal.name != "customizable-vlm"):
        yield "customizable-vlm as a second stage puts what was flagged into words: --explain --base-url URL --model NAME"
    if q.rules != "no" and "logicode" in cards and (proposal is None or proposal.name != "logicode"):
        yield "check the written rules too: anomalens rules run RULES.yaml NEW; --anomaly semantic --need score ranks it"
    if proposal is None:
        return
    chosen = cards[proposal.name]
    if "lights" in q.views and 2 <= q.normals < MORE_NORMALS[-1] and "afrd" in cards:
        yield f"afrd weighs the lights and says which one showed it; from {MORE_NORMALS[-1]} good ones on"
    if q.longest > LARGE and "tiled" in cards:
        yield f"pictures of {q.longest} pixels: add --tile 512 if defects are small, or they vanish when made smaller"
    if "lights" in q.views and "lights" not in chosen.needs and "per-view" in cards:
        yield f"one detector per light: --method per-view --set inner={proposal.name}"
    if q.normals and q.normals < min(FEW, chosen.normals[1]):
        yield f"collect good pictures before tuning anything: {proposal.name} is at home with {chosen.normals[1]}"
    if q.abnormals and chosen.abnormals == "none":
        yield f"{proposal.name} learns from good pictures only; keep the {q.abnormals} bad ones to check it with"
    if q.train_clean == "unknown":
        yield "inspect one half of the good pictures against the other, and take out what is rejected"
    if q.pose == "free" and q.normals:
        yield "good pictures should show every pose that will occur"
    if "uneven-light" in q.imaging:
        yield "good pictures should show every light that will occur; --roi leaves out what is always overexposed"
    if _semantic(q) and q.rules == "no" and any(c.text == "rules" for c in cards.values()):
        yield "write down the rules; then they can be checked one by one"
    if proposal.rule.startswith("R16"):
        yield "on RAD the best image scores and the best maps came from different methods: compare both"
    makers = [n for n, c in cards.items() if c.settings == ("generation",) and not missing(c, q)]
    if 1 <= q.abnormals < 5 and makers:
        yield f"{makers[0]} can draw more bad pictures to check with"


def _notes(q: Query) -> Iterator[str]:
    if q.latency_ms is not None:
        yield "times are classes for one modern GPU and published settings: measure before you rely on them"


def _relaxation(query: Query, cards: Mapping[str, Card]) -> str:
    """The smallest single change after which something can run, in words."""

    def ready(changed: Query, skip: str = "") -> list[Choice]:
        return [c for c in _ranked(changed, cards, skip)[0] if not c.missing]

    for label in RELAXED:
        for choice in ready(query, label):
            verdict = FILTERS[label](cards[choice.name], query)
            if verdict and verdict[1]:
                return f"{verdict[1]}: then {choice.name}"
    if found := ready(replace(query, test_batch=max(BATCH, query.test_batch))):
        return f"judge {BATCH} pictures at once: then {found[0].name}"
    for more in MORE_NORMALS:
        if found := ready(replace(query, normals=max(more, query.normals))):
            return f"give {_count(more, 'good picture')}: then {found[0].name}"
    return "no single change gives an answer"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
