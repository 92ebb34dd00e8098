"""The loop against a plain one with production's schedule, and a run that stops and goes on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.objectives import next_token_loss
from course_utils.building import pretraining, tokenizer
from course_utils.building.pretraining import Pretraining
from course_utils.training import TrainingDiverged

ROWS = torch.randint(11, (9, 6), generator=torch.Generator().manual_seed(5))


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(vocab_size=11, d_model=8, n_heads=2, n_layers=1, d_ff=12))


def begun(model: nn.Module | None = None, **changed) -> Pretraining:
    chosen = dict(steps=8, batch_size=2, lr=1e-2, warmup=2) | changed
    return Pretraining(decoder() if model is None else model, ROWS, **chosen)


def weights(run: Pretraining) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


# ── schedule, groups, batches ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (7, 6)])
def test_warmup_cosine_is_transformers(steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    for step in range(steps):
        assert pretraining.warmup_cosine(step, steps, warmup, floor=0) == pytest.approx(
            schedule.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        schedule.step()


@settings(deadline=None)
@given(st.integers(1, 50), st.data())
def test_warmup_cosine_stays_between(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    shares = [
        pretraining.warmup_cosine(step, steps, warmup, floor=0.1) for step in range(steps + 3)
    ]
    assert max(shares) == shares[warmup] == 1
    assert shares[-1] == shares[steps] == pytest.approx(0.1)
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)


@pytest.mark.parametrize("warmup", [-1, 8])
def test_warmup_cosine_refuses(warmup):
    with pytest.raises(ValueError, match=f"warmup is {warmup} of 8 steps"):
        begun(warmup=warmup)


def test_decay_groups_take_each_weight_once():
    model = decoder()
    shrinking, kept = pretraining.decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in kept["params"]} == {n for n in names.values() if "norm" in n}
    assert len(shrinking["params"]) + len(kept["params"]) == len(names)
    assert (shrinking["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_batch_at_reads_all_rows_in_each_pass():
    passes = [
        torch.cat([pretraining.batch_at(ROWS, 3, 1, 3 * epoch + i) for i in range(3)])
        for epoch in range(2)
    ]
    for found in passes:
        assert sorted(found.tolist()) == sorted(ROWS.tolist())
    assert not torch.equal(*passes)
    assert not torch.equal(passes[0][:3], pretraining.batch_at(ROWS, 3, 2, 0))


@pytest.mark.parametrize("size", [0, 10])
def test_batch_at_refuses(size):
    with pytest.raises(ValueError, match=f"size is {size}; a batch holds from 1 to all 9 rows"):
        begun(batch_size=size)


# ── the run ───────────────────────────────────────────────────────────────────────────────────────


def test_the_run_is_a_plain_loop():
    """AdamW by hand over the parameters, the gradient clipped by its global norm: bit for bit."""
    run, model = begun(max_norm=0.5, weight_decay=0.3), decoder()
    losses = run.train().losses
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0}],
        betas=(0.9, 0.95),
    )
    for step in range(8):
        for group in adam.param_groups:
            group["lr"] = 1e-2 * pretraining.warmup_cosine(step + 1, 9, 2)
        adam.zero_grad()
        batch = pretraining.batch_at(ROWS, 2, 0, step)
        loss = next_token_loss(model(batch), batch)
        assert loss.item() == losses[step]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
    for ours, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_resume_is_bit_exact(tmp_path):
    whole = begun()
    losses = whole.train().losses
    first = begun()
    first.train(3)
    first.save(tmp_path / "run.pt")
    second = begun(Decoder(whole.model.config))  # other weights at first
    second.resume(tmp_path / "run.pt")
    assert second.train().losses == losses[3:]
    assert torch.equal(weights(second), weights(whole))


@pytest.mark.parametrize("left_out", ["optimizer", "scheduler", "model"])
def test_resume_needs_every_part(tmp_path, monkeypatch, left_out):
    """The null: leave one part out, and other weights come out."""
    whole = begun()
    whole.train()
    first = begun()
    first.train(3)
    first.save(tmp_path / "run.pt")
    kept = tuple(name for name in pretraining.STATEFUL if name != left_out)
    monkeypatch.setattr(pretraining, "STATEFUL", kept)
    second = begun()
    second.resume(tmp_path / "run.pt")
    second.train()
    assert not torch.equal(weights(second), weights(whole))


def test_resume_refuses_another_run(tmp_path):
    begun().save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"lr is 0\.5 here, 0\.01 in run\.pt"):
        begun(lr=0.5).resume(tmp_path / "run.pt")


def test_a_run_takes_no_more_steps_than_it_has():
    run = begun(steps=3)
    run.train(2)
    for steps in (0, 2):
        with pytest.raises(ValueError, match=f"{steps} steps are asked for; 1 of 3 are left"):
            run.train(steps)


def test_a_run_learns_its_rows():
    run = begun(steps=150, lr=3e-2, batch_size=9)
    before = pretraining.nats_per_token(run.model, ROWS)
    run.train()
    assert before == pytest.approx(math.log(11), abs=0.1)  # weights near 0: all 11 tokens alike
    assert pretraining.nats_per_token(run.model, ROWS) < before / 2


def test_a_diverging_run_stops():
    with pytest.raises(TrainingDiverged):
        begun(lr=1e30, max_norm=1e30, warmup=0).train()


def test_mixed_precision_keeps_the_weights_in_float32():
    run = begun(bf16=True)
    batch = ROWS[:2]
    exact = begun().loss(batch)
    loss = run.loss(batch)
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, atol=2e-2, rtol=0)  # bfloat16 keeps 8 bits
    run.train(2)
    assert weights(run).dtype == torch.float32


@pytest.mark.gpu
def test_mixed_precision_on_a_gpu():
    run = begun(decoder().cuda(), bf16=True)
    assert all(math.isfinite(loss) for loss in run.train().losses)


# ── the score ─────────────────────────────────────────────────────────────────────────────────────


def test_nats_per_token_weighs_all_rows_alike():
    model = decoder()
    whole = next_token_loss(model(ROWS), ROWS).item()
    for batch_size in (1, 4, 9, 20):
        found = pretraining.nats_per_token(model, ROWS, batch_size)
        assert found == pytest.approx(whole, abs=1e-6)  # fp32, other summation order
    assert model.training
    for rows in (ROWS[:0], ROWS[:, :1]):
        with pytest.raises(ValueError, match="at least one of at least 2 tokens"):
            pretraining.nats_per_token(model, rows)


def test_nats_of_rows_is_the_loss_row_by_row():
    """One row at a time, without dropout, by torch's own loss; the mode stays as it was."""
    model = decoder()
    model.norm = nn.Sequential(model.norm, nn.Dropout(0.5))
    found = pretraining.nats_of_rows(model, ROWS, batch_size=4)
    assert model.training
    assert len(found) == len(ROWS)
    model.eval()
    for row, nats in zip(ROWS, found, strict=True):
        right = nn.functional.cross_entropy(model(row[None])[0, :-1], row[1:]).item()
        assert nats == pytest.approx(right, abs=1e-5)  # fp32, other batches
    assert max(found) - min(found) > 1e-3


@pytest.fixture(scope="module")
def letters():
    return tokenizer.train(["low low lower"], 2, specials=["<end>"])


def test_bytes_of_counts_text_alone(letters):
    """Without each row's first token, and nothing for an end sign; a half character is a byte."""
    rows = torch.tensor([letters.encode("a low")[:3], [0, *letters.encode("é")]])
    assert [letters.tokens.get(id) for id in rows[0].tolist()] == [b"a", b" ", b"low"]
    assert pretraining.bytes_of(letters, rows[:1]) == 4
    assert pretraining.bytes_of(letters, rows) == 6
    assert pretraining.bytes_of(letters, rows[1:, :2]) == 1
    assert pretraining.bytes_of(letters, torch.tensor([[5, 0, 0]])) == 0


def test_bits_of_a_model_that_finds_all_tokens_alike(letters):
    """log2 V bits a token, over the bytes that the scored tokens spell."""
    rows = torch.tensor([letters.encode("low lower low lower")[:4]] * 3)
    alike = nn.Embedding.from_pretrained(torch.zeros(len(letters), len(letters)))
    n_bytes = pretraining.bytes_of(letters, rows)
    assert n_bytes == 3 * len(letters.decode_bytes(rows[0, 1:].tolist()))
    bits = pretraining.bits_of(pretraining.nats_of_rows(alike, rows), letters, rows)
    assert bits == pytest.approx(9 * math.log2(len(letters)) / n_bytes, abs=1e-5)
    with pytest.raises(ValueError, match="2 numbers for 3 rows"):
        pretraining.bits_of([1.0, 1.0], letters, rows)


def test_bits_per_byte_does_not_see_the_tokenizer():
    """Uniform bytes cost 8 bits each, whether a token is one of them or two."""
    one = pretraining.bits_per_byte(math.log(256), n_tokens=100, n_bytes=100)
    two = pretraining.bits_per_byte(math.log(256**2), n_tokens=50, n_bytes=100)
    assert one == two == pytest.approx(8)
    for n_tokens, n_bytes in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=f"{n_tokens} tokens of {n_bytes} bytes"):
            pretraining.bits_per_byte(1.0, n_tokens, n_bytes)
