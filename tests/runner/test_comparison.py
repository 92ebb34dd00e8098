"""The guard's comparison of two outputs of a cell: what it sees, and that it is nbval's."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import SimpleNamespace

import nbformat
import pytest
import toy_course
from hypothesis import given
from hypothesis import strategies as st
from nbval.plugin import IPyNbCell, IPyNbFile, coalesce_streams, get_sanitize_patterns, nocolors
from toy_course import data, stream

from course_utils.runner import comparison

PATTERNS = comparison.sanitizer()


def _cell(*outputs: dict, tag: str = "") -> dict:
    cell = toy_course.notebook((tag, "1"))["cells"][0]
    return cell | {"outputs": list(outputs)}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ([stream("a ⟨0.1⟩")], [stream("a ⟨0.2⟩")], True),
        ([stream("a 0.1")], [stream("a 0.2")], False),
        ([stream(["a\n", "b"])], [stream("a\n"), stream("b")], True),
        ([stream("a")], [], False),
        ([], [stream("a", "stderr")], False),
        ([data(image_png="eA==")], [data(image_png="eQ==")], True),
        ([data(image_png="eA==")], [], True),
        ([data(text_html="<b>⟨1⟩</b>")], [data(text_html="<b>⟨2⟩</b>")], True),
        ([data(text_html="<b>1</b>")], [data(text_html="<b>2</b>")], False),
        ([data(text_plain="x")], [data(text_plain="x", text_html="x")], False),
        ([data(text_plain="x")], [data(text_plain="x"), data(text_plain="x")], False),
        ([stream("1 %\r2 %\rdone\n")], [stream("1 %\rdone\n")], True),
        ([stream("⟨a\nb⟩")], [stream("⟨c⟩")], True),
        ([stream("a"), data(text_plain="x")], [data(text_plain="x"), stream("a")], True),
    ],
)
def test_what_the_guard_sees(old: list, new: list, same: bool) -> None:
    assert (comparison.difference(_cell(*old), _cell(*new), PATTERNS) == "") is same


def test_a_difference_names_what_differs_and_shows_both() -> None:
    old, new = _cell(stream("kept: 3\nend")), _cell(stream("kept: 4\nend"))
    lines = comparison.difference(old, new, PATTERNS).splitlines()
    assert lines[0] == "stdout differs"
    assert {"- kept: 3", "+ kept: 4", "  end"} <= set(lines)


def test_exempt_cells_are_not_compared() -> None:
    old, new = (_cell(stream(text), tag="nbval-ignore-output") for text in "ab")
    assert comparison.difference(old, new, {}) == ""


# ── nbval's own ─────────────────────────────────────────────────────────────────────────────────

TEXTS = st.text(st.sampled_from("ab⟨⟩\r\n1"), max_size=6)
OUTPUTS = st.lists(
    st.one_of(
        st.builds(stream, TEXTS, st.sampled_from(["stdout", "stderr"])),
        st.builds(lambda text: data(text_plain=text), TEXTS),
        st.builds(lambda text, other: data(text_plain=text, text_html=other), TEXTS, TEXTS),
        st.builds(lambda text: data(image_png=text), TEXTS),
        st.builds(
            lambda name, text: toy_course.error(name, text), st.sampled_from(["E", "F"]), TEXTS
        ),
    ),
    max_size=4,
)


def _same_to_nbval(old: list[dict], new: list[dict]) -> bool:
    """What nbval says of these outputs, as it would inside pytest."""
    parent = SimpleNamespace(sanitize_patterns=PATTERNS, skip_compare=comparison.NOT_COMPARED)
    cell = SimpleNamespace(colors=nocolors, parent=parent)
    cell.sanitize = lambda text: IPyNbCell.sanitize(cell, text)
    cell.format_output_compare = lambda kind, old, new: None
    nodes = ([nbformat.from_dict(o) for o in copy.deepcopy(outputs)] for outputs in (new, old))
    return IPyNbCell.compare_outputs(cell, *map(coalesce_streams, nodes))


@given(OUTPUTS, OUTPUTS)
def test_the_comparison_is_nbvals(old: list[dict], new: list[dict]) -> None:
    ours = comparison.difference(_cell(*old), _cell(*new), PATTERNS) == ""
    assert ours is _same_to_nbval(old, new)


@given(OUTPUTS, st.permutations([0, 1, 2, 3]))
def test_the_comparison_is_nbvals_when_outputs_come_in_another_order(old: list, order) -> None:
    new = [old[i] for i in order if i < len(old)]
    ours = comparison.difference(_cell(*old), _cell(*new), PATTERNS) == ""
    assert ours is _same_to_nbval(old, new)


def test_the_sanitizer_is_read_as_nbval_reads_it() -> None:
    text = comparison.SANITIZER.read_text(encoding="utf-8")
    assert dict(get_sanitize_patterns(text)) == PATTERNS == {"⟨[^⟩]*⟩": "⟨measured⟩"}


def test_what_is_not_compared_is_nbvals_own_list(pytestconfig, monkeypatch) -> None:
    file = IPyNbFile.__new__(IPyNbFile)
    file.parent = SimpleNamespace(config=pytestconfig)
    monkeypatch.setattr(pytest.File, "__init__", lambda self, *args, **kwargs: None)
    IPyNbFile.__init__(file)
    assert file.sanitize_patterns == OrderedDict()
    assert file.skip_compare == comparison.NOT_COMPARED
