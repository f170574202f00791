"""The command `bench --logibench`: rules or a language model on pictures with logical anomalies, and what they are worth."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .. import datasets
from ..bench import judges, logibench
from ..bench.logibench import ATTEMPTS, MEAN, REPAIRS, RESULTS, Mode, Recorded, Task
from ..errors import Unreadable, WrongInput
from ..files import write_atomic
from ..reasoning import parsers, rule_sets, rules
from ..reasoning.endpoint import Asks, Model
from ..reasoning.parsers import Parser
from ..reasoning.sandbox import sandbox
from .logibench_page import render
from .progress import counting, say

READERS = ("loco-annotations", "procedural-logic")
TITLES = {
    "oracle": "True scenes (oracle): how good the rules and the programs are",
    "parsed": "Scenes of a parser (parsed): how good rules and parser are together",
}
SHOWN_WRONG = 10  # pictures in words; the JSON file has all
DEFINED = "(library definition)"

Table = list[tuple[str, ...]]


def run(
    data: str,
    out: str,
    *,
    category: Sequence[str] = (),
    mode: str | None = None,
    rules_from: str | None = None,
    parser: str | None = None,
    annotations: str | None = None,
    judge: Sequence[str] = (),
    attempts: int | None = None,
    model: str | None = None,
    base_url: str | None = None,
    key_env: str | None = None,
    cache: str | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run LogiBench, or go on with it; write index.html, logibench.json, LOGIBENCH.md and claims-MODE.csv to `out`.

    Args:
        data: [READER=]ROOT; `procedural-logic=` draws its own, a root alone is one of MVTec LOCO AD with annotations.
        mode: oracle, parsed or both; without it parsed comes along where there is a parser.
        rules_from: a file, or a folder with <category>.yaml; without it those of the drawn data, or the ready ones.
        parser: the name of a parser, a file with `parser: NAME` and its settings, or a folder with <category>.yaml.
        judge: rule, llm, human=FILE.csv; rule without any.
        attempts: conversations for each category; 0 judges by the typed rules though a model is named (as a judge).
        model: name of the model; with base_url it is asked, without it the recorded answers in `cache` are used.

    Returns:
        {"words", "modes": {mode: `bench.logibench.summary`}, "results", "report": the page, "failed": 0}
    """
    modes = _modes(mode)
    asked = _model(model, base_url, key_env, cache)
    if attempts and asked is None:
        raise WrongInput("--attempts is how often a model writes a program; name it with --model.")
    if parser and modes == ("oracle",):
        raise WrongInput("--parser is for the mode parsed; true scenes need none.")
    deciding = [_judge(text, asked) for text in judge or ("rule",)]
    if any(d.name == "human" for d in deciding) and len(modes) != 1:
        raise WrongInput("a file of human verdicts belongs to one mode; give --mode oracle or --mode parsed.")
    writer = asked if attempts != 0 else None
    tasks = list(_tasks(data, category, modes, mode is None, rules_from, parser, annotations, limit, quiet))
    total = sum(len(task.test) + 1 for task in tasks)
    number = attempts or ATTEMPTS
    found = logibench.run(tasks, sandbox(), out, model=writer, attempts=number, repairs=REPAIRS)
    rows = list(counting(found, "judging pictures", total, quiet=quiet))
    by_mode = groupby(sorted(rows, key=lambda row: row["mode"]), lambda row: row["mode"])
    figures = {name: logibench.summary(own, deciding) for name, own in by_mode}
    target = Path(out)
    write_atomic(target / "logibench.json", json.dumps({"schema": logibench.SCHEMA, "modes": figures}, indent=1) + "\n")
    write_atomic(target / "LOGIBENCH.md", _markdown(figures))
    for name, summary in figures.items():
        write_atomic(target / f"claims-{name}.csv", _to_judge(summary))
    page = target / "index.html"
    write_atomic(page, _page(figures, rows, tasks))
    written = [f"written: {target / 'LOGIBENCH.md'}, logibench.json, claims-*.csv", f"Report: {page}"]
    words = "\n".join([*_words(figures), *written])
    return {"words": words, "modes": figures, "results": str(target / RESULTS), "report": str(page), "failed": 0}


def of_options(
    data: str, out: str, plan: str | None, shared: Mapping[str, Any], own: Mapping[str, Any], *, quiet: bool = False
) -> dict[str, Any]:
    """`run`, from the options of the command: shared ones of `bench`, of which only some fit, and its own."""
    fitting = {name: shared[name] for name in ("category", "mode", "limit")}
    others = [name for name, value in shared.items() if name not in fitting and value not in (None, ())]
    if plan or others:
        word = f"--{others[0]}" if others else f"the plan {plan}"
        raise WrongInput(f"bench got --logibench and {word}; they are two different benchmarks, give one of them.")
    return run(data, out, **fitting, **own, quiet=quiet)


def _modes(mode: str | None) -> tuple[Mode, ...]:
    known: dict[str | None, tuple[Mode, ...]] = {
        "oracle": ("oracle",), "parsed": ("parsed",), "both": ("oracle", "parsed"), None: ("oracle", "parsed"),
    }  # fmt: skip
    if mode not in known:
        raise WrongInput(f"--mode is {mode!r}; with --logibench it is oracle, parsed or both.")
    return known[mode]


def _model(name: str | None, base_url: str | None, key_env: str | None, cache: str | None) -> Asks | None:
    if name is None:
        if base_url or key_env or cache:
            raise WrongInput("--base-url, --key-env and --cache belong to a model; name it with --model.")
        return None
    if base_url:
        return Model(base_url, name, key_env=key_env, cache=cache)
    if cache:
        return Recorded(name, cache)
    raise WrongInput(
        f"the model {name} needs --base-url, the address of its server, or --cache, a folder of its recorded answers."
    )


def _judge(text: str, model: Asks | None) -> judges.Judge:
    if text == "rule":
        return judges.RuleJudge()
    if text == "llm":
        if model is None:
            raise WrongInput("--judge llm needs --model, and --base-url or --cache.")
        return judges.LLMJudge(model)
    word, _, path = text.partition("=")
    if word == "human" and path:
        return judges.HumanJudge.load(path)
    raise WrongInput(f"no judge is called {text!r}; give rule, llm, or human=FILE.csv.")


def _tasks(
    data: str, category: Sequence[str], modes: Sequence[Mode], where_possible: bool, rules_from: str | None,
    parser: str | None, annotations: str | None, limit: int | None, quiet: bool,
) -> Iterator[Task]:  # fmt: skip
    reader, root = _reader(data)
    given: dict[str, Any] = {} if reader == "procedural-logic" else {"root": root, "annotations": annotations}
    kind: Any = datasets.reader(reader)
    known = kind(**given).categories if not given else kind(**given, category="").categories
    if not category and not known:
        raise WrongInput(f"{root} holds no <category>/train/good; give the folder of MVTec LOCO AD.")
    for name in category or known:
        source = kind(**given, category=name)
        ruleset = _rules(rules_from, name, getattr(source, "rules", None))
        for mode in modes:
            seeing = _parser(parser, name) if parser and mode == "parsed" else None
            if mode == "parsed" and where_possible and not seeing and not hasattr(source, "parser"):
                say(f"{name}: without --parser, only the true scenes are judged.", quiet)
                continue
            yield Task.of(source, mode, ruleset, seeing, limit)
        if hasattr(source, "report") and (left := source.report()):
            parts = {"annotations without a picture": left.unmatched, "pictures without an annotation": left.missing}
            for what, names in parts.items():
                if names:
                    more = ", ..." if len(names) > 3 else ""
                    say(f"{name}: {len(names)} {what}: {', '.join(names[:3])}{more}", quiet)
            if left.unknown:
                say(f"{name}: {left.unknown} reasons do not begin with a known type.", quiet)


def _reader(data: str) -> tuple[str, str]:
    word, equals, root = data.partition("=")
    spelled = word.lower().replace("_", "-")
    if spelled in READERS and (equals or spelled == "procedural-logic"):
        return spelled, root
    if equals and spelled in datasets.names():
        raise WrongInput(f"{spelled} has no true scenes and reasons; --logibench reads {' and '.join(READERS)}.")
    return "loco-annotations", data


def _own(path: str, category: str) -> Path:
    """The file of a category in a folder; a file is itself."""
    if not Path(path).is_dir():
        return Path(path)
    names = [Path(path) / f"{category}{end}" for end in (".yaml", ".yml", ".json")]
    for name in names:
        if name.exists():
            return name
    raise WrongInput(f"{path} has no {names[0].name}; add it, or choose categories with --category.")


def _rules(path: str | None, category: str, own: rules.RuleSet | None) -> rules.RuleSet:
    if path:
        return rules.load(_own(path, category))
    if own is not None:
        return own
    if category in rule_sets.names():
        return rule_sets.load(category)
    raise WrongInput(f"there are no ready rules for {category}; give --rules FILE or a folder with {category}.yaml.")


def _parser(text: str, category: str) -> Parser:
    """A parser by name, or with its settings from a file."""
    import yaml

    if text in parsers.names():
        return parsers.create(text)
    path = _own(text, category)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError:
        known = ", ".join(parsers.names())
        raise Unreadable(f"{text} is neither a parser ({known}) nor a file that can be read.") from None
    except (ValueError, yaml.YAMLError):
        raise WrongInput(f"{path} is not YAML; correct it there.") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("parser"), str):
        raise WrongInput(f"{path} names no parser; write `parser: color-blobs` and its settings below it.")
    return parsers.create(content["parser"], **{str(k): v for k, v in content.items() if k != "parser"})


# --- what is told ------------------------------------------------------------------------------------------------


def _tables(summary: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """(title, table with its heading) of one mode."""
    binary = summary["binary"]
    names = [name for name in binary if name not in ("", MEAN)]
    order = [*names, *([MEAN, ""] if len(names) > 1 else [])]
    head: tuple[str, ...]
    head = ("category", "pictures", "accuracy", "coverage", "accuracy of judged", "balanced", "precision", "recall",
            "F1", "AUROC")  # fmt: skip
    keys = ("accuracy", "coverage", "accuracy_answered", "balanced_accuracy", "precision", "recall", "f1", "auroc")
    rows = [
        (_called(name), str(binary[name]["count"]), *(_number(binary[name][key]) for key in keys)) for name in order
    ]
    yield f"binary accuracy {DEFINED}", [head, *rows]
    generation = summary["generation"]
    if generation:
        repairs = max(len(one["cgsr"]) for one in generation.values())
        head = ("category", "attempts", *(f"CGSR@{r}" for r in range(repairs)),
                *(f"valid@{r}" for r in range(repairs)), "ended without")  # fmt: skip
        yield f"code generation success rate {DEFINED}", [
            head,
            *(
                (name, str(one["attempts"]), *map(_number, one["cgsr"]), *map(_number, one["cgsr_valid"]),
                 ", ".join(f"{cause} {count}" for cause, count in one["ended"].items()) or "-")
                for name, one in generation.items()
            ),
        ]  # fmt: skip
    if summary["failures"]:
        causes = list(summary["failures"])
        failed = Counter((one["category"], one["status"]) for one in summary["wrong"])
        yield (
            "pictures without a verdict, which count as wrong",
            [
                ("category", *(cause.replace("_", " ") for cause in causes)),
                *((name, *(str(failed[name, cause]) for cause in causes)) for name in names),
            ],
        )
    reasons = summary["reasons"]
    judged = list(reasons[""]["judges"])
    head = ("category", "pictures", "types: precision", "recall", "F1", *(f"judge {name}" for name in judged))
    order = [*names, *([""] if len(names) > 1 else [])]
    yield f"precision of reasons {DEFINED}", [
        head,
        *(
            (_called(name), str(reasons[name]["pictures"]),
             *(_number(reasons[name]["type"][key]) for key in ("precision", "recall", "f1")),
             *(_number(reasons[name]["judges"][judge]["precision"]) for judge in judged))
            for name in order
        ),
    ]  # fmt: skip


def _called(name: str) -> str:
    return {"": "all together", MEAN: "mean of categories"}.get(name, name)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """What must be known beside the tables."""
    origins = sorted({f"{one['origin']}" for one in summary["programs"].values()})
    levels = sorted({one["isolation"] for one in summary["programs"].values()})
    yield f"Programs: {', '.join(origins)}; they ran in the sandbox at the level {', '.join(levels)}."
    reasons = summary["reasons"][""]
    if reasons["untyped"]:
        yield f"Left out of the types: {reasons['untyped']} pictures with a stated reason of no known type."
    for name, one in reasons["judges"].items():
        if one["not_judged"]:
            yield f"The judge {name} has no opinion on {one['not_judged']} of {one['judged'] + one['not_judged']} findings."
    for pair, value in reasons["kappa"].items():
        yield f"Agreement of the judges {pair} (Cohen's kappa): {_number(value)}."


def _wrong(summary: Mapping[str, Any], most: int | None = None) -> Iterator[str]:
    for one in summary["wrong"][:most]:
        if one["status"] != "ok":
            what = f"no verdict ({one['status']})"
        elif one["label"]:
            what = "missed" + (f": {'; '.join(one['true'])}" if one["true"] else "")
        else:
            what = f"false alarm: {'; '.join(one['said'])}"
        yield f"{one['id']}: {what}"


def _words(figures: Mapping[str, Any]) -> Iterator[str]:
    for mode, summary in figures.items():
        yield TITLES[mode]
        for title, table in _tables(summary):
            yield ""
            yield title
            widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
            for line in table:
                yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        yield ""
        yield from _notes(summary)
        wrong = list(_wrong(summary))
        if wrong:
            yield f"Wrong: {len(wrong)}"
            yield from (f"  {line}" for line in wrong[:SHOWN_WRONG])
            if len(wrong) > SHOWN_WRONG:
                yield f"  and {len(wrong) - SHOWN_WRONG} more in logibench.json"
        yield ""


def _page(figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tasks: Sequence[Task]) -> str:
    """The page, with the pictures themselves as far as they can be read."""
    samples = {(str(task.mode), sample.id): sample for task in tasks for sample in task.test}

    def picture(mode: str, id: str) -> np.ndarray | None:
        try:
            return samples[mode, id].image()
        except Unreadable:
            return None

    tables = {mode: list(_tables(one)) for mode, one in figures.items()}
    notes = {mode: list(_notes(one)) for mode, one in figures.items()}
    return render(figures, rows, picture, TITLES, tables, notes)


def _markdown(figures: Mapping[str, Any]) -> str:
    lines = ["# LogiBench", ""]
    for mode, summary in figures.items():
        lines += [f"## {TITLES[mode]}", ""]
        for title, table in _tables(summary):
            lines += [f"### {title[0].upper()}{title[1:]}", ""]
            head, *rows = ["| " + " | ".join(map(_cell, line)) + " |" for line in table]
            lines += [head, "|" + " --- |" * len(table[0]), *rows, ""]
        lines += [*_notes(summary), ""]
        wrong = list(_wrong(summary))
        lines += [f"### Wrong: {len(wrong)}", "", *(f"- {_cell(line)}" for line in wrong), ""] if wrong else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    """As Markdown shows it: texts of programs and people are not ours."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|<>[]`*_#!" else c for c in text)


def _to_judge(summary: Mapping[str, Any]) -> str:
    """The findings for a person to judge: fill in `verdict`, and give the file as --judge human=FILE."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "finding", "verdict", "type", "said", "true"])
    for one in summary["claims"]:
        cells = [one["type"], one["text"], " / ".join(one["true"])]
        table.writerow([one["image"], one["finding"], "", *(_harmless(cell) for cell in cells)])
    return text.getvalue()


def _harmless(cell: str) -> str:
    """A spreadsheet takes what begins like this for a formula."""
    return f"'{cell}" if cell[:1] in "=+-@\t\r" and cell else cell
