"""Where jobs run: in this process, or in fresh ones beside it. Text of JSON in, lines of JSON out, nothing else.

    executors.get("serial"), executors.get("processes:4")

Executors give the same rows. A process of its own per job costs a second and buys: a crash takes only its job along,
and peak memory is that of the job.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from ..errors import WrongInput
from ..parts.threads import cores
from ._job import failed, work
from .plan import hash_of

Executor = Callable[[Iterable[str]], Iterator[str]]

WORKER = (sys.executable, "-m", "anomalens.bench.executors")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def get(name: str = "serial") -> Executor:
    """An executor by name: `serial` or `processes:N`.

    Raises:
        WrongInput: no such executor, or N is not a whole number from 1.
    """
    kind, _, count = name.partition(":")
    if name == "serial":
        return serial
    if kind == "processes" and count.isdigit() and int(count) > 0:
        return processes(int(count))
    raise WrongInput(f"the executor is {name!r}; give serial, or processes:N with N from 1.")


def serial(jobs: Iterable[str]) -> Iterator[str]:
    """One job after the other, in this process."""
    for job in jobs:
        yield from work(job)


def processes(count: int) -> Executor:
    """Up to `count` jobs at once, each in a fresh process with its share of the cores; rows come as they are ready."""

    def run(jobs: Iterable[str]) -> Iterator[str]:
        pool = _Processes(jobs, max(1, cores() // count))
        servers = [threading.Thread(target=pool.serve, daemon=True) for _ in range(count)]
        for server in servers:
            server.start()
        try:
            ended = 0
            while ended < count:
                line = pool.lines.get()
                if line is None:
                    ended += 1
                else:
                    yield line
        finally:  # also when the consumer stops half way
            pool.stop()
            for server in servers:
                server.join()

    return run


class _Processes:
    """Jobs waiting, processes running, and lines that wait to be taken."""

    def __init__(self, jobs: Iterable[str], threads: int) -> None:
        self.waiting = deque(jobs)
        self.environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "PYTHONSAFEPATH": "1"}
        self.lines: queue.Queue[str | None] = queue.Queue()
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def serve(self) -> None:
        """In a thread: one process after another, until no job is left."""
        try:
            while not self._stopped:
                try:
                    job = self.waiting.popleft()
                except IndexError:
                    return
                self._one(job)
        finally:
            self.lines.put(None)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _one(self, job: str) -> None:
        """Run a job; what its process did not live to say becomes rows that failed."""
        missing = {hash_of(cell): cell for cell in json.loads(job)["cells"]}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, env=self.environment,
                    encoding="utf-8", start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            with process:
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError):
                    process.stdin.write(job)
                    process.stdin.close()
                for line in process.stdout:
                    with suppress(ValueError, TypeError, KeyError):  # a line that the end of the process tore
                        del missing[json.loads(line)["hash"]]
                        self.lines.put(line)
            with self._lock:
                self._running.discard(process)
            told.seek(0)
            last = (told.read().strip().splitlines() or [""])[-1]
        if not self._stopped:
            for cell in missing.values():
                self.lines.put(json.dumps(failed(cell, how_it_ended(process.returncode, last))))


def how_it_ended(code: int, last: str = "") -> str:
    """A sentence on a process that ended before its job. last: what it said last on stderr."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "often for want of memory: run fewer processes" if name == "SIGKILL" else "run the command again"
        return f"Crashed: the process of this job was ended by {name}; {hint}."
    return f"Crashed: the process of this job ended with code {code} before its rows were complete: {last or 'silent'}"


def main() -> None:
    """A worker: one job on stdin, rows on stdout. What libraries print goes to stderr."""
    rows = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in work(sys.stdin.buffer.read().decode("utf-8")):
        rows.write(line + "\n")
        rows.flush()


if __name__ == "__main__":
    main()
