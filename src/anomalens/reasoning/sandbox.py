"""Run generated programs where they can waste their own second, and do nothing else.

    executor = sandbox()                        # SandboxUnavailable where this computer cannot hold a program
    with executor.load(source) as program:
        outcome = program.run(scene)            # a dict, schema logicode.scene/1
        print(outcome.status, outcome.findings, outcome.error)

A program runs in a process of its own, started with two environment variables and three pipes, which gives up files,
network, other processes and memory above a limit before it reads the program (`_runner`, `_kernel`). What comes back is
JSON of bounded size, checked again here. docs/sandbox.md says what is guaranteed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, Protocol

from ..errors import SandboxUnavailable, WrongInput
from . import _canary, static_check
from .program_api import OBJECT_FIELDS, checked_findings, printable

Level = Literal["kernel", "bwrap+kernel", "bwrap", "process-only"]
Status = Literal["ok", "error", "timeout", "killed", "invalid_output"]

VERSION = "logicode.sandbox/1"  # part of the key of cached results
LEVELS: tuple[Level, ...] = ("kernel", "bwrap+kernel", "bwrap", "process-only")
LAYERS = {
    "kernel": ("landlock", "seccomp"),
    "bwrap+kernel": ("landlock", "seccomp"),
    "bwrap": ("seccomp",),
    "process-only": (),
}
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # nothing of the parent's; the seed makes sets repeatable
RUNNER = Path(__file__).with_name("_runner.py")
START = 20.0  # seconds for a worker to start; nothing untrusted has been read by then
FORBIDDEN = "made a system call that is not allowed"
OLDEST = 60  # seconds: workers are replaced after this time, and kill themselves some time later
BUSIEST = 0.5  # seconds of work after which a worker is replaced, so that each picture has its full processor time


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    wall: seconds by the clock for one picture. cpu: seconds of processor time for one picture, whole. memory: bytes of
    address space. result: bytes that may come back for one picture. log: bytes that one process may write to its log.
    requests: pictures before a fresh process.
    """

    wall: float = 5.0
    cpu: int = 2
    memory: int = 256 << 20
    result: int = 64 << 10
    log: int = 16 << 10
    requests: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.wall <= 3600 or not 1 <= self.cpu <= 3600 or int(self.cpu) != self.cpu:
            raise WrongInput(f"the limits are wall={self.wall}, cpu={self.cpu}; give seconds up to 3600, cpu whole.")
        if self.memory < 64 << 20 or self.result < 1024 or self.log < 0 or self.requests < 1:
            raise WrongInput(f"the limits are {self}; give memory from 64 MiB, result from 1 KiB, requests from 1.")


@dataclass(frozen=True)
class Finding:
    """One broken rule. type: quantity, size, position or matching. objects: ids. boxes: (x0, y0, x1, y1). severity: 0..1."""

    rule: str
    type: str
    reason: str
    objects: tuple[int, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    severity: float = 1.0

    @classmethod
    def of(cls, fields: Mapping) -> Finding:
        """From one of the dicts that `program_api.checked_findings` gives."""
        return cls(**{**fields, "objects": tuple(fields["objects"]), "boxes": tuple(map(tuple, fields["boxes"]))})


@dataclass(frozen=True)
class Outcome:
    """What running a program on one picture gave.

    status: "ok"; "error" (the program raised), "timeout" (wall or processor time), "killed" (it made a forbidden system
    call, crashed, or ended), "invalid_output" (not a list of findings, or too large). findings: empty unless ok; empty
    and ok is a normal picture. error: one sentence. line: of the program, where it is known. trace: the calls that led
    there. isolation: the level it ran under.
    """

    status: Status
    findings: tuple[Finding, ...] = ()
    error: str = ""
    line: int | None = None
    runtime_ms: float = 0.0
    trace: tuple[str, ...] = ()
    isolation: str = "kernel"


class LoadedProgram(Protocol):
    """A program that is ready to run; a context manager that frees what it holds."""

    def run(self, scene: Mapping) -> Outcome: ...

    def close(self) -> None: ...

    def __enter__(self) -> LoadedProgram: ...

    def __exit__(self, *error: object) -> None: ...


class Executor(Protocol):
    """Where programs run. Bring your own (a container, a virtual machine) with these two members."""

    @property
    def level(self) -> str:
        """Kept with every artefact: "kernel", or a name of your own."""
        ...

    def load(self, source: str) -> LoadedProgram:
        """Raises WrongInput where `static_check.check` finds problems."""
        ...


def sandbox(
    isolation: str = "auto",
    allow_unsafe_execution: bool = False,
    prefer: str | None = None,
    limits: Limits | None = None,
) -> Executor:
    """The strongest executor this computer has, after a self-test that tries to break out of it (once per process).

    isolation: "auto", or one level: "kernel", "bwrap+kernel", "bwrap", "process-only". allow_unsafe_execution: where no
    level of isolation works, run in a process that has resource limits and nothing else; a hostile program can then do
    what you can do. prefer: "bwrap" puts namespaces around the kernel's layers where bubblewrap is installed.

    Raises:
        SandboxUnavailable: no level works; the message says what is missing and what helps. Nothing was run.
        WrongInput: no such level, or "process-only" without allow_unsafe_execution.
    """
    if isolation not in ("auto", *LEVELS):
        raise WrongInput(f"isolation is {isolation!r}; give auto or one of {', '.join(LEVELS)}.")
    if prefer not in (None, "bwrap"):
        raise WrongInput(f"prefer is {prefer!r}; give 'bwrap' or nothing.")
    if isolation == "process-only" and not allow_unsafe_execution:
        raise WrongInput(
            "isolation='process-only' does not hold a hostile program; say allow_unsafe_execution=True as well if you "
            "trust the programs as you trust your own code."
        )
    limits = limits or Limits()
    levels: tuple[Level, ...] = tuple(level for level in LEVELS if level == isolation)
    if isolation == "auto":
        levels = ("bwrap+kernel", "kernel", "bwrap") if prefer == "bwrap" else ("kernel", "bwrap")
    if isolation == "auto" and allow_unsafe_execution:
        levels = (*levels, "process-only")
    failed = []
    for level in levels:
        failure = self_test(level)
        if not failure:
            return _Processes(level, limits)
        failed.append(f"{level}: {failure}")
    raise SandboxUnavailable(
        f"programs cannot be held apart from this computer ({'; '.join(failed)}); use Linux with a newer kernel (5.13 or "
        "later, Landlock and seccomp on, not filtered by the container), or install bubblewrap, or pass an Executor of "
        "your own, such as a container or a virtual machine."
    )


def run_all(executor: Executor, source: str, scenes: Iterable[Mapping], workers: int = 1) -> Iterator[Outcome]:
    """Outcomes of one program on many scenes, in order, from `workers` processes at once; scenes are read as needed.

    Raises:
        WrongInput: the static check finds problems, a scene is incomplete, or workers is below 1.
    """
    if workers < 1:
        raise WrongInput(f"workers is {workers}; give 1 or more.")
    with ExitStack() as stack:
        idle: SimpleQueue[LoadedProgram] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(executor.load(source)))

        def run(scene: Mapping) -> Outcome:
            program = idle.get()
            try:
                return program.run(scene)
            finally:
                idle.put(program)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        ahead: deque[Future[Outcome]] = deque()
        for scene in scenes:
            ahead.append(pool.submit(run, scene))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@functools.cache
def self_test(level: Level) -> str:
    """Why a level cannot be trusted here, in words; "" where the canary could do nothing. About 100 ms, once per process.

    One worker whose filter refuses calls runs every attempt of the canary; another, whose filter kills, must die of one
    forbidden call.
    """
    if level == "process-only":
        return "" if os.name == "posix" else f"it needs a POSIX system, this is {sys.platform}"
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, this is {sys.platform}"
    if not sys.executable:
        return "sys.executable is empty, so that no worker can be started"
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        return "SIGCHLD is ignored, so that nobody is told how a worker ended; set it to signal.SIG_DFL"
    if level.startswith("bwrap") and not shutil.which("bwrap"):
        return "bubblewrap is not installed (no program bwrap on the path)"
    try:
        outcome, death = _canaries(level)
    except (SandboxUnavailable, OSError) as failure:
        return str(failure)
    results = {finding.rule: finding.reason for finding in outcome.findings}
    done = [name for name in _canary.ATTEMPTS if results.get(name) != _canary.BLOCKED]
    if outcome.status != "ok":
        return f"the self-test did not come to its end ({outcome.status}: {outcome.error})"
    if done:
        return f"a program could {', '.join(done)}"
    if death.error != FORBIDDEN:
        return f"a forbidden system call did not end the process ({death.status} {death.error})"
    return ""


def _canaries(level: Level) -> tuple[Outcome, Outcome]:
    """What became of the canary, and of the program that makes a forbidden call."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "secret").write_text("not for programs")
        listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        executor = _Processes(level, Limits(wall=START))  # patient: a busy computer is no reason to refuse
        careful = stack.enter_context(_Program(executor, _canary.CANARY, refused="refuse"))
        strict = stack.enter_context(_Program(executor, _canary.FORBIDDEN_CALL))
        scene = _canary.scene(
            file=str(folder / "secret"),
            nowhere=str(folder / "nowhere"),
            port=listener.getsockname()[1],
            parent=os.getpid(),
            environment=[*ENVIRONMENT, *(["PWD"] if level.startswith("bwrap") else [])],  # bubblewrap sets PWD to /
        )
        return careful.run(scene), strict.run(scene)


@dataclass(frozen=True)
class _Processes:
    """Every level: a process per program. Made by `sandbox`, which has tested the level."""

    level: Level
    limits: Limits

    def load(self, source: str) -> LoadedProgram:
        problems = static_check.check(source)
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise WrongInput(f"the program may not be run: {'; '.join(map(str, problems[:3]))}{more}.")
        if self.level == "process-only":
            warnings.warn_explicit(  # a fresh registry, so that it is said each time
                "a generated program runs without isolation (allow_unsafe_execution=True): it can read your files and "
                "use your network",
                UserWarning,
                filename=__file__,
                lineno=1,
                registry={},
            )
        return _Program(self, source)


def refused_calls(source: str, scene: Mapping) -> tuple[Outcome, tuple[str, ...]]:
    """What a program gives, and the names of the system calls it needed that the filter does not allow.

    For maintainers, to see whether a new Python needs more (`scripts/sandbox_report.py`). The calls fail instead of
    ending the process, and the static check is left out.
    """
    program = _Program(_Processes("kernel", Limits(wall=START)), source, refused="notify")
    with program:
        outcome, worker = program.run(scene), program._worker
    log = worker.log.decode(errors="replace") if worker else ""
    return outcome, tuple(line.removeprefix("refused ") for line in log.splitlines() if line.startswith("refused "))


class _Program:
    """One program and the one process that serves it at a time. Goes around the static check: `load` is where that is."""

    def __init__(self, executor: _Processes, source: str, refused: str = "kill"):
        """refused: what becomes of a forbidden system call: "kill", "refuse" (it fails) or "notify" (it is logged)."""
        self._level, self._limits, self._refused = executor.level, executor.limits, refused
        self._source = _frame(source)
        self._lock = threading.Lock()
        self._worker: _Worker | None = self._started()

    def run(self, scene: Mapping) -> Outcome:
        """Judge one scene. Takes at most the wall limit, a second to clear up, and the start of a fresh process.

        Raises:
            WrongInput: the scene is no complete scene, or the program is closed.
            SandboxUnavailable: a fresh process was due and could not be started.
        """
        message = _frame(_checked_scene(scene))
        with self._lock:
            if self._worker is None:
                raise WrongInput("the program is closed; load it again, or run it inside its `with` block.")
            if self._worker.spent():
                self._worker.stop()
                self._worker = self._started()
            started = time.perf_counter()
            try:
                reply = self._worker.ask(message, self._limits.wall)
                outcome = _read(reply, {thing["id"] for thing in scene["objects"]})
            except _Ended as end:
                outcome = {"status": end.status, "error": end.why}
            except BaseException:  # interrupted: the reply would otherwise be taken for that of the next scene
                self._worker.stop()
                raise
            if outcome["status"] != "ok":
                self._worker.stop()
            return Outcome(**outcome, runtime_ms=1000 * (time.perf_counter() - started), isolation=self._level)

    def close(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _started(self) -> _Worker:
        worker = _Worker(self._level, self._limits, self._refused)
        try:
            reply = json.loads(worker.ask(self._source, START))
        except BaseException as error:
            worker.stop()
            if not isinstance(error, (_Ended, ValueError)):
                raise
            log = printable(worker.log.decode(errors="replace"))[-300:].strip()
            raise SandboxUnavailable(f"the worker did not start: {error}{f' ({log})' if log else ''}") from None
        if "missing" in reply:
            worker.stop()
            raise SandboxUnavailable(reply["missing"])
        worker.served, worker.busy = 0, 0.0
        return worker


class _Ended(Exception):
    """The worker gave no reply that can be used."""

    def __init__(self, status: Status, why: str):
        super().__init__(why)
        self.status, self.why = status, why


class _Worker:
    """One process behind three pipes that never block. Knows frames and time, and nothing of programs.

    served: replies so far. busy: seconds they took. log: what it wrote to its log.
    """

    def __init__(self, level: Level, limits: Limits, refused: str):
        self.limits, self.served, self.busy, self.log, self.stopped = limits, 0, 0.0, bytearray(), False
        self.born, self.owner = time.monotonic(), os.getpid()
        settings = {
            "layers": LAYERS[level],
            "memory": limits.memory,
            "cpu": limits.cpu + 1,  # one more for the start, and for what it was busy with before
            "lifetime": math.ceil(OLDEST + START + 2 * limits.wall),
            "refused": refused,
        }
        command = [sys.executable, "-s", "-S", "-B", str(RUNNER), json.dumps(settings)]
        with ExitStack() as stack:
            passed = []
            if level.startswith("bwrap"):
                passed = [stack.enter_context(_starting_filter())]
                command = [*bubblewrap(passed[0]), os.path.realpath(sys.executable), *command[1:]]
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    close_fds=True,
                    pass_fds=passed,
                    cwd="/",
                    env=ENVIRONMENT,
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxUnavailable(f"no process could be started: {error}") from error
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self.pipes = [pipe for pipe in pipes if pipe is not None]
        self.input, self.output, self.errors = (pipe.fileno() for pipe in self.pipes)
        # Held here alone, they close when a program is dropped that nobody closed; its worker then ends.
        self.process.stdin = self.process.stdout = self.process.stderr = None
        self.poll = select.poll()
        self.poll.register(self.output, select.POLLIN)
        self.poll.register(self.errors, select.POLLIN)
        for pipe in self.pipes:
            os.set_blocking(pipe.fileno(), False)

    def spent(self) -> bool:
        """Whether the next request should go to a fresh process."""
        old = time.monotonic() - self.born > OLDEST
        ended = self.process.poll() is not None
        return self.stopped or ended or old or self.served >= self.limits.requests or self.busy > BUSIEST

    def ask(self, message: bytes, seconds: float) -> bytes:
        """Send a frame and wait for one: its contents.

        Raises:
            _Ended: too late, too much, not a frame, or the process is gone.
        """
        begun, longest = time.monotonic(), self.limits.result
        left, received, length = memoryview(message), bytearray(), None
        self.poll.register(self.input, select.POLLOUT)
        while True:
            remaining = begun + seconds - time.monotonic()
            if remaining <= 0:
                raise _Ended("timeout", f"no answer within {seconds:g} s")
            for descriptor, _ in self.poll.poll(math.ceil(1000 * remaining)):
                if descriptor == self.input:
                    try:
                        left = left[_write(self.input, left) :]
                    except BrokenPipeError:  # why it reads no more is seen at its output
                        left = left[:0]
                    if not left:
                        self.poll.unregister(self.input)
                elif descriptor == self.errors:
                    part = os.read(self.errors, 4096)
                    self.log += part
                    if not part:
                        self.poll.unregister(self.errors)
                    if len(self.log) > self.limits.log:
                        raise _Ended("invalid_output", f"wrote more than {self.limits.log} bytes to its log")
                else:
                    part = os.read(self.output, longest + 5 - len(received))
                    if not part:
                        raise self._end()
                    received += part
                    if length is None and len(received) >= 4:
                        length = int.from_bytes(received[:4], "big")
                        if length > longest:
                            raise _Ended("invalid_output", f"the result is larger than {longest} bytes")
                    if length is not None and len(received) > 4 + length:
                        raise _Ended("invalid_output", "wrote more than one result")
                    if length is not None and len(received) == 4 + length:
                        if left and self.served:  # the first answer may be early: that a layer is missing
                            raise _Ended("invalid_output", "wrote a result before it had read the picture")
                        self.served += 1
                        self.busy += time.monotonic() - begun
                        return bytes(received[4:])

    def stop(self) -> None:
        """End the process and all it started, and collect it. Once: its descriptors may belong to others afterwards.

        In a process forked from the one that started it, only the copies of the descriptors are given up.
        """
        if self.stopped:
            return
        self.stopped = True
        if self.process.returncode is None and self.owner == os.getpid():
            with suppress(ProcessLookupError, PermissionError):  # ended already and not collected yet
                os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(BlockingIOError):  # nothing more to read
            self.log += os.read(self.errors, self.limits.log)
        for pipe in self.pipes:
            pipe.close()
        self.process.wait()

    def _end(self) -> _Ended:
        """Why there is no more output. A process that is ending keeps its cause; one that only closed it is killed."""
        self.stop()
        code = self.process.returncode
        if code > 128:  # as bubblewrap and shells say that a signal ended the program
            code = 128 - code
        if code >= 0:
            return _Ended("killed", f"ended by itself without a result, with exit code {code}")
        if -code == signal.SIGXCPU:
            return _Ended("timeout", f"used more than {self.limits.cpu} s of processor time")
        if -code == signal.SIGSYS:
            return _Ended("killed", FORBIDDEN)
        if -code == signal.SIGKILL:
            return _Ended("killed", "closed its output, or the kernel ended it (out of memory, or of time)")
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        return _Ended("killed", f"the process was ended by {name}")


def _write(descriptor: int, data: memoryview) -> int:
    """os.write. Where nobody reads, BrokenPipeError, even in a process that lets SIGPIPE end it, as some commands do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        return os.write(descriptor, data)
    except BrokenPipeError:
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})  # takes it away
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bubblewrap(descriptor: int) -> list[str]:
    """The command that puts namespaces around a worker: empty but for Python and its libraries, read-only.

    descriptor: of the seccomp filter that bubblewrap installs before it starts Python.
    """
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--cap-drop", "ALL", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    python = os.path.realpath(sys.executable)
    folders = ["/usr", "/lib", "/lib64", sys.base_prefix, os.path.dirname(python), str(RUNNER.parent)]
    for folder in dict.fromkeys(folders):
        if os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    return [*command, "--chdir", "/", "--seccomp", str(descriptor)]


@contextmanager
def _starting_filter() -> Iterator[int]:
    """A descriptor from which bubblewrap reads its filter."""
    from . import _kernel  # needs a POSIX system; this file can be imported anywhere

    try:
        code = _kernel.seccomp_filter(_kernel.machine(), _kernel.REFUSE, starting=True)
    except _kernel.Missing as missing:
        raise SandboxUnavailable(str(missing)) from None
    reading, writing = os.pipe()
    os.write(writing, code)  # fits into the pipe
    os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)


def _frame(message: object) -> bytes:
    """JSON behind four bytes of length."""
    try:
        data = json.dumps(message, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongInput(
            f"the scene is not plain JSON ({error}); use numbers that are finite, str, list, dict."
        ) from error
    return len(data).to_bytes(4, "big") + data


_OBJECT_KEYS = frozenset(OBJECT_FIELDS)


def _checked_scene(scene: Mapping) -> Mapping:
    """The scene, which the worker can build an image from.

    Raises:
        WrongInput: it lacks a field.
    """
    if not isinstance(scene, Mapping) or not {"width", "height", "objects"} <= scene.keys():
        raise WrongInput(
            "a scene is a dict with at least width, height and objects; see reasoning.scene.Scene.to_dict."
        )
    if not isinstance(scene["objects"], (list, tuple)):
        raise WrongInput(f"the objects of a scene are {type(scene['objects']).__name__}; a list of dicts is expected.")
    for i, thing in enumerate(scene["objects"]):
        missing = _OBJECT_KEYS - thing.keys() if isinstance(thing, Mapping) else _OBJECT_KEYS
        if missing:
            raise WrongInput(
                f"object {i} of the scene lacks {', '.join(sorted(missing))}; see reasoning.scene.SceneObject."
            )
        if type(thing["id"]) is not int:
            raise WrongInput(f"object {i} of the scene has the id {thing['id']!r:.40}; an int is expected.")
    return scene


def _read(data: bytes, ids: set[int]) -> dict:
    """The fields of an outcome from a worker's reply, which is not trusted.

    Raises:
        _Ended: it is not a reply.
    """
    try:
        reply = json.loads(data)
        status = reply["status"]
        if status == "ok":
            findings = tuple(map(Finding.of, checked_findings(reply["findings"], ids)))
            return {"status": "ok", "findings": findings}
        if status not in ("error", "invalid_output"):
            raise ValueError("no such status")
        line, trace = reply.get("line"), reply.get("trace", [])
        return {
            "status": status,
            "error": printable(str(reply["error"])[:1000]),
            "line": line if type(line) is int and 0 < line <= static_check.LONGEST else None,
            "trace": tuple(printable(str(step)[:100]) for step in trace[:15]),
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Ended("invalid_output", f"the result cannot be read ({printable(str(error))[:200]})") from None
