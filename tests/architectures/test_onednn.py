"""oneDNN's product against torch's own: values, gradients, and when it stands back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.architectures import onednn
from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import Encoder, EncoderConfig, MaskedLM
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.recurrent import RecurrentLM
from course_utils.architectures.seq2seq import RecurrentSeq2Seq

SHAPES = [(2, 3), (5, 3), (2, 4, 3), (1, 3), (0, 3)]  # rows; a batch of them; one row; none


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_torchs(shape, dtype, with_bias):
    """Values and the three gradients; wider and narrower outputs take different paths."""
    for n_out in (2, 7):
        x, weight = draw(*shape, dtype=dtype), draw(n_out, 3, dtype=dtype)
        bias = draw(n_out, dtype=dtype) if with_bias else None
        leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
        grad = torch.ones(*shape[:-1], n_out, dtype=dtype).cumsum(-1)
        results = []
        for form in (onednn.linear, F.linear):
            y = form(x, weight, bias)
            results.append([y, *torch.autograd.grad(y, leaves, grad)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)  # defaults per dtype: other summation order
            assert ours.is_contiguous()


def test_linear_by_hand():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    x = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    expected = torch.tensor([[3.0, 7.0, 11.0], [4.0, 8.0, 12.0]])
    assert torch.equal(onednn.product(x, weight), expected)
    assert torch.equal(
        onednn.linear(x, weight, torch.tensor([1.0, 0.0, 0.0]))[:, 0], torch.tensor([4.0, 5.0])
    )


def test_outer_is_the_weight_gradient():
    for n_out, n_in in ((5, 3), (3, 5)):
        grad, x = draw(4, n_out).detach(), draw(4, n_in).detach()
        torch.testing.assert_close(onednn.outer(grad, x), grad.t() @ x)


def test_strided_operands():
    """Views cost no copy and change no number."""
    x, weight = draw(8, 6).detach(), draw(10, 6).detach()
    torch.testing.assert_close(
        onednn.product(x[::2, :4], weight[1:, :4]), x[::2, :4] @ weight[1:, :4].t()
    )


def test_transforms_and_autocast_fall_back():
    weight, x = draw(4, 3).detach(), draw(5, 3).detach()
    jacobian = torch.func.jacrev(lambda row: onednn.linear(row.unsqueeze(0), weight)[0])
    torch.testing.assert_close(torch.vmap(jacobian)(x), weight.expand(5, 4, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert onednn.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.skipif(onednn._onednn is None, reason="this build of torch has no oneDNN product")
def test_onednn_can_be_switched_off(monkeypatch):
    """The switch is torch's own, and both products agree."""
    calls = []
    inner = onednn._onednn
    monkeypatch.setattr(onednn, "_onednn", lambda *a: calls.append(1) or inner(*a))
    x, weight = draw(64, 32).detach(), draw(16, 32).detach()
    through_onednn = onednn.product(x, weight)
    assert calls == [1]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.testing.assert_close(onednn.product(x, weight), through_onednn)
    assert calls == [1]


def test_linear_module_loads_torchs():
    torch.manual_seed(0)
    theirs, ours = nn.Linear(3, 5), onednn.OneDNNLinear(3, 5)
    ours.load_state_dict(theirs.state_dict())
    x = draw(4, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert isinstance(ours, nn.Linear)  # what looks for nn.Linear (LoRA, quantizers) finds it


def test_use_onednn_changes_no_number():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    x, state = draw(5, 6), model.state_dict()
    before = model(x)
    assert onednn.use_onednn(model) == 2
    assert onednn.use_onednn(model) == 0
    torch.testing.assert_close(model(x), before)
    assert model.state_dict().keys() == state.keys()


SHARED = {"vocab_size": 40, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64}
NETS = {
    "encoder": lambda: MaskedLM(Encoder(EncoderConfig(**SHARED))),
    "decoder": lambda: Decoder(DecoderConfig(**SHARED)),
    "encoder–decoder": lambda: EncoderDecoder(EncoderDecoderConfig(**SHARED)),
    "recurrent": lambda: RecurrentLM("gru", 40, 32),
    "attention": lambda: RecurrentSeq2Seq(40, 40, d_model=32, d_hidden=32, attention=True),
}


@pytest.mark.parametrize("name", NETS)
def test_nets_are_built_of_torchs_linear(name):
    """What makes them fast is a call of its own, and changes no logit and no gradient."""
    torch.manual_seed(0)
    net = NETS[name]()
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert {type(module) for module in linears} == {nn.Linear}
    ids = torch.randint(40, (3, 7))
    arguments = (ids, ids) if name in ("encoder–decoder", "attention") else (ids,)
    results = []
    for expected in (len(linears), 0):
        logits = net(*arguments)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), net.parameters())])
        assert onednn.use_onednn(net) == expected
    for fast, plain in zip(*reversed(results), strict=True):
        # fp32, sums in another order: a share of the largest number, which cancellation cannot move
        assert (fast - plain).abs().max() <= 2e-6 * plain.abs().max() + 1e-12
