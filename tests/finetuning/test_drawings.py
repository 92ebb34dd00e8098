"""Figures of fine-tuning: they draw, and say in words what they show."""

from __future__ import annotations

import pytest

from course_utils.finetuning import drawings


@pytest.fixture
def words(monkeypatch):
    """The alt texts of what is shown."""
    from course_utils import plots

    said = []
    monkeypatch.setattr(drawings, "show", lambda figure: said.append(plots.alt_text(figure)))
    return said


def test_beside_names_the_matrices(words):
    drawings.beside(576, 192, 8, title="Two narrow ones")
    assert "Two narrow ones" in words[0]
    assert "W, frozen 192 × 576" in words[0]
    assert "B 192 × 8" in words[0]


def test_sweep_has_every_series_and_the_live_ones(words):
    curves = {"full": {1e-4: [0.5, 0.6], 1e-3: [0.7, 0.9]}, "LoRA": {1e-3: [0.5, 0.5]}}
    drawings.sweep(
        curves, title="T", y="error", levels={"frozen": 0.8}, live={"LoRA": (1e-3, 0.51)}
    )
    for name in ("full", "LoRA", "frozen", "learning rate", "error"):
        assert name in words[0]


def test_held_draws_a_line_a_matrix(words, monkeypatch):
    lines = []
    monkeypatch.setattr(drawings, "show", lambda figure: lines.append(len(figure.axes[0].lines)))
    drawings.held({"tuned": [[0.5, 1.0], [0.6, 1.0]], "random": [[0.3, 1.0]]}, title="T", at=1)
    assert lines == [4]


def test_exchange_names_methods_and_the_start(words):
    points = {"full": [(0.5, 0.4), (0.6, 0.5)], "LoRA": [(0.5, 0.6)]}
    drawings.exchange(points, start=(0.9, 0.7), title="T", x="error", y="halves")
    for name in ("full", "LoRA", "before tuning", "error", "halves"):
        assert name in words[0]


def test_rounding_has_an_arrow_a_step(words):
    drawings.rounding([-1.0, 0.0, 1.0], [(0.0, 0.2), (0.0, 0.8)], title="Rounded")
    assert "Rounded" in words[0]


def test_stacks_say_what_learns(words):
    arms = {"a": [False, True], "b": [True, True]}
    drawings.stacks(arms, ["embedding", "block 1"], title="T")
    for word in ("T", "embedding", "learns", "frozen"):
        assert word in words[0]


def test_curves_over_labels_show_every_arm(words):
    arms = {"words": {16: [0.1, 0.2], 64: [0.3, 0.3]}, "all": {16: [0.2], 64: [0.5]}}
    drawings.curves_over_labels(arms, title="More", y="r", grey=["words"])
    assert "Series: words; all." in words[0]
    assert "ratings learned from" in words[0]


def test_against_people_has_a_panel_each(words):
    drawings.against_people({"before": ([1, 2], [0, 0]), "after": ([1, 2], [1, 2])}, title="T")
    assert "before" in words[0]
    assert "people's rating" in words[0]


def test_rows_of_tokens_say_how_many_rows(words):
    drawings.rows_of_tokens({"padded": [[1, 1, 0]], "packed": [[1, 1, 2]]}, title="T")
    assert "padded: 1 rows" in words[0]


def test_two_parts_name_both(words):
    costs = {"bare": (2.0, 0.5), "soft": (0.1, 0.4)}
    drawings.two_parts(costs, title="Form goes first", parts=("format", "choice"), x="nats")
    assert "Series: format; choice." in words[0]
    assert "bare" in words[0]


def test_prompt_before_text_shows_vectors_and_words(words):
    drawings.prompt_before_text(["so", "good"], 2, title="Two vectors before two words")
    assert "Two vectors" in words[0]
    assert "so" in words[0]
