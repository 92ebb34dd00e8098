"""The sandbox under attack: nothing succeeds, and the caller survives.

Each attack carries a real payload (read the secret, write the file, reach the listener, end the
victim) and success is looked for in the world, not in what the sandbox reports. The same payloads
are run without a sandbox first, so that an attack that could never work proves nothing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import psutil
import pytest
from sandbox_inputs import MARKER, OUTSIDE_PYTHON, leftovers, needs_kernel

from course_utils.prompting import sandbox
from course_utils.prompting.sandbox import _run, run

SECRET = "correct-horse-battery-staple"

# What an escape would do once it holds the os module, and how it would say so.
READ = "open('{FILE}').read()"
WALK = (
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".__init__.__globals__"
)


class Attack(NamedTuple):
    """`errors`: how it may end with every layer in force; `control`: it works without a sandbox;
    `kernel`: it is repeated with Python's own layers switched off."""

    name: str
    source: str
    errors: str = "Refused"
    control: bool = True
    kernel: bool = True


IMPORTS = [
    Attack("import os", "import os\nos.environ['SECRET']", kernel=False),
    Attack("import as", "import os as math\nprint(open('{FILE}').read())"),
    Attack("from import", "from os import environ\nenviron['SECRET']", kernel=False),
    Attack("dunder import", "__import__('os').environ['SECRET']", kernel=False),
    Attack("importlib", "import importlib\nimportlib.import_module('os').environ['SECRET']",
           kernel=False),
    Attack("submodule", "import os.path\nos.environ['SECRET']", kernel=False),
    Attack("relative import", "from . import os\nos.environ", "Refused", False, False),
    Attack("module inside a module", "import random\nrandom._os.environ['SECRET']", kernel=False),
    Attack("module of a module", "import statistics\nstatistics.sys.modules['os']"
           ".environ['SECRET']", kernel=False),
    Attack("star import", "from os import *\nenviron['SECRET']", kernel=False),
    Attack("import in a function", "def f():\n    import sys\n    return sys.modules['os']\n"
           "f().environ['SECRET']", kernel=False),
    Attack("loader of a module", "import itertools\nitertools.__loader__.load_module('posix')"
           ".environ[b'SECRET']", kernel=False),
    Attack("import of a C module", "import _io\n_io.open('{FILE}').read()"),
    Attack("hidden strptime door", "import _strptime\n_strptime.locale.os.environ['SECRET']",
           control=False, kernel=False),
]  # fmt: skip

WALKS = [
    Attack("subclasses", WALK + "['environ']['SECRET']", kernel=False),
    Attack("subclasses to a file", WALK + "['__builtins__']['open']('{FILE}').read()"),
    Attack("self of a built-in", "print.__self__.open('{FILE}').read()"),
    Attack("globals of a function", "def f(): pass\nf.__globals__['__builtins__'].open('{FILE}')"
           ".read()"),
    Attack("name of the built-ins", "__builtins__.open('{FILE}').read()"),
    Attack("built-ins by global", "def f():\n    global __builtins__\n    return __builtins__\n"
           "f().open('{FILE}').read()"),
    Attack("wide letters", "print.__ｓｅｌｆ__.open('{FILE}').read()"),
    Attack("frame of a traceback", "try:\n    1/0\nexcept ZeroDivisionError as e:\n"
           "    f = e.__traceback__.tb_frame\nf.f_builtins['open']('{FILE}').read()"),
    Attack("frame of a generator", "g = (g.gi_frame for _ in [1])\n"
           "list(g)[0].f_builtins['open']('{FILE}').read()"),
    Attack("class pattern", "match print:\n    case object(__self__=b):\n        "
           "print(b.open('{FILE}').read())"),
    Attack("format fields", "print('{0.__self__}'.format(print), '{SECRET}')", control=False,
           kernel=False),
    Attack("format through a name", "str.format('{0.__globals__}', lambda: 0)", control=False,
           kernel=False),
    Attack("nested format field", "'{0:{1.__self__}}'.format(1, print)", control=False,
           kernel=False),
    Attack("format_map", "'{x.__self__}'.format_map({'x': print})", control=False, kernel=False),
    Attack("format by map", "list(map(str.format, ['{0.__self__}'], [print]))", control=False,
           kernel=False),
    Attack("class statement", "class A:\n    x = open('{FILE}').read()\nA.x"),
    Attack("code object", "def f(): return 1\nf.__code__ = compile(\"open('{FILE}').read()\", '', "
           "'eval')\nf()"),
    Attack("context manager", "with open('{FILE}') as f: print(f.read())"),
    Attack("async", "async def f(): return open('{FILE}').read()\ntry: f().send(None)\n"
           "except StopIteration as e: print(e.value)"),
    Attack("attribute getter", "import operator\noperator.attrgetter('__self__')(print)"
           ".open('{FILE}').read()"),
    Attack("string formatter", "import string\nstring.Formatter().get_field('0.__self__', (print,),"
           " {})[0].open('{FILE}').read()"),
    Attack("wrapper attributes", "import functools\nf = functools.update_wrapper(lambda: 0, print, "
           "('__self__',), ())\nf.__self__.open('{FILE}').read()"),
    Attack("text annotations", "import typing\ntyping.get_type_hints(lambda: 0)\n"
           "def f(x: \"print(open('{FILE}').read())\"): pass\ntyping.get_type_hints(f)"),
    Attack("forward reference", "from typing import List\nList['x']", "Refused", False, False),
    Attack("keyword of the built-ins", "dict(__builtins__=1)", control=False, kernel=False),
]  # fmt: skip

EVALUATION = [
    Attack("eval", "eval(\"open('{FILE}').read()\")"),
    Attack("exec", "exec(\"print(open('{FILE}').read())\")"),
    Attack("compile", "import types\ntypes.FunctionType(compile(\"print(open('{FILE}').read())\","
           "'','exec'), globals())()"),
    Attack("getattr", "getattr(print, '__se' + 'lf__').open('{FILE}').read()"),
    Attack("vars", "vars()['__builtins__'].open('{FILE}').read()"),
    Attack("globals", "globals()['__builtins__'].open('{FILE}').read()"),
    Attack("type with three arguments", "type('A', (), {'s': open('{FILE}').read()}).s"),
    Attack("input", "input()", "Refused", False, False),
    Attack("breakpoint", "breakpoint()", "Refused", False, False),
    Attack("help", "help('modules')", "Refused NameError", False, False),
]  # fmt: skip

SYSTEM = [
    Attack("read a file", "print(open('{FILE}').read())"),
    Attack("read without open", "import os\nos.read(os.open('{FILE}', 0), 100).decode()"),
    Attack("write a file", "open('{TARGET}', 'w').write('x')"),
    Attack("make a folder", "import os\nos.mkdir('{TARGET}')"),
    Attack("make a link", "import os\nos.symlink('/etc/passwd', '{TARGET}')"),
    Attack("delete a file", "import os\nos.unlink('{VICTIM_FILE}')"),
    Attack("overwrite a file", "import os\nos.truncate('{VICTIM_FILE}', 0)"),
    Attack("file through sqlite", "import sqlite3\nsqlite3.connect('{TARGET}').execute("
           "'create table t(x)')"),
    Attack("connect", "import socket\nsocket.create_connection(('127.0.0.1', {PORT}), 1)"),
    Attack("connect, raw", "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_STREAM)\n"
           "s.connect(('127.0.0.1', {PORT}))"),
    Attack("fetch", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{PORT}/', "
           "timeout=1)"),
    Attack("shell", "import os\nos.system('cat {FILE} > {TARGET}')"),
    Attack("subprocess", "import subprocess\nsubprocess.check_output(['cat', '{FILE}']).decode()"),
    Attack("spawn", "import os\nos.waitpid(os.posix_spawn('/usr/bin/touch', ['touch', '{TARGET}'],"
           " {}), 0)"),
    Attack("exec another program", "import os\nos.execv('/bin/cat', ['cat', '{FILE}'])"),
    Attack("fork", "import os\nif os.fork() == 0: open('{TARGET}', 'w').close()\n"
           "else: os.wait()"),
    Attack("fork and flee", "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
           "    if os.fork() == 0:\n        open('{TARGET}', 'w').close()\n        time.sleep(1)\n"
           "else: os.wait(); time.sleep(.3)"),
    Attack("kill a process", "import os\nos.kill({VICTIM}, 9)"),
    Attack("kill the caller's group", "import os\nos.killpg(os.getpgid({VICTIM}), 9)"),
    Attack("lower the victim's limits", "import resource\nresource.prlimit({VICTIM}, "
           "resource.RLIMIT_NOFILE, (7, 7))", control=sys.platform == "linux"),
    Attack("environment", "import os\nos.environ['SECRET']", kernel=False),
    Attack("environment of the parent", "open(f'/proc/{__import__(\"os\").getppid()}/environ')"
           ".read()", control=False),
    Attack("memory of the parent", "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
           "Refused", False),
    Attack("native code", "import ctypes\nctypes.CDLL(None).system(b'cat {FILE} > {TARGET}')"),
    Attack("native open", "import ctypes, os\nos.read(ctypes.CDLL(None).open(b'{FILE}', 0), 100)"
           ".decode()"),
    Attack("raw system call", "import ctypes, os\nctypes.CDLL(None).syscall({OPEN_CALL}, "
           "-100, b'{TARGET}', 0o101, 0o600)", control=sys.platform == "linux"),
    Attack("inherited descriptors", "import os\nfor fd in range(3, 256):\n    try: print(os.pread("
           "fd, 100, 0))\n    except OSError: pass", "Refused", False),
    Attack("stdin of the caller", "import sys\nsys.stdin.read()", "Refused", False, False),
    Attack("thread", "import threading\nt = threading.Thread(target=lambda: open('{TARGET}', 'w')"
           ".close())\nt.start(); t.join()"),
    Attack("raise the limits", "import resource\nr = resource.RLIMIT_NOFILE\nresource.setrlimit(r, "
           "(64, 64))\nprint(open('{FILE}').read())"),
]  # fmt: skip

ALL = "TimeLimit MemoryLimit"
EXHAUSTION = [
    Attack("endless loop", "while True: pass", "TimeLimit"),
    Attack("endless loop that catches all", "while True:\n    try:\n        while True: pass\n"
           "    except: pass", "TimeLimit"),
    Attack("endless generator", "def g():\n    while True: yield 1\nsum(g())", "TimeLimit"),
    Attack("one long call", "sum(range(10**12))", "TimeLimit"),
    Attack("endless iterator", "import itertools\nfor _ in itertools.count(): pass", "TimeLimit"),
    Attack("backtracking pattern", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "TimeLimit"),
    Attack("huge power", "10 ** 10 ** 9", ALL),
    Attack("huge factorial", "import math\nmath.factorial(10**8)", ALL),
    Attack("huge shift", "1 << 10**11", "MemoryLimit OverflowError"),
    Attack("tower of powers", "9**9**9**9", ALL + " OverflowError"),
    Attack("huge text", "'x' * 10**10", "MemoryLimit"),
    Attack("huge bytes", "bytes(10**11)", "MemoryLimit"),
    Attack("huge list", "[0] * 10**10", "MemoryLimit"),
    Attack("doubling list", "x = [0]\nwhile True: x += x", "MemoryLimit"),
    Attack("growing list", "x = []\nwhile True: x.append('abc' * 1000)", ALL),
    Attack("memory, caught", "x = []\nwhile True:\n    try:\n        while True: x.append([0] * "
           "10**6)\n    except MemoryError: pass", "TimeLimit"),
    Attack("huge padding", "f'{1:{10**10}}'", "MemoryLimit ValueError"),
    Attack("huge precision", "from decimal import *\ngetcontext().prec = 10**17\nDecimal(2).sqrt()",
           ALL + " ValueError"),
    Attack("huge permutation", "import itertools\nlist(itertools.permutations(range(20)))", ALL),
    Attack("huge set of limits", "set(range(10**12))", ALL),
    Attack("recursion", "def f(): return f()\nf()", "RecursionError"),
    Attack("recursion, caught", "def f():\n    try: f()\n    except RecursionError: f()\nf()",
           "RecursionError TimeLimit Crashed"),
    Attack("nested list", "x = []\nfor _ in range(10**5): x = [x]\nrepr(x)",
           "RecursionError Crashed"),
    Attack("deep value", "x = []\nfor _ in range(10**5): x = [x]\nx", "NoValue"),
    Attack("value that holds itself", "x = []\nx.append(x)\nx", "NoValue"),
    Attack("exponential value", "x = [0]\nfor _ in range(45): x = [x, x]\nx", "NoValue"),
    Attack("huge value", "list(range(10**6))", "NoValue"),
    Attack("huge lazy value", "range(10**15)", "NoValue"),
    Attack("huge text as value", "'x' * 10**7", "NoValue"),
    Attack("integer of a million digits", "10 ** 10**6", "ValueError"),
    Attack("endless output", "while True: print('x' * 100)", "OutputLimit"),
    Attack("one huge line", "print('x' * 10**8)", "OutputLimit MemoryLimit"),
    Attack("output without a newline", "while True: print('x', end='')", "OutputLimit"),
    Attack("huge error message", "raise ValueError('x' * 10**7)", "ValueError"),
    Attack("deep parentheses", "(" * 5000 + ")" * 5000, "SyntaxError MemoryLimit"),
    Attack("deep expression", "-" * 50000 + "1", "SyntaxError RecursionError MemoryLimit Crashed"),
    Attack("long sum", "+".join(["1"] * 40000), "RecursionError Crashed MemoryLimit"),
    Attack("deep blocks", "\n".join(" " * i + "if 1:" for i in range(200)) + "\n" + " " * 200 + "1",
           "SyntaxError IndentationError"),
    Attack("parser blow-up", "{" * 120, "SyntaxError TimeLimit"),
    Attack("zero byte", "1\x00+1", "SyntaxError ValueError"),
    Attack("broken unicode", "'\ud800'", "UnicodeDecodeError SyntaxError"),
    Attack("too long a program", "1\n" * 60_000, "Refused"),
]  # fmt: skip

STUBBORN = [
    Attack("sleep", "import time\ntime.sleep(60)", "Refused TimeLimit PermissionError"),
    Attack("disarm the timer", "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\n"
           "while True: pass", "Refused TimeLimit PermissionError"),
    Attack("ignore the signals", "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, "
           "signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass", "Refused TimeLimit"),
    Attack("wait for input", "import os\nos.read(1, 1)",
           "Refused PermissionError OSError TimeLimit"),
    Attack("wait on a lock", "import _thread\nl = _thread.allocate_lock()\nl.acquire()\n"
           "l.acquire()", "Refused TimeLimit"),
    Attack("fork bomb", "import os\nwhile True: os.fork()",
           "Refused PermissionError BlockingIOError"),
    Attack("fork bomb, caught", "import os\nwhile True:\n    try: os.fork()\n    except OSError: "
           "pass", "Refused TimeLimit"),
    Attack("thread bomb", "import threading, time\nwhile True: threading.Thread(target=time.sleep, "
           "args=(60,)).start()", "Refused RuntimeError TimeLimit"),
    Attack("stop oneself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
           "Refused PermissionError TimeLimit"),
    Attack("leave the group", "import os\nos.setsid()\nwhile True: pass",
           "Refused PermissionError TimeLimit"),
    Attack("crash", "import ctypes\nctypes.string_at(0)", "Refused Crashed"),
    Attack("exit quietly", "import os\nos._exit(0)", "Refused Crashed"),
    Attack("forge an answer", "import os\nfor fd in range(3, 64):\n    try: os.write(fd, "
           "b'{{{{\\n')\n    except OSError: pass", "Refused Crashed"),
    Attack("forge a bomb", "import os\nfor fd in range(3, 64):\n    try: os.write(fd, "
           "b'{\"value\": {\"type\": \"Fraction\", \"of\": \"1e999999999\"}}\\n')\n"
           "    except OSError: pass", "Refused Crashed"),
    Attack("forge a deep answer", "import os\nfor fd in range(3, 64):\n    try: os.write(fd, "
           "b'{\"value\":' + b'[' * 30000 + b'\\n')\n    except OSError: pass", "Refused Crashed"),
    Attack("endless answer", "import os\nwhile True:\n  for fd in range(3, 64):\n    try: os.write("
           "fd, b'x' * 65536)\n    except OSError: pass", "Refused OutputLimit"),
]  # fmt: skip

DEEDS = [*IMPORTS, *WALKS, *EVALUATION, *SYSTEM]
BOMBS = [*EXHAUSTION, *STUBBORN]
NEEDED = "ctypes _ctypes os resource signal socket sqlite3 subprocess threading time types " + (
    "typing operator string functools urllib.request importlib _io _thread"
)


def named(attacks: list[Attack]) -> list:
    return [pytest.param(attack, id=attack.name) for attack in attacks]


class World:
    """What an attack would touch: a secret, a place to write, a listener, another process."""

    def __init__(self, folder) -> None:
        self.file, self.target = folder / "secret.txt", folder / "target"
        self.victim_file = folder / "victim.txt"
        for directory in (folder, *folder.parents[:2]):
            directory.chmod(0o777)  # reachable for whatever user the sandbox becomes
        self.file.write_text(SECRET)
        self.victim_file.write_text("alive")
        for path in (self.file, self.victim_file):
            path.chmod(0o666)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.victim = subprocess.Popen(["sleep", "60"], start_new_session=True)

    def close(self) -> None:
        self.listener.close()
        self.victim.kill()
        self.victim.wait()

    def fill(self, source: str) -> str:
        values = dict(
            FILE=self.file, TARGET=self.target, VICTIM_FILE=self.victim_file,
            PORT=self.listener.getsockname()[1], VICTIM=self.victim.pid,
            OPEN_CALL=56 if os.uname().machine == "aarch64" else 257,
        )  # fmt: skip
        for name, value in values.items():
            source = source.replace("{" + name + "}", str(value))
        return source

    def damage(self, shown: str) -> list[str]:
        """Everything an attack achieved; `shown` is all that came back from it."""
        done = ["secret leaked"] if SECRET in shown else []
        if os.path.lexists(self.target):
            done.append("target written")
        if not self.victim_file.exists() or self.victim_file.read_text() != "alive":
            done.append("file destroyed")
        if self.victim.poll() is not None:
            done.append("victim killed")
        elif sys.platform == "linux" and "(7, 7)" in str(
            psutil.Process(self.victim.pid).rlimit(psutil.RLIMIT_NOFILE)
        ):
            done.append("victim's limits changed")
        try:
            self.listener.accept()[0].close()
            done.append("connection made")
        except BlockingIOError:
            pass
        return done


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    folder = tmp_path / "w"
    folder.mkdir()
    world = World(folder)
    yield world
    world.close()


def in_the_open(source: str) -> str:
    """Run a program as an ordinary one, its last line printed: the control of every attack."""
    show = (
        "import ast, sys\n"
        "t = ast.parse(sys.stdin.read())\n"
        "if isinstance(t.body[-1], ast.Expr): t.body[-1].value = ast.Call(ast.Name('print', "
        "ast.Load()), [t.body[-1].value], [])\n"
        "exec(compile(ast.fix_missing_locations(t), '<p>', 'exec'), {'__builtins__': __builtins__})"
    )
    done = subprocess.run(
        [sys.executable, "-c", show], input=source, capture_output=True, text=True, timeout=20,
        start_new_session=True, check=False,
    )  # fmt: skip
    return done.stdout


def shown(result: sandbox.Result) -> str:
    return f"{result.value!r} {result.output} {result.message}"


# ── attacks ───────────────────────────────────────────────────────────────────────────────────


def test_there_are_many_attacks_and_no_two_share_a_name():
    names = [attack.name for attack in (*DEEDS, *BOMBS)]
    assert len(names) == len(set(names)) >= 100


@pytest.mark.parametrize("attack", named([a for a in DEEDS if a.control]))
def test_control_the_attack_works_without_a_sandbox(attack, world):
    output = in_the_open(world.fill(attack.source))
    deadline = time.monotonic() + 3  # a killed process is a zombie a moment later
    while not (done := world.damage(output)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done, f"the attack does nothing even in the open; it printed {output!r}"


@pytest.mark.parametrize("attack", named(DEEDS))
def test_attack_fails(attack, world):
    result = run(world.fill(attack.source), seconds=1.0)
    assert world.damage(shown(result)) == []
    assert result.error in attack.errors.split(), result
    assert result.value is None


@pytest.mark.parametrize("attack", named(DEEDS))
def test_the_allow_list_alone_stops_the_attack(attack, world):
    result = _run(world.fill(attack.source), seconds=1.0, layers=("language",))
    assert world.damage(shown(result)) == []
    expected = "NoValue" if attack.name == "forward reference" else attack.errors
    assert result.error in expected.split(), result


@needs_kernel
@pytest.mark.parametrize("attack", named([a for a in DEEDS if a.kernel]))
def test_attack_fails_with_every_python_layer_off(attack, world):
    result = _run(
        world.fill(attack.source), seconds=1.0, layers=OUTSIDE_PYTHON, load=tuple(NEEDED.split())
    )
    assert world.damage(shown(result)) == []


@needs_kernel
@pytest.mark.parametrize("attack", named([a for a in DEEDS if a.kernel]))
def test_attack_fails_with_the_system_call_filter_alone(attack, world):
    result = _run(
        world.fill(attack.source), seconds=1.0, wall=3, layers=("seccomp",),
        load=tuple(NEEDED.split()),
    )  # fmt: skip
    assert world.damage(shown(result)) == []


@pytest.mark.parametrize("attack", named(SYSTEM))
def test_attack_fails_where_no_filter_exists(attack, world):
    """The level "limits", as on macOS: the allow-list, the audit hook and resource limits."""
    layers = ("language", "audit", "limits")
    result = _run(world.fill(attack.source), seconds=1.0, layers=layers)
    assert world.damage(shown(result)) == []
    assert result.error in attack.errors.split(), result


@pytest.mark.parametrize("attack", named(SYSTEM))
def test_the_audit_hook_alone_stops_the_attack(attack, world):
    """Were the allow-list broken, the first event ends the program, before anything happens."""
    if attack.name in ("environment", "inherited descriptors", "stdin of the caller"):
        pytest.skip("reads what the process already holds; nothing of the caller's is there")
    layers = ("audit", "limits")
    result = _run(world.fill(attack.source), seconds=1.0, wall=3, layers=layers, load=("os",))
    assert world.damage(shown(result)) == []


@pytest.mark.parametrize("attack", named(BOMBS))
def test_bomb_is_contained(attack):
    started = time.monotonic()
    result = run(attack.source, seconds=0.25, wall_seconds=4.0, memory_mb=128)
    assert result.error in attack.errors.split(), result
    assert_contained(result, time.monotonic() - started)


@needs_kernel
@pytest.mark.parametrize("attack", named(STUBBORN))
def test_bomb_is_contained_with_every_python_layer_off(attack):
    started = time.monotonic()
    result = _run(
        attack.source, seconds=0.25, wall=1.5, memory_mb=256, layers=OUTSIDE_PYTHON,
        load=tuple(NEEDED.split()), seed=MARKER,
    )  # fmt: skip
    assert not result.ok or attack.name == "forge an answer", result
    assert_contained(result, time.monotonic() - started)
    assert leftovers() == []


def assert_contained(result: sandbox.Result, elapsed: float) -> None:
    assert elapsed < 20  # the limit on the clock, and room for a loaded machine
    assert result.cpu_seconds < 1.0  # 0.25 s, the start, and the clock tick of the timer
    assert len(result.output) <= 20_000
    assert len(result.message) < 3_000
