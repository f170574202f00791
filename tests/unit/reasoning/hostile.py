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
    "another import path": after(IMPORT, "s = load('sys'); s.path.append('/usr/lib/python3'); load('antigravity'); return []"),
}  # fmt: skip

PROGRAMS = {**LANGUAGE, **CALLS}
