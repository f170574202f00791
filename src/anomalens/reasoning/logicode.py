"""LogiCode: a language model writes, once for each category, the program that checks its rules.

Zhang, Cao, Xu, Shen 2024, "LogiCode: an LLM-Driven Framework for Logical Anomaly Detection",
https://arxiv.org/abs/2406.04687. The paper's prompts and code are not public; everything but the idea is our reading.

    executor = sandbox()
    program = write(ruleset, scenes, model, executor, cache="programs")      # scenes: of normal pictures
    with executor.load(program.source) as loaded:
        outcome = loaded.run(for_program(scene, ruleset, stats))

An answer is accepted when a program is found in it, keeps to the contract (`static_check`), runs in the sandbox on normal
scenes and on three odd ones, and reports at most one normal scene in twenty. Otherwise the model is told what was wrong
and tries again. The model sees normal scenes only, as numbers. No picture is judged by it, so judging is cheap and exact.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import NoAnswer, ProgramGenerationError, Unreadable, WrongInput
from ..files import write_atomic
from . import prompts, static_check
from ._typed import KINDS, Rule, labels_of
from .answers import first_json
from .endpoint import Answer, Asks, Message, Picture
from .program_api import printable, reference
from .rules import RuleSet, compile, problems, warn_unreviewed
from .sandbox import Executor, Outcome
from .scene import Parsed, Scene, Stats, statistics

if TYPE_CHECKING:
    import numpy as np

VERSION = "logicode_1"  # of the prompt: the file in prompts/
SCHEMA = "logicode.program/1"
PROBES = 20  # normal scenes a program is tried on
MOST_FALSE_ALARMS = 0.05  # share of them it may report
MOST_ROWS = 40  # of statistics in the prompt
MOST_DRAFTED = 20  # rules

Result = Literal[
    "ok", "no_answer", "no_code", "syntax", "static", "error", "timeout", "killed", "invalid_output", "false_alarms"
]

# Fields that a rule of a type can use, the most useful first.
USEFUL: dict[str, tuple[str, ...]] = {
    "quantity": ("count",),
    "size": ("area_frac", "length", "thickness", "aspect", "y0", "y1"),
    "position": ("center_x", "center_y", "x0", "y0", "x1", "y1", "angle"),
    "matching": ("count", "length", "area_frac"),
}


@dataclass(frozen=True)
class Report:
    """What became of one answer of the model.

    candidate: which conversation; repair: how many corrections were asked for before, 0 for the first answer.
    result: ok; no_answer (the server or the model gave none); no_code, syntax, static (found before it ran); error,
        timeout, killed, invalid_output (in the sandbox); false_alarms (it runs, and reports normal scenes).
    detail: the model is told this. line: of the source, where it is known. normal_fa: share of normal scenes with
        findings; None where it did not come so far. tokens: of request and answer, as the server counted them.
    """

    candidate: int
    repair: int
    result: Result
    detail: str = ""
    line: int | None = None
    normal_fa: float | None = None
    source: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Program:
    """An accepted program, and where it comes from.

    ast_hash: of what it says (`static_check.ast_hash`). prompt_hash: of the first messages; "" where no model wrote it.
    created: UTC. isolation: the level of the sandbox it was tried in. edited: by a person, after it was accepted.
    """

    source: str
    ast_hash: str
    prompt_hash: str = ""
    model: str = ""
    created: str = ""
    reports: tuple[Report, ...] = ()
    normal_fa: float | None = None
    isolation: str = ""
    edited: bool = False


@dataclass(frozen=True)
class Job:
    """All that is needed to ask for a program and to try it (`prepare`).

    normal: scenes that must not be reported. odd: (what it is, scene) that must not break the program.
    """

    ruleset: RuleSet
    messages: tuple[Message, ...]
    normal: tuple[Mapping[str, Any], ...]
    odd: tuple[tuple[str, Mapping[str, Any]], ...]
    stats: Stats

    @property
    def prompt_hash(self) -> str:
        return _hash([[m.role, m.text] for m in self.messages])


def write(
    ruleset: RuleSet,
    scenes: Iterable[Scene | Parsed],
    model: Asks,
    executor: Executor,
    *,
    labels: Sequence[str] | None = None,
    candidates: int = 1,
    repairs: int = 3,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Program:
    """Have a model write the program for these rules, and accept the best that passes.

    Args:
        ruleset: words and typed forms alike; a form is told in words.
        scenes: of normal pictures, at least one. Statistics come from all of them, trials use 20.
        model: e.g. `endpoint.Model`.
        executor: e.g. `sandbox()`; nothing runs elsewhere.
        labels: what the parser can name; those of the rule set, or those seen, without.
        candidates: independent conversations, the first at temperature 0, the others at 0.7. The program with the
            fewest false alarms is kept, then the one with fewer repairs, then the shorter one.
        repairs: corrections that may be asked for in each conversation.
        cache: folder of accepted programs; with the same rules, statistics and model nothing is asked again.

    Raises:
        ProgramGenerationError: no answer was accepted; its `reports` say why.
        WrongInput: the rules contradict each other or name unknown labels, or there is no normal scene.
    """
    if candidates < 1 or repairs < 0:
        raise WrongInput(f"candidates is {candidates} and repairs {repairs}; give at least 1 and 0.")
    job = prepare(ruleset, scenes, labels)
    name = str(getattr(model, "name", type(model).__name__))
    path = None
    if cache is not None:
        wanted = [job.prompt_hash, _plain(ruleset), job.normal, name, candidates, repairs, seed, MOST_FALSE_ALARMS]
        path = Path(cache) / f"{_hash(wanted)[:32]}.py"
        known = _read_program(path)
        if known:
            return known
    tried = [attempt(job, model, executor, number=i, repairs=repairs, seed=seed) for i in range(candidates)]
    reports = tuple(report for conversation in tried for report in conversation)
    accepted = [report for report in reports if report.result == "ok"]
    if not accepted:
        raise ProgramGenerationError(_why_none(ruleset, reports), reports)
    best = min(accepted, key=lambda r: (r.normal_fa, r.repair, len(r.source), r.candidate))
    program = Program(
        source=best.source,
        ast_hash=static_check.ast_hash(best.source),
        prompt_hash=job.prompt_hash,
        model=name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        reports=reports,
        normal_fa=best.normal_fa,
        isolation=executor.level,
    )
    if path:
        save_program(program, path)
    return program


def from_rules(ruleset: RuleSet, labels: Sequence[str] | None = None) -> Program:
    """The program of typed rules alone: no model, no request (`rules.compile`)."""
    source = compile(ruleset, labels)
    return Program(source, static_check.ast_hash(source))


def attempt(
    job: Job, model: Asks, executor: Executor, *, number: int = 0, repairs: int = 3, seed: int = 0
) -> tuple[Report, ...]:
    """One conversation, from the request to a program that passes or the last repair: a report for each answer.

    The last report is `ok`, or there is no program. number: 0 asks at temperature 0, others at 0.7 with their own seed.
    """
    messages = list(job.messages)
    reports: list[Report] = []
    for repair in range(repairs + 1):
        answer = model.ask(messages, temperature=0.7 if number else 0.0, seed=seed + number)
        report = replace(_judge(job, answer, executor), candidate=number, repair=repair)
        reports.append(report)
        if report.result in ("ok", "no_answer"):
            break
        said = answer.text[: static_check.LONGEST].strip() or "(no text)"
        messages += [Message.of("assistant", said), Message.of("user", _repair_text(report))]
    return tuple(reports)


def passed_at(reports: Iterable[Report], candidate: int = 0, *, valid: bool = True) -> int | None:
    """After how many repairs a conversation had a program; None where it never had one.

    valid: without false alarms beyond the limit. valid=False counts every program that runs on all scenes.
    """
    good = ("ok",) if valid else ("ok", "false_alarms")
    return min((r.repair for r in reports if r.candidate == candidate and r.result in good), default=None)


def prepare(ruleset: RuleSet, scenes: Iterable[Scene | Parsed], labels: Sequence[str] | None = None) -> Job:
    """The request and the trials for these rules.

    Raises:
        WrongInput: as `write`.
    """
    plain = [scene.scene if isinstance(scene, Parsed) else scene for scene in scenes]
    if not plain:
        raise WrongInput("a program is tried on normal scenes before it is accepted; got none, give at least one.")
    if not ruleset.rules:
        raise WrongInput("the rule set has no rule; add one, such as `- {count: nut, exactly: 4}`.")
    wrong = problems(ruleset, labels)
    if wrong:
        raise WrongInput(wrong[0])
    warn_unreviewed(ruleset)
    stats = statistics(plain)
    seen = tuple(labels or ruleset.labels or sorted(stats))
    chosen = [plain[i * len(plain) // PROBES] for i in range(PROBES)] if len(plain) > PROBES else plain
    normal = tuple(for_program(scene, ruleset, stats) for scene in chosen)
    return Job(ruleset, request(ruleset, stats, seen, len(plain)), normal, tuple(_odd(normal)), stats)


def for_program(scene: Scene | Parsed, ruleset: RuleSet, stats: Stats) -> dict[str, Any]:
    """A scene as a program gets it: with the regions of the rules, and with what is usual."""
    plain = scene.scene if isinstance(scene, Parsed) else scene
    return ruleset.place(plain).with_stats(stats).to_dict()


# --- the request -------------------------------------------------------------------------------------------------


def request(ruleset: RuleSet, stats: Stats, labels: Sequence[str], count: int) -> tuple[Message, ...]:
    """The messages that ask for a program. stats: from `count` normal scenes."""
    texts = prompts.load(VERSION)
    regions = ", ".join(f"{name} {list(box)}" for name, box in ruleset.regions.items())
    values = {
        "category": ruleset.category or "this product",
        "reference": reference(),
        "labels": ", ".join(labels) or "none",
        "regions": (regions and f"{regions} (fractions of the picture where no number is above 1, else pixels)")
        or "none",
        "count": str(count),
        "stats": _table(ruleset, stats),
        "rules": "\n".join(f"{rule.id} [{rule.type}] {_worded(rule)}" for rule in ruleset.rules),
    }
    sections = ("task", "structure", "reference", "scene", "rules", "constraints", "example")
    body = "\n\n".join(prompts.fill(texts[name], **values) for name in sections)
    return Message.of("system", texts["system"].strip()), Message.of("user", body)


def _worded(rule: Rule) -> str:
    """A rule in words; a typed one with its numbers, which its text may leave out."""
    if not rule.form:
        return rule.text
    terms = ", ".join(
        f"{word}: {json.dumps(value, ensure_ascii=False, default=str)}" for word, value in rule.params.items()
    )
    return f"{rule.text} ({terms})"


def _table(ruleset: RuleSet, stats: Stats) -> str:
    """The statistics that some rule can use, one row for each label and field, the most useful ones first."""
    ranks: dict[tuple[str, str], int] = {}
    for rule in ruleset.rules:
        named = rule.params.get("field")
        fields = (*([named] if isinstance(named, str) else []), *USEFUL[rule.type])
        for label in _spoken_of(rule, sorted(stats)):
            for rank, name in enumerate(fields):
                if name in stats[label]:
                    ranks[label, name] = min(rank, ranks.get((label, name), rank))
    chosen = sorted(ranks, key=lambda row: (ranks[row], row))[:MOST_ROWS]
    rows = [_row(label, name, stats[label][name]) for label, name in sorted(chosen)]
    return "\n".join(["label | field | n | mean | std | min | max", *rows]) if rows else "nothing"


def _row(label: str, name: str, stat: Mapping[str, float]) -> str:
    numbers = " | ".join(f"{stat[key]:g}" for key in ("n", "mean", "std", "min", "max"))
    return f"{label} | {name} | {numbers}"


def _spoken_of(rule: Rule, known: Sequence[str]) -> list[str]:
    """The labels a rule speaks of; every label where its words name none."""
    if rule.form:
        return [label for label in labels_of(rule) if label in known]
    words = _spaced(rule.text)
    return [label for label in known if _spaced(label) in words] or list(known)


def _spaced(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower())


# --- the judgement -----------------------------------------------------------------------------------------------


def extract(text: str) -> str | None:
    """The program in an answer: its one fenced block, of several the longest that defines `check`, or the whole text.

    None where there is none. A block that was never closed counts.
    """
    blocks = _fenced(text)
    if len(blocks) == 1:
        return blocks[0]
    complete = [block for block in blocks if _defines_entry(block)]
    if complete:
        return max(complete, key=len)
    if not blocks and _defines_entry(text) and not any(p.rule == "syntax" for p in static_check.check(text)):
        return text.strip() + "\n"
    return None


def _fenced(text: str) -> list[str]:
    """Fenced blocks of Python, or of no named language, without their fences."""
    blocks: list[str] = []
    lines: list[str] | None = None
    fence = ""
    for line in text.splitlines():
        mark = re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", line)
        if lines is None:
            if mark:
                fence, lines, python = mark[1], [], mark[2].lower() in ("", "python", "py", "python3")
        elif mark and mark[1].startswith(fence) and not mark[2]:
            blocks += [_block(lines)] if python else []
            lines = None
        else:
            lines.append(line)
    return blocks + ([_block(lines)] if lines and python else [])


def _block(lines: Sequence[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip() + "\n"


def _defines_entry(source: str) -> bool:
    return re.search(rf"^def {static_check.ENTRY}\s*\(", source, re.MULTILINE) is not None


def _judge(job: Job, answer: Answer, executor: Executor) -> Report:
    """What becomes of an answer; candidate and repair are filled in by the caller."""
    tokens = answer.usage.get("prompt_tokens", 0) + answer.usage.get("completion_tokens", 0)
    blank = Report(0, 0, "ok", tokens=tokens)
    if answer.status == "api_error":
        return replace(blank, result="no_answer", detail=answer.error)
    source = extract(answer.text) if answer.status == "ok" else None
    if source is None:
        return replace(blank, result="no_code", detail=answer.error)
    blank = replace(blank, source=source)
    wrong = static_check.check(source)
    if wrong:
        result: Result = "syntax" if any(p.rule == "syntax" for p in wrong) else "static"
        detail = "\n".join(f"{problem}{_shown(source, problem.line)}" for problem in wrong[:10])
        return replace(blank, result=result, detail=detail, line=wrong[0].line or None)
    return _try(job, blank, executor)


def _try(job: Job, report: Report, executor: Executor) -> Report:
    """Run a program on all probes."""
    reasons: list[str] = []
    reported = 0
    with executor.load(report.source) as program:
        for what, scene in (*job.odd, *(("a normal picture", scene) for scene in job.normal)):
            outcome = program.run(scene)
            if outcome.status != "ok":
                detail = f"On {what}: {_failure(report.source, outcome)}"
                return replace(report, result=outcome.status, detail=detail, line=outcome.line)
            if what == "a normal picture" and outcome.findings:
                reported += 1
                reasons += [f"- {finding.rule or 'no rule'}: {finding.reason}" for finding in outcome.findings]
    share = reported / len(job.normal)
    if share <= MOST_FALSE_ALARMS:
        return replace(report, normal_fa=share)
    told = [f"{reported} of {len(job.normal)} normal pictures are reported, for example:", *dict.fromkeys(reasons)]
    return replace(report, result="false_alarms", detail="\n".join(told[:6]), normal_fa=share)


def _failure(source: str, outcome: Outcome) -> str:
    lines = [printable(outcome.error)[:500], *map(printable, outcome.trace[:15])]
    return "\n".join(lines) + _shown(source, outcome.line or 0)


def _shown(source: str, line: int) -> str:
    """The line of the source that is meant, on a line of its own."""
    lines = source.splitlines()
    return f"\n    line {line}: {printable(lines[line - 1]).strip()[:160]}" if 0 < line <= len(lines) else ""


def _repair_text(report: Report) -> str:
    texts = prompts.load(VERSION)
    problem, advice = texts["problem"][report.result], texts["advice"][report.result]
    filled = prompts.fill(texts["repair"], problem=problem, detail=report.detail, advice=advice)
    return filled.replace("\n\n", "\n")  # there may be no detail


def _odd(normal: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Scenes that break careless programs: nothing there, one thing twice, one thing missing."""
    fullest = max(normal, key=lambda scene: len(scene["objects"]))
    things = fullest["objects"]
    yield "a picture without any object", {**fullest, "objects": []}
    if things:
        twin = {**things[0], "id": max(thing["id"] for thing in things) + 1}
        yield f"a picture with one {things[0]['label']} too many", {**fullest, "objects": [*things, twin]}
        yield f"a picture where one {things[0]['label']} is missing", {**fullest, "objects": things[1:]}


def _why_none(ruleset: RuleSet, reports: Sequence[Report]) -> str:
    for_what = ruleset.category or "these rules"
    last = printable(" ".join(reports[-1].detail.split()))[:300].rstrip(".")
    if all(report.result == "no_answer" for report in reports):
        return f"no program could be asked for, for {for_what}: {last}."
    counts = ", ".join(f"{name} {count}" for name, count in Counter(r.result for r in reports).items())
    answers = f"{len(reports)} answer{'s' * (len(reports) != 1)}"
    return (
        f"no program was accepted for {for_what} in {answers} ({counts}); the last "
        f"problem: {last or 'no program in the answer'}; reword the rules, allow more repairs or another model, or use "
        "typed rules, which need none."
    )


# --- drafting rules ----------------------------------------------------------------------------------------------


def draft(
    model: Asks,
    pictures: Sequence[Picture | np.ndarray | str | os.PathLike[str]],
    labels: Sequence[str],
    category: str = "",
) -> RuleSet:
    """Have a model that sees pictures propose rules. They are marked `unreviewed` until a person has read them.

    pictures: of normal products, a handful. labels: what the parser can name.

    Raises:
        NoAnswer: two answers held no rule that can be read.
        WrongInput: no picture, or no label.
    """
    if not pictures or not labels:
        raise WrongInput(f"rules are drafted from pictures and labels; got {len(pictures)} and {len(labels)}.")
    texts = prompts.load(VERSION)
    shown = [p if isinstance(p, Picture) else Picture.of(p) for p in pictures]
    asked = prompts.fill(
        texts["draft"],
        count=str(len(shown)),
        category=category or "this product",
        labels=", ".join(labels),
        most=str(MOST_DRAFTED),
    )
    messages = [Message.of("system", texts["draft_system"].strip()), Message.of("user", *shown, asked)]
    error = ""
    for _ in range(2):
        answer = model.ask(messages, json=True)
        if answer.status == "api_error":
            raise NoAnswer(f"no rules could be drafted: {answer.error}")
        rules = _drafted(first_json(answer.text)) if answer.status == "ok" else ()
        if rules:
            return RuleSet(category, tuple(labels), rules, unreviewed=True)
        error = answer.error or "it holds no list of rules with type and text."
        said = answer.text[: static_check.LONGEST].strip() or "(no text)"
        again = prompts.fill(texts["draft_again"], error=error)
        messages += [Message.of("assistant", said), Message.of("user", again)]
    raise NoAnswer(f"no rules could be drafted, in two answers: {error} Write them by hand, or ask another model.")


def _drafted(content: Mapping[str, Any] | None) -> tuple[Rule, ...]:
    items = content.get("rules") if content else None
    found: list[Rule] = []
    for item in items if isinstance(items, list) else ():
        kind, text = (item.get("type"), item.get("text")) if isinstance(item, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(kind, str) or kind.strip().lower() not in KINDS:
            continue
        text = " ".join(printable(text).split())[:300]
        if text and len(found) < MOST_DRAFTED:
            found.append(Rule(f"R{len(found) + 1}", kind.strip().lower(), text))  # type: ignore[arg-type]
    return tuple(found)


# --- programs on disk --------------------------------------------------------------------------------------------


def save_program(program: Program, path: str | os.PathLike[str]) -> Path:
    """Write NAME.py, which people may edit, and NAME.json, which says where it comes from."""
    path = _py(path)
    content = {"schema": SCHEMA, **{k: v for k, v in asdict(program).items() if k != "source"}}
    write_atomic(path.with_suffix(".json"), json.dumps(content, indent=1, sort_keys=True) + "\n")
    write_atomic(path, program.source)
    return path


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a program and check it again. One that says something else than was saved is marked `edited`.

    A .py file of your own, without a .json beside it, is a program too.

    Raises:
        Unreadable: there is no such file, or it cannot be read.
        WrongInput: it breaks the contract of programs, or the .json is none of ours.
    """
    path = _py(path)
    source = _text(path)
    wrong = static_check.check(source)
    if wrong:
        more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise WrongInput(f"{path} cannot be used as a program: {wrong[0]}{more}; correct it there.")
    ast_hash = static_check.ast_hash(source)
    beside = path.with_suffix(".json")
    if not beside.exists():
        return Program(source, ast_hash, edited=True)
    try:
        content = json.loads(_text(beside))
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        content["reports"] = tuple(Report(**report) for report in content["reports"])
        if any(report.result not in get_args(Result) for report in content["reports"]):
            raise ValueError("an unknown result")
        program = Program(**{**content, "source": source})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WrongInput(
            f"{beside} does not say where a program comes from ({error}); delete it or save again."
        ) from None
    return program if program.ast_hash == ast_hash else replace(program, ast_hash=ast_hash, edited=True)


def _read_program(path: Path) -> Program | None:
    """A program from the cache; None where there is none, or where it is damaged."""
    try:
        return load_program(path) if path.exists() and path.with_suffix(".json").exists() else None
    except WrongInput:
        return None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > 4 << 20:
            raise WrongInput(f"{path} has more than 4 MiB; no program is that large.")
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not text in UTF-8"
        raise Unreadable(f"{path} cannot be read: {reason}.") from None


def _py(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".py":
        raise WrongInput(f"{path} ends in {path.suffix or 'nothing'}; a program is a .py file.")
    return path


def _plain(ruleset: RuleSet) -> Any:
    return json.loads(json.dumps(ruleset.to_dict(), default=str))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
