"""The sandbox: honest programs run, limits hold, and nothing is left behind."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import psutil
import pytest
from sandbox_inputs import KERNEL, MARKER, leftovers, needs_kernel

from course_utils.prompting import sandbox, sandbox_child
from course_utils.prompting.sandbox import SandboxError, _run, run

# ── honest programs ───────────────────────────────────────────────────────────────────────────

HONEST = {
    "an expression": ("2 + 3 * 4", 14),
    "several lines": ("a = 5\nb = 7\na * b", 35),
    "nothing": ("", None),
    "a statement last": ("a = 5", None),
    "division": ("7 / 2", 3.5),
    "infinities": ("[float('inf'), -float('inf')]", [float("inf"), -float("inf")]),
    "a function": ("def f(x):\n    return x + 1\nf(1)", 2),
    "recursion": (
        "def f(n): return 1 if n < 2 else n * f(n - 1)\nf(30)",
        265252859812191058636308480000000,
    ),
    "comprehensions": ("{x: x * x for x in range(3)}", {0: 0, 1: 1, 2: 4}),
    "nested data": ("[(1, {'a': {2}}), None, True]", [(1, {"a": {2}}), None, True]),
    "text": ("'naïve ' + chr(10) + '\"quoted\"'", 'naïve \n"quoted"'),
    "bytes": ("bytes([1, 255])", b"\x01\xff"),
    "complex": ("(1 + 2j) * 1j", (-2 + 1j)),
    "f-strings": ("x = 3.14159\nf'{x:.2f} {x!r:>10}'", "3.14    3.14159"),
    "format of a literal": ("'{:.1f} {name} {:>{w}}'.format(2, 3, name='n', w=3)", "2.0 n   3"),
    "percent": ("'%d apples for $%.2f' % (3, 1.5)", "3 apples for $1.50"),
    "lambda, map, sorted": ("sorted(map(lambda x: -x, [1, 3, 2]))", [-3, -2, -1]),
    "try and raise": (
        "try:\n    raise ValueError('x')\nexcept ValueError as e:\n    r = e.args[0]\nr",
        "x",
    ),
    "a generator": ("def g():\n    for i in range(3): yield i\nlist(g())", [0, 1, 2]),
    "match": ("match [1, 2]:\n    case [a, b]: r = a + b\nr", 3),
    "walrus, star, slices": ("(n := 3)\na, *b = range(n)\nb[::-1]", [2, 1]),
    "annotations": ("x: int = 3\nx", 3),
    "closures": (
        "def f():\n"
        "    n = 0\n"
        "    def g():\n"
        "        nonlocal n\n"
        "        n += 1\n"
        "        return n\n"
        "    g()\n"
        "    return g()\n"
        "f()",
        2,
    ),
    "own name of a built-in": ("input = 3\nid = 4\ninput + id", 7),
    "a warning": ("1 is 1", True),
    "math": ("import math\nmath.sqrt(16) + math.comb(5, 2)", 14.0),
    "from math": ("from math import gcd, pi as p\n(gcd(12, 18), round(p, 2))", (6, 3.14)),
    "star of math": ("from math import *\nfloor(2.7)", 2),
    "two on a line": ("import math, statistics as st; st.mean([1, 2, 3])", 2),
    "fractions": (
        "from fractions import Fraction\nFraction(1, 3) + Fraction(1, 6)",
        Fraction(1, 2),
    ),
    "decimal": (
        "from decimal import Decimal, getcontext\ngetcontext().prec = 6\nDecimal(1) / Decimal(7)",
        Decimal("0.142857"),
    ),
    "dates": (
        "from datetime import date, timedelta\ndate(2024, 2, 28) + timedelta(days=2)",
        datetime.date(2024, 3, 1),
    ),
    "moments": (
        "import datetime\ndatetime.datetime(2024, 5, 6, 7, 8)",
        datetime.datetime(2024, 5, 6, 7, 8),
    ),
    "spans": (
        "from datetime import datetime\ndatetime(2024, 1, 2) - datetime(2024, 1, 1)",
        datetime.timedelta(days=1),
    ),
    "strptime": (
        "from datetime import datetime\n"
        "datetime.strptime('03/04/2024', '%d/%m/%Y').strftime('%Y-%m-%d')",
        "2024-04-03",
    ),
    "calendar": ("import calendar\ncalendar.isleap(2024)", True),
    "collections": (
        "from collections import Counter, defaultdict\n"
        "d = defaultdict(list)\n"
        "d['a'].append(1)\n"
        "(Counter('aab').most_common(1), d)",
        ([("a", 2)], {"a": [1]}),
    ),
    "itertools": ("import itertools\nlen(list(itertools.permutations(range(5))))", 120),
    "functools": (
        "from functools import lru_cache, reduce\n"
        "@lru_cache(maxsize=None)\n"
        "def f(n): return n if n < 2 else f(n-1) + f(n-2)\n"
        "f(80)",
        23416728348467685,
    ),
    "re": ("import re\nre.sub(r'(\\d+)', lambda m: str(int(m.group(1)) * 2), 'a1b22')", "a2b44"),
    "heapq and bisect": (
        "import heapq, bisect\n(heapq.nsmallest(2, [3, 1, 2]), bisect.bisect([1, 2], 2))",
        ([1, 2], 2),
    ),
    "operator and string": (
        "import operator, string\noperator.mul(3, 4), string.digits",
        (12, "0123456789"),
    ),
    "typing": (
        "from typing import List\ndef f(x: List[int]) -> int: return sum(x)\nf([1, 2])",
        3,
    ),
    "names in other scripts": ("été = 2\nété + len('\\N{BULLET}')", 3),
    "dict views": ("{'a': 1}.values()", [1]),
    "most common": (
        "from collections import Counter\nCounter('abca').most_common()",
        [("a", 2), ("b", 1), ("c", 1)],
    ),
    "a warning of a pattern": ("import re\nre.findall('[[a]', '[a')", ["[", "a"]),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_program_gives_its_value(name):
    source, expected = HONEST[name]
    result = run(source)
    assert result.ok, result
    assert result.value == expected
    assert type(result.value) is type(expected)


def test_not_a_number_comes_back():
    value = run("float('nan')").value
    assert value != value


def test_printed_text_comes_back_with_the_value():
    result = run("print('α', 1)\nprint('no newline', end='')\n7")
    assert (result.output, result.value) == ("α 1\nno newline", 7)


def test_printed_text_survives_an_error_and_a_kill():
    assert run("print('before')\n1/0").output == "before\n"
    assert run("print('before')\nwhile True: pass", seconds=0.1).output == "before\n"


def test_entry_names_a_function_or_a_variable():
    source = "def solution():\n    return 6 * 7\nanswer = 5\n99"
    assert run(source, entry="solution").value == 42
    assert run(source, entry="answer").value == 5
    assert run("from functools import cache\n@cache\ndef f(): return 3", entry="f").value == 3


def test_missing_entry_is_named():
    result = run("x = 1", entry="solution")
    assert (result.error, result.value) == ("NoValue", None)
    assert "defines no 'solution'" in result.message


def test_entry_that_raises_carries_its_line():
    result = run("def solution():\n    a = 1\n    return a / 0\n", entry="solution")
    assert (result.error, result.line) == ("ZeroDivisionError", 3)
    assert str(result) == "ZeroDivisionError in line 3: division by zero"


@pytest.mark.parametrize(
    ("source", "error", "line"),
    [
        ("x = 1\ny = x +", "SyntaxError", 2),
        ("x = 1\nprint(z)", "NameError", 2),
        ("\n\nimport numpy", "Refused", 3),
        ("int('x')", "ValueError", 1),
        ("{}['k']", "KeyError", 1),
        ("'a' + 1", "TypeError", 1),
        ("assert 1 > 2, 'no'", "AssertionError", 1),
        ("from math import nothing", "Refused", 1),
        ("import statistics\nstatistics.mean([])", "StatisticsError", 2),
        ("import itertools\nitertools.count()", "NoValue", None),
        ("lambda: 0", "NoValue", None),
    ],
)
def test_errors_have_names_and_lines(source, error, line):
    result = run(source)
    assert (result.error, result.line) == (error, line), result
    assert result.message


def test_refusal_says_what_and_what_there_is():
    assert "math" in run("import numpy").message
    assert "'open'" in run("open('x')").message
    assert "ClassDef" in run("class A: pass").message


def test_runs_repeat_exactly():
    source = "import random\n[random.random(), list({'a', 'b', 'c', 'd'}), random.choice('xyz')]"
    assert run(source, seed=1).value == run(source, seed=1).value
    assert run(source, seed=1).value[0] != run(source, seed=2).value[0]


def test_one_program_leaves_nothing_to_the_next():
    run("import math\nmath.pi = 3\nx = 1")
    assert run("import math\nmath.pi").value == pytest.approx(3.14159, abs=1e-4)
    assert run("x").error == "NameError"


# ── arguments, resources, levels ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(seconds=0), "seconds is 0"),
        (dict(seconds=float("nan")), "seconds is nan"),
        (dict(wall_seconds=-1), "wall_seconds is -1"),
        (dict(memory_mb=1), "memory_mb is 1"),
        (dict(memory_mb=63), "memory_mb is 63; the interpreter itself needs 64"),
        (dict(memory_mb=float("inf")), "memory_mb is inf"),
        (dict(output_limit=0), "output_limit is 0"),
        (dict(entry="a b"), "entry is 'a b'"),
        (dict(entry="__builtins__"), "entry is '__builtins__'"),
        (dict(require="magic"), "require is 'magic'"),
    ],
)
def test_senseless_limits_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        run("1", **arguments)


def test_the_least_and_the_greatest_that_is_permitted():
    assert run("7", memory_mb=64, output_limit=64).value == 7
    assert run("print('x')", output_limit=2).output == "x\n"
    longest = "7 #".ljust(sandbox.MAX_SOURCE, "x")
    assert run(longest).value == 7
    refused = run(longest + "x")
    assert (refused.error, refused.held) == ("Refused", ())
    assert refused.message == "the program has 100,001 characters; 100,000 are allowed"


def test_limits_may_be_numbers_of_numpy():
    result = run("7", seconds=np.float32(2), memory_mb=np.int64(256), seed=np.int64(1))
    assert result.value == 7


def test_source_must_be_text():
    with pytest.raises(ValueError, match="source is a bytes"):
        run(b"1")


def test_missing_interpreter_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = open_descriptors()
    with pytest.raises(SandboxError, match="cannot start /nonexistent/python"):
        run("1")
    assert open_descriptors() == before


def test_windows_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(SandboxError, match="WSL"):
        run("1")


def open_descriptors() -> int:
    return psutil.Process().num_fds()


def test_nothing_is_left_behind():
    run("1")
    before, children = open_descriptors(), len(psutil.Process().children())
    for source in ("1", "1/0", "while True: pass", "print('x' * 10**6)", "'x' * 10**10"):
        run(source, seconds=0.1)
    assert open_descriptors() == before
    assert len(psutil.Process().children()) == children


def test_runs_side_by_side():
    results = {}

    def one(n: int) -> None:
        results[n] = run(f"{n} * 2").value

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: 2 * n for n in range(8)}


def test_the_child_dies_with_its_parent():
    if not KERNEL:
        pytest.skip("only Linux ends a child with its parent")
    code = (
        "from course_utils.prompting.sandbox import _run; "
        f"_run('while True: pass', "
        f"seconds=60, seed={MARKER})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(leftovers)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not leftovers())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)


def test_interrupt_kills_the_child(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox._Watch, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run("while True: print(1)", seed=MARKER)
    assert leftovers() == []


@needs_kernel
def test_guarantees_are_measured_and_said():
    held = sandbox.guarantees()
    assert held.level == "kernel"
    assert all(held.refused.values()), held
    assert {"language", "audit", "limits", "seccomp"} <= set(held.layers)
    assert "not guaranteed: " in str(held)
    assert run("1", require="kernel").value == 1


def test_guarantees_say_what_does_not_hold(monkeypatch):
    monkeypatch.setattr(sandbox, "LAYERS", ("language", "audit"))
    monkeypatch.setattr(sandbox, "_PROBE_WALL", 2.0)  # ten times what no limit bounds here
    held = sandbox.guarantees.__wrapped__()
    assert held.level == "limits"
    assert not held.refused["read a file"]
    assert not held.refused["use more processor time than allowed"]
    assert "NOT REFUSED by the system, only by Python: read a file" in str(held)
    monkeypatch.setattr(sandbox, "guarantees", lambda: held)
    with pytest.raises(SandboxError, match="offers level 'limits'"):
        run("1", require="kernel")


def test_memory_is_watched_where_the_kernel_does_not_bound_it(monkeypatch):
    monkeypatch.setattr(sandbox, "_KERNEL_BOUNDS_MEMORY", False)
    source = "x = [0] * 10**7\nwhile True: x = x + [0] * 10**6"
    result = _run(source, seconds=5, memory_mb=150, layers=("language", "audit"))
    assert result.error == "MemoryLimit"


def test_layers_in_force_are_reported():
    assert "limits" in run("1").held
    assert _run("1", layers=("language",)).held == ()


def test_memory_stays_within_the_limit():
    """What the process holds is sampled from outside while it tries to take more."""
    peaks, over, ours = [0.0], threading.Event(), psutil.Process().cmdline()
    others = set(psutil.Process().children())  # a pool of ranks, say, that another test left open

    def sample() -> None:
        while not over.is_set():
            for child in set(psutil.Process().children()) - others:
                with contextlib.suppress(psutil.Error):
                    if child.cmdline() != ours:  # until it starts its program it is a copy of us
                        peaks.append(child.memory_info().rss / 2**20)

    sampler = threading.Thread(target=sample)
    sampler.start()
    source = "x = []\nwhile True:\n    try: x.append([0] * 10**5)\n    except MemoryError: pass"
    run(source, seconds=0.5, memory_mb=128)
    over.set()
    sampler.join()
    assert 64 < max(peaks) < 128  # it did fill its memory, and no more


# ── the system call filter, interpreted ───────────────────────────────────────────────────────


def verdict(program: list, arch: int, call: int, *arguments: int) -> str:
    """Interpret the BPF program as the kernel would (seccomp(2)) on one system call."""
    words = {0: call, 4: arch} | {16 + 8 * i: value for i, value in enumerate(arguments)}
    at, held = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:  # load a word
            held = words.get(k, 0)
        elif code == 0x06:  # return
            return {0x7FFF0000: "allow", 0x00050001: "refuse", 1 << 31: "kill"}[k]
        else:
            true = {0x15: held == k, 0x35: held >= k, 0x45: bool(held & k)}[code]
            at += yes if true else no


# machine, its audit number, and the numbers of write, mmap, mprotect, openat, execve, clone
MACHINES = [
    ("x86_64", 0xC000003E, (1, 9, 10, 257, 59, 56)),
    ("aarch64", 0xC00000B7, (64, 222, 226, 56, 221, 220)),
]


@pytest.mark.parametrize(("machine", "arch", "calls"), MACHINES)
def test_filter_lets_memory_and_answers_pass_and_nothing_else(machine, arch, calls):
    program = sandbox_child.filter_program(machine, (1, 9))
    write, mmap, mprotect, openat, execve, clone = calls
    ask = lambda *call: verdict(program, arch, *call)  # noqa: E731
    assert [ask(write, fd) for fd in (0, 1, 2, 9, 10)] == [
        "refuse", "allow", "refuse", "allow", "refuse",
    ]  # fmt: skip
    assert [ask(mmap, 0, 0, prot) for prot in (0, 1, 3, 4, 7)] == ["allow"] * 3 + ["refuse"] * 2
    assert [ask(mprotect, 0, 0, prot) for prot in (3, 5)] == ["allow", "refuse"]
    assert [ask(call) for call in (openat, execve, clone)] == ["refuse"] * 3
    allowed = {call for call in range(600) if ask(call, 1) == "allow"}
    assert allowed == set(sandbox_child._CALLS[machine].values()) - {arch}
    assert verdict(program, 0x40000003, write, 1) == "kill"  # 32-bit calls, other numbers
    assert len(program) < 4096  # BPF_MAXINSNS
    if machine == "x86_64":
        assert ask(0x40000000 + write, 1) == "kill"


def test_filter_of_an_unknown_machine_is_an_error_that_degrades():
    with pytest.raises(KeyError):
        sandbox_child.filter_program("riscv64", (1, 9))


# ── speed ─────────────────────────────────────────────────────────────────────────────────────


def test_a_call_costs_little_more_than_an_interpreter():
    """A notebook runs hundreds: the lock adds less than three bare interpreter starts."""

    def seconds(call) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    bare = [sys.executable, "-S", "-s", "-P", "-c", "pass"]
    pairs = [
        (seconds(lambda: run("1")), seconds(lambda: subprocess.run(bare, check=True)))
        for _ in range(15)
    ]
    ours, theirs = (min(times) for times in zip(*pairs, strict=True))
    assert ours < 5 * theirs + 0.02
