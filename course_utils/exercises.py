"""Exercises with feedback at once: check(), hint(), solution(); predict() and judge().

A notebook's exercises are declared in a module of `course_utils.checks` as `EXERCISES`, a
dictionary from name to `Exercise`; `check("09.top_p", fn)` finds them there. A solution is the
package's own source. The wrong versions that name a learner's likely mistake are the ones that the
tests plant.

Where the learner writes a class, the exercise is a `ClassExercise`: a list of probes, each of which
looks at one mechanism of whatever class it is given.

    def start(cls):                                # one mechanism: B starts at zero
        layer = cls(frozen_linear(), rank=2, alpha=4)
        return layer(INPUTS)

    EXERCISES = {"lora": ClassExercise(
        reference=LoRALinear, hint="…", mistakes={"alpha is not divided by the rank": Unscaled},
        probes=(Probe("it starts as the frozen layer", start), Probe("the update", update)))}

What a probe returns for the learner's class is compared with what it returns for the reference: a
number, tensor, text, list, or a dictionary of those, whose names say what differs. Probes are tried
in their order, so each may use what those before it have shown to be right. A probe makes its own
inputs, and sets weights by hand or draws them from a generator of its own: two classes may draw in
another order.
"""

from __future__ import annotations

import dis
import html
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from course_utils import checks, showing


@dataclass(frozen=True)
class Case:
    """One call: `args` go to the learner's function; `expected` was worked by hand."""

    args: tuple
    expected: Any
    why: str = ""


@dataclass(frozen=True)
class Exercise:
    """One exercise: hand-worked cases, a tested reference for more inputs, and likely mistakes.

    `inputs` yields argument tuples for which `reference` gives the answer; `mistakes` maps a
    sentence about a likely mistake to a function that makes it and takes all that `reference`
    takes, because the tests plant it there; `atol` is the tolerance of floats. Where a function is
    not simply called, `through(function, *arguments)` calls it: on real ranks, say. It is not
    asked for a function that is still a stub.
    """

    reference: Callable
    hint: str
    cases: tuple[Case, ...]
    inputs: Callable[[], Iterable[tuple]] = tuple
    mistakes: dict[str, Callable] = field(default_factory=dict)
    solution: tuple[Callable, ...] = ()
    atol: float = 1e-5
    through: Callable[..., Any] | None = None

    def call(self, function: Callable, args: tuple) -> Any:
        """What a function gives for an input; raises NotAttempted where it must not be called."""
        if self.through is None:
            return function(*args)
        if is_stub(function):
            raise NotAttempted
        return self.through(function, *args)


@dataclass(frozen=True)
class Probe:
    """One mechanism of a class: `look` takes a class and returns what it does, to be compared.

    `mechanism` names it in the learner's words ("the update is scaled"); `why` is said when it is
    wrong.
    """

    mechanism: str
    look: Callable[[type], Any]
    why: str = ""


@dataclass(frozen=True)
class ClassExercise:
    """An exercise whose answer is a class: a tested reference, and probes of its mechanisms.

    `mistakes` maps a sentence about a likely mistake to a class that makes it, mostly a subclass of
    the reference; the tests plant it there. Every mistake must be seen by a probe.
    """

    reference: type
    hint: str
    probes: tuple[Probe, ...]
    mistakes: dict[str, type] = field(default_factory=dict)
    solution: tuple[Callable, ...] = ()
    atol: float = 1e-5


@dataclass(frozen=True)
class Statement:
    """A sentence to judge: whether the run supported it, and why (not)."""

    sentence: str
    supported: bool
    why: str


class NotAttempted(Exception):  # noqa: N818  it is not an error
    """The function or class is still a stub."""


def find(id: str) -> Exercise | ClassExercise:
    """Return the exercise "09.top_p"; ValueError with the choices when there is none."""
    return _declared(id, "EXERCISES")


def _declared(id: str, table: str) -> Any:
    """What a notebook's module of checks declares under a name, in one of its tables."""
    notebook, _, name = id.partition(".")
    if notebook not in checks.MODULES:
        raise ValueError(f"no exercises for notebook {notebook!r}; ids look like '09.top_p'")
    module = importlib.import_module(f"{checks.__name__}.{checks.MODULES[notebook]}")
    declared = getattr(module, table, {})
    if name not in declared:
        raise ValueError(f"no exercise {id!r}; notebook {notebook} has: {', '.join(declared)}")
    return declared[name]


def check(id: str, attempt: Callable) -> None:
    """Try the learner's function, or class, on the exercise's cases and show what came of it.

    Never raises for a wrong or unfinished attempt, so that a notebook runs on; ValueError for an
    unknown id, TypeError when `attempt` cannot be called, or is no class where one is asked for.
    """
    exercise = find(id)
    _require_uncalled(id, exercise, attempt)
    try:
        problem = first_problem(exercise, attempt)
    except NotAttempted:
        return _show("○", f"{id}: not attempted yet. Fill in the stub and run this cell again.")
    if problem:
        return _show("✗", f"{id}: {problem}")
    if isinstance(exercise, ClassExercise):
        names = "; ".join(probe.mechanism for probe in exercise.probes)
        return _show("✓", f"{id}: passed, {names}.")
    count = len(exercise.cases) + sum(1 for _ in exercise.inputs())
    return _show("✓", f"{id}: passed on {count} inputs.")


def _require_uncalled(id: str, exercise: Exercise | ClassExercise, attempt: Any) -> None:
    """TypeError for what a function returned, or an object made from a class."""
    if isinstance(exercise, ClassExercise) and not isinstance(attempt, type):
        raise TypeError(f"check({id!r}, …) takes your class itself, without making an object")
    if not callable(attempt):
        raise TypeError(f"check({id!r}, …) takes your function itself, without calling it")


def first_problem(exercise: Exercise | ClassExercise, attempt: Callable) -> str | None:
    """Return what is wrong with the first failing input, or None; raises NotAttempted."""
    if isinstance(exercise, ClassExercise):
        return _first_wrong_mechanism(exercise, attempt)
    for case in exercise.cases:
        if problem := _try(exercise, attempt, case.args, case.expected):
            return problem + (f"\n    {case.why}" if case.why else "")
    for args in exercise.inputs():
        if problem := _try(exercise, attempt, args, exercise.call(exercise.reference, _copy(args))):
            return problem
    return None


def _try(exercise: Exercise, attempt: Callable, args: tuple, expected: Any) -> str | None:
    own = _copy(args)
    try:
        got = exercise.call(attempt, own)
    except NotAttempted:
        raise
    except NotImplementedError as error:
        raise NotAttempted from error
    except Exception as error:
        return f"{_call(args)}\n    raised {type(error).__name__}: {error}"
    if got is ... or (got is None and is_stub(attempt)):
        raise NotAttempted
    if wrong := difference(got, expected, exercise.atol):
        lines = [_call(args), f"expected {_brief(expected)}", f"got      {_brief(got)}", wrong]
        return "\n    ".join(line for line in (*lines, _advice(exercise, args, got)) if line)
    if not same(own, args, 0.0):
        return f"{_call(args)}\n    the answer is right, but your function changed its input"
    return None


def is_stub(function: Callable) -> bool:
    """Whether a function does nothing but return None: its body is ..., pass, or a docstring."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    # What `...` compiles to in Python 3.11 to 3.14; any statement would add something to it.
    nothing = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
    return {step.opname for step in dis.get_instructions(code)} <= nothing


# ── classes: one mechanism at a time ────────────────────────────────────────────────────────────


def _first_wrong_mechanism(exercise: ClassExercise, attempt: type) -> str | None:
    """Say which mechanism is wrong, how, and which are right before it; raises NotAttempted."""
    if is_stub_class(attempt):
        raise NotAttempted
    for i, probe in enumerate(exercise.probes):
        if wrong := _probe(exercise, probe, attempt):
            right = [f"right so far: {before.mechanism}" for before in exercise.probes[:i]]
            lines = [f"wrong is this: {probe.mechanism}", *wrong, probe.why, *right]
            return "\n    ".join(line for line in lines if line)
    return None


def _probe(exercise: ClassExercise, probe: Probe, attempt: type) -> list[str]:
    """What is wrong with one mechanism of a class, a line each; [] when it is right."""
    stubs = [f"`{name}` is still a stub" for name in _stub_methods(attempt)]
    try:
        got = probe.look(attempt)
    except NotImplementedError:
        return stubs or ["your class raised NotImplementedError"]
    except Exception as error:
        return [f"your class raised {type(error).__name__}: {error}", *stubs]
    expected = probe.look(exercise.reference)
    if not (wrong := _difference_by_name(got, expected, exercise.atol)):
        return []
    name, wrong = wrong
    if name:
        got, expected = got[name], expected[name]
    likely = _likely_wrong_class(exercise, probe, got, name)
    return [
        f"expected {_brief(expected)}" + (f" for {name}" if name else ""),
        f"got      {_brief(got)}",
        wrong,
        f"This is what comes out when {likely}." if likely else "",
        *(stubs if got is None or got is ... else ()),
        "A method returned None: is a `return` missing?" if got is None and not stubs else "",
    ]


def _difference_by_name(got: Any, expected: Any, atol: float) -> tuple[str, str] | None:
    """The name of the first part that differs ("" where a probe returns one thing), and how."""
    if not isinstance(expected, dict):
        wrong = difference(got, expected, atol)
        return ("", wrong) if wrong else None
    if not isinstance(got, dict) or got.keys() != expected.keys():
        return "", "it has other parts"
    found = ((name, difference(got[name], expected[name], atol)) for name in expected)
    return next(((name, wrong) for name, wrong in found if wrong), None)


def _likely_wrong_class(exercise: ClassExercise, probe: Probe, got: Any, name: str) -> str | None:
    for sentence, wrong in exercise.mistakes.items():
        try:
            there = probe.look(wrong)
            if same(got, there[name] if name else there, exercise.atol):
                return sentence
        except Exception:  # a wrong version may well fail in this probe
            continue
    return None


def is_stub_class(cls: type) -> bool:
    """Whether a class has no method of its own that does something.

    An `__init__` that only calls its parent's does nothing either.
    """
    return not (_own_methods(cls).keys() - set(_stub_methods(cls)))


def _own_methods(cls: type) -> dict[str, Callable]:
    """Name → function of the methods, properties and static methods that a class itself defines."""
    found = {}
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if hasattr(function, "__code__"):
            found[name] = function
    return found


def _stub_methods(cls: type) -> list[str]:
    return [name for name, function in _own_methods(cls).items() if _is_unwritten(function)]


def _is_unwritten(function: Callable) -> bool:
    """A stub, one that says so by NotImplementedError, or nothing but super().__init__(…)."""
    used, code = set(function.__code__.co_names), function.__code__
    steps = {step.opname for step in dis.get_instructions(code)}
    if used == {"NotImplementedError"}:
        return "RAISE_VARARGS" in steps
    only_super = used == {"super", "__init__"} and not any(s.startswith("STORE") for s in steps)
    return only_super or is_stub(function)


# ── what went wrong ─────────────────────────────────────────────────────────────────────────────


def _advice(exercise: Exercise, args: tuple, got: Any) -> str:
    if likely := _likely_mistake(exercise, args, got):
        return f"This is what comes out when {likely}."
    return "Your function returned None: is a `return` missing?" if got is None else ""


def _likely_mistake(exercise: Exercise, args: tuple, got: Any) -> str | None:
    for sentence, wrong in exercise.mistakes.items():
        try:
            if same(got, exercise.call(wrong, _copy(args)), exercise.atol):
                return sentence
        except Exception:  # a wrong version may well fail on this input
            continue
    return None


def same(got: Any, expected: Any, atol: float = 1e-5) -> bool:
    """Equal in structure and shape, floats within `atol`; infinities and NaN equal themselves."""
    return not difference(got, expected, atol)


def difference(got: Any, expected: Any, atol: float = 1e-5) -> str:
    """Say in what `got` differs most from `expected`; empty when they are the same.

    Lists and tuples are the same thing, and so are numbers, arrays and tensors of one shape.

    >>> difference([0.5, 0.25], [0.5, 0.2])
    'item 1: off by 0.05'
    >>> difference("A  b", "A b")
    'only white space differs'
    """
    if got is None or expected is None:
        return "" if got is expected else "only one of them is None"
    if isinstance(expected, (list, tuple)):
        return _between_lists(got.tolist() if hasattr(got, "tolist") else got, expected, atol)
    if _is_numeric(expected):
        return _between_numbers(got, expected, atol)
    if isinstance(expected, str):
        return _between_texts(got, expected)
    if isinstance(expected, (bytes, dict, set)):
        return "" if got == expected else "they are not equal"
    return ""  # a callable or generator among the arguments: nothing to compare


def _between_lists(got: Any, expected: Sequence, atol: float) -> str:
    if not isinstance(got, (list, tuple)):
        return f"it is of type {type(got).__name__}, not a list or a tuple"
    if len(got) != len(expected):
        return f"there are {len(got)} items, not {len(expected)}"
    found = (difference(a, b, atol) for a, b in zip(got, expected, strict=True))
    return next((f"item {i}: {wrong}" for i, wrong in enumerate(found) if wrong), "")


def _between_numbers(got: Any, expected: Any, atol: float) -> str:
    import numpy as np

    if isinstance(got, (str, bytes)):
        return "it is a text, not a number"
    try:
        left, right = (np.asarray(_numpy(x), dtype=float) for x in (got, expected))
    except (TypeError, ValueError):
        return f"it is of type {type(got).__name__}, not a number"
    if left.shape != right.shape:
        return f"its shape is {left.shape}, not {right.shape}"
    if np.allclose(left, right, 0, atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        gap = np.abs(left - right)
    gap = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0, gap)
    gap = np.nan_to_num(gap, nan=np.inf, posinf=np.inf)
    worst = np.unravel_index(gap.argmax(), gap.shape)
    place = f"most at [{', '.join(map(str, worst))}], " if worst else ""
    far = f"off by {gap[worst]:.3g}"
    return place + (far if np.isfinite(gap[worst]) else f"{left[worst]} is not {right[worst]}")


def _between_texts(got: Any, expected: str) -> str:
    if not isinstance(got, str):
        return f"it is of type {type(got).__name__}, not a text"
    if got == expected:
        return ""
    if "".join(got.split()) == "".join(expected.split()):
        return "only white space differs"
    if got.casefold() == expected.casefold():
        return "only capitals differ"
    at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    at = min(len(got), len(expected)) if at is None else at
    return f"from character {at} on: {got[at : at + 20]!r} is not {expected[at : at + 20]!r}"


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or hasattr(value, "dtype")


def _numpy(value: Any) -> Any:
    return value.detach().cpu().double().numpy() if hasattr(value, "detach") else value


def _copy(value: Any) -> Any:
    """Fresh tensors, arrays and lists, so that an attempt cannot spoil the next one's input.

    In tuples and lists, too: the state of an LSTM is a pair of tensors.
    """
    if type(value) in (tuple, list):
        return type(value)(_copy(part) for part in value)
    if hasattr(value, "clone"):
        return value.clone()
    return value.copy() if hasattr(value, "dtype") and hasattr(value, "copy") else value


def _call(args: tuple) -> str:
    return "your function(" + ", ".join(_brief(a) for a in args) + ")"


def _brief(value: Any) -> str:
    if hasattr(value, "detach") and value.numel() <= 64:
        value = value.detach().cpu().tolist()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_brief(item) for item in value) + "]"
    if isinstance(value, str):
        value = repr(value)  # so that white space can be seen
    text = getattr(value, "__name__", None) or str(value).replace("\n", " ")
    return text if len(text) <= 300 else text[:297] + "…"


def _show(mark: str, text: str) -> None:
    print(mark, text)


def hint(id: str) -> None:
    """Show the exercise's hint, folded."""
    _fold("Hint", f"<p>{html.escape(find(id).hint)}</p>")


def solution(id: str) -> None:
    """Show the package's own source as the exercise's solution, folded."""
    exercise = find(id)
    functions = exercise.solution or (exercise.reference,)
    page = showing.highlighted(showing.source_of(*functions))
    _fold("Solution (the package's own source)", page)


def _fold(title: str, body: str) -> None:
    page = f"<details><summary>{title}</summary>{body}</details>"
    showing.show(page, f"{title}: open the notebook to unfold it")


# ── a guess before a measurement, a judgement after it ──────────────────────────────────────────


def predict(question: str, guess: Any, found: float, *, within: float = 0.1) -> None:
    """Hold the reader's guess, a number, against what was measured: right when it is `within`.

    Without a guess (...) the measurement is not given away.
    """
    if guess is ...:
        return _show("○", f"{question} Put your guess for the three dots, and run this cell again.")
    if not isinstance(guess, (int, float)):
        return _show("✗", f"{question} {_brief(guess)} is no number.")
    word = "close" if abs(guess - found) <= within else "too low" if guess < found else "too high"
    mark = "✓" if word == "close" else "✗"
    return _show(
        mark, f"{question} You said {guess:g}, measured {showing.measured(found)}: {word}."
    )


def judge(id: str, *supported: Any) -> None:
    """Which of these sentences did the run support? Give their letters; without any they are shown.

    Raises ValueError for an unknown id.
    """
    statements: dict[str, Statement] = _declared(id, "STATEMENTS")
    chosen = {str(letter).strip().lower() for letter in supported if letter is not ...}
    if odd := sorted(chosen - statements.keys()):
        return _show("✗", f"{id}: there is no sentence {odd[0]!r}; the letters are "
                     f"{', '.join(statements)}.")  # fmt: skip
    for letter, statement in statements.items():
        right = (letter in chosen) == statement.supported
        mark = " " if not chosen else "✓" if right else "✗"
        said = f"  {statement.why}" if chosen else ""
        _show(mark, f"{letter}) {statement.sentence}{said}")
    return None if chosen else _show("○", f"{id}: give the letters of those that were supported.")
