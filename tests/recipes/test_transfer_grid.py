"""The grid of fine-tunings: in small, and as it is stored."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from course_utils.architectures.encoder import Encoder, EncoderConfig
from course_utils.finetuning.ratings import ridge
from course_utils.finetuning.transfer import trainable
from course_utils.profiles import for_profile
from course_utils.recipes import transfer_grid as grid
from course_utils.tasks.sentiment import Rated

TINY = dict(devs=6, tests=8, others=4)
ROWS = [Rated(str(i), (i % 9) - 4.0, f"word{i % 9} again {'so ' * (i % 3)}{i}") for i in range(400)]
SWEPT = {"last 2": (1e-3, 1e-2), "all": (1e-3, 1e-2), "head first": (1e-3,), "random": (1e-3,)}


def tokenizer(texts):
    """A number a word, between two signs."""
    return {"input_ids": [[1, *(3 + sum(map(ord, w)) % 90 for w in x.split()), 2] for x in texts]}


LINES = grid.lines(ROWS, tokenizer)


@pytest.fixture
def base():
    torch.manual_seed(0)
    sizes = dict(d_model=16, n_heads=2, n_layers=4, d_ff=24, max_positions=64)
    return Encoder(EncoderConfig(vocab_size=100, **sizes)).eval().requires_grad_(False)


@pytest.fixture
def small(monkeypatch, base):
    for name, value in {
        "SWEEP": SWEPT,
        "STEPS": {16: 2, 32: 3},
        "SEEDS": {16: 3, 32: 2},
        "SWEPT_AT": 32,
        "AT": {"random": (32,), "shuffled": (32,)},
        "budget_for": lambda profile: for_profile(profile, cpu=TINY, gpu=TINY),
        "paraphrases": lambda tokenizer: (LINES[:5], LINES[5:10]),
    }.items():
        monkeypatch.setattr(grid, name, value)
    monkeypatch.setattr(grid.sentence_vectors, "load", lambda device: (base, tokenizer))
    monkeypatch.setattr(grid.sentiment, "load", lambda domain: ROWS)


def test_the_recipe_writes_a_row_a_training(small, tmp_path, monkeypatch):
    folder = grid.train("cpu", 3, tmp_path / "new")
    rows = grid.runs(folder)
    wanted = grid.first_plan(3) + grid.second_plan(3, grid.best_rates(rows))
    assert [row[:4] for row in rows] == wanted
    assert len(set(wanted)) == len(wanted)
    assert all(math.isfinite(row.error) and -1 <= row.r <= 1 for row in rows)
    assert "2 on 16, 3 on 32" in (folder / "README.md").read_text("utf-8")
    found = grid.cells(rows)
    assert {row.seed for row in found["all"][16]} == {3, 4, 5}
    assert [row.seed for row in found["shuffled"][32]] == [3]
    assert [row.seed for row in found["all"][32]] == [3, 4]
    monkeypatch.setattr(grid, "tune", None)  # nothing is left to train
    assert grid.runs(grid.train("cpu", 3, folder)) == rows


def test_a_recipe_that_was_stopped_goes_on(small, tmp_path):
    whole = grid.runs(grid.train("cpu", 0, tmp_path / "whole"))
    facts = grid.facts_of(tmp_path / "whole")
    grid.stored.write_rows(tmp_path / "part", whole[:9], facts)
    rest = grid.runs(grid.train("cpu", 0, tmp_path / "part"))
    assert [row[:-1] for row in rest] == [row[:-1] for row in whole]


def test_a_training_depends_on_its_seed_alone(small, base):
    first, again, other = (grid.tune(base, "last 2", LINES[:32], seed, 1e-3) for seed in (1, 1, 2))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("arm", "blocks"), [("last 2", 2), *((x, 4) for x in SWEPT if x != "last 2")]
)
def test_what_is_frozen_stays(small, base, arm, blocks):
    """Every arm: the base is a copy, and only what should learn moves."""
    before = {name: p.clone() for name, p in base.named_parameters()}
    net = grid.tune(base, arm, LINES[:16], 0, 1e-3)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    for i, block in enumerate(net.encoder.blocks):
        same = torch.equal(block.feed_forward.up.weight, base.blocks[i].feed_forward.up.weight)
        assert same == (i < 4 - blocks)
    same = torch.equal(net.encoder.token_embedding.weight, base.token_embedding.weight)
    assert same == (blocks < 4)
    assert (trainable(net) == sum(p.numel() for p in net.parameters())) == (blocks == 4)


def test_head_first_begins_as_the_ridge_regression(base):
    fit = ridge(grid.vectors(base, LINES[:30]), grid.ratings_of(LINES[:30]))
    net = grid.build(base, "head first", 0)
    grid.start_head(net, fit)
    said = fit.predict(grid.vectors(base, LINES[30:40]))
    torch.testing.assert_close(grid.told(net, LINES[30:40]), said, atol=1e-4, rtol=1e-4)
    rates = {group["lr"] for group in grid.groups(net, "head first", 1e-4)}
    assert rates == {1e-4}


def test_batches_hold_like_lengths_in_another_order_each_epoch():
    texts = LINES[:64]
    source = grid.batches(texts, 0)
    first, second = ([next(source) for _ in range(4)] for _ in range(2))
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert first != second
    spans = sorted((len(batch[0].ids), len(batch[-1].ids)) for batch in first)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_told_does_not_depend_on_the_batch(small, base):
    net = grid.tune(base, "all", LINES[:16], 0, 1e-3)
    alone = [grid.told(net, [line]) for line in LINES[:40]]
    torch.testing.assert_close(grid.told(net, LINES[:40]), torch.cat(alone))  # order kept


def test_dealt_ratings_are_the_same_ones():
    found = grid.dealt(LINES[:30], 0)
    assert [line.ids for line in found] == [line.ids for line in LINES[:30]]
    assert sorted(x.target for x in found) == sorted(x.target for x in LINES[:30])
    assert [x.target for x in found] != [x.target for x in LINES[:30]]


def test_lines_and_drawn_by_hand():
    assert len(grid.lines(ROWS, tokenizer, longest=5)) == sum(i % 3 == 0 for i in range(400))
    assert grid.drawn(LINES, 5, 1) == grid.drawn(LINES, 5, 1) != grid.drawn(LINES, 5, 2)
    assert len(grid.drawn(LINES[:3], 3, 0)) == 3
    with pytest.raises(ValueError, match="5 texts are wanted and there are 3"):
        grid.drawn(LINES[:3], 5, 0)


def test_paraphrases_are_of_different_lines():
    asked, lines = grid.paraphrases(tokenizer)
    assert len(asked) == len(lines) == len({line.text for line in lines}) > 100


def test_rates_are_chosen_on_dev_by_the_seeds_that_tried_all():
    scores = dict(r=0, error=0, products=0, tweets=0, editorials=0, nats=0, seconds=0)
    rows = [
        grid.Run(arm, 256, rate, seed, dev=dev, **scores)
        for arm, rates in grid.SWEEP.items()
        for i, rate in enumerate(rates)
        for seed, dev in ((0, 0.6 if i == 1 else 0.5), (1, 0.55 if i == 2 else 0.5))
    ]
    alone = rows[0]._replace(seed=2, dev=0.99)  # seed 2 tried one rate, which is no vote
    few = rows[0]._replace(labels=16, seed=3, dev=0.99)
    rates = grid.best_rates([*rows, alone, few])
    assert {rates[arm] for arm in grid.FITTED} == {0.0}
    assert rates["all"] == rates["shuffled"] == grid.SWEEP["all"][1]


def test_the_stored_grid_is_whole():
    rows, facts = grid.runs(), grid.facts_of()
    cells = grid.first_plan(facts["seed"])
    cells += grid.second_plan(facts["seed"], grid.best_rates(rows))
    assert [row[:4] for row in rows] == cells
