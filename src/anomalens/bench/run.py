"""Running a plan: results.jsonl grows by a row per cell, survives any end, and goes on where it stopped.

    from anomalens.bench import plan, run
    run.run(plan.read("plan.toml"), "results", executor="processes:2")

What lies in the folder:

    results.jsonl   {"format", "plan", "order", "versions", "machine"}, then one row per cell, see docs/benchmarking.md
    earlier.jsonl   rows of cells that an earlier plan of this folder asked for; they are used again when one does
    disturbed/      disturbed test pictures, made once for all methods and seeds; gone when the run is complete
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CannotWrite
from ..files import write_atomic, writing
from . import executors
from ._job import Row, versions
from .plan import Cell, Plan, cells, hash_of, jobs

FORMAT = 1
RESULTS, EARLIER, SHELF = "results.jsonl", "earlier.jsonl", "disturbed"

Progress = Callable[["Row | None", int, int], None]


def run(
    plan: Plan, out: str | os.PathLike[str], executor: str = "serial", progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate every cell of a plan that has no result yet, and keep the rows in the folder `out`.

    Rows of cells that failed earlier are tried again. Two runs must not write to one folder at the same time.

    Args:
        executor: `serial` or `processes:N`.
        progress: called as (None, done, total) at the start and (row, done, total) after each row.

    Returns:
        JSON-able: results (the file), cells, kept (rows from earlier runs), ok, failed, errors (sentence: count).

    Raises:
        WrongInput: no such executor. CannotWrite: `out` holds something else, or the disk refuses; rows are kept.
    """
    start = executors.get(executor)
    todo = {hash_of(cell): cell for cell in cells(plan)}
    results = Results(Path(out), plan, todo)
    kept = len(results.done)
    if progress:
        progress(None, kept, len(todo))
    waiting = jobs(cell for name, cell in todo.items() if name not in results.done)
    disturbs = [job for job in waiting if any((cell["corruption"] or {}).get("grade") for cell in job)]
    shelf = os.fspath(Path(out, SHELF).resolve()) if len(disturbs) > 1 else None
    lines = start([json.dumps({"cells": job, "folder": os.fspath(plan.folder), "shelf": shelf}) for job in waiting])
    count, errors = kept, dict[str, int]()
    try:
        for line in lines:
            row = json.loads(line)
            results.add(line)
            count += 1
            if row["status"] == "failed":
                errors[row["error"]] = errors.get(row["error"], 0) + 1
            if progress:
                progress(row, count, len(todo))
    finally:
        close = getattr(lines, "close", None)
        if close:
            close()
        results.close()
    shutil.rmtree(Path(out, SHELF), ignore_errors=True)
    bad = sum(errors.values())
    return {
        "results": str(results.path), "cells": len(todo), "kept": kept, "ok": count - bad, "failed": bad,
        "errors": errors,
    }  # fmt: skip


class Results:
    """results.jsonl of a folder, repaired and ready to grow. done: hashes that have a row.

    Raises:
        CannotWrite: the file was not written by a benchmark, or cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan, todo: dict[str, Cell]) -> None:
        self.path = folder / RESULTS
        header = {
            "format": FORMAT, "plan": plan.to_dict(), "order": list(todo), "versions": versions(), "machine": machine(),
        }  # fmt: skip
        earlier = {row["hash"]: row for row in read_rows(folder / EARLIER)}
        known = {**earlier, **{row["hash"]: row for row in read_rows(self.path) if _good(row)}}
        rows = [{**known[name], "cell": cell} for name, cell in todo.items() if name in known]
        self.done = {row["hash"] for row in rows}
        aside = [row for name, row in known.items() if name not in todo or name in earlier]
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            if aside:
                write_atomic(folder / EARLIER, "".join(_line(row) for row in aside))
            write_atomic(self.path, _line(header) + "".join(_line(row) for row in rows))
            self._file = self.path.open("ab", buffering=0)

    def add(self, line: str) -> None:
        """Append a row; it is on the disk when this returns, whole or not at all."""
        data = line.strip().encode() + b"\n"
        with writing(self.path):
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._file.truncate(end)
                raise

    def close(self) -> None:
        self._file.close()


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Every whole row of a results file, none where there is no file; what a crash or a full disk tore is left out.

    Raises:
        CannotWrite: the file is something else.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWrite(f"{path} cannot be read: {os.strerror(error.errno or 0).lower()}.") from None
    found = [_parsed(line) for line in lines]
    if path.name == RESULTS and lines and lines[0].endswith(b"\n") and (found[0] or {}).get("format") != FORMAT:
        raise CannotWrite(f"{path} was not written by this version of bench; give another folder, or move it away.")
    yield from (row for row in found if row and "hash" in row and "status" in row)


def machine() -> dict[str, Any]:
    """What speed depends on."""
    cpu = platform.processor()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {"cpu": cpu, "cores": executors.cores(), "system": f"{platform.system()} {platform.machine()}"}


def _good(row: Row) -> bool:
    return row["status"] == "ok"


def _parsed(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _line(value: Row) -> str:
    return json.dumps(value, allow_nan=False) + "\n"
