"""The grid of rates and methods: in small, and as it is stored."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils.architectures.encoder import Encoder, EncoderConfig, mean_pool
from course_utils.finetuning import ratings
from course_utils.finetuning.transfer import trainable
from course_utils.profiles import for_profile
from course_utils.recipes import RECIPES, lora_sweep
from course_utils.recipes.lora_sweep import Arm, Run, Task, Text

SIZES = dict(seeds=3, swept=2, steps=3, batch=2, labels=6, devs=4, tests=4, pairs=3)
LORA = Arm("lora", rank=2, scale=2.0)
SWEPT = {Arm("frozen"): (0.0,), Arm("full"): (1e-3, 1e-2), LORA: (1e-3, 3e-3)}
RIVALS = {Arm("ia3"): (1e-2, 3e-2)}


def text(i):
    return Text([1, 2 + i % 7, 3 + i % 5], float(i % 3) - 1)


TASK = Task(
    head=[text(i + 3) for i in range(6)],
    train=[text(i) for i in range(12)],
    dev=[text(i + 1) for i in range(4)],
    test=[text(i + 2) for i in range(4)],
    halves=[(text(i), text(i + 3)) for i in range(3)],
)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Encoder(EncoderConfig(12, d_model=8, n_heads=2, n_layers=2, d_ff=16)).eval()


@pytest.fixture
def small(base, monkeypatch):
    for name, value in {"SWEPT": SWEPT, "RIVALS": RIVALS, "LORA": LORA}.items():
        monkeypatch.setattr(lora_sweep, name, value)
    monkeypatch.setattr(
        lora_sweep, "budget_for", lambda profile: for_profile(profile, cpu=SIZES, gpu=SIZES)
    )
    monkeypatch.setattr(lora_sweep.sentence_vectors, "load", lambda: (base, None))
    monkeypatch.setattr(lora_sweep, "load_task", lambda tokenizer, **sizes: TASK)


def test_the_recipe_writes_a_row_a_training(small, tmp_path, monkeypatch):
    folder = lora_sweep.train("cpu", 3, tmp_path / "new")
    rows = lora_sweep.runs(folder)
    # frozen 3; two rates with two seeds and the best with the third; one seed's and two more; dealt
    assert len(rows) in (3 + 5 + 5 + 4 + 1, 3 + 5 + 5 + 4 + 1 + 2)  # LoRA at full tuning's rate
    assert len({(row.arm, row.seed) for row in rows}) == len(rows)
    for like in (*SWEPT, *RIVALS):
        assert {row.seed for row in lora_sweep.at_its_best(rows, like)} == {3, 4, 5}
    assert all(math.isfinite(row.test) and 0 <= row.recall <= 1 for row in rows)
    assert "3 at the chosen rates; 2 over all" in (folder / "README.md").read_text("utf-8")
    monkeypatch.setattr(lora_sweep, "tune", None)  # nothing is left to train
    assert lora_sweep.runs(lora_sweep.train("cpu", 3, folder)) == rows


def test_a_recipe_that_was_stopped_goes_on(small, tmp_path):
    whole = lora_sweep.runs(lora_sweep.train("cpu", 0, tmp_path / "whole"))
    facts = lora_sweep.facts_of(tmp_path / "whole")
    lora_sweep.stored.write_rows(tmp_path / "part", whole[:5], facts)
    rest = lora_sweep.runs(lora_sweep.train("cpu", 0, tmp_path / "part"))
    assert [row[:-1] for row in rest] == [row[:-1] for row in whole]


@pytest.mark.parametrize(
    ("arm", "learning"),
    [
        (Arm("full", 1e-3), 2 * (4 * 64 + 2 * 128)),
        (Arm("lora", 1e-3, 2, 2.0), 2 * 2 * (4 * 16 + 2 * 24)),
        (Arm("lora", 1e-3, 2, 2.0, "attention"), 2 * 2 * 4 * 16),
        (Arm("lora", 1e-3, 2, 2.0, "feed-forward"), 2 * 2 * 2 * 24),
        (Arm("dora", 1e-3, 2, 2.0), 2 * (2 * (4 * 16 + 2 * 24) + 5 * 8 + 16)),
        (Arm("bitfit", 1e-3), 2 * (5 * 8 + 16 + 2 * 8)),
        (Arm("ia3", 1e-3), 2 * (8 + 8 + 16)),
        (Arm("frozen"), 0),
    ],
)
def test_each_method_trains_what_it_says(base, arm, learning):
    start = lora_sweep.with_head(base, TASK.head)
    model = lora_sweep.tune(arm, 0, TASK, start, labels=6, steps=2, batch=2)
    assert trainable(model) == learning
    assert not model.head.weight.requires_grad
    assert torch.equal(model.head.weight, start.head.weight)


def test_prepare_refuses_another_method(base):
    model = lora_sweep.with_head(base, TASK.head)
    with pytest.raises(ValueError, match="method is 'sft'; it must be full, lora"):
        lora_sweep.prepare(model, Arm("sft"))


def scores(arm, seed, start, **sizes):
    model = lora_sweep.tune(arm, seed, TASK, start, **sizes)
    return [lora_sweep.errors(model, part).mean().item() for part in (TASK.dev, TASK.test)]


def test_a_rate_of_nothing_leaves_the_frozen_scores(base):
    """And the model that was given is never changed."""
    start = lora_sweep.with_head(base, TASK.head)
    before = {name: p.clone() for name, p in start.named_parameters()}
    frozen, sizes = scores(Arm("frozen"), 1, start), dict(labels=6, steps=2, batch=2)
    for arm in (Arm("full", 0.0), Arm("lora", 0.0, 2, 2.0)):
        assert scores(arm, 1, start, **sizes) == pytest.approx(frozen, abs=1e-5)
    assert scores(Arm("full", 1e-2), 1, start, **sizes) != pytest.approx(frozen, abs=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in start.named_parameters())


def test_one_training_depends_on_its_seed_alone(base):
    start, sizes = lora_sweep.with_head(base, TASK.head), dict(labels=6, steps=3, batch=2)
    first, again, other = (scores(Arm("lora", 1e-2, 2, 2.0), s, start, **sizes) for s in (1, 1, 2))
    assert first == again != other


def test_too_few_texts_are_refused(base):
    start = lora_sweep.with_head(base, TASK.head)
    with pytest.raises(ValueError, match="3 texts make no batch of 4; give more labels"):
        lora_sweep.tune(Arm("full", 1e-3), 0, TASK, start, labels=3, steps=2, batch=4)


def test_the_head_is_the_ridge_on_frozen_vectors(base):
    model = lora_sweep.with_head(base, TASK.head)
    ids, mask, targets = lora_sweep.batch_of(TASK.head, "cpu")
    features = mean_pool(base(ids, mask), mask)
    told = ratings.ridge(features, targets).predict(features)
    torch.testing.assert_close(model(ids, mask).squeeze(1), told, atol=1e-5, rtol=1e-5)


def test_shuffled_labels_are_the_same_ones():
    known, dealt = lora_sweep.drawn(TASK, 0, 8, shuffled=True)
    assert [t.ids for t in known] == [t.ids for t in dealt]
    assert sorted(t.target for t in known) == sorted(t.target for t in dealt)
    assert [t.target for t in known] != [t.target for t in dealt]
    assert lora_sweep.drawn(TASK, 0, 8, shuffled=False)[1] == known


def test_halves_found_by_hand():
    class Fixed(torch.nn.Module):
        """A token's vector is its number's unit vector."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(4))

        def forward(self, ids, mask):
            return self.weight[ids]

    def pair(a, b):
        return Text([a], 0.0), Text([b], 0.0)

    found = lora_sweep.halves_found(Fixed(), [pair(0, 0), pair(1, 1), pair(2, 3)])
    assert found[:2].tolist() == [1, 1]
    assert lora_sweep.halves_found(Fixed(), [pair(0, 1), pair(1, 0)]).tolist() == [0, 0]


ROWS = [
    Run(method, rate, 0, 0.0, "all", False, seed, 9, dev, test, 0.5, 1.0)
    for method, rate, seed, dev, test in [
        ("full", 1e-4, 0, 0.5, 0.9),
        ("full", 1e-3, 0, 0.6, 0.1),
        ("full", 1e-4, 1, 0.7, 0.8),
        ("full", 1e-3, 1, 0.65, 0.2),
        ("bitfit", 1e-2, 0, 0.1, 0.1),
    ]
]


def test_rates_are_chosen_on_dev():
    assert lora_sweep.best_rate(ROWS, Arm("full")) == 1e-4
    assert lora_sweep.best_rate(ROWS, Arm("full"), seed=1) == 1e-3
    assert [row.test for row in lora_sweep.at_its_best(ROWS, Arm("full"))] == [0.9, 0.8]
    with pytest.raises(ValueError, match="no row is of the family"):
        lora_sweep.by_rate(ROWS, Arm("ia3"))


def test_several_seeds_choose_where_all_of_them_tried_every_rate():
    rows = [row._replace(dev=9.0) if row.rate == 1e-4 and row.seed == 1 else row for row in ROWS]
    alone = rows[1]._replace(seed=2, dev=0.0)  # seed 2 tried one rate, which is no vote
    assert lora_sweep.best_rate([*ROWS, alone], Arm("full")) == 1e-4
    assert lora_sweep.best_rate(rows, Arm("full")) == 1e-3
    with pytest.raises(ValueError, match="seed 2 did not try every rate"):
        lora_sweep.best_rate([*ROWS, alone], Arm("full"), seed=2)


def test_the_stored_grid_is_whole():
    assert RECIPES[lora_sweep.NAME] == lora_sweep.__name__
    rows, budget = lora_sweep.runs(), lora_sweep.budget_for("cpu")
    for like in (*lora_sweep.SWEPT, *lora_sweep.RIVALS):
        found = lora_sweep.at_its_best(rows, like)
        assert [row.seed for row in found] == list(range(budget.seeds))
