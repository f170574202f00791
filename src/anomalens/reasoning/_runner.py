"""The worker of the sandbox: one program, many pictures, over pipes. Started as `python -s -S -B _runner.py SETTINGS`.

Everything it will need is imported first; then the process is locked down; only then does it read the program, so that
not even Python's parser meets untrusted text outside the boundary. Messages both ways are JSON behind four bytes of
length. First comes the source of the program, answered by {"ready": true} or {"missing": why}; then one scene after the
other, each answered by {"status", "findings", "error", "line", "trace"}.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder comes last, lest a file in it stand in for a library

import __future__

import json
import os
import unicodedata  # noqa: F401  Python's parser imports it for names that are not ASCII
import warnings

import _kernel  # type: ignore[import-not-found]  # neighbours by path, without the package
import program_api  # type: ignore[import-not-found]

NAME = "<program \ud800>"  # no file can be named so; to show a line, the compiler would open it, and be killed for that
LONGEST_TRACE = 15  # lines
LONGEST_STEP = 100  # characters of each
RESERVE = 2 << 20  # bytes of address space kept back, to say in that there was no more
FLAGS = __future__.annotations.compiler_flag  # annotations are kept as text and never evaluated


def main() -> None:
    settings = json.loads(sys.argv[1])
    refused = {"kill": _kernel.KILL, "refuse": _kernel.REFUSE, "notify": _kernel.NOTIFY}[settings.pop("refused")]
    if refused == _kernel.NOTIFY:
        import _refusals  # type: ignore[import-not-found]

        _refusals.start_supervisor()
    sys.path.clear()
    warnings.simplefilter("ignore")  # to show one, Python would open files
    try:
        _kernel.lock_down(**settings, default=refused)
    except _kernel.Missing as missing:
        send(framed({"missing": str(missing)}))
        return
    program = receive()
    send(framed({"ready": True}))
    code, reserve = None, bytearray(RESERVE)
    while True:
        scene = receive()
        try:
            image = program_api.Image(scene)
            if code is None:
                code = compile(program, NAME, "exec", FLAGS, True)
            reply = framed(judged(code, image))
        except BaseException as error:
            reserve.clear()  # for good: the parent replaces a worker after any error
            reply = framed({"status": "error", **described(error)})
        send(reply)


def judged(code, image) -> dict:
    """Run the program from its beginning, so that nothing is carried from one picture to the next."""
    names = program_api.namespace()
    exec(code, names)
    answer = names["check"](image)
    try:
        return {"status": "ok", "findings": program_api.checked_findings(answer, image._ids)}
    except ValueError as error:
        return {"status": "invalid_output", "error": str(error)}


def described(error: BaseException) -> dict:
    """What went wrong and where in the program: no path and no line of any other file."""
    lines = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename == NAME:
            lines.append((step.tb_lineno, code.co_name))
        step = step.tb_next
    line = lines[-1][0] if lines else error.lineno if isinstance(error, SyntaxError) else None
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException as why:  # of a number with too many digits, a list that is too deep
        text = f"its message cannot be written ({type(why).__name__})"
    return {
        "error": f"{type(error).__name__}: {text}"[:1000],
        "line": line,
        "trace": [f"line {number}, in {name}"[:LONGEST_STEP] for number, name in lines[-LONGEST_TRACE:]],
    }


def receive():
    """The next message; the process ends when there is none."""
    return json.loads(exactly(int.from_bytes(exactly(4), "big")))


def exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def framed(message: object) -> bytes:
    data = json.dumps(message, allow_nan=False).encode()
    return len(data).to_bytes(4, "big") + data


def send(frame: bytes) -> None:
    left = memoryview(frame)
    while left:
        left = left[os.write(1, left) :]


if __name__ == "__main__":
    main()
