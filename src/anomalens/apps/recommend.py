"""The command `recommend`, and what `--method auto` does: look at the folder, ask the rules, say why."""

from __future__ import annotations

import dataclasses
import json
import shlex
import textwrap
from collections import defaultdict
from typing import Any

from .. import detector as registry
from ..bench import probe, recommend
from ..bench.probe import Facts
from ..bench.recommend import Choice, Evidence, Query, Recommendation
from ..errors import WrongInput

WIDTH, LINES, LABEL = 100, 25, 10
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_pro-rad": "pixel AUPRO of its own kind",
           "aupro": "AUPRO", "image_f1max": "image max-F1", "pixel_f1max": "pixel max-F1"}  # fmt: skip


def recommending(data: str | None, as_json: bool = False, with_weights: bool = False, **given: Any) -> str:
    """What `recommend` prints. given: fields of `Query`; those that are None or () come from the folder and the machine.

    with_weights: as if all weights and optional libraries were here.
    """
    query, facts = asked(data, **given)
    if with_weights:
        query = dataclasses.replace(query, weights=None, extras=None)
    answer = recommend.recommend(query)
    following = commands(answer, data, facts)
    if as_json:
        told = {"facts": dataclasses.asdict(facts) if facts else None, **dataclasses.asdict(answer), "next": following}
        return json.dumps(told) + "\n"
    return "\n".join(lines(answer, facts, following)) + "\n"


def asked(data: str | None, **given: Any) -> tuple[Query, Facts | None]:
    """The query for a folder on this machine; what the user says goes before what was measured."""
    facts = probe.probe(data) if data else None
    said = {key: value for key, value in given.items() if value not in (None, ())}
    known = probe.machine(map(registry.card, registry.names())) | (facts.query() if facts else {})
    if facts and said.get("normals", facts.normals) == 0:
        known["test_batch"] = facts.pictures
    return Query(**(known | said)), facts


def auto(new: str | None, good: str | None, device: str = "auto") -> tuple[str, str]:
    """The method for `--method auto` and a sentence that says why.

    Raises:
        WrongInput: nothing that is built can run on this; the message says what would help.
    """
    facts = probe.probe(good or str(new))
    given: dict[str, Any] = facts.query()
    if not good:
        given |= {"normals": 0, "abnormals": 0, "test_batch": facts.pictures}
    known = probe.machine(map(registry.card, registry.names())) | given
    if device == "cpu":
        known["gpu"] = "none"
    answer = recommend.recommend(Query(**known))
    choice = answer.ready
    looked = facts.words() if good else f"{facts.pictures} new picture{'s' * (facts.pictures != 1)} and no good ones"
    if choice is None:
        what = f"{answer.proposal.name} needs {_and(answer.proposal.missing)}" if answer.proposal else answer.relaxation
        raise WrongInput(f"no method can be chosen for {good or new}: {what}; `anomalens recommend` says more.")
    return choice.name, f"Method: {choice.title}, chosen because of {looked}: {choice.reason}."


def commands(answer: Recommendation, data: str | None, facts: Facts | None) -> list[str]:
    """What to type next for the best one that runs, on the folder that was looked at."""
    choice = answer.ready
    if choice is None:
        return []
    where = shlex.quote(data) if data else ""
    if choice.name == "logicode":  # judges by a file that a person writes
        new = where if where and (facts is None or facts.test or answer.query.normals == 0) else "NEW"
        good = f" --good {where or 'GOOD'}" if answer.query.normals else ""
        return [f"anomalens rules run RULES.yaml {new}{good}"]
    method = f"--method {choice.name}"
    if registry.card(choice.name).family == "language-model":
        method += " --set base_url=URL --set model=NAME"  # its server; there is no default
    if answer.query.normals == 0:
        return [f"anomalens inspect {where or 'NEW'} {method}"]
    if facts is None or facts.normals < 2:
        return [f"anomalens inspect NEW --good {where or 'GOOD'} {method}"]
    if facts.test:
        return [f"anomalens inspect {where} --good {where} {method}"]
    return [f"anomalens fit {where} {method} --out model", "anomalens predict model NEW"]


def lines(answer: Recommendation, facts: Facts | None, following: list[str]) -> list[str]:
    """The answer as at most 25 lines of text."""
    out: list[str] = []
    if facts:
        out += _entry("Looked at", f"{facts.words()}; GPU: {'no' if answer.query.gpu == 'none' else 'yes'}")
    three = [c for c in (answer.proposal, *answer.alternatives) if c]
    if not three:
        out += _entry("Use", "nothing that is built fits.")
    for i, choice in enumerate(three):
        known = choice.reason in {c.reason for c in three[:i]}
        label = "Or" if i else "Would fit" if choice.missing else "Use"
        out += _entry(label, _described(choice, answer, choice.name if known else f"{choice.name}: {choice.reason}"))
        if choice is answer.ready:
            out += [f"{'':<{LABEL}}$ {command}" for command in following]
    if answer.relaxation:
        out += _entry("To run", answer.relaxation)
    if answer.baseline and answer.baseline not in three:
        out += _entry("To beat", f"{answer.baseline.name}, {answer.baseline.reason}.")
    for label, texts in (("Advice", answer.advice), ("Note", answer.notes)):
        for i, text in enumerate(texts):
            out += _entry("" if i else label, text)
    removed: dict[str, list[str]] = defaultdict(list)
    for removal in answer.removed:
        removed[removal.reason].append(removal.name)
    left = [line for i, (reason, names) in enumerate(removed.items())
            for line in _entry("" if i else "Left out", f"{', '.join(names)}: {reason}")]  # fmt: skip
    room = LINES - len(out)
    if len(left) > room:
        left = [*left[: max(room - 1, 0)], f"{'':<{LABEL}}... and more; --json tells all"]
    return (out + left)[:LINES]


def _described(choice: Choice, answer: Recommendation, begin: str) -> str:
    facts = [begin, *choice.notes]
    if choice == answer.baseline and choice.rule != "R19":
        facts.append("also the baseline to beat")
    if choice.missing:
        facts.append(f"needs {_and(choice.missing)} first, see `anomalens show {choice.name}`")
    text = "; ".join(facts) + "."
    if choice is answer.proposal and choice.evidence:
        by = "" if choice.evidence[0].source == "third-party" else f", with {registry.card(choice.name).backbone}"
        text += f" Published{by}: {', '.join(map(_figure, choice.evidence[:2]))}."
    return text


def _figure(e: Evidence) -> str:
    mark = ", best epoch on the test set" if e.selection == "best-on-test" else ""
    return f"{METRICS.get(e.metric, e.metric)} {e.value:g} % on {e.dataset} ({e.source}{mark})"


def _entry(label: str, text: str, wrap: bool = True) -> list[str]:
    head = f"{label:<{LABEL}}"
    if not wrap:
        return [head + text]
    return textwrap.wrap(head + text, WIDTH, subsequent_indent=" " * LABEL, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _and(parts: tuple[str, ...]) -> str:
    return " and ".join(parts)
