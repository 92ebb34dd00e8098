"""The stored notebooks' form and the numbers in their prose; and proof that faults are seen."""

from __future__ import annotations

from pathlib import Path

import layout
import prose
import pytest
import toy_course
from toy_course import ROOT

from course_utils.runner import notebooks, scaffold

PATHS = notebooks.all_notebooks(ROOT)
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@each_notebook
def test_the_form_is_the_house_styles(path: Path) -> None:
    faults = layout.faults(notebooks.load(path))
    assert not faults, "\n".join(faults)


@each_notebook
def test_every_number_in_prose_has_a_home(path: Path) -> None:
    complaints = prose.homeless(notebooks.load(path))
    assert not complaints, "\n".join(map(str, complaints))


# ── that faults of form are seen ────────────────────────────────────────────────────────────────

CALLS = "check('00.a', a)", "check('00.b', b)", "predict('How many?', ..., 3)", "judge('00.c', ...)"
GOOD = (
    "# A title",
    toy_course.PARAMETERS,
    ("standard", f"**Below.** {scaffold.STANDARD}"),
    *(part for call in CALLS for part in (call, "**A sentence.**")),
)


def test_a_notebook_in_the_form_has_no_fault() -> None:
    assert layout.faults(toy_course.notebook(*GOOD)) == []


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ((*GOOD, "**Words.**\n## A heading"), "a heading stands inside a cell: '## A heading'"),
        ((*GOOD, "# One\n# Two"), "a heading stands inside a cell: '# Two'"),
        ((*GOOD, "1", "2", "3"), "3 code cells in a row, the last: '3'"),
        ((*GOOD, "\n\n".join(["x = 1"] * 16)), "In [6] has 16 lines: 'x = 1'"),
        ((*GOOD[:2], *GOOD[3:]), "the standard paragraph does not stand"),
        ((*GOOD[:2], "**Else.**", *GOOD[2:]), "the standard paragraph does not stand"),
        (GOOD[:-2], "there are 3 exercises"),
        (GOOD[:-2], "there is no exercise by judge"),
        ((*GOOD[:-2], CALLS[0]), "there are 3 exercises"),
        ((*GOOD[:7], "check('00.c', a)", *GOOD[8:]), "there is no exercise by predict"),
    ],
)
def test_a_fault_of_form_is_named(cells, fault) -> None:
    assert any(said.startswith(fault) for said in layout.faults(toy_course.notebook(*cells)))


@pytest.mark.parametrize(
    "cells",
    [
        (*GOOD, "**Code:**\n```\n# a comment\n```"),
        (*GOOD, "1", "2", "**Words.**", "3"),
        (*GOOD, "\n\n".join(["x = 1"] * 15)),
        (*GOOD, ("bootstrap", "\n".join(["x = 1"] * 16))),
        (*GOOD, ("injected-parameters", "SEED = 3"), "2", "3"),
    ],
)
def test_what_only_looks_like_a_fault_is_none(cells) -> None:
    assert layout.faults(toy_course.notebook(*cells)) == []


def test_a_picture_without_words_is_a_fault() -> None:
    notebook = toy_course.notebook(*GOOD)
    picture = toy_course.data() | {"data": {"image/png": "iVBORw0KGgo="}}
    notebook["cells"][1]["outputs"] = [picture]
    (fault,) = layout.faults(notebook)
    assert fault == "In [1] shows a picture without alt text; show it by plots.show"
    picture["metadata"] = {"image/png": {"alt": "Line chart: it falls."}}
    assert layout.faults(notebook) == []


# ── that numbers from nowhere are seen ──────────────────────────────────────────────────────────


def complaints(sentence: str, code: str = "", printed: str = "") -> list[str]:
    """What is said of one sentence in a notebook with one code cell and its output."""
    notebook = toy_course.notebook("# T", code)
    notebook["cells"][0]["source"] = sentence
    notebook["cells"][1] |= {"outputs": [toy_course.stream(printed)]}
    return [each.number for each in prose.homeless(notebook)]


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("Greedy repeats itself in 73 % of the texts.", ["73 %"]),
        ("The loss falls from 4.2 to 1.87.", ["4.2", "1.87"]),
        ("| LSTM | 24.9 |", ["24.9"]),
        ("It has 135 million weights.", ["135 million"]),
        ("- trained on 100,000 words", ["100,000"]),
        ("A **third**, 37 of them, failed. See [below](#below).", ["37"]),
        ("Of 10 runs 9 agree.", ["10", "9"]),
        ("It was cited by [X](https://x.org). It is 5 times faster.", ["5"]),
        ("## Beam search is 12 times slower", ["12"]),
        ("Half as many, 0.512.", ["0.512"]),
        ("In 1 of 50 cases", ["50"]),
        ("In Holtzman's table it is 12.38.", ["12.38"]),
        ("Is it so? It holds in 37 runs.", ["37"]),
        ("It took 100% of it", ["100%"]),
        ("One costs $37, the other $38.", ["37", "38"]),
    ],
)
def test_a_number_from_nowhere_is_named(sentence, numbers) -> None:
    assert complaints(sentence) == numbers


@pytest.mark.parametrize(
    "sentence",
    [
        "Holtzman et al. (2020) report 73.66 % of greedy texts.",
        "GPT-2 repeats itself in 73.66 % ([Holtzman 2020](https://arxiv.org/abs/1904.09751)).",
        "Bengio and Frasconi (1994) needed 37 steps.",
        "Four passages of 40 words are 4 × 40 = 160 words.",
        "A quarter of 300 is 300 / 4 = 75.",
        "It is 27/37 ≈ 73 %.",
        "That is 0.6·4 + 0.3·2 + 0.1·8 = 3.8 legs.",
        "Say the model gives 0.6, 0.3 and 0.1.",
        "By hand: the answers 12, 15 and 9 elect nobody.",
        "They set it, for example, to 0.7.",
        "Set it to 0.7 and run.",
        "Does the same do for 40?",
        "In Holtzman's table it is 12.38.\n\n- Holtzman et al. (2020), *The Curious Case*",
        "Frasconi's nets needed 37 steps.\n\n- Bengio & Frasconi (1994), *Credit*",
        "GPT-3, fp16, a 32-bit float, top-5, recall@10, 2:4 and H100s are names.",
        "See section 4, notebooks 01 and 09, [step 3](#three), and In [12].",
        "It needs Python 3.11 and seed 7.",
        "In 1997 and in 2024 it was so.",
        "**Exercise 3** (★★, 15 minutes). Build it.",
        "Between 0 and 1 lie 2 of them.",
        "`top_k=50` keeps fifty; $x = 37$ and $$y = 99$$ are formulas.",
        "```\n37 code\n```\nNothing else.",
        "An angle of $i /\n10000^{2i/D}$ each.",
        "1. first\n2. second\n13. thirteenth",
        "## 3 Beam search",
        "It is below 10⁻¹⁰.",
    ],
)
def test_a_number_that_needs_no_home_is_left_alone(sentence) -> None:
    assert complaints(sentence) == []


@pytest.mark.parametrize(
    ("sentence", "code", "printed"),
    [
        ("It repeats itself in 73 % of them.", "", "share ⟨0.734⟩"),
        ("It repeats itself in 73 % of them.", "", "⟨73.4%⟩ repeat"),
        ("It repeats itself in 73.4 % of them.", "", "percent that repeat ⟨73.4⟩"),
        ("The loss is 1.87.", "", "loss ⟨1.874⟩"),
        ("We take 300 steps.", "budget = dict(steps=300)", ""),
        ("We take 20,000 steps.", "budget = dict(steps=20_000)", ""),
        ("It has 135 million weights.", "", "weights 134,515,008"),
        ("It has 22.7 million weights.", "", "22713216"),
        ("About 47 of them.", "", "⟨46.8⟩"),
    ],
)
def test_what_a_cell_prints_or_its_code_holds_has_a_home(sentence, code, printed) -> None:
    assert complaints(sentence, code, printed) == []


@pytest.mark.parametrize(
    ("sentence", "printed", "numbers"),
    [
        ("It repeats itself in 73 % of them.", "73 words", ["73 %"]),
        ("It repeats itself in 73 % of them.", "share ⟨0.7⟩", ["73 %"]),
        ("It repeats itself in 74 % of them.", "share ⟨0.734⟩", ["74 %"]),
        ("The loss is 1.874.", "loss ⟨1.87⟩", ["1.874"]),
        ("There are 3 of them.", "⟨2.7⟩", ["3"]),
        ("It has 136 million weights.", "weights 134,515,008", ["136 million"]),
        ("We take 30 steps.", "x30 v1.30 300", ["30"]),
    ],
)
def test_a_number_near_a_printed_one_is_not_that_one(sentence, printed, numbers) -> None:
    assert complaints(sentence, "", printed) == numbers


@pytest.mark.parametrize(
    "sentence",
    [
        "Four passages of 40 words are 4 × 40 = 150 words.",
        "It is 27/37 = 0.63.",
        "That is 0.6·4 + 0.3·2 + 0.1·8 = 3.9 legs (Smith 2020).",
    ],
)
def test_a_sum_that_is_wrong_is_named(sentence) -> None:
    assert "a sum" in complaints(sentence)
