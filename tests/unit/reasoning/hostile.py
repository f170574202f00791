"""Programs that want out. The static check rejects every one; run without it, the kernel holds them.

`image.category` is the path of a secret file, `image.region("port")[0]` a port that listens on this computer, and
`image.region("parent")[0]` the process id of the test. A program has got out when it makes the file `<secret>.made`,
connects, signals, starts a process, or returns the secret.
"""

# ruff: noqa: E501  programs are kept on one line where that reads better

from __future__ import annotations

from .benign import body

# Ways to the real builtins, and through them to everything else.
IMPORT = 'load = image.find.__globals__["__builtins__"]["__import__"]'
OS = f'{IMPORT}; os = load("os")'
C = f'{IMPORT}; c = load("ctypes").CDLL(None)'
REAL = 'b = image.find.__globals__["__builtins__"]'
FRAME = "def check(image):\n    try:\n        1 / 0\n    except ZeroDivisionError as e:\n        frame = e.__traceback__.tb_frame\n"
READ = "f = os.open(image.category, 0); return [image.finding('size', os.read(f, 99).decode())]"
MAKE = "os.close(os.open(image.category + '.made', 65)); return []"


def after(way: str, act: str) -> str:
    return body(f"{way}\n{act}")


LANGUAGE = {
    # Names
    "import": "import os\ndef check(image):\n    " + READ,
    "import from": "from os import system\ndef check(image):\n    system('id > ' + image.category + '.made')\n    return []",
    "import inside": body("import os\n" + READ),
    "__import__": body("os = __import__('os')\n" + READ),
    "open": body("return [image.finding('size', open(image.category).read())]"),
    "eval": body("return eval('[]')"),
    "exec": body("exec('import os')\nreturn []"),
    "compile": body("compile('1', '', 'eval')\nreturn []"),
    "getattr": body("getattr(image, 'find').x\nreturn []"),
    "setattr": body("setattr(image, 'width', 3)\nreturn []"),
    "globals": body("return globals()['__builtins__']"),
    "vars": body("return [image.finding('size', str(vars(image)))]"),
    "type": body("return type('X', (), {})()"),
    "print": body("print('x' * 100)\nreturn []"),
    "input": body("return [image.finding('size', input())]"),
    "breakpoint": body("breakpoint()\nreturn []"),
    "__builtins__": body("return __builtins__['open'](image.category)"),
    "underscore name": body("_x = 1\nreturn []"),
    "unicode name": body("ｅval('1')\nreturn []"),
    "base exception": body("try:\n    x = 1 / 0\nexcept BaseException:\n    return []"),
    "system exit": body("raise SystemExit(0)"),
    # Attributes
    "subclasses": after(
        "os = [k for k in ().__class__.__base__.__subclasses__() if k.__name__ == '_wrap_close'][0].__init__.__globals__",
        "f = os['open'](image.category, 0); return [image.finding('size', os['read'](f, 99).decode())]",
    ),
    "subclasses shell": after(
        "os = [k for k in ().__class__.__base__.__subclasses__() if k.__name__ == '_wrap_close'][0].__init__.__globals__",
        "os['system']('touch ' + image.category + '.made'); return []",
    ),
    "loader": after(
        "load = [k for k in ().__class__.__base__.__subclasses__() if k.__name__ == 'BuiltinImporter'][0].load_module",
        "os = load('posix'); " + READ,
    ),
    "method globals": after(OS, READ),
    "function globals": body("return check.__globals__['__builtins__']['open']"),
    "lambda globals": body("return (lambda: 0).__globals__['x']"),
    "code": body("return check.__code__.co_consts"),
    "replaced code": body("check.__code__ = (lambda image: []).__code__\nreturn []"),
    "generator frame": body("g = (x for x in (1,))\nreturn g.gi_frame.f_back.f_globals['os'].system('id')"),
    "traceback frame": body(
        "try:\n    x = 1 / 0\nexcept ZeroDivisionError as e:\n    os = e.__traceback__.tb_frame.f_back.f_globals['os']\n    " + READ
    ),
    "string format": body("return [image.finding('size', '{0.find.__globals__}'.format(image)[:200])]"),
    "format map": body("return [image.finding('size', '{a.find.__globals__}'.format_map({'a': image})[:200])]"),
    "f-string attribute": body("return [image.finding('size', f'{image.find.__globals__}'[:200])]"),
    "format spec attribute": body("return [image.finding('size', f'{1:{image.find.__class__}}')]"),
    "unicode attribute": body("return image.find.__globals＿＿['os']"),
    "method resolution": body("return int.mro()"),
    "private state": body("image._by_label.clear()\nreturn []"),
    "changed api": body("image.find.__self__.__class__.finding = None\nreturn []"),
    "read-only field": body("image.find('pin')[0].area = 3\nreturn []"),
    "deleted field": body("del image.find('pin')[0].area\nreturn []"),
    "default attribute": "def check(image, os=().__class__):\n    return []",
    "decorator": "@str\ndef check(image):\n    return []",
    "keyword underscore": body("return dict(_x=1)"),
    "argument underscore": "def check(image, _x=1):\n    return []",
    # Statements
    "class with __del__": "class A:\n    def __del__(self):\n        while True:\n            pass\n\ndef check(image):\n    A()\n    return []",
    "metaclass": "class M(type):\n    pass\n\ndef check(image):\n    return []",
    "async": "async def check(image):\n    return []",
    "await frame": "async def go():\n    pass\n\ndef check(image):\n    return go().cr_frame.f_back",
    "yield": body("yield image"),
    "with": body("with image as x:\n    return []"),
    "global": "n = 0\ndef check(image):\n    global n\n    n += 1\n    return []",
    "match": body("match image:\n    case object(__class__=k):\n        return k.__subclasses__()"),
    "bare except": body("try:\n    return []\nexcept:\n    return []"),
    "top-level call": "X = len('abc')\ndef check(image):\n    return []",
    "top-level loop": "while True:\n    pass\ndef check(image):\n    return []",
    "no entry": "def chek(image):\n    return []",
    "two arguments": "def check(image, more):\n    return []",
    "two entries": "def check(image):\n    return []\ndef check(image):\n    return [1]",
    "not python": "def check(image) return []",
    "null byte": "def check(image):\n    return []\0",
    # Resources that the check knows of
    "power": body("return 9 ** 9 ** 9"),
    "power of a name": body("n = 99\nreturn 9 ** n"),
    "power in place": body("x = 9\nx **= 99999999\nreturn x"),
    "shift": body("return 1 << 99999999999"),
    "large integer": body("return list(range(1000000000001))"),
    "deep": body("return " + "[" * 80 + "]" * 80),
    "long chain": body("return image" + ".find" * 3000),
    "too long": body("return '" + "x" * 20000 + "'"),
    "too many nodes": body("return [" + "1," * 6000 + "]"),
    # Formats, descriptors, frames
    "format by map": body("return [image.finding('size', list(map('{0.find.__globals__}'.format, [image]))[0][:200])]"),
    "reduce": after(
        "os = ().__class__.__reduce_ex__((), 2)[0].__globals__['__builtins__']['__import__']('os')", READ
    ),
    "descriptor": after("g = image.find.__func__.__get__(image).__globals__; os = g['__builtins__']['__import__']('os')", READ),
    "made-up bytecode": body("return check.__class__(check.__code__.replace(co_code=b'dc' * 99), {})(image)"),
    "frames up to the runner": FRAME + "        os = frame.f_back.f_back.f_globals['os']\n        " + READ,
    "another runner's send": FRAME + "        frame.f_back.f_back.f_globals['framed'] = lambda m: b'\\0\\0\\0\\1['\n        return []",
    "another check of findings": FRAME
    + "        frame.f_back.f_globals['program_api'].checked_findings = lambda *a: [{'type': 'size', 'reason': 'x' * 999}]\n        return []",
    "tracing": after(f"{IMPORT}; s = load('sys'); s.settrace(lambda *a: s.exit(3))", "return image.find('pin') and []"),
    # Classes whose instances are not what they seem; `class` is not at hand, `type` is
    "exception that cannot be told": after(REAL, "raise b['type']('E', (Exception,), {'__str__': lambda e: 1 / 0})()"),
    "exception told for ever": after(REAL, "raise b['type']('E', (Exception,), {'__str__': lambda e: [0 for i in b['iter'](int, 1)]})()"),
    "exception that exits": after(f"{OS}; {REAL}", "raise b['type']('E', (b['BaseException'],), {'__str__': lambda e: os._exit(0)})()"),
    "text with a short length": after(
        REAL, "return [{'type': 'size', 'reason': b['type']('S', (str,), {'__len__': lambda s: 1})('x' * 1000)}]"
    ),
    "id equal to all": after(
        REAL, "I = b['type']('I', (int,), {'__eq__': lambda a, b: True, '__hash__': lambda a: 0})\nreturn [{'type': 'size', 'reason': 'r', 'objects': [I(77)]}]"
    ),
    "severity of two values": after(
        REAL, "F = b['type']('F', (float,), {'__float__': lambda f: 99.0})\nreturn [{'type': 'size', 'reason': 'r', 'severity': F(0.5)}]"
    ),
    "list without end": after(REAL, "return b['type']('L', (list,), {'__iter__': lambda l: b['iter'](dict, 1)})()"),
    "a list by name": after(
        REAL, "return b['type']('L', (), {'__class__': b['property'](lambda l: list), '__iter__': lambda l: b['iter']([{}])})()"
    ),
    "type of every kind": after(REAL, "return [{'type': b['type']('T', (str,), {'__eq__': lambda *a: True, '__hash__': str.__hash__})('x'), 'reason': 'r'}]"),
    # Outliving a limit, reaching the next picture
    "deaf to everything": after(f"{OS}; load('signal').pthread_sigmask(0, range(1, 65)); {REAL}", "while True:\n    try:\n        while True: pass\n    except b['BaseException']: pass"),
    "eats the next picture": after(OS, "os.read(0, 9999999); return []"),
    "poisoned builtins": after(f"{REAL}; b.update(len=lambda x: 0, isinstance=lambda *a: True, str=None)", "return [3]"),
    "never collected": after(f"{IMPORT}; {REAL}; load('gc').callbacks.append(lambda *a: [0 for i in b['iter'](int, 1)])", "return [[i] for i in range(9999)]"),
    "null pointer": after(f"{IMPORT}; c = load('ctypes')", "return [c.string_at(0)]"),
    "unmapped": after(f"{C}; {REAL}; long = load('ctypes').c_long", "c.munmap(long(b['id'](b) // 4096 * 4096), long(1 << 20)); return []"),
    # What only looks like the source of a program
    "confusable": "def \u0441heck(image):\n    return []",
    "spread over lines": body("return image.\\\n    __class__"),
    "byte order mark": "\ufeffdef check(image):\n    return []",
    # Through the C library: two words to read, and a call of which the kernel is made to say that it has none
    "environment": after(OS, "return [image.finding('size', str(dict(os.environ)))]"),
    "clone": after(C, "c.syscall(435, b'\\0' * 88, 88) == 0 and c.pause(); return []"),
}  # fmt: skip

# System calls that are not allowed: each must end the process.
CALLS = {
    "write": after(OS, MAKE),
    "truncate": after(OS, "os.truncate(image.category, 0); return []"),
    "unlink": after(OS, "os.unlink(image.category); return []"),
    "list folder": after(OS, "return [image.finding('size', str(os.listdir('/')))]"),
    "change mode": after(OS, "os.chmod(image.category, 0); return []"),
    "link": after(OS, "os.symlink(image.category, image.category + '.made'); return []"),
    "fork": after(OS, "os.fork(); os.fork(); load('time').sleep(60)"),
    "fork and detach": after(OS, "(os.fork() == 0) and (os.setsid(), load('time').sleep(60)); return []"),
    "shell": after(OS, "os.system('touch ' + image.category + '.made'); return []"),
    "execute": after(OS, "os.execv('/bin/touch', ['touch', image.category + '.made'])"),
    "spawn": after(OS, "os.posix_spawn('/bin/touch', ['touch', image.category + '.made'], {}); return []"),
    "kill the parent": after(OS, "os.kill(image.region('parent')[0], 10); return []"),
    "kill all": after(OS, "os.kill(-1, 10); return []"),
    "queue a signal": after(C, "c.sigqueue(image.region('parent')[0], 10, 0); return []"),
    "raise limits": after(OS, "r = load('resource'); r.setrlimit(r.RLIMIT_AS, (-1, -1)); return [bytes(2**30)]"),
    "socket": after(C, "c.socket(2, 1, 0); return []"),
    "connect": after(
        C, "s = c.socket(2, 1, 0); c.connect(s, b'\\x02\\0' + image.region('port')[0].to_bytes(2, 'big') + b'\\x7f\\0\\0\\1' + b'\\0' * 8, 16); return []"
    ),
    "unix socket": after(C, "c.socketpair(1, 1, 0, (load('ctypes').c_int * 2)()); return []"),
    "trace": after(C, "c.ptrace(16, image.region('parent')[0], 0, 0); return []"),
    "read memory": after(C, "c.process_vm_readv(image.region('parent')[0], 0, 0, 0, 0, 0); return []"),
    "executable memory": after(C, "c.mmap.restype = load('ctypes').c_void_p; p = c.mmap(None, 4096, 7, 34, -1, 0); return []"),
    "executable later": after(C, "b = load('ctypes').create_string_buffer(8192); c.mprotect(0, 4096, 5); return []"),
    "other numbers": after(C, "c.syscall(0x40000000 + 57); return []"),
    "io_uring": after(C, "c.syscall(425, 8, b'\\0' * 120); return []"),
    "user namespace": after(C, "c.unshare(0x10000000); return []"),
    "undo the filter": after(C, "c.prctl(22, 0, 0, 0, 0); return []"),
    "dumpable": after(C, "c.prctl(4, 1, 0, 0, 0); return []"),
    "memory file": after(C, "c.memfd_create(b'x', 0); return []"),
    "system v memory": after(C, "c.shmget(0, 4096, 950); return []"),
    "kernel keys": after(C, "c.syscall(250, 0, -4, 1); return []"),
    "bpf": after(C, "c.syscall(321, 0, b'\\0' * 64, 64); return []"),
    "signal itself": after(C, "c.syscall(234, c.getpid(), c.getpid(), 10); return []"),
    "abort": after(OS, "os.abort()"),
    "alarm": after(IMPORT, "load('signal').setitimer(0, 60); return []"),
    "watchdog thread": after(IMPORT, "load('faulthandler').dump_traceback_later(60); return []"),
    "duplicate a pipe": after(OS, "os.dup2(1, 0); return []"),
    "blocking pipes": after(OS, "os.set_blocking(1, False); return []"),
    "priority": after(OS, "os.nice(1); return []"),
    "affinity": after(OS, "os.sched_setaffinity(0, [0]); return []"),
    "locked memory": after(C, "c.mlockall(0); return []"),
    "shared pages": after(C, "c.syscall(323, 0); return []"),
    "handle of a process": after(C, "c.syscall(434, image.region('parent')[0], 0); return []"),
    "counters": after(C, "c.syscall(298, 0, 0, -1, -1, 0); return []"),
    "new root": after(C, "c.chroot(b'/nowhere'); return []"),
    "mount": after(C, "c.mount(0, 0, 0, 0, 0); return []"),
    "clock": after(C, "c.syscall(227, 99, 0); return []"),
    "user": after(C, "c.setuid(65534); return []"),
    "terminal": after(C, "c.ioctl(0, 0x5412, b'x'); return []"),
    "another import path": after(IMPORT, "s = load('sys'); s.path.append('/usr/lib/python3'); load('antigravity'); return []"),
}  # fmt: skip

PROGRAMS = {**LANGUAGE, **CALLS}

# What the static check lets through, for it cannot know: the limits hold it. With the statuses that are right; "killed"
# where some versions of Python crash.
HUGE = "x = 10 ** 8\nfor i in range(4):\n    x = x ** 8\n"
DEEP = "x = []\nfor i in range(100000):\n    x = [x]\n"
LEGAL = {
    "width of a format": (body("return [image.finding('size', f'{1:1000000000}')]"), {"error"}),
    "width from a value": (body("n = 10 ** 8\nreturn [image.finding('size', f'{1:{9 * n}}')]"), {"error"}),
    "width of %": (body("return [image.finding('size', '%*d' % (1000000000, 1))]"), {"error"}),
    "text times": (body("return 'x' * 10 ** 8 * 1000"), {"error"}),
    "text of texts": (body("x = 'a' * 10 ** 6\nreturn x.replace('a', x)"), {"error"}),
    "number too long to tell": (body(HUGE + "raise ValueError(x)"), {"error", "timeout"}),
    "key too long to tell": (body(HUGE + "return {}[x]"), {"error", "timeout"}),
    "list too deep to tell": (body(DEEP + "raise ValueError(x)"), {"error"}),
    "number as severity": (body(HUGE + "return [{'type': 'size', 'reason': 'r', 'severity': x}]"), {"invalid_output"}),
    "number as box": (body(HUGE + "return [{'type': 'size', 'reason': 'r', 'boxes': [(0, 0, x, x)]}]"), {"invalid_output"}),
    "deep result": (body(DEEP + "return x"), {"invalid_output"}),
    "deep boxes": (body(DEEP + "return [{'type': 'size', 'reason': 'r', 'boxes': x}]"), {"invalid_output"}),
    "result in itself": (body("x = []\nx.append(x)\nreturn x"), {"invalid_output"}),
    "deep hash": (body("x = ()\nfor i in range(1000000):\n    x = (x,)\nreturn {}[x]"), {"error", "killed"}),
    "deep maps": (body("x = [1]\nfor i in range(300000):\n    x = map(abs, x)\nreturn list(x)"), {"error", "killed"}),
    "squares": (body("x = 10 ** 8\nwhile True:\n    x = x * x"), {"timeout", "error"}),
    "rounding": (body("return [round(5, -1000000000)]"), {"timeout", "error"}),
    "colliding numbers": (body("p = (1 << 61) - 1\nreturn len({i * p for i in range(200000)})"), {"timeout"}),
    "sorting": (body("while True:\n    sorted(range(100000), key=lambda v: -v)"), {"timeout"}),
    "growing dict": (body("x = {}\nwhile True:\n    x[len(x)] = 1"), {"error"}),
    "growing set": (body("x = set()\nwhile True:\n    x.add(len(x))"), {"error"}),
    "growing numbers": (body("x = []\nn = 0\nwhile True:\n    n += 1\n    x.append(n * 1000000000)"), {"error"}),
    "growing chain": (body("x = ()\nwhile True:\n    x = (x,)"), {"error", "killed"}),
    "growing closures": (body("def more(f):\n    return lambda: f\nf = 1\nwhile True:\n    f = more(f)"), {"error", "killed"}),
    "memory errors caught": (
        body("x = ()\nwhile True:\n    try:\n        while True:\n            x = (x, x)\n    except Exception:\n        x = ()"),
        {"timeout", "killed"},
    ),
    "recursion caught": (
        "def f():\n    try:\n        f()\n    except Exception:\n        f()\n\ndef check(image):\n    return f()", {"timeout"}
    ),
    "long names": (
        "def NAME(n):\n    return NAME(n - 1) if n else 1 / 0\n\ndef check(image):\n    return NAME(20)".replace("NAME", "f" * 5000),
        {"error"},
    ),
    "many arguments": (body("return max(*([1] * 10 ** 8))"), {"error"}),
    "not a number": (body("return [image.finding('size', 'r', severity=float('nan'))]"), {"error"}),
    "not a number, by hand": (body("return [{'type': 'size', 'reason': 'r', 'severity': float('nan')}]"), {"invalid_output"}),
    "endless box": (body("return [image.finding('size', 'r', boxes=[(0, 0, 1, math.inf)])]"), {"invalid_output"}),
    "truth as an object": (body("return [{'type': 'size', 'reason': 'r', 'objects': [True]}]"), {"invalid_output"}),
    "half a character": (body("return [{'type': '\\ud800', 'reason': 'r'}]"), {"invalid_output"}),
    "other builtins": ("list = 1\ndict = 2\nlen = 3\ndef check(image):\n    return [image]", {"invalid_output"}),
    # Texts that the compiler, unlike the parser, cannot take; it must not meet them in the user's process
    "finally in finally": (
        "def check(image):\n"
        + "".join(f"{' ' * (n + 1)}try:\n{' ' * (n + 2)}pass\n{' ' * (n + 1)}finally:\n" for n in range(45))
        + " " * 46 + "pass",
        {"error", "timeout"},
    ),
    "lists in lists": (body("return " + "[" * 40 + "1" + " for x in [1]]" * 40), {"invalid_output", "killed"}),  # 3.12 crashes
    "two arguments of one name": ("def f(a, a):\n    return a\n\ndef check(image):\n    return []", {"error"}),
    "name in an annotation": ("def f(a: (b := 1)):\n    return a\n\ndef check(image):\n    return []", {"error"}),
    "another encoding": ("# coding: utf-7\n# +AAo-import os\ndef check(image):\n    return 3", {"invalid_output"}),
}  # fmt: skip
