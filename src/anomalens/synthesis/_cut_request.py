"""What CUT is asked for and what it gives: defects in words, one picture and its words, a painted picture and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NoAnswer, WrongInput
from ..files import write_atomic
from ._cut_pictures import Square, objections, pseudo_mask, quality

if TYPE_CHECKING:
    from ..reasoning.endpoint import Asks

BANK = Path(__file__).with_name("cut_prompts.yaml")


@dataclass(frozen=True)
class Anomaly:
    """A defect in words; see cut_prompts.yaml."""

    name: str
    phrase: str
    prompt: str
    detailed: str

    @classmethod
    def of(cls, phrase: str) -> Anomaly:
        """In the plainest words: a photo of OBJECT with PHRASE on it."""
        return cls(phrase, phrase, "a photo of {object} with " + with_article(phrase) + " on it", "")


def prompts(object_name: str = "", path: str | Path = "") -> tuple[Anomaly, ...]:
    """The defects of a prompt bank, those of the object first; "" is the bank of the package.

    Raises:
        WrongInput: the file is not a prompt bank; the message names the entry.
    """
    import yaml

    file = Path(path).expanduser() if path else BANK
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise WrongInput(f"the prompt bank {file} cannot be read ({reason}); it is a YAML file.") from None
    if not isinstance(held, dict) or not isinstance(held.get("objects") or {}, dict):
        raise WrongInput(f"{file} is no prompt bank; it needs `generic:` with a list, and may have `objects:`.")
    entries = [*((held.get("objects") or {}).get(object_name) or []), *(held.get("generic") or [])]
    if not entries:
        raise WrongInput(f"the prompt bank {file} has nothing for {object_name!r} and no generic entries.")
    return tuple(_entry(entry, file) for entry in entries)


def _entry(entry: Any, file: Path) -> Anomaly:
    keys = ("name", "phrase", "prompt", "detailed")
    if not isinstance(entry, dict) or set(entry) != set(keys) or not all(isinstance(v, str) for v in entry.values()):
        raise WrongInput(f"{file} has the entry {entry!r}; each needs {', '.join(keys)}, all text.")
    if entry["phrase"] not in entry["prompt"]:
        raise WrongInput(f"{file} has the phrase {entry['phrase']!r}, which is not in its prompt {entry['prompt']!r}.")
    return Anomaly(**entry)


PROPOSE = """You know how things fail in production and in use. Name {count} defects that a camera could see on {thing}.
Each must be one visible place, not a whole wrong object. Answer with JSON only:
{{"defects": [{{"name": "...", "phrase": "...", "prompt": "...", "detailed": "..."}}]}}
name: one or two words with underscores. phrase: the one or two words for the defect. prompt: a short sentence that begins
with "a photo of {{object}}" and holds the phrase. detailed: one sentence that begins with "a close-up photo of {{object}}"
and describes shape, colour and place of the defect. Write {{object}} as it stands here, with its braces."""


def propose(object_name: str, model: Asks, path: str | Path, *, count: int = 8) -> tuple[Anomaly, ...]:
    """Ask a language model for defects of an object, and write them as a prompt bank for you to read and correct.

    model: of `reasoning.endpoint`; its cache keeps the answer. Entries that are not of the form of a bank are left out.

    Raises:
        NoAnswer: the model gave none. CannotWrite: the file cannot be written.
    """
    import yaml

    from ..reasoning.answers import first_json
    from ..reasoning.endpoint import Message

    question = PROPOSE.format(count=count, thing=with_article(object_name))
    answer = model.ask([Message.of("user", question)], json=True)
    held = first_json(answer.text) if answer.status == "ok" else None
    proposed = (held or {}).get("defects")
    found = []
    for entry in proposed if isinstance(proposed, list) else ():
        try:
            found.append(_entry(entry, Path(path)))
        except WrongInput:
            continue
    found = [e for e in found if "{object}" in e.prompt and "{object}" in e.detailed]
    if not found:
        why = answer.error or f"{answer.text[:80]!r}"
        raise NoAnswer(f"the model proposed no defect of {object_name!r} that can be used ({why}); ask another one.")
    head = f"# Proposed by {answer.model or 'a language model'}. Read and correct it before use.\n"
    bank = {"objects": {object_name: [asdict(entry) for entry in found]}}
    write_atomic(Path(path).expanduser(), head + yaml.safe_dump(bank, sort_keys=False, width=120, allow_unicode=True))
    return tuple(found)


def with_article(name: str) -> str:
    """hazelnut -> a hazelnut, eyelet -> an eyelet."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


@dataclass(frozen=True, eq=False)
class AnomalyRequest:
    """One picture and the words for what is to be painted into it.

    image: (H, W, 3) uint8, normal. prompt: a short sentence that holds anomaly_phrase; normal_prompt: the same of a good
    object; detailed_prompt: a rich description of the defect. mask: (H, W) bool, where it may be; None is anywhere.
    strength: gamma in [0, 1), the share of the steps that is run; 0.2 to 0.5 is sensible. anomaly: name of the kind, for
    folders. occurrence: which one, where the phrase stands in the prompt more than once. positions: of the words, start
    token 0, instead of looking for the phrase.

    Raises:
        WrongInput: picture, mask or strength are not as above.
    """

    image: np.ndarray
    object_name: str
    prompt: str
    anomaly_phrase: str
    normal_prompt: str
    detailed_prompt: str
    mask: np.ndarray | None = None
    strength: float = 0.3
    seed: int = 0
    anomaly: str = ""
    source_id: str = ""
    occurrence: int = -1
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.image, np.ndarray) or not isinstance(self.mask, np.ndarray | None):
            kinds = " and ".join(type(array).__name__ for array in (self.image, self.mask))
            raise WrongInput(f"CUT needs picture and mask as NumPy arrays, the mask may be None; got {kinds}.")
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise WrongInput(f"CUT needs a picture (H, W, 3) uint8; got {self.image.shape} {self.image.dtype}.")
        if self.mask is not None and (self.mask.shape != self.image.shape[:2] or self.mask.dtype != bool):
            raise WrongInput(
                f"CUT needs a mask of the picture's size {self.image.shape[:2]}, bool; got {self.mask.shape} "
                f"{self.mask.dtype}."
            )
        if not 0 <= self.strength < 1:
            raise WrongInput(f"CUT strength is in [0, 1), and 0.2 to 0.5 is sensible; got {self.strength:g}.")

    @classmethod
    def of(cls, image: np.ndarray, object_name: str, anomaly: str | Anomaly, **others: Any) -> AnomalyRequest:
        """With the sentences of a defect of the prompt bank, or of "a photo of OBJECT with ANOMALY on it" for other words."""
        if isinstance(anomaly, str):
            known = {entry.name: entry for entry in prompts(object_name)}
            anomaly = known.get(anomaly) or Anomaly.of(anomaly)
        thing = with_article(object_name)
        prompt = anomaly.prompt.replace("{object}", thing)
        return cls(
            image, object_name, prompt, anomaly.phrase, f"a photo of {thing}",
            anomaly.detailed.replace("{object}", thing) or prompt, anomaly=anomaly.name, **others,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class GeneratedAnomaly:
    """What came of a request, in the square of R pixels that the network painted.

    image, source: (R, R, 3) uint8, with and without the defect. pseudo_mask: (R, R) float32 in [0, 1], soft. mask: (R, R)
    uint8, 1 anomalous, 255 ignored. attention: (s, s) float32, how much each place looked at the words. scores: clip_gain
    (None without CLIP), changed_frac, outside_ssim. accepted: the filter has no objections.
    """

    image: np.ndarray
    source: np.ndarray
    pseudo_mask: np.ndarray
    mask: np.ndarray
    attention: np.ndarray
    source_id: str
    request: AnomalyRequest
    scores: Mapping[str, float | None]
    objections: tuple[str, ...]
    square: Square

    @property
    def accepted(self) -> bool:
        return not self.objections

    def placed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picture (H, W, 3), soft mask (H, W) and mask (H, W) in the size of the picture that was given."""
        under = np.zeros(self.request.image.shape[:2], np.uint8)
        return (
            self.square.back(self.image, self.request.image),
            self.square.back(self.pseudo_mask, under.astype(np.float32)),
            self.square.back(self.mask, under),
        )


def concluded(
    request: AnomalyRequest,
    square: Square,
    source: np.ndarray,
    made: np.ndarray,
    attention: np.ndarray,
    gain: float | None,
) -> GeneratedAnomaly:
    """Pseudo mask, scores and verdict of a painted square."""
    allowed = square.valid if request.mask is None else square.put(request.mask)
    found = pseudo_mask(attention, made, source, allowed)
    scores = quality(made, source, found.mask, gain)
    return GeneratedAnomaly(
        made, source, found.soft, found.mask, attention, request.source_id, request, scores, objections(scores), square
    )
