"""LogiBench: how good programs are that check rules, and how good a language model is at writing them.

The quantities are those of LogiCode (Zhang, Cao, Xu, Shen 2024, https://arxiv.org/abs/2406.04687); the paper's formulas are
not public, so each name carries "(library definition)":

    binary accuracy        of all pictures; one on which the program fails counts as wrong
    code generation        share of M conversations with a model that end with a program, after 0, 1, 2, ... repairs
    precision of reasons   share of findings on rightly reported pictures that state the true cause

Scenes come from the truth (oracle) or from a parser (parsed). How good rules are, and how good a parser is, are two
questions: figures of the two are never brought together.

    tasks = [Task.of(ProceduralLogic("tray"), "oracle")]
    rows = list(run(tasks, sandbox(), "out"))
    figures = summary(rows, [RuleJudge()])
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import NoAnswer, Unreadable, WrongInput
from ..files import writing
from ..reasoning import logicode, sandbox
from ..reasoning.endpoint import Answer, Asks, Message, Model
from ..reasoning.logicode import Program, Report, passed_at
from ..reasoning.parsers import Parser
from ..reasoning.parsers.annotations import StatedReason
from ..reasoning.rules import RuleSet, problems
from ..reasoning.sandbox import Executor, Finding
from ..reasoning.scene import Box, Scene, Stats, statistics
from ..types import Sample
from .judges import Claim, Judge, kappa
from .verdicts import POOLED, Figures, compare

SCHEMA = "anomalens.logibench/2"
RESULTS = "logibench.jsonl"
ATTEMPTS, REPAIRS = 10, 3
MEAN = "mean"  # of the categories, each counting the same

Row = dict[str, Any]
Mode = Literal["oracle", "parsed"]


class Logical(Protocol):
    """A data set whose pictures come with true scenes and stated reasons."""

    @property
    def category(self) -> str: ...
    @property
    def oracle(self) -> Parser: ...
    def train(self) -> list[Sample]: ...
    def test(self) -> list[Sample]: ...
    def reasons(self, sample: Sample) -> tuple[StatedReason, ...]: ...


@dataclass(frozen=True)
class Task:
    """One category, seen in one way. data: what decides train and test, as text. reasons: those stated of a picture."""

    category: str
    mode: Mode
    ruleset: RuleSet
    parser: Parser
    train: Sequence[Sample]
    test: Sequence[Sample]
    reasons: Callable[[Sample], tuple[StatedReason, ...]]
    data: str = ""

    @classmethod
    def of(
        cls, data: Logical, mode: Mode = "oracle", ruleset: RuleSet | None = None, parser: Parser | None = None,
        limit: int | None = None,
    ) -> Task:  # fmt: skip
        """The task of a data set; a drawn one brings its own rules and parser.

        limit: at most so many good and so many anomalous test pictures.

        Raises:
            WrongInput: there are no rules, or no parser, and the data set brings none; or `problems` finds something.
        """
        ruleset = ruleset or getattr(data, "rules", None)
        if ruleset is None:
            raise WrongInput(f"{data.category} has no rules; give a rule set.")
        seeing = data.oracle if mode == "oracle" else parser or getattr(data, "parser", None)
        if seeing is None:
            raise WrongInput(f"{data.category} has no parser of its own; give one, or use the mode oracle.")
        wrong = problems(ruleset, seeing.labels or None)
        if wrong:
            raise WrongInput(f"the rules of {data.category} do not fit: {wrong[0]}")
        test = data.test()
        if limit is not None:
            test = [s for label in (0, 1) for s in _spread([t for t in test if t.label == label], limit)]
        return cls(data.category, mode, ruleset, seeing, data.train(), test, data.reasons, repr(data))


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """At most so many, from all over the list: neighbours show the same kind of anomaly."""
    return [samples[i * len(samples) // most] for i in range(most)] if len(samples) > most else samples


@dataclass(frozen=True)
class Judged:
    """What a program said of one picture, and what is true.

    status: ok; what an Outcome may be; no_program (none was accepted); unreadable (the picture). seen: id, label and box of
    each object of the scene that the program was given.
    """

    id: str
    category: str
    label: int
    status: str
    findings: tuple[Finding, ...] = ()
    reasons: tuple[StatedReason, ...] = ()
    labels: tuple[str, ...] = ()
    seen: tuple[tuple[int, str, Box], ...] = ()

    @property
    def anomalous(self) -> bool | None:
        """None where the program failed."""
        return bool(self.findings) if self.status == "ok" else None

    @property
    def score(self) -> float | None:
        return max((f.severity for f in self.findings), default=0.0) if self.status == "ok" else None

    @classmethod
    def of(cls, row: Row) -> Judged:
        found = [
            Finding(**{**f, "objects": tuple(f["objects"]), "boxes": tuple(map(tuple, f["boxes"]))})
            for f in row["findings"]
        ]
        reasons = tuple(StatedReason(**reason) for reason in row["reasons"])
        labels = tuple(row["labels"])
        seen = tuple((number, label, tuple(box)) for number, label, box in row["seen"])
        return cls(row["id"], row["category"], row["label"], row["status"], tuple(found), reasons, labels, seen)


# --- running -----------------------------------------------------------------------------------------------------


def run(
    tasks: Iterable[Task],
    executor: Executor,
    out: str | os.PathLike[str] | None = None,
    *,
    model: Asks | None = None,
    programs: Mapping[str, Program] | None = None,
    attempts: int = ATTEMPTS,
    repairs: int = REPAIRS,
    seed: int = 0,
) -> Iterator[Row]:
    """Judge every test picture: per task a row of the program, then a row for each picture.

    Args:
        out: folder whose logibench.jsonl keeps the rows; what is there already, with the same data, rules, parser, model
            and settings, is not done again.
        model: writes the programs, in `attempts` conversations of at most `repairs` corrections; the accepted one with the
            fewest false alarms, then repairs, then characters judges the pictures. Without it the typed rules do.
        programs: category to a program to judge by, instead of either.

    Raises:
        WrongInput: a rule of words and no model, or no normal picture; what else `logicode.prepare` refuses.
        NoAnswer: the server of the model did not answer; nothing of it is kept as a figure.
    """
    if attempts < 1 or repairs < 0:
        raise WrongInput(f"attempts is {attempts} and repairs {repairs}; give at least 1 and 0.")
    how = {"attempts": attempts, "repairs": repairs, "seed": seed} if model is not None else {}
    with _Rows(None if out is None else Path(out) / RESULTS) as rows:
        for task in tasks:
            given = (programs or {}).get(task.category)
            key = _key(task, executor, given, model, how)
            eye = cache(partial(_fitted, task))  # learns once, and only where something is left to see
            about = rows.known.get(key)
            if about is None:
                about = rows.add({"key": key, **_program(task, eye, executor, given, model, how)})
            yield about
            yield from _pictures(task, eye, executor, about, rows)


def _key(task: Task, executor: Executor, given: Program | None, model: Asks | None, how: Mapping[str, int]) -> str:
    """What decides the program of a task: another key is another program."""
    name = str(getattr(model, "name", type(model).__name__)) if model is not None else None
    content = [
        SCHEMA, sandbox.VERSION, executor.level, task.data, task.mode, task.category, task.ruleset.to_dict(),
        type(task.parser).__name__, {f.name: getattr(task.parser, f.name) for f in fields(task.parser)},  # type: ignore[arg-type]
        [s.id for s in task.train], given.source if given else None, name, how,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_named).encode()).hexdigest()[:32]


def _named(value: Any) -> str:
    """A function by its name, which stays the same; anything else as it shows itself."""
    return getattr(value, "__qualname__", None) or repr(value)


def _program(
    task: Task, eye: Callable[[], Parser], executor: Executor, given: Program | None, model: Asks | None,
    how: Mapping[str, int],
) -> Row:  # fmt: skip
    """The row of the program of a task; its source is None where a model wrote none that was accepted."""
    parser = eye()
    scenes = [parser.parse(sample).scene for sample in task.train]
    tried: list[tuple[Report, ...]] = []
    if given is not None:
        source: str | None = given.source
        origin = "given"
    elif model is None:
        source, origin = logicode.from_rules(task.ruleset, task.parser.labels or None).source, "typed rules"
    else:
        origin = str(getattr(model, "name", type(model).__name__))
        job = logicode.prepare(task.ruleset, scenes, task.parser.labels or None)
        tried = [
            logicode.attempt(job, model, executor, number=number, repairs=how["repairs"], seed=how["seed"])
            for number in range(how["attempts"])
        ]
        silent = next((c[-1] for c in tried if c[-1].result == "no_answer"), None)
        if silent is not None:  # says nothing about the model
            raise NoAnswer(f"{origin} gave no answer for {task.category}: {silent.detail} Run the same again to go on.")
        good = [report for conversation in tried for report in conversation if report.result == "ok"]
        best = min(good, key=lambda r: (r.normal_fa, r.repair, len(r.source), r.candidate), default=None)
        source = best.source if best else None
    return {
        "kind": "program", "mode": task.mode, "category": task.category, "origin": origin, "source": source,
        "stats": statistics(scenes), "isolation": executor.level,
        "attempts": [[asdict(report) for report in conversation] for conversation in tried],
        "repairs": how.get("repairs"),
    }  # fmt: skip


def _pictures(task: Task, eye: Callable[[], Parser], executor: Executor, about: Row, rows: _Rows) -> Iterator[Row]:
    keys = {sample.id: f"{about['key']}/{sample.id}" for sample in task.test}
    waiting = any(key not in rows.known for key in keys.values())
    source = about["source"]
    parser = eye() if waiting and source else None
    program = executor.load(source) if parser else None
    try:
        for sample in task.test:
            key = keys[sample.id]
            row = rows.known.get(key)
            if row is None:
                found = _judge(task, parser, program, about["stats"], sample)
                row = rows.add({"key": key, **asdict(found), "kind": "picture", "mode": task.mode})
            yield row
    finally:
        if program is not None:
            program.close()


def _judge(task: Task, parser: Parser | None, program: Any, stats: Stats, sample: Sample) -> Judged:
    label = int(bool(sample.label))
    blank = Judged(sample.id, task.category, label, "no_program", (), task.reasons(sample), task.ruleset.labels)
    if parser is None or program is None:
        return blank
    try:
        scene: Scene = parser.parse(sample).scene
    except Unreadable:
        return replace(blank, status="unreadable")
    outcome = program.run(logicode.for_program(scene, task.ruleset, stats))
    seen = tuple((thing.id, thing.label, thing.bbox) for thing in scene.objects)
    return replace(blank, status=outcome.status, findings=outcome.findings, seen=seen)


def _fitted(task: Task) -> Parser:
    if not task.train:
        raise WrongInput(f"{task.category} has no normal picture to learn from; what is usual comes from them.")
    return task.parser.fit(task.train)


class _Rows:
    """logibench.jsonl, growing by a line for each row. known: by key; a line that was cut off is left out."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Row] = {}
        self._file: Any = None

    def __enter__(self) -> _Rows:
        if self.path is not None:
            for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
                with suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self.known[row["key"]] = row
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                ended = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
                self._file = self.path.open("ab", buffering=0)
                if not ended:
                    self._file.write(b"\n")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Row) -> Row:
        """Keep a row; returns it as it will be read again."""
        line = json.dumps(row, sort_keys=True, default=_plain)
        self.known[row["key"]] = again = json.loads(line)
        if self._file is not None and self.path is not None:
            with writing(self.path):
                self._file.write(line.encode() + b"\n")
        return again


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else repr(value)


class Recorded:
    """Answers that a model gave earlier, from the folder of its cache. Nothing is sent."""

    def __init__(self, name: str, cache: str | os.PathLike[str]) -> None:
        if not Path(cache).is_dir():
            raise WrongInput(f"{cache} is no folder of recorded answers; give the cache of an earlier run.")
        self.name = name
        self.cache = Path(cache)
        self._model = Model("http://nowhere.invalid/v1", name, cache=cache, dry_run=True)

    def ask(self, messages: Sequence[Message], **how: Any) -> Answer:
        answer = self._model.ask(messages, **how)
        if answer.status == "api_error":
            raise NoAnswer(
                f"{self.cache} holds no answer of {self.name} to this question: rules, pictures or settings differ from "
                "those it was recorded with; give them again, or the address of a server to ask."
            )
        return answer


# --- figures -----------------------------------------------------------------------------------------------------


def summary(rows: Iterable[Row], judges: Sequence[Judge] = ()) -> Row:
    """All figures of one mode, as JSON knows them (None where undefined).

    binary: by category, of all together (""), and the mean of the categories. failures: status to number of pictures.
    generation: by category, where a model wrote the programs. reasons: of all, and by category. wrong: the pictures that
    were judged wrongly or not at all. claims: the findings that were judged, with every judge's opinion.

    Raises:
        WrongInput: no rows, rows of several modes, or a category that comes with several programs.
    """
    rows = list(rows)
    modes = sorted({row["mode"] for row in rows})
    if len(modes) != 1:
        raise WrongInput(
            f"figures are of one mode; got rows of {' and '.join(modes) or 'none'}: ask for each by itself."
        )
    programs = [row for row in rows if row["kind"] == "program"]
    twice = [name for name, count in Counter(row["category"] for row in programs).items() if count > 1]
    if twice:
        raise WrongInput(f"{twice[0]} comes with more than one program; ask for the figures of one run at a time.")
    pictures = [Judged.of(row) for row in rows if row["kind"] == "picture"]
    written = [row for row in programs if row["attempts"]]
    found = claims(pictures)
    opinions = {judge.name: [judge(claim).match for claim in found] for judge in judges}
    names = list(dict.fromkeys(picture.category for picture in pictures))
    content = {
        "schema": SCHEMA,
        "mode": modes[0],
        "programs": {row["category"]: {k: row[k] for k in ("origin", "isolation", "source")} for row in programs},
        "binary": {name: asdict(figures) for name, figures in binary(pictures).items()},
        "failures": dict(Counter(p.status for p in pictures if p.status != "ok")),
        "generation": {
            row["category"]: generation([_reports(c) for c in row["attempts"]], row["repairs"]) for row in written
        },
        "reasons": {
            name: reasons(
                [p for p in pictures if name in (POOLED, p.category)],
                [i for i, claim in enumerate(found) if name in (POOLED, claim.category)],
                opinions,
            )
            for name in (POOLED, *names)
        },
        "wrong": [
            {"id": p.id, "category": p.category, "label": p.label, "status": p.status,
             "said": [f.reason for f in p.findings], "true": [f"{r.type}: {r.text}" for r in p.reasons]}
            for p in pictures if p.anomalous != bool(p.label)
        ],
        "claims": [
            {"image": c.image, "finding": c.number, "type": c.type, "text": c.text,
             "true": [f"{r.type}: {r.text}" for r in c.reasons], **{name: said[i] for name, said in opinions.items()}}
            for i, c in enumerate(found)
        ],
    }  # fmt: skip
    return _without_nan(content)


def binary(pictures: Sequence[Judged]) -> dict[str, Figures]:
    """`verdicts.Figures` by category, under "" of all pictures, and under "mean" of the categories.

    Accuracy is of all pictures, and a failed program is wrong; coverage is the share it judged; every other figure is of
    those.
    """
    found = compare(pictures, [p.label for p in pictures], [p.category for p in pictures])
    single = [figures for name, figures in found.items() if name != POOLED]
    means = [_mean([getattr(figures, f.name) for figures in single]) for f in fields(Figures) if f.name != "count"]
    return {**found, MEAN: Figures(sum(figures.count for figures in single), *means)}


def generation(conversations: Sequence[Sequence[Report]], repairs: int) -> dict[str, Any]:
    """How often a model writes a usable program (library definition).

    Returns:
        attempts: conversations. cgsr: share with a program that runs on all probes after at most 0, 1, ... `repairs`
        corrections. cgsr_valid: the same, without false alarms on more than one normal scene in twenty. ended: how the
        conversations without a valid program ended. answers: what became of every answer. tokens: as the server counted.
    """
    n = len(conversations)

    def rate(within: int, valid: bool) -> float:
        passed = [passed_at([replace(r, candidate=0) for r in c], valid=valid) for c in conversations]
        return _share(sum(p is not None and p <= within for p in passed), n)

    every = [report for conversation in conversations for report in conversation]
    return {
        "attempts": n,
        "cgsr": [rate(r, False) for r in range(repairs + 1)],
        "cgsr_valid": [rate(r, True) for r in range(repairs + 1)],
        "ended": dict(Counter(c[-1].result for c in conversations if c[-1].result != "ok")),
        "answers": dict(Counter(report.result for report in every)),
        "tokens": sum(report.tokens for report in every),
    }


def claims(pictures: Iterable[Judged]) -> list[Claim]:
    """Every finding on a rightly reported picture of which a reason was stated, in order."""
    return [
        Claim(p.id, i, f.type, f.reason, p.reasons, p.category, p.labels)
        for p in pictures
        if _explained(p)
        for i, f in enumerate(p.findings, 1)
    ]


def reasons(
    pictures: Sequence[Judged], chosen: Sequence[int] = (), opinions: Mapping[str, Sequence[bool | None]] | None = None
) -> dict[str, Any]:
    """How true the reasons of rightly reported pictures are (library definition).

    Types are matched as multisets in each picture; pictures with a reason of unknown type are left out there. precision of
    a judge: share of the findings it has an opinion on that state the true cause.

    Args:
        chosen: which of the opinions belong to these pictures. opinions: by judge, for all claims.

    Returns:
        pictures, untyped; type: {precision, recall, f1}; judges: name to {precision, judged, not_judged}; kappa: "a, b".
    """
    told = [p for p in pictures if _explained(p)]
    typed = [p for p in told if all(r.type != "unknown" for r in p.reasons)]
    hits = said = true = 0
    for p in typed:
        a, b = Counter(f.type for f in p.findings), Counter(r.type for r in p.reasons)
        hits, said, true = hits + (a & b).total(), said + a.total(), true + b.total()
    by_judge = {name: [own[i] for i in chosen] for name, own in (opinions or {}).items()}
    names = list(by_judge)
    return {
        "pictures": len(told),
        "untyped": len(told) - len(typed),
        "type": {"precision": _share(hits, said), "recall": _share(hits, true), "f1": _share(2 * hits, said + true)},
        "judges": {
            name: {
                "precision": _share(sum(o is True for o in own), sum(o is not None for o in own)),
                "judged": sum(o is not None for o in own),
                "not_judged": sum(o is None for o in own),
            }
            for name, own in by_judge.items()
        },
        "kappa": {f"{a}, {b}": kappa(by_judge[a], by_judge[b]) for i, a in enumerate(names) for b in names[i + 1 :]},
    }


def _explained(picture: Judged) -> bool:
    return bool(picture.label and picture.anomalous and picture.reasons)


def _reports(conversation: Iterable[Mapping[str, Any]]) -> list[Report]:
    return [Report(**report) for report in conversation]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return _share(sum(known), len(known))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
