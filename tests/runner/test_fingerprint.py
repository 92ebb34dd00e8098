"""Fingerprints: stale when something changes that a notebook computes with, and only then."""

from __future__ import annotations

import ast
import gc
import shutil
import time
from pathlib import Path

import pytest
import toy_course

from course_utils.runner import fingerprint, notebooks, reach

# ── a package made for it ───────────────────────────────────────────────────────────────────────

FILES = {
    "__init__.py": "",
    "top.py": (
        "from pkg.middle import f\n"
        "from pkg import middle as m\n"
        "SIZE = 3\n"
        "def use():\n    return f(SIZE)\n"
        "def one():\n    return m.other()\n"
        "def whole(name):\n    return getattr(m, name)\n"
        "def looks():\n    return globals()['use']\n"
        "def typed(x: f) -> f:\n    return x\n"
        "class C:\n    def method(self):\n        return use()\n"
    ),
    "middle.py": (
        "def f(n):\n    from . import bottom\n    return bottom.g(n)\n"
        "def other():\n    return 0\n"
        "def unused():\n    return 0\n"
    ),
    "bottom.py": (
        "import torch\n"
        "torch.set_flush_denormal(True)\n"
        "def g(n):\n    '''Text.'''\n    return n  # a comment\n"
        "def lonely():\n    return 0\n"
    ),
    "passing.py": "from pkg.bottom import g\n",
    "plots.py": "from pkg.bottom import lonely\ndef chart():\n    return lonely()\n",
    "exercises.py": "def check(id):\n    return id\n",
    "checks/__init__.py": "MODULES = {}\n",
    "checks/decoding.py": "from pkg.bottom import g\nEXERCISES = {'a': (g, 1)}\n",
    "checks/prompting.py": "EXERCISES = {'b': 1}\n",
    "tasks.py": "def load():\n    return 'a_set'\ndef model():\n    return 'net'\n",
    "../data/a_set/test.jsonl": "1\n",
    "../data/a_set/README.md": "1\n",
    "../data/b_set/test.jsonl": "1\n",
    "../data/checkpoints/net/model.bin": "1\n",
    "../data/replications/01.json": "1\n",
    "../data/assets.toml": "[net]\nsha256 = '1'\ncitation = '1'\n[rest]\nsha256 = '1'\n",
}
USE, ONE = "from pkg.top import use\nuse()", "from pkg import top\ntop.one()"
SHOWN = "from pkg.showing import show_source\nfrom pkg.bottom import g\nshow_source(g)"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "pkg"


def _sees(
    package: Path, source: str, changed: str, old: str, new: str, display: bool = False
) -> bool:
    """Whether the fingerprint of a notebook with this code changes with that edit."""
    notebook, path = toy_course.notebook(source), package / changed
    text = path.read_text()
    assert old in text
    before = fingerprint.fingerprint(notebook, "09_x", package, display=display)
    path.write_text(text.replace(old, new))
    return fingerprint.fingerprint(notebook, "09_x", package, display=display) != before


@pytest.mark.parametrize(
    ("source", "changed", "old", "new"),
    [
        (USE, "top.py", "f(SIZE)", "f(SIZE) + 1"),
        (USE, "top.py", "SIZE = 3", "SIZE = 4"),
        (USE, "middle.py", "bottom.g(n)", "bottom.g(2 * n)"),
        (USE, "bottom.py", "return n", "return -n"),
        (USE, "bottom.py", "set_flush_denormal(True)", "set_flush_denormal(False)"),
        (ONE, "middle.py", "def other():\n    return 0", "def other():\n    return 1"),
        ("import pkg.top\npkg.top.use()", "middle.py", "bottom.g(n)", "bottom.g(2 * n)"),
        ("import pkg.top as t\nt.use()", "middle.py", "bottom.g(n)", "bottom.g(2 * n)"),
        ("import pkg.passing", "bottom.py", "denormal(True)", "denormal(False)"),
        ("from pkg.top import C\nC()", "bottom.py", "return n", "return -n"),
        ("from pkg.passing import g\ng", "bottom.py", "return n", "return -n"),
        ("from pkg.passing import *", "bottom.py", "denormal(True)", "denormal(False)"),
        ("%matplotlib inline\n!ls\n" + USE, "bottom.py", "return n", "return -n"),
        ("x = (1\n     % 2)\n" + USE, "bottom.py", "return n", "return -n"),
        ("from pkg.top import whole\nwhole('f')", "middle.py", "unused", "renamed"),
        ("from pkg.top import looks\nlooks()", "bottom.py", "return n", "return -n"),
        ("from pkg import middle\nuses(middle)", "middle.py", "unused", "renamed"),
        ("from pkg.middle import __doc__ as d\nd", "middle.py", "unused", "renamed"),
        (SHOWN, "bottom.py", "Text.", "Other text."),
        (SHOWN, "bottom.py", "a comment", "another comment"),
        ("from pkg.exercises import check\ncheck('09.a')", "bottom.py", "return n", "return -n"),
        ("from pkg.tasks import load\nload()", "../data/a_set/test.jsonl", "1", "2"),
        ("NAME = 'b_set'", "../data/b_set/test.jsonl", "1", "2"),
        ("from pkg.tasks import model\nmodel()", "../data/assets.toml", "sha256 = '1'\nc", "c"),
        ("from pkg.tasks import model\nmodel()", "../data/checkpoints/net/model.bin", "1", "2"),
    ],
)
def test_what_a_notebook_reaches_makes_it_stale(
    package: Path, source: str, changed: str, old: str, new: str
) -> None:
    assert _sees(package, source, changed, old, new)


@pytest.mark.parametrize(
    ("source", "changed", "old", "new"),
    [
        (USE, "top.py", "m.other()", "m.other() + 1"),
        (USE, "middle.py", "unused", "renamed"),
        (USE, "bottom.py", "lonely", "renamed"),
        (USE, "bottom.py", "Text.", "Other text."),
        (USE, "bottom.py", "  # a comment", ""),
        (USE, "bottom.py", "def g", "\n\n# Why.\ndef g"),
        (ONE, "bottom.py", "return n", "return -n"),
        ("from pkg.top import typed\ntyped(1)", "middle.py", "bottom.g(n)", "bottom.g(2 * n)"),
        ("import torch", "top.py", "SIZE = 3", "SIZE = 4"),
        ("this is no python", "top.py", "SIZE = 3", "SIZE = 4"),
        ("from pkg.exercises import check\ncheck('09.a')", "checks/decoding.py", "1", "2"),
        ("from pkg.exercises import check\ncheck('09.a')", "checks/prompting.py", "b", "c"),
        ("from pkg.exercises import check\ncheck('09.a')", "checks/__init__.py", "{}", "{1: 2}"),
        (
            "from pkg.plots import chart\nchart()",
            "plots.py",
            "return lonely()",
            "return lonely() + 1",
        ),
        ("from pkg.tasks import load\nload()", "../data/a_set/README.md", "1", "2"),
        ("from pkg.tasks import load\nload()", "../data/b_set/test.jsonl", "1", "2"),
        ("from pkg.tasks import model\nmodel()", "../data/assets.toml", "citation = '1'", ""),
        ("from pkg.tasks import model\nmodel()", "../data/assets.toml", "[rest]", "[r]"),
        ("'checkpoints'", "../data/checkpoints/net/model.bin", "1", "2"),
        ("'replications'", "../data/replications/01.json", "1", "2"),
    ],
)
def test_what_it_does_not_reach_leaves_it(
    package: Path, source: str, changed: str, old: str, new: str
) -> None:
    assert not _sees(package, source, changed, old, new)


def test_what_only_shows_is_followed_and_counts_for_a_runs_outputs(package: Path) -> None:
    source = "from pkg.plots import chart\nchart()"
    assert _sees(package, source, "bottom.py", "def lonely():\n    return 0", "def lonely(): ...")
    assert _sees(package, source, "plots.py", "return lonely()", "return 1", display=True)
    source = "from pkg.exercises import check\ncheck('09.a')"
    assert _sees(package, source, "checks/decoding.py", "1", "2", display=True)


def test_the_fingerprint_is_of_code_alone(package: Path) -> None:
    def of(*cells: str | tuple[str, str]) -> str:
        return fingerprint.fingerprint(toy_course.notebook(*cells), "", package)

    assert of("# Text", "1") == of("# Other text", ("bootstrap", "2"), "1")
    assert of("1") != of("2")
    assert of("1", "2") != of("1\n2")


def test_a_run_depends_on_its_parameters() -> None:
    notebook = toy_course.notebook("1")
    keys = {fingerprint.run_key(notebook, "09", p) for p in ({}, {"A": 1}, {"A": "1"}, {"B": 1})}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f():\n    '''Doc.\n    More.'''\n    return 1  # why\n", "def f():\n    return 1\n"),
        ("x = '# no comment'\n", "x = '# no comment'\n"),
        ("x = '''a\n\n# b\n'''\n", "x = '''a\n\n# b\n'''\n"),
        ("# é\nx = 'é'  # é\n\n\ny = 2\n", "x = 'é'\ny = 2\n"),
        ("def f(): 'Doc.'\n", "def f(): 'Doc.'\n"),
        ("x = f'{1}#{2}'\n", "x = f'{1}#{2}'\n"),
    ],
)
def test_code_is_text_without_comments_docstrings_and_empty_lines(text: str, code: str) -> None:
    assert reach.code_of(text) == code


# ── the course's own ────────────────────────────────────────────────────────────────────────────


def _own_fingerprints(package: Path) -> dict[str, str]:
    """The fingerprints of the course's notebooks over a package, by their numbers."""
    paths = notebooks.all_notebooks(toy_course.ROOT)
    return {
        path.stem[:2]: fingerprint.fingerprint(notebooks.load(path), path.stem, package)
        for path in paths
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A copy of the package, to edit, and the fingerprints over it."""
    target = tmp_path_factory.mktemp("own") / "course_utils"
    shutil.copytree(fingerprint.PACKAGE, target, ignore=shutil.ignore_patterns("*.pyc"))
    return target, _own_fingerprints(target)


def _edited(text: str, function: str) -> str:
    """A module's text with one more statement in one function."""
    (node,) = (n for n in ast.parse(text).body if getattr(n, "name", "") == function)
    lines = text.splitlines(keepends=True)
    lines.insert(node.body[-1].lineno - 1, "    changed = 1\n")
    return "".join(lines)


@pytest.mark.parametrize(
    ("place", "function", "stale"),
    [
        ("architectures/drawings.py", "who_sees_whom", set()),
        ("inference/processors.py", "top_p", {"00", "09", "15"}),
        ("tasks/question_sets.py", "load_react", {"11"}),
        ("plots.py", "bars", set()),
        ("exercises.py", "hint", set()),
        ("checks/decoding.py", "_one_too_few", set()),
        ("evidence/box.py", "conclude", set()),
        ("evidence/records.py", "record_of", set()),
        ("assets/cache.py", "problems", set()),
    ],
)
def test_a_change_makes_those_stale_that_compute_with_it(
    own: tuple[Path, dict[str, str]], place: str, function: str, stale: set[str]
) -> None:
    package, before = own
    path = package / place
    text = path.read_text(encoding="utf-8")
    path.write_text(_edited(text, function), encoding="utf-8")
    after = _own_fingerprints(package)
    path.write_text(text, encoding="utf-8")
    assert {number for number in before if after[number] != before[number]} == stale


@pytest.fixture
def no_garbage_collection():
    """The objects of other tests are looked through by the collector, which is not what we time."""
    gc.disable()
    yield
    gc.enable()


def test_a_fingerprint_takes_about_a_second_at_most(no_garbage_collection) -> None:
    """0.6 s for the notebook that reaches most; on a busy machine, half as much again and more."""
    for path in notebooks.all_notebooks(toy_course.ROOT):
        notebook, seconds = notebooks.load(path), []
        for _ in range(2):
            for cached in (reach._module, reach.code_of, fingerprint._words_of):
                cached.cache_clear()
            begun = time.process_time()
            fingerprint.fingerprint(notebook, path.stem)
            seconds.append(time.process_time() - begun)
        assert min(seconds) < 1.5, path.stem
