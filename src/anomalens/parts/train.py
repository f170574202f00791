"""Training by function: `train(loss, parameters, batches, recipe)`. No trainer, no hooks, no engine that calls back.

A method says what its loss is, which tensors it moves and where its batches come from; the loop, the learning rate,
precision, checkpoints, several processes and the guard against NaN are here. docs/training.md shows it in use.

Random numbers: before every batch torch's generator is seeded by (seed, number of the batch, rank), and put back
afterwards, so a step depends on its number alone and a resumed training equals an uninterrupted one, on the CPU bit for
bit (with the same number of threads). Deterministic algorithms are not forced: that is a switch of the whole process,
and some operations have none on a GPU, where repeated runs differ in the last digits.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import CannotWrite, Diverged, WrongInput, unknown
from . import _checkpoint
from ._epochs import Shuffled, Stream
from ._ranks import average, from_first, join, number_from_first, rank, share, world
from ._recipe import Group, Recipe, length
from ._tensors import Tensors, load_parameters, need_torch, parameters_of
from .threads import cores

__all__ = [
    "Group", "Recipe", "Report", "Shuffled", "Trained", "load_parameters", "parameters_of", "rank", "seeded", "share",
    "train", "training_device", "watching", "world",
]  # fmt: skip

LOG = logging.getLogger("anomalens")
RECENT = 50  # steps that the reported loss is the mean of
ENOUGH_TO_GUESS = 3  # steps after which the time left is told,
LONG_TO_WAIT = 2.0  # or seconds, where steps are slow: from the second on, as the first takes up to twice as long
MOST_SKIPPED = 50  # skipped steps in a row after which on_nan="skip" gives up
FIRST_SCALE, LEAST_SCALE = 2.0**16, 2.0**-14  # of the loss in fp16; below the least, the gradient itself is not finite
GROWTH = 2000  # good steps after which the scale doubles
# of a run, what a checkpoint holds beside tensors, the place in the data and lists
COUNTED = (
    "step", "seconds", "scale", "good_steps", "skipped", "skipped_in_a_row", "best_step", "stopped_early", "done",
)  # fmt: skip


class Report(Protocol):
    """Told at the start and after every step: figures are loss (mean of the last steps), rate (steps per second), left
    (seconds, once it can be guessed: after three steps, two where they are slow) and what the loss names. A training that
    ends early says total = step at last."""

    def __call__(self, step: int, total: int, figures: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Trained:
    """What happened. loss: mean of the last steps. scores: (step, score) of each validation. skipped: steps with NaN."""

    steps: int
    loss: float
    seconds: float
    skipped: int = 0
    scores: tuple[tuple[int, float], ...] = ()
    best_step: int | None = None
    stopped_early: bool = False


def train(
    loss: Callable[[Any], Any],
    parameters: Any,
    batches: Callable[[int], Iterable[Any]],
    recipe: Recipe,
    *,
    validate: Callable[[], float] | None = None,
    batches_per_epoch: int | None = None,
    folder: str | Path | None = None,
    data: str = "",
    report: Report | None = None,
) -> Trained:
    """Move tensors, in place, so that the loss falls.

    Args:
        loss: batch -> mean loss of it, a scalar tensor, or (tensor, {name: number to show}).
        parameters: a module, name -> tensor, tensors, or a list of `Group`. Modules are in train mode meanwhile, in
            eval mode for `validate` and ever after, and their buffers belong to the checkpoint; a frozen network must
            not be inside. Parameters that require no gradient are left alone.
        batches: epoch (from 0) -> its batches, the same ones for the same epoch; `Shuffled` is the usual one.
        validate: a score, higher is better, measured on normal pictures held out and drawn anomalies, never on a test
            set. Called without gradients.
        batches_per_epoch: where neither len(batches) nor len(batches(0)) says it.
        folder: where checkpoints lie; what lies there is continued. None: the folder of `watching`, if any.
        data: what the batches are made of; a checkpoint of other data is refused.
        report: who is told of every step. None: that of `watching`, otherwise nobody.

    Raises:
        WrongInput: settings that do not fit, an empty epoch, a checkpoint of another training.
        Diverged: loss or gradient were not finite; the trained tensors are as before that step, the last checkpoint is kept.
        MissingExtra: torch is not installed.

    A disk that refuses a checkpoint is a warning in the log, once; training goes on and tries again the next time. With a
    folder, Ctrl-C waits for the end of the step and is checkpointed; a second one does not wait.
    """
    torch = need_torch()
    around = _AROUND.get() or _Around()
    run = _Run(
        loss, Tensors.of(parameters), batches, recipe, validate, batches_per_epoch,
        Path(folder) if folder is not None else around.next_folder(), data, report or around.report or _quiet,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, cores()))
    try:
        with _own_random_numbers(run.device), torch.enable_grad(), _held_back(run.folder is not None) as stop:
            return run.all_steps(stop)
    finally:
        run.tensors.mode(training=False)
        torch.set_num_threads(threads)


# --- the loop ---------------------------------------------------------------------------------------------------------


class _Run:
    """One call of `train`."""

    def __init__(
        self, loss: Any, tensors: Tensors, batches: Any, recipe: Recipe, validate: Any, batches_per_epoch: int | None,
        folder: Path | None, data: str, report: Report,
    ):  # fmt: skip
        import torch

        self.torch, self.loss, self.tensors, self.recipe, self.validate = torch, loss, tensors, recipe, validate
        self.device = next(iter(tensors.trained.values())).device
        if validate is None and (recipe.keep == "best" or recipe.patience is not None):
            raise WrongInput(
                "the recipe keeps the best or has patience, which needs validate=; give it, or keep='last'."
            )
        join(self.device)
        self.total, self.per_epoch = length(recipe, batches, batches_per_epoch)
        self.folder, self.data = folder, data
        self.report = report if rank() == 0 else _quiet

        self.values = list(tensors.trained.values())
        self.optimiser = self._make_optimiser()
        self.ema = {k: t.detach().clone() for k, t in tensors.trained.items()} if recipe.ema is not None else {}
        self.best: dict[str, Any] = {}
        self.scale, self.good_steps = (FIRST_SCALE if recipe.precision == "fp16" else 1.0), 0
        self.step, self.skipped, self.skipped_in_a_row, self.seconds = 0, 0, 0, 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.extra: dict[str, float] = {}
        self.scores: list[tuple[int, float]] = []
        self.best_step: int | None = None
        self.stopped_early = self.done = self.warned = False
        self.stream = Stream(batches)

    def _make_optimiser(self) -> Any:
        recipe, optim = self.recipe, self.torch.optim
        groups = [
            {
                "params": [self.tensors.trained[n] for n in names],
                "weight_decay": recipe.weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group, names in self.tensors.groups
        ]
        if recipe.optimiser == "sgd":
            return optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
        return (optim.AdamW if recipe.optimiser == "adamw" else optim.Adam)(groups, lr=recipe.lr, betas=recipe.betas)

    def all_steps(self, stop: threading.Event) -> Trained:
        recipe = self.recipe
        from_first(self.tensors.everything().values())
        self._resume()
        began, before, first = time.monotonic(), self.seconds, self.step
        saved = after_first = began
        self.report(self.step, self.total, {})
        self.tensors.mode(training=True)
        try:
            while not self.done and not stop.is_set():
                epoch = self.stream.epoch
                self._one_step()
                self.step += 1
                ended = self.stream.epoch > epoch
                last = self.step == self.total
                due = ended if recipe.validate_every is None else self.step % recipe.validate_every == 0
                if self.validate and (due or last):
                    self._validated()
                self.done = last or self.stopped_early
                now = time.monotonic()
                self.seconds = before + now - began
                made = self.step - first
                if made == 1:  # memory and threads are prepared in it: the rate is soon that of the others alone
                    after_first, rate = now, 1 / max(now - began, 1e-9)
                else:
                    rate = (made - 1) / max(now - after_first, 1e-9)
                figures = {"loss": self._mean_loss(), "rate": rate, **self.extra}
                if made >= ENOUGH_TO_GUESS or (made > 1 and now - began >= LONG_TO_WAIT):
                    figures["left"] = (self.total - self.step) / rate
                self.report(self.step, self.step if self.done else self.total, figures)
                long_ago = now - saved >= 60 * recipe.checkpoint_minutes
                if not self.done and (long_ago or (ended and recipe.checkpoint_epochs)):
                    self._save()
                    saved = time.monotonic()
        finally:
            self.stream.close()
        if not self.done:
            self._save()
        elif first < self.step:  # not a training that was complete already
            self._conclude()
        if stop.is_set():
            raise KeyboardInterrupt
        return Trained(
            self.step, self._mean_loss(), self.seconds, self.skipped, tuple(self.scores), self.best_step, self.stopped_early
        )  # fmt: skip

    def _one_step(self) -> None:
        """`accumulate` batches, one move of the tensors. A step whose loss or gradient is not finite moves nothing."""
        torch, recipe = self.torch, self.recipe
        for group, (settings, _) in zip(self.optimiser.param_groups, self.tensors.groups, strict=True):
            group["lr"] = recipe.rate(self.step, self.total, self.per_epoch, settings)
        safe = {k: b.clone() for k, b in self.tensors.buffers.items()} if recipe.on_nan == "skip" else {}
        total = torch.zeros((), device=self.device)
        for _ in range(recipe.accumulate):
            batch = self.stream.take()
            _seed(self.device, (recipe.seed, self.stream.taken, rank()))
            with self._autocast():
                out = self.loss(batch)
            value, self.extra = out if isinstance(out, tuple) else (out, {})
            (value * (self.scale / recipe.accumulate)).backward()
            total = total + value.detach() / recipe.accumulate
        mean = float(average(self.values, total))
        norm = self._gradient_norm() if math.isfinite(mean) else math.nan
        if math.isfinite(norm):
            self.optimiser.step()
            self.skipped_in_a_row = 0
            self.recent.append(mean)
            for name, kept in self.ema.items():
                kept.lerp_(self.tensors.trained[name].detach(), 1 - recipe.ema)  # type: ignore[operator]
        self.optimiser.zero_grad(set_to_none=True)
        if recipe.precision == "fp16" and math.isfinite(mean):
            self._adjust_scale(math.isfinite(norm))
        elif not math.isfinite(norm):
            self.tensors.put(safe)
            self._not_finite(mean)

    def _autocast(self) -> Any:
        if self.recipe.precision == "float32":
            return nullcontext()
        kind = self.torch.bfloat16 if self.recipe.precision == "bf16" else self.torch.float16
        return self.torch.autocast(self.device.type, dtype=kind)

    def _gradient_norm(self) -> float:
        """Norm of the whole gradient, which is then clipped."""
        with_gradient = [t for t in self.values if t.grad is not None]
        if self.scale != 1:
            for tensor in with_gradient:
                tensor.grad /= self.scale
        return float(self.torch.nn.utils.clip_grad_norm_(with_gradient, self.recipe.clip or math.inf))

    def _adjust_scale(self, good: bool) -> None:
        """fp16: halve the scale when the gradient overflowed, double it after a long time without."""
        self.good_steps = self.good_steps + 1 if good else 0
        if not good:
            self.scale /= 2
            if self.scale < LEAST_SCALE:
                self._stop("the gradient")
        elif self.good_steps % GROWTH == 0:
            self.scale *= 2

    def _not_finite(self, mean: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.recipe.on_nan == "stop" or self.skipped_in_a_row >= MOST_SKIPPED:
            self._stop("the gradient" if math.isfinite(mean) else f"the loss, {mean},")

    def _stop(self, what: str) -> None:
        last = f"last finite loss {self.recent[-1]:.4g}" if self.recent else "no loss was finite before"
        again = f" In a row: {self.skipped_in_a_row}." if self.skipped_in_a_row > 1 else ""
        written = self.folder and (self.folder / _checkpoint.NAME).exists()
        kept = f" The checkpoint in {self.folder} is kept." if written else ""
        advice = ["clip=1.0"] if self.recipe.clip is None else []
        advice += ["precision='float32'"] if self.recipe.precision != "float32" else []
        advice += ["on_nan='skip'"] if self.recipe.on_nan == "stop" else []
        also = f", or in the recipe {' or '.join(advice)}" if advice else ""
        raise Diverged(
            f"training stopped at step {self.step + 1} of {self.total}, where {what} was not finite ({last}); "
            f"try a lower lr than {self.recipe.lr:g}{also}.{again}{kept}"
        )

    def _validated(self) -> None:
        """Score the tensors, remember the best ones, and see whether patience is over."""
        self.tensors.mode(training=False)
        _seed(self.device, (self.recipe.seed, 0, 0))
        moving = {k: self.tensors.trained[k].detach().clone() for k in self.ema}
        self.tensors.put(self.ema)
        with self.torch.no_grad():
            assert self.validate is not None
            score = number_from_first(float(self.validate()), self.device)
        if not math.isfinite(score):
            raise WrongInput(
                f"validate must return a finite number, higher is better; got {score} after step {self.step}."
            )
        if self.best_step is None or score > dict(self.scores)[self.best_step]:
            self.best_step = self.step
            if self.recipe.keep == "best":
                self.best = self.tensors.copy()
        self.scores.append((self.step, score))
        self.tensors.put(moving)
        self.tensors.mode(training=True)
        since = sum(step > self.best_step for step, _ in self.scores)
        self.stopped_early = self.recipe.patience is not None and since >= self.recipe.patience

    def _conclude(self) -> None:
        self.tensors.put(self.best or self.ema)
        from_first(self.tensors.buffers.values())
        self.best, self.ema = {}, {}
        self.optimiser.state.clear()
        self._save()

    def _mean_loss(self) -> float:
        return float(np.mean(self.recent)) if self.recent else math.nan

    # --- checkpoints ---

    def _identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        recipe = asdict(self.recipe)
        for free in ("checkpoint_minutes", "checkpoint_epochs"):
            del recipe[free]
        groups = [[g.lr, g.weight_decay, g.schedule] for g, _ in self.tensors.groups]
        shapes = {k: list(t.shape) for k, t in self.tensors.everything().items()}
        return {
            "recipe": _plain(recipe),
            "groups": groups,
            "shape of": shapes,
            "steps in all": self.total,
            "data": self.data,
        }

    def _save(self) -> None:
        if self.folder is None or rank() != 0:
            return
        tensors = {f"now.{k}": t for k, t in self.tensors.everything().items()}
        tensors |= {f"ema.{k}": t for k, t in self.ema.items()} | {f"best.{k}": t for k, t in self.best.items()}
        for name, tensor in self.tensors.trained.items():
            state = self.optimiser.state.get(tensor, {})
            tensors |= {f"optimiser.{name}.{k}": v for k, v in state.items() if v is not None}
        facts = {name: getattr(self, name) for name in COUNTED}
        facts |= {"identity": self._identity(), "recent": list(self.recent), "scores": self.scores}
        facts |= {"epoch": self.stream.epoch, "index": self.stream.index, "taken": self.stream.taken}
        try:
            _checkpoint.write(self.folder, tensors, facts)
        except CannotWrite as error:
            if not self.warned:
                LOG.warning("the training has no new checkpoint: %s", error)
            self.warned = True

    def _resume(self) -> None:
        """Continue from the checkpoint, where one lies."""
        found = _checkpoint.read(self.folder) if self.folder else None
        if number_from_first(step := found[1]["step"] if found else 0, self.device) != step:
            raise WrongInput(
                f"the processes do not see the same checkpoint in {self.folder}; give a folder they share."
            )
        if not found:
            return
        tensors, facts = found
        if differs := _checkpoint.first_difference(self._identity(), facts["identity"]):
            raise WrongInput(
                f"{self.folder} holds a checkpoint of another training ({differs}); give another folder, or remove it."
            )
        try:
            for name in COUNTED:
                setattr(self, name, facts[name])
            self.recent.extend(facts["recent"])
            self.scores = [(step, score) for step, score in facts["scores"]]
            self.stream.go_to(facts["epoch"], facts["index"], facts["taken"])
            everything = self.tensors.everything()
            self.tensors.put(self._part(tensors, "now.", everything))
            if not self.done:
                self.ema = self._part(tensors, "ema.", self.ema)
                if self.scores and self.recipe.keep == "best":
                    self.best = self._part(tensors, "best.", everything)
                for name, tensor in self.tensors.trained.items():
                    self.optimiser.state[tensor].update(self._state_of(name, tensor, tensors))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WrongInput(f"the checkpoint in {self.folder} is incomplete ({error!r}); remove it.") from error

    def _part(self, tensors: Mapping[str, Any], prefix: str, like: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a checkpoint under a prefix, which must be those of `like`."""
        return {k: tensors[prefix + k].reshape(t.shape).to(t.device) for k, t in like.items()}

    def _state_of(self, name: str, tensor: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """What the optimiser knew of one tensor. Adam counts its steps in a number that stays on the CPU."""
        prefix = f"optimiser.{name}."
        found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        return {
            k: v if k == "step" else v.reshape(tensor.shape).to(tensor.device)
            for k, v in found.items()
            if "." not in k  # a tensor whose name begins alike
        }


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


# --- who watches ------------------------------------------------------------------------------------------------------


@dataclass
class _Around:
    report: Report | None = None
    folder: Path | None = None
    _calls: Iterator[int] = field(default_factory=count)

    def next_folder(self) -> Path | None:
        return self.folder / str(next(self._calls)) if self.folder else None


_AROUND: ContextVar[_Around | None] = ContextVar("around", default=None)


@contextmanager
def watching(report: Report | None = None, folder: str | Path | None = None) -> Iterator[None]:
    """What `train` uses inside this block where it is told nothing else: the caller of a detector watches its training.

    folder: the first training keeps its checkpoints in folder/0, the next in folder/1 and so on, so that the same
        calls, made again after an interruption, find what they left.
    """
    token = _AROUND.set(_Around(report, Path(folder) if folder is not None else None))
    try:
        yield
    finally:
        _AROUND.reset(token)


def _quiet(step: int, total: int, figures: dict[str, float]) -> None:
    """The report of a training that nobody watches."""


@contextmanager
def _held_back(wanted: bool) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets in place of interrupting, which in the middle of a step would leave half of it done.

    Pressed again it interrupts. A handler of somebody else's is left alone, and handlers belong to the main thread.
    """
    pressed, usual = threading.Event(), signal.default_int_handler
    wanted = wanted and threading.current_thread() is threading.main_thread()
    if not wanted or signal.getsignal(signal.SIGINT) is not usual:
        yield pressed
        return

    def hold(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, hold)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)


# --- torch ------------------------------------------------------------------------------------------------------------


def training_device(device: str = "auto") -> Any:
    """ "auto", "cpu" or "cuda" as the torch device of this process: of several processes each takes its own GPU."""
    torch = need_torch()
    if device not in ("auto", "cpu", "cuda"):
        raise unknown("device", device, ("auto", "cpu", "cuda"))
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cuda" and not gpus:
        raise WrongInput("training got device 'cuda', but torch sees no GPU; use device='cpu'.")
    if not gpus:
        return torch.device("cpu")
    if world() > 1:
        torch.cuda.set_device(rank() % gpus)  # "cuda" then means this one, for frozen networks too
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU from a seed, then put the user's generator back: for building modules."""
    torch = need_torch()
    with _own_random_numbers(torch.device("cpu")):
        torch.default_generator.manual_seed(seed)
        yield


def _own_random_numbers(device: Any) -> Any:
    import torch

    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _seed(device: Any, numbers: tuple[int, ...]) -> None:
    """Seed the generators that draw for this device, and no other."""
    import torch

    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
