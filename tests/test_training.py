"""The loop equals a hand-written one, refuses bad input, and shows progress that can be guarded."""

import pytest
import torch

from course_utils.training import (
    TrainingDiverged,
    batches_by_length,
    cycle,
    progress,
    shuffled_batches,
    train,
    warm_up_and_decay,
)


def problem():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(6)]
    return layer, batches, lambda batch: ((layer(batch[0]) - batch[1]) ** 2).mean()


def test_equals_the_textbook_loop(capsys):
    layer, batches, loss_of = problem()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=6)
    history = train(
        loss_of, batches, optimizer, steps=6, max_norm=0.5, scheduler=scheduler, label="toy"
    )
    other, batches, loss_of = problem()
    expected, rate = [], torch.linspace(1 / 3, 1, 7)
    for batch, scale in zip(batches, rate, strict=False):
        other.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        with torch.no_grad():
            for p in other.parameters():
                p -= 0.1 * scale * p.grad
        expected.append(loss.item())
    assert history.losses == pytest.approx(expected, rel=1e-5)  # fp32, rate computed otherwise
    assert torch.allclose(layer.weight, other.weight, atol=1e-6)
    assert history.recent(2) == pytest.approx(sum(expected[-2:]) / 2, rel=1e-5)
    last = capsys.readouterr().out.split("\r")[-1]
    assert last.startswith("toy: 6/6 · loss ⟨")
    assert last.endswith("⟩ s\n")


def test_batches_that_run_out():
    layer, batches, loss_of = problem()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"ran out after 6 of 7 steps; wrap them in cycle\(\)"):
        train(loss_of, batches, optimizer, steps=7)
    assert len(train(loss_of, cycle(lambda: batches), optimizer, steps=7).losses) == 7


def test_diverging_run_stops_before_the_step():
    layer, batches, _ = problem()
    before = layer.weight.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(TrainingDiverged, match=r"became nan.*max_norm"):
        train(lambda batch: layer(batch[0]).sum() * torch.nan, batches, optimizer, steps=2)
    assert torch.equal(layer.weight, before)


def test_no_steps_and_no_batches():
    layer, batches, loss_of = problem()
    with pytest.raises(ValueError, match="steps is 0"):
        train(loss_of, batches, torch.optim.SGD(layer.parameters()), steps=0)
    with pytest.raises(ValueError, match="no batch"):
        next(cycle(list))


def test_progress_is_closed_when_the_work_fails(capsys):
    with pytest.raises(KeyError), progress("words", 3) as advance:
        advance("one")
        raise KeyError
    assert capsys.readouterr().out.split("\r")[-1].startswith("words: 1/3 · one · ⟨")


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_batches_by_length_hold_every_position_once_and_pad_little(size, equal):
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    batches = batches_by_length(lengths, size, equal=equal)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths)
    if equal:
        assert all(len({lengths[i] for i in batch}) == 1 for batch in batches)
    else:
        assert len(batches) == -(-len(lengths) // size), "as few batches as can be"


def test_batches_by_length_of_nothing_and_of_no_size():
    assert batches_by_length([], 4) == batches_by_length([], 4, equal=True) == []
    with pytest.raises(ValueError, match="size is 0; a batch holds at least 1"):
        batches_by_length([1], 0)


def test_warm_up_and_decay_by_hand():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = warm_up_and_decay(optimizer, 20), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 18)


def test_shuffled_batches_are_whole_and_go_on_in_another_order():
    source = shuffled_batches(range(7), 3, seed=1)
    epochs = [[next(source), next(source)] for _ in range(20)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [3, 3]
        assert len({item for batch in epoch for item in batch}) == 6
    assert {item for epoch in epochs for batch in epoch for item in batch} == set(range(7))
    assert epochs[0] != epochs[1]
    again = shuffled_batches(range(7), 3, seed=1)
    assert [next(again), next(again)] == epochs[0]
    with pytest.raises(ValueError, match="2 texts make no batch of 3; give more labels"):
        shuffled_batches([0, 1], 3)
