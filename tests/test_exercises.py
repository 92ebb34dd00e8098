"""Exercises tell a learner what is wrong, never stop a notebook, and reject every mistake."""

import importlib
import math
import pkgutil

import numpy as np
import pytest
import torch

from course_utils import checks, exercises
from course_utils.exercises import (
    Case,
    ClassExercise,
    Exercise,
    Probe,
    check,
    first_problem,
    hint,
    same,
    solution,
)


def double(values):
    """Twice each value."""
    return [2 * value for value in values]


EXERCISE = Exercise(
    reference=double,
    hint="Multiply by <2>.",
    cases=(Case(([1, 2],), [2, 4], why="Each value counts twice."),),
    inputs=lambda: (([k, -k],) for k in range(3)),
    mistakes={"the values are squared": lambda values: [value**2 for value in values]},
)


@pytest.fixture(autouse=True)
def one_exercise(monkeypatch):
    monkeypatch.setattr(exercises, "find", lambda id: EXERCISE)


def test_passed(capsys):
    check("09.double", lambda values: [value + value for value in values])
    assert capsys.readouterr().out == "✓ 09.double: passed on 4 inputs.\n"


def raise_not_implemented(values):
    raise NotImplementedError


@pytest.mark.parametrize("stub", [lambda v: None, lambda v: ..., raise_not_implemented])
def test_stub_is_not_attempted(capsys, stub):
    check("09.double", stub)
    assert "not attempted yet" in capsys.readouterr().out


def without_return(values):
    """Doubles, and forgets to say so."""
    [2 * value for value in values]


def test_a_forgotten_return_is_an_attempt(capsys):
    check("09.double", without_return)
    out = capsys.readouterr().out
    assert "got      None" in out
    assert "is a `return` missing?" in out


def documented(values):
    """Twice each value."""


def with_pass(values):
    pass


def with_dots(values):
    """Twice each value."""


@pytest.mark.parametrize("stub", [documented, with_pass, with_dots, lambda v: None])
def test_functions_that_do_nothing_are_stubs(stub):
    assert exercises.is_stub(stub)


@pytest.mark.parametrize("attempt", [without_return, print, lambda v: v, lambda v: v.sort()])
def test_functions_that_do_something_are_not(attempt):
    assert not exercises.is_stub(attempt)


def test_wrong_answer_names_input_expected_got_and_why(capsys):
    check("09.double", lambda values: values[:1])
    out = capsys.readouterr().out
    for part in ("your function([1, 2])", "expected [2, 4]", "got      [1]", "Each value counts"):
        assert part in out


def test_likely_mistake_is_named(capsys):
    check("09.double", lambda values: [value * value for value in values])
    assert "the values are squared" in capsys.readouterr().out


def test_raising_attempt_is_reported_not_raised(capsys):
    check("09.double", lambda values: 1 / 0)
    assert "raised ZeroDivisionError" in capsys.readouterr().out


def test_spoilt_input_is_reported(capsys):
    def in_place(values):
        answer = double(values)
        values.clear()
        return answer

    check("09.double", in_place)
    assert "changed its input" in capsys.readouterr().out


def test_spoilt_array_is_reported_and_the_next_attempt_gets_a_fresh_one(capsys):
    case = Case((np.array([1.0, 2.0]),), np.array([2.0, 4.0]))
    arrays = Exercise(reference=lambda x: 2 * x, hint="", cases=(case,))

    def in_place(values):
        values *= 2
        return values.copy()

    assert "changed its input" in str(first_problem(arrays, in_place))
    assert first_problem(arrays, lambda x: x + x) is None


def test_a_spoilt_part_of_a_pair_is_reported_and_the_next_attempt_gets_a_fresh_one():
    def in_place(pair):
        pair[1] += 1
        return pair[0] + pair[1]

    case = Case(((np.array([1.0]), np.array([2.0])),), np.array([4.0]))
    pairs = Exercise(reference=lambda pair: pair[0] + pair[1] + 1, hint="", cases=(case,))
    right = "changed its input"
    assert right in str(first_problem(pairs, lambda pair: in_place(list(pair))))
    assert first_problem(pairs, lambda pair: pair[0] + pair[1] + 1) is None


def on_two(function, values):
    """What two ranks would give."""
    return [function(values), function(values[::-1])]


def test_a_function_is_called_through_what_its_exercise_says(capsys, monkeypatch):
    mistakes = {"the values are squared": lambda values: [value**2 for value in values]}
    on_ranks = Exercise(
        reference=double,
        hint="",
        cases=(Case(([1, 3],), [[2, 6], [6, 2]]),),
        inputs=lambda: (([k, k + 5],) for k in range(2)),
        mistakes=mistakes,
        through=on_two,
    )
    monkeypatch.setattr(exercises, "find", lambda id: on_ranks)
    check("04.double", double)
    assert "passed on 3 inputs" in capsys.readouterr().out
    check("04.double", mistakes["the values are squared"])
    assert "what comes out when the values are squared" in capsys.readouterr().out
    check("04.double", lambda values: None)  # through it, the answer would be a list of None
    assert "not attempted yet" in capsys.readouterr().out


def test_calling_instead_of_passing_the_function():
    with pytest.raises(TypeError, match="takes your function itself"):
        check("09.double", 3)


@pytest.mark.parametrize(
    ("got", "expected", "equal"),
    [
        (1.0, 1, True),
        (1.1, 1, False),
        (torch.tensor([0.0, -torch.inf]), torch.tensor([1e-7, -torch.inf]), True),
        (torch.tensor([0.0]), torch.tensor([0.0, 0.0]), False),
        ([1, 2], (1, 2), True),
        ([1, 2], [1, 2, 3], False),
        ([1, (2.0, "a")], [1, (2.0, "b")], False),
        ("3", 3, False),
        (None, 3, False),
        (True, True, True),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), True),
        (torch.tensor([2**24 + 1]), torch.tensor([2**24]), False),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([[1, 2]]), [(1, 2)], True),
        (torch.tensor([[1, 3]]), [(1, 2)], False),
        ("ab", ["a", "b"], False),
        (math.nan, math.nan, True),
        (None, math.nan, False),
        (None, None, True),
        (1, None, False),
        (1, "1", False),
        ({"a": 1}, {"a": 2}, False),
    ],
)
def test_same(got, expected, equal):
    assert same(got, expected) is equal


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (
            torch.tensor([[0.5, 0.0], [0.25, 2.0]]),
            torch.ones(2, 2) / 2,
            "most at [1, 1], off by 1.5",
        ),
        (torch.tensor([0.5, 0.2]), torch.tensor([0.5, -torch.inf]), "most at [1], 0.2"),
        (math.nan, 0.5, "nan is not 0.5"),
        (0.3333, 1 / 3, "off by 3.33e-05"),
        ([1, [2, 4]], [1, (2, 3)], "item 1: item 1: off by 1"),
        ([1], [1, 2], "there are 1 items, not 2"),
        (torch.zeros(2), torch.zeros(2, 1), "its shape is (2,), not (2, 1)"),
        ("a\n b", "a b", "only white space differs"),
        ("Positive", "positive", "only capitals differ"),
        ("search", "searches", "from character 6 on: '' is not 'es'"),
        ("sEarch it", "search", "from character 1 on: 'Earch it' is not 'earch'"),
        (7, "7", "it is of type int, not a text"),
    ],
)
def test_difference_names_the_worst_place(got, expected, words):
    assert words in exercises.difference(got, expected)


def test_white_space_can_be_seen(capsys, monkeypatch):
    texts = Exercise(reference=str.strip, hint="", cases=(Case(("a\n",), "a"),))
    monkeypatch.setattr(exercises, "find", lambda id: texts)
    check("09.strip", lambda text: text)
    assert capsys.readouterr().out.splitlines()[0] == "✗ 09.strip: your function('a\\n')"
    check("09.strip", lambda text: text.replace("\n", " "))
    out = capsys.readouterr().out
    assert "expected 'a'" in out
    assert "got      'a '" in out


def test_hint_and_solution_are_folded(monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: outputs.append(data))
    hint("09.double")
    solution("09.double")
    assert "<details>" in outputs[0]["text/html"]
    assert "Multiply by &lt;2&gt;." in outputs[0]["text/html"]
    assert "Twice each value" in outputs[1]["text/html"]
    assert "<span style=" in outputs[1]["text/html"]  # in colours, as show_source


def test_unknown_exercise_lists_the_choices(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no exercises for notebook '77'"):
        exercises.find("77.x")
    with pytest.raises(ValueError, match=r"no exercise '09\.x'; notebook 09 has: "):
        exercises.find("09.x")


def declared():
    for module in pkgutil.iter_modules(checks.__path__):
        found = importlib.import_module(f"course_utils.checks.{module.name}").EXERCISES
        for name, exercise in found.items():
            yield pytest.param(exercise, id=f"{module.name}.{name}")


@pytest.mark.parametrize("exercise", list(declared()))
def test_declared_exercise_accepts_its_reference_and_rejects_every_mistake(exercise):
    assert first_problem(exercise, exercise.reference) is None
    assert len(exercise.mistakes) >= 2
    if isinstance(exercise, ClassExercise):
        assert len(exercise.probes) >= 2
    else:
        assert exercise.cases
        assert sum(1 for _ in exercise.inputs()) >= 3
    for sentence, wrong in exercise.mistakes.items():
        assert first_problem(exercise, wrong), f"the check accepts a function where {sentence}"


def test_the_plain_form_that_a_solution_shows_first_passes(monkeypatch):
    monkeypatch.undo()
    for id in ("02.weights", "09.top_p", "09.repetition_penalty"):
        exercise = exercises.find(id)
        assert first_problem(exercise, exercise.solution[0]) is None


# ── predict and judge ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("guess", "said"),
    [
        (..., "○ How much? Put your guess"),
        (0.5, "✓ How much? You said 0.5, measured ⟨0.55⟩: close."),
        (0.9, "✗ How much? You said 0.9, measured ⟨0.55⟩: too high."),
        (0, "✗ How much? You said 0, measured ⟨0.55⟩: too low."),
        ("a half", "✗ How much? 'a half' is no number."),
    ],
)
def test_predict_gives_nothing_away_before_a_guess(guess, said, capsys):
    exercises.predict("How much?", guess, 0.55)
    out = capsys.readouterr().out
    assert out.startswith(said)
    assert ("0.55" in out) is (isinstance(guess, float | int))


@pytest.fixture
def statements(monkeypatch):
    declared = {
        "a": exercises.Statement("It rains.", True, "It was wet."),
        "b": exercises.Statement("It always rains.", False, "One day was looked at."),
    }
    monkeypatch.setattr(exercises, "_declared", lambda id, table: declared)


def test_judge_shows_the_sentences_and_waits(statements, capsys):
    exercises.judge("01.rain", ...)
    out = capsys.readouterr().out
    assert "a) It rains.\n" in out
    assert "It was wet" not in out
    assert out.splitlines()[-1].startswith("○ 01.rain")


@pytest.mark.parametrize(("letters", "marks"), [(("a",), "✓✓"), (("A", "b"), "✓✗"), (("b",), "✗✗")])
def test_judge_says_why_of_each(statements, capsys, letters, marks):
    exercises.judge("01.rain", *letters)
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == list(marks)
    assert "One day was looked at." in lines[1]


def test_judge_of_a_letter_that_is_none(statements, capsys):
    exercises.judge("01.rain", "z")
    assert "no sentence 'z'; the letters are a, b" in capsys.readouterr().out


# ── classes ─────────────────────────────────────────────────────────────────────────────────────


class Adapter:
    """A number times x, and a correction a·b·alpha/rank to it, which can be merged into it."""

    def __init__(self, weight, alpha, rank):
        self.weight, self.scale = weight, alpha / rank
        self.a, self.b = 1.0, 0.0

    def forward(self, x):
        return x * self.weight + x * self.a * self.b * self.scale

    def merge(self):
        return self.weight + self.a * self.b * self.scale

    @property
    def trained(self):
        return ["a", "b"]


class Unscaled(Adapter):
    def forward(self, x):
        return x * (self.weight + self.a * self.b)


class StartsAtOne(Adapter):
    def __init__(self, weight, alpha, rank):
        super().__init__(weight, alpha, rank)
        self.b = 1.0


class MergesNothing(Adapter):
    def merge(self):
        return self.weight


class TrainsAll(Adapter):
    @property
    def trained(self):
        return ["a", "b", "weight"]


def start(cls):
    return cls(3.0, 4, 2).forward(5.0)


def update(cls):
    layer = cls(3.0, 4, 2)
    layer.a, layer.b = 0.5, 0.25
    return {"output": torch.tensor([layer.forward(x) for x in (1.0, 2.0)]), "of nothing": 0.0}


def merged(cls):
    layer = cls(3.0, 4, 2)
    layer.a, layer.b = 0.5, 0.25
    return layer.merge()


PROBES = (
    Probe("it starts as the frozen weight", start, why="So that training starts where it ended."),
    Probe("the update", update),
    Probe("merging", merged),
    Probe("what is trained", lambda cls: cls(1.0, 1, 1).trained),
)
MISTAKES = {
    "alpha is not divided by the rank": Unscaled,
    "B does not start at zero": StartsAtOne,
    "merging forgets the update": MergesNothing,
    "the frozen weight is trained": TrainsAll,
}
ADAPTER = ClassExercise(Adapter, "Two small factors.", PROBES, MISTAKES)


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setattr(exercises, "find", lambda id: ADAPTER)


def test_a_class_that_is_right_passes_and_its_mechanisms_are_named(adapter, capsys):
    check("07.lora", Adapter)
    assert capsys.readouterr().out == (
        "✓ 07.lora: passed, it starts as the frozen weight; the update; merging; what is trained.\n"
    )


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_classs_mistake_is_found_in_its_own_mechanism(adapter, sentence, capsys):
    check("07.lora", MISTAKES[sentence])
    out = capsys.readouterr().out
    assert f"This is what comes out when {sentence}." in out
    place = {
        "alpha": "the update",
        "B": "it starts",
        "merging": "merging",
        "the": "what is trained",
    }
    assert out.startswith(f"✗ 07.lora: wrong is this: {place[sentence.split()[0]]}")


def test_a_wrong_mechanism_says_what_differs_why_and_what_is_right_before_it(adapter, capsys):
    check("07.lora", Unscaled)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "expected [3.25, 6.5] for output" in lines
    assert "got      [3.125, 6.25]" in lines
    assert "most at [1], off by 0.25" in lines
    assert "right so far: it starts as the frozen weight" in lines
    assert not any("merging" in line for line in lines)
    check("07.lora", StartsAtOne)
    out = capsys.readouterr().out
    assert "So that training starts where it ended." in out
    assert "right so far" not in out


class Stub:
    """Nothing yet."""

    def __init__(self, weight, alpha, rank):
        super().__init__()

    def forward(self, x): ...

    @property
    def trained(self):
        """What is trained."""

    def merge(self):
        raise NotImplementedError


class Empty:
    pass


class StubOfAModule(torch.nn.Module):
    def __init__(self, base, rank):
        super().__init__()

    def forward(self, x):
        pass


@pytest.mark.parametrize("stub", [Stub, Empty, StubOfAModule])
def test_a_class_without_a_method_that_does_something_is_not_attempted(adapter, stub, capsys):
    assert exercises.is_stub_class(stub)
    check("07.lora", stub)
    assert "not attempted yet" in capsys.readouterr().out


class Raises(Adapter):
    def merge(self):
        raise NotImplementedError

    def forward(self, x):
        return super().forward(x)


class ForgetsReturn(Adapter):
    def merge(self):
        self.weight += 1


class OnlyAProperty:
    @property
    def trained(self):
        return ["a"]


class OnlyAStaticMethod:
    @staticmethod
    def double(x):
        return 2 * x


@pytest.mark.parametrize("cls", [OnlyAProperty, OnlyAStaticMethod, Adapter, StartsAtOne])
def test_a_class_that_does_something_is_no_stub(cls):
    assert not exercises.is_stub_class(cls)


class Breaks(Adapter):
    def merge(self):
        return self.nothing


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (Raises, "`merge` is still a stub"),
        (ForgetsReturn, "A method returned None: is a `return` missing?"),
        (Breaks, "your class raised AttributeError: 'Breaks' object has no attribute 'nothing'"),
    ],
)
def test_an_unfinished_class_says_where_it_stands(adapter, attempt, words, capsys):
    check("07.lora", attempt)
    out = capsys.readouterr().out
    assert out.startswith("✗ 07.lora: wrong is this: merging")
    assert words in out
    assert out.count("right so far") == 2


def test_a_class_one_of_whose_methods_is_a_stub_is_attempted(adapter, capsys):
    class Half(Adapter):
        def forward(self, x):
            return super().forward(x)

        def merge(self): ...

    assert not exercises.is_stub_class(Half)
    check("07.lora", Half)
    assert "`merge` is still a stub" in capsys.readouterr().out


def test_parts_that_are_not_there_are_named(adapter):
    probe = Probe("the parts", lambda cls: {"a": 1} if cls is Adapter else {"b": 1})
    exercise = ClassExercise(Adapter, "", (probe,))
    assert "it has other parts" in first_problem(exercise, Breaks)


def test_an_object_in_place_of_its_class(adapter):
    for attempt in (Adapter(1.0, 1, 1), torch.nn.Linear(1, 1), 3):
        with pytest.raises(TypeError, match="takes your class itself"):
            check("07.lora", attempt)


def test_a_class_is_shown_as_a_solution(adapter, shown, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    solution("07.lora")
    assert "correction" in shown[0]["text/html"]
