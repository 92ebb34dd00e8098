"""LoRA and DoRA against peft: outputs, gradients, merged weights; by hand; and what it refuses."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from course_utils.architectures.decoder import Decoder
from course_utils.architectures.pretrained import llama_config, load_llama_weights
from course_utils.finetuning import lora
from course_utils.finetuning.lora import LoRALinear, inject_lora, lora_layers, use_adapters

# fp32: the scale is multiplied in before B here and after it in peft, so that the last bits differ.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}
PATTERN = r".*\.(query|value|down)"
OPTIONS = [
    {},
    {"rank_stabilised": True},
    {"dora": True},
    {"dora": True, "rank_stabilised": True},
    {"dropout": 0.4},
    {"dora": True, "dropout": 0.4},
]
ALL_OPTIONS = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")


def shake(model, size=0.3):
    """Adapters as after training: neither B nor the magnitude is where it started."""
    for layer in lora_layers(model).values():
        for adapter in layer.adapters.values():
            with torch.no_grad():
                adapter.B.normal_(std=size)
                if adapter.magnitude is not None:
                    adapter.magnitude.mul_(torch.rand_like(adapter.magnitude) + 0.5)


def peft_twin(base, ours, pattern, rank=3, alpha=6, name="default", options=None):
    """peft's adapters on a copy of the same base, with the numbers of ours."""
    options = options or {}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=pattern,
        use_rslora=options.get("rank_stabilised", False),
        use_dora=options.get("dora", False),
        lora_dropout=options.get("dropout", 0.0),
    )
    twin = inject_adapter_in_model(config, base, adapter_name=name)
    copy_into_peft(twin, ours, name)
    return twin


@torch.no_grad()
def copy_into_peft(twin, ours, name="default"):
    theirs = {n: module for n, module in twin.named_modules() if isinstance(module, LoraLayer)}
    held = {n: m for n, m in lora_layers(ours).items() if name in m.adapters}
    assert theirs.keys() >= held.keys()
    for n, layer in held.items():
        theirs[n].lora_A[name].weight.copy_(layer.adapters[name].A)
        theirs[n].lora_B[name].weight.copy_(layer.adapters[name].B)
        if layer.adapters[name].magnitude is not None:
            theirs[n].lora_magnitude_vector[name].weight.copy_(layer.adapters[name].magnitude)


def gradients(ours, twin, name="default"):
    """Pairs of gradients, layer by layer, part by part."""
    theirs = dict(twin.named_modules())
    for n, layer in lora_layers(ours).items():
        adapter = layer.adapters[name]
        yield adapter.A.grad, theirs[n].lora_A[name].weight.grad
        yield adapter.B.grad, theirs[n].lora_B[name].weight.grad
        if adapter.magnitude is not None:
            yield adapter.magnitude.grad, theirs[n].lora_magnitude_vector[name].weight.grad


def assert_same(ours, twin, *inputs):
    """Outputs, every adapter's gradient, and none on the base."""
    outputs = []
    for model in (ours, twin):
        torch.manual_seed(7)  # the same dropout on both sides
        outputs.append(model(*inputs))
        outputs[-1].square().mean().backward()
    torch.testing.assert_close(*outputs, **TOLERANCE)
    for pair in gradients(ours, twin):
        torch.testing.assert_close(*pair, **TOLERANCE)
    assert not [n for n, p in ours.named_parameters() if p.grad is not None and ".base." in n]


# ── parity ────────────────────────────────────────────────────────────────────────────────────────


@ALL_OPTIONS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_net_with_adapters_is_pefts(net, options, training):
    """Layers that are not square, with and without bias; dropout draws the same in both."""
    base = copy.deepcopy(net)
    inject_lora(net, "0|2", rank=3, alpha=6, **options)
    shake(net)
    twin = peft_twin(base, net, "0|2", options=options)
    assert_same(net.train(training), twin.train(training), torch.randn(4, 5, 6))


@ALL_OPTIONS
def test_a_decoder_with_adapters_is_pefts(decoder, options):
    base = copy.deepcopy(decoder)
    names = inject_lora(decoder, PATTERN, rank=3, alpha=4.5, **options)
    assert len(names) == 6
    shake(decoder, 0.1)
    twin = peft_twin(base, decoder, PATTERN, alpha=4.5, options=options)
    assert_same(decoder.train(), twin.train(), torch.randint(30, (2, 7)))


@ALL_OPTIONS
def test_merged_weights_are_pefts(net, options):
    base, x = copy.deepcopy(net), torch.randn(4, 6)
    inject_lora(net, "0|2", rank=3, alpha=6, **options)
    shake(net)
    twin = peft_twin(base, net, "0|2", options=options)
    lora.merge_lora(net)
    for n, layer in lora_layers(net).items():
        theirs = twin.get_submodule(n)
        theirs.merge()
        torch.testing.assert_close(layer.base.weight, theirs.base_layer.weight, **TOLERANCE)
    torch.testing.assert_close(net.eval()(x), twin.eval()(x), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_adapters_at_once_are_pefts(net):
    base, x = copy.deepcopy(net), torch.randn(4, 6)
    inject_lora(net, "0|2", rank=3, alpha=6, name="one")
    inject_lora(net, "0", rank=2, alpha=1, rank_stabilised=True, name="two")
    shake(net)
    twin = peft_twin(base, net, "0|2", name="one")
    twin = peft_twin(twin, net, "0", 2, 1, "two", {"rank_stabilised": True})
    copy_into_peft(twin, net, "one")
    for names in (["one"], ["two"], ["one", "two"], ["two", "one"]):
        use_adapters(net, names)
        for n in ("0", "2"):
            twin.get_submodule(n).set_adapter([m for m in names if (n, m) != ("2", "two")])
        torch.testing.assert_close(net(x), twin(x), **TOLERANCE)


@pytest.mark.parametrize("dora", [False, True])
def test_training_is_pefts(net, dora):
    """Five steps of Adam from the same start end at the same adapters."""
    base, x, y = copy.deepcopy(net), torch.randn(16, 6), torch.randn(16, 8)
    inject_lora(net, "0|2", rank=2, alpha=4, dora=dora)
    twin = peft_twin(base, net, "0|2", rank=2, alpha=4, options={"dora": dora})
    losses = []
    for model in (net, twin):
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=0.3, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, **TOLERANCE)
    for n, layer in lora_layers(net).items():
        theirs = twin.get_submodule(n).lora_B["default"].weight
        torch.testing.assert_close(layer.adapters["default"].B, theirs, **TOLERANCE)


def test_half_precision_bases_keep_adapters_in_float32(net):
    """As in peft: the base in bfloat16, the adapters in float32, the output as the base's."""
    base = copy.deepcopy(net).bfloat16()
    net.bfloat16()
    inject_lora(net, "0|2", rank=3, alpha=6)
    shake(net)
    twin = peft_twin(base, net, "0|2")
    twin.get_submodule("0").lora_A.float(), twin.get_submodule("0").lora_B.float()
    twin.get_submodule("2").lora_A.float(), twin.get_submodule("2").lora_B.float()
    copy_into_peft(twin, net)
    x = torch.randn(4, 6, dtype=torch.bfloat16)
    assert lora_layers(net)["0"].adapters["default"].A.dtype == torch.float32
    ours = net(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, twin(x), atol=0.02, rtol=0.02)  # a bfloat16 has 8 bits


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_lora_scale_by_hand():
    assert lora.lora_scale(8, 16) == 2
    assert lora.lora_scale(4, 6, rank_stabilised=True) == 3
    assert lora.lora_scale(8, 8) == 1


def test_lora_delta_by_hand():
    A, B = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.0], [-1.0]])
    assert lora.lora_delta(A, B, 2.0).tolist() == [[2, 0, 4], [-2, 0, -4]]


def test_lora_by_hand_on_two_by_two():
    """W = 1, A = (1 1), B = (1 0)ᵀ, α/r = 2: x = (1, 2) gives x + 2·(1 + 2)·(1, 0) = (7, 2)."""
    layer = LoRALinear(nn.Linear(2, 2, bias=False))
    layer.base.weight.data = torch.eye(2)
    layer.add("mine", rank=1, alpha=2)
    layer.adapters["mine"].A.data = torch.tensor([[1.0, 1.0]])
    layer.adapters["mine"].B.data = torch.tensor([[1.0], [0.0]])
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [7, 2]
    layer.merge()
    assert layer.base.weight.tolist() == [[3, 2], [0, 1]]


def test_dora_ratio_by_hand():
    """Rows (3, 4) and (0, 0): length 5 against a magnitude of 10, and no direction at all."""
    weight, delta = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert lora.dora_ratio(weight, delta, torch.tensor([10.0, 0.0])).tolist() == [2, 1]


def test_lora_parameters_of_smollm2():
    """30 blocks of width 576, key heads 192, feed-forward 1,536: the counts of notebook 07."""
    query, value = (576, 576), (576, 192)
    assert 30 * sum(lora.lora_parameters(*s, rank=8) for s in (query, value)) == 460_800
    every = [query, (576, 192), value, (576, 576), (576, 1536), (576, 1536), (1536, 576)]
    assert 30 * sum(lora.lora_parameters(*s, rank=8) for s in every) == 2_442_240


def test_inject_lora_counts_what_it_adds(net):
    inject_lora(net, "0|2", rank=2, alpha=2, dora=True)
    learning = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert learning == lora.lora_parameters(6, 10, 2) + lora.lora_parameters(10, 8, 2) + 10 + 8


# ── properties ────────────────────────────────────────────────────────────────────────────────────


@ALL_OPTIONS
def test_nothing_changes_at_the_start(decoder, options):
    ids = torch.randint(30, (2, 7))
    before = decoder(ids)
    inject_lora(decoder, r".*\d.*", rank=3, alpha=6, **options)
    # fp32: DoRA's ratio ‖W‖/‖W‖ is 1 exactly, so that even there nothing changes
    assert torch.equal(decoder(ids), before)


def test_gradient_at_the_start_is_bs_alone(net):
    inject_lora(net, "0|2", rank=2, alpha=2)
    net(torch.randn(4, 6)).sum().backward()
    for layer in lora_layers(net).values():
        adapter = layer.adapters["default"]
        assert adapter.B.grad.abs().max() > 0
        assert (adapter.A.grad == 0).all()


def test_smollm2_counts_and_starts_where_it_was(smollm2):
    """The real net: 460,800 numbers on query and value, 2,442,240 on all linears; step 0."""
    theirs, tokenizer = smollm2
    ours = Decoder(llama_config(theirs.config.to_dict())).eval()
    load_llama_weights(ours, theirs.state_dict())
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        before = ours(ids)
        for name, pattern, count in (
            ("two", r".*\.(query|value)", 460_800),
            ("all", r"blocks\..*", 2_442_240),
        ):
            inject_lora(ours, pattern, rank=8, alpha=16, name=name)
            assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == count
            assert torch.equal(ours(ids), before)


def test_a_layer_alone_freezes_its_base():
    layer = LoRALinear(nn.Linear(4, 4))
    layer.add("mine", rank=2, alpha=1)
    learning = [name for name, p in layer.named_parameters() if p.requires_grad]
    assert learning == ["adapters.mine.A", "adapters.mine.B"]


def test_start_of_a_is_as_wide_as_pefts():
    """Uniform in ±1/√D_in: 10,000 numbers fill it, and their deviation is that over √3."""
    adapter = lora.Adapter(400, 400, 25, 1)
    assert adapter.A.abs().max() <= 1 / 20
    assert adapter.A.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.03)  # n = 10,000


@ALL_OPTIONS
def test_merge_and_unmerge(net, options):
    """Merged is unmerged; twice is once; and unmerging gives back every bit."""
    inject_lora(net, "0|2", rank=3, alpha=6, **options)
    shake(net)
    net.eval()
    x, weights = torch.randn(4, 6), [m.base.weight.clone() for m in lora_layers(net).values()]
    before = net(x)
    for _ in range(2):
        lora.merge_lora(net)
        merged = net(x)
        torch.testing.assert_close(merged, before, **TOLERANCE)
        assert not torch.equal(net[0].base.weight, weights[0])
    once = net[0].base.weight.clone()
    lora.merge_lora(net)
    assert torch.equal(net[0].base.weight, once)
    for _ in range(2):
        lora.unmerge_lora(net)
        assert torch.equal(net(x), before)
    for layer, weight in zip(lora_layers(net).values(), weights, strict=True):
        assert torch.equal(layer.base.weight, weight)


def test_a_hundred_merges_leave_no_trace(net):
    """Subtracting what was added would drift, a bit at a time."""
    inject_lora(net, "0", rank=3, alpha=6)
    shake(net)
    weight = net[0].base.weight.clone()
    for _ in range(100):
        lora.merge_lora(net)
        lora.unmerge_lora(net)
    assert torch.equal(net[0].base.weight, weight)


def test_merge_several_adapters(net):
    inject_lora(net, "0|2", rank=3, alpha=6, name="one", dora=True)
    inject_lora(net, "0", rank=2, alpha=1, name="two")
    shake(net)
    use_adapters(net, ["one", "two"])
    x = torch.randn(4, 6)
    before = net(x)
    lora.merge_lora(net)
    torch.testing.assert_close(net(x), before, **TOLERANCE)


def test_fold_leaves_plain_layers(net):
    inject_lora(net, "0|2", rank=3, alpha=6)
    shake(net)
    x = torch.randn(4, 6)
    before = net(x)
    lora.fold_lora(net)
    torch.testing.assert_close(net(x), before, **TOLERANCE)
    assert [type(module) for module in net] == [nn.Linear, nn.Tanh, nn.Linear]


def test_use_adapters_swaps_and_switches_off(net):
    x = torch.randn(4, 6)
    plain = net(x)
    inject_lora(net, "0|2", rank=3, alpha=6, name="one")
    inject_lora(net, "0|2", rank=3, alpha=6, name="two")
    shake(net)
    answers = {}
    for names in ((), ("one",), ("two",), ("one", "two")):
        use_adapters(net, names)
        answers[names] = net(x)
        learning = {n.split(".")[2] for n, p in net.named_parameters() if p.requires_grad}
        assert learning == set(names)
    assert torch.equal(answers[()], plain)
    for one, other in itertools.combinations(answers.values(), 2):
        assert not torch.allclose(one, other, atol=1e-3)  # an adapter that does nothing


def test_remove_adapter_leaves_the_others(net):
    inject_lora(net, "0|2", rank=3, alpha=6, name="one")
    inject_lora(net, "0", rank=3, alpha=6, name="two")
    shake(net)
    use_adapters(net, ["one"])
    x = torch.randn(4, 6)
    before = net(x)
    lora.remove_adapter(net, "two")
    assert torch.equal(net(x), before)
    with pytest.raises(ValueError, match="no adapter two"):
        lora.remove_adapter(net, "two")


@given(
    rank=st.integers(1, 4),
    d_in=st.integers(5, 9),
    d_out=st.integers(5, 9),
    alpha=st.floats(0.1, 64),
    dora=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_change_has_the_rank_it_says(rank, d_in, d_out, alpha, dora):
    """inject_lora, merge: ΔW has rank r, and merged and unmerged say the same of any input."""
    net = nn.Sequential(nn.Linear(d_in, d_out))
    inject_lora(net, "0", rank=rank, alpha=alpha, dora=dora)
    shake(net)
    x, layer = torch.randn(3, d_in), net[0]
    if not dora:
        assert torch.linalg.matrix_rank(layer.adapters["default"].update()) == rank
    before = net(x)
    layer.merge()
    scale = before.abs().max().item() + alpha
    torch.testing.assert_close(net(x), before, atol=1e-6 * scale, rtol=1e-4)  # fp32 sums
    layer.unmerge()
    assert torch.equal(net(x), before)


def test_dropout_acts_in_training_alone(net):
    inject_lora(net, "0|2", rank=3, alpha=6, dropout=0.5)
    shake(net)
    x = torch.randn(4, 6)
    net.train()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_new_adapters_are_in_the_models_mode(net):
    inject_lora(net.eval(), "0", rank=2, alpha=1, dropout=0.5)
    assert not any(module.training for module in net.modules())


def test_linear_names_are_the_same_with_adapters(decoder):
    before = lora.linear_names(decoder)
    inject_lora(decoder, PATTERN, rank=2, alpha=1)
    assert lora.linear_names(decoder) == before
    assert inject_lora(decoder, PATTERN, rank=2, alpha=1, name="second")  # the same layers again
    assert not [n for n in lora_layers(decoder) if "base" in n]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "rank", "alpha", "said"),
    [
        ("0.weight", 2, 2, r"no linear layer's whole name matches '0.weight'; there are: 0, 2"),
        ("1", 2, 2, "no linear layer's whole name matches '1'"),
        ("0|2", 8, 2, r"rank is 8, the weight 10 × 6: from rank 6 on"),
        ("0|2", 0, 2, "rank is 0; it must be at least 1"),
        ("0|2", 2, 0, "alpha is 0; the update is multiplied by it"),
        ("0|2", 2, math.nan, "alpha is nan"),
    ],
)
def test_inject_lora_refuses(net, pattern, rank, alpha, said):
    """And leaves the net as it was: trainable, and without adapters."""
    with pytest.raises(ValueError, match=said):
        inject_lora(net, pattern, rank=rank, alpha=alpha)
    assert not [module for module in net.modules() if isinstance(module, LoRALinear)]
    assert all(p.requires_grad for p in net.parameters())


def test_rank_is_the_smaller_side_less_one_at_most():
    """check_rank: one below it is allowed, in both orientations."""
    for sizes in ((4, 9), (9, 4)):
        lora.check_rank(3, *sizes)
        with pytest.raises(ValueError, match="from rank 4 on the product can be any matrix"):
            lora.check_rank(4, *sizes)


def test_the_rank_below_the_dimension_is_allowed(net):
    assert inject_lora(net, "0|2", rank=5, alpha=-1) == ["0", "2"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("default", "there is an adapter default already"),
        ("a.b", r"name is 'a\.b'; an adapter's is made of letters"),
        ("", "name is ''"),
    ],
)
def test_check_name_and_check_new_refuse(net, name, said):
    inject_lora(net, "0", rank=2, alpha=2)
    for pattern in ("0", "2|0"):
        with pytest.raises(ValueError, match=said):
            inject_lora(net, pattern, rank=2, alpha=2, name=name)
    assert list(lora_layers(net)) == ["0"]


def test_while_merged_nothing_else_is_done(net):
    inject_lora(net, "0", rank=2, alpha=2)
    lora.merge_lora(net)
    with pytest.raises(RuntimeError, match="unmerge before adding second"):
        inject_lora(net, "0", rank=2, alpha=2, name="second")
    with pytest.raises(RuntimeError, match="unmerge before others are chosen"):
        use_adapters(net, [])
    with pytest.raises(RuntimeError, match="unmerge before default is removed"):
        lora.remove_adapter(net, "default")


def test_use_adapters_refuses_an_unknown_name(net):
    with pytest.raises(ValueError, match="Sequential has no adapters; call inject_lora first"):
        use_adapters(net, [])
    inject_lora(net, "0", rank=2, alpha=2)
    with pytest.raises(ValueError, match="there is no adapter other; there are default"):
        use_adapters(net, ["other"])


def test_merge_refuses_a_weight_that_is_not_finite(net):
    inject_lora(net, "0", rank=2, alpha=2)
    with torch.no_grad():
        net[0].adapters["default"].B[0] = math.inf
    with pytest.raises(ValueError, match="is not finite; not merged"):
        lora.merge_lora(net)
    assert net[0].base.weight.isfinite().all()


def test_merge_refuses_a_shared_weight(decoder):
    decoder.out.weight = decoder.token_embedding.weight
    inject_lora(decoder, "out", rank=2, alpha=2)
    with pytest.raises(RuntimeError, match="out shares its weight with token_embedding"):
        lora.merge_lora(decoder)
