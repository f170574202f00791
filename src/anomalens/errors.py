"""One small tree of errors. Every message is one sentence: what came, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnomalensError(Exception):
    """Parent of every error this library raises on purpose."""


class WrongInput(AnomalensError, ValueError):
    """An argument, a file or a folder is not what the call needs."""


class Unreadable(WrongInput):
    """One picture cannot be used (damaged, too large, not a picture); the others may be fine."""


class UnknownName(WrongInput):
    """No detector, backbone, metric, dataset or setting has this name."""


class NotMade(WrongInput):
    """A maker finds no way to show its defect in this picture; another picture or other settings may do."""


class NotFitted(AnomalensError, RuntimeError):
    """The detector learns from normal pictures and has not seen any yet."""


class MissingExtra(AnomalensError, ImportError):
    """An optional library is not installed; the message holds the command that installs it."""


class MissingWeights(AnomalensError, FileNotFoundError):
    """Pretrained weights are not on this machine; the message names the file and where to put it."""


class Diverged(AnomalensError, ArithmeticError):
    """A training ran into numbers that are not finite; what it had learnt before is kept."""


class OutOfMemory(AnomalensError, MemoryError):
    """The work does not fit the memory limit the user gave."""


class CannotWrite(AnomalensError, OSError):
    """An output file or folder cannot be written (rights, full disk, a file in the way)."""


class SandboxUnavailable(AnomalensError, RuntimeError):
    """This computer cannot hold generated programs apart from itself; nothing was run, and the message says what helps."""


class NoAnswer(AnomalensError, RuntimeError):
    """A language model gave nothing that can be used."""


class ProgramGenerationError(NoAnswer):
    """A language model wrote no program that could be accepted; `reports` says what was wrong with each."""

    def __init__(self, message: str, reports: tuple = ()) -> None:
        super().__init__(message)
        self.reports = reports


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a misspelt name, with the nearest known names first."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known) or 'none'}."
    return UnknownName(f"no {kind} is named {name!r}; {hint}")
