"""The grid of pruned encoders: in small, on a tiny encoder, and as it is stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_sentences import rows, tiny_encoder, tokenizer

from course_utils.compression import pruning
from course_utils.recipes import RECIPES, pruned_minilm
from course_utils.tasks import sentence_vectors

SIZES = dict(shares=(0.5,), stops=(0, 2), seeds=2, batch=2, rate=1e-3)
BUDGET = SimpleNamespace(**SIZES, articles=2, each=2, calibration=6)


@pytest.fixture
def encoder():
    return tiny_encoder()


@pytest.fixture(autouse=True)
def small(encoder, monkeypatch):
    monkeypatch.setattr(pruned_minilm.editorials, "load", rows)
    monkeypatch.setattr(pruned_minilm.sentence_vectors, "load", lambda device: (encoder, tokenizer))
    monkeypatch.setattr(pruned_minilm, "budget_for", lambda profile: BUDGET)


def test_the_recipe_writes_a_row_a_stop(tmp_path: Path):
    folder = pruned_minilm.train("cpu", 3, tmp_path / "new")
    stored = pruned_minilm.runs(folder)
    cells = {(row.choice, row.share, row.steps, row.seed) for row in stored}
    wanted = {(c, 0.5, n, s) for c in pruned_minilm.CHOICES for n in (0, 2) for s in (3, 4)}
    assert cells == wanted
    assert len(stored) == len(cells)
    assert all(-1 <= row.cosine <= 1 for row in stored)
    assert "12 rows" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch):
    right, calls = pruned_minilm.one_training, []

    def stops_at_the_third(*arguments):
        calls.append(arguments[2:5])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(pruned_minilm, "one_training", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pruned_minilm.train("cpu", 3, tmp_path / "stopped")
    assert len(pruned_minilm.runs(tmp_path / "stopped")) == 4
    folders = [pruned_minilm.train("cpu", 3, tmp_path / name) for name in ("stopped", "at once")]
    assert len(calls) == 3 + 4 + 6  # two were stored
    some, all_ = ([row[:5] for row in pruned_minilm.runs(folder)] for folder in folders)
    assert some == all_


def test_retraining_keeps_the_zeros_and_the_embeddings(encoder):
    texts = [f"{'abc' * (i % 3 + 1)}{i}" for i in range(40)]
    lessons = sentence_vectors.lessons(encoder, tokenizer, texts, 4, seed=1)
    assert len(lessons) == 10
    scores = pruning.linear_scores(encoder)
    masks = {name: pruning.row_mask(each, 0.5) for name, each in scores.items()}
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    pruned_minilm.retrain(encoder, masks, lessons, rate=1e-3)
    assert pruning.sparsity_of(encoder) == 0.5
    after = encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("blocks.") for name in changed)
    assert any("norm" in name for name in changed)


def test_random_scores_depend_on_their_seed(encoder):
    first, again, other = (pruned_minilm.scores_of(encoder, "random", {}, s) for s in (1, 1, 2))
    name = next(iter(first))
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    with pytest.raises(ValueError, match="choice is 'best'; it must be one of random"):
        pruned_minilm.scores_of(encoder, "best", {})


def test_the_stored_grid_is_whole(monkeypatch):
    monkeypatch.undo()
    assert RECIPES[pruned_minilm.NAME] == pruned_minilm.__name__
    budget, stored = pruned_minilm.budget_for("cpu"), pruned_minilm.runs()
    cells = {(row.choice, row.share, row.steps, row.seed) for row in stored}
    assert len(cells) == len(stored) == 3 * len(budget.shares) * len(budget.stops) * budget.seeds
