"""GPTQ against llm-compressor, against least squares column by column, and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from calibration_inputs import correlated_inputs, hashed, hessian_of
from hypothesis import given, settings
from hypothesis import strategies as st
from least_squares import by_least_squares
from made_elsewhere import GPTQ_CASES, GROUP_SIZE, stored, weight_and_hessian
from torch import nn

from course_utils.compression import gptq as module
from course_utils.compression import rtn
from course_utils.compression.calibration import collect_moments, output_error
from course_utils.compression.gptq import gptq

D_OUT, D_IN = 5, 24
EXACT = dict(rtol=0, atol=1e-9)  # float64, other order of sums


@pytest.fixture
def problem():
    """A weight and a Hessian in float64, where no code depends on the order of a sum."""
    return hashed(D_OUT, D_IN), hessian_of(correlated_inputs(90, D_IN, salt=1.1))


def onto(scheme, bits, scale, offset=None):
    """A number onto the grid of its row and group, by the nearest of all its levels."""
    codes = torch.arange(2**bits)
    if scheme == "symmetric":
        levels = scale.unsqueeze(-1) * torch.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1))
    elif scheme == "minimum":
        levels = offset.unsqueeze(-1) + scale.unsqueeze(-1) * codes
    else:
        levels = scale.unsqueeze(-1) * (codes - offset.unsqueeze(-1))  # (D_out, G, levels)

    def snap(group, column):
        nearest = (levels[:, group] - column.unsqueeze(1)).abs().argmin(dim=1, keepdim=True)
        return levels[:, group].gather(1, nearest).squeeze(1)

    return snap


# ── against others ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("case", "theirs"), zip(GPTQ_CASES, stored()["gptq"], strict=True))
def test_gptq_is_llm_compressors(case, theirs):
    bits, granularity, act_order = case
    weight, hessian = weight_and_hessian()
    sizes = bits, "zero_point", granularity, GROUP_SIZE
    ours = gptq(weight, hessian, *sizes, act_order=act_order).weight
    # Where this was measured not a bit differs; elsewhere fp32 sums may have another order.
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", sorted(rtn.SCHEMES))
@pytest.mark.parametrize("granularity", rtn.GRANULARITIES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_is_least_squares(problem, scheme, granularity, act_order, bits):
    weight, hessian = problem
    grid = module.grids(weight, bits, scheme, granularity, 8)
    snap, width = onto(scheme, bits, *grid), D_IN // grid[0].shape[1]
    order = hessian.diagonal().argsort(descending=True).tolist() if act_order else None
    wanted = by_least_squares(weight, hessian, lambda i, W: snap(i // width, W[:, i]), order=order)
    ours = gptq(weight, hessian, bits, scheme, granularity, 8, act_order=act_order, block_size=7)
    torch.testing.assert_close(ours.weight, wanted, **EXACT)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_finds_the_grids_on_the_way(problem, act_order):
    """Without static groups: from the columns of a group as they are when its turn comes."""
    weight, hessian = problem
    order = list(range(D_IN))
    if act_order:
        order = hessian.diagonal().argsort(descending=True).tolist()
    place, snaps = {column: i for i, column in enumerate(order)}, []

    def snap(i, W):
        if place[i] % 8 == 0:
            members = W[:, order[place[i] : place[i] + 8]]
            snaps.append(onto("minimum", 3, *module.grids(members, 3, "minimum", "channel")))
        return snaps[-1](0, W[:, i])

    wanted = by_least_squares(weight, hessian, snap, order=order)
    options = dict(act_order=act_order, static_groups=False, block_size=5)
    ours = gptq(weight, hessian, 3, "minimum", "group", 8, **options)
    torch.testing.assert_close(ours.weight, wanted, **EXACT)
    assert sorted(ours.group_of[order].tolist()) == ours.group_of[order].tolist()
    torch.testing.assert_close(module.dequantize_columns(ours, "minimum"), ours.weight, **EXACT)


def test_gptq_plain_is_gptq(problem):
    weight, hessian = problem
    plain = module.gptq_plain(weight, hessian, bits=3)
    fast = gptq(weight, hessian, 3, granularity="channel")
    torch.testing.assert_close(fast.weight, plain, **EXACT)


def test_gptq_plain_by_hand():
    """Rounding 0.6 to 1 is 0.4 too much; the second gives back 0.4 · ½: 0.8, which is nearest 1."""
    H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    W = torch.tensor([[0.6, 1.0], [0.4, -1.0]])
    assert module.gptq_plain(W, H, bits=2, damping=0).tolist() == [[1, 1], [0, -1]]


def test_gptq_by_hand_moves_the_second_column():
    """Three bits, steps of ⅓: 0.5 → 2/3 is ⅙ too much; 0.85 − ⅙·0.9 = 0.7 → 2/3, not 1."""
    H = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    W = torch.tensor([[0.52, 0.85, 1.0]])
    H = nn.functional.pad(H, (0, 1, 0, 1)) + torch.diag(torch.tensor([0.0, 0.0, 1.0]))
    done = gptq(W, H, 3, granularity="channel", damping=0)
    assert done.codes.tolist() == [[2, 2, 3]]
    assert rtn.quantize_symmetric(W, 3)[0].tolist() == [[2, 3, 3]]


# ── properties ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(
    salt=st.floats(1, 9),
    block_size=st.integers(1, 40),
    scheme=st.sampled_from(sorted(rtn.SCHEMES)),
    act_order=st.booleans(),
    static_groups=st.booleans(),
)
def test_gptq_does_not_depend_on_the_block_size(salt, block_size, scheme, act_order, static_groups):
    weight, hessian = hashed(3, 16, salt=salt), hessian_of(correlated_inputs(40, 16, salt=salt))
    options = dict(act_order=act_order, static_groups=static_groups)
    sizes = 3, scheme, "group", 4
    one = gptq(weight, hessian, *sizes, **options, block_size=block_size)
    whole = gptq(
        weight, 7 * hessian, *sizes, **options, block_size=16
    )  # nor on the number of tokens
    torch.testing.assert_close(one.weight, whole.weight, **EXACT)
    assert one.codes.equal(whole.codes)


@pytest.mark.parametrize("scheme", sorted(rtn.SCHEMES))
def test_gptq_without_correlations_is_round_to_nearest(scheme):
    weight, sizes = hashed(D_OUT, D_IN), torch.linspace(1, 9, D_IN, dtype=torch.float64)
    done = gptq(weight, torch.diag(sizes), 3, scheme, group_size=8)
    rounded = rtn.round_to_nearest(weight, 3, scheme, group_size=8)
    torch.testing.assert_close(done.weight, rounded, rtol=0, atol=1e-6)  # which is float32


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_makes_less_error_in_the_outputs(problem, bits, act_order):
    weight, hessian = problem
    done = gptq(weight, hessian, bits, "minimum", group_size=8, act_order=act_order)
    rounded = rtn.round_to_nearest(weight, bits, "minimum", group_size=8)
    errors = [output_error(weight, each, hessian) for each in (done.weight, rounded)]
    assert errors[0] < 0.8 * errors[1], errors


@pytest.mark.parametrize("scheme", sorted(rtn.SCHEMES))
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_gives_integers_that_make_the_weight(problem, scheme, act_order):
    weight, hessian = (part.float() for part in problem)
    done = gptq(weight, hessian, 3, scheme, group_size=8, act_order=act_order)
    assert torch.equal(module.dequantize_columns(done, scheme), done.weight)
    low, high = (int(end) for end in done.codes.aminmax())
    assert (low, high) == ((-3, 3) if scheme == "symmetric" else (0, 7))
    assert done.group_of.tolist() == [i // 8 for i in range(D_IN)]  # neighbours share a grid
    stacked = torch.stack(module.grids(weight, 3, scheme, "group", 8)[:1])
    assert torch.equal(done.scale, stacked[0])


@pytest.mark.parametrize("granularity", ["channel", "group"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_layer_holds_the_very_integers(granularity, bits):
    torch.manual_seed(0)
    linear, hessian = nn.Linear(24, 5), hessian_of(correlated_inputs(90, 24)).float()
    done = gptq(linear.weight, hessian, bits, "minimum", granularity, 8, act_order=True)
    layer = module.packed_layer(linear, done, bits)
    width = 24 // done.scale.shape[1]
    assert rtn.unpack_bits(layer.packed, bits, 120).tolist() == done.codes.flatten().tolist()
    step = done.scale.max() * 2**bits
    assert (layer.weight() - done.weight).abs().max() <= 2**-10 * step  # grids are float16
    nbits = 8 * sum(t.nbytes for t in layer.buffers())
    assert nbits == pytest.approx(120 * rtn.bits_per_weight(bits, width, 16, 16))
    x = torch.randn(3, 24)
    torch.testing.assert_close(layer(x), x @ layer.weight().T + linear.bias)


def test_packed_layer_is_of_minima_and_neighbours(problem):
    weight, hessian = (part.float() for part in problem)
    linear = nn.Linear(D_IN, D_OUT)
    for scheme in ("symmetric", "zero_point"):
        with pytest.raises(ValueError, match="no float minimum"):
            module.packed_layer(linear, gptq(weight, hessian, 4, scheme, group_size=8), 4)
    options = dict(group_size=8, act_order=True, static_groups=False)
    with pytest.raises(ValueError, match="no neighbours"):
        module.packed_layer(linear, gptq(weight, hessian, 4, "minimum", **options), 4)


def test_inverse_factor_is_the_inverse(problem):
    factor = module.inverse_factor(module.damped(problem[1]))
    assert torch.equal(factor, factor.triu())
    inverse = torch.linalg.inv(module.damped(problem[1]))
    torch.testing.assert_close(factor.T @ factor, inverse, rtol=1e-8, atol=1e-12)


def test_damped_by_hand():
    H = torch.tensor([[3.0, 1.0], [1.0, 5.0]])
    assert module.damped(H, 0.5).tolist() == [[5, 1], [1, 7]]
    assert H.tolist() == [[3, 1], [1, 5]]  # the argument is left as it was


# ── models ────────────────────────────────────────────────────────────────────────────────────────


def test_gptq_linears_changes_each_layer_by_its_own_inputs():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(200, 16)
    before = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    moments = collect_moments(net, [x[:, :8].repeat(1, 2) + 0.1 * x])
    errors = module.gptq_linears(net, moments, 3, group_size=8, act_order=True)
    for weight, name in zip(before, ("0", "2"), strict=True):
        hessian = moments[name].hessian()
        wanted = gptq(weight, hessian, 3, group_size=8, act_order=True).weight
        assert torch.equal(net[int(name)].weight, wanted)
        assert errors[name] == pytest.approx(output_error(weight, wanted, hessian))
        rounded = rtn.round_to_nearest(weight, 3, group_size=8)
        assert errors[name] < output_error(weight, rounded, hessian)


def test_a_block_at_a_time_lets_later_blocks_answer_for_earlier_ones():
    """Layer 2 sees what the rounded layer 0 gives, and so its error is taken where it arises."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(200, 16)
    for part in ("0", "2"):
        module.gptq_linears(net, collect_moments(net, [x], within=part), 2, group_size=8)
    with torch.no_grad():
        seen = net[1](net[0](x))
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    wanted = gptq(fresh[2].weight, 2 * seen.T @ seen / 200, 2, group_size=8).weight
    torch.testing.assert_close(net[2].weight, wanted, rtol=0, atol=1e-6)  # fp32 sums


def test_gptq_linears_asks_for_the_models_own_moments():
    net = nn.Sequential(nn.Linear(4, 4))
    moments = collect_moments(nn.Sequential(nn.Tanh(), nn.Linear(4, 4)), [torch.randn(9, 4)])
    with pytest.raises(ValueError, match="no linear layer 1"):
        module.gptq_linears(net, moments, 4, group_size=4)


def test_gptq_helps_a_block_of_minilm_at_three_bits(minilm):
    """Cosine to its own vectors, for sentences that were not calibrated on."""
    model, tokenizer = minilm
    rooms = ("kitchen", "garden", "harbour", "school", "library", "market", "forest", "office")
    texts = [f"A {mood} story about the {room}." for room in rooms for mood in ("sad", "long")]
    read = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    block = copy.deepcopy(model.encoder.layer[0])
    with torch.no_grad():
        hidden = [model.embeddings(input_ids=ids) for ids in read]

    def vectors(net):
        with torch.no_grad():
            return torch.cat([net(x).mean(dim=1) for x in hidden[8:]])

    wanted, rounded, skip = vectors(block), copy.deepcopy(block), ["output.dense"]
    rtn.quantize_linears(rounded, lambda W: rtn.round_to_nearest(W, 3), skip)
    moments = collect_moments(block, hidden[:8], skip=skip)
    module.gptq_linears(block, moments, 3, act_order=True)
    found = [1 - torch.cosine_similarity(vectors(net), wanted).mean() for net in (block, rounded)]
    assert found[0] < 0.8 * found[1], found


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_an_input_that_was_always_zero_gets_a_weight_of_zero(problem):
    weight, hessian = problem
    hessian[3], hessian[:, 3] = 0, 0
    before = weight.clone()
    done = gptq(weight, hessian, 4, group_size=8)
    assert (done.weight[:, 3] == 0).all()
    assert torch.equal(weight, before)
    assert done.weight.isfinite().all()


@pytest.mark.parametrize("scheme", sorted(rtn.SCHEMES))
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_weight_stays_itself(problem, scheme, value):
    weight = torch.full((2, D_IN), value)
    done = gptq(weight, problem[1], 3, scheme, group_size=8)
    torch.testing.assert_close(done.weight, weight)


def test_a_singular_hessian_is_refused_or_damped():
    """Four tokens say nothing of 24 inputs apart."""
    weight, hessian = hashed(D_OUT, D_IN), hessian_of(correlated_inputs(4, D_IN))
    with pytest.raises(ValueError, match=r"the Hessian of 24 inputs is singular.*damping"):
        gptq(weight, hessian, 4, group_size=8, damping=0)
    assert gptq(weight, hessian, 4, group_size=8).weight.isfinite().all()


def test_gptq_keeps_the_type_and_the_argument(problem):
    weight, hessian = problem[0].bfloat16(), problem[1].float()
    before = weight.clone(), hessian.clone()
    done = gptq(weight, hessian, 4, group_size=8)
    assert done.weight.dtype == torch.bfloat16
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_what_is_refused_by_name(problem):
    weight, hessian = problem
    with pytest.raises(ValueError, match=r"the Hessian \(24, 24\)"):
        gptq(weight.T, hessian, 4)
    with pytest.raises(ValueError, match="group_size is 7, which does not divide rows of 24"):
        gptq(weight, hessian, 4, group_size=7)
    with pytest.raises(ValueError, match="scheme is 'affine'"):
        gptq(weight, hessian, 4, "affine", group_size=8)
    broken = weight.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 120 weights are inf or NaN"):
        gptq(broken, hessian, 4, group_size=8)
    with pytest.raises(ValueError, match="block_size is 0"):
        gptq(weight, hessian, 4, group_size=8, block_size=0)
    with pytest.raises(ValueError, match=r"damping is -0\.1"):
        gptq(weight, hessian, 4, group_size=8, damping=-0.1)
