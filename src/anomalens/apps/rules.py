"""What `anomalens rules` does: draft rules, check them, make the program that checks them, and judge pictures by it.

Each function returns the summary that the command prints: {"words", ...}, JSON-able.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..datasets.folder import Folder
from ..detector import create
from ..detectors.logicode import LogiCode, read_rules
from ..errors import AnomalensError, CannotWrite, ProgramGenerationError, WrongInput
from ..reasoning import logicode, parsers, rules, static_check
from ..reasoning.endpoint import Model
from ..reasoning.logicode import Program
from ..types import Sample
from . import tasks
from .progress import Watch, say

SHOWN = 5  # good pictures that a model sees to draft rules
LOOKED_AT = 40  # good pictures that kinds of parts are looked for in, where no labels are given


def run(
    rules_file: str, new: str, good: str | None, out: str, *, parser: str | None = None, program: str | None = None,
    model: str | None = None, base_url: str = "", key_env: str = "", settings: Iterable[str] = (), **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """Judge `new` by rules: `inspect` with the method logicode. A .py file in place of rules is a program of its own."""
    tell_unreviewed(rules_file, bool(how.get("quiet")))
    given = [f"{'program' if rules_file.endswith('.py') else 'rules'}={rules_file}"]
    if model and not program:
        program = "model"
    named = {"parser": parser, "program": program, "model": model, "base_url": base_url, "key_env": key_env}
    given += [f"{key}={value}" for key, value in named.items() if value]
    return tasks.inspect(new, good, out, method="logicode", settings=[*given, *settings], **how)


def compile(
    rules_file: str, good: str | None, out: str, *, parser: str | None = None, model: str | None = None,
    base_url: str = "", key_env: str = "", settings: Iterable[str] = (), dry_run: bool = False, seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make the program of some rules and write it, with where it comes from beside it.

    Typed rules need no model; with good pictures the program is tried on them. With a model they are needed.

    Raises:
        WrongInput: what `LogiCode.fit` refuses. CannotWrite: a program that a person has changed is there already.
        ProgramGenerationError: no answer was accepted.
    """
    target = Path(out)
    refuse_edited(target)
    tell_unreviewed(rules_file, quiet)
    named = {"rules": rules_file, "parser": parser, "model": model, "base_url": base_url, "key_env": key_env}
    texts = [f"{key}={value}" for key, value in named.items() if value] + ["program=model"] * bool(model)
    chosen = tasks.settings_for("logicode", settings=[*texts, *settings], seed=seed)
    detector = cast(LogiCode, create("logicode", **chosen))
    if not good:
        if model:
            raise WrongInput("a program that a model writes is tried on good pictures; give the folder GOOD too.")
        return written(target, logicode.from_rules(detector.ruleset), detector, "")
    samples, watch = watched(good, quiet)
    if model and dry_run:
        asker = cast(Model, detector.asker(dry_run=True))
        detector.model = asker
        with suppress(ProgramGenerationError):  # no answer came, since nothing was asked
            detector.fit(samples)
        words = f"Nothing was asked (--dry-run); the first request would send: {asker.usage}."
        words += f" Up to {detector.candidates * (1 + detector.repairs) - 1} more would follow, each a little longer."
        return {"words": words, "requests": asker.usage.requests, "pictures": asker.usage.pictures,
                "bytes": asker.usage.bytes}  # fmt: skip
    detector.fit(samples)
    assert detector.kept is not None
    words = " ".join([detector.state(), *([tasks.left_out(watch.unreadable)] if watch.unreadable else [])])
    share = 1 - detector.kept["kept_all"] / detector.kept["good"]
    return written(target, replace(Program(**detector.kept["program"]), normal_fa=share), detector, words)


def tell_unreviewed(rules_file: str, quiet: bool) -> None:
    """Say that nobody has read the rules yet; once, as a sentence instead of the library's warning."""
    if rules_file.endswith(".py"):
        return
    ruleset = read_rules(rules_file)
    if ruleset.unreviewed:
        words = rules.unreviewed_in_words(ruleset)
        say(words, quiet)
        warnings.filterwarnings("ignore", re.escape(words))


def written(target: Path, program: Program, detector: LogiCode, words: str) -> dict[str, Any]:
    """Save a program and say so."""
    logicode.save_program(program, target)
    count = len(detector.ruleset.rules)
    said = f"{target} checks {count} rule{'s' * (count != 1)}; {target.with_suffix('.json')} says where it comes from."
    words = "\n".join(filter(None, [said, words]))
    return {"words": words, "program": str(target), "rules": count, "model": program.model,
            "ast_hash": program.ast_hash, "normal_false_alarms": program.normal_fa}  # fmt: skip


def refuse_edited(target: Path) -> None:
    """Keep what a person has written."""
    if target.suffix != ".py":
        raise WrongInput(f"{target} ends in {target.suffix or 'nothing'}; a program is a .py file.")
    if not target.exists():
        return
    with suppress(AnomalensError):
        if not logicode.load_program(target).edited:
            return
    raise CannotWrite(f"{target} was written or changed by a person; choose another --out, or remove it.")


def check(files: Sequence[str], labels: str | None = None) -> dict[str, Any]:
    """What is wrong with files of rules (.yaml, .json) and programs (.py), a sentence each.

    labels: what the parser can name, separated by commas; without them, those in the file.
    """
    known = _names(labels) if labels else None
    found: list[str] = []
    fine: list[str] = []
    for path in files:
        try:
            wrong, words = (_check_program if path.endswith(".py") else _check_rules)(path, known)
        except AnomalensError as error:
            wrong, words = [str(error)], ""
        found += [line if line.startswith(path) else f"{path}: {line}" for line in wrong]
        fine += [f"{path}: {words}"] * (not wrong)
    return {"words": "\n".join([*found, *fine]), "problems": found}


def _check_rules(path: str, labels: Sequence[str] | None) -> tuple[list[str], str]:
    ruleset = rules.load(path)
    typed = sum(bool(rule.form) for rule in ruleset.rules)
    words = f"{typed} typed rules, {len(ruleset.rules) - typed} in words, no problem found"
    words += "; they are unreviewed: read them, then remove `unreviewed: true`." * ruleset.unreviewed
    empty = ["there is no rule; add one, such as `- {count: nut, exactly: 4}`."] * (not ruleset.rules)
    return empty + rules.problems(ruleset, labels), words.rstrip(".") + "."


def _check_program(path: str, labels: Sequence[str] | None) -> tuple[list[str], str]:
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        source = logicode.load_program(path).source  # which says why it cannot be read
    wrong = [f"{problem}." for problem in static_check.check(source)]
    edited = not wrong and logicode.load_program(path).edited
    return wrong, "the program keeps the contract" + ("; it was written or changed by a person." if edited else ".")


def draft(
    good: str, out: str, *, model: str | None = None, base_url: str = "", key_env: str = "", labels: str | None = None,
    category: str | None = None, pictures: int = SHOWN, timeout: float = 60, max_tokens: int = 2048,
    dry_run: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Have a model that sees good pictures propose rules, and write them, marked as unreviewed.

    labels: what the rules may speak of, separated by commas; without them the kinds that the parser `parts` finds.

    Raises:
        WrongInput: no good picture, no server. NoAnswer: nothing usable came. CannotWrite: the file is there already.
    """
    target = Path(out)
    if target.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise WrongInput(f"{out} ends in {target.suffix or 'nothing'}; rules are in .yaml, .yml or .json.")
    if target.exists():
        raise CannotWrite(f"{out} is there already and may have been read and corrected; choose another --out.")
    asker = Model(
        base_url, model or "", key_env=key_env or None, timeout=timeout, max_tokens=max_tokens, dry_run=dry_run
    )
    samples, _ = watched(good, quiet)
    known = _names(labels) if labels else parsers.create("parts").fit(_spread(samples, LOOKED_AT)).labels
    if not labels:
        say(f"The parser parts calls what it finds {', '.join(known)}; --labels gives other names.", quiet)
    shown = [sample.image() for sample in _spread(samples, pictures)]
    name = category or next((s.category for s in samples if s.category), "")
    try:
        drafted = logicode.draft(asker, shown, known, name)
    except AnomalensError:
        if not dry_run:
            raise
        return {"words": f"Nothing was asked (--dry-run); drafting would send: {asker.usage}.",
                "requests": asker.usage.requests, "pictures": asker.usage.pictures, "bytes": asker.usage.bytes}  # fmt: skip
    rules.save(drafted, target)
    lines = [f"  {rule.id} [{rule.type}] {rule.text}" for rule in drafted.rules]
    words = f"{out} holds {len(lines)} rules that {asker.name} proposes: correct them, then remove `unreviewed: true`."
    return {"words": "\n".join([words, *lines]), "rules": out, "count": len(lines)}


def watched(good: str, quiet: bool) -> tuple[list[Sample], Watch]:
    """The good pictures of a folder that can be read, and what could not."""
    watch = Watch(quiet)
    normal = tasks.good_ones(Folder(good))
    if not normal:
        raise WrongInput(f"{good} holds no good pictures; give a folder of pictures without defects.")
    readable = {sample.id for sample in watch(normal, "reading good pictures", len(normal))}
    return [sample for sample in normal if sample.id in readable], watch


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Up to `most` samples, evenly over all."""
    count = min(len(samples), max(most, 1))
    return [samples[i * len(samples) // count] for i in range(count)]
