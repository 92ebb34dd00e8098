"""Published weights in our modules: what loads, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformer_inputs import (
    EXACT,
    bert,
    close,
    llama,
    sentences,
    t5,
)
from transformers import (
    BertConfig,
    ElectraConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    Qwen2Config,
    RobertaConfig,
    SmolLM3Config,
    T5Config,
    UMT5Config,
    XLMRobertaConfig,
)

from course_utils.architectures.pretrained import (
    bert_config,
    llama_config,
    load_llama_weights,
    load_t5_weights,
    t5_config,
)


@torch.no_grad()
def test_minilm_in_double_precision(minilm, our_minilm):
    """The same in 64 bits, where 5e-5 becomes 1e-10: the difference in fp32 is rounding."""
    theirs, tokenizer = minilm
    ids, mask = sentences(tokenizer)
    wide, wide_ours = copy.deepcopy(theirs).double(), copy.deepcopy(our_minilm).double()
    expected = wide(ids, mask).last_hidden_state
    torch.testing.assert_close(wide_ours(ids, mask)[mask.bool()], expected[mask.bool()], **EXACT)


@pytest.mark.gpu
@pytest.mark.parametrize("family", [bert, llama, t5])
def test_gpu_computes_what_the_cpu_does(family):
    """Double precision, so that only the kernels differ; the loss is of every logit."""
    ours, _ = family()
    ids, mask = torch.randint(1, 40, (2, 9)), torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    results = []
    for device in ("cpu", "cuda"):
        ours, on_device = ours.to(device), (ids.to(device), mask.to(device))
        arguments = (on_device[0], *on_device) if family is t5 else on_device
        logits = ours(*arguments)[mask.bool().to(device)]
        grads = torch.autograd.grad(logits.square().mean(), list(ours.parameters()))
        results.append([tensor.cpu() for tensor in (logits, *grads)])
    for got, expected in zip(*results, strict=True):
        close(got, expected, 1e-5)  # rotary angles have 32 bits


def test_a_configuration_we_do_not_build():
    with pytest.raises(ValueError, match="hidden_act is 'relu'; this module does 'gelu'"):
        bert_config(BertConfig(hidden_act="relu").to_dict())
    with pytest.raises(ValueError, match="attention_bias is True"):
        llama_config(LlamaConfig(attention_bias=True).to_dict())
    with pytest.raises(ValueError, match="feed_forward_proj is 'gated-silu'"):
        t5_config(T5Config(feed_forward_proj="gated-silu").to_dict())


@pytest.mark.parametrize(
    ("read", "config"),
    [
        (llama_config, MistralConfig()),
        (llama_config, MistralConfig(sliding_window=None)),
        (llama_config, GraniteConfig(embedding_multiplier=12.0)),
        (llama_config, SmolLM3Config()),
        (llama_config, Qwen2Config()),
        (llama_config, GemmaConfig()),
        (bert_config, RobertaConfig()),
        (bert_config, XLMRobertaConfig()),
        (bert_config, ElectraConfig()),
        (t5_config, MT5Config()),
        (t5_config, UMT5Config()),
        (t5_config, LlamaConfig()),
    ],
)
def test_families_that_only_look_alike_are_refused_by_name(read, config):
    """Their weights have fitting names and shapes, and would give wrong numbers in silence."""
    with pytest.raises(ValueError, match=f"model_type is '{config.model_type}'; this module is"):
        read(config.to_dict())


@pytest.mark.parametrize(
    ("read", "config", "message"),
    [
        (llama_config, LlamaConfig(sliding_window=4096), "sliding_window is 4096; this module has"),
        (llama_config, LlamaConfig(logits_scaling=8.0), "logits_scaling is 8.0"),
        (llama_config, LlamaConfig(mlp_bias=True), "mlp_bias is True"),
        (llama_config, LlamaConfig(pretraining_tp=2), "pretraining_tp is 2"),
        (bert_config, BertConfig(is_decoder=True), "is_decoder is True"),
        (bert_config, BertConfig(add_cross_attention=True), "add_cross_attention is True"),
        (bert_config, BertConfig(position_embedding_type="relative_key"), "relative_key"),
        (bert_config, BertConfig(embedding_size=128), "embedding_size is 128"),
        (t5_config, T5Config().to_dict() | {"dense_act_fn": "gelu"}, "dense_act_fn"),
        (t5_config, T5Config(is_decoder=True), "is_decoder is True"),
    ],
)
def test_every_field_that_is_not_understood_is_refused(read, config, message):
    with pytest.raises(ValueError, match=message):
        read(config if isinstance(config, dict) else config.to_dict())


def test_what_a_configuration_may_also_hold():
    """Fields that change no number, and fields that say no."""
    config = LlamaConfig().to_dict()
    extra = {"sliding_window": None, "use_sliding_window": False, "_commit": "x", "layer_types": []}
    harmless = {"dtype": "bfloat16", "use_cache": False, "unk_token_id": 3, "architectures": ["A"]}
    assert llama_config(config | extra | harmless) == llama_config(config)
    with pytest.raises(ValueError, match=r"has no rope_parameters; give config\.to_dict"):
        llama_config({n: v for n, v in config.items() if n != "rope_parameters"})
    with pytest.raises(ValueError, match="model_type is None"):
        llama_config({n: v for n, v in config.items() if n != "model_type"})


def test_weights_of_another_model():
    ours, theirs = llama()
    state = theirs.state_dict()
    with pytest.raises(ValueError, match=r"no layers\.1\.mlp\.up_proj\.weight"):
        load_llama_weights(ours, {n: p for n, p in state.items() if "1.mlp.up" not in n})
    with pytest.raises(ValueError, match=r"no place for layers\.2\.x"):
        load_llama_weights(ours, state | {"model.layers.2.x": torch.zeros(1)})
    wrong = {"model.norm.weight": torch.zeros(25)}
    with pytest.raises(ValueError, match=r"norm\.weight is \(25,\), our norm\.weight is \(24,\)"):
        load_llama_weights(ours, state | wrong)
    with pytest.raises(ValueError, match=r"and \d+ more"):
        load_t5_weights(t5()[0], state)
