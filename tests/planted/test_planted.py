"""Each planted bug must make its module's own tests fail, and its exercise's check complain."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from planting import Bug, exercises, home_of, mistakes

from course_utils.exercises import find, first_problem

# These say that the wrong version does not even run: it proves nothing about the tests.
NOT_A_FINDING = (
    TypeError,
    NameError,
    AttributeError,
    ImportError,
    SyntaxError,
    RecursionError,
)

REAL_MODELS = {"smollm2", "minilm"}  # fixtures

HERE = Path(__file__).parent


def planted(file: Path) -> list[Bug]:
    """The bugs of one file beside this one, which is found by its place and not registered."""
    spec = importlib.util.spec_from_file_location(f"planted_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BUGS


PLANTED = {
    ".".join(file.relative_to(HERE).with_suffix("").parts): planted(file)
    for file in sorted(HERE.rglob("*.py"))
    if file != Path(__file__)
}

# The tests that must notice an exercise's mistakes, where they are not named after its reference.
TESTS = {
    "01.rnn_step": "rnn_step or torchs_cells",
    "01.lstm_step": "lstm_step or torchs_cells",
    "01.parameter_count": "one_three_four",
    "02.weights": "is_torchs or shares",
    "02.rotate": "rotation",
    "02.sinusoidal": "sinusoidal",
    "03.count_weights": "weights_are_counted",
    "03.mean_pool": "mean_pool or padding",
    "03.next_token_loss": "loss",
    "07.cut": "cut_to_rank",
    "07.lora": "lora",
    "16.mask_keeper": "mask_keeper",
}
EXERCISES = exercises()
for id, exercise in EXERCISES.items():
    if home := home_of(exercise):
        PLANTED.setdefault(home, []).extend(mistakes(exercise, TESTS.get(id, "")))


def file_of_tests(module: str) -> Path:
    """The file of a module's tests: tests/<part>/test_<module>.py."""
    *part, name = module.split(".")
    return HERE.parent.joinpath(*part, f"test_{name}.py")


class Plant:
    """A pytest plugin: puts the wrong version in place once the tests are collected."""

    def __init__(
        self, module: str, where: str, bug: Bug | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.module, self.where, self.bug, self.monkeypatch = module, where, bug, monkeypatch
        self.failures: list[BaseException] = []
        self.ran = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what is slow: the bugs must be found by tests that take milliseconds."""
        items[:] = [
            item
            for item in items
            if not REAL_MODELS & set(item.fixturenames)
            and not any(item.get_closest_marker(name) for name in ("slow", "network", "gpu"))
        ]

    def pytest_collection_finish(self) -> None:
        if self.bug is None:
            return
        home = importlib.import_module(f"course_utils.{self.module}")
        right = getattr(home, self.bug.function)
        for module in _importers(self.where):
            for name in [name for name, value in vars(module).items() if value is right]:
                self.monkeypatch.setattr(module, name, self.bug.wrong)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[Any]:
        if call.when == "call":
            self.ran += 1
            if call.excinfo and not call.excinfo.errisinstance(pytest.skip.Exception):
                self.failures.append(call.excinfo.value)
        return (yield)


def _importers(module: str) -> list[ModuleType]:
    """The package, the module's tests and what they share: wherever the function is known.

    Not the exercises: their wrong versions are made from the right ones.
    """
    homes = {file_of_tests(module), *HERE.parent.joinpath("support").glob("*.py")}
    homes.add(file_of_tests(module).with_name("conftest.py"))
    return [
        found
        for name, found in list(sys.modules.items())
        if (name.split(".")[0] == "course_utils" and not name.startswith("course_utils.checks"))
        or Path(getattr(found, "__file__", None) or "x") in homes
    ]


def run(
    module: str, bug: Bug | None, selection: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> Plant:
    """Run the tests of `where` with the bug in place in the module, up to the first failure."""
    plant = Plant(module, where, bug, monkeypatch)
    arguments = [
        str(file_of_tests(where)),
        "-x",
        "-q",
        "--tb=no",
        f"-k={selection}",
        *("-p", "no:cacheprovider"),
        *("-p", "no:xdist"),
        *("-p", "no:unraisableexception"),  # it collects garbage for half a second at the end
        *("-W", "ignore"),
    ]
    pytest.main(arguments, plugins=[plant])
    return plant


def causes(error: BaseException) -> list[BaseException]:
    """The error itself, or those that hypothesis found together."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for inner in error.exceptions for cause in causes(inner)]
    return [error]


@pytest.mark.parametrize(
    ("module", "bug"),
    [
        pytest.param(module, bug, id=f"{module}.{bug.function}: {bug.description}")
        for module, bugs in PLANTED.items()
        for bug in bugs
    ],
)
def test_bug_is_found_by_the_modules_tests(module, bug, monkeypatch):
    where = bug.where or module
    plant = run(module, bug, bug.selection, where, monkeypatch)
    assert plant.ran, f"no test of {where} is selected by {bug.selection!r}"
    assert plant.failures, f"{plant.ran} tests passed although {bug.function} {bug.description}"
    for cause in causes(plant.failures[0]):
        assert not isinstance(cause, NOT_A_FINDING), f"the wrong version does not run: {cause!r}"


@pytest.mark.parametrize("module", PLANTED)
def test_selected_tests_pass_without_a_bug(module, monkeypatch):
    """Otherwise a broken test, or the way it is run here, would count as a finding."""
    for selection, where in sorted({(b.selection, b.where or module) for b in PLANTED[module]}):
        plant = run(module, None, selection, where, monkeypatch)
        assert plant.ran
        assert not plant.failures, plant.failures[0]


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=f"{bug.exercise}: {bug.description}")
        for bugs in PLANTED.values()
        for bug in bugs
        if bug.exercise
    ],
)
def test_bug_is_rejected_by_the_exercise(bug):
    problem = first_problem(find(bug.exercise), bug.wrong)
    assert problem, f"check({bug.exercise!r}, …) accepts a version that {bug.description}"


@pytest.mark.parametrize("id", EXERCISES)
def test_an_exercises_mistakes_are_planted(id):
    """That each is rejected by the exercise's own check is tested beside `exercises`."""
    exercise = EXERCISES[id]
    home = home_of(exercise)
    if not home:
        pytest.skip(f"{exercise.reference.__name__} was written for {id}: nothing to plant it in")
    described = {bug.description for bug in PLANTED[home]}
    assert {f"has it that {sentence}" for sentence in exercise.mistakes} <= described
