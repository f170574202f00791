"""What a language model said, as data: the JSON in its text, and a judgement of one sample with a status.

Models wrap JSON in prose and fences, break lines inside strings, write Python's literals, refuse, or contradict
themselves. Nothing of this raises: every answer becomes a `Judgement`, and where it cannot be understood `error` says
why in one sentence. Nothing is guessed from keywords, and an answer is never run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .endpoint import Answer, Token

Status = Literal["ok", "refused", "truncated", "unparsable", "api_error"]
Box = tuple[float, float, float, float]

GRID = 1000  # boxes are (x0, y0, x1, y1) in 0..GRID of the picture under test
MOST_STARTS = 20  # opening braces that are tried: text full of them cannot cost more than that many passes
MOST_REPAIRED = 100_000  # characters; a longer object is taken as it is or not at all
MOST_DEFECTS = 50  # of one answer

FENCE = re.compile(r"^\s*```[\w-]*\s*$", re.MULTILINE)
NO_DEFECT = frozenset({"", "none", "n/a", "na", "no", "normal", "no defect", "no anomaly", "nothing"})
YES = frozenset({"true", "yes", "y", "1", "anomalous", "abnormal", "defective", "anomaly"})
NO = frozenset({"false", "no", "n", "0", "normal", "good", "none"})
SYNONYMS = ("anomalous", "is_anomalous", "is_anomaly", "anomaly", "abnormal", "defective")
INVERTED = ("correctness", "is_normal", "normal")  # 1 says normal
REASONS = ("reasoning", "reason", "explanation", "analysis")
TOKEN = re.compile(r'[{}]|"[^"\\]*(?:\\.[^"\\]*)*"|"', re.DOTALL)  # a brace, a whole string, or a quote without its end
VERDICT = re.compile(rf'"(?P<key>{"|".join(SYNONYMS + INVERTED)})"\s*:\s*"?(?P<value>\w+)')
REFUSAL = re.compile(
    r"\W*(i['’]?m sorry|i am sorry|sorry\b|i apologi[sz]e|i['’]?m unable|i am unable|i['’]?m not able|i am not able|"
    r"i can['’]?t|i cannot|i can not|i won['’]?t|i will not|as an ai\b|unfortunately,? i)",
    re.IGNORECASE,
)


# JSON in text.


def first_json(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, or None.

    Fences are stripped; braces are matched with respect to strings; single quotes, trailing commas and Python's True,
    False and None are repaired. An object that names a key twice with different values contradicts itself and is passed
    over. Numbers that are not finite become None.
    """
    text = FENCE.sub("", text)
    start = -1
    for _ in range(MOST_STARTS):
        start = text.find("{", start + 1)
        if start < 0:
            return None
        stop = _closing(text, start)
        if stop < 0:
            if re.match(r"\{\s*[\"'}]", text[start : start + 100]):
                return None  # an object that was cut off: what lies inside is not the answer
            continue
        found = _loaded(text[start:stop])
        if found is not None:
            return found
    return None


def _closing(text: str, start: int) -> int:
    """Position behind the brace that closes the one at `start`, or -1."""
    depth = 0
    for match in TOKEN.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.end()
        elif match[0] == '"':
            return -1  # a string without an end
    return -1


def _loaded(text: str) -> dict[str, Any] | None:
    for attempt in (str, _repaired) if len(text) <= MOST_REPAIRED else (str,):
        try:
            found = json.loads(attempt(text), strict=False, object_pairs_hook=_once, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if any(found[key] != value for key, value in pairs):
        raise ValueError("a key with two values")
    return found


def _repaired(text: str) -> str:
    """Single quotes to double ones except inside words; outside strings: trailing commas, Python's literals."""
    pieces: list[str] = []  # what lies outside of strings and in them takes turns
    piece: list[str] = []
    quote, i = "", 0
    while i < len(text):
        c = text[i]
        apostrophe = c == "'" and text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()
        if quote and c == "\\":
            i += 1
            piece.append("'" if text[i : i + 1] == "'" else c + text[i : i + 1])
        elif c in "\"'" and (c == quote or not quote) and not apostrophe:
            quote = "" if quote else c
            pieces.append("".join(piece))
            piece = []
        else:
            piece.append('\\"' if quote and c == '"' else c)
        i += 1
    pieces.append("".join(piece))
    return "".join(f'"{p}"' if i % 2 else _literals(p) for i, p in enumerate(pieces))


def _literals(text: str) -> str:
    for python, plain in (("True", "true"), ("False", "false"), ("None", "null")):
        text = re.sub(rf"\b{python}\b", plain, text)
    return re.sub(r",(\s*[}\]])", r"\1", text)


# A judgement of one sample.


@dataclass(frozen=True)
class Defect:
    """One thing the model found: its kind, where in words, a box in 0..GRID of the picture, the number of a mark."""

    kind: str
    where: str = ""
    box: Box | None = None
    mark: int | None = None


@dataclass(frozen=True)
class Judgement:
    """What the model said of one sample.

    status: ok, or why there is no verdict; `error` is then one sentence. anomalous: None without a verdict.
    confidence: of the verdict, in [0, 1]; None where the answer has none that makes sense.
    probability: of "anomalous" by the tokens of the verdict, in [0, 1]; None where the server gave none.
    """

    status: Status
    anomalous: bool | None = None
    confidence: float | None = None
    probability: float | None = None
    reasoning: str = ""
    defects: tuple[Defect, ...] = ()
    error: str = ""
    text: str = ""


def judge(answer: Answer) -> Judgement:
    """Understand an answer; nothing it holds raises."""
    if answer.status != "ok":
        return Judgement(answer.status, error=answer.error or f"the answer is {answer.status}.", text=answer.text)
    found = first_json(answer.text)
    if found is None:
        if not answer.text.strip():
            return Judgement("refused", error="the model answered with no text.", text=answer.text)
        if refuses(answer.text):
            return Judgement("refused", error=f"the model refused: {shortened(answer.text)}", text=answer.text)
        why = f"the answer holds no readable JSON object: {shortened(answer.text)}"
        return Judgement("unparsable", error=why, text=answer.text)
    reasoning = next((str(found[k]).strip() for k in REASONS if found.get(k)), "")
    defects = _defects(found.get("defects"))
    verdict, error = _verdict(found, defects)
    if verdict is None:
        return Judgement("unparsable", reasoning=reasoning, error=error, text=answer.text)
    return Judgement(
        "ok", verdict, share(found.get("confidence")), verdict_probability(answer.tokens), reasoning,
        defects if verdict else (), text=answer.text,
    )  # fmt: skip


def refuses(text: str) -> bool:
    """Whether a text opens as a refusal does. Only for texts without JSON."""
    return bool(REFUSAL.match(text))


def shortened(text: str, most: int = 120) -> str:
    """The beginning of a model's words, fit for one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return f"{line[:most]!r}" if len(line) <= most else f"{line[:most]!r}..."


def _verdict(found: Mapping[str, Any], defects: Sequence[Defect]) -> tuple[bool | None, str]:
    """(anomalous, "") or (None, why not): fields that disagree, and defects of a normal sample, are no verdict."""
    said = {key: found[key] for key in (*SYNONYMS, *INVERTED) if key in found}
    read = {key: _truth(value) for key, value in said.items()}
    read = {key: value if key in SYNONYMS or value is None else not value for key, value in read.items()}
    verdicts = {value for value in read.values() if value is not None}
    if not said:
        return None, "the answer gives no verdict: a field 'anomalous', true or false, was expected."
    if not verdicts:
        key, value = next(iter(said.items()))
        return None, f"the answer's {key!r} is {shortened(str(value), 40)}; true or false was expected."
    if len(verdicts) > 1:
        both = " and ".join(f"{key!r} is {shortened(str(value), 20)}" for key, value in said.items())
        return None, f"the answer contradicts itself: {both}."
    (verdict,) = verdicts
    if not verdict and defects:
        return None, f"the answer contradicts itself: it calls the sample normal and names {defects[0].kind!r}."
    return verdict, ""


def _truth(value: Any) -> bool | None:
    if isinstance(value, (int, float)):
        return bool(value) if value in (0, 1) else None
    word = value.strip().strip(".").lower() if isinstance(value, str) else ""
    return True if word in YES else False if word in NO else None


def share(value: Any) -> float | None:
    """A confidence as a share: 93, "93 %" and 0.93 are 0.93; None for what lies outside 0 to 100 or is no number."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", value)
        value = None if match is None else float(match[1]) if "." in match[1] else int(match[1])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    return value / 100 if 0 <= value <= 100 else None


def _defects(items: Any) -> tuple[Defect, ...]:
    if not isinstance(items, list):
        return ()
    found = []
    for item in items[:MOST_DEFECTS]:
        if isinstance(item, str):
            item = {"type": item}
        if not isinstance(item, dict):
            continue
        kind = str(item.get("type") or item.get("kind") or "").strip()
        where = str(item.get("where") or item.get("location") or "").strip()
        box, mark = _box(item.get("box")), item.get("mark")
        mark = mark if isinstance(mark, int) and not isinstance(mark, bool) else None
        if kind.lower() in NO_DEFECT and box is None and mark is None:
            continue
        found.append(Defect(kind or "defect", where, box, mark))
    return tuple(found)


def _box(value: Any) -> Box | None:
    """Four finite numbers of 0..GRID with some area, in any order of corners; else None."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v) for v in value):
        return None
    x0, x1 = sorted((float(value[0]), float(value[2])))
    y0, y1 = sorted((float(value[1]), float(value[3])))
    return (x0, y0, x1, y1) if x0 >= 0 and y0 >= 0 and x0 < x1 <= GRID and y0 < y1 <= GRID else None


def verdict_probability(tokens: Sequence[Token]) -> float | None:
    """P(anomalous) / (P(anomalous) + P(normal)) at the token of the verdict; None where the tokens do not show it."""
    text = "".join(t.text for t in tokens)
    matches = list(VERDICT.finditer(text))
    if not matches:
        return None
    match = matches[-1]  # what looks like a verdict inside the reasoning comes before
    at = 0
    for token in tokens:
        at += len(token.text)
        if at > match.start("value"):
            break
    yes = no = 0.0
    for word, logprob in {**token.top, token.text: token.logprob}.items():
        word = word.strip().strip('":').strip().lower()
        if word:
            yes += math.exp(min(logprob, 0.0)) * any(w.startswith(word) for w in YES)
            no += math.exp(min(logprob, 0.0)) * any(w.startswith(word) for w in NO)
    if yes + no == 0:
        return None
    anomalous = yes / (yes + no)
    return 1 - anomalous if match["key"] in INVERTED else anomalous
