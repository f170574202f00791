"""The second stage of `inspect --explain`: a vision-language model says in words what is wrong with flagged pictures.

Scores and verdicts stay what they are. Answers are kept in the run folder (`answers/`), so that a run that was stopped, and
the same run again, asks nothing twice. A server that fails costs its explanations and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import WrongInput
from ..reasoning.endpoint import Answer, Message, Model
from ..types import Prediction, Reason, Region, Sample
from .progress import counting

PATIENCE = 3  # failures in a row after which a server is asked no more


@dataclass(frozen=True)
class Explain:
    """What to ask, and whom. context, rules: what the model is told about the thing. dry_run: count, and ask nothing."""

    model: str
    base_url: str
    key_env: str = ""
    context: str = ""
    rules: Sequence[str] = ()
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not self.base_url or not self.model:
            raise WrongInput("--explain asks a model of yours: give --base-url URL and --model NAME.")
        if self.key_env and not os.environ.get(self.key_env) and not self.dry_run:
            raise WrongInput(f"the environment variable {self.key_env} holds no key; set it, or leave --key-env out.")

    def plan(self) -> dict[str, Any]:
        """What makes another run of it."""
        return {"model": self.model, "base_url": self.base_url, "context": self.context, "rules": list(self.rules)}


@dataclass
class Patient:
    """A model that is asked no more once it has failed PATIENCE times in a row."""

    inner: Model
    failed: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    def ask(self, messages: Sequence[Message], **options: Any) -> Answer:
        if len(self.failed) >= PATIENCE:
            return Answer("", "api_error", self.failed[0])
        answer = self.inner.ask(messages, **options)
        if answer.status != "api_error":
            self.failed.clear()
        elif not self.inner.dry_run:
            self.failed.append(answer.error)
        return answer


def explain(
    how: Explain, rows: Iterable[Mapping[str, Any]], samples: Mapping[str, Sample], cache: Path, quiet: bool = False
) -> tuple[dict[str, list[Reason]], str]:
    """Reasons for these rows of a run folder, by id, and a sentence on what was asked.

    rows: those to explain, with id, score and regions. samples: by id. cache: folder of answers.
    """
    from ..detectors.customizable_vlm import NO_EXPLANATION, CustomizableVLM
    from ..detectors.customizable_vlm import explain as explained

    flagged = [row for row in rows if row["id"] in samples]
    if not flagged:
        return {}, "No picture was flagged, so there was nothing to explain."
    model = Model(how.base_url, how.model, key_env=how.key_env or None, cache=cache, dry_run=how.dry_run)
    vlm = CustomizableVLM(model=Patient(model), context=how.context, rules=tuple(how.rules), references=0)
    predictions = (Prediction(row["id"], row["score"], regions=_regions(row)) for row in flagged)
    own = [samples[row["id"]] for row in flagged]
    answers = explained(vlm, predictions, own, flagged=lambda prediction: True)
    found: dict[str, list[Reason]] = {}
    why = ""
    for prediction in counting(answers, "asking for explanations", len(flagged), quiet=quiet):
        if prediction.reasons[0].text.startswith(NO_EXPLANATION):
            why = why or prediction.reasons[0].text.removeprefix(NO_EXPLANATION)
        else:
            found[prediction.id] = list(prediction.reasons)
    if how.dry_run:
        return {}, f"Nothing was asked (--dry-run); explaining {_pictures(len(flagged))} would send: {model.usage}."
    if len(found) == len(flagged):
        return found, f"{how.model} explained {_pictures(len(flagged))}; its words change no verdict."
    return found, f"{len(flagged) - len(found)} of {_pictures(len(flagged))} could not be explained: {why}"


def _pictures(count: int) -> str:
    return f"{count} flagged picture{'s' * (count != 1)}"


def _regions(row: Mapping[str, Any]) -> tuple[Region, ...]:
    return tuple(
        Region(tuple(r["box"]), r["area"], r["peak"], tuple((x, y) for x, y in r["outline"])) for r in row["regions"]
    )
