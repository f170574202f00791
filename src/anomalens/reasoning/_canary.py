"""A program that tries to break out, and says how far it got: what the sandbox's self-test runs.

It goes around the static check, reaches the C library, and makes eleven attempts. A worker whose filter refuses calls
instead of killing runs it, so that one process can make them all.
"""

from __future__ import annotations

ATTEMPTS = (
    "read a file",
    "write a file",
    "open a socket",
    "connect to a port",
    "fork",
    "execute a program",
    "signal the parent",
    "trace a process",
    "map executable memory",
    "allocate 1 GiB",
    "see the environment",
)
BLOCKED, DONE = "blocked", "done"

# Scene of the canary: image._stats holds what it needs to know. Its findings: rule is the attempt, reason the result.
CANARY = """
def check(image):
    load = image.find.__globals__["__builtins__"]["__import__"]
    ctypes, os = load("ctypes"), load("os")
    libc = ctypes.CDLL(None)
    libc.mmap.restype = libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    know = image._stats["canary"]

    def connect():
        address = b"\\x02\\x00" + know["port"].to_bytes(2, "big") + b"\\x7f\\x00\\x00\\x01" + b"\\x00" * 8
        return libc.connect(libc.socket(2, 1, 0), address, 16) == 0

    def fork():
        child = libc.fork()
        if child == 0:
            os._exit(0)
        if child > 0:
            os.waitpid(child, 0)  # now: its signal would stop a process that is traced
        return child > 0

    def execute():
        try:
            os.execv(know["nowhere"], ["nowhere"])
        except FileNotFoundError:  # the kernel looked for it: the call itself is allowed
            return True

    def signal():
        os.kill(know["parent"], 0)
        return True

    attempts = (
        lambda: os.open(know["file"], os.O_RDONLY) >= 0,
        lambda: os.open(know["file"], os.O_WRONLY | os.O_APPEND) >= 0,
        lambda: libc.socket(2, 1, 0) >= 0,
        connect,
        fork,
        execute,
        signal,
        lambda: libc.ptrace(0, 0, 0, 0) == 0,
        lambda: libc.mmap(None, 4096, 7, 0x22, -1, 0) not in (None, 2**64 - 1),
        lambda: libc.malloc(2**30) is not None,
        lambda: sorted(set(os.environ) - set(know["environment"])) != [],
    )
    findings = []
    for name, attempt in zip(know["attempts"], attempts):
        try:
            done = attempt()
        except Exception:
            done = False
        findings.append(image.finding("matching", "done" if done else "blocked", rule=name))
    return findings
"""
FORBIDDEN_CALL = """
def check(image):
    image.find.__globals__["__builtins__"]["__import__"]("os").getppid()
    return []
"""


def scene(**know: object) -> dict:
    """The scene that tells the canary its targets: file, nowhere, port, parent, environment."""
    return {
        "width": 1,
        "height": 1,
        "objects": [],
        "regions": {},
        "stats": {"canary": {"attempts": ATTEMPTS, **know}},
    }
