"""The grid of GRUs and LSTMs: in small, and as it is stored."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from course_utils.assets.catalogue import AssetError
from course_utils.profiles import for_profile
from course_utils.recipes import RECIPES, gru_or_lstm
from course_utils.tasks import pronunciation

TINY = dict(steps=3, seeds=2, batch=2, lr=1e-2, short=2, heldout=2, words=(1, 2))


@pytest.fixture
def small(small_dictionary, monkeypatch) -> None:
    monkeypatch.setattr(
        gru_or_lstm, "budget_for", lambda profile: for_profile(profile, cpu=TINY, gpu=TINY)
    )


def test_the_recipe_writes_a_row_a_training_and_weights_that_load_again(small, tmp_path: Path):
    folder = gru_or_lstm.train("cpu", 3, tmp_path / "new" / "folder")
    rows = gru_or_lstm.runs(folder)
    cells = {(row.kind, row.words, row.steps, row.seed) for row in rows}
    short = {(kind, 1, 2, seed) for kind in ("gru", "lstm") for seed in (3, 4)}
    long = {(kind, n, 3, seed) for kind in ("gru", "lstm") for n in (1, 2) for seed in (3, 4)}
    assert cells == short | long
    assert len(rows) == 12
    facts = gru_or_lstm.facts_of(folder)
    assert (facts["seed"], facts["steps"], facts["n"]) == (3, 3, 12)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "GRU 75,069 weights, LSTM 73,573 weights" in card
    *_, test = pronunciation.split(pronunciation.entries(pronunciation.load_cmudict()))
    rates = pronunciation.score(pronunciation.writer(gru_or_lstm.load(folder)), test)
    kept = next(row for row in rows if (row.kind, row.words, row.seed) == ("gru", 2, 3))
    assert rates.symbol == pytest.approx(kept.symbol, abs=1e-4)  # float16 changes no phoneme here


def test_one_training_depends_on_its_seed_alone(small):
    known, _, test = pronunciation.split(pronunciation.entries(pronunciation.load_cmudict()))
    train = partial(gru_or_lstm.pronounce, "lstm", known, test, steps=3, batch=2)
    first, again, other = (train(seed=seed)[1] for seed in (1, 1, 2))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.out.weight, other.out.weight)


def test_a_missing_grid_says_how_to_make_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("course_utils.models.data_folder", lambda: tmp_path)
    with pytest.raises(AssetError, match="course train gru-or-lstm"):
        gru_or_lstm.runs()


def test_the_stored_grid_is_whole():
    assert RECIPES[gru_or_lstm.NAME] == gru_or_lstm.__name__
    budget, rows = gru_or_lstm.budget_for("cpu"), gru_or_lstm.runs()
    cells = {(row.kind, row.words, row.steps, row.seed) for row in rows}
    assert len(cells) == len(rows) == 2 * 3 * budget.seeds
    assert {row.steps for row in rows} == {budget.steps, budget.short}
    assert not gru_or_lstm.load().training
