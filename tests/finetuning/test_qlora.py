"""Our NF4 base against bitsandbytes' Linear4bit: alone and under adapters, values and gradients."""

from __future__ import annotations

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.finetuning import lora, qlora
from course_utils.finetuning.lora import inject_lora, lora_layers
from course_utils.finetuning.qlora import NF4Linear

DOUBLE = pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
D_IN, D_OUT = 128, 96


def linear4bit(linear, double=True):
    """bitsandbytes' layer of the same weight, computing in float32."""
    theirs = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=double,
        quant_type="nf4",
    )
    theirs.load_state_dict(linear.state_dict())
    theirs.requires_grad_(False)
    return theirs.to("cpu")  # which quantizes it


def theirs_dense(layer):
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def both(bias=True, double=True):
    linear = nn.Linear(D_IN, D_OUT, bias=bias)
    return NF4Linear(linear, double=double), linear4bit(linear, double)


def shake(model):
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for adapter in layer.adapters.values():
                adapter.B.normal_(std=0.05)


def answer(layer, x):
    """Output, and the gradients of the input and of all that learns."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().mean().backward()
    learned = [p.grad for p in layer.parameters() if p.requires_grad]
    return [y.detach(), x.grad, *learned]


# fp32: equal weights, bit for bit; only the order in which the products are summed may differ
def assert_same(ours, theirs, tolerance=1e-6):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-5)


# ── the base alone ────────────────────────────────────────────────────────────────────────────────


@DOUBLE
@BIAS
def test_nf4_linear_is_linear4bit(bias, double):
    ours, theirs = both(bias, double)
    assert torch.equal(ours.packed, theirs.weight.data.flatten())
    assert torch.equal(ours.dequantized(), theirs_dense(theirs))
    x = torch.randn(3, 5, D_IN)
    assert_same(answer(ours, x), answer(theirs, x))


@DOUBLE
def test_nbytes_are_linear4bits(double):
    ours, theirs = both(double=double)
    state = theirs.weight.quant_state
    tensors = [theirs.weight.data, state.absmax]
    if double:
        tensors += [state.state2.absmax, state.offset]
    assert ours.nbytes() == sum(tensor.nbytes for tensor in tensors)


def test_nf4_linear_by_hand():
    """Levels 1 and −1 times the largest value are exact; 0.3/3 is nearest to the level .0796."""
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[3.0, -3.0], [0.0, 0.3]])
    layer = NF4Linear(linear, double=False)
    out = layer(torch.tensor([1.0, 1.0])).tolist()
    assert out == pytest.approx([0, 3 * 0.0795803], abs=1e-6)


def test_backward_keeps_no_dense_weight():
    """Between forward and backward a graph of NF4 layers holds inputs and bytes alone."""
    layer, kept = NF4Linear(nn.Linear(D_IN, D_OUT)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, D_IN, requires_grad=True))
    assert D_OUT * D_IN not in [tensor.numel() for tensor in kept]


def test_nothing_in_the_base_learns():
    ours, _ = both()
    ours(torch.randn(2, D_IN, requires_grad=True)).sum().backward()
    assert not [p for p in ours.parameters() if p.requires_grad]
    assert ours.bias.grad is None


def test_half_precision_inputs_get_half_precision_outputs():
    ours, _ = both(bias=False)
    x = torch.randn(3, D_IN)
    half = ours(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), ours(x), atol=0.05, rtol=0.05)  # 8 bits


def test_state_dict_goes_round():
    ours, _ = both()
    other = NF4Linear(nn.Linear(D_IN, D_OUT))
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.dequantized(), ours.dequantized())


# ── under adapters ────────────────────────────────────────────────────────────────────────────────


@DOUBLE
@BIAS
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_on_our_base_are_adapters_on_linear4bit(bias, double, dora):
    """One adapter on both bases, through our layer: outputs and every gradient."""
    bases = both(bias, double)
    nets = [nn.Sequential(base) for base in bases]
    for net in nets:
        torch.manual_seed(1)
        inject_lora(net, "0", rank=4, alpha=8, dora=dora)
        shake(net)
    x = torch.randn(3, 5, D_IN)
    assert_same(*(answer(net, x) for net in nets))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_qlora_is_pefts(dora):
    """peft on Linear4bit, ours on NF4Linear: the whole of QLoRA on both sides."""
    ours, theirs = (nn.Sequential(base) for base in both())
    inject_lora(ours, "0", rank=4, alpha=8, dora=dora)
    shake(ours)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="0", use_dora=dora)
    theirs = inject_adapter_in_model(config, theirs)
    adapter = ours[0].adapters["default"]
    with torch.no_grad():
        theirs[0].lora_A["default"].weight.copy_(adapter.A)
        theirs[0].lora_B["default"].weight.copy_(adapter.B)
    x = torch.randn(3, 5, D_IN)
    outputs, gradients = [], []
    for net in (ours, theirs):
        inputs = x.clone().requires_grad_()
        outputs.append(net(inputs))
        outputs[-1].square().mean().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=1e-5)  # fp32
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        adapter.B.grad, theirs[0].lora_B["default"].weight.grad, atol=1e-6, rtol=1e-5
    )


@DOUBLE
@BIAS
def test_dense_weight_reads_a_packed_weight_exactly(bias, double):
    """Unit vectors through any library's layer, the bias kept out: not one bit is lost."""
    ours, theirs = both(bias, double)
    assert torch.equal(lora.dense_weight(theirs), ours.dequantized())
    assert (theirs.bias is not None) == bias


# ── merging ───────────────────────────────────────────────────────────────────────────────────────


def adapted(double=True, size=0.004):
    """A change a tenth as large as the weights' step, unless told."""
    net = nn.Sequential(NF4Linear(nn.Linear(D_IN, D_OUT), double=double))
    inject_lora(net, "0", rank=4, alpha=4)
    with torch.no_grad():
        net[0].adapters["default"].B.normal_(std=size)
    return net


def test_merge_into_four_bits_changes_the_outputs():
    """Rounding anew takes a small adapter out again; unmerging gives it back."""
    net, x = adapted(), torch.randn(20, D_IN)
    lora.use_adapters(net, [])
    base = net(x)
    lora.use_adapters(net, ["default"])
    tuned = net(x)
    lora.merge_lora(net)
    merged = net(x)
    lost, learned = (merged - tuned).norm(), (tuned - base).norm()
    assert lost > 0.9 * learned
    kept = torch.cosine_similarity((merged - base).flatten(), (tuned - base).flatten(), dim=0)
    assert kept < 0.5  # what is left is mostly the rounding of the scales
    lora.unmerge_lora(net)
    assert torch.equal(net(x), tuned)


def test_merge_into_four_bits_is_to_quantize_the_sum():
    """requantize: of a change as large as the weights, much stays."""
    net, x = adapted(size=0.1), torch.randn(20, D_IN)
    tuned, bytes_before = net(x), net[0].base.packed.clone()
    adapter, linear = net[0].adapters["default"], nn.Linear(D_IN, D_OUT, bias=False)
    linear.weight.data = (net[0].base.dequantized() + adapter.update()).detach()
    lora.merge_lora(net)
    assert torch.equal(net[0].base.packed, NF4Linear(linear).packed)
    assert not torch.equal(net[0].base.packed, bytes_before)
    assert (net(x) - tuned).norm() < 0.2 * tuned.norm()


@DOUBLE
def test_fold_into_floats_keeps_the_outputs(double):
    net, x = adapted(double), torch.randn(20, D_IN)
    tuned = net(x)
    qlora.fold_into_floats(net)
    assert type(net[0]) is nn.Linear
    torch.testing.assert_close(net(x), tuned, atol=1e-6, rtol=1e-5)  # fp32


def test_linear4bit_cannot_be_merged_but_folded():
    _, theirs = both()
    net, x = nn.Sequential(theirs), torch.randn(20, D_IN)
    inject_lora(net, "0", rank=4, alpha=4)
    shake(net)
    tuned = net(x).detach()
    with pytest.raises(TypeError, match="the base is a Linear4bit, whose packed weight cannot"):
        lora.merge_lora(net)
    assert torch.equal(net(x), tuned)
    qlora.fold_into_floats(net)
    torch.testing.assert_close(net(x), tuned, atol=1e-6, rtol=1e-5)  # fp32


def test_fold_into_floats_refuses_what_is_merged():
    net = adapted()
    lora.merge_lora(net)
    with pytest.raises(RuntimeError, match="merged into this layer; unmerge it first"):
        qlora.fold_into_floats(net)


# ── a whole model ─────────────────────────────────────────────────────────────────────────────────


def test_quantize_linears_is_bitsandbytes_on_a_decoder():
    """Every layer but the head; logits and all adapters' gradients.

    Rows are as long as a group: on shorter ones bitsandbytes 0.50 reads wrong scales (see
    test_nf4).
    """
    sizes = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "d_ff": 128}
    decoder = Decoder(DecoderConfig(vocab_size=30, **sizes))
    theirs, ids = copy.deepcopy(decoder), torch.randint(30, (2, 7))
    before = decoder(ids)
    names = qlora.quantize_linears(decoder, r"blocks\..*")
    assert len(names) == 14
    for name in names:
        theirs.set_submodule(name, linear4bit(theirs.get_submodule(name)))
    results = []
    for model in (decoder, theirs):
        torch.manual_seed(1)
        inject_lora(model, r"blocks\..*", rank=2, alpha=4)
        shake(model)
        logits = model(ids)
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(results[0]) == 1 + 2 * 14
    assert_same(*results)
    assert not torch.allclose(results[0][0], before, atol=1e-3)


def test_quantize_linears_refuses_a_pattern_without_layers(net):
    with pytest.raises(ValueError, match=r"no nn.Linear's whole name matches 'blocks'"):
        qlora.quantize_linears(net, "blocks")
