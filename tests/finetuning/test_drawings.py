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
