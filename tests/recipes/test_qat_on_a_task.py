"""A classifier rounded before, while and after it learns: in small, and as it is stored."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_sentences import tiny_encoder, tokenizer

from course_utils.compression import qat
from course_utils.recipes import RECIPES
from course_utils.recipes import qat_on_a_task as module
from course_utils.tasks.sentiment import Rated, Split

BUDGET = SimpleNamespace(early=2, steps=3, batch=4, read=8, seeds=2)
# Letters of the first half are positive.
TWEETS = [Rated(str(i), 2.0 if i % 3 else -2.0, f"{'ab' if i % 3 else 'yz'}{i}") for i in range(40)]


UNCLEAR = [Rated(f"u{i}", 0.5, f"pq{i}") for i in range(9)]
SPLIT = Split(TWEETS[:30] + UNCLEAR[:6], UNCLEAR[6:], TWEETS[30:])


@pytest.fixture
def encoder():
    return tiny_encoder()


@pytest.fixture(autouse=True)
def small(encoder, monkeypatch):
    monkeypatch.setattr(module.sentiment, "load", lambda domain: TWEETS)
    monkeypatch.setattr(module.sentiment, "split", lambda rows: SPLIT)
    monkeypatch.setattr(module.sentence_vectors, "load", lambda device: (encoder, tokenizer))
    monkeypatch.setattr(module, "budget_for", lambda profile: BUDGET)
    right, rounded = module.qat_minilm.prepared, module.qat_minilm.rounded
    swept = module.qat_minilm.sweep
    for name, function in dict(prepared=right, rounded=rounded, sweep=swept).items():

        def of_eight(*args, _function=function, **options):
            return _function(*args, group_size=8, **options)

        monkeypatch.setattr(module.qat_minilm, name, of_eight)


def lessons(n=12):
    return module.lessons_of(tokenizer, TWEETS[:n], 4, seed=0)


def test_the_recipe_writes_a_row_a_model(tmp_path: Path):
    folder = module.train("cpu", 5, tmp_path / "new")
    rows = module.runs(folder)
    assert {row[:4] for row in rows} == {(*cell, s) for cell in module.cells() for s in (5, 6)}
    assert len(rows) == 2 * len(module.cells()) == 28
    assert "28 rows" in (folder / "README.md").read_text(encoding="utf-8")
    trained = {row.arm for row in rows if row.seconds > 0}
    assert trained == {module.EARLY, module.WHILE, module.LONGER}


def test_a_seed_that_was_stopped_is_made_anew(tmp_path: Path, monkeypatch):
    right, calls = module.learn, []

    def stops_at_the_seventh(*arguments):
        calls.append(arguments[3])
        if len(calls) == 7:  # of five a seed
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(module, "learn", stops_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        module.train("cpu", 3, tmp_path / "stopped")
    assert {row.seed for row in module.runs(tmp_path / "stopped")} == {3, 4}
    folders = [module.train("cpu", 3, tmp_path / name) for name in ("stopped", "at once")]
    assert len(calls) == 7 + 5 + 10
    some, all_ = (sorted(row[:6] for row in module.runs(folder)) for folder in folders)
    assert some == all_


def test_only_clear_tweets_are_learned_from():
    known, held = module.clear_tweets(30, seed=1)
    assert sorted(known) == sorted(TWEETS[:30])
    assert held == TWEETS[30:]
    assert known != module.clear_tweets(30, seed=2)[0]
    assert module.clear_tweets(3, seed=1, exam="dev")[1] == []
    with pytest.raises(ValueError, match="31 tweets are asked for, and 30 have a clear rating"):
        module.clear_tweets(31, seed=1)


def test_lessons_hold_each_tweet_once_with_its_label():
    found = lessons()
    assert sum(len(labels) for _, labels in found) == 12
    for (ids, _), labels in found:
        positive = ids[:, 0] == ord("a") % 29 + 1
        assert torch.equal(labels.bool(), positive)


def test_all_arms_learn_from_the_same_tweets_and_gptq_reads_some_of_them(encoder):
    ward = module.Ward(encoder, tokenizer, BUDGET, 1)
    assert (len(ward.first), len(ward.further), len(ward.read)) == (2, 3, 2)
    for read, (texts, _) in zip(ward.read, ward.further, strict=False):
        assert torch.equal(read[0], texts[0])


def test_the_floor_knows_how_often_the_classes_were_met():
    known, exam = lessons(30), lessons(9)
    right, nats = module.floor_of(known, exam)
    assert right == pytest.approx(6 / 9)
    assert nats == pytest.approx(-(6 * math.log(20 / 30) + 3 * math.log(10 / 30)) / 9, rel=1e-5)


def test_learning_changes_blocks_head_and_steps_and_no_embedding(encoder):
    net = module.new_classifier(encoder)
    net = module.with_encoder(net, module.qat_minilm.prepared(net.encoder, 2))
    before = {name: p.clone() for name, p in net.state_dict().items()}
    module.learn(net, lessons(), (1e-3, 1e-3, 1e-3), "a few")
    changed = {n for n, p in net.state_dict().items() if not torch.equal(p, before[n])}
    assert all(n.startswith(("encoder.blocks.", "head.")) for n in changed)
    assert {"head.weight", "head.bias"} <= changed
    assert any(n.endswith(".scale") for n in changed)
    assert any(n.endswith("up.weight") for n in changed)


def test_another_encoder_leaves_the_classifier_as_it_was(encoder):
    net = module.new_classifier(encoder)
    module.learn(net, lessons(), (1e-3, 0.0, 1e-3), "a few")
    before = {name: p.clone() for name, p in net.state_dict().items()}
    grades = module.graded_on(net, lessons())
    other = module.with_encoder(net, module.qat_minilm.prepared(net.encoder, 2))
    assert any(isinstance(m, qat.QATLinear) for m in other.modules())
    assert isinstance(other.head, torch.nn.Linear)
    assert torch.equal(other.head.weight, net.head.weight)
    module.learn(other, lessons(), (1e-2, 1e-3, 1e-2), "a few")
    assert all(torch.equal(p, before[n]) for n, p in net.state_dict().items())
    assert module.graded_on(net, lessons()) == grades != module.graded_on(other, lessons())


def test_the_stored_grid_is_whole(monkeypatch):
    monkeypatch.undo()
    assert RECIPES[module.NAME] == module.__name__
    budget, rows = module.budget_for("cpu"), module.runs()
    wanted = {(*cell, seed) for cell in module.cells() for seed in range(budget.seeds)}
    assert {row[:4] for row in rows} == wanted
    assert len(rows) == len(wanted)
