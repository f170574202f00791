"""Customizable-VLM: a general vision-language model judges, told in words and by pictures what normal means.

Xu, Cao, Chen, Shen, Huang 2024, "Customizing Visual-Language Foundation Models for Multi-modal Anomaly Detection and
Reasoning", https://arxiv.org/abs/2403.11083

Four kinds of prompts make an expert of a general model: what the task is, what the thing is, which rules a normal one
satisfies, and reference pictures. Every kind of data is turned into 2-D pictures first. The answer is a verdict with
its reasons. Pictures leave this machine only for the server that is named in `base_url`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..detector import Detector
from ..errors import WrongInput
from ..parts.batches import ahead
from ..parts.prompts import name_of
from ..reasoning import prompts
from ..reasoning.answers import Defect, Judgement, Status, judge
from ..reasoning.endpoint import Answer, Asks, Message, Model, Part, Picture, Usage
from ..reasoning.pictures import Kind, Shown, crops, likeness, marked, show, unlikeness
from ..reasoning.point_clouds import Mode
from ..types import Card, Prediction, Reason, Region, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="Customizable-VLM",
    paper="https://arxiv.org/abs/2403.11083",
    year=2024,
    venue="CSCWD 2025",
    summary="Asks a vision-language model behind a server of yours, told by text, rules and references what is normal.",
    repo="Xiaohao-Xu/Customizable-VLM",
    code_licence="MIT",
    fidelity="port",
    family="language-model",
    settings=("zero-shot", "few-shot"),
    scope="open",
    normals=(0, 1),
    abnormals="optional",
    auxiliary=(),
    text="dialogue",
    transductive=False,
    needs=("image", "points", "video", "series", "lights"),
    gives=("score", "boxes", "text"),
    levels=("structural", "semantic"),
    focus="any",
    backbone="any vision-language model that speaks chat completions",
    trains="no",
    fit_cost="F0",
    predict_cost="P4",
    gpu="no",
    stored_mb=1.0,
    extras=("llm",),
    weights=(),
    pose="free",
    external=("local-llm", "remote-llm"),
    determinism="external",
    differs="the paper's text is only partly public and its code covers pictures alone, so the renderer of point clouds, the "
    "tiling of clips and the plots are ours; all prompts are in our words; the answer is JSON with the reasoning first, then "
    "verdict, confidence and boxes (official: `correctness`, 1 is normal; compat='official'); a score from token "
    "probabilities, votes or confidence (official: the binary verdict); what cannot be read is asked again once and then "
    "kept without a score (official: dropped); references come from normal pictures to learn from (official: the first "
    "test picture, which is also judged); temperature 0 (official: the server's default, or 0.4). The nine views of a cloud "
    "are always tiled, never sent one by one",
    pitfalls=(
        "pictures are sent to the server you name: use a local one where they must not leave the house",
        "models tend to call fine defects normal, and a large picture is reduced to 1024 pixels: tiles=(2, 2) adds parts",
        "a picture without a verdict (refused, unreadable, server down) has the score NaN and the verdict review",
        "confidence in words is coarse: many pictures get the same score, so figures of ranking say little",
        "boxes are guesses; the map is 0 outside of them, and there is none for clips, curves and unordered points",
        "answers change with the model behind a name, and often between runs even at temperature 0",
    ),
    aliases=("vlm",),
)

TEXTS = "customizable_vlm_1"  # a changed text is a new file, so that cached answers and reports stay true
POOL = 64  # normal pictures of a category among which the nearest references are looked for
VOTE_TEMPERATURE = 0.7
MOST_MARKS = 9  # places of another detector that are explained
NO_EXPLANATION = "No explanation: "  # how the reason begins where `explain` got no usable answer
ScoreMode = Literal["logprob", "vote", "verbal", "binary"]
VOTE: ScoreMode = "vote"


@dataclass(frozen=True)
class Result:
    """Everything that is known of one sample. score: P(anomalous) in [0, 1] as `mode` says; None without a verdict.

    status: ok, or why there is no verdict (`error` is one sentence). text: the last answer as it came. calls: questions
    asked, those answered from the cache included. usage: tokens as the server counted them.
    """

    id: str
    status: Status
    anomalous: bool | None = None
    score: float | None = None
    mode: ScoreMode | None = None
    reasoning: str = ""
    defects: tuple[Defect, ...] = ()
    error: str = ""
    text: str = ""
    calls: int = 0
    usage: dict[str, int] = field(default_factory=dict)


@dataclass
class CustomizableVLM(Detector):
    """A vision-language model that is told what normal means.

    base_url, model: the server (as a rule its address ends in /v1) and what it calls the model. In Python `model` may be
        anything with `.ask` instead, see `reasoning.endpoint.Asks`. key_env: the environment variable with the key.
    object: what the thing is called; "" takes the category of each sample. context: what else a person would need to
        know of it. rules: what a normal one satisfies; defects: which defects occur. As a text, one to a line.
    level: how much of that is told: the bare task; and the name of the thing; and all expert knowledge.
    use_task, use_context, use_rules, use_references: switches for the four kinds of prompts.
    references: normal pictures of each category shown for comparison, 0 to 4. abnormal: labelled defective ones beside
        them. choose: the first of those to learn from, drawn by `seed`, or the most similar to the sample in colour and
        layout.
    order: text before pictures, or after. language: of the answer, e.g. "German".
    score: from the probability of the verdict's token, the share of `votes` at temperature 0.7, the stated confidence, or
        the bare verdict; "auto" takes the first of these that there is.
    look, sides, surface, without_plane, frames, fps: how other data become pictures, see `reasoning.pictures.show`.
    tiles: rows and columns of enlarged parts sent beside a picture. longest: longer side of what is sent, pixels.
    compat: "official" asks as the authors' code does: one normal reference, `correctness`, no confidence, no boxes.
    again: questions after an answer without a verdict. cache: folder of answers, so that nothing is asked twice; "auto" is
        in $ANOMALENS_CACHE, "" is none. The other settings are those of `reasoning.endpoint.Model`.
    """

    base_url: str = ""
    model: Any = ""
    key_env: str = ""
    object: str = ""
    context: str = ""
    rules: tuple[str, ...] | str = ()
    defects: tuple[str, ...] | str = ()
    level: Literal["task", "class", "expert"] = "expert"
    use_task: bool = True
    use_context: bool = True
    use_rules: bool = True
    use_references: bool = True
    references: int = 1
    abnormal: int = 0
    choose: Literal["first", "random", "nearest"] = "first"
    order: Literal["text_first", "images_first"] = "text_first"
    language: str = ""
    score: Literal["auto", "logprob", "vote", "verbal", "binary"] = "auto"
    votes: int = 1
    look: Kind | Literal["auto"] = "auto"
    sides: int = 9
    surface: Mode = "shaded"
    without_plane: bool = False
    frames: int = 9
    fps: float = 0.0
    tiles: tuple[int, int] = (1, 1)
    longest: int = 1024
    compat: Literal["", "official"] = ""
    temperature: float = 0.0
    max_tokens: int = 512
    again: int = 1
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 3
    cache: str = "auto"
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("kept",)

    def __post_init__(self) -> None:
        self.kept: dict[str, Any] | None = None  # references of each category, encoded as they are sent
        self._model: tuple[Any, Asks] | None = None
        least = {"references": 0, "abnormal": 0, "votes": 1, "frames": 1, "longest": 32, "max_tokens": 1, "again": 0,
                 "concurrency": 1, "retries": 0}  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise WrongInput(f"Customizable-VLM {name}={getattr(self, name)} is too low; at least {low} is needed.")
        if min(self.tiles) < 1 or math.prod(self.tiles) > 16:
            raise WrongInput(
                f"Customizable-VLM tiles={self.tiles} are rows and columns, at most 16 parts; e.g. (2, 2)."
            )
        if self.score == "vote" and self.votes < 2:
            raise WrongInput("Customizable-VLM score='vote' needs at least 2 votes; set votes=5.")
        if self.key_env and not self.base_url and isinstance(self.model, str):
            raise WrongInput("Customizable-VLM got a key but no server for it; set base_url.")

    # --- references, never from what is judged -----------------------------------------------------------------------

    @property
    def needs_fit(self) -> bool:
        return False

    @property
    def learns(self) -> bool:
        return self.references > 0 or self.abnormal > 0

    @property
    def fitted(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        """The dataclass fields; a model given as an object is not a setting that could be saved or shown."""
        return {**super().settings(), "model": self.model if isinstance(self.model, str) else ""}

    def unfitted(self) -> Self:
        copy = super().unfitted()
        copy.model, copy._model = self.model, self._model
        return copy

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Keep normal samples as references, of each category its own, or together where `object` is set.

        Raises:
            WrongInput: a sample is labelled anomalous, and `abnormal` does not ask for such.
        """
        self.kept = None
        drawn: dict[str, dict[str, list[Sample]]] = {}
        seen: dict[tuple[str, str], int] = {}
        random = np.random.default_rng(self.seed)
        for sample in samples:
            label = "abnormal" if sample.label == 1 else "normal"
            if label == "abnormal" and not self.abnormal:
                raise WrongInput(
                    f"sample {sample.id} is labelled anomalous and references are normal; leave it out, or set abnormal=1 to "
                    "show it as an example of a defect."
                )
            category = self.category_of(sample)
            room = self.abnormal if label == "abnormal" else self.references
            if label == "normal" and self.references and self.choose == "nearest":
                room = max(POOL, self.references)
            held = drawn.setdefault(category, {}).setdefault(label, [])
            count = seen[category, label] = seen.get((category, label), 0) + 1
            if len(held) < room:
                held.append(sample)
            elif self.choose != "first" and (place := int(random.integers(count))) < room:
                held[place] = sample
        kept = {
            category: {label: [self.remember(s) for s in some] for label, some in parts.items()}
            for category, parts in drawn.items()
        }
        self.kept = {c: parts for c, parts in kept.items() if any(parts.values())} or None
        return self

    def remember(self, sample: Sample) -> dict[str, Any]:
        """One reference as it will be sent, with what finds the nearest."""
        shown = self.show(sample)
        picture = Picture.of(shown.picture, longest=self.longest)
        data = np.frombuffer(picture.data, np.uint8)
        return {"id": sample.id, "note": sample.defect, "mime": picture.mime, "sha256": picture.sha256, "data": data,
                "likeness": likeness(shown.picture)}  # fmt: skip

    def category_of(self, sample: Sample) -> str:
        return "" if self.object else sample.category

    def called(self, sample: Sample) -> str:
        """What the model is told that the thing is called; the number of a group (`nut/2`) is no part of it."""
        named = replace(sample, category=re.sub(r"(^|/)\d+$", "", sample.category))
        return name_of(named, self.object).replace("_", " ")

    def recall(self, sample: Sample, shown: Shown, sent: Picture) -> list[tuple[str, dict[str, Any]]]:
        """(label, reference) to show beside a sample.

        A reference that is the sample itself is left out with a warning; compat="official" shows it, as its code does. A
        sample of a category without references, where others have some, is judged without, with a warning.
        """
        if not self.kept or not self.use_references:
            return []
        category = self.category_of(sample)
        if category not in self.kept:
            if len(self.kept) > 1 or (category and "" not in self.kept):
                known = ", ".join(k or "samples without a category" for k in self.kept)
                warnings.warn(
                    f"samples of the category {category or 'without a name'!r} are judged without references, which are of "
                    f"{known}; fit with some of it too, or set object to share them.",
                    stacklevel=2,
                )
                return []
            category = next(iter(self.kept))
        parts = self.kept[category]
        normal, abnormal = list(parts.get("normal", ())), list(parts.get("abnormal", ()))
        same = [r["id"] for r in [*normal, *abnormal] if r["sha256"] == sent.sha256]
        if same:
            warnings.warn(
                f"sample {sample.id} is the same picture as the reference {same[0]}; "
                + ("its verdict says nothing." if self.compat else "it is judged without that reference."),
                stacklevel=2,
            )
            if not self.compat:
                normal, abnormal = ([r for r in some if r["sha256"] != sent.sha256] for some in (normal, abnormal))
        if self.choose == "nearest" and normal:
            away = unlikeness(np.stack([r["likeness"] for r in normal]), likeness(shown.picture))
            normal = [normal[i] for i in np.argsort(away, kind="stable")]
        return [*(("normal", r) for r in normal[: self.references]), *(("abnormal", r) for r in abnormal)]

    # --- what the model is told ---------------------------------------------------------------------------------------

    def show(self, sample: Sample) -> Shown:
        """Any data as one 2-D picture."""
        return show(
            sample, self.look, sides=self.sides, surface=self.surface, without_plane=self.without_plane,
            frames=self.frames, fps=self.fps,
        )  # fmt: skip

    def compose(self, sample: Sample, shown: Shown) -> list[Message]:
        """The question about one sample: task, context, rules, references, the sample, and the form of the answer."""
        say = prompts.load(TEXTS)
        sent = Picture.of(shown.picture, longest=self.longest)
        references = self.recall(sample, shown, sent)
        name = self.called(sample)
        if self.compat == "official":
            if not references:
                raise WrongInput("compat='official' compares with a normal picture; call fit(samples) with one first.")
            pictures: list[Part] = [_encoded(references[0][1]), sent]
            text = prompts.fill(say["official"], object=name)
            return [Message("user", (text, *pictures) if self.order == "text_first" else (*pictures, text))]
        before = self.instructions(name, shown, len(references) > 0, prompts.fill(say["task"]))
        pictures = [*self.captioned(references), say["caption_test"], sent]
        if shown.kind == "image" and math.prod(self.tiles) > 1:
            parts = crops(shown.picture, *self.tiles)
            for i, part in enumerate(parts):
                row, column = divmod(i, self.tiles[1])
                where = {"number": i + 1, "count": len(parts), "row": row + 1, "column": column + 1}
                caption = prompts.fill(say["caption_crop"], **{k: str(v) for k, v in where.items()})
                pictures += [caption, Picture.of(part, longest=self.longest)]
        return [Message("user", self.arranged(before, pictures, self.form(say["contract"])))]

    def instructions(self, name: str, shown: Shown, compared: bool, task: str) -> list[Part]:
        """The blocks of text that are switched on, as far as the level goes."""
        say = prompts.load(TEXTS)
        blocks = []
        if self.use_task:
            blocks.append(task)
        if self.use_context and self.level != "task":
            count = len(getattr(shown, "cells", ()))
            sides = prompts.fill(say["sides"]["many" if count > 1 else "one"], count=str(count))
            seen = {"count": str(count), "sides": sides, "surface": say["surface"][self.surface]}
            blocks += [prompts.fill(say["class"], object=name), prompts.fill(say["shows"][shown.kind], **seen)]
            if self.level == "expert" and self.context:
                blocks.append(self.context.strip())
        if self.use_rules and self.level == "expert":
            for key, items in (("rules", _lines(self.rules)), ("defects", _lines(self.defects))):
                numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(items, 1))
                blocks += [prompts.fill(say[key], **{key: numbered})] if items else []
        if compared:
            blocks.append(prompts.fill(say["references"]))
        return ["\n\n".join(blocks)] if blocks else []

    def captioned(self, references: Sequence[tuple[str, dict[str, Any]]]) -> list[Part]:
        say = prompts.load(TEXTS)
        found: list[Part] = []
        for i, (label, reference) in enumerate(references, 1):
            note = f" ({reference['note'].replace('_', ' ')})" if reference["note"] else ""
            found += [prompts.fill(say[f"caption_{label}"], number=str(i), note=note), _encoded(reference)]
        return found

    def form(self, contract: str) -> str:
        say = prompts.load(TEXTS)
        wished = [prompts.fill(say["language"], language=self.language)] if self.language else []
        return "\n".join([prompts.fill(contract), *wished])

    def arranged(self, before: list[Part], pictures: list[Part], form: str) -> tuple[Part, ...]:
        parts = [*before, *pictures, form] if self.order == "text_first" else [*pictures, *before, form]
        return tuple(parts)

    # --- asking -------------------------------------------------------------------------------------------------------

    def asker(self) -> Asks:
        """The model, made once.

        Raises:
            WrongInput: no server or no name was given; nothing has been sent.
        """
        if not isinstance(self.model, str):
            if not callable(getattr(self.model, "ask", None)):
                raise WrongInput(
                    f"model is a {type(self.model).__name__}; give the name of a model with base_url, or an object with a "
                    "method ask, such as reasoning.endpoint.Callable_(function)."
                )
            return self.model
        key = (self.base_url, self.model, self.key_env, self.timeout, self.retries, self.concurrency, self.max_tokens,
               self.cache)  # fmt: skip
        if self._model is None or self._model[0] != key:
            made = Model(
                self.base_url, self.model, key_env=self.key_env or None, timeout=self.timeout, retries=self.retries,
                concurrency=self.concurrency, max_tokens=self.max_tokens, cache=_folder(self.cache),
            )  # fmt: skip
            self._model = (key, made)
        return self._model[1]

    def name(self) -> str:
        """Who speaks, for the report."""
        return (
            self.model if isinstance(self.model, str) else str(getattr(self.model, "name", type(self.model).__name__))
        )

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """One prediction for each sample, `concurrency` questions at once.

        Without a verdict the score is NaN, the verdict "review", and the reason says why. The map is the score inside the
        boxes and 0 elsewhere; None where the sample has no picture of its own, and without a verdict.
        """
        for _, prediction in self._judged(samples):
            yield prediction

    def results(self, samples: Iterable[Sample]) -> Iterator[Result]:
        """As `predict`, with everything that is known."""
        for result, _ in self._judged(samples):
            yield result

    def _judged(self, samples: Iterable[Sample]) -> Iterator[tuple[Result, Prediction]]:
        model = self.asker()
        yield from ahead(lambda s: self._one(s, model), samples, 2 * self.concurrency, self.concurrency)

    def _one(self, sample: Sample, model: Asks) -> tuple[Result, Prediction]:
        shown = self.show(sample)
        result = self.decide(sample.id, self.compose(sample, shown), model)
        return result, self.told(result, shown)

    def decide(self, id: str, question: list[Message], model: Asks) -> Result:
        """Ask, and again where the answer holds no verdict, and vote where the score asks for it."""
        by_token = self.score in ("auto", "logprob") and not self.compat
        said: list[Judgement] = []
        usage: dict[str, int] = {}
        calls = 0

        def ask(temperature: float, seed: int | None) -> Judgement:
            nonlocal calls
            messages = list(question)
            for left in range(self.again, -1, -1):
                answer: Answer = model.ask(
                    messages,
                    temperature=temperature,
                    seed=seed,
                    max_tokens=self.max_tokens,
                    json=True,
                    logprobs=by_token,
                )
                calls += 1
                for key, count in answer.usage.items():
                    usage[key] = usage.get(key, 0) + count
                found = judge(answer)
                if found.status != "unparsable" or not left:
                    break
                text = prompts.fill(prompts.load(TEXTS)["again"], error=found.error)
                messages += [Message("assistant", (answer.text,)), Message("user", (text,))]
            return found

        if self.score != "vote":
            said.append(ask(self.temperature, None))
        if self.votes > 1 and (self.score == "vote" or (self.score == "auto" and said[0].probability is None)):
            said = [ask(VOTE_TEMPERATURE, self.seed + i) for i in range(self.votes)]
        return self.summed(id, said, calls, usage)

    def summed(self, id: str, said: list[Judgement], calls: int, usage: dict[str, int]) -> Result:
        """The judgements of one sample as one result; of votes, the majority's first. A tie is anomalous."""
        valid = [j for j in said if j.status == "ok"]
        if not valid:
            first = said[0]
            return Result(id, first.status, reasoning=first.reasoning, error=first.error, text=first.text, calls=calls,
                          usage=usage)  # fmt: skip
        votes = float(np.mean([bool(j.anomalous) for j in valid]))
        chosen = next(j for j in valid if j.anomalous == (votes >= 0.5))
        score, mode = scored(chosen, self.score) if len(said) == 1 else (votes, VOTE)
        return Result(id, "ok", chosen.anomalous, score, mode, chosen.reasoning, chosen.defects, text=chosen.text,
                      calls=calls, usage=usage)  # fmt: skip

    def told(self, result: Result, shown: Shown) -> Prediction:
        """A result as a prediction: verdict, reasons, and a map where there is a picture to draw it on."""
        if result.score is None:
            why = (Reason(f"No verdict: {result.error}", self.name()),)
            return Prediction(result.id, math.nan, reasons=why, verdict="review")
        values = None
        if shown.size is not None:
            inside = shown.mask([d.box for d in result.defects if d.box])
            values = np.where(False if inside is None else inside, result.score, 0.0).astype(np.float32)
            values = np.broadcast_to(values, shown.size).copy()
        return Prediction(
            result.id, result.score, values, reasons=self.reasons(result.reasoning, result.defects, shown),
            verdict="reject" if result.anomalous else "pass",
        )  # fmt: skip

    def reasons(
        self, reasoning: str, defects: Sequence[Defect], shown: Shown, marks: Sequence[Region] = ()
    ) -> tuple[Reason, ...]:
        """What was said as a whole, then each defect with its place; of several views, how the defects divide over them."""
        found = [Reason(reasoning, self.name())] if reasoning else []
        views: Counter[str] = Counter()
        for defect in defects:
            number = defect.mark if defect.mark is not None and 1 <= defect.mark <= len(marks) else None
            place = shown.place(defect.box) if defect.box else None
            words = [w for w in (defect.kind, defect.where, place.words if place else "") if w]
            box = marks[number - 1].box if number else place.box if place else None
            found.append(
                Reason(": ".join([words[0], ", ".join(words[1:])]) if words[1:] else words[0], self.name(), box)
            )
            if place and shown.kind in ("video", "lights"):
                views[place.words] += 1
        if views:
            shares = {name.replace(" ", "_"): count / views.total() for name, count in views.items()}
            found.append(Reason(f"found in {', '.join(views)}", self.name(), shares=shares))
        return tuple(found)

    def cost(self, samples: Iterable[Sample]) -> Usage:
        """What `predict` would send at least: requests, pictures, bytes of pictures and text. Sends nothing."""
        total = Usage()
        times = self.votes if self.score == "vote" else 1
        for sample in samples:
            parts = [p for m in self.compose(sample, self.show(sample)) for p in m.parts]
            pictures = [p for p in parts if isinstance(p, Picture)]
            total.requests += times
            total.pictures += times * len(pictures)
            text = sum(len(p.encode()) for p in parts if isinstance(p, str))
            total.bytes += times * (text + sum(-(-len(p.data) // 3) * 4 for p in pictures))  # as base64
        return total

    def state(self) -> str:
        if not self.kept:
            return ""
        parts = [f"{len(some)} {label}{f' of {name}' * bool(name)}" for name, held in sorted(self.kept.items())
                 for label, some in held.items() if some]  # fmt: skip
        return f"Customizable-VLM keeps as references: {', '.join(parts)}."


def scored(judgement: Judgement, how: str) -> tuple[float, ScoreMode]:
    """The score of a verdict: the first of token probability, stated confidence and bare verdict that `how` allows."""
    sign = bool(judgement.anomalous)
    if how in ("auto", "logprob") and judgement.probability is not None:
        return judgement.probability, "logprob"
    if how != "binary" and judgement.confidence is not None:
        return (judgement.confidence if sign else 1 - judgement.confidence), "verbal"
    return float(sign), "binary"


# --- second stage: what another detector flagged ---------------------------------------------------------------------


def stands_out(prediction: Prediction) -> bool:
    """Whether a person would look at it: its verdict is not "pass"; without a verdict, it has regions."""
    return prediction.verdict != "pass" if prediction.verdict else bool(prediction.regions)


def explain(
    model: CustomizableVLM | Asks,
    predictions: Iterable[Prediction],
    samples: Iterable[Sample],
    *,
    flagged: Callable[[Prediction], bool] = stands_out,
) -> Iterator[Prediction]:
    """The predictions of any detector, in order, with the model's reasons added to those that were flagged.

    The model is asked about flagged ones alone, and sees their regions outlined and numbered. Scores and verdicts stay
    what they are; where the model gives no usable answer, a reason says so.

    Args:
        model: a CustomizableVLM, whose prompts and references are used, or any model with default prompts.
        predictions: of any detector; they may be a stream.
        samples: those that were judged, in any order; more of them do no harm.
        flagged: which predictions to explain.

    Raises:
        WrongInput: a flagged prediction has no sample, or no server was named.
    """
    vlm = model if isinstance(model, CustomizableVLM) else CustomizableVLM(model=model)
    asker = vlm.asker()
    by_id = {sample.id: sample for sample in samples}

    def work(prediction: Prediction) -> Prediction:
        if not flagged(prediction):
            return prediction
        if prediction.id not in by_id:
            raise WrongInput(f"prediction {prediction.id} has no sample to look at; give explain() the samples judged.")
        return replace(prediction, reasons=(*prediction.reasons, *_explained(vlm, asker, prediction, by_id)))

    yield from ahead(work, predictions, 2 * vlm.concurrency, vlm.concurrency)


def _explained(
    vlm: CustomizableVLM, asker: Asks, prediction: Prediction, by_id: dict[str, Sample]
) -> tuple[Reason, ...]:
    sample = by_id[prediction.id]
    shown = vlm.show(sample)
    say = prompts.load(TEXTS)
    sent = Picture.of(shown.picture, longest=vlm.longest)
    references = vlm.recall(sample, shown, sent)
    marks = prediction.regions[:MOST_MARKS] if shown.kind == "image" else ()
    task = prompts.fill(say["explain_task"])
    if marks:
        task += "\n" + prompts.fill(say["explain_marks"], count=str(len(marks)))
    before = vlm.instructions(vlm.called(sample), shown, len(references) > 0, task)
    pictures = [*vlm.captioned(references), say["caption_test"], sent]
    if marks:
        copy = Picture.of(marked(shown.picture, marks), longest=vlm.longest)
        pictures += [say["caption_marked"], copy]
    question = [Message("user", vlm.arranged(before, pictures, vlm.form(say["explain_contract"])))]
    result = replace(vlm, score="binary", votes=1).decide(prediction.id, question, asker)
    if result.status != "ok":
        return (Reason(f"{NO_EXPLANATION}{result.error}", vlm.name()),)
    if result.anomalous:
        return vlm.reasons(result.reasoning, result.defects, shown, marks)
    return (Reason(f"The model sees nothing wrong: {result.reasoning}".rstrip(": "), vlm.name()),)


# --- small things -----------------------------------------------------------------------------------------------------


def _encoded(reference: dict[str, Any]) -> Picture:
    return Picture(np.asarray(reference["data"], np.uint8).tobytes(), reference["mime"])


def _lines(texts: Sequence[str] | str) -> list[str]:
    some = texts.splitlines() if isinstance(texts, str) else texts
    return [text.strip() for text in some if text.strip()]


def _folder(cache: str) -> str | None:
    """Where answers are kept."""
    if cache != "auto":
        return cache or None
    from ..backbones._onnx import cache_folder

    return str(cache_folder() / "answers")


DETECTOR = CustomizableVLM
