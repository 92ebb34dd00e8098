"""The inside of the sandbox: a fresh interpreter locks itself up, then runs one program.

Started by `sandbox.run` as a process of its own, never imported by a notebook. The order is the
point: the program's text is bytes until the process has given up files, network, processes and
privileges; only then is it parsed, checked against the allow-list and run. Imports are kept to
what an interpreter without `site` has at hand, because a notebook starts hundreds of these.

Sources: setrlimit(2), seccomp(2), user_namespaces(7), PEP 578 (audit hooks).
"""

from __future__ import annotations

import _ast
import builtins
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


TYPE_CHECKING = False  # importing typing would double the time a start takes
LAYERS = ("language", "audit", "user", "namespaces", "limits", "parent", "seccomp")
PROGRAM = "<program>"
VALUE = "<value>"  # no program can spell this name
MAX_DEPTH = 50


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_Function, _Module = type(_words), type(sys)


BUILTINS = _words("""
abs all any ascii bin bool bytes callable chr complex dict divmod enumerate filter
float format frozenset hash hex int isinstance issubclass iter len list map max min next oct ord
pow print range repr reversed round set slice sorted str sum tuple zip
ArithmeticError AssertionError AttributeError Exception ImportError IndexError KeyError LookupError
MemoryError NameError NotImplementedError OverflowError RecursionError RuntimeError StopIteration
SyntaxError TypeError UnicodeError ValueError ZeroDivisionError""")


# Names a program may import. Left out on purpose: whatever takes an attribute's name as a string
# (operator.attrgetter, functools.update_wrapper, string.Formatter), evaluates text
# (collections.namedtuple, typing.get_type_hints) or reaches the system (random.SystemRandom).
MODULES: dict[str, str] = {
    "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
    "calendar": "isleap leapdays monthrange weekday",
    "cmath": "*",
    "collections": "Counter OrderedDict defaultdict deque",
    "datetime": "MAXYEAR MINYEAR date datetime time timedelta timezone",
    "decimal": "Context Decimal getcontext ROUND_CEILING ROUND_DOWN ROUND_FLOOR ROUND_HALF_DOWN "
    "ROUND_HALF_EVEN ROUND_HALF_UP ROUND_UP",
    "fractions": "Fraction",
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "itertools": "*",
    "math": "*",
    "operator": "add and_ eq floordiv ge gt index inv itemgetter le lt mod mul ne neg not_ or_ pow "
    "sub truediv xor",
    "random": "betavariate choice choices expovariate gauss normalvariate randint random randrange "
    "sample seed shuffle triangular uniform",
    "re": "A ASCII DOTALL I IGNORECASE M MULTILINE Match Pattern S compile escape findall finditer "
    "fullmatch match search split sub subn",
    "statistics": "NormalDist StatisticsError correlation fmean geometric_mean harmonic_mean "
    "linear_regression mean median median_high median_low mode multimode pstdev pvariance "
    "quantiles stdev variance",
    "string": "ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits octdigits "
    "punctuation whitespace",
    "typing": "Any Callable Dict Iterable Iterator List Optional Sequence Set Tuple Union",
}
# What those modules themselves import only when a function is called.
_LOADED_LATE = {
    "collections": ("heapq",),
    "datetime": ("_strptime", "time"),
    "re": ("warnings",),
}


# Syntax a program may use. Left out: classes, with, async, and class patterns, which read
# attributes by a name that never appears as an attribute in the tree.
NODES = _words("""
Module Expr Assign AugAssign AnnAssign For While If Break Continue Pass Return Delete
FunctionDef Lambda arguments arg keyword Call Name Load Store Del Constant BinOp UnaryOp BoolOp
Compare IfExp JoinedStr FormattedValue List Tuple Dict Set ListComp SetComp DictComp GeneratorExp
comprehension Subscript Slice Starred Attribute NamedExpr Import ImportFrom alias Try ExceptHandler
Raise Assert Global Nonlocal Yield YieldFrom
Match match_case MatchValue MatchSingleton MatchSequence MatchMapping MatchStar MatchAs MatchOr
Add Sub Mult Div FloorDiv Mod Pow MatMult LShift RShift BitOr BitXor BitAnd Invert Not UAdd USub
And Or Eq NotEq Lt LtE Gt GtE Is IsNot In NotIn""")


# Attributes of what the listed functions return, beside those of the listed types.
_RESULTS = _words("""
args cache_clear cache_info close send throw value slope intercept year week weekday
hits misses maxsize currsize""")


_TYPES = (int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, slice)
_NOT_ATTRIBUTES = {"format", "format_map"}  # they walk attributes named in a string


# ── the allow-list ────────────────────────────────────────────────────────────────────────────


def exports(name: str) -> dict[str, Any]:
    """Return what a program sees of the module `name`: its listed names and nothing else."""
    module = __import__(name)
    wanted = dir(module) if MODULES[name] == "*" else MODULES[name].split()
    return {key: getattr(module, key) for key in wanted if not key.startswith("_")}


def attribute_names(modules: dict[str, dict[str, Any]]) -> set[str]:
    """Return every attribute a program may read: the public ones of listed types and modules."""
    values = [value for names in modules.values() for value in names.values()]
    types = (*_TYPES, *(value for value in values if isinstance(value, type)))
    names = {name for kind in types for name in dir(kind)}
    names.update(_RESULTS, *modules.values())
    return {name for name in names if not name.startswith("_")} - _NOT_ATTRIBUTES


def violations(tree: _ast.AST, modules: dict[str, dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """Yield (line, reason) for everything in the tree that is not on the allow-list.

    `modules` maps the names of loaded modules to their exports. Walks with a stack of its own,
    so that a deep tree cannot exhaust the interpreter's.
    """
    attributes, bound = attribute_names(modules), _bound_names(tree)
    for node in _walk(tree):
        line = getattr(node, "lineno", 0)
        for reason in _reasons(node, attributes, bound, modules):
            yield line, reason


def _walk(tree: _ast.AST) -> Iterator[_ast.AST]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if _literal_format(node):  # checked as a whole: only its arguments remain
            waiting += [*node.args, *node.keywords]  # type: ignore[attr-defined]
            continue
        for field in node._fields:
            child = getattr(node, field, None)
            for item in child if isinstance(child, list) else (child,):
                if isinstance(item, _ast.AST):
                    waiting.append(item)


def _bound_names(tree: _ast.AST) -> set[str]:
    """Names the program itself defines: it may call its own variable `input` or `id`."""
    bound = set()
    for node in _walk(tree):
        if isinstance(node, _ast.Name) and isinstance(node.ctx, _ast.Store):
            bound.add(node.id)
        elif isinstance(node, (_ast.FunctionDef, _ast.arg)):
            bound.add(getattr(node, "name", None) or getattr(node, "arg", ""))
    return bound


def _reasons(
    node: _ast.AST, attributes: set[str], bound: set[str], modules: dict[str, dict[str, Any]]
) -> Iterator[str]:
    kind = type(node).__name__
    if kind not in NODES:
        yield f"{kind} is not part of the sandbox's Python"
    for name in _identifiers(node):
        if name.startswith("__") or name.endswith("__"):
            yield f"the name {name!r} is not available"
    if isinstance(node, _ast.Attribute) and node.attr not in attributes:
        yield f"the attribute {node.attr!r} is not on the allow-list"
    if isinstance(node, _ast.Name) and _is_foreign_builtin(node.id, bound):
        yield f"the built-in {node.id!r} is not available"
    if isinstance(node, (_ast.Import, _ast.ImportFrom)):
        yield from _import_reasons(node, modules)


def _identifiers(node: _ast.AST) -> Iterator[str]:
    """Every identifier of a node, whatever its field is called; text constants are not names."""
    if isinstance(node, _ast.Constant):
        return
    for field in node._fields:
        value = getattr(node, field, None)
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, str):
                yield item


def _is_foreign_builtin(name: str, bound: set[str]) -> bool:
    return name not in bound and name not in BUILTINS and hasattr(builtins, name)


def _import_reasons(node: Any, modules: dict[str, dict[str, Any]]) -> Iterator[str]:
    plain = isinstance(node, _ast.Import)
    names = [alias.name for alias in node.names] if plain else [node.module or "."]
    for name in names:
        if name not in MODULES:
            yield f"the module {name!r} is not available; there are: {', '.join(MODULES)}"
    if plain or (module := modules.get(node.module)) is None:
        return
    for alias in node.names:
        if alias.name != "*" and alias.name not in module:
            yield f"{alias.name!r} of the module {node.module!r} is not available"


def _literal_format(node: Any) -> bool:
    """Is this `"…".format(…)` on a literal whose fields are names or numbers and nothing more?"""
    if not isinstance(node, _ast.Call) or not isinstance(node.func, _ast.Attribute):
        return False
    text = getattr(node.func.value, "value", None)
    literal = isinstance(node.func.value, _ast.Constant) and isinstance(text, str)
    return node.func.attr == "format" and literal and _plain_fields(text)


def _plain_fields(text: str) -> bool:
    from _string import formatter_parser

    try:
        fields = [(field, spec) for _, field, spec, _ in formatter_parser(text)]
    except ValueError:
        return False
    names = all(not set(field or "") & set(".[") for field, _ in fields)
    return names and all(_plain_fields(spec) for _, spec in fields if spec)


# ── giving things up ──────────────────────────────────────────────────────────────────────────


def limit(seconds: float, memory_mb: int) -> None:
    """Set what the kernel enforces on this process; a limit it does not know is passed over.

    No new file descriptor of any kind, nothing written to a file, no child process or thread,
    CPU time to the hundredth of a second (the timer's signal kills) and address space.
    """
    import resource as r
    from _signal import ITIMER_PROF, setitimer

    cpu = int(seconds) + 2  # the second line of defence, should the timer be disarmed
    wanted = (("CPU", cpu), ("AS", memory_mb << 20), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0))
    for name, value in (*wanted, ("NOFILE", 0), ("MEMLOCK", 0), ("MSGQUEUE", 0)):
        kind = getattr(r, f"RLIMIT_{name}", None)
        _attempt(lambda kind=kind, value=value: r.setrlimit(kind, (value, value)))
    setitimer(ITIMER_PROF, seconds)


def die_with_parent(libc: Any, parent: int) -> None:
    """Ask to be killed when the parent dies, and end at once if it has died already."""
    set_parent_death_signal, sigkill = 1, 9
    libc.prctl(set_parent_death_signal, sigkill, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def drop_user() -> None:
    """Where the caller is root: become nobody, whom limits on processes and files do bind.

    Raises OSError where the caller is not root: there is nobody less to become.
    """
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def leave_namespaces(libc: Any) -> None:
    """Move to empty user, network and IPC namespaces and give up the capabilities held there."""
    import ctypes

    new_user, new_net, new_ipc = 0x10000000, 0x40000000, 0x08000000
    _checked(libc.unshare(new_user | new_net | new_ipc))
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _checked(libc.capset(header, (ctypes.c_uint32 * 6)()))


# System calls left to the program by number: memory, answering, ending, and the clock.
_CALLS = {
    "x86_64": dict(
        arch=0xC000003E, write=1, mmap=9, mprotect=10, munmap=11, brk=12, rt_sigprocmask=14,
        rt_sigreturn=15, sched_yield=24, mremap=25, madvise=28, exit=60, gettimeofday=96,
        futex=202, clock_gettime=228, exit_group=231, getrandom=318,
    ),
    "aarch64": dict(
        arch=0xC00000B7, write=64, mmap=222, mprotect=226, munmap=215, brk=214, rt_sigprocmask=135,
        rt_sigreturn=139, sched_yield=124, mremap=216, madvise=233, exit=93, gettimeofday=169,
        futex=98, clock_gettime=113, exit_group=94, getrandom=278,
    ),
}  # fmt: skip


def filter_program(machine: str, descriptors: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Return the seccomp filter as BPF instructions (code, jump if true, if false, constant).

    Allowed: the calls of `_CALLS`, writing to `descriptors` alone, and memory that is never
    executable. All else returns EPERM; a foreign call convention kills. Raises KeyError for a
    machine whose system call numbers are not listed.
    """
    load, equal, above, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, kill = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050001), (give, 0, 0, 1 << 31)
    calls = dict(_CALLS[machine])
    program = [(load, 0, 0, 4), (equal, 1, 0, calls.pop("arch")), kill]
    program += [(load, 0, 0, 0), (above, 0, 1, 0x40000000), kill]  # x32 calls share the arch
    write = [(load, 0, 0, 16)]  # first argument: the descriptor
    for descriptor in descriptors:
        write += [(equal, 0, 1, descriptor), allow]
    program += [(equal, 0, len(write) + 1, calls.pop("write")), *write, refuse]
    for name in ("mmap", "mprotect"):  # third argument: the protection; 4 is PROT_EXEC
        program += [(equal, 0, 4, calls.pop(name)), (load, 0, 0, 32), (bits, 0, 1, 4)]
        program += [refuse, allow]
    for number in calls.values():
        program += [(equal, 0, 1, number), allow]
    return [*program, refuse]


def filter_calls(libc: Any, descriptors: tuple[int, ...]) -> None:
    """Install the seccomp filter, for good."""
    import ctypes
    import struct

    no_new_privileges, zero = 38, ctypes.c_ulong(0)
    _checked(libc.prctl(no_new_privileges, ctypes.c_ulong(1), zero, zero, zero))
    program = filter_program(os.uname().machine, descriptors)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    # struct sock_fprog: a 16-bit length, padding up to a pointer, the pointer
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    set_seccomp, mode_filter = 22, ctypes.c_ulong(2)
    _checked(libc.prctl(set_seccomp, mode_filter, header, zero, zero))


def forbid_events(report: Callable[..., None]) -> Callable[[], None]:
    """End the process at the first audited event: open, socket, exec, import, frames, and so on.

    Nothing that the allow-list permits raises one, so no list of names has to be kept. Returns
    the function that ends the watch, for when the program is over.
    """
    over = []

    def hook(event: str, _: tuple) -> None:
        if not over:
            report(error="Refused", message=f"the program was stopped when it tried {event!r}")

    sys.addaudithook(hook)
    return lambda: over.append(True)


def lock_up(how: dict[str, Any]) -> list[str]:
    """Give up everything but memory, standard output and the answer; return what took effect."""
    libc = _load_what_locking_needs()
    steps: list[tuple[str, Callable[[], None]]] = [
        ("user", drop_user),
        ("namespaces", lambda: leave_namespaces(libc)),
        ("limits", lambda: limit(how["seconds"], how["memory_mb"])),
        ("parent", lambda: die_with_parent(libc, how["parent"])),
        ("seccomp", lambda: filter_calls(libc, (1, how["answer"]))),
    ]
    return [name for name, step in steps if name in how["layers"] and _attempt(step) is not False]


def _load_what_locking_needs() -> Any:
    """Import, before files are out of reach, what the steps use; return libc on Linux."""
    import _signal  # noqa: F401
    import _warnings
    import resource  # noqa: F401

    _attempt(lambda: _warnings.filters.insert(0, ("ignore", None, Warning, None, 0)))
    if sys.platform != "linux":
        return None
    import ctypes
    import struct  # noqa: F401

    return ctypes.CDLL(None, use_errno=True)


def _attempt(step: Callable[[], Any]) -> Any:
    """Run a step that not every system offers; False when this one does not."""
    try:
        return step()
    except Exception:
        return False


def _checked(status: int) -> None:
    if status != 0:
        raise OSError("refused by the kernel")


# ── answering ─────────────────────────────────────────────────────────────────────────────────


class Unanswerable(Exception):  # noqa: N818  it says what the value is
    """The program's value cannot be sent back."""


def encode(value: Any, room: list[int], depth: int = 0) -> str:
    """Return `value` as JSON; what JSON lacks becomes {"type": …, "of": …}.

    `room` holds the characters left; raises Unanswerable when they run out, for a type that is
    not plain data, and for nesting deeper than MAX_DEPTH (which ends cycles too).
    """
    if depth > MAX_DEPTH:
        raise Unanswerable(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
    text = _encode_scalar(value)
    if text is None:
        text = _encode_container(value, room, depth)
    else:
        _spend(room, len(text))
    return text


def _encode_scalar(value: Any) -> str | None:
    from _json import encode_basestring_ascii as quote

    kind = type(value)
    if value is None or kind is bool:
        return {None: "null", True: "true", False: "false"}[value]
    if kind is str:
        return quote(value)
    if kind is int:
        return int.__repr__(value)  # ValueError beyond the interpreter's digit limit
    if kind is float and value - value == 0:
        return float.__repr__(value)
    if kind.__name__ in ("float", "complex", "Decimal", "Fraction"):
        return f'{{"type":"{kind.__name__}","of":{quote(str(value))}}}'
    if kind.__name__ in ("date", "datetime", "time"):
        return f'{{"type":"{kind.__name__}","of":{quote(value.isoformat())}}}'
    if kind is bytes:
        return f'{{"type":"bytes","of":"{value.hex()}"}}'
    if kind.__name__ == "timedelta":
        return f'{{"type":"timedelta","of":[{value.days},{value.seconds},{value.microseconds}]}}'
    return None


def _encode_container(value: Any, room: list[int], depth: int) -> str:
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            of = _encode_items(value, room, depth)
            return of if kind is list else f'{{"type":"{kind.__name__}","of":{of}}}'
    if isinstance(value, dict):
        pairs = [item for pair in value.items() for item in pair]
        return f'{{"type":"dict","of":{_encode_items(pairs, room, depth)}}}'
    if type(value).__name__ in ("range", "deque", "dict_keys", "dict_values", "dict_items"):
        return _encode_items(value, room, depth)
    raise Unanswerable(f"it is a {type(value).__name__}, which is not plain data")


def _encode_items(values: Any, room: list[int], depth: int) -> str:
    _spend(room, 2 * len(values) + 24)
    return "[" + ",".join([encode(value, room, depth + 1) for value in values]) + "]"


def _spend(room: list[int], characters: int) -> None:
    room[0] -= characters
    if room[0] < 0:
        raise Unanswerable("it is larger than the output limit")


def reporter(descriptor: int) -> Callable[..., None]:
    """Return the function that sends the one answer and ends the process."""
    from _json import encode_basestring_ascii as quote

    def report(value: str = "null", **fields: str | int | None) -> None:
        parts = [f'"value":{value}']
        for key, item in fields.items():
            shown = quote(item[:2000]) if isinstance(item, str) else item
            parts.append(f'"{key}":{"null" if shown is None else shown}')
        rest = ("{" + ",".join(parts) + "}\n").encode()
        try:
            sys.stdout.flush()
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os._exit(0)

    return report


# ── running ───────────────────────────────────────────────────────────────────────────────────


def main(told: str) -> None:
    """Run the program that stands on standard input, with the settings `told` as JSON."""
    how = _read_settings(told)
    report = reporter(how["answer"])
    text = _read_all(0)
    modules = _load_modules(text, how["seed"])
    for name in how["load"]:
        __import__(name)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    held = ",".join(lock_up(how))
    watch_ends = None
    try:
        program = prepare(text, modules if "language" in how["layers"] else None)
        if "audit" in how["layers"]:  # not before: parsing is an event too
            watch_ends = forbid_events(lambda **fields: report(**fields, held=held))
        report(value=_value(program(), how["entry"], how["output_limit"]), held=held)
    except BaseException as error:
        if watch_ends:
            watch_ends()
        fields = describe(error)
        del error
        report(**fields, held=held)


def _read_settings(told: str) -> dict[str, Any]:
    """Read JSON without the module `json`, whose imports would double the time a start takes."""
    from _json import make_scanner

    how = _Module("how")
    plain = dict(strict=True, object_hook=None, object_pairs_hook=None, memo={})
    vars(how).update(plain, parse_float=float, parse_int=int, parse_constant=float)
    return make_scanner(how)(told, 0)[0]


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts)


def _load_modules(text: bytes, seed: int) -> dict[str, dict[str, Any]]:
    """Load the listed modules that a line with an import names, while files can be read."""
    lines = [line for line in text.replace(b";", b"\n").splitlines() if b"import" in line]
    words = set(b" ".join(lines).replace(b",", b" ").split())
    modules = {name: exports(name) for name in MODULES if name.encode() in words}
    if not text.isascii() or b"\\N{" in text:
        import unicodedata  # noqa: F401  the parser normalizes names with it
    for name in modules:
        for late in _LOADED_LATE.get(name, ()):
            __import__(late)
    if "random" in modules:
        modules["random"]["seed"](seed)
    return modules


def prepare(text: bytes, modules: dict[str, dict[str, Any]] | None) -> Callable[[], dict[str, Any]]:
    """Parse, check and compile; return a function that runs the program and gives its globals.

    `modules` None leaves the language unrestricted: how tests show what the kernel alone holds.
    Raises SyntaxError, and Refusal for what is not on the allow-list.
    """
    tree = compile(text.decode(), PROGRAM, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    if modules is not None:
        found = sorted(set(violations(tree, modules)))
        if found:
            raise Refusal(*found[0])
    keep_last_value(tree)
    code = compile(tree, PROGRAM, "exec", dont_inherit=True)
    allowed = vars(builtins) if modules is None else _builtins(modules)
    namespace = {"__builtins__": allowed, "__name__": "program"}
    body = _Function(code, namespace)  # calling it raises no audit event, exec() would

    def program() -> dict[str, Any]:
        body()
        return namespace

    return program


class Refusal(Exception):  # noqa: N818
    """The program uses something that is not on the allow-list: (line, reason)."""


def keep_last_value(tree: Any) -> None:
    """Assign a trailing expression to VALUE, as a notebook shows a cell's last line."""
    if tree.body and isinstance(tree.body[-1], _ast.Expr):
        last = tree.body[-1]
        place = dict(lineno=last.lineno, col_offset=0, end_lineno=last.lineno, end_col_offset=0)
        target = _ast.Name(id=VALUE, ctx=_ast.Store(), **place)
        tree.body[-1] = _ast.Assign(targets=[target], value=last.value, **place)


def _builtins(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    proxies = {}
    for name, names in modules.items():
        proxies[name] = _Module(name)
        vars(proxies[name]).update(names)

    def load(name: str, *_: Any) -> Any:
        if name in ("_strptime", "time"):  # datetime's C code asks; a program cannot
            return sys.modules[name]
        if name not in proxies:
            raise ImportError(f"write the import of {name!r} on a line of its own")
        return proxies[name]

    allowed = {name: getattr(builtins, name) for name in BUILTINS}
    return {**allowed, "__import__": load, "__debug__": True}


def _value(namespace: dict[str, Any], entry: str, room: int) -> str:
    if entry and entry not in namespace:
        raise Unanswerable(f"the program defines no {entry!r}")
    value = namespace.get(entry or VALUE)
    if entry and callable(value):
        value = value()
    return encode(value, [room])


def describe(error: BaseException) -> dict[str, str | int | None]:
    """Return the error's name, its message and the line of the program it came from."""
    if isinstance(error, Refusal):
        return {"error": "Refused", "message": error.args[1], "line": error.args[0]}
    if isinstance(error, MemoryError):
        error.__traceback__ = None  # lets go of what filled the memory
        return {"error": "MemoryLimit", "message": "the program used up its memory", "line": None}
    if isinstance(error, Unanswerable):
        message = f"there is no value to return: {error}"
        return {"error": "NoValue", "message": message, "line": None}
    line, step = getattr(error, "lineno", None), error.__traceback__
    while step:
        if step.tb_frame.f_code.co_filename == PROGRAM:
            line = step.tb_lineno
        step = step.tb_next
    try:
        message = str(error)
    except Exception:
        message = "(the error's message could not be shown)"
    return {"error": type(error).__name__, "message": message, "line": line}
