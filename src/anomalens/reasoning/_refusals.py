"""Which system calls does a worker need that the filter does not allow? A maintainer's tool, never part of a sandbox.

The filter asks a supervisor instead of killing; the supervisor writes each call's name to the log, once, and has the call
fail with EPERM. Structures are those of linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import time

import _kernel  # type: ignore[import-not-found]  # a neighbour by path, without the package

LISTENER = 3  # descriptor of the filter's listener: the lowest that is free
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE_FILES = 0x400  # one table of descriptors for both processes: the supervisor sees the listener appear
RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND


def start_supervisor() -> None:
    """Fork a process that answers for the filter this process is about to install."""
    worker = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(CLONE_FILES | signal.SIGCHLD)
    child = libc.syscall(CLONE[_kernel.machine()], flags, *[ctypes.c_ulong(0)] * 4)
    if child == 0:
        try:
            _supervise(worker)
        finally:
            os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "no supervisor could be started")


def _supervise(worker: int) -> None:
    while not _is_listener(LISTENER):
        if os.getppid() != worker:
            return
        time.sleep(0.001)
    seen = set()
    poll = select.poll()
    poll.register(LISTENER, select.POLLIN)
    while os.getppid() == worker:
        events = poll.poll(100)
        if any(event & select.POLLHUP for _, event in events):
            return
        if not events:
            continue
        notice = bytearray(80)  # u64 id, u32 pid, u32 flags, then struct seccomp_data
        try:
            fcntl.ioctl(LISTENER, RECEIVE, notice)
            number, prot = struct.unpack_from("=i", notice, 16)[0], struct.unpack_from("=Q", notice, 16 + 32)[0]
            line = f"refused {_name(number, prot)}\n"
            if line not in seen:
                seen.add(line)
                os.write(2, line.encode())
            fcntl.ioctl(LISTENER, SEND, struct.pack("=QqiI", struct.unpack_from("=Q", notice)[0], 0, -1, 0))  # EPERM
        except FileNotFoundError:  # the worker ended in between
            continue


def _name(number: int, prot: int) -> str:
    calls = {**_kernel.CALLS[_kernel.machine()], **_kernel.STARTING[_kernel.machine()]}
    name = next((name for name, known in calls.items() if known == number), f"call {number}")
    return f"{name} of executable memory" if name in ("mmap", "mprotect") and prot & _kernel.PROT_EXEC else name


def _is_listener(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:seccomp notify"
    except OSError:
        return False
