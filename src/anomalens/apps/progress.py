"""Passing pictures to detectors as a person watches: a bar on a terminal, plain lines elsewhere, damaged files skipped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import Unreadable
from ..parts.batches import ahead
from ..types import Sample, View

WORTH_A_LINE = 1.0  # seconds; off a terminal, a pass that is over sooner is not mentioned


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
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(self.what, total=self.total)
            for item in items:
                yield item
                bar.advance(task)


def _given(pixels: np.ndarray) -> np.ndarray:
    return pixels


def say(sentence: str, quiet: bool = False) -> None:
    """One line for the person who waits, on stderr so that stdout stays clean."""
    if not quiet:
        print(sentence, file=sys.stderr, flush=True)
