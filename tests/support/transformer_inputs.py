"""What the tests of transformer share."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import Encoder, MaskedLM
from course_utils.architectures.encoder_decoder import EncoderDecoder
from course_utils.architectures.pretrained import (
    bert_config,
    llama_config,
    load_bert_weights,
    load_llama_weights,
    load_t5_weights,
    t5_config,
)

# Double precision: two implementations of one formula differ by rounding alone.
EXACT = {"atol": 1e-10, "rtol": 1e-10}


WORDS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
]


def close(ours, theirs, share):
    """Largest difference as a share of the largest number: fp32 rounding grows with both."""
    difference = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    assert difference <= share * largest + 1e-12, (
        f"largest difference {difference:.2e} of {largest:.2e}"
    )


def same_gradients(ours, theirs, load, share):
    """Gradients of every weight: theirs, renamed by the loader itself, against ours."""
    grads = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in theirs.named_parameters()
    }
    renamed = copy.deepcopy(ours)
    load(renamed, {n: grads.get(n, p) for n, p in theirs.state_dict().items()})
    expected = dict(renamed.named_parameters())
    for name, parameter in ours.named_parameters():
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 1e-6, (
            name
        )  # softmax drops it
        close(parameter.grad, expected[name].data, share)


def randomised(model, mean=0.1):
    """Every weight drawn, norms and biases too: at 1 and 0 a swapped pair would go unnoticed."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=mean, std=0.3)
    return model.double().eval()


def sentences(tokenizer):
    texts = ["A cat sat.", "The weather today is rather pleasant, isn't it?", "Yes"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    return batch.input_ids, batch.attention_mask


def bert(**options):
    config = BertConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=50,
        max_position_embeddings=16,
        type_vocab_size=2,
        layer_norm_eps=1e-3,
        **options,
    )
    theirs = randomised(BertForMaskedLM(config))
    ours = MaskedLM(Encoder(bert_config(config.to_dict())))
    ours = ours.double().eval()
    load_bert_weights(ours, theirs.state_dict())
    return ours, theirs


LLAMAS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 10, "num_key_value_heads": 2},
    "untied": {"tie_word_embeddings": False},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 8,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 4.0,
            "rope_theta": 1e4,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
}


def llama(name="plain", longest=32):
    options = {"num_key_value_heads": 4, "tie_word_embeddings": True} | LLAMAS[name]
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=50,
        max_position_embeddings=longest,
        rms_norm_eps=1e-3,
        **options,
    )
    theirs = randomised(LlamaForCausalLM(config))
    ours = Decoder(llama_config(config.to_dict())).double().eval()
    load_llama_weights(ours, theirs.state_dict())
    # rotary angles stay 32 bits in transformers: give both the same
    ours.frequencies = ours.frequencies.float()
    return ours, theirs


def t5(mean=0.1, **options):
    config = T5Config(
        vocab_size=40,
        d_model=24,
        d_kv=5,
        d_ff=50,
        num_layers=3,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        layer_norm_epsilon=1e-3,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **options,
    )
    theirs = randomised(T5ForConditionalGeneration(config), mean)
    ours = EncoderDecoder(t5_config(config.to_dict())).double().eval()
    load_t5_weights(ours, theirs.state_dict())
    return ours, theirs


def seq2seq_batch():
    source, target = torch.randint(2, 40, (3, 14)), torch.randint(2, 40, (3, 12))
    mask = (torch.arange(14) < torch.tensor([[14], [6], [1]])).long()
    return source, mask, target


def decoder_on(ids, mask=None, cache=None):
    config = DecoderConfig(20, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_positions=6)
    with torch.no_grad():
        return Decoder(config)(ids, mask, cache)


SOME = torch.ones(2, 4, dtype=torch.long)


# transformers' RMSNorm computes in 32 bits (6e-8 of a number) even where the rest has 64.
NORMS_ROUNDED = 2e-6
