"""The boundary itself: Landlock, resource limits and a seccomp filter, asked of the Linux kernel with ctypes alone.

Runs inside the worker, after its imports and before it reads a program; nothing here can be undone by the process. It
imports the standard library only and loads without the package.

Numbers are from the kernel's public headers: linux/seccomp.h, linux/bpf_common.h, linux/landlock.h, linux/prctl.h,
asm/unistd.h of x86-64 and of arm64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Sequence

# What pure Python needs to compute, to wait and to answer over open pipes. Calls behind the same number on no machine.
CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25, "madvise": 28,
        "nanosleep": 35, "getpid": 39, "exit": 60, "sigaltstack": 131, "gettid": 186, "futex": 202,
        "restart_syscall": 219, "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222, "mprotect": 226, "munmap": 215,
        "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sched_yield": 124, "mremap": 216,
        "madvise": 233, "nanosleep": 101, "getpid": 172, "exit": 93, "sigaltstack": 132, "gettid": 178, "futex": 98,
        "restart_syscall": 128, "clock_gettime": 113, "clock_nanosleep": 115, "exit_group": 94, "getrandom": 278,
    },
}  # fmt: skip
# What starting Python inside bubblewrap needs besides: bubblewrap installs this wider filter before it runs Python.
# No socket, no fork, no ptrace, no mount among them.
STARTING = {
    "x86_64": {
        "open": 2, "stat": 4, "lstat": 6, "poll": 7, "ioctl": 16, "pread64": 17, "readv": 19, "access": 21, "dup": 32,
        "dup2": 33, "execve": 59, "wait4": 61, "uname": 63, "fcntl": 72, "getcwd": 79, "chdir": 80, "readlink": 89,
        "getrlimit": 97, "sysinfo": 99, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
        "prctl": 157, "arch_prctl": 158, "setrlimit": 160, "getdents64": 217, "set_tid_address": 218,
        "timer_create": 222, "timer_settime": 223, "openat": 257, "newfstatat": 262, "readlinkat": 267,
        "set_robust_list": 273, "prlimit64": 302, "seccomp": 317, "statx": 332, "rseq": 334, "close_range": 436,
        "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
    },
    "aarch64": {
        "getcwd": 17, "dup": 23, "dup3": 24, "fcntl": 25, "ioctl": 29, "faccessat": 48, "chdir": 49, "openat": 56,
        "getdents64": 61, "readv": 65, "pread64": 67, "ppoll": 73, "readlinkat": 78, "newfstatat": 79,
        "set_tid_address": 96, "set_robust_list": 99, "timer_create": 107, "timer_settime": 110, "uname": 160,
        "getrlimit": 163, "setrlimit": 164, "prctl": 167, "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176,
        "getegid": 177, "sysinfo": 179, "execve": 221, "wait4": 260, "prlimit64": 261, "seccomp": 277, "statx": 291,
        "rseq": 293, "close_range": 436, "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
    },
}  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE3 = 435  # on every machine
X32 = 0x40000000  # numbers from here on are the x32 interface of x86-64

# What becomes of a call that is not allowed.
KILL = 0x80000000  # the process ends with SIGSYS
REFUSE = 0x00050000 | errno.EPERM  # the call fails
NOTIFY = 0x7FC00000  # a supervisor is asked (`_refusals`)
ALLOW = 0x7FFF0000
NO_SUCH_CALL = 0x00050000 | errno.ENOSYS

PROT_EXEC = 4

# Offsets into struct seccomp_data: int nr, u32 arch, u64 instruction_pointer, u64 args[6]; both machines little-endian.
NR, ARCH, ARG2_LOW = 0, 4, 32

# BPF instruction codes.
LOAD, RETURN, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_BITS = 0x20, 0x06, 0x15, 0x35, 0x45


class Missing(Exception):
    """The kernel refused a layer; the message says which, and why."""


def machine() -> str:
    """`x86_64` or `aarch64`.

    Raises:
        Missing: another processor, or a 32-bit Python on one of these.
    """
    name = os.uname().machine
    if name not in CALLS or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise Missing(f"seccomp: no table of system calls for a {ctypes.sizeof(ctypes.c_void_p) * 8}-bit {name}")
    return name


def seccomp_filter(name: str, default: int, starting: bool = False) -> bytes:
    """The filter as BPF instructions of 8 bytes each: what is not in `CALLS` gets the `default` action.

    Executable mappings are not allowed, unless for `starting`, which also allows what starting Python needs.
    """
    calls = {**CALLS[name], **(STARTING[name] if starting else {})}
    judged = () if starting else ("mmap", "mprotect")  # allowed by their third argument
    lines = [
        (LOAD, 0, 0, ARCH),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[name]),
        (RETURN, 0, 0, KILL),  # another interface: its numbers mean other calls
        (LOAD, 0, 0, NR),
        (JUMP_GREATER_EQUAL, 0, 1, X32),
        (RETURN, 0, 0, KILL),
        (JUMP_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, NO_SUCH_CALL),  # the C library then tries clone, which has no case below
    ]
    for call, number in calls.items():
        if call not in judged:
            lines += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for call in judged:
        lines += [
            (JUMP_EQUAL, 0, 4, calls[call]),
            (LOAD, 0, 0, ARG2_LOW),
            (JUMP_BITS, 1, 0, PROT_EXEC),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, default),
        ]
    lines.append((RETURN, 0, 0, default))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def lock_down(layers: Sequence[str], memory: int, cpu: int, lifetime: int, default: int = KILL) -> int:
    """Give up everything but computing and answering over the pipes that are open; there is no way back.

    layers: of "landlock" and "seccomp"; resource limits always. memory: bytes of address space. cpu: seconds of
    processor time after which the process gets SIGXCPU, and one more after which it gets SIGKILL. lifetime: seconds by
    the clock after which it gets SIGKILL, so that none is left when the parent dies. The process must have one thread.

    Returns:
        What the seccomp call gave: 0, or the listener's descriptor for the default NOTIFY.

    Raises:
        Missing: the kernel refused a layer.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.closerange(3, 1 << 16)
    if "seccomp" in layers:  # Linux; the options are PR_SET_DUMPABLE and PR_SET_NO_NEW_PRIVS
        _prctl(libc, "PR_SET_DUMPABLE", 4, 0)
        _prctl(libc, "PR_SET_NO_NEW_PRIVS", 38, 1)
        _die_after(libc, lifetime)
    if "landlock" in layers:
        _landlock(libc)
    files = 3 if default != NOTIFY else 4  # the pipes, and the listener
    for limit in _limits(memory, cpu, files):
        if layers:  # where the kernel is no boundary anyway, limits are set as far as they can be
            raise Missing(limit)
    return _seccomp(libc, default) if "seccomp" in layers else 0


def landlock_abi(libc: ctypes.CDLL) -> int:
    """Version of Landlock, from 1; 0 where the kernel has none or it is switched off."""
    return max(libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)), 0)


def _landlock(libc: ctypes.CDLL) -> None:
    """A ruleset that handles every right this kernel knows and allows none: no path, no TCP, no signal to others."""
    abi = landlock_abi(libc)
    if abi < 1:
        raise Missing(
            f"landlock: this kernel ({os.uname().release}) has none, or it is switched off, or the container filters "
            f"its system calls ({os.strerror(ctypes.get_errno())}); it is there from Linux 5.13 on"
        )
    files = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1  # each named version added one right
    network = 0b11 if abi >= 4 else 0  # to bind and to connect TCP
    scoped = 0b11 if abi >= 6 else 0  # abstract sockets and signals
    attributes = struct.pack("=QQQ", files, network, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = libc.syscall(444, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    if ruleset < 0 or libc.syscall(446, ctypes.c_int(ruleset), ctypes.c_uint(0)) != 0:
        raise Missing(f"landlock: the kernel refused the ruleset ({os.strerror(ctypes.get_errno())})")
    os.close(ruleset)
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return
    raise Missing("landlock: the ruleset was accepted, but files can still be opened")


def _limits(memory: int, cpu: int, files: int) -> list[str]:
    """Set the resource limits, lower where they were lower before; a sentence for each that cannot be set."""
    failed = []
    for name, soft, hard in (
        ("RLIMIT_CPU", cpu, cpu + 1),
        ("RLIMIT_AS", memory, memory),
        ("RLIMIT_NOFILE", files, files),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_STACK", 8 << 20, 8 << 20),
        ("RLIMIT_NPROC", 0, 0),  # holds for users, not for root
    ):
        try:
            kind = getattr(resource, name)
            ceiling = resource.getrlimit(kind)[1]
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)
            resource.setrlimit(kind, (soft, hard))
        except (AttributeError, OSError, ValueError) as error:
            failed.append(f"limits: {name} cannot be set ({error})")
    return failed


def _seccomp(libc: ctypes.CDLL, default: int) -> int:
    code = seccomp_filter(machine(), default)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    # seccomp(SECCOMP_SET_MODE_FILTER, flags, program); the listener flag asks for a descriptor in return.
    number = 317 if machine() == "x86_64" else 277
    flags = 8 if default == NOTIFY else 0
    answer = libc.syscall(number, ctypes.c_uint(1), ctypes.c_uint(flags), program)
    if answer < 0:
        raise Missing(
            f"seccomp: the kernel refused the filter ({os.strerror(ctypes.get_errno())}); it is switched off, or the "
            "container filters its system calls"
        )
    return answer


def _die_after(libc: ctypes.CDLL, seconds: int) -> None:
    """A timer that sends SIGKILL, which no handler stops; the call that could stop the timer is not allowed later."""
    create, settime = (222, 223) if machine() == "x86_64" else (107, 110)
    timer = ctypes.c_int()
    event = struct.pack("=Qii48x", 0, signal.SIGKILL, 0)  # SIGEV_SIGNAL
    when = struct.pack("=qqqq", 0, 0, seconds, 0)
    clock_monotonic = ctypes.c_int(1)
    if (
        libc.syscall(create, clock_monotonic, event, ctypes.byref(timer)) != 0
        or libc.syscall(settime, timer, ctypes.c_int(0), when, None) != 0
    ):
        raise Missing(f"timer: the kernel refused it ({os.strerror(ctypes.get_errno())})")


def _prctl(libc: ctypes.CDLL, name: str, option: int, value: int) -> None:
    if libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
        raise Missing(f"{name}: the kernel refused it ({os.strerror(ctypes.get_errno())})")
