"""Published weights in our own modules: BERT, Llama and T5. Notebook 03.

Configurations and `state_dict()`s of transformers come in as plain mappings, and every field that
the modules do not follow is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.encoder import Encoder, EncoderConfig, MaskedLM
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.layers import copy_weights

# ── real weights ──────────────────────────────────────────────────────────────────────────────────


# Fields of any transformers configuration that change no number of a trained model's answer.
BOOKKEEPING = {
    *("transformers_version", "architectures", "dtype", "tokenizer_class", "task_specific_params"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_cache", "n_positions"),
    *("id2label", "label2id", "problem_type", "initializer_range", "initializer_factor"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout_rate"),
    *("classifier_dropout", "chunk_size_feed_forward"),  # pieces of a batch, one after the other
}


def check_config(
    config: Mapping[str, Any], model_type: str, sizes: Collection[str], **wanted: Any
) -> None:
    """Raise ValueError where a configuration asks for what the module does not do.

    `sizes` are the fields that the module follows whatever they hold; `wanted` those of which it
    does one value, or one of a tuple. Any other must be bookkeeping, or hold nothing: what is not
    known here may change every number.
    """
    if config.get("model_type") != model_type:
        found = config.get("model_type")
        raise ValueError(f"model_type is {found!r}; this module is made for {model_type!r} alone")
    for name, values in wanted.items():
        values = values if isinstance(values, tuple) else (values,)
        if config.get(name, values[0]) not in values:
            does = " or ".join(map(repr, values))
            raise ValueError(f"{name} is {config[name]!r}; this module does {does}")
    if missing := [name for name in sizes if name not in config]:
        raise ValueError(f"the configuration has no {', '.join(missing)}; give config.to_dict()")
    known = {"model_type", *sizes, *wanted, *BOOKKEEPING}
    for name, value in config.items():
        harmless = name in known or name.startswith("_") or name.endswith("_token_id")
        if not harmless and value not in (None, False, [], {}):
            raise ValueError(f"{name} is {value!r}; this module has no such thing")


def bert_config(config: Mapping[str, Any]) -> EncoderConfig:
    """The configuration of a transformers BERT (`config.to_dict()`), without its dropout."""
    ours = {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "d_ff": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "n_segments": "type_vocab_size",
        "eps": "layer_norm_eps",
    }
    check_config(
        config,
        "bert",
        ours.values(),
        hidden_act="gelu",
        position_embedding_type="absolute",
        is_decoder=False,
        add_cross_attention=False,
        is_encoder_decoder=False,
        tie_word_embeddings=True,
    )
    return EncoderConfig(**{name: config[theirs] for name, theirs in ours.items()})


def llama_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The configuration of a transformers Llama (`config.to_dict()`), without its dropout."""
    ours = {
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        "d_ff": "intermediate_size",
        "n_kv_heads": "num_key_value_heads",
        "d_head": "head_dim",
        "max_positions": "max_position_embeddings",
        "eps": "rms_norm_eps",
        "tied": "tie_word_embeddings",
    }
    check_config(
        config,
        "llama",
        [*ours.values(), "rope_parameters"],
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        pretraining_tp=1,
        is_encoder_decoder=False,
    )
    rope = dict(config["rope_parameters"])
    theta = rope.pop("rope_theta")
    sizes = {name: config[theirs] for name, theirs in ours.items()}
    return DecoderConfig(**sizes, theta=theta, scaling=rope)


def t5_config(config: Mapping[str, Any]) -> EncoderDecoderConfig:
    """The configuration of a transformers T5 (`config.to_dict()`), without its dropout."""
    ours = {
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "n_heads": "num_heads",
        "n_layers": "num_layers",
        "d_ff": "d_ff",
        "n_decoder_layers": "num_decoder_layers",
        "d_head": "d_kv",
        "n_buckets": "relative_attention_num_buckets",
        "max_distance": "relative_attention_max_distance",
        "eps": "layer_norm_epsilon",
    }
    gated = config.get("feed_forward_proj") == "gated-gelu"
    check_config(
        config,
        "t5",
        ours.values(),
        feed_forward_proj=("relu", "gated-gelu"),
        is_gated_act=gated,
        dense_act_fn="gelu_new" if gated else "relu",
        scale_decoder_outputs=(True, False),
        tie_word_embeddings=True,
        is_encoder_decoder=True,
        is_decoder=False,
    )
    sizes = {name: config[theirs] for name, theirs in ours.items()}
    tied = config.get("scale_decoder_outputs", True)  # T5 v1.1: a table of its own, and no scale
    return EncoderDecoderConfig(**sizes, gated=gated, tied=tied)


def _names(prefix: str, theirs: str, pairs: Mapping[str, str], *parts: str) -> dict[str, str]:
    """{our parameter: theirs} for modules under two prefixes, for each of their parts."""
    return {
        f"{prefix}{ours}.{part}": f"{theirs}{name}.{part}"
        for ours, name in pairs.items()
        for part in parts
    }


def _without(state: Mapping[str, Tensor], prefix: str, skip: tuple[str, ...]) -> dict[str, Tensor]:
    """Names without a model's outer prefix, and without what the module has no use for."""
    short = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in short.items() if not name.startswith(skip)}


def load_bert_weights(model: Encoder | MaskedLM, state: Mapping[str, Tensor]) -> None:
    """Copy a transformers BERT's `state_dict()` into ours.

    The pooler is left out, the masked-language head goes to a `MaskedLM` alone. ValueError lists
    what is missing, left over or of another size.
    """
    encoder = model.encoder if isinstance(model, MaskedLM) else model
    ours = "encoder." if isinstance(model, MaskedLM) else ""
    embeddings = {
        "token_embedding": "word_embeddings",
        "position_embedding": "position_embeddings",
        "segment_embedding": "token_type_embeddings",
    }
    names = _names(ours, "embeddings.", embeddings, "weight")
    names |= _names(ours, "embeddings.", {"norm": "LayerNorm"}, "weight", "bias")
    block = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    for i in range(encoder.config.n_layers):
        names |= _names(f"{ours}blocks.{i}.", f"encoder.layer.{i}.", block, "weight", "bias")
    skip = ("pooler.", "embeddings.position_ids", "cls.predictions.decoder.")
    if isinstance(model, MaskedLM):
        head = {"transform": "transform.dense", "norm": "transform.LayerNorm"}
        names |= _names("", "cls.predictions.", head, "weight", "bias")
        names["out.bias"] = "cls.predictions.bias"
    copy_weights(model, _without(state, "bert.", (*skip, "cls.seq_relationship.")), names, "BERT")


def load_llama_weights(model: Decoder, state: Mapping[str, Tensor]) -> None:
    """Copy a transformers Llama's `state_dict()` into ours.

    ValueError lists what is missing, left over or of another size.
    """
    names = {"token_embedding.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}
    block = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
        "feed_forward_norm": "post_attention_layernorm",
    }
    for i in range(model.config.n_layers):
        names |= _names(f"blocks.{i}.", f"layers.{i}.", block, "weight")
    if not model.config.tied:
        names["out.weight"] = "lm_head.weight"
    skip = ("rotary_emb.", *(("lm_head.",) if model.config.tied else ()))
    copy_weights(model, _without(state, "model.", skip), names, "Llama")


def load_t5_weights(model: EncoderDecoder, state: Mapping[str, Tensor]) -> None:
    """Copy a transformers T5's `state_dict()` into ours.

    ValueError lists what is missing, left over or of another size.
    """
    names = {"token_embedding.weight": "shared.weight"}
    sides = {"encoder": model.config.n_layers, "decoder": model.n_decoder_layers}
    for side, n_layers in sides.items():
        names[f"{side}.norm.weight"] = f"{side}.final_layer_norm.weight"
        first = f"{side}.block.0.layer.0.SelfAttention"
        names[f"{side}.position_bias.weight"] = f"{first}.relative_attention_bias.weight"
        block = _t5_block(side == "decoder", model.config.gated)
        for i in range(n_layers):
            names |= _names(f"{side}.blocks.{i}.", f"{side}.block.{i}.layer.", block, "weight")
    if not model.config.tied:
        names["out.weight"] = "lm_head.weight"
    skip = ("encoder.embed_tokens.", "decoder.embed_tokens.")  # the shared table again
    skip += ("lm_head.",) if model.config.tied else ()
    copy_weights(model, _without(state, "transformer.", skip), names, "T5")


def _t5_block(decoder: bool, gated: bool) -> dict[str, str]:
    """Our names of one T5 block's parts, and theirs: layers 0, 1 (decoder: cross) and the last."""
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    block = {f"attention.{ours}": f"0.SelfAttention.{name}" for ours, name in parts.items()}
    block["attention_norm"] = "0.layer_norm"
    if decoder:
        block |= {f"cross.{ours}": f"1.EncDecAttention.{name}" for ours, name in parts.items()}
        block["cross_norm"] = "1.layer_norm"
    last = "2" if decoder else "1"
    up = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    for ours, name in {**up, "down": "wo"}.items():
        block[f"feed_forward.{ours}"] = f"{last}.DenseReluDense.{name}"
    block["feed_forward_norm"] = f"{last}.layer_norm"
    return block
