"""The command `bench`: a plan from a file or from options, progress while it runs, a few sentences at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import datasets
from ..bench import plan as plans
from ..bench import run as runs
from ..errors import WrongInput
from .progress import WORTH_A_LINE, say

SHOWN = ("image.auroc", "pixel.auroc", "pixel.aupro@0.3")  # figures of the summary; the report has all


def bench(
    path: str | None,
    out: str,
    *,
    processes: int | None = None,
    limit: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Run a plan, or go on with it; returns {"words", "results", "cells", "kept", "ok", "failed", "errors"}.

    options: method, data, category, shots, seeds, backbone, robustness, mode: a plan without a file.
    """
    given = sorted(key for key, value in options.items() if value not in (None, (), []))
    if path and given:
        raise WrongInput(f"bench got the plan {path} and --{given[0]}; give a plan file, or options, not both.")
    plan = plans.read(path) if path else of_options(**options)
    if limit is not None:
        plan = plans.make({**plan.to_dict(), "limit": limit}, plan.folder)
    executor = f"processes:{processes}" if processes is not None else "serial"
    with watching(quiet) as progress:
        summary = runs.run(plan, out, executor, progress)
    return {**summary, "words": "\n".join(in_words(summary))}


def of_options(
    method: Sequence[str] = (),
    data: Sequence[str] = (),
    category: Sequence[str] = (),
    shots: Sequence[str] = (),
    seeds: int | None = None,
    backbone: Sequence[str] = (),
    robustness: str | None = None,
    mode: str | None = None,
) -> plans.Plan:
    """A plan from the options of the command line; paths are relative to where it runs."""
    if not method or not data:
        missing = "--method NAME" if not method else "--data ROOT"
        raise WrongInput(f"bench needs a plan file, or --method and --data; {missing} is missing.")
    if seeds is not None and seeds < 1:
        raise WrongInput(f"--seeds is {seeds}; give how many, from 1 up.")
    raw: dict[str, Any] = {
        "methods": list(method),
        "data": [{**_root(text), "categories": list(category)} for text in data],
        "backbones": list(backbone),
        "shots": [int(k) if k.isdigit() else k for text in shots for k in text.split(",")] or ["full"],
        "seeds": list(range(seeds or 1)),
        "mode": mode or "shift",
    }
    if robustness:
        raw["corruptions"] = robustness
    return plans.make(raw)


def _root(text: str) -> dict[str, str]:
    """ROOT, or READER=ROOT as `train-aux` has it; a reader that draws its own pictures needs no root: procedural=."""
    reader, equals, root = text.partition("=")
    if equals and reader.lower().replace("_", "-") in datasets.names():
        return {"root": root, "reader": reader}
    return {"root": text}  # an equals sign is part of the path


def in_words(summary: dict[str, Any]) -> list[str]:
    """What the command prints at the end."""
    kept = f" ({summary['kept']} of them from earlier runs)" if summary["kept"] else ""
    lines = [*_table(runs.read_rows(summary["results"]))]
    lines.append(f"{summary['ok']} of {summary['cells']} cells have results{kept}: {summary['results']}")
    if summary["failed"]:
        lines.append(f"{summary['failed']} failed; the same command tries them again:")
        lines += [f"  {count} x {error}" for error, count in summary["errors"].items()]
    return lines


def _table(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Clean figures, mean over seeds, one line per method, category and number of good pictures."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cell = row["cell"]
        if row["status"] == "ok" and cell["corruption"] is None:
            key = (cell["method"]["label"], cell["data"]["category"], str(cell["shots"]))
            found.setdefault(key, []).append(row["figures"])
    if not found:
        return
    table: list[tuple[str, ...]] = [("method", "category", "shots", *SHOWN)]
    table += [(*key, *(_mean(figures, name) for name in SHOWN)) for key, figures in found.items()]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
    yield ""


def _mean(figures: list[dict[str, Any]], name: str) -> str:
    values = [f[name]["value"] for f in figures if name in f and f[name]["value"] is not None]
    return f"{sum(values) / len(values):.3f}" if values else "-"


@contextmanager
def watching(quiet: bool) -> Iterator[runs.Progress | None]:
    """A bar with the time left on a terminal, a line now and then elsewhere, nothing when quiet."""
    if quiet:
        yield None
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("cells", total=None)

            def show(row: dict[str, Any] | None, done: int, total: int) -> None:
                if row is None:  # what is done already says nothing about the time left
                    bar.reset(task, completed=done, total=total)
                else:
                    bar.update(task, completed=done, description=what(row))

            yield show


class Lines:
    """Progress where there is no terminal: at most a line every WORTH_A_LINE seconds, failures always."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.before = 0

    def __call__(self, row: dict[str, Any] | None, done: int, total: int) -> None:
        now = time.monotonic()
        if row is None:
            self.before = done
            say(f"{total} cell{'s' * (total != 1)}" + (f", {done} of them done earlier" if done else ""))
            return
        if row["status"] == "failed":
            say(f"{what(row)}: {row['error']}")
        elif now - self.last < WORTH_A_LINE and done < total:
            return
        left = (now - self.started) / (done - self.before) * (total - done)
        say(f"{done}/{total} {what(row)}" + (f", about {duration(left)} left" if done < total else ""))
        self.last = now


def what(row: dict[str, Any]) -> str:
    """A cell in a few words."""
    cell = row["cell"]
    disturbed = cell["corruption"]
    how = f", {disturbed['name']} {disturbed['grade']}" if disturbed else ""
    return f"{cell['method']['label']} on {cell['data']['category']}, shots {cell['shots']}, seed {cell['seed']}{how}"


def duration(seconds: float) -> str:
    """90 -> '2 min'."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
