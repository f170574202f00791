"""Does an explanation state the true cause? Three judges of findings, and how far two of them agree.

judge = RuleJudge()                     # same type, same thing: exact, and strict about words
judge = HumanJudge.load("judged.csv")   # columns image, finding, verdict
judge = LLMJudge(model)                 # a language model compares the sentences
judge(claim).match                      # True, False, or None where it does not say
"""

from __future__ import annotations

import csv
import math
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from ..errors import Unreadable, WrongInput
from ..reasoning import prompts
from ..reasoning.answers import NO, YES, first_json
from ..reasoning.endpoint import Asks, Message
from ..reasoning.parsers.annotations import StatedReason

PROMPT = "logibench_1"


@dataclass(frozen=True)
class Claim:
    """One finding of a program on an anomalous picture, and what people said of that picture.

    number: of the finding, from 1. labels: what the rules speak of, by which things are recognised in sentences.
    """

    image: str
    number: int
    type: str
    text: str
    reasons: tuple[StatedReason, ...]
    category: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opinion:
    """match: whether the cause is the same; None where the judge does not say. reason: which one, from 0."""

    match: bool | None
    reason: int | None = None


class Judge(Protocol):
    name: ClassVar[str]

    def __call__(self, claim: Claim) -> Opinion: ...


@dataclass(frozen=True)
class RuleJudge:
    """The same type, and a label that both sentences name; number and spelling of the words do not matter."""

    name: ClassVar[str] = "rule"

    def __call__(self, claim: Claim) -> Opinion:
        said = things_in(claim.text, claim.labels)
        for i, reason in enumerate(claim.reasons):
            if reason.type == claim.type and said & things_in(reason.text, claim.labels):
                return Opinion(True, i)
        return Opinion(False)


def things_in(text: str, labels: Iterable[str]) -> set[str]:
    """The labels that a sentence names, in the singular or in the plural."""
    said = f" {_normal(text)} "
    return {label for label in labels if _normal(label) and f" {_normal(label)} " in said}


def _normal(text: str) -> str:
    """Lower case, words apart by one space, each in the singular."""
    return " ".join(_singular(word) for word in re.findall(r"[^\W_]+", text.lower()))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if re.search(r"(ss|sh|ch|x|z)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


@dataclass(frozen=True)
class HumanJudge:
    """What a person decided. verdicts: (image, number of the finding, from 1) to verdict."""

    verdicts: Mapping[tuple[str, int], bool]
    name: ClassVar[str] = "human"

    def __call__(self, claim: Claim) -> Opinion:
        return Opinion(self.verdicts.get((claim.image, claim.number)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HumanJudge:
        """Read a CSV file with the columns image, finding (its number) and verdict (yes or no, empty for neither).

        Raises:
            Unreadable: no such file, or no text. WrongInput: a column is missing, or a row cannot be understood.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not text in UTF-8"
            raise Unreadable(f"{path} cannot be read: {reason}.") from None
        rows = csv.DictReader(lines)
        missing = {"image", "finding", "verdict"} - set(rows.fieldnames or ())
        if missing:
            raise WrongInput(f"{path} has no column {sorted(missing)[0]!r}; give image, finding and verdict.")
        verdicts: dict[tuple[str, int], bool] = {}
        for row in rows:
            number, word = str(row["finding"]).strip(), str(row["verdict"] or "").strip().lower()
            if word and (word not in YES | NO or not number.isdigit()):
                raise WrongInput(
                    f"{path}, line {rows.line_num}: finding {number!r} has the verdict {word!r}; give its number, and yes "
                    "or no."
                )
            if word:
                verdicts[str(row["image"]), int(number)] = word in YES
        return cls(verdicts)


@dataclass(frozen=True)
class LLMJudge:
    """A language model decides, at temperature 0; the reasons are shown in an order that the seed shuffles."""

    model: Asks
    seed: int = 0
    name: ClassVar[str] = "llm"

    def __call__(self, claim: Claim) -> Opinion:
        order = list(range(len(claim.reasons)))
        random.Random(f"{self.seed} {claim.image} {claim.number}").shuffle(order)
        texts = prompts.load(PROMPT)
        shown = [claim.reasons[i] for i in order]
        listed = "\n".join(f"{n}. {reason.type}: {_plain(reason.text)}" for n, reason in enumerate(shown, 1))
        question = prompts.fill(
            texts["question"],
            category=_plain(claim.category) or "product",
            type=claim.type,
            said=_plain(claim.text),
            reasons=listed,
        )
        messages = [Message.of("system", texts["system"].strip()), Message.of("user", question)]
        answer = self.model.ask(messages, temperature=0.0, seed=self.seed, json=True)
        said = first_json(answer.text) if answer.status == "ok" else None
        if said is None or not isinstance(said.get("match"), bool):
            return Opinion(None)
        number = said.get("gt_index")
        known = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= len(order)
        return Opinion(said["match"], order[int(number) - 1] if said["match"] and known else None)  # type: ignore[arg-type]


def _plain(text: str) -> str:
    """On one line, without what could be taken for our own marks."""
    return " ".join(text.split()).replace("<", "(").replace(">", ")")


def kappa(first: Sequence[bool | None], second: Sequence[bool | None]) -> float:
    """Agreement of two judges beyond chance, over what both judged: 1 is full, 0 is chance; NaN where undefined.

    Undefined where nothing was judged by both, or where both always say the same one thing.

    Source:
        Cohen 1960, https://doi.org/10.1177/001316446002000104
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return math.nan
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    yes_first, yes_second = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    chance = yes_first * yes_second + (1 - yes_first) * (1 - yes_second)
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan
