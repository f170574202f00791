"""LogiCode: rules that a person wrote, checked in every picture by a program.

Zhang, Cao, Xu, Shen 2024, "LogiCode: an LLM-Driven Framework for Logical Anomaly Detection",
https://arxiv.org/abs/2406.04687

Three steps, as in the paper: a parser finds the parts of a picture; a program, made once from the rules, checks them; what
it finds is told in words, with the place. Typed rules become a program offline. For rules in free words a language model
writes it (`reasoning.logicode`); it sees the numbers of normal pictures and never a picture. No picture is judged by a
model, and programs run in the sandbox only.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..backbones._onnx import cache_folder
from ..detector import Detector
from ..errors import AnomalensError, NotFitted, WrongInput
from ..parts.batches import ahead
from ..reasoning import parsers, rule_sets, static_check
from ..reasoning import rules as rule_files
from ..reasoning.endpoint import Asks, Model
from ..reasoning.logicode import Program, for_program, from_rules, load_program, write
from ..reasoning.rules import RuleSet
from ..reasoning.sandbox import Executor, Finding, LoadedProgram, Outcome, run_all, sandbox
from ..reasoning.scene import Parsed, Stats, statistics
from ..types import Card, Prediction, Reason, Sample, Verdict, View

if TYPE_CHECKING:
    from typing_extensions import Self

CARD = Card(
    title="LogiCode",
    paper="https://arxiv.org/abs/2406.04687",
    year=2024,
    venue="IEEE T-ASE 2024",
    summary="Checks written rules (counts, sizes, places, pairings) by a program and says which one is broken, and where.",
    repo="",
    code_licence="no-code",
    fidelity="reading",
    family="program",
    settings=("zero-shot", "few-shot"),
    scope="single",
    normals=(0, 20),
    abnormals="none",
    auxiliary=(),
    text="rules",
    transductive=False,
    needs=("image",),
    gives=("score", "boxes", "text", "program"),
    levels=("semantic",),
    focus="object",
    backbone="none: a parser of yours or ours",
    trains="statistics",
    fit_cost="F2",
    predict_cost="P2",
    gpu="no",
    stored_mb=1.0,
    extras=(),
    weights=(),
    pose="free",
    external=(),
    determinism="exact",
    differs="the paper's code, prompts and vision interface are not public: the program's interface, the prompt, the repair "
    "loop, the parsers and the sandbox are ours. Rules may be typed, and then no language model is needed (paper: always "
    "one). The program sees numbers of the parts, measured outside of it (paper: it calls vision models by itself). The "
    "score is the highest severity of what was found; the map marks the parts and boxes that were named, narrow places "
    "more than wide ones. With "
    "program='model' the answers of a model decide once, while fitting; judging is exact in any case",
    pitfalls=(
        "verdicts are as good as the parser: look at what it finds before you trust the rules",
        "it finds what breaks a rule and nothing else: no scratch, no stain, unless a rule speaks of it",
        "every picture that keeps the rules has the score 0, so there is nothing to rank among them",
        "a picture that cannot be judged counts as anomalous (on_error), so that nothing wrong slips through",
        "rules in free words need `pip install 'anomalens[llm]'` and a server of yours while fitting",
    ),
)

OnError = Literal["anomalous", "review", "normal", "raise"]


@dataclass
class LogiCode(Detector):
    """Checks rules by a program that runs in the sandbox.

    rules: a file (.yaml, .json), the name of a ready set (`reasoning.rule_sets`), the text of a file, or a RuleSet.
    parser: what finds the parts: parts, color-blobs, annotations or segments, or a parser of your own. parser_settings: its
        settings. The parser `parts` calls its kinds by the labels of the rules, the largest first, unless told otherwise.
    program: "" makes it from typed rules; "model" has a language model write it, from the good pictures; or a file (.py),
        or its text.
    base_url, model, key_env: the server for program="model", what it calls the model, and the environment variable with
        the key. In Python `model` may be anything with `.ask`, see `reasoning.endpoint.Asks`. timeout: seconds for an
        answer. max_tokens: of an answer. candidates, repairs: conversations, and corrections in each.
    cache: folder of answers and accepted programs, so that nothing is asked twice; "auto" is in $ANOMALENS_CACHE, "" none.
    k: a rule that is learnt allows so many standard deviations, unless it says its own k.
    on_error: what becomes of a picture that the parser or the program fails on. anomalous: score 1 and the verdict reject,
        the safe choice on a production line; review: no score, a person has to look; normal: score 0; raise.
        In each case the reason says what failed.
    isolation: of the sandbox, see `reasoning.sandbox.sandbox`. Where no level works, and you trust the program as your own
        code, set `detector.allow_unsafe_execution = True`; it is no setting, so that no saved folder can ask for it.
    workers: pictures at once, each in a thread and a process of its own.
    seed: of the model's answers.
    """

    rules: str | RuleSet = ""
    parser: str | parsers.Parser = "parts"
    parser_settings: dict[str, Any] = field(default_factory=dict)
    program: str = ""
    base_url: str = ""
    model: Any = ""
    key_env: str = ""
    cache: str = "auto"
    timeout: float = 60.0
    max_tokens: int = 2048
    candidates: int = 1
    repairs: int = 3
    k: float = 3.0
    on_error: OnError = "anomalous"
    isolation: str = "auto"
    workers: int = 1
    seed: int = 0

    learned: ClassVar[tuple[str, ...]] = ("kept",)
    allow_unsafe_execution = False  # without a type, so that it is no field and is not saved

    def __post_init__(self) -> None:
        """Rules and program are read now and kept as text, so that a saved detector needs no other file.

        Raises:
            Unreadable, WrongInput: a file is not there, or holds no rules or no program; rules contradict each other.
        """
        least = {"workers": 1, "candidates": 1, "repairs": 0, "max_tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise WrongInput(f"LogiCode {name}={getattr(self, name)} is too low; at least {low} is needed.")
        self._kept: dict[str, Any] | None = None
        self._own: parsers.Parser | None = None
        if not isinstance(self.parser, str):
            self._own = self.parser
            state = parsers.to_state(self._own)
            self.parser, self.parser_settings = state["parser"], state["settings"]
        ruleset = read_rules(self.rules)
        wrong = rule_files.problems(ruleset)
        if wrong:
            raise WrongInput(wrong[0])
        self.rules = rule_files.to_json(ruleset) if ruleset.rules or ruleset.regions else ""
        self.ruleset = with_k(ruleset, self.k)
        self.given = read_program(self.program) if self.program not in ("", "model") else None
        if self.given is not None:
            self.program = json.dumps(described(self.given))
        self._new_parser()  # refuses wrong settings now

    # --- what is needed before it can judge ---------------------------------------------------------------------------

    @property
    def kept(self) -> dict[str, Any] | None:
        """What fit has learnt: program, parser, statistics; None before. A program that was tampered with is refused."""
        return self._kept

    @kept.setter
    def kept(self, value: dict[str, Any] | None) -> None:
        if value is not None:
            checked(value["program"]["source"], value["program"]["ast_hash"])
        self._kept = value

    @property
    def needs_fit(self) -> bool:
        return bool(self._why_fit())

    @property
    def learns(self) -> bool:
        return True  # where parts usually lie is told with what is missing

    @property
    def fitted(self) -> bool:
        return self.kept is not None or not self.needs_fit

    @property
    def trains_by_gradient(self) -> bool:
        """A model is asked once: calibration keeps pictures aside instead of fitting again and again."""
        return self.program == "model"

    def require_fit(self) -> None:
        if not self.fitted:
            raise NotFitted(
                f"LogiCode needs good pictures first, because {self._why_fit()}: call fit(samples) with normal samples, "
                "give --good GOOD, or load a saved folder."
            )

    def _why_fit(self) -> str:
        """What only normal pictures can tell, in words; "" where nothing."""
        learnt = [rule.id for rule in self.ruleset.rules if rule.params.get("learnt")]
        if self.program == "model":
            return "the program is tried on them"
        if self.given is None and learnt:
            return f"{', '.join(learnt)} goes by what is usual"
        if self.given is not None and asks_what_is_usual(self.given.source):
            return "the program asks what is usual"
        if self._new_parser().learned:
            return f"the parser {self.parser} learns from them"
        return ""

    def settings(self) -> dict[str, Any]:
        """The dataclass fields; a model given as an object is not a setting that could be saved or shown."""
        return {**super().settings(), "model": self.model if isinstance(self.model, str) else ""}

    def unfitted(self) -> Self:
        copy = super().unfitted()
        copy.model, copy._own = self.model, self._own
        copy.allow_unsafe_execution = self.allow_unsafe_execution
        return copy

    # --- once: the parser, what is usual, the program -----------------------------------------------------------------

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Let the parser learn, learn what is usual, make the program and try it on the normal pictures.

        Normal pictures that the parser cannot read are left out; `state` counts them.

        Raises:
            WrongInput: no normal picture, a label that the parser does not know, rules in words without a model, or a
                program that fails on a normal picture. ProgramGenerationError: no answer of the model was accepted.
            SandboxUnavailable: this computer cannot hold programs apart.
        """
        self._require_rules()
        if self.program == "model":
            self.asker()  # refuses what is missing before any picture is read
        executor = self._executor()
        if iter(samples) is samples:
            samples = list(samples)
        parser = self._new_parser().fit(samples)
        read = list(ahead(partial(_scene_of, parser), samples, 2 * self.workers, self.workers))
        scenes = [found for found in read if not isinstance(found, AnomalensError)]
        if not scenes:
            raise WrongInput(
                f"LogiCode learns what is usual from normal pictures and could read none of {len(read)}"
                + (f" (first: {read[0]})" if read else "")
                + "; give at least one, better twenty."
            )
        stats = statistics(scenes)
        program = self._program(parser, scenes, executor)
        broken: Counter[str] = Counter()
        ready = [for_program(scene, self.ruleset, stats) for scene in scenes]
        outcomes = run_all(executor, program.source, ready, self.workers)
        for scene, outcome in zip(scenes, outcomes, strict=True):
            if outcome.status != "ok":
                what = "rules" if self.given is None else "program"
                raise WrongInput(
                    f"the program {in_words(outcome)} on the good picture {scene.image_id}; correct the {what}."
                )
            broken.update({finding.rule or finding.type for finding in outcome.findings} or {""})
        self.kept = {
            "program": described(program), "parser": parsers.to_state(parser), "stats": stats, "good": len(scenes),
            "unread": len(read) - len(scenes), "kept_all": broken.pop("", 0), "broken": dict(broken),
        }  # fmt: skip
        return self

    def _require_rules(self) -> None:
        if not self.ruleset.rules and self.given is None:
            raise WrongInput("LogiCode has no rules to check; give a file: rules=FILE.yaml (see docs/rules.md).")

    def _program(self, parser: parsers.Parser, scenes: list[Any], executor: Executor) -> Program:
        labels = parser.labels or None
        if self.given is not None:
            return self.given
        if self.program == "model":
            return write(
                self.ruleset, scenes, self.asker(), executor, labels=labels, candidates=self.candidates,
                repairs=self.repairs, seed=self.seed, cache=self._cache("programs"),
            )  # fmt: skip
        for rule in self.ruleset.rules:
            if not rule.form:
                raise WrongInput(
                    f"rule {rule.id} ({rule.text[:60]!r}) is words only: let a language model write the program "
                    f"(program=model, base_url=..., model=...), or give it a form: {', '.join(rule_files.FORMS)}."
                )
        return from_rules(self.ruleset, labels)

    def asker(self, dry_run: bool = False) -> Asks:
        """The model that writes the program. dry_run: one that counts what would be sent, and sends nothing."""
        if not isinstance(self.model, str):
            if not callable(getattr(self.model, "ask", None)):
                raise WrongInput(
                    f"model is a {type(self.model).__name__}; give the name of a model with base_url, or an object with a "
                    "method ask, such as reasoning.endpoint.Callable_(function)."
                )
            asker: Asks = self.model
            return asker
        return Model(
            self.base_url, self.model, key_env=self.key_env or None, timeout=self.timeout, max_tokens=self.max_tokens,
            cache=self._cache("answers"), dry_run=dry_run,
        )  # fmt: skip

    def _cache(self, what: str) -> Path | None:
        base = cache_folder() if self.cache == "auto" else Path(self.cache) if self.cache else None
        return base / what if base else None

    def _executor(self) -> Executor:
        return sandbox(self.isolation, self.allow_unsafe_execution)

    def _new_parser(self) -> parsers.Parser:
        """The parser that was asked for, without what it may have learnt."""
        if self._own is not None:
            return dataclasses.replace(self._own)  # type: ignore[type-var]
        assert isinstance(self.parser, str)
        settings = dict(self.parser_settings)
        names = [label for label in self.ruleset.labels if label != "unknown"]
        if self.parser == "parts" and names and not {"names", "kinds"} & settings.keys():
            settings["names"] = names
        return parsers.create(self.parser, **settings)

    def _known_parser(self) -> parsers.Parser:
        """The parser as fit has left it; functions, which are not saved, are those given now."""
        if self.kept is None:
            return self._new_parser()
        own = {} if self._own is None else vars(self._own)
        return parsers.from_state(self.kept["parser"], **{k: v for k, v in own.items() if callable(v)})

    # --- for every picture: parse, check, tell ------------------------------------------------------------------------

    def predict(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """One prediction for each sample: score, verdict, a reason for each broken rule, and a map of what they name.

        A broken rule is the verdict "reject" already without calibration.
        """
        self._require_rules()
        self.require_fit()
        executor, parser = self._executor(), self._known_parser()
        source = self.kept["program"]["source"] if self.kept else self._program(parser, [], executor).source
        stats: Stats = self.kept["stats"] if self.kept else {}
        with ExitStack() as stack:
            idle: SimpleQueue[LoadedProgram] = SimpleQueue()
            for _ in range(self.workers):
                idle.put(stack.enter_context(executor.load(source)))

            def judge(sample: Sample) -> Prediction:
                picture = _read(sample)
                size = picture.image().shape[:2]
                try:
                    parsed = parser.parse(picture)
                    scene = for_program(parsed, self.ruleset, stats)
                except AnomalensError as error:
                    return self._unjudged(sample.id, size, str(error))
                program = idle.get()
                try:
                    outcome = program.run(scene)
                finally:
                    idle.put(program)
                if outcome.status != "ok":
                    return self._unjudged(sample.id, size, f"the program {in_words(outcome)}")
                return told(sample.id, parsed, outcome.findings)

            yield from ahead(judge, samples, 2 * self.workers, self.workers)

    def _unjudged(self, id: str, size: tuple[int, ...], why: str) -> Prediction:
        """A picture that the parser or the program failed on: kept, with the reason."""
        if self.on_error == "raise":
            raise WrongInput(f"{id} could not be judged: {why} (on_error='anomalous' would go on).")
        scores: dict[str, tuple[float, Verdict]] = {
            "anomalous": (1.0, "reject"), "normal": (0.0, "pass"), "review": (math.nan, "review"),
        }  # fmt: skip
        score, verdict = scores[self.on_error]
        reasons = (Reason(f"Could not be judged: {why}"),)
        return Prediction(id, score, np.zeros(size, np.float32), reasons=reasons, verdict=verdict)

    def state(self) -> str:
        if self.kept is None:
            return ""
        count, good, by = len(self.ruleset.rules), self.kept["good"], self.kept["program"]["model"]
        rules = f"{count} rule{'s' * (count != 1)}" if count else "the rules of the program given"
        broken = good - self.kept["kept_all"]
        words = f"LogiCode checks {rules}{f' by a program that {by} wrote' * bool(by)}; of {good} good pictures "
        words += f"{broken} break" + ("s" * (broken == 1)) + " one" if broken else "all keep them"
        if self.kept["broken"]:
            words += f" ({', '.join(f'{rule}: {n}' for rule, n in sorted(self.kept['broken'].items()))})"
        if self.kept["unread"]:
            words += f"; {self.kept['unread']} more could not be read by the parser"
        return " ".join([words + ".", *self.doubts()])

    def unfit(self) -> list[str]:
        """Rules that most good pictures break."""
        kept = self.kept or {"broken": {}, "good": 0}
        return [rule for rule, n in sorted(kept["broken"].items()) if 2 * n > kept["good"]]

    def doubts(self) -> list[str]:
        """Why the verdicts of these rules may be worth little, a sentence each."""
        found = []
        if unfit := self.unfit():
            found.append(
                f"Most good pictures break {_listed(unfit)}, so that breaking {'them' if unfit[1:] else 'it'} rejects "
                "nothing: look at what the parser finds, and correct the rules or choose another parser."
            )
        if self.kept is not None:
            silent = unnamed(self.kept["program"]["source"], self.ruleset)
            if silent:
                found.append(f"The program never names {_listed(silent)}: look whether it checks that.")
        if self.ruleset.unreviewed:
            found.append("The rules were drafted by a model and are unreviewed.")
        return found


# --- rules and programs, as they may be given ----------------------------------------------------------------------------


def read_rules(given: str | RuleSet) -> RuleSet:
    """Rules from a file, a ready set, a text, or as they are."""
    if isinstance(given, RuleSet):
        return given
    if not given:
        return RuleSet()
    if given.lstrip().startswith("{"):
        return rule_files.parse(given, "JSON")
    if "\n" in given:
        return rule_files.parse(given, "YAML")
    if given in rule_sets.names() and not Path(given).exists():
        return rule_sets.load(given)
    return rule_files.load(given)


def with_k(ruleset: RuleSet, k: float) -> RuleSet:
    """The rules, those that are learnt with k where they do not say their own."""
    rules = tuple(
        replace(rule, params={**rule.params, "k": rule.params.get("k", k)}) if rule.params.get("learnt") else rule
        for rule in ruleset.rules
    )
    return replace(ruleset, rules=rules)


def read_program(given: str) -> Program:
    """A program from a file, its text, or what `described` made of one."""
    if given.startswith("{"):
        try:
            content = json.loads(given)
            program = Program(**content)
        except (ValueError, TypeError) as error:
            raise WrongInput(f"this is no program ({error}); give a .py file.") from None
        checked(program.source, program.ast_hash)
        return program
    if "\n" in given:
        checked(given)
        return Program(given, static_check.ast_hash(given), edited=True)
    return load_program(given)


def described(program: Program) -> dict[str, Any]:
    """A program and where it comes from, in plain values, without the answers that were refused."""
    return {key: value for key, value in asdict(program).items() if key != "reports"}


def checked(source: str, ast_hash: str | None = None) -> None:
    """Refuse a program that breaks the contract, or that is not the one that was saved."""
    wrong = static_check.check(source)
    if wrong:
        raise WrongInput(f"the program may not be run: {wrong[0]}.")
    if ast_hash is not None and static_check.ast_hash(source) != ast_hash:
        raise WrongInput(
            "the program of this detector is not the one that was saved; fit again, or give the changed one as "
            "program=FILE.py."
        )


def asks_what_is_usual(source: str) -> bool:
    """Whether a program needs statistics. Where something usually lies is asked by ours, who can do without."""
    functions = [node for node in ast.parse(source).body if getattr(node, "name", "") != "usual_box"]
    return any(isinstance(n, ast.Attribute) and n.attr == "stat" for node in functions for n in ast.walk(node))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]


def unnamed(source: str, ruleset: RuleSet) -> list[str]:
    """Rules whose id a program never writes: a model may have left them out, or have checked nothing at all."""
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return [rule.id for rule in ruleset.rules if rule.id not in texts]


# --- what was found ------------------------------------------------------------------------------------------------------


def _read(sample: Sample) -> Sample:
    """The sample with its picture decoded once; a missing or damaged picture raises, as with any method."""
    pixels = sample.image()
    return replace(sample, views={"image": View("image", partial(_given, pixels), sample.views["image"].path)})


def _given(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _scene_of(parser: parsers.Parser, sample: Sample) -> Any:
    """The scene of a normal picture, or why there is none."""
    picture = _read(sample)
    try:
        return parser.parse(picture).scene
    except AnomalensError as error:
        return error


def told(id: str, parsed: Parsed, findings: tuple[Finding, ...]) -> Prediction:
    """Findings as a prediction: each a reason with the box around all it names, and a map of these places.

    The value of a place is the severity, times the share of the picture outside of it: one nut too many is a finding
    about all of them, and the rule that names a single cell should stand out against it.
    """
    size = parsed.scene.height, parsed.scene.width
    values = np.zeros(size, np.float32)
    number_of = {thing.id: i for i, thing in enumerate(parsed.scene.objects)}
    reasons = []
    for finding in findings:
        boxes, place = [], np.zeros(size, bool)
        for number in map(number_of.__getitem__, finding.objects):
            boxes.append(parsed.scene.objects[number].bbox)
            place |= parsed.masks[number]
        for given in finding.boxes:
            x0, y0, x1, y1 = box = whole_pixels(given, *reversed(size))
            boxes.append(box)
            place[y0:y1, x0:x1] = True
        values[place] = np.maximum(values[place], finding.severity * (1 - place.mean()))
        around = None
        if boxes:
            left, top, right, bottom = zip(*boxes, strict=True)
            around = (min(left), min(top), max(right), max(bottom))
        reasons.append(Reason(finding.reason, finding.rule or finding.type, around))
    score = max((finding.severity for finding in findings), default=0.0)
    return Prediction(id, score, values, reasons=tuple(reasons), verdict="reject" if findings else "pass")


def whole_pixels(box: Iterable[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels a box touches, at least one, within the picture."""
    x0, y0, x1, y1 = box
    left, top = min(max(math.floor(x0), 0), width - 1), min(max(math.floor(y0), 0), height - 1)
    return left, top, min(max(math.ceil(x1), left + 1), width), min(max(math.ceil(y1), top + 1), height)


def in_words(outcome: Outcome) -> str:
    """Why a program gave no result."""
    words = {"error": "failed", "timeout": "did not end in time", "killed": "was stopped",
             "invalid_output": "gave no valid result"}  # fmt: skip
    place = f" in line {outcome.line}" if outcome.line else ""
    return f"{words[outcome.status]}{place} ({outcome.error})"


DETECTOR = LogiCode
