"""One network under four masks: equal to the decoder at the ends, blind where it must be."""

from __future__ import annotations

import pytest
import torch
from transformer_inputs import close

from course_utils.architectures.attention import prefix_mask
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.families import Stacks, reach, spread_weights

CONFIG = DecoderConfig(20, d_model=16, n_heads=2, n_layers=4, d_ff=24)
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 2, 4, 4, 1, 6]])


@pytest.mark.parametrize(("n_prefix", "causal"), [(0, True), (6, False)])
def test_the_ends_of_the_prefix_are_the_decoder_with_and_without_its_triangle(n_prefix, causal):
    torch.manual_seed(0)
    stack = Stacks(CONFIG)
    plain = Decoder(DecoderConfig(20, d_model=16, n_heads=2, n_layers=4, d_ff=24, causal=causal))
    plain.load_state_dict(stack.net.state_dict())
    close(stack(IDS, n_prefix), plain(IDS), 1e-5)


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_gradients_lie_where_the_prefix_mask_allows_them(two, rotary):
    torch.manual_seed(0)
    stack = Stacks(CONFIG, two=two, rotary=rotary)
    (table,) = reach(stack.net.token_embedding, lambda: stack(IDS[:1], 3))
    assert torch.equal(table > 0, prefix_mask(6, 3))


def test_padding_on_the_left_changes_nothing():
    torch.manual_seed(0)
    padded = torch.nn.functional.pad(IDS, (2, 0))
    real = torch.nn.functional.pad(torch.ones_like(IDS), (2, 0)).bool()
    for two in (False, True):
        stack = Stacks(CONFIG, two=two)
        close(stack(padded, 5, real)[:, 2:], stack(IDS, 3), 1e-5)


def test_two_stacks_have_the_weights_of_one_and_use_all_of_them():
    one, two = Stacks(CONFIG), Stacks(CONFIG, two=True)
    assert [p.shape for p in one.parameters()] == [p.shape for p in two.parameters()]
    two(IDS, 3).logsumexp(-1).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in two.parameters())


def test_without_positions_the_letters_order_is_lost():
    torch.manual_seed(0)
    swapped = IDS[:, [1, 0, 2, 3, 4, 5]]
    for rotary in (False, True):
        stack = Stacks(CONFIG, two=True, rotary=rotary)
        same = torch.allclose(stack(IDS, 3)[:, 3:], stack(swapped, 3)[:, 3:], atol=1e-5)
        assert same is not rotary


def test_two_stacks_need_an_even_number_of_blocks():
    with pytest.raises(ValueError, match="n_layers is 3"):
        Stacks(DecoderConfig(20, d_model=16, n_heads=2, n_layers=3, d_ff=24), two=True)


def test_spread_weights_have_their_deviations():
    net = Decoder(DecoderConfig(500, d_model=64, n_heads=4, n_layers=2, d_ff=200))
    spread_weights(net)
    block = net.blocks[0]
    assert net.token_embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert block.attention.query.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert block.feed_forward.down.weight.std().item() == pytest.approx(200**-0.5 / 2, rel=0.1)


def test_the_source_runs_through_the_first_half_alone():
    torch.manual_seed(0)
    stack = Stacks(CONFIG, two=True)
    before = stack(IDS, 3)
    for parameter in stack.net.blocks[2:].parameters():
        torch.nn.init.normal_(parameter)
    after = stack(IDS, 3)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])
