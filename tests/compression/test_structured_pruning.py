"""Smaller modules against the same with zeros in place; scores by hand and by removal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.architectures.attention import MultiHeadAttention
from course_utils.architectures.blocks import FeedForward, GatedFeedForward
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import Encoder, EncoderConfig
from course_utils.architectures.kv_cache import KVCache
from course_utils.compression import structured_pruning as module
from course_utils.compression.calibration import collect_moments

CLOSE = dict(rtol=1e-5, atol=1e-6)  # fp32, sums of another length


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def decoder(n_kv_heads=2):
    sizes = dict(vocab_size=30, d_model=16, n_heads=4, n_layers=3, d_ff=24)
    return Decoder(DecoderConfig(n_kv_heads=n_kv_heads, **sizes)).eval()


def encoder():
    sizes = dict(vocab_size=30, d_model=16, n_heads=4, n_layers=3, d_ff=24)
    return Encoder(EncoderConfig(**sizes)).eval()


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# ── what shrinks ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gated", [False, True])
def test_keep_neurons_is_the_layer_with_their_columns_at_zero(gated):
    layer = GatedFeedForward(6, 10) if gated else FeedForward(6, 10, torch.tanh)
    x, kept = torch.randn(3, 5, 6), [0, 4, 5, 9]
    gone = [i for i in range(10) if i not in kept]
    reference = layer.down.weight.detach().clone()
    layer.down.weight.data[:, gone] = 0
    wanted = layer(x)
    layer.down.weight.data = reference
    before = parameters(layer)
    module.keep_neurons(layer, kept)
    torch.testing.assert_close(layer(x), wanted, **CLOSE)
    a_unit = 6 + 6 + (6 if gated else 1)  # the plain one has a bias
    assert before - parameters(layer) == 6 * a_unit


@pytest.mark.parametrize(("n_kv_heads", "kept"), [(4, [0, 3]), (4, [2]), (2, [1]), (1, [0])])
@pytest.mark.parametrize("bias", [True, False])
def test_keep_heads_is_the_layer_with_their_columns_at_zero(n_kv_heads, kept, bias):
    layer = MultiHeadAttention(16, 4, n_kv_heads=n_kv_heads, bias=bias)
    shared = 4 // n_kv_heads
    queries = {group * shared + i for group in kept for i in range(shared)}
    x = torch.randn(2, 5, 16)
    whole = layer.out.weight.detach().clone()
    for head in set(range(4)) - queries:
        layer.out.weight.data[:, 4 * head : 4 * head + 4] = 0
    wanted = layer(x)
    layer.out.weight.data = whole
    module.keep_heads(layer, kept)
    torch.testing.assert_close(layer(x), wanted, **CLOSE)
    assert (layer.n_heads, layer.n_kv_heads) == (len(queries), len(kept))
    assert layer.query.weight.shape == (4 * len(queries), 16)
    assert layer.key.weight.shape == layer.value.weight.shape == (4 * len(kept), 16)
    assert layer.out.weight.shape == (16, 4 * len(queries))


def test_a_decoder_without_heads_neurons_and_layers_runs_with_its_cache():
    model, ids = decoder(), torch.randint(0, 30, (2, 7))
    before = parameters(model)
    for block in model.blocks:
        module.keep_heads(block.attention, [1])
        module.keep_neurons(block.feed_forward, range(12))
    model.blocks = module.keep_layers(model.blocks, [0, 2])
    assert parameters(model) < 0.6 * before
    whole = model(ids)
    cache = KVCache(2)
    with torch.no_grad():
        pieces = [model(part, cache=cache) for part in ids.split([4, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)  # fp32
    whole.sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # what is left still learns


def test_keep_layers_skips_blocks_in_order():
    model, ids = encoder(), torch.randint(0, 30, (1, 5))
    x = model.embed(ids)
    wanted = model.blocks[2](model.blocks[0](x, None), None)
    model.blocks = module.keep_layers(model.blocks, [0, 2])
    torch.testing.assert_close(model(ids), wanted)


def test_keep_rows_and_keep_columns_keep_whether_they_learn():
    layer = nn.Linear(4, 3).requires_grad_(False)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    module.keep_rows(layer, [2, 0])
    assert torch.equal(layer.weight, weight[[2, 0]])
    assert torch.equal(layer.bias, bias[[2, 0]])
    module.keep_columns(layer, [3])
    assert torch.equal(layer.weight, weight[[2, 0]][:, [3]])
    assert (layer.in_features, layer.out_features) == (1, 2)
    assert not any(p.requires_grad for p in layer.parameters())


# ── what matters ──────────────────────────────────────────────────────────────────────────────────


def test_input_scores_by_hand():
    W, norms = (
        torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 1.0, 0.0, 2.0]]),
        torch.tensor([1.0, 2, 3, 4]),
    )
    torch.testing.assert_close(module.input_scores(W, norms), torch.tensor([5.0, 2, 3, 8]))
    by_two = torch.tensor([29.0, 73.0]).sqrt()
    torch.testing.assert_close(module.input_scores(W, norms, size=2), by_two)


def test_input_scores_name_the_neurons_that_cost_least():
    """Uncorrelated units: the score is the very change of the outputs when a unit goes."""
    layer, x = FeedForward(6, 10, torch.tanh), torch.randn(400, 6)
    moments = collect_moments(layer, [x])
    scores = module.input_scores(layer.down.weight, moments["down"].norm())
    whole = layer(x)
    for i in range(10):
        weight = layer.down.weight.detach().clone()
        layer.down.weight.data[:, i] = 0
        change = (layer(x) - whole).norm().item()
        layer.down.weight.data = weight
        assert scores[i].item() == pytest.approx(change, rel=1e-4)


def test_gradient_scores_by_hand():
    """Two texts: |1·1 + 1·2| = 3 and |2·1 − 3·2| = 4 of the first head."""
    out = nn.Linear(4, 1, bias=False).requires_grad_(False)
    out.weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 1.0]]))
    x = torch.tensor([[[1.0, 1.0, 5.0, 0.0]], [[2.0, -3.0, 0.0, 0.0]]])
    scores = module.gradient_scores(out, lambda batch: out(batch).sum(), [x], size=2)
    assert scores.tolist() == [3.5, 0]
    apart = module.gradient_scores(out, lambda batch: out(batch).sum(), [x[:1], x[1:]], size=2)
    assert torch.equal(apart, scores)


def test_gradient_scores_sum_over_tokens_before_the_size_is_taken():
    """A head that adds at one token what it takes at another does not change the loss."""
    out = nn.Linear(2, 1, bias=False)
    out.weight.data.fill_(1)
    x = torch.tensor([[[1.0, 3.0], [-1.0, 3.0]]])
    scores = module.gradient_scores(out, lambda batch: out(batch).sum(), [x], size=1)
    assert scores.tolist() == [0, 6]


def test_gradient_scores_of_a_model_are_its_losses_slopes():
    """Against a difference quotient: each head times 1 − ε."""
    model, ids = encoder(), torch.randint(0, 30, (1, 6))
    out = model.blocks[1].attention.out

    def loss_of(batch):
        return model(batch).square()[..., 0].sum()

    scores = module.gradient_scores(out, loss_of, [ids], size=4)
    whole, step = loss_of(ids).item(), 1e-2
    for head in range(4):
        out.weight.data[:, 4 * head : 4 * head + 4] *= 1 - step
        slope = (loss_of(ids).item() - whole) / step
        out.weight.data[:, 4 * head : 4 * head + 4] /= 1 - step
        assert scores[head].item() == pytest.approx(abs(slope), rel=0.05, abs=2e-3)  # fp32, ε
    assert not out._forward_pre_hooks


def test_block_influence_by_hand():
    before = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [3.0, 0.0]]])
    after = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])  # cosines 1, 0, −1
    assert module.block_influence(before, after) == pytest.approx(1)
    assert module.block_influence(before, after, torch.tensor([[1, 1, 0]])) == pytest.approx(0.5)
    assert module.block_influence(before, 7 * before) == pytest.approx(0, abs=1e-6)


def test_largest_by_hand():
    assert module.largest(torch.tensor([1.0, 9.0, 4.0, 8.0]), 3) == [1, 2, 3]


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_by_name():
    layer = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="nothing of 3 is kept"):
        module.keep_rows(layer, [])
    with pytest.raises(ValueError, match=r"\[1, 1\] holds something twice"):
        module.keep_columns(layer, [1, 1])
    with pytest.raises(ValueError, match=r"kept go from 0 to 4; there are 0 … 3"):
        module.keep_columns(layer, [0, 4])
    with pytest.raises(ValueError, match=r"kept go from 0 to 2; there are 0 … 1"):
        module.keep_heads(MultiHeadAttention(16, 4, n_kv_heads=2), [0, 2])
    with pytest.raises(ValueError, match="size is 3, which does not divide 4 inputs"):
        module.input_scores(layer.weight, torch.ones(4), size=3)
    with pytest.raises(ValueError, match="n is 4; keep 1 to 3"):
        module.largest(torch.ones(3), 4)
    with pytest.raises(ValueError, match="no batches"):
        module.gradient_scores(layer, lambda b: layer(b).sum(), [], size=2)
    with pytest.raises(ValueError, match="did not call the layer"):
        module.gradient_scores(layer, lambda b: b.sum(), [torch.ones(1, 1, 4)], size=2)
    with pytest.raises(ValueError, match="no token is real"):
        module.block_influence(torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.zeros(1, 1))
    assert layer.weight.shape == (3, 4)  # refusals change nothing
