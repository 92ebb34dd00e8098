"""The grid of rounded encoders: in small, on a tiny encoder, and as it is stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_sentences import rows, tiny_encoder, tokenizer

from course_utils.compression import qat
from course_utils.recipes import RECIPES, qat_minilm
from course_utils.tasks import sentence_vectors

SIZES = dict(lengths=(2, 3), seeds=1, batch=2, group_size=8, read=4)
BUDGET = SimpleNamespace(**SIZES, articles=2, each=2)
PLAN = {
    qat_minilm.LEARNED: {3: (0,), 2: (0, 1)},
    qat_minilm.KEPT: {2: (0,)},
    qat_minilm.LARGEST: {2: (0,)},
    qat_minilm.GPTQ_ON: {2: (0, 1)},
    qat_minilm.NORMS: {2: (0,)},
    qat_minilm.WEIGHTS: {2: (1,)},
    qat_minilm.OWN_RATES: {2: (1,)},
}
RATES = (1e-3, 1e-3, 1e-3)
TEXTS = [f"{'abc' * (i % 3 + 1)}{i}" for i in range(40)]


@pytest.fixture
def encoder():
    return tiny_encoder()


@pytest.fixture(autouse=True)
def small(encoder, monkeypatch):
    monkeypatch.setattr(qat_minilm.editorials, "load", rows)
    monkeypatch.setattr(qat_minilm.sentence_vectors, "load", lambda device: (encoder, tokenizer))
    monkeypatch.setattr(qat_minilm, "budget_for", lambda profile: BUDGET)
    monkeypatch.setattr(qat_minilm, "PLAN", PLAN)
    monkeypatch.setattr(qat_minilm, "BITS", (3, 2))


def test_the_recipe_writes_a_row_a_model(tmp_path: Path):
    folder = qat_minilm.train("cpu", 3, tmp_path / "new")
    rows = qat_minilm.runs(folder)
    cells = {(row.method, row.bits, row.steps, row.seed) for row in rows}
    afterwards = (*qat_minilm.ROUNDED, qat_minilm.ANOTHER_GRID)
    wanted = {(method, bits, 0, 3) for method in afterwards for bits in (3, 2)}
    wanted |= {(qat_minilm.LEARNED, 3, n, 3) for n in (0, 2)}
    wanted |= {(m, 2, n, 3) for m in (qat_minilm.LEARNED, qat_minilm.GPTQ_ON) for n in (0, 2, 3)}
    shorter = (qat_minilm.KEPT, qat_minilm.LARGEST, qat_minilm.NORMS)
    wanted |= {(m, 2, n, 3) for m in shorter for n in (0, 2)}
    late = (qat_minilm.WEIGHTS, qat_minilm.OWN_RATES)
    wanted |= {(m, 2, n, 3) for m in late for n in (0, 3)}
    assert cells == wanted
    assert len(rows) == len(cells)
    assert f"{len(rows)} rows" in (folder / "README.md").read_text(encoding="utf-8")
    by_cell = {row[:3]: row for row in rows}
    gptq, begun = by_cell["GPTQ", 2, 0], by_cell[qat_minilm.GPTQ_ON, 2, 0]
    assert begun.cosine == pytest.approx(gptq.cosine, abs=1e-5)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch):
    right, calls = qat_minilm.train_rounded, []

    def stops_at_the_third(*arguments):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(qat_minilm, "train_rounded", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        qat_minilm.train("cpu", 3, tmp_path / "stopped")
    folders = [qat_minilm.train("cpu", 3, tmp_path / name) for name in ("stopped", "at once")]
    assert len(calls) == 3 + 8 + 10  # two were stored
    some, all_ = (sorted(row[:5] for row in qat_minilm.runs(folder)) for folder in folders)
    assert some == all_


def test_with_fixed_steps_the_start_is_round_to_nearest(encoder):
    batch = sentence_vectors.batches(tokenizer, TEXTS[:4], 4)
    start = qat_minilm.prepared(encoder, 2, learned=False, group_size=8)
    nearest = qat_minilm.rounded(encoder, "nearest", 2, group_size=8)
    assert torch.equal(
        sentence_vectors.vectors_of(start, batch), sentence_vectors.vectors_of(nearest, batch)
    )


def changed_by_training(model, lessons) -> set[str]:
    before = {name: p.clone() for name, p in model.state_dict().items()}
    qat_minilm.train_rounded(model, lessons, RATES)
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_training_changes_blocks_and_steps_and_no_embedding(encoder):
    lessons = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 4, seed=1)
    model = qat_minilm.prepared(encoder, 2, group_size=8)
    changed = changed_by_training(model, lessons)
    assert all(name.startswith("blocks.") for name in changed)
    assert any(name.endswith(".scale") for name in changed)
    assert any(name.endswith("up.weight") for name in changed)
    assert all(torch.equal(p, q) for p, q in zip(encoder.parameters(), tiny_encoder().parameters(),
                                                 strict=True))  # fmt: skip
    assert len(qat.convert_qat(model)) == 12


def test_every_part_has_its_rate(encoder):
    model = qat_minilm.prepared(encoder, 2, group_size=8)
    weights, steps, rest = (g["params"] for g in qat_minilm.groups_of(model, (1.0, 2.0, 3.0)))
    layer = model.blocks[0].feed_forward.up
    found = [{id(p) for p in part} for part in (weights, steps, rest)]
    assert [id(p) in part for p, part in zip((layer.weight, layer.scale, layer.bias), found,
                                             strict=True)] == [True] * 3  # fmt: skip
    assert sum(map(len, found)) == len([p for p in model.parameters() if p.requires_grad])
    assert [g["lr"] for g in qat_minilm.groups_of(model, (1.0, 2.0, 3.0))] == [1.0, 2.0, 3.0]
    only = qat_minilm.groups_of(qat_minilm.keep_weights(model), (1.0, 2.0, 3.0))
    assert [g["lr"] for g in only] == [3.0]


def test_first_steps_may_be_kept(encoder):
    lessons = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 4, seed=1)
    model = qat_minilm.prepared(encoder, 2, group_size=8)
    before = model.blocks[0].feed_forward.up.scale.clone()
    qat_minilm.train_rounded(model, lessons, (1e-3, 0.0, 1e-3))
    assert torch.equal(model.blocks[0].feed_forward.up.scale, before)


def test_another_method_is_refused(encoder):
    with pytest.raises(ValueError, match="method is 'AWQ'; it must be one of nearest"):
        qat_minilm.rounded(encoder, "AWQ", 2)
    with pytest.raises(ValueError, match="GPTQ rounds by what it has read"):
        qat_minilm.rounded(encoder, "GPTQ", 2)
    with pytest.raises(ValueError, match="method is 'GPTQ'; it must be one of trained"):
        qat_minilm.begun(encoder, "GPTQ", 2)
    with pytest.raises(ValueError, match="begins where GPTQ ended"):
        qat_minilm.begun(encoder, qat_minilm.GPTQ_ON, 2)


def test_norms_and_biases_learn_alone(encoder):
    lessons = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 4, seed=1)
    model = qat_minilm.keep_weights(qat_minilm.prepared(encoder, 2, group_size=8))
    changed = changed_by_training(model, lessons)
    assert all(name.endswith(".bias") or "norm" in name for name in changed)
    assert {name.split(".")[-1] for name in changed} == {"bias", "weight"}


def test_weights_and_steps_learn_alone(encoder):
    lessons = sentence_vectors.lessons(encoder, tokenizer, TEXTS, 4, seed=1)
    read = sentence_vectors.batches(tokenizer, TEXTS, 4)
    swept = qat_minilm.sweep(encoder, 2, sentence_vectors.moments(encoder, read), 8)
    model = qat_minilm.begun(encoder, qat_minilm.WEIGHTS, 2, swept, 8)
    rounded = {n for n, layer in model.named_modules() if isinstance(layer, qat.QATLinear)}
    wanted = {f"{name}.{part}" for name in rounded for part in ("weight", "scale")}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted
    assert changed_by_training(model, lessons) <= wanted


@pytest.mark.parametrize("method", qat_minilm.TRAINED)
def test_a_method_lets_its_own_part_learn(encoder, method):
    read = sentence_vectors.batches(tokenizer, TEXTS, 4)
    swept = qat_minilm.sweep(encoder, 2, sentence_vectors.moments(encoder, read), 8)
    model = qat_minilm.begun(encoder, method, 2, swept, 8)
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    up, norm = "blocks.0.feed_forward.up", {n for n in learns if "norm" in n}
    assert bool(norm) == (f"{up}.bias" in learns) == (method != qat_minilm.WEIGHTS)
    assert (f"{up}.weight" in learns) == (method != qat_minilm.NORMS)
    assert (f"{up}.scale" in learns) == (method not in (qat_minilm.NORMS, qat_minilm.LARGEST))
    from_gptq = torch.equal(model.get_parameter(f"{up}.weight"), swept[up].before)
    assert from_gptq == (method in qat_minilm.FROM_GPTQ)


def test_training_from_gptq_begins_with_its_vectors(encoder):
    read = sentence_vectors.batches(tokenizer, TEXTS, 4)
    swept = qat_minilm.sweep(encoder, 2, sentence_vectors.moments(encoder, read), 8)
    models = (
        qat_minilm.rounded(encoder, "GPTQ", 2, swept),
        qat_minilm.prepared(encoder, 2, swept=swept, group_size=8),
    )
    vectors = [sentence_vectors.vectors_of(model, read) for model in models]
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-6)


def test_the_stored_grid_is_whole(monkeypatch):
    monkeypatch.undo()
    assert RECIPES[qat_minilm.NAME] == qat_minilm.__name__
    budget, rows = qat_minilm.budget_for("cpu"), qat_minilm.runs()
    wanted = {
        (*cell, seed)
        for bits in qat_minilm.BITS
        for cell in qat_minilm.cells_of(bits, budget)
        for seed in range(budget.seeds)
    }
    assert {(row.bits, row.method, row.steps, row.seed) for row in rows} == wanted
    assert len(rows) == len(wanted)
