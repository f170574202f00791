"""What a person sees while it works: bars on a terminal, plain lines elsewhere. Damaged files are skipped on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import Unreadable
from ..parts.batches import ahead
from ..parts.train import watching
from ..types import Sample, View

Item = TypeVar("Item")
WORTH_A_LINE = 1.0  # seconds; off a terminal, what is over sooner is not mentioned
BETWEEN_LINES = 10.0  # seconds between lines on a training, off a terminal


@dataclass
class Watch:
    """Wraps every pass over samples: decodes ahead in threads, leaves unreadable ones out and remembers why.

    Call it as watch(samples, what, total), which is what `fit_calibrated(track=...)` does; the result can be iterated
    more than once. unreadable: sample id to the sentence that says what is wrong.
    """

    quiet: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)

    def __call__(self, samples: Iterable[Sample], what: str, total: int) -> Pass:
        return Pass(samples, what, total, self)


@dataclass
class Pass:
    """One pass, iterable again."""

    samples: Iterable[Sample]
    what: str
    total: int
    watch: Watch

    def __iter__(self) -> Iterator[Sample]:
        done = ahead(self._decode, (s for s in self.samples if s.id not in self.watch.unreadable))
        readable = (s for s in done if s is not None)
        if self.watch.quiet:
            yield from readable
        elif sys.stderr.isatty():
            yield from self._bar(readable)
        else:
            started = time.perf_counter()
            yield from readable
            seconds = time.perf_counter() - started
            if seconds >= WORTH_A_LINE:
                print(f"{self.what}: {self.total} in {seconds:.1f} s", file=sys.stderr, flush=True)

    def _decode(self, sample: Sample) -> Sample | None:
        try:
            pixels = {name: view.read() for name, view in sample.views.items()}
        except Unreadable as error:
            self.watch.unreadable[sample.id] = str(error)
            return None
        views = {n: View(n, partial(_given, p), sample.views[n].path) for n, p in pixels.items()}
        return replace(sample, views=views)

    def _bar(self, items: Iterable[Any]) -> Iterator[Any]:
        bar = _live_bar("remaining")
        if bar is None:
            yield from items
            return
        try:
            task = bar.add_task(self.what, total=self.total)
            for item in items:
                yield item
                bar.advance(task)
        finally:
            bar.stop()


def counting(items: Iterable[Item], what: str, total: int, done: int = 0, quiet: bool = False) -> Iterator[Item]:
    """The items, counted: a bar on a terminal, a line every ten seconds and one at the end elsewhere."""
    started = spoke = time.perf_counter()
    first = done
    bar = None if quiet or not sys.stderr.isatty() else _live_bar("remaining")
    try:
        task = bar.add_task(what, total=total, completed=done) if bar else None
        for item in items:
            yield item
            done += 1
            now = time.perf_counter()
            if bar:
                bar.advance(task)
            elif not quiet and now - spoke >= BETWEEN_LINES:
                spoke = now
                left = (now - started) / (done - first) * (total - done)
                say(f"{what}: {done} of {total}, {_duration(left)} left")
    finally:
        if bar:
            bar.stop()
    if bar is None and (seconds := time.perf_counter() - started) >= WORTH_A_LINE:
        say(f"{what}: {done - first} in {_duration(seconds)}", quiet)


@dataclass
class Training:
    """Shows a training as it runs (a `parts.train.Report`): a bar on a terminal, a line every ten seconds elsewhere."""

    _bar: Any = None
    _first: int = 0
    _started: float = 0.0
    _spoke: float = 0.0
    _told_how_long: bool = False

    def __call__(self, step: int, total: int, figures: dict[str, float]) -> None:
        now = time.perf_counter()
        if not figures:
            self.close()
            self._first, self._started, self._spoke = step, now, now
            self._told_how_long = False
            if step and step < total:
                say(f"training goes on at step {step} of {total}")
            self._bar = _live_bar("text") if sys.stderr.isatty() else None
            if self._bar is not None:
                self._bar.add_task("training", total=total, completed=step, figures="timing the first steps")
            return
        left = figures.get("left")
        if left is not None and not self._told_how_long:
            self._told_how_long, self._spoke = True, now
            if (whole := now - self._started + left) >= WORTH_A_LINE:
                more = "more " if self._first else ""
                say(f"training: {total - self._first} {more}steps, about {_duration(whole)}")
        text = _in_words(figures)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, total=total, figures=text)
        elif self._told_how_long and step < total and now - self._spoke >= BETWEEN_LINES:
            self._spoke = now
            say(f"training: step {step} of {total}, {text}")
        if step == total:
            self.close()
            if now - self._started >= WORTH_A_LINE:
                say(f"training: {step} steps, loss {figures['loss']:.4g}, took {_duration(now - self._started)}")

    def close(self) -> None:
        """Take the bar away, also that of a training that did not reach its end."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def shown_training(quiet: bool = False, folder: Path | None = None) -> Iterator[None]:
    """Whatever trains inside this block shows itself, unless quiet, and keeps its checkpoints in `folder`, if given."""
    training = Training()
    try:
        with watching(None if quiet else training, folder):
            yield
    finally:
        training.close()


def _live_bar(last: Literal["remaining", "text"]) -> Any:
    """A bar that runs on stderr, closing with the time remaining or a text of ours; None where another bar is running."""
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    end = TimeRemainingColumn() if last == "remaining" else TextColumn("{task.fields[figures]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), end)
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    try:
        bar.start()
    except LiveError:
        return None
    return bar


def _in_words(figures: dict[str, float]) -> str:
    """loss 0.123, 8.1 steps/s, 3 min left, and what else the loss names."""
    words = [f"loss {figures['loss']:.4g}"]
    words += [f"{k} {v:.4g}" for k, v in figures.items() if k not in ("loss", "rate", "left")]
    words.append(f"{figures['rate']:.3g} steps/s")
    if "left" in figures:
        words.append(f"{_duration(figures['left'])} left")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    """40 -> '40 s', 200 -> '3 min', 10000 -> '2.8 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _given(pixels: np.ndarray) -> np.ndarray:
    return pixels


def say(sentence: str, quiet: bool = False) -> None:
    """One line for the person who waits, on stderr so that stdout stays clean."""
    if not quiet:
        print(sentence, file=sys.stderr, flush=True)
