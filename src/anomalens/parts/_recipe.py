"""How to train: settings in plain values, and the learning rate that follows from them."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import WrongInput, unknown

Optimiser = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "step", "exponential"]
Precision = Literal["float32", "bf16", "fp16"]


@dataclass(frozen=True)
class Recipe:
    """How to train, in plain values. Exactly one of epochs and steps says how long.

    epochs: passes over the data. steps: optimiser steps.
    lr: learning rate. betas: of Adam and AdamW. momentum: of SGD. weight_decay: decoupled in AdamW, otherwise added to
        the gradient. Tensors that receive no gradient are neither moved nor decayed.
    warmup: steps in which the rate rises linearly, lr * (t + 1) / warmup at step t from 0.
    schedule: after warm-up, "cosine" falls to lr_end (a rate, not a factor), reached at decay_until (a share of the
        training); "step" multiplies by gamma at each of milestones (shares of the training); "exponential" multiplies
        by gamma each epoch. changes: whether cosine moves every step or, counted from the first, every epoch.
    clip: largest norm of the gradient of all tensors together.
    precision: "bf16" and "fp16" run the loss under autocast; tensors and optimiser stay float32, fp16 scales its loss.
    ema: decay of an exponential moving average over steps; validation and the result are then the average.
    accumulate: batches per step, their gradients averaged. Steps go on across the end of an epoch.
    on_nan: stop with a sentence, or skip the step and count it.
    patience: stop after so many validations without a better score. keep: the last tensors, or the best validated ones.
    validate_every: steps; None is after every epoch.
    checkpoint_minutes: time between checkpoints. checkpoint_epochs: also one after every epoch.
    """

    epochs: int | None = None
    steps: int | None = None
    optimiser: Optimiser = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Schedule = "constant"
    lr_end: float = 0.0
    decay_until: float = 1.0
    milestones: tuple[float, ...] = (0.8,)
    gamma: float = 0.1
    changes: Literal["step", "epoch"] = "step"
    clip: float | None = None
    precision: Precision = "float32"
    ema: float | None = None
    accumulate: int = 1
    seed: int = 0
    on_nan: Literal["stop", "skip"] = "stop"
    patience: int | None = None
    keep: Literal["last", "best"] = "last"
    validate_every: int | None = None
    checkpoint_minutes: float = 2.0
    checkpoint_epochs: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise WrongInput(f"a recipe has either epochs or steps; got epochs={self.epochs} and steps={self.steps}.")
        for name, kinds in (("optimiser", Optimiser), ("schedule", Schedule), ("precision", Precision)):
            if getattr(self, name) not in get_args(kinds):
                raise unknown(name, str(getattr(self, name)), get_args(kinds))
        for name in ("epochs", "steps", "accumulate", "patience", "validate_every", "clip", "decay_until"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise WrongInput(f"{name} of a recipe must be above 0; got {value}.")
        if not self.lr > 0 or self.warmup < 0 or self.weight_decay < 0:
            raise WrongInput(
                f"a recipe needs lr above 0, warmup and weight_decay not below 0; got lr={self.lr}, "
                f"warmup={self.warmup}, weight_decay={self.weight_decay}."
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise WrongInput(f"ema of a recipe lies in [0, 1), typically 0.99 or 0.999; got {self.ema}.")

    def rate(self, step: int, total: int, per_epoch: float | None = None, group: Group | None = None) -> float:
        """Learning rate of a step (from 0) of `total`; per_epoch: steps in an epoch, not always a whole number."""
        lr = self.lr if group is None or group.lr is None else group.lr
        schedule = self.schedule if group is None or group.schedule is None else group.schedule
        if step < self.warmup:
            return lr * (step + 1) / self.warmup
        epoch = math.floor(step / per_epoch + 1e-9) if per_epoch else 0
        if schedule == "cosine":
            if self.changes == "epoch" and per_epoch:
                done = epoch * per_epoch / total
            else:
                done = (step - self.warmup) / (total - self.warmup)
            return self.lr_end + (lr - self.lr_end) * (1 + math.cos(math.pi * min(done / self.decay_until, 1))) / 2
        if schedule == "step":
            return lr * self.gamma ** sum(step >= round(share * total) for share in self.milestones)
        return lr * self.gamma**epoch if schedule == "exponential" else lr


@dataclass(frozen=True)
class Group:
    """Tensors with settings of their own; None is the recipe's. params: a module, name -> tensor, or tensors."""

    params: Any
    lr: float | None = None
    weight_decay: float | None = None
    schedule: Schedule | None = None


def length(recipe: Recipe, batches: Any, per_epoch: int | None) -> tuple[int, float | None]:
    """(steps in all, steps per epoch where it is known)."""
    if per_epoch is None and hasattr(batches, "__len__"):
        per_epoch = len(batches)
    needed = recipe.epochs is not None or recipe.schedule == "exponential" or recipe.changes == "epoch"
    if per_epoch is None and needed:
        with suppress(TypeError):
            per_epoch = len(batches(0))
    if needed and not per_epoch:
        raise WrongInput(
            "there is no batch in an epoch; training needs at least one picture, and one for every process."
            if per_epoch == 0
            else "the recipe counts epochs, but nothing says how many batches one has; give batches with a length, "
            "batches_per_epoch, or a recipe in steps."
        )
    total = recipe.steps or (recipe.epochs or 0) * (per_epoch or 0) // recipe.accumulate
    if total == 0:
        raise WrongInput(
            f"{recipe.epochs} epochs of {per_epoch} batches are less than one step of {recipe.accumulate}."
        )
    return total, per_epoch / recipe.accumulate if per_epoch else None
